//! The questions of the API: sockets, rooms, users and presence.
//!
//! All four fetch the sockets of the cluster and differ in the result, unless presence can answer.
//! Nodes that do not respond in time are listed, and the result is marked as incomplete.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use form_urlencoded::parse;
use roomcast::{Fetched, RemoteSocket};
use serde_json::{Value, json};

use super::{keys::Verb, problem::Problem};
use crate::gateway::{
    policy::USER_ROOMS,
    presence::{Kept, Occupied, Online, Page, Selected},
    session::user_room,
};

/// The default and the maximum number of entries of a page.
const DEFAULT_LIMIT: usize = 1000;

const MAX_LIMIT: usize = 10_000;

/// The default and the maximum time for nodes to respond.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// A question about the sockets of a namespace.
#[derive(Debug)]
pub(crate) struct Query {
    verb: Verb,
    /// The rooms whose sockets are requested, or all sockets.
    pub(crate) selected: Option<Vec<String>>,
    pub(crate) timeout: Duration,
    /// Of rooms, only the sockets of users count, as presence keeps them.
    is_of_users: bool,
    /// Only names that begin with this text.
    prefix: String,
    /// Only names after this one: the last name of the page before.
    after: Option<String>,
    limit: usize,
}

impl Query {
    /// Reads a query of a URL.
    pub(crate) fn read(verb: Verb, text: &str) -> Result<(String, Self), Problem> {
        let mut namespace = "/".to_owned();
        let mut query = Self {
            verb,
            selected: None,
            timeout: DEFAULT_TIMEOUT,
            is_of_users: false,
            prefix: String::new(),
            after: None,
            limit: DEFAULT_LIMIT,
        };
        let mut seen = BTreeSet::new();
        for (name, value) in parse(text.as_bytes()) {
            let is_list = matches!(&*name, "room" | "socket" | "user");
            if is_list && value.is_empty() {
                return Err(Problem::invalid(&name, "is empty"));
            }
            // Of two values, one would be ignored silently.
            if !is_list && !seen.insert(name.clone()) {
                return Err(Problem::invalid(&name, "is given twice"));
            }
            match &*name {
                "namespace" => namespace = value.into_owned(),
                "room" | "socket" if verb != Verb::Rooms => {
                    query
                        .selected
                        .get_or_insert_default()
                        .push(value.into_owned());
                }
                "user" if verb != Verb::Rooms => {
                    query
                        .selected
                        .get_or_insert_default()
                        .push(user_room(&value));
                }
                "of" if verb == Verb::Rooms => match &*value {
                    "all" => query.is_of_users = false,
                    "users" => query.is_of_users = true,
                    _ => return Err(Problem::invalid("of", "expected `all` or `users`")),
                },
                "prefix" => query.prefix = value.into_owned(),
                "after" => query.after = Some(value.into_owned()),
                "limit" => query.limit = number(&name, &value, MAX_LIMIT)?,
                "timeout_ms" => {
                    let milliseconds = number(&name, &value, 60_000)?;
                    query.timeout = Duration::from_millis(milliseconds as u64);
                }
                name => return Err(unknown(name)),
            }
        }
        Ok((namespace, query))
    }

    /// Checks that a query of a URL is empty.
    pub(crate) fn none(text: &str) -> Result<(), Problem> {
        match parse(text.as_bytes()).next() {
            Some((name, _)) => Err(unknown(&name)),
            None => Ok(()),
        }
    }

    /// The fields of the sockets that the query requests.
    pub(crate) fn answer(&self, fetched: &Fetched) -> Value {
        let sockets = &fetched.sockets;
        let (name, (total, page)) = match self.verb {
            Verb::Rooms => ("rooms", self.page(self.rooms(sockets))),
            Verb::Users | Verb::Presence => ("users", self.page(self.users(sockets))),
            _ => ("sockets", self.page(described(sockets))),
        };
        answer(name, total, &page, &fetched.silent_nodes)
    }

    /// The answer without a question to the cluster, if presence has the users. Sockets and rooms
    /// are always requested from the cluster, because presence keeps neither data nor sockets
    /// without a user.
    pub(crate) fn answer_from(&self, presence: &Kept) -> Option<Value> {
        let page = Page {
            prefix: &self.prefix,
            after: self.after.as_deref(),
            limit: self.limit,
        };
        match self.verb {
            Verb::Rooms if self.is_of_users => {
                let found = presence.rooms(&page);
                let rooms = found.page.iter().map(
                    |Occupied {
                         room,
                         sockets,
                         users,
                     }| {
                        json!({ "room": &**room, "sockets": sockets, "users": users })
                    },
                );
                let rooms: Vec<_> = rooms.collect();
                Some(answer("rooms", found.total, &rooms, &found.silent_nodes))
            }
            Verb::Users | Verb::Presence => {
                let selected = self.selected.as_deref().map(selection);
                let found = presence.users(selected.as_ref(), &page);
                let users: Vec<_> = found.page.iter().map(|user| self.online(user)).collect();
                Some(answer("users", found.total, &users, &found.silent_nodes))
            }
            _ => None,
        }
    }

