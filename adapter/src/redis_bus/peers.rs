//! Where the other nodes are reached, by the tags with which their ids begin.
//!
//! A node states its address beside its lease (`with:SETTINGS:NODE@ADDRESS`), so the
//! addresses come with every reading of the leases and cost no command. Versions that
//! know no addresses ignore what follows the settings.
//!
//! A tag that is not in the table may be that of a node that joined since the last
//! reading. Then the leases are read again. Because anyone can make up tags, at most one
//! such reading is under way, and there is a pause between two:
//!
//! ```text
//! unknown tag ──▶ turn ──▶ a reading began after the tag came? ── yes ──▶ look again
//!                                      │ no
//!                                      └──▶ pause since the last one ──▶ read ──▶ look again
//! ```

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use roomcast_protocol::id::{EngineId, NodeId};
use tokio::time::{Instant, sleep_until};

use super::membership::Membership;
use crate::bus::Peer;

/// The least time between two readings for tags that are not known.
const PAUSE: Duration = Duration::from_millis(25);

/// Between the name of a node and its address.
const AT: char = '@';

/// The other nodes that state an address.
#[derive(Default)]
pub(super) struct Peers {
    by_tag: Mutex<HashMap<Box<str>, Peer>>,
    /// When the last reading for an unknown tag began.
    turn: tokio::sync::Mutex<Option<Instant>>,
}

impl Peers {
    /// Replaces the table. `stated` is what nodes with a valid lease state behind their settings.
    pub(super) fn replace<'a>(&self, own: &NodeId, stated: impl Iterator<Item = &'a str>) {
        let mut by_tag = self.by_tag.lock();
        let mut next = HashMap::with_capacity(by_tag.len());
        for (name, address) in stated.filter_map(|stated| stated.split_once(AT)) {
            let Some(tag) = name.get(..EngineId::TAG_LEN) else {
                continue;
            };
            if name == own.as_str() {
                continue;
            }
            let known = by_tag.remove(tag);
            let known =
                known.filter(|peer| peer.node.as_str() == name && *peer.address == *address);
            let peer = known.unwrap_or_else(|| Peer {
                node: NodeId::new(name),
                address: address.into(),
            });
            next.insert(tag.into(), peer);
        }
        *by_tag = next;
    }

    pub(super) fn find(&self, tag: &str) -> Option<Peer> {
        self.by_tag.lock().get(tag).cloned()
    }

    /// Resolves once the table comes from a reading that began after this call.
    pub(super) async fn refresh(&self, membership: &Membership) {
        let called = Instant::now();
        let mut last = self.turn.lock().await;
        if last.is_some_and(|last| last > called) {
            return;
        }
        if let Some(last) = *last {
            sleep_until(last + PAUSE).await;
        }
        *last = Some(Instant::now());
        // The link reports its own trouble.
        drop(membership.read_leases().await);
    }
}

/// The text that a node puts behind its settings.
pub(super) fn stated(node: &NodeId, address: Option<&str>) -> String {
    match address {
        Some(address) => format!("{node}{AT}{address}"),
        None => node.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn table(stated: &[&str]) -> Peers {
        let peers = Peers::default();
        peers.replace(&NodeId::new("ownn1234"), stated.iter().copied());
        peers
    }

    fn address(peers: &Peers, tag: &str) -> Option<Arc<str>> {
        peers.find(tag).map(|peer| peer.address)
    }

    #[test]
    fn a_node_is_found_by_its_tag_if_it_states_an_address() {
        let peers = table(&[
            "aaaa1@10.0.0.1:3002",
            "bbbb2",
            "ownn1234@10.0.0.9:3002",
            "cc@x",
        ]);
        let found = peers.find("aaaa").unwrap();
        assert_eq!(
            (found.node.as_str(), &*found.address),
            ("aaaa1", "10.0.0.1:3002")
        );
        for tag in ["bbbb", "ownn", "cc", "", "aaaa1"] {
            assert_eq!(peers.find(tag), None, "{tag}");
        }
    }

    #[test]
    fn the_table_is_that_of_the_last_reading() {
        let peers = table(&["aaaa1@old", "bbbb2@old"]);
        peers.replace(&NodeId::new("ownn1234"), ["aaaa3@new"].into_iter());
        assert_eq!(address(&peers, "aaaa").as_deref(), Some("new"));
        assert_eq!(address(&peers, "bbbb"), None);
    }

    #[test]
    fn what_a_node_states_is_read_back() {
        let node = NodeId::new("aaaa1");
        let peers = table(&[
            &stated(&node, Some("[::1]:3002")),
            &stated(&NodeId::new("bbbb2"), None),
        ]);
        assert_eq!(address(&peers, "aaaa").as_deref(), Some("[::1]:3002"));
        assert_eq!(address(&peers, "bbbb"), None);
    }
}
