//! Rooms for clients: the events with which clients join, leave, look around and talk by
//! themselves, for demos and for programs that need no code on the server.
//!
//! Written on the public API like any application's handlers. Whoever connects may enter any
//! room; what needs permission needs handlers of its own.

use roomcast::{DisconnectReason, Namespace, Socket};
use serde::Serialize;
use serde_json::{Value, json};

/// Adds the events to a namespace.
pub(crate) fn open(namespace: Namespace) -> Namespace {
    namespace
        .on("join", async |socket: Socket, room: String| {
            answer(join(&socket, &room).await)
        })
        .on("leave", async |socket: Socket, room: String| {
            answer(leave(&socket, &room).await)
        })
        .on("rooms", async |socket: Socket| shared_rooms(&socket))
        .on("who", async |socket: Socket, room: String| {
            answer(who(&socket, &room).await)
        })
        .on(
            "message",
            async |socket: Socket, (room, data): (String, Value)| {
                answer(message(&socket, &room, data).await)
            },
        )
        .on_disconnect(async |socket: Socket, _: DisconnectReason| farewell(&socket).await)
}

async fn join(socket: &Socket, room: &str) -> Result<Value, Refusal> {
    check_name(room)?;
    if !is_member(socket, room) {
        socket.join(room)?;
        notice(socket, room, "joined").await?;
    }
    Ok(json!({ "room": room, "members": members(socket, room).await? }))
}

async fn leave(socket: &Socket, room: &str) -> Result<Value, Refusal> {
    check_name(room)?;
    if is_member(socket, room) {
        socket.leave(room);
        notice(socket, room, "left").await?;
    }
    Ok(json!({ "room": room }))
}

async fn who(socket: &Socket, room: &str) -> Result<Value, Refusal> {
    check_name(room)?;
    Ok(json!(members(socket, room).await?))
}

async fn message(socket: &Socket, room: &str, data: Value) -> Result<Value, Refusal> {
    check_name(room)?;
    if !is_member(socket, room) {
        return Err(Refusal(format!("join {room} before you send to it")));
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

/// Tells the rooms of a client that it is gone.
async fn farewell(socket: &Socket) {
    for room in shared_rooms(socket) {
        if let Err(Refusal(reason)) = notice(socket, &room, "left").await {
            tracing::debug!(reason, "a room did not hear of a client that left");
        }
    }
}

/// Tells the others in the room, not the client itself.
async fn notice(socket: &Socket, room: &str, event: &str) -> Result<(), Refusal> {
    let notice = Notice {
        room,
        id: socket.id().to_string(),
    };
    socket.to(room).emit(event, notice).await?;
    Ok(())
}

async fn members(socket: &Socket, room: &str) -> Result<Vec<String>, Refusal> {
    let found = socket.namespace().in_(room).fetch_sockets().await?;
    let mut ids: Vec<_> = found
        .sockets
        .iter()
        .map(|member| member.id().to_string())
        .collect();
    ids.sort();
    Ok(ids)
}

/// The rooms of a client without its own, private one.
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

/// Refuses names that could be a socket's id: each socket has a private room of that name, and
/// whoever joined it would read what is meant for that socket alone.
fn check_name(room: &str) -> Result<(), Refusal> {
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if room.is_empty() {
        return Err(Refusal("a room needs a name".to_owned()));
    }
    if room.len() == SOCKET_ID_BYTES && room.bytes().all(is_id_byte) {
        let reason = "this name could be a socket's id: make it longer or shorter";
        return Err(Refusal(reason.to_owned()));
    }
    Ok(())
}

/// A refusal is an answer like any other, so that a client needs one kind of callback.
fn answer(result: Result<Value, Refusal>) -> Value {
    result.unwrap_or_else(|Refusal(reason)| json!({ "error": reason }))
}

/// Why a request was not met, in words for a person.
struct Refusal(String);

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

#[derive(Serialize)]
struct Message<'a> {
    room: &'a str,
    from: String,
    data: Value,
}

#[derive(Serialize)]
struct Notice<'a> {
    room: &'a str,
    id: String,
}

const SOCKET_ID_BYTES: usize = 20;

#[cfg(test)]
mod tests {
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
    fn a_refusal_is_an_answer() {
        assert_eq!(
            answer(Err(Refusal("no".to_owned()))),
            json!({ "error": "no" })
        );
        assert_eq!(answer(Ok(json!(3))), json!(3));
    }
}
