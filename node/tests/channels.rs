//! Channels: rooms over event streams, polls, and POST, as curl and browsers use them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;
#[path = "../../emitter/tests/support/mod.rs"]
mod redis;

use std::{
    collections::BTreeSet,
    io::{BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
};

use process::{DEADLINE, Program, client::Client, field};
use redis::Redis;
use serde_json::{Value, json};

#[test]
fn curl_follows_a_room_and_publishes_into_it() {
    let (_demo, door) = demo();
    let mut follower = Curl::start(&["-N", &door.url("/rooms/news/events")]);
    follower.line_with("id: 0");
    let body = r#"{"data":{"text":"it rains"}}"#;
    let sender = Curl::start(&["-d", body, &door.url("/rooms/news")]);
    let stored: Value = serde_json::from_str(&sender.output()).unwrap();
    let id = stored["id"].as_str().unwrap();
    assert_eq!(follower.line_with("id: "), format!("id: {id}"));
    let data = follower.line_with("data: ");
    let event: Value = serde_json::from_str(&data["data: ".len()..]).unwrap();
    let expected = json!({
        "id": id, "room": "news", "event": "message", "data": { "text": "it rains" },
        "time": stored["time"],
    });
    assert_eq!(event, expected);
}

#[test]
fn an_event_has_the_same_shape_for_everybody() {
    let (_demo, door) = demo();
    let mut socket = Client::connect(&door.address);
    socket.ask(&json!(["join", "news"]));
    let mut stream = door.stream("/rooms/news/events", "");
    let (status, stored) = door.publish("news", &json!({ "event": "tick", "args": [1, "two"] }));
    assert_eq!(status, 201, "{stored}");
    assert_eq!(socket.event("tick"), json!([1, "two"]));
    let event = stream.event();
    assert_eq!(
        (&event["args"], &event["event"], &event["data"]),
        (&json!([1, "two"]), &json!("tick"), &Value::Null)
    );
    let (_, page) = door.get("/rooms/news/history");
    assert_eq!(page, json!({ "events": [event], "last_id": stored["id"] }));
    let (_, polled) = door.get("/rooms/news/poll?last_id=0");
    assert_eq!(polled, page);
}

#[test]
fn a_stream_goes_on_where_the_one_before_ended() {
    let (_demo, door) = demo();
    let mut stream = door.stream("/rooms/a/events?room=b", "");
    let ids: Vec<_> = ["a", "b", "a", "b"]
        .iter()
        .map(|room| door.publish(room, &json!({ "data": room })).1["id"].clone())
        .collect();
    assert_eq!(stream.event()["id"], ids[0]);
    drop(stream);
    let header = format!("Last-Event-ID: {}\r\n", ids[0].as_str().unwrap());
    let mut stream = door.stream("/rooms/a/events?room=b", &header);
    let late = door.publish("a", &json!({ "data": "late" })).1;
    for id in ids[1..].iter().chain([&late["id"]]) {
        assert_eq!(stream.event()["id"], *id);
    }
    // A query names where the first stream begins, the header where later ones do.
    let from_start = format!("/rooms/a/events?last_id={}", ids[2].as_str().unwrap());
    assert_eq!(door.stream(&from_start, "").event()["id"], late["id"]);
}

#[test]
fn a_stream_that_was_cut_off_before_its_first_event_misses_nothing() {
    let (_demo, door) = demo();
    let first = door.publish("a", &json!({ "data": 1 })).1;
    let mut stream = door.stream("/rooms/a/events", "");
    let start = stream.line_with("id: ");
    assert_eq!(start, format!("id: {}", first["id"].as_str().unwrap()));
    drop(stream);
    let missed = door.publish("a", &json!({ "data": 2 })).1;
    let header = format!("Last-Event-ID: {}\r\n", &start["id: ".len()..]);
    let mut stream = door.stream("/rooms/a/events", &header);
    assert_eq!(stream.event()["id"], missed["id"]);
}

#[test]
fn a_poll_returns_what_waits_or_the_next_event_or_nothing() {
    let (_demo, door) = demo();
    let (status, head, body) = door.request("GET", "/rooms/a/poll?timeout=10ms", "", "");
    assert_eq!((status, &*body), (204, ""), "{head}");
    assert!(head.contains("last-event-id: 0"), "{head}");
    let waiting = {
        let door = door.clone();
        thread::spawn(move || door.get("/rooms/a/poll?last_id=0&room=b"))
    };
    door.wait_for_members("a", 1);
    let one = door.publish("a", &json!({ "data": 1 })).1;
    let (status, page) = waiting.join().unwrap();
    assert_eq!((status, &page["last_id"]), (200, &one["id"]), "{page}");
    let two = door.publish("b", &json!({ "data": 2 })).1;
    let three = door.publish("a", &json!({ "data": 3 })).1;
    let next = format!(
        "/rooms/a/events?room=b&last_id={}",
        one["id"].as_str().unwrap()
    );
    let (status, _, body) = door.request("GET", &next, "Accept: application/json\r\n", "");
    let page: Value = serde_json::from_str(&body).unwrap();
    let ids: Vec<_> = page["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["id"])
        .collect();
    assert_eq!((status, ids), (200, vec![&two["id"], &three["id"]]));
    let (_, page) = door.get(&format!("{next}&limit=1").replace("events", "poll"));
    assert_eq!(page["last_id"], two["id"]);
}

#[test]
fn history_is_read_page_by_page() {
    let (_demo, door) = demo();
    let ids: Vec<_> = (0..4)
        .map(|number| door.publish("a", &json!({ "data": number })).1["id"].clone())
        .map(|id| id.as_str().unwrap().to_owned())
        .collect();
    let numbers = |query: &str| {
        let (status, page) = door.get(&format!("/rooms/a/history{query}"));
        assert_eq!(status, 200, "{page}");
        let events = page["events"].as_array().unwrap();
        let numbers = events.iter().map(|event| event["data"].as_u64().unwrap());
        (
            numbers.collect::<Vec<_>>(),
            page["last_id"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(numbers("").0, [0, 1, 2, 3]);
    assert_eq!(numbers("?limit=2"), (vec![2, 3], ids[3].clone()));
    assert_eq!(numbers(&format!("?before={}&limit=2", ids[2])).0, [0, 1]);
    assert_eq!(
        numbers(&format!("?last_id={}&limit=2", ids[0])),
        (vec![1, 2], ids[2].clone())
    );
    assert_eq!(
        numbers(&format!("?last_id={}", ids[3])),
        (vec![], ids[3].clone())
    );
    let (_, empty) = door.get("/rooms/empty/history");
    assert_eq!(empty, json!({ "events": [], "last_id": "0" }));
}

#[test]
fn presence_names_the_members_whatever_their_door() {
    let (_demo, door) = demo();
    let mut socket = Client::connect(&door.address);
    socket.ask(&json!(["join", "a"]));
    let _stream = door.stream("/rooms/a/events", "");
    door.wait_for_members("a", 2);
    let (status, presence) = door.get("/rooms/a/presence");
    assert_eq!(
        (status, &presence["total"], &presence["is_complete"]),
        (200, &json!(2), &json!(true))
    );
    let members = presence["members"].as_array().unwrap();
    assert!(
        members.contains(&json!({ "id": socket.id(), "user": null })),
        "{presence}"
    );
}

#[test]
fn a_client_that_vanishes_frees_its_place() {
    let (_demo, door) = demo();
    let stream = door.stream("/rooms/a/events", "");
    door.wait_for_members("a", 1);
    drop(stream);
    door.wait_for_members("a", 0);
    let metrics = door.metrics();
    assert!(
        metrics.contains(r#"roomcast_door_parked{door="channels"} 0"#),
        "{metrics}"
    );
}

#[test]
fn wrong_requests_are_refused_with_a_problem() {
    let (_demo, door) = demo();
    let long = "r".repeat(300);
    let many: String = (0..20).map(|number| format!("&room={number}")).collect();
    let query = "q".repeat(9000);
    let cases = [
        (
            "GET",
            "/rooms/a/events?last_id=x".to_owned(),
            "",
            400,
            "last_id",
        ),
        (
            "GET",
            "/rooms/a/events?rooms=b".to_owned(),
            "",
            400,
            "rooms",
        ),
        (
            "GET",
            "/rooms/a/events?token=x".to_owned(),
            "",
            400,
            "token",
        ),
        ("GET", "/events".to_owned(), "", 400, "room"),
        ("GET", format!("/rooms/{long}/events"), "", 400, "room"),
        (
            "GET",
            format!("/rooms/a/events?{}", &many[1..]),
            "",
            400,
            "room",
        ),
        (
            "GET",
            "/rooms/a/poll?timeout=26".to_owned(),
            "",
            400,
            "timeout",
        ),
        ("GET", "/rooms/a/poll?limit=0".to_owned(), "", 400, "limit"),
        (
            "GET",
            "/rooms/a/history?before=1&last_id=1".to_owned(),
            "",
            400,
            "before",
        ),
        (
            "GET",
            format!("/rooms/a/history?limit={query}"),
            "",
            414,
            "",
        ),
        ("GET", "/elsewhere/rooms/a/history".to_owned(), "", 404, ""),
        ("GET", "/rooms/a".to_owned(), "", 405, ""),
        ("POST", "/rooms/a/events".to_owned(), "", 405, ""),
        ("POST", "/rooms/a".to_owned(), "it rains", 400, ""),
        ("POST", "/rooms/a".to_owned(), "{}", 400, ""),
        (
            "POST",
            "/rooms/a".to_owned(),
            r#"{"data":1,"event":"connect"}"#,
            400,
            "event",
        ),
        (
            "POST",
            "/rooms/a".to_owned(),
            r#"{"data":1,"event":""}"#,
            400,
            "event",
        ),
        (
            "POST",
            "/rooms/a".to_owned(),
            r#"{"data":{"$binary":"?"}}"#,
            400,
            "data",
        ),
        ("POST", "/rooms/user:7".to_owned(), r#"{"data":1}"#, 403, ""),
        ("GET", "/rooms/user:7/events".to_owned(), "", 403, ""),
    ];
    for (method, path, body, expected, field) in cases {
        let (status, head, body) = door.request(method, &path, "", body);
        assert_eq!(status, expected, "{method} {path}: {body}");
        assert!(head.contains("application/problem+json"), "{path}: {head}");
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["status"], status);
        assert_eq!(
            problem["field"].as_str().unwrap_or_default(),
            field,
            "{path}: {body}"
        );
    }
    let body = format!(r#"{{"data":"{}"}}"#, "a".repeat(70_000));
    assert_eq!(door.request("POST", "/rooms/a", "", &body).0, 413);
    let unknown = "Authorization: Bearer unknown\r\n";
    let (status, head, _) = door.request("GET", "/rooms/a/history", unknown, "");
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: bearer"), "{head}");
    let metrics = door.metrics();
    for limit in ["body", "name", "query", "rooms"] {
        let line = format!(r#"roomcast_door_limits_total{{door="channels",limit="{limit}"}}"#);
        assert!(metrics.contains(&line), "{limit}");
    }
    let outcomes: BTreeSet<_> = ["invalid", "limit", "not_found", "refused"].into();
    for outcome in outcomes {
        let line =
            format!(r#"roomcast_door_requests_total{{door="channels",outcome="{outcome}"}}"#);
        assert!(metrics.contains(&line), "{outcome}");
    }
}

#[test]
fn the_description_has_the_paths_that_are_served() {
    let (_demo, door) = demo();
    let document = process::http(&door.internal, "GET /api/openapi.json", "").1;
    let document: Value = serde_json::from_str(&document).unwrap();
    let mut count = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let Some(path) = path.strip_prefix("/channels") else {
            continue;
        };
        for method in methods.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            // A parameter that is wrong everywhere, because a stream would not end.
            let path = format!("{}?last_id=x", path.replace("{room}", "a"));
            let (status, _, body) = door.request(&method, &path, "", "");
            assert_eq!(status, 400, "{method} {path}: {body}");
            count += 1;
        }
    }
    assert_eq!(count, 5);
}

#[test]
fn two_nodes_share_a_room_and_its_history_in_one_order() {
    let redis = Redis::start();
    let nodes = [(); 2].map(|()| start(&["demo", "--redis", &redis.url()]));
    let [one, two] = [0, 1].map(|index| nodes[index].1.clone());
    let mut stream = two.stream("/rooms/a/events", "");
    let publishers = [&one, &two].map(|door| {
        let door = door.clone();
        let publish = move |number| door.publish("a", &json!({ "data": number })).1["id"].clone();
        thread::spawn(move || (0..20).map(publish).collect::<Vec<_>>())
    });
    let published = publishers.map(|publisher| publisher.join().unwrap());
    let number = |id: &Value| id.as_str().unwrap().parse::<u64>().unwrap();
    let mut ids: Vec<_> = published.concat().iter().map(number).collect();
    ids.sort_unstable();
    let received: Vec<_> = (0..ids.len())
        .map(|_| number(&stream.event()["id"]))
        .collect();
    assert_eq!(received, ids);
    // The client goes on at the other node.
    drop(stream);
    let mut stream = one.stream("/rooms/a/events", &format!("Last-Event-ID: {}\r\n", ids[9]));
    let rest: Vec<_> = (10..ids.len())
        .map(|_| number(&stream.event()["id"]))
        .collect();
    assert_eq!(rest, ids[10..]);
}

#[test]
fn pages_may_read_errors_too_and_ask_before() {
    let (_demo, door) = demo();
    let origin = "Origin: https://page.example\r\n";
    for (method, path, expected) in [
        ("OPTIONS", "/rooms/a", 204),
        ("GET", "/rooms/a/history", 200),
        ("GET", "/elsewhere/rooms/a/history", 404),
    ] {
        let (status, head, _) = door.request(method, path, origin, "");
        assert_eq!(status, expected);
        assert!(head.contains("access-control-allow-origin: *"), "{head}");
    }
}

#[test]
fn a_place_is_given_to_so_many_open_requests_of_an_address() {
    let settings = "[doors]\nmax_parked_per_address = 1\n[doors.channels]\nnamespaces = [\"/\"]\n";
    let (_program, door) = serve("places", settings, &["--access=open"]);
    let stream = door.stream("/rooms/a/events", "");
    let (status, head, body) = door.request("GET", "/rooms/a/events", "", "");
    assert_eq!(status, 429, "{body}");
    assert!(head.contains("retry-after: "), "{head}");
    drop(stream);
    door.wait_for_members("a", 0);
    assert!(door.metrics().contains("limit=\"parked_per_address\"} 1"));
}

#[test]
fn keys_and_policies_decide_what_a_client_may_do() {
    let settings = r#"
        [doors.channels]
        namespaces = ["/"]
        [namespaces."/"]
        access = "closed"
        [namespaces."/".rooms]
        join = ["open:*"]
        [[api.keys]]
        name = "listener"
        hash = "HASH"
        namespaces = ["/"]
        verbs = ["subscribe", "history"]
    "#;
    let settings = settings.replace("HASH", &hash("listener-key"));
    let (_program, door) = serve("keys", &settings, &[]);
    for path in ["/rooms/open:a/history", "/rooms/open:a/events"] {
        let (status, _, body) = door.request("GET", path, "", "");
        assert_eq!(status, 403, "nobody may connect: {body}");
    }
    let key = "Authorization: Bearer listener-key\r\n";
    let mut stream = door.stream("/rooms/a/events", key);
    stream.line_with("id: 0");
    assert_eq!(door.request("GET", "/rooms/a/history", key, "").0, 200);
    let (status, _, body) = door.request("POST", "/rooms/a", key, r#"{"data":1}"#);
    assert_eq!(status, 403);
    assert!(body.contains("listener is not for the verb emit"), "{body}");
}

#[test]
fn a_websocket_follows_rooms_and_publishes() {
    let (_demo, door) = demo();
    let missed = door.publish("a", &json!({ "data": "missed" })).1;
    let mut socket = door.websocket("/rooms/a/events?last_id=0");
    let event = socket.receive();
    assert_eq!(
        (&event["type"], &event["id"]),
        (&json!("event"), &missed["id"])
    );
    let reply = json!({ "type": "subscribed", "rooms": ["a"], "last_id": missed["id"] });
    assert_eq!(socket.receive(), reply);

    let mut other = door.websocket("/events");
    let reply = other.ask(&json!({ "type": "subscribe", "rooms": ["a", "b"], "ref": { "n": 1 } }));
    assert_eq!(
        (&reply["type"], &reply["ref"], &reply["rooms"]),
        (&json!("subscribed"), &json!({ "n": 1 }), &json!(["a", "b"]))
    );
    let frame = json!({ "type": "publish", "room": "a", "event": "tick", "data": 7, "ref": "p" });
    socket.send(&frame);
    // The event and the reply have no order between them.
    let (first, second) = (socket.receive(), socket.receive());
    let (published, event) = match first["type"] == "published" {
        true => (first, second),
        false => (second, first),
    };
    assert_eq!(published["ref"], "p");
    let expected = json!({
        "type": "event", "id": published["id"], "room": "a", "event": "tick", "data": 7,
        "time": published["time"],
    });
    assert_eq!(event, expected);
    assert_eq!(other.receive(), expected);
    let reply = socket.ask(&json!({ "type": "unsubscribe", "room": "a" }));
    assert_eq!(reply, json!({ "type": "unsubscribed", "rooms": ["a"] }));
    door.wait_for_members("a", 1);
    door.publish("a", &json!({ "data": 8 }));
    assert_eq!(
        socket.ask(&json!({ "type": "ping" })),
        json!({ "type": "pong" })
    );
}

#[test]
fn a_wrong_frame_gets_a_problem_and_the_next_one_its_reply() {
    let (_demo, door) = demo();
    let mut socket = door.websocket("/events");
    let long = "a".repeat(70_000);
    let many: Vec<_> = (0..21).map(|number| number.to_string()).collect();
    let cases = [
        (json!({ "type": "subscribe", "ref": 1 }), "invalid"),
        (
            json!({ "type": "subscribe", "room": "user:7", "ref": 2 }),
            "denied",
        ),
        (
            json!({ "type": "subscribe", "rooms": many, "ref": 3 }),
            "invalid",
        ),
        (
            json!({ "type": "publish", "room": "user:7", "data": 1, "ref": 4 }),
            "denied",
        ),
        (
            json!({ "type": "publish", "room": "a", "event": "connect", "data": 1, "ref": 5 }),
            "invalid",
        ),
        (
            json!({ "type": "publish", "room": "a", "data": long }),
            "too-large",
        ),
        (
            json!({ "type": "token", "token": "a.b.c", "ref": 6 }),
            "credentials",
        ),
        (
            json!({ "type": "unsubscribe", "room": "user:7", "ref": 7 }),
            "denied",
        ),
        (json!([]), "invalid"),
    ];
    for (frame, kind) in cases {
        let reply = socket.ask(&frame);
        assert_eq!(reply["type"], "error", "{reply}");
        assert_eq!(
            reply["problem"]["type"],
            format!("urn:roomcast:problem:{kind}"),
            "{reply}"
        );
        assert_eq!(reply["ref"], frame["ref"], "{reply}");
    }
    assert_eq!(
        socket.ask(&json!({ "type": "ping", "ref": 8 })),
        json!({ "type": "pong", "ref": 8 })
    );
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut refused = BufReader::new(door.send("GET", "/rooms/user:7/events", upgrade, ""));
    line_with(&mut refused, "HTTP/1.1 403");
    assert!(
        door.metrics()
            .contains(r#"roomcast_door_limits_total{door="channels",limit="frame"} 1"#)
    );
}

#[test]
fn a_stop_answers_polls_and_ends_streams() {
    let (program, door) = demo();
    let mut stream = door.stream("/rooms/a/events", "");
    let waiting = {
        let door = door.clone();
        thread::spawn(move || door.request("GET", "/rooms/a/poll?last_id=0", "", ""))
    };
    door.wait_for_members("a", 2);
    program.signal(rustix::process::Signal::TERM);
    let (status, head, _) = waiting.join().unwrap();
    assert_eq!(status, 204);
    assert!(head.contains("last-event-id: 0"), "{head}");
    stream.end();
    assert_eq!(program.end().0, Some(0));
}

/// The hash of a key as the settings have it.
fn hash(key: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    let digits = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", digits.collect::<String>())
}

/// A running `curl`.
struct Curl {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Curl {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new("curl");
        let limit = format!("{}", DEADLINE.as_secs());
        command.args(["-s", "--max-time", &limit]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line_with(&mut self, start: &str) -> String {
        line_with(&mut self.lines, start)
    }

    fn output(mut self) -> String {
        let mut output = String::new();
        self.lines.read_to_string(&mut output).unwrap();
        output
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line_with(lines: &mut impl std::io::BufRead, start: &str) -> String {
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
struct Channels {
    address: String,
    internal: String,
}

impl Channels {
    fn url(&self, path: &str) -> String {
        format!("http://{}/channels{path}", self.address)
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let (status, _, body) = self.request("GET", path, "", "");
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    fn publish(&self, room: &str, body: &Value) -> (u16, Value) {
        let path = format!("/rooms/{room}");
        let (status, _, body) = self.request("POST", &path, "", &body.to_string());
        (status, serde_json::from_str(&body).unwrap())
    }

    /// The status, the head and the body of a response.
    fn request(
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

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request =
            format!("{method} /channels{path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// An event stream whose head has arrived.
    fn stream(&self, path: &str, headers: &str) -> EventStream {
        let stream = self.send("GET", path, headers, "");
        let mut lines = BufReader::new(stream);
        line_with(&mut lines, "HTTP/1.1 200");
        line_with(&mut lines, "content-type: text/event-stream");
        line_with(&mut lines, "retry: 2000");
        EventStream { lines }
    }

    fn websocket(&self, path: &str) -> Frames {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let url = format!("ws://{}/channels{path}", self.address);
        Frames(tungstenite::client(url, stream).unwrap().0)
    }

    fn wait_for_members(&self, room: &str, count: usize) {
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

    fn metrics(&self) -> String {
        process::http(&self.internal, "GET /metrics", "").1
    }
}

/// A plain WebSocket.
struct Frames(tungstenite::WebSocket<TcpStream>);

impl Frames {
    fn send(&mut self, frame: &Value) {
        let message = tungstenite::Message::text(frame.to_string());
        self.0.send(message).unwrap();
    }

    fn receive(&mut self) -> Value {
        loop {
            if let tungstenite::Message::Text(text) = self.0.read().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    fn ask(&mut self, frame: &Value) -> Value {
        self.send(frame);
        self.receive()
    }
}

struct EventStream {
    lines: BufReader<TcpStream>,
}

impl EventStream {
    fn line_with(&mut self, start: &str) -> String {
        line_with(&mut self.lines, start)
    }

    fn event(&mut self) -> Value {
        let data = self.line_with("data: ");
        serde_json::from_str(&data["data: ".len()..]).unwrap()
    }

    /// Waits for the end of the stream.
    fn end(&mut self) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        assert!(!rest.contains("data: "), "{rest}");
    }
}

fn demo() -> (Program, Channels) {
    start(&["demo"])
}

/// A server with settings in a file of its own.
fn serve(name: &str, settings: &str, options: &[&str]) -> (Program, Channels) {
    let file = format!("roomcast-channels-{name}-{}.toml", std::process::id());
    let file = std::env::temp_dir().join(file);
    std::fs::write(&file, settings).unwrap();
    let config = format!("--config={}", file.display());
    let started = start(&[&["serve", &config], options].concat());
    std::fs::remove_file(file).unwrap();
    started
}

fn start(options: &[&str]) -> (Program, Channels) {
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
