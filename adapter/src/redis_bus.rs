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
mod receive;
mod respond;
mod start;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use roomcast_emitter::{
    asking::Asking,
    channel::{self, Dialect},
    id::NodeId,
    members::Leases,
    message::Message,
    publisher::{PublishError, Publisher},
    question::{Answered, Question},
    wire::{Publication, Wire},
};
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};

pub use self::{
    config::{PrivateRooms, RedisConfig},
    start::StartError,
};
use self::{
    lease::RedisClock,
    metrics::Metrics,
    namespaces::{Attached, Namespaces, Private, Reached},
};
use crate::{
    bus::{Attachment, Bus, BusError, BusFuture, Gap, Health},
    link::{ConfirmError, LinkEvent, LinkState, Priority, Subscribers},
};

/// The characters at the beginning of a node's name and of all its sockets' ids.
const TAG_LEN: usize = 4;

/// The patterns up to which Redis is not noticeably slowed down, of all nodes and namespaces.
const MAX_PATTERNS: usize = 50;

/// How long a join may take to be confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the steps of a shutdown may take each.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

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
    answering: Mutex<JoinSet<()>>,
    leases: Mutex<Leases>,
    clock: Mutex<Option<RedisClock>>,
    metrics: Metrics,
    on_gap: Mutex<Vec<Box<dyn Fn(&Gap) + Send + Sync>>>,
    /// The patterns that Redis had when this node came, and those that this node has added.
    patterns: AtomicUsize,
    is_retired: AtomicBool,
    questions: AtomicU64,
}

impl Bus for RedisBus {
    fn attach(&self, attachment: Attachment<'_>) {
        self.shared.attach(attachment);
    }

    fn detach(&self, _: &NodeId, namespace: &str) {
        if let Some(attached) = self.shared.namespaces.remove_gone(namespace) {
            self.shared.unsubscribe_namespace(&attached);
        }
    }

    fn interest_changed(&self, _: &NodeId, namespace: &str) {
        let shared = &self.shared;
        if let Some(attached) = shared.namespaces.get(namespace) {
            attached.update(shared.wire.channels(), Instant::now(), &shared.hearing);
        }
    }

