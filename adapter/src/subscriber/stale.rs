//! The previous connection of a subscriber, as the server knows it.
//!
//! A connection that was cut without a packet is still open for Redis, which keeps counting its
//! subscriptions until the server's keepalive ends it. Members of a cluster that are counted by
//! subscriptions would be one too many for that time. Therefore the next connection kills it.

use redis::{RedisResult, aio::MultiplexedConnection, cmd};

/// Id and address of a connection. Both must match for a kill, because after a restart of the
/// server another client has the id.
#[derive(Debug, Default)]
pub(super) struct StaleConnection(Option<(String, String)>);

impl StaleConnection {
    /// Kills the previous connection and remembers this one instead. A user without the right
    /// (`+client|info +client|kill`) does without.
    pub(super) async fn kill(&mut self, connection: &mut MultiplexedConnection) {
        if let Some((id, address)) = self.0.take() {
            let mut kill = cmd("CLIENT");
            kill.arg("KILL").arg("ID").arg(id).arg("ADDR").arg(address);
            let killed: RedisResult<i64> = kill.query_async(connection).await;
            if killed.is_ok_and(|killed| killed > 0) {
                tracing::info!("killed the previous connection, which Redis still held open");
            }
        }
        let info: RedisResult<String> = cmd("CLIENT").arg("INFO").query_async(connection).await;
        self.0 = info.ok().and_then(|info| identity(&info));
    }
}

/// Finds id and address in a line of `name=value` pairs.
fn identity(line: &str) -> Option<(String, String)> {
    let field = |name: &str| {
        let mut fields = line.split_ascii_whitespace();
        let value = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        value.map(str::to_owned)
    };
    Some((field("id")?, field("addr")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_known_by_id_and_address() {
        let line = "id=17 addr=127.0.0.1:5000 laddr=127.0.0.1:6379 fd=8 name=x\n";
        let wanted = ("17".to_owned(), "127.0.0.1:5000".to_owned());
        assert_eq!(identity(line), Some(wanted));
        assert_eq!(identity("laddr=1 id=2"), None);
        assert_eq!(identity(""), None);
    }
}
