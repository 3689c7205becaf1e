//! Connections that are logged in, named and checked.
//!
//! Each call opens a new connection; keeping and replacing them is up to the caller. Opening takes
//! two round trips after those of TCP and TLS, all within [`CONNECT_TIMEOUT`]:
//!
//! ```text
//!   crate:  HELLO 3 [AUTH user password], [SELECT n]
//!   here:   CLIENT SETNAME …, HELLO        (version, mode and role are checked)
//! ```
//!
//! RESP3 is used everywhere: messages arrive as pushes, and so does the end of a connection, which
//! is noticed that way even while no command is in flight.

use std::{
    io,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Pipeline, ProtocolVersion, RedisConnectionInfo, Value,
    aio::{AsyncPushSender, MultiplexedConnection},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
    time,
};

use super::{
    error::{ConnectError, NEEDS_6_2, NEEDS_7, text},
    reply::Reply,
    slots::KeeperSlot,
    stream::{self, BoxStream, Target},
    url::{Address, Location, Login, RedisUrl},
    wire::Wire,
};

/// Timeout for opening a connection, from the first packet to the last reply of the login.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for a reply if the caller sets none. The crate's own default of 500 ms would report
/// commands as failed that Redis executes a moment later.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Receives pushed data, inline on the task that reads the connection: as long as a call runs,
/// nothing is read, so Redis cuts off a receiver that is too slow. The last push is a
/// `Disconnection`.
pub type Push = Arc<dyn AsyncPushSender>;

/// The purpose of a connection. Appears in `CLIENT LIST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Publishing and other commands.
    Publisher,
    /// Subscriptions.
    Subscriber,
    /// Reading a stream.
    Reader,
    /// Topology.
    Lookup,
}

impl Purpose {
    fn client_name(self) -> &'static str {
        match self {
            Self::Publisher => "roomcast-publisher",
            Self::Subscriber => "roomcast-subscriber",
            Self::Reader => "roomcast-reader",
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

/// How a server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// By itself.
    Standalone,
    /// As a node of a cluster.
    Cluster,
    /// As a Sentinel.
    Sentinel,
}

/// The properties that a server reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Host and port, or the path of the Unix socket.
    pub server: String,
    /// Host and port, unless it is a Unix socket.
    pub address: Option<Address>,
    /// The version; empty if the server does not report it.
    pub version: String,
    /// How it runs, if the server reports it.
    pub mode: Option<Mode>,
    /// Whether it takes writes, instead of following another server.
    pub is_primary: bool,
}

/// Where Redis is. Cheap to clone; clones share their knowledge about a cluster.
#[derive(Debug, Clone)]
pub struct Endpoint {
    url: Arc<RedisUrl>,
    needs_sharded: bool,
    /// Nodes of the cluster that were seen last, in addition to those of the URL.
    pub(super) known: Arc<Mutex<Vec<Address>>>,
    pub(super) keeper: KeeperSlot,
}

