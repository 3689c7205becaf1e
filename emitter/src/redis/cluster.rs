//! The nodes of a cluster and the slots that each serves.
//!
//! The crate's own cluster client is not used: it retries a command whose reply it lost,
//! so a message can be published twice, and it subscribes all channels again in one
//! command. Little remains to do here. One task per endpoint, the keeper, reads the
//! map:
//!
//! ```text
//!             every 30 s, or after `moved`/`outdated` (at most every 250 ms)
//!   waiting ────────────────────────────────────────────────▶ reading
//!      ▲                                                        │ map, or why there is none
//!      └────────────────────── watch::Sender ◀──────────────────┘ (then again after 1 s)
//! ```

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time,
};

use super::{
    connect::{Connection, Endpoint, Mode, Purpose, Push, within_timeout},
    error::ConnectError,
    reply::Reply,
    slots::{ClusterMap, Kept, sees_majority},
    url::{Address, Location},
};
use crate::vital::vital;

/// Shortest time between two readings of the map.
const READ_INTERVAL: Duration = Duration::from_millis(250);

/// Time until the next reading after a failed one.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Time until the next reading when nothing happens.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// Maximum number of nodes that are remembered in addition to those of the URL.
const MAX_KNOWN: usize = 64;

impl Endpoint {
    /// Asks the nodes of the cluster for the map: first `hint`, then those that were seen
    /// last, then those of the URL. `None` without a cluster.
    pub async fn cluster_map(
        &self,
        hint: Option<&Address>,
    ) -> Result<Option<ClusterMap>, ConnectError> {
        if !matches!(self.url().location, Location::Cluster(_)) {
            return Ok(None);
        }
        let (_, map) = self.first_working(hint, Purpose::Lookup, None).await?;
        Ok(Some(map))
    }

    /// The keeper of the map, which clones of this endpoint share. It is started on the current
    /// runtime, and ends with its last handle. `None` without a cluster.
    pub fn cluster(&self) -> Option<Cluster> {
        if !matches!(self.url().location, Location::Cluster(_)) {
            return None;
        }
        let mut slot = self.keeper.0.lock();
        let kept = slot.upgrade().unwrap_or_else(|| {
            let kept = Kept::start(self.clone());
            *slot = Arc::downgrade(&kept);
            kept
        });
        Some(Cluster { kept })
    }

    pub(super) async fn connect_to_any(
        &self,
        purpose: Purpose,
        push: Option<Push>,
    ) -> Result<Connection, ConnectError> {
        let (connection, _) = self.first_working(None, purpose, push).await?;
        Ok(connection)
    }

    async fn first_working(
        &self,
        hint: Option<&Address>,
        purpose: Purpose,
        push: Option<Push>,
    ) -> Result<(Connection, ClusterMap), ConnectError> {
        let mut failure = None;
        for address in self.nodes(hint) {
            match self
                .connect_to_member(&address, purpose, push.clone())
                .await
            {
                Ok((connection, map)) => {
                    let primaries = map.primaries().into_iter().take(MAX_KNOWN);
                    *self.known.lock() = primaries.cloned().collect();
                    return Ok((connection, map));
                }
                // An error that an operator has to fix matters more than one node that is down.
                Err(error) => {
                    if failure.is_none() || error.is_permanent() {
                        failure = Some(error);
                    }
                }
            }
        }
        Err(failure.expect("the URL names at least one node"))
    }

    async fn connect_to_member(
        &self,
        address: &Address,
        purpose: Purpose,
        push: Option<Push>,
    ) -> Result<(Connection, ClusterMap), ConnectError> {
        let mut connection = self.connect_to(address, purpose, push).await?;
        let server = address.to_string();
        if connection.info().mode == Some(Mode::Standalone) {
            return Err(ConnectError::ClusterDisabled { server });
        }
        let asking = async {
            let slots = connection.command(&["CLUSTER", "SLOTS"]).await?;
            let nodes = connection.command(&["CLUSTER", "NODES"]).await?;
            Ok((slots, nodes))
        };
        let (slots, nodes) = within_timeout(&server, asking).await?;
        // A node that lost the others takes messages and reaches only its own part.
        let nodes = nodes.text().unwrap_or_default();
        if !sees_majority(nodes) {
            return Err(ConnectError::ClusterDown {
                server,
                reason: "it does not see the majority of the primaries".to_owned(),
            });
        }
        let map = ClusterMap::read(&slots, nodes, address);
        let map = map.ok_or_else(|| ConnectError::unexpected(&server))?;
        Ok((connection, map))
    }

    fn nodes(&self, hint: Option<&Address>) -> Vec<Address> {
        let mut nodes: Vec<_> = hint.cloned().into_iter().collect();
        nodes.extend(self.known.lock().iter().cloned());
        if let Location::Cluster(seeds) = &self.url().location {
            nodes.extend(seeds.iter().cloned());
        }
        let mut seen = HashSet::new();
        nodes.retain(|node| seen.insert(node.clone()));
        nodes
    }
}

/// A handle of the task that keeps the map of a cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    kept: Arc<Kept>,
}

impl Cluster {
    /// The latest map.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.kept.map.borrow().clone()
    }

    /// Watches the map. Also changes when a reading failed.
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.kept.map.subscribe()
    }

    /// A node redirected a command: the new owner counts at once, and the map is read again.
    pub fn moved(&self, slot: u16, to: Address) {
        self.kept.map.send_if_modified(|map| {
            let is_new = map.owner(slot) != Some(&to);
            if is_new {
                *map = Arc::new(map.with_moved(slot, to.clone()));
            }
            is_new
        });
        *self.kept.hint.lock() = Some(to);
        self.outdated();
    }

    /// Requests a new reading of the map.
    pub fn outdated(&self) {
        self.kept.outdated.notify_one();
    }

    /// Why the last reading failed; `None` if it did not.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.kept.failure.lock().clone()
    }
}

impl Kept {
    fn start(endpoint: Endpoint) -> Arc<Self> {
        let outdated = Arc::<Notify>::default();
        let kept = Arc::new(Self {
            map: watch::Sender::default(),
            failure: Mutex::default(),
            hint: Mutex::default(),
            outdated: Arc::clone(&outdated),
            task: Mutex::default(),
        });
        let task = tokio::spawn(vital(
            "slot map",
            keep(endpoint, Arc::downgrade(&kept), outdated),
        ));
        *kept.task.lock() = Some(task.abort_handle());
        kept
    }

    fn read(&self, result: Result<Option<ClusterMap>, ConnectError>) -> Duration {
        match result {
            Ok(map) => {
                *self.failure.lock() = None;
                self.map.send_replace(Arc::new(map.unwrap_or_default()));
                REFRESH_INTERVAL
            }
            Err(error) => {
                *self.failure.lock() = Some(error.to_string().into());
                // Wakes the callers that wait for a map, because there is none.
                self.map.send_modify(|_| ());
                RETRY_INTERVAL
            }
        }
    }
}

async fn keep(endpoint: Endpoint, kept: Weak<Kept>, outdated: Arc<Notify>) {
    loop {
        let Some(hint) = kept.upgrade().map(|kept| kept.hint.lock().take()) else {
            return;
        };
        let result = endpoint.cluster_map(hint.as_ref()).await;
        let Some(pause) = kept.upgrade().map(|kept| kept.read(result)) else {
            return;
        };
        time::sleep(READ_INTERVAL).await;
        // Whether it is outdated or old makes no difference.
        let _ = time::timeout(pause - READ_INTERVAL, outdated.notified()).await;
    }
}
