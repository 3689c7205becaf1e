//! Follows single clients in the log: all that they do, while everybody else is logged as
//! configured.
//!
//! A client is named by the id of its connection or of a socket, by its user, or by its
//! address. The lines come from an [observer](Server::observe), which exists only while
//! somebody is named, so that following costs nothing otherwise. They have a separate target,
//! [`TARGET`], which the filter of the log lets through at level debug; at level trace they show
//! arguments, too.
//!
//! The names come from the settings, so a reload is enough to follow a connected client; a restart
//! would end its connection.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use roomcast::{Args, Handshake, Observation, Observer, Server, Socket, SocketId};
use tracing::{Level, debug, enabled, trace};

use super::{
    config::Config,
    reload::{Preparing, Reloadable, prepared},
    session,
    values::OrOff,
};

/// The target of the lines, as it appears in their texts.
pub(super) const TARGET: &str = "roomcast::client";

/// Bytes of arguments that a line shows.
/// A message may be as large as a payload, and the log is for reading.
const MAX_ARGS: usize = 1024;

/// Rooms that a line names.
const MAX_ROOMS: usize = 32;

/// Parses the name of a client to follow.
pub(crate) fn client_name(text: &str) -> Result<String, String> {
    match text.trim() {
        name if !name.is_empty() && !name.contains(char::is_control) => Ok(name.to_owned()),
        _ => Err("expected `off`, an id, a user or an address".to_owned()),
    }
}

/// Whether any client is followed.
pub(crate) fn is_any(names: &[OrOff<String>]) -> bool {
    names.iter().any(|name| name.0.is_some())
}

/// The clients that are followed. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct FollowedClients(Arc<Inner>);

#[derive(Default)]
struct Inner {
    // Read at every connect and event of a hook, so it must not cost a lock.
    is_any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: Vec<String>,
    /// By id. Sockets that have been recognised.
    sockets: HashMap<SocketId, Socket>,
    observer: Option<Observer>,
}

impl FollowedClients {
    /// Replaces the clients that are followed. Connected clients are found at once.
    pub(crate) fn set(&self, server: &Server, names: &[OrOff<String>]) {
        let names = names.iter().filter_map(|name| name.0.clone());
        let names: Vec<_> = names.collect();
        let is_any = !names.is_empty();
        let mut state = self.0.state.lock();
        state.names = names;
        let others = std::mem::take(&mut state.sockets);
        let before = state.observer.take();
        self.0.is_any.store(is_any, Ordering::Relaxed);
        if is_any {
            let clients = self.clone();
            state.observer = Some(server.observe(move |observation| clients.log(observation)));
            let (clients, server) = (self.clone(), server.clone());
            tokio::spawn(async move { clients.look_for(&server).await });
        }
        drop(state);
        // Without the lock: dropping an observer or the last handle of a socket may run
        // other code.
        drop((others, before));
    }

    /// Recognises the clients that are connected already.
    async fn look_for(&self, server: &Server) {
        for name in server.namespaces() {
            let namespace = server.of(&name);
            // Only a namespace that was dropped meanwhile fails.
            let ids = namespace
                .clone()
                .local()
                .socket_ids()
                .await
                .unwrap_or_default();
            for socket in ids.iter().filter_map(|id| namespace.socket(id.as_str())) {
                if self.knows(&socket) {
                    debug!(target: TARGET, client = ?Client(&socket), rooms = ?rooms(&socket.rooms()), "following a socket");
                }
            }
        }
    }

    /// Whether a client is followed that asks to connect, by its names so far.
    pub(crate) fn is_asking(&self, handshake: &Handshake, ids: &[Option<&str>]) -> bool {
        self.0.is_any.load(Ordering::Relaxed)
            && is_named(&self.0.state.lock().names, ids, handshake)
    }

    /// Whether a socket is followed.
    pub(crate) fn is_followed(&self, socket: &Socket) -> bool {
        self.0.is_any.load(Ordering::Relaxed)
            && self.0.state.lock().sockets.contains_key(socket.id())
    }

    /// The same, for a socket that may be new.
    fn knows(&self, socket: &Socket) -> bool {
        let user = session::user(socket);
        let mut state = self.0.state.lock();
        if state.sockets.contains_key(socket.id()) {
            return true;
        }
        let ids = [
            Some(socket.id().as_str()),
            Some(socket.connection_id()),
            user.as_deref(),
        ];
        let is_named = is_named(&state.names, &ids, socket.handshake());
        // A disconnected socket would stay in the table for ever.
        if is_named && socket.is_connected() {
            state.sockets.insert(socket.id().clone(), socket.clone());
        }
        is_named
    }

