//! The connections of one lane: the ids of connections, and the deadlines that are due. Pure: times
//! come in, due connections come out.
//!
//! A connection has one valid timer. Setting it again leaves the old entry where it is, because
//! finding it would cost more than checking it once: the entry carries its tick, and the connection
//! ignores a tick that is not the one it was given last.
//!
//! ```text
//! wheel  │ 0 │ 1 │ 2 │ … │ 127 │   bucket = tick modulo 128; a deadline beyond the wheel stands
//!              ▲                   in its last bucket and is armed again when that is due
//!             now
//! ```

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use hashbrown::HashTable;

use crate::clock::Time;

/// Buckets of the timer wheel.
const BUCKETS: u64 = 128;

/// The table is given back when it is empty and had more slots than this.
const KEPT_SLOTS: usize = 1024;

/// Where a connection's id and timer are kept.
pub(super) type Slot = u32;

/// A tick of the lane, cut to 32 bits: connections only compare it for equality.
pub(super) type Tick = u32;

/// The stored value: a handle of a connection.
pub(super) trait Identified: Clone {
    fn id(&self) -> &str;
}

pub(super) struct Sessions<C> {
    slots: Vec<Option<C>>,
    free: Vec<Slot>,
    ids: HashTable<Slot>,
    hasher: RandomState,
    /// Bucket `n` holds the slots whose timer is set to a tick `n` modulo the number of buckets.
    wheel: Box<[Vec<Slot>]>,
    tick_millis: u64,
    /// The last tick that was processed.
    now: u64,
}

impl<C: Identified> Sessions<C> {
    /// `tick` is the resolution of deadlines.
    pub(super) fn new(tick: Duration) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ids: HashTable::new(),
            hasher: RandomState::new(),
            wheel: (0..BUCKETS).map(|_| Vec::new()).collect(),
            tick_millis: u64::try_from(tick.as_millis()).map_or(1, |millis| millis.max(1)),
            now: 0,
        }
    }

    /// Makes a connection findable by its id and gives it a slot for its timer.
    pub(super) fn insert(&mut self, connection: C) -> Slot {
        let hash = self.hasher.hash_one(connection.id());
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Slot::try_from(self.slots.len() - 1).expect("fewer than 2^32 connections")
        });
        self.slots[slot as usize] = Some(connection);
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.ids.insert_unique(hash, slot, |&slot| {
            let connection = slots[slot as usize].as_ref();
            connection.map_or(0, |connection| hasher.hash_one(connection.id()))
        });
        slot
    }

    /// Removes a connection. Its timers come to nothing.
    pub(super) fn remove(&mut self, id: &str, slot: Slot) {
        let hash = self.hasher.hash_one(id);
        if let Ok(found) = self.ids.find_entry(hash, |&known| known == slot) {
            found.remove();
            self.slots[slot as usize] = None;
            self.free.push(slot);
        }
        if self.ids.is_empty() && self.slots.len() > KEPT_SLOTS {
            // Gives memory back after a storm; numbering starts again.
            self.slots = Vec::new();
            self.free = Vec::new();
            self.ids = HashTable::new();
        }
    }

    pub(super) fn find(&self, id: &str) -> Option<C> {
        let of = |slot: Slot| self.slots[slot as usize].as_ref();
        let is_it = |&slot: &Slot| of(slot).is_some_and(|connection| connection.id() == id);
        let slot = self.ids.find(self.hasher.hash_one(id), is_it)?;
        of(*slot).cloned()
    }

    pub(super) fn all(&self) -> Vec<C> {
        self.slots.iter().flatten().cloned().collect()
    }

    /// Sets the timer of a connection. Returns the tick at which it comes due, which is not before
    /// `at` unless `at` lies beyond the wheel.
    pub(super) fn arm(&mut self, slot: Slot, at: Time) -> Tick {
        let tick = at.as_millis() / self.tick_millis + 1;
        let tick = tick.clamp(self.now + 1, self.now + BUCKETS - 1);
        self.wheel[bucket(tick)].push(slot);
        short(tick)
    }

    /// The connections whose timers were set to a tick up to now, each with that tick. A timer
    /// that was set again since is among them; its connection tells by the tick.
    pub(super) fn due(&mut self, now: Time) -> Vec<(C, Tick)> {
        let until = (now.as_millis() / self.tick_millis).max(self.now);
        let mut due = Vec::new();
        for tick in self.now + 1..=until {
            for slot in std::mem::take(&mut self.wheel[bucket(tick)]) {
                if let Some(Some(connection)) = self.slots.get(slot as usize) {
                    due.push((connection.clone(), short(tick)));
                }
            }
        }
        self.now = until;
        due
    }
}

