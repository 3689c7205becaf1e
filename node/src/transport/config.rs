//! The settings of the transports, with Socket.IO's defaults, and the limits of everything that a
//! client can make the server hold.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{
    client_address::TrustedProxies,
    client_files::ClientFiles,
    cors::Cors,
    handshake::{Handshake, Keep},
};
use crate::rate::Rate;
use roomcast_protocol::{args::json::DEFAULT_DEPTH, engine_io::session::Heartbeat};

/// The bounds of everything that clients or the application can make the server hold. Beyond a
/// limit, requests are refused or connections closed, with a named reason that is counted in
/// `roomcast_limit_reached_total`. Nothing is dropped silently.
///
/// ```
/// # use roomcast::{Limits, Server};
/// let limits = Limits { rooms_per_socket: 10_000, ..Limits::default() };
/// let builder = Server::builder().limits(limits);
/// # drop(builder);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Depth of arrays and objects in a packet, and in a message of the cluster; the list
    /// of arguments is the first level. Default 400, at most 500, and the same on all
    /// nodes. Beyond: the connection is closed; an emit or a publish is an error;
    /// a message of the cluster is dropped and logged.
    pub json_depth: usize,
    /// Binary attachments of a packet. Default 10, as in Node.js's parser. Beyond: the
    /// connection is closed.
    pub attachments: usize,
    /// Namespaces of one connection. Default 64. Beyond: the connect is refused.
    pub namespaces_per_connection: usize,
    /// Rooms of one socket. Default 10,000: Node.js has no limit, but a client that may
    /// choose rooms could fill memory. Beyond: the join fails and joins none of its
    /// rooms.
    pub rooms_per_socket: usize,
    /// Length of a room name in bytes. Default 256. Beyond: the join fails.
    pub room_name_bytes: usize,
    /// Length of an event name in bytes. Default 256. Beyond: the connection is closed.
    pub event_name_bytes: usize,
    /// Length of a namespace's name in bytes. Default 256. Beyond: the connection is closed.
    pub namespace_bytes: usize,
    /// Pending acknowledgements of one socket. Default 1,024. Beyond:
    /// `emit_with_ack` fails.
    pub pending_acks: usize,
    /// Broadcasts [at least once](crate::BroadcastOperator::at_least_once) that one socket has
    /// not acknowledged. Default 256. Beyond: the oldest are not sent again when the client comes
    /// back.
    pub unacknowledged_events: usize,
    /// The bytes of their packets. Default 1 MiB; the latest is kept regardless of its size.
    /// Beyond: the same.
    pub unacknowledged_bytes: usize,
    /// Running handlers of one connection. Default 256. Beyond: further events wait, in
    /// order, until one is done. Acknowledgements, pongs and disconnects do not wait.
    pub events_in_flight: usize,
    /// Bytes that wait to be written to one connection. Default 64 MiB. Beyond: the connection is
    /// closed as a slow consumer. A single packet may be larger.
    pub outbox_bytes: usize,
    /// Time in which a client must read some of the bytes queued for it. Default 30 s. Beyond: the
    /// connection is closed as a slow consumer, when the next packet is queued for it or with its
    /// next heartbeat. The ping timeout may come first.
    pub stall_timeout: Duration,
    /// Bytes that wait for all clients that do not read, a broadcast counted once. Default
    /// 512 MiB. Beyond: connections whose clients do not read are closed, those with the most
    /// waiting bytes first, until the rest fits.
    pub outbox_total_bytes: usize,
    /// Bytes that a polling client has posted and that are not handled yet. Default 2 MiB. Beyond:
    /// the connection is closed. Events whose handlers run may take as much again; one that is
    /// larger runs alone. Beyond, and beyond [`events_in_flight`](Self::events_in_flight), events
    /// wait, and may take as much once more. Beyond: the server stops reading from the connection.
    pub inbox_bytes: usize,
    /// Frames of one WebSocket message. Default 1,024. Beyond: the connection is closed.
    pub fragments: usize,
    /// Time limit for the bytes before HTTP: a PROXY header, a TLS handshake. Default 10 s. Beyond:
    /// the connection is closed. Applies to [`Server::serve`](crate::Server::serve).
    pub handshake_timeout: Duration,
    /// Connections on which that is not complete. Default 10,000. Beyond: a further one is closed.
    /// Applies to [`Server::serve`](crate::Server::serve).
    pub handshakes: usize,
    /// Time for the head of a request to arrive, also between two requests of a kept-alive
    /// connection. Default 30 s. Applies to [`Server::serve`](crate::Server::serve); an application
    /// that serves the router itself sets its own.
    pub header_timeout: Duration,
    /// Time for the body of a request to arrive. Default 20 s. Beyond: status 408 and the
    /// connection is closed.
    pub body_timeout: Duration,
    /// Time in which a client must read some bytes of an HTTP response. Default 30 s. Beyond: the
    /// connection is closed. Applies to [`Server::serve`](crate::Server::serve).
    pub response_timeout: Duration,
    /// WebSockets opened for an upgrade that is not finished, on the whole server. Default 10,000.
    /// Beyond: the upgrade is refused and the client stays on polling.
    pub unfinished_upgrades: usize,
    /// Sockets that [`Server::serve`](crate::Server::serve) holds open: HTTP connections and
    /// WebSockets. Default 1,000,000, or less if the limit of open files leaves less. Beyond:
    /// status 503; if many clients arrive at once, some are closed without a response.
    pub sockets: usize,
    /// Connections of the whole server. Default 1,000,000. Beyond: status 503.
    pub connections: usize,
    /// Connections from one address. Default: no limit. Beyond: status 429. Needs the
    /// address of the client, see [`Handshake::address`](crate::Handshake::address):
    /// behind a proxy all clients have the proxy's address.
    pub connections_per_address: Option<usize>,
    /// Prefix length of IPv6 networks that count as one address, because each client has a whole
    /// network. Default 64.
    pub ipv6_prefix: u8,
    /// New connections of the whole server, per second. Default: no limit. Beyond: status
    /// 503, with a time in `Retry-After` that differs between clients.
    pub connect_rate: Option<Rate>,
    /// Events of one connection, per second; its connects to namespaces count, too.
    /// Default: no limit. Beyond: see [`rate_policy`](Self::rate_policy).
    pub event_rate: Option<Rate>,
    /// Bytes of the packets of one connection, per second, with their attachments.
    /// Default: no limit. Beyond: see [`rate_policy`](Self::rate_policy).
    pub byte_rate: Option<Rate>,
    /// The treatment of packets beyond [`event_rate`](Self::event_rate) and
    /// [`byte_rate`](Self::byte_rate). Default [`RatePolicy::Drop`].
    pub rate_policy: RatePolicy,
    /// Events of other servers ([`on_server_side`](crate::Namespace::on_server_side)) whose
    /// handlers still run. Default 1,024. Beyond: the handler does not run, and a caller that waits
    /// for its reply gets an error.
    pub server_side_events: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            json_depth: DEFAULT_DEPTH,
            attachments: 10,
            namespaces_per_connection: 64,
            rooms_per_socket: 10_000,
            room_name_bytes: 256,
            event_name_bytes: 256,
            namespace_bytes: 256,
            pending_acks: 1024,
            unacknowledged_events: 256,
            unacknowledged_bytes: 1 << 20,
            events_in_flight: 256,
            outbox_bytes: 64 << 20,
            stall_timeout: Duration::from_secs(30),
            outbox_total_bytes: 512 << 20,
            inbox_bytes: 2 << 20,
            fragments: 1024,
            handshake_timeout: Duration::from_secs(10),
            handshakes: 10_000,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(20),
            response_timeout: Duration::from_secs(30),
            unfinished_upgrades: 10_000,
            sockets: 1_000_000,
            connections: 1_000_000,
            connections_per_address: None,
            ipv6_prefix: 64,
            connect_rate: None,
            event_rate: None,
            byte_rate: None,
            rate_policy: RatePolicy::default(),
            server_side_events: 1024,
        }
    }
}

