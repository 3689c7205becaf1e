//! Emitting to the clients of a cluster from outside of it: from workers, cron jobs and other
//! services that serve no sockets.
//!
//! It publishes to Redis what the nodes of the cluster publish to each other, as
//! `@socket.io/redis-emitter` does for Node's servers. It needs no node to be reachable, and it
//! listens for nothing but the answers to its own questions.

mod batch;
mod core;
mod error;
mod narrowing;
mod operator;
mod results;
mod retry;
mod transport;

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::Mutex;
use tokio::time::sleep;

pub(crate) use self::narrowing::narrowing;
pub use self::{
    batch::{Batch, BatchOperator},
    error::{BuildError, EmitError},
    operator::BroadcastOperator,
    results::{Answers, Confirmed, Delivery, Fetched},
    retry::Retry,
};
use self::{core::Core, transport::Transport};
#[cfg(feature = "pool")]
use crate::pool::PoolPublisher;
use crate::{
    answers::Answers as AnswersHeard,
    asking::Asking,
    endpoint::{ConnectError, Endpoint, RedisUrl},
    entropy,
    publisher::{Publisher, PublisherConfig},
};
use roomcast_protocol::{
    args::IntoArgs,
    channel::{Channels, Dialect},
    id::NodeId,
    msgpack::TranscodeLimits,
    target::Rooms,
    wire::{Parser, Wire},
};

/// Emits to the clients of a cluster. Cheap to clone; the connections end with the last clone.
///
/// ```no_run
/// use roomcast_emitter::Emitter;
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let emitter = Emitter::connect("redis://127.0.0.1").await?;
/// let delivery = emitter.to("room:7").emit("news", "it rains").await?;
/// println!("{} nodes have members of that room", delivery.nodes);
/// emitter.of("/admin").in_(["ops", "dev"]).except("muted").emit("alert", ("disk", 93)).await?;
/// emitter.in_("user:7").disconnect_sockets(true).await?;
/// # Ok(())
/// # }
/// ```
///
/// Two emits, the second made after the first has resolved, arrive in that order at every client.
/// The exception is a Redis Cluster with the sharded dialect, where that holds for each channel.
#[derive(Clone)]
pub struct Emitter {
    core: Arc<Core>,
}

impl Emitter {
    /// Connects to Redis, with the defaults of [`Builder`]. The forms of the URL are those of
    /// [`RedisUrl`].
    pub async fn connect(url: &str) -> Result<Self, BuildError> {
        Self::builder().connect(url).await
    }

    /// An emitter with other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Emits over a pool that the application has already, with the defaults of [`Builder`].
    #[cfg(feature = "pool")]
    pub fn new(pool: deadpool_redis::Pool) -> Self {
        Self::builder().pool(pool)
    }

    /// A namespace. Its name begins with a slash; if not, every operation answers so.
    pub fn of(&self, namespace: &str) -> BroadcastOperator {
        let namespace = match namespace {
            "/" => Cow::Borrowed("/"),
            other => Cow::Owned(other.to_owned()),
        };
        BroadcastOperator::new(Arc::clone(&self.core), namespace)
    }

    /// Whoever is in one of these rooms of the main namespace.
    pub fn to(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").to(rooms)
    }

    /// The same as [`to`](Self::to).
    pub fn in_(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.to(rooms)
    }

    /// Everybody in the main namespace but those in these rooms.
    pub fn except(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").except(rooms)
    }

    /// Emits an event to everybody in the main namespace, and waits until Redis has taken it.
    pub async fn emit(&self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        self.of("/").emit(event, args).await
    }

    /// Collects many emits, to publish them at once.
    pub fn batch(&self) -> Batch {
        Batch::new(Arc::clone(&self.core))
    }
}

impl fmt::Debug for Emitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emitter").finish_non_exhaustive()
    }
}

/// The settings of an [`Emitter`]. All but the retries must be those of the nodes.
#[derive(Debug, Clone)]
#[must_use = "nothing happens until `connect` is called and awaited"]
pub struct Builder {
    prefix: Box<str>,
    dialect: Dialect,
    parser: Parser,
    retry: Retry,
    answers: Option<RedisUrl>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            prefix: "socket.io".into(),
            dialect: Dialect::default(),
            parser: Parser::default(),
            retry: Retry::default(),
            answers: None,
        }
    }
}

impl Builder {
    /// What the names of all channels begin with (`key` in Node). Default `socket.io`.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Which of Node's Redis adapters the nodes speak with. Default classic.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// How broadcasts are encoded. Default MessagePack.
    pub fn parser(mut self, parser: Parser) -> Self {
        self.parser = parser;
        self
    }

    /// When an emit that failed is tried again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Where an emitter over a pool hears the answers to its questions. Without it, `emit_confirmed`,
    /// `emit_with_ack` and `fetch_sockets` are errors there.
    pub fn answers(mut self, url: RedisUrl) -> Self {
        self.answers = Some(url);
        self
    }

    /// Connects to Redis.
    pub async fn connect(self, url: &str) -> Result<Emitter, BuildError> {
        let url = url.parse()?;
        self.connect_to(url).await
    }

    /// The same for a URL that was read already. While Redis cannot be reached, it is tried again as
    /// [`Retry`] says; what is wrong with the setting is an error at once.
    pub async fn connect_to(self, url: RedisUrl) -> Result<Emitter, BuildError> {
        let mut endpoint = Endpoint::new(url);
        if self.dialect != Dialect::Classic {
            endpoint = endpoint.needing_sharded();
        }
        let publisher = self.publisher(&endpoint).await?;
        Ok(self.emitter(Transport::Own(publisher), Some(endpoint)))
    }

    /// Emits over a pool that the application has already. Nothing is tried before the first emit.
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
        let channels = Channels::new(&self.prefix, self.dialect);
        let wire = Arc::new(Wire::new(channels, self.parser, TranscodeLimits::default()));
        let node = NodeId::new(&entropy::name::<20>());
        let asking = Arc::<Asking>::default();
        let answers = answers.map(|endpoint| {
            AnswersHeard::new(
                endpoint,
                Arc::clone(&wire),
                node.clone(),
                Arc::clone(&asking),
            )
        });
        let core = Core {
            transport,
            wire,
            is_sharded: self.dialect != Dialect::Classic,
            retry: self.retry,
            node,
            questions: AtomicU64::new(0),
            asking,
            leases: Mutex::default(),
            answers,
        };
        Emitter {
            core: Arc::new(core),
        }
    }
}
