//! The names a connection should be subscribed to, and how far Redis has confirmed them.
//!
//! Each name is held once, with the owner's wish and the state of the connection; commands follow
//! from the difference. A name has at most one command under way:
//!
//! ```text
//!          wanted: send            confirmed
//!   Off ──────────────▶ Subscribing ─────────▶ On
//!    ▲ ▲                     │                 │ not wanted: send
//!    │ │                     │ refused         ▼
//!    │ └─── confirmed ───────┼─────────── Unsubscribing
//!    │                       ▼
//!    └── ask again ── Refused or Moved ◀── slot given away ── On
//!
//!   connection lost: every name becomes Off; names that nobody wants are forgotten
//! ```
//!
//! - *queued*: the name waits in the queue of its priority for a command. A change that is reverted
//!   before its command is sent costs nothing. The name then stays queued until a batch reaches it,
//!   or until too many such names are swept.
//! - *missing*: known when the connection was made and neither confirmed nor refused since. The
//!   connection is complete when no name is missing.
//!
//! A batch has at most [`BATCH`] names because one long command stops Redis for everybody. At most
//! [`WINDOW`] batches are unconfirmed because confirmations count against the output buffer that
//! Redis grants a subscriber. The module is pure: names and replies go in, batches come out.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
    sync::Arc,
};

use hashbrown::{Equivalent, HashMap};

use super::ConfirmError;

#[cfg(test)]
mod tests;

/// Most names in one batch.
pub(super) const BATCH: usize = 512;

/// Most batches that are unconfirmed at any time.
pub(super) const WINDOW: usize = 8;

/// Names that may stay although they are neither wanted nor subscribed. Names
/// that are under way count as such.
const MAX_IDLE: usize = 2 * BATCH * WINDOW;

/// The kind of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SubscriptionKind {
    /// One channel (`SUBSCRIBE`).
    Channel,
    /// All channels that a glob pattern matches (`PSUBSCRIBE`).
    Pattern,
    /// One channel of sharded pub/sub (`SSUBSCRIBE`).
    Shard,
}

/// The order in which names are subscribed. It matters most after a reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// The channel by which a connection watches itself.
    Probe,
    /// The base, request and response channels, without which a node takes no part.
    Control,
    /// Patterns, which stand for many rooms each.
    Pattern,
    /// Single rooms.
    Room,
}

const PRIORITIES: usize = 4;

/// A name with its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) kind: SubscriptionKind,
    pub(super) name: Arc<str>,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.kind, self.name.as_bytes()).hash(state);
    }
}

#[derive(PartialEq, Eq, Hash)]
struct KeyRef<'a> {
    kind: SubscriptionKind,
    name: &'a [u8],
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.kind == key.kind && self.name == key.name.as_bytes()
    }
}

/// The state of a name on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Off,
    Subscribing,
    On,
    Unsubscribing,
    /// The server refuses the name.
    Refused,
    /// The server does not serve the name's slot.
    Moved,
}

#[derive(Debug)]
struct Entry {
    priority: Priority,
    is_wanted: bool,
    wire: Wire,
    is_queued: bool,
    is_missing: bool,
}

impl Entry {
    fn needs_command(&self) -> bool {
        matches!(
            (self.is_wanted, self.wire),
            (true, Wire::Off) | (false, Wire::On)
        )
    }

    fn is_settled(&self) -> bool {
        match self.wire {
            Wire::On => self.is_wanted,
            Wire::Off | Wire::Refused | Wire::Moved => !self.is_wanted,
            Wire::Subscribing | Wire::Unsubscribing => false,
        }
    }
}

/// Names for one command of one kind, or for as many commands in one pipeline.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) kind: SubscriptionKind,
    pub(super) subscribes: bool,
    pub(super) names: Vec<Arc<str>>,
}

/// The consequence of a reply for the owner of the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing more to do.
    Noted,
    /// Redis refuses a name that it did not refuse before.
    Refused {
        /// The name.
        key: Key,
        /// The error that Redis returned.
        error: Box<str>,
    },
    /// The server does not serve some names of sharded pub/sub, or not any more.
    Moved,
}

/// How many of the names of a waiter are settled, since which connection.
#[derive(Debug, Default)]
pub(super) struct Progress {
    generation: u64,
    settled: usize,
}

