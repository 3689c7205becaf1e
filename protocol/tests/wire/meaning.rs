//! What the captured messages mean, one of each kind, said by hand.

use std::time::Duration;

use bytes::Bytes;
use roomcast_protocol::args::Args;
use roomcast_protocol::id::SocketId;
use roomcast_protocol::message::{Broadcast, Message};
use roomcast_protocol::question::{Answer, Question};
use roomcast_protocol::target::{Flags, Target};
use roomcast_protocol::wire::{Asker, Incoming, Reply};

use crate::captures::{NAMESPACES, message, read, target, wire_of};

/// The message of a step of a capture, `STEP` or `STEP#NUMBER` among those of the step.
fn heard(file: &str, step: &str) -> Incoming {
    let (name, number) = step.split_once('#').unwrap_or((step, "0"));
    let captures = read(file);
    let mut step = captures.iter().filter(|capture| capture.name() == name);
    let capture = step.nth(number.parse().unwrap()).unwrap();
    let wire = wire_of(file);
    let place = wire
        .channels()
        .parse(capture.text("channel"))
        .find(|place| NAMESPACES.contains(&place.namespace))
        .unwrap();
    let payload = capture.payload().unwrap();
    wire.read(place.namespace, place.kind, &payload).unwrap()
}

fn flagged(mut target: Target, f: impl FnOnce(&mut Flags)) -> Target {
    f(&mut target.flags);
    target
}

