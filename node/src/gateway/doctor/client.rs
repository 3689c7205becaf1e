//! A client of Engine.IO for the checks of a URL. Each request takes a new connection, as after a
//! reconnect, so that a balancer chooses a node again. Cookies are sent back, as a browser does.
//!
//! The connections are opened here and not by a pool, because the checks need to observe one
//! connection: a body that arrives late, or an upgrade that never happens.
//!
//! Nothing is repeated, and each failure keeps the balancer's response: its status,
//! the beginning of its page, where it redirects. That is usually enough to know which
//! part of the way has refused.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};
use tower::ServiceExt as _;

use crate::gateway::outbound::{self, Versions, causes};

/// Time for a connection, and for a response that need not wait for an event.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest response that is read.
/// A URL may lead to anything.
const MAX_RESPONSE: usize = 1 << 20;

/// A stream to the balancer, with or without TLS.
pub(super) type Stream = TokioIo<MaybeHttpsStream<TokioIo<tokio::net::TcpStream>>>;

/// Why there is no usable response.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no connection: {0}")]
    Connect(String),
    #[error("no response within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("status {status}{}", shown(body))]
    Status {
        status: StatusCode,
        location: Option<String>,
        body: String,
    },
    #[error("the connection ended: {0}")]
    Ended(String),
    #[error("not a Socket.IO server: {0}")]
    Foreign(String),
}

impl Failure {
    /// Whether a node was reached that does not know the session.
    pub(super) fn is_unknown_session(&self) -> bool {
        // The number is a part of the protocol, and the text is not.
        matches!(self, Self::Status { status, body, .. }
            if *status == StatusCode::BAD_REQUEST && error_code(body) == Some(1))
    }
}

fn error_code(body: &str) -> Option<u64> {
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    body.get("code")?.as_u64()
}

/// The beginning of a body, which may be a whole page.
fn shown(body: &str) -> String {
    let line: String = body.chars().take(80).collect();
    match line.trim() {
        "" => String::new(),
        line => format!(" ({line})"),
    }
}

/// The packet that opens a session.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Open {
    pub(super) sid: String,
    pub(super) upgrades: Vec<String>,
    /// In milliseconds.
    pub(super) ping_interval: u64,
    pub(super) ping_timeout: u64,
}

impl Open {
    fn read(packet: &str) -> Result<Self, Failure> {
        let foreign = || Failure::Foreign(format!("the first packet is{}", shown(packet)));
        let json = packet.strip_prefix('0').ok_or_else(foreign)?;
        serde_json::from_str(json).map_err(|error| Failure::Foreign(error.to_string()))
    }
}

/// An established WebSocket.
pub(super) struct WebSocket(WebSocketStream<Stream>);

impl WebSocket {
    pub(super) async fn send(&mut self, packet: &str) -> Result<(), Failure> {
        let sent = self.0.send(Message::text(packet)).await;
        sent.map_err(|error| Failure::Ended(error.to_string()))
    }

    /// The next packet, within a time.
    pub(super) async fn receive(&mut self, within: Duration) -> Result<String, Failure> {
        let next = async {
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(text.to_string()),
                    Some(Ok(Message::Close(_))) | None => {
                        return Err(Failure::Ended("closed by the other side".to_owned()));
                    }
                    // The library answers pings of WebSocket by itself.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(Failure::Ended(error.to_string())),
                }
            }
        };
        let received = timeout(within, next).await;
        received.unwrap_or(Err(Failure::Timeout(within)))
    }

    pub(super) async fn open_packet(&mut self) -> Result<Open, Failure> {
        Open::read(&self.receive(TIMEOUT).await?)
    }
}

/// The endpoint behind the balancer.
pub(super) struct Client {
    endpoint: Uri,
    connector: HttpsConnector<HttpConnector>,
}

/// A session and the cookies that belong to it.
pub(super) struct Session {
    pub(super) open: Open,
    cookies: HeaderMap,
}

impl Client {
    pub(super) fn new(endpoint: Uri) -> Result<Self, String> {
        let connector = outbound::connector(TIMEOUT, Versions::Http1)?;
        Ok(Self {
            endpoint,
            connector,
        })
    }

    /// Opens a session by polling.
    pub(super) async fn handshake(&self) -> Result<Session, Failure> {
        let none = HeaderMap::new();
        let (head, body) = self.request(Method::GET, None, "", &none, TIMEOUT).await?;
        let mut cookies = HeaderMap::new();
        for cookie in head.get_all(header::SET_COOKIE) {
            // Without attributes: the checks send every cookie back to the one host
            // that has set it.
            let pair = cookie.as_bytes().split(|byte| *byte == b';').next();
            if let Some(Ok(pair)) = pair.map(HeaderValue::from_bytes) {
                cookies.append(header::COOKIE, pair);
            }
        }
        let open = Open::read(&body)?;
        Ok(Session { open, cookies })
    }

