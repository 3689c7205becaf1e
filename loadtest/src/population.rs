//! The members of the rooms: the sink of all scenarios with rooms.
//!
//! It sends joins, recognises messages, records them in the ledger and the histograms, and reports
//! finished messages and lost clients to the driver. The driver decides when messages are sent and
//! to which target a client connects.
//!
//! ```text
//! Away ──> Connecting ──> Joining ──> In ──> Leaving ──> Out ──> Joining
//!   ^── connection lost, in any state      └──> Stalled (reads no more)
//! ```

use std::collections::{BTreeMap, VecDeque};

use crate::{
    clock::Nanos,
    codec::packet::{self, Kind, Packet},
    drive::Movements,
    finder::Finder,
    histogram::Histogram,
    label::Label,
    ledger::{Arrival, Ledger, Shape, Tally},
    swarm::{End, Replies, Sink},
};

/// Properties that all members of a run share.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    pub(crate) shape: Shape,
    pub(crate) namespace: String,
    pub(crate) run: u16,
    pub(crate) payload_bytes: usize,
    /// Whether senders request an acknowledgement of each message.
    pub(crate) asks: bool,
    /// Whether members come and go during traffic. The last recipient of a message is then unknown.
    pub(crate) is_unsteady: bool,
    /// Whether messages come from outside instead of the first members of each room.
    pub(crate) is_external: bool,
}

impl Behaviour {
    /// Name of a room. It contains dots, so it cannot be mistaken for a socket id.
    pub(crate) fn room(&self, room: usize) -> String {
        format!("load.{:04x}.{room}", self.run)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not connected, or failed.
    Away,
    Connecting,
    Joining,
    In,
    Leaving,
    /// Connected, but not in the room.
    Out,
    /// In the room, but no longer reading.
    Stalled,
}

struct Sender {
    /// Number of the next message.
    next: u32,
    /// Number of acknowledged messages.
    acked: u32,
    /// Messages that have not reached all members, from number `first_flight` on.
    flights: VecDeque<Flight>,
    first_flight: u32,
}

struct Flight {
    time: Nanos,
    since: Nanos,
    missing: u32,
}

pub(crate) struct Population {
    behaviour: Behaviour,
    states: Vec<State>,
    /// Start of the connection attempt; after a disconnect, its time.
    since: Vec<Nanos>,
    in_room: Vec<u32>,
    senders: Vec<Sender>,
    ledger: Ledger,
    finder: Finder,
    /// Messages that are sent in this span are timed.
    window: std::ops::Range<Nanos>,
    pub(crate) times: Times,
    pub(crate) counts: Counts,
    pub(crate) ends: BTreeMap<&'static str, u64>,
    /// The last reasons, for error messages.
    pub(crate) last_end: Option<End>,
    pub(crate) last_refusal: Option<String>,
    /// Clients that have been disconnected since the driver last looked.
    pub(crate) gone: Vec<(usize, End)>,
    pub(crate) movements: Movements,
    /// Senders with a message that has reached all members since the driver last looked.
    pub(crate) finished: Vec<usize>,
}

/// Latencies.
pub(crate) struct Times {
    /// From the start of the connection to the namespace's confirmation.
    pub(crate) connect: Histogram,
    /// From sending a message to its arrival at each receiver.
    pub(crate) delivery: Histogram,
    /// From sending a message to its arrival at the last receiver.
    pub(crate) last: Histogram,
    /// From the end of a connection to the confirmed join on the next one.
    pub(crate) outage: Histogram,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Current number of members with a confirmed join.
    pub(crate) members: u64,
    pub(crate) joins: u64,
    pub(crate) leaves: u64,
    /// Joins and messages that the server refused.
    pub(crate) refused: u64,
    pub(crate) sent: u64,
    /// Messages that did not reach all members within the grace time.
    pub(crate) incomplete: u64,
    /// Events other than messages.
    pub(crate) other_events: u64,
    pub(crate) reconnects: u64,
}

impl Population {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        let shape = behaviour.shape;
        let clients = shape.rooms * shape.members;
        let sender = || Sender {
            next: 0,
            acked: 0,
            flights: VecDeque::new(),
            first_flight: 0,
        };
        Self {
            states: vec![State::Away; clients],
            since: vec![0; clients],
            in_room: vec![0; shape.rooms],
            senders: (0..shape.rooms * shape.senders).map(|_| sender()).collect(),
            ledger: Ledger::new(shape),
            finder: Finder::new(behaviour.payload_bytes),
            window: Nanos::MAX..Nanos::MAX,
            times: Times {
                connect: Histogram::new(),
                delivery: Histogram::new(),
                last: Histogram::new(),
                outage: Histogram::new(),
            },
            counts: Counts::default(),
            ends: BTreeMap::new(),
            last_end: None,
            last_refusal: None,
            gone: Vec::new(),
            movements: Movements::default(),
            finished: Vec::new(),
            behaviour,
        }
    }

