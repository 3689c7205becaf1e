//! Publishing and other commands, over one server, a primary that Sentinels name, or a cluster.
//!
//! A [`Publisher`] keeps no messages: while Redis is unreachable, every command fails at once.
//! Commands that one caller awaits one after the other arrive in that order; in a cluster
//! with sharded channels, in that order per channel.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use redis::Value;
use tokio::{sync::watch, task::AbortHandle, time};

use super::{
    commands::Commands,
    connect::{CONNECT_TIMEOUT, Connection, Endpoint, Purpose, Topology},
    error::ConnectError,
    link::{Destination, Link, PendingMany},
    outcome::{PublishError, PublisherConfig, PublisherState, PublisherStats, accepted, receivers},
    reply::Reply,
    routing::{Receiving, Route, Routes},
};
use crate::vital::vital;

/// How often the publisher checks that its server is still the primary. A replaced primary often
/// keeps its connections, and then accepts messages that reach no subscriber elsewhere.
const PRIMARY_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Publishes. Dropping it closes it without waiting for replies.
#[derive(Debug)]
pub struct Publisher {
    servers: Servers,
    state: watch::Receiver<PublisherState>,
    stats: Arc<PublisherStats>,
}

#[derive(Debug)]
enum Servers {
    One {
        link: Arc<Link>,
        /// Checks that the server is still the primary.
        check: AbortHandle,
    },
    Cluster(Routes),
}

impl Publisher {
    /// Starts on the current runtime and connects in the background. Until that is done, commands
    /// fail.
    pub fn start(endpoint: Endpoint, config: PublisherConfig) -> Self {
        match endpoint.topology() {
            Topology::Cluster => Self::over_cluster(&endpoint, config),
            _ => Self::over_one(endpoint, config, None),
        }
    }

