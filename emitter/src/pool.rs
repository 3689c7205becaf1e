//! Publishing over connections that the application has already, in a pool of deadpool-redis.
//!
//! Convenient and dear: at each checkout the pool asks its connection whether it lives, so that a
//! single publish takes three commands where an own connection takes one. Batches don't feel it.

use std::{fmt, time::Duration};

use deadpool_redis::{
    Connection, Pool, PoolError,
    redis::{self, ErrorKind, Pipeline, RedisError},
};
use tokio::time::timeout;

use crate::{emitter::EmitError, value::Value};

/// How long a connection of the pool is waited for, and then for what Redis replies.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The most commands that are sent at once.
const MAX_PIPELINE: usize = 512;

/// Sends commands over a pool.
#[derive(Clone)]
pub(crate) struct PoolPublisher {
    pool: Pool,
}

impl PoolPublisher {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// Sends commands in their order; answers one reply for each.
    pub(crate) async fn send<A: AsRef<[u8]>>(
        &self,
        commands: &[Vec<A>],
    ) -> Vec<Result<Value, EmitError>> {
        let mut replies = Vec::with_capacity(commands.len());
        // One connection for all of them, or they could overtake each other.
        let mut connection = None;
        for chunk in commands.chunks(MAX_PIPELINE) {
            match self.send_chunk(&mut connection, chunk).await {
                Ok(values) => replies.extend(values.into_iter().map(reply)),
                Err(error) => replies.extend(chunk.iter().map(|_| Err(copy(&error)))),
            }
        }
        replies
    }

    async fn send_chunk<A: AsRef<[u8]>>(
        &self,
        connection: &mut Option<Connection>,
        commands: &[Vec<A>],
    ) -> Result<Vec<redis::Value>, EmitError> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        pipeline.ignore_errors();
        for command in commands {
            pipeline.add_command(args(command));
        }
        let mut open = match connection.take() {
            Some(open) => open,
            None => self.checkout().await?,
        };
        let sending = pipeline.query_async::<Vec<redis::Value>>(&mut open);
        let values = match timeout(TIMEOUT, sending).await {
            Ok(sent) => sent.map_err(|error| unconfirmed(&error))?,
            Err(_) => return Err(EmitError::Unconfirmed("no reply in time".into())),
        };
        if values.len() != commands.len() {
            let reason = "another number of replies than commands";
            return Err(EmitError::Unconfirmed(reason.into()));
        }
        // Only a connection that has worked is of use for the next chunk.
        *connection = Some(open);
        Ok(values)
    }

    async fn checkout(&self) -> Result<Connection, EmitError> {
        match timeout(TIMEOUT, self.pool.get()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(PoolError::Backend(error))) if is_refusal(&error) => {
                Err(EmitError::Refused(error.to_string().into()))
            }
            Ok(Err(error)) => Err(EmitError::Unreachable(error.to_string().into())),
            Err(_) => Err(EmitError::Unreachable(
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

fn args<A: AsRef<[u8]>>(command: &[A]) -> redis::Cmd {
    let mut cmd = redis::Cmd::with_capacity(command.len(), 0);
    for arg in command {
        cmd.arg(arg.as_ref());
    }
    cmd
}

fn is_refusal(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig | ErrorKind::Server(_)
    )
}

/// Once commands were handed over, an error says nothing about what became of them.
fn unconfirmed(error: &RedisError) -> EmitError {
    if error.is_connection_refusal() {
        EmitError::Unreachable(error.to_string().into())
    } else {
        EmitError::Unconfirmed(error.to_string().into())
    }
}

fn reply(value: redis::Value) -> Result<Value, EmitError> {
    match value {
        redis::Value::ServerError(error) => Err(EmitError::Refused(
            RedisError::from(error).to_string().into(),
        )),
        value => Ok(plain(value)),
    }
}

/// The form that replies have everywhere else here.
fn plain(value: redis::Value) -> Value {
    let list = |values: Vec<redis::Value>| Value::List(values.into_iter().map(plain).collect());
    match value {
        redis::Value::Int(number) => Value::Integer(number),
        redis::Value::BulkString(bytes) => Value::Bytes(bytes.into()),
        redis::Value::SimpleString(text) => Value::Bytes(text.into_bytes().into()),
        redis::Value::Okay => Value::Bytes(b"OK".as_slice().into()),
        redis::Value::Double(number) => Value::Bytes(number.to_string().into_bytes().into()),
        redis::Value::Array(values) | redis::Value::Set(values) => list(values),
        redis::Value::Map(pairs) => list(
            pairs
                .into_iter()
                .flat_map(|(key, value)| [key, value])
                .collect(),
        ),
        redis::Value::ServerError(error) => {
            Value::Error(RedisError::from(error).to_string().into())
        }
        _ => Value::Nil,
    }
}

/// One failure is that of every command that was sent with it.
fn copy(error: &EmitError) -> EmitError {
    match error {
        EmitError::Unreachable(reason) => EmitError::Unreachable(reason.clone()),
        EmitError::Refused(reason) => EmitError::Refused(reason.clone()),
        other => EmitError::Unconfirmed(other.to_string().into()),
    }
}
