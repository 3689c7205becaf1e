//! A connection that is logged in, before a link takes it over.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stream::{DirectWriter, Stream};
use crate::{
    redis::{Address, ConnectError, Login},
    resp::{self, Limits, Parsed},
    value::Value,
};

/// What to say first.
pub(super) struct Greeting<'a> {
    pub(super) login: &'a Login,
    pub(super) database: u32,
    pub(super) client_name: &'a str,
}

/// What a server says about itself. Servers before Redis 6 say nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Host and port, or the path of its Unix socket.
    pub server: String,
    /// Host and port, unless it is behind a Unix socket.
    pub address: Option<Address>,
    /// Its version, as it says it; empty if it does not say.
    pub version: String,
    /// The first number of the version; zero if the server is too old to say.
    pub major_version: Option<u32>,
    /// How it runs.
    pub mode: Option<Mode>,
    /// Whether it takes writes itself instead of following another server.
    pub is_primary: Option<bool>,
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

/// A connection that is logged in.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// What has been read and not been understood yet.
    buffer: BytesMut,
    info: ServerInfo,
}

impl Connection {
    /// Opens the stream and says who we are, everything in one packet.
    pub(super) async fn open(
        server: &str,
        address: Option<&Address>,
        opening: impl Future<Output = Result<Stream, ConnectError>>,
        greeting: &Greeting<'_>,
    ) -> Result<Self, ConnectError> {
        let mut connection = Self {
            stream: opening.await?,
            buffer: BytesMut::new(),
            info: ServerInfo {
                server: server.to_owned(),
                address: address.cloned(),
                version: String::new(),
                major_version: None,
                mode: None,
                is_primary: None,
            },
        };
        connection.greet(greeting).await?;
        Ok(connection)
    }

    async fn greet(&mut self, greeting: &Greeting<'_>) -> Result<(), ConnectError> {
        let mut commands = Vec::new();
        match (&greeting.login.user, &greeting.login.password) {
            (Some(user), Some(password)) => {
                resp::encode_command(&mut commands, &["AUTH", user, password]);
            }
            (None, Some(password)) => resp::encode_command(&mut commands, &["AUTH", password]),
            (_, None) => {}
        }
        if greeting.database != 0 {
            resp::encode_command(&mut commands, &["SELECT", &greeting.database.to_string()]);
        }
        resp::encode_command(&mut commands, &["CLIENT", "SETNAME", greeting.client_name]);
        resp::encode_command(&mut commands, &["HELLO", "2"]);
        self.write(&commands).await?;
        if greeting.login.password.is_some() {
            self.check_login().await?;
        }
        if greeting.database != 0 {
            self.check_database(greeting.database).await?;
        }
        // A user without the right to name connections has the right to publish all the same.
        self.reply().await?;
        self.read_hello().await
    }

    async fn check_login(&mut self) -> Result<(), ConnectError> {
        match self.reply().await? {
            Value::Error(reason) if is_about_login(&reason) => Err(ConnectError::WrongPassword {
                server: self.info.server.clone(),
                reason: reason.into(),
            }),
            Value::Error(reason) => Err(self.refused(&reason)),
            _ => Ok(()),
        }
    }

    async fn check_database(&mut self, database: u32) -> Result<(), ConnectError> {
        match self.reply().await? {
            Value::Error(reason) if reason.starts_with("ERR") => {
                Err(ConnectError::UnknownDatabase {
                    server: self.info.server.clone(),
                    database,
                    reason: reason.into(),
                })
            }
            Value::Error(reason) => Err(self.refused(&reason)),
            _ => Ok(()),
        }
    }

    async fn read_hello(&mut self) -> Result<(), ConnectError> {
        let fields = match self.reply().await? {
            Value::List(fields) => fields,
            Value::Error(reason) if reason.starts_with("ERR") => {
                self.info.major_version = Some(0);
                "older than 6".clone_into(&mut self.info.version);
                // It did not say whether it asks for a password.
                return self.command(&["PING"]).await.map(drop);
            }
            Value::Error(reason) => return Err(self.refused(&reason)),
            _ => return Err(ConnectError::unexpected(&self.info.server)),
        };
        for pair in fields.chunks_exact(2) {
            let (Some(name), Some(value)) = (pair[0].text(), pair[1].text()) else {
                continue;
            };
            match (name, value) {
                ("version", version) => {
                    let major = version.split('.').next().unwrap_or_default();
                    self.info.major_version = major.parse().ok();
                    version.clone_into(&mut self.info.version);
                }
                ("mode", "standalone") => self.info.mode = Some(Mode::Standalone),
                ("mode", "cluster") => self.info.mode = Some(Mode::Cluster),
                ("mode", "sentinel") => self.info.mode = Some(Mode::Sentinel),
                ("role", role) => self.info.is_primary = Some(role == "master"),
                _ => {}
            }
        }
        Ok(())
    }

    /// Says one command and waits for the answer. An error that the server answers is an error
    /// here, too. There is no deadline.
    pub async fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Value, ConnectError> {
        let mut command = Vec::new();
        resp::encode_command(&mut command, args);
        self.write(&command).await?;
        match self.reply().await? {
            Value::Error(reason) => Err(self.refused(&reason)),
            value => Ok(value),
        }
    }

    /// The stream, and what has been read from it and not been understood yet.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.buffer)
    }

    /// A second handle that writes, where there can be one.
    pub(crate) fn direct_writer(&self) -> Option<DirectWriter> {
        self.stream.direct_writer()
    }

    /// What the server says about itself.
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
        let written = self.stream.write_all(bytes).await;
        let written = written.and(self.stream.flush().await);
        written.map_err(|error| self.broken(&error))
    }

    async fn reply(&mut self) -> Result<Value, ConnectError> {
        let limits = Limits::default();
        loop {
            let parsed = resp::parse(&self.buffer, &limits);
            let parsed = parsed.map_err(|error| ConnectError::NotRedis {
                server: self.info.server.clone(),
                reason: error.to_string(),
            })?;
            if let Parsed::Whole(reply, length) = parsed {
                let value = Value::from(&reply);
                let _ = self.buffer.split_to(length);
                return Ok(value);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(self.broken(&io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }

    fn broken(&self, error: &io::Error) -> ConnectError {
        ConnectError::Unreachable {
            server: self.info.server.clone(),
            reason: error.to_string(),
        }
    }

    fn refused(&self, reason: &str) -> ConnectError {
        ConnectError::of_reply(self.info.server.clone(), reason.to_owned())
    }
}

/// Wrong, or a password for a server that has none: both are a matter of the setting.
fn is_about_login(reason: &str) -> bool {
    reason.starts_with("WRONGPASS") || reason.starts_with("ERR")
}
