//! Who waits for confirmations of which names.
//!
//! A waiter names some channels and hears once all of them are settled at the same time on one
//! connection. When the connection is lost, all begin to wait anew.

use std::collections::hash_map::RandomState;

use hashbrown::HashMap;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::subscriptions::Key;

/// Why names were not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfirmError {
    /// Redis did not confirm all of them in time; it still may.
    #[error("Redis has not confirmed the subscriptions in time")]
    TimedOut,
    /// Redis does not give one of them.
    #[error("Redis refuses a subscription: {0}")]
    Refused(Box<str>),
    /// The link has been closed.
    #[error("the link to Redis is closed")]
    Closed,
}

/// A place among those who wait. It must be given back by [`Waiting::leave`].
pub(super) struct Ticket {
    pub(super) id: u64,
    pub(super) done: oneshot::Receiver<Result<(), ConfirmError>>,
}

#[derive(Default)]
pub(super) struct Waiting {
    waiters: HashMap<u64, Waiter, RandomState>,
    /// Who waits for the name. A waiter that named it twice stands here twice.
    of_name: HashMap<Key, SmallVec<[u64; 1]>>,
    next_id: u64,
}

struct Waiter {
    keys: Vec<Key>,
    left: usize,
    done: oneshot::Sender<Result<(), ConfirmError>>,
}

impl Waiting {
    /// A place for somebody who waits for those of the names that are open. None if none is.
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

    /// Somebody does not wait any more.
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
                self.answer(id, Ok(()));
            }
        }
    }

    /// Redis does not give the name.
    pub(super) fn refused(&mut self, key: &Key, error: &str) {
        for id in self.of_name.remove(key).unwrap_or_default() {
            self.answer(id, Err(ConfirmError::Refused(error.into())));
        }
    }

    /// The connection was lost: what was confirmed does not count any more.
    pub(super) fn begin_anew(&mut self, is_open: impl Fn(&Key) -> bool) {
        self.of_name.clear();
        for (id, mut waiter) in std::mem::take(&mut self.waiters) {
            waiter.left = self.enlist(id, &waiter.keys, &is_open);
            let is_over = waiter.left == 0;
            self.waiters.insert(id, waiter);
            if is_over {
                self.answer(id, Ok(()));
            }
        }
    }

    /// The link is closed.
    pub(super) fn close(&mut self) {
        self.of_name.clear();
        for (_, waiter) in self.waiters.drain() {
            // Who does not wait any more needs no answer; here and below.
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

    fn answer(&mut self, id: u64, result: Result<(), ConfirmError>) {
        if let Some(waiter) = self.waiters.remove(&id) {
            let _ = waiter.done.send(result);
        }
    }
}
