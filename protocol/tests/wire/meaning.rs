//! What the captured messages mean, one of each kind, said by hand.

use std::time::Duration;

use bytes::Bytes;
use roomcast_protocol::args::Args;
use roomcast_protocol::id::SocketId;
use roomcast_protocol::message::Message;
use roomcast_protocol::question::{Answer, Question};
use roomcast_protocol::target::{Flags, Target};
use roomcast_protocol::wire::{Asker, Incoming, Reply};

use crate::captures::{NAMESPACES, message, read, target, wire_of};

/// The message of a step of a capture, by its number among those of the step.
fn heard(file: &str, name: &str, seq: usize) -> Incoming {
    let captures = read(file);
    let mut step = captures.iter().filter(|capture| capture.name() == name);
    let capture = step.nth(seq).unwrap();
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
    message(Message::Broadcast {
        target,
        event: event.into(),
        args,
    })
}

fn question(uid: &str, id: &str, question: Question) -> Incoming {
    Incoming::Question {
        asker: Asker {
            uid: Some(uid.into()),
            node: None,
        },
        id: id.into(),
        question,
    }
}

fn response(id: &str, reply: Reply) -> Incoming {
    Incoming::Response {
        id: id.into(),
        node: None,
        reply,
    }
}

#[test]
fn a_broadcast_is_for_the_rooms_without_the_exceptions() {
    let one = || args("[1]", &[]);
    for (file, name, expected) in [
        ("classic", "emit_one_room_nsp", target(&["room1"], &[])),
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
        ("emitter", "emit_except", target(&[], &["room2"])),
        (
            "classic-json-parser",
            "emit_one_room",
            target(&["room1"], &[]),
        ),
        (
            "classic",
            "emit_volatile_compress_true",
            flagged(target(&["room1"], &[]), |flags| {
                flags.volatile = true;
                flags.compress = Some(true);
            }),
        ),
        (
            "sharded-static",
            "emit_room_except",
            target(&["room1"], &["room2"]),
        ),
        (
            "sharded-static",
            "emit_flags",
            flagged(target(&[], &[]), |flags| {
                flags.volatile = true;
                flags.compress = Some(true);
            }),
        ),
        (
            "classic",
            "emit_compress_false",
            flagged(target(&[], &[]), |flags| flags.compress = Some(false)),
        ),
    ] {
        let expected = broadcast(expected, "hello", one());
        assert_eq!(heard(file, name, 0), expected, "{file} {name}");
    }
}

