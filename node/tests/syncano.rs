//! Syncano's door: real processes, requests as the SDKs send them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::Command,
};

use process::{DEADLINE, Program, field};
use serde_json::{Value, json};

const ACCOUNT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1";
const PLAIN: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb2";
const FREE: &str = "ccccccccccccccccccccccccccccccccccccccc3";
const READER: &str = "ddddddddddddddddddddddddddddddddddddddd4";
const ANNA: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee5";

/// The SHA-256 of the keys, as `printf %s "$KEY" | sha256sum` prints it.
const HASHES: [&str; 4] = [
    "8b5ad0f390f484b16da517c0caae04878223ff39f6313bb53528218c99573971",
    "a0de39ed1ed6b708c99fdacf3c46687523a50e96aea663beccdc141a5075cea5",
    "3ee20078705f454292bfdf5dfb20dae368c0652d29aeaf1635910ea05056fa8e",
    "dc4d45ceb656cb49167523fe1c50c7cd182d54445f5455e1e027c008b5a2093c",
];

/// A node with an instance, in whose settings everything is that the tests need.
struct Node {
    program: Program,
    address: String,
    internal: String,
    folder: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Another test may have the folder for itself by then; it is in the build's own.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Node {
    fn start(name: &str) -> Self {
        Self::start_with(name, "")
    }

    /// `more` is further settings of the door.
    fn start_with(name: &str, more: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("syncano-{name}"));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("roomcast.toml");
        fs::write(&file, format!("{more}{}", settings())).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
        command
            .env_clear()
            .env("ANNA_KEY", ANNA)
            .env("ANNA_PASSWORD", "tea");
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

    /// A request below the instance, with the key that its first word names.
    fn ask(&self, key: &str, request: &str, body: &Value) -> Answer {
        let headers = format!("X-API-KEY: {key}\r\nContent-Type: application/json\r\n");
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.send(&headers, request, &body)
    }

