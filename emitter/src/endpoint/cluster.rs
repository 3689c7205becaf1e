//! The nodes of a cluster and the slots that each serves.

use super::{
    Connection, Endpoint, Mode, Purpose,
    error::ConnectError,
    url::{Address, Place},
    within_timeout,
};
use crate::value::Value;
use roomcast_protocol::channel::SLOTS;

/// The most nodes that are remembered beside those of the setting, and asked if those are gone.
const MAX_KNOWN: usize = 64;

/// Which primary serves which slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterMap {
    /// Sorted, without overlaps.
    ranges: Vec<SlotRange>,
}

/// Slots that one primary serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRange {
    /// The first slot.
    pub first: u16,
    /// The last slot.
    pub last: u16,
    /// Who serves them.
    pub primary: Address,
}

impl ClusterMap {
    /// Takes over ranges; what does not fit before the next one is cut off.
    pub fn new(mut ranges: Vec<SlotRange>) -> Self {
        ranges.retain(|range| range.first <= range.last && range.last < SLOTS);
        ranges.sort_by_key(|range| range.first);
        // Of ranges that begin together, the last one holds.
        ranges.reverse();
        ranges.dedup_by_key(|range| range.first);
        ranges.reverse();
        for i in 1..ranges.len() {
            let next = ranges[i].first;
            let before = &mut ranges[i - 1];
            before.last = before.last.min(next - 1);
        }
        Self { ranges }
    }

    /// The same, but for one slot that has moved.
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
        Self::new(ranges)
    }

    /// Who serves the slot; nobody if a part of the cluster is lost.
    pub fn owner(&self, slot: u16) -> Option<&Address> {
        let after = self.ranges.partition_point(|range| range.first <= slot);
        let range = &self.ranges[after.checked_sub(1)?];
        (slot <= range.last).then_some(&range.primary)
    }

    /// The first slot that nobody serves.
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

    /// All primaries that serve slots, each once, in order.
    pub fn primaries(&self) -> Vec<&Address> {
        let mut primaries: Vec<_> = self.ranges.iter().map(|range| &range.primary).collect();
        primaries.sort();
        primaries.dedup();
        primaries
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[SlotRange] {
        &self.ranges
    }

    /// Reads the answer to `CLUSTER SLOTS`. Where a host is missing, that of the server that was
    /// asked is meant.
    fn from_slots(answer: &Value, asked: &Address) -> Option<Self> {
        let mut ranges = Vec::new();
        for range in answer.list()? {
            let [first, last, primary, ..] = range.list()? else {
                return None;
            };
            let [host, port, ..] = primary.list()? else {
                return None;
            };
            let host = match host.text() {
                None | Some("" | "?") => &*asked.host,
                Some(host) => host,
            };
            ranges.push(SlotRange {
                first: u16::try_from(first.integer()?).ok()?,
                last: u16::try_from(last.integer()?).ok()?,
                primary: Address::new(host, u16::try_from(port.integer()?).ok()?),
            });
        }
        Some(Self::new(ranges))
    }
}

impl Endpoint {
    /// Asks the nodes of the cluster, one after the other, who serves which slots: first `hint`,
    /// then those that were seen last, then those of the setting. Nothing without a cluster.
    pub async fn cluster_map(
        &self,
        hint: Option<&Address>,
    ) -> Result<Option<ClusterMap>, ConnectError> {
        if !matches!(self.url.place, Place::Cluster(_)) {
            return Ok(None);
        }
        let (_, map) = self.first_serving(hint, Purpose::Lookup).await?;
        Ok(Some(map))
    }

    pub(super) async fn connect_to_any(
        &self,
        purpose: Purpose,
    ) -> Result<Connection, ConnectError> {
        let (connection, _) = self.first_serving(None, purpose).await?;
        Ok(connection)
    }

    async fn first_serving(
        &self,
        hint: Option<&Address>,
        purpose: Purpose,
    ) -> Result<(Connection, ClusterMap), ConnectError> {
        let mut failure = None;
        for address in self.nodes(hint) {
            match self.connect_to_member(&address, purpose).await {
                Ok((connection, map)) => {
                    let primaries = map.primaries().into_iter().take(MAX_KNOWN);
                    *self.known.lock() = primaries.cloned().collect();
                    return Ok((connection, map));
                }
                // What somebody has to change says more than that one of many is down.
                Err(error) => {
                    if failure.is_none() || error.is_permanent() {
                        failure = Some(error);
                    }
                }
            }
        }
        Err(failure.expect("the setting names at least one node"))
    }

    async fn connect_to_member(
        &self,
        address: &Address,
        purpose: Purpose,
    ) -> Result<(Connection, ClusterMap), ConnectError> {
        let mut connection = self.connect_to(address, purpose).await?;
        let server = address.to_string();
        if matches!(connection.info().mode, Some(Mode::Standalone)) {
            return Err(ConnectError::ClusterDisabled { server });
        }
        let asking = async {
            let slots = connection.command(&["CLUSTER", "SLOTS"]).await?;
            let nodes = connection.command(&["CLUSTER", "NODES"]).await?;
            Ok((slots, nodes))
        };
        let (slots, nodes) = within_timeout(&server, asking).await.map_err(|error| {
            let is_disabled = error.to_string().contains("cluster support disabled");
            if is_disabled {
                ConnectError::ClusterDisabled {
                    server: server.clone(),
                }
            } else {
                error
            }
        })?;
        // A node that has lost the others takes messages and reaches only its own part.
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
        if let Place::Cluster(seeds) = &self.url.place {
            nodes.extend(seeds.iter().cloned());
        }
        let mut seen = std::collections::HashSet::new();
        nodes.retain(|node| seen.insert(node.clone()));
        nodes
    }
}

/// Whether more than half of the primaries that serve slots are well, by the answer to
/// `CLUSTER NODES`: a line per node, its flags in the third column, its slots from the ninth on.
fn sees_majority(nodes: &str) -> bool {
    let (mut primaries, mut well) = (0, 0);
    for node in nodes.lines() {
        let mut columns = node.split(' ');
        let flags = columns.nth(2).unwrap_or_default();
        if flags.contains("master") && columns.nth(5).is_some() {
            primaries += 1;
            well += usize::from(!flags.contains("fail"));
        }
    }
    well > primaries / 2
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
            Value::List(vec![
                host,
                Value::Integer(port),
                Value::Bytes((*b"id").into()),
            ])
        };
        let slots = |first, last, node| {
            Value::List(vec![Value::Integer(first), Value::Integer(last), node])
        };
        let answer = Value::List(vec![
            slots(0, 9, node(Value::Nil, 1)),
            slots(10, 19, node(Value::Bytes((*b"").into()), 2)),
            slots(20, 29, node(Value::Bytes((*b"?").into()), 3)),
            slots(30, 39, node(Value::Bytes((*b"other").into()), 4)),
        ]);
        let map = ClusterMap::from_slots(&answer, &Address::new("asked", 7)).unwrap();
        let owners: Vec<_> = map
            .ranges()
            .iter()
            .map(|range| range.primary.to_string())
            .collect();
        assert_eq!(owners, ["asked:1", "asked:2", "asked:3", "other:4"]);
        for wrong in [
            Value::Nil,
            Value::List(vec![Value::Nil]),
            Value::List(vec![slots(0, 9, Value::Nil)]),
            Value::List(vec![slots(0, 99_999, node(Value::Nil, 1))]),
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
