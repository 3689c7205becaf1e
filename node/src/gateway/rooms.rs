//! Rooms for clients: events with which clients join, leave, list and message rooms, for demos and
//! for deployments without code on the server.
//!
//! The module uses the public API like any application. Every client may enter every room, so rooms
//! that need permissions need handlers of their own.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use roomcast::{Args, DisconnectReason, EmitError, Health, JoinError, Namespace, Socket};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

/// Adds the events to a namespace.
pub(crate) fn open(namespace: Namespace) -> Namespace {
    namespace
        .on(
            "join",
            async |socket: Socket, (room, options): (String, Option<JoinOptions>)| {
                acknowledge(join(&socket, &room, options.unwrap_or_default()).await)
            },
        )
        .on(
            "leave",
            async |socket: Socket, (room, options): (String, Option<JoinOptions>)| {
                acknowledge(leave(&socket, &room, options.unwrap_or_default()).await)
            },
        )
        .on("rooms", async |socket: Socket| shared_rooms(&socket))
        .on("who", async |socket: Socket, room: String| {
            acknowledge(who(&socket, &room).await)
        })
        .on(
            "message",
            async |socket: Socket, (room, data): (String, Box<RawValue>)| {
                acknowledge(message(&socket, &room, data).await)
            },
        )
        .on("echo", async |_: Socket, payload: Args| payload)
        .on_disconnect(async |socket: Socket, _: DisconnectReason| notify_leaving(&socket).await)
}

async fn join(socket: &Socket, room: &str, options: JoinOptions) -> Result<Value, RequestError> {
    check_name(room)?;
    if !is_member(socket, room) {
        socket.join(room)?;
        if !options.quiet {
            announce(socket, room);
        }
        // Messages of other nodes must reach the client once its join is acknowledged. While other
        // nodes cannot be reached, the client does not wait for them.
        if socket
            .server()
            .is_some_and(|server| server.health() == Health::Flowing)
        {
            ignore_unreachable_nodes(socket.join_confirmed(room).await)?;
        }
        if !options.quiet {
            notify(socket, room, "joined").await?;
        }
    }
    if options.quiet {
        return Ok(json!({ "room": room }));
    }
    Ok(json!({ "room": room, "members": members(socket, room).await? }))
}

async fn leave(socket: &Socket, room: &str, options: JoinOptions) -> Result<Value, RequestError> {
    check_name(room)?;
    if is_member(socket, room) {
        socket.leave(room);
        if let Some(announced) = socket.data::<Announced>() {
            announced.rooms.lock().remove(room);
        }
        if !options.quiet {
            notify(socket, room, "left").await?;
        }
    }
    Ok(json!({ "room": room }))
}

async fn who(socket: &Socket, room: &str) -> Result<Value, RequestError> {
    check_name(room)?;
    Ok(json!(members(socket, room).await?))
}

async fn message(socket: &Socket, room: &str, data: Box<RawValue>) -> Result<Value, RequestError> {
    check_name(room)?;
    if !is_member(socket, room) {
        return Err(RequestError(format!("join {room} before you send to it")));
    }
    let message = Message {
        room,
        from: socket.id().to_string(),
        data,
    };
    let delivery = socket
        .namespace()
        .in_(room)
        .emit("message", message)
        .await?;
    Ok(json!(delivery.local_sockets))
}

/// Notifies the rooms in which a client was announced that it has left.
async fn notify_leaving(socket: &Socket) {
    let Some(announced) = socket.data::<Announced>() else {
        return;
    };
    let rooms = std::mem::take(&mut *announced.rooms.lock());
    for room in rooms {
        if let Err(RequestError(reason)) = notify(socket, &room, "left").await {
            tracing::debug!(reason, "could not notify a room of a client that left");
        }
    }
}

/// Remembers that a room was notified of a client, and so must be notified when it leaves.
fn announce(socket: &Socket, room: &str) {
    let announced = socket.data::<Announced>().unwrap_or_else(|| {
        socket.set_data(Announced::default());
        socket.data().unwrap_or_default()
    });
    announced.rooms.lock().insert(room.to_owned());
}

/// Notifies the other members of the room.
async fn notify(socket: &Socket, room: &str, event: &str) -> Result<(), RequestError> {
    let notice = Notice {
        room,
        id: socket.id().to_string(),
    };
    ignore_unreachable_nodes(socket.to(room).emit(event, notice).await)
}

/// Ignores unreachable nodes: rooms continue to work among the clients of this node.
fn ignore_unreachable_nodes<T>(done: Result<T, EmitError>) -> Result<(), RequestError> {
    match done {
        Err(EmitError::Bus(error)) => {
            tracing::debug!(%error, "other nodes may not have been notified of a client");
            Ok(())
        }
        done => done.map(drop).map_err(RequestError::from),
    }
}

