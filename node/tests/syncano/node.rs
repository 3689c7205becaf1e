//! A node with the door, and requests as the SDKs send them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::process::{self, DEADLINE, Program, field};

pub(crate) const ACCOUNT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1";
pub(crate) const PLAIN: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb2";
pub(crate) const FREE: &str = "ccccccccccccccccccccccccccccccccccccccc3";
pub(crate) const READER: &str = "ddddddddddddddddddddddddddddddddddddddd4";
pub(crate) const ANNA: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee5";

/// The SHA-256 of the keys, as `printf %s "$KEY" | sha256sum` prints it.
pub(crate) const HASHES: [&str; 4] = [
    "8b5ad0f390f484b16da517c0caae04878223ff39f6313bb53528218c99573971",
    "a0de39ed1ed6b708c99fdacf3c46687523a50e96aea663beccdc141a5075cea5",
    "3ee20078705f454292bfdf5dfb20dae368c0652d29aeaf1635910ea05056fa8e",
    "dc4d45ceb656cb49167523fe1c50c7cd182d54445f5455e1e027c008b5a2093c",
];

/// A node with an instance, in whose settings everything is that the tests need.
pub(crate) struct Node {
    pub(crate) program: Program,
    pub(crate) address: String,
    pub(crate) internal: String,
    pub(crate) folder: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Another test may have the folder for itself by then; it is in the build's own.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Node {
    pub(crate) fn start(name: &str) -> Self {
        Self::start_with(name, "")
    }

    /// `more` is further settings of the door.
    pub(crate) fn start_with(name: &str, more: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("syncano-{name}"));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("roomcast.toml");
        fs::write(&file, format!("{more}{}", settings())).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
        command
            .env_clear()
            .env("ANNA_KEY", ANNA)
            .env("ANNA_PASSWORD", "tea")
            .env("ACCOUNT_KEY", ACCOUNT)
            .env("HOOK_SECRET", "0123456789abcdef");
        command.args([
            "serve",
            "--listen=127.0.0.1:0",
            "--internal-listen=127.0.0.1:0",
        ]);
        command.arg(format!("--config={}", file.display()));
        let mut program = Program::start(&mut command);
        let line = program.line_with("listening");
        Self {
            address: field(&line, "address="),
            internal: field(&line, "internal="),
            program,
            folder,
        }
    }

    /// Sends requests one behind the other on one connection, and returns their responses.
    pub(crate) fn pipeline(&self, requests: String) -> String {
        let last = "GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            let requests = requests + last;
            writer.write_all(requests.as_bytes()).unwrap();
        });
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        writing.join().unwrap();
        text
    }

    /// Replaces the settings, and waits for a line of the log.
    pub(crate) fn reload(&mut self, text: &str, line: &str) {
        fs::write(self.folder.join("roomcast.toml"), text).unwrap();
        self.program.signal(rustix::process::Signal::HUP);
        self.program.line_with(line);
    }

    /// A request below the instance, with the key that its first word names.
    pub(crate) fn ask(&self, key: &str, request: &str, body: &Value) -> Answer {
        let headers = format!("X-API-KEY: {key}\r\nContent-Type: application/json\r\n");
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.send(&headers, request, &body)
    }

    pub(crate) fn send(&self, headers: &str, request: &str, body: &str) -> Answer {
        let (method, path) = request.split_once(' ').unwrap();
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/v1.1/instances/shop/{path}"),
        };
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        Answer::parse(&text)
    }
}

/// A response.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        Self {
            status: head[9..12].parse().unwrap(),
            head: head.to_lowercase(),
            body: serde_json::from_str(body).unwrap_or(Value::Null),
        }
    }

    /// The status and the body, for comparisons.
    pub(crate) fn both(&self) -> (u16, &Value) {
        (self.status, &self.body)
    }
}

pub(crate) fn settings() -> String {
    let [account, plain, free, reader] = HASHES;
    format!(
        r#"
[doors.syncano.instances.shop]
keys = [
  {{ id = 1, kind = "account", hash = "sha256:{account}" }},
  {{ id = 2, kind = "api", hash = "sha256:{plain}" }},
  {{ id = 3, kind = "api", hash = "sha256:{free}", ignore_acl = true }},
  {{ id = 4, kind = "api", hash = "sha256:{reader}", allow_anonymous_read = true }},
]
users = [
  {{ id = 7, key_env = "ANNA_KEY", groups = [3], username = "anna", password_env = "ANNA_PASSWORD" }},
]
[doors.syncano.instances.shop.channels]
news = {{ other_permissions = "subscribe", custom_publish = true }}
rooms = {{ type = "separate_rooms", other_permissions = "publish", custom_publish = true }}
team = {{ type = "separate_rooms", group = 3, group_permissions = "publish", custom_publish = true }}
quiet = {{ other_permissions = "publish" }}
[doors.syncano.instances.shop.classes.book]
schema = [{{ name = "title", type = "string" }}]
"#
    )
}

pub(crate) fn detail(text: &str) -> Value {
    json!({ "detail": text })
}

pub(crate) const NOTHING: Value = Value::Null;

/// A request whose response comes later.
pub(crate) struct Pending(TcpStream);

impl Pending {
    pub(crate) fn answer(mut self) -> Answer {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        Answer::parse(&text)
    }
}

impl Node {
    /// Starts a poll, and waits until it is parked: the node counts `parked` of them.
    pub(crate) fn poll(&self, key: &str, path: &str, parked: usize) -> Pending {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let path = format!("/v1.1/instances/shop/channels/{path}");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-KEY: {key}\r\n\r\n"
        )
        .unwrap();
        self.wait_for(parked);
        Pending(stream)
    }

    /// Waits until so many polls are parked.
    pub(crate) fn wait_for(&self, parked: usize) {
        let line = "roomcast_door_parked{door=\"syncano\"}";
        until(&format!("{parked} parked polls"), || {
            let (_, metrics) = process::http(&self.internal, "GET /metrics", "");
            let found = metrics.lines().find_map(|text| text.strip_prefix(line));
            found.map_or(0, |count| count.trim().parse().unwrap()) == parked
        });
    }

    pub(crate) fn publish(&self, channel: &str, body: &Value) -> u64 {
        let answer = self.ask(FREE, &format!("POST channels/{channel}/publish/"), body);
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body["id"].as_u64().unwrap()
    }
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