impl Endpoint {
    /// An endpoint for the URL. Does not connect.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url: Arc::new(url),
            needs_sharded: false,
            known: Arc::default(),
            keeper: KeeperSlot::default(),
        }
    }

    /// Rejects servers without sharded pub/sub (before Redis 7).
    #[must_use]
    pub fn needing_sharded(mut self) -> Self {
        self.needs_sharded = true;
        self
    }

    /// Whether servers must support sharded pub/sub.
    pub fn is_sharded(&self) -> bool {
        self.needs_sharded
    }

    /// The URL.
    pub fn url(&self) -> &RedisUrl {
        &self.url
    }

    /// How servers are found.
    pub fn topology(&self) -> Topology {
        match self.url.location {
            Location::Server(_) | Location::Unix(_) => Topology::Server,
            Location::Sentinel { .. } => Topology::Sentinel,
            Location::Cluster(_) => Topology::Cluster,
        }
    }

    /// Connects to the server, to the primary, or to any working node of the cluster.
    ///
    /// Takes up to [`CONNECT_TIMEOUT`] per server that is tried.
    pub async fn connect(
        &self,
        purpose: Purpose,
        push: Option<Push>,
    ) -> Result<Connection, ConnectError> {
        match &self.url.location {
            Location::Server(address) => self.connect_to(address, purpose, push).await,
            Location::Unix(path) => {
                let opening = self.open(Target::Unix(path), &self.url.login, purpose, push);
                self.checked(opening.await?)
            }
            Location::Sentinel { .. } => self.connect_to_primary(purpose, push).await,
            Location::Cluster(_) => self.connect_to_any(purpose, push).await,
        }
    }

    /// Connects to one server with the login of the URL, for example to a node of the cluster.
    pub async fn connect_to(
        &self,
        address: &Address,
        purpose: Purpose,
        push: Option<Push>,
    ) -> Result<Connection, ConnectError> {
        let opening = self.open(Target::Tcp(address), &self.url.login, purpose, push);
        self.checked(opening.await?)
    }

    pub(super) async fn open(
        &self,
        target: Target<'_>,
        login: &Login,
        purpose: Purpose,
        push: Option<Push>,
    ) -> Result<Connection, ConnectError> {
        let server = target.to_string();
        // A Sentinel has no databases.
        let database = match login == &self.url.login {
            true => self.url.database,
            false => 0,
        };
        let opening = async {
            let stream = stream::open(&target, self.url.tls.as_ref()).await?;
            let (stream, lent) = match purpose {
                Purpose::Publisher => {
                    let lent = Lent::new(stream);
                    (Box::new(lent.clone()) as BoxStream, Some(lent))
                }
                _ => (stream, None),
            };
            let mut config = AsyncConnectionConfig::new()
                .set_connection_timeout(None)
                .set_response_timeout(Some(RESPONSE_TIMEOUT));
            if let Some(push) = push {
                config = config.set_push_sender(push);
            }
            let settings = settings(login, database);
            let opened = MultiplexedConnection::new_with_config(&settings, stream, config);
            let opened = opened.await;
            let (inner, driver) =
                opened.map_err(|error| ConnectError::of_opening(&server, database, &error))?;
            let mut driving = JoinSet::new();
            driving.spawn(driver);
            let mut connection = Connection {
                inner: Multiplexed {
                    inner,
                    driving: Arc::new(driving),
                },
                lent,
                info: ServerInfo {
                    server: server.clone(),
                    address: target.address(),
                    version: String::new(),
                    mode: None,
                    is_primary: true,
                },
            };
            connection.introduce(purpose).await?;
            Ok(connection)
        };
        within_timeout(&server, opening).await
    }
    /// Rejects a server that cannot carry messages.
    fn checked(&self, connection: Connection) -> Result<Connection, ConnectError> {
        let info = connection.info();
        let server = info.server.clone();
        if info.mode == Some(Mode::Sentinel) {
            return Err(ConnectError::IsSentinel { server });
        }
        // For a while after a failover, a name still resolves to the old primary.
        if !info.is_primary && self.topology() == Topology::Server {
            return Err(ConnectError::NotPrimary { server });
        }
        let (least, need) = match self.needs_sharded {
            true => ((7, 0), NEEDS_7),
            false => ((6, 2), NEEDS_6_2),
        };
        if version(&info.version).is_some_and(|version| version < least) {
            let version = info.version.clone();
            return Err(ConnectError::TooOld {
                server,
                version,
                need,
            });
        }
        let is_part = info.mode == Some(Mode::Cluster) && self.topology() != Topology::Cluster;
        if self.needs_sharded && is_part {
            return Err(ConnectError::IsCluster { server });
        }
        Ok(connection)
    }
}

/// The settings of a login.
fn settings(login: &Login, database: u32) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(i64::from(database))
        // Rights for `CLIENT SETINFO` are not needed otherwise.
        .set_skip_set_lib_name();
    if let Some(user) = &login.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &login.password {
        settings = settings.set_password(password);
    }
    settings
}

