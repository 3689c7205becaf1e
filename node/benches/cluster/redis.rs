//! A Redis server for one run, and connections to it.
//!
//! Every run has a server of its own: what earlier ones have left behind in it, a table of patterns
//! for example, would be paid for by later ones.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::measure;
use crate::resp::{self, Piece};

/// A running Redis server; dropping it ends the process.
pub(crate) struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    /// Starts a server, on the given core, that keeps nothing on disk.
    pub(crate) fn start(core: Option<usize>) -> io::Result<Self> {
        let port = spare_port()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        let mut redis = Self {
            child: start_on(core, &mut command)?,
            port,
        };
        redis.await_ready()?;
        Ok(redis)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn await_ready(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Ok(mut client) = Client::connect(self.port)
                && client.command(&[b"PING"]).is_ok()
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                let error = format!("redis-server ended at its start: {status}");
                return Err(io::Error::other(error));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("redis-server does not answer"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Neither can fail in a way that leaves the child: it is ours and not yet waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection on which one command at a time is said.
pub(crate) struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
    out: Vec<u8>,
}

/// What [`Piece`] is while it is looked at, for later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Integer(i64),
    Text(String),
    Nil,
}

impl Client {
    pub(crate) fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_DEADLINE))?;
        Ok(Self {
            stream,
            unread: Vec::new(),
            out: Vec::new(),
        })
    }

    /// Says a command and waits for its reply, whose arrays are flattened.
    pub(crate) fn command(&mut self, args: &[&[u8]]) -> io::Result<Vec<Value>> {
        self.out.clear();
        resp::command(&mut self.out, args);
        self.stream.write_all(&self.out)?;
        loop {
            if let Some(values) = self.take_reply()? {
                return Ok(values);
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.unread.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// A number of `INFO stats`.
    pub(crate) fn stat(&mut self, name: &str) -> io::Result<u64> {
        let reply = self.command(&[b"INFO", b"stats"])?;
        let [Value::Text(text)] = &reply[..] else {
            return Err(io::Error::other("INFO is a text"));
        };
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.parse().ok())
            .ok_or_else(|| io::Error::other(format!("INFO stats has no {name}")))
    }

    fn take_reply(&mut self) -> io::Result<Option<Vec<Value>>> {
        let mut values = Vec::new();
        let mut refused = None;
        let end = resp::scan(&self.unread, &mut |piece| match piece {
            Piece::Integer(number) => values.push(Value::Integer(number)),
            Piece::Text(text) => values.push(Value::Text(String::from_utf8_lossy(text).into())),
            Piece::Nil => values.push(Value::Nil),
            Piece::Error(error) => refused = Some(String::from_utf8_lossy(error).into_owned()),
        })?;
        let Some(end) = end else { return Ok(None) };
        self.unread.drain(..end);
        match refused {
            Some(error) => Err(io::Error::other(error)),
            None => Ok(Some(values)),
        }
    }
}

/// A connection that publishes without waiting, and counts what Redis replies.
pub(crate) struct Publisher {
    stream: TcpStream,
    unread: Vec<u8>,
    out: Vec<u8>,
    /// Messages that Redis has taken.
    pub(crate) taken: u64,
    /// Copies that it has made of them: the sum of its replies.
    pub(crate) copies: u64,
}

impl Publisher {
    pub(crate) fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            unread: Vec::new(),
            out: Vec::new(),
            taken: 0,
            copies: 0,
        })
    }

    /// Adds a command to the next write.
    pub(crate) fn queue(&mut self, command: &[u8], channel: &str, payload: &[u8]) {
        resp::command(&mut self.out, &[command, channel.as_bytes(), payload]);
    }

    /// Writes what is queued. A window fits into the socket's buffer; if not, it is an error.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Reads replies, if there are any.
    pub(crate) fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut start = 0;
        loop {
            let mut receivers = None;
            let end = resp::scan(&self.unread[start..], &mut |piece| {
                receivers = match piece {
                    Piece::Integer(number) => u64::try_from(number).ok(),
                    _ => None,
                };
            })?;
            let Some(end) = end else { break };
            let receivers = receivers.ok_or_else(|| io::Error::other("a publish was refused"))?;
            self.taken += 1;
            self.copies += receivers;
            start += end;
        }
        self.unread.drain(..start);
        Ok(())
    }
}

/// Starts a process on a core; the caller goes on where it was.
pub(crate) fn start_on(core: Option<usize>, command: &mut Command) -> io::Result<Child> {
    command.stdout(Stdio::null()).stdin(Stdio::null());
    spawn_on(core, command)
}

/// The same, with standard input and output as the command has them.
pub(crate) fn spawn_on(core: Option<usize>, command: &mut Command) -> io::Result<Child> {
    let Some(core) = core else {
        return command.spawn();
    };
    // A child inherits the cores of the thread that starts it.
    let own = measure::cores()?;
    measure::pin(core)?;
    let child = command.spawn();
    match own[..] {
        [own] => measure::pin(own)?,
        _ => return Err(io::Error::other("whoever starts others on a core has one")),
    }
    child
}

/// A port that nobody listens on, below the range from which the kernel takes the ports of outgoing
/// connections.
pub(crate) fn spare_port() -> io::Result<u16> {
    let start = std::process::id() as u16 % PORTS.len() as u16;
    (0..PORTS.len() as u16)
        .map(|step| PORTS.start + (start + step) % PORTS.len() as u16)
        .find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok())
        .ok_or_else(|| io::Error::other("no port is free"))
}

const PORTS: std::ops::Range<u16> = 21_000..31_000;
const START_DEADLINE: Duration = Duration::from_secs(10);
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
