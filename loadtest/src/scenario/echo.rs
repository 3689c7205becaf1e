//! Requests with acknowledgement: each client sends the next one when one is answered, or requests
//! are sent at a rate.
//!
//! A missing acknowledgement counts as lost, a second one as a duplicate, and an `echo` with
//! another payload as corrupted.

use std::collections::{BTreeMap, VecDeque};

use anyhow::bail;

use super::rooms::{part_of_rate, share};
use crate::{
    clock::{self, Nanos, SECOND, span},
    codec::packet::{self, Kind, Packet},
    histogram::Histogram,
    label::Label,
    ledger::{Arrival, Ledger, Shape},
    options::Echo,
    outcome::Outcome,
    processes::wait_for_others,
    run::{Run, TURN},
    swarm::{End, Replies, Sink},
};

struct Asking {
    clients: Vec<Client>,
    namespace: String,
    payload_bytes: usize,
    /// Whether the event is `echo`.
    echoes: bool,
    /// Whether each acknowledgement triggers the next request.
    goes_on: bool,
    ledger: Ledger,
    window: std::ops::Range<Nanos>,
    latency: Histogram,
    connect: Histogram,
    /// Clients that have connected or failed.
    settled: usize,
    /// Clients that are connected.
    open: usize,
    outstanding: usize,
    probe_answered: bool,
    ends: BTreeMap<&'static str, u64>,
    last_end: Option<End>,
}

#[derive(Default)]
struct Client {
    since: Nanos,
    is_open: bool,
    next: u32,
    /// Send times of outstanding requests from number `first` on; zero once answered.
    times: VecDeque<Nanos>,
    first: u32,
}

impl Asking {
    fn write_request(&mut self, client: usize, time: Nanos, out: &mut Vec<u8>) {
        let one = &mut self.clients[client];
        let sequence = one.next;
        one.next += 1;
        one.times.push_back(time);
        self.outstanding += 1;
        packet::write_head(out, b'2', &self.namespace, Some(u64::from(sequence)));
        if !self.echoes {
            out.extend_from_slice(b"[\"rooms\"]");
            return;
        }
        out.extend_from_slice(b"[\"echo\",\"");
        let label = Label {
            run: 0,
            sender: client as u32,
            sequence,
            time,
        };
        label.write(out, self.payload_bytes);
        out.extend_from_slice(b"\"]");
    }

    fn answered(&mut self, client: usize, ack: u64, body: &[u8], now: Nanos) {
        let one = &mut self.clients[client];
        let Some(sequence) = u32::try_from(ack).ok().filter(|ack| *ack < one.next) else {
            self.ledger.corrupted();
            return;
        };
        if self.echoes && !is_echo(body, client, sequence, self.payload_bytes) {
            self.ledger.corrupted();
            return;
        }
        if self.ledger.arrived(client, sequence) != Arrival::New {
            return;
        }
        let at = sequence.saturating_sub(one.first) as usize;
        if let Some(time) = one.times.get_mut(at) {
            if self.window.contains(time) {
                self.latency.record(now - *time);
            }
            *time = 0;
            self.outstanding -= 1;
        }
        while one.times.front() == Some(&0) {
            one.times.pop_front();
            one.first += 1;
        }
    }
}

impl Sink for Asking {
    fn connected(&mut self, client: usize, now: Nanos, _: &mut Replies) {
        self.settled += 1;
        self.open += 1;
        self.clients[client].is_open = true;
        self.connect.record(now - self.clients[client].since);
        self.ledger.open(client);
        self.ledger.owe(client, 0);
    }

    fn packet(&mut self, client: usize, packet: Packet<'_>, now: Nanos, replies: &mut Replies) {
        match (packet.kind, packet.ack) {
            (Kind::Ack, Some(PROBE_ACK)) => self.probe_answered = true,
            (Kind::Ack, Some(ack)) => {
                self.answered(client, ack, packet.body, now);
                if self.goes_on {
                    replies.packet(|out| self.write_request(client, now, out));
                }
            }
            (Kind::Event, _) => {}
            _ => self.ledger.corrupted(),
        }
    }

    fn nonsense(&mut self, _: usize) {
        self.ledger.corrupted();
    }

    fn ended(&mut self, client: usize, end: End, _: Nanos) {
        *self.ends.entry(end.name()).or_default() += 1;
        let one = &mut self.clients[client];
        if one.is_open {
            one.is_open = false;
            self.outstanding -= one.times.iter().filter(|time| **time != 0).count();
            one.times.clear();
            one.first = one.next;
            self.ledger.cut(client);
            self.open -= 1;
        } else {
            self.settled += 1;
        }
        self.last_end = Some(end);
    }
}

/// Whether an acknowledgement has the payload of the request as its only argument.
fn is_echo(body: &[u8], client: usize, sequence: u32, payload_bytes: usize) -> bool {
    let payload = body
        .strip_prefix(b"[\"")
        .and_then(|rest| rest.strip_suffix(b"\"]"));
    let label = payload.and_then(|payload| Label::read(payload, payload_bytes));
    label.is_some_and(|label| label.sender == client as u32 && label.sequence == sequence)
}

