//! Publishing and other commands, whatever Redis consists of: one server, a primary that Sentinels
//! name, or a cluster.
//!
//! A [`Publisher`] owns the links that this takes and keeps none of the messages: while Redis is
//! away, each is an error at once. What is said by one caller after the other, the second after the
//! first has resolved, arrives in that order; in a cluster with sharded channels, in the order of
//! each channel.

mod attempts;
mod cluster;
mod redirect;

use std::{
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::watch, task::AbortHandle, time};

use self::{attempts::Routed, cluster::Cluster};
pub use crate::link::{LinkState as PublisherState, LinkStats as PublisherStats};
use crate::{
    backoff::Backoff,
    endpoint::{CONNECT_TIMEOUT, ConnectError, Connection, Endpoint, Purpose, Topology},
    link::{Commands, Destination, Link, LinkConfig, LinkError, Pending, PendingMany},
    value::Value,
};

/// How often Sentinels are asked whether the primary is still the same. Mostly it tells by itself,
/// by closing its connections; one that is cut off cannot.
const PRIMARY_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// What a publisher holds and how long it waits.
#[derive(Debug, Clone)]
pub struct PublisherConfig {
    /// Bytes of commands that are not answered, per server. 16 MiB by default.
    pub max_queue_bytes: usize,
    /// A server that answers nothing for this long, though it should, is left. 5 s by default;
    /// noticed up to an eighth late.
    pub reply_timeout: Duration,
    /// The delays between attempts to connect. Up to 50 ms at first, 2 s at last by default.
    pub backoff: Backoff,
}

impl Default for PublisherConfig {
    fn default() -> Self {
        let LinkConfig {
            max_queue_bytes,
            reply_timeout,
            backoff,
        } = LinkConfig::default();
        Self {
            max_queue_bytes,
            reply_timeout,
            backoff,
        }
    }
}

impl From<PublisherConfig> for LinkConfig {
    fn from(config: PublisherConfig) -> Self {
        Self {
            max_queue_bytes: config.max_queue_bytes,
            reply_timeout: config.reply_timeout,
            backoff: config.backoff,
        }
    }
}

/// Why a command has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Redis cannot be reached. The command was not carried out.
    #[error("Redis is not available: {0}")]
    Unavailable(Arc<str>),
    /// Redis did not answer, or the connection broke first. Whether the command was carried out is
    /// not known.
    #[error("Redis did not confirm: {0}")]
    Unconfirmed(Arc<str>),
    /// Too much waits for Redis already. The command was not carried out.
    #[error("{queued_bytes} bytes wait for Redis already")]
    Overloaded {
        /// What waits.
        queued_bytes: usize,
    },
    /// Redis does not want the command, for example because the user may not publish there, or it
    /// is larger than all that may wait. It was not carried out.
    #[error("the command was refused: {0}")]
    Refused(Arc<str>),
}

impl From<LinkError> for PublishError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Unavailable(reason) => Self::Unavailable(reason),
            LinkError::Unconfirmed(reason) => Self::Unconfirmed(reason),
            LinkError::Overloaded { queued_bytes } => Self::Overloaded { queued_bytes },
            LinkError::TooLarge { .. } => Self::Refused(error.to_string().into()),
        }
    }
}

