//! The connect of a client through the door, and its messages.
//!
//! ```text
//!  request ─► origin ─► place ─► key: query, cookie, hook, or nobody's ─► WebSocket
//!             403       429      502, 503, 504: the application has not responded
//! ```
//!
//! **Why any path.** The stock client takes its URL from the page and requests `/`. The parameter
//! `socket_connection_id` distinguishes its requests from others, which are passed on to the next
//! routes.
//!
//! A client without a key is let in, as one with a wrong key is. It has a unique digest, so it
//! receives nothing.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode, header, request::Parts};
use roomcast::{
    Socket,
    emitter::entropy,
    pakyow::{self, Action, Reply, digest},
    plain::Open,
};

use super::{Pakyow, Visitor, control::MAX_IDENTITY};
use crate::gateway::{
    auth::cookie,
    doors::{Door, DoorLimit, Doors, asks_for_websocket},
};

/// The length of a random key.
const UNKNOWN_KEY: usize = 32;

/// The reason why a client is refused: a status, and a line of text.
type Refusal = (StatusCode, String);

impl Pakyow {
    /// Puts the door before the routes of a server.
    pub(crate) fn before(self: &Arc<Self>, doors: &Arc<Doors>, router: Router) -> Router {
        let (pakyow, doors) = (Arc::clone(self), Arc::clone(doors));
        router.layer(middleware::from_fn(move |request: Request, next: Next| {
            let (pakyow, doors) = (Arc::clone(&pakyow), Arc::clone(&doors));
            async move { pakyow.intercept(&doors, request, next).await }
        }))
    }

    /// Takes the WebSockets of the door out of the requests to any path. The stock client
    /// requests `/`.
    async fn intercept(self: &Arc<Self>, doors: &Doors, request: Request, next: Next) -> Response {
        if request.method() != Method::GET || !asks_for_websocket(request.headers()) {
            return next.run(request).await;
        }
        let Some(id) = parameter(request.uri().query(), "socket_connection_id") else {
            return next.run(request).await;
        };
        let response = match self.enter(doors, id, request).await {
            Ok(response) => response,
            Err((status, reason)) => (status, format!("{reason}\n")).into_response(),
        };
        doors.counted(Door::Pakyow, response.status());
        response
    }

    async fn enter(
        self: &Arc<Self>,
        doors: &Doors,
        id: String,
        request: Request,
    ) -> Result<Response, Refusal> {
        let (mut parts, body) = request.into_parts();
        if !doors.allows_origin(&parts.headers) {
            let reason = "the origin is not allowed; see --cors-origin".to_owned();
            return Err((StatusCode::FORBIDDEN, reason));
        }
        check_identity(doors, "socket_connection_id", &id)?;
        let place = doors.park(Door::Pakyow, &parts.extensions, None);
        let place = place.map_err(|_| {
            let reason = "this address has too many open requests".to_owned();
            (StatusCode::TOO_MANY_REQUESTS, reason)
        })?;
        let digest = self.digest_of(doors, &parts, &id).await?;
        let mut visitor = Visitor::new(digest, id, &self.settings());
        visitor.cookie = parts.headers.get(header::COOKIE).cloned();
        // The place is given back when the socket disconnects, not when this request
        // ends.
        visitor.place = Some(place).into();
        parts.extensions.insert(Arc::new(visitor));
        let open = Open {
            namespace: self.namespace.clone(),
            auth: None,
            form: Arc::clone(&self.form),
        };
        let pakyow = Arc::clone(self);
        let on_text = move |socket: Socket, text: String| {
            let pakyow = Arc::clone(&pakyow);
            async move { pakyow.message(&socket, text).await }
        };
        let request = Request::from_parts(parts, body);
        let opened = doors
            .server
            .open_websocket(request, open, async |_| {}, on_text);
        opened.await.map_err(|error| match error.status {
            // As the original responds to a handshake that is none.
            StatusCode::UPGRADE_REQUIRED => (StatusCode::BAD_REQUEST, error.message.into_owned()),
            status => (status, error.message.into_owned()),
        })
    }