    pub(crate) fn behaviour(&self) -> &Behaviour {
        &self.behaviour
    }

    pub(crate) fn state(&self, client: usize) -> State {
        self.states[client]
    }

    pub(crate) fn arrivals(&self) -> u64 {
        self.ledger.arrivals()
    }

    /// The client of a sender.
    pub(crate) fn client_of(&self, sender: usize) -> usize {
        let shape = self.behaviour.shape;
        sender / shape.senders * shape.members + sender % shape.senders
    }

    /// Sets the span of the messages that are timed, by the times in their labels.
    pub(crate) fn time(&mut self, window: std::ops::Range<Nanos>) {
        self.window = window;
    }

    /// The driver has started to connect this client.
    pub(crate) fn connecting(&mut self, client: usize, now: Nanos) {
        self.states[client] = State::Connecting;
        if self.since[client] & RETURNING == 0 {
            self.since[client] = now;
        }
    }

    /// The driver has reset this client's connection.
    pub(crate) fn torn(&mut self, client: usize, now: Nanos) {
        self.leave_at_once(client);
        self.since[client] = now | RETURNING;
        self.states[client] = State::Away;
    }

    /// The driver has stopped reading for this member: nothing is owed to it.
    pub(crate) fn stalled(&mut self, client: usize) {
        self.leave_at_once(client);
        for stream in self.behaviour.shape.streams(client) {
            self.ledger.forget(stream);
        }
        self.states[client] = State::Stalled;
    }

    /// Writes a join or a leave of a connected client and records it in the ledger.
    pub(crate) fn write_move(&mut self, client: usize, joins: bool, out: &mut Vec<u8>) {
        let room = client / self.behaviour.shape.members;
        let ack = if joins { JOIN_ACK } else { LEAVE_ACK };
        packet::write_head(out, b'2', &self.behaviour.namespace, Some(ack));
        let event = if joins { "join" } else { "leave" };
        let name = self.behaviour.room(room);
        // Without `quiet`, `roomcast serve` notifies all members of each join.
        out.extend_from_slice(format!("[\"{event}\",\"{name}\",{{\"quiet\":true}}]").as_bytes());
        for stream in self.behaviour.shape.streams(client) {
            if joins {
                self.ledger.open(stream);
            } else {
                let sender = &self.senders[self.behaviour.shape.sender(stream)];
                self.ledger.leave(stream, sender.acked);
            }
        }
        if joins {
            self.states[client] = State::Joining;
        } else {
            self.states[client] = State::Leaving;
            self.in_room[room] -= 1;
            self.counts.members -= 1;
        }
    }

    /// Writes the next message of a sender as a packet.
    pub(crate) fn write_message(
        &mut self,
        sender: usize,
        time: Nanos,
        now: Nanos,
        out: &mut Vec<u8>,
    ) {
        let ack = self.behaviour.asks;
        let ack = ack.then(|| FIRST_MESSAGE_ACK + u64::from(self.senders[sender].next));
        packet::write_head(out, b'2', &self.behaviour.namespace, ack);
        let room = self.behaviour.room(sender / self.behaviour.shape.senders);
        out.extend_from_slice(format!("[\"message\",\"{room}\",\"").as_bytes());
        self.write_payload(sender, time, now, out);
        out.extend_from_slice(b"\"]");
    }

