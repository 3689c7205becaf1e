//! A self-contained HTML page about results.

use std::fmt::Write as _;

use super::{
    compare::name,
    number,
    plot::{Chart, Line, escape},
    table::ledger,
};
use crate::{
    figures::figures,
    histogram::Histogram,
    outcome::{Outcome, Point},
};

/// Renders the page. Results of one scenario share a section and its charts.
pub(crate) fn page(results: &[(String, Outcome)]) -> String {
    let mut body = String::new();
    let mut scenarios: Vec<&str> = Vec::new();
    for (_, outcome) in results {
        if !scenarios.contains(&outcome.scenario.as_str()) {
            scenarios.push(&outcome.scenario);
        }
    }
    for scenario in scenarios {
        let of_it: Vec<_> = results
            .iter()
            .filter(|(_, outcome)| outcome.scenario == scenario)
            .map(|(path, outcome)| (name(path, outcome), outcome))
            .collect();
        section(scenario, &of_it, &mut body);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Load test</title>\n<style>{STYLE}</style></head>\n<body>\n\
         <h1>Load test</h1>\n{body}</body></html>\n"
    )
}

fn section(scenario: &str, results: &[(String, &Outcome)], body: &mut String) {
    let _ = writeln!(body, "<section><h2>{}</h2>", escape(scenario));
    for (name, outcome) in results {
        head(name, outcome, body);
    }
    figure_table(results, body);
    latency_charts(results, body);
    for (title, unit, from, value) in CHARTS {
        time_chart(title, unit, *from, *value, results, body);
    }
    body.push_str("</section>\n");
}

fn head(name: &str, outcome: &Outcome, body: &mut String) {
    let settings = outcome
        .settings
        .iter()
        .map(|(name, value)| format!("{name} {value}"));
    let settings: Vec<String> = settings.collect();
    let _ = writeln!(
        body,
        "<h3>{}</h3>\n<p>{}: {}. {:.1} s, loaders: {}. {}</p>",
        escape(name),
        escape(&outcome.targets.join(", ")),
        escape(&settings.join(", ")),
        outcome.seconds,
        outcome.parts,
        escape(&outcome.machine)
    );
    let class = if outcome.is_clean() { "clean" } else { "fault" };
    let _ = writeln!(
        body,
        "<p class=\"{class}\">{}: {}</p>",
        if outcome.is_clean() {
            "No fault"
        } else {
            "Faults"
        },
        escape(&ledger(&outcome.ledger))
    );
    for limit in &outcome.limited_by {
        let _ = writeln!(body, "<p class=\"fault\">Limited by {}</p>", escape(limit));
    }
    for gauge in &outcome.gauges {
        let after = gauge.after.map_or_else(|| "gone".to_owned(), number);
        let (name, before) = (escape(&gauge.name), number(gauge.before));
        let _ = writeln!(body, "<p>{name}: {before} before, {after} after</p>");
    }
    for note in &outcome.notes {
        let _ = writeln!(body, "<p>Note: {}</p>", escape(note));
    }
    for (reason, count) in &outcome.ends {
        let _ = writeln!(
            body,
            "<p>Connections ended, {}: {count}</p>",
            escape(reason)
        );
    }
}

fn figure_table(results: &[(String, &Outcome)], body: &mut String) {
    body.push_str("<table><tr><th>figure</th><th>unit</th>");
    for (name, _) in results {
        let _ = write!(body, "<th>{}</th>", escape(name));
    }
    body.push_str("</tr>\n");
    let sets: Vec<_> = results
        .iter()
        .map(|(_, outcome)| figures(outcome))
        .collect();
    let mut shown: Vec<&str> = Vec::new();
    for figure in sets.iter().flatten() {
        if shown.contains(&figure.name.as_str()) {
            continue;
        }
        shown.push(&figure.name);
        let _ = write!(
            body,
            "<tr><td>{}</td><td>{}</td>",
            escape(&figure.name),
            figure.unit
        );
        for set in &sets {
            let found = set.iter().find(|other| other.name == figure.name);
            let cell = found.map_or_else(String::new, |figure| number(figure.value));
            let _ = write!(body, "<td>{cell}</td>");
        }
        body.push_str("</tr>\n");
    }
    body.push_str("</table>\n");
}

