//! Objects of classes, and their notifications.

use serde_json::{Value, json};

use crate::node::{ANNA, FREE, NOTHING, Node, PLAIN, READER, detail};

#[test]
fn an_object_that_is_created_with_a_channel_and_a_room_is_published_there() {
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
    let metadata = json!({ "type": "object", "class": "book" });
    assert_eq!(told["metadata"], metadata);
    let payload = &told["payload"];
    assert_eq!(
        (&payload["title"], &payload["id"]),
        (&json!("Emma"), &json!(id))
    );
    for absent in ["links", "channel", "channel_room"] {
        assert!(payload.get(absent).is_none(), "{told}");
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
        let payload = json!({ "title": title, "id": id });
        assert_eq!(next(), (json!("update"), payload));
    }
    let delete = || node.ask(FREE, &format!("DELETE {own}"), &NOTHING);
    assert_eq!(delete().status, 204);
    assert_eq!(next(), (json!("delete"), json!({ "id": id })));
    assert_eq!(delete().status, 404);
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
    let rooms = |room: &str| json!({ "channel": "rooms", "channel_room": room });
    let text = "Ensure this field has no more than 64 characters.";
    let too_long = json!({ "channel_room": [text] });
    assert_eq!(create(rooms(&"ä".repeat(65))), (400, too_long));
    assert_eq!(create(rooms(&"ä".repeat(64))).0, 201);
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
