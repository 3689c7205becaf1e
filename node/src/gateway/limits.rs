//! The options for the library's limits: one flag for each, with the library's default.
//!
//! The defaults come from the library, so the help cannot differ from it. The library enforces the
//! limits; this module only reads them.

use clap::{Args, ValueEnum};
use roomcast::{Limits, Rate, RatePolicy, Server};

use super::{
    config::Config,
    reload::{Preparing, Reloadable, prepared},
    user_limit::UserLimit,
    values::{self, ByteSize, OrOff, Span, or_off},
};

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitOptions {
    /// Maximum of open connections; more are refused
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().connections, value_parser = values::count)]
    pub(crate) max_connections: usize,

    /// Maximum of open connections from one address; more are refused: `off` or COUNT
    #[arg(long, value_name = "COUNT", default_value = "off")]
    #[arg(value_parser = or_off(count))]
    pub(crate) max_connections_per_address: OrOff<usize>,

    /// Prefix length of IPv6 networks that count as one address, because each client has a whole
    /// network
    #[arg(long, value_name = "BITS")]
    #[arg(default_value_t = Limits::default().ipv6_prefix)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=128))]
    pub(crate) ipv6_prefix: u8,

    /// New connections per second of this node; more are refused for some seconds: `off` or RATE
    ///
    /// A rate is the amount per second, optionally followed by a colon and the size of a burst: 100
    /// or 100:500. By default, the burst is the amount per second.
    #[arg(long, value_name = "RATE", default_value = "off")]
    #[arg(value_parser = or_off(count_rate))]
    pub(crate) max_connect_rate: OrOff<Rate>,

    /// Sockets of one user in a namespace of this node; more are refused: `off` or COUNT
    #[arg(long, value_name = "COUNT", default_value = "off")]
    #[arg(value_parser = or_off(count))]
    pub(crate) max_sockets_per_user: OrOff<usize>,

    /// Events per second of one client: `off` or RATE, such as 20 or 20:100
    #[arg(long, value_name = "RATE", default_value = "off")]
    #[arg(value_parser = or_off(count_rate))]
    pub(crate) max_event_rate: OrOff<Rate>,

    /// Bytes per second of one client's packets: `off` or RATE, such as 100kB or 100kB:1MB
    #[arg(long, value_name = "RATE", default_value = "off")]
    #[arg(value_parser = or_off(size_rate))]
    pub(crate) max_byte_rate: OrOff<Rate>,

    /// Treatment of events beyond these rates: they are logged, dropped, or end the connection
    #[arg(long, value_name = "NAME", value_enum, default_value = "drop")]
    pub(crate) rate_policy: Policy,

    /// Maximum of open sockets, HTTP and WebSocket; lower if the limit of open files is lower
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().sockets, value_parser = values::count)]
    pub(crate) max_sockets: usize,

    /// Bytes that may be queued for one client; a client with more is disconnected
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().outbox_bytes))]
    pub(crate) max_outbox: ByteSize,

    /// Time in which a client must read some of the bytes queued for it
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Limits::default().stall_timeout))]
    pub(crate) stall_timeout: Span,

    /// Bytes that may be queued for all clients that do not read; beyond it, those with the most
    /// are disconnected
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().outbox_total_bytes))]
    pub(crate) max_outbox_total: ByteSize,

    /// Bytes of one client, of each kind: posts that wait (a client with more is disconnected),
    /// events whose handlers run, and events that wait
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

    /// At-least-once broadcasts that one socket may leave unacknowledged; beyond it, the oldest are
    /// not sent again
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().unacknowledged_events, value_parser = values::count)]
    pub(crate) max_unacknowledged: usize,

    /// Bytes of those broadcasts for each socket
    #[arg(long, value_name = "SIZE")]
    #[arg(default_value_t = ByteSize(Limits::default().unacknowledged_bytes))]
    pub(crate) max_unacknowledged_bytes: ByteSize,

    /// Binary attachments of one packet; a client that sends more is disconnected
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().attachments, value_parser = values::count)]
    pub(crate) max_attachments: usize,

    /// Maximum depth of nested JSON in a packet or a message from the cluster, at most 500
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().json_depth, value_parser = values::json_depth)]
    pub(crate) max_json_depth: usize,

    /// Maximum of frames in one fragmented WebSocket message
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().fragments, value_parser = values::count)]
    pub(crate) max_fragments: usize,

    /// Upgrades to WebSocket that may be in progress; other connections stay on polling
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().unfinished_upgrades, value_parser = values::count)]
    pub(crate) max_unfinished_upgrades: usize,

    /// Events of other servers whose handlers may run at the same time; more fail
    #[arg(long, value_name = "COUNT")]
    #[arg(default_value_t = Limits::default().server_side_events, value_parser = values::count)]
    pub(crate) max_server_side_events: usize,

    /// Time limit for a PROXY header and a TLS handshake
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Limits::default().handshake_timeout))]
    pub(crate) handshake_timeout: Span,

    /// Connections on which these may be incomplete; more are closed
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

    /// Time in which a client must read some bytes of an HTTP response
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Limits::default().response_timeout))]
    pub(crate) response_timeout: Span,
}

