//! Syncano's door: real processes, requests as the SDKs send them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "syncano/application.rs"]
mod application;
#[path = "process/application.rs"]
#[expect(dead_code, reason = "a part of it is for other tests")]
mod backend;
#[path = "process/channels.rs"]
#[expect(dead_code, reason = "a part of it is for other tests")]
mod channels;
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
    let path = "/v1.1/instances/shop/channels/chats/poll/";
    assert_eq!(made.body["links"]["poll"], path);
    let get = "GET /v1/instances/SHOP/channels/Chats/";
    let old = node.ask(ACCOUNT, get, &json!({}));
    assert_eq!(old.status, 200, "a GET with a body works");
    let path = "/v1/instances/shop/channels/chats/";
    assert_eq!(old.body["links"]["self"], path);
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
        .filter_map(|channel| channel["name"].as_str())
        .collect();
    let all = "chats default eventlog news quiet rooms team";
    assert_eq!(names.join(" "), all);
    let deleted = node.ask(ACCOUNT, "DELETE channels/chats/", &NOTHING);
    assert_eq!(deleted.status, 204);
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
    let key = detail("No such API Key.");
    let custom = detail("Custom publish not allowed on this channel.");
    let none = detail("Not found.");
    let channel = detail("Channel was not found.");
    let instance = detail("Instance was not found.");
    let page = detail("Incorrect page parameter provided.");
    let integer = json!({ "last_id": ["A valid integer is required."] });
    let rows = [
        (403, &key, "x", "GET channels/"),
        (403, &forbidden, PLAIN, "GET channels/news/"),
        (403, &forbidden, PLAIN, "POST channels/"),
        (403, &forbidden, READER, "POST channels/news/publish/"),
        (403, &forbidden, READER, "GET channels/team/history/?room=a"),
        (403, &forbidden, FREE, "PATCH channels/news/"),
        (404, &none, FREE, "GET channels/none/"),
        (404, &none, FREE, "POST channels/none/publish/"),
        (404, &channel, FREE, "GET channels/none/history/"),
        (404, &instance, FREE, "GET /v1/instances/none/channels/"),
        (403, &custom, ACCOUNT, "POST channels/quiet/publish/"),
        (400, &no_room, FREE, "POST channels/rooms/publish/"),
        (400, &no_room, READER, "GET channels/rooms/history/?room="),
        (400, &integer, FREE, "GET channels/news/history/?last_id=x"),
        (400, &page, FREE, "GET channels/news/history/?page_size=x"),
    ];
    for (status, wanted, key, request) in rows {
        let answer = node.ask(key, request, &NOTHING);
        assert_eq!(answer.both(), (status, wanted), "{key} {request}");
        answer.has_header("access-control-allow-origin: *");
    }
    let list = json!({ "payload": [] });
    let answer = node.ask(FREE, "POST channels/news/publish/", &list);
    let wanted = json!({ "payload": ["Payload passed in invalid format."] });
    assert_eq!(answer.both(), (400, &wanted));
    let missing = node.send("", "GET channels/news/", "");
    assert_eq!(missing.both(), (403, &forbidden));
    let method = node.ask(FREE, "PUT channels/news/publish/", &NOTHING);
    assert_eq!(method.status, 405);
    method.has_header("allow: post");
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
    let wanted = json!({ "next": null, "prev": null, "objects": [second, first] });
    assert_eq!(page.both(), (200, &wanted));
    let short = "GET channels/rooms/history/?room=tea&page_size=1";
    let page = node.ask(READER, short, &NOTHING);
    assert_eq!(page.body["objects"], json!([second]));
    let next = page.body["next"].as_str().unwrap();
    assert!(next.contains("room=tea&page_size=1&direction=1"), "{next}");
    let page = node.ask(READER, &format!("GET {next}"), &NOTHING);
    assert_eq!(page.body["objects"], json!([first]));
    // Keys with all rights may leave the room out: the Python SDK never sends it.
    let all = node.ask(FREE, "GET channels/rooms/history/?ordering=asc", &NOTHING);
    assert_eq!(all.body["objects"], json!([first, second, other]));
    for (key, room) in [(FREE, ""), (READER, "?room=tea")] {
        let request = format!("GET channels/rooms/history/{id}/{room}");
        assert_eq!(node.ask(key, &request, &NOTHING).both(), (200, &first));
    }
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
    for (name, password, text) in [
        ("otto", "tea", "Invalid username."),
        ("anna", "coffee", "Invalid password."),
    ] {
        let wrong = json!({ "username": name, "password": password });
        let wrong = node.ask(PLAIN, "POST user/auth/", &wrong);
        assert_eq!(wrong.both(), (401, &detail(text)));
    }
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
    answer.has_header("access-control-allow-origin: *");
    answer.has_header("access-control-allow-headers: content-type,x-api-key,x-user-key");
}

#[test]
fn a_class_has_a_schema_which_the_python_sdk_asks_for() {
    let node = Node::start("class");
    let class = node.ask(FREE, "GET classes/Book/", &NOTHING);
    assert_eq!(class.status, 200, "{}", class.body);
    let schema = json!([{ "name": "title", "type": "string" }]);
    assert_eq!(class.body["schema"], schema);
    assert_eq!(class.body["status"], "ready");
    let objects = "/v1.1/instances/shop/classes/book/objects/";
    assert_eq!(class.body["links"]["objects"], objects);
    assert_eq!(node.ask(FREE, "GET classes/none/", &NOTHING).status, 404);
}
