//! Finding Redis and logging in: one server, the primary that Sentinels name, or the nodes of a
//! cluster.
//!
//! An [`Endpoint`] is made from one setting ([`RedisUrl`]) and gives connections that are ready for
//! commands. It opens each anew and keeps none: that is what links do.

mod cluster;
mod connection;
mod sentinel;
mod stream;
mod tls;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time;

use self::connection::Greeting;
pub(crate) use self::stream::DirectWriter;
pub use self::{
    connection::{Connection, Mode, ServerInfo},
    stream::Stream,
};
use crate::redis::Location as Place;
pub use crate::redis::{Address, ClusterMap, ConnectError, RedisUrl, SlotRange, UrlError};

/// How long a server may take from the first packet to the last answer of the log-in.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection is for; shows in `CLIENT LIST` of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Publishing and other commands.
    Publisher,
    /// Subscriptions.
    Subscriber,
    /// Finding out where the others are.
    Lookup,
}

impl Purpose {
    fn client_name(self) -> &'static str {
        match self {
            Self::Publisher => "roomcast-publisher",
            Self::Subscriber => "roomcast-subscriber",
            Self::Lookup => "roomcast-lookup",
        }
    }
}

/// How servers are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topology {
    /// One server.
    Server,
    /// One primary, named by Sentinels.
    Sentinel,
    /// A cluster.
    Cluster,
}

/// Where Redis is. Cheap to clone; clones share what they learn of a cluster.
#[derive(Debug, Clone)]
pub struct Endpoint {
    url: Arc<RedisUrl>,
    needs_sharded: bool,
    /// Nodes of the cluster that were seen last, beside those of the setting.
    known: Arc<Mutex<Vec<Address>>>,
}

impl Endpoint {
    /// What the setting points to. Nothing is looked at before `connect`.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url: Arc::new(url),
            needs_sharded: false,
            known: Arc::default(),
        }
    }

    /// From now on servers that are too old for sharded pub/sub (before Redis 7) are refused.
    #[must_use]
    pub fn needing_sharded(mut self) -> Self {
        self.needs_sharded = true;
        self
    }

    /// Whether servers have to know sharded pub/sub.
    pub fn is_sharded(&self) -> bool {
        self.needs_sharded
    }

    /// The setting.
    pub fn url(&self) -> &RedisUrl {
        &self.url
    }

    /// How servers are found.
    pub fn topology(&self) -> Topology {
        match self.url.location {
            Place::Server(_) | Place::Unix(_) => Topology::Server,
            Place::Sentinel { .. } => Topology::Sentinel,
            Place::Cluster(_) => Topology::Cluster,
        }
    }

    /// Connects to the server, to the primary, or to any node of the cluster that serves.
    ///
    /// Takes up to [`CONNECT_TIMEOUT`] per server that is asked.
    pub async fn connect(&self, purpose: Purpose) -> Result<Connection, ConnectError> {
        match &self.url.location {
            Place::Server(address) => self.connect_to(address, purpose).await,
            Place::Unix(path) => {
                let server = path.display().to_string();
                let opening = async {
                    let stream = Stream::unix(path).await;
                    stream.map_err(|error| ConnectError::Unreachable {
                        server: server.clone(),
                        reason: error.to_string(),
                    })
                };
                let greeting = self.greeting(purpose);
                let connecting = Connection::open(&server, None, opening, &greeting);
                self.checked(within_timeout(&server, connecting).await?)
            }
            Place::Sentinel {
                sentinels,
                primary,
                login,
            } => {
                let address = self.named_primary(sentinels, primary, login).await?;
                self.connect_to_primary(&address, purpose).await
            }
            Place::Cluster(_) => self.connect_to_any(purpose).await,
        }
    }

    /// Connects to this very server, with the log-in of the setting: for a node of the cluster.
    pub async fn connect_to(
        &self,
        address: &Address,
        purpose: Purpose,
    ) -> Result<Connection, ConnectError> {
        let connection = self.open(address, &self.greeting(purpose)).await?;
        self.checked(connection)
    }

    async fn open(
        &self,
        address: &Address,
        greeting: &Greeting<'_>,
    ) -> Result<Connection, ConnectError> {
        let server = address.to_string();
        let opening = async {
            let stream = Stream::tcp(address).await;
            let stream = stream.map_err(|error| ConnectError::Unreachable {
                server: server.clone(),
                reason: error.to_string(),
            })?;
            match &self.url.tls {
                Some(files) => Ok(tls::secure(stream, address, files).await?.into()),
                None => Ok(stream.into()),
            }
        };
        let connecting = Connection::open(&server, Some(address), opening, greeting);
        within_timeout(&server, connecting).await
    }

    fn greeting(&self, purpose: Purpose) -> Greeting<'_> {
        Greeting {
            login: &self.url.login,
            database: self.url.database,
            client_name: purpose.client_name(),
        }
    }

    /// Refuses a server that cannot carry messages.
    fn checked(&self, connection: Connection) -> Result<Connection, ConnectError> {
        let info = connection.info();
        let server = info.server.clone();
        if info.mode == Some(Mode::Sentinel) {
            return Err(ConnectError::IsSentinel { server });
        }
        if self.needs_sharded && info.major_version.is_some_and(|major| major < 7) {
            return Err(ConnectError::TooOld {
                server,
                version: info.version.clone(),
                need: "the sharded dialect needs Redis 7",
            });
        }
        let is_part = info.mode == Some(Mode::Cluster) && self.topology() != Topology::Cluster;
        if self.needs_sharded && is_part {
            return Err(ConnectError::IsCluster { server });
        }
        Ok(connection)
    }
}

async fn within_timeout<T>(
    server: &str,
    connecting: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let connected = time::timeout(CONNECT_TIMEOUT, connecting).await;
    connected.unwrap_or_else(|_| {
        Err(ConnectError::TimedOut {
            server: server.to_owned(),
            after: CONNECT_TIMEOUT,
        })
    })
}