    fn online(&self, online: &Online) -> Value {
        let user = &*online.user;
        if self.verb == Verb::Users {
            return json!({ "user": user, "sockets": online.sockets.len() });
        }
        let sockets: Vec<_> = online.sockets.iter().map(|socket| &**socket).collect();
        let rooms: Vec<_> = online.rooms.iter().map(|room| &**room).collect();
        json!({ "user": user, "sockets": sockets, "rooms": rooms })
    }

    /// The number of entries with the prefix, and those of the page.
    /// Pages go by name and not by number, because sockets come and go between two of
    /// them.
    fn page(&self, entries: BTreeMap<String, Value>) -> (usize, Vec<Value>) {
        let entries = entries.into_iter();
        let entries: Vec<_> = entries
            .filter(|(name, _)| name.starts_with(&self.prefix))
            .collect();
        let total = entries.len();
        let is_later = |name: &String| self.after.as_ref().is_none_or(|after| name > after);
        let page = entries.into_iter().filter(|(name, _)| is_later(name));
        (
            total,
            page.take(self.limit).map(|(_, entry)| entry).collect(),
        )
    }

    /// The users, each with the number of its sockets; as presence, with its sockets and rooms.
    fn users(&self, sockets: &[RemoteSocket]) -> BTreeMap<String, Value> {
        let mut by_user = BTreeMap::<String, Vec<&RemoteSocket>>::new();
        for socket in sockets {
            if let Some(user) = user(socket) {
                by_user.entry(user.to_owned()).or_default().push(socket);
            }
        }
        let shown = |(user, sockets): (String, Vec<&RemoteSocket>)| {
            let entry = if self.verb == Verb::Presence {
                let rooms: BTreeSet<_> = sockets.iter().flat_map(|socket| public(socket)).collect();
                let ids: Vec<_> = sockets.iter().map(|socket| socket.id().as_str()).collect();
                json!({ "user": user, "sockets": ids, "rooms": rooms })
            } else {
                json!({ "user": user, "sockets": sockets.len() })
            };
            (user, entry)
        };
        by_user.into_iter().map(shown).collect()
    }

    /// The rooms, each with the number of its sockets and of their users.
    fn rooms(&self, sockets: &[RemoteSocket]) -> BTreeMap<String, Value> {
        let mut rooms = BTreeMap::<&String, (usize, BTreeSet<&str>)>::new();
        let counted = |socket: &&RemoteSocket| !self.is_of_users || user(socket).is_some();
        for socket in sockets.iter().filter(counted) {
            for room in public(socket) {
                let (count, users) = rooms.entry(room).or_default();
                *count += 1;
                users.extend(user(socket));
            }
        }
        let shown = rooms.into_iter().map(|(room, (count, users))| {
            let entry = json!({ "room": room, "sockets": count, "users": users.len() });
            (room.clone(), entry)
        });
        shown.collect()
    }
}

/// The answer to a question for users or rooms: `name` is the field of the page.
fn answer(name: &str, total: usize, page: &[Value], silent_nodes: &[String]) -> Value {
    json!({
        name: page,
        "total": total,
        "is_complete": silent_nodes.is_empty(),
        "silent_nodes": silent_nodes,
    })
}

/// The users, rooms and sockets that these rooms stand for.
fn selection(names: &[String]) -> Selected<'_> {
    let mut selected = Selected::default();
    for name in names {
        match name.strip_prefix(USER_ROOMS) {
            Some(user) => selected.users.push(user),
            None => selected.rooms.push(name),
        }
    }
    selected
}

fn unknown(name: &str) -> Problem {
    Problem::invalid(name, format!("this call has no parameter `{name}`"))
}

fn number(name: &str, text: &str, most: usize) -> Result<usize, Problem> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| Problem::invalid(name, format!("expected a number from 1 to {most}")))
}

/// The id of the user, as the gateway shows it in the socket's data.
fn user(socket: &RemoteSocket) -> Option<&str> {
    socket.data_json().get("user")?.as_str()
}

/// The rooms except the private one and the user's room.
/// Both are shown by other fields.
fn public(socket: &RemoteSocket) -> impl Iterator<Item = &String> {
    let private = socket.id().as_str();
    let of_user = user(socket).map(user_room);
    let rooms = socket.rooms().iter();
    rooms.filter(move |room| *room != private && Some(*room) != of_user.as_ref())
}

/// The sockets by their ids, which are the names by which pages are cut.
fn described(sockets: &[RemoteSocket]) -> BTreeMap<String, Value> {
    let shown = sockets.iter().map(|socket| {
        let entry = json!({
            "id": socket.id().as_str(),
            "user": user(socket),
            "rooms": public(socket).collect::<Vec<_>>(),
            "data": socket.data_json(),
        });
        (socket.id().as_str().to_owned(), entry)
    });
    shown.collect()
}
