//! The bus over Redis: several nodes, Node.js servers with Socket.IO's Redis adapters, and emitters
//! of any language share one set of rooms.
//!
//! ```text
//!          BusHandle ── publish ──► Outgoing ──────────────────► Redis
//!              │ └───── ask ──────► Questions ──► Outgoing         │
//!              │                        │ └─────► Membership       │
//!           changed                  NodeJs                        │
//!              ▼                        ▲                          ▼
//!        Subscriptions            Receiver ◄── BusSink ◄── subscriber link
//!                                       └──► Listener (the namespace's sockets)
//! ```
//!
//! Each part owns its state and its locks. Everything that arrives is decoded and carried out on
//! the task of the subscriber link, in the order of arrival.
//!
//! **Why parts.** A message from Redis, a publish and a renewal of the lease run on
//! different tasks at the same time. With one lock for all, a slow answer would delay
//! broadcasts. So each part has its own locks; `ARCHITECTURE.md` has their order.
//!
//! **Why everything runs on the task that reads.** A queue between reading and carrying
//! out would need a limit, and beyond it messages would be lost silently. Without one,
//! Redis disconnects a node that is too slow; the node notices it, and it is a gap like any other.
//!
//! **Life of a node**: `check` (nothing is changed) → links → flowing (a probe has come
//! back) → lease, so that others ask it → … → `retire`: no lease, asked no more →
//! `close`.

mod config;
mod gaps;
mod incoming;
mod log;
mod membership;
mod metrics;
mod node_js;
mod once;
mod outgoing;
mod peers;
mod questions;
mod reply;
mod script;
mod sessions;
mod start;
mod streams;
mod subscriptions;
mod upkeep;
mod warnings;

