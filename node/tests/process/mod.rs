//! Programs under test as real processes: started, listened to, signalled, and ended with the test.
//!
//! Whatever is waited for has a deadline, after which the test fails and shows what was said so
//! far. Knows nothing of Socket.IO; see `client`.

pub(crate) mod client;

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::TcpStream,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// Far more than anything takes on a busy machine; nothing succeeds by waiting for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

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
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}
