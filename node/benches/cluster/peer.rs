//! A server of the cluster as a child process, and the few words in which it is told what to do.
//!
//! It prints `{"listening": port}` when it is there, obeys one line of standard input after the
//! other, and answers each with a line of JSON. `peer.js` speaks the same.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::redis::{spare_port, spawn_on};

/// The room to which a server publishes that is told to.
pub(crate) const ROOM: &str = "room-0";

/// What a server can be told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    /// Emit to [`ROOM`], with so many emits outstanding. The answer tells how many there have been
    /// since the server started.
    Publish {
        duration: Duration,
        concurrency: usize,
    },
    /// Have the server's sockets join rooms of their own and leave them again.
    Churn { joins: usize },
    /// Tell how many messages of the bus came and how many of them were dropped.
    Received,
}

impl Command {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let command = words.next()?;
        let mut number = || words.next()?.parse::<u32>().ok();
        Some(match command {
            "publish" => Self::Publish {
                duration: Duration::from_millis(number()?.into()),
                concurrency: number()? as usize,
            },
            "churn" => Self::Churn {
                joins: number()? as usize,
            },
            "received" => Self::Received,
            _ => return None,
        })
    }

    fn line(self) -> String {
        match self {
            Self::Publish {
                duration,
                concurrency,
            } => format!("publish {} {concurrency}\n", duration.as_millis()),
            Self::Churn { joins } => format!("churn {joins}\n"),
            Self::Received => "received\n".to_owned(),
        }
    }
}

/// When short-lived rooms are joined: so many at a time, at equal intervals. They are left
/// [`LIFETIME`](Self::LIFETIME) steps later.
pub(crate) struct Steps {
    joined: usize,
    joins: usize,
}

pub(crate) struct Step {
    /// Since the beginning.
    pub(crate) at: Duration,
    pub(crate) joins: Range<usize>,
}

impl Steps {
    /// Joins in a step. With this interval, 20,000 a second.
    const JOINS: usize = 100;
    const INTERVAL: Duration = Duration::from_millis(5);
    pub(crate) const LIFETIME: usize = 10;

    pub(crate) fn new(joins: usize) -> Self {
        Self { joined: 0, joins }
    }
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let joins = self.joined..self.joins.min(self.joined + Self::JOINS);
        let at = Self::INTERVAL * u32::try_from(self.joined / Self::JOINS).unwrap_or(u32::MAX);
        self.joined = joins.end;
        (!joins.is_empty()).then_some(Step { at, joins })
    }
}

/// The name of a room that lives for a moment.
pub(crate) fn short_lived(number: usize) -> String {
    format!("short-{number:07}")
}

/// Prints a line for whoever has started this server.
pub(crate) fn tell(line: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Which program serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The one that hears.
    BusFloor,
    /// The one that publishes and subscribes.
    PublishFloor,
    Roomcast {
        sharded: bool,
    },
    NodeJs {
        sharded: bool,
    },
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BusFloor | Self::PublishFloor => "floor",
            Self::Roomcast { sharded: false } => "roomcast",
            Self::Roomcast { sharded: true } => "roomcast sharded",
            Self::NodeJs { sharded: false } => "node",
            Self::NodeJs { sharded: true } => "node sharded",
        }
    }

    pub(crate) fn is_sharded(self) -> bool {
        matches!(
            self,
            Self::Roomcast { sharded: true } | Self::NodeJs { sharded: true }
        )
    }
}

/// The packages that the Node.js servers consist of.
#[derive(Clone, Debug)]
pub(crate) struct Packages(PathBuf);

impl Packages {
    /// Looks where the client tests install them; an error says what is missing.
    pub(crate) fn find() -> Result<Self, String> {
        let version = Process::new("node").arg("--version").output();
        if !version.is_ok_and(|version| version.status.success()) {
            return Err("there is no `node`".to_owned());
        }
        let tests = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients"));
        let cache = std::env::var_os("TEST_CACHE").map_or(tests, PathBuf::from);
        let modules = cache.join("node_modules");
        if modules.join("@socket.io/redis-adapter").is_dir() && modules.join("redis").is_dir() {
            return Ok(Self(modules));
        }
        Err(format!(
            "no packages in {}: the client tests (node/tests/clients/run) install them",
            modules.display()
        ))
    }
}

/// A running server; dropping it ends the process.
pub(crate) struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    port: u16,
}

impl Peer {
    /// Starts a server on the given core, and returns when it is a node of the cluster. The names
    /// of all rooms that its clients join begin with `rooms`.
    pub(crate) fn start(
        subject: Subject,
        core: Option<usize>,
        redis: u16,
        rooms: &str,
        packages: Option<&Packages>,
    ) -> io::Result<Self> {
        let port = spare_port()?;
        let mut process = process(subject, port, redis, rooms, packages)?;
        process.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn_on(core, &mut process)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("a child has pipes if it shall"));
        };
        let mut peer = Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
            port,
        };
        peer.hear()?;
        Ok(peer)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do something and waits for the answer.
    pub(crate) fn tell(&mut self, command: Command) -> io::Result<Value> {
        self.begin(command)?;
        self.hear()
    }

    /// Has it do something without waiting.
    pub(crate) fn begin(&mut self, command: Command) -> io::Result<()> {
        self.stdin.write_all(command.line().as_bytes())?;
        self.stdin.flush()
    }

    /// Waits for the next answer.
    pub(crate) fn hear(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the server has ended"));
        }
        let answer: Value = serde_json::from_str(&line)?;
        match answer.get("error") {
            Some(error) => Err(io::Error::other(format!("the server says: {error}"))),
            None => Ok(answer),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Neither can fail in a way that leaves the child: it is ours and not yet waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn process(
    subject: Subject,
    port: u16,
    redis: u16,
    rooms: &str,
    packages: Option<&Packages>,
) -> io::Result<Process> {
    let role = match subject {
        Subject::NodeJs { sharded } => {
            let Packages(modules) = packages.ok_or(io::ErrorKind::NotFound)?;
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/cluster/peer.js");
            let config = json!({
                "port": port, "redis": redis, "sharded": sharded, "rooms": rooms, "room": ROOM,
                "joins": Steps::JOINS, "interval": Steps::INTERVAL.as_millis() as u64,
                "lifetime": Steps::LIFETIME,
            });
            let mut process = Process::new("node");
            process.arg(script).arg(config.to_string());
            process
                .env("NODE_PATH", modules)
                .env("NODE_ENV", "production");
            return Ok(process);
        }
        Subject::BusFloor => "bus-floor",
        Subject::PublishFloor => "publish-floor",
        Subject::Roomcast { .. } => "node",
    };
    let mut process = Process::new(std::env::current_exe()?);
    process.args([
        role,
        "--port",
        &port.to_string(),
        "--redis",
        &redis.to_string(),
    ]);
    process.args(["--rooms", rooms]);
    if subject.is_sharded() {
        process.arg("--sharded");
    }
    Ok(process)
}
