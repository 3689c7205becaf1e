//! A node with the door, and requests as the SDKs send them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::Command,
    thread,
};

use serde_json::{Value, json};

use crate::{
    channels::{hash, listen, until},
    process::{self, Program},
};

pub(crate) const ACCOUNT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1";
pub(crate) const PLAIN: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb2";
pub(crate) const FREE: &str = "ccccccccccccccccccccccccccccccccccccccc3";
pub(crate) const READER: &str = "ddddddddddddddddddddddddddddddddddddddd4";
pub(crate) const ANNA: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee5";

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
        let (program, door) = listen(command.args(["serve", "--config"]).arg(&file));
        Self {
            address: door.address,
            internal: door.internal,
            program,
            folder,
        }
    }

    /// Sends requests one behind the other on one connection, and returns their responses.
    pub(crate) fn pipeline(&self, requests: String) -> String {
        let last = "GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut stream = process::connect(&self.address);
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
        match body {
            Value::Null => self.send(&headers, request, ""),
            body => self.send(&headers, request, &body.to_string()),
        }
    }

    pub(crate) fn send(&self, headers: &str, request: &str, body: &str) -> Answer {
        let (method, path) = request.split_once(' ').unwrap();
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/v1.1/instances/shop/{path}"),
        };
        let request = format!("{method} {path}");
        Answer::read(process::send(&self.address, &request, headers, body))
    }
}

/// A response.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Answer {
    fn read(stream: TcpStream) -> Self {
        let (status, head, body) = process::response(stream);
        let body = serde_json::from_str(&body).unwrap_or_default();
        Self { status, head, body }
    }

    pub(crate) fn has_header(&self, line: &str) {
        assert!(
            self.head.lines().any(|known| known == line),
            "{}",
            self.head
        );
    }

    /// The status and the body, for comparisons.
    pub(crate) fn both(&self) -> (u16, &Value) {
        (self.status, &self.body)
    }
}

pub(crate) fn settings() -> String {
    let [account, plain, free, reader] = [ACCOUNT, PLAIN, FREE, READER].map(hash);
    format!(
        r#"
[doors.syncano.instances.shop]
keys = [
  {{ id = 1, kind = "account", hash = "{account}" }},
  {{ id = 2, kind = "api", hash = "{plain}" }},
  {{ id = 3, kind = "api", hash = "{free}", ignore_acl = true }},
  {{ id = 4, kind = "api", hash = "{reader}", allow_anonymous_read = true }},
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
    pub(crate) fn answer(self) -> Answer {
        Answer::read(self.0)
    }
}

impl Node {
    /// Starts a poll, and waits until it is parked: the node counts `parked` of them.
    pub(crate) fn poll(&self, key: &str, path: &str, parked: usize) -> Pending {
        let request = format!("GET /v1.1/instances/shop/channels/{path}");
        let key = format!("X-API-KEY: {key}\r\n");
        let stream = process::send(&self.address, &request, &key, "");
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