/// Draws one chart per kind of latency: percentiles on a scale with equidistant nines.
fn latency_charts(results: &[(String, &Outcome)], body: &mut String) {
    let mut kinds: Vec<&str> = Vec::new();
    for kind in results
        .iter()
        .flat_map(|(_, outcome)| outcome.latencies.keys())
    {
        if !kinds.contains(&kind.as_str()) {
            kinds.push(kind);
        }
    }
    for kind in kinds {
        let lines = results.iter().filter_map(|(name, outcome)| {
            Some(Line {
                name: name.clone(),
                points: percentiles(outcome.latencies.get(kind)?),
            })
        });
        let nines = [
            (0.0, "0"),
            (1.0, "90 %"),
            (2.0, "99 %"),
            (3.0, "99.9 %"),
            (4.0, "99.99 %"),
        ];
        let chart = Chart {
            title: &format!("Latency, {kind}, by percentile"),
            y_unit: "ms",
            x_marks: nines.map(|(at, text)| (at, text.to_owned())).to_vec(),
            is_y_logarithmic: true,
            lines: lines.collect(),
        };
        body.push_str(&chart.svg());
    }
}

/// Points between the minimum and the 99.99th percentile.
fn percentiles(histogram: &Histogram) -> Vec<(f64, f64)> {
    (0..=80)
        .map(|at| f64::from(at) / 20.0)
        .map(|nines| {
            let percentile = 100.0 * (1.0 - 10_f64.powf(-nines));
            (nines, histogram.percentile_ms(percentile))
        })
        .collect()
}

fn time_chart(
    title: &str,
    unit: &str,
    from: f64,
    value: fn(&Point, &Point) -> f64,
    results: &[(String, &Outcome)],
    body: &mut String,
) {
    let lines = results.iter().map(|(name, outcome)| Line {
        name: name.clone(),
        points: outcome
            .series
            .windows(2)
            .filter(|pair| pair[1].at >= from)
            .map(|pair| (pair[1].at, value(&pair[0], &pair[1])))
            .collect(),
    });
    let chart = Chart {
        title,
        y_unit: unit,
        x_marks: Vec::new(),
        is_y_logarithmic: false,
        lines: lines.collect(),
    };
    if chart
        .lines
        .iter()
        .flat_map(|line| &line.points)
        .any(|(_, y)| *y > 0.0)
    {
        body.push_str(&chart.svg());
    }
}

/// Title, unit, first second, and the value between two points of a series.
type Timed = (&'static str, &'static str, f64, fn(&Point, &Point) -> f64);

/// The set-up phase is not shown in charts about messages.
const WITH_TRAFFIC: f64 = -2.0;
const ALL: f64 = f64::NEG_INFINITY;

const CHARTS: &[Timed] = &[
    (
        "Deliveries over time",
        "per second",
        WITH_TRAFFIC,
        |last, point| {
            let count = point.deliveries.saturating_sub(last.deliveries);
            count as f64 / (point.at - last.at).max(1e-3)
        },
    ),
    ("Connections over time", "open", ALL, |_, point| {
        point.connections as f64
    }),
    ("Server memory over time", "resident MB", ALL, |_, point| {
        point.server_rss_bytes as f64 / 1e6
    }),
    ("Server CPU over time", "% of a core", ALL, |last, point| {
        let nanos = point.server_cpu_nanos.saturating_sub(last.server_cpu_nanos);
        nanos as f64 / 1e7 / (point.at - last.at).max(1e-3)
    }),
];

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
padding:0 1rem;color:#222;background:#fff}table{border-collapse:collapse;margin:1rem 0}\
td,th{padding:.1rem .8rem;text-align:right;border-bottom:1px solid #8884}\
td:first-child,th:first-child{text-align:left}figure{margin:1.5rem 0}\
figcaption{font-weight:600}svg{width:100%;height:auto;font:12px system-ui,sans-serif}\
svg text{fill:currentColor}svg line{stroke:#8883}.clean{color:#2a7d3f}.fault{color:#c0392b;\
font-weight:600}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}";

#[cfg(test)]
mod tests {
    use super::*;

    fn result(label: &str) -> (String, Outcome) {
        let mut outcome = Outcome::new("fan-out");
        outcome.label = label.to_owned();
        outcome.seconds = 1.0;
        outcome.set("deliveries", 100);
        let mut histogram = Histogram::new();
        (1..1000).for_each(|at| histogram.record(at * 10_000));
        outcome.time("delivery", &histogram);
        outcome.series = (0..10_u64)
            .map(|at| Point {
                at: at as f64,
                deliveries: at * 100,
                connections: 5,
                ..Point::default()
            })
            .collect();
        ("x.json".to_owned(), outcome)
    }

    #[test]
    fn a_page_holds_charts_and_tables_and_loads_nothing() {
        let (path, mut second) = result("<b>");
        second.ledger.lost = 3;
        second.limit("the moon");
        let page = page(&[result("first"), (path, second)]);
        for part in [
            "first",
            "&lt;b&gt;",
            "3 lost",
            "Limited by the moon",
            "<polyline",
            "deliveries per second",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("<figure>").count(), 3);
        for loads in ["<script", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(loads), "{loads}");
        }
        assert!(!page.contains("NaN"));
    }
}
