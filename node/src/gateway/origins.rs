//! The origins whose pages may connect. Browsers ask for permission before a page of another origin
//! polls, but not before it opens a WebSocket, so the server itself has to check each handshake.
//!
//! A page of the server's own host is allowed, and so is a client without an origin, which is no
//! browser.

use super::values::Origin;

/// The origins that are allowed in addition to the server's own host.
#[derive(Clone, Debug)]
pub(crate) enum Origins {
    Any,
    List(Vec<String>),
}

impl Origins {
    /// The origins of `--cors-origin`.
    pub(crate) fn new(listed: &[Origin]) -> Self {
        if listed.contains(&Origin::Any) {
            return Self::Any;
        }
        let listed = listed.iter().filter(|origin| **origin != Origin::Off);
        Self::List(
            listed
                .map(|origin| origin.to_string().to_ascii_lowercase())
                .collect(),
        )
    }

    /// Whether a client with these headers may connect.
    pub(crate) fn allow(&self, origin: Option<&str>, host: Option<&str>) -> bool {
        let (Self::List(listed), Some(origin)) = (self, origin) else {
            return true;
        };
        let origin = origin.to_ascii_lowercase();
        let is_own = || {
            let (scheme, authority) = origin.split_once("://")?;
            let port = match scheme {
                "http" => ":80",
                "https" => ":443",
                _ => return None,
            };
            let host = host?.to_ascii_lowercase();
            let plain = |name: &str| name.strip_suffix(port).unwrap_or(name).to_owned();
            Some(plain(authority) == plain(&host))
        };
        listed.contains(&origin) || is_own() == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(listed: &[&str], origin: &str, host: &str) -> bool {
        let listed: Vec<Origin> = listed
            .iter()
            .map(|origin| origin.parse().unwrap())
            .collect();
        Origins::new(&listed).allow(Some(origin), Some(host))
    }

    #[test]
    fn a_page_of_the_same_host_may_connect() {
        assert!(allow(&["off"], "http://127.0.0.1:3000", "127.0.0.1:3000"));
        assert!(allow(&["off"], "https://Chat.example", "chat.example"));
        assert!(allow(&["off"], "https://chat.example", "chat.example:443"));
        assert!(!allow(&["off"], "https://chat.example", "chat.example:80"));
        assert!(!allow(
            &["off"],
            "https://chat.example.evil",
            "chat.example"
        ));
        assert!(!allow(
            &["off"],
            "https://evil/chat.example",
            "chat.example"
        ));
        assert!(!allow(&["off"], "null", "null"));
        assert!(!allow(&["off"], "file://chat.example", "chat.example"));
    }

    #[test]
    fn listed_origins_may_connect() {
        let listed = ["https://a.example", "https://b.example:8443"];
        assert!(allow(&listed, "https://a.example", "chat.example"));
        assert!(allow(&listed, "https://b.example:8443", "chat.example"));
        assert!(!allow(&listed, "http://a.example", "chat.example"));
        assert!(!allow(&listed, "https://c.example", "chat.example"));
        assert!(allow(&["*"], "null", "chat.example"));
    }

    #[test]
    fn a_client_that_is_no_browser_names_no_origin() {
        assert!(Origins::List(Vec::new()).allow(None, Some("chat.example")));
    }
}
