//! A thread that looks at the nodes as a balancer and as Prometheus do: it decides where clients may go, notes
//! when a node has counted a gap, and which metrics show a fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;

use super::{
    Mode,
    account::Report,
    stage::{NODES, Places},
};
use crate::{clock, codec::http};

pub(super) struct Watcher {
    is_over: Arc<AtomicBool>,
    /// One per node, because a node that is stopped holds up the look at it.
    threads: Vec<JoinHandle<Seen>>,
}

/// The observations of a node.
#[derive(Default)]
pub(super) struct Seen {
    /// Gaps of the bus, which concern namespaces without a journal.
    pub(super) gaps: Vec<Report>,
    /// Gaps of journals that were not repaired.
    pub(super) lost: Vec<Report>,
    /// Metrics that changed.
    pub(super) metrics: BTreeSet<String>,
}

impl Seen {
    pub(super) fn add(&mut self, other: Self) {
        self.gaps.extend(other.gaps);
        self.lost.extend(other.lost);
        self.metrics.extend(other.metrics);
    }

    /// The gaps that cover what a client of this mode missed.
    pub(super) fn reports(&self, mode: Mode) -> &[Report] {
        if mode == Mode::Plain {
            &self.gaps
        } else {
            &self.lost
        }
    }
}

impl Watcher {
    pub(super) fn start(places: &Arc<Places>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let watch = |node| {
            let (places, is_over) = (Arc::clone(places), Arc::clone(&is_over));
            thread::spawn(move || watch(node, &places, &is_over))
        };
        let threads = (0..NODES).map(watch).collect();
        Self { is_over, threads }
    }

    pub(super) fn finish(self) -> anyhow::Result<Seen> {
        self.is_over.store(true, Relaxed);
        let mut all = Seen::default();
        for thread in self.threads {
            let seen = thread.join().ok().context("a watcher has failed")?;
            all.add(seen);
        }
        Ok(all)
    }
}

fn watch(node: usize, places: &Places, is_over: &AtomicBool) -> Seen {
    let place = &places.nodes[node];
    let mut seen = Seen::default();
    // Of the process that has these addresses.
    let mut before: Option<(SocketAddr, BTreeMap<String, f64>)> = None;
    let mut has_been_up = false;
    let mut last = false;
    while !last {
        last = is_over.load(Relaxed);
        if let Some(addresses) = place.addresses() {
            let internal = addresses.internal;
            let is_ready = get(internal, "/readyz").is_some_and(|answer| answer.status == 200);
            place.is_up.store(is_ready, Relaxed);
            let page = get(internal, "/metrics");
            match page {
                Some(page) => {
                    let now = metrics(&String::from_utf8_lossy(&page.body));
                    match &before {
                        // Counters of a new process begin at zero.
                        Some((of, then)) if *of == internal => {
                            compare(node, then, &now, &mut seen);
                        }
                        _ => compare(node, &BTreeMap::new(), &now, &mut seen),
                    }
                    before = Some((internal, now));
                }
                None if has_been_up => {
                    seen.metrics.insert("up".to_owned());
                }
                None => {}
            }
            if has_been_up && !is_ready {
                seen.metrics.insert("/readyz".to_owned());
            }
            has_been_up |= is_ready;
        }
        if !last {
            thread::sleep(INTERVAL);
        }
    }
    seen
}

/// Notes which metrics have grown.
fn compare(
    node: usize,
    then: &BTreeMap<String, f64>,
    now: &BTreeMap<String, f64>,
    seen: &mut Seen,
) {
    for (name, value) in now {
        if *value <= then.get(name).copied().unwrap_or(0.0) {
            continue;
        }
        seen.metrics.insert(name.clone());
        let report = Report {
            node,
            at: clock::now(),
        };
        if name == GAPS {
            seen.gaps.push(report);
        } else if name.starts_with(JOURNAL_GAPS) && !name.contains("repaired") {
            seen.lost.push(report);
        }
    }
}

/// The metrics that show faults, by name and labels, with zeros left out.
fn metrics(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        let is_meant = TELLING.iter().any(|telling| {
            name.strip_prefix(telling)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        });
        let is_usual = USUAL.iter().any(|usual| name.contains(usual));
        let value = value.parse().ok()?;
        (is_meant && !is_usual && value > 0.0).then(|| (short(name), value))
    });
    lines.collect()
}

/// A metric without what all of them have.
fn short(name: &str) -> String {
    name.trim_start_matches("roomcast_").replace('"', "")
}

fn get(node: SocketAddr, path: &str) -> Option<http::Answer> {
    let mut stream = TcpStream::connect_timeout(&node, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\n\r\n");
    http::exchange(&mut stream, request.as_bytes()).ok()
}

const INTERVAL: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(1);
const GAPS: &str = "bus_gaps_total";
const JOURNAL_GAPS: &str = "journal_gaps_total";

/// Metrics that stay as they are as long as nothing is wrong.
const TELLING: [&str; 10] = [
    "roomcast_bus_gaps_total",
    "roomcast_bus_reconnects_total",
    "roomcast_bus_messages_published_total",
    "roomcast_bus_messages_dropped_total",
    "roomcast_bus_disagreeing_nodes",
    "roomcast_bus_leases_lost_total",
    "roomcast_journal_gaps_total",
    "roomcast_recoveries_total",
    "roomcast_connections_closed_total",
    "roomcast_draining_connections",
];
/// Labels of what is usual.
const USUAL: [&str; 3] = ["\"ok\"", "\"own\"", "\"no_member\""];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_grown_is_noted_and_gaps_become_reports() {
        let then = metrics("roomcast_bus_gaps_total 1\nroomcast_sockets 3\n");
        let now = metrics(
            "# HELP x\nroomcast_bus_gaps_total 2\nroomcast_bus_gaps_total_other 9\n\
             roomcast_journal_gaps_total{outcome=\"repaired\"} 1\n\
             roomcast_journal_gaps_total{outcome=\"lost\"} 2\n\
             roomcast_bus_messages_published_total{outcome=\"ok\"} 7\n\
             roomcast_bus_messages_dropped_total{reason=\"undecodable\"} 0\n",
        );
        let mut seen = Seen::default();
        compare(1, &then, &now, &mut seen);
        let names: Vec<_> = seen.metrics.iter().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "bus_gaps_total",
                "journal_gaps_total{outcome=lost}",
                "journal_gaps_total{outcome=repaired}"
            ]
        );
        assert_eq!((seen.gaps.len(), seen.lost.len()), (1, 1));
    }
}
