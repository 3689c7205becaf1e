//! Every way in which a connection ends, and every limit: what the peer sees, how it is counted,
//! and whether the official clients reconnect by themselves.

use std::fmt;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client closed the connection, or it was cut.
    TransportClose,
    /// Reading or writing failed, or a client dropped its pending poll.
    TransportError,
    /// No heartbeat from the client within the ping timeout.
    PingTimeout,
    /// No namespace was connected to within the connect timeout.
    ConnectTimeout,
    /// The client sent something that is not Engine.IO, Socket.IO or WebSocket.
    ParseError {
        /// What was wrong, as a metric label.
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

    /// Whether official clients reconnect by themselves: always, unless their namespaces were
    /// disconnected by the server before.
    pub fn clients_reconnect(self) -> bool {
        self != Self::ServerDisconnect
    }

    /// The code of the WebSocket close frame; none is the empty frame that peers see as 1005.
    pub(crate) fn websocket_code(self) -> Option<u16> {
        match self {
            Self::ParseError { code, .. } => code,
            Self::LimitReached(Limit::MessageSize) => Some(1009),
            _ => None,
        }
    }

    /// Whether what is still queued shall be written before the connection is closed.
    pub(crate) fn flushes(self) -> bool {
        match self {
            Self::ServerDisconnect | Self::ServerShutdown | Self::ParseError { .. } => true,
            Self::LimitReached(limit) => limit != Limit::Outbox,
            _ => false,
        }
    }

    /// Whether the transport can still be written to.
    pub(crate) fn transport_is_gone(self) -> bool {
        matches!(self, Self::TransportError)
    }
}

impl fmt::Display for CloseReason {
    /// The words that Node's server uses, where it has some.
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

/// Everything that clients or applications can ask too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// Size of a message or of a polling body.
    MessageSize,
    /// Binary attachments of a packet.
    Attachments,
    /// Nesting of JSON.
    JsonDepth,
    /// Namespaces on one connection.
    Namespaces,
    /// Rooms of one socket.
    Rooms,
    /// Length of a room name.
    RoomName,
    /// Length of an event name.
    EventName,
    /// Length of a namespace's name.
    NamespaceName,
    /// Acknowledgements that a socket has not answered yet.
    PendingAcks,
    /// Events of a connection whose handlers are still running; reading pauses.
    EventsInFlight,
    /// Bytes waiting to be written to a connection: a slow consumer.
    Outbox,
    /// Bytes that a polling client has posted and that are not handled yet.
    Inbox,
    /// Time for the head of an HTTP request.
    HeaderTimeout,
    /// Time for the body of an HTTP request.
    BodyTimeout,
    /// WebSockets that have been opened for an upgrade which is not finished.
    UnfinishedUpgrades,
    /// Frames of one WebSocket message.
    Fragments,
    /// Connections to the server.
    Connections,
    /// Events of other servers whose handlers are still running.
    ServerSideEvents,
}

impl Limit {
    /// All limits, for the metric that counts them.
    pub(crate) const ALL: [Self; 18] = [
        Self::MessageSize,
        Self::Attachments,
        Self::JsonDepth,
        Self::Namespaces,
        Self::Rooms,
        Self::RoomName,
        Self::EventName,
        Self::NamespaceName,
        Self::PendingAcks,
        Self::EventsInFlight,
        Self::Outbox,
        Self::Inbox,
        Self::HeaderTimeout,
        Self::BodyTimeout,
        Self::UnfinishedUpgrades,
        Self::Fragments,
        Self::Connections,
        Self::ServerSideEvents,
    ];

    /// The value of the metric label `limit`.
    pub fn label(self) -> &'static str {
        match self {
            Self::MessageSize => "message_size",
            Self::Attachments => "attachments",
            Self::JsonDepth => "json_depth",
            Self::Namespaces => "namespaces",
            Self::Rooms => "rooms",
            Self::RoomName => "room_name",
            Self::EventName => "event_name",
            Self::NamespaceName => "namespace_name",
            Self::PendingAcks => "pending_acks",
            Self::EventsInFlight => "events_in_flight",
            Self::Outbox => "slow_consumer",
            Self::Inbox => "inbox",
            Self::HeaderTimeout => "header_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::UnfinishedUpgrades => "unfinished_upgrades",
            Self::Fragments => "fragments",
            Self::Connections => "connections",
            Self::ServerSideEvents => "server_side_events",
        }
    }
}
