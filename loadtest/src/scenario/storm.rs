//! Connects per second: opens connections as fast as possible or at a rate, and closes each once
//! its namespace is connected.

use std::collections::{BTreeMap, VecDeque};

use anyhow::bail;

use super::rooms::{part_of_rate, share};
use crate::{
    clock::{self, Nanos, span},
    codec::packet::Packet,
    histogram::Histogram,
    options::Storm,
    outcome::Outcome,
    processes::wait_for_others,
    run::{Run, TURN},
    swarm::{End, Replies, Sink},
};

/// The connections.
struct Arrivals {
    since: Vec<Nanos>,
    connect: Histogram,
    /// Connects that start in this span are timed.
    window: std::ops::Range<Nanos>,
    connected: u64,
    pending: usize,
    /// Connected clients, the oldest first.
    open: VecDeque<usize>,
    free: Vec<usize>,
    ends: BTreeMap<&'static str, u64>,
    last_end: Option<End>,
}

impl Sink for Arrivals {
    fn connected(&mut self, client: usize, now: Nanos, _: &mut Replies) {
        self.connected += 1;
        self.pending -= 1;
        let since = self.since[client];
        if self.window.contains(&since) {
            self.connect.record(now - since);
        }
        self.open.push_back(client);
    }

    fn packet(&mut self, _: usize, _: Packet<'_>, _: Nanos, _: &mut Replies) {}

    fn nonsense(&mut self, _: usize) {
        *self.ends.entry("protocol error").or_default() += 1;
    }

    fn ended(&mut self, client: usize, end: End, _: Nanos) {
        *self.ends.entry(end.name()).or_default() += 1;
        match self.open.iter().position(|open| *open == client) {
            Some(at) => drop(self.open.remove(at)),
            None => self.pending -= 1,
        }
        self.free.push(client);
        self.last_end = Some(end);
    }
}

pub(super) fn run(options: &Storm) -> anyhow::Result<Outcome> {
    let common = &options.common;
    let keep = share(options.keep, common);
    let opening = common.opening as usize;
    let seats = opening + keep;
    let mut run = Run::new("storm", common, seats)?;
    let mut arrivals = Arrivals {
        since: vec![0; seats],
        connect: Histogram::new(),
        window: 0..0,
        connected: 0,
        pending: 0,
        open: VecDeque::new(),
        free: (0..seats).rev().collect(),
        ends: BTreeMap::new(),
        last_end: None,
    };
    wait_for_others(common)?;
    let rate = options.rate.map(|rate| part_of_rate(rate, common));
    storm(&mut run, &mut arrivals, options, rate, keep, opening)?;
    if arrivals.connected == 0 {
        bail!("no client connected: {:?}", arrivals.last_end);
    }
    let pace = rate.map_or_else(
        || format!("{opening} at a time"),
        |rate| format!("{rate} per second"),
    );
    let outcome = &mut run.outcome;
    outcome.setting("pace", &pace);
    outcome.setting("kept open", &keep);
    outcome.time("connect", &arrivals.connect);
    outcome.add_ends(&arrivals.ends);
    Ok(run.finish())
}

fn storm(
    run: &mut Run,
    arrivals: &mut Arrivals,
    options: &Storm,
    rate: Option<f64>,
    keep: usize,
    opening: usize,
) -> anyhow::Result<()> {
    let common = &options.common;
    let start = clock::now();
    let begin = start + span(common.warm_up);
    let end = begin + span(common.duration);
    arrivals.window = begin..end;
    run.enter("warming up", Some(begin));
    let mut begun = 0_u64;
    let mut at_begin = None;
    loop {
        let now = clock::now();
        if now >= begin && at_begin.is_none() {
            at_begin = Some((arrivals.connected, begun));
            run.begin_window();
            run.enter("connecting", Some(end));
        }
        if now >= end {
            break;
        }
        let mut next = now + TURN;
        while arrivals.pending < opening {
            let due = rate.map_or(now, |rate| clock::due(start, begun, rate));
            if due > now {
                next = next.min(due);
                break;
            }
            let Some(client) = arrivals.free.pop() else {
                break;
            };
            begun += 1;
            arrivals.since[client] = due;
            arrivals.pending += 1;
            let target = begun as usize % run.swarm.targets().len();
            if !run.open(arrivals, client, target) {
                break;
            }
        }
        run.turn(next.saturating_sub(clock::now()), arrivals)?;
        while arrivals.open.len() > keep {
            if let Some(client) = arrivals.open.pop_front() {
                run.swarm.close(client);
                arrivals.free.push(client);
            }
        }
        run.report(arrivals.open.len() as u64, arrivals.connected);
    }
    run.end_window();
    let (connected, begun_before) = at_begin.unwrap_or_default();
    let outcome = &mut run.outcome;
    outcome.set("connects", arrivals.connected - connected);
    let wanted = rate.unwrap_or(0.0) * outcome.seconds;
    if ((begun - begun_before) as f64) < wanted * LEAST_SHARE_OF_RATE {
        outcome.limit(&format!(
            "the rate was not kept: {:.0} of {wanted:.0} connects were begun, with {opening} at a \
             time at most",
            begun - begun_before
        ));
    }
    Ok(())
}

const LEAST_SHARE_OF_RATE: f64 = 0.98;