/// Which server of a cluster gets a command. Elsewhere there is only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// Whichever.
    Any,
    /// Who holds the key.
    Key(&'a str),
    /// Who serves the sharded channel.
    Channel(&'a str),
    /// All primaries that can be reached; there is one reply of each.
    AllPrimaries,
}

/// Publishes. Closed when it is dropped, without waiting for what is under way.
#[derive(Debug)]
pub struct Publisher {
    topology: Servers,
    state: watch::Receiver<PublisherState>,
    stats: Arc<PublisherStats>,
}

#[derive(Debug)]
enum Servers {
    One {
        link: Arc<Link>,
        /// Looks whether Sentinels name another primary.
        check: Option<AbortHandle>,
    },
    Cluster(Cluster),
}

impl Publisher {
    /// Starts on the current runtime and connects in the background. Until that is done, commands
    /// are errors.
    pub fn start(endpoint: Endpoint, config: PublisherConfig) -> Self {
        match endpoint.topology() {
            Topology::Cluster => Self::over_cluster(endpoint, config, None),
            _ => Self::over_one(endpoint, config, None),
        }
    }

    /// Connects once. What is wrong with the setting or not there is an error; from then on, the
    /// publisher connects again by itself.
    pub async fn connect(
        endpoint: Endpoint,
        config: PublisherConfig,
    ) -> Result<Self, ConnectError> {
        if endpoint.topology() != Topology::Cluster {
            let connection = endpoint.connect(Purpose::Publisher).await?;
            return Ok(Self::over_one(endpoint, config, Some(connection)));
        }
        let map = endpoint.cluster_map(None).await?;
        let server = endpoint.url().to_string();
        let publisher = Self::over_cluster(endpoint, config, map);
        let mut state = publisher.state();
        let up = time::timeout(
            CONNECT_TIMEOUT,
            state.wait_for(|state| *state == PublisherState::Up),
        );
        let is_up = up.await.is_ok_and(|up| up.is_ok());
        let now = state.borrow().clone();
        match now {
            PublisherState::Down(reason) if !is_up => Err(ConnectError::ClusterDown {
                server,
                reason: reason.to_string(),
            }),
            _ => Ok(publisher),
        }
    }

    fn over_one(
        endpoint: Endpoint,
        config: PublisherConfig,
        connection: Option<Connection>,
    ) -> Self {
        let stats = Arc::<PublisherStats>::default();
        let link = Arc::new(Link::start(
            Destination::Endpoint(endpoint.clone()),
            config.into(),
            connection,
            stats.clone(),
            None,
        ));
        let check = (endpoint.topology() == Topology::Sentinel)
            .then(|| tokio::spawn(check_primary(endpoint, Arc::downgrade(&link))).abort_handle());
        Self {
            state: link.state(),
            topology: Servers::One { link, check },
            stats,
        }
    }

    fn over_cluster(
        endpoint: Endpoint,
        config: PublisherConfig,
        map: Option<crate::endpoint::ClusterMap>,
    ) -> Self {
        let stats = Arc::<PublisherStats>::default();
        let cluster = Cluster::start(endpoint, config.into(), map.unwrap_or_default(), &stats);
        Self {
            state: cluster.state(),
            topology: Servers::Cluster(cluster),
            stats,
        }
    }

    /// Publishes on a channel, or on a sharded one. The message is queued when this returns; the
    /// future is of the number of connections that took it. In a cluster, that number is one of
    /// the server's that was talked to alone, unless the channel is sharded.
    pub fn publish(&self, channel: &str, payload: &[u8], is_sharded: bool) -> Publishing {
        let command: &[u8] = if is_sharded { b"SPUBLISH" } else { b"PUBLISH" };
        let args = [command, channel.as_bytes(), payload];
        Publishing(match &self.topology {
            Servers::One { link, .. } => Reply::Plain(link.send(&args)),
            Servers::Cluster(cluster) => {
                let route = if is_sharded {
                    Route::Channel(channel)
                } else {
                    Route::Any
                };
                cluster.send(&args, route)
            }
        })
    }

    /// Publishes with many commands, PUBLISH or SPUBLISH each, in their order. They are queued when
    /// this returns; the future is of what became of each.
    pub(crate) fn publish_many(&self, commands: &Commands, range: Range<usize>) -> PublishingMany {
        let link = match &self.topology {
            Servers::One { link, .. } => link,
            Servers::Cluster(cluster) => match cluster.any() {
                Some(link) => link,
                None => return PublishingMany(Outcomes::Each(each(cluster, commands, range))),
            },
        };
        PublishingMany(Outcomes::Together(link.send_many(commands, range)))
    }

    /// Says a command. It is queued when this returns, except one to all primaries of a cluster;
    /// the future is of the replies: one, or one of each primary. An error that Redis replies is an
    /// error here, too.
    pub fn command<A: AsRef<[u8]>>(&self, args: &[A], route: Route<'_>) -> Commanding {
        let reply = match &self.topology {
            Servers::One { link, .. } => Reply::Plain(link.send(args)),
            Servers::Cluster(cluster) if route == Route::AllPrimaries => {
                return Commanding(Replies::OfAll(cluster.send_to_all(args)));
            }
            Servers::Cluster(cluster) => cluster.send(args, route),
        };
        Commanding(Replies::OfOne(reply))
    }

    /// Takes nothing more, waits for all replies (no longer than the reply timeout) and ends.
    pub async fn close(&self) {
        match &self.topology {
            Servers::One { link, .. } => link.close().await,
            Servers::Cluster(cluster) => cluster.close().await,
        }
    }

    /// Whether messages are taken; changes can be waited for. Of a cluster with sharded channels,
    /// whether they are taken for all channels.
    pub fn state(&self) -> watch::Receiver<PublisherState> {
        self.state.clone()
    }

    /// Whether messages are taken now.
    pub fn is_up(&self) -> bool {
        *self.state.borrow() == PublisherState::Up
    }

    /// Figures of all links together.
    pub fn stats(&self) -> &Arc<PublisherStats> {
        &self.stats
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Servers::One {
            check: Some(check), ..
        } = &self.topology
        {
            check.abort();
        }
    }
}

/// Leaves a primary that the Sentinels do not name any more.
async fn check_primary(endpoint: Endpoint, link: Weak<Link>) {
    loop {
        time::sleep(PRIMARY_CHECK_INTERVAL).await;
        let primary = endpoint.primary().await;
        let Some(link) = link.upgrade() else {
            return;
        };
        // Sentinels that cannot be asked say nothing about the primary.
        if let Ok(Some(primary)) = primary
            && link.peer().is_some_and(|peer| peer != primary)
        {
            link.reconnect();
        }
    }
}

/// The number of receivers of a message that is on its way. Dropping it does not take the message
/// back.
#[derive(Debug)]
#[must_use = "what became of the message is not known before this is awaited"]
pub struct Publishing(Reply);

impl Future for Publishing {
    type Output = Result<u64, PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(context).map(receivers)
    }
}

