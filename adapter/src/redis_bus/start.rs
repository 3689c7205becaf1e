//! Joining the cluster: errors in the settings are found here and not at the first message.
//!
//! ```text
//!  endpoint ─► check: topology, rights ─► links start ─► a probe comes back ─► lease ─► joined
//!                 └─ refused: error           │                  └─ 10 s: NotFlowing
//!                 └─ away: error, or, if Redis is not required, ─┴─► joined; rights are checked later
//! ```
//!
//! **Why rights are tried.** A user without a right would find out at the first message
//! of that kind, perhaps after days, and `ACL` itself is a right that few users have.
//! Each command is sent in a form without effect on others.
//!
//! **Why a probe.** A connection that accepts commands does not prove that published messages
//! arrive, for example at a replica.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use redis::Value;
use roomcast_emitter::{
    redis::{
        CONNECT_TIMEOUT, ConnectError, Connection, Endpoint, Mode, PublishError, Publisher,
        PublisherConfig, Purpose, Reply, Topology,
    },
    signing::{Signer, Signing},
    vital::vital,
};
use roomcast_protocol::{
    channel::{Channels, Dialect},
    id::NodeId,
    msgpack::TranscodeLimits,
    wire::Wire,
};
use tokio::{task::JoinSet, time};

use super::{
    BusSink, Core, RedisBus,
    config::{PrivateRooms, RedisConfig},
    gaps::Gaps,
    incoming::Receiver,
    membership::{self, Membership},
    metrics::{
        GapMetrics, IncomingMetrics, LinkMetrics, MembershipMetrics, OutgoingMetrics,
        QuestionMetrics, Series, StreamMetrics,
    },
    node_js::NodeJs,
    outgoing::Outgoing,
    questions::Questions,
    streams::{self, Streams},
    subscriptions::{Subscriptions, tag},
    upkeep,
};
use crate::subscriber::{DownReason, Subscriber, SubscriberConfig, SubscriberState};

/// How long the first probe may take.
const FIRST_PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the state of the links is checked.
/// It runs only during the start.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// Why a node could not join the cluster.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StartError {
    /// No connection could be made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The user lacks a right that a node needs.
    #[error("Redis refuses {command}: {reason}; {}", rights(prefix))]
    Forbidden {
        /// The command that was tried.
        command: String,
        /// Redis's error.
        reason: String,
        /// The prefix of all names in Redis.
        prefix: String,
    },
    /// Redis refuses a command, and not because of missing rights: it is loading its data, or
    /// refuses writes.
    #[error("Redis refuses {command} at the moment: {reason}")]
    Refused {
        /// The command that was tried.
        command: String,
        /// Redis's error.
        reason: String,
    },
    /// The first commands failed.
    #[error("Redis does not take commands: {0}")]
    Publish(#[from] PublishError),
    /// [`Dialect::Streams`] and [`Parser::Json`](roomcast_protocol::wire::Parser::Json)
    /// are for clusters with Node.js servers, which cannot sign.
    #[error("signed messages need the classic or a sharded dialect, with the parser MessagePack")]
    Unsignable,
    /// Messages of the node do not come back to it.
    #[error("connected to Redis, but messages do not flow: {0}")]
    NotFlowing(Arc<str>),
}

impl StartError {
    /// Whether the same call may succeed later, without a change of the settings.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Connect(error) => !error.is_permanent(),
            Self::Forbidden { .. } | Self::Unsignable => false,
            Self::Refused { .. } | Self::Publish(_) | Self::NotFlowing(_) => true,
        }
    }
}

/// The commands that a node sends, apart from those that log it in.
const RIGHTS: &str = "+@pubsub +@sortedset +time +ping +select +client|setname";

/// The commands that it sends in the streams dialect in addition.
const STREAM_RIGHTS: &str = "+@stream";

/// The commands that it sends to a Redis Cluster in addition.
const CLUSTER_RIGHTS: &str = "+asking +cluster|slots +cluster|nodes";

/// Written as Redis's `ACL SETUSER` takes it, so that an operator can copy it.
fn rights(prefix: &str) -> String {
    format!(
        "its user needs the channels `&{prefix}*`, the keys `~{prefix}*` and the commands \
         `{RIGHTS}`, in the streams dialect also `{STREAM_RIGHTS}`, in a cluster also \
         `{CLUSTER_RIGHTS}`; for private rooms by pattern all \
         channels, `&*`"
    )
}

/// Where the Redis of these settings is.
fn endpoint(config: &RedisConfig) -> Endpoint {
    let endpoint = Endpoint::new(config.url.clone());
    match config.dialect {
        Dialect::Classic | Dialect::Streams => endpoint,
        Dialect::Sharded(_) => endpoint.needing_sharded(),
    }
}

