//! A Redis server with nodes, and a look behind the scenes.

use std::sync::Arc;

use prometheus::{Registry, TextEncoder};
use roomcast_adapter::{NodeId, RedisBus, RedisConfig};
use roomcast_emitter::entropy;
use roomcast_protocol::channel::{Channels, Dialect, Uid, uid};

use crate::{
    node::{Node, eventually},
    support::{Plain, Redis},
};

pub(crate) struct Deployment {
    pub(crate) server: Redis,
    pub(crate) config: RedisConfig,
}

impl Deployment {
    pub(crate) fn start() -> Self {
        Self::of(Dialect::Classic)
    }

    pub(crate) fn of(dialect: Dialect) -> Self {
        let server = Redis::start();
        let mut config = RedisConfig::new(server.url().parse().unwrap());
        config.dialect = dialect;
        Self { server, config }
    }

    /// A connection to Redis.
    pub(crate) fn plain(&self) -> Plain {
        Plain::connect(&self.server).unwrap()
    }

    pub(crate) fn channels(&self) -> Channels {
        Channels::new(&self.config.prefix, self.config.dialect)
    }

    /// A node that hears others in the main namespace.
    pub(crate) async fn node(&self) -> Node {
        self.node_in("/").await
    }

    pub(crate) async fn node_in(&self, namespace: &'static str) -> Node {
        node(&self.config, namespace).await
    }

    /// Waits until so many connections listen on the channel.
    pub(crate) async fn until_subscribed(&self, channel: &str, count: usize) {
        eventually("the channel has so many subscribers", || {
            self.subscribers(channel) == count
        })
        .await;
    }

    /// How many connections listen on the channel.
    pub(crate) fn subscribers(&self, channel: &str) -> usize {
        let command = match self.config.dialect {
            Dialect::Classic | Dialect::Streams => "NUMSUB",
            Dialect::Sharded(_) => "SHARDNUMSUB",
        };
        number(&self.server.command(&["PUBSUB", command, channel]))
    }

    pub(crate) fn patterns(&self) -> usize {
        number(&self.server.command(&["PUBSUB", "NUMPAT"]))
    }

    /// How often Redis has carried out a command.
    pub(crate) fn calls(&self, command: &str) -> usize {
        let figures = self.server.command(&["INFO", "commandstats"]);
        let calls = figures.split_once(&format!("cmdstat_{command}:calls="));
        calls.map_or(0, |(_, rest)| {
            rest.split(',').next().unwrap().parse().unwrap()
        })
    }

    pub(crate) fn publish_command(&self) -> &'static str {
        match self.config.dialect {
            Dialect::Classic | Dialect::Streams => "PUBLISH",
            Dialect::Sharded(_) => "SPUBLISH",
        }
    }
}

pub(crate) async fn node(config: &RedisConfig, namespace: &'static str) -> Node {
    let (bus, id) = connect(config).await;
    let node = Node::attach(bus, id, namespace);
    node.confirm("").await;
    node
}

/// A node without namespaces.
pub(crate) async fn connect(config: &RedisConfig) -> (Arc<RedisBus>, NodeId) {
    let id = NodeId::new(&entropy::name::<20>());
    let bus = RedisBus::connect(config.clone(), &id).await.unwrap();
    (Arc::new(bus), id)
}

pub(crate) fn uid_of(node: &Node, dialect: Dialect) -> Uid {
    uid(&node.id, "/", dialect)
}

/// The value of a series of the node; the label is the only one that the metric has, if any.
pub(crate) fn metric(node: &Node, name: &str, label: &str) -> f64 {
    let registry = Registry::new();
    for collector in node.bus.collectors() {
        registry.register(collector).unwrap();
    }
    let text = TextEncoder::new();
    let text = text.encode_to_string(&registry.gather()).unwrap();
    let is_series = |line: &&str| {
        let series = line.strip_prefix(name);
        series.is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
    };
    let line = text.lines().find(is_series).expect("the series exists");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// The number at the end of a reply.
fn number(reply: &str) -> usize {
    let number = reply.trim_end().rsplit(':').next();
    number.unwrap().parse().unwrap()
}
