//! Joining the cluster: whatever is wrong with the settings shows here, and not at the first message.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use roomcast_emitter::{
    asking::Asking,
    endpoint::{CONNECT_TIMEOUT, ConnectError, Connection, Endpoint, Mode, Purpose, Topology},
    publisher::{PublishError, Publisher, PublisherConfig},
    value::Value,
};
use roomcast_protocol::{
    channel::{Channels, Dialect},
    id::NodeId,
    msgpack::TranscodeLimits,
    wire::Wire,
};
use tokio::{runtime::Handle, task::JoinSet, time};

use super::{
    RedisBus, Shared,
    config::{PrivateRooms, RedisConfig},
    hearing, lease,
    metrics::Metrics,
    namespaces::Namespaces,
    stand_in::{self, Unanswered},
    tag,
    turnover::Turnover,
};
use crate::link::{DownReason, LinkState};

/// How long the first message to oneself may take.
const FIRST_PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked whether the links are there.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Why a node could not join the cluster.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is no connection to be had.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The user may not do what a node has to.
    #[error("Redis refuses {command}: {reason}; {}", rights(prefix))]
    Forbidden {
        /// What was tried.
        command: String,
        /// What Redis says.
        reason: String,
        /// What the names in Redis begin with.
        prefix: String,
    },
    /// The first commands failed.
    #[error("Redis does not take commands: {0}")]
    Publish(#[from] PublishError),
    /// What the node publishes does not come back to it.
    #[error("connected to Redis, but messages do not flow: {0}")]
    NotFlowing(Arc<str>),
}

/// The commands that a node says, apart from those that log it in.
const RIGHTS: &str = "+@pubsub +@sortedset +time +ping +select +client|setname";

/// Those that it says to a cluster.
const CLUSTER_RIGHTS: &str = "+asking +cluster|slots +cluster|nodes";

fn rights(prefix: &str) -> String {
    format!(
        "its user needs the channels `&{prefix}*`, the keys `~{prefix}*` and the commands \
         `{RIGHTS}`, in a cluster also `{CLUSTER_RIGHTS}`; for private rooms by pattern all \
         channels, `&*`"
    )
}

