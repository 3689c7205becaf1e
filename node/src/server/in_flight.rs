//! The handlers of one connection that wait for something.
//!
//! Every handler is polled once in the turn in which it starts, and most are done by then. What is
//! left becomes a [`Task`] here. The connection's driver polls all tasks of its client, so a handler
//! needs no task of the runtime, and its result is written in a turn like any other reply.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::{
    handler::{Admission, BoxFuture, HandlerError, Reply},
    live_namespace::LiveNamespace,
    socket::Socket,
};
use crate::transport::handshake::Handshake;

/// A handler at work.
pub(super) enum Task {
    /// The handler of an event, whose result is the client's acknowledgement.
    Event {
        socket: Socket,
        id: Option<u64>,
        future: BoxFuture<Result<Reply, HandlerError>>,
    },
    /// A handler whose result nobody waits for: of a connect, a disconnect, or any event.
    Hook {
        socket: Socket,
        future: BoxFuture<()>,
    },
    /// The decision whether a client may connect.
    Admission {
        namespace: Arc<LiveNamespace>,
        handshake: Handshake,
        future: BoxFuture<Admission>,
    },
}

/// What became of a [`Task`].
pub(super) enum Done {
    Event {
        socket: Socket,
        id: Option<u64>,
        result: Result<Reply, HandlerError>,
    },
    Hook,
    Admission {
        namespace: Arc<LiveNamespace>,
        handshake: Handshake,
        admission: Admission,
    },
    /// A handler of this socket panicked.
    HandlerPanicked(Socket),
    /// The decision about a connect to this namespace panicked.
    AdmissionPanicked(Arc<LiveNamespace>),
}

impl Task {
    /// What a panic of this task, also before its future existed, comes to.
    fn panicked(&self) -> Done {
        match self {
            Self::Event { socket, .. } | Self::Hook { socket, .. } => {
                Done::HandlerPanicked(socket.clone())
            }
            Self::Admission { namespace, .. } => Done::AdmissionPanicked(Arc::clone(namespace)),
        }
    }

    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        Poll::Ready(match self {
            Self::Event { socket, id, future } => Done::Event {
                result: ready!(future.as_mut().poll(cx)),
                socket: socket.clone(),
                id: *id,
            },
            Self::Hook { future, .. } => {
                ready!(future.as_mut().poll(cx));
                Done::Hook
            }
            Self::Admission {
                namespace,
                handshake,
                future,
            } => Done::Admission {
                admission: ready!(future.as_mut().poll(cx)),
                namespace: Arc::clone(namespace),
                handshake: handshake.clone(),
            },
        })
    }
}

impl Future for Task {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        catch_unwind(AssertUnwindSafe(|| self.poll_done(cx)))
            .unwrap_or_else(|_| Poll::Ready(self.panicked()))
    }
}

/// What a client has in progress. It exists while it holds something, since an idle connection
/// shall own no set of tasks.
#[derive(Default)]
pub(super) struct InFlight {
    tasks: FuturesUnordered<Task>,
    /// Namespaces whose [`Admission`] is among the tasks.
    connecting: Vec<Arc<str>>,
    /// Namespaces that the server has disconnected. The client may not know yet, so its packets for
    /// them are ignored instead of closing the connection.
    left: Vec<Arc<str>>,
}

impl InFlight {
    pub(super) fn push(&mut self, task: Task) {
        if let Task::Admission { namespace, .. } = &task {
            self.connecting.push(Arc::clone(&namespace.name));
        }
        self.tasks.push(task);
    }

    /// The next task that is done; `None` when there are no tasks.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Done>> {
        self.tasks.poll_next_unpin(cx)
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.connecting.is_empty() && self.left.is_empty()
    }

    pub(super) fn connecting(&self) -> usize {
        self.connecting.len()
    }

    pub(super) fn is_connecting(&self, nsp: &str) -> bool {
        self.connecting.iter().any(|name| **name == *nsp)
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
