//! The handlers of one connection that wait for something.
//!
//! Every handler is polled once in the turn in which it starts, and most are done by
//! then. Each of the others becomes a [`Task`] here. The connection's driver polls all tasks of
//! its client, so a handler needs no task of the runtime, and its result is written in a
//! turn like any other reply.
//!
//! While the number of running tasks is at [`Limits::events_in_flight`](crate::Limits), or the bytes
//! of their events are at [`Limits::inbox_bytes`](crate::Limits), further events wait in a separate
//! queue, in order. Nothing else waits with them: a handler may be
//! waiting for an acknowledgement or the end of its own client, so these must still be read.
//!
//! ```text
//! EVENT ──┬─ below the limit ────────────────► handler ── ready ──► reply
//!         │                                       │
//!         └─ at the limit ──► held ── a task ends ┘   pending ──► task ──► reply
//! ACK, DISCONNECT, pong, end of the connection: at once
//! ```

use std::{
    borrow::Cow,
    collections::VecDeque,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use roomcast_adapter::SocketId;
use roomcast_protocol::socket_io::packet::Packet;

use super::{
    data::Data,
    error::{Failed, HandlerError},
    handler::{Answer, Answering, BoxFuture},
    live_namespace::LiveNamespace,
    recovery::Restored,
    socket::Socket,
};
use crate::{
    close::Limit,
    transport::{config::Limits, handshake::Handshake},
};

/// A handler at work.
pub(super) enum Task {
    /// The handler of an event, whose result is the client's acknowledgement, or of a connect, a
    /// disconnect or any event, whose result no client waits for.
    Handler {
        socket: Socket,
        /// Owned if it is the name of an event.
        name: Cow<'static, str>,
        id: Option<u64>,
        /// The size of the event, if this handles one.
        bytes: usize,
        future: Answering,
    },
    /// The decision whether a client may connect.
    Admission {
        namespace: Arc<LiveNamespace>,
        handshake: Handshake,
        /// The id that the socket will have.
        socket: SocketId,
        future: BoxFuture<Result<Admitted, HandlerError>>,
    },
}

/// The decision about a client that may connect.
#[derive(Default)]
pub(super) struct Admitted {
    /// The value that becomes the socket's data.
    pub(super) data: Option<Arc<dyn Data>>,
    /// The session that the client resumes.
    pub(super) restored: Option<Box<Restored>>,
    /// No decision was made, because the client's session cannot be read. The client has to
    /// reconnect.
    pub(super) is_postponed: bool,
}

/// The outcome of a [`Task`].
pub(super) enum Done {
    Handler {
        socket: Socket,
        name: Cow<'static, str>,
        id: Option<u64>,
        result: Result<Answer, Failed>,
    },
    Admission {
        namespace: Arc<LiveNamespace>,
        handshake: Handshake,
        socket: SocketId,
        admission: Result<Admitted, HandlerError>,
    },
    /// A handler of this socket panicked.
    HandlerPanicked(Socket),
    /// The decision about a connect to this namespace panicked.
    AdmissionPanicked(Arc<LiveNamespace>),
}

impl Task {
    /// The outcome of a panic of this task, also of one before its future existed.
    fn panicked(&self) -> Done {
        match self {
            Self::Handler { socket, .. } => Done::HandlerPanicked(socket.clone()),
            Self::Admission { namespace, .. } => Done::AdmissionPanicked(Arc::clone(namespace)),
        }
    }

    /// The size of the event, which the handler may keep in memory while it runs.
    fn bytes(&self) -> usize {
        match self {
            Self::Handler { bytes, .. } => *bytes,
            Self::Admission { .. } => 0,
        }
    }

    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        Poll::Ready(match self {
            Self::Handler {
                socket,
                name,
                id,
                future,
                ..
            } => Done::Handler {
                result: ready!(future.as_mut().poll(cx)),
                socket: socket.clone(),
                name: std::mem::take(name),
                id: *id,
            },
            Self::Admission {
                namespace,
                handshake,
                socket,
                future,
            } => Done::Admission {
                admission: ready!(future.as_mut().poll(cx)),
                namespace: Arc::clone(namespace),
                handshake: handshake.clone(),
                socket: socket.clone(),
            },
        })
    }
}

impl Future for Task {
    /// The outcome, and the size of the event.
    type Output = (Done, usize);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = catch_unwind(AssertUnwindSafe(|| self.poll_done(cx)));
        let done = ready!(polled.unwrap_or_else(|_| Poll::Ready(self.panicked())));
        Poll::Ready((done, self.bytes()))
    }
}

/// The running and held tasks of a client. It exists only while it is not empty, so that an idle
/// connection owns no set of tasks.
#[derive(Default)]
pub(super) struct InFlight {
    tasks: FuturesUnordered<Task>,
    /// The size of the events of all tasks.
    running_bytes: usize,
    /// Namespaces whose [`Admission`] is among the tasks.
    connecting: Vec<Arc<str>>,
    /// Namespaces that the server has disconnected. The client may not know yet, so its packets for
    /// them are ignored instead of closing the connection.
    left: Vec<Arc<str>>,
    held: VecDeque<Held>,
    held_bytes: usize,
}

