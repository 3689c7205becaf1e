//! The life of the process: bind, build, serve, drain.
//!
//! ```text
//!  bind ports, build server     first signal    grace is over   all are closed   clients are gone
//! ──────────────┬────────────────────┬───────────────┬──────────────────┬───────────────┬──▶ exit 0
//! readyz:       │       ready        │ draining      │                  │               │
//! new clients:  │      accepted      │ accepted      │ 503              │ refused       │
//! open ones:    │       served       │ served        │ closed evenly    │ handlers end  │
//!                                    └── second signal: the rest at once ┴▶ further signal: exit 1
//! ```
//!
//! The process ends after `--drain-timeout` at the latest, with status 1.
//!
//! While Redis is unavailable, building is repeated with a back-off. Readiness gives the
//! reason, and the first signal ends the process.
//!
//! Every failure at startup becomes an error here that names the remedy.
//!
//! **Why in this order.** Ports are bound before anything else, because an address in
//! use is the most common mistake, and because clients that connect early wait in the
//! kernel's queue instead of being refused. The internal port is served before the
//! server is built, so that `/readyz` can return the reason while Redis is unreachable. The
//! public port is served last, when every part that a client could reach has been
//! started.
//!
//! Stopping goes in the opposite order: first new clients, then the open ones, then handlers and
//! their remaining hook requests, and finally the spans.

use std::{
    io::{self, IsTerminal as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use clap::ValueEnum as _;
use roomcast::{BuildError, Drain, InvalidNetwork, Tls};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::sleep,
};
use tracing::{info, warn};

#[cfg(feature = "otlp")]
use super::traces::Traces;
use super::{
    access::{self, Access},
    admin::{Admin, Health, Pages, View},
    api::{self, Api},
    auth::KeyError,
    build::{self, Built, Defined, Unbuilt},
    cluster,
    config::Config,
    demo::{self, Demo},
    doors::{Doors, Syncano, pakyow::Pakyow},
    hooks::Hooks,
    limits::LiveLimits,
    log_client::LogClients,
    logging::Log,
    notify::Notify,
    relay::Relay,
    reload::{Reload, Reloadable},
    settings::placed,
    tls::{self, Ports},
    values::Workers,
    vitals::Vitals,
};

/// Time between the first two attempts to build the server. It doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(250);

const MAX_PAUSE: Duration = Duration::from_secs(4);

/// The reasons why the program ends without a graceful stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(
        "{address} is in use by another program: choose another port with {flag} or {variable}, \
         or 0 for any free one"
    )]
    InUse {
        address: SocketAddr,
        flag: &'static str,
        variable: &'static str,
    },
    #[error("cannot listen on {address} ({source}): choose another with {flag} or {variable}")]
    Listen {
        address: SocketAddr,
        flag: &'static str,
        variable: &'static str,
        source: io::Error,
    },
    #[error("these options cannot be combined: {0}")]
    Build(BuildError),
    #[error("{0}")]
    Settings(String),
    /// A mistake in a section, which only the file can have.
    #[error("{0}")]
    Section(String),
    #[error("{0}")]
    Metrics(#[from] prometheus::Error),
    #[error("{0} (Redis is set by --redis or ROOMCAST_REDIS)")]
    Cluster(BuildError),
    #[error("{0} (set with --trusted-proxies or ROOMCAST_TRUSTED_PROXIES)")]
    Proxies(InvalidNetwork),
    #[error("tokens cannot be verified: {0}")]
    Keys(KeyError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(
        "clients were still connected after {} s and were cut off: allow more time with \
         --drain-timeout or ROOMCAST_DRAIN_TIMEOUT", .0.as_secs_f32()
    )]
    DrainTimeout(Duration),
    #[error("a further signal cut the stop short")]
    Interrupted,
}

impl From<Unbuilt> for RunError {
    fn from(error: Unbuilt) -> Self {
        match error {
            Unbuilt::Build(error @ BuildError::Bus(_)) => Self::Cluster(error),
            Unbuilt::Build(BuildError::Journal { namespace, problem }) => Self::Section(format!(
                "namespaces.{namespace:?}: `journal.age` is {problem}"
            )),
            Unbuilt::Build(error) => Self::Build(error),
            Unbuilt::Keys(error) => Self::Keys(error),
            Unbuilt::Proxies(error) => Self::Proxies(error),
        }
    }
}

