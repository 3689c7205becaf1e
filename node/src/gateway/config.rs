//! The command line and the environment: every option with its unit, default and purpose.
//!
//! The doc comments of the fields are the manual: `--help` and the table of options show them.
//! Values are parsed here, once (see `values`). `build` and `run` implement their effects.
//! Environment variables and switches are completed in one place, `options::complete`. The file's
//! values become defaults of the options, see `settings`.
//!
//! ```text
//! arguments, environment ─► first pass ─► file ─► its values become defaults ─► second pass
//!                                           └─► sections ────────► Config ◄───────────┘
//! ```
//!
//! So clap alone decides whether the flag, the variable, the file or the default
//! counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    net::SocketAddr,
    path::PathBuf,
};

use super::{
    access::{Access, AccessTable},
    api,
    cluster::{self, ClusterOptions},
    doctor::DoctorOptions,
    drain::DrainOptions,
    emit::EmitOptions,
    hooks,
    limits::LimitOptions,
    log_client::client_name,
    logging::LogFormat,
    options,
    redis::RedisOptions,
    relay::RelayOptions,
    settings::{
        Compared, File, FileError, HistorySettings, JournalSettings, NamespaceName,
        RecoverySettings, Settings, placed,
    },
    tls::TlsOptions,
    token::TokenOptions,
    values::{self, ByteSize, LogFilter, OrOff, Origin, Span, Switch, Workers, or_off},
};
use clap::{
    Arg, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
    error::ErrorKind, parser::ValueSource,
};
use clap_complete::Shell;
use roomcast::{ClientFiles, Drain, HistoryLimits, JournalLimits};

/// A Socket.IO server.
///
/// Set each option as a flag, as an environment variable, or in a TOML file
/// (--config). The flag wins over the variable, and the variable over the file. Durations
/// carry a unit (300ms, 25s, 2m), sizes may (1000000, 1MB, 1MiB).
#[derive(Debug, Parser)]
#[command(name = "roomcast", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    job: Job,
}

/// The commands of the program.
#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// Serve Socket.IO clients
    ///
    /// Listens on two ports: one for clients, one for operators (/livez, /readyz,
    /// /metrics). Stops gracefully on SIGTERM and Ctrl-C: clients are moved to other
    /// nodes at an even rate. A second signal closes the remaining connections at once, and a
    /// further one ends the program. Exit status: 0 after a graceful stop, 2 for a wrong option or
    /// setting, 1 otherwise.
    Serve(Box<Config>),
    /// Serve a chat page for trying it out, open to everybody
    ///
    /// Like `serve` with --access=open, --client-rooms and --cors-origin=*, a chat page
    /// at /, and an HTTP API that takes the key `demo-key`. It has no authentication and
    /// keeps everything in memory, so do not expose it to the internet.
    Demo(Box<Demo>),
    /// Emit an event to the clients of a cluster, without being a node
    ///
    /// Publishes through Redis to the clients of all nodes, Roomcast's and Node.js
    /// servers. Only Redis must be reachable.
    Emit(Box<EmitOptions>),
    /// Have a node on this machine disconnect its clients and end, as SIGTERM does
    ///
    /// Returns once the node has begun to drain. It then ends after at most its --drain-timeout.
    Drain(DrainOptions),
    /// Check the host, Redis and a balancer, and report problems with remedies
    ///
    /// Takes the options of `serve`. Each check is a line with ok, warn or FAIL, and a remedy. It
    /// changes nothing, so it may run next to a node.
    Doctor(Box<DoctorOptions>),
    /// Write, check or show settings
    #[command(subcommand)]
    Config(ConfigJob),
    /// Sign a token for testing namespaces whose access is jwt
    ///
    /// Uses a secret of [[jwt.keys]] in the file, and prints the token.
    Token(Box<TokenOptions>),
    /// Print all options of `serve` as a Markdown table
    Options,
    /// Print the completions of a shell
    ///
    /// For bash, `source <(roomcast completions bash)` in ~/.bashrc; other shells have a folder for
    /// such files.
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the version, and the commit if it was set at build time
    Version,
}

/// Commands for settings other than serving with them.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigJob {
    /// Print a commented file with every option at its default
    Default,
    /// Check the settings that `serve` would have, and start nothing
    ///
    /// Takes the options of `serve`. Exit status: 0 if the settings are valid, 2 otherwise.
    Check(Box<Config>),
    /// Print the settings that `serve` would have, each with its origin, without secrets
    Show(Box<Config>),
}