    /// Connects once and returns the first error. From then on, the publisher reconnects by itself.
    pub async fn connect(
        endpoint: Endpoint,
        config: PublisherConfig,
    ) -> Result<Self, ConnectError> {
        if endpoint.topology() != Topology::Cluster {
            let connection = endpoint.connect(Purpose::Publisher, None).await?;
            return Ok(Self::over_one(endpoint, config, Some(connection)));
        }
        // Asked before the keeper does, whose errors are texts.
        endpoint.cluster_map(None).await?;
        let server = endpoint.url().to_string();
        let publisher = Self::over_cluster(&endpoint, config);
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

    fn over_one(endpoint: Endpoint, config: PublisherConfig, first: Option<Connection>) -> Self {
        let stats = Arc::<PublisherStats>::default();
        let destination = Destination::Endpoint(endpoint.clone());
        let link = Arc::new(Link::start(destination, config, first, stats.clone(), None));
        let checking = check_primary(endpoint, Arc::downgrade(&link));
        let check = tokio::spawn(vital("primary check", checking)).abort_handle();
        Self {
            state: link.state(),
            servers: Servers::One { link, check },
            stats,
        }
    }

    fn over_cluster(endpoint: &Endpoint, config: PublisherConfig) -> Self {
        let stats = Arc::<PublisherStats>::default();
        let routes = Routes::start(endpoint, config, &stats);
        Self {
            state: routes.state(),
            servers: Servers::Cluster(routes),
            stats,
        }
    }

    /// Publishes on a channel, which is sharded or not. The message is enqueued when this returns;
    /// the future resolves to the number of connections that received it. In a cluster, that is the
    /// number at one server only, unless the channel is sharded.
    pub fn publish(&self, channel: &str, payload: &[u8], is_sharded: bool) -> Publishing {
        let mut command = Commands::default();
        command.push_publish(is_sharded, &[channel], payload);
        Publishing(match &self.servers {
            Servers::One { link, .. } => Receiving::Plain(link.send(command)),
            Servers::Cluster(routes) if is_sharded => routes.send(command, Route::Channel(channel)),
            Servers::Cluster(routes) => routes.send(command, Route::Any),
        })
    }

    /// Publishes with many commands, PUBLISH or SPUBLISH each, in their order. They are
    /// enqueued when this returns; the future resolves to the outcome of each.
    pub(crate) fn publish_many(&self, commands: &Arc<Commands>) -> PublishingMany {
        let link = match &self.servers {
            Servers::One { link, .. } => link,
            Servers::Cluster(routes) => match routes.any() {
                Some(link) => link,
                None => {
                    let sent = commands.iter().map(|words| {
                        let words: Vec<_> = words.collect();
                        Publishing(routes.publish(&words))
                    });
                    return PublishingMany(Outcomes::Each(sent.collect()));
                }
            },
        };
        PublishingMany(Outcomes::Together(link.send_many(Arc::clone(commands))))
    }

    /// Sends a command. It is enqueued when this returns, except one to all servers of a cluster;
    /// the future resolves to the replies: one, or one per server. An error that Redis returns is
    /// an error here, too.
    pub fn command<A: AsRef<[u8]>>(&self, args: &[A], route: Route<'_>) -> Commanding {
        let command = Commands::one(args);
        let reply = match &self.servers {
            Servers::One { link, .. } => Receiving::Plain(link.send(command)),
            Servers::Cluster(routes) if route == Route::AllServers => {
                return Commanding(Replies::OfAll(Box::pin(routes.send_to_all(command))));
            }
            Servers::Cluster(routes) => routes.send(command, route),
        };
        Commanding(Replies::OfOne(reply))
    }

    /// Accepts nothing more, waits for all replies (at most the reply timeout) and ends.
    pub async fn close(&self) {
        match &self.servers {
            Servers::One { link, .. } => link.close().await,
            Servers::Cluster(routes) => routes.close().await,
        }
    }

    /// Whether messages are accepted; changes can be awaited. In a cluster with sharded channels,
    /// whether they are accepted for all channels.
    pub fn state(&self) -> watch::Receiver<PublisherState> {
        self.state.clone()
    }

    /// Whether messages are accepted now.
    pub fn is_up(&self) -> bool {
        *self.state.borrow() == PublisherState::Up
    }

    /// Figures over all connections.
    pub fn stats(&self) -> &Arc<PublisherStats> {
        &self.stats
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Servers::One { check, .. } = &self.servers {
            check.abort();
        }
    }
}

/// Leaves a server that reports another role, or that the Sentinels no longer name.
async fn check_primary(endpoint: Endpoint, link: Weak<Link>) {
    loop {
        time::sleep(PRIMARY_CHECK_INTERVAL).await;
        let primary = endpoint.primary().await;
        let Some(link) = link.upgrade() else {
            return;
        };
        // Sentinels that cannot be reached prove nothing about the primary.
        let is_other = match primary {
            Ok(Some(primary)) => link.peer().is_some_and(|peer| peer != primary),
            _ => false,
        };
        // It takes no right beyond those of the login.
        let hello = link.send(Commands::one(&["HELLO"])).await;
        if is_other || hello.is_ok_and(|hello| role(&hello).is_some_and(|role| role != "master")) {
            link.reconnect();
        }
    }
}

/// The role in the reply to HELLO.
fn role(hello: &Value) -> Option<&str> {
    let fields = hello.pairs()?.into_iter();
    let mut roles = fields.filter(|(name, _)| name.text() == Some("role"));
    roles.next()?.1.text()
}

/// The number of receivers of a message that is on its way. Dropping it does not take the message
/// back.
#[derive(Debug)]
#[must_use = "the outcome of the message is not known before this is awaited"]
pub struct Publishing(Receiving);

impl Future for Publishing {
    type Output = Result<u64, PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(context).map(receivers)
    }
}

/// The outcomes of many messages that are on their way.
#[derive(Debug)]
#[must_use = "the outcome of the messages is not known before this is awaited"]
pub(crate) struct PublishingMany(Outcomes);

#[derive(Debug)]
enum Outcomes {
    Together(PendingMany),
    /// Each channel may be on another server.
    Each(Vec<Publishing>),
}

impl PublishingMany {
    /// Calls the function with the number of receivers of each message, in order.
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

/// The replies to a command that is on its way. Dropping it does not take the command back.
#[must_use = "the outcome of the command is not known before this is awaited"]
pub struct Commanding(Replies);

enum Replies {
    OfOne(Receiving),
    OfAll(Pin<Box<dyn Future<Output = Result<Vec<Value>, PublishError>> + Send>>),
}

impl std::fmt::Debug for Commanding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commanding").finish_non_exhaustive()
    }
}

impl Future for Commanding {
    type Output = Result<Vec<Value>, PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Replies::OfOne(reply) => reply.poll(context).map(|value| Ok(vec![value?])),
            Replies::OfAll(replies) => replies.as_mut().poll(context),
        }
    }
}
