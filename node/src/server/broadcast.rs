//! Broadcasts, and operations on all the sockets of a room.

use std::{sync::Arc, time::Duration};

use roomcast_adapter::JoinError;
use roomcast_emitter::{
    args::{FromArgs, IntoArgs},
    target::{Rooms, Target},
};
use serde::Serialize;

use super::{
    ack::Answers,
    error::{AckError, EmitError},
    remote_socket::{Fetched, RemoteSocket},
    socket::{Socket, check_event},
    space::Space,
};

/// How long a broadcast waits for acknowledgements if no timeout is given.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Who shall receive, and how. Made by [`Server::of`](super::Server::of), [`Socket::to`] and their
/// like; every method narrows or widens it, and the last one acts.
#[derive(Clone)]
#[must_use = "nothing happens until `emit` or another operation is called and awaited"]
pub struct BroadcastOperator {
    space: Result<Arc<Space>, Box<str>>,
    target: Target,
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

impl BroadcastOperator {
    pub(super) fn new(space: Arc<Space>) -> Self {
        Self {
            space: Ok(space),
            target: Target::default(),
        }
    }

    /// Operations answer that there is no such namespace.
    pub(super) fn unknown(name: &str) -> Self {
        Self {
            space: Err(name.into()),
            target: Target::default(),
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

    /// How long to wait for acknowledgements. Default 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.target.flags.timeout = Some(timeout);
        self
    }

    /// Emits an event to everybody who is meant, each once.
    ///
    /// When it resolves, the packet is in the outbox of every socket of this node; two emits that
    /// are awaited one after the other arrive in that order everywhere.
    pub async fn emit(self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        let space = self.space()?;
        check_event(event)?;
        let frame = space
            .parser
            .event(&space.name, None, event, &args.into_args()?)?;
        let local_sockets = space.adapter.fan_out(&self.target, &frame, |_| {});
        count(space, local_sockets);
        Ok(Delivery {
            local_sockets,
            nodes: 0,
        })
    }

    /// Emits an event and collects the acknowledgements until everybody has answered or the
    /// timeout is over. A timeout is no error: it says who is missing.
    pub async fn emit_with_ack<T: FromArgs>(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Answers<T>, AckError> {
        let space = self.space()?;
        check_event(event)?;
        let args = args.into_args().map_err(EmitError::Args)?;
        let (awaited, gathering) = space.acks.many();
        let frame = space
            .parser
            .event(&space.name, Some(awaited.id), event, &args)?;
        let recipients = space
            .adapter
            .fan_out(&self.target, &frame, |socket| gathering.expect(socket));
        count(space, recipients);
        gathering.seal();
        let limit = self.target.flags.timeout.unwrap_or(ACK_TIMEOUT);
        // Whether everybody answered or the time is over, what there is counts.
        let _ = tokio::time::timeout(limit, gathering.complete()).await;
        Ok(gathering.finish(|args| T::from_args(args)))
    }

    /// The sockets that are meant, with their rooms and data.
    pub async fn fetch_sockets(self) -> Result<Fetched, EmitError> {
        let sockets = self.local_sockets()?.iter().map(RemoteSocket::of).collect();
        Ok(Fetched {
            sockets,
            silent_nodes: Vec::new(),
        })
    }

    /// The ids of the sockets that are meant.
    pub async fn socket_ids(self) -> Result<Vec<roomcast_adapter::SocketId>, EmitError> {
        Ok(self
            .local_sockets()?
            .iter()
            .map(|socket| socket.id().clone())
            .collect())
    }

    /// Has everybody who is meant join rooms. The first socket that cannot join ends it with an
    /// error; the others have joined.
    pub async fn sockets_join(self, rooms: impl Rooms) -> Result<(), EmitError> {
        let mut refused = None;
        for socket in self.local_sockets()? {
            let names = RoomsOf(&rooms);
            match socket.join(names) {
                Ok(()) | Err(JoinError::Disconnected) => {}
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Has everybody who is meant leave rooms.
    pub async fn sockets_leave(self, rooms: impl Rooms) -> Result<(), EmitError> {
        for socket in self.local_sockets()? {
            socket.leave(RoomsOf(&rooms));
        }
        Ok(())
    }

    /// Disconnects everybody who is meant: from the namespace or, with `close`, altogether.
    pub async fn disconnect_sockets(self, close: bool) -> Result<(), EmitError> {
        for socket in self.local_sockets()? {
            socket.disconnect(close);
        }
        Ok(())
    }

    fn local_sockets(&self) -> Result<Vec<Socket>, EmitError> {
        let members = self.space()?.adapter.select(&self.target);
        Ok(members
            .into_iter()
            .map(Socket::from)
            .filter(Socket::is_connected)
            .collect())
    }

    fn space(&self) -> Result<&Arc<Space>, EmitError> {
        self.space
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

/// Lends rooms to several sockets.
struct RoomsOf<'a, R>(&'a R);

impl<R: Rooms> Rooms for RoomsOf<'_, R> {
    fn each(&self, f: &mut dyn FnMut(&str)) {
        self.0.each(f);
    }
}

fn count(space: &Space, recipients: usize) {
    let metrics = &space.hub.metrics;
    metrics.broadcasts.inc();
    metrics.deliveries.inc_by(recipients as u64);
}
