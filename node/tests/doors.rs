//! Channels while others publish, while Redis is cut off or away, with every kind of access, at their limits,
//! and with as many parked polls as there are descriptors.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]

#[path = "process/application.rs"]
#[expect(dead_code, reason = "a part of it is for other tests")]
mod application;
#[path = "process/channels.rs"]
#[expect(dead_code, reason = "a part of it is for other tests")]
mod door;
#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;
#[path = "../../emitter/tests/support/mod.rs"]
mod redis;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
    thread,
    time::Duration,
};

use application::Application;
use door::{Channels, UPGRADE, cluster, hash, line_with, serve, start};
use redis::{Redis, until};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::{Value, json};

fn id(event: &Value) -> u64 {
    let id = event["id"].as_str();
    id.unwrap_or_else(|| panic!("{event}")).parse().unwrap()
}

fn publish(door: &Channels, room: &str) -> u64 {
    let (status, stored) = door.publish(room, &json!({ "data": 1 }));
    assert_eq!(status, 201, "{stored}");
    id(&stored)
}

#[test]
fn a_client_that_comes_while_others_publish_receives_each_event_once_and_in_order() {
    let (_demo, door) = start(&["demo"]);
    let first = publish(&door, "a");
    let publishing = ["a", "b"].map(|room| {
        let door = door.clone();
        thread::spawn(move || (0..150).map(|_| publish(&door, room)).collect::<Vec<_>>())
    });
    let rooms = "/rooms/a/events?room=b";
    let (mut streams, mut sockets) = (Vec::new(), Vec::new());
    while publishing.iter().any(|publisher| !publisher.is_finished()) && streams.len() < 50 {
        streams.push(door.stream(rooms, &format!("Last-Event-ID: {first}\r\n")));
        sockets.push(door.websocket(&format!("{rooms}&last_id={first}")));
    }
    let mut published: Vec<_> = publishing
        .map(|publisher| publisher.join().unwrap())
        .concat();
    published.sort_unstable();
    for stream in &mut streams {
        let received: Vec<_> = published.iter().map(|_| id(&stream.event())).collect();
        assert_eq!(received, published);
    }
    for socket in &mut sockets {
        let mut received = Vec::new();
        while received.len() < published.len() {
            let frame = socket.receive();
            match frame["type"].as_str() {
                Some("event") => received.push(id(&frame)),
                _ => assert_eq!(frame["type"], "subscribed", "{frame}"),
            }
        }
        assert_eq!(received, published);
    }
}

#[test]
fn streams_and_websockets_receive_what_is_published_while_their_node_hears_nothing() {
    let redis = Redis::start();
    let [(_one, one), (_two, two)] = cluster("deaf", &redis.url());
    let mut stream = one.stream("/rooms/a/events", "");
    let mut socket = one.websocket("/rooms/a/events");
    assert_eq!(socket.receive()["type"], "subscribed");
    let mut published = BTreeSet::new();
    // The nodes cannot subscribe again before these are published.
    let rights = |rights: [&str; 3]| {
        redis.command(&[&["ACL", "SETUSER", "default"], &rights[..]].concat());
    };
    rights(["-subscribe", "-psubscribe", "-ssubscribe"]);
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    published.extend((0..5).map(|_| publish(&two, "a")));
    rights(["+subscribe", "+psubscribe", "+ssubscribe"]);
    published.insert(publish(&two, "a"));
    let streamed: BTreeSet<_> = published.iter().map(|_| id(&stream.event())).collect();
    let framed: BTreeSet<_> = published.iter().map(|_| id(&socket.receive())).collect();
    assert_eq!((&streamed, &framed), (&published, &published));
}

