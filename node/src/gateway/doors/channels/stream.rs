//! Event streams and polls: sockets whose events leave with a response.
//!
//! ```text
//!  open (authorizers) ─► rights for each room ─► join from last_id ─► the log after it, then live
//!  stream  head, retry, id ─► events and comments until either side ends it
//!  poll    the first event, and what waits behind it ─► 200;  nothing until the timeout ─► 204
//!          in a cluster, events that the log has before the first one, and that never came ─► those
//! ```
//!
//! A stream is a socket without bytes of its own: the response takes its frames and is
//! slowed down by its client like any connection, within the limits of the outbox. A
//! poll is the same for one event, and for what waits behind it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use http::{HeaderName, StatusCode, header, request::Parts};
use roomcast::{
    EmitError, History, HistoryEntry, HistoryError, JoinFromError, Socket,
    channels::Event,
    plain::{self, Chunk, Form, Heartbeat, Stream},
};
use tokio::time::timeout;

use super::{
    Channels,
    caller::{Caller, open, refused},
    reading::{entries_response, events_response, unread},
    request::Call,
};
use crate::gateway::{
    api::{Kind, Problem},
    doors::{Door, Granted, Place, Reply, earlier::Earlier},
    policy::Action,
};

/// The name of the last event, in the header of a poll without events.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How events look to each kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientForm {
    Stream,
    Poll,
    WebSocket,
}

impl Form for ClientForm {
    fn event(&self, event: &plain::Event<'_>, out: &mut Vec<u8>) {
        let event = Event {
            id: event.id,
            room: event.room,
            name: event.name,
            args: event.args,
            time: event.time,
        };
        match self {
            Self::Stream => event.write_stream(out),
            Self::Poll => event.write(out),
            Self::WebSocket => event.write_frame(out),
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        match self {
            Self::Stream => Heartbeat::Bytes(b":\n\n"),
            Self::Poll => Heartbeat::None,
            Self::WebSocket => Heartbeat::Ping,
        }
    }
}

/// The forms, each shared by all connections of its kind, so that an event is written once for all.
pub(super) struct Forms {
    pub(super) stream: Arc<dyn Form>,
    pub(super) poll: Arc<dyn Form>,
    pub(super) websocket: Arc<dyn Form>,
}

impl Default for Forms {
    fn default() -> Self {
        Self {
            stream: Arc::new(ClientForm::Stream),
            poll: Arc::new(ClientForm::Poll),
            websocket: Arc::new(ClientForm::WebSocket),
        }
    }
}

/// A stream that has joined its rooms. It holds only the necessary data, because there are many.
struct Joined {
    stream: Stream,
    /// The id from which the client continues.
    last_id: u64,
    /// The time of that event, or 0 if none has come yet.
    last_time: u64,
    _place: Place,
}

impl Joined {
    async fn next(&mut self) -> Option<Chunk> {
        let mut chunk = self.stream.next().await?;
        if let (Some(id), Some(time)) = (chunk.id, chunk.time) {
            // An id that falls while the time grows is from a log that has begun again.
            if id >= self.last_id || time > self.last_time {
                self.last_id = id;
                self.last_time = self.last_time.max(time);
            } else {
                // It was missed in a gap and arrives late. The client must not go back to its id.
                chunk.bytes = without_id(chunk.bytes);
            }
        }
        Some(chunk)
    }