impl RedisBus {
    /// Connects, checks that the user may do what a node does, takes a lease, and waits until what
    /// the node publishes comes back to it. Must be called on a tokio runtime, on which the bus
    /// goes on working.
    pub async fn connect(mut config: RedisConfig, node: &NodeId) -> Result<Self, StartError> {
        let mut endpoint = Endpoint::new(config.url.clone());
        if config.dialect != Dialect::Classic {
            endpoint = endpoint.needing_sharded();
        }
        let channels = Channels::new(&config.prefix, config.dialect);
        let mut connection = endpoint.connect(Purpose::Lookup).await?;
        check_topology(&connection, &endpoint)?;
        let patterns = check_rights(&mut connection, &config, &channels, node).await?;
        if !may_use_patterns(&mut connection, &config, &channels, node).await? {
            config.private_rooms = PrivateRooms::Channel;
        }
        drop(connection);
        let publisher = PublisherConfig {
            max_queue_bytes: config.max_queue_bytes,
            reply_timeout: config.publish_timeout,
            ..PublisherConfig::default()
        };
        let publisher = Publisher::start(endpoint.clone(), publisher);
        let wire = Wire::new(channels, config.parser, TranscodeLimits::default())
            .with_specific_responses(config.specific_responses);
        let shared = Arc::new_cyclic(|shared| Shared {
            hearing: hearing::start(endpoint, &config, node, shared.clone()),
            node: node.clone(),
            config,
            wire,
            publisher,
            namespaces: Namespaces::default(),
            asking: Asking::new(),
            subscribing: Mutex::default(),
            answering: Mutex::default(),
            following: Mutex::default(),
            runtime: Handle::current(),
            leases: Mutex::default(),
            clock: Mutex::default(),
            metrics: Metrics::new(),
            on_gap: Mutex::default(),
            patterns: patterns.into(),
            is_retired: false.into(),
            turnover: Turnover::new(),
            unanswered: Unanswered::default(),
            questions: 0.into(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(hearing::sweep(Arc::downgrade(&shared)));
        tasks.spawn(stand_in::watch(Arc::downgrade(&shared)));
        let bus = Self {
            shared,
            tasks: Mutex::new(tasks),
        };
        bus.shared.wait_until_flowing().await?;
        bus.shared.take_lease().await?;
        let keeping = lease::keep(Arc::downgrade(&bus.shared));
        bus.tasks.lock().spawn(keeping);
        Ok(bus)
    }
}

impl Shared {
    async fn take_lease(&self) -> Result<(), StartError> {
        let deadline = time::Instant::now() + FIRST_PROBE_TIMEOUT;
        let mut looks = 0;
        // The first look tells the time, the second one takes the lease.
        while looks < 2 {
            match self.renew().await {
                Ok(()) => looks += 1,
                // Another server of the cluster has the key, and the link to it is on its way.
                Err(PublishError::Unavailable(_)) if time::Instant::now() < deadline => {
                    time::sleep(LOOK_INTERVAL).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn wait_until_flowing(&self) -> Result<(), StartError> {
        let deadline = time::Instant::now() + FIRST_PROBE_TIMEOUT;
        let mut looks = time::interval(LOOK_INTERVAL);
        loop {
            looks.tick().await;
            match self.hearing.state() {
                LinkState::Up { .. } => return Ok(()),
                LinkState::Down { reason } => {
                    let is_hopeless = matches!(reason, DownReason::ProbeRefused(_));
                    if is_hopeless || time::Instant::now() >= deadline {
                        return Err(StartError::NotFlowing(reason.to_string().into()));
                    }
                }
            }
        }
    }
}

/// One server of a cluster may have neither the leases nor the subscribers of the others.
fn check_topology(connection: &Connection, endpoint: &Endpoint) -> Result<(), ConnectError> {
    let info = connection.info();
    let is_part = info.mode == Some(Mode::Cluster) && endpoint.topology() != Topology::Cluster;
    if is_part {
        let server = info.server.clone();
        return Err(ConnectError::IsCluster { server });
    }
    Ok(())
}

/// Tries, without effect on others, each kind of command that a node needs. Answers how many
/// patterns Redis has.
async fn check_rights(
    connection: &mut Connection,
    config: &RedisConfig,
    channels: &Channels,
    node: &NodeId,
) -> Result<usize, StartError> {
    let (probe, leases) = (channels.probe(node, 0), channels.leases());
    let request = channels.request("/");
    let (publish, count, subscribe) = match config.dialect {
        Dialect::Classic => ("PUBLISH", "NUMSUB", "SUBSCRIBE"),
        Dialect::Sharded(_) => ("SPUBLISH", "SHARDNUMSUB", "SSUBSCRIBE"),
    };
    // Nobody else hears it, and it is a channel as those of rooms.
    let own = channels.room("/", node.as_str());
    let commands: [&[&str]; 9] = [
        &["PUBSUB", "NUMPAT"],
        &["PUBSUB", count, &request],
        &["TIME"],
        &[publish, &probe, "0"],
        &["ZADD", &leases, "XX", "0", node.as_str()],
        &["ZREVRANGE", &leases, "0", "0"],
        &["ZREMRANGEBYSCORE", &leases, "-inf", "(0"],
        &["ZREM", &leases, node.as_str()],
        // The connection takes nothing but subscriptions from then on.
        &[subscribe, &own],
    ];
    let mut patterns = 0;
    for command in commands {
        if let Some(value) = attempt(connection, config, command).await?
            && command[1..] == ["NUMPAT"]
        {
            patterns = value.integer().unwrap_or(0);
        }
    }
    Ok(usize::try_from(patterns).unwrap_or(0))
}

/// Patterns are a right of their own: that to a part of the channels does not contain it. If they
/// are a must, not to have the right is an error.
async fn may_use_patterns(
    connection: &mut Connection,
    config: &RedisConfig,
    channels: &Channels,
    node: &NodeId,
) -> Result<bool, StartError> {
    if config.dialect != Dialect::Classic || config.private_rooms == PrivateRooms::Channel {
        return Ok(true);
    }
    let pattern = channels.private_rooms_pattern("/", tag(node));
    match attempt(connection, config, &["PSUBSCRIBE", &pattern]).await {
        Err(StartError::Forbidden { .. }) if config.private_rooms == PrivateRooms::Auto => {
            tracing::info!("Redis gives this user no patterns: each socket has a channel");
            Ok(false)
        }
        Err(error) => Err(error),
        Ok(_) => Ok(true),
    }
}

/// Nothing if it is another server of the cluster that has to be told: the right has been checked
/// by then.
async fn attempt(
    connection: &mut Connection,
    config: &RedisConfig,
    command: &[&str],
) -> Result<Option<Value>, StartError> {
    let attempted = time::timeout(CONNECT_TIMEOUT, connection.command(command)).await;
    match attempted {
        Ok(Ok(value)) => Ok(Some(value)),
        Ok(Err(ConnectError::Refused { reason, .. })) if reason.starts_with("MOVED") => Ok(None),
        Ok(Err(ConnectError::Refused { reason, .. })) => Err(StartError::Forbidden {
            command: command.join(" "),
            reason,
            prefix: config.prefix.clone(),
        }),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(StartError::Connect(ConnectError::TimedOut {
            server: connection.info().server.clone(),
            after: CONNECT_TIMEOUT,
        })),
    }
}
