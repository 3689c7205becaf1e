//! The nodes of a cluster and the slots that each serves.
//!
//! The crate's own cluster client is not used: it retries a command whose reply it lost, so a message
//! can be published twice, and it subscribes all channels again in one command. What is left to do
//! is small. One task per endpoint, the keeper, reads the map:
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
use redis::Value;
use roomcast_protocol::channel::SLOTS;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time,
};

use super::{
    connect::{Connection, Endpoint, Mode, Purpose, Push, within_timeout},
    error::ConnectError,
    reply::Reply,
    url::{Address, Location},
};
use crate::vital::vital;

/// Shortest time between two readings of the map.
const READ_INTERVAL: Duration = Duration::from_millis(250);

/// Time until the next reading after a failed one.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Time until the next reading when nothing happens.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// Maximum number of nodes that are remembered beside those of the URL.
const MAX_KNOWN: usize = 64;

/// Which primary serves which slots. Empty before it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterMap {
    /// Sorted, without overlaps.
    ranges: Vec<SlotRange>,
    /// Sorted, each once. Subscribers can be connected to them, too.
    replicas: Vec<Address>,
}

/// Slots that one primary serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRange {
    /// The first slot.
    pub first: u16,
    /// The last slot.
    pub last: u16,
    /// The server.
    pub primary: Address,
}

impl ClusterMap {
    /// A map of these ranges. A range that overlaps the next one is cut off.
    pub fn new(mut ranges: Vec<SlotRange>) -> Self {
        ranges.retain(|range| range.first <= range.last && range.last < SLOTS);
        ranges.sort_by_key(|range| range.first);
        // Of ranges with the same start, the last one counts.
        ranges.reverse();
        ranges.dedup_by_key(|range| range.first);
        ranges.reverse();
        for i in 1..ranges.len() {
            let next = ranges[i].first;
            let before = &mut ranges[i - 1];
            before.last = before.last.min(next - 1);
        }
        Self {
            ranges,
            replicas: Vec::new(),
        }
    }

    fn with_replicas(mut self, mut replicas: Vec<Address>) -> Self {
        replicas.sort();
        replicas.dedup();
        self.replicas = replicas;
        self
    }

    /// A copy in which one slot has moved.
    #[must_use]
    pub fn with_moved(&self, slot: u16, to: Address) -> Self {
        let mut ranges = Vec::with_capacity(self.ranges.len() + 2);
        for range in &self.ranges {
            if !(range.first..=range.last).contains(&slot) {
                ranges.push(range.clone());
                continue;
            }
            if range.first < slot {
                ranges.push(SlotRange {
                    last: slot - 1,
                    ..range.clone()
                });
            }
            if slot < range.last {
                ranges.push(SlotRange {
                    first: slot + 1,
                    ..range.clone()
                });
            }
        }
        ranges.push(SlotRange {
            first: slot,
            last: slot,
            primary: to,
        });
        Self::new(ranges).with_replicas(self.replicas.clone())
    }

    /// The server of a slot; `None` if that part of the cluster is lost.
    pub fn owner(&self, slot: u16) -> Option<&Address> {
        let after = self.ranges.partition_point(|range| range.first <= slot);
        let range = &self.ranges[after.checked_sub(1)?];
        (slot <= range.last).then_some(&range.primary)
    }

    /// The first slot without a server.
    pub fn first_gap(&self) -> Option<u16> {
        let mut next = 0;
        for range in &self.ranges {
            if range.first != next {
                break;
            }
            next = range.last + 1;
        }
        (next < SLOTS).then_some(next)
    }

    /// All primaries that serve slots, each once, sorted.
    pub fn primaries(&self) -> Vec<&Address> {
        let mut primaries: Vec<_> = self.ranges.iter().map(|range| &range.primary).collect();
        primaries.sort();
        primaries.dedup();
        primaries
    }

    /// All primaries and replicas, each once.
    pub fn servers(&self) -> Vec<&Address> {
        let mut servers = self.primaries();
        servers.extend(&self.replicas);
        servers.sort();
        servers.dedup();
        servers
    }

    /// The ranges, sorted.
    pub fn ranges(&self) -> &[SlotRange] {
        &self.ranges
    }

