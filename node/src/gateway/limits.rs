//! The options for the library's limits: one flag for each, with the library's default.
//!
//! The defaults come from the library, so the help cannot differ from it. The library enforces the
//! limits; this module only reads them.

use clap::Args;
use roomcast::Limits;

use super::values::{self, ByteSize, Span};

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitOptions {
    /// Maximum of open connections; more are refused
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().connections, value_parser = values::count)]
    pub(crate) max_connections: usize,

    /// Maximum of open sockets, HTTP and WebSocket; lower if the limit of open files is lower
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().sockets, value_parser = values::count)]
    pub(crate) max_sockets: usize,

    /// Bytes that may wait for one client; a client with more is disconnected
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().outbox_bytes))]
    pub(crate) max_outbox: ByteSize,

    /// Time in which a client must take something of what waits for it
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Limits::default().stall_timeout))]
    pub(crate) stall_timeout: Span,

    /// Bytes that may wait for all clients that do not read; beyond, those with most are disconnected
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().outbox_total_bytes))]
    pub(crate) max_outbox_total: ByteSize,

    /// Bytes from one polling client that may wait for handling; a client with more is disconnected
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().inbox_bytes))]
    pub(crate) max_inbox: ByteSize,

    /// Namespaces per connection; more are refused
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().namespaces_per_connection)]
    #[arg(value_parser = values::count)]
    pub(crate) max_namespaces: usize,

    /// Rooms per socket; a join beyond it fails
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().rooms_per_socket, value_parser = values::count)]
    pub(crate) max_rooms: usize,

    /// Maximum length of a room's name, in bytes
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().room_name_bytes))]
    pub(crate) max_room_name: ByteSize,

    /// Maximum length of a namespace's name, in bytes
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().namespace_bytes))]
    pub(crate) max_namespace_name: ByteSize,

    /// Maximum length of an event's name, in bytes
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().event_name_bytes))]
    pub(crate) max_event_name: ByteSize,

    /// Events of one client whose handlers may run at the same time; more events wait
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().events_in_flight, value_parser = values::count)]
    pub(crate) max_events_in_flight: usize,

    /// Acknowledgements that the server may await from one client at a time
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().pending_acks, value_parser = values::count)]
    pub(crate) max_pending_acks: usize,

    /// Binary attachments of one packet; a client that sends more is disconnected
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().attachments, value_parser = values::count)]
    pub(crate) max_attachments: usize,

    /// Maximum depth of nested JSON in a packet or a message of the cluster, at most 500
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().json_depth, value_parser = values::json_depth)]
    pub(crate) max_json_depth: usize,

    /// Maximum of frames in one fragmented WebSocket message
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().fragments, value_parser = values::count)]
    pub(crate) max_fragments: usize,

    /// Upgrades to WebSocket that may be under way; other connections stay on polling
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().unfinished_upgrades, value_parser = values::count)]
    pub(crate) max_unfinished_upgrades: usize,

    /// Events of other servers whose handlers may run at the same time; more fail
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().server_side_events, value_parser = values::count)]
    pub(crate) max_server_side_events: usize,

    /// Time for what comes before HTTP: a PROXY header, a TLS handshake
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Limits::default().handshake_timeout))]
    pub(crate) handshake_timeout: Span,

    /// Connections that may be at that point; more are closed
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().handshakes, value_parser = values::count)]
    pub(crate) max_handshakes: usize,

    /// Time that a client has to send a request's head, counted from the previous request
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Limits::default().header_timeout))]
    pub(crate) header_timeout: Span,

    /// Time that a client has to send a request's body
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Limits::default().body_timeout))]
    pub(crate) body_timeout: Span,

    /// Time in which a client must take something of an HTTP response
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Limits::default().response_timeout))]
    pub(crate) response_timeout: Span,
}

impl From<&LimitOptions> for Limits {
    fn from(options: &LimitOptions) -> Self {
        Self {
            connections: options.max_connections,
            sockets: options.max_sockets,
            outbox_bytes: options.max_outbox.0,
            stall_timeout: options.stall_timeout.0,
            outbox_total_bytes: options.max_outbox_total.0,
            inbox_bytes: options.max_inbox.0,
            namespaces_per_connection: options.max_namespaces,
            rooms_per_socket: options.max_rooms,
            room_name_bytes: options.max_room_name.0,
            namespace_bytes: options.max_namespace_name.0,
            event_name_bytes: options.max_event_name.0,
            events_in_flight: options.max_events_in_flight,
            pending_acks: options.max_pending_acks,
            attachments: options.max_attachments,
            json_depth: options.max_json_depth,
            fragments: options.max_fragments,
            unfinished_upgrades: options.max_unfinished_upgrades,
            server_side_events: options.max_server_side_events,
            handshake_timeout: options.handshake_timeout.0,
            handshakes: options.max_handshakes,
            header_timeout: options.header_timeout.0,
            body_timeout: options.body_timeout.0,
            response_timeout: options.response_timeout.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    #[test]
    fn a_flag_reaches_its_limit_and_the_others_keep_the_default() {
        let command = LimitOptions::augment_args(Command::new("limits"));
        let line = [
            "limits",
            "--max-rooms",
            "7",
            "--max-outbox",
            "2MiB",
            "--body-timeout",
            "3s",
        ];
        let matches = command.try_get_matches_from(line).unwrap();
        let limits = Limits::from(&LimitOptions::from_arg_matches(&matches).unwrap());
        assert_eq!(limits.rooms_per_socket, 7);
        assert_eq!(limits.outbox_bytes, 2 << 20);
        assert_eq!(limits.body_timeout.as_secs(), 3);
        let defaults = Limits::default();
        assert_eq!(limits.inbox_bytes, defaults.inbox_bytes);
        assert_eq!(limits.header_timeout, defaults.header_timeout);
        assert_eq!(limits.room_name_bytes, defaults.room_name_bytes);
    }
}