fn short(tick: u64) -> Tick {
    u32::try_from(tick & u64::from(u32::MAX)).expect("32 bits")
}

fn bucket(tick: u64) -> usize {
    usize::try_from(tick % BUCKETS).expect("few buckets")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    impl Identified for String {
        fn id(&self) -> &str {
            self
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert,
        Remove(prop::sample::Index),
        /// Sets a timer this far ahead.
        Arm(prop::sample::Index, u64),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Insert),
            any::<prop::sample::Index>().prop_map(Step::Remove),
            (any::<prop::sample::Index>(), 0_u64..3_000).prop_map(|(who, in_)| Step::Arm(who, in_)),
            (0_u64..800).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 1..120)
    }

    /// The model of a connection: its slot, and its deadline with the tick that counts.
    type Known = (Slot, Option<(u64, Tick)>);

    fn pick(known: &HashMap<String, Known>, index: prop::sample::Index) -> Option<String> {
        let mut ids: Vec<_> = known.keys().cloned().collect();
        ids.sort();
        (!ids.is_empty()).then(|| index.get(&ids).clone())
    }

    proptest! {
        /// A driver that arms again a timer that fired early, as connections do.
        #[test]
        fn a_timer_comes_due_once_not_before_its_time_and_at_most_one_tick_late(steps in steps()) {
            const TICK: u64 = 10;
            let mut sessions = Sessions::new(Duration::from_millis(TICK));
            let mut known: HashMap<String, Known> = HashMap::new();
            let (mut now, mut next) = (0, 0);
            for step in steps {
                match step {
                    Step::Insert => {
                        next += 1;
                        let id = format!("id{next}");
                        let slot = sessions.insert(id.clone());
                        prop_assert!(known.values().all(|(other, _)| *other != slot));
                        known.insert(id, (slot, None));
                    }
                    Step::Remove(who) => if let Some(id) = pick(&known, who) {
                        let (slot, _) = known.remove(&id).expect("it is known");
                        sessions.remove(&id, slot);
                        prop_assert!(sessions.find(&id).is_none());
                    },
                    Step::Arm(who, in_) => if let Some(id) = pick(&known, who) {
                        let (slot, timer) = known.get_mut(&id).expect("it is known");
                        let tick = sessions.arm(*slot, Time::from_millis(now + in_));
                        *timer = Some((now + in_, tick));
                    },
                    Step::Wait(millis) => now += millis,
                }
                let mut late: Vec<_> = sessions.due(Time::from_millis(now));
                while let Some((id, tick)) = late.pop() {
                    let (slot, timer) = known.get_mut(&id).expect("a removed one is not due");
                    let Some((at, valid)) = *timer else { continue };
                    if valid != tick {
                        continue;
                    }
                    if at > now {
                        *timer = Some((at, sessions.arm(*slot, Time::from_millis(at))));
                    } else {
                        *timer = None;
                    }
                }
                for (id, (_, timer)) in &known {
                    prop_assert_eq!(sessions.find(id), Some(id.clone()));
                    let overdue = timer.is_some_and(|(at, _)| at + 2 * TICK < now);
                    prop_assert!(!overdue, "{} was forgotten", id);
                }
                let mut all = sessions.all();
                all.sort();
                let mut expected: Vec<_> = known.keys().cloned().collect();
                expected.sort();
                prop_assert_eq!(all, expected);
            }
        }
    }

    #[test]
    fn memory_is_given_back_after_a_storm() {
        let mut sessions = Sessions::new(Duration::from_millis(5));
        let ids: Vec<_> = (0..2 * KEPT_SLOTS).map(|n| n.to_string()).collect();
        let slots: Vec<_> = ids.iter().map(|id| sessions.insert(id.clone())).collect();
        for (id, slot) in ids.iter().zip(slots) {
            sessions.arm(slot, Time::from_millis(1));
            sessions.remove(id, slot);
        }
        assert_eq!(sessions.slots.capacity() + sessions.ids.capacity(), 0);
        assert!(sessions.due(Time::from_millis(100)).is_empty());
    }
}
