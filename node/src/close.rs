//! Every reason why a connection ends, and every limit: the effect on the peer, the metric, and
//! whether official clients reconnect by themselves.

use std::fmt;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client closed the connection, or the network cut it.
    TransportClose,
    /// Reading or writing failed, or a client dropped its pending poll.
    TransportError,
    /// No heartbeat from the client within the ping timeout.
    PingTimeout,
    /// The client connected to no namespace within the connect timeout.
    ConnectTimeout,
    /// The client sent something that is not Engine.IO, Socket.IO or WebSocket.
    ParseError {
        /// The mistake, as a metric label.
        kind: &'static str,
        /// The WebSocket close code, if it is not the empty one that Socket.IO servers send.
        code: Option<u16>,
    },
    /// A client reached a limit that ends the connection.
    LimitReached(Limit),
    /// Two polls, or two posts, at the same time.
    OverlappingRequests,
    /// The server disconnected the client.
    ServerDisconnect,
    /// The server is shutting down.
    ServerShutdown,
}

impl CloseReason {
    /// The value of the metric label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Self::TransportClose => "transport_close",
            Self::TransportError => "transport_error",
            Self::PingTimeout => "ping_timeout",
            Self::ConnectTimeout => "connect_timeout",
            Self::ParseError { .. } => "parse_error",
            Self::LimitReached(limit) => limit.label(),
            Self::OverlappingRequests => "overlapping_requests",
            Self::ServerDisconnect => "server_disconnect",
            Self::ServerShutdown => "server_shutdown",
        }
    }

    /// Whether official clients reconnect by themselves. They always do, unless the server
    /// disconnected their namespaces before.
    pub fn clients_reconnect(self) -> bool {
        self != Self::ServerDisconnect
    }

    /// The code of the WebSocket close frame. None is the empty frame, which peers see as 1005.
    pub(crate) fn websocket_code(self) -> Option<u16> {
        match self {
            Self::ParseError { code, .. } => code,
            Self::LimitReached(Limit::MessageSize) => Some(1009),
            _ => None,
        }
    }

    /// The code for a client without Socket.IO, which understands only the codes of RFC 6455.
    pub(crate) fn plain_websocket_code(self) -> Option<u16> {
        match self {
            Self::ServerDisconnect => Some(1000),
            Self::ServerShutdown => Some(1001),
            Self::LimitReached(Limit::MessageSize) => Some(1009),
            Self::LimitReached(_) => Some(1008),
            reason => reason.websocket_code(),
        }
    }

    /// Whether packets that are still queued are written before the connection is closed.
    pub(crate) fn flushes(self) -> bool {
        match self {
            Self::ServerDisconnect | Self::ServerShutdown | Self::ParseError { .. } => true,
            Self::LimitReached(limit) => !limit.is_slow_consumer(),
            _ => false,
        }
    }

    /// Whether the transport has failed, so that nothing more can be written.
    pub(crate) fn transport_is_gone(self) -> bool {
        matches!(self, Self::TransportError)
    }
}

impl fmt::Display for CloseReason {
    /// The text that Node's server uses, where it has one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TransportClose => "transport close",
            Self::TransportError | Self::OverlappingRequests => "transport error",
            Self::PingTimeout => "ping timeout",
            Self::ConnectTimeout => "connect timeout",
            Self::ParseError { .. } => "parse error",
            Self::LimitReached(limit) => return write!(f, "limit reached: {}", limit.label()),
            Self::ServerDisconnect => "forced server close",
            Self::ServerShutdown => "server shutting down",
        })
    }
}

/// Declares the limits once: the variants, the list of all in the same order, and their labels.
macro_rules! limits {
    ($($(#[$doc:meta])+ $variant:ident = $label:literal,)+) => {
        /// Every resource that clients or applications can exhaust.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Limit {
            $($(#[$doc])+ $variant,)+
        }

        impl Limit {
            /// All limits, each at the index `limit as usize`.
            pub(crate) const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// Whether the connection ends because its client does not read fast enough.
            pub(crate) fn is_slow_consumer(self) -> bool {
                matches!(self, Self::Outbox | Self::OutboxTotal)
            }

            /// The value of the metric label `limit`.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }
    };
}

limits! {
    /// Size of a message or of a polling body.
    MessageSize = "message_size",
    /// Binary attachments of a packet.
    Attachments = "attachments",
    /// Nesting of JSON.
    JsonDepth = "json_depth",
    /// Namespaces on one connection.
    Namespaces = "namespaces",
    /// Rooms of one socket.
    Rooms = "rooms",
    /// Length of a room name.
    RoomName = "room_name",
    /// Length of an event name.
    EventName = "event_name",
    /// Length of a namespace's name.
    NamespaceName = "namespace_name",
    /// Pending acknowledgements of a socket.
    PendingAcks = "pending_acks",
    /// Broadcasts at least once that a socket has not acknowledged; the oldest are not sent again.
    Unacknowledged = "unacknowledged",
    /// Events of a connection whose handlers are still running; reading pauses.
    EventsInFlight = "events_in_flight",
    /// Bytes waiting to be written to a connection, or time without progress: a slow consumer.
    Outbox = "slow_consumer",
    /// Bytes waiting for all clients that do not read.
    OutboxTotal = "outbox_total",
    /// Bytes that a polling client has posted and that are not handled yet.
    Inbox = "inbox",
    /// Time limit for the bytes before HTTP: a PROXY header, a TLS handshake.
    HandshakeTimeout = "handshake_timeout",
    /// Connections on which that is not complete.
    Handshakes = "handshakes",
    /// Time for the head of an HTTP request.
    HeaderTimeout = "header_timeout",
    /// Time for the body of an HTTP request.
    BodyTimeout = "body_timeout",
    /// Time in which a client must read some bytes of an HTTP response.
    ResponseTimeout = "response_timeout",
    /// WebSockets that have been opened for an upgrade which is not finished.
    UnfinishedUpgrades = "unfinished_upgrades",
    /// Frames of one WebSocket message.
    Fragments = "fragments",
    /// Sockets of the server: HTTP connections and WebSockets.
    Sockets = "sockets",
    /// Connections to the server.
    Connections = "connections",
    /// Connections from one address.
    ConnectionsPerAddress = "connections_per_address",
    /// New connections per second.
    ConnectRate = "connect_rate",
    /// Events per second of one connection.
    EventRate = "event_rate",
    /// Bytes per second of one connection.
    ByteRate = "byte_rate",
    /// Events of other servers whose handlers are still running.
    ServerSideEvents = "server_side_events",
}
