//! Asking Sentinels for the primary.
//!
//! The crate's own Sentinel client tries the servers in turn and reports only the last error. An
//! operator needs to know whether no Sentinel could be reached, or whether none knows the name, so
//! the question is sent here, over the crate's connections. Its role check also blocks the thread.

use redis::Value;

use super::{
    connect::{Connection, Endpoint, Mode, Purpose, Push},
    error::ConnectError,
    reply::Reply,
    stream::Target,
    url::{Address, Location, Login},
};

impl Endpoint {
    /// The address of the primary, from the first Sentinel that knows it; `None` without Sentinels.
    ///
    /// The Sentinels are asked in the order of the URL.
    pub async fn primary(&self) -> Result<Option<Address>, ConnectError> {
        let Location::Sentinel {
            sentinels,
            primary,
            login,
        } = &self.url().location
        else {
            return Ok(None);
        };
        let mut failure = None;
        let mut is_unknown = false;
        for sentinel in sentinels {
            match self.ask_sentinel(sentinel, primary, login).await {
                Ok(Some(address)) => return Ok(Some(address)),
                Ok(None) => is_unknown = true,
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if !is_unknown => Err(error),
            failure => Err(ConnectError::NoSuchPrimary {
                primary: primary.to_string(),
                all_were_asked: failure.is_none(),
            }),
        }
    }

    pub(super) async fn connect_to_primary(
        &self,
        purpose: Purpose,
        push: Option<Push>,
    ) -> Result<Connection, ConnectError> {
        let address = self.primary().await?;
        let address = address.expect("the URL names Sentinels");
        let connection = self.connect_to(&address, purpose, push).await?;
        // For a moment after a failover, Sentinels still name the old primary, and messages that a
        // replica accepts reach no subscriber elsewhere.
        match connection.info().is_primary {
            true => Ok(connection),
            false => Err(ConnectError::NotPrimary {
                server: address.to_string(),
            }),
        }
    }

    /// Where the primary is; `None` if this Sentinel does not know the name.
    async fn ask_sentinel(
        &self,
        sentinel: &Address,
        primary: &str,
        login: &Login,
    ) -> Result<Option<Address>, ConnectError> {
        let opening = self.open(Target::Tcp(sentinel), login, Purpose::Lookup, None);
        let mut connection = opening.await?;
        let server = connection.info().server.clone();
        if !matches!(connection.info().mode, Some(Mode::Sentinel) | None) {
            return Err(ConnectError::NotSentinel { server });
        }
        let question = ["SENTINEL", "get-master-addr-by-name", primary];
        let reply = connection.command(&question).await?;
        read_address(&reply).ok_or_else(|| ConnectError::unexpected(&server))
    }
}

/// `None` if it is not the reply of a Sentinel; `Some(None)` if the name is unknown.
fn read_address(reply: &Value) -> Option<Option<Address>> {
    if *reply == Value::Nil {
        return Some(None);
    }
    let [host, port] = reply.list()? else {
        return None;
    };
    let port = u16::try_from(port.integer()?).ok()?;
    Some(Some(Address::new(host.text()?, port)))
}