#[test]
fn streams_and_websockets_go_on_after_redis_has_lost_its_data() {
    let redis = Redis::start();
    let [(_one, one), (_two, two)] = cluster("emptied", &redis.url());
    // A burst makes the ids run ahead of the clock, at which they begin again.
    let burst: Vec<_> = (0..60).map(|_| publish(&two, "a")).collect();
    let mut stream = one.stream("/rooms/a/events", "");
    let mut replayed = one.stream("/rooms/a/events?last_id=0", "");
    let mut socket = one.websocket("/rooms/a/events");
    assert_eq!(socket.receive()["type"], "subscribed");
    let received: Vec<_> = burst.iter().map(|_| id(&replayed.event())).collect();
    assert_eq!(received, burst);
    redis.command(&["FLUSHALL"]);
    let published: Vec<_> = (0..3).map(|_| publish(&two, "a")).collect();
    for stream in [&mut stream, &mut replayed] {
        let received: Vec<_> = published.iter().map(|_| id(&stream.event())).collect();
        assert_eq!(received, published);
    }
    let received: Vec<_> = published.iter().map(|_| id(&socket.receive())).collect();
    assert_eq!(received, published);
    // A client that has not heard of it yet gets all that is kept.
    let mut late = one.stream(&format!("/rooms/a/events?last_id={}", burst[59]), "");
    let received: Vec<_> = published.iter().map(|_| id(&late.event())).collect();
    assert_eq!(received, published);
}

