//! Event streams and polls: sockets whose events leave with a response.
//!
//! ```text
//!  open (authorizers) ─► rights for each room ─► join from last_id ─► the log after it, then live
//!  stream  head, retry, id ─► events and comments until either side ends it
//!  poll    the first event, and what waits behind it ─► 200;  nothing until the timeout ─► 204
//! ```

use std::{
    collections::{HashSet, VecDeque},
    convert::Infallible,
    sync::Arc,
};

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use http::{HeaderName, StatusCode, header, request::Parts};
use roomcast::{
    EmitError, HistoryEntry, Socket,
    channels::Event,
    plain::{self, Chunk, Form, Heartbeat, Stream},
};
use tokio::time::timeout;

use super::{
    Channels,
    caller::{Caller, refused},
    reading::{events_response, unread, with_event},
    request::Call,
};
use crate::gateway::{
    api::{Kind, Problem},
    doors::{Door, Granted, Place},
    policy::Action,
};

/// The name of the last event, in the header of a poll without events.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How events look to each kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientForm {
    Stream,
    Poll,
    WebSocket,
}

impl ClientForm {
    fn write(self, event: &Event<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Stream => event.write_stream(out),
            Self::Poll => event.write(out),
            Self::WebSocket => event.write_frame(out),
        }
    }
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
        self.write(&event, out);
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
    stream: Arc<dyn Form>,
    poll: Arc<dyn Form>,
    websocket: Arc<dyn Form>,
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

impl Forms {
    pub(super) fn of(&self, form: ClientForm) -> &Arc<dyn Form> {
        match form {
            ClientForm::Stream => &self.stream,
            ClientForm::Poll => &self.poll,
            ClientForm::WebSocket => &self.websocket,
        }
    }
}

/// A stream that has joined its rooms.
struct Joined {
    events: Ordered,
    place: Place,
}

