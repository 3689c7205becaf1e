//! The errors of an emitter. Each states whether a message was published, may have been, or was
//! not.

use std::{io, sync::Arc};

use crate::{
    membership::TooManyQuestions,
    redis::{ConnectError, PublishError, UrlError},
};
use roomcast_protocol::{args::ArgsError, wire::WireError};

/// Why an emitter could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The URL is invalid.
    #[error("the URL of Redis: {0}")]
    Url(#[from] UrlError),
    /// Redis cannot be reached, or rejects the connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The system could not start a thread for [`blocking::Emitter`](crate::blocking::Emitter).
    #[error("no thread for the emitter: {0}")]
    Thread(#[source] io::Error),
    /// [`Dialect::Streams`](crate::Dialect::Streams) and
    /// [`Parser::Json`](crate::Parser::Json) are for clusters with Node's servers, which
    /// cannot sign.
    #[error("signed messages need the classic or a sharded dialect, with the parser MessagePack")]
    Unsignable,
}

/// Why an emit failed or may have failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The event name is reserved by the protocol (`connect`, `disconnect` …).
    #[error("the event name `{0}` is reserved")]
    ReservedEvent(Box<str>),
    /// The arguments cannot be encoded.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// The name of a namespace must begin with a slash. It is not added silently, because `admin`
    /// and `/admin` would be the same here but different for other servers.
    #[error("the namespace `{0}` does not begin with `/`")]
    NamespaceWithoutSlash(Box<str>),
    /// A server-side emit goes to all servers, so it takes no rooms.
    #[error("a server-side emit goes to all servers and takes neither rooms nor exceptions")]
    ServersHaveNoRooms,
    /// The broadcast cannot be emitted
    /// [at least once](crate::BroadcastOperator::at_least_once), for this reason. Nothing
    /// was published.
    #[error("cannot be emitted at least once: {0}")]
    AtLeastOnce(&'static str),
    /// The message cannot be encoded for the cluster.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Redis cannot be reached. Nothing was published.
    #[error("Redis cannot be reached: {0}")]
    Unreachable(Arc<str>),
    /// Redis rejected it, for example because this user may not publish there. Nothing
    /// was published.
    #[error("Redis refused: {0}")]
    Refused(Arc<str>),
    /// The connection ended or the timeout passed before Redis replied. The message may have been
    /// published.
    #[error("Redis did not confirm, so it may have been published or not: {0}")]
    Unconfirmed(Arc<str>),
    /// The idempotency key was used for another event, other arguments, other rooms or
    /// other flags. Nothing was published.
    #[error("the idempotency key `{0}` was used for another broadcast")]
    KeyReused(Box<str>),
    /// Too many bytes wait to be published. Nothing was published.
    #[error("{queued_bytes} bytes are waiting to be published already")]
    Overloaded {
        /// The bytes that wait.
        queued_bytes: usize,
    },
    /// The batch is full. The message was not added; the others can be sent.
    #[error("the batch is full with {limit} bytes; send it and begin another")]
    BatchFull {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Too many questions wait for answers.
    #[error(transparent)]
    TooManyQuestions(#[from] TooManyQuestions),
    /// Answers arrive over a subscription, which a pool cannot have. Give the builder the
    /// URL for it ([`Builder::answers`](crate::Builder::answers)).
    #[error("answers cannot be received over a pool; give the emitter's builder a URL for them")]
    NoAnswers,
}

impl EmitError {
    /// Whether nothing was published and a retry can help.
    pub fn is_safe_to_retry(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Overloaded { .. })
    }
}

impl From<PublishError> for EmitError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Unavailable(reason) => Self::Unreachable(reason),
            PublishError::Unconfirmed(reason) => Self::Unconfirmed(reason),
            PublishError::Overloaded { queued_bytes } => Self::Overloaded { queued_bytes },
            PublishError::Refused(reason) => Self::Refused(reason),
        }
    }
}
