//! The clients of a mode: they come back as the official client does, with recovery if the namespace has it, and
//! keep a record of what happened to them.
//!
//! ```text
//! Away ─ pause over ─▶ Opening ─ connected ─▶ Joining ─ acknowledged ─▶ Joined
//!   ▲                    │          └─ recovered ────────────────────────▲ │
//!   └── connection ended, or silent for longer than pings may take ────────┘
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use anyhow::Context as _;
use serde_json::{Value, value::RawValue};

use super::{
    Mode,
    account::{Entry, Publication, Receiver, Told},
    lock,
    publisher::EVENT,
    stage::{NODES, Places},
};
use crate::{
    clock::{self, Nanos, SECOND, around, backoff},
    codec::packet::{self, Kind, Packet},
    swarm::{Dial, End, Replies, Sink, Swarm, Transport},
    target::Target,
};

/// The effect of a fault on the clients.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// All clients are torn down, at random times within a span, and are away for about so long.
    Tear { within: Nanos, away: Nanos },
    /// Every tenth client stops reading. They are owed nothing any more.
    StallTenth,
    /// Clients that lose their connection come back at once.
    Hurry,
}

/// The clients of a mode, in a thread of their own.
pub(super) struct Crowd {
    pub(super) mode: Mode,
    clients: usize,
    rooms: usize,
    shared: Arc<Shared>,
    thread: JoinHandle<anyhow::Result<Vec<Receiver>>>,
}

#[derive(Default)]
struct Shared {
    orders: Mutex<VecDeque<Order>>,
    joined: AtomicUsize,
    arrived: AtomicU64,
    is_over: AtomicBool,
    /// Connections that ended without the clients' doing, by reason.
    ends: Mutex<BTreeMap<&'static str, u64>>,
}

impl Crowd {
    pub(super) fn start(
        mode: Mode,
        transport: Transport,
        clients: usize,
        rooms: usize,
        places: &Arc<Places>,
    ) -> Self {
        let shared: Arc<Shared> = Arc::default();
        let (own, places) = (Arc::clone(&shared), Arc::clone(places));
        let all = Clients::new(mode, clients, rooms);
        let thread = thread::spawn(move || run(all, transport, &own, &places));
        Self {
            mode,
            clients,
            rooms,
            shared,
            thread,
        }
    }

    pub(super) fn order(&self, order: Order) {
        lock(&self.shared.orders).push_back(order);
    }

    /// How many clients are members of their room.
    pub(super) fn joined(&self) -> usize {
        self.shared.joined.load(Relaxed)
    }

    /// How many messages have arrived.
    pub(super) fn arrived(&self) -> u64 {
        self.shared.arrived.load(Relaxed)
    }

    /// Connections that ended without the clients' doing so far, by reason.
    pub(super) fn ends(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.shared.ends).clone()
    }

    /// Whether all clients are members of their room. If their thread has failed, `finish` returns the reason.
    pub(super) fn has_joined(&self) -> bool {
        self.thread.is_finished() || self.joined() >= self.clients
    }

    /// How many messages the clients are owed that were accepted.
    pub(super) fn owed(&self, publications: &[Publication]) -> u64 {
        let (clients, rooms) = (self.clients, self.rooms);
        let members = |room| clients / rooms + usize::from(room < clients % rooms);
        let accepted = publications.iter().map(|publication| {
            let sent = publication.sent.iter();
            let accepted = sent.filter(|sent| sent.told == Told::Accepted).count();
            accepted * members(publication.room)
        });
        accepted.sum::<usize>() as u64
    }

    pub(super) fn finish(self) -> anyhow::Result<Vec<Receiver>> {
        self.shared.is_over.store(true, Relaxed);
        self.thread.join().ok().context("the clients' thread")?
    }
}

