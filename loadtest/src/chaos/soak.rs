//! `chaos --soak`: everything that recovery rests on, for a long time. Clients of all transports connect through
//! HAProxy without stickiness, are torn down at random and come back, while publishers publish. The result has the
//! exact account, and how memory, descriptors, streams and sessions developed.
//!
//! ```text
//! clients: WebSocket, polling, upgrade ──▶ HAProxy, round robin ──▶ three nodes that relay ──▶ Redis
//! ```
//!
//! Memory is flat if its median in the last quarter of the time is at most 5 % above that in the second quarter. By
//! then a journal is as old as it gets, and all sessions and results of calls that expire have done so.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use redis::{Commands as _, Connection, InfoDict, RedisResult, ScanOptions};

use super::{
    Chaos, Folder, Mode, Traffic,
    account::{Entry, Receiver, Tally, count},
    crowd::{Crowd, Order},
    stage::{Setup, Stage, progress},
    table::seconds,
    watcher::Watcher,
};
use crate::{
    clock::{self, SECOND},
    swarm::Transport,
    system::Usage,
};

const MODE: Mode = Mode::Recovery;

/// The transports, each of a third of the clients.
const TRANSPORTS: [(&str, Transport); 3] = [
    ("WebSocket", Transport::Websocket),
    ("polling", Transport::Polling),
    ("polling, then WebSocket", Transport::Upgrade),
];

/// The state of the cluster at one time.
#[derive(Clone, Debug, Default)]
struct Sample {
    /// Since the begin, in seconds.
    at: f64,
    /// Of the nodes and Redis.
    usages: Vec<Usage>,
    /// Bytes that Redis has allocated, `used_memory`.
    used_memory: u64,
    stream_entries: u64,
    sessions: u64,
    keys: u64,
    joined: usize,
    arrived: u64,
}

/// Runs it and prints the result. Returns whether nothing is lost and memory is flat.
pub(super) fn run(options: &Chaos, time: Duration) -> anyhow::Result<bool> {
    let folder = Folder::new(options.folder.as_deref())?;
    let setup = Setup {
        has_balancer: true,
        ..Setup::default()
    };
    let stage = Stage::start(&folder.path, options.programs()?, &[MODE], setup)?;
    let watcher = Watcher::start(&stage.places);
    let share = options.clients.div_ceil(TRANSPORTS.len() as u32);
    let crowds = TRANSPORTS
        .map(|(_, transport)| options.crowd(MODE, transport, share, &stage.places))
        .into();
    let traffic = Traffic::start(options, &[MODE], &stage.places, watcher, crowds)?;
    let begin = clock::now();
    let samples = watch(&stage, &traffic.crowds, time)?;
    let mended = clock::now();
    let ends: Vec<_> = traffic.crowds.iter().map(Crowd::ends).collect();
    let mut ended = traffic.finish()?;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{CLIENTS_HEAD}");
    for (((name, _), (_, of_group)), ends) in TRANSPORTS.iter().zip(&ended.receivers).zip(&ends) {
        write_group(&mut text, name, of_group, ends);
    }
    let of_groups = std::mem::take(&mut ended.receivers).into_iter();
    let receivers: Vec<_> = of_groups.flat_map(|(_, of_group)| of_group).collect();
    let tally = ended.account(MODE, &receivers, mended);
    let names: Vec<String> = stage
        .processes()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    write_samples(&mut text, &names, &samples);
    let is_flat = write_growth(&mut text, &names, &samples, time);
    let is_complete = write_account(&mut text, &tally);
    let cpu = cpu_seconds(&samples) / clock::seconds(clock::now() - begin).max(1.0);
    let _ = writeln!(
        text,
        "\nNodes and Redis used {:.0} % of a core.",
        cpu * 100.0
    );
    options.publish(&text)?;
    Ok(is_flat && is_complete)
}

/// Tears clients down again and again, and takes samples.
fn watch(stage: &Stage, crowds: &[Crowd], time: Duration) -> anyhow::Result<Vec<Sample>> {
    let begin = Instant::now();
    let interval = (time / 60).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
    let tear = TEAR.min(time / 2);
    let (mut next_tear, mut next_sample) = (STORED, Duration::ZERO);
    let mut samples = Vec::new();
    while begin.elapsed() < time {
        if begin.elapsed() >= next_tear {
            next_tear += tear;
            for crowd in crowds {
                crowd.order(Order::Tear {
                    within: clock::span(tear),
                    away: 2 * SECOND,
                });
            }
        }
        if begin.elapsed() >= next_sample {
            next_sample += interval;
            let sample = sample(stage, crowds, begin.elapsed())?;
            progress(&sample.line());
            samples.push(sample);
        }
        thread::sleep(TURN);
    }
    let last = sample(stage, crowds, begin.elapsed())?;
    progress(&last.line());
    samples.push(last);
    Ok(samples)
}

