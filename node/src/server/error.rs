//! The errors of the library's API.
//!
//! The texts are for developers. A client sees one only through [`Refused`].

use std::{borrow::Cow, error::Error, sync::Arc, time::Duration};

use roomcast_adapter::StartError;
use roomcast_protocol::args::{Args, ArgsError};
use serde::Serialize;

use crate::metrics::Metrics;

/// Why an event could not be emitted.
///
/// ```
/// # use roomcast::{EmitError, Server};
/// # async fn run(io: Server) {
/// match io.to("news").emit("headline", "It rains").await {
///     Ok(delivery) => println!("{} other nodes have it", delivery.nodes),
///     // Sockets of this node have it.
///     Err(EmitError::Bus(error)) => eprintln!("other nodes may have missed it: {error}"),
///     Err(error) => eprintln!("not emitted: {error}"),
/// }
/// # }
/// ```
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
    /// The broadcast cannot be emitted [at least once](crate::BroadcastOperator::at_least_once), for this reason.
    #[error("cannot be emitted at least once: {0}")]
    AtLeastOnce(&'static str),
    /// The client speaks Socket.IO, which has no messages without a packet around them.
    #[error("only clients of plain connections can be sent text without an event")]
    NotPlain,
    /// A socket cannot join a room.
    #[error(transparent)]
    Join(#[from] roomcast_adapter::JoinError),
}

/// Why an event was not published into the history of a room. Unless it is
/// [`Unconfirmed`](Self::Unconfirmed), the event was certainly neither stored nor emitted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The event's name or arguments, or the namespace.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// The selection is not exactly one room.
    #[error("exactly one room must be selected, without exceptions, `volatile` and `local`")]
    NotOneRoom,
    /// The namespace has no [history](crate::Namespace::history).
    #[error("the namespace keeps no history")]
    NotKept,
    /// The event is larger than all that is kept of a room.
    #[error("the event has more than {limit} bytes")]
    TooLarge {
        /// The limit, see [`HistoryLimits::bytes`](crate::HistoryLimits::bytes).
        limit: usize,
    },
    /// The history cannot be written at the moment.
    #[error("the event was not stored: {0}")]
    Unavailable(Arc<str>),
    /// The connection to Redis or its reply was lost. The event may have been stored and emitted.
    #[error("the event may not have been stored: {0}")]
    Unconfirmed(Arc<str>),
}

impl From<HistoryError> for PublishError {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::NotKept => Self::NotKept,
            HistoryError::UnknownNamespace(name) => EmitError::UnknownNamespace(name).into(),
            HistoryError::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

/// Why the history of a room could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The server has no namespace of this name.
    #[error("the namespace `{0}` does not exist")]
    UnknownNamespace(Box<str>),
    /// The namespace has no [history](crate::Namespace::history).
    #[error("the namespace keeps no history")]
    NotKept,
    /// The history cannot be read at the moment.
    #[error("the history cannot be read: {0}")]
    Unavailable(Arc<str>),
}

/// Why a socket could not join rooms from their history.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinFromError {
    /// The socket is not of a plain connection, is disconnected or may not be in so many rooms; or
    /// other nodes may not reach it.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// The namespace keeps no messages.
    #[error(transparent)]
    History(#[from] HistoryError),
}

impl From<roomcast_adapter::BusError> for JoinFromError {
    fn from(error: roomcast_adapter::BusError) -> Self {
        Self::History(HistoryError::Unavailable(error.to_string().into()))
    }
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
    /// The client has a [plain connection](crate::plain), which has no acknowledgements.
    #[error("clients of plain connections cannot acknowledge")]
    Plain,
    /// The socket has too many pending acknowledgements.
    #[error("the socket already owes {limit} acknowledgements")]
    TooManyPending {
        /// The limit, see [`Limits::pending_acks`](crate::Limits::pending_acks).
        limit: usize,
    },
    /// The acknowledgement has another type.
    #[error("the acknowledgement has another type: {0}")]
    Decode(#[source] ArgsError),
}

impl BuildError {
    /// Whether [`build`](crate::Builder::build) may succeed later with the same settings, because
    /// Redis is not available yet.
    pub fn is_temporary(&self) -> bool {
        let Self::Bus(error) = self else {
            return false;
        };
        let error = error.downcast_ref::<StartError>();
        error.is_some_and(StartError::is_temporary)
    }
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
    /// The journal of a namespace does not keep broadcasts as long as its recovery needs them.
    #[error("`journal.age` of the namespace `{namespace}` is {problem}")]
    Journal {
        /// The name of the namespace.
        namespace: Box<str>,
        /// The problem, such as "below `recovery.max_disconnection`".
        problem: &'static str,
    },
    /// The bus to the other nodes cannot be started.
    #[error("other nodes cannot be reached: {0}")]
    Bus(#[source] Box<dyn Error + Send + Sync>),
    /// Metrics of the bus conflict with those of the server.
    #[error("the metrics of the bus cannot be registered: {0}")]
    BusMetrics(#[source] prometheus::Error),
    /// A handler takes a type of state that was not given to
    /// [`Builder::state`](crate::Builder::state).
    #[error(
        "a handler takes `State<{0}>`, but the server has no such state; add it with `Builder::state`"
    )]
    MissingState(&'static str),
    /// `build` was called outside of a tokio runtime.
    #[error("no tokio runtime is running; call `build` within one")]
    NoRuntime,
}

/// The part of a failure that a client may know: the `connect_error` event if it may not
/// connect, or the answer `{"error": message, "data": data}` to its event.
///
/// Any handler can return it as an error. Clients see no other error of a
/// [`HandlerResult`](crate::HandlerResult), so an application chooses with `From` which of its own
/// errors clients may see:
///
/// ```
/// # use roomcast::Refused;
/// # struct SoldOut;
/// impl From<SoldOut> for Refused {
///     fn from(_: SoldOut) -> Self {
///         Self::new("sold out")
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub(crate) message: Cow<'static, str>,
    pub(crate) data: Option<String>,
    pub(crate) reason: Option<&'static str>,
}

impl Refused {
    /// `message` becomes the message of the client's error.
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            message: message.into(),
            data: None,
            reason: None,
        }
    }

    /// Adds details, the `data` of the client's error. A value that is not JSON is left out.
    #[must_use]
    pub fn data<T: Serialize + ?Sized>(mut self, data: &T) -> Self {
        self.data = serde_json::to_string(data).ok();
        self
    }

    /// Sets the label `reason` under which `roomcast_connect_refused_total` counts a
    /// connect that is refused, and the log line about it. Clients do not see it. Default
    /// `unauthorized`.
    #[must_use]
    pub fn reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// The acknowledgement of an event that is refused: `{"error": message, "data":
    /// data}`. A handler that takes an [`Ack`](crate::Ack) sends it with this.
    pub fn to_answer(&self) -> Args {
        let mut answer = serde_json::Map::new();
        answer.insert("error".to_owned(), (&*self.message).into());
        if let Some(data) = &self.data {
            let data = serde_json::from_str(data).unwrap_or_default();
            answer.insert("data".to_owned(), data);
        }
        Args::encode(&answer).unwrap_or_default()
    }
}

