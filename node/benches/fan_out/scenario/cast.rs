//! Broadcasts to rooms: one big room with a fixed number outstanding, or many small rooms.

use std::io;
use std::time::{Duration, Instant};

use super::{Drive, Latencies, Meter, SETTLE, Sample, Stall, settle};
use crate::clients::{Clients, Goal, TURN, room_name};
use crate::ledger::{Ledger, Tally};
use crate::payload::{Label, PAYLOAD_BYTES};

/// When a room's sender sends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextCast {
    /// As soon as fewer than `outstanding` of its messages are on their way to any member.
    Delivered { outstanding: u32 },
    /// When its own last message came back to it, whether or not the others have theirs.
    Heard,
}

/// When a phase stops sending.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    After(Duration),
    /// So many messages of each room.
    Casts(u32),
}

pub(super) fn run(
    rooms: usize,
    members: usize,
    next: NextCast,
    drive: &Drive,
) -> io::Result<Sample> {
    let mut clients = Clients::new(drive.port, Goal::Room { members }, drive.wait)?;
    clients.open_to(rooms * members)?;
    let mut casts = Casts::new(rooms, members, next);
    let mut sample = Sample::default();
    let outcome = measure(&mut clients, &mut casts, drive, &mut sample);
    sample.fault = outcome.err().map(|error| error.to_string());
    sample.latency = std::mem::take(&mut casts.latencies).percentiles();
    sample.tally = casts.close();
    Ok(sample)
}

fn measure(
    clients: &mut Clients,
    casts: &mut Casts,
    drive: &Drive,
    sample: &mut Sample,
) -> io::Result<()> {
    casts.phase(clients, Limit::After(drive.warm_up))?;
    settle(clients, SETTLE)?;
    casts.latencies = Latencies::default();
    let before = casts.ledger.arrivals();
    let meter = Meter::start(drive.pid, clients)?;
    casts.phase(clients, Limit::After(drive.window))?;
    settle(clients, SETTLE)?;
    meter.stop(clients, sample)?;
    sample.units = casts.ledger.arrivals() - before;
    Ok(())
}

/// The senders and the account of everything they sent.
pub(crate) struct Casts {
    members: usize,
    next: NextCast,
    rooms: Vec<Room>,
    ledger: Ledger,
    latencies: Latencies,
    /// Rooms whose sender may send, found while arrivals were read.
    due: Vec<usize>,
    text: Vec<u8>,
}

struct Room {
    name: String,
    /// When each message was sent; its length is the next message's number.
    sent: Vec<Instant>,
    /// Arrivals still missing, per outstanding message.
    missing: [usize; MOST_OUTSTANDING],
}

impl Casts {
    pub(crate) fn new(rooms: usize, members: usize, next: NextCast) -> Self {
        let room = |index| Room {
            name: room_name(index),
            sent: Vec::new(),
            missing: [0; MOST_OUTSTANDING],
        };
        Self {
            members,
            next,
            rooms: (0..rooms).map(room).collect(),
            ledger: Ledger::new(rooms * members),
            latencies: Latencies::default(),
            due: Vec::new(),
            text: Vec::new(),
        }
    }

    /// Sends up to the limit, then waits until everything sent has arrived.
    pub(crate) fn phase(&mut self, clients: &mut Clients, limit: Limit) -> io::Result<()> {
        let started = Instant::now();
        let first: Vec<usize> = self.rooms.iter().map(|room| room.sent.len()).collect();
        for room in 0..self.rooms.len() {
            let at_once = match self.next {
                NextCast::Delivered { outstanding } => outstanding,
                NextCast::Heard => 1,
            };
            self.due.extend((0..at_once).map(|_| room));
        }
        let mut stall = Stall::new(self.ledger.arrivals());
        loop {
            while let Some(room) = self.due.pop() {
                let open = match limit {
                    Limit::After(duration) => started.elapsed() < duration,
                    Limit::Casts(count) => {
                        self.rooms[room].sent.len() < first[room] + count as usize
                    }
                };
                if open {
                    self.send(clients, room)?;
                }
            }
            if self.ledger.arrivals() == self.deliveries_due() {
                return Ok(());
            }
            clients.turn(TURN, |client, message, now| {
                self.arrived(client, message, now)
            })?;
            stall.check(self.ledger.arrivals())?;
        }
    }

    pub(crate) fn close(self) -> Tally {
        let Self {
            ledger,
            rooms,
            members,
            ..
        } = self;
        ledger.close(|client| rooms[client / members].sent.len() as u32)
    }

    fn send(&mut self, clients: &mut Clients, room: usize) -> io::Result<()> {
        let state = &mut self.rooms[room];
        let sequence = state.sent.len() as u32;
        state.missing[sequence as usize % MOST_OUTSTANDING] = self.members;
        self.text.clear();
        self.text.extend_from_slice(b"42[\"cast\",\"");
        self.text.extend_from_slice(state.name.as_bytes());
        self.text.extend_from_slice(b"\",\"");
        Label {
            sender: room as u32,
            sequence,
        }
        .write(&mut self.text);
        self.text.extend_from_slice(b"\"]");
        state.sent.push(Instant::now());
        clients.send(room * self.members, &self.text)
    }

    fn arrived(&mut self, client: usize, message: &[u8], now: Instant) {
        let room = client / self.members;
        let state = &mut self.rooms[room];
        let label = read_cast(message).filter(|label| {
            label.sender as usize == room && (label.sequence as usize) < state.sent.len()
        });
        let Some(label) = label else {
            self.ledger.corrupted();
            return;
        };
        if !self.ledger.arrived(client, label.sequence) {
            return;
        }
        self.latencies
            .record(now - state.sent[label.sequence as usize]);
        match self.next {
            NextCast::Heard => {
                if client.is_multiple_of(self.members) {
                    self.due.push(room);
                }
            }
            NextCast::Delivered { .. } => {
                let missing = &mut state.missing[label.sequence as usize % MOST_OUTSTANDING];
                *missing = missing.saturating_sub(1);
                if *missing == 0 {
                    self.due.push(room);
                }
            }
        }
    }

    fn deliveries_due(&self) -> u64 {
        self.rooms
            .iter()
            .map(|room| (room.sent.len() * self.members) as u64)
            .sum()
    }
}

fn read_cast(message: &[u8]) -> Option<Label> {
    if message.len() != CAST_HEAD.len() + PAYLOAD_BYTES + TAIL.len() {
        return None;
    }
    Label::read(message.strip_prefix(CAST_HEAD)?.strip_suffix(TAIL)?)
}

const CAST_HEAD: &[u8] = b"42[\"cast\",\"";
const TAIL: &[u8] = b"\"]";

/// More than any scenario has outstanding, so that two outstanding messages never share a place.
const MOST_OUTSTANDING: usize = 16;
