//! Puts the handlers of the gateway's parts together to namespaces. The library runs one handler per
//! place, so that their order is written down here.

use std::sync::Arc;

use roomcast::{DisconnectReason, Namespace, Socket};

use super::{
    access::{self, Access},
    auth::{Auth, with_sessions},
    demo::Demo,
    hooks::Hooks,
    rooms::{self, Rooms},
    session,
    user_limit::UserLimit,
};

/// What a namespace of the gateway is made of.
pub(crate) struct Parts {
    pub(crate) access: Access,
    /// What verifies tokens. Set if any namespace asks for them.
    pub(crate) auth: Option<Arc<Auth>>,
    pub(crate) hooks: Hooks,
    pub(crate) users: UserLimit,
    /// The rooms that clients may use by themselves, if any.
    pub(crate) rooms: Option<Arc<Rooms>>,
    /// The further events of the demo's page.
    pub(crate) demo: Option<Arc<Demo>>,
}

/// Defines a namespace.
pub(crate) fn define(name: &str, parts: Parts) -> Namespace {
    let Parts {
        access,
        auth,
        hooks,
        users,
        rooms,
        demo,
    } = parts;
    let namespace = Namespace::new(name);
    let mut namespace = access::guard(namespace, name, access, auth.as_ref(), &hooks, &users);
    let auth = auth.filter(|_| access.asks_for_token());
    if let Some(auth) = &auth {
        namespace = with_sessions(namespace, auth);
    }
    if let Some(rooms) = &rooms {
        namespace = rooms::with_rooms(namespace, rooms);
    }
    if let Some(demo) = &demo {
        namespace = demo.with_events(namespace);
    }
    namespace = hooks.with_events(namespace);
    if auth.is_some() || hooks.has_handlers() {
        namespace = on_connect(namespace, auth.clone(), hooks.clone());
    }
    let has_users = auth.is_some() || access.asks_hook();
    if has_users || rooms.is_some() || hooks.has_handlers() {
        namespace = on_disconnect(namespace, auth, rooms.is_some(), hooks);
    }
    namespace
}

fn on_connect(namespace: Namespace, auth: Option<Arc<Auth>>, hooks: Hooks) -> Namespace {
    namespace.on_connect(move |socket: Socket| {
        if let Some(auth) = &auth {
            auth.connected(&socket);
        }
        let hooks = hooks.clone();
        async move { hooks.connected(&socket).await }
    })
}

fn on_disconnect(
    namespace: Namespace,
    auth: Option<Arc<Auth>>,
    has_rooms: bool,
    hooks: Hooks,
) -> Namespace {
    namespace.on_disconnect(move |socket: Socket, reason: DisconnectReason| {
        if let Some(auth) = &auth {
            auth.disconnected(&socket);
        }
        session::leave(&socket);
        let hooks = hooks.clone();
        async move {
            if has_rooms {
                rooms::notify_leaving(&socket).await;
            }
            hooks.disconnected(&socket, reason).await;
        }
    })
}
