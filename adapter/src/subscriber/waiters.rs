//! Waiters for the confirmation of names.
//!
//! A waiter has some names and is notified once all of them are settled at the same time, on one
//! connection. When the connection is lost, every waiter starts again with all its names, because
//! what Redis confirmed on the old connection does not hold any more.

use std::collections::hash_map::RandomState;

use hashbrown::HashMap;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::subscriptions::Key;

/// Why names were not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmError {
    /// Redis did not confirm all names in time. It may still do so.
    #[error("Redis has not confirmed the subscriptions in time")]
    TimedOut,
    /// Redis refuses one of the names.
    #[error("Redis refuses a subscription: {0}")]
    Refused(Box<str>),
    /// The subscriber has been closed.
    #[error("the link to Redis is closed")]
    Closed,
}

/// A registered waiter. It must be given back by [`Waiters::leave`].
pub(super) struct Ticket {
    pub(super) id: u64,
    pub(super) done: oneshot::Receiver<Result<(), ConfirmError>>,
}

#[derive(Default)]
pub(super) struct Waiters {
    waiters: HashMap<u64, Waiter, RandomState>,
    /// The waiters of each name. A waiter that has a name twice is listed twice.
    of_name: HashMap<Key, SmallVec<[u64; 1]>>,
    next_id: u64,
}

struct Waiter {
    keys: Vec<Key>,
    left: usize,
    done: oneshot::Sender<Result<(), ConfirmError>>,
}

impl Waiters {
    /// Registers a waiter for the open ones of these names. None if no name is open.
    pub(super) fn register(
        &mut self,
        keys: Vec<Key>,
        is_open: impl Fn(&Key) -> bool,
    ) -> Option<Ticket> {
        let id = self.next_id;
        let left = self.enlist(id, &keys, is_open);
        if left == 0 {
            return None;
        }
        self.next_id += 1;
        let (sender, done) = oneshot::channel();
        self.waiters.insert(
            id,
            Waiter {
                keys,
                left,
                done: sender,
            },
        );
        Some(Ticket { id, done })
    }

    /// Removes a waiter.
    pub(super) fn leave(&mut self, id: u64) {
        let Some(waiter) = self.waiters.remove(&id) else {
            return;
        };
        for key in &waiter.keys {
            if let Some(ids) = self.of_name.get_mut(key) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.of_name.remove(key);
                }
            }
        }
    }

    /// The last change of the name is confirmed.
    pub(super) fn settled(&mut self, key: &Key) {
        if self.of_name.is_empty() {
            return;
        }
        for id in self.of_name.remove(key).unwrap_or_default() {
            let Some(waiter) = self.waiters.get_mut(&id) else {
                continue;
            };
            waiter.left -= 1;
            if waiter.left == 0 {
                self.finish(id, Ok(()));
            }
        }
    }

    /// Redis refuses the name.
    pub(super) fn refused(&mut self, key: &Key, error: &str) {
        for id in self.of_name.remove(key).unwrap_or_default() {
            self.finish(id, Err(ConfirmError::Refused(error.into())));
        }
    }

    /// The connection was lost: every waiter starts again.
    pub(super) fn restart(&mut self, is_open: impl Fn(&Key) -> bool) {
        self.of_name.clear();
        for (id, mut waiter) in std::mem::take(&mut self.waiters) {
            waiter.left = self.enlist(id, &waiter.keys, &is_open);
            let is_over = waiter.left == 0;
            self.waiters.insert(id, waiter);
            if is_over {
                self.finish(id, Ok(()));
            }
        }
    }

    /// The subscriber is closed.
    pub(super) fn close(&mut self) {
        self.of_name.clear();
        for (_, waiter) in self.waiters.drain() {
            // The receiver may have been dropped; ignore the error.
            let _ = waiter.done.send(Err(ConfirmError::Closed));
        }
    }

    fn enlist(&mut self, id: u64, keys: &[Key], is_open: impl Fn(&Key) -> bool) -> usize {
        let mut left = 0;
        for key in keys.iter().filter(|key| is_open(key)) {
            self.of_name.entry(key.clone()).or_default().push(id);
            left += 1;
        }
        left
    }

    fn finish(&mut self, id: u64, result: Result<(), ConfirmError>) {
        if let Some(waiter) = self.waiters.remove(&id) {
            // The receiver may have been dropped; ignore the error.
            let _ = waiter.done.send(result);
        }
    }
}
