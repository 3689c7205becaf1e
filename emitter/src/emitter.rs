//! Emitting to the clients of a cluster from processes without sockets: workers, cron
//! jobs and other services.
//!
//! An emitter publishes the same messages in Redis as the nodes of the cluster, as
//! `@socket.io/redis-emitter` does for Node's servers. No node has to be reachable. It subscribes
//! only to the answers to its own questions.

mod batch;
mod core;
mod encoder;
mod journals;
mod narrowing;
mod operator;
mod results;
mod retry;
mod transport;
mod unsent;

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::sleep;

pub(crate) use self::narrowing::narrowing;
pub use self::{
    batch::{Batch, BatchOperator},
    operator::BroadcastOperator,
    results::{Answers, Delivery, Fetched},
    retry::Retry,
};
use self::{core::Core, encoder::Encoder, journals::Journals, transport::Transport};
#[cfg(feature = "pool")]
use crate::pool::PoolPublisher;
use crate::{
    answers::Answers as AnswerConnections,
    entropy,
    error::{BuildError, EmitError},
    membership::PendingQuestions,
    recent_joins::RecentJoins,
    redis::{ConnectError, Endpoint, Publisher, PublisherConfig, RedisUrl},
    signing::{Signer, Signing},
};
use roomcast_protocol::{
    args::IntoArgs,
    channel::{Channels, Dialect},
    id::NodeId,
    msgpack::TranscodeLimits,
    target::Rooms,
    wire::{Parser, Wire},
};

/// Default lifetime of the results of emits with an idempotency key: that of the HTTP API.
const IDEMPOTENCY_TIME: Duration = Duration::from_secs(300);

/// Emits to the clients of a cluster. Cheap to clone; the connections close with the last clone.
///
/// ```no_run
/// use roomcast_emitter::Emitter;
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let emitter = Emitter::connect("redis://127.0.0.1").await?;
/// let delivery = emitter.to("room:7").emit("news", "it rains").await?;
/// println!("{} nodes received it", delivery.nodes);
/// emitter.of("/admin").in_(["ops", "dev"]).except("muted").emit("alert", ("disk", 93)).await?;
/// emitter.in_("user:7").disconnect_sockets(true).await?;
/// # Ok(())
/// # }
/// ```
///
/// If a second emit is made after the first has resolved, the two arrive in that order at every
/// client. On a Redis Cluster with the sharded dialect, that holds only per channel.
#[derive(Clone)]
pub struct Emitter {
    core: Arc<Core>,
}

impl Emitter {
    /// Connects to Redis, with the defaults of [`Builder`]. [`RedisUrl`] lists the forms
    /// of the URL.
    pub async fn connect(url: &str) -> Result<Self, BuildError> {
        Self::builder().connect(url).await
    }

    /// Returns a builder for other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Emits over an existing pool, with the defaults of [`Builder`].
    ///
    /// Does not connect. Without [`Builder::answers`], methods that wait for answers fail.
    #[cfg(feature = "pool")]
    pub fn new(pool: deadpool_redis::Pool) -> Self {
        Self::builder().pool(pool)
    }

    /// Selects a namespace. If its name does not begin with a slash, every operation fails.
    pub fn of(&self, namespace: &str) -> BroadcastOperator {
        let namespace = match namespace {
            "/" => Cow::Borrowed("/"),
            other => Cow::Owned(other.to_owned()),
        };
        BroadcastOperator::new(Arc::clone(&self.core), namespace)
    }

    /// Selects the sockets in any of these rooms of the main namespace.
    pub fn to(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").to(rooms)
    }

    /// The same as [`to`](Self::to).
    pub fn in_(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.to(rooms)
    }

    /// Selects all sockets of the main namespace except those in these rooms.
    pub fn except(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").except(rooms)
    }

    /// Emits an event to all sockets of the main namespace. Resolves when Redis has accepted it.
    pub async fn emit(&self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        self.of("/").emit(event, args).await
    }

    /// Collects many emits and publishes them at once.
    pub fn batch(&self) -> Batch {
        Batch::new(Arc::clone(&self.core))
    }
}

impl fmt::Debug for Emitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emitter").finish_non_exhaustive()
    }
}

/// Settings of an [`Emitter`]. All except the retries must equal those of the nodes.
#[derive(Debug, Clone)]
#[must_use = "nothing happens until `connect` is called and awaited"]
pub struct Builder {
    prefix: Box<str>,
    dialect: Dialect,
    stream: Option<Box<str>>,
    stream_max_len: usize,
    parser: Parser,
    retry: Retry,
    counts_members: bool,
    idempotency_time: Duration,
    answers: Option<RedisUrl>,
    signing: Option<Signing>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            prefix: "socket.io".into(),
            dialect: Dialect::default(),
            stream: None,
            stream_max_len: 10_000,
            parser: Parser::default(),
            retry: Retry::default(),
            counts_members: false,
            idempotency_time: IDEMPOTENCY_TIME,
            answers: None,
            signing: None,
        }
    }
}

