//! Redirections: where a node of a cluster sends a command that belongs elsewhere.

use redis::{ServerErrorKind, Value};

use super::url::Address;

/// Where a command belongs that was certainly not executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// The slot has another owner.
    Moved {
        /// The slot.
        slot: u16,
        /// Its owner.
        to: Address,
    },
    /// The slot is being moved, and the key is already there.
    Ask {
        /// The next owner.
        to: Address,
    },
    /// The cluster does not serve the slot at the moment.
    Down,
}

impl Redirect {
    /// Reads a reply of the server `asked`; `None` for any other reply.
    pub fn read(reply: &Value, asked: &Address) -> Option<Self> {
        let Value::ServerError(error) = reply else {
            return None;
        };
        let mut words = error.details().unwrap_or_default().split(' ');
        match error.kind()? {
            ServerErrorKind::ClusterDown | ServerErrorKind::TryAgain => Some(Self::Down),
            ServerErrorKind::Moved => {
                let slot = words.next()?.parse().ok()?;
                let to = address(words.next()?, asked)?;
                Some(Self::Moved { slot, to })
            }
            ServerErrorKind::Ask => {
                let to = address(words.nth(1)?, asked)?;
                Some(Self::Ask { to })
            }
            _ => None,
        }
    }
}

/// Reads `host:port`; IPv6 addresses have no brackets here. A missing or unknown host means that of
/// the server that was asked.
fn address(text: &str, asked: &Address) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host {
        "" | "?" => &asked.host,
        host => host,
    };
    Some(Address::new(host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Redirect> {
        let reply = redis::parse_redis_value(format!("-{text}\r\n").as_bytes());
        Redirect::read(&reply.unwrap(), &Address::new("asked", 1))
    }

    #[test]
    fn redirections_are_read() {
        let moved = |slot, host, port| {
            let to = Address::new(host, port);
            Some(Redirect::Moved { slot, to })
        };
        assert_eq!(
            read("MOVED 3999 10.0.0.1:6381"),
            moved(3999, "10.0.0.1", 6381)
        );
        assert_eq!(read("MOVED 1 ::1:6381"), moved(1, "::1", 6381));
        assert_eq!(read("MOVED 1 :6381"), moved(1, "asked", 6381));
        assert_eq!(read("MOVED 1 ?:6381"), moved(1, "asked", 6381));
        let to = Address::new("b", 2);
        assert_eq!(read("ASK 1 b:2"), Some(Redirect::Ask { to }));
        assert_eq!(
            read("CLUSTERDOWN The cluster is down"),
            Some(Redirect::Down)
        );
    }

    #[test]
    fn other_errors_are_no_redirections() {
        for text in [
            "ERR no",
            "MOVED",
            "MOVED x b:2",
            "MOVED 1",
            "MOVED 1 b",
            "ASK 1 b:x",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        let value = Value::BulkString(b"MOVED 1 b:2".to_vec());
        assert_eq!(Redirect::read(&value, &Address::new("asked", 1)), None);
    }
}
