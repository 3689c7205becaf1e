//! The processes of a run: Redis, three nodes, and a proxy in front of Redis for each, in processes of their own.
//!
//! Addresses are chosen by the system and may change with a restart. Dropping the stage kills what it started,
//! and nothing else.

mod nodes;

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

pub(super) use nodes::{KEY, Servers};

use super::{
    Mode,
    balancer::Balancer,
    lock,
    proxy::{Proxy, Weather, Which},
};

/// A command for a process that is killed with the thread that starts it, if this system has `setpriv` of
/// util-linux: a load test that is killed itself drops nothing.
pub(super) fn command(program: impl AsRef<OsStr>) -> Command {
    static HAS_SETPRIV: OnceLock<bool> = OnceLock::new();
    let bind = ["--pdeathsig", "KILL"];
    let has_setpriv = HAS_SETPRIV.get_or_init(|| {
        let mut probe = Command::new("setpriv");
        probe.args(bind).arg("true").stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    });
    if *has_setpriv {
        let mut command = Command::new("setpriv");
        command.args(bind).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// A process of ours. Dropping it kills it.
pub(super) struct Process {
    child: Child,
    name: String,
}

impl Process {
    pub(super) fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let name = name.to_owned();
        Ok(Self { child, name })
    }

    /// Starts a server at a free port of this machine, and waits until it is there.
    pub(super) fn listen(
        name: &str,
        log: &Path,
        command: impl Fn(SocketAddr) -> anyhow::Result<Command>,
        is_there: impl Fn(SocketAddr) -> bool,
    ) -> anyhow::Result<(Self, SocketAddr)> {
        // The port was free a moment ago. If something else has taken it, another one will do.
        for _ in 0..5 {
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let mut process = Self::start(name, &mut command(address)?, log)?;
            let mut has_ended = false;
            wait_until(name, || {
                has_ended = process.has_ended()?;
                Ok(has_ended || is_there(address))
            })?;
            if !has_ended {
                return Ok((process, address));
            }
        }
        bail!("{name} does not start: see {}", log.display())
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have exited, and is not reaped before it is waited for, so the number is its own.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    pub(super) fn kill(&mut self) {
        // It may have exited.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self) -> anyhow::Result<()> {
        let name = self.name.clone();
        wait_until(&format!("the end of {name}"), || {
            Ok(self.child.try_wait()?.is_some())
        })
    }

    pub(super) fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where the nodes are, and whether a balancer would send clients there. Shared with clients, publishers and
/// the thread that watches.
#[derive(Default)]
pub(super) struct Places {
    pub(super) nodes: [Place; NODES],
    /// Where clients connect, if not to the nodes.
    pub(super) balancer: OnceLock<SocketAddr>,
}

#[derive(Default)]
pub(super) struct Place {
    addresses: Mutex<Option<Addresses>>,
    pub(super) is_up: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) clients: SocketAddr,
    pub(super) internal: SocketAddr,
}

impl Place {
    pub(super) fn addresses(&self) -> Option<Addresses> {
        *lock(&self.addresses)
    }
}

/// The settings of the processes of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Setup {
    /// Redis keeps its data over a restart.
    pub(super) is_durable: bool,
    pub(super) replica: Replica,
    /// The clock of the first node is an hour ahead, and that of the second one an hour behind.
    pub(super) has_wrong_clocks: bool,
    /// Clients connect through HAProxy, and nodes relay requests of sessions that others have.
    pub(super) has_balancer: bool,
}

/// The servers beside Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Replica {
    #[default]
    None,
    /// A replica, which the nodes do not know.
    Hidden,
    /// A replica, and a Sentinel, which the nodes ask.
    Sentinel,
}

/// The programs of the nodes.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) roomcast: PathBuf,
    /// The server of Node.js, `member.js`.
    pub(super) node_js: PathBuf,
    pub(super) servers: Servers,
    /// The time over which a node that is drained closes its connections.
    pub(super) drain_over: Duration,
}

