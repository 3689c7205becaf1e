//! What a subscriber link is to hear, and how far Redis has been told.
//!
//! Holds each name once, with what is wanted of it and what the connection has. From the difference
//! come the commands: at most [`BATCH`] names each, at most [`WINDOW`] unconfirmed, at most one per
//! name at any time. Changes that cancel each other out before a command was written cost nothing.
//! Pure: names and confirmations go in, bytes come out.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
    sync::Arc,
};

use hashbrown::{Equivalent, HashMap};
use roomcast_emitter::resp::{self, SubscriptionKind};

use super::waiting::{ConfirmError, Ticket, Waiting};

#[cfg(test)]
mod tests;

/// Most names in one command: more would stop Redis for others, fewer cost more packets.
pub(super) const BATCH: usize = 512;

/// Most commands that are unconfirmed at any time. Confirmations count against the output buffer
/// that Redis grants a subscriber.
pub(super) const WINDOW: usize = 8;

/// Names that may stand in the queues although nothing has to be done for them any more.
const MAX_IDLE: usize = 1024;

/// In which order names are subscribed, above all after a reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// The channel by which a link watches itself.
    Probe,
    /// Channels without which a node takes no part: base, request and response channels.
    Control,
    /// Patterns, which stand for many rooms each.
    Pattern,
    /// Single rooms.
    Room,
}

const PRIORITIES: usize = 4;

/// A name, and what it names.
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

/// What the connection has of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Off,
    Subscribing,
    On,
    Unsubscribing,
    /// Redis does not give it, on this connection.
    Refused,
}

#[derive(Debug)]
struct Entry {
    priority: Priority,
    is_wanted: bool,
    wire: Wire,
    /// Stands in the queue of its priority.
    is_queued: bool,
    /// Has not been confirmed since the connection was made.
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
            Wire::Off | Wire::Refused => !self.is_wanted,
            Wire::Subscribing | Wire::Unsubscribing => false,
        }
    }

    fn is_idle(&self) -> bool {
        self.is_queued && !self.needs_command()
    }
}

/// A command that has been written and not been confirmed completely.
#[derive(Debug)]
struct Command {
    kind: SubscriptionKind,
    subscribes: bool,
    keys: Vec<Key>,
    confirmed: usize,
}

/// What Redis's word about subscriptions means for the link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing more.
    Noted,
    /// Redis does not give the name.
    Refused(Key),
    /// There are names of sharded pub/sub that this server does not serve, or not any more.
    Moved,
}

/// Redis confirmed what nobody asked for: replies and commands are out of step.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfStep;

/// All names of a link.
pub(super) struct Subscriptions {
    entries: HashMap<Key, Entry>,
    queues: [VecDeque<Key>; PRIORITIES],
    idle: usize,
    in_flight: VecDeque<Command>,
    /// Names of refused commands, to be asked for in smaller ones.
    again: VecDeque<Vec<Key>>,
    is_connected: bool,
    is_closed: bool,
    wanted: usize,
    confirmed: usize,
    missing: usize,
    commands: u64,
    /// The slot of a name, where one command may only have names of one slot.
    slot: Option<fn(&str) -> u16>,
    pub(super) waiting: Waiting,
}

impl Subscriptions {
    pub(super) fn new(slot: Option<fn(&str) -> u16>) -> Self {
        Self {
            entries: HashMap::new(),
            queues: Default::default(),
            idle: 0,
            in_flight: VecDeque::new(),
            again: VecDeque::new(),
            is_connected: false,
            is_closed: false,
            wanted: 0,
            confirmed: 0,
            missing: 0,
            commands: 0,
            slot,
            waiting: Waiting::default(),
        }
    }

    pub(super) fn subscribe(&mut self, kind: SubscriptionKind, priority: Priority, name: Arc<str>) {
        if self.is_closed {
            return;
        }
        let key = Key { kind, name };
        let entry = self.entries.entry(key.clone()).or_insert(Entry {
            priority,
            is_wanted: false,
            wire: Wire::Off,
            is_queued: false,
            is_missing: false,
        });
        let was_idle = entry.is_idle();
        if entry.wire == Wire::Refused {
            entry.wire = Wire::Off;
        }
        self.wanted += usize::from(!entry.is_wanted);
        entry.is_wanted = true;
        self.changed(&key, was_idle);
    }

