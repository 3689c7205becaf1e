//! What the nodes of a cluster reply when a command belongs elsewhere.

use crate::{endpoint::Address, value::Value};

/// Where a command belongs that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirect {
    /// The slot has another owner.
    Moved { slot: u16, to: Address },
    /// The slot is about to get another owner, who has the key already.
    Ask { to: Address },
    /// The cluster does not serve the slot at this moment.
    Down,
}

impl Redirect {
    /// Reads a reply of the server `asked`; nothing if it is any other reply.
    pub(super) fn read(reply: &Value, asked: &Address) -> Option<Self> {
        let Value::Error(text) = reply else {
            return None;
        };
        let mut words = text.split(' ');
        match words.next()? {
            "CLUSTERDOWN" | "TRYAGAIN" => Some(Self::Down),
            "MOVED" => {
                let slot = words.next()?.parse().ok()?;
                let to = address(words.next()?, asked)?;
                Some(Self::Moved { slot, to })
            }
            "ASK" => {
                let to = address(words.nth(1)?, asked)?;
                Some(Self::Ask { to })
            }
            _ => None,
        }
    }
}

/// Reads `host:port`; IPv6 addresses have no brackets here. A host that is missing or unknown is
/// the one that was asked.
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
        Redirect::read(&Value::Error(text.into()), &Address::new("asked", 1))
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
    fn other_errors_are_none_whatever_they_begin_with() {
        for text in [
            "",
            "ERR no",
            "MOVED",
            "MOVED x b:2",
            "MOVED 1",
            "MOVED 1 b",
            "ASK 1 b:x",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        let value = Value::Bytes((*b"MOVED 1 b:2").into());
        assert_eq!(Redirect::read(&value, &Address::new("asked", 1)), None);
    }
}
