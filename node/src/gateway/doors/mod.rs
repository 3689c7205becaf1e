//! Doors: protocols for clients without Socket.IO, which are members of the same rooms.
//!
//! ```text
//!  public router ─► CORS ─► counted by outcome ─► routes of a door ─► parked, or answered at once
//! ```
//!
//! Each door is a module with its routes, its settings below `[doors]`, and errors in the
//! form that its clients know. The common parts of all doors are here: parked requests,
//! metrics, and the origins that may use them. A door whose settings are missing has no
//! routes.

pub(crate) mod channels;
mod earlier;
mod metrics;
pub(crate) mod pakyow;
mod parked;
mod settings;
mod syncano;

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
};
use http::{Extensions, HeaderMap, Method, StatusCode, header};
use roomcast::{ClientAddress, Cors, Limits, Server, plain::Parking};

use self::{
    earlier::Earlier,
    metrics::Metrics,
    parked::{Later, Parked},
};
pub(crate) use self::{
    metrics::{Door, DoorLimit},
    parked::{Place, Reply},
    settings::{Settings, TEMPLATE},
    syncano::Syncano,
};
use super::{
    access::AccessTable,
    api::Api,
    auth::Auth,
    build::{Policies, cors},
    config::Config,
    origins::Origins,
};

/// Lets a socket of a door into its namespace, whose authorizers know nothing of the door's keys.
#[derive(Clone)]
pub(crate) struct Granted {
    /// The id of the user.
    pub(crate) user: Option<String>,
}

/// The state that all doors of a server share.
pub(crate) struct Doors {
    pub(crate) server: Server,
    /// Knows the keys of the API, which a reload may replace.
    pub(crate) api: Arc<Api>,
    /// Set if any namespace requires tokens.
    pub(crate) auth: Option<Arc<Auth>>,
    /// The access of each namespace.
    pub(crate) access: AccessTable,
    /// The room policy of each namespace.
    pub(crate) policies: Policies,
    pub(crate) settings: Settings,
    /// The limits of names.
    pub(crate) limits: Limits,
    cors: Option<Cors>,
    origins: Origins,
    metrics: Metrics,
    parked: Arc<Parked>,
    /// Set in a cluster, where a node may miss events of other nodes.
    earlier: Option<Arc<Earlier>>,
}

impl Doors {
    pub(crate) fn new(
        config: &Config,
        server: &Server,
        api: &Arc<Api>,
        auth: Option<Arc<Auth>>,
        policies: Policies,
    ) -> Result<Arc<Self>, prometheus::Error> {
        let settings = config.settings.doors.clone();
        let metrics = Metrics::new(server.registry())?;
        let parked = Parked::new(&settings, config.limits.ipv6_prefix, metrics.parked.clone());
        Ok(Arc::new(Self {
            server: server.clone(),
            api: Arc::clone(api),
            auth,
            access: config.access(),
            limits: (&config.limits).into(),
            policies,
            cors: cors(&config.browser),
            origins: Origins::new(&config.browser.cors_origin),
            metrics,
            parked: Arc::new(parked),
            settings,
            earlier: config.redis.redis.0.is_some().then(Arc::default),
        }))
    }

    /// The routes of all doors that are open.
    pub(crate) fn router(self: &Arc<Self>, syncano: Option<Arc<Syncano>>) -> Router {
        let mut routes = channels::router(self);
        if let Some(syncano) = syncano {
            routes = routes.merge(syncano::router(self, syncano));
        }
        routes
    }

    /// Adds the CORS headers of the server, unless the door has others, counts the
    /// requests to a door by their outcome, and waits for parked requests.
    pub(crate) fn cover(
        self: &Arc<Self>,
        door: Door,
        routes: Router,
        cors: Option<Cors>,
    ) -> Router {
        let cors = cors.or_else(|| self.cors.clone());
        let has_preflights = cors.is_some();
        let routes = match cors {
            Some(cors) => cors.cover(routes),
            None => routes,
        };
        let doors = Arc::clone(self);
        routes.layer(middleware::from_fn(move |request: Request, next: Next| {
            let doors = Arc::clone(&doors);
            async move {
                let parking = Parking::of(request.extensions());
                let is_preflight = has_preflights && request.method() == Method::OPTIONS;
                let mut response = next.run(request).await;
                if is_preflight {
                    return response;
                }
                let Some(waiting) = Later::take(&mut response) else {
                    doors.metrics.count(door, response.status());
                    return response;
                };
                // Those of CORS. A map would take more space.
                let mut headers = std::mem::take(response.headers_mut());
                headers.remove(header::CONTENT_LENGTH);
                let headers: Box<[_]> = headers.into_iter().collect();
                let response = async move {
                    let mut response = waiting.await;
                    response.headers_mut().extend(headers);
                    doors.metrics.count(door, response.status());
                    response
                };
                parking.wait(response).await
            }
        }))
    }

    /// Counts a request to a door that has no separate routes.
    pub(crate) fn counted(&self, door: Door, status: StatusCode) {
        self.metrics.count(door, status);
    }

    /// Whether a page of the request's origin may use the doors: browsers ask before they read a
    /// response, but not before they open a WebSocket or send a form.
    pub(crate) fn allows_origin(&self, headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        self.origins.allow(text(header::ORIGIN), text(header::HOST))
    }

    /// Takes a place for a request that stays open: a parked poll, a stream, a WebSocket.
    /// `key` is the client's key, if it has one. Dropping the place makes room
    /// for another.
    pub(crate) fn park(
        &self,
        door: Door,
        extensions: &Extensions,
        key: Option<&str>,
    ) -> Result<Place, DoorLimit> {
        let place = self.parked.take(door, address(extensions), key);
        place.inspect_err(|limit| self.reached(door, *limit))
    }

    /// The network of the client, which counts as one address.
    fn network(&self, extensions: &Extensions) -> Option<IpAddr> {
        address(extensions).map(|address| self.parked.network(address))
    }

    /// Counts a request that was refused because of a limit.
    pub(crate) fn reached(&self, door: Door, limit: DoorLimit) {
        self.metrics.reached(door, limit);
    }
}

/// Whether a request is to become a WebSocket.
fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE);
    let upgrade = upgrade.and_then(|upgrade| upgrade.to_str().ok());
    let mut protocols = upgrade.unwrap_or_default().split(',').map(str::trim);
    protocols.any(|protocol| protocol.eq_ignore_ascii_case("websocket"))
}

/// The address of the client, which a trusted proxy may have named.
fn address(extensions: &Extensions) -> Option<IpAddr> {
    ClientAddress::of(extensions).map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_is_asked_for_in_any_case() {
        let asks = |upgrade: &str| {
            let upgrade = (header::UPGRADE, upgrade.parse().unwrap());
            asks_for_websocket(&HeaderMap::from_iter([upgrade]))
        };
        assert!(asks("WebSocket") && asks("h2c, websocket"));
        assert!(!asks("websockets"));
    }
}
