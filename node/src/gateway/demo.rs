//! The demo's page and its notice. The page is one file and loads nothing from other hosts.
//!
//! It is a client like any other and uses the events of `rooms`.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use axum::{
    Router,
    http::header,
    response::{Html, IntoResponse},
    routing::get,
};

use super::logging::colour_wanted;

/// Serves the page at `/`.
pub(crate) fn router() -> Router {
    Router::new().route("/", get(page))
}

/// Prints the URLs of the page and of the admin page, and a warning that everybody may use them, to
/// standard output.
pub(crate) fn announce(address: SocketAddr, internal: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout();
    let notice = notice(address, internal, colour_wanted(&out));
    out.write_all(notice.as_bytes())?;
    out.flush()
}

async fn page() -> impl IntoResponse {
    // The file contains everything, so the policy allows nothing else.
    (
        [
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::CACHE_CONTROL, "no-cache"),
        ],
        Html(PAGE),
    )
}

fn notice(address: SocketAddr, internal: SocketAddr, colour: bool) -> String {
    let (red, plain) = if colour {
        ("\x1b[1;31m", "\x1b[0m")
    } else {
        ("", "")
    };
    format!(
        "{red}This is a demo: everybody who can reach {address} may join and read every room.{plain}\n\
         Open http://{} in two windows.\n\
         The admin page is at http://{}/admin/\n",
        reachable(address),
        reachable(internal)
    )
}

/// The address for a browser, which cannot open the wildcard address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    address
}

const PAGE: &str = include_str!("demo.html");

const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self' ws: wss:; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notice_is_red_on_a_terminal_and_plain_elsewhere() {
        let [address, internal] = [3000, 3001].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert!(notice(address, internal, true).starts_with("\x1b[1;31mThis is a demo"));
        let plain = notice(address, internal, false);
        assert!(!plain.contains('\x1b'));
        assert!(plain.contains("http://127.0.0.1:3000 "));
        assert!(plain.contains("http://127.0.0.1:3001/admin/\n"));
    }

    #[test]
    fn the_address_to_open_is_one_that_can_be_opened() {
        let address = SocketAddr::from(([0, 0, 0, 0], 3000));
        assert_eq!(reachable(address).to_string(), "127.0.0.1:3000");
    }

    #[test]
    fn the_page_works_offline() {
        assert!(
            !PAGE.contains("https://") && !PAGE.contains("http://"),
            "a foreign address"
        );
        assert!(
            !PAGE.contains("src=") && !PAGE.contains("@import"),
            "a file from elsewhere"
        );
    }

    #[test]
    fn the_page_has_what_tests_and_people_look_for() {
        for id in [
            "status", "connect", "room", "join", "leave", "rooms", "who", "text", "send", "log",
        ] {
            assert!(PAGE.contains(&format!("id=\"{id}\"")), "#{id}");
        }
    }
}