/// The treatment of a client that sends faster than its rates allow. Each time is counted
/// and logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RatePolicy {
    /// Only that: the event is handled.
    Warn,
    /// The event is not handled. If the client waits for an acknowledgement, it gets
    /// `{"error": "too many events", "data": {"limit": "event_rate"}}`, or `too many bytes` with
    /// `byte_rate`. A connect to a namespace is refused with the same message. Acknowledgements are
    /// always handled.
    #[default]
    Drop,
    /// The connection is closed. Official clients reconnect.
    Close,
}

/// The cookie that some load balancers use to send a client to the same node again.
///
/// It is set with the response to the first request and holds the Engine.IO session id.
///
/// ```
/// # use roomcast::{Cookie, Server};
/// let cookie = Cookie { name: "node".into(), ..Cookie::default() };
/// let builder = Server::builder().cookie(cookie);
/// # drop(builder);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// Default `io`.
    pub name: String,
    /// Default `/`.
    pub path: String,
    /// Default true: scripts cannot read it.
    pub http_only: bool,
    /// Default `Lax`; `None` here leaves the attribute out.
    pub same_site: Option<String>,
}

impl Default for Cookie {
    fn default() -> Self {
        Self {
            name: String::from("io"),
            path: String::from("/"),
            http_only: true,
            same_site: Some(String::from("Lax")),
        }
    }
}

/// Accepts or rejects a handshake before a session is created. The text of an error goes to the
/// client.
pub(crate) type AllowRequest =
    Arc<dyn Fn(Handshake) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

pub(crate) struct Config {
    /// Without a slash at the end.
    pub(crate) path: String,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) upgrade_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_payload: usize,
    pub(crate) polling: bool,
    pub(crate) websocket: bool,
    pub(crate) allow_upgrades: bool,
    pub(crate) allow_eio3: bool,
    pub(crate) cors: Option<Cors>,
    pub(crate) cookie: Option<Cookie>,
    /// Bodies of polls from this size on are compressed if the client accepts gzip.
    pub(crate) compress_from: Option<usize>,
    pub(crate) allow_request: Option<AllowRequest>,
    pub(crate) keep: Vec<Keep>,
    pub(crate) client_files: Option<ClientFiles>,
    pub(crate) trusted_proxies: Arc<TrustedProxies>,
    pub(crate) limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: String::from("/socket.io"),
            heartbeat: Heartbeat {
                interval: Duration::from_secs(25),
                timeout: Duration::from_secs(20),
            },
            upgrade_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(45),
            max_payload: 1_000_000,
            polling: true,
            websocket: true,
            allow_upgrades: true,
            allow_eio3: false,
            cors: None,
            cookie: None,
            compress_from: Some(1024),
            allow_request: None,
            keep: Vec::new(),
            client_files: None,
            trusted_proxies: Arc::default(),
            limits: Limits::default(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