    pub(super) fn unsubscribe(&mut self, kind: SubscriptionKind, name: &str) {
        let name = name.as_bytes();
        let Some((key, entry)) = self.entries.get_key_value_mut(&KeyRef { kind, name }) else {
            return;
        };
        if !entry.is_wanted {
            return;
        }
        let key = key.clone();
        let was_idle = entry.is_idle();
        entry.is_wanted = false;
        self.wanted -= 1;
        self.changed(&key, was_idle);
    }

    /// A connection has been made, which has no subscriptions yet. Everything that is wanted
    /// queues up for it, in the order of priorities.
    pub(super) fn connected(&mut self) {
        debug_assert!(!self.is_connected && self.in_flight.is_empty());
        self.is_connected = true;
        for (key, entry) in &mut self.entries {
            entry.is_queued = true;
            entry.is_missing = true;
            self.queues[entry.priority as usize].push_back(key.clone());
        }
        self.missing = self.entries.len();
        if let Some(slot) = self.slot {
            // Neighbours of one slot share a command.
            for queue in &mut self.queues {
                queue
                    .make_contiguous()
                    .sort_by_cached_key(|key| slot(&key.name));
            }
        }
    }

    /// The connection is gone, and with it all that it had.
    pub(super) fn lost(&mut self) {
        self.is_connected = false;
        self.in_flight.clear();
        self.again.clear();
        self.queues.iter_mut().for_each(VecDeque::clear);
        self.idle = 0;
        self.confirmed = 0;
        self.missing = 0;
        self.entries.retain(|key, entry| {
            entry.wire = Wire::Off;
            entry.is_queued = false;
            entry.is_missing = false;
            if !entry.is_wanted {
                self.waiting.settled(key);
            }
            entry.is_wanted
        });
        self.entries.shrink_to_fit();
        let entries = &self.entries;
        self.waiting.begin_anew(|key| entries.contains_key(key));
    }

    /// Appends the commands that may be written now.
    pub(super) fn write_commands(&mut self, out: &mut Vec<u8>) {
        while self.has_window()
            && let Some(keys) = self.again.pop_front()
        {
            self.write_command(keys[0].kind, true, keys, out);
        }
        for priority in [
            Priority::Probe,
            Priority::Control,
            Priority::Pattern,
            Priority::Room,
        ] {
            let queue = priority as usize;
            while self.may_write(priority) {
                self.write_next(queue, out);
            }
            let queue = &mut self.queues[queue];
            if !queue.is_empty() {
                return;
            }
            // A reconnect of many names needs room that is not needed afterwards.
            if queue.capacity() > MAX_IDLE {
                *queue = VecDeque::new();
            }
        }
    }

    /// Redis has confirmed the beginning or the end of a subscription.
    pub(super) fn confirm(
        &mut self,
        kind: SubscriptionKind,
        subscribes: bool,
        name: &[u8],
    ) -> Result<Outcome, OutOfStep> {
        let expected = self.in_flight.front_mut().filter(|command| {
            command.kind == kind
                && command.subscribes == subscribes
                && command.keys[command.confirmed].name.as_bytes() == name
        });
        let Some(command) = expected else {
            let is_taken_away = kind == SubscriptionKind::Shard && !subscribes;
            return if is_taken_away {
                Ok(self.taken_away(name))
            } else {
                Err(OutOfStep)
            };
        };
        let key = command.keys[command.confirmed].clone();
        command.confirmed += 1;
        if command.confirmed == command.keys.len() {
            self.in_flight.pop_front();
        }
        self.set_wire(&key, if subscribes { Wire::On } else { Wire::Off });
        Ok(Outcome::Noted)
    }

