//! Which names of rooms are private: each socket has a room named by its id, and another member
//! would receive the messages to that socket.
//!
//! Ids have 20 URL-safe characters, and so have ordinary names such as Firestore's. An id
//! of our own nodes begins with the tag of its node. Of other names a Node.js server, or
//! a node that has just started, may have a socket, so the cluster is asked once. A name
//! that no socket has will never be one, because 72 bits of an id are random at the
//! least, so the response is remembered.

use std::collections::HashSet;

use parking_lot::Mutex;
use roomcast::{EmitError, Server, Socket};

/// Length of a socket's id in characters.
const ID: usize = 20;

/// Length of the tag of a node, with which its name and the ids of its sockets begin.
const TAG: usize = 4;

/// The names that are remembered as ordinary.
/// Clients choose the names.
const MAX_KNOWN: usize = 10_000;

/// Whether a name can be a private room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privacy {
    Ordinary,
    Private,
    /// Some nodes did not respond.
    Unknown,
}

/// The names of one namespace that turned out to be ordinary.
#[derive(Debug, Default)]
pub(crate) struct PrivateNames {
    ordinary: Mutex<HashSet<Box<str>>>,
}

impl PrivateNames {
    /// Whether the name can be the private room of a socket in the namespace of this socket.
    pub(crate) async fn check(&self, socket: &Socket, room: &str) -> Result<Privacy, EmitError> {
        if room == socket.id().as_str() {
            return Ok(Privacy::Private);
        }
        let server = socket.server().ok_or(EmitError::Disconnected)?;
        self.check_in(&server, socket.namespace_name(), room).await
    }

    /// Whether the name can be the private room of a socket in a namespace.
    pub(crate) async fn check_in(
        &self,
        server: &Server,
        namespace: &str,
        room: &str,
    ) -> Result<Privacy, EmitError> {
        let Some(id) = form_of_id(room) else {
            return Ok(Privacy::Ordinary);
        };
        if server
            .nodes()
            .iter()
            .any(|node| is_of_node(id, node.as_str()))
        {
            return Ok(Privacy::Private);
        }
        if self.ordinary.lock().contains(room) {
            return Ok(Privacy::Ordinary);
        }
        let found = server.of(namespace).in_(room).fetch_sockets().await?;
        if found
            .sockets
            .iter()
            .any(|member| member.id().as_str() == room)
        {
            return Ok(Privacy::Private);
        }
        // Not remembered: a silent node may have a socket of this name.
        if !found.silent_nodes.is_empty() {
            return Ok(Privacy::Unknown);
        }
        self.remember(room);
        Ok(Privacy::Ordinary)
    }

    /// Removes all names when there are too many, because asking again is cheap.
    fn remember(&self, room: &str) {
        let mut ordinary = self.ordinary.lock();
        if ordinary.len() >= MAX_KNOWN {
            ordinary.clear();
        }
        ordinary.insert(room.into());
    }
}

/// The part of a name that has the form of an id. Clients of Socket.IO 2 have the
/// namespace and `#` before it.
fn form_of_id(room: &str) -> Option<&str> {
    let id = match room.rsplit_once('#') {
        Some((namespace, id)) if namespace.starts_with('/') => id,
        _ => room,
    };
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (id.len() == ID && id.bytes().all(is_id_byte)).then_some(id)
}

/// Whether the name has the form of an id that this node has made.
pub(crate) fn is_id_of(room: &str, node: &str) -> bool {
    form_of_id(room).is_some_and(|id| is_of_node(id, node))
}

fn is_of_node(id: &str, node: &str) -> bool {
    node.get(..TAG) == id.get(..TAG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_a_form() {
        for id in ["AbCd0123456789_-xyzA", "/chat#AbCd0123456789_-xyzA"] {
            assert_eq!(form_of_id(id), Some("AbCd0123456789_-xyzA"));
        }
        for name in [
            "AbCd0123456789_-xyz",
            "a room with spaces 2",
            "",
            "lobby",
            "a#AbCd0123456789_-xyzA",
        ] {
            assert_eq!(form_of_id(name), None, "{name}");
        }
    }

    #[test]
    fn an_id_begins_with_the_tag_of_its_node() {
        assert!(is_of_node("AbCd0123456789_-xyzA", "AbCd9999999999999999"));
        assert!(!is_of_node("AbCd0123456789_-xyzA", "AbCe9999999999999999"));
    }

    #[test]
    fn the_memory_is_bounded() {
        let names = PrivateNames::default();
        for name in 0..=MAX_KNOWN {
            names.remember(&name.to_string());
        }
        assert_eq!(names.ordinary.lock().len(), 1);
    }
}
