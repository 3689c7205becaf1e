//! The HTTP API: an application emits, queries, disconnects and revokes without being a client.
//!
//! ```text
//!  request ─► key ─► verb ─► place among `concurrency` ─► body ─► read and checked ─► carried out
//!            401     403      503                         413      400, 403            on a worker
//! ```
//!
//! HTTP is served on the thread of the internal port, or of a separate listener. Calls
//! are carried out on the workers, because the server's own tasks run there, and a long
//! one must not keep `/livez` waiting. A call that takes too long is still carried out to its end;
//! only then is its place free, and its response stored under an idempotency key.

mod calls;
mod idempotency;
mod keys;
mod metrics;
mod problem;
mod queries;
mod revoke;
mod settings;

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use parking_lot::Mutex;
use roomcast::{Limits, Server};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tracing::{debug, info, warn};

pub(crate) use self::{
    calls::forbidden,
    idempotency::Store,
    keys::{Hash, Key, Verb},
    problem::{Kind, Problem},
    settings::{KeySettings, Settings, TEMPLATE},
};
use self::{
    calls::{Call, Endpoint},
    idempotency::{Answer, Claim},
    keys::Keys,
    metrics::Metrics,
    revoke::Revoke,
};
use super::{
    auth::Auth,
    config::Config,
    presence::Presence,
    reload::{Preparing, Reloadable, prepared},
    traces::{self, Span as TraceSpan},
    values::{ByteSize, Span},
};

/// The key of the demo. It is in the documentation, so it protects nothing.
/// A demo accepts it so that the first call of the book works without a file of
/// settings.
pub(crate) const DEMO_KEY: &str = "demo-key";

/// The entry point of a call.
#[derive(Clone, Copy)]
enum Door {
    Api,
    /// The admin page. A key that may open it may see everything that it shows.
    Page,
}

impl Door {
    /// The verbs that a key needs for a call.
    fn verbs(self, endpoint: Endpoint) -> impl Iterator<Item = Verb> {
        let own = match self {
            Self::Page if endpoint.is_query => None,
            _ => endpoint.verb,
        };
        let page = matches!(self, Self::Page).then_some(Verb::Admin);
        page.into_iter().chain(own)
    }
}

/// The parts that a reload replaces.
struct Current {
    settings: Settings,
    keys: Keys,
    // Calls that run keep their permits of the semaphore that a reload replaces, so for
    // a moment there may be up to twice as many.
    places: Arc<Semaphore>,
}

impl Current {
    fn new(settings: Settings) -> Self {
        Self {
            keys: Keys::new(&settings.keys),
            places: Arc::new(Semaphore::new(settings.concurrency)),
            settings,
        }
    }
}

/// The API of a server.
pub(crate) struct Api {
    server: Server,
    /// Set if any namespace requires tokens.
    auth: Option<Arc<Auth>>,
    presence: Presence,
    /// Replaced as a whole by a reload.
    current: Mutex<Arc<Current>>,
    /// The limits of names and rooms.
    limits: Limits,
    idempotency: Store,
    metrics: Metrics,
    workers: Handle,
}

impl Api {
    /// Must be called in the runtime of the workers.
    /// Its runtime carries out the calls, regardless of the thread that serves HTTP.
    pub(crate) fn new(
        server: Server,
        auth: Option<Arc<Auth>>,
        presence: Presence,
        settings: Settings,
        limits: Limits,
        store: Store,
    ) -> Result<Arc<Self>, prometheus::Error> {
        let metrics = Metrics::new(server.registry())?;
        Ok(Arc::new(Self {
            current: Mutex::new(Arc::new(Current::new(settings))),
            idempotency: store,
            limits,
            metrics,
            server,
            auth,
            presence,
            workers: Handle::current(),
        }))
    }

    /// Serves the calls. Paths that are not of the API get a problem, too.
    pub(crate) fn router(self: &Arc<Self>) -> Router {
        let mut router = Router::new().route("/api/openapi.json", get(description));
        for endpoint in Endpoint::ALL {
            router = router.route(endpoint.path, self.method(endpoint, Door::Api));
        }
        router
            .method_not_allowed_fallback(async || {
                let detail = "calls that read are GET, the others are POST";
                Problem::new(Kind::MethodNotAllowed, detail)
            })
            .fallback(async || Problem::new(Kind::NotFound, "see /api/openapi.json for the paths"))
    }

    /// Serves the calls of the admin page. All of them need the verb `admin`.
    pub(crate) fn page_router(self: &Arc<Self>) -> Router {
        let names = ["emit", "disconnect", "sockets", "rooms", "users"];
        let endpoints = Endpoint::ALL.into_iter();
        endpoints
            .filter(|endpoint| names.contains(&endpoint.name()))
            .fold(Router::new(), |router, endpoint| {
                let path = format!("/admin{}", endpoint.path);
                router.route(&path, self.method(endpoint, Door::Page))
            })
    }