/// All names of a connection.
#[derive(Default)]
pub(super) struct Subscriptions {
    entries: HashMap<Key, Entry>,
    queues: [VecDeque<Key>; PRIORITIES],
    in_flight: usize,
    /// Halves of refused batches, to be sent once more.
    again: VecDeque<Batch>,
    /// Wanted names that Redis refused at the last attempt, and its errors.
    refusals: HashMap<Key, Box<str>>,
    is_connected: bool,
    is_closed: bool,
    wanted: usize,
    confirmed: usize,
    missing: usize,
    batches: u64,
    /// Counts the connections that were lost.
    generation: u64,
}

impl Subscriptions {
    pub(super) fn subscribe(&mut self, kind: SubscriptionKind, priority: Priority, name: Arc<str>) {
        if self.is_closed {
            return;
        }
        let key = Key { kind, name };
        self.refusals.remove(&key);
        self.entries.entry(key.clone()).or_insert(Entry {
            priority,
            is_wanted: false,
            wire: Wire::Off,
            is_queued: false,
            is_missing: false,
        });
        self.update(&key, |entry| {
            entry.is_wanted = true;
            if matches!(entry.wire, Wire::Refused | Wire::Moved) {
                entry.wire = Wire::Off;
            }
        });
    }

    pub(super) fn unsubscribe(&mut self, kind: SubscriptionKind, name: &str) {
        let name = name.as_bytes();
        if let Some((key, _)) = self.entries.get_key_value(&KeyRef { kind, name }) {
            let key = key.clone();
            self.refusals.remove(&key);
            self.update(&key, |entry| entry.is_wanted = false);
        }
    }

    /// A connection without subscriptions has been made: queues every name for it.
    pub(super) fn connected(&mut self) {
        debug_assert!(!self.is_connected && self.in_flight == 0);
        if self.is_closed {
            return;
        }
        self.is_connected = true;
        for (key, entry) in &mut self.entries {
            entry.is_queued = true;
            entry.is_missing = true;
            self.queues[entry.priority as usize].push_back(key.clone());
        }
        self.missing = self.entries.len();
    }

    /// The connection is lost, and all its subscriptions with it.
    pub(super) fn lost(&mut self) {
        self.is_connected = false;
        self.in_flight = 0;
        self.again.clear();
        self.refusals.clear();
        self.queues.iter_mut().for_each(VecDeque::clear);
        self.generation += 1;
        self.confirmed = 0;
        self.missing = 0;
        self.entries.retain(|_, entry| {
            entry.wire = Wire::Off;
            entry.is_queued = false;
            entry.is_missing = false;
            entry.is_wanted
        });
        self.entries.shrink_to_fit();
    }

    /// The next batch that may be sent now. Its reply goes to [`Self::confirm`], [`Self::refuse`],
    /// or name by name to [`Self::settle_each`].
    pub(super) fn next_batch(&mut self) -> Option<Batch> {
        if !self.is_connected || self.in_flight == WINDOW {
            return None;
        }
        let batch = match self.again.pop_front() {
            Some(batch) => batch,
            None => self.take_queued()?,
        };
        self.in_flight += 1;
        self.batches += 1;
        Some(batch)
    }

    /// Redis has confirmed the whole batch.
    pub(super) fn confirm(&mut self, batch: Batch) {
        if !self.note_reply() {
            return;
        }
        let wire = if batch.subscribes {
            Wire::On
        } else {
            Wire::Off
        };
        for name in batch.names {
            let kind = batch.kind;
            self.set_wire(&Key { kind, name }, wire);
        }
    }

    /// Redis has refused the whole batch.
    pub(super) fn refuse(&mut self, mut batch: Batch, error: &str) -> Outcome {
        let kind = batch.kind;
        if !batch.subscribes {
            self.confirm(batch);
            return Outcome::Noted;
        }
        if !self.note_reply() {
            return Outcome::Noted;
        }
        if batch.names.len() > 1 {
            // One name that is not allowed takes the whole command with it.
            let names = batch.names.split_off(batch.names.len() / 2);
            self.again.push_back(Batch { names, ..batch });
            self.again.push_back(batch);
            return Outcome::Noted;
        }
        let name = batch.names.swap_remove(0);
        self.refuse_name(Key { kind, name }, error)
    }

