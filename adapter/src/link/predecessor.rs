//! The connection that a link had before, as the server knows it.
//!
//! One that was cut without a word is still open for Redis, which goes on counting its
//! subscriptions: members of a cluster that are counted by them would be one too many until the
//! server's keepalive ends it. The link ends it itself as soon as it is back.

use roomcast_emitter::{endpoint::Connection, value::Value};

/// Number and address of a connection. Both must fit for it to be ended: after a restart of the
/// server, the number is somebody else's.
#[derive(Debug, Default)]
pub(super) struct Predecessor(Option<(String, String)>);

impl Predecessor {
    /// Ends the connection before, and remembers this one instead. A user who may not do that
    /// (`+client|info +client|kill`) does without.
    pub(super) async fn bury(&mut self, connection: &mut Connection) {
        if let Some((id, address)) = self.0.take() {
            let kill = ["CLIENT", "KILL", "ID", &id, "ADDR", &address];
            if let Ok(Value::Integer(1..)) = connection.command(&kill).await {
                tracing::info!("ended what Redis had left of the connection before");
            }
        }
        let info = connection.command(&["CLIENT", "INFO"]).await;
        self.0 = info.ok().and_then(|info| identity(info.text()?));
    }
}

/// Finds number and address in a line of `name=value`.
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
    fn a_connection_is_known_by_number_and_address() {
        let line = "id=17 addr=127.0.0.1:5000 laddr=127.0.0.1:6379 fd=8 name=x\n";
        let wanted = ("17".to_owned(), "127.0.0.1:5000".to_owned());
        assert_eq!(identity(line), Some(wanted));
        assert_eq!(identity("laddr=1 id=2"), None);
        assert_eq!(identity(""), None);
    }
}
