//! The sections `hooks.NAME` of the file, and the checks that need no other section.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::Duration,
};

use http::{HeaderName, Uri};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::gateway::values::{self, read};

/// Its part of the commented default file.
pub(crate) const TEMPLATE: &str = r#"
# An application that is called over HTTP. The name, here `app`, appears in logs and metrics.
[hooks.app]
url = "http://127.0.0.1:8000/roomcast"
# Namespaces to which the hook applies.
namespaces = ["/"]
# When the hook is called. With "connect" it authorizes clients. With "rooms" it is notified when a room
# gets its first member in the cluster or loses its last one.
on = ["connect", "event", "disconnect"]
# Events, as names or as prefixes followed by *. The hook with the best match is called.
events = ["*"]
# Rooms that it is notified of, as names or as prefixes followed by *.
rooms = ["*"]
# Time for a response, including the wait for a free request.
timeout = "5s"
# Concurrent and waiting requests. Further requests fail at once.
concurrency = 64
queue = 1024
# Send events in batches: the largest number of events and the longest wait. Events that wait for an
# acknowledgement are included only with acks = true. Without this key, each event is a request.
batch = { size = 100, delay = "20ms", acks = false }
# Consecutive failures after which requests fail at once, and for how long at first.
circuit_failures = 10
circuit_pause = "1s"
# How long idle connections are kept open; it must be shorter than the application's own timeout.
keep_alive = "4s"
# Speak HTTP/2 without TLS. With https it is negotiated.
http2 = false
# Headers and cookies of the client's first request that are forwarded.
headers = ["authorization"]
cookies = ["sessionid"]
# The secret that signs requests, in a file or (secret_env) in an environment variable.
secret_file = "/etc/roomcast/hook-secret"
"#;

/// The occasions on which a hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Occasion {
    Connect,
    Event,
    Disconnect,
    Rooms,
}

/// One hook: a backend, and the occasions on which it is called.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Where requests are posted.
    pub(crate) url: Target,
    /// The namespaces to which it applies.
    #[serde(default = "main_namespace")]
    pub(crate) namespaces: Vec<String>,
    #[serde(default = "all_occasions")]
    pub(crate) on: Vec<Occasion>,
    /// The events, as names or as prefixes followed by `*`.
    #[serde(default = "any_name")]
    pub(crate) events: Vec<Pattern>,
    /// The rooms that it is notified of, as names or as prefixes followed by `*`.
    #[serde(default = "any_name")]
    pub(crate) rooms: Vec<Pattern>,
    /// Time for a response, including the wait for a free request.
    #[serde(default = "default_timeout", deserialize_with = "read::span")]
    pub(crate) timeout: Duration,
    /// Requests at the same time.
    #[serde(default = "default_concurrency")]
    pub(crate) concurrency: usize,
    /// Requests that may wait. Further requests fail at once.
    #[serde(default = "queue")]
    pub(crate) queue: usize,
    /// The sizes of batches, if events are batched.
    pub(crate) batch: Option<Batch>,
    /// Consecutive failures after which requests fail at once for a while.
    #[serde(default = "circuit_failures")]
    pub(crate) circuit_failures: u32,
    /// How long they fail at first. Each further failure doubles it, up to 30 s.
    #[serde(default = "circuit_pause", deserialize_with = "read::span")]
    pub(crate) circuit_pause: Duration,
    /// How long an idle connection is kept open. It must be shorter than the backend's own timeout.
    #[serde(default = "keep_alive", deserialize_with = "read::span")]
    pub(crate) keep_alive: Duration,
    /// Speak HTTP/2 without TLS. With `https`, it is negotiated.
    #[serde(default)]
    pub(crate) http2: bool,
    /// Request headers of the client that are forwarded.
    #[serde(default)]
    pub(crate) headers: Vec<Forwarded>,
    /// Cookies of the client that are forwarded.
    #[serde(default)]
    pub(crate) cookies: Vec<String>,
    /// The file with the secret that signs requests.
    pub(crate) secret_file: Option<PathBuf>,
    /// The environment variable with it.
    pub(crate) secret_env: Option<String>,
}

