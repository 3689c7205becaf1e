//! Broadcasts, and operations on all the sockets of a room.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join;
use roomcast_adapter::{Answer, Once, Position, Question, SocketId};
use roomcast_protocol::{
    args::{Args, ArgsError, FromArgs, IntoArgs},
    message::{Broadcast, Message},
    receipt::{Receipt, fingerprint},
    target::{Rooms, Target},
};

use super::{
    ack::Answers,
    cluster::{names, resolve},
    error::{AckError, EmitError},
    live_namespace::LiveNamespace,
    remote_socket::{Fetched, RemoteSocket},
    socket::{Socket, check_event},
};

/// How long to wait for acknowledgements and for other nodes by default.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Extra time for another node's answer, beyond that of its sockets.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// A selection of sockets, and an operation on them.
///
/// [`Server::of`](super::Server::of), [`Socket::to`](super::Socket::to) and similar
/// methods make one. Each method refines the selection; the last one, such as
/// [`emit`](Self::emit), acts on it.
///
/// ```
/// # use std::time::Duration;
/// # use roomcast::{EmitError, Server};
/// # async fn run(io: Server) -> Result<(), EmitError> {
/// io.to("news").to("sport").except("muted").emit("headline", "It rains").await?;
/// io.in_("user:7").disconnect_sockets(true).await?;
/// let members = io.in_("news").timeout(Duration::from_secs(1)).fetch_sockets().await?;
/// # drop(members);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "nothing happens until `emit` or another operation is called and awaited"]
pub struct BroadcastOperator {
    namespace: Result<Arc<LiveNamespace>, Box<str>>,
    target: Target,
    visit: Option<Arc<Visit>>,
    once: Option<(Box<str>, Duration)>,
}

/// Keeps a dynamic namespace alive that may have no client on this node.
pub(super) struct Visit(Arc<LiveNamespace>);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The result of a broadcast.
///
/// As the result of a handler it becomes no argument: clients must not see the number of sockets
/// and nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// The number of sockets of this node whose outbox accepted the packet. 0 in a namespace with a
    /// [journal](super::Namespace::journal), whose sockets of all nodes receive it from there.
    pub local_sockets: usize,
    /// The number of other nodes that received the message. The number of their sockets is not
    /// known; [`emit_with_ack`](BroadcastOperator::emit_with_ack) asks each client.
    pub nodes: usize,
    /// Its place in the journal of the namespace, if it was stored there.
    pub position: Option<Position>,
    /// Whether this is the result of an earlier emit with the same idempotency key, so that nothing
    /// was sent now.
    pub is_replayed: bool,
}

impl From<Delivery> for Receipt {
    fn from(delivery: Delivery) -> Self {
        let mut receipt = Self::new(delivery.position, delivery.nodes);
        receipt.is_replayed = delivery.is_replayed;
        receipt
    }
}

impl IntoArgs for Delivery {
    fn into_args(self) -> Result<Args, ArgsError> {
        Ok(Args::default())
    }
}

/// The rooms of a namespace that have members.
///
/// ```
/// # use roomcast::{EmitError, Server};
/// # async fn run(io: Server) -> Result<(), EmitError> {
/// let all = io.of("/").rooms().await?;
/// let chats = all.rooms.iter().filter(|room| room.starts_with("chat:")).count();
/// println!("{chats} chats; no response from {:?}", all.silent_nodes);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AllRooms {
    /// The names, sorted and distinct. They include the private rooms of sockets, whose names are
    /// the sockets' ids.
    pub rooms: Vec<String>,
    /// Nodes of the cluster that did not answer in time.
    pub silent_nodes: Vec<String>,
}

impl BroadcastOperator {
    pub(super) fn new(namespace: Arc<LiveNamespace>) -> Self {
        Self::of(Ok(namespace))
    }

    fn of(namespace: Result<Arc<LiveNamespace>, Box<str>>) -> Self {
        Self {
            namespace,
            target: Target::default(),
            visit: None,
            once: None,
        }
    }

    /// For a namespace that was entered for this operation and is left after it.
    pub(super) fn visiting(namespace: Arc<LiveNamespace>) -> Self {
        Self {
            visit: Some(Arc::new(Visit(Arc::clone(&namespace)))),
            ..Self::new(namespace)
        }
    }

    /// Every operation fails with [`EmitError::UnknownNamespace`].
    pub(super) fn unknown(name: &str) -> Self {
        Self::of(Err(name.into()))
    }

    /// Adds rooms. A socket in several of them receives the event once.
    pub fn to(mut self, rooms: impl Rooms) -> Self {
        self.target.add_rooms(rooms);
        self
    }

