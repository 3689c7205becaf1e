//! Everything that Node's adapters and emitters were seen to publish is read and written again, to
//! the same bytes on the same channel; and every channel that they subscribed to is one of ours.

use std::collections::HashMap;

use roomcast_protocol::channel::{self, Channels, Dialect, Kind, ParsedChannel};
use roomcast_protocol::wire::{Asker, Entry, Incoming, Publication, StoredSession, Wire};
use serde_json::Value;

use crate::captures::{Capture, NAMESPACES, classic, node, read, unhex, wire_as, wire_of};

/// Where we write other bytes in the classic dialect, which mean the same.
const OTHER_BYTES: [(&str, &str); 4] = [
    ("emit_room_number", "rooms are text"),
    ("emit_types", "dates are their text, 1e300 is not 0"),
    ("remote_socket_emit", "a flag for the sender alone"),
    ("remote_socket_emit_ack", "a flag for the sender alone"),
];

/// Reads the messages of a file one after the other, and writes each as its reader would.
struct Replay {
    wire: Wire,
    /// Who asked what is answered later.
    askers: HashMap<Box<str>, Asker>,
}

fn place<'a>(channels: &Channels, channel: &'a str) -> ParsedChannel<'a> {
    channels
        .parse(channel)
        .find(|place| NAMESPACES.contains(&place.namespace))
        .unwrap_or_else(|| panic!("{channel} is nobody's"))
}

/// The sender's uid, from the captured view of the message.
fn uid(capture: &Capture, view: &Value) -> String {
    let uid = view.get("uid").or_else(|| view.get(0));
    // Emitters leave it out of orders, answers of the classic dialect have none.
    let is_emitter = capture.text("from") == "emitter";
    let missing = if is_emitter { "emitter" } else { "none" };
    uid.and_then(Value::as_str).unwrap_or(missing).into()
}

fn view(capture: &Capture) -> Value {
    if capture.has("payload_text") {
        serde_json::from_str(capture.text("payload_text")).unwrap()
    } else {
        capture.decoded()
    }
}

impl Replay {
    fn heard(&self, capture: &Capture) -> Incoming {
        let channel = capture.text("channel");
        let place = place(self.wire.channels(), channel);
        let payload = capture.payload().unwrap();
        self.wire
            .read(place.namespace, place.kind, &payload)
            .unwrap_or_else(|error| panic!("{}: {error}", capture.name()))
    }

    fn written(&mut self, capture: &Capture, heard: &Incoming) -> Publication {
        let namespace = place(self.wire.channels(), capture.text("channel")).namespace;
        let uid = uid(capture, &view(capture));
        let (wire, node) = (&self.wire, node());
        match heard {
            Incoming::Message {
                message,
                confirm,
                position,
            } => {
                assert_eq!((confirm, position), (&None, &None));
                wire.message(namespace, &uid, message, None).unwrap()
            }
            Incoming::Question {
                asker,
                id,
                question,
            } => {
                assert_eq!(asker.uid.as_deref(), Some(&*uid));
                assert_eq!(asker.node, None);
                self.askers.insert(id.clone(), asker.clone());
                let asked = wire.question(namespace, &uid, &node, id, question).unwrap();
                without_node(asked)
            }
            Incoming::Response {
                id,
                node: answerer,
                reply,
            } => {
                assert_eq!(*answerer, None);
                let asker = &self.askers[id];
                let response = wire.response(namespace, asker, id, &node, reply).unwrap();
                let own = channel::uid(&node, namespace, wire.channels().dialect());
                with_uid(response.unwrap(), own.as_str(), &uid)
            }
            Incoming::Ignored => panic!("{} is ignored", capture.name()),
        }
    }
}

/// What Node would have written where we say which node we are.
fn without_node(publication: Publication) -> Publication {
    let name = node();
    let mut payload = publication.payload.to_vec();
    let text = format!(",\"node\":\"{name}\"").into_bytes();
    let packed = [b"\xa4node\xb4", name.as_str().as_bytes()].concat();
    let is_packed = payload[0] & 0xf0 == 0x80;
    let member = if is_packed { packed } else { text };
    let at = payload
        .windows(member.len())
        .position(|window| window == member)
        .unwrap();
    payload.drain(at..at + member.len());
    if is_packed {
        payload[0] -= 1;
    }
    Publication {
        payload: payload.into(),
        ..publication
    }
}