    /// Recognizes the key of a request, which has to have the verb.
    pub(crate) fn key(&self, headers: &HeaderMap, verb: Verb) -> Result<Arc<Key>, Problem> {
        let current = Arc::clone(&self.current.lock());
        let key = current.key(headers)?;
        if key.may(verb) {
            return Ok(key);
        }
        Err(forbidden(&key, verb))
    }

    /// Finds a key, regardless of its verbs.
    pub(crate) fn find(&self, key: &[u8]) -> Option<Arc<Key>> {
        let current = Arc::clone(&self.current.lock());
        current.keys.find(key)
    }

    /// Calls that read are GET, so that proxies and browsers may repeat them.
    fn method(self: &Arc<Self>, endpoint: Endpoint, door: Door) -> MethodRouter {
        let api = Arc::clone(self);
        let call = async move |request: Request| api.respond(endpoint, door, request).await;
        if endpoint.is_query {
            get(call)
        } else {
            post(call)
        }
    }

    async fn respond(
        self: Arc<Self>,
        endpoint: Endpoint,
        door: Door,
        request: Request,
    ) -> Response {
        let timing = self.metrics.start(endpoint);
        let begun = traces::begin(&TraceSpan::Api {
            path: endpoint.path,
            headers: request.headers(),
        });
        let response = match begun.during(self.call(endpoint, door, request)).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        };
        timing.end(response.status());
        response
    }

    async fn call(
        self: &Arc<Self>,
        endpoint: Endpoint,
        door: Door,
        request: Request,
    ) -> Result<Response, Problem> {
        let (parts, body) = request.into_parts();
        let current = Arc::clone(&self.current.lock());
        let settings = &current.settings;
        // The key comes first: without one, a request costs neither a place nor memory
        // for its body.
        let key = current.key(&parts.headers)?;
        if let Some(verb) = door.verbs(endpoint).find(|verb| !key.may(*verb)) {
            return Err(forbidden(&key, verb));
        }
        // A call that finds no place is refused instead of queued, because the caller
        // can wait better: it knows how long the call is worth waiting for.
        let place = Arc::clone(&current.places).try_acquire_owned();
        let place = place.map_err(|_| {
            let limit = settings.concurrency;
            Problem::new(Kind::Busy, format!("{limit} calls are in progress"))
        })?;
        let token = idempotency::token(&parts.headers, endpoint)?;
        let body = if endpoint.is_query {
            Bytes::new()
        } else {
            is_json(&parts.headers)?;
            read_body(body, settings.max_body, settings.timeout).await?
        };
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let (api, time) = (Arc::clone(self), settings.timeout);
        // Dropping the handle after the timeout does not stop the task. A partial operation would
        // be worse than one whose result is too late.
        let work = self.workers.spawn(async move {
            let call = match endpoint.verb {
                Some(Verb::Revoke) => {
                    Revoke::read(&key, &body, api.auth.as_ref()).map(Call::Revoke)?
                }
                _ => Call::read(endpoint, &key, &query, &body, &api.limits)?,
            };
            let work = Work {
                endpoint,
                key,
                token,
                body,
                settings: current.settings.clone(),
                place,
            };
            api.work(call, work).await
        });
        match timeout(time.0, work).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(Problem::new(Kind::Internal, "the call panicked")),
            Err(_) => {
                let detail = format!("no result within {time}; the call may still take effect");
                Err(Problem::new(Kind::Timeout, detail))
            }
        }
    }

    /// Carries a call out, at most once for each idempotency key.
    async fn work(&self, call: Call, work: Work) -> Result<Response, Problem> {
        let Work {
            endpoint,
            key,
            settings,
            ..
        } = &work;
        let claim = match &work.token {
            None => None,
            Some(token) => {
                // The path is part of the fingerprint, because two endpoints may have
                // the same body.
                let print = [endpoint.path.as_bytes(), b"\n", &work.body].concat();
                let claiming = self
                    .idempotency
                    .claim(&key.name, token, Hash::of(&print), settings);
                match claiming.await? {
                    Claim::Known(answer) => return Ok(answer.into_response(true)),
                    Claim::New(claim) => Some(claim),
                }
            }
        };
        let call = match &work.token {
            // The bus publishes an emit once for its key, even if this node ends after
            // publishing and before the response is stored.
            Some(token) => call.once(token, settings.idempotency_time.0),
            None => call,
        };
        let mut is_repeatable = call.is_repeatable();
        let answer = match call.carry_out(&self.server, &self.presence).await {
            Ok(result) => {
                is_repeatable = false;
                Answer::ok(&result)
            }
            Err(problem) => {
                is_repeatable &= problem.is_of_other_nodes();
                Answer::of(&problem)
            }
        };
        report(*endpoint, key, &answer);
        match claim {
            // The caller can find out by repeating the call, which is published at most once.
            // Storing the error would return it to each repetition until the key
            // lapses.
            Some(claim) if is_repeatable => self.idempotency.release(claim).await,
            Some(claim) => self.idempotency.store(claim, &answer, settings).await,
            None => {}
        }
        // Only now, so that `concurrency` also bounds calls whose callers have given
        // up.
        drop(work.place);
        Ok(answer.into_response(false))
    }
}

