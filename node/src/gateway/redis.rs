//! The options for Redis, which connects the nodes of a cluster and the emitters of other
//! processes.
//!
//! They are read here and turned into the library's types.

use clap::{Args, ValueEnum};
use roomcast::emitter::{Dialect, KeysError, Mode, Parser, RedisUrl, Signing, SigningKeys};

use super::{
    relay::ClusterKey,
    values::{OrOff, or_off},
};

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Redis")]
pub(crate) struct RedisOptions {
    /// Redis that connects the nodes of a cluster: `off` or URL
    ///
    /// redis://[user:password@]host[:port][/database] for one server, unix:///path for
    /// its socket, redis+sentinel://host[:port],…/name for the primary of that name,
    /// redis+cluster://host[:port],… for a cluster. With rediss instead of redis, the
    /// connection uses TLS.
    #[arg(long, value_name = "URL", default_value = "off")]
    // The URL may contain a password, and the help shows values of the environment.
    #[arg(hide_env_values = true, value_parser = or_off(redis_url))]
    pub(crate) redis: OrOff<RedisUrl>,

    /// Prefix of all channels and keys in Redis
    ///
    /// Deployments that share a Redis need different prefixes, because channels ignore the database
    /// number. Node's adapters call it `key` and `channelPrefix`.
    #[arg(long, value_name = "TEXT")]
    #[arg(default_value = "socket.io", value_parser = prefix)]
    pub(crate) redis_prefix: String,

    /// Redis adapter of Node.js that the cluster is compatible with; all nodes must use the same
    #[arg(long, value_name = "NAME", value_enum)]
    #[arg(default_value = "classic")]
    pub(crate) redis_dialect: RedisDialect,

    /// Key of the stream in the streams dialect: `prefix` for the prefix of the channels, or TEXT
    ///
    /// Node's adapter calls it `streamName`. All members must use the same.
    #[arg(long, value_name = "TEXT")]
    #[arg(default_value = "prefix", value_parser = prefix)]
    pub(crate) redis_stream: String,

    /// Approximate maximum number of entries of the stream in the streams dialect
    ///
    /// Node's adapter calls it `maxLen`. A node that cannot read while more entries are written has
    /// a gap, and a client that is disconnected while more are written is not recovered.
    #[arg(long, value_name = "NUMBER")]
    #[arg(default_value = "10000", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) redis_stream_length: u32,

    /// Encoding of broadcasts between nodes; all nodes and emitters must use the same
    #[arg(long, value_name = "NAME", value_enum)]
    #[arg(default_value = "msgpack")]
    pub(crate) redis_parser: RedisParser,

    /// Key with which nodes and emitters sign their messages: `off`, or one or two KEYs separated
    /// by a comma
    ///
    /// With it, a process without the key cannot emit even if it can publish in Redis: unsigned,
    /// old and replayed messages are dropped. All nodes and emitters need the same key of at least
    /// 32 characters, and Node.js servers cannot take part. The first key signs and both are
    /// accepted, so a key can be replaced without a pause.
    #[arg(long, value_name = "KEY", default_value = "off")]
    #[arg(hide_env_values = true)]
    pub(crate) redis_signing_key: ClusterKey,
}

impl RedisOptions {
    /// How messages are signed, if they are.
    pub(crate) fn signing(&self) -> Option<Signing> {
        let keys = SigningKeys::new(&self.redis_signing_key.0);
        keys.map(Signing::new).ok()
    }