    /// Redis has answered the oldest command with an error.
    pub(super) fn refuse(&mut self, error: &str) -> Result<Outcome, OutOfStep> {
        let command = self.in_flight.pop_front().ok_or(OutOfStep)?;
        if command.confirmed > 0 {
            return Err(OutOfStep);
        }
        if !command.subscribes {
            // A server answers so for slots that it does not serve any more.
            command
                .keys
                .iter()
                .for_each(|key| self.set_wire(key, Wire::Off));
            return Ok(Outcome::Noted);
        }
        if MOVED.iter().any(|code| error.starts_with(code)) {
            for key in &command.keys {
                self.set_wire(key, Wire::Refused);
            }
            return Ok(Outcome::Moved);
        }
        let mut keys = command.keys;
        if keys.len() > 1 {
            // One name that is not allowed takes the whole command with it.
            let half = keys.split_off(keys.len() / 2);
            self.again.push_back(keys);
            self.again.push_back(half);
            return Ok(Outcome::Noted);
        }
        let key = keys.swap_remove(0);
        self.waiting.refused(&key, error);
        self.set_wire(&key, Wire::Refused);
        Ok(Outcome::Refused(key))
    }

    /// Registers somebody who waits until the last changes of these names are confirmed; nobody if
    /// they are.
    pub(super) fn wait(&mut self, keys: Vec<Key>) -> Result<Option<Ticket>, ConfirmError> {
        if self.is_closed {
            return Err(ConfirmError::Closed);
        }
        let entries = &self.entries;
        let is_open = |key: &Key| entries.get(key).is_some_and(|entry| !entry.is_settled());
        Ok(self.waiting.register(keys, is_open))
    }

