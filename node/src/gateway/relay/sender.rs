//! The side of the node that a client has reached: passes its request on to the owner of
//! the session.
//!
//! A body is received completely before it is passed on, because its digest is signed and
//! the session takes it as a whole anyway. A response is passed on as it comes.
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
    fmt,
    io::{self, Cursor},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as HttpBody, Frame, SizeHint},
    upgrade::OnUpgrade,
};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use parking_lot::Mutex;
use roomcast::{Drain, ForeignRequest, NodeId, Server};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, join, split},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{MissedTickBehavior, Sleep, interval, sleep, timeout},
};

use super::{
    RelayLimits,
    key::{HEADER, Keys, Signed},
    metrics::{Metrics, Outcome},
    pipe,
    receiver::REFUSED,
    tls::{self, NodeTls},
};
use crate::gateway::{
    line_limit::LineLimit,
    outbound::{self, ForwardClient, Forwarded, ForwardedBody},
};

/// Time for a connection to an owner. They are close to each other.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for what is relayed to end when this node closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often an owner is asked meanwhile to end a poll.
const END_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How often owners are looked up among the nodes that are alive.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of bodies that wait to be passed on, of all clients; or four of the largest if
/// that is more. Beyond: status 503.
const MAX_BODY_BYTES: usize = 64 << 20;

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
    owners: Mutex<HashMap<NodeId, Owner>>,
    stage: watch::Receiver<Stage>,
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

/// A node to which requests have been relayed.
struct Owner {
    client: Arc<ForwardClient>,
    /// Changes to true when its lease has ended.
    gone: watch::Sender<bool>,
}

