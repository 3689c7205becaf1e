//! The bus over Redis: several nodes, Node.js servers with Socket.IO's Redis adapters, and emitters of
//! any language are one room space.
//!
//! Publishing goes over the emitter crate's batching link, hearing over a subscriber link of its own.
//! Everything that arrives is decoded and carried out on the link's task, in the order of arrival.

mod ask;
mod config;
mod hearing;
mod interest;
mod lease;
mod metrics;
mod namespaces;
mod publish;
mod receive;
mod respond;
mod stand_in;
mod start;
mod subscribing;
mod turnover;

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join;
use parking_lot::Mutex;
use roomcast_emitter::{asking::Asking, members::Leases, publisher::Publisher};
use roomcast_protocol::{
    channel::Dialect,
    id::NodeId,
    message::Message,
    question::{Answered, Question},
    wire::{Wire, WireError},
};
use tokio::{runtime, task::JoinSet, time};

pub use self::{
    config::{PrivateRooms, RedisConfig},
    start::StartError,
};
use self::{
    lease::RedisClock,
    metrics::Metrics,
    namespaces::{Attached, Namespaces, Private},
    stand_in::Unanswered,
    turnover::Turnover,
};
use crate::{
    bus::{Attachment, Bus, BusError, BusFuture, BusHandle, Gap, Health, Published, Tracking},
    link::{ConfirmError, LinkEvent, LinkState, Subscribers},
};

/// The characters at the beginning of a node's name and of all its sockets' ids.
const TAG_LEN: usize = 4;

/// The patterns up to which Redis is not noticeably slowed down, of all nodes and namespaces.
const MAX_PATTERNS: usize = 50;

/// How long a join may take to be confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the steps of a shutdown may take each.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

type GapHandler = Box<dyn Fn(&Gap) + Send + Sync>;

/// A node's place on the bus over Redis. Made by [`RedisBus::connect`].
///
/// In a Redis Cluster the number of nodes that took a message is a lower bound with the classic
/// dialect: Redis counts the subscribers of one of its nodes. With the sharded dialect in a cluster,
/// order is kept per channel, that is per room, and not between rooms.
pub struct RedisBus {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

/// What the bus and its tasks share.
struct Shared {
    node: NodeId,
    config: RedisConfig,
    wire: Wire,
    publisher: Publisher,
    hearing: Subscribers,
    namespaces: Namespaces,
    asking: Asking,
    /// What is subscribed changes under this lock. Before all others.
    subscribing: Mutex<()>,
    answering: Mutex<JoinSet<()>>,
    /// Publications whose senders do not wait.
    following: Mutex<JoinSet<()>>,
    runtime: runtime::Handle,
    leases: Mutex<Arc<Leases>>,
    clock: Mutex<Option<RedisClock>>,
    metrics: Metrics,
    on_gap: Mutex<Vec<Arc<GapHandler>>>,
    /// The patterns that Redis had when this node came, and those that this node has added.
    patterns: AtomicUsize,
    is_retired: AtomicBool,
    turnover: Turnover,
    unanswered: Unanswered,
    questions: AtomicU64,
}

impl Bus for RedisBus {
    fn attach(&self, attachment: Attachment<'_>) -> Arc<dyn BusHandle> {
        Arc::new(Handle {
            attached: self.shared.attach(attachment),
            shared: Arc::clone(&self.shared),
        })
    }

    fn health(&self) -> Health {
        self.shared.health()
    }

    fn on_gap(&self, f: GapHandler) {
        self.shared.on_gap.lock().push(Arc::new(f));
    }

    fn retire(&self, _: &NodeId) -> BusFuture<()> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            // The sharded dialect asks on the channel that carries broadcasts, too, and those are
            // wanted until the last socket has gone: the node goes on answering.
            if shared.wire.channels().dialect() == Dialect::Classic {
                shared.leave().await;
            }
        })
    }

    fn close(&self, _: &NodeId) -> BusFuture<()> {
        let shared = Arc::clone(&self.shared);
        self.tasks.lock().abort_all();
        Box::pin(async move {
            shared.leave().await;
            // Whoever has counted this node gets an answer.
            let mut answering = std::mem::take(&mut *shared.answering.lock());
            let answered = async { while answering.join_next().await.is_some() {} };
            // Nobody is left to be told if these fail.
            let _ = time::timeout(SHUTDOWN_TIMEOUT, answered).await;
            let _ = time::timeout(SHUTDOWN_TIMEOUT, shared.hearing.close()).await;
            let _ = time::timeout(SHUTDOWN_TIMEOUT, shared.publisher.close()).await;
        })
    }

    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        self.shared.metrics.collectors()
    }
}

/// A namespace's access to the bus.
struct Handle {
    shared: Arc<Shared>,
    attached: Arc<Attached>,
}

impl BusHandle for Handle {
    fn tracking(&self) -> Tracking {
        self.attached
            .tracking(self.shared.wire.channels().dialect())
    }

    fn changed(&self) {
        self.shared.update(&self.attached);
    }

