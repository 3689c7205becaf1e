//! The clients: raw Socket.IO connections on one epoll instance and one thread.
//!
//! It performs handshake, upgrade and namespace connect, answers pings, and passes every packet to
//! a sink without copying, in one shared buffer. It knows neither scenarios nor the ledger.

mod client;
mod link;
mod source;

use std::{io, net::IpAddr};

use rustix::{
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create,
        timerfd_settime,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    clock::{self, Nanos, SECOND},
    codec::packet::Packet,
    target::Target,
};
use client::{Client, Context};
use source::Sources;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Transport {
    /// WebSocket from the first request.
    Websocket,
    /// HTTP requests only.
    Polling,
    /// Polling first and then WebSocket, as the official client does by default.
    Upgrade,
}

/// Connection settings of the clients.
pub(crate) struct Dial {
    pub(crate) targets: Vec<Target>,
    pub(crate) transport: Transport,
    /// Whether the requests of a session after its first go to the next target.
    pub(crate) relayed: bool,
    pub(crate) namespace: String,
    /// JSON for the connect packet; may be empty.
    pub(crate) auth: String,
    /// Source addresses; if empty, the tool chooses.
    pub(crate) sources: Vec<IpAddr>,
}

/// Why a connection has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The server closed it regularly.
    Closed,
    Reset,
    /// Nothing listens at the address.
    Refused,
    /// The server refused it: HTTP status, or the namespace's reason.
    Rejected(String),
    /// The server disconnected the client from its namespace.
    Disconnected,
    /// The server violated the protocol.
    Protocol(String),
    /// The server does not read.
    Stuck,
    /// No source port is free.
    Ports,
    /// The process may open no more descriptors.
    Descriptors,
    Other(String),
}

impl End {
    /// Name for counts.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Closed => "closed by the server",
            Self::Reset => "reset",
            Self::Refused => "connection refused",
            Self::Rejected(_) => "rejected",
            Self::Disconnected => "disconnected from the namespace",
            Self::Protocol(_) => "protocol error",
            Self::Stuck => "server does not read",
            Self::Ports => "no free port",
            Self::Descriptors => "no free descriptor",
            Self::Other(_) => "other error",
        }
    }
}

impl From<Errno> for End {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::CONNRESET | Errno::PIPE => Self::Reset,
            Errno::CONNREFUSED => Self::Refused,
            Errno::ADDRINUSE | Errno::ADDRNOTAVAIL => Self::Ports,
            Errno::MFILE | Errno::NFILE => Self::Descriptors,
            other => Self::Other(io::Error::from(other).to_string()),
        }
    }
}

/// Receives the clients' packets. Times are those of the read.
pub(crate) trait Sink {
    /// A balancer has named the server to which it led a client's WebSocket.
    fn led_to(&mut self, _client: usize, _node: &str) {}
    /// The namespace has accepted a client, with this body.
    fn admitted(&mut self, _client: usize, _body: &[u8]) {}
    /// A client is connected to its namespace, on its final transport.
    fn connected(&mut self, client: usize, now: Nanos, replies: &mut Replies);
    /// A packet has arrived, other than connection control.
    fn packet(&mut self, client: usize, packet: Packet<'_>, now: Nanos, replies: &mut Replies);
    /// Something has arrived that is not a packet of the client's namespace.
    fn nonsense(&mut self, client: usize);
    /// A client's connection has ended without the tool closing it.
    fn ended(&mut self, client: usize, end: End, now: Nanos);
}

/// Packets that a client sends together in reply to what it has just read.
#[derive(Default)]
pub(crate) struct Replies {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Replies {
    /// Adds the packet that `write` appends.
    pub(crate) fn packet(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.text);
        self.ends.push(self.text.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.text[start..*end])
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }
}

pub(crate) struct Swarm {
    epoll: OwnedFd,
    /// Ends short waits, because the timeout of epoll has a resolution of milliseconds.
    timer: OwnedFd,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
    replies: Replies,
    clients: Vec<Client>,
    dial: Dial,
    sources: Sources,
    received_bytes: u64,
    /// Connections that ended while sending, to be reported in the next turn.
    ended: Vec<(usize, End)>,
}

impl Swarm {
    pub(crate) fn new(dial: Dial) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Edge-triggered, so the timer need not be read. Its token is not that of a client.
        let interest = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(
            &epoll,
            &timer,
            epoll::EventData::new_u64(u64::MAX),
            interest,
        )?;
        Ok(Self {
            epoll,
            timer,
            events: Vec::with_capacity(EVENTS_PER_WAIT),
            buffer: Vec::new(),
            replies: Replies::default(),
            clients: Vec::new(),
            sources: Sources::new(&dial.sources),
            dial,
            received_bytes: 0,
            ended: Vec::new(),
        })
    }