#[test]
fn polls_miss_nothing_while_subscriptions_are_interrupted_again_and_again() {
    let redis = Redis::start();
    let [(_one, one), (_two, two)] = cluster("interrupted", &redis.url());
    let first = publish(&two, "a");
    let polling = thread::spawn(move || {
        let (mut last, mut received) = (first.to_string(), Vec::new());
        while received.last() != Some(&"end".to_owned()) {
            let (status, page) = one.get(&format!("/rooms/a/poll?room=b&last_id={last}"));
            // While its node cannot subscribe, a client asks again with the same id.
            if status == 200 {
                page["last_id"].as_str().unwrap().clone_into(&mut last);
                let events = page["events"].as_array().unwrap().iter();
                received.extend(events.map(|event| match event["data"].as_str() {
                    Some(data) => data.to_owned(),
                    None => event["id"].as_str().unwrap().to_owned(),
                }));
            }
        }
        received
    });
    let mut published = Vec::new();
    for index in 0..60 {
        if index % 2 == 0 {
            redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        let room = ["a", "b"][index / 3 % 2];
        published.push(publish(&two, room).to_string());
        thread::sleep(Duration::from_millis(20));
    }
    let (status, stored) = two.publish("b", &json!({ "data": "end" }));
    assert_eq!(status, 201, "{stored}");
    published.push("end".to_owned());
    assert_eq!(polling.join().unwrap(), published);
}

#[test]
fn nothing_is_stored_or_received_while_redis_is_away() {
    let mut redis = Redis::start();
    let [(_node, door)] = cluster("away", &redis.url());
    let mut stream = door.stream("/rooms/a/events", "");
    let mut socket = door.websocket("/events");
    redis.kill();
    for last_id in [Value::Null, json!("1")] {
        let subscribe = json!({ "type": "subscribe", "room": "a", "last_id": last_id });
        assert_eq!(socket.problem(&subscribe), "redis");
    }
    let problem = |method, path: &str, body| {
        let (status, _, body) = door.request(method, &format!("/rooms/{path}"), "", body);
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 503, "{body}");
        door::kind(&problem)
    };
    let refused = problem("POST", "a", r#"{"data":"nobody has it"}"#);
    assert!(
        ["not-stored", "unconfirmed"].contains(&&*refused),
        "{refused}"
    );
    for path in ["a/history", "a/poll", "a/poll?last_id=1", "b/events"] {
        assert_eq!(problem("GET", path, ""), "redis", "{path}");
    }
    redis.restart();
    let stored = until("a publish that is stored", || {
        let (status, stored) = door.publish("a", &json!({ "data": "stored" }));
        assert!(status == 201 || status == 503, "{stored}");
        (status == 201).then(|| id(&stored))
    });
    // The log has what was confirmed, and the stream receives what the log has.
    let (status, page) = door.get("/rooms/a/history");
    assert_eq!(status, 200, "{page}");
    let kept: Vec<_> = page["events"].as_array().unwrap().iter().map(id).collect();
    assert_eq!(kept.last(), Some(&stored), "{page}");
    let mut received: Vec<_> = kept.iter().map(|_| id(&stream.event())).collect();
    received.sort_unstable();
    assert_eq!(received, kept);
    // A client whose subscription failed is in no room.
    assert_eq!(
        socket.ask(&json!({ "type": "ping" })),
        json!({ "type": "pong" })
    );
}

#[test]
fn a_client_of_a_node_that_stops_goes_on_at_another() {
    let redis = Redis::start();
    let [(one, first), (_two, second)] = cluster("stop", &redis.url());
    let last = publish(&first, "a");
    let poll = format!("/rooms/a/poll?last_id={last}");
    let polling = {
        let (door, poll) = (first.clone(), poll.clone());
        thread::spawn(move || door.request("GET", &poll, "", ""))
    };
    let mut stream = first.stream("/rooms/a/events", "");
    let mut socket = first.websocket("/rooms/a/events");
    assert_eq!(socket.receive()["last_id"], last.to_string());
    first.wait_for_members("a", 3);
    one.signal(Signal::TERM);
    let (status, head, _) = polling.join().unwrap();
    assert_eq!(status, 204, "{head}");
    assert!(head.contains(&format!("last-event-id: {last}")), "{head}");
    stream.end();
    assert!(socket.ends(), "the node going away");
    assert_eq!(one.end().0, Some(0));
    let missed = publish(&second, "a");
    assert_eq!(id(&second.get(&poll).1["events"][0]), missed);
    let header = format!("Last-Event-ID: {last}\r\n");
    assert_eq!(
        id(&second.stream("/rooms/a/events", &header).event()),
        missed
    );
    let mut socket = second.websocket(&format!("/rooms/a/events?last_id={last}"));
    assert_eq!(id(&socket.receive()), missed);
}

#[test]
fn a_token_decides_in_a_header_a_query_and_a_frame() {
    let folder = redis::Directory::new();
    let [file, secret] = ["roomcast.toml", "secret"].map(|name| folder.file(name));
    std::fs::write(&secret, "a secret of 32 bytes at the least").unwrap();
    let settings = format!(
        "access = \"jwt\"\n[[jwt.keys]]\nalgorithm = \"HS256\"\nsecret_file = \"{secret}\"\n\
         [namespaces.\"/\".rooms]\njoin = [\"team:{{team}}\"]\nsend = [\"team:{{team}}\"]\n\
         history = [\"team:{{team}}\"]\n\
         [doors.channels]\nnamespaces = [\"/\"]\nquery_token = true\n"
    );
    std::fs::write(&file, settings).unwrap();
    let config = format!("--config={file}");
    let (_program, door) = start(&["serve", &config]);
    let token = |user: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
        command
            .env_clear()
            .args(["token", &config, "--user", user, "--claim", "team=red"]);
        let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
        output.trim().to_owned()
    };
    let ada = token("ada");
    let header = format!("Authorization: Bearer {ada}\r\n");
    let event = r#"{"data":1}"#;
    let wrong = "Authorization: Bearer a.b.c\r\n";
    let cases = [
        (401, "", "GET", "red/history"),
        (401, "", "GET", "red/events"),
        (401, wrong, "GET", "red/poll"),
        (401, "", "POST", "red"),
        (201, &header, "POST", "red"),
        (403, &header, "POST", "blue"),
        (200, &header, "GET", "red/history"),
        (403, &header, "GET", "blue/history"),
        (403, &header, "GET", "red/presence"),
        (200, &header, "GET", "red/poll?last_id=0"),
        (403, &header, "GET", "blue/poll"),
        (403, &header, "GET", "blue/events"),
    ];
    for (expected, headers, method, path) in cases {
        let body = if method == "POST" { event } else { "" };
        let path = format!("/rooms/team:{path}");
        let (status, head, body) = door.request(method, &path, headers, body);
        assert_eq!(status, expected, "{method} {path}: {body}");
        let has_scheme = head.contains("www-authenticate: bearer");
        assert_eq!(status == 401, has_scheme, "{head}");
    }
    let in_query = format!("token={ada}");
    let mut stream = door.stream(&format!("/rooms/team:red/events?last_id=0&{in_query}"), "");
    assert_eq!(stream.event()["data"], 1);
    let mut socket = door.websocket(&format!("/rooms/team:red/events?{in_query}"));
    assert_eq!(socket.receive()["type"], "subscribed");
    let reply = socket.ask(&json!({ "type": "token", "token": token("ada") }));
    assert_eq!(reply["type"], "token", "{reply}");
    assert!(reply["expires"].is_u64(), "{reply}");
    for wrong in [token("bob"), "a.b.c".to_owned()] {
        let frame = json!({ "type": "token", "token": wrong });
        assert_eq!(socket.problem(&frame), "credentials");
    }
    let frame = json!({ "type": "subscribe", "room": "team:blue" });
    assert_eq!(socket.problem(&frame), "denied");
}

