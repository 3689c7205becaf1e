//! Requests that leave no connection open: publishing, the history, and presence.
//!
//! Each request is complete in itself: the client is recognized, its right for this
//! room is checked, and nothing of it stays. Where a hook decides, the client is
//! connected for the time of the request, because the hook decides about connects.

use std::iter;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{StatusCode, header, request::Parts};
use roomcast::{
    EmitError, HistoryEntry, HistoryError, Position, PublishError,
    channels::{Event, Publish, ReadError},
};
use serde_json::{json, value::RawValue};

use super::{Channels, caller::Caller, request::Call};
use crate::gateway::{
    api::{Kind, Problem, read_body},
    doors::DoorLimit,
    operations::binary,
    policy::Action,
};

/// The most members that a response names.
/// `total` counts the others as well.
const MAX_MEMBERS: usize = 1000;

impl Channels {
    /// Publishes an event. The client is recognized before its body is read, so a
    /// stranger's body costs nothing.
    pub(super) async fn publish(
        &self,
        call: &Call,
        parts: &mut Parts,
        body: Body,
    ) -> Result<Response, Problem> {
        let visit = self.visit(call, parts).await?;
        let body = self.body(body).await?;
        let publish = Publish::read(&body).map_err(|error| unreadable(&error))?;
        let room = &call.rooms[0];
        let position = self
            .store(&visit.caller, &call.namespace, room, publish)
            .await?;
        let stored = json!({ "id": position.id.to_string(), "time": position.time });
        Ok((StatusCode::CREATED, json_body(stored.to_string())).into_response())
    }

    /// Stores an event in the history of a room and emits it to the members.
    pub(super) async fn store(
        &self,
        caller: &Caller,
        namespace: &str,
        room: &str,
        publish: Publish,
    ) -> Result<Position, Problem> {
        self.check(caller, namespace, Action::Send, room).await?;
        let longest = self.doors.limits.event_name_bytes;
        if publish.event.is_empty() || publish.event.len() > longest {
            self.reached(DoorLimit::Name);
            let detail = format!("the name of an event has 1 to {longest} bytes");
            return Err(Problem::invalid("event", detail));
        }
        let args = RawValue::from_string(publish.args);
        let args = args.map_err(|error| error.to_string());
        // Arguments without binary stay text from the request to the frames.
        let args = args.and_then(|args| binary::from_json(&args));
        let args = args.map_err(|error| Problem::invalid("data", error))?;
        let room = self.doors.server.of(namespace).to(room);
        let published = room.publish(&publish.event, args).await;
        published.map_err(|error| self.unpublished(&error))
    }

    /// Returns a page of the history of a room.
    pub(super) async fn history(
        &self,
        call: &Call,
        parts: &mut Parts,
    ) -> Result<Response, Problem> {
        let visit = self.visit(call, parts).await?;
        let room = &call.rooms[0];
        self.check(&visit.caller, &call.namespace, Action::History, room)
            .await?;
        let history = self.doors.server.of(&call.namespace).history(room);
        let entries = match (call.last_id, call.before) {
            (Some(_), Some(_)) => {
                let detail = "a page is after last_id or before an id, not both";
                return Err(Problem::invalid("before", detail));
            }
            (Some(id), None) => history.after(id, call.limit).await,
            (None, Some(id)) => history.before(id, call.limit).await,
            (None, None) => history.latest(call.limit).await,
        };
        let entries = entries.map_err(|error| unread(&error))?;
        Ok(entries_response(
            &entries,
            iter::empty(),
            call.last_id.unwrap_or_default(),
        ))
    }

    /// Returns the members of a room in the whole cluster.
    pub(super) async fn presence(
        &self,
        call: &Call,
        parts: &mut Parts,
    ) -> Result<Response, Problem> {
        let visit = self.visit(call, parts).await?;
        let room = &call.rooms[0];
        self.check(&visit.caller, &call.namespace, Action::Presence, room)
            .await?;
        let members = self.doors.server.of(&call.namespace).in_(room);
        let (found, is_reached) = match members.clone().fetch_sockets().await {
            // The members of this node are better than none.
            Err(EmitError::Bus(_)) => (members.local().fetch_sockets().await, false),
            found => (found, true),
        };
        let found = found.map_err(|error| Problem::of_emit(&error))?;
        let mut shown: Vec<_> = found
            .sockets
            .iter()
            .map(|socket| (socket.id().as_str(), socket.data_json().get("user")))
            .collect();
        // Nodes reply in any order, and a list that is cut must have the same members
        // each time.
        shown.sort_by_key(|(id, _)| *id);
        let members: Vec<_> = shown
            .iter()
            .take(MAX_MEMBERS)
            .map(|(id, user)| json!({ "id": id, "user": user }))
            .collect();
        let body = json!({
            "room": room,
            "members": members,
            "total": shown.len(),
            "is_complete": is_reached && found.silent_nodes.is_empty(),
        });
        Ok(json_body(body.to_string()))
    }

