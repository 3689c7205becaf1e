//! The options for a node of a cluster, in addition to those that emitters share.

use std::time::Duration;

use clap::{Args, ValueEnum};
use roomcast::{PrivateRooms, RedisConfig, emitter::Signing};

use super::{
    redis::RedisOptions,
    values::{ByteSize, Span, Switch},
};

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Redis")]
pub(crate) struct ClusterOptions {
    /// Respond to Node.js servers on their own channels, like their
    /// publishOnSpecificResponseChannel
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub(crate) redis_specific_responses: Switch,

    /// Subscription for messages to single sockets, in the classic dialect
    #[arg(long, value_name = "NAME", value_enum)]
    #[arg(default_value = "auto")]
    pub(crate) redis_private_rooms: PrivateRoomsBy,

    /// Prefix of the keys of sessions in the streams dialect
    ///
    /// Node's adapter calls it `sessionKeyPrefix`.
    #[arg(long, value_name = "TEXT")]
    #[arg(default_value = "sio:session:", value_parser = key_prefix)]
    pub(crate) redis_session_prefix: String,

    /// Time that Redis has to respond; after it, a message counts as unconfirmed
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value = "5s")]
    pub(crate) redis_timeout: Span,

    /// Bytes that may wait to be published; an emit beyond it fails
    #[arg(long, value_name = "BYTES")]
    #[arg(default_value = "16MiB")]
    pub(crate) redis_max_queue: ByteSize,

    /// Time between two probes, which are messages that the node publishes to itself
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value = "1s")]
    pub(crate) redis_probe_interval: Span,

    /// Time that a probe may take; after it, the node is not ready and reconnects
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value = "5s")]
    pub(crate) redis_probe_timeout: Span,

    /// Whether to wait at startup until Redis is available; without it, a node serves its
    /// own clients
    #[arg(long, value_name = "BOOL", default_value = "true")]
    pub(crate) redis_required: Switch,

    /// How far the time of a signed message may differ from Redis's clock; other messages are
    /// dropped
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value = "30s")]
    pub(crate) redis_signing_tolerance: Span,
}

/// How a node subscribes to messages for single sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrivateRoomsBy {
    /// A pattern while Redis has few of them, otherwise channels
    Auto,
    /// One pattern per namespace, which adds 25 ns to every publish in Redis
    Pattern,
    /// One channel per connected socket, which costs memory in Redis and a command each
    Channel,
}

/// The settings of the bus, or none without Redis.
pub(crate) fn redis(redis: &RedisOptions, cluster: &ClusterOptions) -> Option<RedisConfig> {
    let mut config = RedisConfig::new(redis.redis.0.clone()?);
    config.prefix.clone_from(&redis.redis_prefix);
    config.dialect = redis.redis_dialect.into();
    config.stream = redis.stream().map(str::to_owned);
    config.stream_max_len = redis.redis_stream_length as usize;
    config
        .session_prefix
        .clone_from(&cluster.redis_session_prefix);
    config.parser = redis.redis_parser.into();
    config.specific_responses = cluster.redis_specific_responses.0;
    config.private_rooms = match cluster.redis_private_rooms {
        PrivateRoomsBy::Auto => PrivateRooms::Auto,
        PrivateRoomsBy::Pattern => PrivateRooms::Pattern,
        PrivateRoomsBy::Channel => PrivateRooms::Channel,
    };
    config.publish_timeout = cluster.redis_timeout.0;
    config.max_queue_bytes = cluster.redis_max_queue.0;
    config.probe_interval = cluster.redis_probe_interval.0;
    config.probe_timeout = cluster.redis_probe_timeout.0;
    config.is_required = cluster.redis_required.0;
    config.signing = redis.signing().map(|signing| Signing {
        tolerance: cluster.redis_signing_tolerance.0,
        ..signing
    });
    Some(config)
}

/// Checks options that are valid one by one but not together.
pub(crate) fn check(cluster: &ClusterOptions) -> Result<(), String> {
    let probes = [
        ("--redis-timeout", cluster.redis_timeout.0),
        ("--redis-probe-interval", cluster.redis_probe_interval.0),
        ("--redis-probe-timeout", cluster.redis_probe_timeout.0),
    ];
    if let Some((flag, _)) = probes.iter().find(|(_, span)| span.is_zero()) {
        return Err(format!(
            "{flag} is zero, so Redis could never respond in time"
        ));
    }
    if cluster.redis_signing_tolerance.0 < Duration::from_secs(1) {
        return Err(
            "--redis-signing-tolerance is too short for a network and clocks: use at least 1s"
                .to_owned(),
        );
    }
    if cluster.redis_max_queue.0 < 1024 {
        return Err("--redis-max-queue is too small for a message: use at least 1KiB".to_owned());
    }
    if cluster.redis_probe_timeout.0 < Duration::from_millis(50) {
        return Err(
            "--redis-probe-timeout is too short for a network: use at least 50ms".to_owned(),
        );
    }
    Ok(())
}

/// Refuses control characters, which are a mistake in every key.
fn key_prefix(text: &str) -> Result<String, String> {
    match text.chars().any(char::is_control) {
        true => Err("expected text without control characters, such as sio:session:".to_owned()),
        false => Ok(text.to_owned()),
    }
}
