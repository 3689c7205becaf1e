//! The limits of a history, and the rates of an instance.

use serde_json::{Value, json};

use crate::{
    channels::until,
    node::{FREE, NOTHING, Node, READER, detail},
};

/// Opens the door for channels, too, because nobody may publish to the event log through Syncano's.
const OTHER_DOOR: &str = "\
    [doors.channels]\nnamespaces = [\"/syncano/shop\"]\n\
    [namespaces.\"/syncano/shop\"]\naccess = \"open\"\n";

/// Posts bodies one after the other on one connection, and expects the status 201 for each.
fn post_all(node: &Node, path: &str, bodies: impl Iterator<Item = Value>) {
    let mut requests = String::new();
    let mut count = 0;
    for body in bodies {
        let (body, head) = (body.to_string(), "HTTP/1.1\r\nHost: x\r\n");
        let length = body.len();
        requests.push_str(&format!(
            "POST {path} {head}X-API-KEY: {FREE}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        ));
        count += 1;
    }
    let text = node.pipeline(requests);
    assert_eq!(text.matches("HTTP/1.1 201 ").count(), count, "{path}");
}

/// The payloads' numbers of a whole history, page by page.
fn numbers(node: &Node, path: &str) -> Vec<u64> {
    let mut found = Vec::new();
    let mut next = format!("channels/{path}");
    loop {
        let page = node.ask(READER, &format!("GET {next}"), &NOTHING).body;
        let entries = page["objects"].as_array().unwrap().iter();
        found.extend(entries.map(|entry| entry["payload"]["n"].as_u64().unwrap()));
        match page["next"].as_str() {
            Some(path) => path.clone_into(&mut next),
            None => return found,
        }
    }
}

#[test]
fn a_history_has_the_newest_thousand_of_a_room_and_a_hundred_of_the_event_log() {
    let node = Node::start_with("thousand", OTHER_DOOR);
    let path = "/v1.1/instances/shop/channels/rooms/publish/";
    let message = |n: u64| json!({ "room": "tea", "payload": { "n": n } });
    post_all(&node, path, (0..=1000).map(message));
    let newest: Vec<_> = (1..=1000).rev().collect();
    assert_eq!(numbers(&node, "rooms/history/?room=tea"), newest);
    let path = "/channels/syncano%2Fshop/rooms/eventlog%23tea";
    let events = (0..=100).map(|n| json!({ "data": { "n": n } }));
    post_all(&node, path, events);
    let newest: Vec<_> = (1..=100).rev().collect();
    assert_eq!(numbers(&node, "eventlog/history/?room=tea"), newest);
    let ascending = "eventlog/history/?room=tea&ordering=asc&page_size=30";
    let oldest: Vec<_> = (1..=100).collect();
    assert_eq!(numbers(&node, ascending), oldest);
    // A poll begins where the list does.
    let poll = "GET channels/eventlog/poll/?room=tea&last_id=0";
    let first = node.ask(READER, poll, &NOTHING);
    assert_eq!(first.body["payload"]["n"], 1);
}

#[test]
fn a_notification_that_has_left_the_list_is_still_found_by_its_id() {
    let settings = "[doors.syncano]\nhistory = { age = \"1s\" }\n";
    let node = Node::start_with("age", settings);
    let body = json!({ "room": "tea", "payload": { "n": 1 } });
    let id = node.publish("rooms", &body);
    let list = |path: &str| {
        let request = format!("GET channels/rooms/history/{path}");
        node.ask(FREE, &request, &NOTHING).body
    };
    for path in ["?room=tea", "?room=tea&ordering=asc", ""] {
        until("an empty list", || list(path)["objects"] == json!([]));
    }
    for room in ["", "?room=tea"] {
        let found = list(&format!("{id}/{room}"));
        assert_eq!(found["payload"], json!({ "n": 1 }));
    }
    // It is not sent to a poll any more, although its id is greater.
    let parked = node.poll(READER, "rooms/poll/?room=tea&last_id=0", 1);
    let next = node.publish("rooms", &body);
    assert_eq!(parked.answer().body["id"], next);
}

#[test]
fn an_instance_gets_so_many_polls_and_other_requests_per_second() {
    let settings = "[doors.syncano]\nrequests_per_second = 1\npolls_per_second = 1\n";
    let node = Node::start_with("rates", settings);
    until("a message", || {
        let body = json!({ "room": "tea" });
        node.ask(FREE, "POST channels/rooms/publish/", &body).status == 201
    });
    for path in ["news/", "rooms/poll/?room=tea&last_id=0"] {
        let request = || node.ask(FREE, &format!("GET channels/{path}"), &NOTHING);
        let mut refused = request();
        until("a refusal", || {
            refused = request();
            refused.status == 429
        });
        assert_eq!(refused.body, detail("Request was throttled."));
        refused.has_header("retry-after: 1");
        until("another second", || request().status == 200);
    }
}
