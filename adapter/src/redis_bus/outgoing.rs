//! Messages, questions and answers on their way to Redis.
//!
//! Each is counted once, whether or not its sender waits for the outcome. A future that
//! its sender drops is polled to its end by a task: in a Redis Cluster it is the polling
//! that follows a channel which has moved.
//!
//! ```text
//!  publish ─► Sending ── awaited ───────────► counted, returned to the sender
//!                └────── dropped ─► a task ─► counted, logged if it failed
//! ```
//!
//! A message is enqueued when `publish` returns, so dropping the future cannot take it
//! back. It only means that the number of receivers is not awaited.

use std::{
    borrow::Cow,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use parking_lot::Mutex;
use roomcast_emitter::{
    recent_joins::RecentJoins,
    redis::{Commanding, PublishError, Publisher, Publishing, Route},
    signing::Signer,
};
use roomcast_protocol::{
    id::NodeId,
    wire::{Publication, Wire, WireError},
};
use tokio::{runtime::Handle, task::JoinSet, time::Instant};

use super::{metrics::OutgoingMetrics, warnings::Warnings};
use crate::bus::{BusError, BusFuture};

/// Maximum number of publishes that are followed after their senders dropped them. The publisher's
/// queue is full before.
const MAX_FOLLOWED: usize = 100_000;

/// Why messages cannot be signed.
const NO_TIME: &str = "the time of Redis, with which messages are signed, is not known";

/// The sending side of the bus.
pub(super) struct Outgoing {
    pub(super) node: NodeId,
    pub(super) publisher: Publisher,
    pub(super) wire: Arc<Wire>,
    pub(super) recent_joins: RecentJoins,
    /// `None` if the cluster does not sign.
    pub(super) signer: Option<Arc<Signer>>,
    /// Publishes that their senders dropped.
    followed: Mutex<JoinSet<()>>,
    /// About messages that were lost without an error for the sender.
    pub(super) warnings: Warnings,
    runtime: Handle,
    metrics: OutgoingMetrics,
}

impl Outgoing {
    /// Must be called on a tokio runtime.
    pub(super) fn new(
        node: NodeId,
        publisher: Publisher,
        wire: Arc<Wire>,
        signer: Option<Arc<Signer>>,
        metrics: OutgoingMetrics,
    ) -> Self {
        Self {
            node,
            publisher,
            wire,
            recent_joins: RecentJoins::default(),
            signer,
            followed: Mutex::default(),
            warnings: Warnings::default(),
            runtime: Handle::current(),
            metrics,
        }
    }

    /// Enqueues a publication. The future resolves to the number of connections that received it.
    pub(super) fn publish(self: &Arc<Self>, publication: Publication) -> Sending {
        let Publication { channel, payload } = publication;
        let started = Instant::now();
        let sealed = match &self.signer {
            None => Ok(Cow::Borrowed(&payload[..])),
            Some(signer) => signer
                .seal(&channel, &payload)
                .map(Cow::Owned)
                .ok_or_else(no_time),
        };
        let bytes = sealed.as_ref().map_or(0, |sealed| sealed.len()) as u64;
        let publishing =
            sealed.map(|sealed| self.publisher.publish(&channel, &sealed, self.is_sharded()));
        Sending {
            outgoing: Arc::clone(self),
            publishing: Some(publishing),
            started,
            bytes,
            is_abandoned: false,
        }
    }

    /// Seals the head of a broadcast that a log stores and publishes on a channel.
    pub(super) fn sealed_head(&self, channel: &str, head: Bytes) -> Result<Bytes, BusError> {
        match &self.signer {
            None => Ok(head),
            Some(signer) => match signer.seal_head(channel, &head) {
                Some(sealed) => Ok(sealed.into()),
                None => Err(no_time().into()),
            },
        }
    }

    /// Publishes a probe, which is not counted. Returns whether it was enqueued.
    pub(super) fn publish_probe(&self, channel: &str, payload: &[u8]) -> bool {
        if !self.publisher.is_up() {
            return false;
        }
        let publishing = self.publisher.publish(channel, payload, self.is_sharded());
        // The messages that come back show whether it was published.
        self.follow(async move { drop(publishing.await) });
        true
    }

    /// Enqueues a command.
    pub(super) fn command<A: AsRef<[u8]>>(&self, args: &[A], route: Route<'_>) -> Commanding {
        self.publisher.command(args, route)
    }

    /// Counts a message that was published by a separate command.
    pub(super) fn count(&self, bytes: u64, started: Instant, outcome: Result<u64, &PublishError>) {
        self.metrics.published(bytes, started.elapsed(), outcome);
    }

    /// A publish failed whose outcome is not awaited.
    fn lost_unseen(&self, error: &BusError) {
        self.warnings.warn(|suppressed| {
            tracing::warn!(
                %error,
                suppressed,
                "a publish failed whose sender did not wait"
            );
        });
    }

    /// Returns why messages cannot be signed, if they have to be.
    pub(super) fn without_time(&self) -> Option<Arc<str>> {
        let signer = self.signer.as_ref()?;
        let is_known = signer.clock_age().is_some();
        (!is_known).then(|| NO_TIME.into())
    }

    /// A message, question or answer cannot be written.
    pub(super) fn invalid(&self, error: &WireError) -> BusError {
        self.metrics.invalid.inc();
        BusError::Invalid(error.to_string().into())
    }

    fn is_sharded(&self) -> bool {
        self.wire.channels().dialect().is_sharded()
    }

    /// Makes a future that is followed if its sender drops it before its end.
    pub(super) fn followed<T: Send + 'static>(
        self: Arc<Self>,
        work: impl Future<Output = Result<T, BusError>> + Send + 'static,
    ) -> impl Future<Output = Result<T, BusError>> + Send + 'static {
        Followed {
            outgoing: self,
            work: Some(Box::pin(work)),
        }
    }

    /// Runs a task of the bus.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(work));
    }

    /// Polls a future until it ends, or until the bus does.
    fn follow(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        // The sender may have dropped it on any thread.
        let _runtime = self.runtime.enter();
        // Most have ended by then, and need no task.
        let mut context = Context::from_waker(Waker::noop());
        if work.as_mut().poll(&mut context).is_ready() {
            return;
        }
        let mut followed = self.followed.lock();
        while followed.try_join_next().is_some() {}
        if followed.len() < MAX_FOLLOWED {
            followed.spawn_on(work, &self.runtime);
        }
    }
}