    /// The same as [`to`](Self::to).
    pub fn in_(self, rooms: impl Rooms) -> Self {
        self.to(rooms)
    }

    /// Excludes the sockets in these rooms.
    pub fn except(mut self, rooms: impl Rooms) -> Self {
        self.target.add_except(rooms);
        self
    }

    /// Allows dropping the packet for clients whose transport cannot be written right now.
    pub fn volatile(mut self) -> Self {
        self.target.flags.volatile = true;
        self
    }

    /// Makes the client of each socket acknowledge the event: the handler of the official client
    /// receives a function as its last argument, and calls it when it has handled the event. A
    /// client that lost its connection before it did so receives the event again when it [comes
    /// back](super::Namespace::recovery), on any node, even after its node was killed. So it may
    /// receive an event twice, and should check an id in the arguments.
    ///
    /// The namespace needs [`Recovery::at_least_once`](super::Recovery::at_least_once); without it,
    /// [`emit`](Self::emit) fails with [`EmitError::AtLeastOnce`]. Acknowledgements are not returned. Clients that
    /// cannot come back, those of revision 3 and of plain connections, and those of Node.js servers receive the event at
    /// most once. [`Limits::unacknowledged_events`](crate::Limits::unacknowledged_events) limits
    /// the events that are kept for a client that does not acknowledge.
    ///
    /// ```
    /// # use roomcast::{EmitError, Server};
    /// # async fn run(io: Server) -> Result<(), EmitError> {
    /// io.to("kitchen").at_least_once().emit("order", (17, "soup")).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn at_least_once(mut self) -> Self {
        self.target.flags.at_least_once = true;
        self
    }

    /// Fails if the event must be emitted at least once but cannot be.
    fn check_at_least_once(&self, is_awaited: bool) -> Result<(), EmitError> {
        let flags = &self.target.flags;
        if !flags.at_least_once {
            return Ok(());
        }
        Err(EmitError::AtLeastOnce(if is_awaited {
            "its acknowledgements are awaited, so it is not in the journal"
        } else if flags.volatile || flags.local {
            "it is volatile or local, so it is not in the journal"
        } else if !self.live()?.delivers_at_least_once() {
            "the namespace needs recovery with `at_least_once` turned on"
        } else {
            return Ok(());
        }))
    }

    /// Selects only sockets of this node.
    pub fn local(mut self) -> Self {
        self.target.flags.local = true;
        self
    }

    /// Has no effect; accepted because ported code calls it.
    pub fn compress(mut self, compress: bool) -> Self {
        self.target.flags.compress = Some(compress);
        self
    }

    /// Sets how long to wait for acknowledgements and for other nodes. Default 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.target.flags.timeout = Some(timeout);
        self
    }

    /// Emits the event once, however often it is emitted with this key within `time`: by
    /// this server, by another one of the cluster, by an
    /// [emitter](crate::emitter::BroadcastOperator::idempotency_key), or over the HTTP
    /// API. Later emits return the result of the first one, with
    /// [`Delivery::is_replayed`].
    ///
    /// The sockets of this node receive the event like those of others, after Redis has accepted
    /// it, so [`Delivery::local_sockets`] is 0. If the emit fails, no socket receives it, except
    /// that with [`BusError::Unconfirmed`](crate::BusError::Unconfirmed) all may. A retry with the
    /// same key is then safe. Keys belong to a namespace, and are kept in Redis, or in memory
    /// without it. Applies to [`emit`](Self::emit) and [`emit_confirmed`](Self::emit_confirmed),
    /// which fail with [`BusError::KeyReused`](crate::BusError::KeyReused) if another event, other
    /// arguments, other rooms or other flags (`volatile`, `local`, `at_least_once`) had the key.
    pub fn idempotency_key(mut self, key: &str, time: Duration) -> Self {
        self.once = Some((key.into(), time));
        self
    }

    async fn broadcast(
        &self,
        event: &str,
        args: Args,
        once: Option<Once>,
    ) -> Result<(Delivery, Option<Receipt>), EmitError> {
        self.check_at_least_once(false)?;
        let (namespace, target) = (self.live()?, self.target.clone());
        let Some(once) = once else {
            let delivery = namespace.broadcast(target, event, args).await?;
            return Ok((delivery, None));
        };
        self.await_subscription().await;
        let event = event.into();
        let broadcast = Broadcast {
            target,
            event,
            args,
        };
        namespace.broadcast_once(broadcast, once).await
    }

    fn once(&self, event: &str, args: &Args) -> Option<Once> {
        let (key, lifetime) = self.once.clone()?;
        Some(Once {
            key,
            lifetime,
            fingerprint: fingerprint(&self.target, event, args).into(),
        })
    }

    /// Emits an event to the selected sockets, once to each.
    ///
    /// Its arguments nest at most [`Limits::json_depth`](crate::Limits::json_depth) deep,
    /// with their list as the first level, because other nodes refuse deeper arguments, as they do
    /// from a client.
    ///
    /// When it resolves, the packet is in the outbox of every selected socket of this node. Two
    /// emits that are awaited one after the other arrive in that order everywhere.
    ///
    /// In a namespace with a [journal](super::Namespace::journal), it resolves when the
    /// event is stored, and the sockets of all nodes, this one included, receive it in
    /// the order of the journal. Events that are [`volatile`](Self::volatile) or
    /// [`local`](Self::local) are not stored.
    ///
    /// # Errors
    ///
    /// [`EmitError::Args`] if the arguments cannot be encoded or nest too deeply.
    /// [`EmitError::AtLeastOnce`] if it must be emitted [at least once](Self::at_least_once) but
    /// cannot be. [`EmitError::Bus`] if other nodes may not have been reached; the sockets of this
    /// node get the packet nevertheless. With a journal, no socket receives it, except that with
    /// [`BusError::Unconfirmed`](crate::BusError::Unconfirmed) all may.
    pub async fn emit(self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        let namespace = self.live()?;
        check_event(event)?;
        let args = namespace.encode(args)?;
        let once = self.once(event, &args);
        let (delivery, _) = self.broadcast(event, args, once).await?;
        Ok(delivery)
    }

    /// Emits an event and asks all nodes how many sockets it reached.
    ///
    /// A node counts its selected sockets right after it received the event, so a
    /// socket that connects or leaves at this moment may be counted or not. A node that
    /// does not respond within the [timeout](Self::timeout) is listed as silent; it is unknown
    /// whether its sockets received the event.
    ///
    /// # Errors
    ///
    /// [`EmitError::Bus`] if other nodes may not have been reached or cannot be asked; the sockets
    /// of this node get the packet nevertheless.
    pub async fn emit_confirmed(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Receipt, EmitError> {
        let namespace = self.live()?;
        check_event(event)?;
        let args = namespace.encode(args)?;
        self.await_subscription().await;
        let once = self.once(event, &args);
        let (delivery, first) = self.broadcast(event, args, once.clone()).await?;
        if delivery.is_replayed {
            // How many sockets it reached then cannot be asked now.
            let mut receipt = first.unwrap_or_else(|| delivery.into());
            receipt.is_replayed = true;
            return Ok(receipt);
        }
        let question = Question::SocketIds(self.target.clone());
        let asked = resolve(namespace.ask(&self.target, question, self.answer_timeout())).await?;
        let is_echoed = delivery.position.is_some() || self.once.is_some();
        let local = match is_echoed {
            false => delivery.local_sockets,
            true => namespace.local_sockets(&self.target).len(),
        };
        let mut receipt = Receipt::new(delivery.position, asked.answers.len() + 1);
        receipt.sockets = Some(local + asked.answers.iter().map(Answer::reached).sum::<usize>());
        receipt.silent_nodes = asked.silent_names();
        if let Some(once) = once {
            let kept = receipt.clone();
            namespace.keep_receipt(&self.target, once, kept).await;
        }
        Ok(receipt)
    }

    /// Emits an event and collects acknowledgements until all have arrived or the
    /// [timeout](Self::timeout) has passed. A timeout is not an error: the result lists the missing
    /// sockets.
    ///
    /// # Errors
    ///
    /// [`EmitError::Bus`] if other nodes cannot be asked. [`local`](Self::local) asks none.
    pub async fn emit_with_ack<T: FromArgs>(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Answers<T>, AckError> {
        let namespace = self.live()?;
        check_event(event)?;
        self.check_at_least_once(true)?;
        let args = namespace.encode(args).map_err(EmitError::Args)?;
        self.await_subscription().await;
        let timeout = self.answer_timeout();
        let question = Question::Acks {
            target: self.target.clone(),
            event: event.into(),
            args: args.clone(),
            timeout,
        };
        let asked = namespace.ask(&self.target, question, timeout + ANSWER_GRACE);
        let local = namespace.collect_acks(&self.target, event, &args, timeout, None);
        let (local, asked) = join(local, resolve(asked)).await;
        let asked = asked?;
        let mut answers = Answers {
            nodes: asked.answers.len() + 1,
            silent_nodes: asked.silent_names(),
            ..Answers::default()
        };
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
        Ok(answers)
    }

    /// Returns the selected sockets with their rooms and data.
    ///
    /// # Errors
    ///
    /// [`EmitError::Bus`] if other nodes cannot be asked. [`local`](Self::local) asks none.
    pub async fn fetch_sockets(self) -> Result<Fetched, EmitError> {
        let namespace = self.live()?;
        self.await_subscription().await;
        let question = Question::Sockets(self.target.clone());
        let asked = namespace.ask(&self.target, question, self.answer_timeout());
        let mut found = namespace.describe(&self.target);
        let asked = resolve(asked).await?;
        let silent_nodes = asked.silent_names();
        for answer in asked.answers {
            if let Answer::Sockets(sockets) = answer {
                found.extend(sockets);
            }
        }
        let remote = |description| RemoteSocket::new(description, Arc::clone(namespace));
        Ok(Fetched {
            sockets: found.into_iter().map(remote).collect(),
            silent_nodes,
        })
    }

    /// Returns the rooms of the namespace that have members, including private rooms, as
    /// Node.js servers do. With [`local`](Self::local), only those with members on this
    /// node. Fails if rooms or exceptions were named.
    pub async fn rooms(self) -> Result<AllRooms, EmitError> {
        let namespace = self.for_servers()?;
        self.await_subscription().await;
        let asked = namespace.ask(&self.target, Question::Rooms, self.answer_timeout());
        let mut rooms: BTreeSet<_> = namespace.adapter.all_room_names().into_iter().collect();
        let asked = resolve(asked).await?;
        let silent_nodes = asked.silent_names();
        for answer in asked.answers {
            if let Answer::Rooms(names) = answer {
                rooms.extend(names);
            }
        }
        Ok(AllRooms {
            rooms: rooms.into_iter().map(String::from).collect(),
            silent_nodes,
        })
    }

    /// Returns the ids of the selected sockets. Nodes that do not respond are left out.
    pub async fn socket_ids(self) -> Result<Vec<SocketId>, EmitError> {
        let fetched = self.fetch_sockets().await?;
        let ids = fetched.sockets.iter().map(|socket| socket.id().clone());
        Ok(ids.collect())
    }

    /// Returns the socket with this id, if it is in the namespace and connected to this node. Rooms
    /// and exceptions make no difference.
    pub fn socket(&self, id: &str) -> Option<Socket> {
        let mut target = Target::default();
        target.add_rooms(id);
        let sockets = self.live().ok()?.local_sockets(&target);
        // A room may have the name of an id, so others may be in it.
        sockets
            .into_iter()
            .find(|socket| socket.id().as_str() == id)
    }

    /// Returns the selected sockets of this node, without asking others. Returns none if
    /// the namespace does not exist.
    pub fn local_sockets(&self) -> Vec<Socket> {
        let namespace = self.live().ok();
        namespace.map_or_else(Vec::new, |namespace| namespace.local_sockets(&self.target))
    }

    /// Makes the selected sockets join rooms. Fails if a socket of this node cannot; the
    /// others have joined.
    pub async fn sockets_join(self, rooms: impl Rooms) -> Result<(), EmitError> {
        let (target, rooms) = (self.target.clone(), names(&rooms));
        let message = Message::SocketsJoin { target, rooms };
        self.live()?.command(message).await
    }

    /// Makes the selected sockets leave rooms.
    pub async fn sockets_leave(self, rooms: impl Rooms) -> Result<(), EmitError> {
        let (target, rooms) = (self.target.clone(), names(&rooms));
        let message = Message::SocketsLeave { target, rooms };
        self.live()?.command(message).await
    }

    /// Disconnects the selected sockets from the namespace. With `close`, closes their connections.
    pub async fn disconnect_sockets(self, close: bool) -> Result<(), EmitError> {
        let target = self.target.clone();
        let message = Message::DisconnectSockets { target, close };
        self.live()?.command(message).await
    }

    /// Called before a question, because a namespace that was just created may not be subscribed.
    pub(super) async fn await_subscription(&self) {
        if let Some(Visit(namespace)) = self.visit.as_deref() {
            namespace.listening().await;
        }
    }

    /// The namespace, for an operation on servers instead of sockets.
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

    pub(super) fn live(&self) -> Result<&Arc<LiveNamespace>, EmitError> {
        self.namespace()
            .map_err(|name| EmitError::UnknownNamespace(name.into()))
    }

    /// The namespace, or the name that is unknown.
    pub(super) fn namespace(&self) -> Result<&Arc<LiveNamespace>, &str> {
        self.namespace.as_ref().map_err(|name| &**name)
    }

    /// Keeps the namespace alive.
    pub(super) fn visit(&self) -> Option<Arc<Visit>> {
        self.visit.clone()
    }
}

impl std::fmt::Debug for BroadcastOperator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BroadcastOperator")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}
