//! The command line.

use std::{net::IpAddr, time::Duration};

use clap::{
    Args, Parser, Subcommand,
    builder::{ArgPredicate, RangedI64ValueParser, RangedU64ValueParser},
};

use crate::{
    chaos::Chaos,
    gauge::Gauge,
    label::{MAX_PAYLOAD_BYTES, MIN_PAYLOAD_BYTES},
    swarm::Transport,
};

/// Load, latency and an exact account of every message, for any Socket.IO server (revision 5).
///
/// Status: 0 if all went well, 1 if the run failed or a target is unreachable, 2 for wrong
/// arguments, 3 if a target is no Socket.IO server, 4 if messages were lost, duplicated, reordered,
/// corrupted or went astray, 5 if the figures are limited by the tool or its machine.
#[derive(Debug, Parser)]
#[command(name = "roomcast-loadtest", version, max_term_width = 100)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Scenario(Box<Scenario>),
    /// Cause faults of nodes, networks and Redis in a cluster of its own, and account for each message
    Chaos(Chaos),
    /// Add results of several loaders of one run
    Merge(Merge),
    /// Show results side by side, as ratios to the first
    Compare(Compare),
    /// Write a self-contained HTML page about results
    Report(Report),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Scenario {
    /// Memory and CPU of connections that only wait
    Idle(Idle),
    /// Broadcasts to rooms: one large or many small ones, windowed or paced
    FanOut(FanOut),
    /// Requests with acknowledgement
    Echo(Echo),
    /// Connects per second
    Storm(Storm),
    /// Rooms with one member each, which are left again or kept
    Joins(Joins),
    /// Broadcasts from clients of the first target to members on the others
    Cluster(FanOut),
    /// Messages that another process publishes to the cluster through Redis
    Emitter(Emitter),
    /// Broadcasts to rooms in which some members never read
    #[command(mut_arg("stalled", |arg| arg.default_value("10")))]
    Slow(Disturbed),
    /// Broadcasts while members join and leave
    #[command(mut_arg("moves", |arg| arg.default_value("200")))]
    Churn(Disturbed),
    /// Broadcasts while random connections are reset and come back
    #[command(mut_arg("tears", |arg| arg.default_value("20")))]
    Jitter(Disturbed),
    /// Restart servers one after the other: every client must return, and not all at once
    Deploy(Deploy),
    /// All disruptions for hours: memory slope, leaked descriptors
    #[command(mut_arg("duration", |arg| arg.default_value("60s")))]
    #[command(mut_arg("rate", |arg| arg.default_value("20")))]
    #[command(mut_arg("moves", |arg| arg.default_value("50")))]
    #[command(mut_arg("tears", |arg| arg.default_value("5")))]
    Soak(Disturbed),
}

/// Options of all scenarios.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Servers or load balancers: http://HOST:PORT[/PATH]
    #[arg(required = true, value_name = "TARGET")]
    pub(crate) targets: Vec<String>,
    /// Transport of the clients
    #[arg(long, value_enum, default_value = "websocket")]
    pub(crate) transport: Transport,
    /// Send each session's requests after the first to the next target, as a balancer without
    /// sticky sessions may: the nodes have to relay them
    #[arg(long)]
    pub(crate) relayed: bool,
    /// Path of Socket.IO for targets without a path
    #[arg(long, default_value = "/socket.io/")]
    pub(crate) path: String,
    /// Namespace that clients connect to
    #[arg(long, default_value = "/", value_parser = namespace)]
    pub(crate) namespace: String,
    /// JSON object that clients send as authentication data
    #[arg(long, value_parser = json_object, value_name = "JSON")]
    pub(crate) auth: Option<String>,
    /// Local address to connect from; repeat for more ports [default: 250 loopback addresses for
    /// loopback targets, the system's choice for others]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) source: Vec<IpAddr>,
    /// Process of a server, to measure its CPU and memory; repeatable
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Vec<u32>,
    /// Another process, to measure its CPU under a name, like Redis=4711; repeatable
    #[arg(long, value_name = "NAME=PID", value_parser = Named::parse)]
    pub(crate) process: Vec<Named>,
    /// Metric of the server to read before and after the run, like http://HOST:PORT/metrics#NAME;
    /// repeatable. In a soak, it is read after the last client has left, so the difference is a
    /// leak
    #[arg(long, value_name = "URL#NAME", value_parser = Gauge::parse)]
    pub(crate) gauge: Vec<Gauge>,
    /// Length of the measured window, like 500ms, 10s, 2m or 1h
    #[arg(long, value_parser = duration, default_value = "10s", value_name = "TIME")]
    pub(crate) duration: Duration,
    /// Traffic before the measured window
    #[arg(long, value_parser = duration, default_value = "1s", value_name = "TIME")]
    pub(crate) warm_up: Duration,
    /// Time to wait for missing messages
    #[arg(long, value_parser = duration, default_value = "5s", value_name = "TIME")]
    pub(crate) grace: Duration,
    /// Maximum number of connections that are being opened
    #[arg(long, default_value_t = 100, value_parser = positive())]
    pub(crate) opening: u32,
    /// Length of the payload of each message, in bytes
    #[arg(long, default_value_t = 128, value_parser = payload())]
    pub(crate) payload: usize,
    /// Seed of random choices
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Number of loader processes; rooms or clients are divided among them, and samples are merged
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) processes: u32,
    /// Name of the result in reports and comparisons
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) label: String,
    /// Write the result to this file, as input of merge, compare and report
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<String>,
    /// Write a report to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<String>,
    /// Do not show progress
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Index and number of loader processes
    #[arg(long, hide = true, value_parser = part)]
    pub(crate) part: Option<(u32, u32)>,
}

