//! Objects that an application keeps behind the door.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use serde_json::{Value, json};

use crate::{
    node::{ANNA, FREE, NOTHING, Node, PLAIN, READER, detail},
    process::DEADLINE,
};

/// A web server that answers requests of the hook, until the test ends.
struct Application {
    address: String,
    requests: Receiver<Value>,
}

impl Application {
    fn start(reply: fn(&Value) -> (u16, Value)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, requests) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                respond(stream.unwrap(), reply, &sender);
            }
        });
        Self { address, requests }
    }

    fn settings(&self) -> String {
        let address = &self.address;
        format!(
            "[doors.syncano.instances.shop.hook]\nurl = \"http://{address}/objects\"\n\
             secret_env = \"HOOK_SECRET\"\n"
        )
    }

    fn request(&self) -> Value {
        self.requests.recv_timeout(DEADLINE).unwrap()
    }
}

fn respond(mut stream: TcpStream, reply: fn(&Value) -> (u16, Value), requests: &Sender<Value>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut length, mut is_signed) = (0, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.to_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        is_signed |= line.starts_with("roomcast-signature: t=");
        if line.trim().is_empty() {
            break;
        }
    }
    assert!(is_signed, "no signature");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request: Value = serde_json::from_slice(&body).unwrap();
    let (status, body) = reply(&request);
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    // Nobody listens any more once the test is over.
    let _ = requests.send(request);
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + &body).as_bytes()).unwrap();
}

fn library(request: &Value) -> (u16, Value) {
    let place = json!({ "channel": "rooms", "channel_room": "Books" });
    match (request["type"].as_str().unwrap(), &request["id"]) {
        ("create", _) if request["object"]["title"] == "Taken" => {
            (400, json!({ "title": ["This field must be unique."] }))
        }
        ("create", _) if request["object"]["title"] == "Odd" => (200, json!({})),
        ("create", _) => (201, json!({ "id": 41, "revision": 3 })),
        ("update", _) if request["object"]["title"] == "Broken" => (500, NOTHING),
        ("delete", _) if request["caller"]["user"].is_null() => (403, detail("Not yours.")),
        ("read", id) if *id != 41 => (404, NOTHING),
        ("read", _) => (200, json!({ "title": "Emma", "owner": 7 })),
        ("update", _) => {
            let mut object = place;
            object["title"] = request["object"]["title"].as_str().unwrap().trim().into();
            (200, object)
        }
        _ => (200, place),
    }
}

#[test]
fn an_application_keeps_the_objects_and_its_changes_are_published() {
    let application = Application::start(library);
    let node = Node::start_with("hook", &application.settings());
    let parked = node.poll(READER, "rooms/poll/?room=books", 1);
    let body = json!({ "title": "Emma", "channel": "rooms", "channel_room": "Books", "x": 1 });
    let made = node.ask(FREE, "POST classes/book/objects/", &body);
    assert_eq!(made.status, 201, "{}", made.body);
    let (id, revision) = (&made.body["id"], &made.body["revision"]);
    assert_eq!((id, revision), (&json!(41), &json!(3)));
    assert_eq!(made.body["title"], "Emma");
    assert_eq!(made.body["channel_room"], "Books");
    let own = "/v1.1/instances/shop/classes/book/objects/41/";
    assert_eq!(made.body["links"]["self"], own);
    let request = application.request();
    let wanted = json!({
        "type": "create", "instance": "shop", "class": "book", "caller": { "api_key": 3 },
        "groups": null, "all_rights": true,
        "object": {
            "owner": null, "owner_permissions": "full", "group": null,
            "group_permissions": "none", "other_permissions": "none",
            "channel": "rooms", "channel_room": "Books", "title": "Emma",
        },
    });
    assert_eq!(request, wanted);
    let heard = parked.answer().body;
    assert_eq!(
        (&heard["action"], &heard["payload"]["id"]),
        (&json!("create"), &json!(41))
    );
    assert!(heard["payload"].get("channel_room").is_none(), "{heard}");
    let after = heard["id"].as_u64().unwrap();

    let shown = node.ask(FREE, &format!("GET {own}"), &NOTHING);
    assert_eq!((shown.status, &shown.body["owner"]), (200, &json!(7)));
    let changed = node.ask(
        FREE,
        &format!("POST {own}"),
        &json!({ "title": " Persuasion " }),
    );
    assert_eq!(
        (changed.status, &changed.body["title"]),
        (200, &json!("Persuasion"))
    );
    let poll = |after: u64| {
        let request = format!("GET channels/rooms/poll/?room=books&last_id={after}");
        node.ask(READER, &request, &NOTHING).body
    };
    let update = poll(after);
    assert_eq!(update["action"], "update");
    assert_eq!(
        update["payload"],
        json!({ "id": 41, "title": "Persuasion" })
    );

    let user = format!("X-API-KEY: {PLAIN}\r\nX-USER-KEY: {ANNA}\r\n");
    let deleted = node.send(&user, &format!("DELETE {own}"), "");
    assert_eq!((deleted.status, deleted.body), (204, NOTHING));
    let last = poll(update["id"].as_u64().unwrap());
    assert_eq!(
        (&last["action"], &last["payload"]),
        (&json!("delete"), &json!({ "id": 41 }))
    );
    let requests = [
        application.request(),
        application.request(),
        application.request(),
    ];
    assert_eq!(requests[2]["caller"], json!({ "api_key": 2, "user": 7 }));
    assert_eq!(
        (&requests[2]["groups"], &requests[2]["id"]),
        (&json!([3]), &json!(41))
    );
}

#[test]
fn a_refusal_or_a_failure_of_the_application_is_returned_and_not_published() {
    let application = Application::start(library);
    let node = Node::start_with("hook-refusals", &application.settings());
    let create = |title: &str| {
        let body = json!({ "title": title, "channel": "rooms", "channel_room": "Books" });
        node.ask(FREE, "POST classes/book/objects/", &body)
    };
    let taken = create("Taken");
    let wanted = json!({ "title": ["This field must be unique."] });
    assert_eq!(taken.both(), (400, &wanted));
    let odd = create("Odd");
    assert_eq!(odd.status, 503, "an object without an id");
    assert!(odd.head.contains("retry-after: 1\r\n"), "{}", odd.head);
    let ask = |request: &str, body: &Value| node.ask(FREE, request, body);
    let not_yours = ask("DELETE classes/book/objects/41/", &NOTHING);
    assert_eq!(not_yours.both(), (403, &detail("Not yours.")));
    let unknown = ask("GET classes/book/objects/5/", &NOTHING);
    assert_eq!(unknown.both(), (404, &detail("Not Found")));
    let broken = ask(
        "PUT classes/book/objects/41/",
        &json!({ "title": "Broken" }),
    );
    assert_eq!(broken.status, 503);
    // The door checks the channel itself, before it calls the application.
    let body = json!({ "title": "A", "channel": "rooms" });
    assert_eq!(ask("POST classes/book/objects/", &body).status, 400);
    let asked: Vec<_> = application
        .requests
        .try_iter()
        .map(|request| request["type"].clone())
        .collect();
    assert_eq!(asked, ["create", "create", "delete", "read", "update"]);
    let history = node.ask(READER, "GET channels/rooms/history/?room=books", &NOTHING);
    assert_eq!(history.body["objects"], json!([]));
}
