//! The limits of a history, and the rates of an instance.

use serde_json::{Value, json};

use crate::node::{Answer, FREE, NOTHING, Node, READER, detail, until};

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
    let mut page = node
        .ask(READER, &format!("GET channels/{path}"), &NOTHING)
        .body;
    loop {
        let objects = page["objects"].as_array().unwrap();
        found.extend(
            objects
                .iter()
                .map(|entry| entry["payload"]["n"].as_u64().unwrap()),
        );
        let Some(next) = page["next"].as_str() else {
            return found;
        };
        page = node.ask(READER, &format!("GET {next}"), &NOTHING).body;
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
    post_all(
        &node,
        path,
        (0..=100).map(|n| json!({ "data": { "n": n } })),
    );
    let newest: Vec<_> = (1..=100).rev().collect();
    assert_eq!(numbers(&node, "eventlog/history/?room=tea"), newest);
    let oldest = numbers(
        &node,
        "eventlog/history/?room=tea&ordering=asc&page_size=30",
    );
    assert_eq!(oldest, (1..=100).collect::<Vec<_>>());
    let poll = "GET channels/eventlog/poll/?room=tea&last_id=0";
    let first = node.ask(READER, poll, &NOTHING);
    assert_eq!(
        first.body["payload"]["n"], 1,
        "a poll begins where the list does"
    );
}

#[test]
fn a_notification_that_has_left_the_list_is_still_found_by_its_id() {
    let settings = "[doors.syncano]\nhistory = { age = \"1s\" }\n";
    let node = Node::start_with("age", settings);
    let body = json!({ "room": "tea", "payload": { "n": 1 } });
    let id = node.publish("rooms", &body);
    let list = |path: &str| {
        node.ask(FREE, &format!("GET channels/{path}"), &NOTHING)
            .body
    };
    for path in [
        "rooms/history/?room=tea",
        "rooms/history/?room=tea&ordering=asc",
        "rooms/history/",
    ] {
        until("an empty list", || list(path)["objects"] == json!([]));
    }
    for room in ["", "?room=tea"] {
        let path = format!("rooms/history/{id}/{room}");
        assert_eq!(list(&path)["payload"], json!({ "n": 1 }));
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
    let poll = || {
        node.ask(
            FREE,
            "GET channels/rooms/poll/?room=tea&last_id=0",
            &NOTHING,
        )
    };
    let requests: [(u16, &dyn Fn() -> Answer); 2] = [
        (200, &|| node.ask(FREE, "GET channels/news/", &NOTHING)),
        (200, &poll),
    ];
    until("a message", || {
        let body = json!({ "room": "tea" });
        node.ask(FREE, "POST channels/rooms/publish/", &body).status == 201
    });
    for (status, request) in requests {
        let mut refused = None;
        until("a refusal", || {
            let answer = request();
            let is_refused = answer.status == 429;
            refused = is_refused.then_some(answer);
            is_refused
        });
        let refused = refused.unwrap();
        assert_eq!(refused.body, detail("Request was throttled."));
        assert!(
            refused.head.contains("retry-after: 1\r\n"),
            "{}",
            refused.head
        );
        until("another second", || request().status == status);
    }
}