/// All options of `roomcast serve`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Config {
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) listen: Listen,
    #[command(flatten)]
    pub(crate) tls: TlsOptions,
    #[command(flatten)]
    pub(crate) protocol: Protocol,
    #[command(flatten)]
    pub(crate) browser: Browser,
    #[command(flatten)]
    pub(crate) limits: LimitOptions,
    #[command(flatten)]
    pub(crate) redis: RedisOptions,
    #[command(flatten)]
    pub(crate) cluster: ClusterOptions,
    #[command(flatten)]
    pub(crate) relay: RelayOptions,
    #[command(flatten)]
    pub(crate) operation: Operation,
    #[cfg(feature = "otlp")]
    #[command(flatten)]
    pub(crate) traces: super::traces::TraceOptions,
    /// The sections of the file.
    #[arg(skip)]
    pub(crate) settings: Settings,
    /// The same as they were written, without secrets.
    #[arg(skip)]
    pub(crate) sections: toml::Table,
    /// The same with secrets, so that a reload notices a change of one.
    #[arg(skip)]
    pub(crate) compared: Compared,
    /// Where the value of each option is from, by flag.
    #[arg(skip)]
    pub(crate) values: BTreeMap<String, Value>,
}

/// The value of an option as it was written, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) text: String,
    pub(crate) origin: ValueOrigin,
}

/// Where a value is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueOrigin {
    Default,
    File,
    Environment,
    Flag,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Settings")]
pub(crate) struct Source {
    /// TOML file with settings, which the environment and flags override: `off` or FILE
    ///
    /// The key of an option is its flag with underscores, such as ping_interval = "25s".
    /// Some settings exist only in the file, in sections.
    #[arg(long, value_name = "FILE", default_value = "off")]
    #[arg(value_parser = or_off(values::file))]
    pub(crate) config: OrOff<PathBuf>,
}

/// The options of `roomcast demo`; the others have the defaults of `serve`.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("drain_grace", |arg| arg.default_value("0s")))]
#[command(mut_arg("drain_over", |arg| arg.default_value("0s")))]
pub(crate) struct Demo {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    bundles: Bundles,
    #[command(flatten)]
    redis: RedisOptions,
    #[command(flatten)]
    operation: Operation,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Listening")]
pub(crate) struct Listen {
    /// Address and port for clients
    ///
    /// Use 0.0.0.0:3000 to be reachable from other machines; port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[arg(default_value = "127.0.0.1:3000", value_parser = values::address)]
    pub(crate) listen: SocketAddr,

    /// Address and port for operators: /livez, /readyz and /metrics
    ///
    /// A dedicated thread serves it, so it responds even while the server is saturated. Do not
    /// expose it to the public.
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[arg(default_value = "127.0.0.1:3001", value_parser = values::address)]
    pub(crate) internal_listen: SocketAddr,

    /// Proxies that may state the address of a client: `off`, or addresses and networks separated
    /// by commas
    ///
    /// Without it, clients behind a balancer all have its address. With it, the right-most address
    /// in X-Forwarded-For that is not a proxy is the client's. Never list addresses from which
    /// clients connect directly, because they could then claim any address.
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    #[arg(default_value = "off", value_parser = or_off(values::proxy_network))]
    pub(crate) trusted_proxies: Vec<OrOff<String>>,

    /// Header in which those proxies state the client's address; choose the one that they set,
    /// because they forward the other one unchanged
    #[arg(
        long,
        value_name = "NAME",
        value_enum,
        default_value = "x-forwarded-for"
    )]
    pub(crate) forwarded_header: HeaderOfProxies,

    /// Expect a PROXY header, version 1 or 2, at the beginning of each connection of clients
    ///
    /// Connections without one, and those that do not come from --trusted-proxies, are closed.
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub(crate) proxy_protocol: Switch,
}

/// A header with the addresses of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HeaderOfProxies {
    /// X-Forwarded-For and X-Forwarded-Proto
    XForwardedFor,
    /// Forwarded, of RFC 7239
    Forwarded,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Protocol")]
pub(crate) struct Protocol {
    /// Path of the endpoint; clients must use the same
    #[arg(long, value_name = "PATH")]
    #[arg(default_value = "/socket.io/", value_parser = values::path)]
    pub(crate) path: String,

