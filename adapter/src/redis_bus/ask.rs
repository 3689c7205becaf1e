//! Asking the other nodes, and finding out who has to answer.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use roomcast_emitter::{
    members::Roster,
    publisher::{PublishError, Route},
    question::{Answer, Answered, Question},
    roll_call,
};

use super::{Shared, bus_error, metrics::Outcome, namespaces::Attached};
use crate::bus::{BusError, BusFuture};

/// The answers to a question, and whether all have come.
type Gathered = (Answered, bool);

impl Shared {
    /// Asks all other nodes. The question is on its way when this returns, so that it keeps its
    /// place among the node's messages.
    pub(super) fn ask(
        self: &Arc<Self>,
        attached: Arc<Attached>,
        question: Question,
        timeout: Duration,
    ) -> BusFuture<Result<Answered, BusError>> {
        let number = self.questions.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}.{number:x}", attached.uid);
        let publication = self.wire.question(
            &attached.namespace,
            attached.uid.as_str(),
            &self.node,
            &id,
            &question,
        );
        // Answers may come before the publish is known to have succeeded.
        let waiting = self.asking.open(&id);
        let sent = publication.map(|publication| self.send(publication));
        let shared = Arc::clone(self);
        Box::pin(async move {
            let asked = async {
                let waiting =
                    waiting.map_err(|error| BusError::Invalid(error.to_string().into()))?;
                sent.map_err(|error| BusError::Invalid(error.to_string().into()))?
                    .await?;
                let mut is_first = true;
                let look = || {
                    let is_first = std::mem::take(&mut is_first);
                    shared.roster_of_others(&attached.namespace, is_first)
                };
                let outcome = waiting.gather(timeout, look).await.map_err(bus_error)?;
                Ok::<Gathered, BusError>((outcome.answered, outcome.is_complete))
            };
            let gathered = asked.await;
            shared.count(&question, &gathered);
            let (answered, _) = gathered?;
            Ok(match question {
                Question::Rooms => rooms_of_sockets(answered),
                _ => answered,
            })
        })
    }

    fn count(&self, question: &Question, gathered: &Result<Gathered, BusError>) {
        let outcome = match gathered {
            Ok((_, true)) => Outcome::Complete,
            Ok((_, false)) => Outcome::Partial,
            Err(_) => Outcome::Failed,
        };
        self.metrics.asked(question, outcome);
        if let Ok((answered, _)) = gathered {
            self.metrics
                .silent_nodes
                .inc_by(answered.silent.len() as u64);
        }
    }

    /// A node that came a moment ago is not known yet, and counts as foreign until somebody is
    /// missing and the leases are read again.
    async fn roster_of_others(
        &self,
        namespace: &str,
        is_first_look: bool,
    ) -> Result<Roster, PublishError> {
        if !is_first_look {
            self.look_at_leases().await?;
        }
        let roster = self.roster(namespace).await?;
        Ok(roster.without(&self.node))
    }

    /// Who is a member of a namespace at this moment.
    pub(super) async fn roster(&self, namespace: &str) -> Result<Roster, PublishError> {
        let leases = self.leases.lock().clone();
        let channels = self.wire.channels();
        let command = roll_call::subscribers(channels, namespace, &leases);
        let replies = self
            .publisher
            .command(&command, Route::AllPrimaries)
            .await?;
        // What cannot be read counts nobody: then the answers that come are the result.
        Ok(roll_call::roster(channels, &leases, &replies).unwrap_or_default())
    }
}

/// The sharded dialect has no question about rooms: sockets are asked for, and tell theirs.
fn rooms_of_sockets(mut answered: Answered) -> Answered {
    for answer in &mut answered.answers {
        if let Answer::Sockets(sockets) = answer {
            let mut rooms: Vec<Box<str>> = sockets
                .iter()
                .flat_map(|socket| socket.rooms.iter().map(|room| room.as_str().into()))
                .collect();
            rooms.sort_unstable();
            rooms.dedup();
            *answer = Answer::Rooms(rooms);
        }
    }
    answered
}