impl RunError {
    /// The exit status: 2 for wrong settings, which a restart does not correct.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Build(_)
            | Self::Settings(_)
            | Self::Section(_)
            | Self::Proxies(_)
            | Self::Keys(_) => 2,
            _ => 1,
        }
    }

    /// The text, with file and line if the mistake is in a section of the file.
    pub(crate) fn text(&self, file: Option<&Path>) -> String {
        match (self, file) {
            (Self::Section(_) | Self::Keys(_), Some(file)) => placed(file, &self.to_string()),
            _ => self.to_string(),
        }
    }
}

/// The parts that have their own sections in the file. Nothing is started and nobody is asked.
struct Sections {
    hooks: Hooks,
    syncano: Option<Arc<Syncano>>,
    pakyow: Option<Arc<Pakyow>>,
}

impl Sections {
    fn new(config: &Config) -> Result<Self, RunError> {
        let limits = (&config.limits).into();
        let redis = cluster::redis(&config.redis, &config.cluster);
        let (hooks, access) = (&config.settings.hooks, config.access());
        let hooks = Hooks::new(hooks, limits, &access, redis.clone()).map_err(RunError::Section)?;
        let doors = &config.settings.doors;
        let syncano = Syncano::new(&doors.syncano, redis.as_ref(), &hooks);
        let pakyow = doors.pakyow.as_ref();
        let pakyow = pakyow.map(|settings| Pakyow::new(settings, limits, &hooks, redis));
        Ok(Self {
            syncano: syncano.map_err(RunError::Section)?,
            pakyow: pakyow.transpose().map_err(RunError::Section)?,
            hooks,
        })
    }
}

/// Builds all that [`run`] would build, without binding a port and without a connection, so that
/// a check of the settings finds the same mistakes.
pub(crate) fn check(config: &Config) -> Result<(), RunError> {
    tls::check(config).map_err(RunError::Settings)?;
    let mut config = config.clone();
    config.redis.redis.0 = None;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let Sections { hooks, pakyow, .. } = Sections::new(&config)?;
        let parts = Defined {
            hooks: &hooks,
            view: &View::new(None),
            demo: None,
            pakyow: pakyow.as_ref(),
            address: None,
            asks_issuer: false,
        };
        build::server(&config, &parts).await?;
        Ok(())
    });
    runtime.shutdown_background();
    outcome
}

/// Builds the runtime that serves the connections.
pub(crate) fn runtime(workers: Workers) -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Workers::Exactly(number) = workers {
        builder.worker_threads(number);
    }
    builder.thread_name("worker").enable_all().build()
}