impl Builder {
    /// Sets the prefix of all channel names (`key` in Node). Default `socket.io`.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the dialect: the Redis adapter of Node with which the nodes are compatible. Default
    /// classic.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Sets the key of the stream in the streams dialect. Default: the prefix.
    pub fn stream(mut self, key: &str) -> Self {
        self.stream = Some(key.into());
        self
    }

    /// Sets the approximate maximum number of entries of the stream. Default 10,000.
    pub fn stream_max_len(mut self, entries: usize) -> Self {
        self.stream_max_len = entries.max(1);
        self
    }

    /// Sets the encoding of broadcasts. Default MessagePack.
    pub fn parser(mut self, parser: Parser) -> Self {
        self.parser = parser;
        self
    }

    /// Sets when failed emits are retried.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Also counts, with each emit, the nodes that have members of the room, for
    /// [`Delivery::members`]. Costs one more command per emit; batches ignore it. Default off.
    pub fn count_members(mut self, counts: bool) -> Self {
        self.counts_members = counts;
        self
    }

    /// Sets how long the result of an emit with an
    /// [idempotency key](BroadcastOperator::idempotency_key) is kept. Default 5 minutes.
    pub fn idempotency_time(mut self, time: Duration) -> Self {
        self.idempotency_time = time;
        self
    }

    /// Sets the URL over which an emitter with a pool receives answers. Without it,
    /// `emit_confirmed`, `emit_with_ack` and `fetch_sockets` fail there.
    pub fn answers(mut self, url: RedisUrl) -> Self {
        self.answers = Some(url);
        self
    }

    /// Signs all messages, for a cluster whose nodes have one of these keys, and accepts only
    /// signed answers. The time is that of Redis, which the emitter requests at most every 10 s.
    /// Must not be combined with [`Parser::Json`] or [`Dialect::Streams`], which are for clusters
    /// with Node's servers.
    pub fn signing(mut self, signing: Signing) -> Self {
        self.signing = Some(signing);
        self
    }

    /// Connects to Redis.
    pub async fn connect(self, url: &str) -> Result<Emitter, BuildError> {
        let url = url.parse()?;
        self.connect_to(url).await
    }

    /// Connects to Redis with a parsed URL. While Redis cannot be reached, the connection is
    /// retried according to [`Retry`]; a permanent error, such as a wrong password, is returned at
    /// once.
    pub async fn connect_to(self, url: RedisUrl) -> Result<Emitter, BuildError> {
        if self.signing.is_some() && !Signing::is_possible(self.dialect, self.parser) {
            return Err(BuildError::Unsignable);
        }
        let mut endpoint = Endpoint::new(url);
        if self.dialect.is_sharded() {
            endpoint = endpoint.needing_sharded();
        }
        let publisher = self.publisher(&endpoint).await?;
        Ok(self.emitter(Transport::Own(publisher), Some(endpoint)))
    }

    /// Emits over an existing pool. Does not connect before the first emit.
    #[cfg(feature = "pool")]
    pub fn pool(self, pool: deadpool_redis::Pool) -> Emitter {
        let answers = self.answers.clone().map(Endpoint::new);
        self.emitter(Transport::Pool(PoolPublisher::new(pool)), answers)
    }

    async fn publisher(&self, endpoint: &Endpoint) -> Result<Publisher, ConnectError> {
        let mut tried = 0;
        loop {
            let config = PublisherConfig::default();
            let error = match Publisher::connect(endpoint.clone(), config).await {
                Ok(publisher) => return Ok(publisher),
                Err(error) => error,
            };
            tried += 1;
            match self.retry.pause_to_connect(tried, &error) {
                Some(pause) => sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    fn emitter(self, transport: Transport, answers: Option<Endpoint>) -> Emitter {
        let mut channels = Channels::new(&self.prefix, self.dialect);
        if let Some(stream) = &self.stream {
            channels = channels.with_stream(stream);
        }
        let wire = Arc::new(Wire::new(channels, self.parser, TranscodeLimits::default()));
        let node = NodeId::new(&entropy::name::<20>());
        let questions = Arc::<PendingQuestions>::default();
        let signer = self.signing.as_ref();
        let signer = signer.map(|signing| Arc::new(Signer::new(signing, node.as_str())));
        let answers = answers.map(|endpoint| {
            AnswerConnections::new(
                endpoint,
                Arc::clone(&wire),
                node.clone(),
                Arc::clone(&questions),
                signer.clone(),
            )
        });
        let core = Core {
            transport,
            encoder: Encoder {
                recent_joins: RecentJoins::default(),
                wire,
                is_sharded: self.dialect.is_sharded(),
                stream_max_len: self.stream_max_len,
            },
            retry: self.retry,
            counts_members: self.counts_members,
            journals: Journals::default(),
            idempotency_time: self.idempotency_time,
            node,
            asked: AtomicU64::new(0),
            questions,
            leases: Mutex::default(),
            answers,
            signer,
        };
        Emitter {
            core: Arc::new(core),
        }
    }
}
