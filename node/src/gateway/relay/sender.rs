//! The side of the node that a client has reached: passes its request on to the owner of
//! the session.
//!
//! ```text
//! request ─► place ─┬─► poll, post ─► body ─► link to the owner ──► response, passed on
//!             503   │               400, 408,  lease over, not reached: session lost
//!                   │                 503
//!                   └─► upgrade ─► connection to the owner ─┬─► 101: streams are joined
//!                                 not reached: session lost └─► 421: session lost
//!
//! this node closes ─► a poll: its owner ends it
//!                ├──► a post: 503, unless the response comes within 2 s
//!                └──► an upgrade: 503
//! ```
//!
//! A body is received completely before it is passed on, because the session takes it as a whole
//! anyway. A response is forwarded as it arrives.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::{Body, HttpBody as _};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, TryStreamExt as _};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header,
    uri::PathAndQuery,
};
use hyper::upgrade::OnUpgrade;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use parking_lot::Mutex;
use roomcast::{Drain, ForeignRequest, NodeId, Server, relay, signing::Stamp};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    LINK_PATH, LINK_PROTOCOL, RelayLimits,
    key::{HEADER, Keys},
    link::{Link, Outbox, TICK},
    metrics::{Metrics, Outcome},
    owner::{Linked, Owner},
    pipe,
    receiver::REFUSED,
    requests::Requests,
    seal::ciphers,
    tls::{self, NodeTls},
};
use crate::gateway::{clock, line_limit::LineLimit, outbound};

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

/// Headers of upgrades that matter to a session.
/// After the handshake, it reads no others.
const UPGRADE_HEADERS: [HeaderName; 5] = [
    header::CONNECTION,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_VERSION,
    header::UPGRADE,
];

/// Headers of responses that are about one connection, and which HTTP sets by itself.
const OWN_HEADERS: [HeaderName; 3] = [header::DATE, header::TRANSFER_ENCODING, header::TE];

/// Passes requests on to the owners of their sessions.
pub(super) struct Sender {
    server: Server,
    keys: Arc<Keys>,
    /// The number of the last request that was signed.
    number: AtomicU64,
    connector: HttpConnector,
    tls: NodeTls,
    open: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    owners: Mutex<HashMap<NodeId, Arc<Owner>>>,
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

/// Why a request has no response of its owner.
#[derive(Debug)]
enum Failed {
    /// The session is lost to the client.
    /// The client gets the error of an unknown session, and opens a new one.
    Session(Outcome),
    /// The client gets this status.
    Status(StatusCode, Outcome),
}

const CLOSING: Failed = Failed::Status(StatusCode::SERVICE_UNAVAILABLE, Outcome::Closing);

impl Sender {
    /// Relays from now on, as long as the server exists.
    pub(super) fn start(
        server: &Server,
        (keys, tls): (Arc<Keys>, NodeTls),
        limits: RelayLimits,
        metrics: Metrics,
        stage: watch::Receiver<Stage>,
    ) {
        let sender = Arc::new(Self {
            server: server.clone(),
            keys,
            number: AtomicU64::new(0),
            connector: outbound::tcp_connector(CONNECT_TIMEOUT),
            tls,
            open: Arc::new(Semaphore::new(limits.open.min(Semaphore::MAX_PERMITS))),
            bodies: Arc::new(Semaphore::new(limits.bodies())),
            owners: Mutex::default(),
            stage,
            limits,
            metrics,
            lines: LineLimit::default(),
            unreachable: LineLimit::default(),
        });
        let watching = Arc::clone(&sender);
        drop(tokio::spawn(async move { watching.watch().await }));
        let is_first = server.relay_with(move |foreign| {
            let sender = Arc::clone(&sender);
            async move { sender.relay(foreign).await }
        });
        debug_assert!(is_first, "a process relays once, on a bus");
    }

    /// Ends relayed requests to owners whose lease has ended, because such a node may be silent and
    /// still hold its connections.
    async fn watch(&self) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.owners.lock().is_empty() {
                continue;
            }
            let alive: HashSet<_> = self.server.nodes().into_iter().collect();
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

    async fn try_relay(
        self: &Arc<Self>,
        foreign: ForeignRequest,
    ) -> Result<Response<Body>, Failed> {
        // Taken before the body is read, because a request beyond the limit shall cost
        // little.
        let open = Open::new(self)?;
        let owner = self.owner(&foreign.owner, &foreign.address)?;
        if foreign.request.headers().contains_key(header::UPGRADE) {
            return self.relay_upgrade(&owner, foreign.request, open).await;
        }
        let (head, body) = foreign.request.into_parts();
        let (body, _held) = self.receive(body).await?;
        let opening = || Arc::clone(self).open_link(Arc::clone(&owner)).boxed();
        let requests = owner.link(opening).await.map_err(Failed::Session)?;
        let request = Request::from_parts(head, body);
        self.relay_by_link(&requests, request, open).await
    }

    async fn open_link(self: Arc<Self>, owner: Arc<Owner>) -> Linked {
        let opening = timeout(OPEN_TIMEOUT, self.try_open_link(&owner)).await;
        opening.unwrap_or(Err(Outcome::Gone))
    }

