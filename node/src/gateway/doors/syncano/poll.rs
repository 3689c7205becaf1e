//! Polls: the oldest notification after an id, at once or as soon as there is one.
//!
//! ```text
//!  last_id? ─► oldest after it ─── found ───────────────────────────────► 200
//!     └─ none ─► socket, which joins the room behind the entries of the log
//!                     └── parked: the first event of the socket ─────────► 200
//!                             ├── the time is up ────────────────────────► 204
//!                             └── the node drains, or is overloaded ─────► 429, Retry-After
//! ```
//!
//! `transport=websocket` sends one notification after another. Its socket is a member of
//! no room. It is sent the notifications of a stream like that of a poll, which begins
//! with the entries of the log.
//!
//! The socket is a member before its log is read, so that nothing is published between
//! the two unheard. The response to a drain is one after which all SDKs come back with
//! the same id: Python and JavaScript pause and repeat, whereas after 204 JavaScript
//! forgets the id and Python's thread ends.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    response::{IntoResponse as _, Response},
};
use futures_util::StreamExt as _;
use http::{HeaderValue, Request, StatusCode, header, request::Parts};
use roomcast::{
    Socket,
    plain::{Chunk, Event, Form, Heartbeat, Open, OpenError, Stream},
    syncano::Query,
};
use serde_json::Value;
use tokio::time::timeout;

use super::{
    Call, Granted, Reply, Service,
    failure::Failure,
    notification,
    stream::{COPY, Next, Notification, Streams},
};
use crate::gateway::{
    clock,
    doors::{Door, Place, earlier::Earlier},
};

/// How a poll sees events.
pub(super) struct Notifications;

impl Form for Notifications {
    /// Writes a notification. One that is not in the log has no id here; see [`with_id`].
    fn event(&self, event: &Event<'_>, out: &mut Vec<u8>) {
        if event.name == COPY {
            return;
        }
        let millis = event.time.unwrap_or_else(clock::unix_millis);
        let id = event.id.unwrap_or_default();
        let mut notification = notification::of_event(event.name, event.args, id, millis);
        if event.id.is_none() {
            notification.shift_remove("id");
        }
        out.extend_from_slice(&written((id, notification)).1);
    }
}

/// A WebSocket receives only the texts that are written for it, no events.
pub(super) struct Written;

impl Form for Written {
    fn event(&self, _: &Event<'_>, _: &mut Vec<u8>) {}

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::Ping
    }
}

/// The notifications after which a WebSocket ends.
const MAX_NOTIFICATIONS: usize = 100;

/// Interval in which a stream checks that its WebSocket is still connected.
/// A stream is not notified of its WebSocket's end.
const LOOK: Duration = Duration::from_secs(5);

/// A poll whose response is not known yet. There are many, so it holds only the necessary data.
pub(super) struct Parked {
    stream: Stream,
    /// The last id that the client has seen.
    seen: u64,
    /// The id after which the stream begins.
    from: u64,
    room: Box<str>,
    streams: Streams,
    earlier: Option<Arc<Earlier>>,
    time: Duration,
    _place: Place,
}

impl Service {
    pub(super) async fn poll(
        &self,
        parts: &mut Parts,
        call: Call<'_>,
        name: &str,
        query: &Query,
    ) -> Result<Reply, Failure> {
        Failure::unless(&parts.method, "GET")?;
        let channel = call.instance.channel(name).await?;
        channel.check_subscribe(&call.caller)?;
        let room = channel.room(query.get("room"))?;
        // A negative id is none.
        let last = query.integer("last_id")?;
        let last = last.and_then(|id| u64::try_from(id).ok());
        let is_websocket = query.get("transport") == Some("websocket");
        if is_websocket && !parts.headers.contains_key(header::SEC_WEBSOCKET_KEY) {
            let text = "Expected WebSocket connection.";
            return Err(Failure::detail(StatusCode::BAD_REQUEST, text));
        }
        let streams = self.streams(call.instance);
        let next = match last {
            Some(last) => streams.next(&channel, &room, last).await?,
            None => Next::After(streams.nth_newest(&room, 1).await?),
        };
        let from = match next {
            Next::Found(notification) if !is_websocket => {
                return Ok(Reply::Now(found(written(notification))));
            }
            Next::Found((id, _)) => id.saturating_sub(1),
            Next::After(id) => id,
        };
        let holder = format!("{}:{}", call.instance.name, call.caller.holder());
        let place = self
            .doors
            .park(Door::Syncano, &parts.extensions, Some(&holder));
        let place = place.map_err(|_| Failure::throttled())?;
        // The place is taken before, so that refused polls cost no socket.
        let stream = self.open(parts, &call, &room, from).await?;
        let parked = Parked {
            stream,
            seen: last.unwrap_or(from),
            from,
            room: room.into(),
            streams,
            earlier: self.doors.earlier.clone(),
            time: call.live.poll_timeout,
            _place: place,
        };
        if is_websocket {
            return self.websocket(parts, &call, parked).await;
        }
        Ok(Reply::Later(Box::pin(parked.wait())))
    }