    /// Reads the reply to `CLUSTER SLOTS`. A missing host means that of the server that was asked.
    fn from_slots(answer: &Value, asked: &Address) -> Option<Self> {
        let address = |server: &Value| {
            let [host, port, ..] = server.list()? else {
                return None;
            };
            let host = match host.text() {
                None | Some("" | "?") => &*asked.host,
                Some(host) => host,
            };
            Some(Address::new(host, u16::try_from(port.integer()?).ok()?))
        };
        let (mut ranges, mut replicas) = (Vec::new(), Vec::new());
        for range in answer.list()? {
            let [first, last, primary, others @ ..] = range.list()? else {
                return None;
            };
            ranges.push(SlotRange {
                first: u16::try_from(first.integer()?).ok()?,
                last: u16::try_from(last.integer()?).ok()?,
                primary: address(primary)?,
            });
            replicas.extend(others.iter().filter_map(address));
        }
        Some(Self::new(ranges).with_replicas(replicas))
    }
}

impl Endpoint {
    /// Asks the nodes of the cluster for the map: first `hint`, then those that were seen last, then
    /// those of the URL. `None` without a cluster.
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
        if !nodes.text().is_some_and(sees_majority) {
            return Err(ConnectError::ClusterDown {
                server,
                reason: "it does not see the majority of the primaries".to_owned(),
            });
        }
        let map = ClusterMap::from_slots(&slots, address);
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

/// Where an endpoint finds its keeper, if one runs.
#[derive(Debug, Clone, Default)]
pub(super) struct KeeperSlot(Arc<Mutex<Weak<Kept>>>);

/// A handle of the task that keeps the map of a cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    kept: Arc<Kept>,
}

/// What handles and the task share.
#[derive(Debug)]
struct Kept {
    map: watch::Sender<Arc<ClusterMap>>,
    /// Why the last reading failed.
    failure: Mutex<Option<Arc<str>>>,
    /// The node to ask next: the one that a redirection named.
    hint: Mutex<Option<Address>>,
    outdated: Arc<Notify>,
    task: Mutex<Option<AbortHandle>>,
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

    /// Has the map read again.
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
                // Tasks that wait for a map are told that there is none.
                self.map.send_modify(|_| ());
                RETRY_INTERVAL
            }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            task.abort();
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