/// A publication on its way. If its sender drops it, it is followed by a task.
pub(super) struct Sending {
    outgoing: Arc<Outgoing>,
    /// `None` once it has ended; an error if it could not be signed.
    publishing: Option<Result<Publishing, PublishError>>,
    started: Instant,
    bytes: u64,
    /// The sender has dropped it already.
    is_abandoned: bool,
}

impl Sending {
    fn count(&self, outcome: Result<u64, &PublishError>) {
        self.outgoing.count(self.bytes, self.started, outcome);
    }
}

impl Future for Sending {
    type Output = Result<usize, BusError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let publishing = self.publishing.as_mut();
        let outcome = match publishing.expect("a future that has ended is not polled") {
            Ok(publishing) => ready!(Pin::new(publishing).poll(context)),
            Err(error) => Err(error.clone()),
        };
        self.publishing = None;
        self.count(outcome.as_ref().copied());
        let receivers = outcome?;
        Poll::Ready(Ok(usize::try_from(receivers).unwrap_or(usize::MAX)))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Some(publishing) = self.publishing.take() else {
            return;
        };
        if self.is_abandoned {
            // The bus ends, or follows as many as it can.
            let error = PublishError::Unconfirmed("its outcome is not awaited".into());
            self.count(Err(&error));
            return;
        }
        let abandoned = Self {
            outgoing: Arc::clone(&self.outgoing),
            publishing: Some(publishing),
            started: self.started,
            bytes: self.bytes,
            is_abandoned: true,
        };
        let outgoing = Arc::clone(&self.outgoing);
        self.outgoing.follow(async move {
            if let Err(error) = abandoned.await {
                outgoing.lost_unseen(&error);
            }
        });
    }
}

/// A future that is followed by a task if its sender drops it.
struct Followed<T: Send + 'static> {
    outgoing: Arc<Outgoing>,
    /// `None` once it has ended.
    work: Option<BusFuture<Result<T, BusError>>>,
}

impl<T: Send + 'static> Future for Followed<T> {
    type Output = Result<T, BusError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let work = self.work.as_mut();
        let work = work.expect("a future that has ended is not polled");
        let outcome = ready!(work.as_mut().poll(context));
        self.work = None;
        Poll::Ready(outcome)
    }
}

impl<T: Send + 'static> Drop for Followed<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let outgoing = Arc::clone(&self.outgoing);
            self.outgoing.follow(async move {
                if let Err(error) = work.await {
                    outgoing.lost_unseen(&error);
                }
            });
        }
    }
}

pub(super) fn no_time() -> PublishError {
    PublishError::Unavailable(NO_TIME.into())
}

impl From<PublishError> for BusError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Unavailable(reason) => Self::Unavailable(reason),
            PublishError::Unconfirmed(reason) => Self::Unconfirmed(reason),
            PublishError::Overloaded { queued_bytes } => Self::Overloaded { queued_bytes },
            PublishError::Refused(reason) => Self::Invalid(reason),
        }
    }
}