/// Batches of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batch {
    /// The most events of a request.
    #[serde(default = "batch_size")]
    pub(crate) size: usize,
    /// The longest time that the first event waits for others.
    #[serde(default = "batch_delay", deserialize_with = "read::span")]
    pub(crate) delay: Duration,
    /// Whether events that wait for an acknowledgement go in batches, too.
    #[serde(default)]
    pub(crate) acks: bool,
}

/// The most events of a request. The response has a list of operations for each.
const MAX_BATCH: usize = 1000;

/// The most requests to a backend at a time. Each may hold a connection.
const MAX_CONCURRENCY: usize = 10_000;

fn batch_size() -> usize {
    100
}

fn batch_delay() -> Duration {
    Duration::from_millis(20)
}

fn main_namespace() -> Vec<String> {
    vec!["/".to_owned()]
}

fn all_occasions() -> Vec<Occasion> {
    vec![Occasion::Connect, Occasion::Event, Occasion::Disconnect]
}

fn any_name() -> Vec<Pattern> {
    vec![Pattern {
        text: String::new(),
        is_prefix: true,
    }]
}

pub(crate) fn default_timeout() -> Duration {
    Duration::from_secs(5)
}

pub(crate) fn default_concurrency() -> usize {
    64
}

fn queue() -> usize {
    1024
}

fn circuit_failures() -> u32 {
    10
}

fn circuit_pause() -> Duration {
    Duration::from_secs(1)
}

fn keep_alive() -> Duration {
    Duration::from_secs(4)
}

/// An absolute URL of HTTP.
/// Passwords are refused, because URLs end up in logs.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target(pub(crate) Uri);

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let uri: Uri = text.parse().map_err(D::Error::custom)?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        if !is_http || uri.host().is_none_or(str::is_empty) {
            let wanted = "not an absolute URL, such as http://127.0.0.1:8000/roomcast";
            return Err(D::Error::custom(wanted));
        }
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            let remedy = "a URL must not hold a password: use secret_file or secret_env";
            return Err(D::Error::custom(remedy));
        }
        Ok(Self(uri))
    }
}

impl fmt::Debug for Target {
    /// Without the query, which may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.host().unwrap_or_default();
        write!(f, "{host}{}", self.0.path())
    }
}

/// The name of an event or a room, or the beginning of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    text: String,
    is_prefix: bool,
}

impl Pattern {
    /// How well it fits the name; `None` if it does not. A name fits better than a beginning, and a
    /// long beginning better than a short one.
    pub(super) fn fit(&self, event: &str) -> Option<usize> {
        if self.is_prefix {
            event.starts_with(&self.text).then_some(self.text.len())
        } else {
            (event == self.text).then_some(usize::MAX)
        }
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (literal, is_prefix) = match text.strip_suffix('*') {
            Some(beginning) => (beginning, true),
            None => (text.as_str(), false),
        };
        if literal.contains('*') || text.is_empty() {
            return Err(D::Error::custom(
                "expected a name, or a beginning followed by `*`",
            ));
        }
        Ok(Self {
            text: literal.to_owned(),
            is_prefix,
        })
    }
}

/// A header that may be passed on.
/// Headers that frame the request, or that the gateway itself sets, would break or
/// forge it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forwarded(pub(super) HeaderName);

impl<'de> Deserialize<'de> for Forwarded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let name = HeaderName::try_from(&text).map_err(D::Error::custom)?;
        let reason = match name.as_str() {
            "cookie" => "name single cookies in `cookies`",
            "host"
            | "connection"
            | "content-length"
            | "content-type"
            | "content-encoding"
            | "transfer-encoding"
            | "te"
            | "trailer"
            | "upgrade"
            | "expect"
            | "keep-alive"
            | "proxy-authorization"
            | "proxy-connection" => "it belongs to the request itself",
            name if name.starts_with("roomcast-") => "clients must not set it",
            _ => return Ok(Self(name)),
        };
        Err(D::Error::custom(format!(
            "the header {text} cannot be passed on: {reason}"
        )))
    }
}

