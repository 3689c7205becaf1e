//! Commands to Redis of the parts that keep something there for the whole cluster:
//! idempotency keys, and the stored state of doors. The connection is opened for the first
//! command, because most nodes need none.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use roomcast::{
    RedisConfig,
    emitter::redis::{
        Endpoint, PublishError, Publisher, PublisherConfig, PublisherState, Route, Value,
    },
};
use tokio::time::{sleep, timeout};

/// How long a command waits for a connection that is being opened.
const PATIENCE: Duration = Duration::from_secs(2);

/// Attempts to send a command while there is no connection, and the pause between them.
const ATTEMPTS: u32 = 5;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);

/// The commands of one part.
pub(crate) struct RedisCommands {
    config: RedisConfig,
    publisher: OnceLock<Arc<Publisher>>,
}

impl RedisCommands {
    pub(crate) fn new(config: RedisConfig) -> Self {
        let publisher = OnceLock::new();
        Self { config, publisher }
    }

    /// The beginning of all keys.
    pub(crate) fn prefix(&self) -> &str {
        &self.config.prefix
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.config.url.clone())
    }

    pub(crate) fn publisher(&self) -> &Arc<Publisher> {
        self.publisher.get_or_init(|| {
            let config = PublisherConfig {
                reply_timeout: self.config.publish_timeout,
                ..PublisherConfig::default()
            };
            Arc::new(Publisher::start(self.endpoint(), config))
        })
    }

    /// Sends a command to the server that owns `key`, and returns its reply.
    pub(crate) async fn run(&self, key: &str, command: &[&str]) -> Result<Value, PublishError> {
        let publisher = self.publisher();
        let mut state = publisher.state();
        let up = state.wait_for(|state| *state == PublisherState::Up);
        // The command itself reports why it fails.
        drop(timeout(PATIENCE, up).await);
        let reply = send(publisher, key, command).await?;
        reply.ok_or_else(|| PublishError::Unconfirmed("Redis sent no reply".into()))
    }
}

/// Sends a command to the server that owns `key`, and returns its reply.
///
/// In a cluster, connections are opened by the first command, which then fails. A
/// command that was unavailable was not executed, so it is repeated.
pub(crate) async fn send<A: AsRef<[u8]>>(
    publisher: &Publisher,
    key: &str,
    command: &[A],
) -> Result<Option<Value>, PublishError> {
    let mut attempt = 1;
    let replies = loop {
        match publisher.command(command, Route::Key(key)).await {
            Err(PublishError::Unavailable(_)) if attempt < ATTEMPTS => attempt += 1,
            replies => break replies?,
        }
        sleep(ATTEMPT_PAUSE).await;
    };
    Ok(replies.into_iter().next())
}
