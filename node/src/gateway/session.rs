//! The gateway's data of a socket: the user and the data of the application.
//!
//! It is the socket's data, so other nodes see it when they fetch sockets. Node.js servers see it
//! as the `socket.data` of their own sockets: the application's object, with `user` added.

use std::sync::Arc;

use parking_lot::Mutex;
use roomcast::{Refused, Socket};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    auth::{Session, User},
    operations::Checked,
    policy::USER_ROOMS,
    user_limit::{UserLimit, UserPlace},
};

/// The data of a socket of the gateway. It is replaced as a whole, never changed in place.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct SocketData {
    /// The id of the user, if the client is authenticated. The application's own
    /// `user` is hidden by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// The data that the application has set.
    #[serde(flatten, serialize_with = "without_user")]
    pub(crate) data: Arc<Map<String, Value>>,
    /// The facts from its token, in namespaces that ask for one.
    #[serde(skip)]
    pub(crate) session: Option<Arc<Session>>,
    /// The operations that a hook wants done when the client has connected.
    #[serde(skip)]
    on_connect: Arc<Mutex<Option<Checked>>>,
    /// Its place among the sockets of its user, while they are limited.
    #[serde(skip)]
    place: Arc<Mutex<Option<UserPlace>>>,
    /// The namespace and its limit, if the client comes back and its session has the user.
    #[serde(skip)]
    returning: Option<(Box<str>, UserLimit)>,
}

impl SocketData {
    /// The data of a client that has shown a token.
    pub(crate) fn of_session(session: Arc<Session>) -> Self {
        Self {
            user: Some(session.user().id.clone()),
            session: Some(session),
            ..Self::default()
        }
    }

    /// The data of a client that a door has let in.
    pub(crate) fn of_user(user: Option<String>) -> Self {
        Self {
            user,
            ..Self::default()
        }
    }

    /// The data of a client that comes back and keeps its session's user.
    pub(crate) fn of_returning(self, namespace: &str, users: &UserLimit) -> Self {
        Self {
            returning: Some((namespace.into(), users.clone())),
            ..self
        }
    }

    /// The data of a client that comes back: the application's stored data, and that of the
    /// authorizers. `None` if it is another user.
    /// The authorizers' data wins, because rights may have changed meanwhile.
    pub(crate) fn recovered(former: Value, now: Option<Arc<Self>>) -> Option<Self> {
        let mut now = now.map(Arc::unwrap_or_clone).unwrap_or_default();
        let Value::Object(mut former) = former else {
            return now.user.is_none().then_some(now);
        };
        let user = former.remove("user");
        if let (None, Some((namespace, users))) = (&now.user, now.returning.take()) {
            now.user = user.as_ref().and_then(Value::as_str).map(str::to_owned);
            // Beyond the limit it is treated as a new client, so that it receives the error.
            now.take_place(&namespace, &users).ok()?;
        }
        if user.as_ref().and_then(Value::as_str) != now.user.as_deref() {
            return None;
        }
        for (key, value) in &*now.data {
            former.insert(key.clone(), value.clone());
        }
        Some(Self {
            data: Arc::new(former),
            ..now
        })
    }

    /// Takes a place among the sockets of the user, if the client is authenticated and has none.
    pub(crate) fn take_place(&self, namespace: &str, users: &UserLimit) -> Result<(), Refused> {
        let mut place = self.place.lock();
        if let (Some(user), None) = (&self.user, &*place) {
            *place = users.admit(namespace, user)?;
        }
        Ok(())
    }

    /// Keeps operations until the client has connected.
    pub(crate) fn keep(&mut self, operations: Checked) {
        self.on_connect = Arc::new(Mutex::new(Some(operations)));
    }

    /// Takes the operations.
    pub(crate) fn take(&self) -> Option<Checked> {
        self.on_connect.lock().take()
    }
}

/// Leaves out the key under which the user is shown, so that the JSON has it once.
fn without_user<S: serde::Serializer>(
    data: &Map<String, Value>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(data.iter().filter(|(key, _)| *key != "user"))
}

