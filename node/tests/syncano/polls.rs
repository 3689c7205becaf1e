//! Polls: parked, over WebSockets, refused, and ended by a drain.

use std::net::TcpStream;

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::{
    node::{ANNA, NOTHING, Node, PLAIN, READER, detail},
    process,
};

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
    answer.has_header(&format!("x-last-id: {first}"));
    answer.has_header("cache-control: no-cache");
    answer.has_header("access-control-allow-origin: *");
    let second = node.publish("rooms", &json!({ "room": "tea", "payload": { "n": 2 } }));
    node.publish("rooms", &json!({ "room": "tea", "payload": { "n": 3 } }));
    let after = |id: u64| {
        let request = format!("GET channels/rooms/poll/?room=tea&last_id={id}");
        let found = node.ask(READER, &request, &NOTHING).body;
        found["id"].as_u64().unwrap()
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
fn a_poll_after_an_id_that_was_never_given_gets_what_is_kept_or_comes() {
    let node = Node::start("lost-ids");
    // As after a loss of the log. Such an id must not keep the client from hearing smaller ones.
    let path = |room: &str| format!("rooms/poll/?room={room}&last_id=9000000000000000000");
    let parked = node.poll(READER, &path("tea"), 1);
    let first = node.publish("rooms", &json!({ "room": "tea" }));
    assert_eq!(parked.answer().body["id"], first);
    node.publish("rooms", &json!({ "room": "tea" }));
    let oldest = node.ask(READER, &format!("GET channels/{}", path("tea")), &NOTHING);
    assert_eq!(oldest.body["id"], first);
}

#[test]
fn the_requests_of_the_sdk_for_android_are_served() {
    let node = Node::start_with("android", "[doors.syncano]\npoll_timeout = \"1s\"\n");
    let headers = format!(
        "X-API-KEY: {PLAIN}\r\nX-USER-KEY: {ANNA}\r\nAccept-Encoding: gzip\r\n\
         Content-Type: application/json\r\n"
    );
    let send = |request: &str, body: &str| node.send(&headers, request, body);
    // It sends no id as long as it has none, and goes on with the same one after 204.
    let poll = |query: &str| send(&format!("GET channels/team/poll/?room=anna{query}"), "");
    assert_eq!(poll("").status, 204);
    let message = r#"{"room":"anna","payload":{"text":"hi"}}"#;
    let first = send("POST channels/team/publish/", message);
    assert_eq!(first.status, 201, "{}", first.body);
    let id = first.body["id"].as_u64().unwrap();
    let heard = poll(&format!("&last_id={}", id - 1));
    assert_eq!(heard.body["payload"], json!({ "text": "hi" }));
    assert_eq!(poll(&format!("&last_id={id}")).status, 204);
    let second = send("POST channels/team/publish/", message).body["id"].clone();
    assert_eq!(poll(&format!("&last_id={id}")).body["id"], second);
}

#[test]
fn a_poll_whose_time_is_up_has_no_body_and_a_client_that_vanishes_frees_its_place() {
    let node = Node::start_with("timeout", "[doors.syncano]\npoll_timeout = \"1s\"\n");
    let answer = node.ask(READER, "GET channels/news/poll/", &NOTHING);
    assert_eq!(answer.both(), (204, &NOTHING));
    answer.has_header("cache-control: no-cache");
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
    throttled.has_header("retry-after: 1");
    // A poll that is in order is not held up by them.
    node.publish("news", &json!({ "payload": {} }));
    let poll = "GET channels/news/poll/?last_id=0";
    assert_eq!(node.ask(READER, poll, &NOTHING).status, 200);
}

#[test]
fn a_drain_makes_parked_polls_come_back_with_their_id() {
    let node = Node::start("drain");
    let parked = node.poll(READER, "news/poll/", 1);
    node.program.signal(rustix::process::Signal::TERM);
    let answer = parked.answer();
    assert_eq!(answer.status, 429);
    answer.has_header("retry-after: 1");
}

/// The next notification, or `None` if the server closes with code 1000.
fn read(websocket: &mut WebSocket<TcpStream>) -> Option<Value> {
    loop {
        match websocket.read() {
            Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
            Ok(Message::Close(frame)) => {
                assert_eq!(u16::from(frame.unwrap().code), 1000);
                return None;
            }
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Opens a WebSocket with the key in the query, unless it is refused.
fn open(node: &Node, key: &str, path: &str) -> Option<WebSocket<TcpStream>> {
    let address = &node.address;
    let path = format!("{path}&transport=websocket&api_key={key}");
    let url = format!("ws://{address}/v1.1/instances/shop/channels/{path}");
    let stream = process::connect(address);
    let (websocket, response) = tungstenite::client(url, stream).ok()?;
    assert_eq!(response.status(), 101);
    Some(websocket)
}

#[test]
fn a_poll_over_a_websocket_ends_when_its_time_is_up() {
    let node = Node::start_with("websocket-time", "[doors.syncano]\npoll_timeout = \"1s\"\n");
    let mut websocket = open(&node, READER, "news/poll/?last_id=").unwrap();
    assert_eq!(read(&mut websocket), None);
    node.wait_for(0);
}

#[test]
fn a_poll_over_a_websocket_replays_what_was_missed_and_sends_up_to_a_hundred() {
    let node = Node::start("websocket");
    let poll = "GET channels/news/poll/?transport=websocket";
    let plain = node.ask(READER, poll, &NOTHING);
    assert_eq!(
        plain.both(),
        (400, &detail("Expected WebSocket connection."))
    );
    let first = node.publish("rooms", &json!({ "room": "tea", "payload": { "n": 1 } }));
    let path = format!("rooms/poll/?room=Tea&last_id={}", first - 1);
    assert!(open(&node, PLAIN, &path).is_none(), "403 first");
    let mut websocket = open(&node, READER, &path).unwrap();
    // Frames of a client are ignored.
    websocket.send("{\"room\":\"coffee\"}".into()).unwrap();
    let mut next = || -> Option<Value> { read(&mut websocket) };
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