    pub(super) async fn post(&self, session: &Session, packets: &str) -> Result<String, Failure> {
        let sid = Some(&*session.open.sid);
        let request = self.request(Method::POST, sid, packets, &session.cookies, TIMEOUT);
        request.await.map(|(_, body)| body)
    }

    pub(super) async fn poll(
        &self,
        session: &Session,
        within: Duration,
    ) -> Result<String, Failure> {
        let sid = Some(&*session.open.sid);
        let request = self.request(Method::GET, sid, "", &session.cookies, within);
        request.await.map(|(_, body)| body)
    }

    /// Opens a WebSocket, for a new session or to upgrade one.
    pub(super) async fn websocket(&self, session: Option<&Session>) -> Result<WebSocket, Failure> {
        let sid = session.map(|session| &*session.open.sid);
        let uri = self.uri("websocket", sid);
        // The scheme decides nothing here, because the stream exists by then.
        let scheme = if uri.scheme_str() == Some("https") {
            "wss"
        } else {
            "ws"
        };
        let rest = uri.to_string();
        let rest = rest.split_once("://").map_or("", |(_, rest)| rest);
        let request = format!("{scheme}://{rest}").into_client_request();
        let mut request = request.map_err(|error| Failure::Foreign(error.to_string()))?;
        if let Some(session) = session {
            request.headers_mut().extend(session.cookies.clone());
        }
        let opening = async {
            let stream = self.connect().await?;
            let opened = client_async(request, stream).await;
            opened.map_err(|error| unopened(&error))
        };
        let (websocket, _) = timeout(TIMEOUT, opening)
            .await
            .unwrap_or(Err(Failure::Timeout(TIMEOUT)))?;
        Ok(WebSocket(websocket))
    }

    pub(super) async fn connect(&self) -> Result<Stream, Failure> {
        let connecting = self.connector.clone().oneshot(self.endpoint.clone());
        let connected = timeout(TIMEOUT, connecting).await;
        let connected = connected.map_err(|_| Failure::Timeout(TIMEOUT))?;
        let stream = connected.map_err(|error| Failure::Connect(causes(&*error)))?;
        Ok(TokioIo::new(stream))
    }

    /// The URI of a request with its query.
    pub(super) fn uri(&self, transport: &str, sid: Option<&str>) -> Uri {
        let mut query = format!("?EIO=4&transport={transport}");
        if let Some(sid) = sid {
            let encoded = form_urlencoded::byte_serialize(sid.as_bytes());
            query.extend(["&sid="].into_iter().chain(encoded));
        }
        let uri = format!("{}{query}", self.endpoint);
        // The endpoint is a URI without a query, and the query is encoded.
        uri.parse().unwrap_or_else(|_| self.endpoint.clone())
    }

    pub(super) fn host(&self) -> &str {
        self.endpoint.authority().map_or("", |host| host.as_str())
    }

    async fn request(
        &self,
        method: Method,
        sid: Option<&str>,
        body: &str,
        cookies: &HeaderMap,
        within: Duration,
    ) -> Result<(HeaderMap, String), Failure> {
        let uri = self.uri("polling", sid);
        let target = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, self.host())
            .header(header::CONTENT_TYPE, "text/plain;charset=UTF-8")
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .map_err(|error| Failure::Foreign(error.to_string()))?;
        request.headers_mut().extend(cookies.clone());
        let exchange = async {
            let ended = |error: hyper::Error| Failure::Ended(error.to_string());
            let stream = self.connect().await?.into_inner();
            let (mut sender, connection) = http1::handshake(stream).await.map_err(ended)?;
            // Ends with the sender, and its errors are those of the response.
            let driving = tokio::spawn(connection);
            let response = sender.send_request(request).await.map_err(ended)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_RESPONSE).collect().await;
            // The connection is not used again.
            driving.abort();
            let body = body.map_err(|error| Failure::Ended(error.to_string()))?;
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            match head.status {
                StatusCode::OK => Ok((head.headers, body)),
                status => Err(refused(status, &head.headers, body)),
            }
        };
        let response = timeout(within, exchange).await;
        response.unwrap_or(Err(Failure::Timeout(within)))
    }
}

fn refused(status: StatusCode, headers: &HeaderMap, body: String) -> Failure {
    let location = headers.get(header::LOCATION);
    let location = location.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    Failure::Status {
        status,
        location,
        body,
    }
}

fn unopened(error: &tungstenite::Error) -> Failure {
    match error {
        tungstenite::Error::Http(response) => {
            let body = response.body().as_deref().unwrap_or_default();
            let body = String::from_utf8_lossy(body).into_owned();
            refused(response.status(), response.headers(), body)
        }
        error => Failure::Ended(error.to_string()),
    }
}
