//! The demos of a cluster, so that the page of one can link to the others.
//!
//! Each announces itself by a server-side event. One that is silent for [`MAX_SILENCE`]
//! announcements has ended.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use roomcast::Server;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::Demo;

/// Time between two announcements.
const INTERVAL: Duration = Duration::from_secs(1);

/// The number of missing announcements after which a node is removed.
const MAX_SILENCE: u8 = 5;

/// Maximum number of nodes that the page shows. Anybody in the cluster may announce any number.
const MAX_NODES: usize = 32;

/// A node and where it listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Node {
    name: String,
    /// `None` if it listens on all addresses, because it does not know which of them
    /// browsers can reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Nodes {
    own: OnceLock<Node>,
    /// Other nodes by name, and how many announcements they have missed.
    others: Mutex<BTreeMap<String, (Node, u8)>>,
}

impl Nodes {
    pub(super) fn started(&self, server: &Server, address: SocketAddr) {
        let is_one = !address.ip().is_unspecified();
        let node = Node {
            name: server.node().to_string(),
            address: is_one.then(|| address.to_string()),
        };
        let is_first = self.own.set(node).is_ok();
        debug_assert!(is_first, "a demo starts once");
    }

    /// This node. Clients that connect before it knows its address see none.
    pub(super) fn own(&self) -> Node {
        self.own.get().cloned().unwrap_or_default()
    }

    pub(super) fn others(&self) -> Vec<Node> {
        let others = self.others.lock();
        others.values().map(|(node, _)| node.clone()).collect()
    }

    /// Another node has announced itself.
    pub(super) fn hear(&self, node: Node) {
        let mut others = self.others.lock();
        if others.len() < MAX_NODES || others.contains_key(&node.name) {
            others.insert(node.name.clone(), (node, 0));
        }
    }

    /// Removes nodes that were silent for too long. Called at each announcement.
    fn forget_silent(&self) {
        self.others.lock().retain(|_, (_, missed)| {
            *missed += 1;
            *missed <= MAX_SILENCE
        });
    }
}

/// Announces this node for as long as the process runs, and tells its clients when the
/// others change.
pub(super) async fn announce(demo: Arc<Demo>, server: Server) {
    let mut known = demo.nodes.others();
    loop {
        // Without Redis there is nobody to tell, and the next attempt follows soon.
        let _ = server.server_side_emit("demo:node", demo.nodes.own()).await;
        demo.nodes.forget_silent();
        let others = demo.nodes.others();
        if others != known {
            let _ = server.local().emit("demo:nodes", (others.clone(),)).await;
            known = others;
        }
        sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Node {
        Node {
            name: name.to_owned(),
            address: None,
        }
    }

    #[test]
    fn a_node_is_forgotten_when_it_is_silent() {
        let nodes = Nodes::default();
        nodes.hear(node("a"));
        nodes.hear(node("b"));
        for _ in 0..MAX_SILENCE {
            nodes.forget_silent();
        }
        nodes.hear(node("b"));
        assert_eq!(nodes.others(), [node("a"), node("b")]);
        nodes.forget_silent();
        assert_eq!(nodes.others(), [node("b")]);
    }

    #[test]
    fn the_number_of_nodes_is_bounded() {
        let nodes = Nodes::default();
        for number in 0..100 {
            nodes.hear(node(&number.to_string()));
        }
        assert_eq!(nodes.others().len(), MAX_NODES);
    }
}
