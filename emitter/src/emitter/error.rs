//! What can go wrong for whoever emits, as facts: what was published, and what surely was not.

use std::{io, sync::Arc};

use crate::{
    asking::TooManyQuestions,
    endpoint::{ConnectError, UrlError},
};
use roomcast_protocol::{args::ArgsError, wire::WireError};

/// Why there is no emitter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The URL says nothing that can be understood.
    #[error("the URL of Redis: {0}")]
    Url(#[from] UrlError),
    /// Redis cannot be reached, or refuses.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The system has no thread for [`blocking::Emitter`](crate::blocking::Emitter).
    #[error("no thread for the emitter: {0}")]
    Thread(#[source] io::Error),
}

/// Why something was not emitted, or may not have been.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The name belongs to the protocol (`connect`, `disconnect` …); choose another.
    #[error("the event name `{0}` is reserved")]
    ReservedEvent(Box<str>),
    /// The arguments cannot be encoded.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// The name of a namespace begins with a slash. It is not added silently: `admin` and `/admin`
    /// would be the same here and different in what listens for them elsewhere.
    #[error("the namespace `{0}` does not begin with `/`")]
    NamespaceWithoutSlash(Box<str>),
    /// A server-side emit goes to the servers themselves, and to all of them: it takes no rooms.
    #[error("a server-side emit goes to all servers and takes neither rooms nor exceptions")]
    ServersHaveNoRooms,
    /// The message cannot be written in the language of the cluster.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Redis cannot be reached. Nothing was published.
    #[error("Redis cannot be reached: {0}")]
    Unreachable(Arc<str>),
    /// Redis does not let this user publish there. Nothing was published.
    #[error("Redis refused: {0}")]
    Refused(Arc<str>),
    /// The message was on its way when the connection ended or the time was over: it may have been
    /// published.
    #[error("Redis did not confirm, so it may have been published or not: {0}")]
    Unconfirmed(Arc<str>),
    /// More is waiting to be published than may. Nothing was published.
    #[error("{queued_bytes} bytes are waiting to be published already")]
    Overloaded {
        /// What is waiting.
        queued_bytes: usize,
    },
    /// The batch holds as much as it may. The message was not added; the others can be sent.
    #[error("the batch is full with {limit} bytes; send it and begin another")]
    BatchFull {
        /// The limit, in bytes.
        limit: usize,
    },
    /// As many questions are waiting for answers as may.
    #[error(transparent)]
    TooManyQuestions(#[from] TooManyQuestions),
    /// Answers come over a subscription, and a pool of connections has none: give the builder the
    /// URL for it.
    #[error("answers cannot be heard over a pool; give the builder of the emitter their URL, too")]
    NoAnswers,
}

impl EmitError {
    /// Whether nothing can have been published, and trying again may help.
    pub fn is_safe_to_retry(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Overloaded { .. })
    }
}
