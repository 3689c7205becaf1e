//! The ids of sockets, connections and nodes, and the alphabet that they are made of.
//!
//! Ids are made from random bytes that the caller passes, because this crate has no entropy.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer};

/// The 64 characters of ids and names, which are URL-safe.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Turns random bytes into as many URL-safe characters. Six bits of each byte are used.
pub fn name_from<const N: usize>(random: [u8; N]) -> [u8; N] {
    random.map(|byte| ALPHABET[usize::from(byte % 64)])
}

/// The id of an Engine.IO connection: 20 URL-safe characters: the first four are the tag of the
/// node, and the others have 96 random bits.
///
/// It is a secret between the client and the server, because anyone who knows it can poll in the
/// client's place. Therefore `Debug` does not print it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EngineId([u8; Self::LEN]);

impl EngineId {
    /// Length in characters.
    pub const LEN: usize = SocketId::LEN;

    /// Length of the node's tag in characters.
    pub const TAG_LEN: usize = 4;

    /// An id that begins with the tag of the node. All arguments must be made by [`name_from`].
    pub fn new(tag: [u8; Self::TAG_LEN], random: [u8; Self::LEN - Self::TAG_LEN]) -> Self {
        let mut id = [0; Self::LEN];
        id[..Self::TAG_LEN].copy_from_slice(&tag);
        id[Self::TAG_LEN..].copy_from_slice(&random);
        Self(id)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("ids are made of ASCII characters")
    }
}

impl fmt::Debug for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineId(..)")
    }
}

/// The id of a socket in its namespace, which is also the name of its private room.
///
/// It has 20 URL-safe characters: the four-character tag of the node, then 96 random
/// bits. The length matters, because Node's sharded Redis adapter distinguishes private
/// rooms from public ones by it. Clients of Engine.IO revision 3 have longer ids outside
/// the main namespace (`/chat#` and the id of the connection), because they compute them
/// themselves.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    /// ASCII, checked on construction.
    Short([u8; SocketId::LEN]),
    Long(Box<str>),
}

impl SocketId {
    /// Length of an ordinary id in characters.
    pub const LEN: usize = 20;

    /// An id that was made elsewhere, of any length.
    pub fn new(name: &str) -> Self {
        match <[u8; Self::LEN]>::try_from(name.as_bytes()) {
            Ok(bytes) if bytes.is_ascii() => Self(Repr::Short(bytes)),
            _ => Self(Repr::Long(name.into())),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Short(bytes) => std::str::from_utf8(bytes).expect("checked to be ASCII"),
            Repr::Long(name) => name,
        }
    }

    /// Whether a room of this name may be the private room of a socket.
    pub fn is_plausible(name: &str) -> bool {
        name.len() == Self::LEN || name.contains('#')
    }
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SocketId({self})")
    }
}

impl AsRef<str> for SocketId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Serialize for SocketId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl crate::target::Rooms for SocketId {
    fn each(&self, f: &mut dyn FnMut(&str)) {
        f(self.as_str());
    }
}

impl crate::target::Rooms for &SocketId {
    fn each(&self, f: &mut dyn FnMut(&str)) {
        f(self.as_str());
    }
}

/// The name of a node, unique in its cluster. It is new at every start, so a node that
/// was restarted is another node.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// A node with this name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_id_begins_with_the_tag_is_url_safe_and_is_not_printed() {
        let tag = name_from([0, 63, 64, 255]);
        let id = EngineId::new(tag, name_from(std::array::from_fn(|at| at as u8 * 16)));
        assert_eq!(id.as_str(), "A_A_AQgwAQgwAQgwAQgw");
        assert_eq!(format!("{id:?}"), "EngineId(..)");
    }

    #[test]
    fn ids_of_any_length_read_back_as_they_were_written() {
        for name in [
            "abcdefghijklmnopqrst",
            "/chat#abcdefghijklmnopqrst",
            "",
            "äbcdefghijklmnopqrs",
        ] {
            assert_eq!(SocketId::new(name).as_str(), name);
        }
        assert!(size_of::<SocketId>() <= 24);
    }
}
