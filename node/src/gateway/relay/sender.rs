//! The side of the node that a client has reached: passes its request on to the owner of
//! the session.
//!
//! A body is received completely before it is passed on, because its digest is signed and
//! the session takes it as a whole anyway. A response is forwarded as it arrives.
//! Connections to owners are kept for the next request.
//!
//! ```text
//! request ─► place ─► body ─► connections to the owner ─► signed head, body ─┬─► response, passed on
//!             503    400, 408,   lease over, not reached,     no response     ├─► 101: streams are joined
//!                      503            session lost            session lost    └─► 421: session lost
//!
//! this node closes ─► a poll: its owner ends it
//!                └──► anything else: 503, unless the response comes within 2 s
//! ```

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    error::Error,
    fmt,
    io::{self, Cursor},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts,
};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as HttpBody, Frame, SizeHint},
    upgrade::OnUpgrade,
};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use parking_lot::Mutex;
use roomcast::{Drain, ForeignRequest, NodeId, Server, relay};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, join, split},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{MissedTickBehavior, Sleep, interval, sleep, timeout},
};

use super::{
    LINK_PATH, LINK_PROTOCOL, RelayLimits,
    key::{HEADER, Keys, Signed},
    link::{Link, Outbox, TICK},
    metrics::{Metrics, Outcome},
    owner::{Owner, Way},
    pipe,
    receiver::REFUSED,
    requests::Requests,
    seal::ciphers,
    tls::{self, NodeTls},
};
use crate::gateway::{
    clock,
    line_limit::LineLimit,
    outbound::{self, Forwarded},
};

/// Time for a connection to an owner. They are close to each other.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for a connection to become a link.
const OPEN_TIMEOUT: Duration = Duration::from_secs(4);

/// Time for relayed requests to end when this node closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often an owner is asked meanwhile to end a poll.
const END_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How often owners are compared with the nodes that are alive.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Room for the head of a request. Most fit.
const HEAD_BYTES: usize = 640;

/// Headers of requests that matter to a session.
/// After the handshake, it reads no others.
const REQUEST_HEADERS: [HeaderName; 7] = [
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_TYPE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_VERSION,
    header::UPGRADE,
];

/// Headers of responses that are about one connection, and which HTTP sets by itself.
const OWN_HEADERS: [HeaderName; 3] = [header::DATE, header::TRANSFER_ENCODING, header::TE];

/// Passes requests on to the owners of their sessions.
pub(super) struct Sender {
    node: NodeId,
    /// The time of the cluster, which signatures have.
    time: Box<dyn Fn() -> Option<Duration> + Send + Sync>,
    keys: Arc<Keys>,
    /// The number of the last request that was signed.
    number: AtomicU64,
    connector: HttpConnector,
    tls: NodeTls,
    open: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    owners: Mutex<HashMap<NodeId, Arc<Owner>>>,
    stage: watch::Receiver<Stage>,
    /// The same as the stage `Closing`, for requests over links, which do not watch it.
    is_closing: AtomicBool,
    limits: RelayLimits,
    metrics: Metrics,
    lines: LineLimit,
    unreachable: LineLimit,
}

/// How far this node is on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stage {
    Open,
    Draining(Drain),
    Closing,
}

/// Where a request goes.
#[derive(Clone, Copy)]
struct Target<'a> {
    node: &'a NodeId,
    address: &'a str,
    owner: &'a Arc<Owner>,
}

/// Why a request has no response of its owner.
#[derive(Debug)]
enum Failed {
    /// The session is lost to the client.
    /// The client gets the error of an unknown session, and opens a new one.
    Session(Outcome),
    /// The client gets this status.
    Status(StatusCode, Outcome),
}

