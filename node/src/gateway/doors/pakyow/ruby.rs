//! Pakyow's own processes, in Ruby, which share a Redis with the nodes.
//!
//! ```text
//!  process ── PUBLISH news {"a":1} ─────► Redis ──► nodes with members of `news` ──► their sockets
//!  node ───── the same ────────────────────┘ └────► processes
//!  node ───── PUBLISH pw:changed <digest> ─► nodes read the subscriptions of the digest again
//! ```
//!
//! In the registry, a channel of Redis has the bare name of a channel of the door,
//! without prefix and envelope. So a push takes one way for all, in one order: a node
//! receives its own pushes by the echo. A node listens to the channels of all rooms of
//! the namespace that have members, so clients of other doors receive the pushes, too. A
//! channel is given up a moment after its last member left, because subscribing again
//! could lose a push.
//!
//! Processes publish nothing when they change subscriptions. A node reads them when a
//! socket connects, after each route that it has called, when another node publishes a
//! change, and every few seconds.
//!
//! Any user of that Redis can publish anything. Messages that are not JSON, or too large,
//! are ignored and counted.
//!
//! **Why a separate connection.** It is a different Redis than that of the bus, with
//! other channels and rights, and its loss must not end the readiness of the node.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use roomcast::{
    RedisConfig, RoomChange, Server,
    bus::subscriber::{
        ConfirmError, Priority, Sink, Subscriber, SubscriberConfig, SubscriberEvent,
    },
    emitter::redis::PublishError,
    pakyow::{SOCKET_CHANNEL, is_digest},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    Pakyow,
    form::PUSH,
    registry::{Bounds, Registry},
    settings::RegistrySettings,
    subscriptions::{RESERVED, push_args},
};
use crate::gateway::{clock::now, object, redis_commands::RedisCommands};

/// The channel on which nodes publish the digests whose subscriptions they have changed.
const CHANGED: &str = "pw:changed";

/// How long Redis may take to confirm that it listens.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a channel without members is kept.
const LINGER: Duration = Duration::from_secs(1);

/// A push to the sockets of one digest.
#[derive(Serialize, Deserialize)]
struct Direct<'a> {
    key: &'a str,
    #[serde(borrow)]
    channel: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    message: &'a RawValue,
}

/// The Redis of Pakyow's processes.
pub(super) struct Ruby {
    settings: RegistrySettings,
    redis: Arc<RedisCommands>,
    /// The beginning of the names that the cluster's own bus uses.
    bus_prefix: Option<String>,
    /// Set when the server is built.
    subscriber: OnceLock<Subscriber>,
    /// Channels whose last member has left, and when.
    idle: Mutex<HashMap<Arc<str>, Instant>>,
    /// Digests whose subscriptions have changed.
    changed: Mutex<BTreeSet<String>>,
    has_changed: Notify,
    messages: IntCounterVec,
}

impl Ruby {
    pub(super) fn new(
        settings: &RegistrySettings,
        bus: Option<&RedisConfig>,
        messages: IntCounterVec,
    ) -> Result<Self, String> {
        let address = settings.address();
        let address = address.map_err(|problem| format!("doors.pakyow.registry: {problem}"))?;
        let config = bus.map_or_else(
            || RedisConfig::new(address.clone()),
            |bus| RedisConfig {
                url: address.clone(),
                ..bus.clone()
            },
        );
        Ok(Self {
            settings: settings.clone(),
            redis: Arc::new(RedisCommands::new(config)),
            bus_prefix: bus.map(|bus| bus.prefix.clone()),
            subscriber: OnceLock::new(),
            idle: Mutex::default(),
            changed: Mutex::default(),
            has_changed: Notify::new(),
            messages,
        })
    }

    /// The subscriptions in the hash.
    pub(super) fn registry(&self, bounds: Bounds) -> Registry {
        Registry::of_hash(bounds, Arc::clone(&self.redis), self.settings.key.clone())
    }

    /// Begins to listen.
    pub(super) fn start(&self, pakyow: &Arc<Pakyow>, server: &Server) {
        let probe: Arc<str> = format!("{}:probe:{}", self.settings.key, server.node()).into();
        let publisher = Arc::clone(self.redis.publisher());
        let config = SubscriberConfig::new(
            Arc::new(move |_| Arc::clone(&probe)),
            Arc::new(move |channel, number| {
                // Its loss shows itself: the probe does not come back.
                drop(publisher.publish(channel, number.to_string().as_bytes(), false));
                publisher.is_up()
            }),
        );
        let sink = Incoming(Arc::downgrade(pakyow));
        let subscriber = Subscriber::start(self.redis.endpoint(), config, sink);
        subscriber.subscribe(Priority::Control, [CHANGED.into()]);
        drop(self.subscriber.set(subscriber));
        let namespace = server.of(pakyow.namespace());
        match namespace.watch_rooms() {
            Ok(mut changes) => {
                let pakyow = Arc::clone(pakyow);
                drop(tokio::spawn(async move {
                    while let Some(ruby) = &pakyow.ruby {
                        if let Ok(changes) = timeout(LINGER, changes.next()).await {
                            ruby.follow(&changes);
                        }
                        ruby.give_up();
                    }
                }));
            }
            Err(error) => tracing::error!(%error, "cannot listen to pushes of Pakyow's processes"),
        }
        let pakyow = Arc::clone(pakyow);
        drop(tokio::spawn(
            async move { pakyow.read_again_always().await },
        ));
    }