fn sample(stage: &Stage, crowds: &[Crowd], at: Duration) -> anyhow::Result<Sample> {
    let usages = stage.processes().into_iter().map(|(_, pid)| Usage::of(pid));
    let mut redis = stage.redis()?;
    let info: InfoDict = redis::cmd("INFO").arg("memory").query(&mut redis)?;
    let mut sample = Sample {
        at: at.as_secs_f64(),
        usages: usages.collect::<anyhow::Result<_>>()?,
        used_memory: info.get("used_memory").unwrap_or(0),
        keys: redis::cmd("DBSIZE").query(&mut redis)?,
        joined: crowds.iter().map(Crowd::joined).sum(),
        arrived: crowds.iter().map(Crowd::arrived).sum(),
        ..Sample::default()
    };
    for key in keys(&mut redis, ScanOptions::default().with_type("stream"))? {
        sample.stream_entries += redis::cmd("XLEN").arg(key).query::<u64>(&mut redis)?;
    }
    let sessions = ScanOptions::default().with_pattern("*-session#*");
    sample.sessions = keys(&mut redis, sessions)?.len() as u64;
    Ok(sample)
}

/// The names of keys, of which Redis may find one twice.
fn keys(redis: &mut Connection, which: ScanOptions) -> RedisResult<BTreeSet<String>> {
    redis.scan_options(which.with_count(1000))?.collect()
}

impl Sample {
    fn line(&self) -> String {
        let resident = self.usages.iter().map(|usage| megabytes(usage.rss_bytes));
        format!(
            "{:.0} s: {} MB resident, {} MB in Redis, {} in streams, {} sessions, {} clients, {} received",
            self.at,
            resident.collect::<Vec<_>>().join(" + "),
            megabytes(self.used_memory),
            self.stream_entries,
            self.sessions,
            self.joined,
            self.arrived,
        )
    }

    fn descriptors(&self) -> u64 {
        self.usages.iter().map(|usage| usage.descriptors).sum()
    }
}

/// CPU time of the nodes and Redis between the first and the last sample.
fn cpu_seconds(samples: &[Sample]) -> f64 {
    let sum = |sample: &Sample| sample.usages.iter().map(|usage| usage.cpu_nanos).sum();
    let [first, last] = [samples.first(), samples.last()].map(|sample| sample.map_or(0, sum));
    clock::seconds(last.saturating_sub(first))
}

fn write_group(
    text: &mut String,
    name: &str,
    receivers: &[Receiver],
    ends: &BTreeMap<&'static str, u64>,
) {
    let cut = count(receivers, |entry| matches!(entry, Entry::Cut { .. }));
    let recovered = count(receivers, |entry| matches!(entry, Entry::Recovered { .. }));
    let joined = count(receivers, |entry| matches!(entry, Entry::Joined { .. }));
    let arrived = count(receivers, |entry| matches!(entry, Entry::Arrived { .. }));
    let clients = receivers.len();
    // The first join of each client is not a return.
    let anew = joined.saturating_sub(clients);
    let mut ends: Vec<_> = ends
        .iter()
        .map(|(reason, count)| format!("{count} × {reason}"))
        .collect();
    if ends.is_empty() {
        ends.push("0".to_owned());
    }
    let ends = ends.join(", ");
    let _ = writeln!(
        text,
        "| {name} | {clients} | {arrived} | {cut} | {recovered} | {anew} | {ends} |"
    );
}

/// A dozen of the samples.
fn write_samples(text: &mut String, names: &[String], samples: &[Sample]) {
    let _ = write!(text, "\n| minute |");
    for name in names {
        let _ = write!(text, " {name}, MB |");
    }
    let _ = writeln!(
        text,
        "{SAMPLES_HEAD}\n|--:{}|",
        "|--:".repeat(names.len() + 6)
    );
    let step = samples.len().div_ceil(12).max(1);
    let last = samples.len().saturating_sub(1);
    for (index, sample) in samples.iter().enumerate() {
        if !index.is_multiple_of(step) && index != last {
            continue;
        }
        let _ = write!(text, "| {:.0} |", sample.at / 60.0);
        for usage in &sample.usages {
            let _ = write!(text, " {} |", megabytes(usage.rss_bytes));
        }
        let _ = writeln!(
            text,
            " {} | {} | {} | {} | {} | {} |",
            megabytes(sample.used_memory),
            sample.stream_entries,
            sample.sessions,
            sample.keys,
            sample.descriptors(),
            sample.arrived,
        );
    }
}

