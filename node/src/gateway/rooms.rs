//! Rooms for clients: events with which clients join, leave, list and message rooms, for demos and
//! for deployments without code on the server.
//!
//! The module uses the public API like any application. The namespace's policy and the client's
//! token control which rooms a client may use, and the acknowledgement contains the reason of a
//! refusal.
//!
//! ```text
//!  join ─► member already? ─ yes ─► acknowledged
//!              └─ no ─► policy, token ─► no socket's id? ─► joined ─► others notified ─► acknowledged
//! ```
//!
//! **Why names of sockets are refused.** Each socket is in a private room named by its id. A client
//! that joined the room of another one would receive that one's private messages.
//!
//! **Why errors are acknowledgements.** A client needs one kind of callback, and sees
//! the reason where it has asked.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::{Mutex, RwLock};
use roomcast::{Args, EmitError, Health, JoinError, Namespace, RemoteSocket, Server, Socket};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::{
    auth::User,
    object::Object,
    policy::{Action, Claims, RoomPolicy, USER_ROOMS},
    presence::{Kept, Page, Selected},
    private_names::{Privacy, PrivateNames},
    session,
};

/// The most users that the event `presence` lists.
/// `total` counts the others as well.
const MAX_USERS: usize = 1000;

/// The rooms of a namespace that its clients may use.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    /// A reload replaces it.
    policy: RwLock<Arc<RoomPolicy>>,
    private: PrivateNames,
}

impl Rooms {
    pub(crate) fn new(policy: RoomPolicy) -> Self {
        Self {
            policy: RwLock::new(Arc::new(policy)),
            private: PrivateNames::default(),
        }
    }

    /// Replaces the policy. Clients stay in the rooms that they have joined.
    pub(crate) fn set_policy(&self, policy: RoomPolicy) {
        *self.policy.write() = Arc::new(policy);
    }

    /// Refuses rooms that the policy and the token do not allow, and private rooms of sockets in
    /// any case.
    async fn check(&self, socket: &Socket, action: Action, room: &str) -> Result<(), RequestError> {
        let user = session::token_user(socket);
        self.check_policy(user.as_deref(), action, room)?;
        ordinary(self.private.check(socket, room).await?)
    }

    /// The same for a client that has no socket.
    pub(super) async fn check_for(
        &self,
        server: &Server,
        namespace: &str,
        user: Option<&User>,
        action: Action,
        room: &str,
    ) -> Result<(), RequestError> {
        self.check_policy(user, action, room)?;
        ordinary(self.private.check_in(server, namespace, room).await?)
    }

    fn check_policy(
        &self,
        user: Option<&User>,
        action: Action,
        room: &str,
    ) -> Result<(), RequestError> {
        if room.is_empty() {
            return Err(RequestError("a room needs a name".to_owned()));
        }
        let policy = Arc::clone(&self.policy.read());
        let is_allowed = match user {
            Some(user) => user.may(&policy, action, room),
            None => policy.may(action, room, &Claims::new()),
        };
        if is_allowed {
            return Ok(());
        }
        let verb = match action {
            Action::Join => "join",
            Action::Send => "send to",
            Action::History => "read the history of",
            Action::Presence => "list the members of",
        };
        Err(RequestError(format!("you may not {verb} {room}")))
    }
}

/// Refuses the private rooms of sockets.
fn ordinary(privacy: Privacy) -> Result<(), RequestError> {
    let reason = match privacy {
        Privacy::Ordinary => return Ok(()),
        Privacy::Private => "this name is a socket's id: choose another one",
        Privacy::Unknown => "this name may be a socket's id: try again later",
    };
    Err(RequestError(reason.to_owned()))
}