    /// Sets what a client sends in its next connect packets instead of the settings' JSON.
    pub(crate) fn identify(&mut self, client: usize, auth: String) {
        self.grow(client);
        self.clients[client].auth = auth;
    }

    /// When a client last opened a connection or received something.
    pub(crate) fn alive(&self, client: usize) -> Nanos {
        self.clients.get(client).map_or(0, |client| client.alive)
    }

    /// Replaces a target, because its server has moved. Open connections stay.
    pub(crate) fn retarget(&mut self, target: usize, place: Target) {
        self.dial.targets[target] = place;
    }

    /// Starts to connect a client to a target, for the first time or again.
    pub(crate) fn open(&mut self, client: usize, target: usize) -> Result<(), End> {
        self.grow(client);
        let (clients, mut context) = self.split();
        let opened = clients[client].open(&mut context, target);
        if opened.is_err() {
            clients[client].drop_links();
        }
        opened
    }

    /// Closes a client's connection regularly.
    pub(crate) fn close(&mut self, client: usize) {
        if let Some(client) = self.clients.get_mut(client) {
            client.drop_links();
        }
    }

    /// Resets a client's connection: the server gets an RST.
    pub(crate) fn reset(&mut self, client: usize) {
        if let Some(client) = self.clients.get_mut(client) {
            client.reset();
        }
    }

    /// Stops reading from this client's connection.
    pub(crate) fn stall(&mut self, client: usize) {
        self.clients[client].stall(&self.epoll);
    }

    /// Whether the server has closed the connection of a stalled client.
    pub(crate) fn has_lost(&mut self, client: usize) -> bool {
        if self.buffer.is_empty() {
            self.buffer.resize(EVENTS_PER_WAIT, 0);
        }
        self.clients[client].is_lost(&mut self.buffer)
    }

    /// Sends an Engine.IO packet. The next turn reports failures to the sink.
    pub(crate) fn send(&mut self, client: usize, packet: &[u8]) {
        let (clients, mut context) = self.split();
        if let Err(end) = clients[client].send(&mut context, [packet].into_iter()) {
            clients[client].drop_links();
            self.ended.push((client, end));
        }
    }

    /// Bytes of the transports so far, without TCP headers.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    pub(crate) fn targets(&self) -> &[Target] {
        &self.dial.targets
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.dial.namespace
    }

    /// Waits once for events, for at most `at_most`, and passes them to the sink.
    pub(crate) fn turn(&mut self, at_most: Nanos, sink: &mut impl Sink) -> io::Result<()> {
        for (client, end) in std::mem::take(&mut self.ended) {
            sink.ended(client, end, clock::now());
        }
        self.events.clear();
        if (1..LONGEST_TIMED).contains(&at_most) {
            let once = Itimerspec {
                it_interval: timespec(0),
                it_value: timespec(at_most),
            };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        }
        let timeout = timespec(at_most);
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let events = std::mem::take(&mut self.events);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut replies = std::mem::take(&mut self.replies);
        for event in &events {
            let (client, token) = client::of_token(event.data.u64());
            let (clients, mut context) = self.split();
            let Some(one) = clients.get_mut(client) else {
                continue;
            };
            let flags = event.flags;
            let outcome = one.happened(token, flags, &mut context, &mut buffer, &mut replies, sink);
            if let Err(end) = outcome {
                one.drop_links();
                sink.ended(client, end, clock::now());
            }
        }
        self.events = events;
        self.buffer = buffer;
        self.replies = replies;
        Ok(())
    }

    fn grow(&mut self, client: usize) {
        while self.clients.len() <= client {
            self.clients.push(Client::new(self.clients.len()));
        }
    }

    fn split(&mut self) -> (&mut Vec<Client>, Context<'_>) {
        let context = Context {
            epoll: &self.epoll,
            dial: &self.dial,
            sources: &mut self.sources,
            received_bytes: &mut self.received_bytes,
        };
        (&mut self.clients, context)
    }
}

fn timespec(nanos: Nanos) -> Timespec {
    Timespec {
        tv_sec: (nanos / SECOND) as i64,
        tv_nsec: (nanos % SECOND) as i64,
    }
}

/// Waits up to this length end exactly, longer ones within a millisecond.
const LONGEST_TIMED: Nanos = SECOND / 100;
const EVENTS_PER_WAIT: usize = 256;
