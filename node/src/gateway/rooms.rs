//! Rooms for clients: the events with which clients join, leave, look around and talk by
//! themselves, for demos and for programs that need no code on the server.
//!
//! Written on the public API like any application's handlers. Whoever connects may enter any
//! room; what needs permission needs handlers of its own.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use roomcast::{Args, DisconnectReason, EmitError, Health, JoinError, Namespace, Socket};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Adds the events to a namespace.
pub(crate) fn open(namespace: Namespace) -> Namespace {
    namespace
        .on(
            "join",
            async |socket: Socket, (room, manner): (String, Option<Manner>)| {
                answer(join(&socket, &room, manner.unwrap_or_default()).await)
            },
        )
        .on(
            "leave",
            async |socket: Socket, (room, manner): (String, Option<Manner>)| {
                answer(leave(&socket, &room, manner.unwrap_or_default()).await)
            },
        )
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
        .on("echo", async |_: Socket, payload: Args| payload)
        .on_disconnect(async |socket: Socket, _: DisconnectReason| farewell(&socket).await)
}

async fn join(socket: &Socket, room: &str, manner: Manner) -> Result<Value, Refusal> {
    check_name(room)?;
    if !is_member(socket, room) {
        socket.join(room)?;
        if !manner.quiet {
            announce(socket, room);
        }
        // Other nodes may talk to the room as soon as the client has its answer. While they cannot
        // be reached, the client does not wait for them.
        if socket
            .server()
            .is_some_and(|server| server.health() == Health::Flowing)
        {
            here_at_least(socket.join_confirmed(room).await)?;
        }
        if !manner.quiet {
            notice(socket, room, "joined").await?;
        }
    }
    if manner.quiet {
        return Ok(json!({ "room": room }));
    }
    Ok(json!({ "room": room, "members": members(socket, room).await? }))
}

async fn leave(socket: &Socket, room: &str, manner: Manner) -> Result<Value, Refusal> {
    check_name(room)?;
    if is_member(socket, room) {
        socket.leave(room);
        if let Some(announced) = socket.data::<Announced>() {
            announced.rooms.lock().remove(room);
        }
        if !manner.quiet {
            notice(socket, room, "left").await?;
        }
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

/// Tells the rooms in which a client was announced that it is gone.
async fn farewell(socket: &Socket) {
    let Some(announced) = socket.data::<Announced>() else {
        return;
    };
    let rooms = std::mem::take(&mut *announced.rooms.lock());
    for room in rooms {
        if let Err(Refusal(reason)) = notice(socket, &room, "left").await {
            tracing::debug!(reason, "a room did not hear of a client that left");
        }
    }
}

/// Remembers that a room was told of a client, and so has to be told when it is gone.
fn announce(socket: &Socket, room: &str) {
    let announced = socket.data::<Announced>().unwrap_or_else(|| {
        socket.set_data(Announced::default());
        socket.data().unwrap_or_default()
    });
    announced.rooms.lock().insert(room.to_owned());
}

/// Tells the others in the room, not the client itself.
async fn notice(socket: &Socket, room: &str, event: &str) -> Result<(), Refusal> {
    let notice = Notice {
        room,
        id: socket.id().to_string(),
    };
    here_at_least(socket.to(room).emit(event, notice).await)
}

/// While other nodes cannot be reached, rooms go on among the clients of this one.
fn here_at_least<T>(done: Result<T, EmitError>) -> Result<(), Refusal> {
    match done {
        Err(EmitError::Bus(error)) => {
            tracing::debug!(%error, "other nodes may not know of a client");
            Ok(())
        }
        done => done.map(drop).map_err(Refusal::from),
    }
}

async fn members(socket: &Socket, room: &str) -> Result<Vec<String>, Refusal> {
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

impl From<JoinError> for Refusal {
    fn from(error: JoinError) -> Self {
        Self(error.to_string())
    }
}

impl From<EmitError> for Refusal {
    fn from(error: EmitError) -> Self {
        // The reason names servers, which are no business of clients.
        Self(match error {
            EmitError::Bus(error) => error.outline().to_owned(),
            error => error.to_string(),
        })
    }
}

/// How a client enters or leaves a room.
#[derive(Default, Deserialize)]
struct Manner {
    /// Nobody is told, and the answer does not name the members: a room of thousands would cost
    /// their square to fill.
    #[serde(default)]
    quiet: bool,
}

/// The rooms in which a client was announced, each of which it is in: so there are no more than a
/// socket may join. Kept for those alone who are, so that a quiet client needs no memory for it.
#[derive(Default, Serialize)]
struct Announced {
    /// Nobody else's business, on other nodes either.
    #[serde(skip)]
    rooms: Mutex<BTreeSet<String>>,
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
        assert!(here_at_least(Err::<(), _>(down().into())).is_ok());
        assert!(here_at_least(Err::<(), _>(EmitError::Disconnected)).is_err());
        assert!(here_at_least(Ok::<_, EmitError>(1)).is_ok());
        let Refusal(reason) = EmitError::Bus(down()).into();
        assert_eq!(reason, "other nodes cannot be reached");
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