async fn members(socket: &Socket, room: &str) -> Result<Vec<String>, RequestError> {
    let everybody = socket.namespace().in_(room);
    let found = match everybody.clone().fetch_sockets().await {
        Err(EmitError::Bus(_)) => everybody.local().fetch_sockets().await?,
        found => found?,
    };
    let mut ids: Vec<_> = found
        .sockets
        .iter()
        .map(|member| member.id().to_string())
        .collect();
    ids.sort();
    Ok(ids)
}

/// The rooms of a client without its private room.
fn shared_rooms(socket: &Socket) -> Vec<String> {
    let own = socket.id().to_string();
    let mut rooms = socket.rooms();
    rooms.retain(|room| *room != own);
    rooms.sort();
    rooms
}

fn is_member(socket: &Socket, room: &str) -> bool {
    socket.rooms().iter().any(|joined| joined == room)
}

/// Refuses names that have the form of a socket's id. Each socket has a private room of that name, and
/// another member would receive messages that are meant for that socket.
fn check_name(room: &str) -> Result<(), RequestError> {
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if room.is_empty() {
        return Err(RequestError("a room needs a name".to_owned()));
    }
    if room.len() == SOCKET_ID_BYTES && room.bytes().all(is_id_byte) {
        let reason = "this name has the form of a socket's id: make it longer or shorter";
        return Err(RequestError(reason.to_owned()));
    }
    Ok(())
}

/// Turns an error into an acknowledgement, so that a client needs one kind of callback.
fn acknowledge(result: Result<Value, RequestError>) -> Value {
    result.unwrap_or_else(|RequestError(reason)| json!({ "error": reason }))
}

/// The reason why a request failed, written for the client's user.
struct RequestError(String);

impl From<JoinError> for RequestError {
    fn from(error: JoinError) -> Self {
        Self(error.to_string())
    }
}

impl From<EmitError> for RequestError {
    fn from(error: EmitError) -> Self {
        // The full text names servers, which clients must not learn.
        Self(match error {
            EmitError::Bus(error) => error.outline().to_owned(),
            error => error.to_string(),
        })
    }
}

/// How a client enters or leaves a room.
#[derive(Default, Deserialize)]
struct JoinOptions {
    /// No other member is notified, and the acknowledgement does not list the members. Otherwise the
    /// cost of filling a room would grow with the square of its members.
    #[serde(default)]
    quiet: bool,
}

/// The rooms in which a client was announced. It is a member of each, so the limit of rooms per socket
/// bounds the set. A quiet client has none and needs no memory for it.
#[derive(Default, Serialize)]
struct Announced {
    /// Not visible to other nodes.
    #[serde(skip)]
    rooms: Mutex<BTreeSet<String>>,
}

#[derive(Serialize)]
struct Message<'a> {
    room: &'a str,
    from: String,
    /// Passed on as text, so that nothing in it changes.
    data: Box<RawValue>,
}

#[derive(Serialize)]
struct Notice<'a> {
    room: &'a str,
    id: String,
}

const SOCKET_ID_BYTES: usize = 20;

#[cfg(test)]
mod tests {
    use roomcast::BusError;

    use super::*;

    #[test]
    fn a_private_room_cannot_be_named() {
        assert!(check_name("AbCd0123456789_-xyzA").is_err());
        assert!(check_name("AbCd0123456789_-xyz").is_ok());
        assert!(check_name("a room with spaces 2").is_ok());
        assert!(check_name("").is_err());
        assert!(check_name("lobby").is_ok());
    }

    #[test]
    fn a_room_goes_on_where_other_nodes_cannot_be_reached() {
        let down = || BusError::Unavailable("10.0.0.1:6379 refuses".into());
        assert!(ignore_unreachable_nodes(Err::<(), _>(down().into())).is_ok());
        assert!(ignore_unreachable_nodes(Err::<(), _>(EmitError::Disconnected)).is_err());
        assert!(ignore_unreachable_nodes(Ok::<_, EmitError>(1)).is_ok());
        let RequestError(reason) = EmitError::Bus(down()).into();
        assert_eq!(reason, "other nodes cannot be reached");
    }

    #[test]
    fn a_refusal_is_an_answer() {
        assert_eq!(
            acknowledge(Err(RequestError("no".to_owned()))),
            json!({ "error": "no" })
        );
        assert_eq!(acknowledge(Ok(json!(3))), json!(3));
    }
}