fn with_uid(publication: Publication, own: &str, other: &str) -> Publication {
    if own.len() != other.len() {
        return publication;
    }
    let mut payload = publication.payload.to_vec();
    let at = payload
        .windows(own.len())
        .rposition(|window| window == own.as_bytes());
    payload[at.unwrap()..][..own.len()].copy_from_slice(other.as_bytes());
    Publication {
        payload: payload.into(),
        ..publication
    }
}

/// Replays a file; returns how many messages it had.
fn replay(file: &str) -> usize {
    let mut replay = Replay {
        wire: wire_of(file),
        askers: HashMap::new(),
    };
    let mut count = 0;
    for capture in read(file) {
        if !capture.text("redis_command").ends_with("PUBLISH") {
            continue;
        }
        count += 1;
        let heard = replay.heard(&capture);
        let written = replay.written(&capture, &heard);
        let name = capture.name();
        assert_eq!(written.channel, capture.text("channel"), "{name}");
        let is_other = OTHER_BYTES.iter().any(|(step, _)| *step == name);
        if file == "classic" && is_other && capture.is_first() {
            assert_ne!(written.payload, capture.payload().unwrap(), "{name}");
            let place = place(replay.wire.channels(), &written.channel);
            let again = replay
                .wire
                .read(place.namespace, place.kind, &written.payload);
            assert_eq!(plain(again.unwrap()), plain(heard), "{name}");
        } else {
            let written = String::from_utf8_lossy(&written.payload).into_owned();
            let captured = capture.payload().unwrap();
            assert_eq!(written, String::from_utf8_lossy(&captured), "{name}");
        }
    }
    count
}

/// Without who we are.
fn plain(heard: Incoming) -> Incoming {
    match heard {
        Incoming::Question { id, question, .. } => Incoming::Question {
            asker: Asker::default(),
            id,
            question,
        },
        other => other,
    }
}

#[test]
fn nodes_classic_adapter_is_read_and_written_again() {
    assert_eq!(replay("classic"), 61);
    assert_eq!(replay("classic-key"), 17);
    assert_eq!(replay("classic-specific-response"), 16);
    assert_eq!(replay("classic-json-parser"), 19);
}

#[test]
fn nodes_sharded_adapter_is_read_and_written_again() {
    assert_eq!(replay("sharded-static"), 40);
    assert_eq!(replay("sharded-dynamic"), 40);
    assert_eq!(replay("sharded-dynamic-private"), 40);
}

/// Messages that are published on channels, and entries that are appended to the stream.
#[test]
fn nodes_streams_adapter_is_read_and_written_again() {
    assert_eq!(replay("streams"), 8);
    assert_eq!(replay_entries("streams"), 10);
}

/// It puts the namespace into the packet, too, and orders its options in another way.
#[test]
fn nodes_emitter_of_streams_is_read_and_means_what_we_write() {
    assert_eq!(replay_entries("streams-emitter"), 9);
}

/// Reads the entries of a file and writes each again; returns how many it had.
fn replay_entries(file: &str) -> usize {
    let wire = wire_of(file);
    let mut count = 0;
    for capture in read(file) {
        if capture.text("redis_command") != "XADD" {
            continue;
        }
        count += 1;
        let words = capture.list("args").iter();
        let words: Vec<_> = words.map(|word| word.as_str().unwrap()).collect();
        let fields = words[6..].chunks(2);
        let fields: Vec<_> = fields.map(|pair| (pair[0], pair[1])).collect();
        let bytes = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        let entry = Entry::from_fields(bytes).unwrap();
        let heard = wire.read_entry(&entry).unwrap();
        let Incoming::Message { message, .. } = &heard else {
            panic!("{}: {heard:?}", capture.name());
        };
        assert_eq!(
            Entry::is_kept(&heard),
            entry.kind == "3" && capture.name() != "emit_volatile"
        );
        let written = wire.entry(&entry.namespace, &entry.uid, message, None);
        let written = written.unwrap();
        if file == "streams" {
            assert_eq!(written.fields().collect::<Vec<_>>(), fields);
        }
        assert_eq!(wire.read_entry(&written).unwrap(), heard);
    }
    count
}

