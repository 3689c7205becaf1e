//! Asking Sentinels who the primary is.

use super::{Connection, Endpoint, Mode, Purpose, connection::Greeting, within_timeout};
use crate::{
    redis::{Address, ConnectError, Location as Place, Login},
    value::Value,
};

impl Endpoint {
    /// Where the primary is, as the first Sentinel says that knows; nothing without Sentinels.
    ///
    /// The Sentinels are asked one after the other, in the order of the setting.
    pub async fn primary(&self) -> Result<Option<Address>, ConnectError> {
        match &self.url.location {
            Place::Sentinel {
                sentinels,
                primary,
                login,
            } => self
                .named_primary(sentinels, primary, login)
                .await
                .map(Some),
            _ => Ok(None),
        }
    }

    pub(super) async fn connect_to_primary(
        &self,
        address: &Address,
        purpose: Purpose,
    ) -> Result<Connection, ConnectError> {
        let mut connection = self.connect_to(address, purpose).await?;
        // After a failover, Sentinels go on naming the old primary for a moment, and a server that
        // follows another one takes messages without passing them on.
        let is_primary = match connection.info().is_primary {
            Some(is_primary) => is_primary,
            None => {
                let role = connection.command(&["ROLE"]).await?;
                let role = role.list().and_then(|role| role.first()?.text());
                role == Some("master")
            }
        };
        if is_primary {
            Ok(connection)
        } else {
            Err(ConnectError::NotPrimary {
                server: address.to_string(),
            })
        }
    }

    pub(super) async fn named_primary(
        &self,
        sentinels: &[Address],
        primary: &str,
        login: &Login,
    ) -> Result<Address, ConnectError> {
        let mut failure = None;
        let mut is_unknown = false;
        for sentinel in sentinels {
            let asking = self.ask_sentinel(sentinel, primary, login);
            match within_timeout(&sentinel.to_string(), asking).await {
                Ok(Some(address)) => return Ok(address),
                Ok(None) => is_unknown = true,
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if !is_unknown => Err(error),
            failure => Err(ConnectError::NoSuchPrimary {
                primary: primary.to_owned(),
                all_were_asked: failure.is_none(),
            }),
        }
    }

    /// Where the primary is; nothing if this Sentinel does not know the name.
    async fn ask_sentinel(
        &self,
        sentinel: &Address,
        primary: &str,
        login: &Login,
    ) -> Result<Option<Address>, ConnectError> {
        let greeting = Greeting {
            login,
            database: 0,
            client_name: Purpose::Lookup.client_name(),
        };
        let mut connection = self.open(sentinel, &greeting).await?;
        let server = connection.info().server.clone();
        if !matches!(connection.info().mode, Some(Mode::Sentinel) | None) {
            return Err(ConnectError::NotSentinel { server });
        }
        let question = ["SENTINEL", "get-master-addr-by-name", primary];
        let answer = connection.command(&question).await?;
        address_of(&answer).ok_or_else(|| ConnectError::unexpected(&server))
    }
}

/// Nothing if it is no answer; nobody if the name is unknown.
fn address_of(answer: &Value) -> Option<Option<Address>> {
    match answer {
        Value::Nil => Some(None),
        Value::List(parts) => match &parts[..] {
            [host, port] => {
                let port = u16::try_from(port.integer()?).ok()?;
                Some(Some(Address::new(host.text()?, port)))
            }
            _ => None,
        },
        _ => None,
    }
}