    /// Namespaces that clients may connect to; repeat the flag or separate by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[arg(default_value = "/", value_parser = values::namespace)]
    pub(crate) namespace: Vec<String>,

    /// Access to the namespaces for which the settings file sets none
    ///
    /// `closed` refuses all clients, so that a forgotten setting opens nothing. `jwt` needs
    /// the section [jwt] of the file.
    #[arg(long, value_name = "NAME", value_enum, default_value = "closed")]
    pub(crate) access: Access,

    /// Let clients manage rooms with the events join, leave, rooms, who, message and echo
    ///
    /// `join` (room) acknowledges {"room", "members"}; `leave` (room) acknowledges
    /// {"room"}; `rooms` returns the client's rooms and `who` (room) the ids in a room.
    /// `message` (room, any JSON) is broadcast to the room as `message` {room, from,
    /// data} if the sender is in it. `echo` returns its arguments. The other members
    /// receive `joined` and `left` {room, id}, unless {"quiet": true} follows the room; a
    /// quiet join acknowledges {"room"} only. Errors are acknowledged as {"error"}. A policy in the
    /// file controls the use of rooms; where the access is open and there is no policy, everybody
    /// may use all rooms except the private rooms of sockets.
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub(crate) client_rooms: Switch,

    /// Time from a client's pong to the next ping
    #[arg(long, value_name = "DURATION", default_value = "25s")]
    pub(crate) ping_interval: Span,

    /// Time that a client has to answer a ping before its connection is closed
    #[arg(long, value_name = "DURATION", default_value = "20s")]
    pub(crate) ping_timeout: Span,

    /// Time that an upgrade from polling to WebSocket may take
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub(crate) upgrade_timeout: Span,

    /// Time that a new connection has to join its first namespace
    #[arg(long, value_name = "DURATION", default_value = "45s")]
    pub(crate) connect_timeout: Span,

    /// Largest message accepted from a client, in bytes; a larger one closes the connection
    #[arg(long, value_name = "SIZE", default_value = "1MB")]
    pub(crate) max_payload: ByteSize,

    /// Transports that clients may use, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(value_enum, default_value = "polling,websocket")]
    pub(crate) transports: Vec<Transport>,

    /// Also serve clients of Socket.IO version 2, which speak Engine.IO version 3
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub(crate) allow_eio3: Switch,

    /// Encoding of packets; clients must use the same, because it is not negotiated
    #[arg(long, value_name = "NAME", value_enum, default_value = "json")]
    pub(crate) parser: PacketParser,

    #[command(flatten)]
    pub(crate) bundles: Bundles,

    /// Compress large responses to polling clients with gzip
    #[arg(long, value_name = "BOOL", default_value = "true")]
    pub(crate) http_compression: Switch,
}

/// The options of [`Protocol`] that the demo has.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Protocol")]
pub(crate) struct Bundles {
    /// Folder of the client's bundles, which are served below the path: `off` or FOLDER
    ///
    /// Pages written for Node.js load /socket.io/socket.io.js from the server. The folder
    /// is `dist` of the npm package socket.io-client. It is read at startup.
    #[arg(long, value_name = "FOLDER", default_value = "off")]
    #[arg(value_parser = or_off(values::client_files))]
    pub(crate) client_files: OrOff<ClientFiles>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Browsers")]
pub(crate) struct Browser {
    /// Origins whose pages may connect in addition to those of the same host: `off`, `*`, or a list
    /// separated by commas
    ///
    /// An origin is scheme, host and port, such as https://example.com. Clients other than browsers
    /// send no origin and may always connect.
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    #[arg(default_value = "off")]
    pub(crate) cors_origin: Vec<Origin>,

    /// Let pages of those origins send cookies; the origins must be listed
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub(crate) cors_credentials: Switch,

    /// Request headers that those pages may set: `any`, or a list separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(default_value = "any", value_parser = values::header_name)]
    pub(crate) cors_allowed_headers: Vec<String>,

