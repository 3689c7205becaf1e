//! The admin page of the program: who sees it, what feeds it, and what bounds it. A browser test looks at
//! the page itself.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;

use std::{
    io::{BufRead as _, BufReader},
    thread::sleep,
    time::{Duration, Instant},
};

use process::{DEADLINE, Program, Temporary, client::Client, hash, http, roomcast, send};
use serde_json::{Value, from_str, json};

/// Signs tokens.
const SECRET: &str = "a secret of 32 bytes at the least";

#[test]
fn the_page_is_served_with_a_policy_that_allows_nothing_else() {
    let node = Node::demo();
    for (path, kind, text) in [
        ("/admin/", "text/html", "<title>Roomcast admin"),
        ("/admin/page.css", "text/css", "color-scheme"),
        ("/admin/page.js", "text/javascript", "import "),
        ("/admin/cluster.js", "text/javascript", "export class"),
    ] {
        let (head, mut body) = node.open(path, "");
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        let content = format!("content-type: {kind}; charset=utf-8");
        assert!(head.contains(&content), "{path}: {head}");
        let policy =
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'";
        assert!(head.contains(policy), "{path}: {head}");
        assert!(body.any(|line| line.contains(text)), "{path}");
    }
    let (head, _) = node.open("/admin", "");
    assert!(head.starts_with("HTTP/1.1 308"), "{head}");
    assert!(head.contains("location: admin/"), "{head}");
    assert_eq!(http(&node.internal, "GET /admin/../x", "").0, 404);
}

#[test]
fn a_page_of_the_demo_knows_the_key_and_one_of_a_server_does_not() {
    let config = |node: &Node| from_str::<Value>(&http(&node.internal, "GET /admin/config", "").1);
    assert_eq!(config(&Node::demo()).unwrap(), json!({ "key": "demo-key" }));
    let node = Node::serve(&[("looks", &["admin"])]);
    assert_eq!(config(&node).unwrap(), json!({ "key": null }));
}

#[test]
fn a_stream_brings_the_figures_of_the_node_again_and_again() {
    let node = Node::demo();
    let mut client = Client::connect(&node.address);
    client.ask(&json!(["join", "tea"]));
    let mut lines = node.stream("demo-key");
    let hello = lines.next().unwrap();
    assert_eq!(
        (&hello["type"], &hello["key"]),
        (&json!("hello"), &json!("demo"))
    );
    assert_eq!(hello["verbs"], json!(["emit", "disconnect"]));
    assert_eq!(hello["namespaces"], json!(["/"]));
    let mut statuses = lines.filter(|line| line["type"] == "status");
    let first = statuses.next().unwrap();
    assert_eq!(first["node"], hello["node"]);
    let status = &first["status"];
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["figures"]["connections"], 1.0);
    assert_eq!(status["parts"]["rooms"], json!({ "/": 1.0 }));
    client.ask(&json!(["echo", 7]));
    let received = |line: Value| line["status"]["figures"]["received"].as_f64().unwrap();
    let before = received(first);
    assert!(statuses.any(|line| received(line) == before + 1.0));
}

#[test]
fn a_key_sees_with_one_verb_and_acts_with_others() {
    let node = Node::serve(&[
        ("looks", &["admin"]),
        ("acts", &["admin", "disconnect"]),
        ("other", &["sockets", "disconnect"]),
    ]);
    let mut client = Client::connect(&node.address);
    assert_eq!(node.get("/admin/stream", "").0, 401);
    assert_eq!(node.get("/admin/stream", &bearer("nobody")).0, 401);
    assert_eq!(node.get("/admin/stream", &bearer("other")).0, 403);
    assert_eq!(node.get("/admin/api/sockets", &bearer("other")).0, 403);
    let (status, sockets) = node.get("/admin/api/sockets", &bearer("looks"));
    assert_eq!(
        (status, &sockets["sockets"][0]["id"]),
        (200, &json!(client.id()))
    );
    // It looks by the page only.
    assert_eq!(node.get("/api/sockets", &bearer("looks")).0, 403);
    assert_eq!(node.stream("looks").next().unwrap()["verbs"], json!([]));
    let whom = json!({ "sockets": [client.id()] });
    assert_eq!(node.post("/admin/api/disconnect", "looks", &whom).0, 403);
    assert_eq!(node.post("/admin/api/disconnect", "other", &whom).0, 403);
    assert_eq!(node.post("/admin/api/emit", "acts", &whom).0, 403);
    let done = node.post("/admin/api/disconnect", "acts", &whom);
    assert_eq!(done, (200, json!({ "effect": "done" })));
    assert_eq!(client.packet().as_deref(), Some("41"), "it is disconnected");
}

