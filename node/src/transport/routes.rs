//! The HTTP side: requests that open a session, poll, post or upgrade.
//!
//! The order of checks and the texts of refusals are those of Node's server, because clients and
//! monitoring depend on them. Where Node refuses an upgrade with broken HTTP, we send status 400.
//!
//! ```text
//! OPTIONS ─────────────────────────────▶ preflight
//! no sid ──▶ handshake ──┬─ polling ───▶ a new session; its open packet is the first poll's body
//!                        └─ websocket ─▶ 101, then a new session
//! sid ─────▶ existing ───┬─ GET ───────▶ poll
//!    │                   ├─ POST ──────▶ body to the driver's inbox, "ok"
//!    │                   └─ upgrade ───▶ 101, then a probe
//!    └─────▶ of another node ──────────▶ relay, which brings the response
//! ```
//!
//! **Order of a handshake.** The permit is taken before the rate is counted and before
//! the application is asked, because `allow_request` may take seconds, in which further
//! requests must already see the connection as taken. After it, the phase of the server
//! is checked again: a drain that has begun in the meantime would not see a
//! connection that is opened later.
//!
//! **A WebSocket** is opened after the response has been sent, by a task that waits for
//! HTTP's upgrade. Up to then there is only the permit. **A new session over polling**
//! exists before its response, because the response has the id.

use std::{borrow::Cow, io::Write as _, mem::take, sync::Arc};

use axum::{Router, body::Body, routing::any};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header, request::Parts,
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::time::timeout;

use super::{
    client_address::ClientAddress,
    client_files,
    connection::{Aside, Connection},
    cors::Cors,
    engine::{Acceptor, ConnectionPermit, Engine},
    frame::{Frame, WireForm},
    handshake::{Handshake, kept},
    polling::{Polling, Posting},
    refusals::{DRAINING, Refusal, Refused, refuse, respond, too_many},
    stream::Stream,
    upgrade,
    websocket::{self, Opcode},
};
use crate::close::{CloseReason, Limit};
use roomcast_protocol::engine_io::{
    open::{self, HandshakeError, Query, Revision, TransportName},
    payload_v3::Form,
};

/// Serves a server's path. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Routes {
    engine: Arc<Engine>,
    acceptor: Arc<dyn Acceptor>,
    /// The requests come from other nodes, which have received them from clients.
    is_relayed: bool,
}

impl Routes {
    pub(crate) fn new(engine: Arc<Engine>, acceptor: Arc<dyn Acceptor>) -> Self {
        Self {
            engine,
            acceptor,
            is_relayed: false,
        }
    }

    /// The routes for requests that other nodes relay. They open no session and relay nothing.
    /// Headers for all responses are left to the other node.
    pub(crate) fn of_relayed(engine: Arc<Engine>, acceptor: Arc<dyn Acceptor>) -> Self {
        Self {
            is_relayed: true,
            ..Self::new(engine, acceptor)
        }
    }

