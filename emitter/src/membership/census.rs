//! Counting the members that have to answer: those that received the question and are still there.
//!
//! Members come and go while they are counted. One that joins after the question did not receive
//! it, so the question does not wait for it. One that leaves gives up its lease first, then the
//! channels by which all are counted; so it either received the question or is seen to have left.

use std::{future::Future, sync::Arc};

use roomcast_protocol::id::NodeId;
use tokio::try_join;

use super::roster::{Counted, Leases, Roster};

/// Maximum number of counts if nodes keep leaving.
const MAX_LOOKS: usize = 3;

/// Sends the commands of this module about one namespace.
pub trait Members: Sync {
    /// Why Redis did not reply.
    type Error: Send;

    /// Reads the leases.
    fn leases(&self) -> impl Future<Output = Result<Arc<Leases>, Self::Error>> + Send;

    /// Counts the subscribers: those of each of these nodes, and all.
    fn count(
        &self,
        leases: Arc<Leases>,
    ) -> impl Future<Output = Result<Counted, Self::Error>> + Send;
}

/// Returns the members that have to answer, after the question was published. `before` is the count
/// from just before it; without it, every present member has to. `others` are nodes that may be
/// present without a lease.
pub async fn look<M: Members>(
    members: &M,
    before: Option<&Counted>,
    others: &[NodeId],
) -> Result<Roster, M::Error> {
    let mut leases = leases_with(members, others).await?;
    let attendance = before.map(|before| before.attendance(&leases));
    let mut looks = 0;
    loop {
        let (counted, after) = try_join!(members.count(leases), leases_with(members, others))?;
        looks += 1;
        // A node that left in between may stand in one number and not in the other.
        if looks == MAX_LOOKS || after.has_all_nodes_of(&counted.leases) {
            let roster = counted.roster();
            return Ok(match &attendance {
                Some(attendance) => roster.of(attendance),
                None => roster,
            });
        }
        leases = after;
    }
}

async fn leases_with<M: Members>(members: &M, others: &[NodeId]) -> Result<Arc<Leases>, M::Error> {
    let leases = members.leases().await?;
    Ok(if others.is_empty() {
        leases
    } else {
        Arc::new(leases.with(others))
    })
}