pub(super) struct Stage {
    folder: PathBuf,
    programs: Programs,
    setup: Setup,
    modes: Vec<Mode>,
    pub(super) places: Arc<Places>,
    nodes: [Option<Process>; NODES],
    redis: Option<Process>,
    redis_address: SocketAddr,
    replica: Option<(Process, SocketAddr)>,
    sentinel: Option<(Process, SocketAddr)>,
    /// Nodes that clients of the three nodes do not use.
    strangers: Vec<Process>,
    proxies: Vec<Proxy>,
    balancer: Option<Balancer>,
    pub(super) random: fastrand::Rng,
}

impl Stage {
    pub(super) fn start(
        folder: &Path,
        programs: Programs,
        modes: &[Mode],
        setup: Setup,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut stage = Self {
            folder: folder.to_owned(),
            programs,
            setup,
            modes: modes.to_vec(),
            places: Arc::default(),
            nodes: [None, None, None],
            redis: None,
            redis_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            replica: None,
            sentinel: None,
            strangers: Vec::new(),
            proxies: Vec::new(),
            balancer: None,
            random: super::random(),
        };
        stage.start_redis()?;
        stage.start_replica()?;
        for _ in 0..NODES {
            stage.proxies.push(Proxy::start(stage.redis_address)?);
        }
        for node in 0..NODES {
            stage.start_node(node)?;
        }
        if setup.has_balancer {
            let nodes = stage.places.nodes.iter().filter_map(Place::addresses);
            let balancer = Balancer::start(folder, &nodes.collect::<Vec<_>>())?;
            stage.places.balancer.get_or_init(|| balancer.address);
            stage.balancer = Some(balancer);
        }
        Ok(stage)
    }

    /// The processes that are there for the whole run, by name.
    pub(super) fn processes(&self) -> Vec<(String, u32)> {
        let nodes = self.nodes.iter().flatten();
        let nodes = nodes.map(|process| (process.name.clone(), process.pid()));
        let redis = self
            .redis
            .iter()
            .map(|redis| ("Redis".to_owned(), redis.pid()));
        nodes.chain(redis).collect()
    }