    /// Opens the WebSocket that is sent the notifications of the parked stream.
    async fn websocket(
        &self,
        parts: &mut Parts,
        call: &Call<'_>,
        parked: Parked,
    ) -> Result<Reply, Failure> {
        let open = Open {
            namespace: call.instance.namespace.to_string(),
            auth: None,
            form: Arc::clone(&self.written),
        };
        let parts = std::mem::replace(parts, Request::new(()).into_parts().0);
        let request = Request::from_parts(parts, Body::empty());
        let on_open = async move |socket: Socket| {
            let time = parked.time;
            // The WebSocket is closed in the same way whether its time or its
            // notifications are over.
            let _ = timeout(time, parked.forward(&socket)).await;
            socket.disconnect(true);
        };
        let server = &self.doors.server;
        let opening = server.open_websocket(request, open, on_open, async |_, _| {});
        let response = opening.await.map_err(refused)?;
        Ok(Reply::Now(response.into_response()))
    }

    /// Opens the socket of a poll, and joins the room where the client has left off.
    async fn open(
        &self,
        parts: &mut Parts,
        call: &Call<'_>,
        room: &str,
        from: u64,
    ) -> Result<Stream, Failure> {
        let user = call.caller.user().map(|user| user.id.to_string());
        // The rights are checked already, by keys that the namespace's own access does
        // not know.
        parts.extensions.insert(Granted { user });
        let open = Open {
            namespace: call.instance.namespace.to_string(),
            auth: None,
            form: Arc::clone(&self.form),
        };
        let opened = self.doors.server.open_stream(parts, open).await;
        let stream = opened.map_err(refused)?;
        let joined = stream.socket().join_from(room, Some(from)).await;
        joined.map_err(|error| Failure::unavailable(error.to_string()))?;
        Ok(stream)
    }
}

impl Parked {
    /// Waits for the first notification that the client has not seen.
    pub(super) async fn wait(mut self) -> Response {
        let mut response = match timeout(self.time, self.next()).await {
            Ok(Some(next)) => match self.missed(next.0).await {
                Ok(missed) => found(missed.unwrap_or(next)),
                // The client comes back with the same id.
                Err(_) => Failure::throttled().into_response(),
            },
            Ok(None) => Failure::throttled().into_response(),
            Err(_) => StatusCode::NO_CONTENT.into_response(),
        };
        let no_cache = HeaderValue::from_static("no-cache");
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, no_cache);
        response
    }

    /// Sends the WebSocket the notifications of the stream, up to the limit.
    async fn forward(mut self, socket: &Socket) {
        let mut sent = 0;
        while sent < MAX_NOTIFICATIONS && socket.is_connected() {
            let Ok(next) = timeout(LOOK, self.next()).await else {
                continue;
            };
            let Some((id, body)) = next else { return };
            if socket.send_text(&String::from_utf8_lossy(&body)).is_err() {
                return;
            }
            (self.seen, sent) = (id, sent + 1);
        }
    }

    /// The oldest notification that was published before this one and has not arrived.
    async fn missed(&self, id: u64) -> Result<Option<(u64, Bytes)>, Failure> {
        // An id that falls is from a log that has begun again, and all that is kept there is new. A
        // notification that is not in the log has the id that the client has seen.
        let is_anew = id < self.from && id != self.seen;
        let from = if is_anew { 0 } else { self.from };
        let Some(earlier) = self.earlier.as_ref().filter(|_| id > from) else {
            return Ok(None);
        };
        let read = || self.streams.previous(&self.room, id);
        let before = earlier.before(&self.streams.namespace, &self.room, id, read);
        if before.await? <= from {
            return Ok(None);
        }
        let first = self.streams.first_after(&self.room, from).await?;
        Ok(first.map(written))
    }

    /// The next notification. The socket has joined the room after the last id of the client, so
    /// that none arrives twice.
    async fn next(&mut self) -> Option<(u64, Bytes)> {
        let Chunk { bytes, id, .. } = self.stream.next().await?;
        Some(match id {
            Some(id) => (id, bytes),
            None => (self.seen, with_id(self.seen, &bytes)),
        })
    }
}

/// Adds the id to a notification that is not in the log. It is that of the last one that
/// the client has seen, so that its next poll continues there.
fn with_id(id: u64, notification: &[u8]) -> Bytes {
    let mut body = format!("{{\"id\":{id},").into_bytes();
    body.extend_from_slice(notification.get(1..).unwrap_or_default());
    body.into()
}

/// A notification as the body of a response.
fn written((id, notification): Notification) -> (u64, Bytes) {
    (id, Value::Object(notification).to_string().into())
}

fn found((id, body): (u64, Bytes)) -> Response {
    let json = HeaderValue::from_static("application/json");
    let headers = [(header::CONTENT_TYPE, json), (LAST_ID, id.into())];
    (headers, body).into_response()
}

const LAST_ID: header::HeaderName = header::HeaderName::from_static("x-last-id");

/// A full or draining node makes clients pause, regardless of its usual status.
fn refused(error: OpenError) -> Failure {
    match error.status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Failure::throttled(),
        status => Failure::detail(status, error.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_that_is_not_in_the_log_gets_the_id_that_the_client_has_seen() {
        let body = with_id(7, br#"{"action":"custom"}"#);
        assert_eq!(&body[..], br#"{"id":7,"action":"custom"}"#);
    }
}