/// A process and its display name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) pid: u32,
}

impl Named {
    fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let parts = parts.and_then(|(name, pid)| Some((name.to_owned(), pid.parse().ok()?)));
        let (name, pid) = parts.ok_or_else(|| "like Redis=4711".to_owned())?;
        Ok(Self { name, pid })
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Idle {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Connections to open
    #[arg(long, default_value_t = 10_000, value_parser = positive())]
    pub(crate) connections: u32,
    /// Members of each room
    #[arg(long, default_value_t = 10, value_parser = positive())]
    pub(crate) members: u32,
    /// Broadcasts to each room before memory is measured again
    #[arg(long, default_value_t = 10)]
    pub(crate) broadcasts: u32,
}

/// Rooms with messages at a rate.
#[derive(Clone, Debug, Args)]
pub(crate) struct Paced {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) rooms: Rooms,
    /// Messages per second in total
    #[arg(long, default_value_t = 50.0, value_parser = rate)]
    pub(crate) rate: f64,
}

/// Rooms and their members.
#[derive(Clone, Debug, Args)]
pub(crate) struct Rooms {
    /// Number of rooms
    #[arg(long, default_value_t = 1, value_parser = positive())]
    pub(crate) rooms: u32,
    /// Members of each room, senders included
    #[arg(long, default_value_t = 1000, value_parser = positive())]
    pub(crate) members: u32,
    /// Senders in each room
    #[arg(long, default_value_t = 1, value_parser = positive())]
    pub(crate) senders: u32,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct FanOut {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) rooms: Rooms,
    /// Outstanding messages per sender; the next one is sent when one has reached all members
    #[arg(long, default_value_t = 1, value_parser = positive())]
    pub(crate) window: u32,
    /// Messages per second in total, whether or not earlier ones have arrived
    #[arg(long, conflicts_with = "window", value_parser = rate)]
    pub(crate) rate: Option<f64>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Echo {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Clients, each with one outstanding request
    #[arg(long, default_value_t = 200, value_parser = positive())]
    pub(crate) clients: u32,
    /// Requests per second in total, whether or not earlier ones have been answered
    #[arg(long, value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Event to send: `echo` returns its argument, `rooms` a list; `auto` uses `echo` if the server
    /// has it
    #[arg(long, default_value = "auto", value_parser = ["auto", "echo", "rooms"])]
    pub(crate) event: String,
}

#[derive(Clone, Debug, Args)]
#[command(mut_arg("duration", |arg| arg.default_value("5s")))]
pub(crate) struct Storm {
    #[command(flatten)]
    pub(crate) common: Common,
    /// New connections per second [default: as many as possible with --opening at a time]
    #[arg(long, value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Keep this many connections open; the oldest is closed first
    #[arg(long, default_value_t = 0)]
    pub(crate) keep: u32,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Joins {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Number of rooms, up to 1,000 per client
    #[arg(long, default_value_t = 10_000, value_parser = positive())]
    pub(crate) rooms: u32,
    /// Leave each room after this time [default: keep rooms until the end]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) hold: Option<Duration>,
    /// Joins per second; rooms that are kept are joined as fast as the server acknowledges
    #[arg(long, default_value_t = 20_000.0, requires = "hold", value_parser = rate)]
    pub(crate) rate: f64,
}

#[derive(Clone, Debug, Args)]
#[command(mut_arg("duration", |arg| arg.default_value_if("flood", ArgPredicate::IsPresent, "60s")))]
pub(crate) struct Emitter {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Redis of the cluster: `redis://[USER:PASSWORD@]HOST:PORT`. The load test publishes messages
    /// itself, in the classic format unless --sharded is given
    #[arg(long, value_name = "URL", required_unless_present = "emit_with")]
    pub(crate) redis: Option<String>,
    /// Prefix of the cluster's channels
    #[arg(long, default_value = "socket.io")]
    pub(crate) prefix: String,
    /// Emit with a program instead: a shell command that reads messages from standard input, one
    /// per line, like `roomcast emit -`. The first message of each room is not measured
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["redis", "prefix"])]
    pub(crate) emit_with: Option<String>,
    /// Publish to Redis in the format of the sharded adapter
    #[arg(long, requires = "redis")]
    pub(crate) sharded: bool,
    /// Emit to rooms without members, to measure emitting alone
    #[arg(long, conflicts_with = "redis")]
    pub(crate) unheard: bool,
    /// Connect all members of a room to one target, and the next room to the next
    #[arg(long)]
    pub(crate) together: bool,
    /// Number of rooms
    #[arg(long, default_value_t = 1, value_parser = positive())]
    pub(crate) rooms: u32,
    /// Members of each room, spread over the targets unless --together is given
    #[arg(long, default_value_t = 200, value_parser = positive())]
    pub(crate) members: u32,
    /// Messages per second in total
    #[arg(long, default_value_t = 100.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Outstanding messages per room; the next one is sent when one has reached all members
    #[arg(long, conflicts_with_all = ["rate", "unheard"], value_parser = positive())]
    pub(crate) window: Option<u32>,
    /// Publish this many messages at once
    #[arg(long, conflicts_with_all = ["rate", "window"], value_parser = positive())]
    pub(crate) flood: Option<u32>,
}

