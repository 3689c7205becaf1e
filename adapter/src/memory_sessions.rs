//! Sessions of clients in the memory of one process: for servers without Redis, and for tests.
//!
//! No other node can take a session away, but a client may come back before the loss of its old
//! connection is noticed. So sessions have owners here, too, and the old connection can neither
//! change nor remove a session that the new one has taken.
//!
//! Sessions are removed when another one is written, in the order of their ends, so
//! that no timer is needed and a table that is used does not grow.

use std::{
    collections::{BTreeMap, HashMap},
    future::ready,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::bus::{BusError, BusFuture, Session, Sessions, Taken};

/// The sessions of the namespaces of one process. They outlive the namespaces.
#[derive(Clone, Default)]
pub struct MemorySessions(Arc<Mutex<Table>>);

/// Sessions by namespace and name.
#[derive(Default)]
struct Table {
    kept: HashMap<Key, Kept>,
    /// When each of them ends, with a number that makes the times differ.
    ends: BTreeMap<(Instant, u64), Key>,
    count: u64,
}

type Key = (Arc<str>, Box<str>);

struct Kept {
    owner: Box<str>,
    value: Bytes,
    end: (Instant, u64),
}

impl MemorySessions {
    /// Returns the sessions of a namespace.
    pub fn of(&self, namespace: &str) -> Arc<dyn Sessions> {
        Arc::new(OfNamespace {
            table: Arc::clone(&self.0),
            namespace: namespace.into(),
        })
    }
}

impl std::fmt::Debug for MemorySessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemorySessions").finish_non_exhaustive()
    }
}

impl Table {
    /// Removes expired sessions.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((end, _)) = self.ends.first_key_value()
            && end.0 <= now
            && let Some((_, key)) = self.ends.pop_first()
        {
            self.kept.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Kept> {
        let kept = self.kept.remove(key)?;
        self.ends.remove(&kept.end);
        Some(kept)
    }

    fn insert(&mut self, key: Key, owner: Box<str>, value: Bytes, life: Duration) {
        self.expire();
        self.remove(&key);
        self.count += 1;
        let end = (Instant::now() + life, self.count);
        self.ends.insert(end, key.clone());
        self.kept.insert(key, Kept { owner, value, end });
    }

    /// Whether this owner may write the session: nobody else has it.
    fn is_free(&self, key: &Key, owner: &str) -> bool {
        let kept = self.kept.get(key);
        kept.is_none_or(|kept| *kept.owner == *owner)
    }
}

/// The sessions of one namespace.
struct OfNamespace {
    table: Arc<Mutex<Table>>,
    namespace: Arc<str>,
}

impl OfNamespace {
    fn key(&self, pid: &str) -> Key {
        (Arc::clone(&self.namespace), pid.into())
    }
}

impl Sessions for OfNamespace {
    fn create(&self, session: Session) -> BusFuture<Result<(), BusError>> {
        let key = self.key(&session.pid);
        let mut table = self.table.lock();
        table.insert(key, session.owner, session.value, session.life);
        Box::pin(ready(Ok(())))
    }

    fn update(&self, session: Session) -> BusFuture<Result<bool, BusError>> {
        let key = self.key(&session.pid);
        let mut table = self.table.lock();
        table.expire();
        let is_free = table.is_free(&key, &session.owner);
        if is_free {
            table.insert(key, session.owner, session.value, session.life);
        }
        Box::pin(ready(Ok(is_free)))
    }

    fn remove(&self, pid: &str, owner: &str) -> BusFuture<Result<bool, BusError>> {
        let key = self.key(pid);
        let mut table = self.table.lock();
        let is_free = table.is_free(&key, owner);
        if is_free {
            table.remove(&key);
        }
        Box::pin(ready(Ok(is_free)))
    }

    fn refresh(&self, pids: &[Box<str>], life: Duration) -> BusFuture<Result<Vec<bool>, BusError>> {
        let mut table = self.table.lock();
        table.expire();
        let refreshed = pids.iter().map(|pid| {
            let key = self.key(pid);
            let kept = table.remove(&key);
            let exists = kept.is_some();
            if let Some(kept) = kept {
                table.insert(key, kept.owner, kept.value, life);
            }
            exists
        });
        let refreshed = refreshed.collect();
        Box::pin(ready(Ok(refreshed)))
    }

    fn take(&self, pid: &str, owner: &str) -> BusFuture<Result<Option<Taken>, BusError>> {
        let key = self.key(pid);
        let mut table = self.table.lock();
        table.expire();
        let taken = table.kept.get_mut(&key).map(|kept| Taken {
            owner: std::mem::replace(&mut kept.owner, owner.into()),
            value: kept.value.clone(),
        });
        Box::pin(ready(Ok(taken)))
    }
}
