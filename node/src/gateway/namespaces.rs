//! Combines the handlers of the gateway's parts into namespaces. The library runs one handler per
//! place, so their order is defined here.
//!
//! **Order at a connect.** The user's rooms come first, because hooks and doors see the
//! rooms of a socket. Then the door joins the channels, and the hook comes last, so
//! that its operations act on a complete socket.
//!
//! **Order at a disconnect.** The other members of rooms are notified before the
//! application is, since a request may take seconds.
//!
//! A handler is added only where a part needs it, because each costs a call for every
//! client.

use std::sync::Arc;

use roomcast::{DisconnectReason, HistoryLimits, JournalLimits, Namespace, Socket};

use super::{
    access::{self, Access, Guards},
    auth::{Auth, with_sessions},
    demo::Demo,
    doors::pakyow::Pakyow,
    hooks::Hooks,
    presence::Kept,
    rooms::{self, Rooms},
    session::{self, SocketData},
    settings::RecoverySettings,
    user_limit::UserLimit,
};

/// The parts of a namespace of the gateway.
pub(crate) struct Parts {
    pub(crate) access: Access,
    /// The verifier of tokens. Set if any namespace asks for them.
    pub(crate) auth: Option<Arc<Auth>>,
    pub(crate) hooks: Hooks,
    pub(crate) users: UserLimit,
    /// The rooms that clients may use by themselves, if any.
    pub(crate) rooms: Option<Arc<Rooms>>,
    /// The users who are online, if they are kept.
    pub(crate) presence: Option<Arc<Kept>>,
    /// The further events of the demo's page.
    pub(crate) demo: Option<Arc<Demo>>,
    /// The door whose clients are sockets of this namespace.
    pub(crate) pakyow: Option<Arc<Pakyow>>,
    /// The limits of the log of events that are published into rooms.
    pub(crate) history: Option<HistoryLimits>,
    /// The limits of the journal.
    pub(crate) journal: Option<JournalLimits>,
    /// Whether clients can come back to their session.
    pub(crate) recovery: Option<RecoverySettings>,
}

/// Defines a namespace.
pub(crate) fn define(name: &str, parts: Parts) -> Namespace {
    let Parts {
        access,
        auth,
        hooks,
        users,
        rooms,
        presence,
        demo,
        pakyow,
        history,
        journal,
        recovery,
    } = parts;
    let namespace = Namespace::new(name);
    let guards = Guards {
        auth: auth.clone(),
        hooks: hooks.clone(),
        users,
        recovery: recovery.clone(),
    };
    let mut namespace = access::guard(namespace, name, access, guards);
    // Tokens of other namespaces have no meaning in this one.
    let auth = auth.filter(|_| access.asks_for_token());
    if let Some(auth) = &auth {
        namespace = with_sessions(namespace, auth);
    }
    if let Some(limits) = history {
        namespace = namespace.history(limits);
    }
    if let Some(limits) = journal {
        namespace = namespace.journal(limits);
    }
    if let Some(recovery) = recovery {
        namespace = namespace
            .recovery(recovery.recovery())
            .recovered_data_with(SocketData::recovered);
    }
    if let Some(rooms) = &rooms {
        namespace = rooms::with_rooms(namespace, rooms);
        if let Some(presence) = &presence {
            namespace = rooms::with_presence(namespace, rooms, presence);
        }
    }
    if let Some(demo) = &demo {
        namespace = demo.with_events(namespace);
    }
    if let Some(pakyow) = &pakyow {
        namespace = pakyow.with_events(namespace);
    }
    namespace = hooks.with_events(namespace);
    let has_users = auth.is_some() || access.asks_hook();
    let connected = Connected {
        auth,
        has_rooms: rooms.is_some(),
        pakyow,
        hooks,
    };
    if connected.auth.is_some() || connected.is_watched() {
        namespace = on_connect(namespace, connected.clone());
    }
    if has_users || connected.has_rooms || connected.is_watched() {
        namespace = on_disconnect(namespace, connected);
    }
    namespace
}

/// The observers of sockets that connect and disconnect.
#[derive(Clone)]
struct Connected {
    auth: Option<Arc<Auth>>,
    has_rooms: bool,
    pakyow: Option<Arc<Pakyow>>,
    hooks: Hooks,
}

impl Connected {
    /// Whether there is anything for which both matter.
    fn is_watched(&self) -> bool {
        self.hooks.has_handlers() || self.pakyow.is_some()
    }
}

fn on_connect(namespace: Namespace, parts: Connected) -> Namespace {
    namespace.on_connect(move |socket: Socket| {
        if let Some(auth) = &parts.auth {
            auth.connected(&socket);
        }
        let (pakyow, hooks) = (parts.pakyow.clone(), parts.hooks.clone());
        async move {
            if let Some(pakyow) = pakyow {
                pakyow.connected(&socket).await;
            }
            hooks.connected(&socket).await;
        }
    })
}

fn on_disconnect(namespace: Namespace, parts: Connected) -> Namespace {
    namespace.on_disconnect(move |socket: Socket, reason: DisconnectReason| {
        if let Some(auth) = &parts.auth {
            auth.disconnected(&socket);
        }
        session::leave(&socket);
        let parts = parts.clone();
        async move {
            if parts.has_rooms {
                rooms::notify_leaving(&socket).await;
            }
            if let Some(pakyow) = parts.pakyow {
                pakyow.disconnected(&socket).await;
            }
            parts.hooks.disconnected(&socket, reason).await;
        }
    })
}
