//! Broadcasts, and operations on all the sockets of a room.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join;
use roomcast_adapter::{Answer, Answered, BusError, BusFuture, Question, SocketId};
use roomcast_protocol::{
    args::{FromArgs, IntoArgs},
    message::Message,
    target::{Rooms, Target},
};
use serde::Serialize;

use super::{
    ack::Answers,
    cluster::names,
    error::{AckError, EmitError},
    live_namespace::LiveNamespace,
    remote_socket::{Fetched, RemoteSocket},
    socket::check_event,
};

/// How long acknowledgements and the answers of other nodes are waited for if nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How much longer than its sockets another node has for its answer.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// Who shall receive, and how. Made by [`Server::of`](super::Server::of),
/// [`Socket::to`](super::Socket::to) and their like; every method narrows or widens it, and the
/// last one acts.
#[derive(Clone)]
#[must_use = "nothing happens until `emit` or another operation is called and awaited"]
pub struct BroadcastOperator {
    namespace: Result<Arc<LiveNamespace>, Box<str>>,
    target: Target,
    visit: Option<Arc<Visit>>,
}

/// The use of a dynamic namespace that has no client on this node: it exists for as long.
struct Visit(Arc<LiveNamespace>);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// What became of a broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Delivery {
    /// Sockets of this node to which it was queued.
    pub local_sockets: usize,
    /// Other nodes that took it.
    pub nodes: usize,
}

/// The rooms that have members.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AllRooms {
    /// The names, sorted, each once. The private rooms of sockets, named by their ids, are among
    /// them.
    pub rooms: Vec<String>,
    /// Nodes of the cluster that did not answer in time.
    pub silent_nodes: Vec<String>,
}

impl BroadcastOperator {
    pub(super) fn new(namespace: Arc<LiveNamespace>) -> Self {
        Self {
            namespace: Ok(namespace),
            target: Target::default(),
            visit: None,
        }
    }

    /// Of a namespace that was entered for this operation, and is left after it.
    pub(super) fn visiting(namespace: Arc<LiveNamespace>) -> Self {
        Self {
            visit: Some(Arc::new(Visit(Arc::clone(&namespace)))),
            ..Self::new(namespace)
        }
    }

    /// Operations answer that there is no such namespace.
    pub(super) fn unknown(name: &str) -> Self {
        Self {
            namespace: Err(name.into()),
            target: Target::default(),
            visit: None,
        }
    }

    /// Adds rooms. With several, whoever is in any of them receives, once.
    pub fn to(mut self, rooms: impl Rooms) -> Self {
        self.target.add_rooms(rooms);
        self
    }

    /// Adds rooms; the same as [`to`](Self::to).
    pub fn in_(self, rooms: impl Rooms) -> Self {
        self.to(rooms)
    }

    /// Leaves out whoever is in one of these rooms.
    pub fn except(mut self, rooms: impl Rooms) -> Self {
        self.target.add_except(rooms);
        self
    }

    /// Drops the packet for clients whose transport cannot be written right now.
    pub fn volatile(mut self) -> Self {
        self.target.flags.volatile = true;
        self
    }

    /// Only sockets of this node.
    pub fn local(mut self) -> Self {
        self.target.flags.local = true;
        self
    }

    /// A wish about compressing the packet; accepted for the sake of ported code.
    pub fn compress(mut self, compress: bool) -> Self {
        self.target.flags.compress = Some(compress);
        self
    }