    /// The path with and without a slash at the end, and anything below it, as Node matches it.
    pub(crate) fn router(&self) -> Router {
        let path = &self.engine.config.path;
        let mut router = Router::new();
        let below = format!("{path}/{{*rest}}");
        for path in [path.clone(), format!("{path}/"), below] {
            if path.is_empty() {
                continue;
            }
            let routes = self.clone();
            let handler = any(move |request: Request<Body>| {
                let routes = routes.clone();
                async move { routes.serve(request).await }
            });
            router = router.route(&path, handler);
        }
        router
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        // CORS, preflights and files are the matter of the node that has received the
        // request, because a header that two nodes add is invalid.
        if self.is_relayed {
            let dispatched = self.dispatch(request).await;
            return dispatched.unwrap_or_else(|refused| self.refuse(&refused));
        }
        let cors = self.engine.config.cors.as_ref();
        let origin = Cors::origin(request.headers());
        let mut response = match cors {
            Some(cors) if Cors::is_preflight(request.method()) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = cors.preflight(request.headers(), response.headers_mut());
                response
            }
            _ => match self.client_file(&request) {
                Some(response) => response,
                None => match self.dispatch(request).await {
                    Ok(response) => response,
                    Err(refused) => self.refuse(&refused),
                },
            },
        };
        if let Some(cors) = cors {
            // On refusals, too: without these headers, a page cannot read the reason.
            cors.apply(origin.as_ref(), response.headers_mut());
        }
        response
    }

    /// Files need no session and no permit, so they come before the handshake.
    fn client_file(&self, request: &Request<Body>) -> Option<Response<Body>> {
        let config = &self.engine.config;
        client_files::respond(
            config.client_files.as_ref(),
            &config.path,
            request.method(),
            request.uri().path(),
            request.headers(),
        )
    }

    fn refuse(&self, refused: &Refused) -> Response<Body> {
        refuse(&self.engine, refused)
    }

    /// Finds the kind of a request, in Node's order of checks: transport, session,
    /// method, upgrade.
    async fn dispatch(&self, request: Request<Body>) -> Result<Response<Body>, Refused> {
        let config = &self.engine.config;
        let query = Query::parse(request.uri().query().unwrap_or_default())?;
        let transport = query.transport_name()?;
        let enabled = match transport {
            TransportName::Polling => config.polling,
            TransportName::WebSocket => config.websocket,
        };
        if !enabled {
            return Err(HandshakeError::TransportUnknown.into());
        }
        let upgrade = is_upgrade(request.headers());
        if let Some(sid) = &query.sid {
            let Some(connection) = self.engine.find(sid) else {
                return self.relay(sid, request).await;
            };
            let upgrade = upgrade.then_some(query.b64);
            return self.existing(request, transport, upgrade, connection).await;
        }
        if self.is_relayed {
            return Err(HandshakeError::BadRequest.into());
        }
        if request.method() != Method::GET {
            return Err(HandshakeError::BadHandshakeMethod.into());
        }
        if upgrade != (transport == TransportName::WebSocket) {
            return Err(HandshakeError::BadRequest.into());
        }
        self.handshake(request, &query, transport).await
    }

    /// Responds to a poll or post that another node has relayed in parts.
    pub(crate) async fn respond_to_relayed(&self, request: Request<Bytes>) -> Response<Bytes> {
        let responded = self.relayed(request).await;
        responded.unwrap_or_else(|refused| refuse(&self.engine, &refused))
    }

    async fn relayed(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Refused> {
        let query = Query::parse(request.uri().query().unwrap_or_default())?;
        if query.transport_name()? != TransportName::Polling {
            return Err(HandshakeError::BadRequest.into());
        }
        if !self.engine.config.polling {
            return Err(HandshakeError::TransportUnknown.into());
        }
        let connection = query.sid.and_then(|sid| self.engine.find(&sid));
        let connection = connection.ok_or(HandshakeError::SessionUnknown)?;
        let headers = request.headers();
        match *request.method() {
            Method::GET => self.respond_to_poll(takes_gzip(headers), &connection).await,
            Method::POST => {
                let posted = Posted::begin(&connection, headers)?;
                let body = self.within_limit(request.into_body());
                posted.finish(body)
            }
            Method::DELETE => Ok(end_poll(&connection)),
            _ => Err(Refused::Status(StatusCode::METHOD_NOT_ALLOWED, "method")),
        }
    }

    /// Passes on a request of a session that another node may have.
    async fn relay(&self, sid: &str, request: Request<Body>) -> Result<Response<Body>, Refused> {
        let relay = self.engine.relay.get().filter(|_| !self.is_relayed);
        let foreign = relay.zip(self.engine.ids.foreign_tag(sid));
        let (relay, tag) = foreign.ok_or(HandshakeError::SessionUnknown)?;
        // Between nodes, other methods have special meanings.
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return Err(Refused::Status(StatusCode::METHOD_NOT_ALLOWED, "method"));
        }
        let response = relay(tag, request).await;
        response.ok_or_else(|| HandshakeError::SessionUnknown.into())
    }

    async fn handshake(
        &self,
        mut request: Request<Body>,
        query: &Query,
        transport: TransportName,
    ) -> Result<Response<Body>, Refused> {
        let engine = &self.engine;
        let (uri, headers) = (request.uri(), request.headers());
        let (permit, client) = admit(engine, uri, headers, request.extensions()).await?;
        let keep = |extensions: &Extensions| kept(&engine.config.keep, extensions);
        let form = WireForm {
            revision: query.revision(engine.config.allow_eio3)?,
            base64: query.b64,
        };
        if transport == TransportName::WebSocket {
            let response = switching_protocols(request.headers())?;
            let extensions = keep(request.extensions());
            let (engine, acceptor) = (Arc::clone(engine), Arc::clone(&self.acceptor));
            let (uri, headers) = (take(request.uri_mut()), take(request.headers_mut()));
            upgrade::take_over(&mut request, move |unwrapped| {
                let handshake = |stream: &Stream| {
                    let of_stream = || {
                        let peer = ClientAddress::direct(stream.peer()?, false);
                        Some(engine.config.trusted_proxies.client(peer, &headers))
                    };
                    let client = client.or_else(of_stream);
                    Handshake::new(&uri, &headers, client, extensions)
                };
                upgrade::open(&engine, &*acceptor, permit, form, unwrapped, handshake);
            });
            return Ok(response);
        }
        let polling = Some(Aside::Polling(Polling::default()));
        let connection = Connection::new(engine, form, None, polling);
        engine.opened(transport, form.revision);
        let websocket = [TransportName::WebSocket];
        // Clients do not try an upgrade that is not offered.
        let upgrades = engine.config.websocket && engine.config.allow_upgrades;
        connection.send_open(Vec::new(), if upgrades { &websocket } else { &[] });
        let extensions = keep(request.extensions());
        let handshake = Handshake::new(request.uri(), request.headers(), client, extensions);
        self.acceptor.accept(&connection, handshake, permit);
        if form.revision == Revision::V3 {
            // The driver connects a client of revision 3 to the main namespace by itself, and its
            // first packet usually goes with the open packet.
            tokio::task::yield_now().await;
        }
        let mut response = self
            .respond_to_poll(takes_gzip(request.headers()), &connection)
            .await?
            .map(Body::from);
        if let Some(cookie) = self.cookie(connection.id().as_str()) {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
        }
        Ok(response)
    }

    /// A request of a session. For an upgrade, `upgrade` is whether the client takes only text.
    async fn existing(
        &self,
        mut request: Request<Body>,
        transport: TransportName,
        upgrade: Option<bool>,
        connection: Arc<Connection>,
    ) -> Result<Response<Body>, Refused> {
        if let Some(base64) = upgrade {
            if transport != TransportName::WebSocket || !self.engine.config.allow_upgrades {
                return Err(HandshakeError::BadRequest.into());
            }
            let response = switching_protocols(request.headers())?;
            // A probe holds a socket in addition to the session until the upgrade timeout, so their
            // number is limited.
            let Ok(place) = Arc::clone(&self.engine.probing).try_acquire_owned() else {
                let client = ClientAddress::of(request.extensions());
                let limit = Limit::UnfinishedUpgrades;
                return Err(too_many(&self.engine, limit, 0, client));
            };
            let upgrade = hyper::upgrade::on(&mut request);
            // Ends by the upgrade timeout at the latest.
            drop(tokio::spawn(upgrade::probe(
                place, upgrade, connection, base64,
            )));
            return Ok(response);
        }
        if transport != TransportName::Polling {
            return Err(HandshakeError::BadRequest.into());
        }
        let response = match *request.method() {
            Method::GET => {
                self.respond_to_poll(takes_gzip(request.headers()), &connection)
                    .await
            }
            Method::POST => {
                let posted = Posted::begin(&connection, request.headers())?;
                posted.finish(self.receive(request).await)
            }
            // The node that has received the poll stops.
            Method::DELETE if self.is_relayed => Ok(end_poll(&connection)),
            _ => Err(Refused::Status(StatusCode::METHOD_NOT_ALLOWED, "method")),
        };
        response.map(|response| response.map(Body::from))
    }

    async fn respond_to_poll(
        &self,
        gzip_taken: bool,
        connection: &Arc<Connection>,
    ) -> Result<Response<Bytes>, Refused> {
        let mut body = connection.poll().await?;
        let config = &self.engine.config;
        let is_large = |from| body.bytes.len() >= from;
        let compresses = gzip_taken && config.compress_from.is_some_and(is_large);
        if compresses {
            body.bytes = gzip(&body.bytes);
        }
        self.engine
            .metrics
            .bytes_sent
            .inc_by(body.bytes.len() as u64);
        let mut response = respond(body.bytes, body.content_type);
        let headers = response.headers_mut();
        // A cache must not return the body of an earlier poll.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if compresses {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        Ok(response)
    }

    /// A body that was received, if it is not too large.
    fn within_limit(&self, body: Bytes) -> Result<Bytes, Unreceived> {
        match body.len() <= self.engine.config.max_payload {
            true => Ok(body),
            false => Err(too_large()),
        }
    }

    /// Receives a body within the limits of size and time.
    async fn receive(&self, request: Request<Body>) -> Result<Bytes, Unreceived> {
        let limit = self.engine.config.max_payload;
        let declared = header_str(request.headers(), header::CONTENT_LENGTH).parse::<usize>();
        // A body that is declared as too large is refused before a byte of it is read.
        if declared.is_ok_and(|declared| declared > limit) {
            return Err(too_large());
        }
        let receive = Limited::new(request.into_body(), limit).collect();
        let received = tokio::select! {
            received = timeout(self.engine.config.limits.body_timeout, receive) => received.ok(),
            // A body that is still arriving must not delay the end of the process.
            () = self.engine.close_lingered() => None,
        };
        match received {
            Some(Ok(body)) => Ok(body.to_bytes()),
            Some(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Some(Err(_)) => {
                let refused = Refused::Status(StatusCode::BAD_REQUEST, "transport_error");
                Err((CloseReason::TransportError, refused))
            }
            None => {
                let refused = Refused::Status(StatusCode::REQUEST_TIMEOUT, "body_timeout");
                Err((CloseReason::LimitReached(Limit::BodyTimeout), refused))
            }
        }
    }

    /// The cookie is for balancers, which route by it. The server itself never reads
    /// it.
    fn cookie(&self, id: &str) -> Option<HeaderValue> {
        let cookie = self.engine.config.cookie.as_ref()?;
        let http_only = if cookie.http_only { "; HttpOnly" } else { "" };
        let same_site = cookie.same_site.as_ref();
        let same_site = same_site.map(|value| format!("; SameSite={value}"));
        let same_site = same_site.unwrap_or_default();
        let (name, path) = (&cookie.name, &cookie.path);
        HeaderValue::from_str(&format!("{name}={id}; Path={path}{http_only}{same_site}")).ok()
    }
}

