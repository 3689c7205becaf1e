//! The configuration of the conformance server, in the words of the official package.
//!
//! Options that are left out keep the library's defaults, which are Socket.IO's.

use std::{collections::HashMap, time::Duration};

use roomcast::{Builder, Cookie, Cors, Limits, Parser};
use serde::Deserialize;

use crate::Failure;

type Setter = fn(Builder, Duration) -> Builder;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    transports: Option<Vec<Transport>>,
    ping_interval: Option<u64>,
    ping_timeout: Option<u64>,
    upgrade_timeout: Option<u64>,
    connect_timeout: Option<u64>,
    max_payload: Option<usize>,
    allow_eio3: Option<bool>,
    parser: Option<PacketParser>,
    cors: Option<CorsConfig>,
    cookie: Option<bool>,
    http_compression: Option<bool>,
    #[serde(default)]
    limits: HashMap<String, usize>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Transport {
    Polling,
    Websocket,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum PacketParser {
    Msgpack,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CorsConfig {
    origin: CorsOrigin,
    #[serde(default)]
    credentials: bool,
    allowed_headers: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum CorsOrigin {
    Reflect(bool),
    One(String),
    List(Vec<String>),
}

pub(crate) fn from_arguments(mut args: impl Iterator<Item = String>) -> Result<Config, Failure> {
    match (args.next().as_deref(), args.next()) {
        (None, _) => Ok(Config::default()),
        (Some("--config"), Some(text)) => Ok(serde_json::from_str(&text)?),
        _ => Err("usage: conformance [--config '<json>']".into()),
    }
}

pub(crate) fn apply(mut builder: Builder, config: Config) -> Result<Builder, Failure> {
    let durations: [(_, Setter); 4] = [
        (config.ping_interval, Builder::ping_interval),
        (config.ping_timeout, Builder::ping_timeout),
        (config.upgrade_timeout, Builder::upgrade_timeout),
        (config.connect_timeout, Builder::connect_timeout),
    ];
    for (milliseconds, set) in durations {
        if let Some(milliseconds) = milliseconds {
            builder = set(builder, Duration::from_millis(milliseconds));
        }
    }
    if let Some(transports) = config.transports {
        let has = |transport| transports.contains(&transport);
        builder = builder.transports(has(Transport::Polling), has(Transport::Websocket));
    }
    if let Some(bytes) = config.max_payload {
        builder = builder.max_payload(bytes);
    }
    if let Some(PacketParser::Msgpack) = config.parser {
        builder = builder.parser(Parser::Msgpack);
    }
    if let Some(cors) = config.cors {
        builder = builder.cors(cors.into());
    }
    if config.cookie == Some(true) {
        builder = builder.cookie(Cookie::default());
    }
    Ok(builder
        .allow_eio3(config.allow_eio3.unwrap_or(false))
        .http_compression(config.http_compression.unwrap_or(true))
        .limits(limits(config.limits)?))
}

impl From<CorsConfig> for Cors {
    fn from(config: CorsConfig) -> Self {
        let mut cors = match config.origin {
            CorsOrigin::Reflect(true) => Self::reflect(),
            CorsOrigin::Reflect(false) => Self::origins::<&str>([]),
            CorsOrigin::One(origin) if origin == "*" => Self::any(),
            CorsOrigin::One(origin) => Self::origins([origin]),
            CorsOrigin::List(origins) => Self::origins(origins),
        };
        if let Some(names) = config.allowed_headers {
            cors = cors.allowed_headers(names);
        }
        cors.credentials(config.credentials)
    }
}

/// The limits that are counts or bytes, by the names of their fields.
fn limits(given: HashMap<String, usize>) -> Result<Limits, Failure> {
    let mut limits = Limits::default();
    for (name, value) in given {
        let field = match name.as_str() {
            "json_depth" => &mut limits.json_depth,
            "attachments" => &mut limits.attachments,
            "namespaces_per_connection" => &mut limits.namespaces_per_connection,
            "rooms_per_socket" => &mut limits.rooms_per_socket,
            "room_name_bytes" => &mut limits.room_name_bytes,
            "event_name_bytes" => &mut limits.event_name_bytes,
            "namespace_bytes" => &mut limits.namespace_bytes,
            "pending_acks" => &mut limits.pending_acks,
            "events_in_flight" => &mut limits.events_in_flight,
            "outbox_bytes" => &mut limits.outbox_bytes,
            "inbox_bytes" => &mut limits.inbox_bytes,
            "fragments" => &mut limits.fragments,
            "unfinished_upgrades" => &mut limits.unfinished_upgrades,
            "connections" => &mut limits.connections,
            _ => return Err(format!("no limit is called {name}").into()),
        };
        *field = value;
    }
    Ok(limits)
}
