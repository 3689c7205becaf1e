//! Why there is no connection to Redis, and whether it helps to try again.

use std::{path::PathBuf, time::Duration};

use crate::resp::RespError;

/// Why there is no connection to Redis. `server` is host and port or the path of the Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there, the name is unknown, or the connection broke.
    #[error("{server} cannot be reached: {reason}")]
    Unreachable {
        /// The server.
        server: String,
        /// What the system says.
        reason: String,
    },
    /// The server did not answer in time.
    #[error("{server} did not answer within {} s", after.as_secs_f32())]
    TimedOut {
        /// The server.
        server: String,
        /// How long was waited.
        after: Duration,
    },
    /// The server cannot be trusted, or does not speak TLS.
    #[error("no secure connection to {server}: {reason} (`?ca=FILE` names whom to trust)")]
    Tls {
        /// The server.
        server: String,
        /// What is wrong.
        reason: String,
    },
    /// A file with certificates or a key is of no use.
    #[error("{}: {reason}", path.display())]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// User or password is wrong, or the server knows no passwords at all.
    #[error("{server} does not accept the user or the password: {reason}")]
    WrongPassword {
        /// The server.
        server: String,
        /// What the server says.
        reason: String,
    },
    /// The server asks for a password and none is set.
    #[error("{server} asks for a password: redis://:password@host")]
    PasswordRequired {
        /// The server.
        server: String,
    },
    /// The server does not have the database.
    #[error("{server} has no database {database}: {reason}")]
    UnknownDatabase {
        /// The server.
        server: String,
        /// Its number.
        database: u32,
        /// What the server says.
        reason: String,
    },
    /// The server answers with an error, for example while it loads its data.
    #[error("{server} refuses: {reason}")]
    Refused {
        /// The server.
        server: String,
        /// What the server says.
        reason: String,
    },
    /// What listens there does not speak the protocol of Redis.
    #[error("{server} is no Redis server: {reason}")]
    NotRedis {
        /// The server.
        server: String,
        /// What is wrong with what it said.
        reason: String,
    },
    /// What listens there is a Sentinel, which carries no messages.
    #[error("{server} is a Sentinel: redis+sentinel://{server}/name-of-the-primary")]
    IsSentinel {
        /// The server.
        server: String,
    },
    /// What listens there is not a Sentinel.
    #[error("{server} is not a Sentinel: redis://{server}")]
    NotSentinel {
        /// The server.
        server: String,
    },
    /// The server is older than what the dialect needs.
    #[error("{server} is Redis {version}, and the sharded dialect needs Redis 7")]
    TooOld {
        /// The server.
        server: String,
        /// Its version.
        version: String,
    },
    /// All Sentinels that answered do not know the primary.
    #[error("the Sentinels know no primary of the name `{primary}`")]
    NoSuchPrimary {
        /// The name that was asked for.
        primary: String,
        /// Whether every Sentinel of the setting has said so.
        all_were_asked: bool,
    },
    /// The Sentinels name a server that is not a primary, as they do during a failover.
    #[error("{server} is not a primary at the moment")]
    NotPrimary {
        /// The server.
        server: String,
    },
    /// The server does not belong to a cluster.
    #[error("{server} does not belong to a cluster: redis://{server}")]
    ClusterDisabled {
        /// The server.
        server: String,
    },
    /// The server belongs to a cluster, and has but a part of its channels and keys.
    #[error("{server} belongs to a cluster: redis+cluster://{server}")]
    IsCluster {
        /// The server.
        server: String,
    },
    /// The cluster does not serve, for example without a majority of its primaries.
    #[error("the cluster of {server} does not serve: {reason}")]
    ClusterDown {
        /// The node that was asked.
        server: String,
        /// What it says.
        reason: String,
    },
}

impl ConnectError {
    /// Whether trying again is useless until somebody changes the setting or the server.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::NotPrimary { .. }
            | Self::ClusterDown { .. } => false,
            Self::Refused { reason, .. } => {
                reason.starts_with("DENIED") || reason.starts_with("NOPERM")
            }
            Self::NoSuchPrimary { all_were_asked, .. } => *all_were_asked,
            Self::Tls { .. }
            | Self::TlsFile { .. }
            | Self::WrongPassword { .. }
            | Self::PasswordRequired { .. }
            | Self::UnknownDatabase { .. }
            | Self::NotRedis { .. }
            | Self::IsSentinel { .. }
            | Self::IsCluster { .. }
            | Self::TooOld { .. }
            | Self::NotSentinel { .. }
            | Self::ClusterDisabled { .. } => true,
        }
    }

    pub(super) fn not_redis(server: &str, error: RespError) -> Self {
        Self::NotRedis {
            server: server.to_owned(),
            reason: error.to_string(),
        }
    }

    /// What an error says that the server answers instead of what it was asked for.
    pub(super) fn refused(server: &str, reason: String) -> Self {
        let server = server.to_owned();
        if reason.starts_with("NOAUTH") {
            Self::PasswordRequired { server }
        } else {
            Self::Refused { server, reason }
        }
    }

    /// What an answer of an unexpected kind says.
    pub(super) fn unexpected(server: &str) -> Self {
        Self::NotRedis {
            server: server.to_owned(),
            reason: "an answer of an unexpected kind".to_owned(),
        }
    }
}
