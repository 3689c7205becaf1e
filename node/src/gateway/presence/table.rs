//! The sockets of users in one namespace of the whole cluster, found by user and by room.
//!
//! It has three indexes of the same sockets: by id, by user, in order, for pages, and
//! by room. Names are shared between them, because a user's name is in memory once for
//! all sockets.
//!
//! It counts sockets and memberships and not bytes, so that an operator can compute the
//! limit from the numbers of users and rooms.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

/// The longest name of a user, room or socket that is kept, in bytes. Any process with access to
/// Redis can publish one.
const MAX_NAME: usize = 4096;

/// A socket as it is kept.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) node: Arc<str>,
    pub(super) user: Arc<str>,
    /// Without the private room and the one of the user.
    pub(super) rooms: Box<[Arc<str>]>,
}

impl Entry {
    /// The socket, its user and its rooms, as a message has them.
    pub(super) fn named(&self, socket: &str) -> (String, String, Vec<String>) {
        let rooms = self.rooms.iter().map(ToString::to_string).collect();
        (socket.to_owned(), self.user.to_string(), rooms)
    }
}

/// A selection of sockets.
#[derive(Debug, Default)]
pub(crate) struct Selected<'a> {
    /// Names of rooms, or ids of sockets.
    pub(crate) rooms: Vec<&'a str>,
    pub(crate) users: Vec<&'a str>,
}

/// A user who is online.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Online {
    pub(crate) user: Arc<str>,
    /// The selected sockets.
    pub(crate) sockets: Vec<Arc<str>>,
    /// The rooms that these are in.
    pub(crate) rooms: BTreeSet<Arc<str>>,
}

/// A page of names.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Page<'a> {
    /// Only names that begin with this text.
    pub(crate) prefix: &'a str,
    /// Only names after this one.
    pub(crate) after: Option<&'a str>,
    pub(crate) limit: usize,
}

impl Page<'_> {
    /// The total number of names that begin with the prefix, and the entries of the page.
    fn of<'a, V>(
        &self,
        index: &'a BTreeMap<Arc<str>, V>,
    ) -> (usize, impl Iterator<Item = (&'a Arc<str>, &'a V)>) {
        let from = (Bound::Included(self.prefix), Bound::Unbounded);
        let found = index.range::<str, _>(from);
        let found = found.take_while(|(name, _)| name.starts_with(self.prefix));
        let total = found.clone().count();
        let later = found.filter(|(name, _)| self.after.is_none_or(|after| &***name > after));
        (total, later.take(self.limit))
    }
}

/// A room with users in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Occupied {
    pub(crate) room: Arc<str>,
    /// How many sockets of users are in it.
    pub(crate) sockets: usize,
    pub(crate) users: usize,
}

/// The sockets of each user, in order.
type Users = BTreeMap<Arc<str>, Vec<Arc<str>>>;

