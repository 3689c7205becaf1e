//! The settings of a bus over Redis.

use std::time::Duration;

use roomcast_emitter::{RedisUrl, Signing};
use roomcast_protocol::{
    args::json::DEFAULT_DEPTH,
    channel::{Channels, Dialect},
    wire::Parser,
};

/// The settings of a [`RedisBus`](crate::RedisBus). `prefix`, `dialect` and `parser` must
/// be the same for all nodes, Node.js servers and emitters of a cluster.
///
/// ```
/// # use roomcast_adapter::RedisConfig;
/// # use std::time::Duration;
/// let mut config = RedisConfig::new("redis://127.0.0.1".parse()?);
/// config.prefix = "chat".into();
/// config.publish_timeout = Duration::from_secs(2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// The address of Redis.
    pub url: RedisUrl,
    /// Prefix of all names in Redis: `key` of Node's adapter. Default `socket.io`.
    pub prefix: String,
    /// The Node adapter whose wire format is used. Default: the classic one.
    pub dialect: Dialect,
    /// Key of the stream in the streams dialect: `streamName` of Node's adapter. Default:
    /// the prefix, because Node's default for both is `socket.io`.
    pub stream: Option<String>,
    /// The approximate maximum number of entries of the stream, in the streams dialect: `maxLen` of
    /// Node's adapter. Default 10,000.
    pub stream_max_len: usize,
    /// Prefix of the keys of sessions in the streams dialect: `sessionKeyPrefix` of
    /// Node's adapter. Default `sio:session:`.
    pub session_prefix: String,
    /// How broadcasts are encoded in the classic dialect. Default: MessagePack.
    pub parser: Parser,
    /// Whether answers to Node's servers are published on the asker's own channel, as with Node's
    /// `publishOnSpecificResponseChannel`. Default false.
    pub specific_responses: bool,
    /// How messages to single sockets reach this node in the classic dialect. Default: automatic.
    pub private_rooms: PrivateRooms,
    /// How long Redis may take to confirm a publish. Default 5 s.
    pub publish_timeout: Duration,
    /// Maximum size of the queue of outgoing messages, in bytes. Default 16 MiB.
    pub max_queue_bytes: usize,
    /// Interval between probes, which check that the node's messages come back. Default 1 s.
    pub probe_interval: Duration,
    /// How long a probe may take before the connection counts as broken. Default 5 s.
    pub probe_timeout: Duration,
    /// Maximum depth of the data in a message, at most 500. Default 400. A deeper message
    /// is dropped and logged. A server sets it to its own limit for clients
    /// (`Limits::json_depth`).
    pub json_depth: usize,
    /// The keys with which the nodes sign their messages. All nodes and emitters need one
    /// of them, and Node.js servers cannot take part: their messages are dropped. Not
    /// with [`Parser::Json`]. Default: nothing is signed.
    pub signing: Option<Signing>,
    /// Whether [`RedisBus::connect`](crate::RedisBus::connect) fails while Redis is
    /// unavailable. With `false` the bus starts nevertheless, and is interrupted until Redis is
    /// available. Default true.
    pub is_required: bool,
    /// The address of this node for other nodes, such as `10.0.0.7:3002`: see
    /// [`Bus::find_peer`](crate::Bus::find_peer). Visible ASCII, stated with the node's
    /// lease. Default: none.
    pub address: Option<String>,
}

/// How messages to the private rooms of this node's sockets reach it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrivateRooms {
    /// By a pattern while Redis has few of them, otherwise by channels. Each pattern costs every
    /// publish to that Redis 25 ns; a channel costs memory and a command per connected socket.
    #[default]
    Auto,
    /// One pattern per namespace.
    Pattern,
    /// One channel per connected socket.
    Channel,
}

impl RedisConfig {
    /// Returns the default settings for a Redis at `url`.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            prefix: "socket.io".into(),
            dialect: Dialect::default(),
            stream: None,
            stream_max_len: 10_000,
            session_prefix: "sio:session:".into(),
            parser: Parser::default(),
            specific_responses: false,
            private_rooms: PrivateRooms::default(),
            publish_timeout: Duration::from_secs(5),
            max_queue_bytes: 16 << 20,
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(5),
            json_depth: DEFAULT_DEPTH,
            signing: None,
            is_required: true,
            address: None,
        }
    }

    /// The names of the cluster's channels and keys.
    pub fn channels(&self) -> Channels {
        let channels = Channels::new(&self.prefix, self.dialect);
        match &self.stream {
            Some(stream) => channels.with_stream(stream),
            None => channels,
        }
    }
}