impl RedisBus {
    /// Checks what [`connect`](Self::connect) checks before it joins the cluster: the
    /// server, and the rights of the user. Changes nothing, so other nodes do not notice
    /// it.
    ///
    /// # Errors
    ///
    /// Redis is unavailable, or the user lacks a right that every node needs.
    pub async fn check(config: &RedisConfig, node: &NodeId) -> Result<RedisRights, StartError> {
        check(&endpoint(config), config, node).await
    }

    /// Connects, checks that the user has the rights that a node needs, takes a lease, and waits
    /// until the node's own messages come back to it. Must be called on a tokio runtime, on which
    /// the bus keeps working.
    ///
    /// # Errors
    ///
    /// Redis is unavailable, or the user lacks a right. [`StartError::is_temporary`] returns
    /// whether a later call may succeed.
    pub async fn connect(mut config: RedisConfig, node: &NodeId) -> Result<Self, StartError> {
        let endpoint = endpoint(&config);
        let may_wait = |error: &StartError| !config.is_required && error.is_temporary();
        let checked = match check(&endpoint, &config, node).await {
            Err(error) if may_wait(&error) => {
                tracing::warn!(%error, "starting without Redis");
                None
            }
            checked => Some(checked?),
        };
        let rights = checked.unwrap_or_default();
        // A channel for each socket costs Redis memory, so it is only the second
        // choice.
        if !rights.private_patterns && config.private_rooms == PrivateRooms::Auto {
            config.private_rooms = PrivateRooms::Channel;
        }
        if config.signing.is_some() {
            tracing::info!(
                "messages between nodes are signed: Node.js servers and emitters without the key cannot take part"
            );
        }
        let core = Core::start(endpoint.clone(), &config, node, rights);
        let mut tasks = JoinSet::new();
        tasks.spawn(vital("sweep", upkeep::sweep(Arc::downgrade(&core))));
        tasks.spawn(vital(
            "Node.js watch",
            NodeJs::watch(Arc::downgrade(&core.node_js)),
        ));
        if let Some(streams) = &core.streams {
            let reading =
                streams::read(Arc::downgrade(&core), Arc::clone(streams), endpoint.clone());
            tasks.spawn(vital("stream reader", reading));
        }
        let bus = Self {
            core,
            tasks: Mutex::new(tasks),
        };
        if checked.is_some() {
            bus.core.join(config.is_required).await?;
        } else {
            let checking =
                upkeep::check_rights(Arc::downgrade(&bus.core), endpoint, config, node.clone());
            bus.tasks.lock().spawn(vital("rights", checking));
        }
        let keeping = vital("lease", upkeep::keep_lease(Arc::downgrade(&bus.core)));
        bus.tasks.lock().spawn(keeping);
        Ok(bus)
    }
}

impl Core {
    /// Starts the links and puts the parts of the bus together.
    fn start(
        endpoint: Endpoint,
        config: &RedisConfig,
        node: &NodeId,
        rights: RedisRights,
    ) -> Arc<Self> {
        let channels = config.channels();
        let limits = TranscodeLimits {
            depth: config.json_depth,
            ..TranscodeLimits::default()
        };
        let wire = Wire::new(channels, config.parser, limits);
        let wire = Arc::new(wire.with_specific_responses(config.specific_responses));
        let publisher = PublisherConfig {
            max_queue_bytes: config.max_queue_bytes,
            reply_timeout: config.publish_timeout,
            ..PublisherConfig::default()
        };
        let publisher = Publisher::start(endpoint.clone(), publisher);
        let mut series = Series::default();
        let signer = config.signing.as_ref();
        let signer = signer.map(|signing| Arc::new(Signer::new(signing, node.as_str())));
        let outgoing = Arc::new(Outgoing::new(
            node.clone(),
            publisher,
            Arc::clone(&wire),
            signer.clone(),
            OutgoingMetrics::new(&mut series),
        ));
        let membership = MembershipMetrics::new(&mut series);
        let membership = Arc::new(Membership::new(
            Arc::clone(&outgoing),
            membership::settings(config.dialect, config.parser, signer.is_some()),
            config.address.as_deref(),
            membership,
        ));
        let streams = (config.dialect == Dialect::Streams).then(|| {
            let metrics = StreamMetrics::new(&mut series);
            let (max_len, prefix) = (config.stream_max_len, &config.session_prefix);
            Arc::new(Streams::new(
                &outgoing,
                &membership,
                max_len,
                prefix,
                metrics,
            ))
        });
        let gaps = Arc::new(Gaps::new(GapMetrics::new(&mut series)));
        let node_js = NodeJs::new(Arc::clone(&membership), Arc::clone(&gaps));
        let node_js = Arc::new(node_js);
        let incoming = IncomingMetrics::new(&mut series);
        let questions = Arc::new(Questions::new(
            Arc::clone(&outgoing),
            Arc::clone(&membership),
            Arc::clone(&node_js),
            QuestionMetrics::new(&mut series),
        ));
        // The subscriber delivers from its first moment, and needs to know the core.
        Arc::new_cyclic(|core: &Weak<Self>| {
            let subscriber = subscriber(endpoint, config, &outgoing, BusSink(core.clone()));
            let subscriptions = Arc::new(Subscriptions::new(
                subscriber,
                node.clone(),
                Arc::clone(&wire),
                config.private_rooms,
                rights.patterns,
                rights.all_rooms,
            ));
            Self {
                incoming: Receiver {
                    wire,
                    signer,
                    subscriptions: Arc::clone(&subscriptions),
                    questions: Arc::clone(&questions),
                    node_js: Arc::clone(&node_js),
                    metrics: incoming,
                },
                outgoing,
                membership,
                subscriptions,
                questions,
                node_js,
                streams,
                metrics: LinkMetrics::new(&mut series),
                series,
                gaps,
                has_left: false.into(),
            }
        })
    }

