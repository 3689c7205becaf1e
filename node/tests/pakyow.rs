//! The door for Pakyow's clients: a real program, WebSockets as the stock client opens them, and an
//! application behind.
//!
//! That nothing arrives is shown by a ping: whatever was sent before it would come before its reply.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "process/application.rs"]
mod application;
#[path = "process/channels.rs"]
#[expect(dead_code, reason = "a part of it is for other tests")]
mod channels;
#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;

use std::{
    io::BufReader,
    net::TcpStream,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::channel,
    },
    thread,
};

use application::Application;
use channels::UPGRADE;
use process::{Program, client::Client};
use serde_json::{Value, json};
use tungstenite::{
    Bytes, Error, Message, WebSocket, client::IntoClientRequest as _, handshake::client::Response,
    http::HeaderName,
};

const KEY: &str = "k1";
const ID: &str = "abc";
/// The digest of both.
const DIGEST: &str = "7a1c653e3a0aec95b6f395b05a46eace0ce22a50";

/// The header with the key that may make all calls.
const ALL: &str = "Authorization: Bearer all\r\n";

#[test]
fn a_socket_hears_subscriptions_that_were_made_before_it_existed() {
    let door = Door::open("");
    let subscribed = door.subscribe(&["news", "news"]);
    assert_eq!(subscribed, json!({ "digest": DIGEST }));
    door.subscribe(&["news"]);
    let mut socket = door.connect();
    let payloads = json!(["a", [1, { "key": "b" }], null, { "key": 1.5 }]);
    for payload in payloads.as_array().unwrap() {
        door.push(payload, &["news", "nobody"]);
        let push = json!({ "payload": payload, "channel": "news" });
        assert_eq!(socket.next(), push);
    }
    socket.hears_nothing();
}

#[test]
fn a_wrong_pair_is_let_in_and_hears_nothing() {
    let door = Door::open("");
    door.subscribe(&["news"]);
    let queries = [
        "socket_connection_id=abc&socket_key=k2",
        "socket_connection_id=abd&socket_key=k1",
        "socket_connection_id=abc",
        "socket_connection_id=&socket_key=",
    ];
    let mut sockets = queries.map(|query| door.connect_as("/", query, &[]).unwrap());
    door.push(&json!(1), &["news", "*"]);
    sockets.iter_mut().for_each(Socket::hears_nothing);
}

#[test]
fn every_path_leads_in_and_a_bad_handshake_is_refused() {
    let door = Door::open("");
    door.subscribe(&["news"]);
    let query = format!("socket_connection_id={ID}&socket_key={KEY}");
    let mut sockets =
        ["/", "/deep/er", "/socket.io.js"].map(|path| door.connect_as(path, &query, &[]).unwrap());
    door.push(&json!(1), &["news"]);
    for socket in &mut sockets {
        assert_eq!(socket.next()["payload"], 1);
    }
    let (without_key, _) = UPGRADE.split_once("Sec-WebSocket-Key").unwrap();
    let (without_version, _) = UPGRADE.split_once("Sec-WebSocket-Version").unwrap();
    for (headers, status) in [
        (&*UPGRADE.replace("websocket", "WebSocket"), "101"),
        (without_version, "400"),
        (without_key, "400"),
    ] {
        let stream = process::send(&door.address, &format!("GET /?{query}"), headers, "");
        let mut stream = BufReader::new(stream);
        channels::line_with(&mut stream, &format!("HTTP/1.1 {status}"));
    }
    assert_eq!(door.http("GET /nothing", ""), 404);
}