fn run(
    mut crowd: Clients,
    transport: Transport,
    shared: &Shared,
    places: &Places,
) -> anyhow::Result<Vec<Receiver>> {
    // The swarm learns the addresses below.
    let mut known = [None; NODES];
    let nowhere = target(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let dial = Dial {
        targets: vec![nowhere; NODES],
        transport,
        relayed: false,
        namespace: crowd.mode.namespace().to_owned(),
        auth: String::new(),
        sources: Vec::new(),
    };
    let mut swarm = Swarm::new(dial)?;
    while !shared.is_over.load(Relaxed) {
        let now = match places.balancer.get() {
            Some(balancer) => [Some(*balancer); NODES],
            None => places
                .nodes
                .each_ref()
                .map(|node| Some(node.addresses()?.clients)),
        };
        for (node, known) in known.iter_mut().enumerate() {
            if let (true, Some(address)) = (*known != now[node], now[node]) {
                *known = Some(address);
                swarm.retarget(node, target(address)?);
            }
        }
        let orders = std::mem::take(&mut *lock(&shared.orders));
        for order in orders {
            crowd.obey(order, &mut swarm);
        }
        crowd.move_on(&mut swarm, places);
        swarm.turn(TURN, &mut crowd)?;
        shared.joined.store(crowd.joined(), Relaxed);
        shared.arrived.store(crowd.arrived, Relaxed);
        for end in crowd.ends.drain(..) {
            *lock(&shared.ends).entry(end).or_default() += 1;
        }
    }
    let all = crowd.clients.into_iter();
    // A client that has stopped reading is owed nothing.
    Ok(all
        .filter(|one| !one.is_stalled)
        .map(|one| one.record)
        .collect())
}

fn target(address: SocketAddr) -> anyhow::Result<Target> {
    let target = Target::parse(&address.to_string(), "/socket.io/");
    target.ok().context("the address of a node")
}

struct Clients {
    mode: Mode,
    clients: Vec<One>,
    arrived: u64,
    is_hurried: bool,
    ends: Vec<&'static str>,
    random: fastrand::Rng,
}

struct One {
    record: Receiver,
    state: State,
    node: usize,
    attempts: u32,
    pid: Option<String>,
    offset: Option<String>,
    /// Whether the namespace has given this connection the session of the previous one.
    is_recovered: bool,
    /// Whether its socket has joined the room.
    is_member: bool,
    /// When the fault tears its connection down, and for how long.
    torn: Option<(Nanos, Nanos)>,
    is_stalled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Away { until: Nanos },
    Opening { since: Nanos },
    Joining,
    Joined,
}

impl Clients {
    fn new(mode: Mode, clients: usize, rooms: usize) -> Self {
        let one = |index| One {
            record: Receiver {
                room: index % rooms,
                entries: Vec::new(),
            },
            state: State::Away { until: 0 },
            node: 0,
            attempts: 0,
            pid: None,
            offset: None,
            is_recovered: false,
            is_member: false,
            torn: None,
            is_stalled: false,
        };
        Self {
            mode,
            clients: (0..clients).map(one).collect(),
            arrived: 0,
            is_hurried: false,
            ends: Vec::new(),
            random: super::random(),
        }
    }

    /// How many clients are members of their room. Those that have stopped reading need not be.
    fn joined(&self) -> usize {
        let is_there = |one: &&One| one.is_stalled || one.state == State::Joined;
        self.clients.iter().filter(is_there).count()
    }

    fn obey(&mut self, order: Order, swarm: &mut Swarm) {
        match order {
            Order::Tear { within, away } => {
                let now = clock::now();
                for one in &mut self.clients {
                    let at = now + self.random.u64(..within.max(1));
                    one.torn = Some((at, around(away, &mut self.random)));
                }
            }
            Order::StallTenth => {
                let count = self.clients.len() / 10;
                for (index, one) in self.clients.iter_mut().enumerate().take(count) {
                    one.is_stalled = true;
                    if one.state == State::Joined {
                        swarm.stall(index);
                    }
                }
            }
            Order::Hurry => self.is_hurried = true,
        }
    }

    /// Opens, tears down and gives up connections that are due.
    fn move_on(&mut self, swarm: &mut Swarm, places: &Places) {
        let now = clock::now();
        let mut opening = 0;
        for index in 0..self.clients.len() {
            let one = &self.clients[index];
            if one.is_stalled {
                continue;
            }
            let is_silent = now.saturating_sub(swarm.alive(index)) > SILENCE;
            match one.state {
                State::Away { until } if now >= until && opening < MOST_OPENING => {
                    opening += 1;
                    self.open(index, swarm, places, now);
                }
                State::Opening { since } if now > since + CONNECT => {
                    swarm.close(index);
                    self.ends.push("no connect");
                    self.lost(index, now);
                }
                State::Joining | State::Joined if is_silent => {
                    swarm.close(index);
                    self.ends.push("no ping");
                    self.lost(index, now);
                }
                _ => {}
            }
            if let (Some((at, away)), State::Joined) =
                (self.clients[index].torn, self.clients[index].state)
                && now >= at
            {
                swarm.reset(index);
                self.lost(index, now);
                self.clients[index].torn = None;
                self.clients[index].state = State::Away { until: now + away };
            }
        }
    }

    fn open(&mut self, index: usize, swarm: &mut Swarm, places: &Places, now: Nanos) {
        let first = (index + self.clients[index].attempts as usize) % NODES;
        let one = &mut self.clients[index];
        let node = match places.balancer.get() {
            // The balancer chooses a node, and names it to WebSockets only.
            Some(_) => Some(NODES),
            None => places.up_from(first),
        };
        let Some(node) = node else {
            one.state = State::Away {
                until: now + SECOND / 10,
            };
            return;
        };
        let auth = match (&one.pid, &one.offset) {
            (Some(pid), Some(offset)) => serde_json::json!({ "pid": pid, "offset": offset }),
            (Some(pid), None) => serde_json::json!({ "pid": pid }),
            _ => serde_json::json!({}),
        };
        swarm.identify(index, auth.to_string());
        one.node = node;
        one.is_recovered = false;
        one.state = State::Opening { since: now };
        // All targets are the balancer, if there is one.
        if let Err(end) = swarm.open(index, node % NODES) {
            self.ended(index, end, now);
        }
    }

    fn lost(&mut self, index: usize, now: Nanos) {
        let is_hurried = self.is_hurried;
        let one = &mut self.clients[index];
        if matches!(one.state, State::Joined | State::Joining) {
            one.record.entries.push(Entry::Cut { at: now });
            one.attempts = 0;
        }
        let pause = if is_hurried && one.attempts == 0 {
            0
        } else {
            backoff(one.attempts, &mut self.random)
        };
        one.attempts += 1;
        one.state = State::Away { until: now + pause };
    }

    fn event(&mut self, index: usize, body: &[u8], now: Nanos) {
        let one = &mut self.clients[index];
        let Ok((event, publisher, number, offset)) = read_event(body) else {
            return;
        };
        if event != EVENT {
            return;
        }
        // As the official client: the last argument, if it is a text.
        if one.pid.is_some() && offset.is_some() {
            one.offset = offset;
        }
        self.arrived += 1;
        one.record.entries.push(Entry::Arrived {
            publisher,
            number,
            at: now,
        });
    }
}

impl Sink for Clients {
    fn led_to(&mut self, client: usize, node: &str) {
        let number = node
            .strip_prefix("node")
            .and_then(|number| number.parse().ok());
        if let Some(number @ 1..=NODES) = number {
            self.clients[client].node = number - 1;
        }
    }

    fn admitted(&mut self, client: usize, body: &[u8]) {
        let one = &mut self.clients[client];
        let reply: Value = serde_json::from_slice(body).unwrap_or_default();
        let pid = reply["pid"].as_str().map(str::to_owned);
        one.is_recovered = pid.is_some() && pid == one.pid;
        if !one.is_recovered {
            one.offset = None;
            one.is_member = false;
        }
        one.pid = pid;
    }

    fn connected(&mut self, client: usize, now: Nanos, replies: &mut Replies) {
        let namespace = self.mode.namespace();
        let one = &mut self.clients[client];
        if one.is_recovered && one.is_member {
            let node = one.node;
            one.record.entries.push(Entry::Recovered { node, at: now });
            one.state = State::Joined;
            return;
        }
        one.state = State::Joining;
        let room = one.record.room;
        replies.packet(|out| {
            packet::write_head(out, b'2', namespace, Some(0));
            let join = format!(r#"["join","r{room}",{{"quiet":true}}]"#);
            out.extend_from_slice(join.as_bytes());
        });
    }

    fn packet(&mut self, client: usize, packet: Packet<'_>, now: Nanos, _: &mut Replies) {
        match packet.kind {
            Kind::Event => self.event(client, packet.body, now),
            Kind::Ack if self.clients[client].state == State::Joining => {
                let one = &mut self.clients[client];
                if packet.body.windows(7).any(|part| part == b"\"error\"") {
                    // Given up in the next turn.
                    one.state = State::Opening { since: 0 };
                    return;
                }
                one.is_member = true;
                let node = one.node;
                one.record.entries.push(Entry::Joined { node, at: now });
                one.state = State::Joined;
            }
            _ => {}
        }
    }

    fn nonsense(&mut self, _: usize) {}

    fn ended(&mut self, client: usize, end: End, now: Nanos) {
        self.ends.push(end.name());
        self.lost(client, now);
        if end == End::Refused {
            // A balancer tries another node at once.
            let until = now + SECOND / 20;
            self.clients[client].state = State::Away { until };
        }
    }
}

/// Event, publisher, number, and the offset in a namespace with recovery.
fn read_event(body: &[u8]) -> serde_json::Result<(String, usize, usize, Option<String>)> {
    let list: Vec<&RawValue> = serde_json::from_slice(body)?;
    let at = |index: usize| list.get(index).map_or("null", |value| value.get());
    Ok((
        serde_json::from_str(at(0))?,
        serde_json::from_str(at(1))?,
        serde_json::from_str(at(2))?,
        serde_json::from_str(at(3))?,
    ))
}

const TURN: Nanos = SECOND / 50;
/// Time after which a client without a ping gives up its connection: the nodes' interval and timeout.
const SILENCE: Nanos = 5 * SECOND;
/// Time that a connect may take.
const CONNECT: Nanos = 20 * SECOND;
/// Clients that may open connections in one turn.
const MOST_OPENING: usize = 50;