    /// Name of a cookie with the session id, for sticky sessions at a load balancer: `off` or NAME
    #[arg(long, value_name = "NAME", default_value = "off")]
    #[arg(value_parser = or_off(values::cookie_name))]
    pub(crate) cookie: OrOff<String>,
}

impl Browser {
    fn fits(&self) -> Result<(), String> {
        if self.cors_credentials.0 && self.cors_origin.contains(&Origin::Any) {
            return Err(
                "--cors-credentials is not possible with --cors-origin=*: pages of any origin \
                 could use the cookies of your users; list the origins"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Operation")]
pub(crate) struct Operation {
    /// Worker threads, which serve the connections: `cores` or COUNT
    #[arg(long, value_name = "COUNT", default_value = "cores")]
    pub(crate) workers: Workers,

    /// Time between the end of readiness and the first disconnect, so that balancers notice
    ///
    /// From SIGTERM or Ctrl-C on, /readyz returns 503. Clients that connect within this time are
    /// still accepted. A node without clients does not wait.
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Drain::default().grace), value_parser = values::pause)]
    pub(crate) drain_grace: Span,

    /// Time over which clients are then disconnected at an even rate, so that they do not reconnect
    /// all at once
    ///
    /// At least 20 clients are disconnected per second. 0s disconnects all at once.
    #[arg(long, value_name = "DURATION")]
    #[arg(default_value_t = Span(Drain::default().over), value_parser = values::pause)]
    pub(crate) drain_over: Span,

    /// Time limit for the whole stop; connections that are left then are cut off
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub(crate) drain_timeout: Span,

    /// Format of the log on standard error
    #[arg(long, value_name = "NAME", value_enum)]
    #[arg(default_value = "text")]
    pub(crate) log_format: LogFormat,

    /// Log level: error, warn, info, debug, trace or off; TARGET=LEVEL for parts,
    /// separated by commas
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub(crate) log_level: LogFilter,

    /// Clients whose every step is logged, regardless of the level: `off`, or ids, users and
    /// addresses, separated by commas
    ///
    /// The id is that of a socket or of a connection. Events from and to these clients are logged
    /// with their size; with roomcast::client=trace in the log level, also the first 1,024 bytes of
    /// their arguments.
    #[arg(long, value_name = "CLIENT", value_delimiter = ',')]
    #[arg(default_value = "off", value_parser = or_off(client_name))]
    pub(crate) log_client: Vec<OrOff<String>>,
}

impl Operation {
    fn fits(&self) -> Result<(), String> {
        let (grace, over, timeout) = (self.drain_grace, self.drain_over, self.drain_timeout);
        if grace.0.saturating_add(over.0) < timeout.0 {
            return Ok(());
        }
        Err(format!(
            "--drain-timeout is {timeout}, not more than --drain-grace with {grace} and --drain-over \
             with {over} together: clients would be cut off; raise the one or lower the others"
        ))
    }
}

/// A transport of Engine.IO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// HTTP long-polling
    Polling,
    /// WebSocket
    Websocket,
}

/// An encoding of Socket.IO packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PacketParser {
    /// Text, the default of all clients
    Json,
    /// MessagePack, as in socket.io-msgpack-parser
    Msgpack,
}

impl Config {
    /// Adds the values that clap does not provide: the sections of the file, and where the values
    /// are from.
    fn complete(&mut self, matches: &ArgMatches, file: File) {
        self.values = serve_options()
            .iter()
            .filter_map(|option| {
                let (id, flag) = (option.get_id().as_str(), option.get_long()?);
                let texts = matches.get_raw(id)?.map(|text| text.to_string_lossy());
                let origin = match matches.value_source(id)? {
                    ValueSource::CommandLine => ValueOrigin::Flag,
                    ValueSource::EnvVariable => ValueOrigin::Environment,
                    _ if file.values.contains_key(flag) => ValueOrigin::File,
                    _ => ValueOrigin::Default,
                };
                let text = texts.collect::<Vec<_>>().join(",");
                Some((flag.to_owned(), Value { text, origin }))
            })
            .collect();
        self.settings = file.settings;
        self.sections = file.sections;
        self.compared = file.compared;
    }

    /// The access of each namespace.
    pub(crate) fn access(&self) -> AccessTable {
        let names = self.namespaces().into_iter();
        names
            .map(|name| {
                let section = self.settings.namespace(&name);
                let access = match section.and_then(|section| section.access) {
                    Some(access) => access,
                    // Its keys protect it, so Socket.IO clients need a separate setting.
                    None if self.settings.doors.syncano.has_namespace(&name) => Access::Closed,
                    None => self.protocol.access,
                };
                (name, access)
            })
            .collect()
    }