    /// Returns the digest of a client. Without a key it is random, so no subscription
    /// belongs to it.
    async fn digest_of(&self, doors: &Doors, parts: &Parts, id: &str) -> Result<String, Refusal> {
        let shown = parameter(parts.uri.query(), "socket_key").or_else(|| {
            let settings = self.settings();
            let name = settings.key_cookie.as_deref()?;
            let cookies = parts.headers.get(header::COOKIE)?.to_str().ok()?;
            cookie(cookies, name).map(str::to_owned)
        });
        if let Some(key) = shown {
            check_identity(doors, "socket_key", &key)?;
            return Ok(digest(&key, id));
        }
        let identity = match self.application().identify(parts, id).await {
            None => return Ok(digest(&entropy::name::<UNKNOWN_KEY>(), id)),
            Some(Ok(identity)) => identity,
            Some(Err(failure)) => {
                let reply = super::application::failed(&failure);
                let status = StatusCode::from_u16(reply.status);
                return Err((status.unwrap_or(StatusCode::BAD_GATEWAY), reply.body));
            }
        };
        Ok(identity.digest.unwrap_or_else(|| {
            let key = identity.socket_key;
            digest(&key.unwrap_or_else(entropy::name::<UNKNOWN_KEY>), id)
        }))
    }

    /// Responds to a message. A route is called concurrently with the next messages, so replies may
    /// overtake each other.
    async fn message(self: &Arc<Self>, socket: &Socket, text: String) {
        let Some(visitor) = socket.handshake().extension::<Arc<Visitor>>() else {
            return;
        };
        // To the client, a reply means that it is subscribed.
        visitor.is_joined.wait().await;
        let Some(message) = pakyow::read(&text) else {
            return self.count("ignored");
        };
        let reply = |outcome: &str, reply: Reply| {
            self.count(outcome);
            drop(socket.send_text(&reply.frame(&message.id)));
        };
        let most = self.settings().max_message;
        if text.len() > most.0 {
            let text = format!("a message has at most {most}");
            return reply("too_large", Reply::plain(413, &text));
        }
        let application = self.application();
        match &message.action {
            Action::Ping => return reply("ping", Reply::pong()),
            Action::Refused(refused) => return reply("refused", refused.clone()),
            Action::Other(_) if !application.has_actions() => return self.count("ignored"),
            _ => {}
        }
        // Those that run and those that wait: beyond it, the client gets the error at once.
        let Ok(called) = Arc::clone(&visitor.calls).try_acquire_owned() else {
            let refused = Reply::plain(503, "too many routes are being called");
            return reply("busy", refused);
        };
        let (pakyow, socket, visitor) = (Arc::clone(self), socket.clone(), Arc::clone(visitor));
        tokio::spawn(async move {
            // It is never closed.
            let _running = visitor.routes.acquire().await;
            let reply = match message.action {
                Action::CallRoute(call) => application.call(&visitor, &call).await,
                Action::Other(name) => application.act(&visitor, &name, text).await,
                Action::Ping => Reply::pong(),
                Action::Refused(refused) => refused,
            };
            // A process of Pakyow may have subscribed the socket, which must be in force
            // before the reply.
            if pakyow.ruby.is_some()
                && let Err(error) = pakyow.follow(&visitor.digest).await
            {
                tracing::warn!(%error, "subscriptions made by a route take effect later");
            }
            // Before the reply, after which the client may call the next one.
            drop(called);
            pakyow.count("replied");
            drop(socket.send_text(&reply.frame(&message.id)));
        });
    }

    fn count(&self, outcome: &str) {
        self.messages.with_label_values(&[outcome]).inc();
    }
}

/// Refuses a part of a pair that is too long to be kept with its socket.
fn check_identity(doors: &Doors, name: &str, value: &str) -> Result<(), Refusal> {
    if value.len() <= MAX_IDENTITY {
        return Ok(());
    }
    doors.reached(Door::Pakyow, DoorLimit::Query);
    let reason = format!("{name} has at most {MAX_IDENTITY} bytes");
    Err((StatusCode::BAD_REQUEST, reason))
}

/// The first parameter of this name.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query?.as_bytes());
    let (_, value) = pairs.find(|(key, _)| key == name)?;
    Some(value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pair_is_in_the_query() {
        let query = Some("a=b&socket_connection_id=x%20y&socket_key=k&socket_key=l");
        assert_eq!(
            parameter(query, "socket_connection_id").as_deref(),
            Some("x y")
        );
        assert_eq!(parameter(query, "socket_key").as_deref(), Some("k"));
        assert_eq!(parameter(query, "key"), None);
        assert_eq!(parameter(None, "socket_key"), None);
    }
}
