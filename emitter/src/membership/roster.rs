//! The members of a namespace, from leases and numbers of subscribers.
//!
//! Roomcast nodes hold leases in a sorted set (member: the node's id; score: the end of
//! the lease, in milliseconds of Redis's clock). A lease shows that a node lives. The number of
//! subscribers of its own response channel shows whether it can be reached now. Servers of other
//! make count by the channels that they subscribe, as they count each other.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use roomcast_protocol::id::NodeId;

/// Prefix of the entries that nodes leave among the leases when they go. No node has such a name,
/// so questions do not wait for them.
pub const TRACE: &str = "left:";

/// Duration of a lease. It is renewed every [`RENEWAL_SECONDS`].
pub const LEASE_SECONDS: u64 = 5;

/// How often a node renews its lease.
pub const RENEWAL_SECONDS: u64 = 1;

/// Maximum number of leases that are read. In a larger cluster, not all silent nodes are named.
pub const MAX_NODES: usize = 4096;

/// The leases of a cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    nodes: Vec<(NodeId, bool)>,
}

impl Leases {
    /// From ids with the end of their leases, and the time of Redis, both in milliseconds.
    pub fn new(held: impl IntoIterator<Item = (NodeId, u64)>, now: u64) -> Self {
        let nodes = held.into_iter().take(MAX_NODES);
        Self {
            nodes: nodes.map(|(node, end)| (node, end > now)).collect(),
        }
    }

    /// All nodes, including those whose lease has expired: a stalled node may still be subscribed.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeId> {
        self.nodes.iter().map(|(node, _)| node)
    }

    /// These leases and nodes without one, which may be subscribed nevertheless. Nodes
    /// that have left are not added: for a while they hold some of the channels and not
    /// all.
    pub fn with(&self, others: &[NodeId]) -> Self {
        let mut nodes = self.nodes.clone();
        for other in others {
            let trace = NodeId::new(&format!("{TRACE}{other}"));
            if self.nodes().all(|node| *node != *other && *node != trace) {
                nodes.push((other.clone(), false));
            }
        }
        Self { nodes }
    }

    /// The nodes with a valid lease. Traces of nodes that have left are not nodes.
    pub fn alive_nodes(&self) -> impl Iterator<Item = &NodeId> {
        let alive = self.nodes.iter().filter(|(_, is_alive)| *is_alive);
        let alive = alive.map(|(node, _)| node);
        alive.filter(|node| !node.as_str().starts_with(TRACE))
    }

    /// The number of nodes with a valid lease.
    pub fn alive(&self) -> usize {
        self.nodes.iter().filter(|(_, is_alive)| *is_alive).count()
    }

    /// Whether these leases contain every node of the others.
    pub fn has_all_nodes_of(&self, others: &Self) -> bool {
        let names: HashSet<_> = self.nodes().collect();
        others.nodes().all(|node| names.contains(node))
    }

    /// Whether these are the leases of the same nodes.
    pub fn has_nodes_of(&self, others: &Self) -> bool {
        self.nodes.len() == others.nodes.len() && self.has_all_nodes_of(others)
    }
}

/// The subscribers of the channels of one namespace at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// The leases that were known then.
    pub leases: Arc<Leases>,
    /// Connections that subscribe all channels of a member.
    pub subscribers: usize,
    /// Subscribers of the response channel of each node of [`Leases::nodes`], in that order.
    pub own: Vec<usize>,
    /// Subscribers of the channel that each of them has regardless of its namespaces.
    pub anywhere: Vec<usize>,
}

impl Counted {
    /// The members of the namespace.
    pub fn roster(&self) -> Roster {
        let mut roster = Roster {
            deaf: self.deaf().cloned().collect(),
            ..Roster::default()
        };
        let mut present = 0;
        for ((node, is_alive), &subscribed) in self.leases.nodes.iter().zip(&self.own) {
            // The node does not have the namespace, or is deaf.
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

    /// Nodes with a valid lease that are subscribed to nothing: their connection was cut,
    /// or they died within the duration of a lease. A node that leaves gives up its lease
    /// first.
    fn deaf(&self) -> impl Iterator<Item = &NodeId> {
        let subscribed = self.own.iter().zip(&self.anywhere);
        let nodes = self.leases.nodes.iter().zip(subscribed);
        let deaf = nodes.filter_map(|((node, is_alive), counts)| {
            (*is_alive && counts == (&0, &0)).then_some(node)
        });
        deaf.filter(|node| !node.as_str().starts_with(TRACE))
    }

    /// The members at this count, with the leases as they were read some time later.
    pub fn attendance(&self, after: &Leases) -> Attendance {
        let present = |subscribed: &usize| *subscribed > 0;
        let counted = self.own.iter().map(present);
        let nodes: HashMap<NodeId, bool> = self.leases.nodes().cloned().zip(counted).collect();
        // A node that leaves gives up its lease, then the channels by which all are
        // counted, and its own a while later: without a lease it may stand in one number
        // and not in the other.
        let is_counted = |node: &&NodeId| nodes.get(*node) == Some(&true);
        let named = after.nodes().filter(is_counted).count();
        let holds = |node: &&NodeId| {
            after
                .nodes
                .iter()
                .any(|(held, alive)| *alive && held == *node)
        };
        Attendance {
            deaf: self.deaf().filter(holds).cloned().collect(),
            nodes,
            unnamed: self.subscribers.saturating_sub(named),
        }
    }
}

/// The members of a namespace just before a question was published. No others received it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attendance {
    /// The nodes with leases, and whether they were subscribed.
    nodes: HashMap<NodeId, bool>,
    /// Nodes with a lease that could not receive it.
    deaf: Vec<NodeId>,
    /// The maximum number of other members.
    unnamed: usize,
}

/// The members of a namespace at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roster {
    /// Nodes with a valid lease that are subscribed.
    pub alive: Vec<NodeId>,
    /// Nodes that are subscribed but do not renew their lease: they hang or were stopped.
    pub stalled: Vec<NodeId>,
    /// Nodes with a valid lease that are subscribed to nothing. Questions do not wait for them, but
    /// a message does not reach their sockets.
    pub deaf: Vec<NodeId>,
    /// The number of servers of other make.
    pub foreign: usize,
}

