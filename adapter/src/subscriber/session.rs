//! One connection of a subscriber, from the first subscription to its end.
//!
//! The session sends batches and probes and judges the connection; messages take another way (see
//! `incoming`). In RESP3 a confirmation is a push and a refusal is a reply. The crate collects
//! either into the result of the command, and the session settles names by these results.
//!
//! ```text
//!  subscribe the probe ─► batches, 8 in flight ─► all confirmed: Up, and a Gap since the last proof
//!         └─ confirmed: probes begin ─► each that comes back moves the proof
//!                                 └─ late: Down ─► nothing else has come either: the end
//! ```
//!
//! **Why a probe that is late does not end the connection at once.** After a burst, the
//! probe waits behind thousands of messages that the callback has not read yet.
//! Reconnecting would lose them. So the end is only when nothing at all has come
//! between two looks.
//!
//! **Why refused names do not end it.** A user may lack the right to one name. The others continue,
//! the refused ones are retried, and the time in between is reported as a gap.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt},
};
use redis::{ErrorKind, Pipeline, PushKind, RedisError, RedisResult, Value};
use roomcast_emitter::{backoff::Backoff, redis::Multiplexed};
use tokio::time::{self, Instant};

use super::{
    DownReason, SubscriberConfig, SubscriberEvent,
    incoming::Incoming,
    server::Shared,
    subscriptions::{Batch, Outcome, SubscriptionKind},
};

/// The first refused names are retried after this time, later ones after up to [`MAX_RETRY`]. After
/// correcting the rights, an operator needs no restart.
const MIN_RETRY: Duration = Duration::from_secs(1);

const MAX_RETRY: Duration = Duration::from_secs(30);

/// How a batch ended.
type Reply = RedisResult<Vec<Value>>;

