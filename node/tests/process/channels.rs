//! The door of channels of a running program, as its clients use it.

use std::{
    io::{BufRead, BufReader, Read as _},
    net::TcpStream,
    process::Command,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::process::{self, DEADLINE, Program, field};

/// The hash of a key as the settings have it.
pub(crate) fn hash(key: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    let digits = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", digits.collect::<String>())
}

pub(crate) fn line_with(lines: &mut impl BufRead, start: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(
            lines.read_line(&mut line).unwrap() > 0,
            "the end, not `{start}`"
        );
        if line.starts_with(start) {
            return line.trim_end().to_owned();
        }
    }
}

/// The headers of a request for a WebSocket.
pub(crate) const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// The kind of a problem.
pub(crate) fn kind(problem: &Value) -> String {
    let kind = problem["type"].as_str().unwrap_or_default();
    let kind = kind.strip_prefix("urn:roomcast:problem:");
    kind.unwrap_or_else(|| panic!("{problem}")).to_owned()
}

/// Asks again and again until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    const PAUSE: Duration = Duration::from_millis(20);
    let mut attempts = DEADLINE.as_millis() / PAUSE.as_millis();
    while !is_so() {
        assert!(attempts > 0, "no {what}");
        attempts -= 1;
        thread::sleep(PAUSE);
    }
}

/// The door of a program.
#[derive(Clone)]
pub(crate) struct Channels {
    pub(crate) address: String,
    pub(crate) internal: String,
}

impl Channels {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/channels{path}", self.address)
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let (status, _, body) = self.request("GET", path, "", "");
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    pub(crate) fn publish(&self, room: &str, body: &Value) -> (u16, Value) {
        let path = format!("/rooms/{room}");
        let (status, _, body) = self.request("POST", &path, "", &body.to_string());
        (status, serde_json::from_str(&body).unwrap())
    }

    /// The status, the head and the body of a response.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (u16, String, String) {
        let request = format!("{method} /channels{path}");
        process::response(process::send(&self.address, &request, headers, body))
    }

    /// The response to a request, as it comes.
    pub(crate) fn begin(&self, path: &str, headers: &str) -> BufReader<TcpStream> {
        let request = format!("GET /channels{path}");
        BufReader::new(process::send(&self.address, &request, headers, ""))
    }

    /// An event stream whose head has arrived.
    pub(crate) fn stream(&self, path: &str, headers: &str) -> EventStream {
        let mut lines = self.begin(path, headers);
        line_with(&mut lines, "HTTP/1.1 200");
        line_with(&mut lines, "content-type: text/event-stream");
        line_with(&mut lines, "retry: 2000");
        EventStream { lines }
    }

    pub(crate) fn websocket(&self, path: &str) -> Frames {
        let url = format!("ws://{}/channels{path}", self.address);
        let opened = tungstenite::client(url, process::connect(&self.address));
        Frames(opened.unwrap().0)
    }

    pub(crate) fn wait_for_members(&self, room: &str, count: usize) {
        until(&format!("{count} members of {room}"), || {
            let (_, presence) = self.get(&format!("/rooms/{room}/presence"));
            presence["total"] == count || (presence["total"].is_null() && count == 0)
        });
    }

    pub(crate) fn metrics(&self) -> String {
        process::http(&self.internal, "GET /metrics", "").1
    }
}

/// A plain WebSocket.
pub(crate) struct Frames(tungstenite::WebSocket<TcpStream>);

impl Frames {
    pub(crate) fn send(&mut self, frame: &Value) {
        let message = tungstenite::Message::text(frame.to_string());
        self.0.send(message).unwrap();
    }

    pub(crate) fn receive(&mut self) -> Value {
        loop {
            if let tungstenite::Message::Text(text) = self.0.read().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// Whether the next message is the end because the server goes away.
    pub(crate) fn ends(&mut self) -> bool {
        use tungstenite::protocol::{Message, frame::coding::CloseCode};
        let read = self.0.read().unwrap();
        matches!(read, Message::Close(Some(frame)) if frame.code == CloseCode::Away)
    }

    /// Sends a binary frame, and returns the code with which the server closes the connection.
    pub(crate) fn code_after_binary(&mut self) -> u16 {
        use tungstenite::Message;
        self.0.send(Message::binary(vec![1])).unwrap();
        loop {
            if let Message::Close(frame) = self.0.read().unwrap() {
                return frame.unwrap().code.into();
            }
        }
    }

    pub(crate) fn ask(&mut self, frame: &Value) -> Value {
        self.send(frame);
        self.receive()
    }

    /// The kind of the problem that a frame has as its reply.
    pub(crate) fn problem(&mut self, frame: &Value) -> String {
        let reply = self.ask(frame);
        assert_eq!(
            (&reply["type"], &reply["ref"]),
            (&"error".into(), &frame["ref"]),
            "{reply}"
        );
        kind(&reply["problem"])
    }
}

pub(crate) struct EventStream {
    lines: BufReader<TcpStream>,
}

impl EventStream {
    pub(crate) fn line_with(&mut self, start: &str) -> String {
        line_with(&mut self.lines, start)
    }

    pub(crate) fn event(&mut self) -> Value {
        let data = self.line_with("data: ");
        serde_json::from_str(&data["data: ".len()..]).unwrap()
    }

    /// Waits for the end of the stream.
    pub(crate) fn end(&mut self) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        assert!(!rest.contains("data: "), "{rest}");
    }
}

/// Nodes of a cluster, whose main namespace everybody may use. Those of the demo would send events of
/// their own.
pub(crate) fn cluster<const N: usize>(name: &str, redis: &str) -> [(Program, Channels); N] {
    let settings = "[doors.channels]\nnamespaces = [\"/\"]\n[namespaces.\"/\".rooms]\n\
                    join = [\"*\"]\nsend = [\"*\"]\nhistory = [\"*\"]\npresence = [\"*\"]\n";
    let options = [
        "--access=open",
        "--redis",
        redis,
        "--drain-grace=0s",
        "--drain-over=0s",
    ];
    std::array::from_fn(|index| serve(&format!("{name}-{index}"), settings, &options))
}

/// A server with settings in a file of its own.
pub(crate) fn serve(name: &str, settings: &str, options: &[&str]) -> (Program, Channels) {
    let file = format!("roomcast-channels-{name}-{}.toml", std::process::id());
    let file = std::env::temp_dir().join(file);
    std::fs::write(&file, settings).unwrap();
    let config = format!("--config={}", file.display());
    let started = start(&[&["serve", &config], options].concat());
    std::fs::remove_file(file).unwrap();
    started
}

pub(crate) fn start(options: &[&str]) -> (Program, Channels) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
    listen(command.env_clear().args(options))
}

/// Starts a program that listens on ports of its own.
pub(crate) fn listen(command: &mut Command) -> (Program, Channels) {
    let ports = ["--listen=127.0.0.1:0", "--internal-listen=127.0.0.1:0"];
    let mut program = Program::start(command.args(ports));
    // A node also logs that it listens on Redis.
    let line = program.line_with("listening address=");
    let door = Channels {
        address: field(&line, "address="),
        internal: field(&line, "internal="),
    };
    (program, door)
}