#[inline]
fn receivers(reply: Result<Value, PublishError>) -> Result<u64, PublishError> {
    let receivers = reply?.integer();
    let receivers = receivers.and_then(|number| u64::try_from(number).ok());
    receivers.ok_or_else(|| PublishError::Unconfirmed("an unexpected reply".into()))
}

/// What becomes of many messages that are on their way.
#[derive(Debug)]
#[must_use = "what became of the messages is not known before this is awaited"]
pub(crate) struct PublishingMany(Outcomes);

#[derive(Debug)]
enum Outcomes {
    Together(PendingMany),
    /// Each channel may be on another server.
    Each(Vec<Publishing>),
}

impl PublishingMany {
    /// Hands out the numbers of receivers, in the order of the messages.
    pub(crate) async fn each(self, mut outcome: impl FnMut(Result<u64, PublishError>)) {
        match self.0 {
            Outcomes::Together(pending) => {
                for reply in pending.await {
                    outcome(receivers(accepted(reply)));
                }
            }
            Outcomes::Each(publishing) => {
                for publishing in publishing {
                    outcome(publishing.await);
                }
            }
        }
    }
}

fn each(cluster: &Cluster, commands: &Commands, range: Range<usize>) -> Vec<Publishing> {
    let sent = range.map(|index| {
        let words = commands.words(index);
        let channel = words.get(1).and_then(|word| std::str::from_utf8(word).ok());
        let channel = channel.expect("a command that publishes has a channel");
        cluster.send(&words, Route::Channel(channel))
    });
    sent.map(Publishing).collect()
}

/// The replies to a command that is on its way. Dropping it does not take the command back.
#[derive(Debug)]
#[must_use = "what became of the command is not known before this is awaited"]
pub struct Commanding(Replies);

#[derive(Debug)]
enum Replies {
    OfOne(Reply),
    OfAll(Later),
}

impl Future for Commanding {
    type Output = Result<Vec<Value>, PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Replies::OfOne(reply) => reply.poll(context).map(|value| Ok(vec![value?])),
            Replies::OfAll(replies) => replies.0.as_mut().poll(context),
        }
    }
}

#[derive(Debug)]
enum Reply {
    Plain(Pending),
    /// Of a cluster, where it may take more than one attempt.
    Routed(Routed),
}

impl Reply {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Value, PublishError>> {
        match self {
            Self::Plain(pending) => Pin::new(pending).poll(context).map(accepted),
            Self::Routed(routed) => routed.poll(context),
        }
    }
}

/// Replies of several servers.
struct Later(Pin<Box<dyn Future<Output = Result<Vec<Value>, PublishError>> + Send>>);

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Later")
    }
}

/// An error that Redis replies is an error.
fn accepted(reply: Result<Value, LinkError>) -> Result<Value, PublishError> {
    match reply? {
        Value::Error(reason) => {
            let code = reason.split(' ').next().unwrap_or_default();
            let is_passing = PASSING.contains(&code);
            let reason = reason.into();
            Err(if is_passing {
                PublishError::Unavailable(reason)
            } else {
                PublishError::Refused(reason)
            })
        }
        value => Ok(value),
    }
}

/// Codes of errors that are about the server's state and not about the command. It was not carried
/// out.
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
