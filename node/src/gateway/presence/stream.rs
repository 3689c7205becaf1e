//! The messages between nodes about their users, and how one node follows the others.
//!
//! Each node numbers its messages. One names sockets as they are now or as gone, so it
//! may be applied twice; a full state is a series of messages, of which the first and the
//! last are marked, with changes in between.
//!
//! ```text
//!             first part of a full state            last part
//!  Lost ────────────────────────────────► Filling ────────────► Whole
//!   ▲ asks for a full state                  │                     │
//!   └────────── a number is missing for a second ◄─────────────────┘
//! ```
//!
//! Handlers of events between servers run side by side, so messages may overtake each
//! other, and wait here for their turn.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    mem,
    ops::Not,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::table::Table;

/// A node publishes at least this often, so that others notice missing messages.
const BEAT: Duration = Duration::from_secs(2);

/// A node is reported as silent when it has sent nothing for this long.
const SILENT: Duration = Duration::from_secs(10);

/// A node without a lease is removed when it has sent nothing for this long. Leases are read once a
/// second, so messages of a node that has just started arrive before its lease is known.
const UNLISTED: Duration = Duration::from_secs(3);

/// How long a missing message may still come.
const LATE: Duration = Duration::from_secs(1);

/// The time between two requests for the full state of a node, and between two full
/// states of this one.
const ASK_AGAIN: Duration = Duration::from_secs(3);

const FULL_AGAIN: Duration = Duration::from_secs(1);

/// The time between two attempts to add sockets that were left out.
const PLACE_AGAIN: Duration = Duration::from_secs(30);

/// Messages of one node that wait for one that is missing.
const MAX_WAITING: usize = 256;

/// Nodes that are followed. Any process with access to Redis can publish a name.
const MAX_NODES: usize = 1000;

/// The sum of all names in a message, in bytes, which it exceeds by one socket at most.
const MAX_MESSAGE: usize = 48 << 10;

/// Sockets that are named in a message.
const MAX_SOCKETS: usize = 500;

/// Disconnected sockets that are not published yet. Beyond, a full state is cheaper.
const MAX_UNPUBLISHED: usize = 100_000;

/// In place of a node's name: all nodes.
const EVERYBODY: &str = "*";

/// A message that a node publishes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Message {
    pub(super) from: String,
    /// One more than that of the message before.
    pub(super) number: u64,
    /// Whether a full state begins.
    #[serde(default, skip_serializing_if = "Not::not")]
    first: bool,
    /// Whether it is complete.
    #[serde(default, skip_serializing_if = "Not::not")]
    last: bool,
    /// Sockets as they are now: id, user, rooms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    set: Vec<(String, String, Vec<String>)>,
    /// Sockets that no longer exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<String>,
    /// Nodes whose full state is requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    wants: Vec<String>,
}

impl Message {
    /// Whether more may follow at once.
    pub(super) fn is_large(&self) -> bool {
        self.set.len() + self.gone.len() >= MAX_SOCKETS / 2 || self.bytes() >= MAX_MESSAGE / 2
    }

    fn bytes(&self) -> usize {
        let set = self.set.iter().map(|(socket, user, rooms)| {
            let rooms: usize = rooms.iter().map(|room| room.len() + 3).sum();
            socket.len() + user.len() + rooms + 12
        });
        set.sum::<usize>() + self.gone.len() * 24
    }

    fn has_place(&self) -> bool {
        self.set.len() + self.gone.len() < MAX_SOCKETS && self.bytes() < MAX_MESSAGE
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Lost,
    Filling,
    Whole,
}

/// The state of another node as this one knows it.
#[derive(Debug, Default)]
struct Stream {
    phase: Phase,
    /// The number of the message that comes next, unless the phase is `Lost`.
    next: u64,
    waiting: BTreeMap<u64, Message>,
    /// Since when a message is missing.
    missing: Option<Duration>,
    /// When the node sent its last message.
    heard: Duration,
    /// When its full state was requested, or when a part of it arrived.
    asked: Option<Duration>,
    /// Sockets of it are left out, because there is no place for them.
    is_partial: bool,
}

impl Stream {
    fn new(now: Duration) -> Self {
        Self {
            heard: now,
            ..Self::default()
        }
    }
}

/// The users of one namespace in the cluster, as this node knows them.
#[derive(Debug, Default)]
pub(super) struct State {
    own: Arc<str>,
    table: Table,
    streams: BTreeMap<Arc<str>, Stream>,
    /// Sockets of this node that others do not know as they are.
    unpublished: HashSet<Arc<str>>,
    /// The sockets of a full state that are still to be published.
    full: Option<VecDeque<Arc<str>>>,
    /// Another node needs a full state.
    is_wanted: bool,
    fulls: u64,
    number: u64,
    published: Option<Duration>,
    filled: Option<Duration>,
    /// Sockets of this node are left out, because there is no place for them.
    is_partial: bool,
    /// When they were noted again.
    placed: Option<Duration>,
}

impl State {
    /// `max` limits the sockets and memberships.
    pub(super) fn new(own: &str, max: usize) -> Self {
        Self {
            own: own.into(),
            table: Table::new(max),
            ..Self::default()
        }
    }

