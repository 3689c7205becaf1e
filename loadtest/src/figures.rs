//! Figures, computed from counts and samples.

use std::collections::BTreeMap;

use crate::{
    clock::seconds,
    outcome::{Outcome, Point, Server},
    system::Usage,
};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
}

/// All figures of a result, in display order.
pub(crate) fn figures(outcome: &Outcome) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut add = |name: &str, unit, value: f64| {
        if value.is_finite() {
            let name = name.to_owned();
            figures.push(Figure { name, unit, value });
        }
    };
    let window = outcome.seconds;
    let server_cpu = server_cpu(outcome);
    for (counted, one) in UNITS {
        let count = outcome.count(counted) as f64;
        if count == 0.0 {
            continue;
        }
        let span = if counted == "emits" {
            emitter_seconds(outcome)
        } else {
            window
        };
        add(&format!("{counted} per second"), "1/s", count / span);
        if let Some(cpu) = server_cpu {
            add(&format!("server CPU per {one}"), "µs", cpu * 1e6 / count);
            add(
                &format!("{counted} per server CPU second"),
                "1/s",
                count / cpu,
            );
        }
        for (name, cpu) in cpu_of_others(outcome) {
            add(&format!("{name} CPU per {one}"), "µs", cpu * 1e6 / count);
        }
        if counted == "emits" {
            let cpu = seconds(outcome.count("emitter CPU nanoseconds"));
            add("emitter CPU per emit", "µs", cpu * 1e6 / count);
        }
        let own = seconds(outcome.own_cpu_nanos) * 1e6 / count;
        add(&format!("loader CPU per {one}"), "µs", own);
    }
    if let Some(cpu) = server_cpu {
        add("server CPU", "% of a core", cpu / window * 100.0);
    }
    for (name, cpu) in cpu_of_others(outcome) {
        let share = cpu / window * 100.0;
        add(&format!("{name} CPU"), "% of a core", share);
    }
    let taken = outcome.count("messages taken by Redis") as f64;
    if taken > 0.0 {
        let copies = outcome.count("subscribers reached in Redis") as f64;
        add("copies by Redis per message", "", copies / taken);
    }
    let own = seconds(outcome.own_cpu_nanos);
    add("loader CPU", "% of a core", own / window * 100.0);
    for (name, histogram) in &outcome.latencies {
        for (percentile, label) in PERCENTILES {
            let value = histogram.percentile_ms(percentile);
            add(&format!("{name} {label}"), "ms", value);
        }
        add(&format!("{name} max"), "ms", histogram.max_ms());
        add(&format!("{name} mean"), "ms", histogram.mean_ms());
    }
    for (index, wave) in outcome.waves.iter().enumerate() {
        let restart = format!("restart {}", index + 1);
        let (peak, rate) = (wave.peak as f64, wave.closed as f64 / wave.over_seconds);
        add(
            &format!("{restart}, connections closed"),
            "",
            wave.closed as f64,
        );
        add(
            &format!("{restart}, connects in the busiest second"),
            "1/s",
            peak,
        );
        add(&format!("{restart}, paced rate"), "1/s", rate);
        add(
            &format!("{restart}, busiest second / paced rate"),
            "",
            peak / rate,
        );
    }
    memory(outcome, &mut add);
    figures
}

/// CPU time of all servers in the measured window, in seconds.
pub(crate) fn server_cpu(outcome: &Outcome) -> Option<f64> {
    let used = outcome.servers.iter().map(cpu_in_window);
    (!outcome.servers.is_empty()).then(|| used.sum())
}

/// CPU time of other processes by name, in seconds. Processes of the same name are added.
fn cpu_of_others(outcome: &Outcome) -> BTreeMap<&str, f64> {
    let mut sums = BTreeMap::new();
    for other in &outcome.others {
        *sums.entry(other.name.as_str()).or_default() += cpu_in_window(other);
    }
    sums
}

fn cpu_in_window(server: &Server) -> f64 {
    seconds(server.end.cpu_nanos.saturating_sub(server.begin.cpu_nanos))
}

