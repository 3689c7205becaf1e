//! Who has to answer a question: the nodes with a lease, and servers that are not ours.
//!
//! Roomcast nodes hold leases in a sorted set (member: the node's id, score: when the lease ends, in
//! milliseconds of Redis's clock). A lease says that a node lives; whether it is reached at this
//! moment, the number of subscribers of its own response channel says. Servers of other make count
//! through the channels that they subscribe, as they count each other.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use roomcast_protocol::id::NodeId;

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

    /// Whether every node of the others is among these.
    pub fn has_all_nodes_of(&self, others: &Self) -> bool {
        let names: HashSet<_> = self.nodes().collect();
        others.nodes().all(|node| names.contains(node))
    }

    /// Whether these are the leases of the same nodes.
    pub fn has_nodes_of(&self, others: &Self) -> bool {
        self.nodes.len() == others.nodes.len() && self.has_all_nodes_of(others)
    }
}

/// Subscribers of the channels of one namespace, as they were counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// The leases that were known then.
    pub leases: Arc<Leases>,
    /// How many connections held all channels which a member holds.
    pub subscribers: usize,
    /// How many held the response channel of each node of [`Leases::nodes`], in that order.
    pub own: Vec<usize>,
}

impl Counted {
    /// Makes out who is a member of a namespace.
    pub fn roster(&self) -> Roster {
        let mut roster = Roster::default();
        let mut present = 0;
        for ((node, is_alive), &subscribed) in self.leases.nodes.iter().zip(&self.own) {
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
        roster.foreign = self.subscribers.saturating_sub(present);
        roster
    }

    /// Who was there when this was counted, with the leases as they are some time after it.
    pub fn attendance(&self, after: &Leases) -> Attendance {
        let present = |subscribed: &usize| *subscribed > 0;
        let counted = self.own.iter().map(present);
        let nodes: HashMap<NodeId, bool> = self.leases.nodes().cloned().zip(counted).collect();
        // A node that leaves gives up its lease, then the channels on which all are counted, and its
        // own a while later: without a lease it may stand in the one number and not in the other.
        let is_counted = |node: &&NodeId| nodes.get(*node) == Some(&true);
        let named = after.nodes().filter(is_counted).count();
        Attendance {
            nodes,
            unnamed: self.subscribers.saturating_sub(named),
        }
    }
}

/// The members of a namespace just before a question was published: nobody else has heard it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attendance {
    /// The nodes that had leases, and whether they were there.
    nodes: HashMap<NodeId, bool>,
    /// The number of all others that were, at most.
    unnamed: usize,
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

    /// Without those who have come since: nobody waits for an answer to what they have not heard.
    pub fn of(mut self, before: &Attendance) -> Self {
        let was_away = |node: &NodeId| before.nodes.get(node) == Some(&false);
        // Of nodes without a lease it is known how many there were, but for servers of other make.
        let have_new_come = self.foreign >= before.unnamed;
        let has_come =
            |node: &NodeId| was_away(node) || have_new_come && !before.nodes.contains_key(node);
        self.alive.retain(|node| !has_come(node));
        self.stalled.retain(|node| !has_come(node));
        self.foreign = self.foreign.min(before.unnamed);
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
        let roster = leases.counted(5, &[1, 1, 1, 0]).roster().without(&id("a"));
        assert_eq!(roster.alive, [id("b")]);
        assert_eq!(roster.stalled, [id("stalled")]);
        assert_eq!(roster.foreign, 2);
    }

    #[test]
    fn leases_are_of_the_same_nodes_whenever_they_end() {
        let of = |held: &[(&str, u64)]| {
            Leases::new(held.iter().map(|(name, end)| (id(name), *end)), 1000)
        };
        let leases = of(&[("a", 2000), ("b", 1500)]);
        assert!(leases.has_nodes_of(&of(&[("b", 2500), ("a", 900)])));
        for others in [&[("a", 2000)][..], &[("a", 2000), ("c", 1500)]] {
            assert!(!leases.has_nodes_of(&of(others)), "{others:?}");
            assert!(!of(others).has_nodes_of(&leases), "{others:?}");
        }
    }

    #[test]
    fn fewer_subscribers_than_nodes_are_no_foreigners() {
        let leases = Leases::new([(id("a"), 2000)], 1000);
        assert_eq!(leases.counted(0, &[1]).roster().foreign, 0);
        assert_eq!(Leases::default().counted(3, &[]).roster().foreign, 3);
    }

    #[test]
    fn who_has_come_since_is_not_waited_for() {
        let of = |names: &[&str]| Leases::new(names.iter().map(|name| (id(name), 2000)), 1000);
        // `b` did not have the namespace yet; one more member was of other make.
        let leases = of(&["a", "b"]);
        let before = leases.counted(2, &[1, 0]).attendance(&leases);
        let after = of(&["a", "b", "c"]).counted(5, &[1, 1, 1]).roster();
        assert_eq!((after.alive.len(), after.foreign), (3, 2));
        let after = after.of(&before);
        assert_eq!((&after.alive[..], after.foreign), (&[id("a")][..], 1));
    }

    #[test]
    fn who_was_there_without_a_lease_is_waited_for_once_its_lease_is_seen() {
        let of = |names: &[&str]| Leases::new(names.iter().map(|name| (id(name), 2000)), 1000);
        let before = of(&["a"]).counted(2, &[1]).attendance(&of(&["a"]));
        let unseen = of(&["a"]).counted(2, &[1]).roster().of(&before);
        assert_eq!((unseen.alive.len(), unseen.foreign), (1, 1));
        let seen = of(&["a", "young"]).counted(2, &[1, 1]).roster().of(&before);
        assert_eq!((seen.alive.len(), seen.foreign), (2, 0));
    }

    #[test]
    fn who_has_gone_since_is_not_waited_for() {
        let leases = Leases::new([(id("a"), 2000)], 1000);
        let before = leases.counted(3, &[1]).attendance(&leases);
        let after = leases.counted(1, &[0]).roster().of(&before);
        assert_eq!((after.alive.len(), after.foreign), (0, 1));
    }

    #[test]
    fn who_has_given_up_its_lease_hides_nobody() {
        let of = |names: &[&str]| Leases::new(names.iter().map(|name| (id(name), 2000)), 1000);
        // `b` has left the channels on which all are counted, and has its own still.
        let leases = of(&["a", "b"]);
        let before = leases.counted(2, &[1, 1]).attendance(&of(&["a"]));
        let after = of(&["a"]).counted(2, &[1]).roster().of(&before);
        assert_eq!((after.alive.len(), after.foreign), (1, 1));
    }

    impl Leases {
        fn counted(&self, subscribers: usize, own: &[usize]) -> Counted {
            Counted {
                leases: Arc::new(self.clone()),
                subscribers,
                own: own.into(),
            }
        }
    }
}