/// Serves until a signal arrives, then disconnects the clients. `is_demo` adds the page. A hangup
/// reads the settings again.
pub(crate) async fn run(config: Config, is_demo: bool, log: &Log) -> Result<(), RunError> {
    // Before all else: a signal that arrives before its handler is installed ends the
    // process at once, with the ports half open.
    let mut signals = Signals::new()?;
    let tls = Ports::start(&config.tls).map_err(RunError::Settings)?;
    let internal = bind(config.listen.internal_listen, INTERNAL_LISTEN)?;
    let public = bind(config.listen.listen, LISTEN)?;
    let health = Arc::new(Health::default());
    let admin = Admin::start(internal, Arc::clone(&health), tls.internal.as_ref())?;
    let limits = (&config.limits).into();
    let redis = cluster::redis(&config.redis, &config.cluster);
    let Sections {
        hooks,
        syncano,
        pakyow,
    } = Sections::new(&config)?;
    let relay = relay(&config, tls.internal.as_ref())?;
    let view = View::new(dialect(&config));
    let settings = &config.settings.api;
    let own = settings.listen.map(|address| bind(address, API_LISTEN));
    let own = own.transpose()?;
    let demo = is_demo.then(|| Arc::new(Demo::default()));
    let parts = Defined {
        hooks: &hooks,
        view: &view,
        demo: demo.as_ref(),
        pakyow: pakyow.as_ref(),
        address: relay.as_ref().map(Relay::address),
        asks_issuer: true,
    };
    // Building may wait for Redis for ever, so a signal must be able to end it. No
    // client is connected yet, so there is nothing to drain.
    let built = tokio::select! {
        built = build_when_possible(&config, &parts, &health) => built,
        signal = signals.next(async || warn!("SIGHUP is ignored until the server is built")) => {
            info!(signal, "stopped before the server was built");
            return Ok(());
        }
    };
    let Built {
        server,
        auth,
        policies,
        users,
        followed,
        presence,
    } = built?;
    let nodes = relay.as_ref().map(Relay::verifying);
    let relaying = relay
        .map(|relay| relay.start(&config, &server))
        .transpose()?;
    // These parts need the server's node and registry, and must run before the first
    // client.
    presence.start(&server)?;
    hooks.started(&server)?;
    followed.set(&server, &config.operation.log_client);
    #[cfg(feature = "otlp")]
    let traces = Traces::start(&config.traces, server.node().as_str()).map_err(io::Error::other)?;
    if let Some(pakyow) = &pakyow {
        pakyow.started(&server)?;
    }
    let vitals = Vitals::start(server.clone(), log.dropped_lines())?;
    let api = Api::new(
        server.clone(),
        auth.clone(),
        presence,
        settings.clone(),
        limits,
        api::Store::new(redis.as_ref()),
    )?;
    let doors = Doors::new(&config, &server, &api, auth.clone(), policies.clone())?;
    let calls = calls(&config, &api, pakyow.as_ref(), &doors);
    // On the internal port, calls got 503 until now, see [`api::starting`].
    let own = match own {
        Some(listener) => Some(Admin::serve(listener, calls, tls.internal.as_ref())?),
        None => {
            health.serving_api(calls);
            None
        }
    };
    health.serving(vitals);
    admin.show(&view, &server, &health);
    let pages = Pages::new(view, Arc::clone(&api), server.registry(), is_demo)?;
    health.serving_pages(&pages);
    let mut router = server.router().merge(doors.router(syncano.clone()));
    let address = public.local_addr()?;
    let (internal, node) = (admin.address(), server.node());
    info!(%address, %internal, path = config.protocol.path, %node, "listening");
    if let Some(api) = own.as_ref().map(Admin::address) {
        info!(address = %api, "the API has its own listener");
    }
    if let Some(demo) = &demo {
        router = router.merge(demo::router(
            config.protocol.bundles.client_files.0.is_some(),
        ));
        demo.start(&server, address, redis.is_some());
        demo::announce(address, internal)?;
    } else {
        let mut table = config.access();
        let syncano = &config.settings.doors.syncano;
        // The door lets its own clients in, so being closed to others is not a mistake.
        table.retain(|name, access| *access != Access::Closed || !syncano.has_namespace(name));
        access::announce(&table);
        let watched = server.clone();
        tokio::spawn(async move { access::watch_foreign_servers(watched, &table).await });
    }
    if let Some(pakyow) = &pakyow {
        router = pakyow.before(&doors, router);
    }
    // The listener queues connections already, so the service manager may continue.
    let notify = Notify::from_environment();
    notify.ready();
    let (stop, stopped) = oneshot::channel::<()>();
    let listener = tokio::net::TcpListener::from_std(public)?;
    let mut serving = server
        .serve(listener, router)
        .with_graceful_shutdown(async move {
            let _ = stopped.await;
        });
    if config.listen.proxy_protocol.0 {
        serving = serving.with_proxy_protocol();
    }
    tls.register(&server)?;
    if let Some(public) = &tls.public {
        serving = serving.with_tls(public.clone());
    }
    let operation = &config.operation;
    // Not ready first: balancers notice it while the server still accepts clients for
    // the grace.
    let drain = async || {
        health.draining();
        notify.stopping();
        let (grace, over) = (operation.drain_grace.0, operation.drain_over.0);
        let drain = Drain { grace, over };
        if let Some(relaying) = &relaying {
            relaying.draining(drain);
        }
        server.drain(drain).await;
    };
    let close = async || {
        // No new client may connect while connections close. Hooks are stopped before, because
        // waiting events of connections have to end; flushed after, because each closed socket
        // leaves a disconnect.
        drop(stop);
        if let Some(relaying) = &relaying {
            relaying.closing();
        }
        hooks.stopping();
        server.close().await;
        hooks.flush().await;
    };
    // All are prepared before the first one is replaced, so a mistake in the file
    // changes nothing.
    let mut parts: Vec<Box<dyn Reloadable>> = vec![
        Box::new(log.level()),
        Box::new(LogClients(followed, server.clone())),
        Box::new(LiveLimits(server.clone(), users)),
        Box::new(api),
        Box::new(policies),
        Box::new(hooks.clone()),
        Box::new(tls),
    ];
    parts.extend(nodes.map(|nodes| Box::new(nodes) as Box<dyn Reloadable>));
    parts.extend(syncano.map(|door| Box::new(door) as Box<dyn Reloadable>));
    parts.extend(pakyow.map(|door| Box::new(door) as Box<dyn Reloadable>));
    parts.extend(auth.map(|auth| Box::new(auth) as Box<dyn Reloadable>));
    let mut reload = Reload::new(&config, &server, parts)?;
    let mut was_asked = false;
    supervise(
        async { serving.await },
        Stop { drain, close },
        async || next_stop(&mut signals, &health, &mut reload, &mut was_asked).await,
        operation.drain_timeout.0,
    )
    .await?;
    // Requests of other nodes are served until the connections here are closed, because
    // those belong to sessions that live here.
    if let Some(relaying) = relaying {
        relaying.end().await;
    }
    #[cfg(feature = "otlp")]
    traces.end().await;
    info!("stopped");
    Ok(())
}

