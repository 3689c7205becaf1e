//! The owner's side: verifies that a request comes from a node of the cluster, and hands
//! it to its session, or makes a link of its connection.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use http::{Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use ring::rand::{SecureRandom as _, SystemRandom};
use roomcast::{Server, signing::Senders};
use tokio::sync::watch;

use super::{
    LINK_PATH, LINK_PROTOCOL, RelayLimits,
    key::{HEADER, Keys, TOLERANCE, Verified},
    link::{Link, Outbox},
    metrics::Metrics,
    seal::ciphers,
    serving::{Serving, ServingLimits},
};
use crate::gateway::{clock, line_limit::LineLimit};

/// Signals to the other node that this one did not accept the relayed request, as opposed to the
/// session's own responses.
pub(super) const REFUSED: StatusCode = StatusCode::MISDIRECTED_REQUEST;

/// Verifies relayed requests of other nodes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Receiver(Arc<Inner>);

struct Inner {
    server: Server,
    keys: Arc<Keys>,
    senders: Mutex<Senders>,
    limits: RelayLimits,
    metrics: Metrics,
    lines: LineLimit,
    /// Changes to true when this node stops. Each link has a receiver.
    stopping: watch::Sender<bool>,
}

impl Receiver {
    pub(super) fn new(
        server: Server,
        keys: Arc<Keys>,
        limits: RelayLimits,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            server,
            keys,
            senders: Mutex::default(),
            limits,
            metrics,
            lines: LineLimit::default(),
            stopping: watch::Sender::new(false),
        }))
    }

    /// The routes of the listener for other nodes.
    pub(super) fn router(&self) -> Router {
        let routes = self.0.server.relayed_router();
        routes.layer(from_fn_with_state(self.clone(), receive))
    }

    /// Ends the links of other nodes, each after its last response.
    pub(super) async fn stop(&self) {
        self.0.stopping.send_replace(true);
        self.0.stopping.closed().await;
    }
}

async fn receive(State(receiver): State<Receiver>, request: Request, next: Next) -> Response {
    let inner = &*receiver.0;
    let reason = match inner.accept(request, next).await {
        Ok(response) => return response,
        Err(reason) => reason,
    };
    inner.metrics.received(reason);
    if let Some(left_out) = inner.lines.pass() {
        tracing::warn!(
            reason,
            left_out,
            "refused a request to the relay's listener"
        );
    }
    let mut response = Response::new(Body::from(format!("{reason}\n")));
    *response.status_mut() = REFUSED;
    response
}

impl Inner {
    /// Hands a request to its session, or makes a link of its connection. The error is a label of
    /// the metric.
    async fn accept(&self, request: Request, next: Next) -> Result<Response, &'static str> {
        let header = request.headers().get(HEADER).cloned();
        let header = header.as_ref().and_then(|header| header.to_str().ok());
        let header = header.ok_or("signature")?;
        let verified = self.verify(&request, header)?;
        if request.uri().path() == LINK_PATH {
            return self.link(request, header, verified);
        }
        self.metrics.received("accepted");
        // A body is not signed, and an upgrade has none.
        Ok(next.run(request.map(|_| Body::empty())).await)
    }

    /// Checks the header of a request.
    fn verify<'a>(&self, request: &Request, header: &'a str) -> Result<Verified<'a>, &'static str> {
        if request.method() != Method::GET {
            return Err("signature");
        }
        let receiver = self.server.node().as_str();
        let path = request.uri().path_and_query();
        let path = path.map_or("/", |path| path.as_str());
        // Without the time of the cluster, an old signature looks like a new one.
        let now = self.server.cluster_time().ok_or("time")?;
        let verified = self.keys.verify(receiver, path, header, now)?;
        let [now, tolerance] = [now, TOLERANCE].map(clock::millis);
        // Only numbers of valid signatures are noted, because a stranger could use up
        // those of a node.
        let admitted = self.senders.lock().admit(verified.stamp, now, tolerance);
        admitted.map_err(|_| "replay")?;
        Ok(verified)
    }

    /// Makes a link of the connection of a request.
    fn link(
        &self,
        mut request: Request,
        header: &str,
        verified: Verified<'_>,
    ) -> Result<Response, &'static str> {
        let mut entropy = [0; 16];
        let filled = SystemRandom::new().fill(&mut entropy);
        filled.map_err(|_| "entropy")?;
        let nonce = hex::encode(entropy);
        let secrets = self.keys.of_link(header, &nonce, verified.key);
        let [requests, responses] = secrets.ok_or("signature")?;
        let sealing = ciphers(&responses, &requests).ok_or("signature")?;
        let upgrade = hyper::upgrade::on(&mut request);
        let outbox = Arc::<Outbox>::default();
        let mut stopping = self.stopping.subscribe();
        let stopped = async move {
            // An error means that the receiver was dropped.
            drop(stopping.wait_for(|stops| *stops).await);
        };
        let limits = ServingLimits {
            body: self.limits.payload + 1,
            bodies: self.limits.bodies(),
        };
        let serving = Serving::new(
            self.server.clone(),
            Arc::clone(&outbox),
            limits,
            self.metrics.clone(),
            stopped,
        );
        let (stall, sender) = (self.limits.stall, verified.stamp.sender.to_owned());
        // Ends with the connection, or when this node stops.
        drop(tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else {
                return;
            };
            let stream = TokioIo::new(upgraded);
            let link = Link::new(stream, outbox, sealing, serving, stall);
            if let Err(error) = link.run().await {
                tracing::debug!(%sender, %error, "a link of another node has ended");
            }
        }));
        let response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, LINK_PROTOCOL)
            .header(HEADER, nonce);
        response.body(Body::empty()).map_err(|_| "signature")
    }
}
