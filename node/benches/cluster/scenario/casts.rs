//! Broadcasts published by somebody who is no node, and the account of every delivery.

use std::io;
use std::time::{Duration, Instant};

use crate::clients::{Clients, TURN};
use crate::ledger::{Ledger, Tally};
use crate::message::{self, Form};
use crate::payload::{Label, PAYLOAD_BYTES};
use crate::redis::Publisher;

/// When the next broadcast is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// So many at once, as soon as all earlier ones have reached everybody.
    Windows(u32),
    /// At equal intervals, whether or not earlier ones have arrived.
    PerSecond(u32),
}

/// The publisher, who turns to one room after the other, and the clients.
pub(super) struct Casts {
    /// One set of clients per node, all of the same size.
    crowds: Vec<Clients>,
    clients_each: usize,
    members: usize,
    rooms: Vec<Room>,
    publisher: Publisher,
    form: Form,
    pace: Pace,
    next_room: usize,
    published: u64,
    ledger: Ledger,
    payload: Vec<u8>,
}

struct Room {
    name: String,
    channel: String,
    sent: u32,
}

impl Casts {
    /// The clients of a node are members of its rooms, in the order of `rooms`.
    pub(super) fn new(
        crowds: Vec<Clients>,
        rooms: Vec<String>,
        members: usize,
        publisher: Publisher,
        (form, pace): (Form, Pace),
    ) -> Self {
        let clients = rooms.len() * members;
        let rooms = rooms.into_iter().map(|name| Room {
            channel: message::channel(&name),
            name,
            sent: 0,
        });
        Self {
            clients_each: clients / crowds.len(),
            crowds,
            members,
            rooms: rooms.collect(),
            publisher,
            form,
            pace,
            next_room: 0,
            published: 0,
            ledger: Ledger::new(clients),
            payload: Vec::new(),
        }
    }

    /// Publishes while `is_open`, then waits until everything has arrived and Redis has replied.
    pub(super) fn phase(
        &mut self,
        mut is_open: impl FnMut() -> io::Result<bool>,
    ) -> io::Result<()> {
        let started = Instant::now();
        let published_before = self.published;
        let mut stalled = (self.ledger.arrivals(), Instant::now());
        loop {
            let all_arrived = self.ledger.arrivals() == self.published * self.members as u64;
            if is_open()? {
                let due = match self.pace {
                    Pace::Windows(count) if all_arrived => u64::from(count),
                    Pace::Windows(_) => 0,
                    Pace::PerSecond(rate) => {
                        let due = started.elapsed().as_secs_f64() * f64::from(rate);
                        published_before + due as u64 - self.published
                    }
                };
                self.publish(due)?;
            } else if all_arrived && self.publisher.taken == self.published {
                return Ok(());
            }
            self.turn(TURN)?;
            if self.ledger.arrivals() != stalled.0 {
                stalled = (self.ledger.arrivals(), Instant::now());
            } else if stalled.1.elapsed() > STALL_LIMIT {
                return Err(io::Error::other("the servers stopped delivering"));
            }
        }
    }

    /// The same for a time.
    pub(super) fn phase_of(&mut self, duration: Duration) -> io::Result<()> {
        let end = Instant::now() + duration;
        self.phase(|| Ok(Instant::now() < end))
    }

    /// Goes on reading, without publishing.
    pub(super) fn rest(&mut self, duration: Duration) -> io::Result<()> {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            self.turn(duration)?;
        }
        Ok(())
    }

    pub(super) fn published(&self) -> u64 {
        self.published
    }

    pub(super) fn arrivals(&self) -> u64 {
        self.ledger.arrivals()
    }

    /// How often Redis has sent what was published.
    pub(super) fn copies(&self) -> u64 {
        self.publisher.copies
    }

    pub(super) fn close(self) -> Tally {
        let Self {
            ledger,
            rooms,
            members,
            ..
        } = self;
        ledger.close(|client| rooms[client / members].sent)
    }

    fn publish(&mut self, count: u64) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        for _ in 0..count.min(MOST_AT_ONCE) {
            let index = self.next_room;
            self.next_room = (index + 1) % self.rooms.len();
            let room = &mut self.rooms[index];
            let label = Label {
                sender: index as u32,
                sequence: room.sent,
            };
            self.payload.clear();
            self.form.write(&mut self.payload, &room.name, label);
            self.publisher
                .queue(self.form.publish(), &room.channel, &self.payload);
            room.sent += 1;
            self.published += 1;
        }
        self.publisher.write()
    }

    fn turn(&mut self, at_most: Duration) -> io::Result<()> {
        let (ledger, rooms, members) = (&mut self.ledger, &self.rooms, self.members);
        for (crowd, clients) in self.crowds.iter_mut().enumerate() {
            let first = crowd * self.clients_each;
            clients.turn(at_most, |client, message, _| {
                let client = first + client;
                let room = client / members;
                let label = read_cast(message).filter(|label| {
                    label.sender as usize == room && label.sequence < rooms[room].sent
                });
                match label {
                    Some(label) => drop(ledger.arrived(client, label.sequence)),
                    None => ledger.corrupted(),
                }
            })?;
        }
        self.publisher.read()
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
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// What fits into the socket's buffer in any case, when the generator has fallen behind its pace.
const MOST_AT_ONCE: u64 = 256;