#[test]
fn arguments_arrive_with_their_binary() {
    let everybody = || target(&[], &[]);
    let placeholder = |num| format!(r#"{{"_placeholder":true,"num":{num}}}"#);
    let hello = args(r#"[1,"a",{"b":true}]"#, &[]);
    assert_eq!(
        heard("classic", "emit_all", 0),
        broadcast(everybody(), "hello", hello)
    );
    assert_eq!(
        heard("classic", "emit_noargs", 0),
        broadcast(everybody(), "hello", args("[]", &[]))
    );
    for file in ["classic", "classic-json-parser"] {
        let expected = args(&format!("[{}]", placeholder(0)), &[&[1, 2, 3]]);
        assert_eq!(
            heard(file, "emit_binary", 0),
            broadcast(everybody(), "bin", expected),
            "{file}"
        );
    }
    let nested = format!(
        r#"[{{"a":[{},{}],"t":"x"}},{}]"#,
        placeholder(0),
        placeholder(1),
        placeholder(2)
    );
    assert_eq!(
        heard("classic", "emit_binary_nested", 0),
        broadcast(
            target(&["room1"], &[]),
            "bin",
            args(&nested, &[&[0xff, 0], &[7], &[]])
        )
    );
    let expected = args(&format!("[{},1]", placeholder(0)), &[&[1, 2, 3]]);
    assert_eq!(
        heard("sharded-static", "emit_binary", 0),
        broadcast(everybody(), "bin", expected)
    );
    assert_eq!(
        heard("emitter", "emit_undefined_date", 0),
        broadcast(
            everybody(),
            "t",
            args(r#"[null,null,"1970-01-01T00:00:00.000Z",{}]"#, &[])
        )
    );
}

#[test]
fn orders_are_for_the_sockets_that_are_in_the_rooms() {
    let room5 = || vec![Box::from("room5")];
    for file in ["classic", "sharded-static"] {
        assert_eq!(
            heard(file, "sockets_join", 0),
            message(Message::SocketsJoin {
                target: target(&["room1"], &[]),
                rooms: room5(),
            })
        );
        assert_eq!(
            heard(file, "sockets_leave", 0),
            message(Message::SocketsLeave {
                target: target(&["room1"], &["room2"]),
                rooms: room5(),
            })
        );
        assert_eq!(
            heard(file, "disconnect_sockets", 0),
            message(Message::DisconnectSockets {
                target: target(&["room2"], &[]),
                close: false,
            })
        );
        assert_eq!(
            heard(file, "disconnect_sockets_close", 0),
            message(Message::DisconnectSockets {
                target: target(&[], &[]),
                close: true,
            })
        );
        assert_eq!(
            heard(file, "server_side_emit", 0),
            message(Message::ServerSideEmit {
                event: "hello".into(),
                args: args(r#"["a",{"b":1}]"#, &[]),
            })
        );
        assert_eq!(
            heard(file, "server_side_emit_binary", 0),
            message(Message::ServerSideEmit {
                event: "hello".into(),
                args: args(r#"[{"_placeholder":true,"num":0}]"#, &[&[1, 2]]),
            })
        );
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
    let fetch = || Question::Sockets(target(&["room1"], &["room9"]));
    for (file, name, seq, expected) in [
        (
            "classic",
            "emit_ack_room",
            0,
            question("ea3jFg", "uDAphr", acks(&["room1"])),
        ),
        (
            "classic-json-parser",
            "emit_ack_room",
            0,
            question("nS42mS", "CfNZSL", acks(&["room1"])),
        ),
        (
            "sharded-static",
            "emit_ack_all",
            0,
            question("25590e98123ac449", "98c66d90032e8cdb", acks(&[])),
        ),
        (
            "classic",
            "all_rooms",
            1,
            question("ea3jFg", "vNuQqW", Question::Rooms),
        ),
        (
            "classic",
            "fetch_sockets_room",
            1,
            question("ea3jFg", "H2mfeu", fetch()),
        ),
        (
            "sharded-static",
            "fetch_sockets_room",
            1,
            question(
                "25590e98123ac449",
                "8e1bf95061486412",
                Question::Sockets(target(&["room1"], &[])),
            ),
        ),
        (
            "classic",
            "server_side_emit_ack",
            1,
            question("ea3jFg", "Mk6b5C", handlers()),
        ),
        (
            "sharded-static",
            "server_side_emit_ack",
            1,
            question("25590e98123ac449", "3734c0458a4538c4", handlers()),
        ),
    ] {
        assert_eq!(heard(file, name, seq), expected, "{file} {name}");
    }
}

#[test]
fn answers_say_what_was_asked_for() {
    let answer = |answer| Reply::Answer(answer);
    let from_b = || Answer::ServerSideEmit(Some(args(r#"["reply-from-B"]"#, &[])));
    let binary = args(r#"[{"_placeholder":true,"num":0}]"#, &[&[1, 2]]);
    for (file, name, seq, expected) in [
        (
            "classic",
            "emit_ack_all",
            2,
            response("-I4uHt", Reply::Asked(2)),
        ),
        (
            "classic",
            "emit_ack_all",
            3,
            response("-I4uHt", Reply::Acknowledged(args(r#"["pong-20"]"#, &[]))),
        ),
        (
            "classic",
            "all_rooms",
            2,
            response(
                "vNuQqW",
                answer(Answer::Rooms(
                    [
                        "wyz-fkzNS9LbBTLbAAAB",
                        "ct61K_HGDWaIlkHoAAAC",
                        "room1",
                        "room2",
                    ]
                    .map(Box::from)
                    .into(),
                )),
            ),
        ),
        (
            "classic",
            "fetch_sockets_none",
            2,
            response("tGS3dj", answer(Answer::Sockets(Vec::new()))),
        ),
        (
            "classic",
            "server_side_emit_ack",
            2,
            response("Mk6b5C", answer(from_b())),
        ),
        (
            "sharded-static",
            "emit_ack_nobody",
            2,
            response("cd517333e2cfae1e", Reply::Asked(0)),
        ),
        (
            "sharded-static",
            "emit_ack_binary",
            3,
            response("a2a7c3a0f53957fe", Reply::Acknowledged(binary)),
        ),
        (
            "sharded-static",
            "server_side_emit_ack",
            2,
            response("3734c0458a4538c4", answer(from_b())),
        ),
    ] {
        assert_eq!(heard(file, name, seq), expected, "{file} {name} {seq}");
    }
}

#[test]
fn a_socket_is_described_with_all_that_node_tells_of_it() {
    for (file, seq) in [("classic", 2), ("sharded-static", 2)] {
        let Incoming::Response { reply, .. } = heard(file, "fetch_sockets", seq) else {
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