#[test]
fn a_hook_decides_once_for_each_request() {
    let hook = Application::start(|request| {
        let operations = match request.json()["auth"]["token"] == "guest" {
            true => json!([]),
            false => json!([{ "op": "refuse", "message": "not you" }]),
        };
        (200, operations.to_string())
    });
    let settings = format!(
        "access = \"hook\"\n[hooks.app]\nurl = \"{}\"\non = [\"connect\"]\n\
         [namespaces.\"/\".rooms]\njoin = [\"*\"]\nsend = [\"*\"]\nhistory = [\"*\"]\n\
         [doors.channels]\nnamespaces = [\"/\"]\n",
        hook.url
    );
    let (_program, door) = serve("hook", &settings, &[]);
    let guest = "Authorization: Bearer guest\r\n";
    for (method, path, body) in [
        ("GET", "/rooms/a/history", ""),
        ("GET", "/rooms/a/poll", ""),
        ("GET", "/rooms/a/events", ""),
        ("POST", "/rooms/a", r#"{"data":1}"#),
    ] {
        let (status, _, body) = door.request(method, path, "Authorization: Bearer other\r\n", body);
        assert_eq!(status, 403, "{method} {path}: {body}");
        assert!(body.contains("not you"), "{body}");
    }
    let (status, _, body) = door.request("POST", "/rooms/a", guest, r#"{"data":1}"#);
    assert_eq!(status, 201, "{body}");
    let (status, _, body) = door.request("GET", "/rooms/a/poll?last_id=0", guest, "");
    assert_eq!(status, 200, "{body}");
    let mut stream = door.stream("/rooms/a/events?last_id=0", guest);
    assert_eq!(stream.event()["data"], 1);
    assert_eq!(hook.requests.try_iter().count(), 4 + 3);
}

#[test]
fn a_key_has_so_many_open_requests_of_any_kind() {
    let settings = format!(
        "[doors]\nmax_parked_per_key = 1\n[doors.channels]\nnamespaces = [\"/\"]\n\
         [[api.keys]]\nname = \"one\"\nhash = \"{}\"\nnamespaces = [\"/\"]\nverbs = [\"subscribe\"]\n",
        hash("one")
    );
    let (_program, door) = serve("key-places", &settings, &["--access=open"]);
    let key = "Authorization: Bearer one\r\n";
    let upgrade = format!("{key}{UPGRADE}");
    let _stream = door.stream("/rooms/a/events", key);
    for (path, headers) in [
        ("/rooms/a/events", key),
        ("/rooms/a/poll", key),
        ("/rooms/a/events", &*upgrade),
    ] {
        let mut response = door.begin(path, headers);
        line_with(&mut response, "HTTP/1.1 429");
        line_with(&mut response, "content-type: application/problem+json");
        line_with(&mut response, "retry-after: ");
    }
    // Others have their own places.
    let _other = door.stream("/rooms/a/events", "");
    let refused = r#"{door="channels",limit="parked_per_key"} 3"#;
    assert!(door.metrics().contains(refused));
}

const KEY: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee1";

/// Of two doors that lead into one room.
const POLLS: [&str; 2] = [
    "/channels/syncano%2Fshop/rooms/news%23lobby/poll",
    "/v1.1/instances/shop/channels/news/poll/?room=lobby",
];

#[test]
#[expect(clippy::print_stdout, reason = "the number depends on the system")]
fn thousands_of_parked_polls_wake_by_one_message_and_each_receives_it_once() {
    let count = descriptors().saturating_sub(600).min(10_000);
    let settings = format!(
        "[namespaces.\"/syncano/shop\"]\naccess = \"open\"\n\
         [doors]\nmax_parked_per_address = 20000\nmax_parked_per_key = 20000\n\
         [doors.channels]\nnamespaces = [\"/syncano/shop\"]\npoll_timeout = \"10m\"\n\
         [[doors.syncano.instances.shop.keys]]\nid = 2\nkind = \"api\"\nhash = \"{}\"\nignore_acl = true\n\
         [doors.syncano.instances.shop.channels.news]\ntype = \"separate_rooms\"\n\
         other_permissions = \"publish\"\ncustom_publish = true\n",
        hash(KEY)
    );
    let (_program, door) = serve("many", &settings, &[]);
    let send = |stream: &mut TcpStream, method: &str, path: &str, body: &str| {
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nX-API-KEY: {KEY}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
    };
    let resident_bytes = || metric(&door, "process_resident_memory_bytes");
    let before = resident_bytes();
    let mut polls = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = process::connect(&door.address);
        send(&mut stream, "GET", POLLS[number % 2], "");
        polls.push(stream);
    }
    until("all polls parked", || {
        let parked = |name| metric(&door, &format!("roomcast_door_parked{{door=\"{name}\"}}"));
        (parked("channels") + parked("syncano") == count).then_some(())
    });
    let each = resident_bytes().saturating_sub(before) / count;
    println!("{count} polls, each with {each} bytes");
    // Fewer would share what the program allocates once.
    assert!(each <= 8192 || count < 5000, "{each} bytes for a poll");
    until("all polls in the room", || {
        thread::sleep(Duration::from_millis(100));
        let (_, presence) = door.get("/syncano%2Fshop/rooms/news%23lobby/presence");
        (presence["total"] == count).then_some(())
    });
    let mut publisher = process::connect(&door.address);
    let path = "/v1.1/instances/shop/channels/news/publish/";
    let message = r#"{"room":"lobby","payload":{"a":1}}"#;
    send(&mut publisher, "POST", path, message);
    let (head, published) = response(&mut publisher);
    assert!(head.starts_with("HTTP/1.1 201"), "{head}");
    let id = published["id"].as_u64().unwrap();
    for (number, poll) in polls.iter_mut().enumerate() {
        let (head, body) = response(poll);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        match number % 2 {
            0 => {
                assert_eq!(body["last_id"], id.to_string(), "{body}");
                assert_eq!(body["events"].as_array().unwrap().len(), 1, "{body}");
            }
            _ => assert_eq!(body["id"], id, "{body}"),
        }
    }
    // Nothing else waits for those who come again.
    for poll in polls.iter_mut().step_by(98) {
        let again = format!("{}?last_id={id}&timeout=1ms", POLLS[0]);
        send(poll, "GET", &again, "");
        let (head, _) = response(poll);
        assert!(head.starts_with("HTTP/1.1 204"), "{head}");
    }
}

/// 0 if there is no such series yet.
fn metric(door: &Channels, series: &str) -> usize {
    let metrics = door.metrics();
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

/// The descriptors that each of two processes may have.
fn descriptors() -> usize {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    most.map_or(usize::MAX, |most| usize::try_from(most).unwrap())
}

/// The head and the body of a response on a connection that is kept.
fn response(stream: &mut TcpStream) -> (String, Value) {
    let mut received = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&received);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split_once("content-length: ").map_or(0, |(_, rest)| {
                rest.lines().next().unwrap().parse::<usize>().unwrap()
            });
            if body.len() >= length {
                assert_eq!(body.len(), length, "{text}");
                let body = serde_json::from_str(body).unwrap_or_default();
                return (head.to_owned(), body);
            }
        }
        let mut bytes = [0; 2048];
        let count = stream.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "{}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&bytes[..count]);
    }
}
