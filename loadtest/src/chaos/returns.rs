//! `chaos --returns`: all clients lose their connections at once and come back within two
//! seconds, to two nodes. The result has what this cost Redis and the nodes for each of them.
//!
//! Publishers go on meanwhile, so that the clients have missed something. What Redis uses for
//! them is measured just before, and subtracted.

use std::{fmt::Write as _, sync::atomic::Ordering::Relaxed, thread, time::Duration};

use anyhow::Context as _;

use super::{
    Chaos, Folder, Mode, Traffic,
    account::{Entry, Receiver, count},
    crowd::{Crowd, Order},
    soak,
    stage::{NODES, Setup, Stage, wait_until},
    watcher::Watcher,
};
use crate::{
    clock::{self, Nanos, SECOND},
    swarm::Transport,
    system::Usage,
};

const MODE: Mode = Mode::Recovery;

/// CPU times, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Cpu {
    at: Nanos,
    nodes: u64,
    redis: u64,
}

/// The costs of one round.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// From the first tear until the last client was back.
    took: Nanos,
    /// CPU of Redis per client, in µs, with and without that for the publishers.
    redis_in_all: f64,
    redis: f64,
    /// CPU of both nodes per client, in µs, without that for the publishers.
    nodes: f64,
}

/// Runs it and prints the result. Returns whether all came back, and Redis used less than the bar.
pub(super) fn run(options: &Chaos) -> anyhow::Result<bool> {
    let folder = Folder::new(options.folder.as_deref())?;
    let mut stage = Stage::start(&folder.path, options.programs()?, &[MODE], Setup::default())?;
    stage.kill_node(NODES - 1);
    let watcher = Watcher::start(&stage.places);
    let others = stage.places.nodes[..NODES - 1].iter();
    let are_up = || others.clone().all(|place| place.is_up.load(Relaxed));
    wait_until("two nodes", || Ok(are_up()))?;
    let crowd = options.crowd(MODE, Transport::Websocket, options.clients, &stage.places);
    let traffic = Traffic::start(options, &[MODE], &stage.places, watcher, vec![crowd])?;
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        rounds.push(round(&stage, &traffic.crowds[0], options.clients as usize)?);
    }
    let ended = traffic.finish()?;
    let (_, receivers) = &ended.receivers[0];
    let tally = ended.account(MODE, receivers, clock::now());
    let mut text = String::new();
    let is_cheap = write_rounds(&mut text, &rounds);
    let has_recovered = write_returns(&mut text, receivers, rounds.len());
    let is_complete = soak::write_account(&mut text, &tally);
    options.publish(&text)?;
    Ok(is_cheap && has_recovered && is_complete)
}

fn round(stage: &Stage, crowd: &Crowd, clients: usize) -> anyhow::Result<Round> {
    // By then all sessions are stored, and nodes and Redis do nothing but publish.
    thread::sleep(QUIET);
    let before = cpu(stage)?;
    thread::sleep(QUIET);
    let begin = cpu(stage)?;
    crowd.order(Order::Tear {
        within: 0,
        away: 2 * SECOND,
    });
    wait_until("the tear", || Ok(crowd.joined() <= clients / 10))?;
    wait_until("all clients", || Ok(crowd.has_joined()))?;
    let took = clock::now() - begin.at;
    // Their sessions are stored again.
    thread::sleep(QUIET);
    let end = cpu(stage)?;
    let share = (end.at - begin.at) as f64 / (begin.at - before.at).max(1) as f64;
    let per_client = |nanos: f64| nanos / 1000.0 / clients.max(1) as f64;
    let less = |of: fn(&Cpu) -> u64| {
        let (before, begin, end) = (of(&before), of(&begin), of(&end));
        let usual = (begin - before) as f64 * share;
        per_client((end - begin) as f64 - usual)
    };
    Ok(Round {
        took,
        redis_in_all: per_client((end.redis - begin.redis) as f64),
        redis: less(|cpu| cpu.redis),
        nodes: less(|cpu| cpu.nodes),
    })
}

fn cpu(stage: &Stage) -> anyhow::Result<Cpu> {
    let mut cpu = Cpu {
        at: clock::now(),
        ..Cpu::default()
    };
    for (name, pid) in stage.processes() {
        let used = Usage::of(pid).with_context(|| name.clone())?.cpu_nanos;
        if name == "Redis" {
            cpu.redis += used;
        } else {
            cpu.nodes += used;
        }
    }
    Ok(cpu)
}

/// Returns whether Redis used less than the bar in each round.
fn write_rounds(text: &mut String, rounds: &[Round]) -> bool {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{ROUNDS_HEAD}");
    for round in rounds {
        let took = clock::seconds(round.took);
        let Round {
            redis_in_all,
            redis,
            nodes,
            ..
        } = round;
        let _ = writeln!(
            text,
            "| {took:.1} s | {redis_in_all:.1} µs | {redis:.1} µs | {nodes:.0} µs |"
        );
    }
    let is_cheap = rounds.iter().all(|round| round.redis < MOST_REDIS_MICROS);
    let verdict = if is_cheap { "Met" } else { "Missed" };
    let _ = writeln!(
        text,
        "\n{verdict}: less than {MOST_REDIS_MICROS:.0} µs of Redis for each client."
    );
    is_cheap
}

/// Returns whether all clients came back to their sessions in all rounds.
fn write_returns(text: &mut String, receivers: &[Receiver], rounds: usize) -> bool {
    let recovered = count(receivers, |entry| matches!(entry, Entry::Recovered { .. }));
    // The first join of each client is not a return.
    let anew = count(receivers, |entry| matches!(entry, Entry::Joined { .. })) - receivers.len();
    let _ = writeln!(
        text,
        "\n{recovered} returns as the same socket, {anew} as a new one."
    );
    recovered >= receivers.len() * rounds && anew == 0
}

const ROUNDS_HEAD: &str = "| all were back after | Redis per client | without publishing | both nodes per client |\n\
    |--:|--:|--:|--:|";
const MOST_REDIS_MICROS: f64 = 50.0;
const QUIET: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_met_if_redis_used_less_in_each_round() {
        let of = |redis| Round {
            redis,
            ..Round::default()
        };
        let judged = |rounds: &[Round]| write_rounds(&mut String::new(), rounds);
        assert!(judged(&[of(49.0), of(20.0)]));
        assert!(!judged(&[of(20.0), of(50.0)]));
    }

    #[test]
    fn every_client_has_to_come_back_to_its_session() {
        let joined = Entry::Joined { node: 0, at: 1 };
        let recovered = Entry::Recovered { node: 1, at: 2 };
        let judged = |entries: Vec<Entry>| {
            let receiver = Receiver { room: 0, entries };
            write_returns(&mut String::new(), &[receiver], 1)
        };
        assert!(judged(vec![joined, recovered]));
        assert!(!judged(vec![joined]));
        assert!(!judged(vec![joined, recovered, joined]));
    }
}
