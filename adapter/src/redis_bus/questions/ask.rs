//! Asking the other nodes, and determining which of them have to answer.
//!
//! Nodes come and go while a question is in flight. The four moments:
//!
//! ```text
//! count ──► question ──► leases ──► count, leases (again while nodes leave in between)
//!   │                      │
//!   │                      └ a node that has no lease any more is not waited for
//!   └ a node that was not subscribed yet has not received the question
//! ```

use std::{
    future::ready,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use roomcast_emitter::{
    membership::{self, Waiting},
    redis::PublishError,
};
use roomcast_protocol::{
    id::NodeId,
    question::{Answer, Answered, Question},
};
use tokio::time::{self, Instant};

use super::{
    super::{
        membership::MembersOf,
        metrics::{self, Outcome},
        outgoing::Sending,
        subscriptions::AttachedNamespace,
    },
    Questions,
};
use crate::bus::{BusError, BusFuture};

/// Upper bound for timeouts, so that deadline arithmetic cannot overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(86_400);

impl Questions {
    /// Asks all other nodes. The question is enqueued when this returns, so that it keeps its
    /// place among the node's messages.
    pub(in super::super) fn ask(
        self: &Arc<Self>,
        namespace: Arc<AttachedNamespace>,
        question: Question,
        timeout: Duration,
    ) -> BusFuture<Result<Answered, BusError>> {
        let tally = Tally {
            questions: Arc::clone(self),
            kind: metrics::type_of(&question),
            outcome: Outcome::Failed,
        };
        let deadline = Instant::now() + timeout.min(MAX_TIMEOUT);
        let is_quick = membership::is_quick(&question);
        // Enqueued before the question: a node that joins later has not received it.
        let membership = &self.membership;
        let counting = membership.count(&namespace.name, membership.leases());
        let (waiting, sent) = match self.send(&namespace, &question) {
            Ok(sent) => sent,
            Err(error) => return Box::pin(ready(Err(error))),
        };
        Box::pin(async move {
            let Self {
                membership,
                metrics,
                ..
            } = &*tally.questions;
            let sent = time::timeout_at(deadline, sent).await;
            sent.map_err(|_| BusError::Unconfirmed("Redis has not answered in time".into()))??;
            let before = time::timeout_at(deadline, counting).await;
            let before = before.ok().and_then(Result::ok);
            let members = MembersOf {
                membership,
                namespace: &namespace.name,
            };
            let look = async |others: Vec<NodeId>| {
                let mut roster = membership::look(&members, before.as_ref(), &others).await?;
                // A node for which the question does not wait is silent only if it missed a
                // message.
                if !matches!(question, Question::Reached(_)) {
                    roster.deaf.clear();
                }
                Ok(roster.without(membership.node()))
            };
            let rest = deadline.saturating_duration_since(Instant::now());
            let outcome = waiting.gather(rest, is_quick, look).await;
            let outcome = outcome.map_err(|error: PublishError| BusError::from(error))?;
            membership.found_without_lease(&outcome.without_lease);
            let answered = outcome.answered;
            metrics.silent_nodes.inc_by(answered.silent.len() as u64);
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

    /// Enqueues the question. Its answers are collected from now on, because they may arrive before
    /// the publish is confirmed.
    fn send(
        &self,
        namespace: &AttachedNamespace,
        question: &Question,
    ) -> Result<(Waiting, Sending), BusError> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let uid = namespace.uid.as_str();
        let id = format!("{uid}.{number:x}");
        let outgoing = &self.outgoing;
        let publication = outgoing
            .wire
            .question(&namespace.name, uid, &outgoing.node, &id, question)
            .map_err(|error| outgoing.invalid(&error))?;
        let waiting = self.asking.open(&id);
        let waiting = waiting.map_err(|error| BusError::Unavailable(error.to_string().into()))?;
        Ok((waiting, outgoing.publish(publication)))
    }
}

/// Counts a question once, whether or not the caller waits for its end.
struct Tally {
    questions: Arc<Questions>,
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
        self.questions.metrics.asked(self.kind, self.outcome);
    }
}

/// The sharded dialect has no question about rooms. The question asks for sockets instead, and
/// their rooms are collected here.
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
