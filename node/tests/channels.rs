//! Channels: rooms over event streams, polls, and POST, as curl and browsers use them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]

#[path = "process/channels.rs"]
#[expect(dead_code, reason = "a part of it is for other tests")]
mod door;
#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;
#[path = "../../emitter/tests/support/mod.rs"]
mod redis;

use std::{
    io::{BufReader, Read as _},
    process::{Child, Command, Stdio},
    thread,
};

use door::{Channels, UPGRADE, cluster, hash, line_with, serve, start};
use process::{DEADLINE, Program, client::Client};
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
    let one = one["id"].as_str().unwrap();
    let next = format!("/rooms/a/events?room=b&last_id={one}");
    let (status, _, body) = door.request("GET", &next, "Accept: application/json\r\n", "");
    let page: Value = serde_json::from_str(&body).unwrap();
    let events = page["events"].as_array().unwrap();
    let ids: Vec<_> = events.iter().map(|event| &event["id"]).collect();
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
        let last_id = page["last_id"].as_str().unwrap().to_owned();
        (numbers.collect::<Vec<_>>(), last_id)
    };
    assert_eq!(numbers("").0, [0, 1, 2, 3]);
    assert_eq!(numbers("?limit=2"), (vec![2, 3], ids[3].clone()));
    assert_eq!(numbers(&format!("?before={}&limit=2", ids[2])).0, [0, 1]);
    let page = numbers(&format!("?last_id={}&limit=2", ids[0]));
    assert_eq!(page, (vec![1, 2], ids[2].clone()));
    let page = numbers(&format!("?last_id={}", ids[3]));
    assert_eq!(page, (vec![], ids[3].clone()));
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
    let member = json!({ "id": socket.id(), "user": null });
    assert!(members.contains(&member), "{presence}");
}

#[test]
fn a_client_that_vanishes_frees_its_place() {
    let (_demo, door) = demo();
    let stream = door.stream("/rooms/a/events", "");
    door.wait_for_members("a", 1);
    drop(stream);
    door.wait_for_members("a", 0);
    let metrics = door.metrics();
    let parked = r#"roomcast_door_parked{door="channels"} 0"#;
    assert!(metrics.contains(parked), "{metrics}");
}