/// The treatment of a client that sends too fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// Log and count it
    Warn,
    /// Do not handle the event; its acknowledgement is an error
    Drop,
    /// Close the connection
    Close,
}

impl From<Policy> for RatePolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Warn => Self::Warn,
            Policy::Drop => Self::Drop,
            Policy::Close => Self::Close,
        }
    }
}

/// Parses a count that can be off.
fn count(text: &str) -> Result<usize, String> {
    values::count(text).map_err(|error| format!("{error}, or `off`"))
}

/// Parses a rate of things that are counted: `20`, or `20:100` with a burst.
fn count_rate(text: &str) -> Result<Rate, String> {
    let count = |text: &str| text.parse().ok().filter(|number| *number > 0);
    let rate = rate(text, count);
    rate.ok_or_else(|| "expected a rate such as 20 or 20:100, or `off`".to_owned())
}

/// Parses a rate of bytes: `100kB`, or `100kB:1MB` with a burst.
fn size_rate(text: &str) -> Result<Rate, String> {
    let size = |text: &str| u32::try_from(text.parse::<ByteSize>().ok()?.0).ok();
    rate(text, size)
        .ok_or_else(|| "expected a rate below 4GiB such as 100kB or 100kB:1MB, or `off`".to_owned())
}

fn rate(text: &str, amount: impl Fn(&str) -> Option<u32>) -> Option<Rate> {
    let Some((per_second, burst)) = text.split_once(':') else {
        return amount(text).map(Rate::per_second);
    };
    Some(Rate::per_second(amount(per_second)?).burst(amount(burst)?))
}

/// The limits that a reload replaces.
pub(crate) struct LiveLimits(pub(crate) Server, pub(crate) UserLimit);

impl Reloadable for LiveLimits {
    /// Only limits that are checked on new input. The others need a
    /// restart.
    fn keys(&self) -> &'static [&'static str] {
        &[
            "max_connections",
            "max_connections_per_address",
            "ipv6_prefix",
            "max_connect_rate",
            "max_event_rate",
            "max_byte_rate",
            "rate_policy",
            "max_sockets_per_user",
        ]
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        let (server, limits) = (self.0.clone(), Limits::from(&config.limits));
        let (users, per_user) = (self.1.clone(), config.limits.max_sockets_per_user.0);
        prepared(Ok(move || {
            server.set_limits(&limits);
            users.set(per_user);
        }))
    }
}

impl From<&LimitOptions> for Limits {
    fn from(options: &LimitOptions) -> Self {
        Self {
            connections: options.max_connections,
            connections_per_address: options.max_connections_per_address.0,
            ipv6_prefix: options.ipv6_prefix,
            connect_rate: options.max_connect_rate.0,
            event_rate: options.max_event_rate.0,
            byte_rate: options.max_byte_rate.0,
            rate_policy: options.rate_policy.into(),
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
            unacknowledged_events: options.max_unacknowledged,
            unacknowledged_bytes: options.max_unacknowledged_bytes.0,
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
        assert_eq!(limits.event_rate, None);
    }

    #[test]
    fn a_rate_may_have_a_burst_or_be_off() {
        assert_eq!(or_off(count_rate)("off"), Ok(OrOff(None)));
        assert_eq!(count_rate("20"), Ok(Rate::per_second(20)));
        assert_eq!(count_rate("20:100"), Ok(Rate::per_second(20).burst(100)));
        assert_eq!(
            size_rate("1kB:2MB"),
            Ok(Rate::per_second(1_000).burst(2_000_000))
        );
        for wrong in [
            "",
            "0",
            "20:0",
            "20:",
            ":20",
            "-1",
            "1.5",
            "5000000000",
            "of",
        ] {
            let error = count_rate(wrong).unwrap_err();
            assert_eq!(
                error, "expected a rate such as 20 or 20:100, or `off`",
                "{wrong}"
            );
            assert!(size_rate(wrong).is_err() || wrong == "1.5", "{wrong}");
        }
    }
}