/// The result of a handler that uses `?`.
pub type HandlerResult<T = ()> = Result<T, HandlerError>;

/// An error of a handler. `?` makes one of any error, of a text, or of a [`Refused`].
///
/// A [`Refused`] is shown to the client. Anything else is logged with the event and the socket,
/// counted by `roomcast_handler_errors_total`, and answered with `internal error`.
///
/// ```
/// # use roomcast::{HandlerResult, Namespace, Refused};
/// Namespace::new("/").on("half", async |number: String| -> HandlerResult<i64> {
///     // Logged, and acknowledged as an internal error.
///     let number = number.parse::<i64>()?;
///     if number % 2 == 1 {
///         // The client sees this one.
///         return Err(Refused::new("the number is odd").into());
///     }
///     Ok(number / 2)
/// });
/// ```
#[derive(Debug)]
pub struct HandlerError(Cause);

#[derive(Debug)]
enum Cause {
    Refused(Refused),
    Other(Box<dyn Error + Send + Sync>),
}

impl HandlerError {
    /// The error as the client may see it.
    pub fn refused(&self) -> Option<&Refused> {
        match &self.0 {
            Cause::Refused(refused) => Some(refused),
            Cause::Other(_) => None,
        }
    }

    /// The label under which a connect that this refuses is counted.
    pub(super) fn label(&self) -> &'static str {
        let reason = |refused: &Refused| refused.reason.unwrap_or("unauthorized");
        self.refused().map_or("error", reason)
    }

    /// Logs and counts an error that clients don't see. Returns the part that the client may see.
    pub(super) fn report(self, place: &Place<'_>) -> Refused {
        match self.0 {
            Cause::Refused(refused) => refused,
            Cause::Other(error) => {
                place.log(&*error);
                Refused::new(NEUTRAL)
            }
        }
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error: Box<dyn Error + Send + Sync> = error.into();
        Self(match error.downcast::<Refused>() {
            Ok(refused) => Cause::Refused(*refused),
            Err(error) => Cause::Other(error),
        })
    }
}

/// The text for clients if a handler fails for a reason that they must not see.
const NEUTRAL: &str = "internal error";

/// The reason why a handler of an event returns no answer.
#[doc(hidden)]
#[derive(Debug)]
pub enum Failed {
    /// The arguments of the event do not match the handler's.
    Decode(ArgsError),
    /// The handler's result cannot be encoded.
    Encode(ArgsError),
    Handler(HandlerError),
}

impl Failed {
    /// Logs and counts the failure. Returns the part that the client may see.
    pub(super) fn report(self, place: &Place<'_>) -> Refused {
        match self {
            Self::Decode(error) => {
                place.metrics.events_undecodable.inc();
                let Place {
                    namespace,
                    socket,
                    what,
                    ..
                } = place;
                let socket = socket.map(tracing::field::display);
                tracing::debug!(namespace, socket, event = what, %error, "the arguments of an event do not match its handler");
                Refused::new("invalid arguments")
            }
            Self::Encode(error) => HandlerError::from(error).report(place),
            Self::Handler(error) => error.report(place),
        }
    }
}

/// Where a handler has failed.
pub(super) struct Place<'a> {
    pub(super) metrics: &'a Metrics,
    pub(super) namespace: &'a str,
    /// The id of the socket, if the handler is about one.
    pub(super) socket: Option<&'a str>,
    /// The name of the event, or of another occasion on which the handler runs.
    pub(super) what: &'a str,
}

impl Place<'_> {
    fn log(&self, error: &(dyn Error + 'static)) {
        self.metrics.handler_failed(self.what);
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        let Self {
            namespace,
            socket,
            what,
            ..
        } = self;
        tracing::error!(
            namespace,
            socket = socket.map(tracing::field::display),
            event = what,
            error = text,
            "a handler failed"
        );
    }
}