fn args(json: &str, attachments: &[&'static [u8]]) -> Args {
    let attachments = attachments.iter().map(|b| Bytes::from_static(b)).collect();
    Args::from_text(json.into(), attachments).unwrap()
}

fn broadcast(target: Target, event: &str, args: Args) -> Incoming {
    message(Message::Broadcast(Broadcast {
        target,
        event: event.into(),
        args,
    }))
}

#[test]
fn a_broadcast_is_for_the_rooms_without_the_exceptions() {
    let room1 = || target(&["room1"], &[]);
    let loud = |target| {
        flagged(target, |flags| {
            flags.volatile = true;
            flags.compress = Some(true);
        })
    };
    let plain = flagged(target(&[], &[]), |flags| flags.compress = Some(false));
    for (file, step, expected) in [
        ("classic", "emit_one_room_nsp", room1()),
        (
            "classic",
            "emit_two_rooms",
            target(&["room1", "room2"], &[]),
        ),
        (
            "classic",
            "emit_room_except_two",
            target(&["room1"], &["room2", "room3"]),
        ),
        ("classic", "emit_room_number", target(&["42"], &[])),
        ("classic", "emit_volatile_compress_true", loud(room1())),
        ("classic", "emit_compress_false", plain),
        ("classic-json-parser", "emit_one_room", room1()),
        ("emitter", "emit_except", target(&[], &["room2"])),
        (
            "sharded-static",
            "emit_room_except",
            target(&["room1"], &["room2"]),
        ),
        ("sharded-static", "emit_flags", loud(target(&[], &[]))),
    ] {
        let expected = broadcast(expected, "hello", args("[1]", &[]));
        assert_eq!(heard(file, step), expected, "{file} {step}");
    }
}

#[test]
fn arguments_arrive_with_their_binary() {
    let placeholder = |num| format!(r#"{{"_placeholder":true,"num":{num}}}"#);
    let [first, second, third] = [0, 1, 2].map(placeholder);
    let (alone, beside) = (format!("[{first}]"), format!("[{first},1]"));
    let nested = format!(r#"[{{"a":[{first},{second}],"t":"x"}},{third}]"#);
    let hello = r#"[1,"a",{"b":true}]"#;
    let odd = r#"[null,null,"1970-01-01T00:00:00.000Z",{}]"#;
    let (one, three): (&[&[u8]], &[&[u8]]) = (&[&[1, 2, 3]], &[&[0xff, 0], &[7], &[]]);
    for (file, step, event, json, attachments) in [
        ("classic", "emit_all", "hello", hello, &[][..]),
        ("classic", "emit_noargs", "hello", "[]", &[]),
        ("classic", "emit_binary", "bin", &alone, one),
        ("classic-json-parser", "emit_binary", "bin", &alone, one),
        ("sharded-static", "emit_binary", "bin", &beside, one),
        ("classic", "emit_binary_nested", "bin", &nested, three),
        ("emitter", "emit_undefined_date", "t", odd, &[]),
    ] {
        let is_to_room = step == "emit_binary_nested";
        let target = target(if is_to_room { &["room1"] } else { &[] }, &[]);
        let expected = broadcast(target, event, args(json, attachments));
        assert_eq!(heard(file, step), expected, "{file} {step}");
    }
}

#[test]
fn orders_are_for_the_sockets_that_are_in_the_rooms() {
    let (room1, room5) = (target(&["room1"], &[]), vec![Box::from("room5")]);
    let disconnect = |target, close| Message::DisconnectSockets { target, close };
    let hello = |json, attachments: &[&'static [u8]]| Message::ServerSideEmit {
        event: "hello".into(),
        args: args(json, attachments),
    };
    let join = Message::SocketsJoin {
        target: room1,
        rooms: room5.clone(),
    };
    let leave = Message::SocketsLeave {
        target: target(&["room1"], &["room2"]),
        rooms: room5,
    };
    let some = disconnect(target(&["room2"], &[]), false);
    let all = disconnect(target(&[], &[]), true);
    let binary = hello(r#"[{"_placeholder":true,"num":0}]"#, &[&[1, 2]]);
    for (step, expected) in [
        ("sockets_join", join),
        ("sockets_leave", leave),
        ("disconnect_sockets", some),
        ("disconnect_sockets_close", all),
        ("server_side_emit", hello(r#"["a",{"b":1}]"#, &[])),
        ("server_side_emit_binary", binary),
    ] {
        for file in ["classic", "sharded-static"] {
            let expected = message(expected.clone());
            assert_eq!(heard(file, step), expected, "{file} {step}");
        }
    }
}

#[test]
fn questions_say_who_asks_for_what() {
    let acks = |room: &[&str]| Question::Acks {
        target: target(room, &[]),
        event: "ping-me".into(),
        args: args(r#"["q"]"#, &[]),
        timeout: Duration::from_millis(800),
    };
    let handlers = || Question::ServerSideEmit {
        event: "hello".into(),
        args: args(r#"["q"]"#, &[]),
    };
    let fetch = |except: &[&str]| Question::Sockets(target(&["room1"], except));
    for (file, uid, asked) in [
        (
            "classic",
            "ea3jFg",
            vec![
                ("emit_ack_room", "uDAphr", acks(&["room1"])),
                ("all_rooms#1", "vNuQqW", Question::Rooms),
                ("fetch_sockets_room#1", "H2mfeu", fetch(&["room9"])),
                ("server_side_emit_ack#1", "Mk6b5C", handlers()),
            ],
        ),
        (
            "classic-json-parser",
            "nS42mS",
            vec![("emit_ack_room", "CfNZSL", acks(&["room1"]))],
        ),
        (
            "sharded-static",
            "25590e98123ac449",
            vec![
                ("emit_ack_all", "98c66d90032e8cdb", acks(&[])),
                ("fetch_sockets_room#1", "8e1bf95061486412", fetch(&[])),
                ("server_side_emit_ack#1", "3734c0458a4538c4", handlers()),
            ],
        ),
    ] {
        for (step, id, question) in asked {
            let expected = Incoming::Question {
                asker: Asker {
                    uid: Some(uid.into()),
                    node: None,
                },
                id: id.into(),
                question,
            };
            assert_eq!(heard(file, step), expected, "{file} {step}");
        }
    }
}

#[test]
fn answers_say_what_was_asked_for() {
    let from_b = || Answer::ServerSideEmit(Some(args(r#"["reply-from-B"]"#, &[])));
    let from_b = || Reply::Answer(from_b());
    let nobody = Reply::Answer(Answer::Sockets(Vec::new()));
    let pong = Reply::Acknowledged(args(r#"["pong-20"]"#, &[]));
    let binary = args(r#"[{"_placeholder":true,"num":0}]"#, &[&[1, 2]]);
    let binary = Reply::Acknowledged(binary);
    let private = ["wyz-fkzNS9LbBTLbAAAB", "ct61K_HGDWaIlkHoAAAC"];
    let rooms = [private, ["room1", "room2"]].concat();
    let rooms = rooms.into_iter().map(Box::from).collect();
    let rooms = Reply::Answer(Answer::Rooms(rooms));
    for (file, answered) in [
        (
            "classic",
            vec![
                ("emit_ack_all#2", "-I4uHt", Reply::Asked(2)),
                ("emit_ack_all#3", "-I4uHt", pong),
                ("all_rooms#2", "vNuQqW", rooms),
                ("fetch_sockets_none#2", "tGS3dj", nobody),
                ("server_side_emit_ack#2", "Mk6b5C", from_b()),
            ],
        ),
        (
            "sharded-static",
            vec![
                ("emit_ack_nobody#2", "cd517333e2cfae1e", Reply::Asked(0)),
                ("emit_ack_binary#3", "a2a7c3a0f53957fe", binary),
                ("server_side_emit_ack#2", "3734c0458a4538c4", from_b()),
            ],
        ),
    ] {
        for (step, id, reply) in answered {
            let expected = Incoming::Response {
                id: id.into(),
                node: None,
                reply,
            };
            assert_eq!(heard(file, step), expected, "{file} {step}");
        }
    }
}

#[test]
fn a_socket_is_described_with_all_that_node_tells_of_it() {
    for file in ["classic", "sharded-static"] {
        let Incoming::Response { reply, .. } = heard(file, "fetch_sockets#2") else {
            panic!("no response");
        };
        let Reply::Answer(Answer::Sockets(sockets)) = reply else {
            panic!("no sockets: {reply:?}");
        };
        assert_eq!(sockets.len(), 2);
        let socket = &sockets[0];
        assert_eq!(socket.id.as_str().len(), SocketId::LEN);
        assert_eq!(socket.rooms[0], socket.id.as_str());
        assert!(socket.data.is_object(), "{}", socket.data);
        let keys: Vec<_> = socket.handshake.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "headers", "time", "address", "xdomain", "secure", "issued", "url", "query", "auth"
            ]
        );
    }
}