/// Duration of emitting, in seconds: the mean over loaders, because each has its own emitter.
fn emitter_seconds(outcome: &Outcome) -> f64 {
    seconds(outcome.count("emitter nanoseconds")) / f64::from(outcome.parts)
}

fn memory(outcome: &Outcome, add: &mut impl FnMut(&str, &'static str, f64)) {
    let counted = outcome.count("connections counted") as f64;
    let servers = &outcome.servers;
    if counted > 0.0 && !servers.is_empty() {
        let resident: fn(&Usage) -> u64 = |usage| usage.rss_bytes;
        let proportional: fn(&Usage) -> u64 = |usage| usage.pss_bytes;
        for (kind, short, bytes) in [
            ("resident", "rss", resident),
            ("proportional", "pss", proportional),
        ] {
            let before: u64 = servers.iter().map(|server| bytes(&server.before)).sum();
            let end: u64 = servers.iter().map(|server| bytes(&server.end)).sum();
            let after = outcome.count(&format!("server {short} bytes after traffic"));
            for (when, bytes) in [("", end), (" after traffic", after)] {
                if bytes > 0 {
                    let each = (bytes as f64 - before as f64) / counted;
                    add(&format!("idle connection{when}, {kind}"), "bytes", each);
                }
            }
        }
        if let Some(cpu) = server_cpu(outcome) {
            let each = cpu / outcome.seconds / outcome.count("connections") as f64;
            add("idle connection, CPU", "µs/s", each * 1e6);
        }
    }
    let kernel = outcome.count("kernel bytes") as f64;
    if counted > 0.0 && kernel > 0.0 {
        let grown = kernel - outcome.count("kernel bytes before") as f64;
        add(
            "idle connection, kernel objects of both ends",
            "bytes",
            grown / counted,
        );
    }
    if !servers.is_empty() {
        let rss: u64 = servers.iter().map(|server| server.end.rss_bytes).sum();
        add("server resident at the end", "MB", rss as f64 / 1e6);
    }
    if outcome.scenario == "soak" && !servers.is_empty() {
        add(
            "memory slope",
            "MB/h",
            slope(&outcome.series) * 3600.0 / 1e6,
        );
        let descriptors = |name: &str| outcome.count(&format!("server descriptors {name}")) as f64;
        let leaked = descriptors("after the end") - descriptors("before");
        add("descriptors kept after the end", "", leaked.max(0.0));
    }
}

/// Growth of memory in the second half of the window, in bytes per second, by least squares.
fn slope(series: &[Point]) -> f64 {
    let last = series.last().map_or(0.0, |point| point.at);
    let late: Vec<&Point> = series
        .iter()
        .filter(|point| point.at > last / 2.0 && point.connections > 0)
        .collect();
    let count = late.len() as f64;
    let mean =
        |value: fn(&Point) -> f64| late.iter().map(|point| value(point)).sum::<f64>() / count;
    let (at, bytes) = (
        mean(|point| point.at),
        mean(|point| point.server_rss_bytes as f64),
    );
    let (mut above, mut below) = (0.0, 0.0);
    for point in &late {
        above += (point.at - at) * (point.server_rss_bytes as f64 - bytes);
        below += (point.at - at).powi(2);
    }
    if below > 0.0 { above / below } else { f64::NAN }
}

/// Counted units of the measured window, and their singular.
const UNITS: [(&str, &str); 6] = [
    ("messages", "message"),
    ("emits", "emit"),
    ("deliveries", "delivery"),
    ("requests", "request"),
    ("connects", "connect"),
    ("joins and leaves", "join and leave"),
];

pub(crate) const PERCENTILES: [(f64, &str); 4] =
    [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p99.9")];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Wave;

    fn value(figures: &[Figure], name: &str) -> f64 {
        let found = figures.iter().find(|figure| figure.name == name);
        found.unwrap_or_else(|| panic!("{name}: {figures:?}")).value
    }

    fn close(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-6 * other.abs().max(1.0)
    }

    /// CPU time and bytes of a process.
    fn usage(cpu_nanos: u64, bytes: u64) -> Usage {
        Usage {
            cpu_nanos,
            rss_bytes: bytes,
            pss_bytes: bytes,
            descriptors: 0,
        }
    }

    fn server(name: &str, [before, begin, end]: [Usage; 3]) -> Server {
        Server {
            pid: 1,
            name: name.to_owned(),
            before,
            begin,
            end,
        }
    }

    #[test]
    fn figures_are_counts_divided_by_the_window_and_by_cpu() {
        let mut outcome = Outcome::new("fan-out");
        outcome.seconds = 2.0;
        outcome.own_cpu_nanos = 1_000_000_000;
        outcome.set("deliveries", 1_000_000);
        let usages = [0, 500_000_000, 2_000_000_000].map(|cpu| usage(cpu, 0));
        outcome.servers.push(server("s", usages));
        let figures = figures(&outcome);
        assert!(close(value(&figures, "deliveries per second"), 500_000.0));
        assert!(close(value(&figures, "server CPU per delivery"), 1.5));
        assert!(close(value(&figures, "loader CPU per delivery"), 1.0));
        assert!(close(value(&figures, "server CPU"), 75.0));
    }

    #[test]
    fn an_emitter_has_its_own_time_and_others_their_own_cpu() {
        let mut outcome = Outcome::new("emitter");
        outcome.seconds = 4.0;
        outcome.set("emits", 1000);
        outcome.set("deliveries", 2000);
        outcome.set("emitter nanoseconds", 500_000_000);
        outcome.set("emitter CPU nanoseconds", 10_000_000);
        for cpu_nanos in [3_000_000, 1_000_000] {
            let usages = [usage(0, 0), usage(0, 0), usage(cpu_nanos, 0)];
            outcome.others.push(server("Redis", usages));
        }
        let figures = figures(&outcome);
        assert!(close(value(&figures, "emits per second"), 2000.0));
        assert!(close(value(&figures, "emitter CPU per emit"), 10.0));
        assert!(close(value(&figures, "Redis CPU per emit"), 4.0));
        assert!(close(value(&figures, "Redis CPU per delivery"), 2.0));
        assert!(close(value(&figures, "Redis CPU"), 0.1));
        assert!(
            !figures
                .iter()
                .any(|figure| figure.name.starts_with("server CPU"))
        );
    }

    #[test]
    fn bytes_per_connection_are_growth_divided_by_the_connections_counted() {
        let mut outcome = Outcome::new("idle");
        outcome.seconds = 1.0;
        outcome.set("connections", 1100);
        outcome.set("connections counted", 1000);
        let usages = [500_000, 0, 1_500_000].map(|bytes| usage(0, bytes));
        outcome.servers.push(server("s", usages));
        assert!(close(
            value(&figures(&outcome), "idle connection, resident"),
            1000.0
        ));
    }

    #[test]
    fn a_restart_is_judged_by_its_busiest_second() {
        let mut outcome = Outcome::new("deploy");
        outcome.seconds = 30.0;
        outcome.waves.push(Wave {
            closed: 1000,
            returned: 1000,
            over_seconds: 10.0,
            peak: 125,
        });
        let figures = figures(&outcome);
        assert!(close(value(&figures, "restart 1, paced rate"), 100.0));
        let ratio = "restart 1, busiest second / paced rate";
        assert!(close(value(&figures, ratio), 1.25));
    }

    #[test]
    fn the_slope_is_that_of_the_second_half() {
        let point = |at: f64, server_rss_bytes: f64| Point {
            at,
            connections: 1,
            server_rss_bytes: server_rss_bytes as u64,
            ..Point::default()
        };
        let series: Vec<Point> = (0..100)
            .map(f64::from)
            .map(|at| point(at, if at < 50.0 { at * 1e6 } else { 5e7 + at * 10.0 }))
            .collect();
        assert!(close(slope(&series), 10.0));
        assert!(slope(&[]).is_nan());
    }
}