#[test]
fn a_room_and_a_socket_are_followed_live() {
    let node = Node::serve(&[("looks", &["admin"])]);
    let mut one = Client::connect(&node.address);
    let mut lines = node.follow("looks", "room=tea");
    // Lines begin once the stream has.
    assert_eq!(lines.next().unwrap()["type"], "hello");
    let mut lines = lines.filter(|line| line["type"] == "line");
    let mut next = move || lines.next().unwrap()["line"].clone();
    one.ask(&json!(["join", "milk"]));
    one.ask(&json!(["join", "tea", { "quiet": true }]));
    let joined = next();
    assert_eq!(
        (&joined["what"], &joined["rooms"]),
        (&json!("joined"), &json!(["tea"]))
    );
    assert_eq!(joined["socket"], one.id());
    one.ask(&json!(["message", "milk", "unseen"]));
    one.ask(&json!(["message", "tea", "ready"]));
    let sent = next();
    assert_eq!(
        (&sent["what"], &sent["sockets"]),
        (&json!("broadcast"), &json!(1))
    );
    assert!(sent["args"].as_str().unwrap().contains("ready"), "{sent}");

    let mut two = Client::connect(&node.address);
    let mut lines = node.follow("looks", &format!("socket={}", two.id()));
    assert_eq!(lines.next().unwrap()["type"], "hello");
    let mut lines = lines.filter(|line| line["type"] == "line");
    two.ask(&json!(["echo", "milk"]));
    let received = lines.next().unwrap()["line"].clone();
    assert_eq!(
        (&received["what"], &received["event"]),
        (&json!("received"), &json!("echo"))
    );
    assert_eq!(lines.next().unwrap()["line"]["what"], "acknowledged");
    let id = two.id().to_owned();
    drop(two);
    let gone = lines.next().unwrap()["line"].clone();
    assert_eq!(
        (&gone["what"], &gone["socket"]),
        (&json!("disconnected"), &json!(id))
    );
    one.ask(&json!(["leave", "tea", { "quiet": true }]));
    assert_eq!(next()["what"], "left");
}