pub(super) struct Session<'a> {
    config: &'a SubscriberConfig,
    shared: &'a Shared,
    incoming: &'a Incoming,
    connection: Multiplexed,
    probe_channel: &'a Arc<str>,
    began: Instant,
    /// How many names were wanted when the connection was made.
    resubscribing: usize,
    unconfirmed: FuturesUnordered<BoxFuture<'static, (Batch, Reply)>>,
    /// A probe is late: how much had been received by then.
    suspicion: Option<u64>,
    retries: Backoff,
    /// The time at which refused names are retried.
    retry_at: Option<Instant>,
    /// Since when messages on refused names may be lost and no gap has been reported.
    deaf_since: Option<SystemTime>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        config: &'a SubscriberConfig,
        shared: &'a Shared,
        incoming: &'a Incoming,
        connection: Multiplexed,
        probe_channel: &'a Arc<str>,
    ) -> Self {
        let mut subscriptions = shared.subscriptions.lock();
        subscriptions.connected();
        let resubscribing = subscriptions.counts().desired;
        drop(subscriptions);
        shared.set_down(DownReason::Subscribing);
        Self {
            config,
            shared,
            incoming,
            connection,
            probe_channel,
            began: Instant::now(),
            resubscribing,
            unconfirmed: FuturesUnordered::new(),
            suspicion: None,
            retries: Backoff::new(MIN_RETRY, MAX_RETRY),
            retry_at: None,
            deaf_since: None,
        }
    }

    /// Runs until the connection is lost. Returns the reason.
    pub(super) async fn run(mut self) -> DownReason {
        let reason = self.listen().await;
        self.report_deafness();
        reason
    }

    async fn listen(&mut self) -> DownReason {
        let mut timer = pin!(time::sleep_until(self.began));
        loop {
            self.retry();
            self.send_batches();
            // One timer serves probes and retries.
            let next_event = self.send_probe().into_iter().chain(self.retry_at).min();
            if let Some(next_event) = next_event
                && timer.deadline() != next_event
            {
                timer.as_mut().reset(next_event);
            }
            tokio::select! {
                biased;
                Some((batch, reply)) = self.unconfirmed.next(), if !self.unconfirmed.is_empty() => {
                    if let Err(reason) = self.settle(batch, reply) {
                        return reason;
                    }
                }
                () = self.incoming.lost.notified() => return DownReason::Lost,
                () = self.shared.changed.notified() => {}
                () = timer.as_mut(), if next_event.is_some() => {
                    if self.is_dead() {
                        return DownReason::ProbeLate { after: self.config.probe_timeout };
                    }
                }
            }
        }
    }

    fn retry(&mut self) {
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_at = None;
            self.report_deafness();
            self.shared.subscriptions.lock().retry();
        }
    }

    /// Schedules the next attempt as long as Redis refuses a name.
    fn note_refusals(&mut self) {
        if self.shared.subscriptions.lock().refusal().is_some() {
            self.deaf_since.get_or_insert_with(SystemTime::now);
            if self.retry_at.is_none() {
                self.retry_at = Some(Instant::now() + self.retries.next_delay());
            }
        } else if self.deaf_since.is_some() {
            self.retry_at = None;
            self.retries.reset();
            self.report_deafness();
        }
    }

    /// Reports the gap on refused names up to now. It continues if some are still refused.
    fn report_deafness(&mut self) {
        let is_deaf = self.shared.subscriptions.lock().refusal().is_some();
        let now = SystemTime::now();
        let since = std::mem::replace(&mut self.deaf_since, is_deaf.then_some(now));
        if let Some(from) = since {
            let to = now.max(from);
            self.shared.sink.event(SubscriberEvent::Gap { from, to });
        }
    }

    fn send_batches(&mut self) {
        let mut subscriptions = self.shared.subscriptions.lock();
        while let Some(batch) = subscriptions.next_batch() {
            let sending = send(self.connection.clone(), batch);
            self.unconfirmed.push(Box::pin(sending));
        }
        let is_complete = subscriptions.is_complete();
        drop(subscriptions);
        if is_complete && !self.incoming.watch.lock().is_complete {
            self.complete();
        }
    }

    /// Every name is subscribed that was wanted when the connection was made.
    fn complete(&self) {
        self.incoming.watch.lock().is_complete = true;
        let now = SystemTime::now();
        // Everything that was published between the last proof and now may have been
        // missed.
        let before = self.shared.proof.lock().replace(now);
        self.shared.sink.event(SubscriberEvent::Up {
            resubscribed: self.resubscribing,
            took: self.began.elapsed(),
        });
        if let Some(from) = before {
            // The clock may have been set back in between.
            let to = now.max(from);
            self.shared.sink.event(SubscriberEvent::Gap { from, to });
        }
    }

    fn settle(&mut self, batch: Batch, reply: Reply) -> Result<(), DownReason> {
        // A probe that is sent before its channel is subscribed would never come back.
        let is_probe = batch.names.contains(self.probe_channel);
        for outcome in self.shared.settle(batch, reply)? {
            self.note(outcome);
        }
        self.shared.settled.notify_waiters();
        self.note_refusals();
        if is_probe
            && self
                .shared
                .is_confirmed(self.config.kind(), self.probe_channel)
        {
            self.incoming.watch.lock().probes.begin(Instant::now());
        }
        Ok(())
    }

    fn note(&self, outcome: Outcome) {
        match outcome {
            Outcome::Noted => {}
            Outcome::Moved => (self.shared.moved)(),
            Outcome::Refused { key, error } => {
                if key.name == *self.probe_channel {
                    self.incoming.watch.lock().probes.give_up();
                    self.shared.set_down(DownReason::Subscribing);
                }
                let name = key.name;
                self.shared
                    .sink
                    .event(SubscriberEvent::Refused { name, error });
            }
        }
    }

    /// Sends a probe if one is due. Returns when there is something to do or to judge again.
    fn send_probe(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut watch = self.incoming.watch.lock();
        watch.probes.send_due(now, |number| {
            (self.config.send_probe)(self.probe_channel, number)
        });
        let is_overdue = watch.probes.is_overdue(now);
        if !is_overdue {
            self.suspicion = None;
        } else if std::mem::take(&mut watch.is_up) {
            // Messages may still wait to be read. Until then it is unknown whether any is lost.
            let after = self.config.probe_timeout;
            self.shared.set_down(DownReason::ProbeLate { after });
        }
        let next_event = watch.probes.next_event()?;
        let look = now + self.config.probe_interval / 4;
        Some(if is_overdue { look } else { next_event })
    }

    /// Whether a probe is late and nothing else has arrived since the last check. A driver that is
    /// at work, or has not run for a while, gets the time to read what waits.
    fn is_dead(&mut self) -> bool {
        if !self.incoming.watch.lock().probes.is_late(Instant::now()) {
            return false;
        }
        let received = self.incoming.idle_after();
        let is_dead = received.is_some() && received == self.suspicion;
        self.suspicion = received;
        is_dead
    }
}

