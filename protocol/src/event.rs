//! Event names that belong to the protocol.
//!
//! Applications can neither send nor receive events of these names: in Socket.IO they tell of the
//! connection's own life. Both the emitting and the receiving side ask here.

/// The names that no event of an application may have.
pub const RESERVED_EVENTS: [&str; 6] = [
    "connect",
    "connect_error",
    "disconnect",
    "disconnecting",
    "newListener",
    "removeListener",
];

/// Whether `name` belongs to the protocol.
#[inline]
pub fn is_reserved(name: &str) -> bool {
    // Most names are told apart by their first letter; the rest is rare enough for a plain search.
    matches!(name.as_bytes().first(), Some(b'c' | b'd' | b'n' | b'r'))
        && RESERVED_EVENTS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_reserved_and_its_neighbours_are_not() {
        for name in RESERVED_EVENTS {
            assert!(is_reserved(name), "{name}");
            assert!(!is_reserved(&name[1..]), "{name}");
            assert!(!is_reserved(&format!("{name}s")), "{name}");
        }
        assert!(!is_reserved(""));
        assert!(!is_reserved("chat message"));
    }
}
