//! Ids and the entropy they are made of.

use std::fmt;

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use roomcast_adapter::SocketId;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Characters of an id, of any kind.
const LEN: usize = SocketId::LEN;

/// Characters at the start of an id that name the node.
const TAG_LEN: usize = 4;

/// The id of a connection: a secret between the client and this server, as whoever knows it can
/// poll in the client's place. Twenty URL-safe characters: the node's tag, then 96 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EngineId([u8; LEN]);

impl EngineId {
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("ids are made of ASCII characters")
    }
}

impl fmt::Debug for EngineId {
    /// Secrets don't go into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineId(..)")
    }
}

/// Makes ids. One generator per server, seeded by the operating system.
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
        let tag = characters(&mut rng);
        Self {
            tag,
            rng: Mutex::new(rng),
        }
    }

    /// A name for the node, which begins as all its ids do.
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
        let random: [u8; LEN - TAG_LEN] = characters(&mut self.rng.lock());
        let mut id = [0; LEN];
        id[..TAG_LEN].copy_from_slice(&self.tag);
        id[TAG_LEN..].copy_from_slice(&random);
        id
    }
}

fn characters<const N: usize>(rng: &mut StdRng) -> [u8; N] {
    let random: [u8; N] = rng.random();
    random.map(|byte| ALPHABET[usize::from(byte % 64)])
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
        assert!(a.as_str().bytes().all(|byte| ALPHABET.contains(&byte)));
        assert_eq!(format!("{a:?}"), "EngineId(..)");
    }
}
