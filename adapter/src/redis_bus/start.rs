//! Joining the cluster: whatever is wrong with the settings shows here, and not at the first message.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use roomcast_emitter::{
    asking::Asking,
    channel::{Channels, Dialect},
    endpoint::{ConnectError, Connection, Endpoint, Purpose},
    id::NodeId,
    msgpack::TranscodeLimits,
    publisher::{PublishError, Publisher, PublisherConfig},
    wire::Wire,
};
use tokio::{task::JoinSet, time};

use super::{
    RedisBus, Shared, config::RedisConfig, hearing, lease, metrics::Metrics, namespaces::Namespaces,
};
use crate::link::{DownReason, LinkState};

/// How long the first message to oneself may take.
const FIRST_PROBE_TIMEOUT: Duration = Duration::from_secs(10);

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

fn rights(prefix: &str) -> String {
    format!(
        "its user needs the channels `&{prefix}*`, the keys `~{prefix}*` and the commands \
         `+@pubsub +@connection +@sortedset +time`, in a cluster also `+cluster|slots`"
    )
}

impl RedisBus {
    /// Connects, checks that the user may do what a node does, takes a lease, and waits until what
    /// the node publishes comes back to it. Must be called on a tokio runtime, on which the bus
    /// goes on working.
    pub async fn connect(config: RedisConfig, node: &NodeId) -> Result<Self, StartError> {
        let mut endpoint = Endpoint::new(config.url.clone());
        if config.dialect != Dialect::Classic {
            endpoint = endpoint.needing_sharded();
        }
        let channels = Channels::new(&config.prefix, config.dialect);
        let mut connection = endpoint.connect(Purpose::Lookup).await?;
        let patterns = check_rights(&mut connection, &config, &channels, node).await?;
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
            answering: Mutex::default(),
            leases: Mutex::default(),
            clock: Mutex::default(),
            metrics: Metrics::new(),
            on_gap: Mutex::default(),
            patterns: patterns.into(),
            is_retired: false.into(),
            questions: 0.into(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(hearing::sweep(Arc::downgrade(&shared)));
        let bus = Self {
            shared,
            tasks: Mutex::new(tasks),
        };
        bus.shared.wait_until_flowing().await?;
        // The first look tells the time, the second one takes the lease.
        bus.shared.renew().await?;
        bus.shared.renew().await?;
        let keeping = lease::keep(Arc::downgrade(&bus.shared));
        bus.tasks.lock().spawn(keeping);
        Ok(bus)
    }
}

impl Shared {
    async fn wait_until_flowing(&self) -> Result<(), StartError> {
        let deadline = time::Instant::now() + FIRST_PROBE_TIMEOUT;
        let mut looks = time::interval(Duration::from_millis(5));
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

/// Tries, without effect on others, each kind of command that a node needs. Answers how many
/// patterns Redis has.
async fn check_rights(
    connection: &mut Connection,
    config: &RedisConfig,
    channels: &Channels,
    node: &NodeId,
) -> Result<usize, StartError> {
    let (probe, leases) = (channels.probe(node, 0), channels.leases());
    let publish = match config.dialect {
        Dialect::Classic => "PUBLISH",
        Dialect::Sharded(_) => "SPUBLISH",
    };
    let commands: [&[&str]; 4] = [
        &["PUBSUB", "NUMPAT"],
        &["TIME"],
        &[publish, &probe, "0"],
        &["ZREM", &leases, node.as_str()],
    ];
    let mut patterns = 0;
    for command in commands {
        match connection.command(command).await {
            Ok(value) => {
                if command[1..] == ["NUMPAT"] {
                    patterns = value.integer().unwrap_or(0);
                }
            }
            Err(error) if is_elsewhere(&error) => {}
            Err(ConnectError::Refused { reason, .. }) => {
                return Err(StartError::Forbidden {
                    command: command.join(" "),
                    reason: reason.to_string(),
                    prefix: config.prefix.clone(),
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(usize::try_from(patterns).unwrap_or(0))
}

/// In a cluster, another node has the slot: the right to the command has been checked by then.
fn is_elsewhere(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Refused { reason, .. } if reason.starts_with("MOVED"))
}