/// A post whose body is still to come.
struct Posted {
    posting: Posting,
    form: Form,
}

/// Why there is no body: how the session ends, and the response.
type Unreceived = (CloseReason, Refused);

impl Posted {
    fn begin(connection: &Arc<Connection>, headers: &HeaderMap) -> Result<Self, Refused> {
        // Begun before the body arrives, because a second POST meanwhile closes the
        // session.
        let posting = connection.begin_post()?;
        let form = Form::of_request(header_str(headers, header::CONTENT_TYPE));
        // Revision 4 sends binary as base64 in the text, and Node's server refuses this
        // form.
        if form == Form::Binary && connection.revision() == Revision::V4 {
            posting.close(CloseReason::ParseError {
                kind: "content_type",
                code: None,
            });
            return Err(Refused::Status(StatusCode::BAD_REQUEST, "content_type"));
        }
        Ok(Self { posting, form })
    }

    fn finish(self, body: Result<Bytes, Unreceived>) -> Result<Response<Bytes>, Refused> {
        let Self { posting, form } = self;
        let body = match body {
            Ok(body) => body,
            Err((reason, refused)) => {
                posting.close(reason);
                return Err(refused);
            }
        };
        posting.finish(form, body)?;
        let mut response = respond("ok", "text/html");
        let no_store = HeaderValue::from_static("no-store");
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, no_store);
        Ok(response)
    }
}