/// The listener for requests that other nodes relay, if the cluster has a key.
fn relay(config: &Config, certificates: Option<&Tls>) -> Result<Option<Relay>, RunError> {
    if config.relay.cluster_key.0.is_empty() {
        return Ok(None);
    }
    let listener = bind(config.relay.relay_listen, RELAY_LISTEN)?;
    Relay::new(config, listener, certificates)
        .map(Some)
        .map_err(RunError::Settings)
}

/// The calls of the API, and those of doors.
fn calls(
    config: &Config,
    api: &Arc<Api>,
    pakyow: Option<&Arc<Pakyow>>,
    doors: &Arc<Doors>,
) -> axum::Router {
    let settings = &config.settings.api;
    match pakyow {
        Some(pakyow) => {
            let control = pakyow.control(doors, settings.max_body, settings.timeout);
            api.router().merge(control)
        }
        None => api.router(),
    }
}

/// How the node speaks to the others of its cluster, in the words of the options.
fn dialect(config: &Config) -> Option<String> {
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map(|value| value.get_name().to_owned())
    };
    config.redis.redis.0.as_ref()?;
    let dialect = name(config.redis.redis_dialect.to_possible_value())?;
    let parser = name(config.redis.redis_parser.to_possible_value())?;
    let signed = config.redis.signing().map_or("", |_| ", signed");
    Some(format!("{dialect}, {parser}{signed}"))
}