/// Major and minor version; `None` if the text is not a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

/// A connection to one server.
#[derive(Debug)]
pub struct Connection {
    inner: Multiplexed,
    /// The stream of a publisher.
    lent: Option<Lent>,
    info: ServerInfo,
}

/// A connection of the `redis` crate. Clones share it; it is closed when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Multiplexed {
    inner: MultiplexedConnection,
    /// The task that reads and writes.
    driving: Arc<JoinSet<()>>,
}

impl Deref for Multiplexed {
    type Target = MultiplexedConnection;

    fn deref(&self) -> &MultiplexedConnection {
        &self.inner
    }
}

impl DerefMut for Multiplexed {
    fn deref_mut(&mut self) -> &mut MultiplexedConnection {
        &mut self.inner
    }
}

/// A stream that a connection of the crate uses for the login and then gives back.
#[derive(Clone)]
struct Lent(Arc<Mutex<BoxStream>>);

impl Lent {
    fn new(stream: BoxStream) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }
}

impl AsyncRead for Lent {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(context, buffer)
    }
}

impl AsyncWrite for Lent {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_shutdown(context)
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

impl Connection {
    /// Names the connection and asks the server for its properties.
    async fn introduce(&mut self, purpose: Purpose) -> Result<(), ConnectError> {
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline
            .cmd("CLIENT")
            .arg("SETNAME")
            .arg(purpose.client_name());
        pipeline.cmd("HELLO");
        let replies = self.inner.send_packed_commands(&pipeline, 0, 2).await;
        let replies =
            replies.map_err(|error| ConnectError::of_opening(&self.info.server, 0, &error))?;
        // A user that may not name connections may still publish.
        let [_, hello] = &replies[..] else {
            return Err(ConnectError::unexpected(&self.info.server));
        };
        if let Value::ServerError(error) = hello {
            return Err(self.refused(text(&error.clone().into())));
        }
        for (name, value) in hello.pairs().unwrap_or_default() {
            match (name.text(), value.text()) {
                (Some("version"), Some(version)) => version.clone_into(&mut self.info.version),
                (Some("mode"), Some("standalone")) => self.info.mode = Some(Mode::Standalone),
                (Some("mode"), Some("cluster")) => self.info.mode = Some(Mode::Cluster),
                (Some("mode"), Some("sentinel")) => self.info.mode = Some(Mode::Sentinel),
                (Some("role"), Some(role)) => self.info.is_primary = role == "master",
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends one command and returns the reply. An error that the server returns is an error here,
    /// too.
    pub async fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Value, ConnectError> {
        let mut command = redis::Cmd::with_capacity(args.len(), 0);
        for arg in args {
            command.arg(arg.as_ref());
        }
        let reply = self.inner.send_packed_command(&command).await;
        match reply.and_then(Value::extract_error) {
            Ok(reply) => Ok(reply),
            Err(error) if error.code().is_some() => Err(self.refused(text(&error))),
            Err(error) => Err(ConnectError::of_opening(&self.info.server, 0, &error)),
        }
    }

    /// The properties that the server reported.
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    /// The connection of the `redis` crate.
    pub fn into_inner(self) -> Multiplexed {
        self.inner
    }

    /// The stream of a publisher, which the crate gives back after the login.
    pub(super) async fn into_wire(self) -> Wire {
        let driving = Arc::into_inner(self.inner.driving);
        driving.expect("it has no clones").shutdown().await;
        let stream = self.lent.and_then(|lent| Arc::into_inner(lent.0));
        Wire::new(stream.expect("it is a publisher's").into_inner())
    }

    fn refused(&self, reason: String) -> ConnectError {
        ConnectError::of_reply(self.info.server.clone(), reason)
    }
}

pub(super) async fn within_timeout<T>(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.2.14"), Some((6, 2)));
        assert_eq!(version("10"), Some((10, 0)));
        assert_eq!(version("unstable"), None);
        assert!(version("10.0.1") > version("7.4"));
    }
}
