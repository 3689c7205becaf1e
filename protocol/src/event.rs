//! Reserved names of events.
//!
//! Applications can neither send nor receive events with these names, because Socket.IO uses them
//! for the life of the connection itself.

/// The names that an application's event must not have, as in Node's server.
pub const RESERVED_EVENTS: [&str; 6] = [
    "connect",
    "connect_error",
    "disconnect",
    "disconnecting",
    "newListener",
    "removeListener",
];

/// Returns `true` if applications cannot use `name` for an event, because Socket.IO does.
#[inline]
pub fn is_reserved(name: &str) -> bool {
    // The first letter excludes most names; the others are rare enough for a plain search.
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
