//! Sessions of other nodes: any node may receive a request, and the owner of the session
//! responds to it.
//!
//! ```text
//! client ──▶ this node ── no such session; the id begins with the tag of its owner
//!               │  the bus: which node is that, and where is it reached?
//!               └──▶ the application's relay ──▶ owner: relayed_router ──▶ the session
//! ```
//!
//! The application transports the requests and authenticates the nodes, because it controls
//! listeners, networks and keys. The program `roomcast` is an example.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Request, Response};
use roomcast_adapter::NodeId;

use super::server::Server;
use crate::transport::routes::Routes;

/// A request of a session that another node has. See [`Server::relay_with`].
#[derive(Debug)]
#[non_exhaustive]
pub struct ForeignRequest {
    /// The node that has the session, if it still has it.
    pub owner: NodeId,
    /// Where that node is reached, as its
    /// [`RedisConfig::address`](crate::RedisConfig::address) states it.
    pub address: Arc<str>,
    /// The request of the client: a GET, with or without an upgrade, or a POST. Its query
    /// has the id of the session, which is a secret. A WebSocket can be taken over as
    /// with hyper.
    pub request: Request<Body>,
}

impl Server {
    /// Makes sticky sessions unnecessary: `relay` gets the requests of sessions that
    /// other nodes have, and returns the response of the node that has the session. The
    /// owner is found by the id of the session; that takes a bus over Redis whose
    /// [`address`](crate::RedisConfig::address) is set, on all nodes. With `None` the
    /// client gets the error that makes it open a new session: status 400 with
    /// `{"code":1,"message":"Session ID unknown"}`, as without a relay. So it does,
    /// without a call, if no node has this owner's tag.
    ///
    /// The other side is [`relayed_router`](Self::relayed_router). Only the first call
    /// has an effect, and returns true. Requests of this node's own sessions do not pass
    /// here.
    pub fn relay_with<F, Fut>(&self, relay: F) -> bool
    where
        F: Fn(ForeignRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<Response<Body>>> + Send + 'static,
    {
        let Some(bus) = self.inner().cluster.bus.clone() else {
            return false;
        };
        let relay = Arc::new(relay);
        let relay = move |tag: &str, request| {
            let (bus, relay, tag) = (Arc::clone(&bus), Arc::clone(&relay), Box::<str>::from(tag));
            let relayed = async move {
                let peer = match bus.find_peer(&tag) {
                    Some(peer) => peer,
                    None => {
                        bus.read_peers().await;
                        bus.find_peer(&tag)?
                    }
                };
                let foreign = ForeignRequest {
                    owner: peer.node,
                    address: peer.address,
                    request,
                };
                relay(foreign).await
            };
            Box::pin(relayed) as _
        };
        self.engine().relay.set(Box::new(relay)).is_ok()
    }

    /// Returns the routes for requests that other nodes relay, at the server's path. They serve
    /// only sessions of this node: they open none, and relay nothing, so a request makes one hop at
    /// most.
    ///
    /// A request with the method DELETE and the path of a poll ends that poll with an
    /// empty packet, after which the client polls again: for a node that stops and has
    /// relayed the poll.
    ///
    /// A caller who reaches them and knows the id of a session can act in its client's place, as at
    /// [`router`](Self::router); but origins are not checked here. Serve them to other nodes alone.
    pub fn relayed_router(&self) -> Router {
        Routes::of_relayed(Arc::clone(self.engine()), self.acceptor()).router()
    }

    /// Responds to a poll or post of one of this node's sessions that another node relays in its
    /// own format. Does the same as [`relayed_router`](Self::relayed_router), without HTTP between
    /// the nodes: of the request, method, query, `accept-encoding` and `content-type` matter, and
    /// the path is ignored. Upgrades get status 400.
    ///
    /// Dropping a poll ends its session, as if its client had disconnected.
    pub fn respond_to_relayed(
        &self,
        request: Request<Bytes>,
    ) -> impl Future<Output = Response<Bytes>> + Send + 'static {
        let routes = Routes::of_relayed(Arc::clone(self.engine()), self.acceptor());
        async move { routes.respond_to_relayed(request).await }
    }

    /// Returns the time of the cluster since 1970, which is the same on all nodes, regardless of
    /// the clocks of their hosts. `None` without a bus over Redis, or before Redis has returned its
    /// time.
    pub fn cluster_time(&self) -> Option<Duration> {
        self.inner().cluster.bus.as_ref()?.time()
    }
}