    /// The namespaces that are served: those of the file's sections, and those of
    /// `--namespace`. Its default counts only if there are no others.
    pub(crate) fn namespaces(&self) -> BTreeSet<String> {
        let of_sections = self.settings.namespaces.keys().map(|name| name.0.clone());
        let of_option = self.values.get("namespace");
        let is_default = of_option.is_none_or(|value| value.origin == ValueOrigin::Default);
        let mut names: BTreeSet<_> = of_sections.collect();
        if !is_default || names.is_empty() {
            names.extend(self.protocol.namespace.iter().cloned());
        }
        let of_doors = self.settings.doors.pakyow.iter();
        names.extend(of_doors.map(|pakyow| pakyow.namespace.clone()));
        names.extend(self.settings.doors.syncano.namespaces());
        names
    }

    /// The limits of the logs of a namespace, if it keeps any.
    pub(crate) fn history(&self, name: &str) -> Option<HistoryLimits> {
        let section = self.settings.namespace(name);
        let history = section.and_then(|section| section.history.as_ref());
        let by_default = self.settings.doors.channels.has(name);
        history
            .map(HistorySettings::limits)
            .or_else(|| by_default.then(HistoryLimits::default))
    }

    /// The limits of the journal of a namespace, if it keeps one.
    pub(crate) fn journal(&self, name: &str) -> Option<JournalLimits> {
        let journal = self.settings.namespace(name)?.journal.as_ref();
        journal.map(JournalSettings::limits)
    }

    /// Whether and how clients of a namespace can come back.
    pub(crate) fn recovery(&self, name: &str) -> Option<RecoverySettings> {
        self.settings.namespace(name)?.recovery.clone()
    }

    /// The proxies that may name the address of a client.
    pub(crate) fn trusted_proxies(&self) -> Vec<String> {
        let networks = self.listen.trusted_proxies.iter();
        networks.filter_map(|network| network.0.clone()).collect()
    }

    /// Checks the sections of the file, on their own and with the options.
    fn sections_fit(&self) -> Result<(), String> {
        let served = self.namespaces();
        self.settings.api.check()?;
        self.settings.doors.check()?;
        hooks::fits(&self.settings.hooks, &served)?;
        self.settings
            .presence
            .check(|name: &str| served.contains(name))?;
        self.settings.doors.fits(self)
    }

    /// Checks that each listener has its own address.
    fn has_own_addresses(&self) -> Result<(), String> {
        let relays = !self.relay.cluster_key.0.is_empty();
        let listeners = [
            ("--listen", Some(self.listen.listen)),
            ("--internal-listen", Some(self.listen.internal_listen)),
            ("--relay-listen", relays.then_some(self.relay.relay_listen)),
            ("listen in the section [api]", self.settings.api.listen),
        ];
        let mut earlier: Vec<(&str, SocketAddr)> = Vec::new();
        for (name, address) in listeners {
            let Some(address) = address.filter(|address| address.port() != 0) else {
                continue;
            };
            let (ip, port) = (address.ip(), address.port());
            let is_taken = |other: &&(&str, SocketAddr)| {
                let one = other.1.ip();
                let includes = one.is_unspecified() || ip.is_unspecified();
                other.1.port() == port && (one == ip || includes && one.is_ipv4() == ip.is_ipv4())
            };
            if let Some((other, taken)) = earlier.iter().find(is_taken) {
                return Err(format!(
                    "{name} is {address}, and {other} is {taken}: each needs a separate port"
                ));
            }
            earlier.push((name, address));
        }
        Ok(())
    }

    /// Checks options that are valid one by one but not together.
    fn fits(&self) -> Result<(), String> {
        let (inbox, payload) = (self.limits.max_inbox, self.protocol.max_payload);
        if inbox.0 < payload.0 {
            return Err(format!(
                "--max-inbox is {inbox}, below --max-payload with {payload}: the largest message \
                 would never fit; raise the one or lower the other"
            ));
        }
        self.tls.fits()?;
        self.has_own_addresses()?;
        if self.listen.proxy_protocol.0 && self.trusted_proxies().is_empty() {
            return Err(
                "--proxy-protocol needs --trusted-proxies, the addresses of the balancers that \
                 send the header"
                    .to_owned(),
            );
        }
        self.operation.fits()?;
        self.browser.fits()?;
        let names = &self.protocol.namespace;
        let is_twice = |(index, name): &(usize, &String)| names[..*index].contains(name);
        match names.iter().enumerate().find(is_twice) {
            Some((_, name)) => Err(format!("--namespace names {name} twice")),
            None => {
                self.sections_fit().map_err(|problem| {
                    let file = self.source.config.0.as_ref();
                    file.map_or_else(|| problem.clone(), |file| placed(file, &problem))
                })?;
                self.relay.check(self.redis.redis.0.is_some())?;
                self.redis.check()?;
                cluster::check(&self.cluster)
            }
        }
    }
}