    fn send(&self, headers: &str, request: &str, body: &str) -> Answer {
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
struct Answer {
    status: u16,
    head: String,
    body: Value,
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
    fn both(&self) -> (u16, &Value) {
        (self.status, &self.body)
    }
}

fn settings() -> String {
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

fn detail(text: &str) -> Value {
    json!({ "detail": text })
}

const NOTHING: Value = Value::Null;

#[test]
fn channels_are_managed_under_both_prefixes_with_links_of_the_same() {
    let node = Node::start("manage");
    let body = json!({
        "name": "Chats", "type": "separate_rooms", "other_permissions": "publish",
        "custom_publish": "true", "instanceName": "shop",
    });
    let made = node.ask(ACCOUNT, "POST channels/", &body);
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.body["name"], "chats");
    assert_eq!(
        made.body["links"]["poll"],
        "/v1.1/instances/shop/channels/chats/poll/"
    );
    let old = node.ask(
        ACCOUNT,
        "GET /v1/instances/SHOP/channels/Chats/",
        &json!({}),
    );
    assert_eq!(old.status, 200, "a GET with a body works");
    assert_eq!(
        old.body["links"]["self"],
        "/v1/instances/shop/channels/chats/"
    );
    let twice = node.ask(ACCOUNT, "POST channels/", &json!({ "name": "chats" }));
    assert_eq!(twice.status, 400);
    assert!(twice.body["name"][0].is_string(), "{}", twice.body);
    for method in ["PATCH", "PUT"] {
        let change = json!({ "description": method, "type": "default", "name": "x" });
        let changed = node.ask(ACCOUNT, &format!("{method} channels/chats/"), &change);
        assert_eq!(changed.status, 200, "{}", changed.body);
        assert_eq!(changed.body["description"], method);
        assert_eq!(changed.body["type"], "separate_rooms");
    }
    let list = node.ask(ACCOUNT, "GET channels/", &NOTHING).body;
    assert_eq!((&list["next"], &list["prev"]), (&NOTHING, &NOTHING));
    let names = list["objects"].as_array().unwrap().iter();
    let names: Vec<_> = names
        .map(|channel| channel["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "chats", "default", "eventlog", "news", "quiet", "rooms", "team"
        ]
    );
    assert_eq!(
        node.ask(ACCOUNT, "DELETE channels/chats/", &NOTHING).status,
        204
    );
    let gone = node.ask(ACCOUNT, "GET channels/chats/", &NOTHING);
    assert_eq!(gone.both(), (404, &detail("Not found.")));
    for built_in in ["default", "eventlog"] {
        let request = format!("DELETE channels/{built_in}/");
        assert_eq!(node.ask(ACCOUNT, &request, &NOTHING).status, 403);
    }
}

#[test]
fn refusals_have_the_words_of_the_original() {
    let node = Node::start("refusals");
    let forbidden = detail("You do not have permission to perform this action.");
    let no_room = json!({ "room": "This field is required for channels with separate rooms." });
    let rows = [
        (
            "x",
            "GET channels/",
            NOTHING,
            403,
            detail("No such API Key."),
        ),
        (PLAIN, "GET channels/news/", NOTHING, 403, forbidden.clone()),
        (
            PLAIN,
            "POST channels/",
            json!({ "name": "abc" }),
            403,
            forbidden.clone(),
        ),
        (
            READER,
            "POST channels/news/publish/",
            NOTHING,
            403,
            forbidden.clone(),
        ),
        (
            READER,
            "GET channels/team/history/?room=a",
            NOTHING,
            403,
            forbidden.clone(),
        ),
        (
            FREE,
            "PATCH channels/news/",
            NOTHING,
            403,
            forbidden.clone(),
        ),
        (
            FREE,
            "GET channels/none/",
            NOTHING,
            404,
            detail("Not found."),
        ),
        (
            FREE,
            "POST channels/none/publish/",
            NOTHING,
            404,
            detail("Not found."),
        ),
        (
            FREE,
            "GET channels/none/history/",
            NOTHING,
            404,
            detail("Channel was not found."),
        ),
        (
            FREE,
            "GET /v1/instances/none/channels/",
            NOTHING,
            404,
            detail("Instance was not found."),
        ),
        (
            ACCOUNT,
            "POST channels/quiet/publish/",
            NOTHING,
            403,
            detail("Custom publish not allowed on this channel."),
        ),
        (
            FREE,
            "POST channels/rooms/publish/",
            NOTHING,
            400,
            no_room.clone(),
        ),
        (
            READER,
            "GET channels/rooms/history/?room=",
            NOTHING,
            400,
            no_room,
        ),
        (
            FREE,
            "POST channels/news/publish/",
            json!({ "payload": [] }),
            400,
            json!({ "payload": ["Payload passed in invalid format."] }),
        ),
        (
            FREE,
            "GET channels/news/history/?last_id=x",
            NOTHING,
            400,
            json!({ "last_id": ["A valid integer is required."] }),
        ),
        (
            FREE,
            "GET channels/news/history/?page_size=x",
            NOTHING,
            400,
            detail("Incorrect page parameter provided."),
        ),
    ];
    for (key, request, body, status, wanted) in rows {
        let answer = node.ask(key, request, &body);
        assert_eq!(answer.both(), (status, &wanted), "{key} {request}");
        assert!(
            answer.head.contains("access-control-allow-origin: *"),
            "{}",
            answer.head
        );
    }
    let missing = node.send("", "GET channels/news/", "");
    assert_eq!(missing.both(), (403, &forbidden));
    let method = node.ask(FREE, "PUT channels/news/publish/", &NOTHING);
    assert_eq!(method.status, 405);
    assert!(method.head.contains("allow: post"), "{}", method.head);
}

#[test]
fn the_size_is_judged_before_the_key_and_the_syntax_after_the_permission() {
    let node = Node::start("order");
    let large = "x".repeat(65_537);
    let publish = "POST channels/news/publish/";
    let answer = node.send("X-API-KEY: unknown\r\n", publish, &large);
    let wanted = detail("Request size limit exceeded (65536).");
    assert_eq!(answer.both(), (413, &wanted));
    let json = |key: &str| format!("X-API-KEY: {key}\r\nContent-Type: application/json\r\n");
    assert_eq!(node.send(&json(PLAIN), publish, "{").status, 403);
    let answer = node.send(&json(FREE), publish, "{");
    assert_eq!(answer.status, 400);
    let text = answer.body["detail"].as_str().unwrap();
    assert!(text.starts_with("JSON parse error - "), "{text}");
}

#[test]
fn what_is_published_is_in_the_history_of_its_room() {
    let node = Node::start("history");
    let publish = |key: &str, room: &str, payload: Value| {
        let body = json!({ "room": room, "payload": payload });
        let answer = node.ask(key, "POST channels/rooms/publish/", &body);
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body
    };
    let first = publish(FREE, "Tea", json!({ "n": 1 }));
    assert_eq!(first["author"], json!({ "api_key": 3 }));
    assert_eq!(first["action"], "custom");
    assert_eq!(first["metadata"], json!({ "type": "message" }));
    assert_eq!(first["payload"], json!({ "n": 1 }));
    let id = first["id"].as_u64().unwrap();
    let own = format!("/v1.1/instances/shop/channels/rooms/history/{id}/");
    assert_eq!(first["links"]["self"], own);
    let second = publish(ACCOUNT, "tea", json!("{\"n\":2}"));
    assert_eq!(second["author"], json!({ "admin": 1 }));
    assert_eq!(second["payload"], json!({ "n": 2 }));
    let other = publish(FREE, "coffee", json!({}));
    let page = node.ask(READER, "GET channels/rooms/history/?room=TEA", &NOTHING);
    assert_eq!(
        page.both(),
        (
            200,
            &json!({ "next": null, "prev": null, "objects": [second, first] })
        )
    );
    let page = node.ask(
        READER,
        "GET channels/rooms/history/?room=tea&page_size=1",
        &NOTHING,
    );
    assert_eq!(page.body["objects"], json!([second]));
    let next = page.body["next"].as_str().unwrap();
    assert!(next.contains("room=tea&page_size=1&direction=1"), "{next}");
    let page = node.ask(READER, &format!("GET {next}"), &NOTHING);
    assert_eq!(page.body["objects"], json!([first]));
    // Keys with all rights may leave the room out: the Python SDK never sends it.
    let all = node.ask(FREE, "GET channels/rooms/history/?ordering=asc", &NOTHING);
    assert_eq!(all.body["objects"], json!([first, second, other]));
    let one = node.ask(FREE, &format!("GET channels/rooms/history/{id}/"), &NOTHING);
    assert_eq!(one.both(), (200, &first));
    let one = node.ask(
        READER,
        &format!("GET channels/rooms/history/{id}/?room=tea"),
        &NOTHING,
    );
    assert_eq!(one.both(), (200, &first));
    let none = node.ask(FREE, "GET channels/rooms/history/1/", &NOTHING);
    assert_eq!(none.both(), (404, &detail("Not found.")));
}

#[test]
fn a_user_publishes_with_the_rights_of_the_group_and_gets_the_key_for_the_password() {
    let node = Node::start("users");
    let login = json!({ "username": "anna", "password": "tea" });
    let answer = node.ask(PLAIN, "POST user/auth/", &login);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["user_key"], ANNA);
    assert_eq!(
        (&answer.body["id"], &answer.body["username"]),
        (&json!(7), &json!("anna"))
    );
    let wrong = json!({ "username": "otto", "password": "tea" });
    let wrong = node.ask(PLAIN, "POST user/auth/", &wrong);
    assert_eq!(wrong.both(), (401, &detail("Invalid username.")));
    let headers = format!("Authorization: token {PLAIN}\r\nX-USER-KEY: {ANNA}\r\n");
    let form = "room=anna&payload=%7B%22hello%22%3A%22you%22%7D";
    let headers = format!("{headers}Content-Type: application/x-www-form-urlencoded\r\n");
    let answer = node.send(&headers, "POST channels/team/publish/", form);
    assert_eq!(answer.status, 201, "{}", answer.body);
    assert_eq!(answer.body["author"], json!({ "api_key": 2, "user": 7 }));
    assert_eq!(answer.body["payload"], json!({ "hello": "you" }));
}

#[test]
fn a_page_of_any_origin_may_use_the_door() {
    let node = Node::start("cors");
    let headers = "Origin: http://page\r\nAccess-Control-Request-Method: POST\r\n\
                   Access-Control-Request-Headers: content-type,x-api-key,x-user-key\r\n";
    let answer = node.send(headers, "OPTIONS channels/news/publish/", "");
    assert_eq!(answer.status, 204, "{}", answer.head);
    for line in [
        "access-control-allow-origin: *",
        "access-control-allow-headers: content-type,x-api-key,x-user-key",
    ] {
        assert!(answer.head.contains(line), "{}", answer.head);
    }
}

#[test]
fn a_class_has_a_schema_which_the_python_sdk_asks_for() {
    let node = Node::start("class");
    let class = node.ask(FREE, "GET classes/Book/", &NOTHING);
    assert_eq!(class.status, 200, "{}", class.body);
    assert_eq!(
        class.body["schema"],
        json!([{ "name": "title", "type": "string" }])
    );
    assert_eq!(class.body["status"], "ready");
    let objects = "/v1.1/instances/shop/classes/book/objects/";
    assert_eq!(class.body["links"]["objects"], objects);
    assert_eq!(node.ask(FREE, "GET classes/none/", &NOTHING).status, 404);
}

#[test]
fn a_poll_over_a_websocket_replays_what_was_missed_and_sends_up_to_a_hundred() {
    let node = Node::start("websocket");
    let plain = node.ask(
        READER,
        "GET channels/news/poll/?transport=websocket",
        &NOTHING,
    );
    assert_eq!(
        plain.both(),
        (400, &detail("Expected WebSocket connection."))
    );
    let first = node.publish("rooms", &json!({ "room": "tea", "payload": { "n": 1 } }));
    let path = format!(
        "rooms/poll/?transport=websocket&room=Tea&last_id={}",
        first - 1
    );
    let url = |key: &str| {
        let address = &node.address;
        format!("ws://{address}/v1.1/instances/shop/channels/{path}&api_key={key}")
    };
    let open = |key: &str| {
        let stream = TcpStream::connect(&node.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        tungstenite::client(url(key), stream).ok()
    };
    assert!(open(PLAIN).is_none(), "403 before the upgrade");
    let (mut websocket, response) = open(READER).unwrap();
    assert_eq!(response.status(), 101);
    let mut next = || -> Option<Value> {
        loop {
            match websocket.read() {
                Ok(tungstenite::Message::Text(text)) => {
                    return Some(serde_json::from_str(&text).unwrap());
                }
                Ok(tungstenite::Message::Close(frame)) => {
                    assert_eq!(u16::from(frame.unwrap().code), 1000);
                    return None;
                }
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let replayed = next().unwrap();
    assert_eq!(replayed["id"], first);
    assert_eq!(replayed.as_object().unwrap().len(), 6, "{replayed}");
    for n in 2..=100 {
        let id = node.publish("rooms", &json!({ "room": "tea", "payload": { "n": n } }));
        let heard = next().unwrap();
        assert_eq!(
            (&heard["id"], &heard["payload"]["n"]),
            (&json!(id), &json!(n))
        );
    }
    assert_eq!(next(), None, "it ends after a hundred");
    node.wait_for(0);
}

/// A request whose response comes later.
struct Pending(TcpStream);

impl Pending {
    fn answer(mut self) -> Answer {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        Answer::parse(&text)
    }
}

impl Node {
    /// Starts a poll, and waits until it is parked: the node counts `parked` of them.
    fn poll(&self, key: &str, path: &str, parked: usize) -> Pending {
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

    /// Waits until so many sockets are connected, which are the parked polls.
    fn wait_for(&self, parked: usize) {
        let line = "roomcast_door_parked{door=\"syncano\"}";
        let waited = std::iter::repeat_with(|| {
            let (_, metrics) = process::http(&self.internal, "GET /metrics", "");
            let found = metrics.lines().find_map(|text| text.strip_prefix(line));
            let count = found.map_or(0, |count| count.trim().parse().unwrap());
            if count != parked {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            count
        });
        // The deadline, in steps of the pause.
        let mut waited = waited.take(3000);
        assert!(
            waited.any(|count: usize| count == parked),
            "{parked} parked"
        );
    }

    fn publish(&self, channel: &str, body: &Value) -> u64 {
        let answer = self.ask(FREE, &format!("POST channels/{channel}/publish/"), body);
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body["id"].as_u64().unwrap()
    }
}

#[test]
fn a_parked_poll_gets_the_first_notification_and_a_later_one_the_oldest_it_has_not_seen() {
    let node = Node::start("poll");
    let parked = node.poll(READER, "rooms/poll/?last_id=&room=Tea", 1);
    let first = node.publish("rooms", &json!({ "room": "tea", "payload": { "n": 1 } }));
    let answer = parked.answer();
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert_eq!(answer.body["id"], first);
    assert_eq!(answer.body["payload"], json!({ "n": 1 }));
    assert_eq!(answer.body.as_object().unwrap().len(), 6, "{}", answer.body);
    for line in [
        format!("x-last-id: {first}"),
        "cache-control: no-cache".to_owned(),
    ] {
        assert!(answer.head.contains(&line), "{}", answer.head);
    }
    let second = node.publish("rooms", &json!({ "room": "tea", "payload": { "n": 2 } }));
    node.publish("rooms", &json!({ "room": "tea", "payload": { "n": 3 } }));
    let after = |id: u64| {
        let request = format!("GET channels/rooms/poll/?room=tea&last_id={id}");
        node.ask(READER, &request, &NOTHING).body["id"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(after(first), second);
    assert_eq!(after(0), first, "the oldest that is kept");
    // A poll of another room, or with a negative id, waits.
    let other = node.poll(READER, "rooms/poll/?room=coffee&last_id=0", 1);
    let negative = node.poll(READER, "rooms/poll/?room=tea&last_id=-1", 2);
    let last = node.publish("rooms", &json!({ "room": "tea" }));
    assert_eq!(negative.answer().body["id"], last);
    let coffee = node.publish("rooms", &json!({ "room": "COFFEE" }));
    assert_eq!(other.answer().body["id"], coffee);
    node.wait_for(0);
}

#[test]
fn a_poll_whose_time_is_up_has_no_body_and_a_client_that_vanishes_frees_its_place() {
    let node = Node::start_with("timeout", "[doors.syncano]\npoll_timeout = \"1s\"\n");
    let answer = node.ask(READER, "GET channels/news/poll/", &NOTHING);
    assert_eq!((answer.status, answer.body), (204, NOTHING));
    assert!(
        answer.head.contains("cache-control: no-cache"),
        "{}",
        answer.head
    );
    let node = Node::start("vanish");
    let polls = [1, 2, 3].map(|parked| node.poll(READER, "news/poll/", parked));
    drop(polls);
    node.wait_for(0);
}

#[test]
fn a_refused_poll_that_is_repeated_at_once_is_made_to_pause() {
    let node = Node::start("refused-polls");
    let poll = || node.ask(READER, "GET channels/rooms/poll/", &NOTHING);
    let answers: Vec<_> = (0..10).map(|_| poll()).collect();
    assert_eq!(answers[0].status, 400);
    let room = json!({ "room": "This field is required for channels with separate rooms." });
    assert_eq!(answers[0].body, room);
    let throttled = answers.iter().find(|answer| answer.status == 429).unwrap();
    assert!(
        throttled.head.contains("retry-after: 1\r\n"),
        "{}",
        throttled.head
    );
    // A poll that is in order is not held up by them.
    node.publish("news", &json!({ "payload": {} }));
    assert_eq!(
        node.ask(READER, "GET channels/news/poll/?last_id=0", &NOTHING)
            .status,
        200
    );
}

#[test]
fn a_drain_makes_parked_polls_come_back_with_their_id() {
    let node = Node::start("drain");
    let parked = node.poll(READER, "news/poll/", 1);
    node.program.signal(rustix::process::Signal::TERM);
    let answer = parked.answer();
    assert_eq!(answer.status, 429);
    assert!(
        answer.head.contains("retry-after: 1\r\n"),
        "{}",
        answer.head
    );
}

#[test]
fn an_object_that_is_created_with_a_channel_and_a_room_is_told_there() {
    let node = Node::start("objects");
    let parked = node.poll(READER, "rooms/poll/?room=books", 1);
    let body = json!({
        "title": "Emma", "channel": "Rooms", "channel_room": "Books", "className": "book",
    });
    let made = node.ask(FREE, "POST classes/book/objects/", &body);
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.body["channel"], "rooms");
    assert_eq!(made.body["channel_room"], "Books");
    assert_eq!(made.body["revision"], 1);
    assert!(made.body.get("className").is_none());
    let id = made.body["id"].as_u64().unwrap();
    let own = format!("/v1.1/instances/shop/classes/book/objects/{id}/");
    assert_eq!(made.body["links"]["self"], own);
    let told = parked.answer().body;
    assert_eq!(told["action"], "create");
    assert_eq!(
        told["metadata"],
        json!({ "type": "object", "class": "book" })
    );
    assert_eq!(
        (&told["payload"]["title"], &told["payload"]["id"]),
        (&json!("Emma"), &json!(id))
    );
    for absent in ["links", "channel", "channel_room"] {
        assert!(told["payload"].get(absent).is_none(), "{told}");
    }
    let mut last = told["id"].as_u64().unwrap();
    let mut next = || {
        let request = format!("GET channels/rooms/poll/?room=books&last_id={last}");
        let told = node.ask(READER, &request, &NOTHING).body;
        last = told["id"].as_u64().unwrap();
        (told["action"].clone(), told["payload"].clone())
    };
    // The Python SDK changes an object by POST.
    for (method, title) in [("POST", "A"), ("PATCH", "B"), ("PUT", "C")] {
        let change = json!({ "title": title, "channel": "news", "channel_room": "x" });
        let changed = node.ask(FREE, &format!("{method} {own}"), &change);
        assert_eq!(changed.status, 200, "{}", changed.body);
        assert_eq!(changed.body["channel"], "rooms", "it cannot change");
        assert_eq!(
            next(),
            (json!("update"), json!({ "title": title, "id": id }))
        );
    }
    assert_eq!(
        node.ask(FREE, &format!("DELETE {own}"), &NOTHING).status,
        204
    );
    assert_eq!(next(), (json!("delete"), json!({ "id": id })));
    assert_eq!(
        node.ask(FREE, &format!("DELETE {own}"), &NOTHING).status,
        404
    );
}

#[test]
fn an_object_cannot_be_created_in_a_channel_that_does_not_fit() {
    let node = Node::start("object-refusals");
    let headers =
        format!("X-API-KEY: {PLAIN}\r\nX-USER-KEY: {ANNA}\r\nContent-Type: application/json\r\n");
    let create = |body: Value| {
        let answer = node.send(&headers, "POST classes/book/objects/", &body.to_string());
        (answer.status, answer.body)
    };
    let unknown = json!({ "channel": ["Object with name=x does not exist."] });
    assert_eq!(create(json!({ "channel": "x" })), (400, unknown));
    let text = "Channel room field is required for channels with separate rooms.";
    let no_room = json!({ "non_field_errors": [text] });
    assert_eq!(create(json!({ "channel": "rooms" })), (400, no_room));
    let text = "You do not have permission to publish data to specified channel.";
    assert_eq!(create(json!({ "channel": "news" })), (403, detail(text)));
    // `custom_publish` does not count for objects, and a default channel has no rooms.
    let (status, made) = create(json!({ "channel": "quiet", "channel_room": "x" }));
    assert_eq!(status, 201, "{made}");
    assert_eq!(
        (&made["channel_room"], &made["owner"]),
        (&NOTHING, &json!(7))
    );
    let plain = node.ask(PLAIN, "POST classes/book/objects/", &json!({}));
    assert_eq!(plain.status, 403);
}
