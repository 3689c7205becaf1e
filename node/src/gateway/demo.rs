//! `roomcast demo`: a chat page, its notice, and the page's events in addition to the rooms of
//! clients.
//!
//! The page is a client like any other and uses the events of `rooms`. Names, typing,
//! history and the links to other nodes are handlers of this module, written as an
//! application would write them: nothing of it is in `serve`.

mod history;
mod nodes;
mod talk;

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::Arc,
};

use axum::{
    Router,
    http::header,
    response::{Html, IntoResponse, Redirect},
    routing::get,
};
use parking_lot::Mutex;
use roomcast::{Namespace, Server};

use self::{history::History, nodes::Nodes};
use super::logging::colour_wanted;

/// The state of a demo: in memory, and bounded.
#[derive(Default)]
pub(crate) struct Demo {
    history: Mutex<History>,
    nodes: Nodes,
}

impl Demo {
    /// Adds the events of the page to a namespace that has the rooms of clients.
    pub(crate) fn with_events(self: &Arc<Self>, namespace: Namespace) -> Namespace {
        talk::with_events(namespace, self)
    }

    /// Sets the address of this node for the page. In a cluster (`is_clustered`), the demos of its
    /// nodes announce their addresses to each other.
    pub(crate) fn start(
        self: &Arc<Self>,
        server: &Server,
        address: SocketAddr,
        is_clustered: bool,
    ) {
        self.nodes.started(server, address);
        if is_clustered {
            tokio::spawn(nodes::announce(Arc::clone(self), server.clone()));
        }
    }
}

/// Serves the page at `/`. It uses the official client if the server has its bundles.
pub(crate) fn router(has_bundles: bool) -> Router {
    let client = if has_bundles {
        get(async || Redirect::temporary("/socket.io/socket.io.js"))
    } else {
        get(async || file("text/javascript; charset=utf-8", CLIENT))
    };
    Router::new()
        .route("/", get(page))
        .route("/demo/client.js", client)
        .route(
            "/demo/page.js",
            get(async || file("text/javascript; charset=utf-8", SCRIPT)),
        )
        .route(
            "/demo/page.css",
            get(async || file("text/css; charset=utf-8", STYLE)),
        )
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
    (
        [
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::CACHE_CONTROL, "no-cache"),
            (header::REFERRER_POLICY, "no-referrer"),
        ],
        Html(PAGE),
    )
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text)
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

const PAGE: &str = include_str!("demo/page.html");
const STYLE: &str = include_str!("demo/page.css");
const SCRIPT: &str = include_str!("demo/page.js");
const CLIENT: &str = include_str!("demo/client.js");

/// Everything is from the node itself, and nothing is inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

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
        for text in [PAGE, STYLE, SCRIPT, CLIENT] {
            assert!(
                !text.contains("https://") && !text.contains("http://"),
                "a foreign address"
            );
            assert!(!text.contains("@import") && !text.contains("url("));
        }
        for attribute in ["src=\"", "href=\""] {
            for link in PAGE.split(attribute).skip(1) {
                assert!(link.starts_with("/demo/") || link.starts_with("data:"));
            }
        }
    }

    #[test]
    fn the_page_has_what_its_script_looks_for() {
        for place in SCRIPT.split("$(\"").skip(1) {
            let id = place.split('"').next().unwrap_or_default();
            assert!(PAGE.contains(&format!("id=\"{id}\"")), "#{id}");
        }
    }
}