    /// Whether a name may be a channel of that Redis. Those of the cluster's own bus, of
    /// Redis and of the registry have other readers, which a push must not reach.
    pub(super) fn is_bare(&self, name: &str) -> bool {
        let is_of_bus = |prefix: &String| name.starts_with(prefix.as_str());
        match name.strip_prefix(SOCKET_CHANNEL) {
            Some(digest) => is_digest(digest),
            None => {
                !name.is_empty()
                    && !name.starts_with(RESERVED)
                    && !name.starts_with("__")
                    && !self.bus_prefix.as_ref().is_some_and(is_of_bus)
            }
        }
    }

    /// Resolves when Redis has confirmed that this node listens to the channels, which
    /// have members here.
    pub(super) async fn listen(&self, channels: &[String]) -> Result<(), ConfirmError> {
        let names = channels.iter().filter(|name| self.is_bare(name));
        let names: Vec<Arc<str>> = names.map(|name| Arc::from(name.as_str())).collect();
        let Some(subscriber) = self.subscriber.get().filter(|_| !names.is_empty()) else {
            return Ok(());
        };
        {
            // Under the lock, so that `give_up` cannot take a channel that is about to
            // be subscribed.
            let mut idle = self.idle.lock();
            for name in &names {
                idle.remove(name);
            }
            subscriber.subscribe(Priority::Room, names.iter().cloned());
        }
        subscriber.confirm(names, CONFIRM_TIMEOUT).await
    }

    /// Rooms have got their first member or lost their last one.
    fn follow(&self, changes: &[RoomChange]) {
        let Some(subscriber) = self.subscriber.get() else {
            return;
        };
        let mut idle = self.idle.lock();
        let known = changes.iter().filter(|change| self.is_bare(&change.room));
        for change in known {
            let name = Arc::<str>::from(change.room.as_str());
            match change.is_occupied {
                true => {
                    idle.remove(&name);
                    subscriber.subscribe(Priority::Room, [name]);
                }
                false => drop(idle.insert(name, now())),
            }
        }
    }

    /// Stops listening to channels that have had no members for a while.
    fn give_up(&self) {
        let Some(subscriber) = self.subscriber.get() else {
            return;
        };
        let mut idle = self.idle.lock();
        let now = now();
        let given_up = idle.extract_if(|_, since| now.duration_since(*since) >= LINGER);
        subscriber.unsubscribe(given_up.map(|(name, _)| name));
    }

    /// Pushes a message, which is JSON, to a channel.
    pub(super) async fn push(&self, channel: &str, message: &str) -> Result<(), PublishError> {
        let command = ["PUBLISH", channel, message];
        self.redis.run(channel, &command).await.map(drop)
    }

    /// Pushes a message to the sockets of one digest.
    pub(super) async fn push_to(
        &self,
        digest: &str,
        channel: &str,
        message: &RawValue,
    ) -> Result<(), PublishError> {
        let direct = Direct {
            key: digest,
            channel: channel.into(),
            message,
        };
        // Texts and valid JSON are always written.
        let direct = serde_json::to_string(&direct).unwrap_or_default();
        self.push(&format!("{SOCKET_CHANNEL}{digest}"), &direct)
            .await
    }

    /// Notifies other nodes, which may be of another cluster, that subscriptions have changed.
    pub(super) async fn changed(&self, digest: &str) {
        if let Err(error) = self.push(CHANGED, digest).await {
            tracing::warn!(%error, "other nodes read the subscriptions of a Pakyow client later");
        }
    }

    fn take_changed(&self) -> Vec<String> {
        std::mem::take(&mut *self.changed.lock())
            .into_iter()
            .collect()
    }
}