pub(super) fn run(options: &Echo) -> anyhow::Result<Outcome> {
    let common = &options.common;
    let count = share(options.clients, common).max(1);
    let shape = Shape {
        rooms: count,
        members: 1,
        senders: 1,
    };
    let mut run = Run::new("echo", common, count)?;
    let mut asking = Asking {
        clients: (0..count).map(|_| Client::default()).collect(),
        namespace: common.namespace.clone(),
        payload_bytes: common.payload,
        echoes: options.event != "rooms",
        goes_on: false,
        ledger: Ledger::new(shape),
        window: 0..0,
        latency: Histogram::new(),
        connect: Histogram::new(),
        settled: 0,
        open: 0,
        outstanding: 0,
        probe_answered: false,
        ends: BTreeMap::new(),
        last_end: None,
    };
    open_all(&mut run, &mut asking, common.opening as usize)?;
    if options.event == "auto" {
        probe(&mut run, &mut asking)?;
    }
    wait_for_others(common)?;
    let rate = options.rate.map(|rate| part_of_rate(rate, common));
    traffic(&mut run, &mut asking, options, rate)?;
    let pace = rate.map_or_else(
        || "one request per client".to_owned(),
        |rate| format!("{rate} requests per second"),
    );
    let outcome = &mut run.outcome;
    outcome.setting("clients", &count);
    outcome.setting("event", &if asking.echoes { "echo" } else { "rooms" });
    outcome.setting("pace", &pace);
    outcome.set("connections", asking.open as u64);
    outcome.time("echo", &asking.latency);
    outcome.time("connect", &asking.connect);
    outcome.add_ends(&asking.ends);
    let clients = asking.clients;
    outcome.ledger = asking.ledger.close(|client| clients[client].next);
    Ok(run.finish())
}

fn open_all(run: &mut Run, asking: &mut Asking, opening: usize) -> anyhow::Result<()> {
    let count = asking.clients.len();
    let settled = |asking: &Asking| asking.settled;
    run.open_all((count, opening), asking, settled, |asking, client, now| {
        asking.clients[client].since = now;
    })?;
    let open = asking.open;
    if open == 0 {
        bail!("no client connected: {:?}", asking.last_end);
    }
    if open < count {
        let said = format!("connections: only {open} of {count} connected");
        run.outcome.limit(&said);
    }
    Ok(())
}

/// Checks whether the server acknowledges `echo`.
fn probe(run: &mut Run, asking: &mut Asking) -> anyhow::Result<()> {
    let mut request = Vec::new();
    packet::write_head(&mut request, b'2', &asking.namespace, Some(PROBE_ACK));
    request.extend_from_slice(b"[\"echo\",\"is anybody there?\"]");
    let Some(client) = asking.clients.iter().position(|client| client.is_open) else {
        return Ok(());
    };
    run.swarm.send(client, &request);
    let deadline = clock::now() + LONGEST_PROBE;
    while !asking.probe_answered && clock::now() < deadline {
        run.turn(TURN, asking)?;
    }
    asking.echoes = asking.probe_answered;
    if !asking.echoes {
        let said = "the server has no event `echo`; `rooms` was used instead";
        run.outcome.notes.push(said.to_owned());
    }
    Ok(())
}

fn traffic(
    run: &mut Run,
    asking: &mut Asking,
    options: &Echo,
    rate: Option<f64>,
) -> anyhow::Result<()> {
    let common = &options.common;
    let start = clock::now();
    let begin = start + span(common.warm_up);
    let end = begin + span(common.duration);
    asking.window = begin..end;
    asking.goes_on = rate.is_none();
    run.enter("warming up", Some(begin));
    let mut request = Vec::new();
    let mut ask = |run: &mut Run, asking: &mut Asking, client: usize, time| {
        if asking.clients[client].is_open {
            request.clear();
            asking.write_request(client, time, &mut request);
            run.swarm.send(client, &request);
        }
    };
    if rate.is_none() {
        for client in 0..asking.clients.len() {
            ask(run, asking, client, clock::now());
        }
    }
    let mut sent = 0_u64;
    let mut at_begin = None;
    loop {
        let now = clock::now();
        if now >= begin && at_begin.is_none() {
            at_begin = Some(asking.ledger.arrivals());
            run.begin_window();
            run.enter("measuring", Some(end));
        }
        if now >= end {
            break;
        }
        let mut next = (now + TURN).min(end);
        while let Some(rate) = rate {
            let due = clock::due(start, sent, rate);
            if due > now {
                next = next.min(due);
                break;
            }
            ask(run, asking, sent as usize % asking.clients.len(), due);
            sent += 1;
        }
        run.turn(next.saturating_sub(clock::now()), asking)?;
        run.report(asking.open as u64, asking.ledger.arrivals());
    }
    run.end_window();
    asking.goes_on = false;
    let answered = asking.ledger.arrivals() - at_begin.unwrap_or(0);
    run.outcome.set("requests", answered);
    if let Some(rate) = rate
        && (answered as f64) < rate * run.outcome.seconds * LEAST_SHARE_OF_RATE
    {
        let achieved = answered as f64 / run.outcome.seconds;
        let said = format!("the rate was not kept: {achieved:.1} of {rate:.1} requests per second");
        run.outcome.limit(&said);
    }
    let deadline = clock::now() + span(common.grace);
    run.enter("waiting for the rest", None);
    while asking.outstanding > 0 && clock::now() < deadline {
        run.turn(TURN, asking)?;
    }
    Ok(())
}

/// Above the number of requests of any client.
const PROBE_ACK: u64 = u32::MAX as u64;
const LONGEST_PROBE: Nanos = SECOND;
const LEAST_SHARE_OF_RATE: f64 = 0.98;