impl Sender {
    /// Relays from now on, as long as the server exists.
    pub(super) fn start(
        server: &Server,
        (keys, tls): (Arc<Keys>, NodeTls),
        limits: RelayLimits,
        metrics: Metrics,
        stage: watch::Receiver<Stage>,
    ) {
        let clock = server.clone();
        let sender = Arc::new(Self {
            node: server.node().clone(),
            time: Box::new(move || clock.cluster_time()),
            keys,
            number: AtomicU64::new(0),
            connector: outbound::tcp_connector(CONNECT_TIMEOUT),
            tls,
            open: Arc::new(Semaphore::new(limits.open.min(Semaphore::MAX_PERMITS))),
            bodies: Arc::new(Semaphore::new(limits.bodies())),
            owners: Mutex::default(),
            stage,
            is_closing: AtomicBool::new(false),
            limits,
            metrics,
            lines: LineLimit::default(),
            unreachable: LineLimit::default(),
        });
        let closing = Arc::clone(&sender);
        drop(tokio::spawn(async move { closing.close().await }));
        let (watched, watching) = (server.clone(), Arc::clone(&sender));
        drop(tokio::spawn(async move { watching.watch(watched).await }));
        let is_first = server.relay_with(move |foreign| {
            let sender = Arc::clone(&sender);
            async move { sender.relay(foreign).await }
        });
        debug_assert!(is_first, "a process relays once, on a bus");
    }