impl Channels {
    pub(super) async fn stream(&self, mut call: Call, parts: Parts) -> Result<Response, Problem> {
        let Joined { events, place } = self.join(&mut call, parts, ClientForm::Stream).await?;
        let mut head = format!("retry: {}\n", self.settings().retry.0.as_millis());
        // A client that loses the connection before its first event must know where to go on. An event
        // without data sets the id and is not dispatched.
        if call.last_id.is_none() {
            head.push_str(&format!("id: {}\n", events.last_id));
        }
        head.push('\n');
        let events = stream::unfold((events, place), async |(mut events, place)| {
            let chunk = events.next().await?;
            Some((Ok::<_, Infallible>(chunk.bytes), (events, place)))
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

    pub(super) async fn poll(&self, mut call: Call, parts: Parts) -> Result<Response, Problem> {
        let mut joined = self.join(&mut call, parts, ClientForm::Poll).await?;
        let start = call.last_id.unwrap_or(joined.events.last_id);
        let Ok(Some(first)) = timeout(call.timeout, joined.events.next()).await else {
            // The time is up, or the node stops, and the client goes on at another one.
            let headers = [
                (LAST_EVENT_ID, start.to_string()),
                (header::CACHE_CONTROL, "no-store".to_owned()),
            ];
            return Ok((StatusCode::NO_CONTENT, headers).into_response());
        };
        let mut chunks = vec![first];
        while chunks.len() < call.limit {
            match joined.events.next().now_or_never().flatten() {
                Some(chunk) => chunks.push(chunk),
                None => break,
            }
        }
        let last = chunks.iter().filter_map(|chunk| chunk.id).max();
        let events = chunks.into_iter().map(|Piece { bytes, .. }| bytes.to_vec());
        Ok(events_response(events, last.unwrap_or(start)))
    }

    async fn join(
        &self,
        call: &mut Call,
        mut parts: Parts,
        form: ClientForm,
    ) -> Result<Joined, Problem> {
        if call.rooms.is_empty() {
            let detail = "name at least one room";
            return Err(Problem::invalid("room", detail));
        }
        let key = self.key(call)?;
        if key.is_some() {
            parts.extensions.insert(Granted { user: None });
        }
        let open = self.open(call, form, key.as_ref());
        let stream = self.doors.server.open_stream(&parts, open).await;
        let stream = stream.map_err(|error| refused(&error))?;
        let caller = Caller::of_socket(stream.socket(), key.as_ref());
        let place = self.park(&caller, &parts)?;
        for room in &call.rooms {
            self.check(&caller, &call.namespace, Action::Join, room)
                .await?;
        }
        if call.last_id.is_some() {
            self.check_resumption(&caller, call).await?;
        }
        let (entries, last_id) = self
            .enter(stream.socket(), &call.namespace, &call.rooms, call.last_id)
            .await?;
        let events = Ordered {
            seen: entries.iter().map(|entry| entry.id).collect(),
            backlog: entries
                .iter()
                .filter_map(|entry| Piece::stored(entry, form))
                .collect(),
            stream,
            last_id,
        };
        Ok(Joined { events, place })
    }

    /// Going on after an id reads the history. A browser sends the id by itself, and would give up if it
    /// were refused, so without the right its stream begins with the next event.
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

    /// Joins rooms, and reads their events after an id, in the order of their ids over all rooms.
    async fn enter(
        &self,
        socket: &Socket,
        namespace: &str,
        rooms: &[String],
        last_id: Option<u64>,
    ) -> Result<(Vec<HistoryEntry>, u64), Problem> {
        // First the membership, then the log, so that every event is in one of them.
        let joining = socket.join_confirmed(rooms).await;
        joining.map_err(|error| unjoined(&error))?;
        let namespace = self.doors.server.of(namespace);
        let mut entries = Vec::new();
        for room in rooms {
            let log = namespace.history(room);
            let read = match last_id {
                Some(id) => log.after(id, usize::MAX).await,
                None => log.latest(1).await,
            };
            entries.extend(read.map_err(|error| unread(&error))?);
        }
        entries.sort_unstable_by_key(|entry| entry.id);
        let newest = entries.last().map_or(0, |entry| entry.id);
        if last_id.is_none() {
            entries.clear();
        }
        Ok((entries, last_id.unwrap_or_default().max(newest)))
    }

    /// Joins the rooms of a WebSocket, which receives their events after an id. Returns the newest id.
    pub(super) async fn enter_websocket(
        &self,
        socket: &Socket,
        namespace: &str,
        rooms: &[String],
        last_id: Option<u64>,
    ) -> Result<u64, Problem> {
        let (entries, newest) = self.enter(socket, namespace, rooms, last_id).await?;
        for entry in &entries {
            let mut frame = Vec::new();
            with_event(entry, |event| event.write_frame(&mut frame));
            // Fails only if the client has gone.
            drop(socket.send_text(&String::from_utf8_lossy(&frame)));
        }
        Ok(newest)
    }
}

/// The events that a client receives at once.
struct Piece {
    bytes: Bytes,
    id: Option<u64>,
}

impl Piece {
    /// A stored event. Arguments whose attachments are missing come from a faulty node.
    fn stored(entry: &HistoryEntry, form: ClientForm) -> Option<Self> {
        let mut bytes = Vec::new();
        with_event(entry, |event| form.write(event, &mut bytes))?;
        Some(Self {
            bytes: bytes.into(),
            id: Some(entry.id),
        })
    }

    /// The same without the line that sets the id of an event stream.
    fn without_id(mut self) -> Self {
        if self.bytes.starts_with(b"id: ")
            && let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n')
        {
            self.bytes = self.bytes.slice(end + 1..);
        }
        Self { id: None, ..self }
    }
}

/// The events of a stream: those of the log, then live ones.
struct Ordered {
    stream: Stream,
    backlog: VecDeque<Piece>,
    /// The ids of the backlog that may come live, too.
    seen: HashSet<u64>,
    /// The greatest id that was sent.
    last_id: u64,
}

impl Ordered {
    async fn next(&mut self) -> Option<Piece> {
        if let Some(chunk) = self.backlog.pop_front() {
            return Some(chunk);
        }
        loop {
            let Chunk { bytes, id, .. } = self.stream.next().await?;
            let piece = Piece { bytes, id };
            match id {
                Some(id) if self.seen.remove(&id) => {}
                // The log of another room was read further. The client must not go back to this id.
                Some(id) if id <= self.last_id => return Some(piece.without_id()),
                id => {
                    self.last_id = id.unwrap_or(self.last_id);
                    return Some(piece);
                }
            }
        }
    }
}

fn unjoined(error: &EmitError) -> Problem {
    match error {
        EmitError::Join(error) => Problem::invalid("room", error.to_string()),
        EmitError::Bus(error) => {
            tracing::warn!(%error, "a stream cannot join its rooms");
            Problem::new(Kind::Redis, "rooms cannot be joined at the moment")
        }
        EmitError::Disconnected => Problem::new(Kind::Stopping, "the connection was closed"),
        error => Problem::of_emit(error),
    }
}