    /// Waits until messages flow, and takes a lease. If Redis is not required, it may be
    /// unreachable.
    async fn join(&self, is_required: bool) -> Result<(), StartError> {
        let joining = async {
            self.wait_until_flowing().await?;
            self.take_lease().await
        };
        match joining.await {
            Err(error) if !is_required && error.is_temporary() => {
                tracing::warn!(%error, "starting without Redis");
                Ok(())
            }
            joined => joined,
        }
    }

    async fn take_lease(&self) -> Result<(), StartError> {
        let deadline = time::Instant::now() + FIRST_PROBE_TIMEOUT;
        let mut renewals = 0;
        // The first renewal reads Redis's clock, the second one takes the lease.
        while renewals < 2 {
            match self.renew_lease().await {
                Ok(()) => renewals += 1,
                // Another server of the cluster has the key, and the link to it is on its way.
                Err(PublishError::Unavailable(_)) if time::Instant::now() < deadline => {
                    time::sleep(CHECK_INTERVAL).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn wait_until_flowing(&self) -> Result<(), StartError> {
        let deadline = time::Instant::now() + FIRST_PROBE_TIMEOUT;
        let mut checks = time::interval(CHECK_INTERVAL);
        loop {
            checks.tick().await;
            match self.subscriptions.subscriber.state() {
                SubscriberState::Up { .. } => match self.stream_interrupted() {
                    None => return Ok(()),
                    Some(reason) if time::Instant::now() >= deadline => {
                        return Err(StartError::NotFlowing(reason));
                    }
                    Some(_) => {}
                },
                SubscriberState::Down { reason } => {
                    // A refused right does not come by waiting.
                    let is_hopeless = matches!(reason, DownReason::Refused { .. });
                    if is_hopeless || time::Instant::now() >= deadline {
                        return Err(StartError::NotFlowing(reason.to_string().into()));
                    }
                }
            }
        }
    }
}

/// Starts the subscriber. Its probes are published over the other side of the bus.
fn subscriber(
    endpoint: Endpoint,
    config: &RedisConfig,
    outgoing: &Arc<Outgoing>,
    sink: BusSink,
) -> Subscriber {
    let (names, probes) = (Arc::clone(outgoing), Arc::downgrade(outgoing));
    let probe_channel = move |slot| {
        let channels = names.wire.channels();
        channels.probe(&names.node, slot).into()
    };
    let send_probe = move |channel: &str, number: u64| {
        let outgoing = probes.upgrade();
        outgoing
            .is_some_and(|outgoing| outgoing.publish_probe(channel, number.to_string().as_bytes()))
    };
    let mut settings = SubscriberConfig::new(Arc::new(probe_channel), Arc::new(send_probe));
    settings.is_sharded = config.dialect.is_sharded();
    settings.probe_interval = config.probe_interval;
    settings.probe_timeout = config.probe_timeout;
    Subscriber::start(endpoint, settings, sink)
}

/// Refuses one server of a Redis Cluster, because it may have neither the leases nor the
/// subscribers of the others.
fn check_topology(connection: &Connection, endpoint: &Endpoint) -> Result<(), ConnectError> {
    let info = connection.info();
    let is_part = info.mode == Some(Mode::Cluster) && endpoint.topology() != Topology::Cluster;
    if is_part {
        let server = info.server.clone();
        return Err(ConnectError::IsCluster { server });
    }
    Ok(())
}

/// The rights of this node beyond those that every node needs. By default none.
#[derive(Debug, Clone, Copy, Default)]
pub struct RedisRights {
    /// The number of patterns in Redis.
    pub patterns: usize,
    /// Whether the user may subscribe the pattern of private rooms.
    pub private_patterns: bool,
    /// Whether the user may subscribe the patterns of all rooms.
    pub all_rooms: bool,
}

/// Checks that the server is the right one and the user has all rights that a node needs.
pub(super) async fn check(
    endpoint: &Endpoint,
    config: &RedisConfig,
    node: &NodeId,
) -> Result<RedisRights, StartError> {
    if config.signing.is_some() && !Signing::is_possible(config.dialect, config.parser) {
        return Err(StartError::Unsignable);
    }
    let channels = config.channels();
    let mut connection = endpoint.connect(Purpose::Lookup, None).await?;
    check_topology(&connection, endpoint)?;
    let patterns = check_rights(&mut connection, config, &channels, node).await?;
    let private_patterns = may_use_patterns(&mut connection, config, &channels, node).await?;
    let all_rooms = ["PSUBSCRIBE", &channels.rooms_pattern("/")];
    let all_rooms = config.dialect == Dialect::Classic
        && is_allowed(&mut connection, config, &all_rooms).await?;
    Ok(RedisRights {
        patterns,
        private_patterns,
        all_rooms,
    })
}

/// Tries each kind of command that a node needs, without effect on others. Returns the number of
/// patterns in Redis.
async fn check_rights(
    connection: &mut Connection,
    config: &RedisConfig,
    channels: &Channels,
    node: &NodeId,
) -> Result<usize, StartError> {
    let (probe, leases) = (channels.probe(node, 0), channels.leases());
    let request = channels.request("/");
    let (publish, count, subscribe) = match config.dialect {
        Dialect::Classic | Dialect::Streams => ("PUBLISH", "NUMSUB", "SUBSCRIBE"),
        Dialect::Sharded(_) => ("SPUBLISH", "SHARDNUMSUB", "SSUBSCRIBE"),
    };
    // A channel like those of rooms, to which no other node subscribes.
    let own = channels.room("/", node.as_str());
    let (stream, max_len) = (channels.stream(), config.stream_max_len.to_string());
    if config.dialect == Dialect::Streams {
        let commands: [&[&str]; 2] = [
            &["XRANGE", stream, "-", "-"],
            &["XTRIM", stream, "MAXLEN", "~", &max_len],
        ];
        for command in commands {
            attempt(connection, config, command).await?;
        }
    }
    let commands: [&[&str]; 9] = [
        &["PUBSUB", "NUMPAT"],
        &["PUBSUB", count, &request],
        &["TIME"],
        &[publish, &probe, "0"],
        &["ZADD", &leases, "XX", "0", node.as_str()],
        &["ZREVRANGE", &leases, "0", "0"],
        &["ZREMRANGEBYSCORE", &leases, "-inf", "(0"],
        &["ZREM", &leases, node.as_str()],
        // Last, because the connection takes nothing but subscriptions from then on.
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

/// Returns whether the user may subscribe patterns. The right to some of the channels does not
/// include it. If the settings require patterns, a missing right is an error.
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
    let command = ["PSUBSCRIBE", &pattern];
    if config.private_rooms == PrivateRooms::Pattern {
        return attempt(connection, config, &command).await.map(|_| true);
    }
    let is_allowed = is_allowed(connection, config, &command).await?;
    if !is_allowed {
        tracing::info!("Redis allows this user no patterns: each socket gets a channel");
    }
    Ok(is_allowed)
}

/// Runs a command. Returns whether Redis allows it.
async fn is_allowed(
    connection: &mut Connection,
    config: &RedisConfig,
    command: &[&str],
) -> Result<bool, StartError> {
    match attempt(connection, config, command).await {
        Err(StartError::Forbidden { .. }) => Ok(false),
        Err(error) => Err(error),
        Ok(_) => Ok(true),
    }
}

/// Runs a command. Returns nothing if another server of the cluster is responsible: Redis has
/// checked the right by then.
async fn attempt(
    connection: &mut Connection,
    config: &RedisConfig,
    command: &[&str],
) -> Result<Option<Value>, StartError> {
    let attempted = time::timeout(CONNECT_TIMEOUT, connection.command(command)).await;
    match attempted {
        Ok(Ok(value)) => Ok(Some(value)),
        Ok(Err(ConnectError::Refused { reason, .. })) if reason.starts_with("MOVED") => Ok(None),
        // A renamed command is an unknown one.
        Ok(Err(ConnectError::Refused { reason, .. }))
            if reason.starts_with("NOPERM") || reason.starts_with("ERR") =>
        {
            Err(StartError::Forbidden {
                command: command.join(" "),
                reason,
                prefix: config.prefix.clone(),
            })
        }
        Ok(Err(ConnectError::Refused { reason, .. })) => Err(StartError::Refused {
            command: command.join(" "),
            reason,
        }),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(StartError::Connect(ConnectError::TimedOut {
            server: connection.info().server.clone(),
            after: CONNECT_TIMEOUT,
        })),
    }
}