    /// Ends relayed requests to owners whose lease has ended, because such a node may be silent and
    /// still hold its connections.
    async fn watch(&self, server: Server) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.owners.lock().is_empty() {
                continue;
            }
            let alive: HashSet<_> = server.nodes().into_iter().collect();
            self.owners.lock().retain(|node, owner| {
                let is_alive = alive.contains(node);
                if !is_alive {
                    owner.end();
                }
                is_alive
            });
        }
    }

    /// Gives the polls back that are relayed over links when this node closes.
    async fn close(&self) {
        let mut stage = self.stage.clone();
        // An error means that this node has ended.
        drop(stage.wait_for(|stage| *stage == Stage::Closing).await);
        self.is_closing.store(true, Ordering::SeqCst);
        let owners: Vec<_> = self.owners.lock().values().cloned().collect();
        owners.iter().for_each(|owner| owner.close());
    }

    /// Returns the response of the owner, or none if the session is lost.
    async fn relay(self: Arc<Self>, foreign: ForeignRequest) -> Option<Response<Body>> {
        let kind = match foreign.request.headers().contains_key(header::UPGRADE) {
            true => "upgrade",
            false if foreign.request.method() == Method::POST => "post",
            false => "poll",
        };
        let owner = foreign.owner.clone();
        let (outcome, response) = match self.try_relay(foreign).await {
            Ok(response) => (Outcome::Relayed, Some(response)),
            Err(Failed::Session(outcome)) => (outcome, None),
            Err(Failed::Status(status, outcome)) => (outcome, Some(refusal(status))),
        };
        self.metrics.sent(kind, outcome);
        if outcome != Outcome::Relayed
            && let Some(left_out) = self.lines.pass()
        {
            tracing::warn!(%owner, kind, ?outcome, left_out, "a request was not relayed");
        }
        response
    }

    async fn try_relay(
        self: &Arc<Self>,
        foreign: ForeignRequest,
    ) -> Result<Response<Body>, Failed> {
        let ForeignRequest {
            owner: node,
            address,
            mut request,
            ..
        } = foreign;
        // Taken before the body is read, because a request beyond the limit shall cost
        // little.
        let open = Open::new(self)?;
        let owner = self.owner(&node, &address)?;
        let target = Target {
            node: &node,
            address: tls::authority(&address),
            owner: &owner,
        };
        let is_upgrade = request.headers().contains_key(header::UPGRADE);
        let upgrade = is_upgrade.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let (body, _held) = self.receive(body).await?;
        if is_upgrade {
            let relaying = self.relay_by_http(target, &parts, &body, upgrade, open);
            return relaying.await;
        }
        match self.way(target).await {
            Way::Link(requests) => self.relay_by_link(&requests, &parts, &body, open).await,
            Way::Http => self.relay_by_http(target, &parts, &body, None, open).await,
            Way::Failed(outcome) => Err(Failed::Session(outcome)),
        }
    }

    /// How polls and posts reach an owner. The first one opens a link.
    async fn way(self: &Arc<Self>, target: Target<'_>) -> Way {
        if let Some(known) = target.owner.known_way() {
            return known;
        }
        let (sender, owner) = (Arc::clone(self), Arc::clone(target.owner));
        let (node, address) = (target.node.clone(), Box::<str>::from(target.address));
        let opening = async move {
            let target = Target {
                node: &node,
                address: &address,
                owner: &owner,
            };
            let opening = timeout(OPEN_TIMEOUT, sender.open_link(target)).await;
            opening.unwrap_or(Way::Failed(Outcome::Gone))
        };
        target.owner.open_once(opening.boxed()).await
    }

    async fn open_link(&self, target: Target<'_>) -> Way {
        let upgrade = HeaderMap::from_iter([
            (header::CONNECTION, HeaderValue::from_static("upgrade")),
            (header::UPGRADE, HeaderValue::from_static(LINK_PROTOCOL)),
        ]);
        let Some(signature) = self.sign(target, &Method::GET, LINK_PATH, &[]) else {
            return Way::Failed(Outcome::Gone);
        };
        let head = head(target, &Method::GET, LINK_PATH, &upgrade, &signature, 0);
        let (response, stream, there) = match target.owner.client.send(head, &[]).await {
            Ok(Forwarded::Switched(response, stream, there)) => (response, stream, there),
            Ok(Forwarded::Response(response)) if response.status() == REFUSED => {
                return Way::Failed(Outcome::Refused);
            }
            // A node of a version without support for links.
            Ok(Forwarded::Response(_)) => return Way::Http,
            Err(error) => {
                // The log gives the reason once for all waiting requests.
                self.unreachable(target.node, error);
                return Way::Failed(Outcome::Gone);
            }
        };
        let nonce = response.headers().get(HEADER);
        let nonce = nonce.and_then(|nonce| nonce.to_str().ok());
        let sealing = nonce.and_then(|nonce| {
            let [requests, responses] = self.keys.of_link(&signature, nonce, None)?;
            ciphers(&requests, &responses)
        });
        let Some(sealing) = sealing else {
            return Way::Failed(Outcome::Refused);
        };
        let outbox = Arc::<Outbox>::default();
        let most_ticks = self.limits.response.as_secs().div_ceil(TICK.as_secs());
        let most_ticks = u32::try_from(most_ticks).unwrap_or(u32::MAX);
        let requests = Requests::new(Arc::clone(&outbox), most_ticks);
        let handler = requests.clone();
        let link = Link::new(stream, outbox, sealing, handler, &there, self.limits.stall);
        let (ending, node) = (requests.clone(), target.node.clone());
        // Ends with the connection, or with the owner's lease.
        drop(tokio::spawn(async move {
            if let Err(error) = link.run().await {
                tracing::debug!(%node, %error, "a link to another node has ended");
            }
            ending.end(Outcome::Gone);
        }));
        Way::Link(requests)
    }

    async fn relay_by_link(
        &self,
        requests: &Requests,
        parts: &Parts,
        body: &Bytes,
        open: Open,
    ) -> Result<Response<Body>, Failed> {
        let text = |name| {
            let value = parts.headers.get(name);
            let text = value.and_then(|value: &HeaderValue| value.to_str().ok());
            let fits = |text: &&str| text.len() <= relay::MAX_HEADER_BYTES;
            text.filter(fits).unwrap_or_default()
        };
        let query = parts.uri.query().unwrap_or_default();
        if query.len() > relay::MAX_HEAD_BYTES {
            return Err(Failed::Status(StatusCode::URI_TOO_LONG, Outcome::Limit));
        }
        let now = (self.time)().ok_or(Failed::Session(Outcome::Gone))?;
        let is_post = parts.method == Method::POST;
        let request = relay::Request {
            method: if is_post {
                relay::Method::Post
            } else {
                relay::Method::Get
            },
            time: clock::millis(now),
            query,
            accept_encoding: text(header::ACCEPT_ENCODING),
            content_type: text(header::CONTENT_TYPE),
            length: 0,
            body: &[],
        };
        let mut requested = requests.send(request, body);
        if self.is_closing.load(Ordering::SeqCst) {
            requests.close();
        }
        let reply = match requested.reply().await {
            Some(reply) => reply,
            // This node closes.
            None => tokio::select! {
                reply = timeout(CLOSE_TIMEOUT, requested.reply()) => {
                    let late = Failed::Status(StatusCode::SERVICE_UNAVAILABLE, Outcome::Closing);
                    reply.ok().flatten().ok_or(late)?
                }
                never = end_poll(requests, request), if !is_post => match never {},
            },
        };
        match reply {
            Ok(response) => Ok(respond(response, self.limits.stall, open)),
            Err(outcome) => Err(Failed::Session(outcome)),
        }
    }

    async fn relay_by_http(
        &self,
        target: Target<'_>,
        parts: &Parts,
        body: &Bytes,
        upgrade: Option<OnUpgrade>,
        open: Open,
    ) -> Result<Response<Body>, Failed> {
        let mut end = End {
            gone: target.owner.gone.subscribe(),
            stage: self.stage.clone(),
        };
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let is_poll = parts.method == Method::GET && upgrade.is_none();
        let head = self.head(target, &parts.method, path, &parts.headers, body)?;
        let sending = target.owner.client.send(head, body);
        let mut responding = pin!(timeout(self.limits.response, sending));
        let ended = tokio::select! {
            response = &mut responding => Ok(response),
            ended = end.of_request() => Err(ended),
        };
        let response = match ended {
            Ok(response) => response,
            Err(Ended::Owner) => return Err(Failed::Session(Outcome::Gone)),
            // The session continues, so its response is awaited. That of a poll arrives at once,
            // because the owner ends it.
            Err(Ended::This) => {
                let response = tokio::select! {
                    response = timeout(CLOSE_TIMEOUT, responding) => response,
                    never = self.end_poll(target, path), if is_poll => match never {},
                };
                let late = Failed::Status(StatusCode::SERVICE_UNAVAILABLE, Outcome::Closing);
                response.map_err(|_| late)?
            }
        };
        match response {
            Ok(Ok(Forwarded::Response(response))) if response.status() == REFUSED => {
                Err(Failed::Session(Outcome::Refused))
            }
            Ok(Ok(Forwarded::Response(response))) => Ok(respond(response, self.limits.stall, open)),
            Ok(Ok(Forwarded::Switched(response, stream, there))) => {
                let upgrade = upgrade.ok_or(Failed::Session(Outcome::Refused))?;
                let (from_owner, to_owner) = split(stream);
                // The first bytes of the WebSocket may have come with the response.
                let owner = join(Cursor::new(there).chain(from_owner), to_owner);
                Ok(self.switch(response, (upgrade, owner), end, open))
            }
            Ok(Err(error)) => Err(self.unreachable(target.node, error)),
            Err(_) => Err(Failed::Session(Outcome::Timeout)),
        }
    }

    /// The failure of a request to an owner that cannot be reached, which the log
    /// gives the reason of.
    fn unreachable(&self, owner: &NodeId, reason: impl fmt::Display) -> Failed {
        if let Some(left_out) = self.unreachable.pass() {
            tracing::warn!(%owner, %reason, left_out, "a node cannot be reached");
        }
        Failed::Session(Outcome::Gone)
    }

    /// Signs a request to an owner. `None` if the time of the cluster is not known.
    fn sign(&self, target: Target<'_>, method: &Method, path: &str, body: &[u8]) -> Option<String> {
        let now = (self.time)()?;
        let signed = Signed {
            receiver: target.node.as_str(),
            method,
            path,
        };
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        let node = self.node.as_str();
        Some(self.keys.sign(signed, node, number, now, body))
    }

    /// The head of a signed request to an owner, with those headers of the client that
    /// matter to the session.
    fn head(
        &self,
        target: Target<'_>,
        method: &Method,
        path: &str,
        from: &HeaderMap,
        body: &[u8],
    ) -> Result<Vec<u8>, Failed> {
        let signature = self.sign(target, method, path, body);
        let signature = signature.ok_or(Failed::Session(Outcome::Gone))?;
        Ok(head(target, method, path, from, &signature, body.len()))
    }

    /// Makes the owner end a poll, so that the client polls again at another node.
    /// Repeated, because the poll may be on its way.
    async fn end_poll(&self, target: Target<'_>, path: &str) -> Infallible {
        loop {
            let head = self.head(target, &Method::DELETE, path, &HeaderMap::new(), &[]);
            if let Ok(head) = head {
                // If it fails, the poll does not end in time.
                drop(target.owner.client.send(head, &[]).await);
            }
            sleep(END_POLL_INTERVAL).await;
        }
    }

    /// Receives a body, up to one byte more than a session takes, so that its owner
    /// refuses it as any other that is too large.
    async fn receive(
        &self,
        mut body: Body,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Failed> {
        if body.is_end_stream() {
            return Ok((Bytes::new(), None));
        }
        let most = self.limits.payload + 1;
        // At most the declared length, otherwise the maximum.
        let expected = body.size_hint().upper().map_or(most, |upper| {
            usize::try_from(upper).unwrap_or(most).min(most)
        });
        let permits = u32::try_from(expected).unwrap_or(u32::MAX);
        let held = Arc::clone(&self.bodies).try_acquire_many_owned(permits);
        let held =
            held.map_err(|_| Failed::Status(StatusCode::SERVICE_UNAVAILABLE, Outcome::Limit))?;
        let receiving = async {
            let mut received = BytesMut::new();
            while received.len() < most {
                match body.frame().await {
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            received
                                .extend_from_slice(&data[..data.len().min(most - received.len())]);
                        }
                    }
                    Some(Err(_)) => return None,
                    None => break,
                }
            }
            Some(received.freeze())
        };
        match timeout(self.limits.body, receiving).await {
            Ok(Some(body)) => Ok((body, Some(held))),
            Ok(None) => Err(Failed::Status(StatusCode::BAD_REQUEST, Outcome::Body)),
            Err(_) => Err(Failed::Status(StatusCode::REQUEST_TIMEOUT, Outcome::Body)),
        }
    }

    /// Joins the two WebSockets after the response.
    fn switch(
        &self,
        response: Response<()>,
        (client, owner): (OnUpgrade, impl AsyncRead + AsyncWrite + Send + 'static),
        end: End,
        open: Open,
    ) -> Response<Body> {
        let stall = self.limits.stall;
        let number = self.number.load(Ordering::Relaxed);
        // Ends with either side.
        drop(tokio::spawn(async move {
            if let Ok(client) = client.await {
                let client = TokioIo::new(client);
                pipe::carry(client, owner, stall, end.of_websocket(number)).await;
            }
            drop(open);
        }));
        let mut response = response.map(|()| Body::empty());
        remove_own(response.headers_mut());
        response
    }

    /// The connections to an owner.
    fn owner(&self, node: &NodeId, address: &str) -> Result<Arc<Owner>, Failed> {
        let mut owners = self.owners.lock();
        if let Some(owner) = owners.get(node) {
            return Ok(Arc::clone(owner));
        }
        let connector = self.tls.connector(self.connector.clone(), address);
        let connector = connector.map_err(|missing| self.unreachable(node, missing))?;
        let owner = Owner::new(connector, tls::authority(address), self.limits.idle);
        let owner = Arc::new(owner.ok_or(Failed::Session(Outcome::Gone))?);
        owners.insert(node.clone(), Arc::clone(&owner));
        Ok(owner)
    }
}

