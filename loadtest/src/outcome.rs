//! The result of a run, as it is written to a file.
//!
//! It holds counts and samples but no means or percentiles, so the results of several processes can
//! be added. Figures are computed from it for display (`figures`).

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::{histogram::Histogram, ledger::Tally, system::Usage};

/// Version of the file format.
pub(crate) const FORMAT: u32 = 1;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) format: u32,
    pub(crate) scenario: String,
    /// Name that the user gave, to distinguish results.
    pub(crate) label: String,
    /// Settings that affect the figures, as text.
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) targets: Vec<String>,
    pub(crate) machine: String,
    pub(crate) started_unix_ms: u64,
    /// Number of loader processes.
    pub(crate) parts: u32,
    /// Length of the measured window, in seconds.
    pub(crate) seconds: f64,
    /// Ledger of the whole run, including the time outside of the measured window.
    pub(crate) ledger: Tally,
    /// Latencies in nanoseconds, by kind.
    pub(crate) latencies: BTreeMap<String, Histogram>,
    /// Counts of the measured window, by kind.
    pub(crate) counts: BTreeMap<String, u64>,
    /// Connections that the tool did not close itself, by reason.
    pub(crate) ends: BTreeMap<String, u64>,
    pub(crate) servers: Vec<Server>,
    /// Other processes, by the names that the user gave.
    #[serde(default)]
    pub(crate) others: Vec<Server>,
    pub(crate) gauges: Vec<Reading>,
    /// CPU time of the loaders' client threads in the measured window, in nanoseconds.
    pub(crate) own_cpu_nanos: u64,
    pub(crate) series: Vec<Point>,
    /// The effect of each restart of a server on the clients.
    #[serde(default)]
    pub(crate) waves: Vec<Wave>,
    /// Reasons why the tool, its machine or its settings determine the figures instead of the
    /// server.
    pub(crate) limited_by: Vec<String>,
    /// Remarks for the reader.
    pub(crate) notes: Vec<String>,
}

/// A server process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) pid: u32,
    pub(crate) name: String,
    /// Before connections were opened.
    pub(crate) before: Usage,
    /// At the begin and the end of the measured window.
    pub(crate) begin: Usage,
    pub(crate) end: Usage,
}

/// A metric of a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reading {
    pub(crate) name: String,
    pub(crate) before: f64,
    pub(crate) after: Option<f64>,
}

/// A sample of the run's progress.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// Seconds relative to the begin of the measured window.
    pub(crate) at: f64,
    pub(crate) connections: u64,
    /// Messages that have arrived or requests that have been answered so far.
    pub(crate) deliveries: u64,
    /// Sum of all servers.
    pub(crate) server_rss_bytes: u64,
    pub(crate) server_cpu_nanos: u64,
}

impl Point {
    /// The point of another series that is nearest in time.
    pub(crate) fn nearest<'a>(&self, series: &'a [Self]) -> Option<&'a Self> {
        let distance = |other: &&Self| ((other.at - self.at).abs() * 1e6) as u64;
        series.iter().min_by_key(distance)
    }
}

/// The clients of one server that was restarted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wave {
    /// Connections that ended.
    pub(crate) closed: u64,
    /// Clients that connected again.
    pub(crate) returned: u64,
    /// Time over which the server was to close them.
    pub(crate) over_seconds: f64,
    /// The most clients that connected again within one second.
    pub(crate) peak: u64,
}

impl Outcome {
    pub(crate) fn new(scenario: &str) -> Self {
        Self {
            format: FORMAT,
            scenario: scenario.to_owned(),
            machine: crate::system::machine(),
            started_unix_ms: crate::clock::unix_ms(),
            parts: 1,
            ..Self::default()
        }
    }

    pub(crate) fn read(path: &str) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
        let outcome: Self = serde_json::from_str(&text)
            .with_context(|| format!("{path} is not a result of this tool"))?;
        if outcome.format != FORMAT {
            bail!(
                "{path} is of form {}, and this tool reads form {FORMAT}",
                outcome.format
            );
        }
        Ok(outcome)
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// Adds a setting that affects the figures.
    pub(crate) fn setting(&mut self, name: &str, value: &dyn ToString) {
        self.settings.insert(name.to_owned(), value.to_string());
    }

    /// Adds connections that the tool did not close itself, by reason.
    pub(crate) fn add_ends(&mut self, ends: &BTreeMap<&'static str, u64>) {
        for (reason, count) in ends {
            *self.ends.entry((*reason).to_owned()).or_default() += count;
        }
    }

    pub(crate) fn set(&mut self, name: &str, count: u64) {
        self.counts.insert(name.to_owned(), count);
    }

    /// Stores a histogram unless it is empty.
    pub(crate) fn time(&mut self, name: &str, histogram: &Histogram) {
        if histogram.count() > 0 {
            self.latencies.insert(name.to_owned(), histogram.clone());
        }
    }

    /// Adds a reason to `limited_by` unless it is known.
    pub(crate) fn limit(&mut self, reason: &str) {
        if !self.limited_by.iter().any(|known| known == reason) {
            self.limited_by.push(reason.to_owned());
        }
    }