impl Pakyow {
    /// Carries out a message of Redis. Returns the outcome for the metrics.
    fn received(&self, channel: &[u8], payload: &[u8]) -> &'static str {
        let texts = (std::str::from_utf8(channel), std::str::from_utf8(payload));
        let (Some(ruby), (Ok(channel), Ok(payload))) = (&self.ruby, texts) else {
            return "ignored";
        };
        if channel == CHANGED {
            // Most digests are those of other nodes.
            if self.has_sockets_of(payload) {
                // Read by a task, because nothing may be awaited where messages arrive.
                ruby.changed.lock().insert(payload.to_owned());
                ruby.has_changed.notify_one();
            }
            return "changed";
        }
        if payload.len() > ruby.settings.max_push.0 {
            return "too_large";
        }
        let args = match channel.strip_prefix(SOCKET_CHANNEL) {
            Some(digest) => {
                let direct = object::read::<Direct<'_>>(payload.as_bytes());
                let direct = direct.ok().filter(|direct| direct.key == digest);
                direct.map(|direct| push_args(direct.message.get(), &direct.channel))
            }
            // Only a whole value can be put between others.
            None => serde_json::from_str::<&RawValue>(payload)
                .ok()
                .map(|message| push_args(message.get(), channel)),
        };
        let (Some(Ok(args)), Ok(namespace)) = (args, self.sockets_of_all()) else {
            return "ignored";
        };
        // Nothing is awaited for the sockets of this node, so the order is that of Redis.
        match namespace
            .local()
            .to(channel)
            .emit(PUSH, args)
            .now_or_never()
        {
            Some(Ok(_)) => "pushed",
            _ => "ignored",
        }
    }

    /// Reads the subscriptions of this node's sockets again, at once after a notice of a change.
    async fn read_again_always(self: Arc<Self>) {
        let Some(ruby) = &self.ruby else {
            return;
        };
        let mut ticks = interval(ruby.settings.refresh.0);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let digests = tokio::select! {
                _ = ticks.tick() => self.digests(),
                () = ruby.has_changed.notified() => ruby.take_changed(),
            };
            if let Err(error) = self.read_again(&digests).await {
                tracing::warn!(%error, "changes of Pakyow's processes are not known yet");
            }
        }
    }
}

/// Receives the messages of the subscriber.
struct Incoming(Weak<Pakyow>);

impl Sink for Incoming {
    fn message(&self, channel: &[u8], payload: &[u8]) {
        let Some(pakyow) = self.0.upgrade() else {
            return;
        };
        let outcome = pakyow.received(channel, payload);
        if let Some(ruby) = &pakyow.ruby {
            ruby.messages.with_label_values(&[outcome]).inc();
        }
    }

    fn event(&self, event: SubscriberEvent) {
        match event {
            SubscriberEvent::Up { resubscribed, .. } => {
                tracing::info!(
                    channels = resubscribed,
                    "listening to pushes of Pakyow's processes"
                );
            }
            SubscriberEvent::Down { reason } => {
                tracing::warn!(%reason, "not listening to pushes of Pakyow's processes");
            }
            SubscriberEvent::Gap { .. } => {
                tracing::warn!("pushes of Pakyow's processes may have been lost");
                let Some(pakyow) = self.0.upgrade() else {
                    return;
                };
                if let Some(ruby) = &pakyow.ruby {
                    *ruby.changed.lock() = pakyow.digests().into_iter().collect();
                    ruby.has_changed.notify_one();
                }
            }
            SubscriberEvent::Refused { name, error } => {
                tracing::warn!(%name, %error, "Redis refuses a channel of Pakyow's processes");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;

    fn ruby(bus: Option<&RedisConfig>) -> Ruby {
        let settings = RegistrySettings {
            url: Some("redis://127.0.0.1:1".parse().unwrap()),
            ..RegistrySettings::default()
        };
        let messages = IntCounterVec::new(Opts::new("a", "b"), &["outcome"]).unwrap();
        Ruby::new(&settings, bus, messages).unwrap()
    }

    #[test]
    fn names_of_the_bus_of_redis_and_of_the_registry_are_no_channels() {
        let bus = RedisConfig::new("redis://127.0.0.1:1".parse().unwrap());
        let of_cluster = ruby(Some(&bus));
        let own = "pw:socket:7a1c653e3a0aec95b6f395b05a46eace0ce22a50";
        for name in ["news", "scope:post;mutation:create", "user:7", own] {
            assert!(of_cluster.is_bare(name), "{name}");
        }
        for name in [
            "",
            "pw:changed",
            "pw:socket:x",
            "__keyspace@0__:a",
            "socket.io#/chat#",
            "socket.io-request#/#",
        ] {
            assert!(!of_cluster.is_bare(name), "{name}");
        }
        assert!(ruby(None).is_bare("socket.io#/chat#"), "there is no bus");
    }

    #[test]
    fn a_push_to_one_digest_is_the_object_that_processes_publish() {
        let text = r#"{"key":"7a1c","channel":"in\"box","message":[1,{"key":2}]}"#;
        let direct: Direct<'_> = serde_json::from_str(text).unwrap();
        assert_eq!((direct.key, &*direct.channel), ("7a1c", "in\"box"));
        assert_eq!(direct.message.get(), r#"[1,{"key":2}]"#);
        assert_eq!(serde_json::to_string(&direct).unwrap(), text);
    }
}
