//! Asking the other nodes, and finding out who has to answer.

use std::{
    future::{Future, ready},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use roomcast_emitter::{
    asking::Waiting,
    attendance::{self, Members},
    members::{Counted, Leases},
    publisher::{PublishError, Route},
    roll_call,
};
use roomcast_protocol::question::{Answer, Answered, Question};
use tokio::time::{self, Instant};

use super::{
    Shared,
    metrics::{self, Outcome},
    namespaces::Attached,
    publish::{Sending, bus_error},
};
use crate::bus::{BusError, BusFuture};

/// As long as nobody waits; keeps the reckoning with times within bounds.
const MAX_TIMEOUT: Duration = Duration::from_secs(86_400);

impl Shared {
    /// Asks all other nodes. The question is on its way when this returns, so that it keeps its
    /// place among the node's messages.
    pub(super) fn ask(
        self: &Arc<Self>,
        attached: Arc<Attached>,
        question: Question,
        timeout: Duration,
    ) -> BusFuture<Result<Answered, BusError>> {
        let tally = Tally {
            shared: Arc::clone(self),
            kind: metrics::type_of(&question),
            outcome: Outcome::Failed,
        };
        let deadline = Instant::now() + timeout.min(MAX_TIMEOUT);
        // Counted on the same link just before: who comes later has not heard the question.
        let counting = self.count(&attached.namespace, self.recent_leases());
        // Answers may come before the publish is known to have succeeded.
        let (waiting, sent) = match self.say(&attached, &question) {
            Ok(asked) => asked,
            Err(error) => return Box::pin(ready(Err(error))),
        };
        Box::pin(async move {
            let shared = &tally.shared;
            let sent = time::timeout_at(deadline, sent).await;
            sent.map_err(|_| BusError::Unconfirmed("Redis has not answered in time".into()))??;
            let before = time::timeout_at(deadline, counting).await;
            let before = before.ok().and_then(Result::ok);
            let members = MembersOf {
                shared,
                namespace: &attached.namespace,
            };
            let look = async || {
                let roster = attendance::look(&members, before.as_ref()).await?;
                Ok(roster.without(&shared.node))
            };
            let rest = deadline.saturating_duration_since(Instant::now());
            let outcome = waiting.gather(rest, look).await.map_err(bus_error)?;
            let answered = outcome.answered;
            let silent = answered.silent.len() as u64;
            shared.metrics.silent_nodes.inc_by(silent);
            tally.end(if outcome.is_complete {
                Outcome::Complete
            } else {
                Outcome::Partial
            });
            Ok(match question {
                Question::Rooms => rooms_of_sockets(answered),
                Question::Sockets(_)
                | Question::SocketIds(_)
                | Question::Acks { .. }
                | Question::ServerSideEmit { .. }
                | Question::Reached(_)
                | Question::Command(_) => answered,
            })
        })
    }

    /// Says the question, and has a place for the answers.
    fn say(
        self: &Arc<Self>,
        attached: &Attached,
        question: &Question,
    ) -> Result<(Waiting, Sending), BusError> {
        let number = self.questions.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}.{number:x}", attached.uid);
        let uid = attached.uid.as_str();
        let namespace = &attached.namespace;
        let publication = self
            .wire
            .question(namespace, uid, &self.node, &id, question)
            .map_err(|error| self.invalid(&error))?;
        let waiting = self.asking.open(&id);
        let waiting = waiting.map_err(|error| BusError::Unavailable(error.to_string().into()))?;
        Ok((waiting, self.send(publication)))
    }

    /// Counts who is there, by these leases. The command is on its way when this returns, but for
    /// clusters of Redis.
    pub(super) fn count(
        &self,
        namespace: &str,
        leases: Arc<Leases>,
    ) -> impl Future<Output = Result<Counted, PublishError>> + Send + use<> {
        let channels = self.wire.channels().clone();
        let command = roll_call::subscribers(&channels, namespace, &leases);
        let counting = self.publisher.command(&command, Route::AllPrimaries);
        async move {
            let replies = counting.await?;
            let counted = roll_call::count(&channels, &leases, &replies);
            counted.ok_or_else(|| PublishError::Unconfirmed("an unexpected reply to PUBSUB".into()))
        }
    }

    /// The leases as they were a moment ago.
    pub(super) fn recent_leases(&self) -> Arc<Leases> {
        Arc::clone(&self.leases.lock())
    }
}

/// The members of one namespace.
struct MembersOf<'a> {
    shared: &'a Shared,
    namespace: &'a str,
}

impl Members for MembersOf<'_> {
    type Error = PublishError;

    async fn leases(&self) -> Result<Arc<Leases>, PublishError> {
        self.shared.look_at_leases().await?;
        Ok(self.shared.recent_leases())
    }

    fn count(
        &self,
        leases: Arc<Leases>,
    ) -> impl Future<Output = Result<Counted, PublishError>> + Send {
        self.shared.count(self.namespace, leases)
    }
}

/// Counts a question once, whether or not somebody waits for its end.
struct Tally {
    shared: Arc<Shared>,
    kind: &'static str,
    outcome: Outcome,
}

impl Tally {
    fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.shared.metrics.asked(self.kind, self.outcome);
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
