//! The identity of a client of channels, and its rights.
//!
//! ```text
//!  token ─► a key of the API? ──► its namespaces and verbs decide
//!        └► access of the namespace: open ─► the room policy of everybody
//!                                    jwt ──► the token's user and the room policy
//!                                    hook ─► the application lets the client in, as at any connect
//! ```

use std::sync::Arc;

use http::{StatusCode, request::Parts};
use roomcast::{
    Socket,
    plain::{Form, Open, OpenError, Stream},
};
use serde_json::{Value, json};

use super::{Channels, request::Call};
use crate::gateway::{
    access::{Access, refusal},
    api::{Key, Kind, Problem, Verb, forbidden},
    auth::User,
    policy::Action,
    session,
};

/// The identity of a client.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// An application, which has shown a key of the API.
    Key(Arc<Key>),
    /// The user of a token.
    User(Arc<User>),
    /// Somebody.
    Anybody,
}

impl Caller {
    /// The caller whose open requests are counted together, in addition to those of an address.
    pub(super) fn holder(&self) -> Option<String> {
        match self {
            Self::Key(key) => Some(format!("key {}", key.name)),
            Self::User(user) => Some(format!("user {}", user.id)),
            Self::Anybody => None,
        }
    }

    /// The client of a socket, by the latest token that it has shown.
    pub(super) fn of_socket(socket: &Socket, key: Option<&Arc<Key>>) -> Self {
        match (key, session::token_user(socket)) {
            (Some(key), _) => Self::Key(Arc::clone(key)),
            (None, Some(user)) => Self::User(user),
            (None, None) => Self::Anybody,
        }
    }
}

/// A client that makes one request. With a hook, the client counts as connected as long as this
/// lives.
pub(super) struct Visit {
    pub(super) caller: Caller,
    _connected: Option<Stream>,
}

impl Channels {
    /// Recognizes the client of a request that leaves no stream open.
    pub(super) async fn visit(&self, call: &Call, parts: &mut Parts) -> Result<Visit, Problem> {
        let of = |caller| Visit {
            caller,
            _connected: None,
        };
        if let Some(key) = self.key(call)? {
            return Ok(of(Caller::Key(key)));
        }
        let access = self.doors.access.get(&call.namespace);
        match access.copied().unwrap_or(Access::Closed) {
            Access::Closed => Err(Problem::new(Kind::Denied, refusal(&call.namespace))),
            Access::Open => Ok(of(Caller::Anybody)),
            Access::Jwt => {
                let user = match (&self.doors.auth, &call.token) {
                    (Some(auth), Some(token)) => auth.verify(token).await,
                    _ => {
                        let detail = "send the header Authorization: Bearer TOKEN";
                        return Err(Problem::new(Kind::Credentials, detail));
                    }
                };
                let refused = |text: String| Problem::new(Kind::Credentials, text);
                let user = user.map_err(|error| refused(error.to_string()))?;
                Ok(of(Caller::User(Arc::new(user))))
            }
            Access::Hook | Access::JwtHook => {
                let open = open(call, &self.forms.poll, None);
                let stream = self.doors.server.open_stream(parts, open).await;
                let stream = stream.map_err(|error| refused(&error))?;
                Ok(Visit {
                    caller: Caller::of_socket(stream.socket(), None),
                    _connected: Some(stream),
                })
            }
        }
    }

    /// The key of the API that the client has shown, if it is one. A namespace that requires tokens
    /// takes anything else as a token.
    pub(super) fn key(&self, call: &Call) -> Result<Option<Arc<Key>>, Problem> {
        let Some(token) = &call.token else {
            return Ok(None);
        };
        let Some(key) = self.doors.api.find(token.as_bytes()) else {
            let access = self.doors.access.get(&call.namespace);
            return match access {
                Some(Access::Open) => {
                    let detail = "the key is unknown, and this namespace needs none";
                    Err(Problem::new(Kind::Credentials, detail))
                }
                _ => Ok(None),
            };
        };
        if !key.may_in(&call.namespace) {
            let detail = format!("the key {} is not for {}", key.name, call.namespace);
            return Err(Problem::new(Kind::Denied, detail));
        }
        Ok(Some(key))
    }

    /// Refuses uses of a room that the client is not allowed.
    /// The rights of a key do not depend on the room policy, because applications act
    /// for everybody.
    pub(super) async fn check(
        &self,
        caller: &Caller,
        namespace: &str,
        action: Action,
        room: &str,
    ) -> Result<(), Problem> {
        let user = match caller {
            Caller::Key(key) => {
                let verb = match action {
                    Action::Join => Verb::Subscribe,
                    Action::Send => Verb::Emit,
                    Action::History => Verb::History,
                    Action::Presence => Verb::Presence,
                };
                return match key.may(verb) {
                    true => Ok(()),
                    false => Err(forbidden(key, verb)),
                };
            }
            Caller::User(user) => Some(&**user),
            Caller::Anybody => None,
        };
        let denied = |detail: String| Problem::new(Kind::Denied, detail);
        let Some(rooms) = self.doors.policies.of(namespace) else {
            return Err(denied(format!("nobody may use the rooms of {namespace}")));
        };
        let server = &self.doors.server;
        let checking = rooms.check_for(server, namespace, user, action, room);
        checking.await.map_err(|error| denied(error.into_reason()))
    }
}

/// The `auth` of a connect: the token where Socket.IO clients have theirs.
fn auth(call: &Call, key: Option<&Arc<Key>>) -> Option<String> {
    let token = call.token.as_ref().filter(|_| key.is_none())?;
    Some(json!({ "token": token }).to_string())
}

/// Why a client was not let in.
pub(super) fn refused(error: &OpenError) -> Problem {
    let data = error.data.as_deref().map(serde_json::from_str::<Value>);
    let data = data.and_then(Result::ok).unwrap_or_default();
    let code = data["code"].as_str().unwrap_or_default();
    let kind = match error.status {
        StatusCode::FORBIDDEN if code.starts_with("token_") => Kind::Credentials,
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Kind::Denied,
        StatusCode::NOT_FOUND => Kind::UnknownNamespace,
        StatusCode::TOO_MANY_REQUESTS => Kind::TooManyOpen,
        StatusCode::SERVICE_UNAVAILABLE => Kind::Stopping,
        _ => Kind::Internal,
    };
    Problem::new(kind, error.message.clone())
}

/// The settings with which a connection of the client is opened.
pub(super) fn open(call: &Call, form: &Arc<dyn Form>, key: Option<&Arc<Key>>) -> Open {
    Open {
        namespace: call.namespace.clone(),
        auth: auth(call, key),
        form: Arc::clone(form),
    }
}