    fn confirm(&self, rooms: Vec<Box<str>>) -> BusFuture<Result<(), BusError>> {
        // Another thread may have been told that there are changes, and be about to report them.
        self.changed();
        let shared = Arc::clone(&self.shared);
        let attached = &self.attached;
        let channels = shared.wire.channels();
        let (mut names, asked) = shared.base_channels(attached);
        if !shared.has_retired() {
            names.extend(asked);
        }
        names.extend(
            rooms
                .iter()
                .filter_map(|room| attached.channel_of(channels, room)),
        );
        let pattern = match &attached.private_rooms {
            Private::Pattern { pattern, .. } => Some(pattern.clone()),
            Private::Elsewhere | Private::Channels => None,
        };
        Box::pin(async move {
            let hearing = &shared.hearing;
            let names = names.into_iter().map(Arc::from).collect();
            let by_pattern = async {
                match pattern {
                    Some(name) => {
                        hearing
                            .confirmed_pattern(name.into(), CONFIRM_TIMEOUT)
                            .await
                    }
                    None => Ok(()),
                }
            };
            let by_channel = hearing.confirmed(names, CONFIRM_TIMEOUT);
            let confirmed = try_join(by_pattern, by_channel).await;
            let unconfirmed = |error: ConfirmError| BusError::Unconfirmed(error.to_string().into());
            confirmed.map(drop).map_err(unconfirmed)
        })
    }

    fn publish(&self, message: Message) -> BusFuture<Result<Published, BusError>> {
        let (shared, attached) = (&self.shared, &self.attached);
        let uid = attached.uid.as_str();
        let publication = match shared
            .wire
            .message(&attached.namespace, uid, &message, None)
        {
            Ok(publication) => publication,
            Err(error) => return Box::pin(ready(Err(shared.invalid(&error)))),
        };
        // Redis counts this node, too, if it has subscribed.
        let hears_itself = shared.hearing.is_confirmed(&publication.channel)
            || attached.is_covered(shared.wire.channels(), &publication.channel);
        let published = shared.send(publication);
        Box::pin(async move {
            let receivers = published.await?;
            Ok(Published {
                nodes: receivers.saturating_sub(usize::from(hears_itself)),
                position: None,
            })
        })
    }

    fn ask(&self, question: Question, timeout: Duration) -> BusFuture<Result<Answered, BusError>> {
        self.shared
            .ask(Arc::clone(&self.attached), question, timeout)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.detach(&self.attached);
    }
}

impl Shared {
    /// A message, question or answer has no form.
    fn invalid(&self, error: &WireError) -> BusError {
        self.metrics.published.invalid.inc();
        BusError::Invalid(error.to_string().into())
    }

    fn health(&self) -> Health {
        match self.hearing.state() {
            LinkState::Up { .. } => Health::Flowing,
            LinkState::Down { reason } => Health::Interrupted(reason.to_string().into()),
        }
    }

    fn link_event(&self, event: LinkEvent) {
        let metrics = &self.metrics;
        match event {
            LinkEvent::Up { resubscribed, took } => {
                self.turnover.is_up();
                metrics.resubscribe_seconds.set(took.as_secs_f64());
                tracing::info!(resubscribed, ?took, "listening on Redis");
            }
            LinkEvent::Down { reason } => {
                metrics.subscriber_up.set(0);
                metrics.subscriber_reconnects.inc();
                tracing::warn!(%reason, "not listening on Redis any more; connecting again");
            }
            LinkEvent::Refused { name, error } => {
                tracing::error!(%name, %error, "Redis refuses a subscription: check the user's rights");
            }
            LinkEvent::Gap { from, to } => {
                let gap = Gap { from, to };
                let length = to.duration_since(from).unwrap_or_default();
                metrics.gaps.inc();
                metrics.gap_seconds.inc_by(length.as_secs_f64());
                // The server says it to the log and to the application.
                let handlers = self.on_gap.lock().clone();
                for f in handlers {
                    f(&gap);
                }
            }
        }
    }

    /// Copies what the links count themselves.
    fn note_figures(&self) {
        let metrics = &self.metrics;
        let state = self.hearing.state();
        if let LinkState::Up {
            last_probe_round_trip,
            ..
        } = &state
        {
            metrics.note_probe(*last_probe_round_trip);
        }
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        metrics
            .subscriber_up
            .set(matches!(state, LinkState::Up { .. }).into());
        metrics
            .subscriptions
            .set(count(self.hearing.counts().desired));
        metrics.publisher_up.set(self.publisher.is_up().into());
        let stats = self.publisher.stats();
        let queued = stats.queued_bytes.load(Ordering::Relaxed);
        metrics
            .queued_bytes
            .set(i64::try_from(queued).unwrap_or(i64::MAX));
        let reconnects = &metrics.publisher_reconnects;
        let total = stats.reconnects.load(Ordering::Relaxed);
        reconnects.inc_by(total.saturating_sub(reconnects.get()));
    }
}

/// What a node's name and the ids of all its sockets begin with.
fn tag(node: &NodeId) -> &str {
    node.as_str().get(..TAG_LEN).unwrap_or_default()
}

impl std::fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisBus")
            .field("node", &self.shared.node)
            .field("prefix", &self.shared.config.prefix)
            .finish_non_exhaustive()
    }
}
