//! Who has to answer a question: those who have heard it and are still there.
//!
//! Members come and go while they are counted. Who comes after the question has not heard it and is
//! not waited for; who leaves gives up its lease first and the channels on which all are counted
//! then, and so has either heard the question or is seen to have gone.

use std::{future::Future, sync::Arc};

use tokio::try_join;

use crate::members::{Counted, Leases, Roster};

/// How often the members are counted anew if nodes leave at that moment.
const MAX_LOOKS: usize = 3;

/// Sends the commands of [`roll_call`](crate::roll_call) about one namespace.
pub trait Members: Sync {
    /// Why Redis has no answer.
    type Error: Send;

    /// Looks at the leases.
    fn leases(&self) -> impl Future<Output = Result<Arc<Leases>, Self::Error>> + Send;

    /// Counts the subscribers, of each of these nodes and of all.
    fn count(
        &self,
        leases: Arc<Leases>,
    ) -> impl Future<Output = Result<Counted, Self::Error>> + Send;
}

/// Looks at who has to answer, after the question was published. `before` is what was counted just
/// before it; without, everybody who is there has to.
pub async fn look<M: Members>(members: &M, before: Option<&Counted>) -> Result<Roster, M::Error> {
    let mut leases = members.leases().await?;
    let attendance = before.map(|before| before.attendance(&leases));
    let mut looks = 0;
    loop {
        let (counted, after) = try_join!(members.count(leases), members.leases())?;
        looks += 1;
        // Who left in between may stand in a number and not in the other.
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
