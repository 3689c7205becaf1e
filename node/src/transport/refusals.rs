//! How a request is refused: by a status and a JSON body, as Node's server sends them,
//! and as words for a plain connection. Each refusal is counted.
//!
//! A refusal because of a limit names the seconds after which the client may
//! come back. They differ from client to client, so that those that were refused together
//! do not come back together.

use std::{borrow::Cow, ops::RangeInclusive, sync::Arc};

use axum::{Router, body::Body};
use http::{HeaderValue, Request, Response, StatusCode, header};
use roomcast_protocol::engine_io::open::HandshakeError;

use super::{admission::retry_range, client_address::ClientAddress, engine::Engine};
use crate::{close::Limit, line_limit::LineLimit};

/// Why a request is refused.
pub(super) enum Refused {
    /// A status with a JSON body, as Node's server sends it.
    Handshake(HandshakeError),
    /// A bare status, and the label under which metrics count it.
    Status(StatusCode, &'static str),
    /// There are too many. The client may come back after some seconds.
    TooMany(TooMany),
}

pub(super) const DRAINING: Refused = Refused::Status(StatusCode::SERVICE_UNAVAILABLE, "draining");

/// A second request of a kind came before the response to the first one.
pub(super) const OVERLAP: Refused = Refused::Status(StatusCode::BAD_REQUEST, "overlap");

/// Too much was posted that is not handled yet.
pub(super) const INBOX_FULL: Refused = Refused::Status(StatusCode::PAYLOAD_TOO_LARGE, "inbox");

/// The limit that is reached.
pub(super) struct TooMany {
    /// The label in metrics.
    label: &'static str,
    status: StatusCode,
    message: &'static str,
    /// From which the seconds are drawn after which the client may come back.
    retry_after: RangeInclusive<u64>,
    /// For the log.
    client: Option<ClientAddress>,
}

impl From<HandshakeError> for Refused {
    fn from(error: HandshakeError) -> Self {
        Self::Handshake(error)
    }
}

/// A refusal in words.
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// The label in metrics.
    pub(crate) label: &'static str,
    pub(crate) message: Cow<'static, str>,
    /// After how many seconds the client may come back.
    pub(crate) retry_after: Option<u64>,
}

impl Refused {
    /// Counts and describes the refusal.
    pub(super) fn describe(&self, engine: &Engine) -> Refusal {
        let refusal = match self {
            Self::TooMany(too_many) => {
                too_many.log();
                Refusal {
                    status: too_many.status,
                    label: too_many.label,
                    message: too_many.message.into(),
                    retry_after: Some(engine.ids.pick(too_many.retry_after.clone())),
                }
            }
            Self::Handshake(error) => Refusal {
                status: StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST),
                label: error.label(),
                message: error.message().to_owned().into(),
                retry_after: None,
            },
            Self::Status(status, label) => Refusal {
                status: *status,
                label,
                message: match *label {
                    "draining" => "the server is shutting down".into(),
                    label => label.into(),
                },
                // A node that drains does not come back, and the balancer has others.
                retry_after: (*status == StatusCode::SERVICE_UNAVAILABLE).then_some(1),
            },
        };
        engine.metrics.refused(refusal.label);
        refusal
    }
}

/// Refuses all requests, because the server has as many sockets as it may have.
/// The connection is closed after the response, because its descriptor is needed for
/// the next client.
pub(super) fn refusal(engine: &Arc<Engine>) -> Router {
    let engine = Arc::clone(engine);
    Router::new().fallback(move |request: Request<Body>| async move {
        let headers = request.headers();
        let client = ClientAddress::of(request.extensions());
        let refused = Refused::TooMany(TooMany::new(Limit::Sockets, 0, client));
        let mut response: Response<Body> = refuse(&engine, &refused);
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        if let Some(cors) = &engine.config.cors {
            cors.apply(headers.get(header::ORIGIN), response.headers_mut());
        }
        response
    })
}

impl TooMany {
    fn new(limit: Limit, seconds: u64, client: Option<ClientAddress>) -> Self {
        let (label, message) = match limit {
            Limit::ConnectionsPerAddress => {
                (limit.label(), "too many connections from this address")
            }
            Limit::ConnectRate => (limit.label(), "too many new connections per second"),
            Limit::UnfinishedUpgrades => ("upgrades", "too many unfinished upgrades"),
            Limit::Sockets => (limit.label(), "too many open sockets"),
            _ => (limit.label(), "too many connections"),
        };
        let status = match limit {
            Limit::ConnectionsPerAddress => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self {
            label,
            status,
            message,
            retry_after: retry_range(seconds),
            client,
        }
    }

    /// Limited, because a crowd that is refused must not fill the log as well.
    fn log(&self) {
        static LINES: LineLimit = LineLimit::new();
        if let Some(left_out) = LINES.pass() {
            tracing::info!(
                limit = self.label,
                address = self
                    .client
                    .map(|client| tracing::field::display(client.address())),
                left_out,
                "a client was refused: {}",
                self.message
            );
        }
    }

    /// The body of the response: `{"message":…,"limit":…}`.
    fn body(&self) -> String {
        serde_json::json!({ "message": self.message, "limit": self.label }).to_string()
    }
}

/// Counts that a new connection or an upgrade has found no room.
pub(super) fn too_many(
    engine: &Engine,
    limit: Limit,
    seconds: u64,
    client: Option<ClientAddress>,
) -> Refused {
    engine.metrics.limit_reached(limit);
    Refused::TooMany(TooMany::new(limit, seconds, client))
}

/// The response to a request that is refused.
pub(super) fn refuse<B: From<String> + Default>(engine: &Engine, refused: &Refused) -> Response<B> {
    let mut response = match refused {
        Refused::TooMany(too_many) => respond(too_many.body(), "application/json"),
        Refused::Handshake(error) => respond(error.body(), "application/json"),
        Refused::Status(..) => Response::new(B::default()),
    };
    let refusal = refused.describe(engine);
    *response.status_mut() = refusal.status;
    if let Some(seconds) = refusal.retry_after {
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// A response with status 200.
pub(super) fn respond<B>(body: impl Into<B>, content_type: &'static str) -> Response<B> {
    let mut response = Response::new(body.into());
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