/// Which node has ended.
enum Ended {
    Owner,
    This,
}

/// The ends of both nodes, which end a request.
struct End {
    /// Changes to true when the owner's lease has ended.
    gone: watch::Receiver<bool>,
    stage: watch::Receiver<Stage>,
}

impl End {
    /// Resolves when the owner's lease has ended, or this node closes.
    async fn of_request(&mut self) -> Ended {
        tokio::select! {
            // An error means that the owner is no longer used, because this node has ended.
            _ = self.gone.wait_for(|gone| *gone) => Ended::Owner,
            _ = self.stage.wait_for(|stage| *stage == Stage::Closing) => Ended::This,
        }
    }

    /// Resolves when a WebSocket has to end: those of a node that drains end one after
    /// the other. `number` is different for each.
    async fn of_websocket(mut self, number: u64) {
        let draining = async {
            let stage = self.stage.wait_for(|stage| *stage != Stage::Open).await;
            let stage = stage.map_or(Stage::Closing, |stage| *stage);
            if let Stage::Draining(Drain { grace, over, .. }) = stage {
                let mut stage = self.stage;
                tokio::select! {
                    () = sleep(grace + over.mul_f64(spread(number))) => {}
                    _ = stage.wait_for(|stage| *stage == Stage::Closing) => {}
                }
            }
        };
        tokio::select! {
            _ = self.gone.wait_for(|gone| *gone) => {}
            () = draining => {}
        }
    }
}