/// Where a request goes.
#[derive(Clone, Copy)]
struct Target<'a> {
    owner: &'a NodeId,
    address: &'a str,
    client: &'a ForwardClient,
    /// With its query.
    path: &'a str,
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
    /// Passes on from now on, as long as the server exists.
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
            bodies: Arc::new(Semaphore::new(MAX_BODY_BYTES.max(4 * (limits.payload + 1)))),
            owners: Mutex::default(),
            stage,
            limits,
            metrics,
            lines: LineLimit::default(),
            unreachable: LineLimit::default(),
        });
        let (watched, watching) = (server.clone(), Arc::clone(&sender));
        drop(tokio::spawn(async move { watching.watch(watched).await }));
        let is_first = server.relay_with(move |foreign| {
            let sender = Arc::clone(&sender);
            async move { sender.relay(foreign).await }
        });
        debug_assert!(is_first, "a process relays once, on a bus");
    }

    /// Ends what is relayed to owners whose lease has ended, because such a node may be
    /// silent and still hold its connections.
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
                    owner.gone.send_replace(true);
                }
                is_alive
            });
        }
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

    async fn try_relay(&self, foreign: ForeignRequest) -> Result<Response<Body>, Failed> {
        let ForeignRequest {
            owner,
            address,
            mut request,
            ..
        } = foreign;
        // Taken before the body is read, because a request beyond the limit shall cost
        // little.
        let open = Open::new(self)?;
        let upgrade = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let (body, held) = self.receive(body).await?;
        let (client, mut end) = self.owner(&owner, &address)?;
        let target = Target {
            owner: &owner,
            address: tls::authority(&address),
            client: &client,
            path: parts.uri.path_and_query().map_or("/", |path| path.as_str()),
        };
        let is_poll = parts.method == Method::GET && !parts.headers.contains_key(header::UPGRADE);
        let head = self.head(target, &parts.method, &parts.headers, &body)?;
        let mut responding = pin!(timeout(self.limits.response, client.send(head, &body)));
        let ended = tokio::select! {
            response = &mut responding => Ok(response),
            ended = end.of_request() => Err(ended),
        };
        let response = match ended {
            Ok(response) => response,
            Err(Ended::Owner) => return Err(Failed::Session(Outcome::Gone)),
            // The session goes on, so its response is waited for. That of a poll comes
            // at once, because the owner ends it.
            Err(Ended::This) => {
                let response = tokio::select! {
                    response = timeout(CLOSE_TIMEOUT, responding) => response,
                    never = self.end_poll(target), if is_poll => match never {},
                };
                let late = Failed::Status(StatusCode::SERVICE_UNAVAILABLE, Outcome::Closing);
                response.map_err(|_| late)?
            }
        };
        // The body is not needed any more, so others may take its room.
        drop(held);
        match response {
            Ok(Ok(Forwarded::Response(response))) if response.status() == REFUSED => {
                Err(Failed::Session(Outcome::Refused))
            }
            Ok(Ok(Forwarded::Response(response))) => Ok(respond(response, self.limits.stall, open)),
            Ok(Ok(Forwarded::Switched(response, stream, there))) => {
                let (from_owner, to_owner) = split(stream);
                // The first bytes of the WebSocket may have come with the response.
                let owner = join(Cursor::new(there).chain(from_owner), to_owner);
                Ok(self.switch(response, (upgrade, owner), end, open))
            }
            Ok(Err(error)) => Err(self.unreachable(&owner, error)),
            Err(_) => Err(Failed::Session(Outcome::Timeout)),
        }
    }

    /// The failure of a request to an owner that cannot be reached, which the log gives the reason of.
    fn unreachable(&self, owner: &NodeId, reason: impl fmt::Display) -> Failed {
        if let Some(left_out) = self.unreachable.pass() {
            tracing::warn!(%owner, %reason, left_out, "a node cannot be reached");
        }
        Failed::Session(Outcome::Gone)
    }

    /// The head of a signed request to an owner, with those headers of the client that
    /// matter to the session.
    fn head(
        &self,
        target: Target<'_>,
        method: &Method,
        from: &HeaderMap,
        body: &[u8],
    ) -> Result<Vec<u8>, Failed> {
        let now = (self.time)().ok_or(Failed::Session(Outcome::Gone))?;
        let signed = Signed {
            receiver: target.owner.as_str(),
            method,
            path: target.path,
        };
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        let node = self.node.as_str();
        let signature = self.keys.sign(signed, node, number, now, body);
        Ok(head(target, method, from, &signature, body.len()))
    }

    /// Has the owner end a poll, so that the client polls again at another node.
    /// Repeated, because the poll may be on its way.
    async fn end_poll(&self, target: Target<'_>) -> Infallible {
        loop {
            let head = self.head(target, &Method::DELETE, &HeaderMap::new(), &[]);
            if let Ok(head) = head {
                // If it fails, the poll does not end in time.
                drop(target.client.send(head, &[]).await);
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
        // No more than is declared, else as much as may come.
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

    /// The connections to an owner, and what ends a request to it before there is a response.
    fn owner(&self, node: &NodeId, address: &str) -> Result<(Arc<ForwardClient>, End), Failed> {
        let mut owners = self.owners.lock();
        if !owners.contains_key(node) {
            let connector = self.tls.connector(self.connector.clone(), address);
            let connector = connector.map_err(|missing| self.unreachable(node, missing))?;
            let uri = Uri::builder()
                .scheme("http")
                .authority(tls::authority(address));
            let uri = uri.path_and_query("/").build();
            let uri = uri.map_err(|_| Failed::Session(Outcome::Gone))?;
            let owner = Owner {
                client: Arc::new(ForwardClient::new(connector, uri, self.limits.idle)),
                gone: watch::Sender::new(false),
            };
            owners.insert(node.clone(), owner);
        }
        let owner = owners.get(node).ok_or(Failed::Session(Outcome::Gone))?;
        let end = End {
            gone: owner.gone.subscribe(),
            stage: self.stage.clone(),
        };
        Ok((Arc::clone(&owner.client), end))
    }
}

/// Which node has ended.
enum Ended {
    Owner,
    This,
}

/// The ends of both nodes.
struct End {
    /// Changes to true when the owner's lease has ended.
    gone: watch::Receiver<bool>,
    stage: watch::Receiver<Stage>,
}

impl End {
    /// Resolves when the owner's lease has ended, or this node closes.
    async fn of_request(&mut self) -> Ended {
        tokio::select! {
            // An error means that nobody looks the owner up any more, because this node has ended.
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

/// Counts what is relayed until it is dropped.
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

/// The head of the request to the owner.
fn head(
    target: Target<'_>,
    method: &Method,
    from: &HeaderMap,
    signature: &str,
    length: usize,
) -> Vec<u8> {
    let Target { address, path, .. } = target;
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
        // The connection to the owner is kept whatever the client does with its own.
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
fn respond(response: Response<ForwardedBody>, stall: Duration, open: Open) -> Response<Body> {
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

/// The body of a response on its way to the client. Counted as long as it is passed on.
struct RelayedBody {
    body: ForwardedBody,
    /// How long the owner may send nothing.
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    _open: Open,
}

impl HttpBody for RelayedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let read = Pin::new(&mut self.body).poll_frame(cx);
        if read.is_ready() {
            self.stalled = None;
            return read;
        }
        let stall = self.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        let ended = stalled.as_mut().poll(cx);
        ended.map(|()| Some(Err(io::ErrorKind::TimedOut.into())))
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
