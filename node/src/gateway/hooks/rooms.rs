//! The `rooms` hook: a room has got its first member in the cluster, or lost its last one.
//!
//! ```text
//!  watch of a namespace ─► changes ── 50 ms ──► Redis: first or last of all nodes? ─► notice ─► backend
//!       (this node)           ▲                        │ no: another node has members
//!                             └── all known rooms ◄────┴── Redis was emptied
//! ```
//!
//! Without Redis, this node is the cluster. A change that is undone before it is sent is left out,
//! so the number of waiting changes is limited by the rooms that have members and those in Redis.
//!
//! **Why Redis decides.** Each node knows its own members only. A hash counts the nodes
//! that have members of a room, so the one that changes the count from or to zero
//! reports it, in the same step. The number `seq` comes from Redis's clock in that
//! step, so an application that receives two late reports can determine the newer one.
//!
//! **Why a change that was tried stays.** If the reply was lost, Redis may have the
//! change. Sending it again is harmless, because a node counts once, whereas leaving it
//! out could leave a room occupied for ever.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use roomcast::{RoomChanges, Server};
use serde::Serialize;
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{
    Hooks,
    settings::Occasion,
    signature,
    store::{Kind, Record, Update},
    table::Table,
};
use crate::gateway::private_names::is_id_of;

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);

/// The pause after a failure of Redis.
const PAUSE: Duration = Duration::from_secs(1);

/// The most changes of one command.
const BATCH: usize = 100;

/// The time that a stopping node allows for the report of its rooms.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The separator of hook, namespace and room. The first two never contain it.
const SEPARATOR: char = '\0';

/// The rooms of this node that are reported to hooks.
#[derive(Default)]
pub(super) struct Rooms {
    state: Mutex<State>,
    has_changes: Notify,
    /// Held while changes are sent, so that they stay in order.
    sending: tokio::sync::Mutex<()>,
    /// The tasks that watch, by hook and namespace.
    watches: Mutex<BTreeMap<(String, String), AbortHandle>>,
    /// Whether there is a task that sends.
    is_sending: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The rooms that have members, as far as it was sent. Each is `hook NUL namespace NUL room`.
    known: HashSet<Arc<str>>,
    changes: HashMap<Arc<str>, Change>,
    /// The last number given without Redis.
    seq: u64,
}

#[derive(Clone, Debug)]
struct Change {
    is_occupied: bool,
    /// The same for all attempts.
    id: String,
    was_known: bool,
    /// Whether Redis may have it already.
    was_tried: bool,
}

impl State {
    /// Notes that a room has members now, or none. Returns `false` if nothing has to be sent.
    fn change(&mut self, room: &str, is_occupied: bool, id: String) -> bool {
        match self.changes.get(room) {
            Some(change) if change.is_occupied == is_occupied => return false,
            Some(change) if change.was_tried => {}
            // It was not sent yet, so it never happened.
            Some(_) => {
                self.changes.remove(room);
                return false;
            }
            None if self.known.contains(room) == is_occupied => return false,
            None => {}
        }
        let change = Change {
            is_occupied,
            id,
            was_known: self.known.contains(room),
            was_tried: false,
        };
        self.changes.insert(room.into(), change);
        true
    }

    /// Takes some changes. From now on they count as sent, because they may be even if
    /// sending fails.
    fn take(&mut self) -> Vec<(Arc<str>, Change)> {
        let rooms: Vec<_> = self.changes.keys().take(BATCH).cloned().collect();
        let taken = rooms.into_iter().filter_map(|room| {
            let change = self.changes.remove(&room)?;
            match change.is_occupied {
                true => drop(self.known.insert(Arc::clone(&room))),
                false => drop(self.known.remove(&room)),
            }
            Some((room, change))
        });
        taken.collect()
    }

    /// Puts changes back that could not be sent, unless there are later ones.
    fn put_back(&mut self, taken: Vec<(Arc<str>, Change)>) {
        for (room, mut change) in taken {
            change.was_tried = true;
            match self.changes.entry(room) {
                Entry::Occupied(mut later) => later.get_mut().was_tried = true,
                Entry::Vacant(entry) => drop(entry.insert(change)),
            }
        }
    }

    /// Sends all rooms again, because Redis may have lost them.
    fn again(&mut self, mut next_id: impl FnMut() -> String) {
        for room in &self.known {
            let change = || Change {
                is_occupied: true,
                id: next_id(),
                was_known: true,
                was_tried: true,
            };
            self.changes.entry(Arc::clone(room)).or_insert_with(change);
        }
    }
}

/// The body of a request, without its number, which is the last member.
#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    hook: &'a str,
    node: &'a str,
    namespace: &'a str,
    r#type: &'static str,
    room: &'a str,
    occupied: bool,
    seq: u64,
}