/// An event that waits for its turn.
pub(super) struct Held {
    pub(super) socket: Socket,
    pub(super) packet: Packet<'static>,
}

impl Held {
    /// Its size in memory, roughly.
    fn bytes(&self) -> usize {
        size_of::<Self>() + event_bytes(&self.packet)
    }
}

/// The size of an event's arguments.
pub(super) fn event_bytes(packet: &Packet<'_>) -> usize {
    let attachments: usize = packet.attachments.iter().map(Bytes::len).sum();
    packet.data.len() + attachments
}

impl InFlight {
    /// Queues an event after those that are held.
    pub(super) fn hold(&mut self, socket: Socket, packet: &Packet<'_>) {
        let packet = packet.clone().into_owned();
        let held = Held { socket, packet };
        self.held_bytes += held.bytes();
        self.held.push_back(held);
    }

    /// Takes the first held event if it can run.
    pub(super) fn release(&mut self, limits: &Limits) -> Option<Held> {
        let first = self.held.front()?;
        if self.reached(&first.packet, limits).is_some() {
            return None;
        }
        let held = self.held.pop_front()?;
        self.held_bytes -= held.bytes();
        Some(held)
    }

    /// The limit because of which an event has to wait.
    pub(super) fn has_to_wait(&self, packet: &Packet<'_>, limits: &Limits) -> Option<Limit> {
        let Some(first) = self.held.front() else {
            return self.reached(packet, limits);
        };
        // Events keep their order.
        let reached = self.reached(&first.packet, limits);
        Some(reached.unwrap_or(Limit::EventsInFlight))
    }

    /// The limit because of which an event cannot run beside the tasks. One that is larger than the
    /// limit can run alone.
    fn reached(&self, packet: &Packet<'_>, limits: &Limits) -> Option<Limit> {
        if self.tasks.len() >= limits.events_in_flight {
            return Some(Limit::EventsInFlight);
        }
        let is_over =
            self.running_bytes > 0 && self.running_bytes + event_bytes(packet) > limits.inbox_bytes;
        is_over.then_some(Limit::Inbox)
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Drops the held events of a socket that the server has disconnected.
    pub(super) fn drop_held(&mut self, socket: &Socket) {
        self.held.retain(|held| !held.socket.same(socket));
        self.held_bytes = self.held.iter().map(Held::bytes).sum();
    }

    pub(super) fn push(&mut self, task: Task) {
        if let Task::Admission { namespace, .. } = &task {
            self.connecting.push(Arc::clone(&namespace.name));
        }
        self.running_bytes += task.bytes();
        self.tasks.push(task);
    }

    /// The next task that is done; `None` when there are no tasks.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Done>> {
        let done = ready!(self.tasks.poll_next_unpin(cx));
        Poll::Ready(done.map(|(done, bytes)| {
            self.running_bytes -= bytes;
            done
        }))
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        let is_done = self.tasks.is_empty() && self.held.is_empty();
        is_done && self.connecting.is_empty() && self.left.is_empty()
    }

    pub(super) fn connecting(&self) -> usize {
        self.connecting.len()
    }

    /// Drops the decision about a connect to this namespace, and returns the namespace.
    pub(super) fn withdraw(&mut self, nsp: &str) -> Option<Arc<LiveNamespace>> {
        self.connecting.iter().position(|name| **name == *nsp)?;
        self.decided(nsp);
        let mut withdrawn = None;
        // The tasks that stay are polled once more, which they have to expect at any time.
        let tasks = std::mem::take(&mut self.tasks).into_iter();
        self.tasks = tasks
            .filter_map(|task| match task {
                Task::Admission { namespace, .. } if *namespace.name == *nsp => {
                    withdrawn = Some(namespace);
                    None
                }
                task => Some(task),
            })
            .collect();
        withdrawn
    }

    /// The decision about a connect has been made.
    pub(super) fn decided(&mut self, nsp: &str) {
        self.connecting.retain(|name| **name != *nsp);
    }

    pub(super) fn has_left(&self, nsp: &str) -> bool {
        self.left.iter().any(|name| **name == *nsp)
    }

    /// Remembers the latest `limit` namespaces that the server has disconnected.
    pub(super) fn remember_left(&mut self, nsp: &Arc<str>, limit: usize) {
        if self.left.len() >= limit {
            self.left.remove(0);
        }
        self.left.push(Arc::clone(nsp));
    }

    pub(super) fn forget_left(&mut self, nsp: &str) {
        self.left.retain(|name| **name != *nsp);
    }

    pub(super) fn forget_all_left(&mut self) {
        self.left.clear();
    }
}
