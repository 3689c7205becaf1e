//! How a node takes part in a cluster over Redis.

use std::time::Duration;

use roomcast_emitter::endpoint::RedisUrl;
use roomcast_protocol::{channel::Dialect, wire::Parser};

/// The settings of a [`RedisBus`](crate::RedisBus). All nodes, Node.js servers and emitters of a
/// cluster must agree about `prefix`, `dialect` and `parser`.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// Where Redis is.
    pub url: RedisUrl,
    /// What all names in Redis begin with: `key` of Node's adapter. Default `socket.io`.
    pub prefix: String,
    /// Which of Node's adapters is spoken. Default: the classic one.
    pub dialect: Dialect,
    /// How broadcasts are encoded in the classic dialect. Default: MessagePack.
    pub parser: Parser,
    /// Whether Node's servers are answered on their own channels, as with Node's
    /// `publishOnSpecificResponseChannel`. Default false.
    pub specific_responses: bool,
    /// How messages to single sockets find this node in the classic dialect. Default: automatic.
    pub private_rooms: PrivateRooms,
    /// How long Redis may take to answer a publish. Default 5 s.
    pub publish_timeout: Duration,
    /// How much may wait to be published, in bytes. Default 16 MiB.
    pub max_queue_bytes: usize,
    /// How often the node checks that what it publishes comes back. Default 1 s.
    pub probe_interval: Duration,
    /// How long that may take before the connection counts as broken. Default 5 s.
    pub probe_timeout: Duration,
}

/// How messages to the private rooms of this node's sockets reach it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrivateRooms {
    /// By a pattern as long as Redis has few of them, else by channels: each pattern costs every
    /// publish of everybody 25 ns, a channel costs memory and a command per connected socket.
    #[default]
    Auto,
    /// One pattern per namespace.
    Pattern,
    /// One channel per connected socket.
    Channel,
}

impl RedisConfig {
    /// The defaults, for this server.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            prefix: "socket.io".into(),
            dialect: Dialect::default(),
            parser: Parser::default(),
            specific_responses: false,
            private_rooms: PrivateRooms::default(),
            publish_timeout: Duration::from_secs(5),
            max_queue_bytes: 16 << 20,
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(5),
        }
    }
}
