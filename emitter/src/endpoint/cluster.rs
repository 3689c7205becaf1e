//! The nodes of a cluster and the slots that each serves.

use super::{
    Address, ClusterMap, ConnectError, Connection, Endpoint, Mode, Place, Purpose, SlotRange,
    within_timeout,
};
use crate::value::Value;

/// The most nodes that are remembered beside those of the setting, and asked if those are gone.
const MAX_KNOWN: usize = 64;

impl Endpoint {
    /// Asks the nodes of the cluster, one after the other, who serves which slots: first `hint`,
    /// then those that were seen last, then those of the setting. Nothing without a cluster.
    pub async fn cluster_map(
        &self,
        hint: Option<&Address>,
    ) -> Result<Option<ClusterMap>, ConnectError> {
        if !matches!(self.url.location, Place::Cluster(_)) {
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
        let map = from_slots(&slots, address);
        let map = map.ok_or_else(|| ConnectError::unexpected(&server))?;
        Ok((connection, map))
    }

    fn nodes(&self, hint: Option<&Address>) -> Vec<Address> {
        let mut nodes: Vec<_> = hint.cloned().into_iter().collect();
        nodes.extend(self.known.lock().iter().cloned());
        if let Place::Cluster(seeds) = &self.url.location {
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

/// Reads the answer to `CLUSTER SLOTS`.
fn from_slots(answer: &Value, asked: &Address) -> Option<ClusterMap> {
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
    Some(ClusterMap::new(ranges))
}