fn too_large() -> Unreceived {
    let refused = Refused::Status(StatusCode::PAYLOAD_TOO_LARGE, "message_size");
    (CloseReason::LimitReached(Limit::MessageSize), refused)
}

/// Ends the poll of a connection with an empty packet, for the node that has received it.
fn end_poll(connection: &Connection) -> Response<Bytes> {
    connection.end_poll();
    respond("ok", "text/html")
}

/// Lets a new connection in, or refuses it: limits, the phase of the server, and the application.
async fn admit(
    engine: &Arc<Engine>,
    uri: &Uri,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<(ConnectionPermit, Option<ClientAddress>), Refused> {
    let client = engine.client(extensions, headers);
    let permit = engine.acquire_permit(client.map(|client| client.ip()));
    // The end of a connection cannot be predicted, so the wait is drawn from the shortest range.
    let permit = permit.map_err(|limit| too_many(engine, limit, 0, client))?;
    if engine.refuses() {
        return Err(DRAINING);
    }
    let admitted = engine.admission.connect(engine.clock.now());
    admitted.map_err(|seconds| too_many(engine, Limit::ConnectRate, seconds, client))?;
    if let Some(allow) = &engine.config.allow_request {
        let extensions = kept(&engine.config.keep, extensions);
        let handshake = Handshake::new(uri, headers, client, extensions);
        if let Err(message) = allow(handshake).await {
            return Err(HandshakeError::Forbidden(Some(message.into())).into());
        }
        if engine.refuses() {
            return Err(DRAINING);
        }
    }
    Ok((permit, client))
}

/// The same for a plain connection, with the refusal in words.
pub(crate) async fn admit_plain(
    engine: &Arc<Engine>,
    request: &Parts,
) -> Result<(ConnectionPermit, Handshake), Refusal> {
    let (uri, headers) = (&request.uri, &request.headers);
    let admitted = admit(engine, uri, headers, &request.extensions).await;
    let (permit, client) = admitted.map_err(|refused| refused.describe(engine))?;
    let extensions = kept(&engine.config.keep, &request.extensions);
    Ok((permit, Handshake::new(uri, headers, client, extensions)))
}

/// The response that makes a plain WebSocket of a request.
pub(crate) fn switch_to_plain(
    engine: &Engine,
    headers: &HeaderMap,
) -> Result<Response<Body>, Refusal> {
    let switching = if is_upgrade(headers) {
        switching_protocols(headers)
    } else {
        Err(HandshakeError::BadRequest.into())
    };
    switching.map_err(|refused| refused.describe(engine))
}

impl Connection {
    /// Queues the packet that opens the session on the client's side, after the head of the
    /// response to a WebSocket's request if that has not been written yet.
    pub(super) fn send_open(&self, mut head: Vec<u8>, upgrades: &[TransportName]) {
        let config = &self.engine().config;
        let handshake = open::Handshake {
            sid: self.id().as_str(),
            upgrades,
            ping_interval: config.heartbeat.interval,
            ping_timeout: config.heartbeat.timeout,
            max_payload: config.max_payload,
        };
        let packet = handshake.to_packet();
        if head.is_empty() {
            return self.begin(Frame::packet(&packet), None);
        }
        let head_bytes = head.len();
        websocket::append_frame(&mut head, Opcode::Text, packet.as_bytes());
        self.begin(Frame::raw(&head), Some(&head[..head_bytes]));
    }
}

fn header_str(headers: &HeaderMap, name: HeaderName) -> &str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// All values of a header that is a list, joined by commas, because proxies may send several lines.
fn list(headers: &HeaderMap, name: HeaderName) -> Cow<'_, str> {
    let lines = headers.get_all(name).iter();
    let mut lines = lines.filter_map(|line| line.to_str().ok());
    let first = Cow::Borrowed(lines.next().unwrap_or_default());
    lines.fold(first, |joined, line| format!("{joined}, {line}").into())
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    websocket::has_token(&list(headers, header::UPGRADE), "websocket")
}

