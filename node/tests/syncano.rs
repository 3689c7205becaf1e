//! Syncano's door: real processes, requests as the SDKs send them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "syncano/application.rs"]
mod application;
#[path = "syncano/limits.rs"]
mod limits;
#[path = "syncano/node.rs"]
mod node;
#[path = "syncano/objects.rs"]
mod objects;
#[path = "syncano/polls.rs"]
mod polls;
#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;
#[path = "syncano/reload.rs"]
mod reload;

use node::{ACCOUNT, ANNA, FREE, NOTHING, Node, PLAIN, READER, detail};
use serde_json::{Value, json};

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
    assert_eq!(twice.body["name"][0], "This field must be unique.");
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
    let wrong = json!({ "username": "anna", "password": "coffee" });
    let wrong = node.ask(PLAIN, "POST user/auth/", &wrong);
    assert_eq!(wrong.both(), (401, &detail("Invalid password.")));
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
