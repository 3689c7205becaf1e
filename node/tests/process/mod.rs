//! Programs under test as real processes: started, listened to, signalled, and ended with the test.
//!
//! Whatever is waited for has a deadline, after which the test fails and shows what was said so
//! far. Knows nothing of Socket.IO; see `client`.

pub(crate) mod client;

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::TcpStream,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// Far more than anything takes on a busy machine; nothing succeeds by waiting for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The system chooses both ports, and the log contains them.
pub(crate) const ANY_PORT: [&str; 2] = ["--listen=127.0.0.1:0", "--internal-listen=127.0.0.1:0"];

/// The program, without settings from the environment of the test.
pub(crate) fn roomcast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
    command.env_clear();
    command
}

/// The same with a limit of open files.
pub(crate) fn roomcast_within(descriptors: usize) -> Command {
    let mut command = Command::new("sh");
    let limited = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_roomcast")]);
    command.env_clear();
    command
}

/// Starts a server. Returns its address and that of its internal port, too.
pub(crate) fn serve(command: &mut Command) -> (Program, String, String) {
    let mut program = Program::start(command.args(ANY_PORT));
    // A node also logs that it listens on Redis.
    let line = program.line_with("listening address=");
    (program, field(&line, "address="), field(&line, "internal="))
}

/// The hash of a key as the settings have it.
pub(crate) fn hash(key: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    let digits = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", digits.collect::<String>())
}

/// A file that ends with the test.
pub(crate) struct Temporary(String);

impl Temporary {
    pub(crate) fn new(text: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("roomcast-{}-{count}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path.into_os_string().into_string().unwrap())
    }

    pub(crate) fn path(&self) -> &str {
        &self.0
    }

    pub(crate) fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is in a folder for files that nobody misses.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A running program. Dropping it kills it.
pub(crate) struct Program {
    pid: Pid,
    lines: Receiver<String>,
    exit: Receiver<ExitStatus>,
    said: Vec<String>,
    has_ended: bool,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        let (line, lines) = channel();
        forward(child.stdout.take().unwrap(), line.clone());
        forward(child.stderr.take().unwrap(), line);
        Self::watch(child, lines)
    }

    /// A child whose output is taken already.
    pub(crate) fn watch(mut child: Child, lines: Receiver<String>) -> Self {
        let pid = Pid::from_child(&child);
        let (ended, exit) = channel();
        thread::spawn(move || ended.send(child.wait().unwrap()));
        Self {
            pid,
            lines,
            exit,
            said: Vec::new(),
            has_ended: false,
        }
    }

    /// The next line with this text, on standard output or standard error.
    pub(crate) fn line_with(&mut self, text: &str) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(DEADLINE) else {
                panic!("no line with `{text}`, but: {:#?}", self.said);
            };
            self.said.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Waits for the end: the exit status, and all that was said.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let Ok(status) = self.exit.recv_timeout(DEADLINE) else {
            panic!("still running, and said: {:#?}", self.said);
        };
        self.has_ended = true;
        self.said.extend(self.lines.iter());
        (status.code(), self.said.join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.has_ended && self.exit.try_recv().is_err() {
            // It may end by itself at this very moment.
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

/// Passes lines on as they come.
pub(crate) fn forward(stream: impl Read + Send + 'static, line: Sender<String>) {
    thread::spawn(move || {
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        // Nobody listens any more once the test is over.
        lines.map(|text| line.send(text)).all(|sent| sent.is_ok())
    });
}

/// What follows `name=` or `name ` in a line, up to the next space.
pub(crate) fn field(line: &str, name: &str) -> String {
    let (_, rest) = line
        .split_once(name)
        .unwrap_or_else(|| panic!("{name}: {line}"));
    rest.trim_start_matches('=')
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned()
}

/// One HTTP request on a connection of its own: the status and the body of the answer.
pub(crate) fn http(address: &str, request: &str, body: &str) -> (u16, String) {
    let (status, _, body) = http_with(address, request, "", body);
    (status, body)
}

/// The same with further headers: the status, the head in lower case, and the body.
pub(crate) fn http_with(
    address: &str,
    request: &str,
    headers: &str,
    body: &str,
) -> (u16, String, String) {
    response(send(address, request, headers, body))
}

/// Sends such a request.
pub(crate) fn send(address: &str, request: &str, headers: &str, body: &str) -> TcpStream {
    let mut stream = connect(address);
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    stream
}

/// The response to such a request.
pub(crate) fn response(mut stream: TcpStream) -> (u16, String, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head[9..12].parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

/// A connection on which reading has the deadline.
pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}