#[test]
fn a_push_goes_once_to_each_channel_of_a_socket_that_a_name_stands_for() {
    let door = Door::open("");
    let mine = "scope:post;mutation:create::id:7";
    door.subscribe(&["chat:1", "chat:2", "a.c", mine]);
    let mut socket = door.connect();
    let mut pushed = |channels: &[&str]| {
        door.push(&json!(1), channels);
        let mut heard = socket.until_pong();
        heard.sort();
        heard
    };
    assert_eq!(pushed(&["chat:1", "chat:2"]), ["chat:1", "chat:2"]);
    assert_eq!(pushed(&["chat:*"]), ["chat:1", "chat:2"]);
    assert_eq!(pushed(&["chat:*", "*:1", "chat:1"]), ["chat:1", "chat:2"]);
    assert_eq!(pushed(&["abc", "[a]*", "a.*;*"]), [""; 0]);
    assert_eq!(pushed(&["scope:*"]), [""; 0]);
    assert_eq!(pushed(&["scope:post;mutation:*::id:7"]), [mine]);
    assert_eq!(pushed(&["*"]), ["a.c", "chat:1", "chat:2"]);
}

#[test]
fn a_socket_that_is_connected_is_subscribed_and_unsubscribed_at_once() {
    let door = Door::open("");
    let mut socket = door.connect();
    let digest = |channels: &[&str]| json!({ "digest": DIGEST, "channels": channels });
    door.call("subscribe", &digest(&["a", "b"]));
    door.push(&json!(1), &["b"]);
    assert_eq!(socket.next()["channel"], "b");
    door.call("unsubscribe", &digest(&["b", "never"]));
    door.push(&json!(2), &["b"]);
    socket.hears_nothing();
    door.push(&json!(3), &["a"]);
    assert_eq!(socket.next(), json!({ "payload": 3, "channel": "a" }));
}

#[test]
fn a_message_can_go_to_the_sockets_of_one_pair_alone() {
    let door = Door::open("");
    let [mut socket, mut twin] = [door.connect(), door.connect()];
    let mut other = door.connect_as("/", "socket_connection_id=x", &[]).unwrap();
    let push = json!({ "digest": DIGEST, "channel": "inbox", "message": [1] });
    door.call("push_to", &push);
    for socket in [&mut socket, &mut twin] {
        assert_eq!(socket.next(), json!({ "payload": [1], "channel": "inbox" }));
    }
    other.hears_nothing();
}

#[test]
fn subscriptions_end_with_the_connection_however_it_ends() {
    let door = Door::open("");
    for is_clean in [true, false] {
        door.subscribe(&["news"]);
        let mut socket = door.connect();
        if is_clean {
            socket.0.close(None).unwrap();
            let end = std::iter::repeat_with(|| socket.0.read()).find_map(Result::err);
            assert!(matches!(end, Some(Error::ConnectionClosed)), "{end:?}");
        }
        drop(socket);
        door.wait_for("roomcast_door_parked{door=\"pakyow\"}", 0);
        let mut again = door.connect();
        door.push(&json!(1), &["news"]);
        again.hears_nothing();
        door.subscribe(&["news"]);
        door.push(&json!(2), &["news"]);
        assert_eq!(again.next()["payload"], 2);
        drop(again);
        door.wait_for("roomcast_door_parked{door=\"pakyow\"}", 0);
    }
}

#[test]
fn a_ping_has_its_reply_and_what_is_no_message_has_none() {
    let door = Door::open("");
    let mut socket = door.connect();
    for text in [
        "{",
        "[]",
        "7",
        r#"{"action":"ping"}"#,
        r#"{"id":1}"#,
        r#"{"id":1,"action":"dance"}"#,
        r#"{"id":1,"action":"fetch-view","uri":"/"}"#,
    ] {
        socket.send(text);
    }
    socket.0.send(Message::binary(vec![0, 1])).unwrap();
    socket.0.send(Message::Ping(Bytes::from("x"))).unwrap();
    for id in [json!("a"), json!(7), json!([null])] {
        let input = json!({ "socket_connection_id": ID });
        socket.send(&json!({ "id": id, "action": "ping", "input": input }).to_string());
        let wanted = json!({ "id": id, "status": 200, "headers": {}, "body": "pong" });
        assert_eq!(socket.next(), wanted);
    }
    assert_eq!(socket.1, 1, "one pong of WebSocket");
}