#[test]
fn a_user_is_followed_on_all_their_sockets() {
    let node = Node::serve_as(
        "jwt",
        "[[jwt.keys]]\nalgorithm = \"HS256\"\nsecret_env = \"SECRET\"\n",
        &[("looks", &["admin"]), ("acts", &["emit"])],
    );
    let [mut phone, laptop, mut other] = ["ada", "ada", "bob"].map(|user| node.connect_as(user));
    let mut lines = node.follow("looks", "user=ada");
    assert_eq!(lines.next().unwrap()["type"], "hello");
    let mut lines = lines.filter(|line| line["type"] == "line");
    let mut next = move || {
        let line = lines.next().unwrap()["line"].clone();
        ["what", "socket", "event", "args"].map(|key| line[key].clone())
    };
    other.ask(&json!(["echo", "unseen"]));
    phone.ask(&json!(["echo", "milk"]));
    let (id, milk) = (json!(phone.id()), json!(r#"["milk"]"#));
    let line = |what: &str| [json!(what), id.clone(), json!("echo"), milk.clone()];
    assert_eq!(next(), line("received"));
    assert_eq!(next(), line("acknowledged"));

    // One for another user is not shown, and one for both of the user's sockets is one line.
    for users in [json!(["bob"]), json!(["ada", "bob"])] {
        let news = json!({ "users": users, "event": "news", "args": users });
        assert_eq!(node.post("/api/emit", "acts", &news).0, 200);
    }
    let args = json!(r#"["ada","bob"]"#);
    assert_eq!(
        next(),
        [json!("broadcast"), Value::Null, json!("news"), args]
    );
    let id = json!(laptop.id());
    drop(laptop);
    assert_eq!(next()[..2], [json!("disconnected"), id]);
}

#[test]
fn what_may_be_followed_is_checked() {
    let node = Node::demo();
    for (query, field) in [("room=", "room"), ("user=", "user"), ("group=ada", "group")] {
        let path = format!("/admin/stream?{query}");
        let (status, problem) = node.get(&path, &bearer("demo-key"));
        assert_eq!((status, &problem["field"]), (400, &json!(field)));
    }
}

#[test]
fn an_address_that_tries_many_keys_has_to_wait() {
    let node = Node::demo();
    for _ in 0..10 {
        assert_eq!(node.get("/admin/api/sockets", &bearer("wrong")).0, 401);
    }
    let (status, problem) = node.get("/admin/stream", &bearer("demo-key"));
    assert_eq!(status, 429, "the right key has to wait, too: {problem}");
    assert_eq!(
        node.metric("roomcast_admin_refused_total{reason=\"wrong_key\"}"),
        10
    );
    assert_eq!(problem["type"], "urn:roomcast:problem:too-many-attempts");
    assert_eq!(node.get("/api/sockets", &bearer("demo-key")).0, 200);
}

#[test]
fn streams_are_limited_and_end_with_their_clients() {
    let node = Node::demo();
    let mut open: Vec<_> = (0..32).map(|_| node.stream("demo-key")).collect();
    for stream in &mut open {
        assert_eq!(stream.next().unwrap()["type"], "hello");
    }
    let (status, problem) = node.get("/admin/stream", &bearer("demo-key"));
    assert_eq!(
        (status, &problem["type"]),
        (503, &json!("urn:roomcast:problem:busy"))
    );
    assert_eq!(node.metric("roomcast_admin_streams"), 32);
    drop(open.pop());
    let start = Instant::now();
    // The node notices that a client has gone when it sends the next line.
    while !node
        .open("/admin/stream", &bearer("demo-key"))
        .0
        .starts_with("HTTP/1.1 200")
    {
        assert!(start.elapsed() < DEADLINE, "the place never became free");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_stream_ends_when_its_key_is_removed() {
    let node = Node::serve(&[("looks", &["admin"])]);
    let mut lines = node.stream("looks");
    assert_eq!(lines.next().unwrap()["type"], "hello");
    node.configure(&[("another", &["admin"])]);
    node.program.signal(rustix::process::Signal::HUP);
    // Ends, or the test fails by the timeout of the socket.
    assert_eq!(lines.filter(|line| line["type"] == "hello").count(), 0);
    assert_eq!(node.get("/admin/api/sockets", &bearer("looks")).0, 401);
}

/// A running program.
struct Node {
    program: Program,
    address: String,
    internal: String,
    /// Its settings.
    file: Option<Temporary>,
}

impl Node {
    fn demo() -> Self {
        Self::start(&["demo"])
    }

    /// Serves with these keys, each with its verbs.
    fn serve(keys: &[(&str, &[&str])]) -> Self {
        Self::serve_as("open", "", keys)
    }

    /// The same with an access, and with settings for it.
    fn serve_as(access: &str, settings: &str, keys: &[(&str, &[&str])]) -> Self {
        let file = Temporary::new(&(settings.to_owned() + &sections(keys)));
        let config = format!("--config={}", file.path());
        let access = format!("--access={access}");
        let mut node = Self::start(&["serve", &config, &access, "--client-rooms"]);
        node.file = Some(file);
        node
    }

    fn start(args: &[&str]) -> Self {
        let mut command = roomcast();
        command.env("SECRET", SECRET).args(args);
        let (program, address, internal) = process::serve(&mut command);
        Self {
            program,
            address,
            internal,
            file: None,
        }
    }

    fn configure(&self, keys: &[(&str, &[&str])]) {
        self.file.as_ref().unwrap().write(&sections(keys));
    }

    /// Connects a client with a token of this user.
    fn connect_as(&self, user: &str) -> Client {
        let config = format!("--config={}", self.file.as_ref().unwrap().path());
        let mut command = roomcast();
        command.env("SECRET", SECRET);
        let signed = command.args(["token", &config, "--user", user]).output();
        let token = String::from_utf8(signed.unwrap().stdout).unwrap();
        Client::connect_as(&self.address, &json!({ "token": token.trim() })).unwrap()
    }

    /// The head of a response, and the lines of its body as they come.
    fn open(&self, path: &str, headers: &str) -> (String, impl Iterator<Item = String> + use<>) {
        self.request("GET", path, headers, "")
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (String, impl Iterator<Item = String> + use<>) {
        let stream = send(&self.internal, &format!("{method} {path}"), headers, body);
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        let head: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        (head.join("\n"), lines)
    }

    /// The lines of a stream. Dropping them closes it.
    fn stream(&self, key: &str) -> impl Iterator<Item = Value> + use<> {
        self.follow(key, "")
    }

    fn follow(&self, key: &str, query: &str) -> impl Iterator<Item = Value> + use<> {
        let (head, lines) = self.open(&format!("/admin/stream?{query}"), &bearer(key));
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        // The others are the sizes of the chunks.
        let lines = lines.filter(|line| line.starts_with('{'));
        lines.map(|line| from_str(&line).unwrap())
    }

    /// The status and the JSON of a response.
    fn get(&self, path: &str, headers: &str) -> (u16, Value) {
        let (head, mut lines) = self.open(path, headers);
        let is_stream = head.contains("ndjson");
        let body = if is_stream { None } else { lines.next() };
        (
            head[9..12].parse().unwrap(),
            body.map_or(Value::Null, |body| from_str(&body).unwrap()),
        )
    }

    fn metric(&self, series: &str) -> u64 {
        let (_, text) = http(&self.internal, "GET /metrics", "");
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap().trim().parse().unwrap()
    }

    fn post(&self, path: &str, key: &str, body: &Value) -> (u16, Value) {
        let headers = format!("{}Content-Type: application/json\r\n", bearer(key));
        let (head, mut lines) = self.request("POST", path, &headers, &body.to_string());
        (
            head[9..12].parse().unwrap(),
            from_str(&lines.next().unwrap()).unwrap(),
        )
    }
}

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

/// The settings of these keys, each with its verbs.
fn sections(keys: &[(&str, &[&str])]) -> String {
    let section = |(key, verbs): &(&str, &[&str])| {
        let hash = hash(key);
        format!(
            "[[api.keys]]\nname = {key:?}\nhash = \"{hash}\"\nnamespaces = [\"*\"]\nverbs = {verbs:?}\n"
        )
    };
    keys.iter().map(section).collect()
}
