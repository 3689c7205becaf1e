//! The options for the library's limits: one flag for each, with the library's default.
//!
//! The defaults are read from the library, so that the help tells the truth. What happens beyond
//! a limit is the library's business.

use clap::Args;
use roomcast::Limits;

use super::values::{self, ByteSize, Span};

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitOptions {
    /// Open connections; more are refused
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().connections, value_parser = values::count)]
    pub(crate) max_connections: usize,

    /// Bytes that may wait for one client; a slower one is disconnected
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().outbox_bytes))]
    pub(crate) max_outbox: ByteSize,

    /// Bytes received from one polling client that may wait to be handled; more disconnects it
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().inbox_bytes))]
    pub(crate) max_inbox: ByteSize,

    /// Namespaces that one connection may be in; further ones are refused
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().namespaces_per_connection)]
    #[arg(value_parser = values::count)]
    pub(crate) max_namespaces: usize,

    /// Rooms that one socket may be in; further ones are refused
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().rooms_per_socket, value_parser = values::count)]
    pub(crate) max_rooms: usize,

    /// Length of a room's name, in bytes
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().room_name_bytes))]
    pub(crate) max_room_name: ByteSize,

    /// Length of a namespace's name, in bytes
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().namespace_bytes))]
    pub(crate) max_namespace_name: ByteSize,

    /// Length of an event's name, in bytes
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().event_name_bytes))]
    pub(crate) max_event_name: ByteSize,

    /// Events of one client that may be in work at a time; further ones wait
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().events_in_flight, value_parser = values::count)]
    pub(crate) max_events_in_flight: usize,

    /// Answers that one client may owe the server at a time
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().pending_acks, value_parser = values::count)]
    pub(crate) max_pending_acks: usize,

    /// Binary attachments of one packet; more disconnect the client
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().attachments, value_parser = values::count)]
    pub(crate) max_attachments: usize,

    /// Depth of nested JSON in a packet, at most 127
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().json_depth, value_parser = values::json_depth)]
    pub(crate) max_json_depth: usize,

    /// Frames into which a client may cut one WebSocket message
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().fragments, value_parser = values::count)]
    pub(crate) max_fragments: usize,

    /// Connections that may be changing from polling to WebSocket at a time; others stay on polling
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().unfinished_upgrades, value_parser = values::count)]
    pub(crate) max_unfinished_upgrades: usize,

    /// Events of other servers that may be in work at a time; further ones fail
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().server_side_events, value_parser = values::count)]
    pub(crate) max_server_side_events: usize,

    /// Time that a client has to send the head of a request, also between two on one connection
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Limits::default().header_timeout))]
    pub(crate) header_timeout: Span,

    /// Time that a client has to send the body of a request
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Limits::default().body_timeout))]
    pub(crate) body_timeout: Span,
}

impl From<&LimitOptions> for Limits {
    fn from(options: &LimitOptions) -> Self {
        Self {
            connections: options.max_connections,
            outbox_bytes: options.max_outbox.0,
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
            header_timeout: options.header_timeout.0,
            body_timeout: options.body_timeout.0,
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