#[test]
fn a_message_that_nests_deeper_than_nodes_read_is_refused() {
    let door = Door::open("");
    let nested = |depth| (1..depth).fold(json!([]), |inner, _| Value::Array(vec![inner]));
    let call = |call: &str, body: Value| door.try_call(call, &body, ALL);
    // The list of arguments and the object around the message are two of 400 levels.
    for (depth, wanted) in [(398, 200), (399, 400), (450, 400), (600, 400)] {
        // A pattern goes to other nodes as text.
        for channel in ["a", "a:*"] {
            let push = json!({ "message": nested(depth), "channels": [channel] });
            let (status, problem) = call("push", push);
            assert_eq!(status, wanted, "{depth} {problem}");
            if wanted == 400 {
                assert_eq!(problem["field"], "message", "{problem}");
            }
        }
        let push = json!({ "digest": DIGEST, "channel": "a", "message": nested(depth) });
        assert_eq!(call("push_to", push).0, wanted, "{depth}");
    }
}

#[test]
fn a_call_without_a_key_or_with_a_mistake_is_refused() {
    let door = Door::open("");
    let status = |call: &str, body: Value| door.try_call(call, &body, ALL);
    let pair = |channels: Value| json!({ "channels": channels, "digest": DIGEST });
    let short = json!({ "channels": ["a"], "digest": "short" });
    let nowhere = json!({ "digest": DIGEST, "channel": "", "message": 1 });
    for (call, body, field) in [
        ("subscribe", pair(json!([])), "channels"),
        ("unsubscribe", pair(json!([])), "channels"),
        ("push", json!({ "message": 1, "channels": [] }), "channels"),
        ("subscribe", pair(json!(["a", ""])), "channels[1]"),
        ("subscribe", pair(json!(["x".repeat(300)])), "channels[0]"),
        ("subscribe", pair(json!(["pw:socket:a"])), "channels[0]"),
        ("subscribe", short, "digest"),
        ("push_to", nowhere, "channel"),
    ] {
        let (status, problem) = status(call, body);
        assert_eq!(
            (status, &problem["field"]),
            (400, &json!(field)),
            "{problem}"
        );
    }
    assert_eq!(status("push", json!({ "channels": ["a"] })).0, 400);
    assert_eq!(status("dance", json!({})).0, 404);
    let most: Vec<_> = (0..=20).map(|number| number.to_string()).collect();
    let (code, problem) = status("subscribe", pair(json!(most)));
    assert_eq!(code, 400);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("20 channels"), "{detail}");
    let push = json!({ "message": 1, "channels": ["a"] });
    for (header, wanted) in [
        ("", 401),
        ("Authorization: Bearer wrong\r\n", 401),
        ("Authorization: Bearer join\r\n", 403),
        ("Authorization: Bearer chat\r\n", 403),
    ] {
        let (status, problem) = door.try_call("push", &push, header);
        assert_eq!(status, wanted, "{header} {problem}");
    }
    // What clients of the public port may not do.
    assert_eq!(door.http("POST /pakyow/push", &push.to_string()), 404);
}

