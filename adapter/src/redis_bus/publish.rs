//! Messages, questions and answers on their way to Redis.
//!
//! Each is counted once, whether or not its sender waits for what becomes of it; in a cluster
//! somebody has to, since it is the waiting that follows a channel to its new place.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use roomcast_emitter::publisher::{PublishError, Publishing};
use roomcast_protocol::{channel::Dialect, wire::Publication};
use tokio::time::Instant;

use super::Shared;
use crate::bus::BusError;

/// The most publications that are followed of which the sender does not wait. The publisher's queue
/// is full before.
const MAX_FOLLOWED: usize = 100_000;

impl Shared {
    /// Says it to Redis; the future resolves to the number of connections that took it.
    pub(super) fn send(self: &Arc<Self>, publication: Publication) -> Sending {
        let Publication { channel, payload } = publication;
        let started = Instant::now();
        let publishing = self
            .publisher
            .publish(&channel, &payload, self.is_sharded());
        Sending {
            shared: Arc::clone(self),
            publishing: Some(publishing),
            started,
            bytes: payload.len() as u64,
            is_left: false,
        }
    }

    /// Publishes what this node says to itself, and what nobody counts.
    pub(super) fn send_probe(&self, channel: &str, payload: &[u8]) {
        let publishing = self.publisher.publish(channel, payload, self.is_sharded());
        // What becomes of it shows in what comes back.
        self.follow(async move { drop(publishing.await) });
    }

    fn is_sharded(&self) -> bool {
        self.wire.channels().dialect() != Dialect::Classic
    }

    /// Sees to it that this is polled until it ends, or until the bus does.
    fn follow(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        // The sender may have dropped it anywhere.
        let _runtime = self.runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        if work.as_mut().poll(&mut context).is_ready() {
            return;
        }
        let mut following = self.following.lock();
        while following.try_join_next().is_some() {}
        if following.len() < MAX_FOLLOWED {
            following.spawn_on(work, &self.runtime);
        }
    }

    fn count_published(&self, sending: &Sending, outcome: &Result<u64, PublishError>) {
        let metrics = &self.metrics;
        let seconds = sending.started.elapsed().as_secs_f64();
        metrics.publish_seconds.observe(seconds);
        let published = &metrics.published;
        match outcome {
            Ok(_) => published.ok.inc(),
            Err(PublishError::Unconfirmed(_)) => published.unconfirmed.inc(),
            Err(PublishError::Overloaded { .. }) => published.overloaded.inc(),
            Err(PublishError::Refused(_)) => published.invalid.inc(),
            Err(PublishError::Unavailable(_)) => published.unavailable.inc(),
        }
        if outcome.is_ok() {
            metrics.published_bytes.inc_by(sending.bytes);
        }
    }
}

/// A publication that is on its way. When its sender drops it, it is followed all the same.
pub(super) struct Sending {
    shared: Arc<Shared>,
    /// Until it has ended.
    publishing: Option<Publishing>,
    started: Instant,
    bytes: u64,
    /// The sender has dropped it already.
    is_left: bool,
}

impl Future for Sending {
    type Output = Result<usize, BusError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let publishing = self.publishing.as_mut();
        let publishing = publishing.expect("nobody polls a future that has ended");
        let outcome = ready!(Pin::new(publishing).poll(context));
        self.publishing = None;
        self.shared.count_published(&self, &outcome);
        let receivers = outcome.map_err(bus_error)?;
        Poll::Ready(Ok(usize::try_from(receivers).unwrap_or(usize::MAX)))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Some(publishing) = self.publishing.take() else {
            return;
        };
        if self.is_left {
            // The bus ends, or follows as many as it can.
            let outcome = Err(PublishError::Unconfirmed("nobody waits for it".into()));
            self.shared.count_published(self, &outcome);
            return;
        }
        let left = Self {
            shared: Arc::clone(&self.shared),
            publishing: Some(publishing),
            started: self.started,
            bytes: self.bytes,
            is_left: true,
        };
        self.shared.follow(async move {
            match left.await {
                Err(error @ BusError::Invalid(_)) => tracing::warn!(%error, "Redis refuses"),
                Err(error) => tracing::debug!(%error, "nobody waited for this"),
                Ok(_) => {}
            }
        });
    }
}

pub(super) fn bus_error(error: PublishError) -> BusError {
    match error {
        PublishError::Unavailable(reason) => BusError::Unavailable(reason),
        PublishError::Unconfirmed(reason) => BusError::Unconfirmed(reason),
        PublishError::Overloaded { queued_bytes } => BusError::Overloaded { queued_bytes },
        PublishError::Refused(reason) => BusError::Invalid(reason),
    }
}
