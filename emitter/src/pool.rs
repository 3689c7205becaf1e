//! Publishing over connections that the application already has, in a pool of deadpool-redis.
//!
//! Convenient but expensive: at each checkout the pool checks that its connection works,
//! so a single publish takes three commands where a connection of the emitter's own takes
//! one. Batches hardly notice.
//!
//! The crate has a response timeout of 500 ms by default, after which it reports an error although
//! Redis may publish the message a moment later. It is replaced at each checkout, because the pool
//! belongs to the application.

use std::{fmt, sync::Arc, time::Duration};

use deadpool_redis::{Connection, Pool, PoolError};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisWrite, Value};
use tokio::time::timeout;

use crate::redis::{Commands, PublishError, accepted, error_text};

/// Timeout for a connection of the pool, and then for each reply.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends commands over a pool.
#[derive(Clone)]
pub(crate) struct PoolPublisher {
    pool: Pool,
}

impl PoolPublisher {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// Sends commands and returns their replies, both in order.
    pub(crate) async fn send(&self, pieces: &[Arc<Commands>]) -> Vec<Result<Value, PublishError>> {
        let mut replies = Vec::new();
        // One connection for all of them, or they could overtake each other.
        let mut connection = None;
        for piece in pieces {
            match self.send_piece(&mut connection, piece).await {
                Ok(values) => replies.extend(values.into_iter().map(|value| accepted(Ok(value)))),
                Err(error) => replies.extend(piece.iter().map(|_| Err(error.clone()))),
            }
        }
        replies
    }

    async fn send_piece(
        &self,
        connection: &mut Option<Connection>,
        piece: &Commands,
    ) -> Result<Vec<Value>, PublishError> {
        let mut open = match connection.take() {
            Some(open) => open,
            None => self.checkout().await?,
        };
        let mut pipeline = Pipeline::with_capacity(piece.len());
        for words in piece.iter() {
            let mut command = Cmd::new();
            words.for_each(|word| command.write_arg(word));
            pipeline.add_command(command);
        }
        let sent = open.send_packed_commands(&pipeline, 0, piece.len()).await;
        let values = sent.map_err(|error| unconfirmed(&error))?;
        // Only a connection that has worked can be used for the next pipeline.
        *connection = Some(open);
        Ok(values)
    }

    async fn checkout(&self) -> Result<Connection, PublishError> {
        match timeout(TIMEOUT, self.pool.get()).await {
            Ok(Ok(mut connection)) => {
                // The crate's default of 500 ms reports messages as failed that are published.
                connection.set_response_timeout(TIMEOUT);
                Ok(connection)
            }
            Ok(Err(PoolError::Backend(error))) if is_refusal(&error) => {
                Err(PublishError::Refused(error_text(&error).into()))
            }
            Ok(Err(error)) => Err(PublishError::Unavailable(error.to_string().into())),
            Err(_) => Err(PublishError::Unavailable(
                "no connection of the pool became free in time".into(),
            )),
        }
    }
}

impl fmt::Debug for PoolPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolPublisher").finish_non_exhaustive()
    }
}

fn is_refusal(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig | ErrorKind::Server(_)
    )
}

/// Once commands were handed over, an error does not reveal their outcome.
fn unconfirmed(error: &RedisError) -> PublishError {
    let reason = error_text(error).into();
    if error.is_connection_refusal() {
        PublishError::Unavailable(reason)
    } else {
        PublishError::Unconfirmed(reason)
    }
}