/// Builds the server, if need be again and again until Redis is available.
/// Only errors that may pass are repeated. A wrong option ends the process at once,
/// because a restart would not help either, and the operator has to see it.
async fn build_when_possible(
    config: &Config,
    parts: &Defined<'_>,
    health: &Health,
) -> Result<Built, Unbuilt> {
    let mut pause = MIN_PAUSE;
    loop {
        match build::server(config, parts).await {
            Err(error) if error.is_temporary() => {
                health.waiting(error.to_string());
                warn!(%error, "waiting for Redis");
            }
            built => return built,
        }
        sleep(pause).await;
        // Many nodes wait for the same Redis, and it must not be met by all of them
        // every few milliseconds when it returns.
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// The next reason to stop. A drain by request is usually followed by the SIGTERM of the
/// process manager. It must not cut the drain short, so it counts as the same stop.
async fn next_stop(
    signals: &mut Signals,
    health: &Health,
    reload: &mut Reload,
    was_asked: &mut bool,
) -> &'static str {
    loop {
        tokio::select! {
            signal = signals.next(async || reload.run().await) => {
                if !std::mem::take(was_asked) {
                    return signal;
                }
                info!(signal, "draining already: a further signal closes the remaining connections at once");
            }
            () = health.drain_requested() => {
                *was_asked = true;
                return "a request to drain";
            }
        }
    }
}

/// The two parts of a graceful stop.
struct Stop<D, C> {
    /// Moves the clients to other nodes. May be dropped, and then closing takes them all at once.
    drain: D,
    /// Closes the remaining connections, and waits for them.
    close: C,
}

/// Serves until the first signal, then drains and closes. A further signal skips the rest
/// of the drain, or ends the stop if there is none. So does the end of the time.
///
/// ```text
///  serving ── signal ──► drain ── done, or signal ──► close ── connections gone ──► Ok
///     │                    └── time is up ──────────────┴── time is up ───► DrainTimeout
///     └── fails ──► Err                                └── signal ─────────► Interrupted
/// ```
///
/// The server is polled in all three phases, because clients are served until they are
/// closed.
async fn supervise(
    serving: impl Future<Output = io::Result<()>>,
    stop: Stop<impl AsyncFnOnce(), impl AsyncFnOnce()>,
    mut signal: impl AsyncFnMut() -> &'static str,
    drain_timeout: Duration,
) -> Result<(), RunError> {
    let mut serving = pin!(serving);
    tokio::select! {
        served = &mut serving => return Ok(served?),
        name = signal() => {
            info!(signal = name, "draining: a further signal closes the remaining connections at once");
        }
    }
    // One deadline covers draining and closing: the service manager kills after a total
    // time.
    let mut deadline = pin!(sleep(drain_timeout));
    tokio::select! {
        // A signal that arrives with the end of the drain is one that follows it.
        biased;
        served = &mut serving => return Ok(served?),
        () = (stop.drain)() => {}
        () = &mut deadline => return Err(RunError::DrainTimeout(drain_timeout)),
        name = signal() => {
            info!(signal = name, "closing the remaining connections at once: a further signal ends the program");
        }
    }
    tokio::select! {
        biased;
        (served, ()) = async { tokio::join!(serving, (stop.close)()) } => Ok(served?),
        () = &mut deadline => Err(RunError::DrainTimeout(drain_timeout)),
        _ = signal() => Err(RunError::Interrupted),
    }
}

/// The signals that stop the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Whether a hangup means that the terminal was closed. Without one, service managers send it
    /// to have a program read its settings again.
    has_terminal: bool,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            has_terminal: io::stderr().is_terminal(),
        })
    }

    /// The name of the next signal that stops the process. A hangup without a terminal calls
    /// `on_hangup` instead.
    async fn next(&mut self, mut on_hangup: impl AsyncFnMut()) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    if self.has_terminal {
                        return "SIGHUP";
                    }
                    tokio::select! {
                        // A reload may take seconds, for example for a set of keys, and
                        // must not delay a stop.
                        () = on_hangup() => {}
                        _ = self.terminate.recv() => return "SIGTERM",
                        _ = self.interrupt.recv() => return "SIGINT",
                    }
                }
            }
        }
    }
}

/// The flag and the environment variable of an address.
type Setting = (&'static str, &'static str);

const LISTEN: Setting = ("--listen", "ROOMCAST_LISTEN");

const INTERNAL_LISTEN: Setting = ("--internal-listen", "ROOMCAST_INTERNAL_LISTEN");

const RELAY_LISTEN: Setting = ("--relay-listen", "ROOMCAST_RELAY_LISTEN");

const API_LISTEN: Setting = ("listen in the section [api]", "the file of --config");