    /// Checks options that are valid one by one but not together.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.redis_signing_key.0.is_empty() {
            return Ok(());
        }
        SigningKeys::new(&self.redis_signing_key.0)
            .map_err(|error: KeysError| error.to_string())?;
        if self.redis.0.is_none() {
            return Err(
                "--redis-signing-key needs --redis, over which messages are signed".to_owned(),
            );
        }
        if !Signing::is_possible(self.redis_dialect.into(), self.redis_parser.into()) {
            return Err(
                "--redis-signing-key needs --redis-parser=msgpack and another dialect than streams: \
                 these are for Node.js servers, which cannot sign"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl RedisOptions {
    /// The key of the stream, unless it is the prefix.
    pub(crate) fn stream(&self) -> Option<&str> {
        Some(&*self.redis_stream).filter(|stream| *stream != "prefix")
    }
}

/// Parses the address of Redis.
fn redis_url(text: &str) -> Result<RedisUrl, String> {
    let url = text.parse::<RedisUrl>();
    url.map_err(|error| format!("expected `off` or a URL: {error}"))
}

/// The dialects of Node's Redis adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RedisDialect {
    /// `createAdapter` and the Redis emitters of all languages
    Classic,
    /// `createShardedAdapter` with subscriptionMode static; Redis 7 and newer
    ShardedStatic,
    /// The same with subscriptionMode dynamic, its default
    ShardedDynamic,
    /// The same with subscriptionMode dynamic-private
    ShardedDynamicPrivate,
    /// `@socket.io/redis-streams-adapter`
    Streams,
}

impl From<RedisDialect> for Dialect {
    fn from(dialect: RedisDialect) -> Self {
        match dialect {
            RedisDialect::Classic => Self::Classic,
            RedisDialect::ShardedStatic => Self::Sharded(Mode::Static),
            RedisDialect::ShardedDynamic => Self::Sharded(Mode::Dynamic),
            RedisDialect::ShardedDynamicPrivate => Self::Sharded(Mode::DynamicPrivate),
            RedisDialect::Streams => Self::Streams,
        }
    }
}

/// An encoding of broadcasts between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RedisParser {
    /// MessagePack, the default of Node's adapters and emitters
    Msgpack,
    /// JSON, for Node.js servers with `parser: JSON`
    Json,
}

impl From<RedisParser> for Parser {
    fn from(parser: RedisParser) -> Self {
        match parser {
            RedisParser::Msgpack => Self::Msgpack,
            RedisParser::Json => Self::Json,
        }
    }
}

/// Refuses an empty prefix, control characters, and characters of a pattern: Node's
/// servers subscribe to patterns that begin with the prefix, and would receive the
/// messages of other deployments.
fn prefix(text: &str) -> Result<String, String> {
    let is_wrong = |char: char| char.is_control() || "*?[\\".contains(char);
    if text.is_empty() || text.chars().any(is_wrong) {
        return Err("expected a name such as socket.io, without * ? [ or \\".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches as _};

    use super::*;

    #[test]
    fn redis_is_off_or_at_a_url() {
        let read = or_off(redis_url);
        assert_eq!(read("off"), Ok(OrOff(None)));
        assert!(read("redis://:secret@localhost:7000/3").is_ok());
        for text in ["", "localhost", "http://localhost", "OFF"] {
            let refusal = read(text).unwrap_err();
            assert!(
                refusal.starts_with("expected `off` or a URL: "),
                "{refusal}"
            );
        }
    }

    fn options(arguments: &[&str]) -> RedisOptions {
        let command = RedisOptions::augment_args(Command::new("redis"));
        let matches = command.try_get_matches_from([&["redis"], arguments].concat());
        RedisOptions::from_arg_matches(&matches.unwrap()).unwrap()
    }

    #[test]
    fn messages_are_signed_with_redis_and_in_the_format_of_our_nodes_only() {
        let key = "--redis-signing-key=0123456789abcdef0123456789abcdef";
        let redis = "--redis=redis://localhost";
        assert!(options(&[]).check().is_ok() && options(&[]).signing().is_none());
        let signed = options(&[key, redis]);
        assert!(signed.check().is_ok() && signed.signing().is_some());
        let sharded = [
            key,
            redis,
            "--redis-parser=json",
            "--redis-dialect=sharded-static",
        ];
        assert_eq!(options(&sharded).check(), Ok(()));
        let streams = [key, redis, "--redis-dialect=streams"];
        for (wrong, problem) in [
            (&streams[..], "than streams"),
            (&[key][..], "needs --redis,"),
            (
                &[key, redis, "--redis-parser=json"],
                "needs --redis-parser=msgpack",
            ),
        ] {
            let refusal = options(wrong).check().unwrap_err();
            assert!(refusal.contains(problem), "{refusal}");
        }
    }

    #[test]
    fn a_prefix_is_a_name() {
        for name in ["my app", "{socket.io}"] {
            assert_eq!(prefix(name), Ok(name.to_owned()));
        }
        for wrong in ["", "a\n", "?", "a*", "a[b]", "a\\"] {
            assert!(prefix(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_name_of_a_dialect_is_another_dialect() {
        let dialects = RedisDialect::value_variants().iter();
        let mut dialects: Vec<_> = dialects
            .map(|dialect| format!("{:?}", Dialect::from(*dialect)))
            .collect();
        dialects.sort();
        dialects.dedup();
        assert_eq!(dialects.len(), RedisDialect::value_variants().len());
    }
}