    /// Asks once more for what this server did not give; answers which names these are.
    pub(super) fn ask_again(&mut self) -> Vec<Arc<str>> {
        let refused = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.wire == Wire::Refused);
        let mut refused: Vec<_> = refused.map(|(key, _)| key.clone()).collect();
        if let Some(slot) = self.slot {
            // Neighbours of one slot share a command.
            refused.sort_by_cached_key(|key| slot(&key.name));
        }
        for key in &refused {
            self.set_wire(key, Wire::Off);
        }
        refused.into_iter().map(|key| key.name).collect()
    }

    /// The link is closed for good.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.lost();
        self.waiting.close();
    }

    /// Whether Redis has confirmed the subscription, on the present connection.
    pub(super) fn is_confirmed(&self, kind: SubscriptionKind, name: &str) -> bool {
        let name = name.as_bytes();
        self.entries
            .get(&KeyRef { kind, name })
            .is_some_and(|entry| entry.wire == Wire::On)
    }

    /// All names that are wanted.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (&Key, Priority)> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.is_wanted)
            .map(|(key, entry)| (key, entry.priority))
    }

    /// Whether all names are confirmed that were wanted when the connection was made.
    pub(super) fn is_complete(&self) -> bool {
        self.is_connected && self.missing == 0
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            desired: self.wanted,
            confirmed: self.confirmed,
            queued: self.queued(),
            unconfirmed_commands: self.in_flight.len(),
            commands: self.commands,
        }
    }

    /// What is wanted of the name has changed.
    fn changed(&mut self, key: &Key, was_idle: bool) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if self.is_connected && entry.needs_command() && !entry.is_queued {
            entry.is_queued = true;
            self.queues[entry.priority as usize].push_back(key.clone());
        }
        let is_idle = entry.is_idle();
        self.idle = self.idle + usize::from(is_idle) - usize::from(was_idle);
        self.tidy(key);
        if self.idle > MAX_IDLE && self.idle * 2 > self.queued() {
            self.drop_idle();
        }
    }

    /// The connection has, or has not, what it had not, or had.
    fn set_wire(&mut self, key: &Key, wire: Wire) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let was_idle = entry.is_idle();
        self.confirmed -= usize::from(entry.wire == Wire::On);
        self.confirmed += usize::from(wire == Wire::On);
        entry.wire = wire;
        self.changed(key, was_idle);
    }

    /// Tells who waits, forgets what is neither wanted nor there.
    fn tidy(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let is_settled = entry.is_settled();
        if entry.is_missing && (is_settled || entry.wire == Wire::Refused) {
            entry.is_missing = false;
            self.missing -= 1;
        }
        let is_over = !entry.is_wanted && is_settled && !entry.is_queued;
        if is_settled {
            self.waiting.settled(key);
        }
        if is_over {
            self.entries.remove(key);
            if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 8 {
                self.entries.shrink_to(self.entries.len() * 2);
            }
        }
    }

    /// A channel whose slot this server has given away.
    fn taken_away(&mut self, name: &[u8]) -> Outcome {
        let name = KeyRef {
            kind: SubscriptionKind::Shard,
            name,
        };
        let Some((key, entry)) = self.entries.get_key_value(&name) else {
            return Outcome::Noted;
        };
        if entry.wire != Wire::On {
            return Outcome::Noted;
        }
        let key = key.clone();
        self.set_wire(&key, Wire::Refused);
        Outcome::Moved
    }

    fn queued(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    fn has_window(&self) -> bool {
        // Commands that may only have names of one slot are many and small.
        self.in_flight.len() < if self.slot.is_some() { BATCH } else { WINDOW }
    }

    /// Single rooms wait for company while anything is unconfirmed: one round trip at most.
    fn may_write(&self, priority: Priority) -> bool {
        let queued = self.queues[priority as usize].len();
        let has_company = priority != Priority::Room || queued >= BATCH || self.slot.is_some();
        queued > 0 && self.has_window() && (has_company || self.in_flight.is_empty())
    }

    /// Takes names that can share a command from the front of a queue and writes it.
    fn write_next(&mut self, queue: usize, out: &mut Vec<u8>) {
        let mut keys = Vec::new();
        let mut others = Vec::new();
        let mut command = None;
        while keys.len() < BATCH && others.len() < BATCH {
            let Some(key) = self.queues[queue].pop_front() else {
                break;
            };
            let entry = self
                .entries
                .get_mut(&key)
                .expect("an entry stays while it is queued");
            if !entry.needs_command() {
                entry.is_queued = false;
                self.idle -= 1;
                self.tidy(&key);
                continue;
            }
            let wanted = (
                key.kind,
                entry.is_wanted,
                self.slot.map(|slot| slot(&key.name)),
            );
            if *command.get_or_insert(wanted) == wanted {
                entry.is_queued = false;
                entry.wire = if entry.is_wanted {
                    Wire::Subscribing
                } else {
                    Wire::Unsubscribing
                };
                self.confirmed -= usize::from(!entry.is_wanted);
                keys.push(key);
            } else {
                others.push(key);
                if self.slot.is_some() {
                    break;
                }
            }
        }
        for key in others.into_iter().rev() {
            self.queues[queue].push_front(key);
        }
        if let Some((kind, subscribes, _)) = command {
            self.write_command(kind, subscribes, keys, out);
        }
    }

    fn write_command(
        &mut self,
        kind: SubscriptionKind,
        subscribes: bool,
        keys: Vec<Key>,
        out: &mut Vec<u8>,
    ) {
        resp::begin_command(out, keys.len() + 1);
        resp::push_arg(out, command_name(kind, subscribes));
        for key in &keys {
            resp::push_arg(out, key.name.as_bytes());
        }
        self.commands += 1;
        self.in_flight.push_back(Command {
            kind,
            subscribes,
            keys,
            confirmed: 0,
        });
    }

    /// Forgets queued names for which nothing has to be done.
    fn drop_idle(&mut self) {
        for queue in &mut self.queues {
            queue.retain(|key| {
                let entry = self
                    .entries
                    .get_mut(key)
                    .expect("an entry stays while it is queued");
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
        self.idle = 0;
    }
}

/// How a link stands with its names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Names that are wanted.
    pub desired: usize,
    /// Names that Redis has confirmed on the present connection.
    pub confirmed: usize,
    /// Names for which a command is to be written.
    pub queued: usize,
    /// Commands that Redis has not confirmed completely.
    pub unconfirmed_commands: usize,
    /// Commands written since the start.
    pub commands: u64,
}

/// How errors begin that say that another server has the slot, or none at the moment.
const MOVED: [&str; 5] = ["MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN"];

fn command_name(kind: SubscriptionKind, subscribes: bool) -> &'static [u8] {
    match (kind, subscribes) {
        (SubscriptionKind::Channel, true) => b"SUBSCRIBE",
        (SubscriptionKind::Channel, false) => b"UNSUBSCRIBE",
        (SubscriptionKind::Pattern, true) => b"PSUBSCRIBE",
        (SubscriptionKind::Pattern, false) => b"PUNSUBSCRIBE",
        (SubscriptionKind::Shard, true) => b"SSUBSCRIBE",
        (SubscriptionKind::Shard, false) => b"SUNSUBSCRIBE",
    }
}