/// Adds the events to a namespace, which calls [`notify_leaving`] when a socket has disconnected.
pub(crate) fn with_rooms(namespace: Namespace, rooms: &Arc<Rooms>) -> Namespace {
    let [joining, asked, sending] = std::array::from_fn(|_| Arc::clone(rooms));
    namespace
        .on(
            "join",
            move |socket: Socket, (room, options): (String, Option<JoinOptions>)| {
                let rooms = Arc::clone(&joining);
                async move {
                    acknowledge(join(&rooms, &socket, &room, options.unwrap_or_default()).await)
                }
            },
        )
        .on(
            "leave",
            async |socket: Socket, (room, options): (String, Option<JoinOptions>)| {
                acknowledge(leave(&socket, &room, options.unwrap_or_default()).await)
            },
        )
        .on("rooms", async |socket: Socket| shared_rooms(&socket))
        .on("who", move |socket: Socket, room: String| {
            let rooms = Arc::clone(&asked);
            async move { acknowledge(who(&rooms, &socket, &room).await) }
        })
        .on(
            "message",
            move |socket: Socket, (room, data): (String, Box<RawValue>)| {
                let rooms = Arc::clone(&sending);
                async move { acknowledge(message(&rooms, &socket, &room, data).await) }
            },
        )
        .on("echo", async |_: Socket, payload: Args| payload)
}

/// Adds the event with which clients list the users of a room, in namespaces that have presence.
pub(crate) fn with_presence(
    namespace: Namespace,
    rooms: &Arc<Rooms>,
    presence: &Arc<Kept>,
) -> Namespace {
    let (rooms, presence) = (Arc::clone(rooms), Arc::clone(presence));
    namespace.on("presence", move |socket: Socket, room: String| {
        let (rooms, presence) = (Arc::clone(&rooms), Arc::clone(&presence));
        async move { acknowledge(online(&rooms, &presence, &socket, &room).await) }
    })
}

async fn online(
    rooms: &Rooms,
    presence: &Kept,
    socket: &Socket,
    room: &str,
) -> Result<Value, RequestError> {
    rooms.check(socket, Action::Presence, room).await?;
    let selected = Selected {
        rooms: vec![room],
        users: Vec::new(),
    };
    let page = Page {
        limit: MAX_USERS,
        ..Page::default()
    };
    let found = presence.users(Some(&selected), &page);
    let users = found.page.iter();
    let users =
        users.map(|online| json!({ "user": &*online.user, "sockets": online.sockets.len() }));
    Ok(json!({
        "room": room,
        "users": users.collect::<Vec<_>>(),
        "total": found.total,
        "is_complete": found.silent_nodes.is_empty(),
    }))
}