/// Checks that each namespace of a hook is served. Otherwise, the hook would never be called there.
pub(crate) fn fits(
    hooks: &BTreeMap<String, Settings>,
    served: &BTreeSet<String>,
) -> Result<(), String> {
    for (hook, settings) in hooks {
        let mut names = settings.namespaces.iter();
        if let Some(name) = names.find(|name| !served.contains(*name)) {
            let problem = match values::namespace(name) {
                Ok(_) => format!(
                    "is not served: add --namespace {name} or a section [namespaces.{name:?}]"
                ),
                Err(_) => "does not begin with /".to_owned(),
            };
            return Err(format!(
                "hooks.{hook}: the namespace {name} in `namespaces` {problem}"
            ));
        }
    }
    Ok(())
}

impl Settings {
    /// The defaults for a URL.
    pub(crate) fn of(url: Target) -> Self {
        Self {
            url,
            namespaces: main_namespace(),
            on: all_occasions(),
            events: any_name(),
            rooms: any_name(),
            timeout: default_timeout(),
            concurrency: default_concurrency(),
            queue: queue(),
            batch: None,
            circuit_failures: circuit_failures(),
            circuit_pause: circuit_pause(),
            keep_alive: keep_alive(),
            http2: false,
            headers: Vec::new(),
            cookies: Vec::new(),
            secret_file: None,
            secret_env: None,
        }
    }

    /// Checks rules that involve several fields.
    pub(super) fn check(&self) -> Result<(), String> {
        let positive = [
            ("concurrency", self.concurrency),
            ("circuit_failures", self.circuit_failures as usize),
            ("namespaces", self.namespaces.len()),
            ("on", self.on.len()),
            ("events", self.events.len()),
            ("rooms", self.rooms.len()),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!(
                "`{key}` is zero or empty, so it would never be called"
            ));
        }
        if self.concurrency > MAX_CONCURRENCY {
            return Err(format!("`concurrency` is not from 1 to {MAX_CONCURRENCY}"));
        }
        if let Some(Batch { size, .. }) = self.batch
            && !(1..=MAX_BATCH).contains(&size)
        {
            return Err(format!("`batch.size` is not from 1 to {MAX_BATCH}"));
        }
        if self.secret_file.is_some() && self.secret_env.is_some() {
            return Err("`secret_file` and `secret_env` exclude each other".to_owned());
        }
        Ok(())
    }

    /// Reads the secret. Its value is in no error.
    pub(super) fn secret(&self) -> Result<Option<Vec<u8>>, String> {
        let (file, variable) = (self.secret_file.as_ref(), self.secret_env.as_ref());
        let secret = values::secret("secret", file, variable)?;
        let bytes = secret.as_ref().map(String::len);
        if bytes.is_some_and(|bytes| bytes < MIN_SECRET) {
            return Err(format!(
                "the secret is shorter than {MIN_SECRET} bytes: use `openssl rand -hex 32`"
            ));
        }
        Ok(secret.map(String::into_bytes))
    }
}