#[test]
fn wrong_requests_are_refused_with_a_problem() {
    let (_demo, door) = demo();
    let long = format!("GET /rooms/{}/events", "r".repeat(300));
    let many: String = (0..20).map(|number| format!("&room={number}")).collect();
    let many = format!("GET /rooms/a/events?{}", &many[1..]);
    let query = format!("GET /rooms/a/history?limit={}", "q".repeat(9000));
    // The status, the field, and the request with its body.
    let cases = [
        (400, "last_id", "GET /rooms/a/events?last_id=x"),
        (400, "rooms", "GET /rooms/a/events?rooms=b"),
        (400, "token", "GET /rooms/a/events?token=x"),
        (400, "room", "GET /events"),
        (400, "room", &long),
        (400, "room", &many),
        (400, "timeout", "GET /rooms/a/poll?timeout=26"),
        (400, "timeout", "GET /rooms/a/poll?timeout=-1"),
        (400, "limit", "GET /rooms/a/poll?limit=0"),
        (400, "before", "GET /rooms/a/history?before=1&last_id=1"),
        (414, "", &query),
        (404, "", "GET /elsewhere/rooms/a/history"),
        (405, "", "GET /rooms/a"),
        (405, "", "PUT /rooms/a"),
        (405, "", "POST /rooms/a/events"),
        (400, "", "POST /rooms/a it rains"),
        (400, "data", "POST /rooms/a {}"),
        (400, "event", r#"POST /rooms/a {"data":1,"event":5}"#),
        (400, "args", r#"POST /rooms/a {"args":5}"#),
        (400, "ref", r#"POST /rooms/a {"data":1,"ref":2}"#),
        (
            400,
            "event",
            r#"POST /rooms/a {"data":1,"event":"connect"}"#,
        ),
        (400, "event", r#"POST /rooms/a {"data":1,"event":""}"#),
        (400, "data", r#"POST /rooms/a {"data":{"$binary":"?"}}"#),
        (403, "", r#"POST /rooms/user:7 {"data":1}"#),
        (403, "", "GET /rooms/user:7/events"),
    ];
    for (expected, field, request) in cases {
        let (method, rest) = request.split_once(' ').unwrap();
        let (path, body) = rest.split_once(' ').unwrap_or((rest, ""));
        let (status, head, body) = door.request(method, path, "", body);
        assert_eq!(status, expected, "{request}: {body}");
        assert!(
            head.contains("application/problem+json"),
            "{request}: {head}"
        );
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["status"], status);
        let named = problem["field"].as_str().unwrap_or_default();
        assert_eq!(named, field, "{request}: {body}");
    }
    let body = format!(r#"{{"data":"{}"}}"#, "a".repeat(70_000));
    assert_eq!(door.request("POST", "/rooms/a", "", &body).0, 413);
    let unknown = "Authorization: Bearer unknown\r\n";
    let (status, head, _) = door.request("GET", "/rooms/a/history", unknown, "");
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: bearer"), "{head}");
    let metrics = door.metrics();
    let counted = |series: &str, label: &str, values: [&str; 4]| {
        for value in values {
            let line =
                format!("roomcast_door_{series}_total{{door=\"channels\",{label}=\"{value}\"}}");
            assert!(metrics.contains(&line), "{line}");
        }
    };
    counted("limits", "limit", ["body", "name", "query", "rooms"]);
    counted(
        "requests",
        "outcome",
        ["invalid", "limit", "not_found", "refused"],
    );
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
    let [(_one, one), (_two, two)] = cluster("order", &redis.url());
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
    let received: Vec<_> = ids.iter().map(|_| number(&stream.event()["id"])).collect();
    assert_eq!(received, ids);
    // The client goes on at the other node.
    drop(stream);
    let mut stream = one.stream("/rooms/a/events", &format!("Last-Event-ID: {}\r\n", ids[9]));
    let rest = ids[10..].iter().map(|_| number(&stream.event()["id"]));
    assert_eq!(rest.collect::<Vec<_>>(), ids[10..]);
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
    let pong = socket.ask(&json!({ "type": "ping" }));
    assert_eq!(pong, json!({ "type": "pong" }));
}

#[test]
fn data_that_nests_deeper_than_nodes_read_is_refused_and_not_kept() {
    let (_demo, door) = demo();
    let mut socket = door.websocket("/events");
    // The list of arguments is the first of 400 levels.
    for depth in [400, 450, 499, 500] {
        let (status, problem) = door.publish("a", &json!({ "data": nested(depth) }));
        assert_eq!((status, &problem["field"]), (400, &json!("data")));
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("nested deeper than"), "{detail}");
        let frame = json!({ "type": "publish", "room": "a", "data": nested(depth) });
        assert_eq!(socket.problem(&frame), "invalid");
    }
    assert_eq!(door.get("/rooms/a/history").1["events"], json!([]));
    assert_eq!(door.publish("a", &json!({ "data": nested(399) })).0, 201);
}

/// Lists in lists, so deep.
fn nested(depth: usize) -> Value {
    (1..depth).fold(json!([]), |inner, _| Value::Array(vec![inner]))
}

#[test]
fn a_poll_with_the_timeout_zero_does_not_wait() {
    let (_demo, door) = demo();
    for zero in ["0", "0s", "0ms"] {
        let path = format!("/rooms/a/poll?last_id=0&timeout={zero}");
        assert_eq!(door.request("GET", &path, "", "").0, 204);
    }
    door.publish("a", &json!({ "data": 1 }));
    let (status, page) = door.get("/rooms/a/poll?last_id=0&timeout=0");
    assert_eq!((status, &page["events"][0]["data"]), (200, &json!(1)));
}

#[test]
fn a_path_without_a_channel_is_a_problem() {
    let (_demo, door) = demo();
    for path in ["", "/", "/x", "/rooms", "/rooms/a/b/c", "/chat/rooms/a/b"] {
        for method in ["GET", "POST"] {
            let (status, head, body) = door.request(method, path, "", "");
            assert_eq!(status, 404, "{method} {path}");
            assert!(head.contains("application/problem+json"), "{path} {head}");
            let kind = door::kind(&serde_json::from_str(&body).unwrap());
            assert_eq!(kind, "not-found", "{path}");
        }
    }
}

#[test]
fn a_binary_frame_ends_a_websocket_with_its_code() {
    let (_demo, door) = demo();
    let mut socket = door.websocket("/events");
    assert_eq!(socket.code_after_binary(), 1003);
}

#[test]
fn a_wrong_frame_gets_a_problem_and_the_next_one_its_reply() {
    let (_demo, door) = demo();
    let mut socket = door.websocket("/events");
    let long = "a".repeat(70_000);
    let many: Vec<_> = (0..21).map(|number| number.to_string()).collect();
    let publish = |room: &str, data: Value, event: &str| json!({ "type": "publish", "room": room, "data": data, "event": event, "ref": "p" });
    let cases = [
        ("invalid", json!({ "type": "subscribe", "ref": 1 })),
        ("denied", json!({ "type": "subscribe", "room": "user:7" })),
        ("invalid", json!({ "type": "subscribe", "rooms": many })),
        ("denied", publish("user:7", json!(1), "tick")),
        ("invalid", publish("a", json!(1), "connect")),
        ("denied", json!({ "type": "unsubscribe", "room": "user:7" })),
        ("credentials", json!({ "type": "token", "token": "a.b.c" })),
        (
            "invalid",
            json!({ "type": "subscribe", "room": "a", "last_id": "x", "ref": [9] }),
        ),
        ("invalid", json!([])),
        (
            "too-large",
            json!({ "type": "publish", "room": "a", "data": long }),
        ),
    ];
    for (kind, frame) in cases {
        assert_eq!(socket.problem(&frame), kind, "{frame}");
    }
    let pong = socket.ask(&json!({ "type": "ping", "ref": 8 }));
    assert_eq!(pong, json!({ "type": "pong", "ref": 8 }));
    let mut refused = door.begin("/rooms/user:7/events", UPGRADE);
    line_with(&mut refused, "HTTP/1.1 403");
    let frame = r#"roomcast_door_limits_total{door="channels",limit="frame"} 1"#;
    assert!(door.metrics().contains(frame));
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

fn demo() -> (Program, Channels) {
    start(&["demo"])
}