impl Hooks {
    /// Watches only the namespaces of hooks that are called for rooms.
    pub(super) fn watch_rooms(&self, server: &Server, table: &Table) {
        let rooms = &self.0.rooms;
        let wanted = table.0.iter().flat_map(|hook| {
            let namespaces = hook.namespaces(Occasion::Rooms);
            namespaces.map(|namespace| (hook.backend.name.to_string(), namespace.clone()))
        });
        let wanted: BTreeSet<_> = wanted.collect();
        let mut watches = rooms.watches.lock();
        watches.retain(|key, task| {
            let is_wanted = wanted.contains(key);
            if !is_wanted {
                task.abort();
            }
            is_wanted
        });
        for key in wanted {
            if !watches.contains_key(&key)
                && let Ok(changes) = server.of(&key.1).watch_rooms()
            {
                let (hooks, server, (name, namespace)) =
                    (self.clone(), server.clone(), key.clone());
                let watch = async move { hooks.watch(&server, &name, &namespace, changes).await };
                watches.insert(key, tokio::spawn(watch).abort_handle());
            }
        }
        if !watches.is_empty() && !rooms.is_sending.swap(true, Ordering::Relaxed) {
            let hooks = self.clone();
            tokio::spawn(async move { hooks.send_rooms().await });
        }
        drop(watches);
        self.forget_unwatched(table);
    }

    /// Removes rooms for which no hook is called any longer.
    fn forget_unwatched(&self, table: &Table) {
        let mut state = self.0.rooms.state.lock();
        let is_gone = |room: &&Arc<str>| {
            let (hook, namespace, _) = parts(room).unwrap_or_default();
            let mut hooks = table.all(namespace, Occasion::Rooms);
            !hooks.any(|known| *known.backend.name == *hook)
        };
        let gone: Vec<_> = state.known.iter().filter(is_gone).cloned().collect();
        for room in gone {
            state.change(&room, false, self.next_id());
        }
        drop(state);
        self.0.rooms.has_changes.notify_one();
    }

    async fn watch(&self, server: &Server, hook: &str, namespace: &str, mut changes: RoomChanges) {
        let is_private = |room: &str| {
            let nodes = server.nodes();
            nodes.iter().any(|node| is_id_of(room, node.as_str()))
        };
        loop {
            for change in changes.next().await {
                let table = self.table();
                let mut hooks = table.0.iter();
                let hears = hooks
                    .any(|known| *known.backend.name == *hook && known.hears_room(&change.room));
                // A room that was reported under earlier settings is reported to its end.
                if change.is_occupied && (!hears || is_private(&change.room)) {
                    continue;
                }
                let room = format!("{hook}{SEPARATOR}{namespace}{SEPARATOR}{}", change.room);
                let mut state = self.0.rooms.state.lock();
                if state.change(&room, change.is_occupied, self.next_id()) {
                    drop(state);
                    self.0.rooms.has_changes.notify_one();
                }
            }
            sleep(GATHER).await;
        }
    }