impl Roster {
    /// Removes the node that asks.
    pub fn without(mut self, asker: &NodeId) -> Self {
        self.alive.retain(|node| node != asker);
        self.stalled.retain(|node| node != asker);
        self.deaf.retain(|node| node != asker);
        self
    }

    /// Removes members that came later: they did not receive the question.
    pub fn of(mut self, before: &Attendance) -> Self {
        let was_away = |node: &NodeId| before.nodes.get(node) == Some(&false);
        // Only the number of members without a lease is known, together with servers of other make.
        let have_new_come = self.foreign >= before.unnamed;
        let has_come =
            |node: &NodeId| was_away(node) || have_new_come && !before.nodes.contains_key(node);
        self.alive.retain(|node| !has_come(node));
        self.stalled.retain(|node| !has_come(node));
        self.deaf.retain(|node| before.nodes.contains_key(node));
        // A node that could not receive the message may be back by now.
        let missed = before.deaf.iter().filter(|node| !self.deaf.contains(node));
        let missed: Vec<_> = missed.cloned().collect();
        self.deaf.extend(missed);
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
    fn a_node_with_a_lease_that_is_subscribed_to_nothing_is_deaf() {
        let of = |held: &[(&str, u64)]| {
            Leases::new(held.iter().map(|(name, end)| (id(name), *end)), 1000)
        };
        let leases = of(&[
            ("a", 2000),
            ("cut", 2000),
            ("elsewhere", 2000),
            ("over", 900),
            ("left:b", 1001),
        ]);
        let alive: Vec<_> = leases.alive_nodes().cloned().collect();
        assert_eq!(alive, [id("a"), id("cut"), id("elsewhere")]);
        let mut counted = leases.counted(1, &[1, 0, 0, 0, 0]);
        // It does not have this namespace.
        counted.anywhere[2] = 1;
        assert_eq!(counted.roster().deaf, [id("cut")]);
        // It was deaf when the message was published, and is back.
        let mut back = leases.counted(2, &[1, 1, 0, 0, 0]);
        back.anywhere[2] = 1;
        let back = back.roster().of(&counted.attendance(&leases));
        assert_eq!(
            (&back.deaf[..], back.alive),
            (&[id("cut")][..], vec![id("a")])
        );
        // It had left: its lease has expired.
        let left = of(&[("a", 2000)]);
        let after = left
            .counted(1, &[1])
            .roster()
            .of(&counted.attendance(&left));
        assert!(after.deaf.is_empty(), "{after:?}");
        assert!(counted.roster().without(&id("cut")).deaf.is_empty());
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
    fn a_member_that_came_since_is_not_waited_for() {
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
    fn a_member_without_a_lease_is_waited_for_once_its_lease_is_seen() {
        let of = |names: &[&str]| Leases::new(names.iter().map(|name| (id(name), 2000)), 1000);
        let before = of(&["a"]).counted(2, &[1]).attendance(&of(&["a"]));
        let unseen = of(&["a"]).counted(2, &[1]).roster().of(&before);
        assert_eq!((unseen.alive.len(), unseen.foreign), (1, 1));
        let seen = of(&["a", "young"]).counted(2, &[1, 1]).roster().of(&before);
        assert_eq!((seen.alive.len(), seen.foreign), (2, 0));
    }

    #[test]
    fn a_member_that_left_is_not_waited_for() {
        let leases = Leases::new([(id("a"), 2000)], 1000);
        let before = leases.counted(3, &[1]).attendance(&leases);
        let after = leases.counted(1, &[0]).roster().of(&before);
        assert_eq!((after.alive.len(), after.foreign), (0, 1));
    }

    #[test]
    fn a_member_that_gave_up_its_lease_hides_no_other() {
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
                anywhere: own.into(),
            }
        }
    }
}
