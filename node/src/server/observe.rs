//! Observers of a server: events and rooms for an operator's tool, without handlers.
//!
//! Without observers, each place that could report reads one flag and builds nothing.
//! So a server that is never observed does not pay for it, unlike with
//! [`on_any_outgoing`](super::Namespace::on_any_outgoing), which looks up the recipients
//! of each broadcast.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::RwLock;
use roomcast_protocol::args::Args;

use super::{
    server::Server,
    socket::{DisconnectReason, Socket},
};

/// Something that has happened on this node.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Observation<'a> {
    /// A socket has connected. Handlers of the connect have not run yet.
    Connected {
        /// The socket.
        socket: &'a Socket,
    },
    /// A socket has disconnected. Its rooms are still known.
    Disconnected {
        /// The socket.
        socket: &'a Socket,
        /// Why.
        reason: DisconnectReason,
    },
    /// A socket has joined rooms in which it was not before.
    Joined {
        /// The socket.
        socket: &'a Socket,
        /// The rooms.
        rooms: &'a [Box<str>],
    },
    /// A socket has left rooms.
    Left {
        /// The socket.
        socket: &'a Socket,
        /// The rooms.
        rooms: &'a [Box<str>],
    },
    /// An event has arrived from a client. Middleware and handlers have not run yet.
    Received {
        /// The socket.
        socket: &'a Socket,
        /// The name of the event.
        event: &'a str,
        /// Its arguments.
        args: &'a Args,
    },
    /// An event of a client is being acknowledged.
    Acknowledged {
        /// The socket.
        socket: &'a Socket,
        /// The name of the event; empty if its handler has taken an [`Ack`](crate::Ack).
        event: &'a str,
        /// The arguments of the acknowledgement.
        args: &'a Args,
    },
    /// An event is being emitted to one socket.
    Emitted {
        /// The socket.
        socket: &'a Socket,
        /// The name of the event.
        event: &'a str,
        /// Its arguments.
        args: &'a Args,
    },
    /// An event was emitted to all selected sockets, by this node or by another one.
    Broadcast {
        /// The name of the namespace.
        namespace: &'a str,
        /// The selected rooms; none for the whole namespace.
        rooms: &'a [Box<str>],
        /// The rooms whose members are left out.
        except: &'a [Box<str>],
        /// The name of the event.
        event: &'a str,
        /// Its arguments.
        args: &'a Args,
        /// The number of sockets of this node that it was queued to.
        sockets: usize,
    },
}

impl Observation<'_> {
    /// Whether it is about sockets and their rooms, not about events.
    fn is_of_members(&self) -> bool {
        matches!(
            self,
            Self::Connected { .. }
                | Self::Disconnected { .. }
                | Self::Joined { .. }
                | Self::Left { .. }
        )
    }
}

type Observe = dyn Fn(Observation<'_>) + Send + Sync;

/// The observers of a server.
#[derive(Default)]
pub(crate) struct Observers {
    is_any: AtomicBool,
    is_any_of_events: AtomicBool,
    list: RwLock<Vec<Listed>>,
}

#[derive(Clone)]
struct Listed {
    observe: Arc<Observe>,
    /// Whether it is called for events as well.
    sees_events: bool,
}

impl Observers {
    /// Whether an observer follows sockets and their rooms.
    pub(super) fn is_any(&self) -> bool {
        self.is_any.load(Ordering::Relaxed)
    }

    /// Whether an observer follows events. Events around the moment of a change may be missed.
    pub(super) fn is_any_of_events(&self) -> bool {
        self.is_any_of_events.load(Ordering::Relaxed)
    }

    /// Calls the observers, without a lock.
    #[cold]
    pub(super) fn notify(&self, observation: Observation<'_>) {
        let observers = self.list.read().clone();
        for observer in observers {
            if observer.sees_events || observation.is_of_members() {
                (observer.observe)(observation);
            }
        }
    }

    fn add(self: &Arc<Self>, observe: Arc<Observe>, sees_events: bool) -> Observer {
        let own = Arc::clone(&observe);
        let mut list = self.list.write();
        list.push(Listed {
            observe,
            sees_events,
        });
        self.note(&list);
        Observer {
            observers: Arc::downgrade(self),
            own,
        }
    }

    fn note(&self, list: &[Listed]) {
        self.is_any.store(!list.is_empty(), Ordering::Relaxed);
        let sees_events = list.iter().any(|observer| observer.sees_events);
        self.is_any_of_events.store(sees_events, Ordering::Relaxed);
    }
}

/// An observer of a server. Dropping it ends the calls; it does not wait for a running call.
#[must_use = "the observer is removed when this is dropped"]
pub struct Observer {
    observers: Weak<Observers>,
    own: Arc<Observe>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        let Some(observers) = self.observers.upgrade() else {
            return;
        };
        let mut list = observers.list.write();
        list.retain(|other| !Arc::ptr_eq(&other.observe, &self.own));
        observers.note(&list);
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

impl Server {
    /// Calls a function for the activity of the sockets of this node, until the result is dropped.
    /// It is for tools that show an operator the activity of one client or room.
    ///
    /// The function runs inline, on the task that receives or emits and for all
    /// namespaces, so it must be short and must not emit, join or leave. While there is
    /// an observer, each event that is received is copied.
    ///
    /// ```
    /// # use roomcast::{Observation, Server};
    /// # fn run(io: &Server) {
    /// let observer = io.observe(|observation| {
    ///     if let Observation::Received { socket, event, .. } = observation {
    ///         println!("{} sends {event}", socket.id());
    ///     }
    /// });
    /// # drop(observer);
    /// # }
    /// ```
    pub fn observe(&self, observe: impl Fn(Observation<'_>) + Send + Sync + 'static) -> Observer {
        self.observers().add(Arc::new(observe), true)
    }

    /// The same for sockets and their rooms only: [`Connected`](Observation::Connected),
    /// [`Disconnected`](Observation::Disconnected), [`Joined`](Observation::Joined) and
    /// [`Left`](Observation::Left). Events cost the same as without an observer; each
    /// join and leave lists the rooms of its socket.
    pub fn observe_members(
        &self,
        observe: impl Fn(Observation<'_>) + Send + Sync + 'static,
    ) -> Observer {
        self.observers().add(Arc::new(observe), false)
    }
}