/// Rooms with messages at a rate, and disruptions.
#[derive(Clone, Debug, Args)]
pub(crate) struct Disturbed {
    #[command(flatten)]
    pub(crate) paced: Paced,
    /// Members of each room that stop reading after the join
    #[arg(long, default_value_t = 0)]
    pub(crate) stalled: u32,
    /// Joins and leaves per second, of members that do not send
    #[arg(long, value_parser = rate)]
    pub(crate) moves: Option<f64>,
    /// Connections reset per second, of members that do not send
    #[arg(long, value_parser = rate)]
    pub(crate) tears: Option<f64>,
    /// Time until a client reconnects after a reset, ± 50 %
    #[arg(long, value_parser = duration, default_value = "2s", value_name = "TIME")]
    pub(crate) away: Duration,
}

#[derive(Clone, Debug, Args)]
#[command(mut_arg("duration", |arg| {
    arg.default_value("30s").default_value_if("restart", ArgPredicate::IsPresent, "10m").help(LONGEST_DEPLOYMENT)
}))]
pub(crate) struct Deploy {
    #[command(flatten)]
    pub(crate) paced: Paced,
    /// Shell command that restarts one server and returns when it is ready again; repeat for each
    /// [default: restart them by hand]
    #[arg(long, value_name = "COMMAND")]
    pub(crate) restart: Vec<String>,
    /// Time over which a server closes its connections, to compare the connects per second with
    #[arg(long, value_parser = duration, default_value = "10s", value_name = "TIME")]
    pub(crate) over: Duration,
    /// Time before the first restart, between two, and after the last
    #[arg(long, value_parser = duration, default_value = "5s", value_name = "TIME")]
    pub(crate) pause: Duration,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Merge {
    /// Results of loaders that ran simultaneously
    #[arg(required = true, value_name = "FILE")]
    pub(crate) results: Vec<String>,
    /// Write the sum to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<String>,
    /// Write a report to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Compare {
    /// Results; the others are shown as ratios to the first
    #[arg(required = true, value_name = "FILE")]
    pub(crate) results: Vec<String>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Report {
    /// Results; those of one scenario share their plots
    #[arg(required = true, value_name = "FILE")]
    pub(crate) results: Vec<String>,
    /// Page to write
    #[arg(long, value_name = "FILE")]
    pub(crate) html: String,
}

const LONGEST_DEPLOYMENT: &str =
    "Length of the measured window. With --restart, it ends after the last restart, or after 10m";

impl Scenario {
    /// The common options.
    pub(crate) fn common(&self) -> &Common {
        match self {
            Self::Idle(options) => &options.common,
            Self::FanOut(options) | Self::Cluster(options) => &options.common,
            Self::Echo(options) => &options.common,
            Self::Storm(options) => &options.common,
            Self::Joins(options) => &options.common,
            Self::Emitter(options) => &options.common,
            Self::Deploy(options) => &options.paced.common,
            Self::Slow(options)
            | Self::Churn(options)
            | Self::Jitter(options)
            | Self::Soak(options) => &options.paced.common,
        }
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number: f64 = digits
        .parse()
        .map_err(|_| "like 500ms, 10s, 2m or 1h".to_owned())?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err("like 500ms, 10s, 2m or 1h".to_owned()),
    };
    if !(0.0..=LONGEST_SECONDS).contains(&seconds) {
        return Err("between nothing and 30 days".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a number per second".to_owned())?;
    if (0.001..=10_000_000.0).contains(&rate) {
        Ok(rate)
    } else {
        Err("between 0.001 and 10000000 per second".to_owned())
    }
}

fn payload() -> RangedU64ValueParser<usize> {
    (MIN_PAYLOAD_BYTES as u64..=MAX_PAYLOAD_BYTES as u64).into()
}

fn namespace(text: &str) -> Result<String, String> {
    if text.starts_with('/') && !text.contains(',') {
        Ok(text.to_owned())
    } else {
        Err("a namespace begins with a slash and has no comma".to_owned())
    }
}

fn json_object(text: &str) -> Result<String, String> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(_)) => Ok(text.to_owned()),
        _ => Err("a JSON object, like {\"token\":\"x\"}".to_owned()),
    }
}

fn part(text: &str) -> Result<(u32, u32), String> {
    let parts = text.split_once('/');
    let parts = parts.and_then(|(at, of)| Some((at.parse().ok()?, of.parse().ok()?)));
    parts
        .filter(|(at, of)| at < of)
        .ok_or_else(|| "like 0/2".to_owned())
}

fn positive() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=10_000_000)
}