    async fn try_open_link(&self, owner: &Owner) -> Linked {
        let upgrade = HeaderMap::from_iter([
            (header::CONNECTION, HeaderValue::from_static("upgrade")),
            (header::UPGRADE, HeaderValue::from_static(LINK_PROTOCOL)),
        ]);
        let path = PathAndQuery::from_static(LINK_PATH);
        let request = self.signed(owner, path, &upgrade).ok_or(Outcome::Gone)?;
        let signature = request.headers().get(HEADER).cloned();
        let mut response = match owner.send(request).await {
            Ok(response) => response,
            Err(error) => {
                // The log gives the reason once for all waiting requests.
                self.unreachable(&owner.node, error);
                return Err(Outcome::Gone);
            }
        };
        let sealing = || {
            let nonce = response.headers().get(HEADER)?.to_str().ok()?;
            let secrets = self.keys.of_link(signature?.to_str().ok()?, nonce, 0)?;
            ciphers(&secrets[0], &secrets[1])
        };
        // An owner that refuses the request sends no nonce.
        let sealing = sealing().ok_or(Outcome::Refused)?;
        let stream = hyper::upgrade::on(&mut response).await;
        let stream = TokioIo::new(stream.map_err(|_| Outcome::Gone)?);
        let outbox = Arc::<Outbox>::default();
        let most_ticks = self.limits.response.as_secs().div_ceil(TICK.as_secs());
        let most_ticks = u32::try_from(most_ticks).unwrap_or(u32::MAX);
        let requests = Requests::new(Arc::clone(&outbox), most_ticks);
        let link = Link::new(stream, outbox, sealing, requests.clone(), self.limits.stall);
        let (ending, node) = (requests.clone(), owner.node.clone());
        let mut gone = owner.gone.subscribe();
        drop(tokio::spawn(async move {
            tokio::select! {
                ended = link.run() => if let Err(error) = ended {
                    tracing::debug!(%node, %error, "a link to another node has ended");
                },
                _ = gone.wait_for(|gone| *gone) => {}
            }
            ending.end();
        }));
        Ok(requests)
    }

    async fn relay_by_link(
        &self,
        requests: &Requests,
        request: Request<Bytes>,
        open: Open,
    ) -> Result<Response<Body>, Failed> {
        let text = |name| {
            let value = request.headers().get(name);
            let text = value.and_then(|value: &HeaderValue| value.to_str().ok());
            let fits = |text: &&str| text.len() <= relay::MAX_HEADER_BYTES;
            text.filter(fits).unwrap_or_default()
        };
        let query = request.uri().query().unwrap_or_default();
        if query.len() > relay::MAX_HEAD_BYTES {
            return Err(Failed::Status(StatusCode::URI_TOO_LONG, Outcome::Limit));
        }
        let now = self.server.cluster_time();
        let now = now.ok_or(Failed::Session(Outcome::Gone))?;
        let is_post = request.method() == Method::POST;
        let relayed = relay::Request {
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
        let mut replying = pin!(requests.send(relayed, request.body(), self.limits.stall, open));
        let reply = tokio::select! {
            reply = &mut replying => reply,
            () = closed(self.stage.clone()) => tokio::select! {
                reply = timeout(CLOSE_TIMEOUT, replying) => reply.map_err(|_| CLOSING)?,
                never = end_poll(requests, relayed), if !is_post => match never {},
            },
        };
        let mut response = reply.map_err(Failed::Session)?;
        remove_own(response.headers_mut());
        response.headers_mut().remove(header::CONNECTION);
        Ok(response)
    }

    async fn relay_upgrade(
        &self,
        owner: &Owner,
        mut request: Request<Body>,
        open: Open,
    ) -> Result<Response<Body>, Failed> {
        let client = hyper::upgrade::on(&mut request);
        let path = request.uri().path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let signed = self.signed(owner, path, request.headers());
        let signed = signed.ok_or(Failed::Session(Outcome::Gone))?;
        let mut end = End {
            gone: owner.gone.subscribe(),
            stage: self.stage.clone(),
        };
        let sent = tokio::select! {
            sent = timeout(self.limits.response, owner.send(signed)) => sent,
            failed = end.of_request() => return Err(failed),
        };
        let sent = sent.map_err(|_| Failed::Session(Outcome::Timeout))?;
        let mut response = sent.map_err(|error| self.unreachable(&owner.node, error))?;
        if response.status() == REFUSED {
            return Err(Failed::Session(Outcome::Refused));
        }
        remove_own(response.headers_mut());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let owner = hyper::upgrade::on(&mut response);
            self.join((client, owner), end, open);
        } else {
            response.headers_mut().remove(header::CONNECTION);
        }
        Ok(response.map(Body::from))
    }

    /// The failure of a request to an owner that cannot be reached, which the log
    /// gives the reason of.
    fn unreachable(&self, owner: &NodeId, reason: impl fmt::Display) -> Failed {
        if let Some(left_out) = self.unreachable.pass() {
            tracing::warn!(%owner, %reason, left_out, "a node cannot be reached");
        }
        Failed::Session(Outcome::Gone)
    }