/// Places numbers in a row evenly between zero and one, wherever the row begins and ends.
fn spread(number: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    // The high bits fit exactly.
    let high = u32::try_from(number.wrapping_mul(GOLDEN) >> 32).unwrap_or_default();
    f64::from(high) / f64::from(u32::MAX)
}

/// Counts a relayed request until it is dropped.
struct Open {
    _permit: OwnedSemaphorePermit,
    metrics: Metrics,
}

impl Open {
    fn new(sender: &Sender) -> Result<Self, Failed> {
        let permit = Arc::clone(&sender.open).try_acquire_owned();
        let limit = Failed::Status(StatusCode::SERVICE_UNAVAILABLE, Outcome::Limit);
        let permit = permit.map_err(|_| limit)?;
        sender.metrics.open.inc();
        Ok(Self {
            _permit: permit,
            metrics: sender.metrics.clone(),
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.open.dec();
    }
}

/// Makes the owner end a poll that was relayed over a link. Repeated, because the poll may
/// be on its way.
async fn end_poll(requests: &Requests, poll: relay::Request<'_>) -> Infallible {
    loop {
        let end = relay::Request {
            method: relay::Method::Delete,
            ..poll
        };
        let mut ended = requests.send(end, &Bytes::new());
        // The first one says that this node closes. If it fails, the poll does not end in time.
        if ended.reply().await.is_none() {
            drop(ended.reply().await);
        }
        sleep(END_POLL_INTERVAL).await;
    }
}

/// The head of the request to the owner.
fn head(
    target: Target<'_>,
    method: &Method,
    path: &str,
    from: &HeaderMap,
    signature: &str,
    length: usize,
) -> Vec<u8> {
    let address = target.address;
    let mut head = Vec::with_capacity(HEAD_BYTES + length.min(HEAD_BYTES));
    let mut add = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
    add(&[
        method.as_str().as_bytes(),
        b" ",
        path.as_bytes(),
        b" HTTP/1.1\r\nhost: ",
    ]);
    add(&[address.as_bytes(), b"\r\n"]);
    let is_upgrade = from.contains_key(header::UPGRADE);
    for name in REQUEST_HEADERS {
        // The connection to the owner is kept regardless of the client's own connection.
        if name == header::CONNECTION && !is_upgrade {
            continue;
        }
        for value in from.get_all(&name) {
            add(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
    }
    add(&[HEADER.as_bytes(), b": ", signature.as_bytes(), b"\r\n"]);
    if length > 0 || method == Method::POST {
        add(&[b"content-length: ", length.to_string().as_bytes(), b"\r\n"]);
    }
    add(&[b"\r\n"]);
    head
}

/// The response of the owner, for the client.
fn respond<B>(response: Response<B>, stall: Duration, open: Open) -> Response<Body>
where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let mut response = response.map(|body| match body.is_end_stream() {
        true => Body::empty(),
        false => Body::new(RelayedBody {
            body,
            stall,
            stalled: None,
            _open: open,
        }),
    });
    let headers = response.headers_mut();
    remove_own(headers);
    headers.remove(header::CONNECTION);
    response
}

/// The body of a response on its way to the client. Counted as long as it is forwarded.
struct RelayedBody<B> {
    body: B,
    /// How long the owner may send nothing.
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    _open: Open,
}

impl<B> HttpBody for RelayedBody<B>
where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(read) = Pin::new(&mut self.body).poll_frame(cx) {
            self.stalled = None;
            return Poll::Ready(read.map(|read| read.map_err(Into::into)));
        }
        let stall = self.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        let ended = stalled.as_mut().poll(cx);
        ended.map(|()| Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn remove_own(headers: &mut HeaderMap) {
    for name in OWN_HEADERS {
        headers.remove(name);
    }
}

fn refusal(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let second = HeaderValue::from_static("1");
        response.headers_mut().insert(header::RETRY_AFTER, second);
    }
    response
}