    /// Adds the result of another loader of the same run. Servers that both have measured count
    /// once.
    pub(crate) fn merge(&mut self, other: &Self) -> anyhow::Result<()> {
        if self.scenario != other.scenario {
            bail!(
                "{} and {} are different scenarios",
                self.scenario,
                other.scenario
            );
        }
        self.parts += other.parts;
        self.started_unix_ms = self.started_unix_ms.min(other.started_unix_ms);
        self.seconds = self.seconds.max(other.seconds);
        self.ledger.add(&other.ledger);
        self.own_cpu_nanos += other.own_cpu_nanos;
        for (name, histogram) in &other.latencies {
            let known = self.latencies.entry(name.clone());
            known.or_insert_with(Histogram::new).add(histogram);
        }
        for (name, count) in &other.counts {
            let known = self.counts.entry(name.clone()).or_default();
            if is_of_the_machine(name) {
                *known = (*known).max(*count);
            } else {
                *known += count;
            }
        }
        for (name, count) in &other.ends {
            *self.ends.entry(name.clone()).or_default() += count;
        }
        add_servers(&mut self.servers, &other.servers);
        add_servers(&mut self.others, &other.others);
        for reading in &other.gauges {
            if !self.gauges.iter().any(|known| known.name == reading.name) {
                self.gauges.push(reading.clone());
            }
        }
        add_distinct(&mut self.targets, &other.targets);
        add_distinct(&mut self.limited_by, &other.limited_by);
        add_distinct(&mut self.notes, &other.notes);
        self.settings
            .retain(|name, value| other.settings.get(name) == Some(value));
        self.series = add_series(&self.series, &other.series);
        Ok(())
    }

    /// Whether the ledger has no faults.
    pub(crate) fn is_clean(&self) -> bool {
        self.ledger.is_clean()
    }
}

impl Server {
    /// Extends the window to include that of `other`.
    fn widen(&mut self, other: &Self) {
        let earlier = |one: &Usage, other: &Usage| {
            if one.cpu_nanos <= other.cpu_nanos {
                *one
            } else {
                *other
            }
        };
        self.before = earlier(&self.before, &other.before);
        self.begin = earlier(&self.begin, &other.begin);
        if other.end.cpu_nanos > self.end.cpu_nanos {
            self.end = other.end;
        }
    }
}

/// Counts of the whole machine, which all loaders see alike.
fn is_of_the_machine(name: &str) -> bool {
    name.starts_with("kernel ")
}

/// Adds unknown processes and extends the windows of known ones.
fn add_servers(to: &mut Vec<Server>, from: &[Server]) {
    for server in from {
        let is_same = |known: &&mut Server| known.pid == server.pid && known.name == server.name;
        match to.iter_mut().find(is_same) {
            Some(known) => known.widen(server),
            None => to.push(server.clone()),
        }
    }
}

fn add_distinct(to: &mut Vec<String>, from: &[String]) {
    for one in from {
        if !to.contains(one) {
            to.push(one.clone());
        }
    }
}

/// Adds to each point the point of the other series that is nearest in time.
fn add_series(one: &[Point], other: &[Point]) -> Vec<Point> {
    let mut sum = one.to_vec();
    for point in &mut sum {
        if let Some(near) = point.nearest(other) {
            point.connections += near.connections;
            point.deliveries += near.deliveries;
            point.server_rss_bytes = point.server_rss_bytes.max(near.server_rss_bytes);
            point.server_cpu_nanos = point.server_cpu_nanos.max(near.server_cpu_nanos);
        }
    }
    if sum.is_empty() { other.to_vec() } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(deliveries: u64, latency: u64, cpu: u64) -> Outcome {
        let mut outcome = Outcome::new("fan-out");
        outcome.seconds = 2.0;
        outcome.set("deliveries", deliveries);
        outcome.set("kernel bytes", 10);
        outcome.ledger.arrived = deliveries;
        outcome.ledger.lost = 1;
        let mut histogram = Histogram::new();
        (0..deliveries).for_each(|_| histogram.record(latency));
        outcome.time("delivery", &histogram);
        outcome.servers.push(Server {
            pid: 7,
            name: "server".to_owned(),
            before: Usage::default(),
            begin: Usage {
                cpu_nanos: cpu,
                ..Usage::default()
            },
            end: Usage {
                cpu_nanos: cpu + 100,
                ..Usage::default()
            },
        });
        outcome.others = outcome.servers.clone();
        outcome.series = vec![Point {
            at: 0.0,
            deliveries,
            ..Point::default()
        }];
        outcome
    }

    #[test]
    fn merging_adds_samples_and_ledgers_and_no_server_twice() {
        let mut merged = sample(3, 1_000_000, 50);
        merged.merge(&sample(1, 9_000_000, 60)).unwrap();
        assert_eq!((merged.parts, merged.count("deliveries")), (2, 4));
        assert_eq!((merged.ledger.arrived, merged.ledger.lost), (4, 2));
        assert_eq!(merged.count("kernel bytes"), 10);
        let delivery = &merged.latencies["delivery"];
        assert_eq!(delivery.count(), 4);
        assert!(delivery.percentile_ms(50.0) < 1.1 && delivery.max_ms() > 8.9);
        assert_eq!(merged.servers.len(), 1);
        let server = &merged.servers[0];
        assert_eq!((server.begin.cpu_nanos, server.end.cpu_nanos), (50, 160));
        assert_eq!(merged.others.len(), 1);
        assert_eq!(merged.others[0].end.cpu_nanos, 160);
        assert_eq!(merged.series[0].deliveries, 4);
    }

    #[test]
    fn different_scenarios_do_not_merge() {
        assert!(sample(1, 1, 1).merge(&Outcome::new("echo")).is_err());
    }

    #[test]
    fn a_result_survives_being_written_down() {
        let outcome = sample(3, 1_000, 5);
        let text = serde_json::to_string(&outcome).unwrap();
        let read: Outcome = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }
}