const LONGEST_SECONDS: f64 = 30.0 * 24.0 * 3600.0;

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn every_scenario_has_defaults_for_all_but_its_targets() {
        for scenario in [
            "idle", "fan-out", "echo", "storm", "joins", "cluster", "slow", "churn", "jitter",
            "deploy", "soak",
        ] {
            let line = ["roomcast-loadtest", scenario, "127.0.0.1:1"];
            Options::try_parse_from(line).unwrap();
        }
    }

    #[test]
    fn durations_have_units() {
        for (text, ms) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("1.5s", 1500),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
        for text in ["", "10", "s", "5d", "-1s", "1e9h", "nans"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for line in [
            &["fan-out"][..],
            &["fan-out", "x:1", "--members=0"],
            &["fan-out", "x:1", "--rate=0"],
            &["fan-out", "x:1", "--rate=5", "--window=2"],
            &["fan-out", "x:1", "--payload=39"],
            &["fan-out", "x:1", "--namespace=chat"],
            &["fan-out", "x:1", "--auth=[1]"],
            &["fan-out", "x:1", "--processes=65"],
            &["echo", "x:1", "--event=shout"],
            &["emitter", "x:1"],
            &["emitter", "x:1", "--redis=redis://h", "--emit-with=cat"],
            &["emitter", "x:1", "--redis=redis://h", "--unheard"],
            &["echo", "x:1", "--process=4711"],
            &["echo", "x:1", "--process==4711"],
            &["echo", "x:1", "--process=Redis=x"],
            &["compare"],
        ] {
            let line = ["roomcast-loadtest"].iter().chain(line);
            assert!(Options::try_parse_from(line.clone()).is_err(), "{line:?}");
        }
    }
}