    /// Waits for the first event, and returns it with the others that are available.
    /// `missed` looks for events that should have come before it.
    async fn wait(
        mut self,
        start: u64,
        limit: usize,
        time: Duration,
        missed: Option<Missed>,
    ) -> Response {
        let from = self.last_id;
        let Ok(Some(first)) = timeout(time, self.next()).await else {
            // The time is up, or the node stops and the client continues at another one.
            let headers = [
                (LAST_EVENT_ID, start.to_string()),
                (header::CACHE_CONTROL, "no-store".to_owned()),
            ];
            return (StatusCode::NO_CONTENT, headers).into_response();
        };
        let mut chunks = vec![first];
        // Available events are included, which saves polls.
        while chunks.len() < limit {
            match self.next().now_or_never().flatten() {
                Some(chunk) => chunks.push(chunk),
                None => break,
            }
        }
        if let Some(missed) = missed {
            match missed.instead_of(&chunks, from, limit).await {
                Ok(entries) if entries.is_empty() => {}
                // The log has the events of the stream, too, except those without an id.
                Ok(entries) => {
                    let others = chunks.into_iter().filter(|chunk| chunk.id.is_none());
                    let others = others.map(|chunk| chunk.bytes);
                    return entries_response(&entries, others, start);
                }
                Err(error) => return unread(&error).into_response(),
            }
        }
        let last = chunks.iter().filter_map(|chunk| chunk.id).max();
        events_response(
            chunks.iter().map(|chunk| &chunk.bytes),
            last.unwrap_or(start),
        )
    }
}

/// Finds the events that a poll has missed while its node was cut off from Redis.
struct Missed {
    earlier: Arc<Earlier>,
    namespace: Arc<str>,
    rooms: Box<[(Box<str>, History)]>,
}

impl Missed {
    /// The entries of the log after `from`, unless the events are known to be all of them.
    async fn instead_of(
        &self,
        events: &[Chunk],
        from: u64,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, HistoryError> {
        let ids = events.iter().filter_map(|event| event.id);
        let Some(last) = ids.clone().max() else {
            return Ok(Vec::new());
        };
        // An id that falls is from a log that has begun again, and all that is kept there is new.
        let from = if last < from { 0 } else { from };
        // A single event wakes many polls, which share one check.
        if ids.count() == 1 && self.before(last).await? <= from {
            return Ok(Vec::new());
        }
        let mut entries = Vec::new();
        for (_, history) in &self.rooms {
            entries.extend(history.after(from, limit).await?);
        }
        // Up to this id, each room was read completely. Beyond it, one may have been read
        // too early.
        entries.retain(|entry| entry.id <= last);
        entries.sort_unstable_by_key(|entry| entry.id);
        entries.truncate(limit);
        Ok(entries)
    }

    /// The id of the newest entry of the rooms before this id.
    async fn before(&self, id: u64) -> Result<u64, HistoryError> {
        let mut newest = 0;
        for (room, history) in &self.rooms {
            let read = async move || {
                let read = history.before(id, 1).await?;
                Ok(read.first().map_or(0, |entry| entry.id))
            };
            let before = self.earlier.before(&self.namespace, room, id, read);
            newest = newest.max(before.await?);
        }
        Ok(newest)
    }
}

/// An event of a stream without the line that sets the id of the client.
fn without_id(event: Bytes) -> Bytes {
    match event.iter().position(|byte| *byte == b'\n') {
        Some(end) if event.starts_with(b"id: ") => event.slice(end + 1..),
        _ => event,
    }
}

impl Channels {
    pub(super) async fn stream(&self, mut call: Call, parts: Parts) -> Result<Response, Problem> {
        let joined = self.join(&mut call, parts, &self.forms.stream).await?;
        let mut head = format!("retry: {}\n", self.settings().retry.0.as_millis());
        // A client that loses the connection before its first event must know where to continue. An
        // event without data sets the id and is not dispatched.
        if call.last_id.is_none() {
            head.push_str(&format!("id: {}\n", joined.last_id));
        }
        head.push('\n');
        let events = stream::unfold(joined, async |mut joined| {
            let chunk = joined.next().await?;
            Some((Ok::<_, Infallible>(chunk.bytes), joined))
        });
        let body = stream::iter([Ok(Bytes::from(head))]).chain(events);
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache"),
            // nginx would keep events back.
            (HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        Ok((headers, Body::from_stream(body)).into_response())
    }

    pub(super) async fn poll(&self, mut call: Call, parts: Parts) -> Result<Reply, Problem> {
        let joined = self.join(&mut call, parts, &self.forms.poll).await?;
        let start = call.last_id.unwrap_or(joined.last_id);
        let missed = self.missed(&call);
        Ok(Reply::Later(Box::pin(joined.wait(
            start,
            call.limit,
            call.timeout,
            missed,
        ))))
    }

    /// `None` on a single node, which misses nothing.
    fn missed(&self, call: &Call) -> Option<Missed> {
        let earlier = Arc::clone(self.doors.earlier.as_ref()?);
        let namespace = self.doors.server.of(&call.namespace);
        let rooms = call.rooms.iter();
        let rooms = rooms.map(|room| (room.as_str().into(), namespace.history(room)));
        Some(Missed {
            earlier,
            namespace: call.namespace.as_str().into(),
            rooms: rooms.collect(),
        })
    }

    /// Connects the client, checks its rights, and joins its rooms after the last event that it has
    /// received.
    async fn join(
        &self,
        call: &mut Call,
        mut parts: Parts,
        form: &Arc<dyn Form>,
    ) -> Result<Joined, Problem> {
        if call.rooms.is_empty() {
            let detail = "name at least one room";
            return Err(Problem::invalid("room", detail));
        }
        let key = self.key(call)?;
        if key.is_some() {
            parts.extensions.insert(Granted { user: None });
        }
        let open = open(call, form, key.as_ref());
        let stream = self.doors.server.open_stream(&parts, open).await;
        let stream = stream.map_err(|error| refused(&error))?;
        // The rights are checked after the socket is connected, because only then is
        // the user known: the authorizers may take the token from any place of the
        // request.
        let caller = Caller::of_socket(stream.socket(), key.as_ref());
        let place = self.park(&caller, &parts)?;
        for room in &call.rooms {
            self.check(&caller, &call.namespace, Action::Join, room)
                .await?;
        }
        if call.last_id.is_some() {
            self.check_resumption(&caller, call).await?;
        }
        let newest = join_from(stream.socket(), &call.rooms, call.last_id).await?;
        let last_id = match call.last_id {
            // Of a log that was lost.
            Some(id) if id > newest => 0,
            last_id => last_id.unwrap_or(newest),
        };
        Ok(Joined {
            stream,
            last_id,
            last_time: 0,
            _place: place,
        })
    }

    /// Going on after an id reads the history. A browser sends the id by itself, and
    /// would give up if it were refused, so without the right its stream begins with the
    /// next event.
    async fn check_resumption(&self, caller: &Caller, call: &mut Call) -> Result<(), Problem> {
        for room in &call.rooms {
            let checked = self
                .check(caller, &call.namespace, Action::History, room)
                .await;
            match checked {
                Err(_) if call.is_reconnect => {
                    call.last_id = None;
                    return Ok(());
                }
                checked => checked?,
            }
        }
        Ok(())
    }

    pub(super) fn park(&self, caller: &Caller, parts: &Parts) -> Result<Place, Problem> {
        let holder = caller.holder();
        let doors = &self.doors;
        let place = doors.park(Door::Channels, &parts.extensions, holder.as_deref());
        place.map_err(|_| {
            let detail = "too many polls, streams and WebSockets of this address, key or user";
            Problem::new(Kind::TooManyOpen, detail)
        })
    }
}

/// Joins rooms, whose events after an id the socket receives. Returns the newest id.
pub(super) async fn join_from(
    socket: &Socket,
    rooms: &[String],
    last_id: Option<u64>,
) -> Result<u64, Problem> {
    let joined = socket.join_from(rooms, last_id).await;
    joined.map_err(|error| match error {
        JoinFromError::Emit(EmitError::Join(error)) => Problem::invalid("room", error.to_string()),
        JoinFromError::Emit(EmitError::Disconnected) => {
            Problem::new(Kind::Stopping, "the connection was closed")
        }
        JoinFromError::Emit(EmitError::Bus(error)) => {
            tracing::warn!(%error, "a client cannot join its rooms");
            Problem::new(Kind::Redis, "rooms cannot be joined at the moment")
        }
        JoinFromError::Emit(error) => Problem::of_emit(&error),
        JoinFromError::History(error) => unread(&error),
        error => Problem::new(Kind::Internal, error.to_string()),
    })
}