    /// Notes how a socket of this node is now: its user and rooms, or gone.
    pub(super) fn change(&mut self, socket: &str, now: Option<(&str, &[String])>) {
        match now {
            Some((user, rooms)) => {
                let is_kept = self.table.set(&Arc::clone(&self.own), socket, user, rooms);
                self.is_partial |= !is_kept;
            }
            None if !self.table.remove(socket) => return,
            None => {}
        }
        if self.unpublished.len() >= MAX_UNPUBLISHED {
            // The others notice that a number is missing, and ask for all.
            self.unpublished.clear();
            self.number += 1;
        }
        self.unpublished.insert(socket.into());
    }

    /// Whether sockets of this node were left out that may have a place now. Then all of
    /// them have to be noted again.
    pub(super) fn has_place_again(&mut self, now: Duration) -> bool {
        let is_old = self.placed.is_none_or(|at| now >= at + PLACE_AGAIN);
        let has_place = self.is_partial && is_old && self.table.has_place();
        if has_place {
            self.is_partial = false;
            self.placed = Some(now);
        }
        has_place
    }

    /// Removes ended nodes, and returns the message to publish now, if any. `alive` are the nodes
    /// with a lease.
    pub(super) fn next(&mut self, alive: &[String], now: Duration) -> Option<Message> {
        self.forget(alive, now);
        let mut message = Message {
            from: self.own.to_string(),
            wants: self.wants(alive, now),
            ..Message::default()
        };
        self.add_changes(&mut message);
        self.add_full(&mut message, now);
        let is_due = self.published.is_none_or(|at| now >= at + BEAT);
        let is_empty = message.set.is_empty()
            && message.gone.is_empty()
            && message.wants.is_empty()
            && !message.last;
        if is_empty && !is_due {
            return None;
        }
        if self.published.is_none() {
            message.wants = vec![EVERYBODY.to_owned()];
        }
        self.published = Some(now);
        self.number += 1;
        message.number = self.number;
        Some(message)
    }

    fn add_changes(&mut self, message: &mut Message) {
        let mut taken = Vec::new();
        for socket in &self.unpublished {
            if !message.has_place() {
                break;
            }
            taken.push(Arc::clone(socket));
            match self.table.get(socket) {
                Some(entry) if entry.node == self.own => {
                    message.set.push(entry.named(socket));
                }
                _ => message.gone.push(socket.to_string()),
            }
        }
        for socket in taken {
            self.unpublished.remove(&socket);
        }
    }

    /// Adds a part of the full state, if one is in progress or wanted.
    fn add_full(&mut self, message: &mut Message, now: Duration) {
        let mut full = match self.full.take() {
            Some(full) => full,
            None if self.is_wanted && self.filled.is_none_or(|at| now >= at + FULL_AGAIN) => {
                self.is_wanted = false;
                self.filled = Some(now);
                self.fulls += 1;
                message.first = true;
                self.table.of_node(&self.own).cloned().collect()
            }
            None => return,
        };
        while message.has_place()
            && let Some(socket) = full.pop_front()
        {
            // One that has disconnected since then is published as a change.
            if let Some(entry) = self.table.get(&socket) {
                message.set.push(entry.named(&socket));
            }
        }
        message.last = full.is_empty();
        self.full = (!message.last).then_some(full);
    }

    fn forget(&mut self, alive: &[String], now: Duration) {
        let alive: BTreeSet<_> = alive.iter().map(String::as_str).collect();
        let table = &mut self.table;
        self.streams.retain(|node, stream| {
            let is_kept = alive.contains(&**node) || now < stream.heard + UNLISTED;
            if !is_kept {
                table.remove_node(node);
            }
            is_kept
        });
        let has_place = self.table.has_place();
        let is_late = |stream: &Stream| {
            let is_missing = stream.missing.is_some_and(|since| now >= since + LATE);
            // A user that had no place may have one now.
            let is_old = stream.asked.is_none_or(|at| now >= at + PLACE_AGAIN);
            is_missing || has_place && is_old && stream.is_partial
        };
        let late = self.streams.iter().filter(|(_, stream)| is_late(stream));
        let late: Vec<_> = late.map(|(node, _)| Arc::clone(node)).collect();
        for node in late {
            self.lose(&node, now);
        }
    }

