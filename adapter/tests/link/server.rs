//! Redis servers on spare ports, which end with the test, and plain connections to them.

use std::{
    env, fs,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use roomcast_emitter::{
    resp::{self, Limits, Parsed},
    value::Value,
};

/// What does not happen within this time does not happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until something is true of a thing that nobody announces.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_true() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A port that was free a moment ago.
fn spare_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

pub(crate) struct Server {
    pub(crate) port: u16,
    options: Vec<String>,
    directory: PathBuf,
    process: Child,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = format!("roomcast-link-{}-{number}", std::process::id());
        let directory = env::temp_dir().join(directory);
        // Somebody else may have taken the port meanwhile.
        for _ in 0..10 {
            fs::create_dir_all(&directory).unwrap();
            let port = spare_port();
            let mut options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
            if options.contains(&"--cluster-enabled".to_owned()) {
                options.extend(["--cluster-port".to_owned(), spare_port().to_string()]);
            }
            let process = spawn(port, &options, &directory);
            let mut server = Self {
                port,
                options,
                directory: directory.clone(),
                process,
            };
            if server.is_serving() {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    /// Ends the process at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Stops it, as if it hung, until `resume`.
    pub(crate) fn hang(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Starts it anew, empty, on the same port.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.port, &self.options, &self.directory);
        assert!(self.is_serving());
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.port)
    }

    /// Whether it answers; false if its process has ended.
    fn is_serving(&mut self) -> bool {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", self.port)) {
                let pid = Client::new(stream).command(&["INFO", "server"]);
                let pid = pid
                    .text()
                    .unwrap_or_default()
                    .contains(&format!("process_id:{}\r", self.process.id()));
                if pid {
                    return true;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn spawn(port: u16, options: &[String], directory: &PathBuf) -> Child {
    Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
        ])
        .arg(directory)
        .args(options)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// A connection that waits for each answer.
pub(crate) struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(port: u16) -> Self {
        Self::new(TcpStream::connect(("127.0.0.1", port)).unwrap())
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    #[track_caller]
    pub(crate) fn command(&mut self, args: &[&str]) -> Value {
        let mut command = Vec::new();
        resp::encode_command(&mut command, args);
        self.stream.write_all(&command).unwrap();
        self.answer()
    }

    /// The next thing that the server says.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Value {
        loop {
            let limits = Limits::default();
            if let Parsed::Whole(reply, length) = resp::parse(&self.unread, &limits).unwrap() {
                let value = Value::from(&reply);
                self.unread.drain(..length);
                assert!(!matches!(value, Value::Error(_)), "{value:?}");
                return value;
            }
            let mut bytes = [0; 65_536];
            let read = self.stream.read(&mut bytes).unwrap();
            assert!(read > 0, "the server has closed the connection");
            self.unread.extend(&bytes[..read]);
        }
    }

    /// How many receive what is published.
    pub(crate) fn publish(&mut self, channel: &str, payload: &str) -> i64 {
        self.command(&["PUBLISH", channel, payload])
            .integer()
            .unwrap()
    }

    pub(crate) fn subscribers(&mut self, channel: &str) -> i64 {
        self.command(&["PUBSUB", "NUMSUB", channel]).list().unwrap()[1]
            .integer()
            .unwrap()
    }

    /// Cuts all subscriber connections.
    pub(crate) fn kill_subscribers(&mut self) -> i64 {
        self.command(&["CLIENT", "KILL", "TYPE", "pubsub"])
            .integer()
            .unwrap()
    }

    /// How often each command whose name contains the word was called, in sum.
    pub(crate) fn calls(&mut self, word: &str) -> u64 {
        let stats = self.command(&["INFO", "commandstats"]);
        let lines = stats.text().unwrap().lines();
        let calls = lines
            .filter(|line| line.starts_with(&format!("cmdstat_{word}:")))
            .map(|line| {
                line.split_once("calls=")
                    .unwrap()
                    .1
                    .split(',')
                    .next()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            });
        calls.sum()
    }
}

/// Publishes probes without ever waiting for an answer.
pub(crate) struct Prober {
    port: u16,
    command: &'static str,
    stream: Mutex<Option<TcpStream>>,
}

impl Prober {
    pub(crate) fn new(port: u16, command: &'static str) -> Self {
        Self {
            port,
            command,
            stream: Mutex::new(None),
        }
    }

    pub(crate) fn send(&self, channel: &str, number: u64) -> bool {
        let mut slot = self.stream.lock().unwrap();
        let mut command = Vec::new();
        resp::encode_command(&mut command, &[self.command, channel, &number.to_string()]);
        let sent = self.connected(&mut slot).is_some_and(|stream| {
            let is_open = drain(stream);
            is_open
                && stream
                    .write(&command)
                    .is_ok_and(|written| written == command.len())
        });
        if !sent {
            *slot = None;
        }
        sent
    }

    fn connected<'a>(&self, slot: &'a mut Option<TcpStream>) -> Option<&'a mut TcpStream> {
        if slot.is_none() {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
            stream.set_nonblocking(true).ok()?;
            stream.set_nodelay(true).ok()?;
            *slot = Some(stream);
        }
        slot.as_mut()
    }
}

/// Reads answers away. False if the connection is closed.
fn drain(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}