#[test]
fn an_entry_that_is_no_message_is_passed_over_and_a_broken_one_is_an_error() {
    let wire = wire_of("streams");
    let entry = |fields: &[(&'static str, &'static str)]| {
        let fields = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        Entry::from_fields(fields.collect::<Vec<_>>())
    };
    assert_eq!(entry(&[("a", "b")]), None);
    assert_eq!(entry(&[("nsp", ""), ("type", "3")]), None);
    let of = |kind, data| {
        let fields = [("uid", "u"), ("nsp", "/"), ("type", kind), ("data", data)];
        wire.read_entry(&entry(&fields).unwrap())
    };
    for kind in ["", "x", "2", "13", "-1", "300"] {
        assert_eq!(of(kind, "{}").unwrap(), Incoming::Ignored, "{kind}");
    }
    for data in ["", "{", "[]", "{}", "AAAA", "%"] {
        assert!(of("3", data).is_err(), "{data}");
    }
    // Answers come on channels, where their askers listen.
    let answer = "{\"requestId\":\"1\",\"clientCount\":1}";
    assert_eq!(of("11", answer).unwrap(), Incoming::Ignored);
}

/// Emitters write their options in another order.
#[test]
fn nodes_emitter_is_read_and_means_what_we_write() {
    for capture in read("emitter") {
        let Some(payload) = capture.payload() else {
            continue;
        };
        let name = capture.name();
        let mut replay = Replay {
            wire: match name {
                "parser_json_emit" => wire_of("classic-json-parser"),
                name if name.starts_with("key_") => wire_of("classic-key"),
                _ => wire_of("emitter"),
            },
            askers: HashMap::new(),
        };
        let heard = replay.heard(&capture);
        let written = replay.written(&capture, &heard);
        assert_eq!(written.channel, capture.text("channel"), "{name}");
        let place = place(replay.wire.channels(), &written.channel);
        if place.kind == Kind::Request {
            assert_eq!(written.payload, payload, "{name}");
        }
        let again = replay
            .wire
            .read(place.namespace, place.kind, &written.payload);
        assert_eq!(again.unwrap(), heard, "{name}");
    }
}

#[test]
fn every_subscription_of_nodes_adapters_is_a_channel_of_ours() {
    for file in [
        "classic",
        "classic-key",
        "classic-specific-response",
        "classic-json-parser",
        "sharded-static",
        "sharded-dynamic",
        "sharded-dynamic-private",
    ] {
        let wire = wire_of(file);
        let channels = wire.channels();
        let mut count = 0;
        for capture in read(file) {
            let command = capture.text("redis_command");
            let is_pattern = matches!(command, "PSUBSCRIBE" | "PUNSUBSCRIBE");
            for name in subscribed(&capture) {
                let plain = if is_pattern {
                    name.strip_suffix('*').unwrap()
                } else {
                    name
                };
                assert_eq!(made_again(channels, plain), plain, "{file}");
                count += 1;
            }
        }
        assert!(count > 20, "{file}: {count}");
    }
}

fn subscribed(capture: &Capture) -> impl Iterator<Item = &str> {
    let args = capture.list("args");
    let skipped = match capture.text("redis_command") {
        "PUBSUB" => 2,
        command if command.ends_with("SUBSCRIBE") => 1,
        _ => args.len(),
    };
    args[skipped..].iter().map(|name| name.as_str().unwrap())
}