/// Whether more than half of the primaries with slots work, from the reply to `CLUSTER NODES`: a line
/// per node, its flags in the third column, its slots from the ninth on.
fn sees_majority(nodes: &str) -> bool {
    let (mut primaries, mut working) = (0, 0);
    for node in nodes.lines() {
        let mut columns = node.split(' ');
        let flags = columns.nth(2).unwrap_or_default();
        if flags.contains("master") && columns.nth(5).is_some() {
            primaries += 1;
            working += usize::from(!flags.contains("fail"));
        }
    }
    working > primaries / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16, port: u16) -> SlotRange {
        SlotRange {
            first,
            last,
            primary: Address::new("h", port),
        }
    }

    fn ports(map: &ClusterMap, slots: &[u16]) -> Vec<u16> {
        let port = |slot: &u16| map.owner(*slot).map_or(0, |owner| owner.port);
        slots.iter().map(port).collect()
    }

    #[test]
    fn each_slot_has_the_owner_of_its_range_or_none() {
        let map = ClusterMap::new(vec![range(100, 16_383, 2), range(1, 98, 1)]);
        assert_eq!(
            ports(&map, &[0, 1, 98, 99, 100, 16_383]),
            [0, 1, 1, 0, 2, 2]
        );
        assert_eq!(ports(&ClusterMap::default(), &[0, 16_383]), [0, 0]);
        assert_eq!(map.primaries().len(), 2);
        assert_eq!(map.first_gap(), Some(0));
        assert_eq!(
            map.with_moved(0, Address::new("h", 1)).first_gap(),
            Some(99)
        );
        assert_eq!(
            ClusterMap::new(vec![range(0, SLOTS - 1, 1)]).first_gap(),
            None
        );
        assert_eq!(ClusterMap::new(vec![range(0, 5, 1)]).first_gap(), Some(6));
    }

    #[test]
    fn ranges_that_overlap_or_exceed_are_cut() {
        let map = ClusterMap::new(vec![
            range(0, 50, 1),
            range(40, 60, 2),
            range(9, 3, 3),
            range(100, 20_000, 4),
        ]);
        assert_eq!(map.ranges(), [range(0, 39, 1), range(40, 60, 2)]);
        let map = ClusterMap::new(vec![range(5, 9, 1), range(5, 9, 2)]);
        assert_eq!(map.ranges(), [range(5, 9, 2)]);
        let map = ClusterMap::new(vec![range(0, 9, 1), range(0, 9, 2)]);
        assert_eq!(map.ranges(), [range(0, 9, 2)]);
    }

    #[test]
    fn a_moved_slot_leaves_its_neighbours_where_they_are() {
        let map = ClusterMap::new(vec![range(0, 10, 1), range(11, 20, 2)]);
        let to = Address::new("h", 3);
        let moved = map.with_moved(5, to.clone());
        assert_eq!(ports(&moved, &[0, 4, 5, 6, 10, 11]), [1, 1, 3, 1, 1, 2]);
        assert_eq!(ports(&map.with_moved(0, to.clone()), &[0, 1]), [3, 1]);
        assert_eq!(ports(&map.with_moved(20, to.clone()), &[19, 20]), [2, 3]);
        assert_eq!(ports(&map.with_moved(30, to), &[20, 30]), [2, 3]);
    }

    #[test]
    fn hosts_that_are_not_announced_are_those_that_were_asked() {
        let node = |host: Value, port| {
            Value::Array(vec![
                host,
                Value::Int(port),
                Value::BulkString(b"id".to_vec()),
            ])
        };
        let slots =
            |first, last, node| Value::Array(vec![Value::Int(first), Value::Int(last), node]);
        let answer = Value::Array(vec![
            slots(0, 9, node(Value::Nil, 1)),
            slots(10, 19, node(Value::BulkString(b"".to_vec()), 2)),
            slots(20, 29, node(Value::BulkString(b"?".to_vec()), 3)),
            slots(30, 39, node(Value::BulkString(b"other".to_vec()), 4)),
            Value::Array(vec![
                Value::Int(40),
                Value::Int(49),
                node(Value::BulkString(b"other".to_vec()), 5),
                node(Value::BulkString(b"replica".to_vec()), 6),
            ]),
        ]);
        let map = ClusterMap::from_slots(&answer, &Address::new("asked", 7)).unwrap();
        let owners: Vec<_> = map
            .ranges()
            .iter()
            .map(|range| range.primary.to_string())
            .collect();
        assert_eq!(
            owners,
            ["asked:1", "asked:2", "asked:3", "other:4", "other:5"]
        );
        let replica = Address::new("replica", 6);
        assert!(map.servers().contains(&&replica));
        assert!(!map.primaries().contains(&&replica));
        let moved = map.with_moved(0, Address::new("other", 4));
        assert!(moved.servers().contains(&&replica));
        for wrong in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![slots(0, 9, Value::Nil)]),
            Value::Array(vec![slots(0, 99_999, node(Value::Nil, 1))]),
        ] {
            assert_eq!(ClusterMap::from_slots(&wrong, &Address::new("a", 7)), None);
        }
    }

    #[test]
    fn the_majority_is_of_primaries_with_slots() {
        let node = |flags: &str, slots: &str| {
            format!("id 127.0.0.1:1@2 {flags} - 0 0 1 connected{slots}\n")
        };
        let three = |second: &str, third: &str| {
            node("myself,master", " 0-5") + &node(second, " 6-9") + &node(third, " 10 12-99")
        };
        assert!(sees_majority(&three("master", "master")));
        assert!(sees_majority(&three("master", "master,fail")));
        assert!(!sees_majority(&three("master,fail?", "master,fail")));
        let without_votes = node("slave", "") + &node("master,fail", "");
        assert!(sees_majority(
            &(three("master", "master,fail?") + &without_votes)
        ));
        assert!(!sees_majority(&three("master,fail", "slave")));
        assert!(!sees_majority(""));
    }
}