    /// Sends changes as they come.
    async fn send_rooms(&self) {
        loop {
            self.0.rooms.has_changes.notified().await;
            sleep(GATHER).await;
            while let Some(is_sent) = self.send_some_rooms().await {
                if !is_sent {
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Sends some changes and returns whether they were, or `None` if there are none.
    async fn send_some_rooms(&self) -> Option<bool> {
        let _sending = self.0.rooms.sending.lock().await;
        let taken = self.0.rooms.state.lock().take();
        if taken.is_empty() {
            return None;
        }
        let updates = taken.iter().filter_map(|(room, change)| {
            let kind = match change {
                Change {
                    is_occupied: true, ..
                } => Kind::Occupied,
                Change {
                    was_known: true, ..
                } => Kind::Vacated,
                _ => Kind::PerhapsVacated,
            };
            self.room_update(room, kind, change.id.clone())
        });
        let updates: Vec<_> = updates.collect();
        let records = match &self.0.store {
            Some(store) => store.change_rooms(&updates).await,
            None => Ok(self.count_alone(&updates)),
        };
        let is_sent = records.is_ok();
        match records {
            Ok(records) => records.into_iter().for_each(|record| self.adopt(record)),
            Err(_) => self.0.rooms.state.lock().put_back(taken),
        }
        Some(is_sent)
    }

    /// Without Redis, each change of this node is one of the cluster.
    fn count_alone(&self, updates: &[Update]) -> Vec<Record> {
        let mut state = self.0.rooms.state.lock();
        let records = updates.iter().filter_map(|update| {
            state.seq = (state.seq + 1).max(signature::now() * 1_000_000);
            let (before, after) = &update.record;
            serde_json::from_str(&format!("{before}{}{after}", state.seq)).ok()
        });
        records.collect()
    }

    /// Describes a change of a room for Redis. Returns `None` for an invalid name.
    /// Only Redis knows the number, so the record is split at its place, and the script joins the
    /// parts.
    pub(super) fn room_update(&self, room: &str, kind: Kind, id: String) -> Option<Update> {
        let (hook, namespace, name) = parts(room)?;
        let body = Body {
            id: &id,
            hook,
            node: self.node(),
            namespace,
            r#type: "rooms",
            room: name,
            occupied: kind == Kind::Occupied,
            seq: 0,
        };
        let body = serde_json::to_vec(&body).ok()?;
        let record = Record::of_room(id.clone(), hook, namespace, &body);
        let json = serde_json::to_string(&record).ok()?;
        let (before, after) = json.rsplit_once(SEQ)?;
        let number = SEQ.len() - "0}".len();
        let before = format!("{before}{}", &SEQ[..number]);
        Some(Update {
            kind,
            room: room.to_owned(),
            id,
            record: (before, format!("}}{after}")),
        })
    }

    /// Sends all rooms again.
    pub(super) fn rooms_again(&self) {
        self.0.rooms.state.lock().again(|| self.next_id());
        self.0.rooms.has_changes.notify_one();
    }

    fn rooms_empty(&self) {
        let mut state = self.0.rooms.state.lock();
        let known: Vec<_> = state.known.iter().cloned().collect();
        for room in known {
            state.change(&room, false, self.next_id());
        }
    }

    /// The connections of this node are closed, so none of its rooms has members.
    pub(super) async fn leave_rooms(&self) {
        self.rooms_empty();
        let all = async { while self.send_some_rooms().await == Some(true) {} };
        // In time or not: another node takes out the rooms of one whose lease has ended.
        drop(timeout(FINISH_TIMEOUT, all).await);
    }
}

/// The end of a body in the JSON of a record, where the number is.
const SEQ: &str = r#"\"seq\":0}"#;

/// Hook, namespace and room.
fn parts(room: &str) -> Option<(&str, &str, &str)> {
    let mut parts = room.splitn(3, SEPARATOR);
    Some((parts.next()?, parts.next()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(state: &mut State, room: &str, is_occupied: bool) -> bool {
        let id = format!("{room} {is_occupied}");
        state.change(room, is_occupied, id)
    }

    /// Takes the changes, sorted: room, whether it is occupied, whether Redis knew it.
    fn taken(state: &mut State) -> Vec<(String, bool, bool)> {
        let taken = state.take().into_iter();
        let mut taken: Vec<_> = taken
            .map(|(room, change)| (room.to_string(), change.is_occupied, change.was_known))
            .collect();
        taken.sort();
        taken
    }

    #[test]
    fn a_change_that_is_undone_before_it_is_sent_is_left_out() {
        let mut state = State::default();
        assert!(change(&mut state, "a", true));
        assert!(!change(&mut state, "a", false));
        assert!(!change(&mut state, "b", false), "it had no members");
        assert_eq!(taken(&mut state), []);
        assert!(change(&mut state, "a", true));
        assert!(!change(&mut state, "a", true));
        assert_eq!(taken(&mut state), [("a".into(), true, false)]);
        assert!(!change(&mut state, "a", true), "it was sent");
        assert!(change(&mut state, "a", false));
        assert_eq!(taken(&mut state), [("a".into(), false, true)]);
    }

    #[test]
    fn a_change_that_may_have_arrived_is_not_undone_silently() {
        let mut state = State::default();
        change(&mut state, "a", true);
        let failed = state.take();
        state.put_back(failed);
        assert!(change(&mut state, "a", false));
        assert_eq!(taken(&mut state), [("a".into(), false, true)]);
        assert!(state.known.is_empty());
    }

    #[test]
    fn rooms_that_redis_may_have_lost_are_sent_again() {
        let mut state = State::default();
        for room in ["a", "b", "c"] {
            change(&mut state, room, true);
        }
        state.take();
        change(&mut state, "b", false);
        state.again(|| "again".into());
        assert!(change(&mut state, "c", false));
        let wanted = [
            ("a".into(), true, true),
            ("b".into(), false, true),
            ("c".into(), false, true),
        ];
        assert_eq!(taken(&mut state), wanted);
    }

    #[test]
    fn the_parts_of_a_room_are_kept_apart() {
        assert_eq!(parts("app\0/chat\0a\0b"), Some(("app", "/chat", "a\0b")));
        assert_eq!(parts("app\0/chat"), None);
    }
}
