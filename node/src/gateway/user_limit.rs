//! Limits the sockets that one user has in a namespace of this node.
//!
//! Each node counts its own sockets: a count of the whole cluster would need a question to it, or a
//! registry, with each connect. A user with a place is in the table, so it is never larger than the
//! number of sockets.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use parking_lot::Mutex;
use roomcast::Refused;
use serde_json::json;

/// The reason under which refusals are counted and logged.
const REASON: &str = "sockets_per_user";

/// The sockets of each user, while they are limited. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct UserLimit(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    limit: Option<usize>,
    /// By namespace and user.
    sockets: HashMap<(Box<str>, Box<str>), usize>,
}

/// The place of a socket. Dropping it makes room for another one.
#[derive(Debug)]
pub(crate) struct UserPlace {
    limit: UserLimit,
    key: (Box<str>, Box<str>),
}

impl UserLimit {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        let users = Self::default();
        users.set(limit);
        users
    }

    /// Replaces the limit. Sockets that are connected stay; those that connected without
    /// a limit are not counted.
    pub(crate) fn set(&self, limit: Option<usize>) {
        self.0.lock().limit = limit;
    }

    /// Takes a place for a socket of a user. Returns `None` while there is no limit.
    pub(crate) fn admit(&self, namespace: &str, user: &str) -> Result<Option<UserPlace>, Refused> {
        let mut table = self.0.lock();
        let Some(limit) = table.limit else {
            return Ok(None);
        };
        let key = (namespace.into(), user.into());
        let count = table.sockets.entry(key).or_default();
        // A refusal leaves no empty entry, because the limit is at least 1.
        if *count >= limit {
            let data = json!({ "limit": REASON, "user": user });
            let refused = Refused::new("too many connections of this user");
            return Err(refused.data(&data).reason(REASON));
        }
        *count += 1;
        Ok(Some(UserPlace {
            limit: self.clone(),
            key: (namespace.into(), user.into()),
        }))
    }
}

impl Drop for UserPlace {
    fn drop(&mut self) {
        let key = std::mem::take(&mut self.key);
        if let Entry::Occupied(mut count) = self.limit.0.lock().sockets.entry(key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_its_places_in_each_namespace() {
        let users = UserLimit::new(Some(2));
        let places = [(); 2].map(|()| users.admit("/", "ada").unwrap().unwrap());
        let refused = users.admit("/", "ada").unwrap_err();
        assert_eq!(refused.to_string(), "too many connections of this user");
        let others = [users.admit("/", "bob"), users.admit("/chat", "ada")];
        assert!(others.iter().all(Result::is_ok), "{others:?}");
        let [first, second] = places;
        drop(first);
        drop(users.admit("/", "ada").unwrap().unwrap());
        drop((second, others));
        assert!(users.0.lock().sockets.is_empty());
    }

    #[test]
    fn without_a_limit_nobody_is_counted() {
        let users = UserLimit::new(None);
        assert!(users.admit("/", "ada").unwrap().is_none());
        assert!(users.0.lock().sockets.is_empty());
    }
}
