//! The subscriber: connections to Redis that only receive.
//!
//! ```text
//!   owner ── subscribe, confirm ──▶ Subscriber ──▶ ServerSubscriber: one; with sharded pub/sub in a
//!                                                                    cluster one per primary
//!
//!   ServerSubscriber   connect ──▶ Session ──▶ lost ──▶ Down ──▶ back-off ──▶ connect …
//!                                     │
//!                                     ├─ all names confirmed ──▶ Up, and Gap unless it is the first
//!                                     └─ probe late ──▶ lost
//! ```
//!
//! Each connection is one of the `redis` crate, in RESP3, whose push callback handles messages
//! inline and in order (`incoming`). The crate's automatic resubscription is not used, because it
//! sends all names in one command and discards errors; names are kept here (`subscriptions`). An
//! open connection proves nothing: the subscriber is up while numbers that its owner publishes
//! over another connection come back through it (`probe`).
//!
//! The owner decides about subscribing and unsubscribing.

mod incoming;
mod probe;
mod server;
mod servers;
mod session;
mod stale;
mod subscriptions;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::subscriptions::SubscriptionKind;
pub use self::{
    servers::Subscriber,
    subscriptions::{Counts, Priority},
};

/// Receives the messages of a subscriber.
///
/// Called inline while a connection is read: the next message is parsed when this returns. It may
/// use the subscriber's handle. It should not block, because Redis cuts off a reader that is too
/// slow. Messages of one connection come one at a time and in order; events come from another task.
pub trait Sink: Send + Sync + 'static {
    /// A message was published.
    fn message(&self, channel: &[u8], payload: &[u8]);

    /// A message was published on a channel that matches this pattern. It is called once per
    /// pattern, after a [`message`](Self::message) if the channel is subscribed.
    fn matched(&self, _pattern: &[u8], channel: &[u8], payload: &[u8]) {
        self.message(channel, payload);
    }

    /// The state of a connection has changed.
    fn event(&self, event: SubscriberEvent);
}

/// A change in the state of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriberEvent {
    /// A connection has been made, and Redis has confirmed all names that were wanted then.
    Up {
        /// How many names these were.
        resubscribed: usize,
        /// How long it took to subscribe them.
        took: Duration,
    },
    /// The connection was lost.
    Down {
        /// Why.
        reason: DownReason,
    },
    /// Messages published in this span of time may not have arrived. Reported after `Up`, and
    /// repeatedly as long as Redis refuses a name.
    Gap {
        /// The last moment before which everything published is known to have arrived.
        from: SystemTime,
        /// From then on everything arrives again.
        to: SystemTime,
    },
    /// Redis refuses a subscription. It is asked again after a back-off and on the next connection;
    /// further refusals on this connection are not reported.
    Refused {
        /// The channel or pattern.
        name: Arc<str>,
        /// The error that Redis returned.
        error: Box<str>,
    },
}

/// Why messages do not arrive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// The subscriber was started a moment ago.
    #[error("connecting to Redis")]
    Starting,
    /// Connected, but not everything is subscribed yet, or no probe has come back.
    #[error("subscribing")]
    Subscribing,
    /// No connection can be made.
    #[error("{0}")]
    Unreachable(Box<str>),
    /// The connection broke, or Redis closed it. One reason of Redis's is a reader that is too
    /// slow; only its log tells.
    #[error("connection to Redis lost")]
    Lost,
    /// The server became a replica in a failover. The subscriber resolves the name again.
    #[error("the server is no longer the primary")]
    Demoted,
    /// A probe was published and did not come back.
    #[error("a probe did not come back within {} s", after.as_secs_f32())]
    ProbeLate {
        /// The time it was given.
        after: Duration,
    },
    /// Redis refuses a name, which may be the probe's. Messages on all others arrive.
    #[error("Redis refuses the subscription to {name}: {error}")]
    Refused {
        /// The channel or pattern.
        name: Arc<str>,
        /// The error that Redis returned.
        error: Box<str>,
    },
    /// The owner has closed the subscriber.
    #[error("the link is closed")]
    Stopped,
}

/// Whether messages arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriberState {
    /// Everything is subscribed, and a probe came back not long ago.
    Up {
        /// How long the last probe took.
        probe_round_trip: Duration,
    },
    /// Messages do not arrive, or it is not known whether they do.
    Down {
        /// Why.
        reason: DownReason,
    },
}

/// Why names were not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmError {
    /// Redis did not confirm all names in time. It may still do so.
    #[error("Redis has not confirmed the subscriptions in time")]
    TimedOut,
    /// Redis refuses one of the names.
    #[error("Redis refuses a subscription: {0}")]
    Refused(Box<str>),
    /// The subscriber has been closed.
    #[error("the link to Redis is closed")]
    Closed,
}

/// Names the channel by which a connection watches itself, in the given slot. Only this subscriber
/// may use the channel.
pub type ProbeChannel = Arc<dyn Fn(u16) -> Arc<str> + Send + Sync>;

/// Publishes a number, as decimal text, on a probe's channel over another connection. Returns
/// whether it is on its way. Must not block.
pub type SendProbe = Arc<dyn Fn(&str, u64) -> bool + Send + Sync>;

/// Settings of a subscriber.
#[derive(Clone)]
pub struct SubscriberConfig {
    /// Whether channels belong to sharded pub/sub. False by default.
    pub is_sharded: bool,
    /// Names the channel by which a connection watches itself.
    pub probe_channel: ProbeChannel,
    /// Sends a probe.
    pub send_probe: SendProbe,
    /// Time between probes. One second by default.
    pub probe_interval: Duration,
    /// How long a probe may take before the connection is given up. Five seconds by default.
    pub probe_timeout: Duration,
}

impl SubscriberConfig {
    /// Default settings, without sharded pub/sub.
    pub fn new(probe_channel: ProbeChannel, send_probe: SendProbe) -> Self {
        Self {
            is_sharded: false,
            probe_channel,
            send_probe,
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(5),
        }
    }

    fn kind(&self) -> SubscriptionKind {
        if self.is_sharded {
            SubscriptionKind::Shard
        } else {
            SubscriptionKind::Channel
        }
    }
}
