//! Puts the handlers of the gateway's parts together to namespaces. The library runs one handler per
//! place, so that their order is written down here.

use std::{future::ready, sync::Arc};

use roomcast::{Namespace, Socket};

use super::{
    access::{self, Access},
    auth::{Auth, with_sessions},
    rooms::{self, Rooms},
};

/// What a namespace of the gateway is made of.
pub(crate) struct Parts {
    pub(crate) access: Access,
    /// What verifies tokens. Set if any namespace asks for them.
    pub(crate) auth: Option<Arc<Auth>>,
    /// The rooms that clients may use by themselves, if any.
    pub(crate) rooms: Option<Arc<Rooms>>,
}

/// Defines a namespace.
pub(crate) fn define(name: &str, parts: Parts) -> Namespace {
    let Parts {
        access,
        auth,
        rooms,
    } = parts;
    let mut namespace = access::guard(Namespace::new(name), name, access, auth.as_ref());
    let auth = auth.filter(|_| access == Access::Jwt);
    if let Some(auth) = &auth {
        let connecting = Arc::clone(auth);
        namespace = with_sessions(namespace, auth).on_connect(move |socket: Socket| {
            connecting.connected(&socket);
            ready(())
        });
    }
    if let Some(rooms) = &rooms {
        namespace = rooms::with_rooms(namespace, rooms);
    }
    if auth.is_none() && rooms.is_none() {
        return namespace;
    }
    let has_rooms = rooms.is_some();
    namespace.on_disconnect(move |socket: Socket| {
        if let Some(auth) = &auth {
            auth.disconnected(&socket);
        }
        async move {
            if has_rooms {
                rooms::notify_leaving(&socket).await;
            }
        }
    })
}