impl Reloadable for Arc<Api> {
    fn keys(&self) -> &'static [&'static str] {
        &[
            "api.keys",
            "api.max_body",
            "api.timeout",
            "api.concurrency",
            "api.idempotency_time",
        ]
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        let mut settings = config.settings.api.clone();
        // The listener is bound once, so its address needs a restart.
        settings.listen = self.current.lock().settings.listen;
        let (api, current) = (Self::clone(self), Arc::new(Current::new(settings)));
        prepared(Ok(move || *api.current.lock() = current))
    }
}

/// A call and its context.
/// It owns everything, because it outlives the request after a timeout.
struct Work {
    endpoint: Endpoint,
    key: Arc<Key>,
    /// The idempotency key.
    token: Option<String>,
    body: Bytes,
    settings: Settings,
    place: OwnedSemaphorePermit,
}

impl Current {
    /// Recognizes the key of a request.
    fn key(&self, headers: &HeaderMap) -> Result<Arc<Key>, Problem> {
        let unauthorized = |detail: &str| Err(Problem::new(Kind::Unauthorized, detail));
        // Every detail names the remedy. It may, because it shows nothing about the
        // keys that exist.
        if self.keys.is_empty() {
            return unauthorized("no key is configured: add [[api.keys]] to the settings");
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return unauthorized("send the header Authorization: Bearer KEY");
        };
        let Some(key) = bearer(value) else {
            return unauthorized("the header Authorization is not Bearer KEY");
        };
        self.keys
            .find(key)
            .map_or_else(|| unauthorized("the key is unknown"), Ok)
    }
}

/// Reads a body within a size and a time, because a client that sends slowly holds a place.
pub(crate) async fn read_body(body: Body, limit: ByteSize, time: Span) -> Result<Bytes, Problem> {
    let reading = Limited::new(body, limit.0).collect();
    match timeout(time.0, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let detail = format!("a body has at most {limit}");
            Err(Problem::new(Kind::TooLarge, detail))
        }
        Ok(Err(error)) => Err(Problem::invalid("", format!("the body is broken: {error}"))),
        Err(_) => {
            let detail = format!("no body within {time}");
            Err(Problem::new(Kind::RequestTimeout, detail))
        }
    }
}

/// The text after the word `Bearer` in the header `Authorization`.
pub(crate) fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let value = value.as_bytes();
    let (scheme, credential) = value.split_at(value.iter().position(|byte| *byte == b' ')?);
    let is_bearer = scheme.eq_ignore_ascii_case(b"bearer");
    is_bearer.then(|| credential.trim_ascii())
}

/// Requires the media type of JSON. Browsers send it to other origins only after a
/// preflight, so no page can make a call with a plain form.
fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    if essence.trim().eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(
        Kind::MediaType,
        "send the header Content-Type: application/json",
    ))
}

/// Logs a call: failures as warnings, calls that disconnect clients at info, the rest at debug.
fn report(endpoint: Endpoint, key: &Key, answer: &Answer) {
    let (call, key, status) = (endpoint.name(), &*key.name, answer.status().as_u16());
    if answer.status() >= StatusCode::INTERNAL_SERVER_ERROR {
        warn!(
            call,
            key,
            status,
            detail = answer.text(),
            "an API call failed"
        );
    } else if matches!(endpoint.verb, Some(Verb::Disconnect | Verb::Revoke)) {
        info!(call, key, status, "an API call");
    } else {
        debug!(call, key, status, "an API call");
    }
}

/// The response to every call before the server is built.
pub(crate) fn starting() -> Response {
    Problem::new(Kind::Starting, "see /readyz for the reason").into_response()
}

/// The description of the API. It needs no key, because it holds no secret.
async fn description() -> Response {
    let text = OPENAPI.replace("{{version}}", env!("CARGO_PKG_VERSION"));
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

const OPENAPI: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_has_the_paths_and_methods_that_are_served() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap();
        // A test of the door compares its paths.
        let own = paths.keys().filter(|path| path.starts_with("/api/"));
        assert_eq!(own.count(), Endpoint::ALL.len());
        for endpoint in Endpoint::ALL {
            let method = if endpoint.is_query { "get" } else { "post" };
            let methods = paths[endpoint.path].as_object().unwrap();
            assert!(methods.keys().eq([method]), "{endpoint:?}");
        }
    }

    #[test]
    fn a_credential_follows_the_word_bearer() {
        let of = |text| bearer(&HeaderValue::from_static(text)).map(<[u8]>::to_vec);
        assert_eq!(of("Bearer a.b").as_deref(), Some(&b"a.b"[..]));
        assert_eq!(of("bearer  a.b ").as_deref(), Some(&b"a.b"[..]));
        assert_eq!(of("Basic a.b"), None);
        assert_eq!(of("a.b"), None);
    }
}