    /// Writes the payload of a sender's next message and counts it as sent.
    pub(crate) fn write_payload(
        &mut self,
        sender: usize,
        time: Nanos,
        now: Nanos,
        out: &mut Vec<u8>,
    ) {
        let sequence = self.senders[sender].next;
        self.write_label(sender, sequence, time, out);
        let one = &mut self.senders[sender];
        one.next += 1;
        let missing = self.in_room[sender / self.behaviour.shape.senders];
        if !self.behaviour.is_unsteady {
            one.flights.push_back(Flight {
                time,
                since: now,
                missing,
            });
            if one.flights.len() > MOST_FLIGHTS {
                one.flights.pop_front();
                one.first_flight += 1;
                self.counts.incomplete += 1;
            }
        }
    }

    /// Writes a payload for a room without members.
    pub(crate) fn write_unheard(&mut self, sender: usize, time: Nanos, out: &mut Vec<u8>) {
        self.write_label(sender, self.counts.sent as u32, time, out);
    }

    fn write_label(&mut self, sender: usize, sequence: u32, time: Nanos, out: &mut Vec<u8>) {
        let label = Label {
            run: self.behaviour.run,
            sender: sender as u32,
            sequence,
            time,
        };
        label.write(out, self.behaviour.payload_bytes);
        self.counts.sent += 1;
    }

    /// Number of messages of a sender that have not reached all members.
    pub(crate) fn outstanding(&self, sender: usize) -> usize {
        self.senders[sender].flights.len()
    }

    pub(crate) fn outstanding_of_all(&self) -> usize {
        self.senders.iter().map(|sender| sender.flights.len()).sum()
    }

    /// Gives up outstanding messages that were sent before this time.
    pub(crate) fn expire(&mut self, before: Nanos) {
        for (at, sender) in self.senders.iter_mut().enumerate() {
            while sender
                .flights
                .front()
                .is_some_and(|flight| flight.since < before)
            {
                sender.flights.pop_front();
                sender.first_flight += 1;
                self.counts.incomplete += 1;
                self.finished.push(at);
            }
        }
    }

    pub(crate) fn close(self) -> Tally {
        let senders = self.senders;
        self.ledger.close(|sender| senders[sender].next)
    }

    fn delivered(&mut self, client: usize, label: Label, now: Nanos) {
        let sender = label.sender as usize;
        let is_sent = |sender: &Sender| label.sequence < sender.next;
        if label.run != self.behaviour.run || !self.senders.get(sender).is_some_and(is_sent) {
            self.ledger.corrupted();
            return;
        }
        let Some(stream) = self.behaviour.shape.stream(client, sender) else {
            self.ledger.strayed();
            return;
        };
        if self.ledger.arrived(stream, label.sequence) != Arrival::New {
            return;
        }
        let latency = now.saturating_sub(label.time);
        let is_timed = self.window.contains(&label.time);
        if is_timed {
            self.times.delivery.record(latency);
        }
        if !self.behaviour.is_unsteady {
            self.land(sender, label.sequence, now, is_timed);
        }
    }

    /// Counts a delivery of an outstanding message.
    fn land(&mut self, at: usize, sequence: u32, now: Nanos, is_timed: bool) {
        let sender = &mut self.senders[at];
        let Some(flight) = sequence
            .checked_sub(sender.first_flight)
            .and_then(|index| sender.flights.get_mut(index as usize))
        else {
            return;
        };
        flight.missing = flight.missing.saturating_sub(1);
        if flight.missing > 0 {
            return;
        }
        if is_timed {
            self.times.last.record(now.saturating_sub(flight.time));
        }
        while sender
            .flights
            .front()
            .is_some_and(|flight| flight.missing == 0)
        {
            sender.flights.pop_front();
            sender.first_flight += 1;
            self.finished.push(at);
        }
    }

