//! The events of the page: names, members, typing and history.
//!
//! Messages themselves are those of the rooms of clients. A middleware sees them first
//! and keeps them, here and by a server-side event on the other nodes.

use std::sync::Arc;

use jsonwebtoken::get_current_timestamp;
use roomcast::{Event, Namespace, RemoteSocket, Socket};
use serde::Serialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::{
    Demo,
    history::{Profile, Said},
    nodes::Node,
};
use crate::gateway::{
    rooms::{self, RequestError},
    session::{self, SocketData},
};

/// Characters of a name.
const MAX_NAME: usize = 24;

/// Colours of the page.
const COLOURS: u8 = 8;

/// Adds the events to a namespace.
pub(super) fn with_events(namespace: Namespace, demo: &Arc<Demo>) -> Namespace {
    let [keeping, greeted, asked, told, found] = std::array::from_fn(|_| Arc::clone(demo));
    namespace
        // The handler of `message` is that of the rooms of clients, so the demo cannot
        // have one.
        .middleware(move |socket: Socket, event: Event| {
            let demo = Arc::clone(&keeping);
            async move {
                if event.name() == "message" {
                    demo.keep(&socket, &event).await;
                }
            }
        })
        .on("demo:hello", move |socket: Socket, profile: Profile| {
            let demo = Arc::clone(&greeted);
            async move { demo.greet(&socket, profile).await }
        })
        .on(
            "demo:room",
            move |socket: Socket, (room, with_history): (String, bool)| {
                let demo = Arc::clone(&asked);
                async move { rooms::acknowledge(demo.room(&socket, &room, with_history).await) }
            },
        )
        .on("demo:typing", async |socket: Socket, room: String| {
            if rooms::is_member(&socket, &room) {
                let notice = json!({ "room": room, "id": socket.id().to_string() });
                // A lost notice does no harm.
                let _ = socket.to(room).volatile().emit("demo:typing", notice).await;
            }
        })
        .on_server_side("demo:message", move |said: Said| {
            let demo = Arc::clone(&told);
            async move { demo.history.lock().add(said) }
        })
        .on_server_side("demo:node", move |node: Node| {
            let demo = Arc::clone(&found);
            async move { demo.nodes.hear(node) }
        })
}

impl Demo {
    /// Keeps a message that the rooms of clients will accept: one of a member.
    async fn keep(&self, socket: &Socket, event: &Event) {
        let Ok((room, data)) = event.decode::<(String, Box<RawValue>)>() else {
            return;
        };
        // Nobody else can be in the private room.
        if !rooms::is_member(socket, &room) || room == socket.id().to_string() {
            return;
        }
        let said = Said {
            room,
            from: socket.id().to_string(),
            profile: profile(socket),
            data,
            at: get_current_timestamp(),
        };
        self.history.lock().add(said.clone());
        // Nodes that cannot be reached have a gap in their history, as they miss the message.
        let others = socket.namespace();
        let _ = others.server_side_emit("demo:message", said).await;
    }

    /// Sets or changes a client's name, and returns its rooms.
    async fn greet(&self, socket: &Socket, profile: Profile) -> Value {
        let name = profile.name.unwrap_or_default();
        let name: String = name.trim().chars().take(MAX_NAME).collect();
        let colour = profile.colour.filter(|colour| *colour < COLOURS);
        let mut data = Map::new();
        data.insert("name".to_owned(), name.into());
        data.insert("colour".to_owned(), colour.into());
        session::set_data(socket, data);
        let shared = rooms::shared_rooms(socket);
        if !shared.is_empty() {
            let notice = Person {
                id: socket.id().to_string(),
                profile: self::profile(socket),
            };
            let _ = socket.to(shared).emit("demo:profile", notice).await;
        }
        json!({
            "node": self.nodes.own(),
            "nodes": self.nodes.others(),
        })
    }

    /// Returns the members of a room and, on request, its history.
    async fn room(
        &self,
        socket: &Socket,
        room: &str,
        with_history: bool,
    ) -> Result<Value, RequestError> {
        if !rooms::is_member(socket, room) {
            return Err(RequestError::new(format!("join {room} first")));
        }
        let members = rooms::fetch_members(socket, room).await?;
        let person = |member: &RemoteSocket| Person {
            id: member.id().to_string(),
            profile: member.data().unwrap_or_default(),
        };
        let people: Vec<_> = members.iter().map(person).collect();
        let history = with_history.then(|| self.history.lock().of(room));
        Ok(json!({ "people": people, "history": history }))
    }
}

/// The name and colour that the client has chosen.
fn profile(socket: &Socket) -> Profile {
    let data = socket.data::<SocketData>();
    let data = data.map(|data| Value::Object((*data.data).clone()));
    data.and_then(|data| serde_json::from_value(data).ok())
        .unwrap_or_default()
}

/// A member of a room.
#[derive(Serialize)]
struct Person {
    id: String,
    #[serde(flatten)]
    profile: Profile,
}
