//! Echo with acknowledgement: every client has one request outstanding.

use std::io;
use std::io::Write as _;
use std::time::{Duration, Instant};

use super::{Drive, Latencies, Meter, SETTLE, Sample, Stall, settle};
use crate::clients::{Clients, Goal, TURN};
use crate::ledger::Ledger;
use crate::payload::Label;
use crate::wire;

pub(super) fn run(count: usize, drive: &Drive) -> io::Result<Sample> {
    let mut clients = Clients::new(drive.port, Goal::Namespace, drive.wait)?;
    clients.open_to(count)?;
    let mut echoes = Echoes {
        requests: vec![
            Request {
                sent: 0,
                at: Instant::now()
            };
            count
        ],
        ledger: Ledger::new(count),
        latencies: Latencies::default(),
        due: Vec::new(),
        text: Vec::new(),
    };
    let mut sample = Sample::default();
    let outcome = measure(&mut clients, &mut echoes, drive, &mut sample);
    sample.fault = outcome.err().map(|error| error.to_string());
    let Echoes {
        requests,
        ledger,
        latencies,
        ..
    } = echoes;
    sample.latency = latencies.percentiles();
    sample.tally = ledger.close(|client| requests[client].sent);
    Ok(sample)
}

fn measure(
    clients: &mut Clients,
    echoes: &mut Echoes,
    drive: &Drive,
    sample: &mut Sample,
) -> io::Result<()> {
    echoes.phase(clients, drive.warm_up)?;
    settle(clients, SETTLE)?;
    echoes.latencies = Latencies::default();
    let before = echoes.ledger.arrivals();
    let meter = Meter::start(drive.pid, clients)?;
    echoes.phase(clients, drive.window)?;
    settle(clients, SETTLE)?;
    meter.stop(clients, sample)?;
    sample.units = echoes.ledger.arrivals() - before;
    Ok(())
}

struct Echoes {
    requests: Vec<Request>,
    ledger: Ledger,
    latencies: Latencies,
    /// Clients whose answer came, found while arrivals were read.
    due: Vec<usize>,
    text: Vec<u8>,
}

#[derive(Clone)]
struct Request {
    /// How many this client has sent; the last one's number is one less.
    sent: u32,
    at: Instant,
}

impl Echoes {
    fn phase(&mut self, clients: &mut Clients, duration: Duration) -> io::Result<()> {
        let started = Instant::now();
        self.due.extend(0..self.requests.len());
        let mut stall = Stall::new(self.ledger.arrivals());
        loop {
            while let Some(client) = self.due.pop() {
                if started.elapsed() < duration {
                    self.send(clients, client)?;
                }
            }
            let sent = self
                .requests
                .iter()
                .map(|request| u64::from(request.sent))
                .sum::<u64>();
            if self.ledger.arrivals() == sent {
                return Ok(());
            }
            clients.turn(TURN, |client, message, now| {
                self.arrived(client, message, now)
            })?;
            stall.check(self.ledger.arrivals())?;
        }
    }

    fn send(&mut self, clients: &mut Clients, client: usize) -> io::Result<()> {
        let request = &mut self.requests[client];
        let sequence = request.sent;
        self.text.clear();
        write!(self.text, "42{sequence}[\"echo\",\"")?;
        Label {
            sender: client as u32,
            sequence,
        }
        .write(&mut self.text);
        self.text.extend_from_slice(b"\"]");
        *request = Request {
            sent: sequence + 1,
            at: Instant::now(),
        };
        clients.send(client, &self.text)
    }

    fn arrived(&mut self, client: usize, message: &[u8], now: Instant) {
        let request = &self.requests[client];
        let label = read_answer(message)
            .filter(|label| label.sender as usize == client && label.sequence < request.sent);
        let Some(label) = label else {
            self.ledger.corrupted();
            return;
        };
        if self.ledger.arrived(client, label.sequence) {
            self.latencies.record(now - request.at);
            self.due.push(client);
        }
    }
}

/// The payload of an answer whose acknowledgement id is the request's number.
fn read_answer(message: &[u8]) -> Option<Label> {
    let (id, rest) = wire::split_digits(message.strip_prefix(b"43")?);
    let label = Label::read(rest.strip_prefix(b"[\"")?.strip_suffix(b"\"]")?)?;
    let id: u32 = std::str::from_utf8(id).ok()?.parse().ok()?;
    (id == label.sequence).then_some(label)
}