#[test]
fn a_route_is_called_with_the_session_and_the_identity_of_the_socket() {
    let app = Application::start(|request| match request.path() {
        "/missing" => (404, "no such page".to_owned()),
        "/broken" => (500, "sorry".to_owned()),
        "/moved" => (302, String::new()),
        _ => (200, format!("{} {}", request.line, request.body)),
    });
    let door = Door::open(&format!("application = {:?}", app.url));
    let query = format!("socket_connection_id={ID}&socket_key={KEY}");
    let cookie = ("cookie", "session=s1; other=o");
    let mut socket = door.connect_as("/", &query, &[cookie]).unwrap();
    let mut call = |method: &str, uri: &str, input: Value| {
        let message = json!({
            "id": "r", "action": "call-route", "method": method, "uri": uri, "input": input,
            "container": "main", "partial": "row",
        });
        socket.send(&message.to_string());
        let reply = socket.next();
        assert_eq!(reply["id"], "r");
        reply
    };
    let reply = call("get", "/posts?page=2", json!({ "q": "a b", "ids": [1] }));
    let line = "GET /posts?page=2&q=a%20b&ids[]=1 HTTP/1.1 ";
    assert_eq!(
        (&reply["status"], &reply["body"]),
        (&json!(200), &json!(line))
    );
    assert_eq!(reply["headers"]["x-app"], "yes");
    assert!(reply["headers"].get("set-cookie").is_none(), "{reply}");
    let seen = app.request();
    for (name, value) in [
        cookie,
        ("x-socket-digest", DIGEST),
        ("x-socket-connection-id", ID),
        ("x-socket-container", "main"),
        ("x-socket-partial", "row"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    let reply = call("Post", "/posts", json!({ "title": "t" }));
    assert_eq!(reply["body"], "POST /posts HTTP/1.1 {\"title\":\"t\"}");
    let seen = app.request();
    assert_eq!(seen.header("content-type"), Some("application/json"));
    for (uri, status, text) in [
        ("/missing", 404, "no such page"),
        ("/broken", 500, "sorry"),
        ("/moved", 302, ""),
        ("http://127.0.0.1:1/evil", 200, "GET /evil HTTP/1.1 "),
        ("//127.0.0.1:1/evil", 200, "GET /evil HTTP/1.1 "),
    ] {
        let reply = call("GET", uri, json!({}));
        assert_eq!(
            (&reply["status"], &reply["body"]),
            (&json!(status), &json!(text)),
            "{uri}"
        );
    }
    for (method, status) in [("CONNECT", 405), ("TRACE", 405), ("G T", 400)] {
        let reply = call(method, "/posts", json!({}));
        assert_eq!(reply["status"], status, "{reply}");
    }
}

#[test]
fn an_application_that_does_not_respond_has_the_status_of_a_gateway() {
    let app = Application::start(|request| match request.path() {
        "/large" => (200, "x".repeat(2000)),
        _ => loop {
            thread::park();
        },
    });
    let application = format!("application = {:?}\n", app.url);
    let limits = "timeout = \"300ms\"\nmax_response = \"1KiB\"";
    let door = Door::open(&format!("{application}{limits}"));
    let mut socket = door.connect();
    assert_eq!(socket.call("/large")["status"], 502);
    assert_eq!(socket.call("/slow")["status"], 504);
    let outcome = |outcome| {
        format!("roomcast_hook_requests_total{{hook=\"pakyow-routes\",outcome=\"{outcome}\"}}")
    };
    door.wait_for(&outcome("timeout"), 1);
    // As many routes as the file can state are no panic.
    let narrow = format!(
        "concurrency = 1\nqueue = 0\nroutes_per_socket = {}",
        i64::MAX
    );
    let door = Door::open(&format!("{application}{narrow}"));
    let [mut first, mut second] = [door.connect(), door.connect()];
    first.send(&call_route(1, "/busy"));
    while app.request().path() != "/busy" {}
    assert_eq!(second.call("/")["status"], 503);
    door.wait_for(&outcome("overloaded"), 1);
    let nobody = Door::open("application = \"http://127.0.0.1:1\"");
    assert_eq!(nobody.connect().call("/")["status"], 502);
    assert_eq!(Door::open("").connect().call("/")["status"], 502);
}

#[test]
fn a_slow_route_delays_no_other_message_and_too_many_are_refused() {
    let (go, waits) = channel::<()>();
    let waits = Mutex::new(waits);
    let app = Application::start(move |request| {
        if request.path() == "/slow" {
            waits.lock().unwrap().recv().unwrap();
        }
        (200, request.path().to_owned())
    });
    let settings = format!(
        "application = {:?}\nroutes_per_socket = 1\nmax_message = \"1KiB\"",
        app.url
    );
    let door = Door::open(&settings);
    let mut socket = door.connect();
    for id in 0..5 {
        socket.send(&call_route(id, "/slow"));
    }
    socket.hears_nothing();
    socket.send(&call_route(5, "/fast"));
    let refused = socket.next();
    assert_eq!(
        (&refused["id"], &refused["status"]),
        (&json!(5), &json!(503))
    );
    door.wait_for("roomcast_pakyow_messages_total{outcome=\"busy\"}", 1);
    let mut other = door.connect();
    assert_eq!(other.call("/fast")["body"], "/fast");
    for _ in 0..5 {
        go.send(()).unwrap();
        assert_eq!(socket.next()["body"], "/slow");
    }
    socket.send(&json!({ "id": "l", "action": "ping", "x": "x".repeat(2000) }).to_string());
    let refused = socket.next();
    assert_eq!(
        (&refused["id"], &refused["status"]),
        (&json!("l"), &json!(413))
    );
    assert_eq!(socket.call("/fast")["status"], 200);
}

#[test]
fn a_subscription_that_a_route_makes_is_in_force_before_its_reply() {
    let calls = Arc::new(Mutex::new(String::new()));
    let known = Arc::clone(&calls);
    let app = Application::start(move |request| {
        let digest = request.header("x-socket-digest").unwrap();
        let address = known.lock().unwrap().clone();
        let subscribe = json!({ "channels": ["room"], "digest": digest });
        let (status, _) = post(&address, "/pakyow/subscribe", ALL, &subscribe);
        (status, "done".to_owned())
    });
    let door = Door::open(&format!("application = {:?}", app.url));
    calls.lock().unwrap().clone_from(&door.internal);
    let mut socket = door.connect();
    let reply = socket.call("/join");
    assert_eq!(
        (&reply["status"], &reply["body"]),
        (&json!(200), &json!("done"))
    );
    door.push(&json!(1), &["room"]);
    assert_eq!(socket.next()["channel"], "room");
}

#[test]
fn actions_that_only_the_application_knows_are_posted_to_it() {
    let app = Application::start(|request| (200, request.body.clone()));
    let settings = format!("application = {:?}\nactions = \"/actions\"", app.url);
    let door = Door::open(&settings);
    let mut socket = door.connect();
    let view = json!({ "id": 1, "action": "fetch-view", "uri": "/", "lookup": { "channel": "c" } });
    let dance = json!({ "id": 2, "action": "dance", "steps": [1] });
    for message in [view, dance] {
        socket.send(&message.to_string());
        let reply = socket.next();
        assert_eq!(
            (&reply["id"], &reply["status"]),
            (&message["id"], &json!(200))
        );
        assert_eq!(reply["body"], message.to_string());
        let seen = app.request();
        assert_eq!(seen.line, "POST /actions HTTP/1.1");
        assert_eq!(seen.header("x-socket-action"), message["action"].as_str());
    }
}

#[test]
fn the_hook_names_the_key_and_learns_of_sockets_that_come_and_go() {
    let answers = Arc::new(Mutex::new((200, json!({ "socket_key": KEY }))));
    let known = Arc::clone(&answers);
    let app = Application::start(move |_| {
        let (status, body) = &*known.lock().unwrap();
        (*status, body.to_string())
    });
    let url = format!("url = \"{}hook?a=b\"", app.url);
    let door = Door::open(&format!(
        "[doors.pakyow.hook]\n{url}\nsecret_env = \"SECRET\""
    ));
    door.subscribe(&["news"]);
    let query = format!("socket_connection_id={ID}&x=y");
    let connect = || door.connect_as("/path", &query, &[("cookie", "session=s")]);
    let mut socket = connect().unwrap();
    door.push(&json!(1), &["news"]);
    assert_eq!(socket.next()["payload"], 1);
    let asked = app.request();
    assert_eq!(asked.line, "POST /hook?a=b HTTP/1.1");
    assert_eq!(asked.header("cookie"), Some("session=s"));
    assert!(
        asked
            .header("roomcast-signature")
            .unwrap()
            .starts_with("t=")
    );
    let wanted = json!({ "type": "connect", "connection_id": ID, "path": "/path", "query": query });
    assert_eq!(asked.json(), wanted);
    let notice = |kind: &str| {
        let notice = json!({ "type": kind, "connection_id": ID, "digest": DIGEST });
        assert_eq!(app.request().json(), notice);
    };
    notice("join");
    drop(socket);
    notice("leave");

    *answers.lock().unwrap() = (200, json!({ "digest": DIGEST }));
    let mut socket = connect().unwrap();
    door.subscribe(&["news"]);
    door.push(&json!(2), &["news"]);
    assert_eq!(socket.next()["payload"], 2);
    drop(socket);
    *answers.lock().unwrap() = (200, json!({}));
    let mut nobody = connect().unwrap();
    door.push(&json!(3), &["news"]);
    nobody.hears_nothing();
    for (status, body) in [(500, json!({})), (200, json!({ "digest": "short" }))] {
        *answers.lock().unwrap() = (status, body);
        assert_eq!(connect().err(), Some(502));
    }
}

#[test]
fn the_key_may_be_in_a_cookie_and_foreign_pages_are_refused() {
    let door = Door::open("key_cookie = \"key\"");
    door.subscribe(&["news"]);
    let query = format!("socket_connection_id={ID}");
    let cookie = ("cookie", "a=b; key=k1");
    let mut socket = door.connect_as("/", &query, &[cookie]).unwrap();
    door.push(&json!(1), &["news"]);
    assert_eq!(socket.next()["payload"], 1);
    let origin = |origin: &str| door.connect_as("/", &query, &[("origin", origin)]).err();
    assert_eq!(origin("https://evil.example"), Some(403));
    assert_eq!(origin("http://127.0.0.1"), Some(403), "another port");
    assert_eq!(origin(&format!("http://{}", door.address)), None);
    let long = format!("socket_connection_id={}", "x".repeat(300));
    assert_eq!(door.connect_as("/", &long, &[]).err(), Some(400));
}

#[test]
fn an_address_has_a_limited_number_of_sockets() {
    let door = Door::open_with("[doors]\nmax_parked_per_address = 2\n", "");
    let [_one, two] = [door.connect(), door.connect()];
    let query = format!("socket_connection_id={ID}");
    assert_eq!(door.connect_as("/", &query, &[]).err(), Some(429));
    drop(two);
    door.wait_for("roomcast_door_parked{door=\"pakyow\"}", 1);
    door.connect();
}

#[test]
fn each_limit_has_an_error_and_is_counted_under_its_name() {
    let head =
        "max_payload = \"4KiB\"\n[api]\nmax_body = \"8KiB\"\n[doors]\nmax_parked_per_address = 1\n";
    let door = Door::open_with(head, "max_message = \"1KiB\"");
    let long = "x".repeat(300);
    for query in [
        format!("socket_connection_id={long}"),
        format!("socket_connection_id={ID}&socket_key={long}"),
    ] {
        assert_eq!(door.connect_as("/", &query, &[]).err(), Some(400));
    }
    let many: Vec<_> = (0..=1000).map(|number| number.to_string()).collect();
    let large = json!("x".repeat(9000));
    for (wanted, reason, channels, message) in [
        (400, "1 to 256 bytes", json!([long]), &json!(1)),
        (400, "1 to 1000 channels", json!(many), &json!(1)),
        (413, "at most 8KiB", json!(["a"]), &large),
    ] {
        let push = json!({ "channels": channels, "message": message });
        let (status, problem) = door.try_call("push", &push, ALL);
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == wanted && detail.contains(reason), "{problem}");
    }
    let more = json!({ "channels": many[..21], "digest": DIGEST });
    assert_eq!(door.try_call("subscribe", &more, ALL).0, 400);
    let identity = json!({ "channels": ["a"], "connection_id": long, "socket_key": KEY });
    assert_eq!(door.try_call("subscribe", &identity, ALL).0, 400);

    let mut socket = door.connect();
    let other = door.connect_as("/", "socket_connection_id=x", &[]);
    assert_eq!(other.err(), Some(429));
    let ping = |length| json!({ "id": 1, "action": "ping", "x": "x".repeat(length) }).to_string();
    socket.send(&ping(2000));
    assert_eq!(socket.next()["status"], 413);
    socket.send(&ping(5000));
    let end = std::iter::from_fn(|| Some(socket.0.read()));
    let mut ends = end.filter_map(|read| match read {
        Ok(Message::Close(Some(frame))) => Some(u16::from(frame.code)),
        Ok(_) => None,
        Err(error) => panic!("no close frame: {error}"),
    });
    assert_eq!(ends.next(), Some(1009));
    for (limit, count) in [
        ("query", 2),
        ("name", 2),
        ("rooms", 2),
        ("body", 1),
        ("parked_per_address", 1),
    ] {
        let labels = format!("{{door=\"pakyow\",limit=\"{limit}\"}}");
        door.wait_for(&format!("roomcast_door_limits_total{labels}"), count);
    }
    door.wait_for("roomcast_pakyow_messages_total{outcome=\"too_large\"}", 1);
    door.wait_for("roomcast_limit_reached_total{limit=\"message_size\"}", 1);
    door.wait_for("roomcast_door_parked{door=\"pakyow\"}", 0);
}

#[test]
fn clients_of_socket_io_and_of_this_door_meet_in_a_room() {
    let head = "client_rooms = true\nnamespace = [\"/\"]\n";
    let door = Door::open_with(head, "namespace = \"/\"");
    door.subscribe(&["tea"]);
    let mut socket = door.connect();
    let mut client = Client::connect(&door.address);
    client.ask(&json!(["join", "tea", { "quiet": true }]));
    door.push(&json!({ "hot": true }), &["tea"]);
    let push = json!({ "payload": { "hot": true }, "channel": "tea" });
    assert_eq!(client.event("push"), json!([push]));
    assert_eq!(socket.next(), push);
    door.push(&json!(1), &["t*"]);
    let push = json!({ "payload": 1, "channel": "tea" });
    assert_eq!(client.event("push"), json!([push]));
    assert_eq!(socket.next(), push);
    let event = json!({ "event": "news", "args": ["it rains"], "rooms": ["tea"] });
    assert_eq!(post(&door.internal, "/api/emit", ALL, &event).0, 200);
    let push = json!({ "payload": "it rains", "channel": "tea" });
    assert_eq!(socket.next(), push);
}

/// A program with the door, whose keys are `all`, `join` and `chat`.
struct Door {
    _program: Program,
    address: String,
    internal: String,
    file: PathBuf,
}

impl Door {
    /// `settings` are those of the door.
    fn open(settings: &str) -> Self {
        Self::open_with("", settings)
    }

    fn open_with(head: &str, settings: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = format!("roomcast-pakyow-{}-{number}.toml", std::process::id());
        let file = std::env::temp_dir().join(file);
        let keys = [
            ("all", "*", "*"),
            ("join", "*", "join"),
            ("chat", "/chat", "emit"),
        ];
        let keys = keys.map(|(key, namespace, verb)| {
            format!(
                "[[api.keys]]\nname = \"{key}\"\nhash = \"{}\"\n\
                 namespaces = [\"{namespace}\"]\nverbs = [\"{verb}\"]\n",
                channels::hash(key)
            )
        });
        let text = format!(
            "access = \"open\"\n{head}{}[doors.pakyow]\nmax_channels = 20\n{settings}\n",
            keys.concat()
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
        command.env_clear().env("SECRET", "0123456789abcdef");
        let (program, door) = channels::listen(command.args(["serve", "--config"]).arg(&file));
        Self {
            _program: program,
            address: door.address,
            internal: door.internal,
            file,
        }
    }

    fn connect(&self) -> Socket {
        let query = format!("socket_connection_id={ID}&socket_key={KEY}");
        self.connect_as("/", &query, &[]).unwrap()
    }

    /// An error is the status of the refusal.
    fn connect_as(&self, path: &str, query: &str, headers: &[(&str, &str)]) -> Result<Socket, u16> {
        let stream = process::connect(&self.address);
        let url = format!("ws://{}{path}?{query}", self.address);
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        match tungstenite::client(request, stream) {
            Ok((websocket, _)) => {
                let mut socket = Socket(websocket, 0);
                socket.hears_nothing();
                Ok(socket)
            }
            Err(tungstenite::HandshakeError::Failure(Error::Http(response))) => {
                Err(Response::status(&response).as_u16())
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn subscribe(&self, channels: &[&str]) -> Value {
        let pair = json!({ "channels": channels, "connection_id": ID, "socket_key": KEY });
        self.call("subscribe", &pair)
    }

    fn push(&self, message: &Value, channels: &[&str]) {
        self.call("push", &json!({ "message": message, "channels": channels }));
    }

    fn call(&self, call: &str, body: &Value) -> Value {
        let (status, result) = self.try_call(call, body, ALL);
        assert_eq!(status, 200, "{call} {body}: {result}");
        result
    }

    fn try_call(&self, call: &str, body: &Value, headers: &str) -> (u16, Value) {
        let path = format!("/pakyow/{call}");
        let (status, body) = post(&self.internal, &path, headers, body);
        (status, serde_json::from_str(&body).unwrap())
    }

    fn http(&self, request: &str, body: &str) -> u16 {
        process::http(&self.address, request, body).0
    }

    fn wait_for(&self, series: &str, value: u64) {
        let wanted = format!("{series} {value}");
        channels::until(&wanted, || {
            let (_, metrics) = process::http(&self.internal, "GET /metrics", "");
            metrics.lines().any(|line| line == wanted)
        });
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.file));
    }
}

/// A client, and the pongs that it has received.
struct Socket(WebSocket<TcpStream>, usize);

impl Socket {
    fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).unwrap();
    }

    fn next(&mut self) -> Value {
        loop {
            match self.0.read() {
                Ok(Message::Text(text)) => return serde_json::from_str(&text).unwrap(),
                Ok(Message::Pong(_)) => self.1 += 1,
                Ok(Message::Ping(_)) => {}
                other => panic!("no message: {other:?}"),
            }
        }
    }

    /// The channels of the pushes until the reply to a ping, which also shows that the socket is
    /// subscribed.
    fn until_pong(&mut self) -> Vec<String> {
        self.send(r#"{"id":"fence","action":"ping"}"#);
        let frames = std::iter::from_fn(|| {
            let frame = self.next();
            (frame["id"] != "fence").then_some(frame)
        });
        frames
            .map(|frame| frame["channel"].as_str().unwrap().to_owned())
            .collect()
    }

    fn hears_nothing(&mut self) {
        assert_eq!(self.until_pong(), [""; 0]);
    }

    fn call(&mut self, uri: &str) -> Value {
        self.send(&call_route("c", uri));
        self.next()
    }
}

fn call_route(id: impl Into<Value>, uri: &str) -> String {
    let id = id.into();
    json!({ "id": id, "action": "call-route", "method": "GET", "uri": uri }).to_string()
}

/// The status and the body of the response to a POST.
fn post(address: &str, path: &str, headers: &str, body: &Value) -> (u16, String) {
    let headers = format!("{headers}Content-Type: application/json\r\n");
    let stream = process::send(
        address,
        &format!("POST {path}"),
        &headers,
        &body.to_string(),
    );
    let (status, _, body) = process::response(stream);
    (status, body)
}