    fn confirm(
        &self,
        _: &NodeId,
        namespace: &str,
        rooms: Vec<Box<str>>,
    ) -> BusFuture<Result<(), BusError>> {
        let shared = Arc::clone(&self.shared);
        let Some(attached) = shared.namespaces.get(namespace) else {
            return unavailable("the namespace is gone");
        };
        let channels = shared.wire.channels();
        let (mut names, asked) = shared.base_channels(&attached);
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
            let names = names.into_iter().map(Arc::from).collect();
            let unconfirmed = |error: ConfirmError| BusError::Unconfirmed(error.to_string().into());
            if let Some(pattern) = pattern {
                let confirmed = shared
                    .hearing
                    .confirmed_pattern(pattern.into(), CONFIRM_TIMEOUT);
                confirmed.await.map_err(unconfirmed)?;
            }
            let confirmed = shared.hearing.confirmed(names, CONFIRM_TIMEOUT);
            confirmed.await.map_err(unconfirmed)
        })
    }

    fn publish(
        &self,
        _: &NodeId,
        namespace: &str,
        message: Message,
    ) -> BusFuture<Result<usize, BusError>> {
        let shared = &self.shared;
        let Some(attached) = shared.namespaces.get(namespace) else {
            return unavailable("the namespace is gone");
        };
        let uid = attached.uid.as_str();
        let publication = match shared.wire.message(namespace, uid, &message, None) {
            Ok(publication) => publication,
            Err(error) => {
                shared.metrics.published.invalid.inc();
                let error = BusError::Invalid(error.to_string().into());
                return Box::pin(std::future::ready(Err(error)));
            }
        };
        // Redis counts this node, too, if it has subscribed.
        let hears_itself = shared.hearing.is_confirmed(&publication.channel)
            || attached.is_covered(shared.wire.channels(), &publication.channel);
        let published = shared.send(publication);
        Box::pin(async move {
            let receivers = published.await?;
            Ok(receivers.saturating_sub(usize::from(hears_itself)))
        })
    }

    fn ask(
        &self,
        _: &NodeId,
        namespace: &str,
        question: Question,
        timeout: Duration,
    ) -> BusFuture<Result<Answered, BusError>> {
        match self.shared.namespaces.get(namespace) {
            Some(attached) => self.shared.ask(attached, question, timeout),
            None => unavailable("the namespace is gone"),
        }
    }

    fn health(&self) -> Health {
        self.shared.health()
    }

    fn on_gap(&self, f: Box<dyn Fn(&Gap) + Send + Sync>) {
        self.shared.on_gap.lock().push(f);
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

impl Shared {
    fn attach(&self, attachment: Attachment<'_>) {
        let dialect = self.wire.channels().dialect();
        let namespace = attachment.namespace;
        let attached = Arc::new(Attached {
            namespace: namespace.into(),
            uid: channel::uid(&self.node, namespace, dialect),
            echo: self.wire.echo(
                namespace,
                channel::uid(&self.node, namespace, dialect).as_str(),
            ),
            private_rooms: self.private_rooms(namespace, attachment.is_dynamic),
            listener: attachment.listener,
            interest: Mutex::default(),
            reached: Mutex::<Reached>::default(),
        });
        if let Some(listener) = attached.listener.upgrade() {
            listener.track(attached.tracking(dialect));
        }
        self.subscribe_namespace(&attached);
        // The channels of a namespace that was made anew are the same.
        drop(self.namespaces.insert(attached));
    }

    /// A namespace that was made for a client goes again, and a pattern that was removed goes on
    /// costing every publish until Redis restarts: those have channels.
    fn private_rooms(&self, namespace: &str, is_dynamic: bool) -> Private {
        let dialect = self.wire.channels().dialect();
        match dialect {
            Dialect::Sharded(channel::Mode::DynamicPrivate) => return Private::Channels,
            Dialect::Sharded(_) => return Private::Elsewhere,
            Dialect::Classic => {}
        }
        let wants_pattern = match self.config.private_rooms {
            PrivateRooms::Channel => false,
            PrivateRooms::Pattern => true,
            PrivateRooms::Auto => {
                !is_dynamic && self.patterns.load(Ordering::Relaxed) < MAX_PATTERNS
            }
        };
        if !wants_pattern {
            return Private::Channels;
        }
        self.patterns.fetch_add(1, Ordering::Relaxed);
        let tag = self.node.as_str().get(..TAG_LEN).unwrap_or_default();
        Private::Pattern {
            pattern: self.wire.channels().private_rooms_pattern(namespace, tag),
            tag: tag.into(),
        }
    }

    /// Says it to Redis; the future resolves to the number of connections that took it.
    fn send(
        self: &Arc<Self>,
        publication: Publication,
    ) -> impl Future<Output = Result<usize, BusError>> + Send + use<> {
        let Publication { channel, payload } = publication;
        self.metrics.published_bytes.inc_by(payload.len() as u64);
        let started = Instant::now();
        let is_sharded = self.wire.channels().dialect() != Dialect::Classic;
        let published = self.publisher.publish(&channel, &payload, is_sharded);
        let shared = Arc::clone(self);
        async move {
            let outcome = published.await;
            let metrics = &shared.metrics;
            metrics
                .publish_seconds
                .observe(started.elapsed().as_secs_f64());
            match &outcome {
                Ok(_) => metrics.published.ok.inc(),
                Err(PublishError::Unconfirmed(_)) => metrics.published.unconfirmed.inc(),
                Err(PublishError::Overloaded { .. }) => metrics.published.overloaded.inc(),
                Err(PublishError::Refused(_)) => metrics.published.invalid.inc(),
                Err(PublishError::Unavailable(_)) => metrics.published.unavailable.inc(),
            }
            let receivers = outcome.map_err(bus_error)?;
            Ok(usize::try_from(receivers).unwrap_or(usize::MAX))
        }
    }
}

impl Shared {
    /// The channels by which the node takes part in a namespace; what is asked there, only until the
    /// node retires.
    fn base_channels(&self, attached: &Attached) -> (Vec<String>, Vec<String>) {
        let channels = self.wire.channels();
        let namespace = &attached.namespace;
        let mut staying = vec![channels.broadcast(namespace)];
        staying.extend(channels.response(namespace));
        let mut asked = vec![channels.response_of(namespace, attached.uid.as_str())];
        if channels.dialect() == Dialect::Classic {
            asked.push(channels.request(namespace));
        }
        (staying, asked)
    }

    fn subscribe_namespace(&self, attached: &Attached) {
        let (staying, asked) = self.base_channels(attached);
        let names = |names: Vec<String>| names.into_iter().map(Arc::from);
        self.hearing.subscribe(Priority::Control, names(staying));
        if !self.has_retired() {
            self.hearing.subscribe(Priority::Control, names(asked));
        }
        if let Private::Pattern { pattern, .. } = &attached.private_rooms {
            self.hearing.subscribe_pattern(pattern.as_str().into());
        }
    }

    fn unsubscribe_namespace(&self, attached: &Attached) {
        let (staying, asked) = self.base_channels(attached);
        self.hearing.unsubscribe(asked);
        self.hearing.unsubscribe(staying);
        if let Private::Pattern { pattern, .. } = &attached.private_rooms {
            self.hearing.unsubscribe_pattern(pattern);
        }
        let rooms = attached.interest.lock().drain();
        let channels = self.wire.channels();
        let rooms = rooms
            .iter()
            .filter_map(|room| attached.channel_of(channels, room));
        self.hearing.unsubscribe(rooms);
    }

    /// Leaves the channels on which nodes are asked and counted, and gives up the lease. Questions
    /// that have been asked before are still answered.
    async fn leave(&self) {
        if self.is_retired.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut left: Vec<Arc<str>> = Vec::new();
        for attached in self.namespaces.all() {
            let (staying, mut asked) = self.base_channels(&attached);
            if self.wire.channels().dialect() != Dialect::Classic {
                asked.extend(staying);
            }
            self.hearing.unsubscribe(&asked);
            left.extend(asked.into_iter().map(Arc::from));
        }
        if let Err(error) = self.hearing.confirmed(left, SHUTDOWN_TIMEOUT).await {
            tracing::warn!(%error, "other nodes may wait for answers of this one");
        }
        match time::timeout(SHUTDOWN_TIMEOUT, self.release()).await {
            Ok(Ok(())) => {}
            _ => tracing::debug!("the lease was not given back; it ends by itself"),
        }
    }

    fn has_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
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
                let gap = Gap::new(from, to);
                let length = to.duration_since(from).unwrap_or_default();
                metrics.gaps.inc();
                metrics.gap_seconds.inc_by(length.as_secs_f64());
                tracing::warn!(?length, "messages of other nodes may have been missed");
                for f in &*self.on_gap.lock() {
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

fn bus_error(error: PublishError) -> BusError {
    match error {
        PublishError::Unavailable(reason) => BusError::Unavailable(reason),
        PublishError::Unconfirmed(reason) => BusError::Unconfirmed(reason),
        PublishError::Overloaded { queued_bytes } => BusError::Overloaded { queued_bytes },
        PublishError::Refused(reason) => BusError::Invalid(reason),
    }
}

fn unavailable<T: Send + 'static>(why: &str) -> BusFuture<Result<T, BusError>> {
    Box::pin(std::future::ready(Err(BusError::Unavailable(why.into()))))
}

impl std::fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisBus")
            .field("node", &self.shared.node)
            .field("prefix", &self.shared.config.prefix)
            .finish_non_exhaustive()
    }
}
