//! Idempotency keys: the same call twice takes effect once, and gets the same response.
//!
//! ```text
//!  claim: SET key "running …" NX PX short ──► taken ──► carried out ──► store: SET key "response …" PX long
//!                     └── there already: the stored response, or 409 while it is running
//!  release: DEL key, after an emit that other nodes may have missed: its repetition is published at most once
//! ```
//!
//! With Redis the whole cluster shares them; without it, the node's memory holds them. A node that
//! ends during a call leaves its claim, which lapses after a while. Only then may a repetition take
//! effect a second time, because nobody knows how far the first one came.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use roomcast::{Dialect, RedisConfig, emitter::redis::Reply as _};
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;

use super::{
    calls::Endpoint,
    keys::Hash,
    problem::{Kind, Problem},
    settings::Settings,
};
use crate::gateway::redis_commands::RedisCommands;

/// The longest idempotency key.
const MAX_TOKEN: usize = 255;

/// The most responses that are kept in memory. The oldest is forgotten for a new one.
const MAX_KEPT: usize = 100_000;

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The idempotency key of a request.
pub(crate) fn token(headers: &HeaderMap, endpoint: Endpoint) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(HEADER).filter(|_| !endpoint.is_query()) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text)
            if (1..=MAX_TOKEN).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(Some(text.to_owned()))
        }
        _ => {
            let detail =
                format!("an idempotency key has 1 to {MAX_TOKEN} visible ASCII characters");
            Err(Problem::invalid("Idempotency-Key", detail))
        }
    }
}

/// The response to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    status: StatusCode,
    body: String,
}

impl Answer {
    pub(crate) fn ok(result: &Value) -> Self {
        Self {
            status: StatusCode::OK,
            body: result.to_string(),
        }
    }