/// The shortest secret, in bytes.
/// A shorter one could be found from a single signed request.
const MIN_SECRET: usize = 16;

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use serde_json::{Value, json};

    use super::*;

    fn read(settings: Value) -> Result<Settings, String> {
        let settings: Settings =
            serde_json::from_value(settings).map_err(|error| error.to_string())?;
        settings.check().map(|()| settings)
    }

    #[test]
    fn a_url_is_enough() {
        let settings = read(json!({"url": "http://127.0.0.1:8000/hook"})).unwrap();
        assert_eq!(settings.namespaces, ["/"]);
        assert_eq!(settings.on, all_occasions());
        assert_eq!(settings.timeout, Duration::from_secs(5));
        assert_eq!((settings.concurrency, settings.queue), (64, 1024));
        assert_eq!(settings.events[0].fit("anything"), Some(0));
        assert_eq!(settings.secret(), Ok(None));
    }

    #[test]
    fn mistakes_are_refused_with_a_reason() {
        let url = "http://127.0.0.1/";
        for (settings, reason) in [
            (json!({}), "missing field `url`"),
            (json!({"url": "/hook"}), "not an absolute URL"),
            (json!({"url": "ftp://a/"}), "not an absolute URL"),
            (json!({"url": "http://a:b@c/"}), "must not hold a password"),
            (json!({"url": url, "timeout": "0s"}), "more than zero"),
            (
                json!({"url": url, "concurrency": 0}),
                "`concurrency` is zero",
            ),
            (
                json!({"url": url, "concurrency": u64::MAX}),
                "`concurrency` is not from 1 to 10000",
            ),
            (
                json!({"url": url, "batch": {"size": 0}}),
                "`batch.size` is not from 1 to 1000",
            ),
            (
                json!({"url": url, "batch": {"delay": "0s"}}),
                "more than zero",
            ),
            (json!({"url": url, "on": []}), "`on` is zero or empty"),
            (
                json!({"url": url, "on": ["evnet"]}),
                "unknown variant `evnet`",
            ),
            (json!({"url": url, "events": ["a*b"]}), "followed by `*`"),
            (json!({"url": url, "headers": ["Cookie"]}), "in `cookies`"),
            (
                json!({"url": url, "headers": ["content-length"]}),
                "belongs to the request",
            ),
            (
                json!({"url": url, "headers": ["Roomcast-Signature"]}),
                "must not set it",
            ),
            (json!({"url": url, "retry": 1}), "unknown field `retry`"),
            (
                json!({"url": url, "secret_env": "A", "secret_file": "b"}),
                "exclude each other",
            ),
        ] {
            let error = read(settings.clone()).unwrap_err();
            assert!(error.contains(reason), "{settings}: {error}");
        }
    }

    #[test]
    fn a_longer_pattern_fits_better() {
        let patterns: Vec<Pattern> =
            serde_json::from_value(json!(["*", "chat:*", "chat:send"])).unwrap();
        let fits = |event: &str| patterns.iter().map(|p| p.fit(event)).collect::<Vec<_>>();
        assert_eq!(fits("chat:send"), [Some(0), Some(5), Some(usize::MAX)]);
        assert_eq!(fits("chat:"), [Some(0), Some(5), None]);
        assert_eq!(fits("chat"), [Some(0), None, None]);
    }

    #[test]
    fn a_secret_comes_from_a_file_without_its_line_break() {
        let file = env::temp_dir().join(format!("roomcast-secret-{}", std::process::id()));
        fs::write(&file, "0123456789abcdef\n").unwrap();
        let mut settings = read(json!({"url": "http://a/", "secret_file": file})).unwrap();
        assert_eq!(settings.secret(), Ok(Some(b"0123456789abcdef".to_vec())));
        fs::write(&file, "short\n").unwrap();
        assert!(settings.secret().unwrap_err().contains("shorter than 16"));
        fs::remove_file(&file).unwrap();
        assert!(settings.secret().unwrap_err().contains("cannot read"));
        settings.secret_file = None;
        settings.secret_env = Some("ROOMCAST_TEST_NO_SUCH_VARIABLE".to_owned());
        assert!(settings.secret().unwrap_err().contains("is not set"));
    }

    #[test]
    fn the_query_of_a_url_is_not_shown() {
        let settings = read(json!({"url": "http://a:1/b?key=secret"})).unwrap();
        assert!(!format!("{settings:?}").contains("key=secret"));
    }
}
