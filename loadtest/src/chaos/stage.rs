//! What a run needs: Redis, three nodes, and a proxy in front of Redis for each, in processes of their own.
//!
//! Addresses are chosen by the system and may change with a restart. Dropping the stage kills what it started,
//! and nothing else.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    Mode, lock,
    proxy::{Proxy, Weather, Which},
};

/// A process of ours. Dropping it kills it.
pub(super) struct Process {
    child: Child,
    name: String,
}

impl Process {
    fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
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

    fn has_ended(&mut self) -> anyhow::Result<bool> {
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

/// What is special about the processes of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Setup {
    /// Redis keeps its data over a restart.
    pub(super) is_durable: bool,
}

pub(super) struct Stage {
    folder: PathBuf,
    program: PathBuf,
    setup: Setup,
    modes: Vec<Mode>,
    pub(super) places: Arc<Places>,
    nodes: [Option<Process>; NODES],
    redis: Option<Process>,
    redis_address: SocketAddr,
    proxies: Vec<Proxy>,
    pub(super) random: fastrand::Rng,
}

impl Stage {
    pub(super) fn start(
        folder: &Path,
        program: &Path,
        modes: &[Mode],
        setup: Setup,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut stage = Self {
            folder: folder.to_owned(),
            program: program.to_owned(),
            setup,
            modes: modes.to_vec(),
            places: Arc::default(),
            nodes: [None, None, None],
            redis: None,
            redis_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            proxies: Vec::new(),
            random: super::random(),
        };
        stage.start_redis()?;
        for _ in 0..NODES {
            stage.proxies.push(Proxy::start(stage.redis_address)?);
        }
        for node in 0..NODES {
            stage.start_node(node)?;
        }
        Ok(stage)
    }

    /// Starts a node, with its settings as a file and its log beside it.
    pub(super) fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        let name = format!("node{}", node + 1);
        let settings = self.folder.join(format!("{name}.toml"));
        fs::write(&settings, self.settings())?;
        let log = self.folder.join(format!("{name}.log"));
        let from = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let mut command = Command::new(&self.program);
        command
            .args([
                "serve",
                "--listen=127.0.0.1:0",
                "--internal-listen=127.0.0.1:0",
            ])
            .args(["--workers=1", "--drain-grace=1s", "--drain-over=3s"])
            .args([
                "--ping-interval=2s",
                "--ping-timeout=3s",
                "--redis-required=false",
            ])
            .arg(format!("--redis=redis://{}", self.proxies[node].address()))
            .arg(format!("--config={}", settings.display()));
        let mut process = Process::start(&name, &mut command, &log)?;
        let place = &self.places.nodes[node];
        let mut found = None;
        wait_until(&name, || {
            if process.has_ended()? {
                bail!("{name} has ended: see {}", log.display());
            }
            let text = fs::read(&log)?;
            let own = String::from_utf8_lossy(&text[from as usize..]);
            found = addresses(&own);
            Ok(found.is_some())
        })?;
        *lock(&place.addresses) = found;
        self.nodes[node] = Some(process);
        Ok(())
    }

    fn settings(&self) -> String {
        let mut text = format!("[[api.keys]]\nname = \"chaos\"\nhash = \"sha256:{KEY_HASH}\"\n");
        text.push_str("namespaces = [\"*\"]\nverbs = [\"emit\"]\n");
        for mode in &self.modes {
            let name = mode.namespace();
            let section = format!("\n[namespaces.\"{name}\"");
            text.push_str(&format!(
                "{section}]\naccess = \"open\"\nclient_rooms = true\n"
            ));
            if *mode != Mode::Plain {
                text.push_str(&format!("{section}.journal]\n"));
            }
            if *mode == Mode::Recovery {
                text.push_str(&format!("{section}.recovery]\n"));
            }
        }
        text
    }

    /// Sends a node a signal.
    pub(super) fn signal(&self, node: usize, signal: Signal) {
        if let Some(process) = &self.nodes[node] {
            process.signal(signal);
        }
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
        // The port was free a moment ago. If something else has taken it, another one will do.
        for _ in 0..5 {
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let mut command = Command::new("redis-server");
            let durable = if self.setup.is_durable { "yes" } else { "no" };
            command
                .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
                .arg(&self.folder)
                .args(["--port", &address.port().to_string()])
                .args(["--appendonly", durable]);
            let log = self.folder.join("redis.log");
            let mut process = Process::start("redis-server", &mut command, &log)?;
            let mut is_taken = false;
            wait_until("redis-server", || {
                is_taken = process.has_ended()?;
                Ok(is_taken || answers(address))
            })?;
            if is_taken {
                continue;
            }
            self.redis = Some(process);
            self.redis_address = address;
            for proxy in &self.proxies {
                proxy.lead_to(address);
            }
            return Ok(());
        }
        bail!("redis-server does not start")
    }

    pub(super) fn kill_redis(&mut self) {
        self.redis = None;
    }

    /// Executes one command on Redis.
    pub(super) fn ask_redis(&self, command: &redis::Cmd) -> anyhow::Result<redis::Value> {
        let client = redis::Client::open(format!("redis://{}", self.redis_address))?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        command.query(&mut connection).context("Redis")
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

/// The addresses that a node has logged.
fn addresses(log: &str) -> Option<Addresses> {
    let line = log
        .lines()
        .find(|line| line.contains("address=") && line.contains("internal="))?;
    let field = |name| {
        let (_, rest) = line.split_once(name)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    Some(Addresses {
        clients: field("address=")?,
        internal: field("internal=")?,
    })
}

fn answers(redis: SocketAddr) -> bool {
    let ping = || -> redis::RedisResult<String> {
        let client = redis::Client::open(format!("redis://{redis}"))?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(1))?;
        redis::cmd("PING").query(&mut connection)
    };
    ping().is_ok()
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

/// The key of the HTTP API. It is no secret, because the nodes of a run listen on this machine only.
pub(super) const KEY: &str = "chaos-key-of-the-table-of-faults";
/// Its SHA-256.
const KEY_HASH: &str = "a762cad2d276f9708503e39066dbaacd297aeee0681612ead902b3419a939b02";