    /// The replies to a pipeline with a command for each name: `None` where Redis confirms the
    /// name. A name without a reply counts as moved, and is subscribed again.
    pub(super) fn settle_each(
        &mut self,
        batch: Batch,
        replies: impl IntoIterator<Item = Option<Box<str>>>,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        if !self.note_reply() {
            return outcomes;
        }
        let mut replies = replies.into_iter();
        for name in batch.names {
            let kind = batch.kind;
            let key = Key { kind, name };
            match replies.next() {
                // A server returns an error for slots that it no longer serves.
                Some(_) if !batch.subscribes => self.set_wire(&key, Wire::Off),
                Some(None) => self.set_wire(&key, Wire::On),
                Some(Some(error)) => outcomes.push(self.refuse_name(key, &error)),
                None => {
                    self.set_wire(&key, Wire::Moved);
                    outcomes.push(Outcome::Moved);
                }
            }
        }
        outcomes
    }

    /// Counts the reply to a batch. Returns whether it still matters: the owner may close the
    /// subscriber while its task handles a reply on another thread.
    fn note_reply(&mut self) -> bool {
        if !self.is_closed {
            self.in_flight -= 1;
        }
        !self.is_closed
    }

    fn refuse_name(&mut self, key: Key, error: &str) -> Outcome {
        let is_moved = MOVED.iter().any(|code| error.starts_with(code));
        if is_moved {
            self.set_wire(&key, Wire::Moved);
            return Outcome::Moved;
        }
        let is_wanted = self.entries.get(&key).is_some_and(|entry| entry.is_wanted);
        self.set_wire(&key, Wire::Refused);
        let error: Box<str> = error.into();
        if is_wanted && self.refusals.insert(key.clone(), error.clone()).is_none() {
            Outcome::Refused { key, error }
        } else {
            Outcome::Noted
        }
    }

    /// Redis has ended the subscription of a sharded channel. It does so on its own when the slot
    /// moves; the reply to a command of ours cannot be distinguished here and changes nothing.
    pub(super) fn ended(&mut self, name: &[u8]) -> Outcome {
        let kind = SubscriptionKind::Shard;
        let found = self.entries.get_key_value(&KeyRef { kind, name });
        let Some((key, Entry { wire: Wire::On, .. })) = found else {
            return Outcome::Noted;
        };
        let key = key.clone();
        self.set_wire(&key, Wire::Moved);
        Outcome::Moved
    }

    /// Whether Redis has confirmed the last change of each name, all of them on one connection:
    /// `None` if it has not yet. A refused name is an error at once, since asking again may take
    /// long.
    pub(super) fn confirmed(
        &self,
        kind: SubscriptionKind,
        names: &[Arc<str>],
        progress: &mut Progress,
    ) -> Option<Result<(), ConfirmError>> {
        if self.is_closed {
            return Some(Err(ConfirmError::Closed));
        }
        if progress.generation != self.generation {
            progress.generation = self.generation;
            progress.settled = 0;
        }
        for name in &names[progress.settled..] {
            let name = name.as_bytes();
            let key = KeyRef { kind, name };
            if let Some(error) = self.refusals.get(&key) {
                return Some(Err(ConfirmError::Refused(error.clone())));
            }
            if self
                .entries
                .get(&key)
                .is_some_and(|entry| !entry.is_settled())
            {
                return None;
            }
            progress.settled += 1;
        }
        Some(Ok(()))
    }

    /// Asks once more for all names whose slot the server did not serve. Returns them.
    pub(super) fn ask_again(&mut self) -> Vec<Arc<str>> {
        let keys = self.reset(Wire::Moved);
        keys.into_iter().map(|key| key.name).collect()
    }

    /// Asks once more for all refused names.
    pub(super) fn retry(&mut self) {
        self.reset(Wire::Refused);
    }