    /// How long to wait for acknowledgements and for the answers of other nodes. Default 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.target.flags.timeout = Some(timeout);
        self
    }

    /// Emits an event to everybody who is meant, each once.
    ///
    /// When it resolves, the packet is in the outbox of every socket of this node; two emits that
    /// are awaited one after the other arrive in that order everywhere.
    pub async fn emit(self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        let namespace = self.live()?;
        check_event(event)?;
        let args = args.into_args()?;
        namespace.broadcast(self.target.clone(), event, args).await
    }

    /// Emits an event and collects the acknowledgements until everybody has answered or the
    /// timeout is over. A timeout is no error: it says who is missing. If the question cannot be
    /// put to other nodes, that is the error; with [`local`](Self::local) nobody else is asked.
    pub async fn emit_with_ack<T: FromArgs>(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Answers<T>, AckError> {
        let namespace = self.live()?;
        check_event(event)?;
        let args = args.into_args().map_err(EmitError::Args)?;
        self.hear_answers().await;
        let timeout = self.answer_timeout();
        let question = Question::Acks {
            target: self.target.clone(),
            event: event.into(),
            args: args.clone(),
            timeout,
        };
        let asked = namespace.ask(&self.target, question, timeout + ANSWER_GRACE);
        let local = namespace.collect_acks(&self.target, event, &args, timeout, None);
        let (local, asked) = join(local, answered(asked)).await;
        let asked = asked?;
        let mut answers = Answers::default();
        for answer in [local?].into_iter().chain(asked.answers) {
            if let Answer::Acks {
                answers: given,
                missing,
                missing_unnamed,
            } = answer
            {
                answers.add(given, missing, missing_unnamed);
            }
        }
        answers.silent_nodes = asked.silent.iter().map(ToString::to_string).collect();
        Ok(answers)
    }

    /// The sockets that are meant, with their rooms and data. If the question cannot be put to
    /// other nodes, that is the error; with [`local`](Self::local) nobody else is asked.
    pub async fn fetch_sockets(self) -> Result<Fetched, EmitError> {
        let namespace = self.live()?;
        self.hear_answers().await;
        let question = Question::Sockets(self.target.clone());
        let asked = namespace.ask(&self.target, question, self.answer_timeout());
        let mut found = namespace.describe(&self.target);
        let asked = answered(asked).await?;
        for answer in asked.answers {
            if let Answer::Sockets(sockets) = answer {
                found.extend(sockets);
            }
        }
        let remote = |description| RemoteSocket::new(description, Arc::clone(namespace));
        Ok(Fetched {
            sockets: found.into_iter().map(remote).collect(),
            silent_nodes: asked.silent.iter().map(ToString::to_string).collect(),
        })
    }

    /// The rooms of the namespace that have members, the private rooms of sockets included, as
    /// with Node's servers. With [`local`](Self::local), those with members on this node. Rooms
    /// and exceptions are refused.
    pub async fn rooms(self) -> Result<AllRooms, EmitError> {
        let namespace = self.for_servers()?;
        self.hear_answers().await;
        let asked = namespace.ask(&self.target, Question::Rooms, self.answer_timeout());
        let mut rooms: BTreeSet<_> = namespace.adapter.all_room_names().into_iter().collect();
        let asked = answered(asked).await?;
        for answer in asked.answers {
            if let Answer::Rooms(names) = answer {
                rooms.extend(names);
            }
        }
        Ok(AllRooms {
            rooms: rooms.into_iter().map(String::from).collect(),
            silent_nodes: asked.silent.iter().map(ToString::to_string).collect(),
        })
    }

    /// The ids of the sockets that are meant, of those nodes that answer.
    pub async fn socket_ids(self) -> Result<Vec<SocketId>, EmitError> {
        let fetched = self.fetch_sockets().await?;
        let ids = fetched.sockets.iter().map(|socket| socket.id().clone());
        Ok(ids.collect())
    }

    /// Has everybody who is meant join rooms. If a socket of this node cannot, that is the error;
    /// the others have joined.
    pub async fn sockets_join(self, rooms: impl Rooms) -> Result<(), EmitError> {
        let (target, rooms) = (self.target.clone(), names(&rooms));
        let message = Message::SocketsJoin { target, rooms };
        self.live()?.command(message).await
    }

    /// Has everybody who is meant leave rooms.
    pub async fn sockets_leave(self, rooms: impl Rooms) -> Result<(), EmitError> {
        let (target, rooms) = (self.target.clone(), names(&rooms));
        let message = Message::SocketsLeave { target, rooms };
        self.live()?.command(message).await
    }

    /// Disconnects everybody who is meant: from the namespace or, with `close`, altogether.
    pub async fn disconnect_sockets(self, close: bool) -> Result<(), EmitError> {
        let target = self.target.clone();
        let message = Message::DisconnectSockets { target, close };
        self.live()?.command(message).await
    }

    /// Before a question: a namespace that has just been made may not hear the answers yet.
    pub(super) async fn hear_answers(&self) {
        if let Some(Visit(namespace)) = self.visit.as_deref() {
            namespace.listening().await;
        }
    }

    /// The namespace, for an operation that is not about sockets.
    pub(super) fn for_servers(&self) -> Result<&Arc<LiveNamespace>, EmitError> {
        if self.target.rooms.is_empty() && self.target.except.is_empty() {
            self.live()
        } else {
            Err(EmitError::RoomsOfServers)
        }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// How long to wait for answers.
    pub(super) fn answer_timeout(&self) -> Duration {
        self.target.flags.timeout.unwrap_or(TIMEOUT)
    }

    fn live(&self) -> Result<&Arc<LiveNamespace>, EmitError> {
        self.namespace
            .as_ref()
            .map_err(|name| EmitError::UnknownNamespace(name.clone()))
    }
}

impl std::fmt::Debug for BroadcastOperator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BroadcastOperator")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

pub(super) async fn answered(
    asked: Option<BusFuture<Result<Answered, BusError>>>,
) -> Result<Answered, EmitError> {
    match asked {
        Some(asked) => Ok(asked.await?),
        None => Ok(Answered::default()),
    }
}