/// The subprotocol to use: the first that the client offers, as Node's server chooses. A client
/// that offers some closes the WebSocket if none is chosen.
fn subprotocol(headers: &HeaderMap) -> Result<Option<HeaderValue>, Refused> {
    const REFUSED: Refused = Refused::Handshake(HandshakeError::BadRequest);
    if !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return Ok(None);
    }
    let offered = list(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let names: Vec<&str> = offered.split(',').map(str::trim).collect();
    let is_token = |name: &&str| {
        let is_token_char =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !name.is_empty() && name.bytes().all(is_token_char)
    };
    let is_new = |(at, name): (usize, &&str)| !names[..at].contains(name);
    if !names.iter().all(is_token) || !names.iter().enumerate().all(is_new) {
        return Err(REFUSED);
    }
    HeaderValue::from_str(names[0])
        .map(Some)
        .map_err(|_| REFUSED)
}

fn switching_protocols(headers: &HeaderMap) -> Result<Response<Body>, Refused> {
    let connection = list(headers, header::CONNECTION);
    let asked = list(headers, header::UPGRADE);
    let upgrade = websocket::Upgrade {
        connection: &connection,
        upgrade: &asked,
        version: header_str(headers, header::SEC_WEBSOCKET_VERSION),
        key: header_str(headers, header::SEC_WEBSOCKET_KEY),
    };
    let accept = upgrade.accept().map_err(|error| match error {
        websocket::UpgradeError::Version => {
            Refused::Status(StatusCode::UPGRADE_REQUIRED, "websocket_version")
        }
        _ => Refused::Handshake(HandshakeError::BadRequest),
    })?;
    let subprotocol = subprotocol(headers)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    if let Some(subprotocol) = subprotocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(response)
}

/// Returns whether the client takes gzip. A quality of zero refuses it.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    list(headers, header::ACCEPT_ENCODING)
        .split(',')
        .any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let named = matches!(parts.next(), Some("gzip" | "*"));
            named && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        })
}

/// Compresses fast rather than well, because polls of many clients share the cores.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::fast());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.expect("writing to memory does not fail")
}
