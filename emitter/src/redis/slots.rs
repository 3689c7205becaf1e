//! The slots of a cluster, and the place where their map is kept.

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use redis::Value;
use roomcast_protocol::channel::SLOTS;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

use super::{reply::Reply, url::Address};

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

    /// Reads the reply to `CLUSTER SLOTS`. A missing host means that of the server that
    /// was asked. It leaves out replicas that have received nothing of their primary's
    /// data yet, although they deliver messages. These are taken from `nodes`, the reply
    /// to `CLUSTER NODES`.
    pub(super) fn read(slots: &Value, nodes: &str, asked: &Address) -> Option<Self> {
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
        let (mut ranges, mut replicas, mut ids) = (Vec::new(), Vec::new(), HashSet::new());
        for range in slots.list()? {
            let [first, last, primary, others @ ..] = range.list()? else {
                return None;
            };
            ranges.push(SlotRange {
                first: u16::try_from(first.integer()?).ok()?,
                last: u16::try_from(last.integer()?).ok()?,
                primary: address(primary)?,
            });
            replicas.extend(others.iter().filter_map(address));
            let known = others
                .iter()
                .filter_map(|server| server.list()?.get(2)?.text());
            ids.extend(known);
        }
        let unlisted = nodes.lines().filter_map(replica);
        // A replica may have another name here, so only its id identifies it.
        let unlisted = unlisted.filter(|(id, ..)| !ids.contains(id));
        replicas.extend(unlisted.map(|(_, host, port)| {
            let host = if host.is_empty() { &*asked.host } else { host };
            Address::new(host, port)
        }));
        Some(Self::new(ranges).with_replicas(replicas))
    }
}

/// Returns id, host and port of a replica that works, from its line of the reply to
/// `CLUSTER NODES`: `id host:port@bus-port,name flags …`.
fn replica(line: &str) -> Option<(&str, &str, u16)> {
    const UNUSABLE: [&str; 3] = ["fail", "handshake", "noaddr"];
    let mut columns = line.split(' ');
    let (id, address, flags) = (columns.next()?, columns.next()?, columns.next()?);
    let has = |flag: &str| flags.split(',').any(|one| one == flag);
    if !has("slave") || UNUSABLE.into_iter().any(has) {
        return None;
    }
    let (address, _) = address.split_once('@')?;
    let (host, port) = address.rsplit_once(':')?;
    Some((id, host, port.parse().ok()?))
}

/// Whether more than half of the primaries with slots work, from the reply to `CLUSTER
/// NODES`: a line per node, its flags in the third column, its slots from the ninth on.
pub(super) fn sees_majority(nodes: &str) -> bool {
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

/// Where an endpoint finds its keeper, if one runs.
#[derive(Debug, Clone, Default)]
pub(super) struct KeeperSlot(pub(super) Arc<Mutex<Weak<Kept>>>);

/// The state that handles and the task share.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) map: watch::Sender<Arc<ClusterMap>>,
    /// Why the last reading failed.
    pub(super) failure: Mutex<Option<Arc<str>>>,
    /// The node to ask next: the one that a redirection named.
    pub(super) hint: Mutex<Option<Address>>,
    pub(super) outdated: Arc<Notify>,
    pub(super) task: Mutex<Option<AbortHandle>>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            task.abort();
        }
    }
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
        let map = ClusterMap::read(&answer, "", &Address::new("asked", 7)).unwrap();
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
            assert_eq!(ClusterMap::read(&wrong, "", &Address::new("a", 7)), None);
        }
    }

    #[test]
    fn replicas_that_are_not_listed_with_the_slots_are_found_among_the_nodes() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let server = |host, port, id| Value::Array(vec![text(host), Value::Int(port), text(id)]);
        let range = vec![
            Value::Int(0),
            Value::Int(16_383),
            server("h", 1, "primary"),
            server("listed", 2, "listed"),
        ];
        let slots = Value::Array(vec![Value::Array(range)]);
        let nodes = "primary 10.0.0.1:1@11 myself,master - 0 0 1 connected 0-16383\n\
                     listed 10.0.0.2:2@12,listed slave primary 0 0 1 connected\n\
                     new 10.0.0.3:3@13 slave primary 0 0 1 connected\n\
                     six ::1:4@14 slave,fail? primary 0 0 1 connected\n\
                     unknown :5@15 slave primary 0 0 1 connected\n\
                     lost 10.0.0.6:6@16 slave,fail primary 0 0 1 disconnected\n\
                     gone :0@0 slave,noaddr primary 0 0 1 disconnected\n\
                     odd\n";
        let map = ClusterMap::read(&slots, nodes, &Address::new("asked", 7)).unwrap();
        let servers = [
            Address::new("10.0.0.3", 3),
            Address::new("::1", 4),
            Address::new("asked", 5),
            Address::new("h", 1),
            Address::new("listed", 2),
        ];
        assert_eq!(map.servers(), servers.iter().collect::<Vec<_>>());
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