    /// Starts a node.
    pub(super) fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        let name = format!("node{}", node + 1);
        let (process, found) = match self.programs.servers {
            Servers::NodeClassic => self.node_js_process(&name, node, "classic")?,
            Servers::NodeStreams => self.node_js_process(&name, node, "streams")?,
            Servers::Roomcast => self.node_process(&name, node, |command| {
                let offset = ["+1h", "-1h"].get(node);
                let offset = offset.filter(|_| self.setup.has_wrong_clocks);
                if let (Some(offset), Some(library)) = (offset, faketime()) {
                    command
                        .env("LD_PRELOAD", library)
                        .env("FAKETIME", offset)
                        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
                }
            })?,
        };
        *lock(&self.places.nodes[node].addresses) = Some(found);
        if let Some(balancer) = &mut self.balancer {
            balancer.node_moved(node, found)?;
        }
        self.nodes[node] = Some(process);
        Ok(())
    }

    /// Starts a server of Node.js as one more member of the cluster. Returns it as the only place of its clients and
    /// publishers.
    pub(super) fn start_member(&mut self) -> anyhow::Result<Arc<Places>> {
        let (process, found) = self.node_js_process("member", 0, "classic")?;
        self.strangers.push(process);
        let places = Places::default();
        places.balancer.get_or_init(|| found.clients);
        *lock(&places.nodes[0].addresses) = Some(found);
        places.nodes[0].is_up.store(true, Relaxed);
        Ok(Arc::new(places))
    }

    /// Starts a node that does not belong to the cluster.
    pub(super) fn start_stranger(&mut self, options: &[&str]) -> anyhow::Result<Addresses> {
        let name = format!("stranger{}", self.strangers.len() + 1);
        let (process, found) = self.node_process(&name, 0, |command| {
            command.args(options);
        })?;
        self.strangers.push(process);
        Ok(found)
    }

    /// Sends a node a signal.
    pub(super) fn signal(&self, node: usize, signal: Signal) {
        if let Some(process) = &self.nodes[node] {
            process.signal(signal);
        }
    }

    pub(super) fn drain_over(&self) -> Duration {
        self.programs.drain_over
    }

    /// Waits until a node has ended by itself.
    pub(super) fn await_end(&mut self, node: usize) -> anyhow::Result<()> {
        self.nodes[node].as_mut().map_or(Ok(()), Process::wait)
    }

    pub(super) fn kill_node(&mut self, node: usize) {
        self.nodes[node] = None;
    }

    /// Whether every node that runs is ready.
    pub(super) fn is_ready(&self) -> bool {
        let mut places = self.places.nodes.iter().zip(&self.nodes);
        places.all(|(place, process)| process.is_none() || place.is_up.load(Relaxed))
    }

    /// Starts Redis, behind the proxies if there are some.
    pub(super) fn start_redis(&mut self) -> anyhow::Result<()> {
        let durable = if self.setup.is_durable { "yes" } else { "no" };
        let (process, address) = self.start_server("redis", |command, _| {
            // A reply means that the data are kept, also while the disk is busy.
            command.args(["--appendonly", durable, "--appendfsync", "always"]);
            Ok(())
        })?;
        self.redis = Some(process);
        self.redis_address = address;
        self.lead_to(address);
        Ok(())
    }

    fn start_replica(&mut self) -> anyhow::Result<()> {
        if self.setup.replica == Replica::None {
            return Ok(());
        }
        let primary = self.redis_address;
        let replica = self.start_server("replica", |command, _| {
            let port = primary.port().to_string();
            command.args(["--appendonly", "no", "--replicaof", "127.0.0.1", &port]);
            Ok(())
        })?;
        let info = || replication(replica.1);
        wait_until("the replica", || {
            Ok(info().is_ok_and(|info| info.contains("master_link_status:up")))
        })?;
        self.replica = Some(replica);
        if self.setup.replica == Replica::Sentinel {
            let settings = self.folder.join("sentinel.conf");
            let port = primary.port();
            let sentinel = self.start_server("sentinel", |command, own| {
                let text = format!(
                    "port {own}\nbind 127.0.0.1\nsentinel monitor {PRIMARY} 127.0.0.1 {port} 1\n\
                     sentinel down-after-milliseconds {PRIMARY} 1000\n\
                     sentinel failover-timeout {PRIMARY} 10000\n"
                );
                fs::write(&settings, text)?;
                *command = self::command("redis-server");
                command.arg(&settings).arg("--sentinel");
                Ok(())
            })?;
            let list = redis::cmd("SENTINEL").arg("REPLICAS").arg(PRIMARY).clone();
            wait_until("Sentinel", || {
                let known = ask(sentinel.1, &list).map(|reply| format!("{reply:?}"));
                Ok(known.is_ok_and(|known| known.contains("master-link-status")))
            })?;
            self.sentinel = Some(sentinel);
        }
        Ok(())
    }

    /// Starts a Redis or Sentinel.
    fn start_server(
        &self,
        name: &str,
        change: impl Fn(&mut Command, u16) -> anyhow::Result<()>,
    ) -> anyhow::Result<(Process, SocketAddr)> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        let start = |address: SocketAddr| {
            let mut command = command("redis-server");
            command
                .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
                .arg(&folder)
                .args(["--port", &address.port().to_string()]);
            change(&mut command, address.port())?;
            Ok(command)
        };
        let log = self.folder.join(format!("{name}.log"));
        let is_there = |address: SocketAddr| ask(address, &redis::cmd("PING")).is_ok();
        Process::listen(name, &log, start, is_there)
    }

    /// Has the proxies lead new connections to another Redis.
    fn lead_to(&self, address: SocketAddr) {
        for proxy in &self.proxies {
            proxy.lead_to(address);
        }
    }

    /// Kills the primary, and waits until Sentinel has promoted the replica.
    pub(super) fn fail_over(&mut self) -> anyhow::Result<()> {
        let (Some((_, sentinel)), Some(replica)) = (&self.sentinel, self.replica.take()) else {
            bail!("there is no replica");
        };
        let (sentinel, promoted) = (*sentinel, replica.1);
        self.redis = Some(replica.0);
        self.redis_address = promoted;
        let mut command = redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(PRIMARY);
        let port = promoted.port().to_string();
        wait_until("the failover", || {
            let named: Vec<String> = redis::from_redis_value(ask(sentinel, &command)?)?;
            let is_primary = replication(promoted)?.contains("role:master");
            Ok(named.get(1) == Some(&port) && is_primary)
        })
    }

    /// Promotes the replica, makes the old primary its replica, and has the name of the old one lead to the new
    /// one, while connections stay where they are.
    pub(super) fn demote(&mut self) -> anyhow::Result<()> {
        let replica = self.replica.take().context("there is no replica")?;
        let replica_of =
            |host: &str, port: &str| redis::cmd("REPLICAOF").arg(host).arg(port).clone();
        ask(replica.1, &replica_of("NO", "ONE"))?;
        self.lead_to(replica.1);
        let port = replica.1.port().to_string();
        self.ask_redis(&replica_of("127.0.0.1", &port))?;
        let demoted = self
            .redis
            .replace(replica.0)
            .context("there is no primary")?;
        self.replica = Some((demoted, self.redis_address));
        self.redis_address = replica.1;
        Ok(())
    }

    pub(super) fn kill_redis(&mut self) {
        self.redis = None;
    }

    /// A connection to Redis.
    pub(super) fn redis(&self) -> anyhow::Result<redis::Connection> {
        connect(self.redis_address)
    }

    /// Executes one command on Redis.
    pub(super) fn ask_redis(&self, command: &redis::Cmd) -> anyhow::Result<redis::Value> {
        ask(self.redis_address, command)
    }

    /// The modes of this run.
    pub(super) fn modes(&self) -> &[Mode] {
        &self.modes
    }

    /// Deletes the keys by which nodes know each other.
    pub(super) fn lose_leases(&self) -> anyhow::Result<()> {
        let value = self.ask_redis(redis::cmd("DEL").arg("socket.io-nodes"))?;
        if value != redis::Value::Int(1) {
            bail!("there are no leases in Redis");
        }
        Ok(())
    }

    /// Changes the weather between a node and Redis.
    pub(super) fn weather(&self, node: usize, which: Which, weather: Weather) -> usize {
        self.proxies[node].set(which, weather)
    }

    /// Resets a random connection of a node to Redis.
    pub(super) fn reset_one(&mut self, node: usize) {
        self.proxies[node].reset_one(&mut self.random);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for node in self.nodes.iter().flatten() {
            // A process that is stopped does not notice anything else.
            node.signal(Signal::CONT);
        }
    }
}