use std::{
    future::ready,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use roomcast_emitter::redis::PublishError;
use roomcast_protocol::{
    channel::{Dialect, EMITTER_UID},
    id::{NodeId, SocketId},
    message::{Broadcast, Message},
    question::{Answered, Question},
    receipt::Receipt,
};
use tokio::{task::JoinSet, time};

pub use self::{
    config::{PrivateRooms, RedisConfig},
    start::{RedisRights, StartError},
};
use self::{
    gaps::{GapHandler, Gaps},
    incoming::Receiver,
    log::RedisLog,
    membership::Membership,
    metrics::{LinkMetrics, Series},
    node_js::NodeJs,
    outgoing::Outgoing,
    questions::Questions,
    sessions::RedisSessions,
    streams::{StreamLog, Streams},
    subscriptions::{AttachedNamespace, Subscriptions},
};
use crate::{
    bus::{
        Attachment, Bus, BusError, BusFuture, BusHandle, Gap, Health, Log, LogLimits, Once, Peer,
        Published, Sessions, Tracking,
    },
    subscriber::{Sink, SubscriberEvent, SubscriberState},
};

/// How long each step of a shutdown may take.
/// An unreachable Redis must not prevent a process from ending. The lease then lapses by
/// itself.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// A node's membership in a cluster over Redis. Created by [`RedisBus::connect`].
///
/// In a Redis Cluster, [`Published::nodes`] is a lower bound with the classic dialect,
/// because Redis counts the subscribers of one of its servers. With the sharded dialect
/// in a Redis Cluster, order is kept per channel, that is per room, and not between
/// rooms.
pub struct RedisBus {
    core: Arc<Core>,
    tasks: Mutex<JoinSet<()>>,
}

/// The parts of a bus.
/// The tasks of the bus hold it weakly, so dropping the bus ends them.
struct Core {
    outgoing: Arc<Outgoing>,
    membership: Arc<Membership>,
    subscriptions: Arc<Subscriptions>,
    questions: Arc<Questions>,
    node_js: Arc<NodeJs>,
    /// In the streams dialect.
    streams: Option<Arc<Streams>>,
    incoming: Receiver,
    metrics: LinkMetrics,
    series: Series,
    gaps: Arc<Gaps>,
    has_left: AtomicBool,
}

impl Bus for RedisBus {
    fn attach(&self, attachment: Attachment<'_>) -> Arc<dyn BusHandle> {
        Arc::new(Handle {
            namespace: self.core.subscriptions.attach(attachment),
            core: Arc::clone(&self.core),
        })
    }

    fn health(&self) -> Health {
        match self.core.subscriptions.subscriber.state() {
            SubscriberState::Up { .. } => {
                // Nodes that speak another dialect with the same prefix receive nothing
                // of this one, although both connections are fine.
                let disagreement = self.core.membership.disagreement();
                let reason = disagreement
                    .or_else(|| self.core.stream_interrupted())
                    .or_else(|| self.core.outgoing.without_time());
                reason.map_or(Health::Flowing, Health::Interrupted)
            }
            SubscriberState::Down { reason } => Health::Interrupted(reason.to_string().into()),
        }
    }

    /// The nodes with a valid lease at the last renewal of this node's lease.
    fn nodes(&self) -> Vec<NodeId> {
        let membership = &self.core.membership;
        let mut nodes: Vec<_> = membership.leases().alive_nodes().cloned().collect();
        // Those whose leases Redis has lost a moment ago are alive, as far as is known.
        for kept in membership.peers.nodes() {
            if !nodes.contains(&kept) {
                nodes.push(kept);
            }
        }
        nodes
    }

    fn find_peer(&self, tag: &str) -> Option<Peer> {
        self.core.membership.peers.find(tag)
    }

    fn read_peers(&self) -> BusFuture<()> {
        let membership = Arc::clone(&self.core.membership);
        Box::pin(async move { membership.peers.refresh(&membership).await })
    }

    /// That of Redis at the last renewal of this node's lease, plus the time since then.
    fn time(&self) -> Option<Duration> {
        self.core.membership.time()
    }

    fn on_gap(&self, f: GapHandler) {
        self.core.gaps.add_handler(f);
    }

    fn retire(&self, _: &NodeId) -> BusFuture<()> {
        let core = Arc::clone(&self.core);
        Box::pin(async move {
            // The sharded dialect asks on the channel that carries broadcasts, which are needed
            // until the last socket has disconnected: the node keeps answering.
            if core.outgoing.wire.channels().dialect() == Dialect::Classic {
                core.leave().await;
            }
        })
    }

    fn close(&self, _: &NodeId) -> BusFuture<()> {
        let core = Arc::clone(&self.core);
        // First, because the task of the lease would take it again.
        self.tasks.lock().abort_all();
        Box::pin(async move {
            core.leave().await;
            // If these take too long, no receiver is left.
            let _ = time::timeout(SHUTDOWN_TIMEOUT, core.questions.finish()).await;
            let subscriber = &core.subscriptions.subscriber;
            let _ = time::timeout(SHUTDOWN_TIMEOUT, subscriber.close()).await;
            let publisher = &core.outgoing.publisher;
            let _ = time::timeout(SHUTDOWN_TIMEOUT, publisher.close()).await;
        })
    }

    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        self.core.series.collectors()
    }
}

/// A namespace's access to the bus.
struct Handle {
    core: Arc<Core>,
    namespace: Arc<AttachedNamespace>,
}

impl BusHandle for Handle {
    fn tracking(&self) -> Tracking {
        let dialect = self.core.outgoing.wire.channels().dialect();
        self.namespace.tracking(dialect)
    }

    fn changed(&self) {
        self.core.subscriptions.update(&self.namespace);
    }

    fn confirm(&self, rooms: Vec<Box<str>>) -> BusFuture<Result<(), BusError>> {
        let subscribed = self.core.subscriptions.confirm(&self.namespace, &rooms);
        match self.core.streams.clone() {
            None => Box::pin(subscribed),
            Some(streams) => Box::pin(async move {
                streams.begun().await?;
                subscribed.await
            }),
        }
    }

