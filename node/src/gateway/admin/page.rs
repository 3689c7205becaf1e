//! The admin page: its files, and the stream and the calls that feed it.
//!
//! The page keeps its key in memory and sends it as a bearer, so there is no cookie that
//! another site could use. A key needs the verb `admin` to see anything, and `emit` or
//! `disconnect` as well to act. Each action is a call of the API, with its checks,
//! limits and logs.
//!
//! ```text
//!  page ─► guard: wrong keys of this address ─► key, verb ─► stream: hello, nodes, statuses, lines
//!             429, with Retry-After              401, 403      one line of JSON each
//! ```
//!
//! The stream is a response of lines and no WebSocket, because `fetch` sends the key as
//! a header, and a WebSocket that a page opens cannot send one. The key is checked again before
//! each write, so a reload that removes the key ends the stream.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use futures_util::stream;
use roomcast::Registry;
use serde::Serialize;
use serde_json::{json, value::RawValue};
use tokio::{sync::watch, time::sleep};

use super::{
    Peer,
    attempts::Attempts,
    follow::{Follow, What},
    metrics::{Metrics, Opened, Refusal},
    view::{MAX_PAGES, Page, View},
};
use crate::gateway::{
    api::{Api, DEMO_KEY, Key, Kind, Problem, Verb},
    clock::millis,
};

/// The longest silence of a stream. The page takes a longer one for the end of the node.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Statuses that arrive within this time leave together.
/// All nodes publish every two seconds, so they often come close together.
const GATHER: Duration = Duration::from_millis(100);

/// The state that all routes share.
pub(crate) struct Pages {
    view: Arc<View>,
    api: Arc<Api>,
    attempts: Attempts,
    metrics: Metrics,
    /// The key is in the documentation, so the page uses it by itself.
    is_demo: bool,
}

impl Pages {
    pub(crate) fn new(
        view: Arc<View>,
        api: Arc<Api>,
        registry: &Registry,
        is_demo: bool,
    ) -> Result<Arc<Self>, prometheus::Error> {
        Ok(Arc::new(Self {
            view,
            api,
            attempts: Attempts::default(),
            metrics: Metrics::new(registry)?,
            is_demo,
        }))
    }

    /// The paths below `/admin`.
    pub(crate) fn router(self: &Arc<Self>) -> Router {
        let guarded = Router::new()
            .route("/admin/stream", get(stream))
            .with_state(Arc::clone(self))
            .merge(self.api.page_router())
            .layer(middleware::from_fn_with_state(Arc::clone(self), guard));
        let mut router = Router::new()
            // Relative, so that a proxy may serve the page below another path.
            .route("/admin", get(async || Redirect::permanent("admin/")))
            .route("/admin/config", get(config));
        for file in FILES {
            router = router.route(file.path, get(async move || file.response()));
        }
        router
            .with_state(Arc::clone(self))
            .merge(guarded)
            .fallback(async || Problem::new(Kind::NotFound, "the admin page is at /admin/"))
            .layer(middleware::map_response(secure))
    }
}

/// A file of the page.
#[derive(Clone, Copy)]
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

/// They are part of the program, so a node needs no folder for them, and page and API
/// are always of the same version.
const FILES: [File; 8] = [
    File {
        path: "/admin/",
        kind: "text/html; charset=utf-8",
        text: include_str!("page.html"),
    },
    File {
        path: "/admin/page.css",
        kind: "text/css; charset=utf-8",
        text: include_str!("page.css"),
    },
    script("/admin/page.js", include_str!("page.js")),
    script("/admin/cluster.js", include_str!("cluster.js")),
    script("/admin/elements.js", include_str!("elements.js")),
    script("/admin/follow.js", include_str!("follow.js")),
    script("/admin/nodes.js", include_str!("nodes.js")),
    script("/admin/search.js", include_str!("search.js")),
];

const fn script(path: &'static str, text: &'static str) -> File {
    let kind = "text/javascript; charset=utf-8";
    File { path, kind, text }
}

impl File {
    fn response(self) -> Response {
        ([(header::CONTENT_TYPE, self.kind)], self.text).into_response()
    }
}

/// The page loads nothing but its files, runs nothing else, and is shown in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Adds the headers that keep a page of another site from using this one.
async fn secure(mut response: Response) -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The facts that the page needs before it has a key. Other sites cannot read it.
async fn config(State(pages): State<Arc<Pages>>) -> Response {
    let key = pages.is_demo.then_some(DEMO_KEY);
    let config = json!({ "key": key }).to_string();
    ([(header::CONTENT_TYPE, "application/json")], config).into_response()
}

/// Counts wrong keys, and refuses addresses that have sent too many.
async fn guard(
    State(pages): State<Arc<Pages>>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let now = pages.view.now();
    if let Some(pause) = pages.attempts.pause(peer.ip(), now) {
        pages.metrics.refused(Refusal::Attempts);
        let seconds = pause.as_secs() + 1;
        let problem = Problem::new(
            Kind::TooManyAttempts,
            format!("this address has sent too many wrong keys; wait {seconds} s"),
        );
        let mut response = problem.into_response();
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
        return response;
    }
    // A request without a key is the first one of every page, and guesses nothing.
    let has_key = request.headers().contains_key(header::AUTHORIZATION);
    let response = next.run(request).await;
    if has_key && response.status() == StatusCode::UNAUTHORIZED {
        tracing::warn!(address = %peer.ip(), "a wrong key for the admin page");
        pages.metrics.refused(Refusal::Key);
        pages.attempts.wrong(peer.ip(), now);
    }
    response
}

