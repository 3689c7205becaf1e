//! Where the other nodes are reached, by the tags with which their ids begin.
//!
//! A node states its address next to its lease (`with:SETTINGS:NODE@ADDRESS`), so every reading of
//! the leases includes the addresses and they cost no command. Versions without addresses ignore
//! the text after the settings.
//!
//! A tag that is not in the table may be that of a node that joined since the last
//! reading. Then the leases are read again. Because anyone can make up tags, at most one
//! such reading is in flight, and there is a pause between two:
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

/// How long nodes are kept in the table whose leases Redis has lost. Nodes write theirs every
/// second.
const GRACE: Duration = Duration::from_secs(5);

/// The longest time between two readings in which no lease can lapse without its node.
const MAX_SILENCE: Duration = Duration::from_secs(3);

/// The least time between two readings for tags that are not known.
const PAUSE: Duration = Duration::from_millis(25);

/// Between the name of a node and its address.
const AT: char = '@';

/// The other nodes that state an address.
#[derive(Default)]
pub(super) struct Peers {
    by_tag: Mutex<Table>,
    /// When the last reading for an unknown tag began.
    turn: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Table {
    by_tag: HashMap<Box<str>, Peer>,
    /// When the leases were read last.
    read: Option<Instant>,
    /// Until when nodes without leases are kept.
    kept_until: Option<Instant>,
}

/// The result of a reading of the leases in addition to the valid ones.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Missing<'a> {
    /// Redis has lost leases, for example because it has restarted empty: this node's own one is not there.
    pub(super) is_lost: bool,
    /// Nodes that have given their leases back.
    pub(super) left: &'a [&'a str],
}

impl Peers {
    /// Replaces the table. `stated` are the texts of nodes with a valid lease after their settings.
    ///
    /// After Redis was unreachable or has lost leases, nodes that are alive may not have written
    /// theirs again. They are kept for a while, unless they have left, because otherwise all that
    /// is relayed to them would end.
    pub(super) fn replace<'a>(
        &self,
        own: &NodeId,
        stated: impl Iterator<Item = &'a str>,
        missing: Missing<'_>,
    ) {
        let now = Instant::now();
        let mut table = self.by_tag.lock();
        let before = table.read.replace(now);
        if missing.is_lost || before.is_some_and(|before| now - before > MAX_SILENCE) {
            table.kept_until = Some(now + GRACE);
        }
        let is_kept = table.kept_until.is_some_and(|end| now < end);
        let by_tag = &mut table.by_tag;
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
        if is_kept {
            by_tag.retain(|_, peer| !missing.left.contains(&peer.node.as_str()));
            for (tag, peer) in by_tag.drain() {
                next.entry(tag).or_insert(peer);
            }
        }
        *by_tag = next;
    }

    /// Redis has lost this node's lease, so those of others may be lost, too.
    pub(super) fn keep(&self) {
        self.by_tag.lock().kept_until = Some(Instant::now() + GRACE);
    }

    /// The nodes in the table.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        let table = self.by_tag.lock();
        table
            .by_tag
            .values()
            .map(|peer| peer.node.clone())
            .collect()
    }

    pub(super) fn find(&self, tag: &str) -> Option<Peer> {
        self.by_tag.lock().by_tag.get(tag).cloned()
    }

    /// Resolves once the table is from a reading that began after this call.
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

/// The text that a node appends to its settings.
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
        replace(&peers, stated, Missing::default());
        peers
    }

    fn replace(peers: &Peers, stated: &[&str], missing: Missing<'_>) {
        peers.replace(&NodeId::new("ownn1234"), stated.iter().copied(), missing);
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
        replace(&peers, &["aaaa3@new"], Missing::default());
        assert_eq!(address(&peers, "aaaa").as_deref(), Some("new"));
        assert_eq!(address(&peers, "bbbb"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_are_kept_for_a_while_when_redis_has_lost_their_leases() {
        let known = ["aaaa1@a", "bbbb2@b"];
        let peers = table(&known);
        let lost = Missing {
            is_lost: true,
            left: &["bbbb2"],
        };
        replace(&peers, &[], lost);
        assert_eq!(address(&peers, "aaaa").as_deref(), Some("a"));
        assert_eq!(address(&peers, "bbbb"), None, "it has left");
        for _ in 0..2 {
            tokio::time::advance(Duration::from_secs(2)).await;
            replace(&peers, &[], Missing::default());
            assert!(peers.find("aaaa").is_some());
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        replace(&peers, &[], Missing::default());
        assert_eq!(peers.find("aaaa"), None);
        // An outage in which leases lapse is the same.
        replace(&peers, &known, Missing::default());
        tokio::time::advance(Duration::from_secs(60)).await;
        replace(&peers, &["bbbb2@b"], Missing::default());
        assert!(peers.find("aaaa").is_some());
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
