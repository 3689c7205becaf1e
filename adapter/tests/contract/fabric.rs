//! What connects the nodes of a check.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use roomcast_adapter::{Bus, MemoryBus, NodeId, RedisBus, RedisConfig, Signing};
use roomcast_emitter::entropy;
use roomcast_protocol::{
    channel::{Dialect, Mode},
    wire::Parser,
};

use crate::{node::Node, support};

pub(crate) struct Fabric {
    kind: Kind,
    parser: Parser,
    signing: Option<Signing>,
    checks: AtomicU32,
}

enum Kind {
    Memory,
    Redis {
        dialect: Dialect,
        server: support::Redis,
        login: &'static str,
    },
    Cluster {
        dialect: Dialect,
        cluster: support::Cluster,
    },
}

/// The rights of a node as its documentation has them, for prefixes that begin with `check`.
const RIGHTS: &str = "~check* &check* +@pubsub +@sortedset +time +ping +select +client|setname \
                      +eval +evalsha +@stream +get +set +expire \
                      +getrange +del +pexpire +pttl";
const CLUSTER_RIGHTS: &str = "+asking +cluster|slots +cluster|nodes";
const LOGIN: &str = "node:secret@";

/// Adds a user who has these rights and no other.
fn add_user(server: &support::Redis, rights: &str) {
    let mut command = vec!["ACL", "SETUSER", "node", "on", ">secret", "resetchannels"];
    command.extend(rights.split(' '));
    server.command(&command);
}

/// A cluster of nodes that hears nothing of others.
pub(crate) enum Fresh {
    Memory(MemoryBus),
    Redis {
        config: Box<RedisConfig>,
        is_cluster: bool,
    },
}

impl Fabric {
    pub(crate) fn memory() -> Self {
        Self::new(Kind::Memory)
    }

    pub(crate) fn redis(dialect: Dialect) -> Self {
        Self::new(Kind::Redis {
            dialect,
            server: support::Redis::start(),
            login: "",
        })
    }

    /// With a user who has the rights that are documented and no more.
    pub(crate) fn redis_with_rights(dialect: Dialect) -> Self {
        let server = support::Redis::start();
        add_user(&server, RIGHTS);
        Self::new(Kind::Redis {
            dialect,
            server,
            login: LOGIN,
        })
    }

    /// With a user who has the rights that are documented and no more.
    pub(crate) fn redis_cluster(dialect: Dialect) -> Self {
        let cluster = support::Cluster::start(3);
        for server in &cluster.nodes {
            add_user(server, &format!("{RIGHTS} {CLUSTER_RIGHTS}"));
        }
        Self::new(Kind::Cluster { dialect, cluster })
    }

    fn new(kind: Kind) -> Self {
        Self {
            kind,
            parser: Parser::default(),
            signing: None,
            checks: AtomicU32::new(0),
        }
    }

    pub(crate) fn with_parser(self, parser: Parser) -> Self {
        Self { parser, ..self }
    }

    /// Whether a check is about what the stream of Node's adapter does not have: journals with limits of their own.
    pub(crate) fn leaves_out(&self, check: &str) -> bool {
        const LEFT_OUT: [&str; 4] = [
            "what_is_published_to_a_room_is_in_its_history_and_in_the_journal",
            "a_journal_keeps_about_as_many_broadcasts_as_allowed",
            "a_journal_keeps_about_as_many_bytes_as_allowed_and_always_the_newest",
            "a_journal_forgets_what_is_too_old",
        ];
        let dialect = match &self.kind {
            Kind::Memory => return false,
            Kind::Redis { dialect, .. } | Kind::Cluster { dialect, .. } => *dialect,
        };
        dialect == Dialect::Streams && LEFT_OUT.contains(&check)
    }

    /// All nodes sign what they publish.
    pub(crate) fn signed(self) -> Self {
        let keys = "a key of the contract of all the buses".parse().unwrap();
        let signing = Some(Signing::new(keys));
        Self { signing, ..self }
    }

    /// Another cluster on the same servers: its prefix keeps it apart.
    pub(crate) fn fresh(&self) -> Fresh {
        let number = self.checks.fetch_add(1, Ordering::Relaxed);
        let (dialect, url) = match &self.kind {
            Kind::Memory => return Fresh::Memory(MemoryBus::new()),
            Kind::Redis {
                dialect,
                server,
                login,
            } => (*dialect, with_login(&server.url(), login)),
            Kind::Cluster { dialect, cluster } => (*dialect, with_login(&cluster.url(), LOGIN)),
        };
        let mut config = RedisConfig::new(url.parse().unwrap());
        config.prefix = format!("check{number}");
        config.dialect = dialect;
        config.parser = self.parser;
        config.session_prefix = format!("check{number}-session:");
        config.signing.clone_from(&self.signing);
        Fresh::Redis {
            config: Box::new(config),
            is_cluster: matches!(self.kind, Kind::Cluster { .. }),
        }
    }
}

fn with_login(url: &str, login: &str) -> String {
    url.replacen("://", &format!("://{login}"), 1)
}

impl Fresh {
    pub(crate) async fn node(&self, namespace: &'static str) -> Node {
        let id = NodeId::new(&entropy::name::<20>());
        let bus: Arc<dyn Bus> = match self {
            Self::Memory(bus) => Arc::new(bus.clone()),
            Self::Redis { config, .. } => {
                Arc::new(RedisBus::connect((**config).clone(), &id).await.unwrap())
            }
        };
        let node = Node::attach(bus, id, namespace);
        // Its channels are subscribed.
        node.confirm("").await;
        node
    }

    /// Redis counts the subscribers of one node of a cluster.
    pub(crate) fn counts_are_partial(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            // Nobody knows who reads a stream: the number is that of a moment ago.
            Self::Redis { config, is_cluster } => *is_cluster || config.dialect == Dialect::Streams,
        }
    }

    /// Messages to rooms without members on a node do not reach it.
    pub(crate) fn hears_only_its_rooms(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Redis { config, .. } => !matches!(
                config.dialect,
                Dialect::Sharded(Mode::Static) | Dialect::Streams
            ),
        }
    }

    pub(crate) fn orders_rooms_apart(&self) -> bool {
        let Self::Redis { config, is_cluster } = self else {
            return false;
        };
        *is_cluster && matches!(config.dialect, Dialect::Sharded(mode) if mode != Mode::Static)
    }
}

impl fmt::Display for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Memory => f.write_str("memory"),
            Kind::Redis { dialect, login, .. } => write!(f, "redis {login} {dialect:?}"),
            Kind::Cluster { dialect, .. } => write!(f, "redis cluster {dialect:?}"),
        }
    }
}