impl From<Demo> for Config {
    /// The defaults of `serve`, independent of the environment, with rooms open to everybody.
    fn from(demo: Demo) -> Self {
        let mut config = Self {
            listen: demo.listen,
            redis: demo.redis,
            operation: demo.operation,
            ..Self::default()
        };
        config.protocol.access = Access::Open;
        config.protocol.bundles = demo.bundles;
        config.protocol.client_rooms = Switch(true);
        config.browser.cors_origin = vec![Origin::Any];
        config.settings.api.keys = vec![api::KeySettings::of_demo()];
        config.settings.doors.channels.namespaces = vec![NamespaceName("/".to_owned())];
        config
    }
}

impl Default for Config {
    fn default() -> Self {
        // Without `options::complete`, so that the environment is not read.
        let command = Self::augment_args(Command::new("defaults"));
        let matches = command.try_get_matches_from(["defaults"]);
        matches
            .and_then(|matches| Self::from_arg_matches(&matches))
            .expect("every option has a valid default, as a test checks")
    }
}

/// The command line with everything that follows from the names of options.
pub(crate) fn command() -> Command {
    options::complete(Cli::command())
}

/// Reads the command line, the environment and the file. The error has its text, with the
/// remedy, and its exit status.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Job, clap::Error> {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let mut command = command();
    // The first pass finds the file, and reports errors in flags and variables. The second
    // one has the file's values as defaults, so it finds nothing new.
    let first = matches(&command, &arguments)?;
    let file = match read_file(&first) {
        Ok(file) => file,
        Err(error) => return Err(command.error(ErrorKind::ValueValidation, error)),
    };
    let matches = match &file {
        None => first,
        Some(file) => matches(&with_defaults(command.clone(), &file.values), &arguments)?,
    };
    let mut job = job(&command, &matches)?;
    let environment = env::vars_os().filter_map(|(name, value)| {
        Some((
            name.into_string().ok()?,
            value.to_string_lossy().into_owned(),
        ))
    });
    let has_file = file.is_some();
    let file = file.unwrap_or_default();
    let unknown = options::unknown_variable(&command, &file.variables, environment);
    // Only the settings file shows whether a variable is a misspelt option or a secret to which the
    // file refers. Commands that read none run beside a node, with its environment.
    let is_certain = has_file || matches!(job, Job::Serve(_) | Job::Config(_));
    let unknown = unknown.filter(|problem| {
        if !is_certain {
            eprintln!("warning: {problem}");
        }
        is_certain
    });
    let completed = |config: &mut Config, file| {
        config.complete(innermost(&matches), file);
        config.fits().err()
    };
    let problem = match &mut job {
        Job::Serve(config) | Job::Config(ConfigJob::Check(config) | ConfigJob::Show(config)) => {
            unknown.or_else(|| completed(config, file))
        }
        Job::Doctor(options) => unknown.or_else(|| completed(&mut options.config, file)),
        Job::Token(options) => {
            options.settings = file.settings.jwt;
            unknown
        }
        Job::Config(ConfigJob::Default) | Job::Options | Job::Completions { .. } | Job::Version => {
            None
        }
        Job::Demo(_) | Job::Emit(_) | Job::Drain(_) => unknown,
    };
    match problem {
        Some(problem) => Err(command.error(ErrorKind::ValueValidation, problem)),
        None => Ok(job),
    }
}

fn matches(command: &Command, arguments: &[OsString]) -> Result<ArgMatches, clap::Error> {
    command
        .clone()
        .try_get_matches_from(arguments)
        .map_err(|error| options::with_way_out(error, command))
}

fn job(command: &Command, matches: &ArgMatches) -> Result<Job, clap::Error> {
    let cli = Cli::from_arg_matches(matches);
    Ok(cli
        .map_err(|error| options::with_way_out(error, command))?
        .job)
}

