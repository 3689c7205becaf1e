//! Asking the other nodes, and finding out who has to answer.

use std::{
    future::{Future, ready},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join;
use roomcast_emitter::{
    asking::Waiting,
    members::{Count, Leases, Roster},
    publisher::{PublishError, Route},
    question::{Answer, Answered, Question},
    roll_call,
};
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

/// How often the members are counted anew if nodes leave at that moment.
const MAX_LOOKS: usize = 3;

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
        let counting = self.count(&attached.namespace);
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
            let before = before.ok().and_then(Result::ok).flatten();
            let before = before.as_ref();
            let look = || shared.roster_of_others(&attached.namespace, before);
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
                _ => answered,
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

    /// Looks after the question was published: who retires gives up its lease first and its channel
    /// then, and so has either heard the question or is seen to have gone.
    async fn roster_of_others(
        &self,
        namespace: &str,
        before: Option<&(Arc<Leases>, Count)>,
    ) -> Result<Roster, PublishError> {
        self.look_at_leases().await?;
        let after = Arc::clone(&self.leases.lock());
        let before = before.map(|(leases, count)| leases.attendance(count, &after));
        let of_then = |roster: Roster| match &before {
            Some(before) => roster.of(before).without(&self.node),
            None => roster.without(&self.node),
        };
        for _ in 0..MAX_LOOKS {
            let before = Arc::clone(&self.leases.lock());
            let (roster, looked) = join(self.roster(namespace), self.look_at_leases()).await;
            let roster = of_then(roster?);
            looked?;
            // Who left in between may stand in a number and not in the other.
            let after = Arc::clone(&self.leases.lock());
            if before
                .nodes()
                .all(|node| after.nodes().any(|known| known == node))
            {
                return Ok(roster);
            }
        }
        Ok(of_then(self.roster(namespace).await?))
    }

    /// Counts who is there, by the leases that are known. The command is on its way when this returns,
    /// but for clusters of Redis. Nothing if the answer cannot be read.
    pub(super) fn count(
        &self,
        namespace: &str,
    ) -> impl Future<Output = Result<Option<(Arc<Leases>, Count)>, PublishError>> + use<> {
        let leases = Arc::clone(&self.leases.lock());
        let channels = self.wire.channels().clone();
        let command = roll_call::subscribers(&channels, namespace, &leases);
        let counting = self.publisher.command(&command, Route::AllPrimaries);
        async move {
            let replies = counting.await?;
            let count = roll_call::count(&channels, &leases, &replies);
            Ok(count.map(|count| (leases, count)))
        }
    }

    /// Who is a member of a namespace at this moment.
    pub(super) async fn roster(&self, namespace: &str) -> Result<Roster, PublishError> {
        let counted = self.count(namespace).await?;
        // What cannot be read counts nobody: then the answers that come are the result.
        Ok(counted.map_or_else(Roster::default, |(leases, count)| leases.roster(&count)))
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
