//! A server under test as a child process: started on its core, found ready, ended on drop.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::measure;

/// Which program serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Floor,
    Roomcast {
        threads: usize,
    },
    /// A command line, split at white space, in which `{port}` stands for the port.
    External(String),
}

impl Program {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Floor => "floor",
            Self::Roomcast { .. } => "roomcast",
            Self::External(command) => command,
        }
    }

    fn command(&self, port: u16) -> io::Result<Command> {
        let port = port.to_string();
        let own = || std::env::current_exe().map(Command::new);
        match self {
            Self::Floor => {
                let mut command = own()?;
                command.args(["floor", "--with-parent", "--port", &port]);
                Ok(command)
            }
            Self::Roomcast { threads } => {
                let mut command = own()?;
                command.args(["roomcast", "--with-parent", "--port", &port]);
                command.args(["--threads", &threads.to_string()]);
                Ok(command)
            }
            Self::External(line) => {
                let mut words = line.split_whitespace();
                let program = words.next().ok_or(io::ErrorKind::InvalidInput)?;
                let mut command = Command::new(program);
                command.args(words.map(|word| word.replace("{port}", &port)));
                Ok(command)
            }
        }
    }
}

/// Which core is whose. Both pinned, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cores {
    pub(crate) server: usize,
    pub(crate) load: usize,
}

/// A running server; dropping it ends the process.
pub(crate) struct Running {
    child: Child,
    port: u16,
}

impl Running {
    /// Starts a server and returns when it accepts connections.
    pub(crate) fn start(program: &Program, cores: Option<Cores>) -> io::Result<Self> {
        let port = free_port()?;
        let mut command = program.command(port)?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A child inherits the core of the thread that starts it.
        if let Some(cores) = cores {
            measure::pin(cores.server)?;
        }
        let child = command.spawn();
        if let Some(cores) = cores {
            measure::pin(cores.load)?;
        }
        let mut running = Self {
            child: child?,
            port,
        };
        running.await_listening()?;
        Ok(running)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn await_listening(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!(
                    "the server ended at its start: {status}"
                )));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("the server does not accept connections"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Neither can fail in a way that leaves the child: it is ours and not yet waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on, below the range from which the kernel takes the ports of outgoing
/// connections: one of those, still in its last wait, would keep a server from its port.
fn free_port() -> io::Result<u16> {
    let start = std::process::id() as u16 % PORTS.len() as u16;
    (0..PORTS.len() as u16)
        .map(|step| PORTS.start + (start + step) % PORTS.len() as u16)
        .find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok())
        .ok_or_else(|| io::Error::other("no port is free"))
}

const PORTS: std::ops::Range<u16> = 21_000..31_000;
const START_DEADLINE: Duration = Duration::from_secs(10);