/// Executes one command on a server.
fn ask(server: SocketAddr, command: &redis::Cmd) -> anyhow::Result<redis::Value> {
    command.query(&mut connect(server)?).context("Redis")
}

fn connect(server: SocketAddr) -> anyhow::Result<redis::Connection> {
    let client = redis::Client::open(format!("redis://{server}"))?;
    let connection = client.get_connection_with_timeout(REDIS_PATIENCE)?;
    connection.set_read_timeout(Some(REDIS_PATIENCE))?;
    Ok(connection)
}

/// The role that a Redis server states.
fn replication(server: SocketAddr) -> anyhow::Result<String> {
    let info = ask(server, redis::cmd("INFO").arg("replication"))?;
    Ok(redis::from_redis_value(info)?)
}

/// The library of Debian's package libfaketime, which shows a process another time.
pub(super) fn faketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?;
    let mut libraries = folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    libraries.find(|library| library.exists())
}

/// Waits for a condition, within the time that anything may take on a busy machine.
pub(super) fn wait_until(
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Shows progress, if anybody can see it.
pub(super) fn progress(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

impl Places {
    /// The nodes that a balancer would use, beginning with this one.
    pub(super) fn up_from(&self, first: usize) -> Option<usize> {
        (0..NODES)
            .map(|step| (first + step) % NODES)
            .find(|node| self.nodes[*node].is_up.load(Relaxed))
    }
}

pub(super) const NODES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(90);
const REDIS_PATIENCE: Duration = Duration::from_secs(5);
/// The name of the primary for Sentinel.
const PRIMARY: &str = "main";
