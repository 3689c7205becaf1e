//! The subscriptions of a single node.
//!
//! It follows the same rules as the sets in Redis, except that lapsed entries are
//! removed when others are written: a node without Redis needs no timer for them.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::{Bounds, Holders, RegistryError};

/// The most digests that memory holds. Redis has its own limits.
const MAX_DIGESTS: usize = 200_000;

/// The subscriptions by digest.
#[derive(Default)]
pub(super) struct Memory {
    entries: HashMap<String, Entry>,
    /// When lapsed entries are removed again.
    sweep: Option<Instant>,
}

struct Entry {
    channels: BTreeSet<String>,
    is_open: bool,
    /// When it lapses unless it is open.
    until: Instant,
}

impl Memory {
    pub(super) fn add(
        &mut self,
        digest: &str,
        channels: &[String],
        bounds: Bounds,
        now: Instant,
    ) -> Result<Holders, RegistryError> {
        self.forget(bounds, now);
        if self.entries.len() >= MAX_DIGESTS && !self.entries.contains_key(digest) {
            return Err(RegistryError::Full);
        }
        let known = self.entry(digest, now);
        let new = channels
            .iter()
            .filter(|channel| !known.channels.contains(*channel));
        if known.channels.len() + new.count() > bounds.channels {
            return Err(RegistryError::TooManyChannels(bounds.channels));
        }
        known.channels.extend(channels.iter().cloned());
        // Each subscription prolongs the wait for the socket.
        known.until = now + bounds.lifetime;
        Ok(Holders::Here(known.is_open))
    }

    /// The entry stays even without channels, since it knows whether the digest is
    /// connected.
    pub(super) fn remove(&mut self, digest: &str, channels: &[String]) -> Holders {
        let Some(known) = self.entries.get_mut(digest) else {
            return Holders::Here(false);
        };
        known.channels.retain(|channel| !channels.contains(channel));
        Holders::Here(known.is_open)
    }

    pub(super) fn open(&mut self, digest: &str, bounds: Bounds, now: Instant) -> Vec<String> {
        self.forget(bounds, now);
        let known = self.entry(digest, now);
        known.is_open = true;
        known.channels.iter().cloned().collect()
    }

    pub(super) fn close(&mut self, digest: &str, bounds: Bounds, now: Instant) {
        if bounds.grace.is_zero() {
            self.entries.remove(digest);
        } else if let Some(known) = self.entries.get_mut(digest) {
            known.is_open = false;
            known.until = now + bounds.grace;
        }
    }

    /// An entry that has expired counts as a new one.
    fn entry(&mut self, digest: &str, now: Instant) -> &mut Entry {
        let entry = self.entries.entry(digest.to_owned());
        let entry = entry.or_insert_with(|| Entry {
            channels: BTreeSet::new(),
            is_open: false,
            until: now,
        });
        if !entry.is_open && entry.until <= now {
            entry.channels.clear();
        }
        entry
    }

    /// Removes expired entries, at most once in a lifetime unless the memory is full.
    fn forget(&mut self, bounds: Bounds, now: Instant) {
        let is_due = self.sweep.is_none_or(|sweep| sweep <= now);
        if is_due || self.entries.len() >= MAX_DIGESTS {
            self.entries
                .retain(|_, entry| entry.is_open || entry.until > now);
            self.sweep = Some(now + bounds.lifetime);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::tests::{BOUNDS, names},
        *,
    };
    use crate::gateway::clock::now;

    #[test]
    fn a_pair_that_never_connects_is_forgotten() {
        let (mut memory, start) = (Memory::default(), now());
        let after = |seconds| start + Duration::from_secs(seconds);
        memory.add("d", &names(&["a"]), BOUNDS, start).unwrap();
        memory.add("open", &names(&["a"]), BOUNDS, start).unwrap();
        memory.open("open", BOUNDS, start);
        memory.add("d", &names(&["b"]), BOUNDS, after(599)).unwrap();
        assert_eq!(memory.open("d", BOUNDS, after(1198)), ["a", "b"]);
        memory
            .add("late", &names(&["a"]), BOUNDS, after(1198))
            .unwrap();
        assert_eq!(memory.open("late", BOUNDS, after(1798)), names(&[]));
        assert_eq!(memory.open("open", BOUNDS, after(9999)), ["a"]);
    }

    #[test]
    fn a_grace_keeps_the_subscriptions_of_a_socket_that_comes_back() {
        let (mut memory, start) = (Memory::default(), now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let grace = Duration::from_secs(5);
        let bounds = Bounds { grace, ..BOUNDS };
        memory.add("d", &names(&["a"]), bounds, start).unwrap();
        memory.open("d", bounds, start);
        memory.close("d", bounds, start);
        assert_eq!(memory.open("d", bounds, after(4)), ["a"]);
        memory.close("d", bounds, after(4));
        assert_eq!(memory.open("d", bounds, after(9)), names(&[]));
    }

    #[test]
    fn the_digests_in_memory_are_limited_to_those_that_have_not_lapsed() {
        let (mut memory, now) = (Memory::default(), now());
        let one = names(&["a"]);
        for number in 0..MAX_DIGESTS {
            memory.add(&number.to_string(), &one, BOUNDS, now).unwrap();
        }
        let full = memory.add("more", &one, BOUNDS, now);
        assert!(matches!(full, Err(RegistryError::Full)), "{full:?}");
        assert!(memory.add("0", &one, BOUNDS, now).is_ok());
        memory
            .add("more", &one, BOUNDS, now + BOUNDS.lifetime)
            .unwrap();
        assert_eq!(memory.entries.len(), 1);
    }
}