    async fn body(&self, body: Body) -> Result<String, Problem> {
        let settings = &self.doors.settings;
        let bytes = read_body(body, settings.max_body, settings.body_timeout).await;
        let bytes = bytes.inspect_err(|problem| {
            if problem.kind == Kind::TooLarge {
                self.reached(DoorLimit::Body);
            }
        })?;
        String::from_utf8(bytes.into()).map_err(|_| invalid("the body is not UTF-8"))
    }

    /// Distinguishes events that no client has received, which can be repeated, from those that a
    /// client may have received. The full error goes to the log, because it names servers.
    fn unpublished(&self, error: &PublishError) -> Problem {
        let kind = match error {
            PublishError::Emit(EmitError::Args(_)) => {
                return Problem::invalid("data", error.to_string());
            }
            PublishError::Emit(error) => return Problem::of_emit(error),
            PublishError::TooLarge { .. } => {
                self.reached(DoorLimit::Body);
                Kind::TooLarge
            }
            PublishError::Unavailable(error) => {
                tracing::warn!(%error, "an event was not stored");
                let detail =
                    "the history cannot be written at the moment; no client has received the event";
                return Problem::new(Kind::NotStored, detail);
            }
            PublishError::Unconfirmed(error) => {
                tracing::warn!(%error, "an event may have been stored");
                let detail =
                    "the connection to the history was lost; look into it before repeating";
                return Problem::new(Kind::Unconfirmed, detail);
            }
            _ => Kind::Internal,
        };
        Problem::new(kind, error.to_string())
    }
}

/// The response with stored events. Without any, `last_id` is that of the client.
/// `more` are events that are not stored.
pub(super) fn entries_response(
    entries: &[HistoryEntry],
    more: impl Iterator<Item = Bytes>,
    last_id: u64,
) -> Response {
    let last = entries.last().map_or(last_id, |entry| entry.id);
    let stored = entries.iter().filter_map(event).map(Bytes::from);
    events_response(stored.chain(more), last)
}

/// The response with a list of events, each as JSON text.
pub(super) fn events_response(
    events: impl Iterator<Item = impl AsRef<[u8]>>,
    last_id: u64,
) -> Response {
    let mut body = b"{\"events\":[".to_vec();
    for (index, event) in events.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(event.as_ref());
    }
    body.extend_from_slice(format!("],\"last_id\":\"{last_id}\"}}").as_bytes());
    json_body(body)
}

/// A stored event. Arguments whose attachments are missing come from a faulty node, and
/// are left out.
fn event(entry: &HistoryEntry) -> Option<Vec<u8>> {
    let args = entry.args.to_plain_json().ok()?;
    let event = Event {
        id: Some(entry.id),
        room: Some(&entry.room),
        name: &entry.event,
        args: &args,
        time: Some(entry.time),
    };
    let mut out = Vec::new();
    event.write(&mut out);
    Some(out)
}

/// Why the history of a room could not be read. The full text names servers, which clients must not
/// see.
pub(super) fn unread(error: &HistoryError) -> Problem {
    match error {
        HistoryError::UnknownNamespace(_) => {
            Problem::new(Kind::UnknownNamespace, error.to_string())
        }
        HistoryError::NotKept => Problem::new(Kind::Internal, error.to_string()),
        error => {
            tracing::warn!(%error, "the history of a room cannot be read");
            Problem::new(Kind::Redis, "the history cannot be read at the moment")
        }
    }
}

fn json_body(json: impl IntoResponse) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, json).into_response()
}

/// The problem of a body or a frame that cannot be read.
pub(super) fn unreadable(error: &ReadError) -> Problem {
    Problem::invalid(error.member().unwrap_or_default(), error.to_string())
}

fn invalid(detail: &str) -> Problem {
    Problem::invalid("", detail)
}