/// All that is kept. Sockets and memberships count towards one limit.
#[derive(Debug, Default)]
pub(super) struct Table {
    max: usize,
    count: usize,
    sockets: HashMap<Arc<str>, Entry>,
    users: Users,
    rooms: BTreeMap<Arc<str>, HashSet<Arc<str>>>,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            ..Self::default()
        }
    }

    /// The number of sockets.
    pub(super) fn sockets(&self) -> usize {
        self.sockets.len()
    }

    /// Whether there is place for more than a few.
    /// A quarter is kept free, so that a table at its limit does not ask for full
    /// states all the time.
    pub(super) fn has_place(&self) -> bool {
        self.count < self.max - self.max / 4
    }

    pub(super) fn get(&self, socket: &str) -> Option<&Entry> {
        self.sockets.get(socket)
    }

    /// The sockets of a node.
    pub(super) fn of_node(&self, node: &str) -> impl Iterator<Item = &Arc<str>> {
        let own = self
            .sockets
            .iter()
            .filter(move |(_, entry)| *entry.node == *node);
        own.map(|(socket, _)| socket)
    }

    /// Adds or replaces a socket, unless one of its names is too long. Returns `false` if the table
    /// is full.
    pub(super) fn set<T: AsRef<str>>(
        &mut self,
        node: &Arc<str>,
        socket: &str,
        user: &str,
        rooms: &[T],
    ) -> bool {
        self.remove(socket);
        let names = rooms.iter().map(AsRef::as_ref).chain([socket, user]);
        let is_long = names.into_iter().any(|name: &str| name.len() > MAX_NAME);
        // Not for lack of space, so it need not be requested again.
        if is_long {
            return true;
        }
        if self.count + 1 + rooms.len() > self.max {
            return false;
        }
        let socket: Arc<str> = socket.into();
        let user = interned(&self.users, user);
        let mut own = Vec::with_capacity(rooms.len());
        for room in rooms.iter().map(AsRef::as_ref) {
            let room = interned(&self.rooms, room);
            let is_new = self
                .rooms
                .entry(Arc::clone(&room))
                .or_default()
                .insert(Arc::clone(&socket));
            if is_new {
                own.push(room);
            }
        }
        self.count += 1 + own.len();
        let of_user = self.users.entry(Arc::clone(&user)).or_default();
        if let Err(at) = of_user.binary_search(&socket) {
            of_user.insert(at, Arc::clone(&socket));
        }
        let entry = Entry {
            node: Arc::clone(node),
            user,
            rooms: own.into(),
        };
        self.sockets.insert(socket, entry);
        true
    }

    /// Removes a socket. Returns whether it was known.
    pub(super) fn remove(&mut self, socket: &str) -> bool {
        let Some(entry) = self.sockets.remove(socket) else {
            return false;
        };
        self.count -= 1 + entry.rooms.len();
        for room in &entry.rooms {
            if let Some(members) = self.rooms.get_mut(room) {
                members.remove(socket);
                if members.is_empty() {
                    self.rooms.remove(room);
                }
            }
        }
        if let Some(sockets) = self.users.get_mut(&entry.user) {
            sockets.retain(|known| **known != *socket);
            if sockets.is_empty() {
                self.users.remove(&entry.user);
            }
        }
        true
    }

    /// Removes the sockets of a node.
    pub(super) fn remove_node(&mut self, node: &str) {
        let own: Vec<_> = self.of_node(node).cloned().collect();
        for socket in own {
            self.remove(&socket);
        }
    }

    /// The total number of selected users, or of all, and those of the page.
    pub(super) fn users(
        &self,
        selected: Option<&Selected<'_>>,
        page: &Page<'_>,
    ) -> (usize, Vec<Online>) {
        let selected = selected.map(|selected| self.selected(selected));
        // One of the two is walked: a page must not copy everybody.
        let (total, page) = page.of(selected.as_ref().unwrap_or(&self.users));
        let page = page.map(|(user, sockets)| {
            let entries = sockets.iter().filter_map(|socket| self.get(socket));
            Online {
                user: Arc::clone(user),
                sockets: sockets.clone(),
                rooms: entries
                    .flat_map(|entry| entry.rooms.iter().cloned())
                    .collect(),
            }
        });
        (total, page.collect())
    }

    /// The total number of rooms that begin with the prefix, and those of the page.
    pub(super) fn rooms(&self, page: &Page<'_>) -> (usize, Vec<Occupied>) {
        let (total, page) = page.of(&self.rooms);
        let page = page.map(|(room, sockets)| {
            let users = sockets.iter().filter_map(|socket| self.get(socket));
            let users: HashSet<_> = users.map(|entry| &entry.user).collect();
            Occupied {
                room: Arc::clone(room),
                sockets: sockets.len(),
                users: users.len(),
            }
        });
        (total, page.collect())
    }

    fn selected(&self, selected: &Selected<'_>) -> Users {
        let rooms = selected.rooms.iter();
        let members = rooms.clone().filter_map(|room| self.rooms.get(*room));
        let own = rooms.filter_map(|room| self.sockets.get_key_value(*room));
        let of_users = selected.users.iter();
        let of_users = of_users.filter_map(|user| self.users.get(*user));
        let sockets = members.flatten().chain(of_users.flatten());
        let sockets = sockets.chain(own.map(|(socket, _)| socket));
        let mut by_user = Users::new();
        for socket in sockets {
            if let Some(entry) = self.get(socket) {
                let of_user = by_user.entry(Arc::clone(&entry.user)).or_default();
                of_user.push(Arc::clone(socket));
            }
        }
        for sockets in by_user.values_mut() {
            sockets.sort_unstable();
            sockets.dedup();
        }
        by_user
    }
}

