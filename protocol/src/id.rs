//! The public names of connected sockets and of nodes.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer};

/// The characters of ids: those that base64 has in URLs.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A name of URL-safe characters, with six bits of each random byte. Callers bring the entropy.
pub fn name_from<const N: usize>(random: [u8; N]) -> [u8; N] {
    random.map(|byte| ALPHABET[usize::from(byte % 64)])
}

/// The id of a socket in its namespace, and at the same time the name of its private room.
///
/// Twenty URL-safe characters: the four-character tag of the node, then 96 random bits. Exactly
/// twenty, because Node's sharded Redis adapter tells private rooms from public ones by that
/// length. Only clients of Engine.IO revision 3 outside the main namespace have longer ids
/// (`/chat#` and the id of the connection), as they compute them by themselves.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    /// ASCII, checked on construction.
    Short([u8; SocketId::LEN]),
    Long(Box<str>),
}

impl SocketId {
    /// Length of an ordinary id, in characters.
    pub const LEN: usize = 20;

    /// Takes over a name that was made elsewhere.
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

/// The name of a node, unique in its cluster: made anew at every start, so that a node that comes
/// back is another one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Takes over a name.
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