    fn log(&self, observation: Observation<'_>) {
        match observation {
            Observation::Connected { socket } if self.knows(socket) => {
                let (connection, transport) = (socket.connection_id(), socket.transport());
                let agent = socket.handshake().header("user-agent");
                let agent = agent.as_deref();
                debug!(target: TARGET, client = ?Client(socket), connection, transport, agent, "connected");
            }
            Observation::Disconnected { socket, reason } if self.knows(socket) => {
                let rooms = socket.rooms();
                debug!(target: TARGET, client = ?Client(socket), %reason, rooms = ?self::rooms(&rooms), "disconnected");
                let gone = self.0.state.lock().sockets.remove(socket.id());
                drop(gone);
            }
            Observation::Joined { socket, rooms } if self.knows(socket) => {
                debug!(target: TARGET, client = ?Client(socket), rooms = ?self::rooms(rooms), "joined");
            }
            Observation::Left { socket, rooms } if self.knows(socket) => {
                debug!(target: TARGET, client = ?Client(socket), rooms = ?self::rooms(rooms), "left");
            }
            Observation::Received {
                socket,
                event,
                args,
            } if self.knows(socket) => log_event(socket, "received", event, args),
            Observation::Acknowledged {
                socket,
                event,
                args,
            } if self.knows(socket) => log_event(socket, "acknowledged", event, args),
            Observation::Emitted {
                socket,
                event,
                args,
            } if self.knows(socket) => log_event(socket, "emitted", event, args),
            Observation::Broadcast {
                namespace,
                rooms,
                except,
                event,
                args,
                ..
            } => {
                for socket in self.recipients(namespace, rooms, except) {
                    log_event(&socket, "broadcast", event, args);
                }
            }
            _ => {}
        }
    }

    /// The followed sockets that a broadcast selects.
    fn recipients(&self, namespace: &str, rooms: &[Box<str>], except: &[Box<str>]) -> Vec<Socket> {
        let mut sockets: Vec<_> = self.0.state.lock().sockets.values().cloned().collect();
        sockets.retain(|socket| {
            socket.namespace_name() == namespace
                && session::is_selected(&socket.rooms(), rooms, except)
        });
        sockets
    }
}

fn is_named(names: &[String], ids: &[Option<&str>], handshake: &Handshake) -> bool {
    let address = handshake
        .address()
        .map(|address| address.ip().to_canonical());
    names.iter().any(|name| {
        let is_id = ids.contains(&Some(&**name));
        is_id || address.is_some() && name.parse::<IpAddr>().ok() == address
    })
}

/// Logs an event between a client and the server. Its arguments are the client's own, so
/// they appear at level trace only.
fn log_event(socket: &Socket, what: &'static str, event: &str, args: &Args) {
    let (json, attachments) = (args.json(), args.attachments().len());
    let bytes = json.len();
    if enabled!(target: TARGET, Level::TRACE) {
        let args = &json[..json.floor_char_boundary(MAX_ARGS)];
        trace!(target: TARGET, client = ?Client(socket), event, bytes, attachments, args, "{what}");
    } else {
        debug!(target: TARGET, client = ?Client(socket), event, bytes, attachments, "{what}");
    }
}

fn rooms<T: AsRef<str>>(rooms: &[T]) -> Vec<&str> {
    rooms.iter().take(MAX_ROOMS).map(AsRef::as_ref).collect()
}

/// The names of a client in a line.
pub(crate) struct Client<'a>(pub(crate) &'a Socket);

impl fmt::Debug for Client<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(socket) = self;
        let user = session::user(socket);
        let names = ClientNames {
            namespace: socket.namespace_name(),
            socket: socket.id(),
            user: user.as_deref(),
            handshake: socket.handshake(),
        };
        names.fmt(f)
    }
}

/// The same of a client that may not have a socket yet.
pub(crate) struct ClientNames<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) socket: &'a SocketId,
    pub(crate) user: Option<&'a str>,
    pub(crate) handshake: &'a Handshake,
}

impl fmt::Debug for ClientNames<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.namespace, self.socket)?;
        if let Some(user) = self.user {
            write!(f, " of {user:?}")?;
        }
        match self.handshake.address() {
            Some(address) => write!(f, " at {address}"),
            None => Ok(()),
        }
    }
}

/// The part of the program that a reload replaces.
pub(crate) struct LogClients(pub(crate) FollowedClients, pub(crate) Server);

impl Reloadable for LogClients {
    fn keys(&self) -> &'static [&'static str] {
        &["log_client"]
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        let (clients, server) = (self.0.clone(), self.1.clone());
        let names = config.operation.log_client.clone();
        prepared(Ok(move || clients.set(&server, &names)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_name_or_nobody_is_followed() {
        assert_eq!(client_name(" ada "), Ok("ada".to_owned()));
        assert!(client_name(" ").is_err());
        assert!(!is_any(&[OrOff(None)]));
        assert!(is_any(&[OrOff(None), OrOff(Some("ada".to_owned()))]));
    }
}