    fn answered(&mut self, client: usize, ack: u64, body: &[u8], now: Nanos) {
        if body.starts_with(b"[{\"error\"") {
            self.counts.refused += 1;
            self.last_refusal = Some(String::from_utf8_lossy(body).into_owned());
            if ack == JOIN_ACK {
                self.states[client] = State::Out;
            }
            return;
        }
        match (ack, self.states[client]) {
            (JOIN_ACK, State::Joining) => self.joined(client, now),
            (LEAVE_ACK, State::Leaving) => {
                for stream in self.behaviour.shape.streams(client) {
                    self.ledger.left(stream);
                }
                self.states[client] = State::Out;
                self.counts.leaves += 1;
            }
            (FIRST_MESSAGE_ACK.., _) => {
                let Some(sender) = self.sender_of(client) else {
                    return;
                };
                let sequence = (ack - FIRST_MESSAGE_ACK) as u32;
                let sender = &mut self.senders[sender];
                sender.acked = sender.acked.max(sequence + 1).min(sender.next);
            }
            _ => {}
        }
    }

    fn joined(&mut self, client: usize, now: Nanos) {
        for stream in self.behaviour.shape.streams(client) {
            let sender = &self.senders[self.behaviour.shape.sender(stream)];
            self.ledger.owe(stream, sender.next);
        }
        self.states[client] = State::In;
        self.in_room[client / self.behaviour.shape.members] += 1;
        self.counts.members += 1;
        self.counts.joins += 1;
        // The mark is set when a connection ends, so it is missing on the first join.
        if self.since[client] & RETURNING != 0 {
            let since = self.since[client] & !RETURNING;
            self.times.outage.record(now.saturating_sub(since));
            self.counts.reconnects += 1;
            self.since[client] = now;
        }
    }

    /// Removes a client from the account because it is disconnected or no longer read.
    fn leave_at_once(&mut self, client: usize) {
        let shape = self.behaviour.shape;
        if self.states[client] == State::In {
            self.in_room[client / shape.members] -= 1;
            self.counts.members -= 1;
        }
        for stream in shape.streams(client) {
            self.ledger.cut(stream);
        }
        if let Some(at) = self.sender_of(client) {
            let sender = &mut self.senders[at];
            // Acknowledged messages have been broadcast. Without acknowledgements this is unknown.
            let known = if self.behaviour.asks {
                sender.acked
            } else {
                sender.first_flight
            };
            self.ledger.doubt(at, known, sender.next);
            sender.acked = sender.next;
        }
    }

    fn sender_of(&self, client: usize) -> Option<usize> {
        let shape = self.behaviour.shape;
        let within = client % shape.members;
        let is_one = within < shape.senders && !self.behaviour.is_external;
        is_one.then(|| client / shape.members * shape.senders + within)
    }
}

impl Sink for Population {
    fn connected(&mut self, client: usize, now: Nanos, replies: &mut Replies) {
        if self.since[client] & RETURNING == 0 {
            let since = self.since[client];
            self.times.connect.record(now.saturating_sub(since));
        } else {
            self.movements.returns.push(now);
        }
        replies.packet(|out| self.write_move(client, true, out));
    }

    fn packet(&mut self, client: usize, packet: Packet<'_>, now: Nanos, _: &mut Replies) {
        match (packet.kind, packet.ack) {
            (Kind::Event, _) if packet.body.starts_with(b"[\"message\",") => {
                match self.finder.find(packet.body) {
                    Some(label) => self.delivered(client, label, now),
                    None => self.ledger.corrupted(),
                }
            }
            (Kind::Ack, Some(ack)) => self.answered(client, ack, packet.body, now),
            (Kind::Event, _) if packet.body.starts_with(b"[\"") => self.counts.other_events += 1,
            _ => self.ledger.corrupted(),
        }
    }

    fn nonsense(&mut self, _: usize) {
        self.ledger.corrupted();
    }

    fn ended(&mut self, client: usize, end: End, now: Nanos) {
        *self.ends.entry(end.name()).or_default() += 1;
        let was_in = self.states[client] != State::Connecting;
        self.leave_at_once(client);
        if was_in {
            self.since[client] = now | RETURNING;
            self.movements.losses.push(now);
        }
        self.states[client] = State::Away;
        self.last_end = Some(end.clone());
        self.gone.push((client, end));
    }
}

const JOIN_ACK: u64 = 1;
const LEAVE_ACK: u64 = 2;
const FIRST_MESSAGE_ACK: u64 = 16;

/// Flag in `since`: the client is away since then.
const RETURNING: Nanos = 1 << 63;

/// Maximum number of outstanding messages per sender; older ones are given up.
const MOST_FLIGHTS: usize = 100_000;
