//! Plain WebSockets: frames of JSON, several rooms.
//!
//! ```text
//!  request ─► client, rights for the rooms of the path ─► 101 ─► subscribed ─► events
//!  frame   ─► read ─► rights ─► carried out ─► reply with the frame's ref, in the order of the frames
//! ```
//!
//! Frames of one connection are handled one after the other, so replies need no separate order, and
//! a client that sends without waiting is slowed down by its own frames.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use roomcast::{
    Socket,
    channels::{Frame, Request as Wanted},
};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    Channels,
    caller::{Caller, open, refused},
    reading::unreadable,
    request::Call,
    stream::join_from,
};
use crate::gateway::{
    access::Access,
    api::{Key, Kind, Problem},
    doors::{DoorLimit, Granted},
    policy::{Action, USER_ROOMS},
};

/// The state of a WebSocket.
struct Session {
    channels: Arc<Channels>,
    namespace: String,
    key: Option<Arc<Key>>,
}

impl Channels {
    pub(super) async fn websocket(
        self: &Arc<Self>,
        call: Call,
        request: Request,
    ) -> Result<Response, Problem> {
        let (mut parts, body) = request.into_parts();
        let key = self.key(&call)?;
        let access = self.doors.access.get(&call.namespace);
        // A hook is asked once, when the connection is opened.
        let asks_hook = access.copied().is_some_and(Access::asks_hook) && key.is_none();
        let caller = match asks_hook {
            true => None,
            false => Some(self.visit(&call, &mut parts).await?.caller),
        };
        // Rights that are known before the upgrade are refused with a status, which
        // clients see. After it, only a frame could report them.
        if let Some(caller) = &caller {
            for room in &call.rooms {
                self.check(caller, &call.namespace, Action::Join, room)
                    .await?;
            }
        }
        let place = self.park(caller.as_ref().unwrap_or(&Caller::Anybody), &parts)?;
        if key.is_some() {
            parts.extensions.insert(Granted { user: None });
        }
        let open = open(&call, &self.forms.websocket, key.as_ref());
        let session = Arc::new(Session {
            channels: Arc::clone(self),
            namespace: call.namespace,
            key,
        });
        let opened = Arc::clone(&session);
        let on_open = async move |socket: Socket| {
            // The place lives as long as the socket.
            socket.attach(place);
            if !call.rooms.is_empty() {
                let subscribed = opened.subscribe(&socket, call.rooms, call.last_id).await;
                send(&socket, &reply(subscribed, None));
            }
        };
        let on_text = move |socket: Socket, text: String| {
            let session = Arc::clone(&session);
            async move { session.receive(&socket, &text).await }
        };
        let server = &self.doors.server;
        let request = Request::from_parts(parts, body);
        let response = server.open_websocket(request, open, on_open, on_text).await;
        response.map_err(|error| refused(&error))
    }
}

impl Session {
    /// Carries out a frame, and replies.
    async fn receive(&self, socket: &Socket, text: &str) {
        let longest = self.channels.doors.settings.max_body;
        let reply = if text.len() > longest.0 {
            self.channels.reached(DoorLimit::Frame);
            let detail = format!("a frame has at most {longest}");
            reply(Err(Problem::new(Kind::TooLarge, detail)), None)
        } else {
            match Frame::read(text) {
                Ok(Frame { reference, request }) => {
                    reply(self.carry_out(socket, request).await, reference)
                }
                Err((error, reference)) => reply(Err(unreadable(&error)), reference),
            }
        };
        send(socket, &reply);
    }

    async fn carry_out(&self, socket: &Socket, request: Wanted) -> Result<Value, Problem> {
        match request {
            Wanted::Subscribe { rooms, last_id } => self.subscribe(socket, rooms, last_id).await,
            Wanted::Unsubscribe { rooms } => {
                // The server, not the client, decides about the room of its user.
                if rooms.iter().any(|room| room.starts_with(USER_ROOMS)) {
                    let detail = "a client stays in the room of its user";
                    return Err(Problem::new(Kind::Denied, detail));
                }
                socket.leave(rooms.as_slice());
                Ok(json!({ "type": "unsubscribed", "rooms": rooms }))
            }
            Wanted::Publish { room, publish } => {
                self.channels.check_rooms(1, std::slice::from_ref(&room))?;
                let caller = self.caller(socket);
                let stored = self
                    .channels
                    .store(&caller, &self.namespace, &room, publish)
                    .await?;
                let id = stored.id.to_string();
                Ok(json!({ "type": "published", "id": id, "time": stored.time }))
            }
            Wanted::Token { token } => {
                let auth = self.channels.doors.auth.as_ref();
                let auth = auth.filter(|_| matches!(self.caller(socket), Caller::User(_)));
                let Some(auth) = auth else {
                    let detail = "this client did not connect with a token";
                    return Err(Problem::new(Kind::Credentials, detail));
                };
                let known = auth.refresh(socket, &token).await;
                let known =
                    known.map_err(|error| Problem::new(Kind::Credentials, error.to_string()))?;
                Ok(json!({ "type": "token", "expires": known["expires"] }))
            }
            Wanted::Ping => Ok(json!({ "type": "pong" })),
        }
    }

    async fn subscribe(
        &self,
        socket: &Socket,
        rooms: Vec<String>,
        last_id: Option<u64>,
    ) -> Result<Value, Problem> {
        let before = socket.rooms();
        // Without those of the socket and its user.
        let own = socket.id().as_str();
        // The limit applies to the resulting number of rooms, so an existing subscription does not
        // count twice.
        let others = before
            .iter()
            .filter(|room| **room != own && !room.starts_with(USER_ROOMS) && !rooms.contains(room));
        self.channels
            .check_rooms(others.count() + rooms.len(), &rooms)?;
        let caller = self.caller(socket);
        for room in &rooms {
            let check = |action| self.channels.check(&caller, &self.namespace, action, room);
            check(Action::Join).await?;
            if last_id.is_some() {
                check(Action::History).await?;
            }
        }
        let joined = join_from(socket, &rooms, last_id).await;
        let newest = joined.inspect_err(|_| {
            // A room that was joined without its history would have gaps that the client
            // cannot see.
            let new = rooms.iter().filter(|room| !before.contains(room));
            new.for_each(|room| socket.leave(room.as_str()));
        })?;
        Ok(json!({ "type": "subscribed", "rooms": rooms, "last_id": newest.to_string() }))
    }

    fn caller(&self, socket: &Socket) -> Caller {
        Caller::of_socket(socket, self.key.as_ref())
    }
}

/// The reply to a frame: its result, or a problem as over HTTP.
fn reply(result: Result<Value, Problem>, reference: Option<String>) -> String {
    let result = result.unwrap_or_else(|problem| {
        let problem: Value = serde_json::from_slice(&problem.body()).unwrap_or_default();
        json!({ "type": "error", "problem": problem })
    });
    // The reference is passed on unchanged.
    let reference = reference.and_then(|reference| RawValue::from_string(reference).ok());
    serde_json::to_string(&Reply { result, reference }).unwrap_or_default()
}

#[derive(Serialize)]
struct Reply {
    #[serde(flatten)]
    result: Value,
    /// As text, because it may be a number that a JSON tree cannot hold.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    reference: Option<Box<RawValue>>,
}

/// Fails only if the client has disconnected.
fn send(socket: &Socket, text: &str) {
    drop(socket.send_text(text));
}