async fn join(
    rooms: &Rooms,
    socket: &Socket,
    room: &str,
    options: JoinOptions,
) -> Result<Value, RequestError> {
    if !is_member(socket, room) {
        rooms.check(socket, Action::Join, room).await?;
    }
    // Checked again after the await: a second `join` of the same client may have been
    // faster, and others must not be notified twice.
    if !is_member(socket, room) {
        socket.join(room)?;
        if !options.quiet {
            // Before the others are notified: a client that vanishes in between must
            // not stay on their screens.
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
    // The server, not the client, decides about the room of its user.
    if room.starts_with(USER_ROOMS) {
        return Err(RequestError(format!("you may not leave {room}")));
    }
    if is_member(socket, room) {
        socket.leave(room);
        if let Some(announced) = socket.attached::<Announced>() {
            announced.rooms.lock().remove(room);
        }
        if !options.quiet {
            notify(socket, room, "left").await?;
        }
    }
    Ok(json!({ "room": room }))
}

async fn who(rooms: &Rooms, socket: &Socket, room: &str) -> Result<Value, RequestError> {
    rooms.check(socket, Action::Presence, room).await?;
    Ok(json!(members(socket, room).await?))
}

async fn message(
    rooms: &Rooms,
    socket: &Socket,
    room: &str,
    data: Box<RawValue>,
) -> Result<Value, RequestError> {
    rooms.check(socket, Action::Send, room).await?;
    // A client cannot join the room of another user, and a policy that names it allows sending to
    // it.
    if !room.starts_with(USER_ROOMS) && !is_member(socket, room) {
        return Err(RequestError(format!("join {room} before you send to it")));
    }
    let message = Message {
        room,
        from: socket.id().to_string(),
        user: session::user(socket),
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
pub(crate) async fn notify_leaving(socket: &Socket) {
    let Some(announced) = socket.attached::<Announced>() else {
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
    let announced = socket.attached::<Announced>().unwrap_or_else(|| {
        socket.attach(Announced::default());
        socket.attached().unwrap_or_default()
    });
    announced.rooms.lock().insert(room.to_owned());
}

/// Notifies the other members of the room.
async fn notify(socket: &Socket, room: &str, event: &str) -> Result<(), RequestError> {
    let notice = Notice {
        room,
        id: socket.id().to_string(),
        user: session::user(socket),
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
    let found = fetch_members(socket, room).await?;
    let mut ids: Vec<_> = found.iter().map(|member| member.id().to_string()).collect();
    ids.sort();
    Ok(ids)
}

/// The members of a room in the cluster, or those of this node if other nodes cannot be reached.
pub(super) async fn fetch_members(
    socket: &Socket,
    room: &str,
) -> Result<Vec<RemoteSocket>, RequestError> {
    let everybody = socket.namespace().in_(room);
    let found = match everybody.clone().fetch_sockets().await {
        Err(EmitError::Bus(_)) => everybody.local().fetch_sockets().await?,
        found => found?,
    };
    Ok(found.sockets)
}

/// The rooms of a client without its private room.
pub(super) fn shared_rooms(socket: &Socket) -> Vec<String> {
    let own = socket.id().to_string();
    let mut rooms = socket.rooms();
    rooms.retain(|room| *room != own);
    rooms.sort();
    rooms
}

pub(super) fn is_member(socket: &Socket, room: &str) -> bool {
    socket.rooms().iter().any(|joined| joined == room)
}

/// Turns an error into an acknowledgement, so that a client needs one kind of callback.
pub(super) fn acknowledge(result: Result<Value, RequestError>) -> Value {
    result.unwrap_or_else(|RequestError(reason)| json!({ "error": reason }))
}

/// The reason why a request failed, written for the client's user.
#[derive(Debug)]
pub(super) struct RequestError(String);

impl RequestError {
    pub(super) fn new(reason: String) -> Self {
        Self(reason)
    }

    pub(super) fn into_reason(self) -> String {
        self.0
    }
}

impl From<JoinError> for RequestError {
    fn from(error: JoinError) -> Self {
        Self(error.to_string())
    }
}

impl From<EmitError> for RequestError {
    fn from(error: EmitError) -> Self {
        // The full text names servers, which clients must not see.
        Self(match error {
            EmitError::Bus(error) => error.outline().to_owned(),
            error => error.to_string(),
        })
    }
}

/// How a client enters or leaves a room.
#[derive(Default, Deserialize)]
#[serde(expecting = "an object", remote = "Self")]
struct JoinOptions {
    /// No other member is notified, and the acknowledgement does not list the members.
    /// Otherwise the cost of filling a room would grow with the square of its members.
    #[serde(default)]
    quiet: bool,
}

impl<'de> Deserialize<'de> for JoinOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(Object(deserializer))
    }
}

/// The rooms in which a client was announced. It is a member of each, so the limit of
/// rooms per socket bounds the set. A quiet client has none and needs no memory for it.
#[derive(Default)]
struct Announced {
    rooms: Mutex<BTreeSet<String>>,
}

#[derive(Serialize)]
struct Message<'a> {
    room: &'a str,
    from: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// Passed on as text, so that nothing in it changes.
    data: Box<RawValue>,
}

#[derive(Serialize)]
struct Notice<'a> {
    room: &'a str,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
}

#[cfg(test)]
mod tests {
    use roomcast::BusError;

    use super::*;

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