    fn expect(&self, socket: &SocketId) -> Option<BusFuture<Result<(), BusError>>> {
        let subscriptions = &self.core.subscriptions;
        let is_up = matches!(subscriptions.subscriber.state(), SubscriberState::Up { .. });
        // While Redis is unreachable, clients connect without waiting for it.
        if !is_up || !subscriptions.expect(&self.namespace, socket.as_str()) {
            return None;
        }
        let rooms = [socket.as_str().into()];
        Some(Box::pin(subscriptions.confirm(&self.namespace, &rooms)))
    }

    fn publish(&self, message: Message) -> BusFuture<Result<Published, BusError>> {
        let Core {
            outgoing,
            subscriptions,
            ..
        } = &*self.core;
        let (name, uid) = (&self.namespace.name, self.namespace.uid.as_str());
        if let Some(streams) = &self.core.streams {
            return streams.publish(name, uid, &message);
        }
        let mut publication = match outgoing.wire.message(name, uid, &message, None) {
            Ok(publication) => publication,
            Err(error) => return Box::pin(ready(Err(outgoing.invalid(&error)))),
        };
        let (joins, channels) = (&outgoing.recent_joins, outgoing.wire.channels());
        // Nodes whose sockets were commanded to join a moment ago may not have subscribed to the
        // room yet.
        if let Some(channel) = joins.channel(channels, name, &message) {
            publication.channel = channel;
        }
        let channel = &publication.channel;
        // Before it is sent, because the subscription may change until the reply.
        let own = subscriptions.own_subscriptions(&self.namespace, channel);
        let sending = outgoing.publish(publication);
        Box::pin(async move {
            let receivers = sending.await?;
            Ok(Published {
                nodes: receivers.saturating_sub(own),
                ..Published::default()
            })
        })
    }

    fn publish_once(
        &self,
        broadcast: Broadcast,
        once: Once,
    ) -> BusFuture<Result<Published, BusError>> {
        let Core {
            outgoing,
            subscriptions,
            ..
        } = &*self.core;
        if let Some(streams) = &self.core.streams {
            let message = Message::Broadcast(broadcast);
            // Not this node's uid: it receives the broadcast, too.
            let namespace = &self.namespace.name;
            let publishing = streams.publish_once(namespace, EMITTER_UID, &message, once);
            return Box::pin(async move {
                let published = publishing.await?;
                // The namespace has no journal in which this would be a place.
                Ok(Published {
                    position: None,
                    ..published
                })
            });
        }
        once::publish(
            outgoing,
            subscriptions,
            &self.namespace,
            &broadcast,
            once,
            None,
        )
    }

    fn keep_receipt(&self, once: Once, receipt: Receipt) -> BusFuture<Result<(), BusError>> {
        once::keep(&self.core.outgoing, &self.namespace.name, &once, &receipt)
    }

    fn log(&self, limits: LogLimits) -> Option<Arc<dyn Log>> {
        let Core {
            outgoing,
            subscriptions,
            ..
        } = &*self.core;
        match &self.core.streams {
            // Node's stream is the journal; logs of rooms have no place in it.
            Some(streams) if limits.history.is_none() => {
                return Some(Arc::new(StreamLog::new(streams, &self.namespace)));
            }
            Some(streams) => streams.has_channel_log(),
            None => {}
        }
        let log = RedisLog::new(outgoing, subscriptions, &self.namespace, limits);
        Some(Arc::new(log))
    }

    fn sessions(&self) -> Option<Arc<dyn Sessions>> {
        let (outgoing, namespace) = (&self.core.outgoing, &self.namespace.name);
        let streams = self.core.streams.as_ref();
        let node_js = streams.map(|streams| &streams.session_prefix);
        let sessions = RedisSessions::new(outgoing, namespace, node_js);
        Some(Arc::new(sessions))
    }

    fn is_own(&self, socket: &SocketId) -> bool {
        self.namespace.is_own(socket.as_str())
    }