fn made_again(channels: &Channels, name: &str) -> String {
    let ParsedChannel {
        kind,
        namespace,
        rest,
    } = place(channels, name);
    match (kind, rest) {
        (Kind::Broadcast, None) => channels.broadcast(namespace),
        (Kind::Broadcast, Some(room)) => {
            assert_eq!(channels.room_of(name, namespace), Some(Some(room)));
            channels.room(namespace, room)
        }
        (Kind::Request, _) => channels.request(namespace),
        (Kind::Response, None) => channels.response(namespace).unwrap(),
        (Kind::Response, Some(uid)) => channels.response_of(namespace, uid),
    }
}

#[test]
fn a_node_subscribes_to_what_nodes_adapter_subscribes_to() {
    let channels = Channels::new("socket.io", Dialect::Classic);
    let captures = read("classic");
    let names: Vec<_> = captures.iter().take(2).flat_map(subscribed).collect();
    let uid = "ea3jFg";
    assert_eq!(
        names,
        [
            &(channels.broadcast("/") + "*"),
            &channels.request("/"),
            &channels.response("/").unwrap(),
            &channels.response_of("/", uid),
        ]
    );
    let (wire, captures) = (wire_of("sharded-static"), read("sharded-static"));
    let names: Vec<_> = captures.iter().take(2).flat_map(subscribed).collect();
    let main = wire.channels().broadcast("/");
    assert_eq!(names[0], main);
    assert_eq!(wire.channels().request("/"), main);
    assert_eq!(wire.channels().response("/"), None);
    let uid = place(wire.channels(), names[1]).rest.unwrap();
    assert_eq!(names[1], wire.channels().response_of("/", uid));
}

#[test]
fn a_sender_knows_its_own_messages_and_no_others() {
    for file in ["classic", "classic-json-parser", "sharded-dynamic"] {
        let wire = wire_of(file);
        for capture in read(file) {
            let is_from_a = capture.text("from") == "A-pub";
            let Some(payload) = capture.payload().filter(|_| is_from_a) else {
                continue;
            };
            let namespace = place(wire.channels(), capture.text("channel")).namespace;
            let uid = uid(&capture, &view(&capture));
            let name = capture.name();
            assert!(wire.echo(namespace, &uid).is_own(&payload), "{name}");
            for other in ["", "none", &uid[1..], &uid[..uid.len() - 1]] {
                assert!(!wire.echo(namespace, other).is_own(&payload), "{name}");
            }
        }
    }
    let echo = wire_as("p", Dialect::Classic, Default::default()).echo("/", "u");
    assert!(!echo.is_own(b""));
    assert!(!echo.is_own(b"["));
    assert!(!echo.is_own(&unhex("9301")));
    let (wire, text) = (classic(), r#"{"type":2,"x":{"uid":"u"},"uid":"v"}"#);
    assert!(!wire.echo("/", "u").is_own(text.as_bytes()));
}

#[test]
fn nodes_sessions_are_read_and_ours_have_what_node_reads() {
    let wire = wire_of("streams");
    let captures = read("streams");
    let capture = captures.iter().find(|c| c.name() == "session_persist");
    let words = capture.unwrap().list("args");
    let read = wire.read_session(words[2].as_str().unwrap().as_bytes());
    let read = read.unwrap();
    assert_eq!((&read.holder, &read.namespace), (&None, &None));
    let record: Value = serde_json::from_slice(&read.record).unwrap();
    let expected = serde_json::json!({
        "sid": "b8CQbuuBK0kzR9JvAAAC", "owner": "", "rooms": ["room1"],
        "data": { "user": "u-B" }, "since": null,
    });
    assert_eq!(record, expected);

    let holder = "0123456789abcdefghij";
    let written = StoredSession::write(holder, "/", "p", &read.record);
    assert!(written.starts_with(&StoredSession::head_of(holder)));
    assert!(written.starts_with(&StoredSession::head()));
    assert_eq!(StoredSession::head_of(holder).len(), 40);
    let again = wire.read_session(written.as_bytes()).unwrap();
    let ours = StoredSession {
        holder: Some(holder.into()),
        namespace: Some("/".into()),
        record: read.record,
    };
    assert_eq!(again, ours);
    for broken in ["", "%", "AAAA", "gA=="] {
        assert!(wire.read_session(broken.as_bytes()).is_err(), "{broken}");
    }
}