/// Opens a stream of JSON lines, which feeds one page until its client goes.
async fn stream(
    State(pages): State<Arc<Pages>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let key = pages.api.key(&headers, Verb::Admin)?;
    let follow = read_follow(uri.query().unwrap_or_default(), &key)?;
    if let Some(Follow { namespace, what }) = &follow {
        tracing::info!(key = key.name, namespace, ?what, "an admin page follows");
    }
    let page = pages.view.open(follow).ok_or_else(|| {
        pages.metrics.refused(Refusal::Streams);
        Problem::new(
            Kind::Busy,
            format!("{MAX_PAGES} admin pages are open on this node"),
        )
    })?;
    let acts = [Verb::Emit, Verb::Disconnect].into_iter();
    let acts: Vec<_> = acts.filter(|verb| key.may(*verb)).map(Verb::name).collect();
    let first = json!({
        "type": "hello",
        "node": page.view().node(),
        "key": key.name,
        "verbs": acts,
        "namespaces": page.view().namespaces(&key),
    });
    let feed = Feed {
        news: page.view().news(),
        page,
        api: Arc::clone(&pages.api),
        headers,
        first: Some(first),
        has_begun: false,
        _opened: pages.metrics.opened(),
        sent: HashMap::new(),
    };
    let lines = stream::unfold(feed, async |mut feed| {
        let lines = feed.next().await?;
        Some((Ok::<_, std::convert::Infallible>(lines), feed))
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        // A proxy must pass each line on at once.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Reads the room, user or socket that the page follows.
/// The key must be for the namespace, because lines show arguments.
fn read_follow(query: &str, key: &Key) -> Result<Option<Follow>, Problem> {
    let (mut namespace, mut what) = ("/".to_owned(), None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if value.is_empty() || value.len() > MAX_NAME {
            let detail = format!("a name has 1 to {MAX_NAME} bytes");
            return Err(Problem::invalid(&name, detail));
        }
        match &*name {
            "namespace" => namespace = value.into_owned(),
            "room" => what = Some(What::Room(value.into_owned())),
            "user" => what = Some(What::User(value.into_owned())),
            "socket" => what = Some(What::Socket(value.into_owned())),
            other => return Err(Problem::invalid(other, "is unknown")),
        }
    }
    if what.is_some() && !key.may_in(&namespace) {
        let detail = format!("the key {} is not for the namespace {namespace}", key.name);
        return Err(Problem::new(Kind::Forbidden, detail).at("namespace"));
    }
    Ok(what.map(|what| Follow { namespace, what }))
}

/// Bytes of a name to follow.
const MAX_NAME: usize = 1000;

/// The stream of one page. It is polled only when the client has read the last lines, and then
/// sends the newest statuses. For a slow client, only the lines about followed names wait, up to a
/// limit.
struct Feed {
    page: Page,
    news: watch::Receiver<u64>,
    api: Arc<Api>,
    /// Of the request, because a reload may remove the key.
    headers: HeaderMap,
    first: Option<serde_json::Value>,
    has_begun: bool,
    _opened: Opened,
    /// The number of the last status of each node.
    sent: HashMap<String, u64>,
}

/// One line of a stream.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    /// The nodes that the bus knows. Some may publish no status.
    Nodes { nodes: &'a [String] },
    Status {
        node: &'a str,
        age_ms: u64,
        status: &'a RawValue,
    },
    /// The number of lines that were dropped because there were too many.
    Dropped { lines: u64 },
}

impl Feed {
    /// The next lines, or `None` if the key is no longer valid.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(format!("{first}\n").into());
        }
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        if !is_first {
            self.wait().await;
        }
        self.api.key(&self.headers, Verb::Admin).ok()?;
        let mut lines = Vec::new();
        if let Some(following) = self.page.following() {
            let (traced, dropped) = following.take();
            for line in traced {
                lines.extend_from_slice(b"{\"type\":\"line\",\"line\":");
                lines.extend_from_slice(line.as_bytes());
                lines.extend_from_slice(b"}\n");
            }
            if dropped > 0 {
                add(&mut lines, &Line::Dropped { lines: dropped });
            }
        }
        // Without anything else to send, the list of nodes is the sign of life.
        if is_first || self.news.has_changed().unwrap_or(false) || lines.is_empty() {
            self.news.mark_unchanged();
            self.add_nodes(&mut lines);
        }
        Some(lines.into())
    }

    async fn wait(&mut self) {
        let traced = async {
            match self.page.following() {
                Some(following) => following.news.notified().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.news.changed() => self.news.mark_changed(),
            () = traced => {}
            () = sleep(KEEP_ALIVE) => {}
        }
        sleep(GATHER).await;
    }

    fn add_nodes(&mut self, lines: &mut Vec<u8>) {
        let (seen, known) = self.page.view().nodes();
        add(lines, &Line::Nodes { nodes: &known });
        self.sent.retain(|node, _| seen.contains_key(node));
        for (node, seen) in &seen {
            // A status goes to a page once, and only the newest.
            if self.sent.insert(node.clone(), seen.number) != Some(seen.number) {
                let status = Line::Status {
                    node,
                    age_ms: millis(seen.age),
                    status: &seen.status,
                };
                add(lines, &status);
            }
        }
    }
}

fn add(lines: &mut Vec<u8>, line: &Line<'_>) {
    // A line holds strings and parsed JSON, so that it can be written.
    if serde_json::to_writer(&mut *lines, line).is_ok() {
        lines.push(b'\n');
    }
}