/// Compares the quarters. Returns whether memory is flat, or cannot be judged.
fn write_growth(text: &mut String, names: &[String], samples: &[Sample], time: Duration) -> bool {
    let _ = writeln!(text, "\n{GROWTH_HEAD}");
    let quarter = time.as_secs_f64() / 4.0;
    let mut is_flat = true;
    let mut row = |name: &str, of: &dyn Fn(&Sample) -> u64| {
        let within = |number: f64| {
            let range = quarter * (number - 1.0)..=quarter * number + 1.0;
            let found = samples.iter().filter(|sample| range.contains(&sample.at));
            median(found.map(of).collect())
        };
        let (before, after) = (within(2.0), within(4.0));
        let growth = (after as f64 / before.max(1) as f64 - 1.0) * 100.0;
        is_flat &= growth <= MOST_GROWTH_PERCENT;
        let (before, after) = (megabytes(before), megabytes(after));
        let _ = writeln!(
            text,
            "| {name} | {before} MB | {after} MB | {growth:+.1} % |"
        );
    };
    for (index, name) in names.iter().enumerate() {
        let resident = |sample: &Sample| sample.usages.get(index).map_or(0, |one| one.rss_bytes);
        row(&format!("{name}, resident"), &resident);
    }
    row("Redis, `used_memory`", &|sample| sample.used_memory);
    let verdict = if time < SHORTEST_JUDGED {
        "Memory is not judged, because the time is shorter than 40 minutes."
    } else if is_flat {
        "Memory is flat: no growth above 5 %."
    } else {
        "Missed: memory has grown by more than 5 %."
    };
    let _ = writeln!(text, "\n{verdict}");
    is_flat || time < SHORTEST_JUDGED
}

/// Returns whether nothing is lost, duplicated or out of order.
pub(super) fn write_account(text: &mut String, tally: &Tally) -> bool {
    let _ = writeln!(
        text,
        "\n{ACCOUNT_HEAD}\n| {} | {} | {} |",
        tally.cells(),
        seconds(tally.delivery),
        seconds(tally.longest),
    );
    tally.owed > 0 && tally.silent + tally.reported + tally.duplicated + tally.reordered == 0
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

const CLIENTS_HEAD: &str = "| transport | clients | received | torn down or cut | came back as the same socket \
    | came back as a new one | ended by the other side |\n|---|--:|--:|--:|--:|--:|---|";
const SAMPLES_HEAD: &str =
    " `used_memory`, MB | entries of streams | sessions | keys | descriptors | received |";
const GROWTH_HEAD: &str =
    "| median of | second quarter | last quarter | growth |\n|---|--:|--:|--:|";
const ACCOUNT_HEAD: &str = "| owed | lost silently | lost and reported | refused | duplicated | out of order \
    | p99 of delivery | p99 of outages |\n|--:|--:|--:|--:|--:|--:|--:|--:|";

/// Each client is torn down once in this time, or twice in a shorter soak.
const TEAR: Duration = Duration::from_secs(30);
/// By then all sessions are stored, also on a busy machine.
const STORED: Duration = Duration::from_secs(2);
const TURN: Duration = Duration::from_millis(50);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
const MOST_GROWTH_PERCENT: f64 = 5.0;
/// The second quarter then begins when the journal has reached its age, which is 10 minutes.
const SHORTEST_JUDGED: Duration = Duration::from_secs(40 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(bytes: impl Fn(u64) -> u64) -> Vec<Sample> {
        let sample = |minute: u64| Sample {
            at: minute as f64 * 60.0,
            used_memory: bytes(minute),
            ..Sample::default()
        };
        (0..=60).map(sample).collect()
    }

    #[test]
    fn memory_is_flat_if_it_does_not_grow_after_the_first_quarter() {
        let hour = Duration::from_secs(3600);
        let judged = |time, bytes: fn(u64) -> u64| {
            write_growth(&mut String::new(), &[], &samples(bytes), time)
        };
        assert!(judged(hour, |minute| 1_000_000 + 100_000 * minute.min(15)));
        assert!(!judged(hour, |minute| 1_000_000 + 10_000 * minute));
        assert!(judged(SHORTEST_JUDGED / 2, |minute| 1_000_000 + 10_000 * minute));
    }

    #[test]
    fn an_account_without_messages_proves_nothing() {
        let judged = |tally| write_account(&mut String::new(), &tally);
        let owed = Tally {
            owed: 1,
            ..Tally::default()
        };
        assert!(judged(owed) && !judged(Tally::default()));
        assert!(!judged(Tally {
            reported: 1,
            ..owed
        }));
    }
}
