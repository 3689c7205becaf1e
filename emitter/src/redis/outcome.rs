//! The limits of a publisher, and the outcomes of its commands.
//!
//! | outcome | executed | cause |
//! |---|---|---|
//! | `Unavailable` | certainly not | no connection, or an error that concerns the server's state |
//! | `Overloaded` | certainly not | the queue is full |
//! | `Refused` | certainly not | Redis rejected the command |
//! | `Unconfirmed` | possibly | the connection or the reply was lost |

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use redis::Value;

use super::{error::text, reply::Reply};
use crate::backoff::Backoff;

/// The reply to one command. `Value::ServerError` is a reply.
pub(super) type Outcome = Result<Value, PublishError>;

/// Limits of a publisher.
#[derive(Debug, Clone)]
pub struct PublisherConfig {
    /// Maximum bytes of commands without a reply, per server. Default 16 MiB.
    pub max_queue_bytes: usize,
    /// A server that does not reply within this time is disconnected. Default 5 s.
    pub reply_timeout: Duration,
    /// The delays between attempts to connect. Default from 50 ms to 2 s.
    pub backoff: Backoff,
}

impl Default for PublisherConfig {
    fn default() -> Self {
        Self {
            max_queue_bytes: 16 << 20,
            reply_timeout: Duration::from_secs(5),
            backoff: Backoff::default(),
        }
    }
}

/// Figures of a publisher, over all its connections.
#[derive(Debug, Default)]
pub struct PublisherStats {
    /// Connections that were opened after the first one to each server.
    pub reconnects: AtomicU64,
    /// Bytes of commands that have no reply now.
    pub queued_bytes: AtomicU64,
}

/// Whether commands are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublisherState {
    /// There is a connection.
    Up,
    /// There is none, for this reason; another attempt follows.
    Down(Arc<str>),
}

/// Why a command has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Redis cannot be reached. The command was not executed.
    #[error("Redis is not available: {0}")]
    Unavailable(Arc<str>),
    /// Redis did not reply, or the connection broke first. The command may have been executed.
    #[error("Redis did not confirm: {0}")]
    Unconfirmed(Arc<str>),
    /// Too many bytes wait for Redis. The command was not executed.
    #[error("{queued_bytes} bytes wait for Redis already")]
    Overloaded {
        /// The bytes that wait.
        queued_bytes: usize,
    },
    /// Redis rejected the command, for example because the user may not publish there, or it is
    /// larger than the queue. It was not executed.
    #[error("the command was refused: {0}")]
    Refused(Arc<str>),
}

impl PublishError {
    pub(super) fn closed() -> Self {
        Self::Unavailable("the publisher is closed".into())
    }
}

/// Makes an error that Redis returned an error.
pub(crate) fn accepted(reply: Outcome) -> Outcome {
    match reply? {
        Value::ServerError(error) => {
            let is_passing = PASSING.contains(&error.code());
            let reason = text(&error.into()).into();
            Err(match is_passing {
                true => PublishError::Unavailable(reason),
                false => PublishError::Refused(reason),
            })
        }
        value => Ok(value),
    }
}

/// Codes of errors that concern the server's state and not the command, which was not executed.
const PASSING: [&str; 8] = [
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MOVED",
    "READONLY",
    "TRYAGAIN",
];

/// Reads the reply to PUBLISH.
pub(crate) fn receivers(reply: Outcome) -> Result<u64, PublishError> {
    let receivers = reply?.integer();
    let receivers = receivers.and_then(|number| u64::try_from(number).ok());
    receivers.ok_or_else(|| PublishError::Unconfirmed("an unexpected reply".into()))
}