    pub(crate) fn of(problem: &Problem) -> Self {
        Self {
            status: problem.status(),
            body: String::from_utf8(problem.body()).unwrap_or_default(),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn text(&self) -> &str {
        &self.body
    }

    pub(crate) fn into_response(self, is_replayed: bool) -> Response {
        let is_problem = self.status.is_client_error() || self.status.is_server_error();
        let media_type = if is_problem {
            "application/problem+json"
        } else {
            "application/json"
        };
        let mut response =
            (self.status, [(header::CONTENT_TYPE, media_type)], self.body).into_response();
        if is_replayed {
            let headers = response.headers_mut();
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }

    /// The form in which it is stored, after the fingerprint of the call.
    fn stored(&self, print: &str) -> String {
        format!("{print} {} {}", self.status.as_u16(), self.body)
    }
}

/// Where claims and responses are kept.
pub(crate) enum Store {
    Memory(Mutex<Memory>),
    Redis(Box<Shared>, Dialect),
}

impl Store {
    pub(crate) fn new(redis: Option<&RedisConfig>) -> Self {
        match redis {
            Some(config) => {
                let shared = Shared(RedisCommands::new(config.clone()));
                Self::Redis(Box::new(shared), config.dialect)
            }
            None => Self::Memory(Mutex::default()),
        }
    }
}

/// The store of a cluster.
pub(crate) struct Shared(RedisCommands);

impl Shared {
    /// Sends a command about a key. The reply is its text, if it has one.
    async fn command(&self, key: &str, command: &[&str]) -> Result<Option<String>, Problem> {
        let reply = self.0.run(key, command).await;
        let reply = reply.map_err(|error| {
            let detail = format!("idempotency keys are kept in Redis: {error}");
            Problem::new(Kind::Redis, detail)
        })?;
        Ok(reply.text().map(str::to_owned))
    }

    fn key(&self, key: &str) -> String {
        format!("{}-api#{key}", self.0.prefix())
    }
}

/// The store of a single node.
#[derive(Default)]
pub(crate) struct Memory {
    entries: HashMap<String, (Instant, String)>,
    /// The keys in the order in which they were claimed.
    order: VecDeque<String>,
}

impl Memory {
    /// Returns what is stored, or stores a claim.
    fn claim(&mut self, key: &str, claim: &str, now: Instant, lapses: Instant) -> Option<String> {
        let known = self.entries.get(key).filter(|(end, _)| *end > now);
        if let Some((_, stored)) = known {
            return Some(stored.clone());
        }
        self.forget(now);
        let entry = (lapses, claim.to_owned());
        if self.entries.insert(key.to_owned(), entry).is_none() {
            self.order.push_back(key.to_owned());
        }
        None
    }

    /// Makes room: forgets the oldest that have lapsed, and the oldest of all if there
    /// are too many.
    fn forget(&mut self, now: Instant) {
        // Entries lapse nearly in the order in which they were claimed, so the front
        // shows whether there is anything to forget.
        while let Some(oldest) = self.order.front() {
            let is_over = self.entries.get(oldest).is_none_or(|(end, _)| *end <= now);
            if !is_over && self.entries.len() < MAX_KEPT {
                break;
            }
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }
}

/// The idempotency keys of an API.
pub(crate) struct Idempotency {
    store: Store,
    /// Whether emitters and other nodes share the keys of emits.
    pub(crate) is_shared: bool,
}

/// The result of a claim.
pub(crate) enum Claim {
    /// The call has to be carried out, and its response stored.
    New(Claimed),
    /// The response of the call that came first.
    Known(Answer),
}

/// A call that is being carried out.
pub(crate) struct Claimed {
    key: String,
    print: String,
}

impl Idempotency {
    pub(crate) fn new(store: Store) -> Self {
        let is_shared = match &store {
            Store::Memory(_) => true,
            // The bus has none there.
            Store::Redis(_, dialect) => *dialect != Dialect::Streams,
        };
        Self { store, is_shared }
    }

    /// Claims a call. `print` identifies it, so that a key cannot be used for two.
    pub(crate) async fn claim(
        &self,
        owner: &str,
        token: &str,
        print: Hash,
        settings: &Settings,
    ) -> Result<Claim, Problem> {
        // Two applications may choose the same key by chance.
        let id = Hash::of(format!("{owner}\n{token}").as_bytes());
        let (key, print) = (id.to_string(), print.to_string());
        // A node that has ended leaves its claim; nothing can still run under it then.
        let claimed = settings.timeout.0.saturating_mul(3).max(MIN_CLAIM);
        let running = format!("{print} 0 ");
        let stored = match &self.store {
            Store::Memory(memory) => {
                let now = now();
                memory.lock().claim(&key, &running, now, now + claimed)
            }
            Store::Redis(shared, _) => {
                let key = shared.key(&key);
                let lapse = claimed.as_millis().to_string();
                // One command decides which of several nodes carries the call out.
                let set = ["SET", &key, &running, "NX", "PX", &lapse];
                match shared.command(&key, &set).await? {
                    Some(_) => None,
                    // It may have lapsed in between, which the next attempt of the caller finds.
                    None => shared
                        .command(&key, &["GET", &key])
                        .await?
                        .or(Some(running)),
                }
            }
        };
        let Some(stored) = stored else {
            return Ok(Claim::New(Claimed { key, print }));
        };
        known(&stored, &print)
    }

    /// Gives a claim back, so that the call can be repeated.
    pub(crate) async fn release(&self, claimed: Claimed) {
        match &self.store {
            Store::Memory(memory) => drop(memory.lock().entries.remove(&claimed.key)),
            Store::Redis(shared, _) => {
                let key = shared.key(&claimed.key);
                // Otherwise the claim lapses by itself.
                if let Err(problem) = shared.command(&key, &["DEL", &key]).await {
                    let detail = problem.detail();
                    warn!(detail, "the claim of an idempotency key is not given back");
                }
            }
        }
    }

    /// Stores the response of a claimed call.
    pub(crate) async fn store(&self, claimed: Claimed, answer: &Answer, settings: &Settings) {
        let Claimed { key, print } = claimed;
        let text = answer.stored(&print);
        match &self.store {
            Store::Memory(memory) => {
                memory
                    .lock()
                    .entries
                    .insert(key, (now() + settings.idempotency_time.0, text));
            }
            Store::Redis(shared, _) => {
                let key = shared.key(&key);
                let kept = settings.idempotency_time.0.as_millis().to_string();
                let stored = shared
                    .command(&key, &["SET", &key, &text, "PX", &kept])
                    .await;
                if let Err(problem) = stored {
                    let detail = problem.detail();
                    warn!(detail, "the response to an idempotency key is not stored");
                }
            }
        }
    }
}

const MIN_CLAIM: Duration = Duration::from_secs(30);

/// Reads what is stored for a call with this fingerprint.
fn known(stored: &str, print: &str) -> Result<Claim, Problem> {
    let mut parts = stored.splitn(3, ' ');
    let (of, status, body) = (parts.next(), parts.next(), parts.next());
    if of != Some(print) {
        let detail = "this idempotency key was used for another path or body: use a new key";
        return Err(Problem::new(Kind::KeyReused, detail).at("Idempotency-Key"));
    }
    let status = status.and_then(|status| status.parse::<u16>().ok());
    match status.and_then(|status| StatusCode::from_u16(status).ok()) {
        Some(status) => Ok(Claim::Known(Answer {
            status,
            body: body.unwrap_or_default().to_owned(),
        })),
        None => {
            let detail = "a call with this idempotency key is being carried out: repeat it later";
            Err(Problem::new(Kind::InProgress, detail).at("Idempotency-Key"))
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is kept lapses by the clock of the runtime, which tests can stop"
)]
fn now() -> Instant {
    Instant::now()
}
