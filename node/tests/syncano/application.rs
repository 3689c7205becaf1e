//! Objects that an application keeps behind the door.

use serde_json::{Value, json};

use crate::{
    backend::Application,
    node::{ANNA, FREE, NOTHING, Node, PLAIN, READER, detail},
};

/// Starts an application, and returns it with the settings of its instance.
fn start() -> (Application, String) {
    let application = Application::start(|request| {
        let signature = request.header("roomcast-signature").unwrap();
        assert!(signature.starts_with("t="), "{signature}");
        match library(&request.json()) {
            (status, NOTHING) => (status, String::new()),
            (status, body) => (status, body.to_string()),
        }
    });
    let url = format!("url = \"{}objects\"", application.url);
    let settings =
        format!("[doors.syncano.instances.shop.hook]\n{url}\nsecret_env = \"HOOK_SECRET\"\n");
    (application, settings)
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
    let (application, settings) = start();
    let node = Node::start_with("hook", &settings);
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
    let wanted = json!({
        "type": "create", "instance": "shop", "class": "book", "caller": { "api_key": 3 },
        "groups": null, "all_rights": true,
        "object": {
            "owner": null, "owner_permissions": "full", "group": null,
            "group_permissions": "none", "other_permissions": "none",
            "channel": "rooms", "channel_room": "Books", "title": "Emma",
        },
    });
    assert_eq!(application.request().json(), wanted);
    let heard = parked.answer().body;
    assert_eq!(
        (&heard["action"], &heard["payload"]["id"]),
        (&json!("create"), &json!(41))
    );
    assert!(heard["payload"].get("channel_room").is_none(), "{heard}");
    let after = heard["id"].as_u64().unwrap();

    let shown = node.ask(FREE, &format!("GET {own}"), &NOTHING);
    assert_eq!((shown.status, &shown.body["owner"]), (200, &json!(7)));
    let title = json!({ "title": " Persuasion " });
    let changed = node.ask(FREE, &format!("POST {own}"), &title);
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
    let [_read, _update, delete] = [(); 3].map(|()| application.request().json());
    assert_eq!(delete["caller"], json!({ "api_key": 2, "user": 7 }));
    assert_eq!(
        (&delete["groups"], &delete["id"]),
        (&json!([3]), &json!(41))
    );
}

#[test]
fn a_refusal_or_a_failure_of_the_application_is_returned_and_not_published() {
    let (application, settings) = start();
    let node = Node::start_with("hook-refusals", &settings);
    let create = |title: &str| {
        let body = json!({ "title": title, "channel": "rooms", "channel_room": "Books" });
        node.ask(FREE, "POST classes/book/objects/", &body)
    };
    let taken = create("Taken");
    let wanted = json!({ "title": ["This field must be unique."] });
    assert_eq!(taken.both(), (400, &wanted));
    let odd = create("Odd");
    assert_eq!(odd.status, 503, "an object without an id");
    odd.has_header("retry-after: 1");
    let ask = |request: &str, body: &Value| node.ask(FREE, request, body);
    let not_yours = ask("DELETE classes/book/objects/41/", &NOTHING);
    assert_eq!(not_yours.both(), (403, &detail("Not yours.")));
    let unknown = ask("GET classes/book/objects/5/", &NOTHING);
    assert_eq!(unknown.both(), (404, &detail("Not Found")));
    let broken = json!({ "title": "Broken" });
    assert_eq!(ask("PUT classes/book/objects/41/", &broken).status, 503);
    // The door checks the channel itself, before it calls the application.
    let body = json!({ "title": "A", "channel": "rooms" });
    assert_eq!(ask("POST classes/book/objects/", &body).status, 400);
    let asked = application.requests.try_iter();
    let asked: Vec<_> = asked
        .map(|request| request.json()["type"].clone())
        .collect();
    assert_eq!(asked, ["create", "create", "delete", "read", "update"]);
    let history = node.ask(READER, "GET channels/rooms/history/?room=books", &NOTHING);
    assert_eq!(history.body["objects"], json!([]));
}
