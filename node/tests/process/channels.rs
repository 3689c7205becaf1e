//! The door of channels of a running program, as its clients use it.

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::Command,
    thread,
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
        let headers = format!(
            "Connection: close\r\n{headers}Content-Length: {}\r\n",
            body.len()
        );
        let mut stream = self.send(method, path, &headers, body);
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        let status = head[9..12].parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request =
            format!("{method} /channels{path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// An event stream whose head has arrived.
    pub(crate) fn stream(&self, path: &str, headers: &str) -> EventStream {
        let stream = self.send("GET", path, headers, "");
        let mut lines = BufReader::new(stream);
        line_with(&mut lines, "HTTP/1.1 200");
        line_with(&mut lines, "content-type: text/event-stream");
        line_with(&mut lines, "retry: 2000");
        EventStream { lines }
    }

    pub(crate) fn websocket(&self, path: &str) -> Frames {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let url = format!("ws://{}/channels{path}", self.address);
        Frames(tungstenite::client(url, stream).unwrap().0)
    }

    pub(crate) fn wait_for_members(&self, room: &str, count: usize) {
        let start = std::time::Instant::now();
        loop {
            let (_, presence) = self.get(&format!("/rooms/{room}/presence"));
            if presence["total"] == count || (presence["total"].is_null() && count == 0) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{presence}");
            thread::yield_now();
        }
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
    let ports = ["--listen=127.0.0.1:0", "--internal-listen=127.0.0.1:0"];
    command.env_clear().args(options).args(ports);
    let mut program = Program::start(&mut command);
    // A node also logs that it listens on Redis.
    let line = program.line_with("listening address=");
    let door = Channels {
        address: field(&line, "address="),
        internal: field(&line, "internal="),
    };
    (program, door)
}