    fn ask(&self, question: Question, timeout: Duration) -> BusFuture<Result<Answered, BusError>> {
        let namespace = Arc::clone(&self.namespace);
        self.core.questions.ask(namespace, question, timeout)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.subscriptions.detach(&self.namespace);
        let subscriptions = &self.core.subscriptions;
        if let Some(streams) = &self.core.streams
            && subscriptions.namespace(&self.namespace.name).is_none()
        {
            streams.forget_chain(&self.namespace.name);
        }
    }
}

impl Core {
    /// Returns why the stream is not read, if there is one and it is not.
    fn stream_interrupted(&self) -> Option<Arc<str>> {
        self.streams.as_ref()?.interrupted()
    }

    /// Renews the lease. The first namespace is the one whose members are counted for the metric.
    async fn renew_lease(&self) -> Result<(), PublishError> {
        let namespaces = self.subscriptions.namespaces();
        let first = namespaces.iter().map(|namespace| &*namespace.name).min();
        let servers = self.membership.renew(first).await?;
        self.node_js.counted(servers, &self.subscriptions);
        Ok(())
    }

    /// Gives up the lease, then the channels on which nodes are asked and counted. In this order, a
    /// question in between finds the node with both or without a lease. Questions that were asked
    /// before are still answered.
    async fn leave(&self) {
        if self.has_left.swap(true, Ordering::AcqRel) {
            return;
        }
        match time::timeout(SHUTDOWN_TIMEOUT, self.membership.leave()).await {
            Ok(Ok(())) => {}
            _ => tracing::debug!("the lease was not released; it expires by itself"),
        }
        self.node_js
            .leave(&self.subscriptions, SHUTDOWN_TIMEOUT)
            .await;
    }

    /// Runs on the task that reads, so nothing here may block.
    fn subscriber_event(&self, event: SubscriberEvent) {
        let metrics = &self.metrics;
        match event {
            SubscriberEvent::Up { resubscribed, took } => {
                self.node_js.is_counted();
                metrics.resubscribe_seconds.set(took.as_secs_f64());
                tracing::info!(resubscribed, ?took, "listening on Redis");
            }
            SubscriberEvent::Down { reason } => {
                metrics.subscriber_up.set(0);
                metrics.subscriber_reconnects.inc();
                tracing::warn!(%reason, "the connection of the subscriber was lost; reconnecting");
            }
            SubscriberEvent::Refused { name, error } => {
                tracing::error!(%name, %error, "Redis refuses a subscription: check the user's rights");
            }
            SubscriberEvent::Gap { from, to } => {
                let is_harmless = |streams: &Arc<Streams>| !streams.loses_by_channels();
                if self.streams.as_ref().is_some_and(is_harmless) {
                    tracing::info!(
                        "questions and events between servers may have been missed; messages are in the stream"
                    );
                    return;
                }
                self.gaps.report(&Gap { from, to });
            }
        }
    }
}

/// Passes the subscriber's messages to the bus, as long as the bus exists.
/// It is weak because the subscriber, which the core owns, holds the sink.
struct BusSink(Weak<Core>);

impl Sink for BusSink {
    fn message(&self, channel: &[u8], payload: &[u8]) {
        if let Some(core) = self.0.upgrade() {
            core.incoming.receive(channel, payload);
        }
    }

    fn matched(&self, pattern: &[u8], channel: &[u8], payload: &[u8]) {
        if let Some(core) = self.0.upgrade() {
            core.incoming.receive_by(pattern, channel, payload);
        }
    }

    fn event(&self, event: SubscriberEvent) {
        if let Some(core) = self.0.upgrade() {
            core.subscriber_event(event);
        }
    }
}

impl std::fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisBus")
            .field("node", &self.core.outgoing.node)
            .field("prefix", &self.core.outgoing.wire.channels().prefix())
            .finish_non_exhaustive()
    }
}
