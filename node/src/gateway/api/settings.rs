//! The section `[api]` of the settings.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    DEMO_KEY,
    keys::{Hash, NamespacePattern, Scope},
};
use crate::gateway::values::{self, ByteSize, Span};

/// The HTTP API. Without keys, every call is refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// A listener of its own; without one, the internal port serves the API.
    #[serde(deserialize_with = "listen")]
    pub(crate) listen: Option<SocketAddr>,
    /// The largest body of a request.
    pub(crate) max_body: ByteSize,
    /// The time that a call may take, its body included.
    pub(crate) timeout: Span,
    /// The most calls at a time.
    pub(crate) concurrency: usize,
    /// How long the response to an idempotency key is kept.
    pub(crate) idempotency_time: Span,
    pub(crate) keys: Vec<KeySettings>,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeySettings {
    /// Names the key in logs. The application's idempotency keys belong to it, so a
    /// rotated key keeps it.
    pub(crate) name: String,
    pub(crate) hash: Hash,
    pub(crate) namespaces: Vec<NamespacePattern>,
    pub(crate) verbs: Vec<Scope>,
}

impl KeySettings {
    /// The key of the demo, which may do everything.
    pub(crate) fn of_demo() -> Self {
        Self {
            name: "demo".to_owned(),
            hash: Hash::of(DEMO_KEY.as_bytes()),
            namespaces: vec![NamespacePattern::all()],
            verbs: vec![Scope::All],
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: None,
            max_body: ByteSize(1 << 20),
            timeout: Span(std::time::Duration::from_secs(10)),
            concurrency: 64,
            idempotency_time: Span(std::time::Duration::from_secs(300)),
            keys: Vec::new(),
        }
    }
}

impl Settings {
    /// Checks rules that serde cannot.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.concurrency == 0 || self.concurrency > MAX_CONCURRENCY {
            return Err(format!("[api]: concurrency is from 1 to {MAX_CONCURRENCY}"));
        }
        for (index, key) in self.keys.iter().enumerate() {
            if key.name.is_empty() {
                return Err(format!("api.keys[{index}]: the name is empty"));
            }
            // Only one of them could ever be found, with its namespaces and verbs.
            let twice = self.keys[..index]
                .iter()
                .find(|other| other.hash == key.hash);
            if let Some(other) = twice {
                let (one, two) = (&other.name, &key.name);
                return Err(format!("api.keys: {one} and {two} have the same hash"));
            }
        }
        Ok(())
    }
}

/// Each call may hold a body of `max_body`.
const MAX_CONCURRENCY: usize = 10_000;

/// The section in the commented default file.
pub(crate) const TEMPLATE: &str = r#"
# The HTTP API, with which an application emits, queries and disconnects.
[api]
# `internal` is the internal port; an address and port create a separate listener.
listen = "internal"
# Largest body of a request.
max_body = "1MiB"
# Time limit of a call, including its body.
timeout = "10s"
# Concurrent calls; further ones get status 503.
concurrency = 64
# How long the response to an Idempotency-Key is kept.
idempotency_time = "5m"

# A key may use the verbs emit, join, leave, disconnect, revoke, sockets, rooms, users,
# presence, server-side-emit, node, subscribe, history and admin, or all of them with "*", in its namespaces
# ("*" at the end matches anything). The hash is the SHA-256 of the key:  printf %s "$KEY" | sha256sum
# Several keys may have one name, so that a new one can be added before the old one is removed.
[[api.keys]]
name = "application"
hash = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
namespaces = ["/"]
verbs = ["emit"]
"#;

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "internal" {
        return Ok(None);
    }
    let address = values::address(&text);
    address.map(Some).map_err(|problem| {
        D::Error::custom(format!("expected `internal` or ADDRESS:PORT: {problem}"))
    })
}
