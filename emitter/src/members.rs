//! Who has to answer a question: the nodes with a lease, and servers that are not ours.
//!
//! Roomcast nodes hold leases in a sorted set (member: the node's id, score: when the lease ends, in
//! milliseconds of Redis's clock). A lease says that a node lives; whether it is reached at this
//! moment, the number of subscribers of its own response channel says. Servers of other make count
//! through the channels that they subscribe, as they count each other.

use crate::id::NodeId;

/// How long a lease lasts. It is renewed every [`RENEWAL_SECONDS`].
pub const LEASE_SECONDS: u64 = 5;

/// How often a node renews its lease.
pub const RENEWAL_SECONDS: u64 = 1;

/// The most leases that are read; a cluster of more nodes is asked, but its silent nodes are not all
/// named.
pub const MAX_NODES: usize = 4096;

/// The leases of a cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    nodes: Vec<(NodeId, bool)>,
}

impl Leases {
    /// Takes over what Redis holds: ids with the end of their leases, and its time, in milliseconds.
    pub fn new(held: impl IntoIterator<Item = (NodeId, u64)>, now: u64) -> Self {
        let nodes = held.into_iter().take(MAX_NODES);
        Self {
            nodes: nodes.map(|(node, end)| (node, end > now)).collect(),
        }
    }

    /// The nodes, those whose lease is over among them: what has stalled may still be subscribed.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeId> {
        self.nodes.iter().map(|(node, _)| node)
    }

    /// The number of nodes whose lease holds.
    pub fn alive(&self) -> usize {
        self.nodes.iter().filter(|(_, is_alive)| *is_alive).count()
    }

    /// Makes out who is a member of a namespace.
    ///
    /// `subscribers` is the number of connections that hold all channels which a member holds; for
    /// each node of [`nodes`](Self::nodes), in that order, `own` says how many hold the node's own
    /// response channel of the namespace.
    pub fn roster(&self, subscribers: usize, own: &[usize]) -> Roster {
        let mut roster = Roster::default();
        let mut present = 0;
        for ((node, is_alive), &subscribed) in self.nodes.iter().zip(own) {
            // Nobody there: the node has gone, or does not have the namespace.
            if subscribed == 0 {
                continue;
            }
            present += 1;
            if *is_alive {
                roster.alive.push(node.clone());
            } else {
                roster.stalled.push(node.clone());
            }
        }
        roster.foreign = subscribers.saturating_sub(present);
        roster
    }
}

/// The members of a namespace at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roster {
    /// Nodes that live and are reached.
    pub alive: Vec<NodeId>,
    /// Nodes that are subscribed and do not renew their lease: they hang or were stopped.
    pub stalled: Vec<NodeId>,
    /// The number of servers of other make.
    pub foreign: usize,
}

impl Roster {
    /// Without the node that asks.
    pub fn without(mut self, asker: &NodeId) -> Self {
        self.alive.retain(|node| node != asker);
        self.stalled.retain(|node| node != asker);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name)
    }

    #[test]
    fn nodes_count_by_lease_and_subscription_and_the_rest_is_foreign() {
        let held = [("a", 2000), ("b", 2000), ("stalled", 900), ("dead", 2000)];
        let leases = Leases::new(held.map(|(name, end)| (id(name), end)), 1000);
        assert_eq!((leases.nodes().len(), leases.alive()), (4, 3));
        let roster = leases.roster(5, &[1, 1, 1, 0]).without(&id("a"));
        assert_eq!(roster.alive, [id("b")]);
        assert_eq!(roster.stalled, [id("stalled")]);
        assert_eq!(roster.foreign, 2);
    }

    #[test]
    fn fewer_subscribers_than_nodes_are_no_foreigners() {
        let leases = Leases::new([(id("a"), 2000)], 1000);
        assert_eq!(leases.roster(0, &[1]).foreign, 0);
        assert_eq!(Leases::default().roster(3, &[]).foreign, 3);
    }
}