impl Shared {
    fn settle(&self, batch: Batch, reply: Reply) -> Result<Vec<Outcome>, DownReason> {
        let mut subscriptions = self.subscriptions.lock();
        match reply {
            Ok(replies) if batch.kind == SubscriptionKind::Shard => {
                let replies = own_replies(&batch, replies);
                Ok(subscriptions.settle_each(batch, replies))
            }
            Ok(_) => {
                subscriptions.confirm(batch);
                Ok(Vec::new())
            }
            Err(error) => {
                let error = server_error(&error).ok_or(DownReason::Lost)?;
                Ok(vec![subscriptions.refuse(batch, &error)])
            }
        }
    }

    fn is_confirmed(&self, kind: SubscriptionKind, name: &str) -> bool {
        self.subscriptions.lock().is_confirmed(kind, name)
    }
}

/// Sends a batch and waits for the reply, for as long as it takes: the probe decides when the
/// connection is given up.
async fn send(mut connection: Multiplexed, batch: Batch) -> (Batch, Reply) {
    let names: Vec<&str> = batch.names.iter().map(|name| &**name).collect();
    let sent = match (batch.kind, batch.subscribes) {
        (SubscriptionKind::Channel, true) => connection.subscribe(names).await,
        (SubscriptionKind::Channel, false) => connection.unsubscribe(names).await,
        (SubscriptionKind::Pattern, true) => connection.psubscribe(names).await,
        (SubscriptionKind::Pattern, false) => connection.punsubscribe(names).await,
        (SubscriptionKind::Shard, subscribes) => {
            let reply = send_each(&mut connection, subscribes, &names).await;
            return (batch, reply);
        }
    };
    (batch, sent.map(|()| Vec::new()))
}

/// A command for each name, in one pipeline: the names may belong to different slots, and the
/// crate does not know that `SSUBSCRIBE` has a confirmation for each name.
async fn send_each(connection: &mut Multiplexed, subscribes: bool, names: &[&str]) -> Reply {
    let command = if subscribes {
        "SSUBSCRIBE"
    } else {
        "SUNSUBSCRIBE"
    };
    let mut pipeline = Pipeline::with_capacity(names.len());
    for name in names {
        pipeline.cmd(command).arg(name);
    }
    connection
        .send_packed_commands(&pipeline, 0, names.len())
        .await
}

/// The replies to the commands of a batch, an error or `None` each. The crate also treats a
/// subscription that Redis ends on its own as a reply; such a push has none of the expected names.
fn own_replies(batch: &Batch, replies: Vec<Value>) -> Vec<Option<Box<str>>> {
    let mut own = Vec::with_capacity(batch.names.len());
    for reply in replies {
        let Some(name) = batch.names.get(own.len()) else {
            break;
        };
        match reply {
            Value::ServerError(error) => {
                let error = format!("{} {}", error.code(), error.details().unwrap_or_default());
                own.push(Some(error.into()));
            }
            Value::Push { kind, data } => {
                let is_kind = (kind == PushKind::SSubscribe) == batch.subscribes;
                let is_own = matches!(data.first(), Some(Value::BulkString(found)) if found == name.as_bytes());
                if is_kind && is_own {
                    own.push(None);
                }
            }
            _ => {}
        }
    }
    own
}

/// The error of Redis, if it was Redis that refused.
fn server_error(error: &RedisError) -> Option<Box<str>> {
    let code = match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension => error.code()?,
        _ => return None,
    };
    let text = format!("{code} {}", error.detail().unwrap_or_default());
    Some(text.into())
}