    fn reset(&mut self, wire: Wire) -> Vec<Key> {
        let entries = self.entries.iter();
        let entries = entries.filter(|(_, entry)| entry.wire == wire);
        let keys: Vec<_> = entries.map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.set_wire(key, Wire::Off);
        }
        keys
    }

    /// The subscriber is closed for good.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.lost();
    }

    /// Whether Redis has confirmed the subscription on the present connection.
    pub(super) fn is_confirmed(&self, kind: SubscriptionKind, name: &str) -> bool {
        let name = name.as_bytes();
        let entry = self.entries.get(&KeyRef { kind, name });
        entry.is_some_and(|entry| entry.wire == Wire::On)
    }

    /// All names that are wanted.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (&Key, Priority)> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.is_wanted)
            .map(|(key, entry)| (key, entry.priority))
    }

    /// A wanted name that Redis refuses, and its error.
    pub(super) fn refusal(&self) -> Option<(&Arc<str>, &str)> {
        let (key, error) = self.refusals.iter().next()?;
        Some((&key.name, error))
    }

    /// Whether no name is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.is_connected && self.missing == 0
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            desired: self.wanted,
            confirmed: self.confirmed,
            refused: self.refusals.len(),
            batches: self.batches,
        }
    }

    fn set_wire(&mut self, key: &Key, wire: Wire) {
        if wire == Wire::On && !self.refusals.is_empty() {
            self.refusals.remove(key);
        }
        self.update(key, |entry| entry.wire = wire);
    }

    /// Changes a name and applies the consequences: queues it for a command, or forgets it if it is
    /// neither wanted nor subscribed.
    fn update(&mut self, key: &Key, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        self.wanted -= usize::from(entry.is_wanted);
        self.confirmed -= usize::from(entry.wire == Wire::On);
        change(entry);
        self.wanted += usize::from(entry.is_wanted);
        self.confirmed += usize::from(entry.wire == Wire::On);
        if self.is_connected && entry.needs_command() && !entry.is_queued {
            entry.is_queued = true;
            self.queues[entry.priority as usize].push_back(key.clone());
        }
        let is_settled = entry.is_settled();
        if entry.is_missing && (is_settled || matches!(entry.wire, Wire::Refused | Wire::Moved)) {
            entry.is_missing = false;
            self.missing -= 1;
        }
        if is_settled && !entry.is_wanted && !entry.is_queued {
            self.entries.remove(key);
            if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 8 {
                self.entries.shrink_to(self.entries.len() * 2);
            }
        } else if self.entries.len() > 2 * (self.wanted + self.confirmed) + MAX_IDLE {
            self.drop_idle();
        }
    }

    /// Takes a batch from the first queue that has one. Lower priorities wait for higher ones.
    fn take_queued(&mut self) -> Option<Batch> {
        for queue in 0..PRIORITIES {
            // Single rooms wait for company while anything is unconfirmed: one round trip at most.
            let is_alone = queue == Priority::Room as usize && self.queues[queue].len() < BATCH;
            if is_alone && self.in_flight > 0 {
                return None;
            }
            if let Some(batch) = self.take_from(queue) {
                return Some(batch);
            }
            // A reconnect with many names needs memory that is not needed afterwards.
            if self.queues[queue].capacity() > BATCH {
                self.queues[queue] = VecDeque::new();
            }
        }
        None
    }

    /// Takes names that can share a batch from the front of a queue. None leaves it empty.
    fn take_from(&mut self, queue: usize) -> Option<Batch> {
        let mut batch: Option<Batch> = None;
        let mut others = Vec::new();
        while batch.as_ref().is_none_or(|batch| batch.names.len() < BATCH) && others.len() < BATCH {
            let Some(key) = self.queues[queue].pop_front() else {
                break;
            };
            let entry = self.entries.get_mut(&key);
            let entry = entry.expect("an entry stays while it is queued");
            if !entry.needs_command() {
                self.update(&key, |entry| entry.is_queued = false);
                continue;
            }
            let (kind, subscribes) = (key.kind, entry.is_wanted);
            let batch = batch.get_or_insert_with(|| Batch {
                kind,
                subscribes,
                names: Vec::new(),
            });
            if (batch.kind, batch.subscribes) != (kind, subscribes) {
                others.push(key);
                continue;
            }
            entry.is_queued = false;
            entry.wire = if subscribes {
                Wire::Subscribing
            } else {
                self.confirmed -= 1;
                Wire::Unsubscribing
            };
            batch.names.push(key.name);
        }
        for key in others.into_iter().rev() {
            self.queues[queue].push_front(key);
        }
        batch
    }

    /// Removes queued names that need no command.
    fn drop_idle(&mut self) {
        for queue in &mut self.queues {
            queue.retain(|key| {
                let entry = self.entries.get_mut(key);
                let entry = entry.expect("an entry stays while it is queued");
                if entry.needs_command() {
                    return true;
                }
                entry.is_queued = false;
                if !entry.is_wanted && entry.is_settled() {
                    self.entries.remove(key);
                }
                false
            });
        }
    }
}

/// The state of a subscriber's names, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Names that are wanted.
    pub desired: usize,
    /// Names that Redis has confirmed on the present connection.
    pub confirmed: usize,
    /// Names that Redis refuses.
    pub refused: usize,
    /// Batches sent since the start.
    pub batches: u64,
}

/// The error codes by which a server reports that another one serves the slot, or none at the
/// moment.
const MOVED: [&str; 5] = ["MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN"];
