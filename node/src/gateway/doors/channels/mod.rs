//! Channels: rooms over plain HTTP and WebSocket, for clients that need no library.
//!
//! ```text
//!  GET  …/rooms/{room}/events    event stream, or a WebSocket, or with Accept: application/json a poll
//!  GET  …/rooms/{room}/poll      the events after last_id, or the next ones
//!  POST …/rooms/{room}           publishes
//!  GET  …/rooms/{room}/history   the events that are kept
//!  GET  …/rooms/{room}/presence  the members
//!  GET  …/events, …/poll         the same for the rooms of the query
//! ```
//!
//! `…` is the path of the settings, followed by `/{namespace}` unless it is the main
//! namespace. A stream, a WebSocket and a poll are sockets of the namespace, so all its
//! policies, hooks and limits apply. A published event is stored before any client receives it, so
//! that a client that comes back with the id of its last event misses no event and gets none twice.

mod caller;
mod reading;
mod request;
mod settings;
mod stream;
mod websocket;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    extract::{Path, Request, rejection::PathRejection},
    response::IntoResponse as _,
    routing::{MethodRouter, any, get, post},
};
use http::{HeaderMap, header};

pub(crate) use self::settings::Settings;
use self::{
    request::{Call, Endpoint},
    stream::Forms,
};
use super::{Door, Doors, Reply, asks_for_websocket};
use crate::gateway::api::{Kind, Problem};

/// The door, as far as it is open.
pub(super) struct Channels {
    doors: Arc<Doors>,
    forms: Forms,
}

/// The routes. There are none without namespaces.
pub(super) fn router(doors: &Arc<Doors>) -> Router {
    let settings = &doors.settings.channels;
    if settings.namespaces.is_empty() {
        return Router::new();
    }
    let channels = Arc::new(Channels {
        doors: Arc::clone(doors),
        forms: Forms::default(),
    });
    let on = |endpoint| channels.method(endpoint);
    let mut routes = Router::new();
    for start in [
        settings.path.clone(),
        format!("{}/{{namespace}}", settings.path),
    ] {
        let room = format!("{start}/rooms/{{room}}");
        routes = routes
            .route(&format!("{start}/events"), on(Endpoint::Events))
            .route(&format!("{start}/poll"), on(Endpoint::Poll))
            .route(&room, on(Endpoint::Publish))
            .route(&format!("{room}/events"), on(Endpoint::Events))
            .route(&format!("{room}/poll"), on(Endpoint::Poll))
            .route(&format!("{room}/history"), on(Endpoint::History))
            .route(&format!("{room}/presence"), on(Endpoint::Presence));
    }
    // The router accepts `{*rest}` only below the names above, not next to them.
    for unknown in [
        "",
        "/",
        "/{namespace}",
        "/{namespace}/",
        "/{namespace}/{part}",
        "/{namespace}/{part}/{*rest}",
    ] {
        let nothing = async || Problem::new(Kind::NotFound, "channels have no such path");
        routes = routes.route(&format!("{}{unknown}", settings.path), any(nothing));
    }
    let routes = routes.method_not_allowed_fallback(async || {
        let detail = "publishing is POST, everything else is GET";
        Problem::new(Kind::MethodNotAllowed, detail)
    });
    doors.cover(Door::Channels, routes, None)
}

impl Channels {
    fn settings(&self) -> &Settings {
        &self.doors.settings.channels
    }

    fn method(self: &Arc<Self>, endpoint: Endpoint) -> MethodRouter {
        let channels = Arc::clone(self);
        let call = async move |path: Result<Path<BTreeMap<String, String>>, PathRejection>,
                               request: Request| {
            match channels.respond(endpoint, path, request).await {
                Ok(reply) => reply.into_response(),
                Err(problem) => problem.into_response(),
            }
        };
        match endpoint {
            Endpoint::Publish => post(call),
            _ => get(call),
        }
    }

    async fn respond(
        self: &Arc<Self>,
        endpoint: Endpoint,
        path: Result<Path<BTreeMap<String, String>>, PathRejection>,
        request: Request,
    ) -> Result<Reply, Problem> {
        let path = path.map_err(|rejection| Problem::invalid("", rejection.body_text()))?;
        // Before anything else, because browsers send some requests of other pages
        // without asking.
        if !self.doors.allows_origin(request.headers()) {
            let detail = "the origin is not allowed; see --cors-origin";
            return Err(Problem::new(Kind::Origin, detail));
        }
        let (mut parts, body) = request.into_parts();
        let call = Call::read(self, endpoint, &path, &parts)?;
        let response = match endpoint {
            Endpoint::Events if asks_for_websocket(&parts.headers) => {
                self.websocket(call, Request::from_parts(parts, body)).await
            }
            Endpoint::Events if !wants_json(&parts.headers) => self.stream(call, parts).await,
            Endpoint::Events | Endpoint::Poll => return self.poll(call, parts).await,
            Endpoint::Publish => self.publish(&call, &mut parts, body).await,
            Endpoint::History => self.history(&call, &mut parts).await,
            Endpoint::Presence => self.presence(&call, &mut parts).await,
        };
        response.map(Reply::Now)
    }
}

/// Whether the client asks for JSON rather than for an event stream.
/// A browser's `EventSource` names only the latter.
fn wants_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT);
    let accept = accept.and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| {
        accept.contains("application/json") && !accept.contains("text/event-stream")
    })
}