/// The matches of the command itself, such as `config show`.
fn innermost(matches: &ArgMatches) -> &ArgMatches {
    match matches.subcommand() {
        Some((_, inner)) => innermost(inner),
        None => matches,
    }
}

/// Reads the file that the command line or the environment names.
fn read_file(matches: &ArgMatches) -> Result<Option<File>, FileError> {
    let file = innermost(matches).try_get_one::<OrOff<PathBuf>>("config");
    let file = file.ok().flatten().and_then(|file| file.0.clone());
    file.map(|path| File::read(&path, &serve_options()))
        .transpose()
}

/// Makes the values of the file the defaults of the commands that take one.
fn with_defaults(command: Command, values: &BTreeMap<String, Vec<String>>) -> Command {
    command.mut_subcommands(|command| {
        let command = with_defaults(command, values);
        if !command
            .get_arguments()
            .any(|option| option.get_id() == "config")
        {
            return command;
        }
        command.mut_args(
            |option| match option.get_long().and_then(|flag| values.get(flag)) {
                Some(values) => option.default_values(values.clone()),
                None => option,
            },
        )
    })
}

/// All options of `serve`, in the order of its help.
pub(crate) fn serve_options() -> Vec<Arg> {
    let command = command();
    let serve = command.find_subcommand("serve");
    serve
        .into_iter()
        .flat_map(Command::get_arguments)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Job, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    fn serve(line: &str) -> Config {
        match read(&format!("roomcast serve {line}")).unwrap() {
            Job::Serve(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_socket_io() {
        let config = Config::default();
        assert_eq!(config.listen.listen.to_string(), "127.0.0.1:3000");
        assert_eq!(config.listen.internal_listen.to_string(), "127.0.0.1:3001");
        assert_eq!(config.listen.trusted_proxies, [OrOff(None)]);
        assert_eq!(config.listen.proxy_protocol, Switch(false));
        assert_eq!(config.protocol.path, "/socket.io/");
        assert_eq!(config.protocol.namespace, ["/"]);
        assert_eq!(config.protocol.ping_interval.to_string(), "25s");
        assert_eq!(config.protocol.ping_timeout.to_string(), "20s");
        assert_eq!(config.protocol.upgrade_timeout.to_string(), "10s");
        assert_eq!(config.protocol.connect_timeout.to_string(), "45s");
        assert_eq!(config.protocol.max_payload, ByteSize(1_000_000));
        assert_eq!(
            config.protocol.transports,
            [Transport::Polling, Transport::Websocket]
        );
        assert_eq!(config.protocol.parser, PacketParser::Json);
        assert_eq!(config.protocol.client_rooms, Switch(false));
        assert_eq!(config.protocol.access, Access::Closed);
        assert_eq!(config.protocol.allow_eio3, Switch(false));
        assert_eq!(config.browser.cors_origin, [Origin::Off]);
        assert_eq!(config.browser.cors_allowed_headers, ["any"]);
        assert_eq!(config.browser.cookie, OrOff(None));
        assert_eq!(config.limits.max_outbox, ByteSize(64 << 20));
        assert_eq!(config.operation.workers, Workers::Cores);
        let operation = &config.operation;
        assert_eq!(operation.drain_grace.to_string(), "3s");
        assert_eq!(operation.drain_over.to_string(), "10s");
        assert_eq!(operation.drain_timeout.to_string(), "30s");
    }

    #[test]
    fn flags_are_read() {
        let config = serve(
            "--listen 0.0.0.0:8080 --namespace / --namespace /chat,/news --client-rooms \
             --http-compression=off --transports websocket --ping-interval 300ms \
             --max-payload 1MiB --cors-origin https://a.example,https://b.example --workers 2 \
             --parser msgpack --log-format json --log-level warn,roomcast=debug --cookie io",
        );
        assert_eq!(config.listen.listen.to_string(), "0.0.0.0:8080");
        assert_eq!(config.protocol.namespace, ["/", "/chat", "/news"]);
        assert_eq!(config.protocol.client_rooms, Switch(true));
        assert_eq!(config.protocol.http_compression, Switch(false));
        assert_eq!(config.protocol.transports, [Transport::Websocket]);
        assert_eq!(config.protocol.ping_interval.0.as_millis(), 300);
        assert_eq!(config.protocol.max_payload, ByteSize(1 << 20));
        assert_eq!(config.browser.cors_origin.len(), 2);
        assert_eq!(config.browser.cookie, OrOff(Some("io".into())));
        assert_eq!(config.protocol.parser, PacketParser::Msgpack);
        assert_eq!(config.operation.workers, Workers::Exactly(2));
        assert_eq!(config.operation.log_format, LogFormat::Json);
    }

    #[test]
    fn the_demo_is_open_and_listens_where_it_is_told() {
        let job = read("roomcast demo --listen 127.0.0.1:0 --internal-listen [::1]:0").unwrap();
        let Job::Demo(demo) = job else {
            panic!("{job:?}")
        };
        let config = Config::from(*demo);
        assert!(config.operation.drain_grace.0.is_zero());
        assert!(config.operation.drain_over.0.is_zero());
        assert_eq!(config.listen.listen.to_string(), "127.0.0.1:0");
        assert_eq!(config.listen.internal_listen.to_string(), "[::1]:0");
        assert_eq!(config.protocol.client_rooms, Switch(true));
        assert_eq!(config.access()["/"], Access::Open);
        assert_eq!(config.browser.cors_origin, [Origin::Any]);
    }

    #[test]
    fn a_flag_wins_over_the_file_which_wins_over_the_default() {
        let path = env::temp_dir().join(format!("roomcast-layers-{}.toml", std::process::id()));
        let text = "ping_interval = \"7s\"\nmax_rooms = 5\nnamespace = [\"/\"]\n\
                    [namespaces.\"/chat\"]\naccess = \"open\"\n";
        std::fs::write(&path, text).unwrap();
        let config = serve(&format!("--config {} --ping-interval 9s", path.display()));
        std::fs::remove_file(path).unwrap();
        assert_eq!(config.protocol.ping_interval.to_string(), "9s");
        assert_eq!(config.limits.max_rooms, 5);
        let origin = |flag: &str| config.values[flag].origin;
        assert_eq!(origin("ping-interval"), ValueOrigin::Flag);
        assert_eq!(origin("max-rooms"), ValueOrigin::File);
        assert_eq!(origin("max-inbox"), ValueOrigin::Default);
        assert_eq!(config.values["max-inbox"].text, "2MiB");
        let access = config.access();
        assert_eq!(
            (access["/"], access["/chat"]),
            (Access::Closed, Access::Open)
        );
    }

    #[test]
    fn the_default_namespace_is_served_unless_sections_name_others() {
        assert!(serve("--workers 1").namespaces().iter().eq(["/"]));
        let mut config = serve("--workers 1");
        let chat = NamespaceName("/chat".to_owned());
        config
            .settings
            .namespaces
            .insert(chat.clone(), Default::default());
        assert!(config.namespaces().iter().eq(["/chat"]));
        let mut config = serve("--namespace /");
        config.settings.namespaces.insert(chat, Default::default());
        assert!(config.namespaces().iter().eq(["/", "/chat"]));
    }

    #[test]
    fn every_option_has_an_environment_variable_named_after_it() {
        for option in serve_options() {
            let flag = option.get_long().expect("no positional arguments");
            let expected = format!("ROOMCAST_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(option.get_env(), Some(expected.as_ref()), "--{flag}");
        }
    }

    #[test]
    fn every_option_has_a_default_and_a_help() {
        for option in serve_options() {
            let flag = option.get_long().expect("no positional arguments");
            assert!(
                !option.get_default_values().is_empty(),
                "--{flag} has no default"
            );
            let help = option
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.len() > 20, "--{flag} has the help {help:?}");
        }
    }

    #[test]
    fn a_wrong_value_names_the_flag_and_the_environment_variable() {
        for option in serve_options() {
            let flag = option.get_long().expect("no positional arguments");
            let error = read(&format!("roomcast serve --{flag}=\u{1}")).unwrap_err();
            let text = error.to_string();
            let variable = format!("ROOMCAST_{}", flag.to_uppercase().replace('-', "_"));
            assert!(text.contains(&format!("--{flag}")), "{text}");
            assert!(text.contains(&variable), "{text}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn an_unknown_flag_is_named() {
        let error = read("roomcast serve --ping-intervall 3s").unwrap_err();
        assert!(error.to_string().contains("--ping-intervall"));
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn help_is_no_error() {
        for line in [
            "roomcast --help",
            "roomcast serve --help",
            "roomcast demo --help",
        ] {
            assert_eq!(read(line).unwrap_err().exit_code(), 0, "{line}");
        }
    }
}
