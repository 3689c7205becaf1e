//! Users: the identity of a client, proved by a JSON Web Token.
//!
//! ```text
//!  handshake ─ source ─► token ─ keys, jwks ─► claims ─ user ─► User ─► Session, attached to the socket
//!                                                                         │
//!      revocations (this node's and, by server-side events, the others') ─┤
//!      clock: token:expiring ─► token:refresh ─► a new User, or ──────────┴─► disconnect
//! ```
//!
//! The algorithm belongs to the key, never to the token: a token names one, and only keys that are
//! configured for it are tried. So a public key can never be used as the secret of an HMAC.

mod jwks;
mod keys;
mod revocations;
mod sessions;
mod source;
mod user;

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};

use super::values::{Span, read};

pub(crate) use keys::{Algorithm, KeyError, sign};
pub(crate) use sessions::{Auth, RevokeError, Session, with_sessions};
use source::Source;
pub(crate) use source::cookie;
pub(crate) use user::User;

/// The section `jwt` of the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Accepted values of `iss`. Any, if there is none.
    #[serde(deserialize_with = "one_or_more")]
    pub(crate) issuer: Vec<String>,
    /// Accepted values of `aud`. Without one, tokens for a certain audience are refused.
    #[serde(deserialize_with = "one_or_more")]
    pub(crate) audience: Vec<String>,
    /// How far clocks may differ.
    #[serde(deserialize_with = "read::span")]
    pub(crate) leeway: Duration,
    /// How long a token may still be valid. Revocations of users are remembered for this long.
    #[serde(deserialize_with = "days")]
    pub(crate) max_lifetime: Duration,
    /// How long before its token expires a client is notified.
    #[serde(deserialize_with = "read::span")]
    pub(crate) expiry_notice: Duration,
    /// The places that may hold the token, in this order.
    pub(crate) token_from: Vec<Source>,
    pub(crate) keys: Vec<KeySettings>,
    pub(crate) jwks: Option<JwksSettings>,
    pub(crate) claims: ClaimSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            issuer: Vec::new(),
            audience: Vec::new(),
            leeway: Duration::from_secs(30),
            max_lifetime: Duration::from_secs(30 * DAY),
            expiry_notice: Duration::from_secs(60),
            token_from: vec![
                Source::Auth("token".to_owned()),
                Source::Header("authorization".to_owned()),
            ],
            keys: Vec::new(),
            jwks: None,
            claims: ClaimSettings::default(),
        }
    }
}

/// One key. Exactly one of the sources of its value is set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeySettings {
    /// The `kid` of the tokens that it verifies. A key without one is tried for every
    /// token of its algorithm.
    pub(crate) id: Option<String>,
    pub(crate) algorithm: Algorithm,
    /// A file with the secret of an HMAC.
    pub(crate) secret_file: Option<PathBuf>,
    /// The environment variable with the secret of an HMAC.
    pub(crate) secret_env: Option<String>,
    /// A file with a public key in PEM.
    pub(crate) public_key_file: Option<PathBuf>,
}

/// A set of keys that somebody else publishes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JwksSettings {
    pub(crate) url: Option<String>,
    pub(crate) file: Option<PathBuf>,
    /// The algorithms that its keys may be used with.
    pub(crate) algorithms: Vec<Algorithm>,
    /// How often it is read again.
    #[serde(default = "ten_minutes", deserialize_with = "read::span")]
    pub(crate) refresh: Duration,
}

/// The names of the claims that have a meaning here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ClaimSettings {
    /// The id of the user. Every token must have it.
    pub(crate) user: String,
    /// Rooms that its sockets join when they connect.
    pub(crate) rooms: String,
    /// Patterns of rooms that it may join, in addition to those of the namespace's policy.
    pub(crate) join: String,
    /// Patterns of rooms that it may send to, in addition to those of the namespace's policy.
    pub(crate) send: String,
}

impl Default for ClaimSettings {
    fn default() -> Self {
        Self {
            user: "sub".to_owned(),
            rooms: "rooms".to_owned(),
            join: "join".to_owned(),
            send: "send".to_owned(),
        }
    }
}

/// The section in the commented default file.
pub(crate) const TEMPLATE: &str = r#"
# How clients authenticate in namespaces whose access is jwt.
[jwt]
issuer = "https://login.example"
audience = "chat"
# How far clocks may differ.
leeway = "30s"
# Longest remaining lifetime of a token. Revocations of users are remembered for this long.
max_lifetime = "30d"
# How long before its token expires a client receives the event token:expiring.
expiry_notice = "1m"
# Where the server looks for tokens: auth.NAME, header:NAME, cookie:NAME, query:NAME.
token_from = ["auth.token", "header:authorization"]

# A key and its one algorithm. Tokens refer to it by `kid`.
[[jwt.keys]]
id = "2026"
algorithm = "HS256"
# Or secret_env, or for RS, PS, ES and EdDSA public_key_file.
secret_file = "/etc/roomcast/jwt.secret"

# Public keys that an issuer publishes.
[jwt.jwks]
# Or file.
url = "https://login.example/.well-known/jwks.json"
algorithms = ["RS256"]
refresh = "10m"

# The names of the claims that Roomcast uses.
[jwt.claims]
user = "sub"
rooms = "rooms"
join = "join"
send = "send"
"#;

const DAY: u64 = 86_400;

/// A duration, or a number of days such as `30d`.
fn days<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let days = text.strip_suffix('d').and_then(|days| days.parse().ok());
    match days {
        Some(days @ 1..=3650) => Ok(Duration::from_secs(days * DAY)),
        Some(_) => Err(D::Error::custom("expected 1d to 3650d")),
        None => text
            .parse()
            .map(|Span(duration)| duration)
            .map_err(D::Error::custom),
    }
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}

fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(match OneOrMore::deserialize(deserializer)? {
        OneOrMore::One(text) => vec![text],
        OneOrMore::More(texts) => texts,
    })
}
