//! The ids that a server gives out, and the entropy that they are made of.

use std::fmt;

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use roomcast_protocol::id::{SocketId, name_from};

/// Characters of an id, of any kind.
const LEN: usize = SocketId::LEN;

/// Characters at the start of an id that name the node.
const TAG_LEN: usize = 4;

/// The id of a connection: a secret between the client and this server, because it is all that a
/// poll needs to read the client's packets. Twenty URL-safe characters: the node's tag, then 96 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EngineId([u8; LEN]);

impl EngineId {
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("ids are made of ASCII characters")
    }
}

impl fmt::Debug for EngineId {
    /// Secrets do not go into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineId(..)")
    }
}

/// Makes ids. Each server has one generator, seeded by the operating system.
pub(crate) struct Ids {
    tag: [u8; TAG_LEN],
    rng: Mutex<StdRng>,
}

impl Ids {
    pub(crate) fn new() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the place that makes entropy"
        )]
        let mut rng = StdRng::from_rng(&mut rand::rng());
        let tag = name_from(rng.random());
        Self {
            tag,
            rng: Mutex::new(rng),
        }
    }

    /// A name for the node. It begins with the same tag as all ids of the node.
    pub(crate) fn node_name(&self) -> String {
        String::from_utf8_lossy(&self.id()).into_owned()
    }

    pub(crate) fn engine_id(&self) -> EngineId {
        EngineId(self.id())
    }

    pub(crate) fn socket_id(&self) -> SocketId {
        let id = self.id();
        SocketId::new(std::str::from_utf8(&id).expect("ids are made of ASCII characters"))
    }

    fn id(&self) -> [u8; LEN] {
        let random: [u8; LEN - TAG_LEN] = name_from(self.rng.lock().random());
        let mut id = [0; LEN];
        id[..TAG_LEN].copy_from_slice(&self.tag);
        id[TAG_LEN..].copy_from_slice(&random);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_url_safe_begin_with_the_tag_and_differ() {
        let ids = Ids::new();
        let (a, b) = (ids.engine_id(), ids.socket_id());
        assert_ne!(a.as_str(), b.as_str());
        assert_eq!(a.as_str()[..TAG_LEN], b.as_str()[..TAG_LEN]);
        let url_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        assert!(a.as_str().bytes().all(url_safe));
        assert_eq!(format!("{a:?}"), "EngineId(..)");
    }
}
