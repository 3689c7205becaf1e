//! The errors of the library's API.
//!
//! The texts are for developers. A client sees one only through [`Refused`].

use std::{borrow::Cow, time::Duration};

use roomcast_protocol::args::ArgsError;
use serde::{Serialize, Serializer};

/// Why an event could not be emitted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The protocol uses the name itself (`connect`, `disconnect` …).
    #[error("the event name `{0}` is reserved")]
    ReservedEvent(Box<str>),
    /// The arguments cannot be encoded.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// The socket is disconnected.
    #[error("the socket is disconnected")]
    Disconnected,
    /// The server has no namespace of this name.
    #[error("the namespace `{0}` does not exist")]
    UnknownNamespace(Box<str>),
    /// Other nodes may not have been reached. The sockets of this node were served.
    #[error(transparent)]
    Bus(#[from] roomcast_adapter::BusError),
    /// Rooms or exceptions were named for an operation on servers.
    #[error("servers are not in rooms: this operation takes neither rooms nor exceptions")]
    RoomsOfServers,
    /// A socket cannot join a room.
    #[error(transparent)]
    Join(#[from] roomcast_adapter::JoinError),
}

/// Why an event has no acknowledgement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AckError {
    /// The event was not emitted.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// No acknowledgement arrived in time.
    #[error("no acknowledgement within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The socket disconnected before it acknowledged.
    #[error("the socket disconnected before it acknowledged")]
    Disconnected,
    /// The socket owes too many acknowledgements.
    #[error("the socket already owes {limit} acknowledgements")]
    TooManyPending {
        /// The limit, see [`Limits::pending_acks`](crate::Limits::pending_acks).
        limit: usize,
    },
    /// The acknowledgement has another type.
    #[error("the acknowledgement has another type: {0}")]
    Decode(#[source] ArgsError),
}

/// Why a server could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Two namespaces have the same name.
    #[error("the namespace `{0}` is defined twice")]
    DuplicateNamespace(Box<str>),
    /// The name of a namespace does not begin with a slash.
    #[error("the namespace `{0}` does not begin with `/`")]
    NamespaceWithoutSlash(Box<str>),
    /// The pattern of a dynamic namespace has an unclosed or empty parameter.
    #[error("the namespace pattern `{0}` has a parameter without a name or without `}}`")]
    Pattern(Box<str>),
    /// The path does not begin with a slash, or contains characters that have a meaning in routes.
    #[error("the path `{0}` must begin with `/` and must not contain `{{`, `}}` or `*`")]
    Path(Box<str>),
    /// Neither polling nor WebSocket is enabled.
    #[error("no transport is enabled; enable polling, WebSocket or both")]
    NoTransport,
    /// A setting is out of range.
    #[error("`{setting}` is {problem}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The problem, such as "zero".
        problem: &'static str,
    },
    /// The bus to the other nodes cannot be started.
    #[error("other nodes cannot be reached: {0}")]
    Bus(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Metrics of the bus conflict with those of the server.
    #[error("the metrics of the bus cannot be registered: {0}")]
    BusMetrics(#[source] prometheus::Error),
    /// `build` was called outside of a tokio runtime.
    #[error("no tokio runtime is running; call `build` within one")]
    NoRuntime,
}

/// A handler that returns this as its error answers with its text, but for where other servers are:
/// that is nothing for clients.
impl Serialize for EmitError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bus(error) => serializer.serialize_str(error.outline()),
            error => serializer.collect_str(error),
        }
    }
}

/// The same.
impl Serialize for AckError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Emit(error) => error.serialize(serializer),
            error => serializer.collect_str(error),
        }
    }
}

/// Why a client may not connect to a namespace: what its `connect_error` event gets.
///
/// Made from a text, or by `?` from any error.
#[derive(Debug, Clone)]
pub struct Refused {
    pub(crate) message: Cow<'static, str>,
    pub(crate) data: Option<String>,
}

impl Refused {
    /// `message` becomes the message of the client's error.
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            message: message.into(),
            data: None,
        }
    }

    /// Adds details, the `data` of the client's error. A value that is not JSON is left out.
    #[must_use]
    pub fn data<T: Serialize + ?Sized>(mut self, data: &T) -> Self {
        self.data = serde_json::to_string(data).ok();
        self
    }
}

impl<E: Into<Box<dyn std::error::Error>>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::new(error.into().to_string())
    }
}
