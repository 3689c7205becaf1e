//! Why a connection to Redis failed, and whether a retry can help.
//!
//! The crate's errors describe the failure. These name the remedy for an operator: which
//! server, which part of the URL, and whether something has to be changed. A program that
//! starts exits at permanent errors and waits at the others.

use std::{error::Error, io, path::PathBuf, sync::Arc, time::Duration};

use redis::{ErrorKind, RedisError};

/// Why a connection to Redis failed. `server` is host and port, or the path of the Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing listens there, the name does not resolve, or the connection broke.
    #[error("{server} cannot be reached: {reason}")]
    Unreachable {
        /// The server.
        server: String,
        /// The system's error.
        reason: String,
    },
    /// The server did not respond in time.
    #[error("{server} did not respond within {} s", after.as_secs_f32())]
    TimedOut {
        /// The server.
        server: String,
        /// The timeout.
        after: Duration,
    },
    /// The server's certificate is not trusted, or the server does not use TLS.
    #[error("no secure connection to {server}: {reason} (`?ca=FILE` names a trusted authority)")]
    Tls {
        /// The server.
        server: String,
        /// The error.
        reason: String,
    },
    /// A file with certificates or a key cannot be used.
    #[error("{}: {reason}", path.display())]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// The error.
        reason: String,
    },
    /// User or password is wrong.
    #[error("{server} does not accept the user or the password: {reason}")]
    WrongPassword {
        /// The server.
        server: String,
        /// The server's error.
        reason: String,
    },
    /// The server requires a password and none is set.
    #[error("{server} requires a password: redis://:password@host")]
    PasswordRequired {
        /// The server.
        server: String,
    },
    /// The database does not exist.
    #[error("{server} has no database {database}: {reason}")]
    UnknownDatabase {
        /// The server.
        server: String,
        /// The number of the database.
        database: u32,
        /// The server's error.
        reason: String,
    },
    /// The server returned an error, for example while it loads its data.
    #[error("{server} refuses: {reason}")]
    Refused {
        /// The server.
        server: String,
        /// The server's error.
        reason: String,
    },
    /// The server at the address does not speak the Redis protocol.
    #[error("{server} is not a Redis server: {reason}")]
    NotRedis {
        /// The server.
        server: String,
        /// Why its reply could not be read.
        reason: String,
    },
    /// The server is a Sentinel, which carries no messages.
    #[error("{server} is a Sentinel: redis+sentinel://{server}/name-of-the-primary")]
    IsSentinel {
        /// The server.
        server: String,
    },
    /// The server is not a Sentinel.
    #[error("{server} is not a Sentinel: redis://{server}")]
    NotSentinel {
        /// The server.
        server: String,
    },
    /// The server is too old.
    #[error("{server} is Redis {version}; {need}")]
    TooOld {
        /// The server.
        server: String,
        /// Its version.
        version: String,
        /// The minimum version and the feature that needs it.
        need: &'static str,
    },
    /// No Sentinel that responded knows the primary.
    #[error("the Sentinels know no primary named `{primary}`")]
    NoSuchPrimary {
        /// The name in the URL.
        primary: String,
        /// Whether every Sentinel of the URL responded.
        all_were_asked: bool,
    },
    /// The server is a replica. Sentinels, or a name that points to the primary, lead to
    /// it during a failover.
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
    /// The server belongs to a cluster and has only a part of its channels and keys.
    #[error("{server} belongs to a cluster: redis+cluster://{server}")]
    IsCluster {
        /// The server.
        server: String,
    },
    /// The cluster is down, for example because it lacks a majority of its primaries.
    #[error("the cluster of {server} is down: {reason}")]
    ClusterDown {
        /// The node that reported it.
        server: String,
        /// Its reason.
        reason: String,
    },
}

impl ConnectError {
    /// Whether retrying is useless until the URL or the server changes.
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

    /// Translates an error of the `redis` crate from opening a connection.
    pub(crate) fn of_opening(server: &str, database: u32, error: &RedisError) -> Self {
        let server = server.to_owned();
        let reason = text(error);
        match error.kind() {
            ErrorKind::Parse => Self::NotRedis { server, reason },
            ErrorKind::RESP3NotSupported => Self::TooOld {
                server,
                version: "older than 6".to_owned(),
                need: NEEDS_6_2,
            },
            // With a client certificate that it rejects, a server ends the connection at the login.
            ErrorKind::Io if io_error(error).is_some_and(is_about_trust) => {
                Self::Tls { server, reason }
            }
            ErrorKind::Io => Self::Unreachable { server, reason },
            _ if error.to_string().contains("refused to switch database") => {
                Self::UnknownDatabase {
                    server,
                    database,
                    reason: error.detail().unwrap_or_default().to_owned(),
                }
            }
            _ => Self::of_reply(server, reason),
        }
    }

    /// Translates an error of a stream that is opened.
    pub(super) fn of_stream(server: &str, error: &io::Error) -> Self {
        let (server, reason) = (server.to_owned(), error.to_string());
        match is_about_trust(error) {
            true => Self::Tls { server, reason },
            false => Self::Unreachable { server, reason },
        }
    }

    /// Translates an error that the server returned to a command.
    pub(crate) fn of_reply(server: String, reason: String) -> Self {
        match reason.split(' ').next() {
            Some("NOAUTH") => Self::PasswordRequired { server },
            Some("WRONGPASS") => Self::WrongPassword { server, reason },
            _ => Self::Refused { server, reason },
        }
    }

    /// The reply is not one that the command can return.
    pub(crate) fn unexpected(server: &str) -> Self {
        Self::NotRedis {
            server: server.to_owned(),
            reason: "an unexpected reply".to_owned(),
        }
    }
}

/// Minimum version of every server.
pub(super) const NEEDS_6_2: &str = "Roomcast needs Redis 6.2";

/// Minimum version of the sharded dialect.
pub(super) const NEEDS_7: &str = "the sharded dialect needs Redis 7";

/// The error as the server wrote it, with its code in front; another error in its displayed form.
pub(crate) fn text(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        (None, _) => error.to_string(),
    }
}

/// Whether TLS failed, and not the connection below it: rustls reports its errors as invalid data.
fn is_about_trust(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// The error of the stream that caused this one.
fn io_error(error: &RedisError) -> Option<&io::Error> {
    let source = error.source()?;
    let source = source.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    source.downcast_ref()
}