    /// A signed upgrade at an owner, with those of these headers that matter to the session.
    /// `None` if the time of the cluster is not known.
    fn signed(&self, owner: &Owner, path: PathAndQuery, from: &HeaderMap) -> Option<Request<Body>> {
        let stamp = Stamp {
            sender: self.server.node().as_str(),
            number: self.number.fetch_add(1, Ordering::Relaxed) + 1,
            time: clock::millis(self.server.cluster_time()?),
        };
        let signature = self.keys.sign(owner.node.as_str(), path.as_str(), stamp);
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.into();
        let headers = request.headers_mut();
        headers.insert(HEADER, HeaderValue::from_str(&signature).ok()?);
        for name in UPGRADE_HEADERS {
            for value in from.get_all(&name) {
                headers.append(&name, value.clone());
            }
        }
        Some(request)
    }

    /// Receives a body, up to one byte more than a session takes, so that its owner
    /// refuses it as any other that is too large.
    async fn receive(&self, body: Body) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Failed> {
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
            let (mut parts, mut received) = (body.into_data_stream(), BytesMut::new());
            while received.len() < most
                && let Some(part) = parts.try_next().await.ok()?
            {
                received.extend_from_slice(&part);
            }
            received.truncate(most);
            Some(received.freeze())
        };
        match timeout(self.limits.body, receiving).await {
            Ok(Some(body)) => Ok((body, Some(held))),
            Ok(None) => Err(Failed::Status(StatusCode::BAD_REQUEST, Outcome::Body)),
            Err(_) => Err(Failed::Status(StatusCode::REQUEST_TIMEOUT, Outcome::Body)),
        }
    }

    /// Joins the two WebSockets after the response.
    fn join(&self, (client, owner): (OnUpgrade, OnUpgrade), end: End, open: Open) {
        let stall = self.limits.stall;
        let number = self.number.load(Ordering::Relaxed);
        // Ends with either side.
        drop(tokio::spawn(async move {
            if let Ok((client, owner)) = tokio::try_join!(client, owner) {
                let (client, owner) = (TokioIo::new(client), TokioIo::new(owner));
                pipe::carry(client, owner, stall, end.of_websocket(number)).await;
            }
            drop(open);
        }));
    }

    /// The ways to an owner.
    fn owner(&self, node: &NodeId, address: &str) -> Result<Arc<Owner>, Failed> {
        let mut owners = self.owners.lock();
        if let Some(owner) = owners.get(node) {
            return Ok(Arc::clone(owner));
        }
        let connector = self.tls.connector(self.connector.clone(), address);
        let connector = connector.map_err(|missing| self.unreachable(node, missing))?;
        let owner = Owner::new(node.clone(), connector, tls::authority(address));
        let owner = Arc::new(owner.ok_or(Failed::Session(Outcome::Gone))?);
        owners.insert(node.clone(), Arc::clone(&owner));
        Ok(owner)
    }
}

/// The ends of both nodes, which end a request.
struct End {
    /// Changes to true when the owner's lease has ended.
    gone: watch::Receiver<bool>,
    stage: watch::Receiver<Stage>,
}

impl End {
    /// Resolves when the owner's lease has ended, or this node closes.
    async fn of_request(&mut self) -> Failed {
        tokio::select! {
            // An error means that the owner is no longer used, because this node has ended.
            _ = self.gone.wait_for(|gone| *gone) => Failed::Session(Outcome::Gone),
            () = closed(self.stage.clone()) => CLOSING,
        }
    }

    /// Resolves when a WebSocket has to end: those of a node that drains end one after
    /// the other. `number` is different for each.
    async fn of_websocket(mut self, number: u64) {
        let draining = async {
            let stage = self.stage.wait_for(|stage| *stage != Stage::Open).await;
            let stage = stage.map_or(Stage::Closing, |stage| *stage);
            if let Stage::Draining(Drain { grace, over, .. }) = stage {
                let waiting = sleep(grace + over.mul_f64(spread(number)));
                tokio::select! {
                    () = waiting => {}
                    () = closed(self.stage) => {}
                }
            }
        };
        tokio::select! {
            _ = self.gone.wait_for(|gone| *gone) => {}
            () = draining => {}
        }
    }
}

/// Resolves when this node closes.
async fn closed(mut stage: watch::Receiver<Stage>) {
    // An error means that it has ended.
    drop(stage.wait_for(|stage| *stage == Stage::Closing).await);
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

/// Makes the owner end a poll, so that the client polls again at another node. Repeated, because
/// the poll may be on its way.
async fn end_poll(requests: &Requests, poll: relay::Request<'_>) -> Infallible {
    let end = relay::Request {
        method: relay::Method::Delete,
        ..poll
    };
    loop {
        // If it fails, the poll does not end in time.
        drop(requests.send(end, &Bytes::new(), CLOSE_TIMEOUT, ()).await);
        sleep(END_POLL_INTERVAL).await;
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
