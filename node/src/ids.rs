//! The ids that a server gives out, and the entropy that they are made of.

use std::ops::RangeInclusive;

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use roomcast_protocol::id::{EngineId, SocketId, name_from};

/// Makes ids. Each server has one generator, seeded by the operating system.
/// The tag of a node is in all its ids, so that any node can determine the node of an id.
pub(crate) struct Ids {
    tag: [u8; EngineId::TAG_LEN],
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

    /// Returns the tag of another node with which an id begins. `None` if the id belongs to this
    /// node or to none.
    pub(crate) fn foreign_tag<'a>(&self, id: &'a str) -> Option<&'a str> {
        let is_ours = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let is_id = id.len() == EngineId::LEN && id.bytes().all(is_ours);
        let tag = &id.get(..EngineId::TAG_LEN).filter(|_| is_id)?;
        (tag.as_bytes() != self.tag).then_some(tag)
    }

    /// A name for the node. It begins with the same tag as all ids of the node.
    pub(crate) fn node_name(&self) -> String {
        self.engine_id().as_str().to_owned()
    }

    pub(crate) fn engine_id(&self) -> EngineId {
        EngineId::new(self.tag, name_from(self.rng.lock().random()))
    }

    /// A number of this range, for clients that shall not all do something at the same time.
    pub(crate) fn pick(&self, range: RangeInclusive<u64>) -> u64 {
        self.rng.lock().random_range(range)
    }

    pub(crate) fn socket_id(&self) -> SocketId {
        SocketId::new(self.engine_id().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_of_another_node_is_that_of_a_whole_id() {
        let (ids, other) = (Ids::new(), Ids::new());
        let id = other.engine_id();
        let tag = std::str::from_utf8(&other.tag).unwrap();
        // Two nodes draw the same tag once in 16 million times.
        let expected = (ids.tag != other.tag).then_some(tag);
        assert_eq!(ids.foreign_tag(id.as_str()), expected);
        assert_eq!(ids.foreign_tag(ids.engine_id().as_str()), None);
        for wrong in [
            "",
            "abcd",
            "abcdabcdabcdabcdabc!",
            "äbcdabcdabcdabcdabc",
            "aaaabbbbccccddddeeeef",
        ] {
            assert_eq!(ids.foreign_tag(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ids_are_url_safe_begin_with_the_tag_and_differ() {
        let ids = Ids::new();
        let (a, b) = (ids.engine_id(), ids.socket_id());
        assert_ne!(a.as_str(), b.as_str());
        assert_eq!(
            a.as_str()[..EngineId::TAG_LEN],
            b.as_str()[..EngineId::TAG_LEN]
        );
        let url_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        assert!(a.as_str().bytes().all(url_safe));
    }
}