/// The name as a table has it already, so that it is in memory once.
fn interned<V>(known: &BTreeMap<Arc<str>, V>, name: &str) -> Arc<str> {
    let known = known.get_key_value(name);
    known.map_or_else(|| name.into(), |(name, _)| Arc::clone(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(max: usize) -> Table {
        let mut table = Table::new(max);
        let [one, two] = ["one", "two"].map(Arc::<str>::from);
        table.set(&one, "s1", "ada", &["lobby"]);
        table.set(&two, "s2", "ada", &["lobby", "vip"]);
        table.set(&two, "s3", "bob", &["lobby"]);
        table
    }

    const ALL: Page<'_> = Page {
        prefix: "",
        after: None,
        limit: 10,
    };

    fn users(table: &Table, page: Page<'_>) -> (usize, Vec<(String, usize)>) {
        named(table.users(None, &page))
    }

    fn named((total, page): (usize, Vec<Online>)) -> (usize, Vec<(String, usize)>) {
        let page = page.into_iter();
        let page = page.map(|online| (online.user.to_string(), online.sockets.len()));
        (total, page.collect())
    }

    fn selected(table: &Table, rooms: &[&str], users: &[&str]) -> (usize, Vec<(String, usize)>) {
        let (rooms, users) = (rooms.to_vec(), users.to_vec());
        named(table.users(Some(&Selected { rooms, users }), &ALL))
    }

    #[test]
    fn users_are_found_by_room_by_socket_and_by_name() {
        let table = table(100);
        let named = |name: &str, sockets| (name.to_owned(), sockets);
        let both = vec![named("ada", 2), named("bob", 1)];
        assert_eq!(users(&table, ALL), (2, both.clone()));
        assert_eq!(selected(&table, &["lobby"], &[]), (2, both));
        let one = (1, vec![named("ada", 1)]);
        assert_eq!(selected(&table, &["vip"], &[]), one);
        assert_eq!(selected(&table, &["s1"], &[]), one);
        let of_ada = (1, vec![named("ada", 2)]);
        assert_eq!(selected(&table, &["vip", "s2"], &["ada"]), of_ada);
        assert_eq!(selected(&table, &["nowhere"], &["nobody"]), (0, vec![]));
        assert_eq!(users(&table, Page { prefix: "a", ..ALL }), of_ada);
        let after = Some("ada");
        let page = users(&table, Page { after, ..ALL });
        assert_eq!(page, (2, vec![named("bob", 1)]));
        let page = users(&table, Page { limit: 1, ..ALL });
        assert_eq!(page, (2, vec![named("ada", 2)]));
        let (_, online) = table.users(None, &ALL);
        let rooms: Vec<_> = online[0].rooms.iter().map(|room| &**room).collect();
        assert_eq!(rooms, ["lobby", "vip"]);
    }

    #[test]
    fn rooms_are_found_by_name_with_their_sockets_and_users() {
        let mut table = table(100);
        let two: Arc<str> = "two".into();
        table.set(&two, "s4", "bob", &["lobby"]);
        let rooms = |page| {
            let (total, rooms) = table.rooms(&page);
            let rooms = rooms.into_iter();
            let rooms = rooms.map(|room| (room.room.to_string(), room.sockets, room.users));
            (total, rooms.collect::<Vec<_>>())
        };
        let (lobby, vip) = (("lobby".to_owned(), 4, 2), ("vip".to_owned(), 1, 1));
        assert_eq!(rooms(ALL), (2, vec![lobby.clone(), vip.clone()]));
        assert_eq!(rooms(Page { limit: 1, ..ALL }), (2, vec![lobby]));
        assert_eq!(rooms(Page { prefix: "v", ..ALL }), (1, vec![vip]));
    }

    #[test]
    fn nothing_is_left_of_what_has_gone() {
        let mut table = table(100);
        assert!(table.remove("s1") && !table.remove("s1"));
        assert_eq!(selected(&table, &["lobby"], &[]).0, 2);
        let two: Arc<str> = "two".into();
        assert!(table.set(&two, "s2", "ada", &["vip"]));
        assert_eq!(selected(&table, &["lobby"], &[]).0, 1);
        table.remove_node("two");
        assert_eq!((table.count, table.sockets()), (0, 0));
        assert!(table.users.is_empty() && table.rooms.is_empty());
    }

    #[test]
    fn sockets_and_rooms_count_towards_the_limit() {
        let mut table = table(8);
        let one: Arc<str> = "one".into();
        assert_eq!(table.count, 7);
        assert!(!table.set(&one, "s4", "eve", &["lobby"]));
        assert!(table.set(&one, "s4", "eve", &[""; 0]));
        assert!(!table.set(&one, "s5", "eve", &[""; 0]));
        // A socket that is known keeps its place, unless it grows.
        assert!(table.set(&one, "s1", "ada", &["vip"]));
        assert!(!table.set(&one, "s1", "ada", &["vip", "lobby"]));
        assert!(table.get("s1").is_none());
        let long = "x".repeat(MAX_NAME + 1);
        assert!(table.set(&one, "s6", &long, &[""; 0]));
        assert!(table.get("s6").is_none());
    }

    #[test]
    fn a_room_that_is_named_twice_counts_once() {
        let mut table = Table::new(100);
        let one: Arc<str> = "one".into();
        assert!(table.set(&one, "s", "ada", &["a", "a"]));
        assert_eq!(table.count, 2);
        table.remove("s");
        assert_eq!(table.count, 0);
    }
}