fn bind(address: SocketAddr, (flag, variable): Setting) -> Result<TcpListener, RunError> {
    let listener = TcpListener::bind(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => RunError::InUse {
            address,
            flag,
            variable,
        },
        _ => RunError::Listen {
            address,
            flag,
            variable,
            source,
        },
    })?;
    // The standard library lets 128 connections wait, which is too few when all clients of a dead
    // node reconnect. The kernel reduces this to net.core.somaxconn.
    rustix::net::listen(&listener, i32::MAX).map_err(io::Error::from)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        net::TcpStream,
    };

    use super::*;

    const LONG: Duration = Duration::MAX;
    const SHORT: Duration = Duration::from_millis(1);

    /// Runs to the end with this many signals.
    fn supervised(
        signals: usize,
        serving: impl Future<Output = io::Result<()>>,
        stop: Stop<impl AsyncFnOnce(), impl AsyncFnOnce()>,
        drain_timeout: Duration,
    ) -> Result<(), RunError> {
        let mut left = signals;
        let signal = async || match left.checked_sub(1) {
            Some(fewer) => {
                left = fewer;
                "SIGTERM"
            }
            None => pending().await,
        };
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(supervise(serving, stop, signal, drain_timeout))
    }

    #[test]
    fn one_signal_drains_and_ends_well() {
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = async move {
            let _ = stopped.await;
            Ok(())
        };
        let (drain, close) = (async || (), async || drop(stop));
        let outcome = supervised(1, serving, Stop { drain, close }, LONG);
        assert!(outcome.is_ok(), "{outcome:?}");
    }

    #[test]
    fn a_second_signal_skips_the_drain_and_a_third_ends_the_stop() {
        for (signals, is_cut) in [(2, false), (3, true)] {
            let mut has_closed = false;
            let (stop, stopped) = oneshot::channel::<()>();
            let serving = async move {
                let _ = stopped.await;
                if is_cut {
                    pending::<()>().await;
                }
                Ok(())
            };
            let drain = async || pending().await;
            let close = async || {
                has_closed = true;
                drop(stop);
            };
            let outcome = supervised(signals, serving, Stop { drain, close }, LONG);
            match outcome {
                Err(RunError::Interrupted) if is_cut => {}
                Ok(()) if !is_cut => {}
                outcome => panic!("{outcome:?}"),
            }
            assert!(has_closed);
        }
    }

    #[test]
    fn a_second_signal_ends_a_stop_whose_drain_is_over() {
        let (drain, close) = (async || (), async || pending().await);
        let outcome = supervised(2, pending(), Stop { drain, close }, LONG);
        assert!(matches!(outcome, Err(RunError::Interrupted)), "{outcome:?}");
    }

    #[test]
    fn a_drain_ends_when_its_time_is_up() {
        let (drain, close) = (async || pending().await, async || ());
        let outcome = supervised(1, pending(), Stop { drain, close }, SHORT);
        assert!(matches!(outcome, Err(RunError::DrainTimeout(SHORT))));
        let (drain, close) = (async || (), async || ());
        let outcome = supervised(1, pending(), Stop { drain, close }, SHORT);
        let text = outcome.unwrap_err().to_string();
        assert!(
            text.contains("--drain-timeout or ROOMCAST_DRAIN_TIMEOUT"),
            "{text}"
        );
    }

    #[test]
    fn a_server_that_stops_by_itself_is_an_error_if_it_says_so() {
        let broken = ready(Err(io::Error::other("broken")));
        let (drain, close) = (async || (), async || ());
        let outcome = supervised(0, broken, Stop { drain, close }, LONG);
        assert_eq!(outcome.unwrap_err().to_string(), "broken");
    }

    #[test]
    fn a_port_in_use_is_named_with_the_way_to_choose_another() {
        let holder = bind(SocketAddr::from(([127, 0, 0, 1], 0)), LISTEN).unwrap();
        let address = holder.local_addr().unwrap();
        let text = bind(address, LISTEN).unwrap_err().to_string();
        assert!(text.starts_with(&format!("{address} is in use")), "{text}");
        assert!(text.contains("--listen or ROOMCAST_LISTEN"), "{text}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn as_many_connections_may_wait_as_the_kernel_allows() {
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let most: usize = most.trim().parse().unwrap();
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), LISTEN).unwrap();
        let address = listener.local_addr().unwrap();
        // One that does not fit is not refused: its connect waits until there is room.
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
        let waiting: Vec<_> = (0..most.min(300)).map(connect).collect();
        assert_eq!(waiting.len(), most.min(300));
    }

    #[test]
    fn an_address_of_another_machine_is_refused_with_the_setting() {
        let text = bind("192.0.2.1:3001".parse().unwrap(), INTERNAL_LISTEN)
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("cannot listen on 192.0.2.1:3001"),
            "{text}"
        );
        assert!(
            text.contains("--internal-listen or ROOMCAST_INTERNAL_LISTEN"),
            "{text}"
        );
    }
}
