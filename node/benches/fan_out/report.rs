//! From samples to figures: medians, ranges, ratios, verdicts; as markdown and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::clients::Wait;
use crate::ledger::Tally;
use crate::scenario::{Memory, Sample};
use crate::table::{Round, Row};

pub(crate) struct Report<'a> {
    pub(crate) machine: String,
    /// Which process ran where.
    pub(crate) placing: String,
    /// Whether server and generator had a core each; without, no figure is judged.
    pub(crate) pinned: bool,
    pub(crate) wait: Wait,
    pub(crate) subject: &'a str,
    pub(crate) results: &'a [(Row, Vec<Round>)],
}

/// One line of the table.
struct Figure {
    name: String,
    floor: Spread,
    subject: Spread,
    /// Per round, and the best of the one over the best of the other.
    ratio: Option<(Spread, f64)>,
    bar: Option<Bar>,
}

/// What a figure must not exceed.
#[derive(Clone, Copy)]
enum Bar {
    Ratio(f64),
    Absolute(f64),
}

#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Report<'_> {
    pub(crate) fn is_clean(&self) -> bool {
        self.results
            .iter()
            .flat_map(|(_, rounds)| rounds)
            .all(Round::is_clean)
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write_markdown(&mut text);
        text
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.results.iter().map(|(row, rounds)| {
            let figures: Vec<Value> = self.figures(row, rounds).iter().map(Figure::json).collect();
            let rounds: Vec<Value> = rounds
                .iter()
                .map(|round| {
                    json!({
                        "floor": sample_json(row.name, &round.floor),
                        "subject": sample_json(row.name, &round.subject),
                    })
                })
                .collect();
            json!({ "scenario": row.name, "figures": figures, "rounds": rounds })
        });
        json!({
            "machine": self.machine,
            "cores": self.placing,
            "wait": self.wait.name(),
            "command": command_line(),
            "subject": self.subject,
            "clean": self.is_clean(),
            "rows": rows.collect::<Vec<Value>>(),
        })
    }

    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        let rounds = self.results.first().map_or(0, |(_, rounds)| rounds.len());
        writeln!(out, "Machine: {}; {}.", self.machine, self.placing)?;
        writeln!(
            out,
            "Command: `{}`; {rounds} rounds, {} generator.",
            command_line(),
            self.wait.name()
        )?;
        writeln!(
            out,
            "Medians with range; best/best is the least of each over all rounds.\n"
        )?;
        writeln!(
            out,
            "| figure | floor | {} | ratio per round | best/best | bar | |",
            self.subject
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|")?;
        for (row, rounds) in self.results {
            for figure in self.figures(row, rounds) {
                writeln!(out, "{}", figure.line())?;
            }
        }
        self.write_ledger(out)?;
        self.write_notes(out)
    }

    fn figures(&self, row: &Row, rounds: &[Round]) -> Vec<Figure> {
        let mut figures = figures(row, rounds);
        if !self.pinned {
            figures.iter_mut().for_each(|figure| figure.bar = None);
        }
        figures
    }

    fn write_ledger(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "\n| ledger | arrived | lost | duplicated | out of order | corrupted |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|")?;
        for (row, rounds) in self.results {
            for (name, of) in SIDES {
                let mut total = Tally::default();
                rounds.iter().for_each(|round| total.add(&of(round).tally));
                let name = if name == "floor" { name } else { self.subject };
                let Tally {
                    arrived,
                    lost,
                    duplicated,
                    out_of_order,
                    corrupted,
                } = total;
                let label = format!("{}, {name}", row.name);
                writeln!(
                    out,
                    "| {label} | {arrived} | {lost} | {duplicated} | {out_of_order} | {corrupted} |"
                )?;
            }
        }
        Ok(())
    }

    /// What a reader must know before believing the table.
    fn write_notes(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out)?;
        if !self.pinned {
            writeln!(
                out,
                "- Not pinned: the ledger counts, the ratios are not judged."
            )?;
        }
        for (row, rounds) in self.results {
            for (name, of) in SIDES {
                let name = if name == "floor" { name } else { self.subject };
                for (index, sample) in rounds.iter().map(of).enumerate() {
                    let run = format!("{}, {name}, round {}", row.name, index + 1);
                    if let Some(fault) = &sample.fault {
                        writeln!(out, "- FAILED: {run}: {fault}")?;
                    } else if !sample.tally.is_clean() {
                        writeln!(out, "- FAILED: {run}: the ledger is not clean")?;
                    }
                    if sample.generator_load() > 0.95 && sample.server_load() < 0.85 {
                        writeln!(
                            out,
                            "- Limited by the generator: {run}: it {:.0} %, the server {:.0} % busy",
                            sample.generator_load() * 100.0,
                            sample.server_load() * 100.0
                        )?;
                    }
                }
            }
        }
        let clean = if self.is_clean() {
            "Every ledger is clean."
        } else {
            "The run FAILED."
        };
        writeln!(out, "{clean}")
    }
}

impl Round {
    fn is_clean(&self) -> bool {
        self.floor.is_clean() && self.subject.is_clean()
    }
}

impl Figure {
    /// A figure of both sides; `None` where a side has none in some round.
    fn of(name: String, rounds: &[Round], value: impl Fn(&Sample) -> Option<f64>) -> Option<Self> {
        let floor: Vec<f64> = rounds
            .iter()
            .map(|r| value(&r.floor))
            .collect::<Option<_>>()?;
        let subject: Vec<f64> = rounds
            .iter()
            .map(|r| value(&r.subject))
            .collect::<Option<_>>()?;
        let ratios = subject
            .iter()
            .zip(&floor)
            .map(|(subject, floor)| subject / floor)
            .collect();
        let (floor, subject) = (Spread::of(floor)?, Spread::of(subject)?);
        let ratio = Some((Spread::of(ratios)?, subject.least / floor.least));
        Some(Self {
            name,
            floor,
            subject,
            ratio,
            bar: None,
        })
    }