    /// The nodes whose full state is needed and was not requested a moment ago.
    fn wants(&mut self, alive: &[String], now: Duration) -> Vec<String> {
        let others = alive.iter().filter(|node| ***node != *self.own);
        for node in others.take(MAX_NODES) {
            if !self.streams.contains_key(node.as_str()) && self.streams.len() < MAX_NODES {
                // The node may be silent because it keeps no users of this namespace.
                self.streams.insert(node.as_str().into(), Stream::new(now));
            }
        }
        let is_needed = |stream: &Stream| {
            stream.phase != Phase::Whole && stream.asked.is_none_or(|at| now >= at + ASK_AGAIN)
        };
        let needed = self.streams.iter_mut();
        let needed = needed.filter(|(_, stream)| is_needed(stream));
        needed
            .map(|(node, stream)| {
                stream.asked = Some(now);
                node.to_string()
            })
            .collect()
    }

    /// Handles a message of another node.
    pub(super) fn receive(&mut self, message: Message, now: Duration) {
        let is_own = |name: &String| **name == *self.own || name == EVERYBODY;
        if *message.from == *self.own {
            return;
        }
        self.is_wanted |= message.wants.iter().any(is_own);
        let node: Arc<str> = message.from.as_str().into();
        if self.streams.len() >= MAX_NODES && !self.streams.contains_key(&node) {
            return;
        }
        let stream = self.streams.entry(Arc::clone(&node));
        let stream = stream.or_insert_with(|| Stream::new(now));
        stream.heard = now;
        if stream.phase != Phase::Lost && message.number < stream.next {
            return;
        }
        stream.waiting.insert(message.number, message);
        if stream.waiting.len() > MAX_WAITING {
            if stream.phase == Phase::Lost {
                stream.waiting.pop_first();
            } else {
                self.lose(&node, now);
            }
        }
        self.advance(&node, now);
    }

    /// Applies the messages whose turn it is.
    fn advance(&mut self, node: &Arc<str>, now: Duration) {
        let Some(stream) = self.streams.get_mut(node) else {
            return;
        };
        if stream.phase == Phase::Lost {
            let mut waiting = stream.waiting.values();
            let Some(first) = waiting.find(|message| message.first) else {
                return;
            };
            stream.next = first.number;
            stream.waiting = stream.waiting.split_off(&stream.next);
            stream.phase = Phase::Filling;
            stream.is_partial = false;
            self.table.remove_node(node);
        }
        while let Some(message) = stream.waiting.remove(&stream.next) {
            stream.next += 1;
            stream.missing = None;
            let is_of_other = |table: &Table, socket: &str| {
                table.get(socket).is_some_and(|entry| entry.node != *node)
            };
            for (socket, user, rooms) in &message.set {
                if !is_of_other(&self.table, socket) {
                    stream.is_partial |= !self.table.set(node, socket, user, rooms);
                }
            }
            for socket in &message.gone {
                if !is_of_other(&self.table, socket) {
                    self.table.remove(socket);
                }
            }
            if stream.phase == Phase::Filling {
                stream.asked = Some(now);
                if message.last {
                    stream.phase = Phase::Whole;
                }
            }
        }
        if stream.waiting.is_empty() {
            stream.missing = None;
        } else {
            stream.missing = stream.missing.or(Some(now));
        }
    }

    /// Gives up the order of a node's messages. Its known users stay until its full
    /// state begins.
    fn lose(&mut self, node: &Arc<str>, now: Duration) {
        if let Some(stream) = self.streams.get_mut(node) {
            stream.phase = Phase::Lost;
            stream.missing = None;
            stream.asked = None;
            let mut waiting = mem::take(&mut stream.waiting);
            // A full state that has begun since then will do.
            let first = waiting.values().find(|message| message.first);
            if let Some(first) = first.map(|message| message.number) {
                stream.waiting = waiting.split_off(&first);
            }
        }
        self.advance(node, now);
    }

    /// The result of `look` in the table, and the nodes of which not all users are known. `alive`
    /// are the nodes with a lease.
    pub(super) fn found<T>(
        &self,
        alive: &[String],
        now: Duration,
        look: impl FnOnce(&Table) -> (usize, Vec<T>),
    ) -> Found<T> {
        let (total, page) = look(&self.table);
        let is_silent = |node: &&String| {
            let is_whole = |stream: &Stream| {
                stream.phase == Phase::Whole && !stream.is_partial && now < stream.heard + SILENT
            };
            match **node == *self.own {
                true => self.is_partial,
                false => !self.streams.get(node.as_str()).is_some_and(is_whole),
            }
        };
        Found {
            total,
            page,
            silent_nodes: alive.iter().filter(is_silent).cloned().collect(),
        }
    }

    /// The sockets that are kept, and the full states that were published.
    pub(super) fn figures(&self) -> (usize, u64) {
        (self.table.sockets(), self.fulls)
    }
}

/// The result of a search for users or rooms.
#[derive(Debug)]
pub(crate) struct Found<T> {
    /// The total number; `page` is one page of them.
    pub(crate) total: usize,
    pub(crate) page: Vec<T>,
    /// Nodes of which not all users are known.
    pub(crate) silent_nodes: Vec<String>,
}

#[cfg(test)]
mod tests;