/// Makes room for another socket of the user. The data itself may be in use for longer.
pub(crate) fn leave(socket: &Socket) {
    let place = socket
        .data::<SocketData>()
        .map(|data| data.place.lock().take());
    drop(place);
}

/// The id of the socket's user.
pub(crate) fn user(socket: &Socket) -> Option<String> {
    socket.data::<SocketData>()?.user.clone()
}

/// Replaces the application's data and keeps the user.
pub(crate) fn set_data(socket: &Socket, data: Map<String, Value>) {
    let known = socket.data::<SocketData>();
    socket.set_data(SocketData {
        data: Arc::new(data),
        ..known.as_deref().cloned().unwrap_or_default()
    });
}

/// The facts from the socket's token.
pub(crate) fn of(socket: &Socket) -> Option<Arc<Session>> {
    socket.data::<SocketData>()?.session.clone()
}

/// The user, as the socket's latest token describes it.
pub(crate) fn token_user(socket: &Socket) -> Option<Arc<User>> {
    of(socket).map(|session| session.user())
}

/// Whether a broadcast selects a socket, which is in the rooms `own`.
pub(crate) fn is_selected(own: &[String], rooms: &[Box<str>], except: &[Box<str>]) -> bool {
    let is_in = |rooms: &[Box<str>]| {
        let mut rooms = rooms.iter();
        rooms.any(|room| own.iter().any(|own| *own == **room))
    };
    (rooms.is_empty() || is_in(rooms)) && !is_in(except)
}

/// The room that all sockets of a user share.
pub(crate) fn user_room(user: &str) -> String {
    format!("{USER_ROOMS}{user}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn other_nodes_see_the_data_with_the_user_beside_it() {
        let Value::Object(data) = json!({ "name": "Ada", "user": "forged" }) else {
            unreachable!("an object")
        };
        let data = SocketData {
            user: Some("7".to_owned()),
            data: Arc::new(data),
            ..SocketData::default()
        };
        let shown = serde_json::to_string(&data).unwrap();
        assert_eq!(shown, r#"{"user":"7","name":"Ada"}"#);
        let nobody = serde_json::to_value(SocketData::default()).unwrap();
        assert_eq!(nobody, json!({}));
    }

    #[test]
    fn a_client_that_comes_back_has_its_data_if_it_is_the_same_user() {
        let now = |user: Option<&str>| {
            let user = user.map(str::to_owned);
            Some(Arc::new(SocketData::of_user(user)))
        };
        let former = json!({ "user": "7", "name": "Ada" });
        let data = SocketData::recovered(former.clone(), now(Some("7"))).unwrap();
        assert_eq!(serde_json::to_value(data).unwrap(), former);
        assert!(SocketData::recovered(former.clone(), now(Some("8"))).is_none());
        assert!(SocketData::recovered(former.clone(), None).is_none());
        // Its session has the user, if nothing else names one.
        let users = UserLimit::new(Some(1));
        let returning = |user: Option<&str>| {
            let data = SocketData::of_user(user.map(str::to_owned));
            Some(Arc::new(data.of_returning("/", &users)))
        };
        let data = SocketData::recovered(former.clone(), returning(None)).unwrap();
        assert_eq!(serde_json::to_value(&data).unwrap(), former);
        assert!(SocketData::recovered(former.clone(), returning(None)).is_none());
        drop(data);
        assert!(SocketData::recovered(former.clone(), returning(None)).is_some());
        assert!(SocketData::recovered(former, returning(Some("8"))).is_none());
        let nobody = SocketData::recovered(json!({ "name": "Ada" }), None).unwrap();
        assert_eq!(
            serde_json::to_value(nobody).unwrap(),
            json!({ "name": "Ada" })
        );
        assert!(SocketData::recovered(json!({}), now(Some("7"))).is_none());
        assert!(SocketData::recovered(Value::Null, now(Some("7"))).is_none());
        assert!(SocketData::recovered(Value::Null, None).is_some());
    }
}
