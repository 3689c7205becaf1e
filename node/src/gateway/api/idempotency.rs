//! Idempotency keys: the same call twice takes effect once, and gets the same response.
//!
//! ```text
//!  claim: SET key "running OWNER" NX PX 4s ──► taken, renewed ──► carried out ──► store: SET key "response …" PX long
//!                     └── there already: the stored response; while it is running, wait for it, then 409
//!  release: DEL key, after an emit that other nodes may have missed: its repetition is published at most once
//! ```
//!
//! With Redis the whole cluster shares them; without it, the node's memory holds them. Each claim has an owner, a
//! random name, by which a node that lost the reply to its claim knows that it has it. A claim that is not renewed
//! lapses, because its node has ended or has lost Redis. Only then may a repetition take effect a
//! second time, because the progress of the first call is unknown.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use roomcast::{
    RedisConfig,
    emitter::{entropy, redis::Reply as _},
};
use serde_json::Value;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
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

/// The most responses that are kept in memory. The oldest is removed for a new one.
const MAX_KEPT: usize = 100_000;

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The idempotency key of a request.
pub(crate) fn token(headers: &HeaderMap, endpoint: Endpoint) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(HEADER).filter(|_| !endpoint.is_query) else {
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
    Redis(Shared),
}

impl Store {
    pub(crate) fn new(redis: Option<&RedisConfig>) -> Self {
        match redis {
            Some(config) => Self::Redis(Shared(Arc::new(RedisCommands::new(config.clone())))),
            None => Self::Memory(Mutex::default()),
        }
    }
}

/// The store of a cluster.
pub(crate) struct Shared(Arc<RedisCommands>);

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

    /// Returns the stored entry, or stores a claim.
    async fn claim(&self, key: &str, running: &str) -> Result<Option<String>, Problem> {
        let key = self.key(key);
        let life = CLAIM_LIFE.as_millis().to_string();
        // One command decides which of several nodes carries the call out.
        let set = ["SET", &key, running, "NX", "PX", &life];
        let mut attempt = 1;
        loop {
            let claimed = match self.command(&key, &set).await {
                Ok(Some(_)) => return Ok(None),
                Ok(None) => self.command(&key, &["GET", &key]).await,
                Err(problem) => Err(problem),
            };
            match claimed {
                // The reply to an earlier attempt was lost.
                Ok(Some(stored)) if stored == running => return Ok(None),
                Ok(Some(stored)) => return Ok(Some(stored)),
                Err(problem) if attempt == CLAIM_ATTEMPTS => return Err(problem),
                Err(_) => attempt += 1,
                // It has lapsed in between.
                Ok(None) => {}
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Renews a claim while a call is carried out, which takes no longer than a few times what it may.
    fn renew(&self, key: &str, running: &str, settings: &Settings) -> Renewal {
        let (commands, key) = (Arc::clone(&self.0), self.key(key));
        let (running, end) = (
            running.to_owned(),
            now() + settings.timeout.0.saturating_mul(3).max(CLAIM_LIFE),
        );
        let life = CLAIM_LIFE.as_millis().to_string();
        Renewal(tokio::spawn(async move {
            while now() < end {
                sleep(RENEWAL).await;
                let renew = ["EVAL", RENEW, "1", &key, &running, &life];
                // While Redis is unreachable, the next renewal retries.
                drop(commands.run(&key, &renew).await);
            }
        }))
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
    /// Returns the stored entry, or stores a claim.
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

    /// Makes room: removes the oldest that have expired, and the oldest of all if there are too
    /// many.
    fn forget(&mut self, now: Instant) {
        // Entries expire nearly in the order in which they were claimed, so the front shows whether
        // any can be removed.
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
    /// The claim as it is stored.
    running: String,
    _renewal: Option<Renewal>,
}

/// Renews a claim until it is dropped.
struct Renewal(JoinHandle<()>);

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Store {
    /// Claims a call. `print` identifies it, so that a key cannot be used for two. Waits while another call under the
    /// key is being carried out, for half of the time that a call may take.
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
        let running = format!("{print} 0 {}", entropy::name::<12>());
        let patience = now() + settings.timeout.0 / 2;
        loop {
            let stored = match self {
                Self::Memory(memory) => {
                    // Nothing renews it: the node that has it is this one.
                    let (now, time) = (now(), settings.timeout.0.saturating_mul(3));
                    let lapses = now + time.max(CLAIM_LIFE);
                    memory.lock().claim(&key, &running, now, lapses)
                }
                Self::Redis(shared) => shared.claim(&key, &running).await?,
            };
            let Some(stored) = stored else {
                let _renewal = match self {
                    Self::Memory(_) => None,
                    Self::Redis(shared) => Some(shared.renew(&key, &running, settings)),
                };
                return Ok(Claim::New(Claimed {
                    key,
                    print,
                    running,
                    _renewal,
                }));
            };
            if let Some(answer) = known(&stored, &print)? {
                return Ok(Claim::Known(answer));
            }
            if now() >= patience {
                let detail =
                    "a call with this idempotency key is being carried out: repeat it later";
                return Err(Problem::new(Kind::InProgress, detail).at("Idempotency-Key"));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Gives a claim back, so that the call can be repeated.
    pub(crate) async fn release(&self, claimed: Claimed) {
        match self {
            Self::Memory(memory) => drop(memory.lock().entries.remove(&claimed.key)),
            Self::Redis(shared) => {
                let key = shared.key(&claimed.key);
                let release = ["EVAL", RELEASE, "1", &key, &claimed.running];
                // Otherwise the claim lapses by itself.
                if let Err(problem) = shared.command(&key, &release).await {
                    let detail = problem.detail();
                    warn!(detail, "the claim of an idempotency key is not released");
                }
            }
        }
    }

    /// Stores the response of a claimed call.
    pub(crate) async fn store(&self, claimed: Claimed, answer: &Answer, settings: &Settings) {
        let Claimed { key, print, .. } = &claimed;
        let (key, print) = (key.clone(), print);
        let text = answer.stored(print);
        match self {
            Self::Memory(memory) => {
                memory
                    .lock()
                    .entries
                    .insert(key, (now() + settings.idempotency_time.0, text));
            }
            Self::Redis(shared) => {
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

/// How long a claim is valid after its last renewal.
const CLAIM_LIFE: Duration = Duration::from_secs(4);

/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(1);

/// How often a repetition looks whether the call has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How often a claim is tried whose reply is lost.
const CLAIM_ATTEMPTS: u32 = 3;

/// Scripts that renew and remove a claim, unless another call has the key by now.
const RENEW: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end return 1";
const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
    redis.call('DEL', KEYS[1]) end return 1";

/// Reads the stored entry for a call with this fingerprint. `None` while it is being carried out.
fn known(stored: &str, print: &str) -> Result<Option<Answer>, Problem> {
    let mut parts = stored.splitn(3, ' ');
    let (of, status, body) = (parts.next(), parts.next(), parts.next());
    if of != Some(print) {
        let detail = "this idempotency key was used for another path or body: use a new key";
        return Err(Problem::new(Kind::KeyReused, detail).at("Idempotency-Key"));
    }
    let status = status.and_then(|status| status.parse::<u16>().ok());
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    Ok(status.map(|status| Answer {
        status,
        body: body.unwrap_or_default().to_owned(),
    }))
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is kept lapses by the clock of the runtime, which tests can stop"
)]
fn now() -> Instant {
    Instant::now()
}