    fn within(mut self, bar: Option<f64>) -> Self {
        self.bar = bar.map(Bar::Ratio);
        self
    }

    fn verdict(&self) -> &'static str {
        let (median, best, bar) = match (self.bar, self.ratio) {
            (Some(Bar::Ratio(bar)), Some((ratio, best))) => (ratio.median, best, bar),
            (Some(Bar::Absolute(bar)), _) => (self.subject.median, self.subject.median, bar),
            _ => return "",
        };
        match (median <= bar, best <= bar) {
            (true, true) => "met",
            (false, false) => "not met",
            (true, false) => "not met by best/best",
            (false, true) => "not met by the median",
        }
    }

    fn line(&self) -> String {
        let ratio = self
            .ratio
            .map_or_else(String::new, |(ratio, _)| ratio.text());
        let best = self
            .ratio
            .map_or_else(String::new, |(_, best)| format!("{best:.2}"));
        let bar = match self.bar {
            Some(Bar::Ratio(bar)) => format!("≤ {bar:.2}"),
            Some(Bar::Absolute(bar)) => format!("≤ {bar:.0}"),
            None => String::new(),
        };
        format!(
            "| {} | {} | {} | {ratio} | {best} | {bar} | {} |",
            self.name,
            self.floor.text(),
            self.subject.text(),
            self.verdict()
        )
    }

    fn json(&self) -> Value {
        json!({
            "figure": self.name,
            "floor": self.floor.json(),
            "subject": self.subject.json(),
            "ratio": self.ratio.map(|(ratio, _)| ratio.json()),
            "best_over_best": self.ratio.map(|(_, best)| best),
            "verdict": self.verdict(),
        })
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let upper = values[values.len() / 2];
        let lower = values[(values.len() - 1) / 2];
        Some(Self {
            median: f64::midpoint(lower, upper),
            least,
            most,
        })
    }

    fn text(self) -> String {
        let digits = if self.median >= 100.0 { 0 } else { 2 };
        let Self {
            median,
            least,
            most,
        } = self;
        format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.least, "max": self.most })
    }
}

/// One run's figures, for the JSON report and for a run against a server of one's own.
pub(crate) fn sample_json(scenario: &str, sample: &Sample) -> Value {
    let Tally {
        arrived,
        lost,
        duplicated,
        out_of_order,
        corrupted,
    } = sample.tally;
    json!({
        "scenario": scenario,
        "units": sample.units,
        "cpu_us_per_unit": sample.cpu_per_unit_us(),
        "server_load": sample.server_load(),
        "generator_load": sample.generator_load(),
        "window_seconds": sample.wall.as_secs_f64(),
        "p50_ms": sample.latency.map(|latency| latency.p50.as_secs_f64() * 1e3),
        "p99_ms": sample.latency.map(|latency| latency.p99.as_secs_f64() * 1e3),
        "bytes_per_connection": sample.memory.map(|memory| json!({
            "rss_before_traffic": memory.rss_before_traffic,
            "rss_after_traffic": memory.rss_after_traffic,
            "pss_after_traffic": memory.pss_after_traffic,
        })),
        "ledger": {
            "arrived": arrived, "lost": lost, "duplicated": duplicated,
            "out_of_order": out_of_order, "corrupted": corrupted,
        },
        "fault": sample.fault,
    })
}

fn figures(row: &Row, rounds: &[Round]) -> Vec<Figure> {
    let title = |what: &str| format!("`{}` {}: {what}", row.name, row.title);
    if let Some(bar) = row.memory_bar {
        let memory = |what: &str, value: fn(&Memory) -> f64| {
            let value = |sample: &Sample| sample.memory.as_ref().map(value);
            let mut figure = Figure::of(title(what), rounds, value)?;
            figure.ratio = None;
            figure.bar = Some(Bar::Absolute(bar));
            Some(figure)
        };
        return [
            memory("bytes each before traffic (Rss)", |memory| {
                memory.rss_before_traffic
            }),
            memory("bytes each after traffic (Rss)", |memory| {
                memory.rss_after_traffic
            }),
            memory("bytes each after traffic (Pss)", |memory| {
                memory.pss_after_traffic
            }),
        ]
        .into_iter()
        .flatten()
        .collect();
    }
    let cpu = |sample: &Sample| (sample.units > 0).then(|| sample.cpu_per_unit_us());
    let p50 = |sample: &Sample| {
        sample
            .latency
            .map(|latency| latency.p50.as_secs_f64() * 1e3)
    };
    let p99 = |sample: &Sample| {
        sample
            .latency
            .map(|latency| latency.p99.as_secs_f64() * 1e3)
    };
    let cpu = Figure::of(title(&format!("µs CPU per {}", row.unit)), rounds, cpu);
    let mut figures: Vec<Figure> = cpu.map(|cpu| cpu.within(row.cpu_bar)).into_iter().collect();
    if row.p99_bar.is_some() {
        figures.extend(Figure::of(title("p50, ms"), rounds, p50));
        figures
            .extend(Figure::of(title("p99, ms"), rounds, p99).map(|p99| p99.within(row.p99_bar)));
    }
    figures
}

fn command_line() -> String {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    format!("cargo bench --bench fan_out -- {}", args.join(" "))
        .trim_end_matches([' ', '-'])
        .into()
}

type Side = fn(&Round) -> &Sample;
const SIDES: [(&str, Side); 2] = [
    ("floor", |round| &round.floor),
    ("subject", |round| &round.subject),
];
