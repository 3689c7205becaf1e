//! What our own nodes tell each other beyond what Node knows, and that Node never hears of it
//! where it would matter.

use std::time::Duration;

use bytes::Bytes;
use roomcast_protocol::args::{Args, json::MAX_DEPTH};
use roomcast_protocol::channel::{Channels, EMITTER_UID, Kind, Mode};
use roomcast_protocol::id::{NodeId, SocketId};
use roomcast_protocol::message::{Broadcast, Message, Position};
use roomcast_protocol::question::{Answer, Question};
use roomcast_protocol::target::Target;
use roomcast_protocol::wire::{
    Asker, Incoming, Parser, Publication, Reply, Wire, WireError, placed,
};
use roomcast_protocol::{
    channel::Dialect,
    msgpack::{Reader, Token, TranscodeLimits},
};

use crate::captures::{classic, message as heard_as, node, sharded, target, wire_as};

fn text(publication: &Publication) -> &str {
    std::str::from_utf8(&publication.payload).unwrap()
}

fn asker() -> NodeId {
    NodeId::new("BBBBasker")
}

fn ours() -> Asker {
    Asker {
        uid: Some("ABCDEF".into()),
        node: Some(asker()),
    }
}

fn nodes() -> Asker {
    Asker {
        uid: Some("ABCDEF".into()),
        node: None,
    }
}

fn event(args: Args) -> Broadcast {
    Broadcast {
        target: target(&["r"], &[]),
        event: "e".into(),
        args,
    }
}

fn broadcast(args: Args) -> Message {
    Message::Broadcast(event(args))
}

fn binary() -> Args {
    let json = r#"[{"_placeholder":true,"num":0},2]"#;
    Args::from_text(json.into(), vec![Bytes::from_static(&[1, 2])]).unwrap()
}

#[test]
fn a_broadcast_that_will_be_asked_about_says_so_behind_what_node_reads() {
    let message = broadcast(Args::default());
    let json = wire_as("p", Dialect::Classic, Parser::Json);
    let written = json.message("/", "u", &message, Some("q")).unwrap();
    assert_eq!(written.channel, "p#/#r#");
    assert_eq!(
        text(&written),
        concat!(
            r#"["u",{"type":2,"data":["e"],"nsp":"/"},"#,
            r#"{"rooms":["r"],"except":[],"flags":{}},{"confirm":"q"}]"#
        )
    );
    let written = sharded(Mode::Static)
        .message("/", "u", &message, Some("q"))
        .unwrap();
    assert_eq!(
        text(&written),
        concat!(
            r#"{"type":3,"data":{"packet":{"type":2,"data":["e"]},"#,
            r#""opts":{"rooms":["r"],"except":[],"flags":{}}},"confirm":"q","uid":"u","nsp":"/"}"#
        )
    );
    let dynamic = sharded(Mode::Dynamic);
    let channel = |confirm| {
        dynamic
            .message("/", "u", &message, confirm)
            .unwrap()
            .channel
    };
    assert_eq!(channel(None), "socket.io#/#r#");
    assert_eq!(channel(Some("q")), "socket.io#/#");
    for wire in [classic(), json, sharded(Mode::Static)] {
        let written = wire.message("/", "u", &message, Some("q")).unwrap();
        let heard = wire.read("/", Kind::Broadcast, &written.payload).unwrap();
        let expected = Incoming::Message {
            message: message.clone(),
            confirm: Some("q".into()),
            position: None,
        };
        assert_eq!(heard, expected);
    }
}

#[test]
fn who_was_reached_is_asked_so_that_node_can_say_how_many_it_has() {
    let ask = |wire: &Wire, target| {
        let question = Question::Reached(target);
        wire.question("/", "u", &asker(), "q", &question).unwrap()
    };
    assert_eq!(
        text(&ask(&classic(), target(&["r"], &[]))),
        concat!(
            r#"{"uid":"u","requestId":"q","type":0,"rooms":["r"],"#,
            r#""reached":true,"node":"BBBBasker"}"#
        )
    );
    assert_eq!(
        text(&ask(&classic(), target(&["r"], &["x"]))),
        concat!(
            r#"{"uid":"u","requestId":"q","type":5,"opts":{"rooms":["r"],"except":["x"]},"#,
            r#""reached":true,"node":"BBBBasker"}"#
        )
    );
    assert_eq!(
        text(&ask(&sharded(Mode::Static), target(&["r"], &[]))),
        concat!(
            r#"{"type":7,"data":{"opts":{"rooms":["r"],"except":[],"flags":{}},"#,
            r#""requestId":"q","reached":true},"node":"BBBBasker","uid":"u","nsp":"/"}"#
        )
    );
}

#[test]
fn what_the_sharded_dialect_cannot_ask_is_asked_as_who_the_sockets_are() {
    let wire = sharded(Mode::Dynamic);
    for question in [Question::Rooms, Question::SocketIds(Target::default())] {
        let asked = wire.question("/", "u", &asker(), "q", &question).unwrap();
        assert_eq!(asked.channel, "socket.io#/#");
        let heard = wire.read("/", Kind::Broadcast, &asked.payload).unwrap();
        let expected = Incoming::Question {
            asker: Asker {
                uid: Some("u".into()),
                node: Some(asker()),
            },
            id: "q".into(),
            question: Question::Sockets(Target::default()),
        };
        assert_eq!(heard, expected);
    }
}

#[test]
fn nodes_of_ours_are_answered_on_their_own_channel_with_the_name_of_who_answers() {
    let id = SocketId::new("AAAAbbbbccccddddeeee");
    let acks = Answer::Acks {
        answers: vec![(Some(id.clone()), binary()), (None, Args::default())],
        missing: vec![id],
        missing_unnamed: 3,
    };
    let answers = [
        acks,
        Answer::ServerSideEmit(None),
        Answer::Reached(7),
        Answer::Command(false),
        Answer::Command(true),
        Answer::Rooms(vec!["r".into()]),
        Answer::SocketIds(vec![SocketId::new("s")]),
    ];
    for (wire, channel) in [
        (classic(), "socket.io-response#/#ABCDEF#"),
        (sharded(Mode::Static), "socket.io#/#ABCDEF#"),
    ] {
        for answer in &answers {
            let reply = Reply::Answer(answer.clone());
            let written = wire.response("/", &ours(), "q", &node(), &reply).unwrap();
            let written = written.unwrap();
            assert_eq!(written.channel, channel);
            let heard = wire.read("/", Kind::Response, &written.payload).unwrap();
            let expected = Incoming::Response {
                id: "q".into(),
                node: Some(node()),
                reply,
            };
            assert_eq!(heard, expected);
        }
    }
    let reply = Reply::Answer(Answer::Reached(7));
    let written = classic().response("/", &ours(), "q", &node(), &reply);
    assert_eq!(
        text(&written.unwrap().unwrap()),
        r#"{"requestId":"q","reached":7,"node":"AAAAbbbbccccddddeeee"}"#
    );
}

#[test]
fn servers_of_nodes_never_hear_what_only_ours_understand() {
    let acks = Answer::Acks {
        answers: vec![(None, Args::default())],
        missing: Vec::new(),
        missing_unnamed: 0,
    };
    for wire in [classic(), sharded(Mode::Static)] {
        for answer in [
            acks.clone(),
            Answer::ServerSideEmit(None),
            Answer::Reached(7),
            Answer::Command(false),
        ] {
            let reply = Reply::Answer(answer);
            let written = wire.response("/", &nodes(), "q", &node(), &reply).unwrap();
            assert_eq!(written, None, "{reply:?}");
        }
    }
    // Nor anything that its question has no answer for.
    let ids = Reply::Answer(Answer::SocketIds(Vec::new()));
    let written = sharded(Mode::Static).response("/", &nodes(), "q", &node(), &ids);
    assert_eq!(written.unwrap(), None);
}

#[test]
fn answers_for_handlers_go_to_everybody_as_nodes_do() {
    let wire = classic().with_specific_responses(true);
    let handlers = Reply::Answer(Answer::ServerSideEmit(Some(Args::default())));
    for (reply, to, channel) in [
        (Reply::Asked(0), nodes(), "socket.io-response#/#ABCDEF#"),
        (Reply::Asked(0), Asker::default(), "socket.io-response#/#"),
        (handlers.clone(), nodes(), "socket.io-response#/#"),
        (handlers, ours(), "socket.io-response#/#ABCDEF#"),
    ] {
        let written = wire.response("/", &to, "q", &node(), &reply).unwrap();
        assert_eq!(written.unwrap().channel, channel);
    }
}

#[test]
fn binary_in_requests_is_written_as_node_writes_it() {
    let message = Message::ServerSideEmit {
        event: "e".into(),
        args: binary(),
    };
    let written = classic().message("/", "u", &message, None).unwrap();
    assert_eq!(written.channel, "socket.io-request#/#");
    assert_eq!(
        text(&written),
        r#"{"uid":"u","type":6,"data":["e",{"type":"Buffer","data":[1,2]},2]}"#
    );
}

#[test]
fn data_that_looks_like_a_buffer_stays_data_where_node_has_real_ones() {
    let json = r#"[{"type":"Buffer","data":[1,2]}]"#;
    let message = broadcast(Args::from_text(json.into(), Vec::new()).unwrap());
    for wire in [classic(), sharded(Mode::Static)] {
        let written = wire.message("/", "u", &message, None).unwrap();
        let heard = wire.read("/", Kind::Broadcast, &written.payload).unwrap();
        assert_eq!(heard, heard_as(message.clone()));
    }
}

#[test]
fn emitters_leave_their_uid_out_of_orders() {
    let order = Message::DisconnectSockets {
        target: Target::default(),
        close: true,
    };
    let written = classic().message("/", EMITTER_UID, &order, None).unwrap();
    assert_eq!(
        text(&written),
        r#"{"type":4,"opts":{"rooms":[],"except":[]},"close":true}"#
    );
}

#[test]
fn an_order_that_shall_be_answered_is_a_question_to_nodes_of_ours_alone() {
    let order = Message::SocketsJoin {
        target: target(&["r"], &[]),
        rooms: vec!["x".into()],
    };
    for wire in [classic(), sharded(Mode::Static)] {
        let question = Question::Command(order.clone());
        let asked = wire.question("/", "u", &asker(), "q", &question).unwrap();
        let heard = wire.read("/", Kind::Request, &asked.payload).unwrap();
        assert!(
            matches!(&heard, Incoming::Question { question: Question::Command(asked), .. } if *asked == order),
            "{heard:?}"
        );
    }
    let foreign = r#"{"uid":"u","requestId":"q","type":4,"opts":{"rooms":[]},"close":false}"#;
    let heard = classic().read("/", Kind::Request, foreign.as_bytes());
    assert!(matches!(heard, Ok(Incoming::Message { .. })), "{heard:?}");
    let broadcast = Question::Command(broadcast(Args::default()));
    for wire in [classic(), sharded(Mode::Static)] {
        let asked = wire.question("/", "u", &asker(), "q", &broadcast);
        assert!(matches!(asked, Err(WireError::Inexpressible { .. })));
    }
}

/// The limit that is configured is the limit of every format.
#[test]
fn data_is_read_as_deep_as_configured_and_no_deeper() {
    const DEPTH: usize = 300;
    let limits = TranscodeLimits {
        depth: DEPTH,
        ..TranscodeLimits::default()
    };
    for (dialect, parser) in [
        (Dialect::Classic, Parser::Msgpack),
        (Dialect::Classic, Parser::Json),
        (Dialect::Sharded(Mode::Static), Parser::Msgpack),
    ] {
        let wire = Wire::new(Channels::new("p", dialect), parser, limits);
        let sent = |depth: usize, binary: Option<Bytes>| {
            let inner = binary
                .as_ref()
                .map_or("1", |_| r#"{"_placeholder":true,"num":0}"#);
            let inside = depth - usize::from(binary.is_some());
            let json = "[".repeat(inside) + inner + &"]".repeat(inside);
            let args = Args::from_text(json.into(), binary.into_iter().collect()).unwrap();
            let message = broadcast(args);
            // One without a limit writes, because a wire writes nothing that it refuses to read.
            let limits = TranscodeLimits {
                depth: MAX_DEPTH,
                ..limits
            };
            let writer = Wire::new(Channels::new("p", dialect), parser, limits);
            let written = writer.message("/", "u", &message, None).unwrap();
            let read = wire.read("/", Kind::Broadcast, &written.payload);
            read.map(|incoming| {
                assert_eq!(incoming, heard_as(message));
            })
        };
        sent(DEPTH, None).unwrap();
        let error = sent(DEPTH + 1, None).unwrap_err().to_string();
        assert!(error.contains("nested deeper than 300"), "{error}");
        if parser == Parser::Msgpack {
            sent(DEPTH, Some(Bytes::from_static(b"x"))).unwrap();
        }
    }
    // By default, data of emitters that is deeper than anything seen is read.
    let deep =
        broadcast(Args::from_text(("[".repeat(400) + &"]".repeat(400)).into(), vec![]).unwrap());
    let written = classic().message("/", "u", &deep, None).unwrap();
    classic()
        .read("/", Kind::Broadcast, &written.payload)
        .unwrap();
}

/// Servers of Node's would stop at them.
#[test]
fn arguments_that_are_no_json_are_not_published() {
    let broken = Args::from_text("[}]".into(), Vec::new()).unwrap();
    let with_binary = {
        let json = r#"[{"_placeholder":true,"num":0},]"#;
        Args::from_text(json.into(), vec![Bytes::new()]).unwrap()
    };
    let deep = "[".repeat(501) + &"]".repeat(501);
    let deep = Args::from_text(deep.into(), Vec::new()).unwrap();
    for wire in [
        classic(),
        wire_as("p", Dialect::Classic, Parser::Json),
        sharded(Mode::Static),
    ] {
        for args in [&broken, &with_binary, &deep] {
            let message = broadcast(args.clone());
            assert!(wire.message("/", "u", &message, None).is_err());
            let question = Question::Acks {
                target: Target::default(),
                event: "e".into(),
                args: args.clone(),
                timeout: Duration::ZERO,
            };
            let asked = wire.question("/", "u", &asker(), "q", &question);
            assert!(asked.is_err());
        }
        let reply = Reply::Acknowledged(broken.clone());
        let answered = wire.response("/", &nodes(), "q", &node(), &reply);
        assert!(answered.is_err(), "{answered:?}");
    }
}

#[test]
fn a_broadcast_of_messagepack_has_three_elements_as_node_reads_them() {
    let message = broadcast(binary());
    let written = classic().message("/n", "u", &message, None).unwrap();
    let mut reader = Reader::new(&written.payload);
    assert_eq!(reader.token().unwrap(), Token::Array(3));
    for _ in 0..3 {
        reader.skip().unwrap();
    }
    reader.finish().unwrap();
}

/// Any other value in the place of a position is ignored, and the message is still delivered.
#[test]
fn what_is_no_position_is_skipped() {
    for extra in [
        "[]",
        "[1]",
        "[1,2,\"3\"]",
        "[1,2,3,4]",
        "[1,\"2\"]",
        "[-1,2]",
        "[1.5,2]",
        "[1e300,2]",
        "\"x\"",
        "7",
        "null",
        "{\"id\":1}",
        "[[1],2]",
    ] {
        let packet = r#"{"type":2,"data":["e"],"nsp":"/"}"#;
        let text = format!(r#"["u",{packet},{{"rooms":[]}},{extra}]"#);
        let heard = wire_as("p", Dialect::Classic, Parser::Json).read(
            "/",
            Kind::Broadcast,
            text.as_bytes(),
        );
        let Ok(Incoming::Message { position: None, .. }) = heard else {
            panic!("{extra}: {heard:?}");
        };
        let data = r#"{"packet":{"type":2,"data":["e"]},"opts":{"rooms":[]}}"#;
        let text = format!(r#"{{"type":3,"data":{data},"uid":"u","nsp":"/","position":{extra}}}"#);
        let heard = sharded(Mode::Static).read("/", Kind::Broadcast, text.as_bytes());
        let Ok(Incoming::Message { position: None, .. }) = heard else {
            panic!("{extra}: {heard:?}");
        };
    }
}

/// The script completes the same bytes: what they are is part of the wire.
#[test]
fn a_stored_broadcast_has_its_position_behind_what_node_reads() {
    let position = Position {
        id: 7,
        time: 258,
        after: None,
    };
    let args = Args::encode(&(1,)).unwrap();
    let completed = |wire: &Wire, args: &Args| {
        let head = wire.unplaced("/", &event(args.clone())).unwrap();
        assert_eq!(head.channel, "p#/#");
        placed(&head.payload, position)
    };
    let json = completed(&wire_as("p", Dialect::Classic, Parser::Json), &args);
    assert_eq!(
        String::from_utf8(json).unwrap(),
        concat!(
            r#"["log",{"type":2,"data":["e",1],"nsp":"/"},"#,
            r#"{"rooms":["r"],"except":[],"flags":{}},[7,258]]"#
        )
    );
    let sharded = wire_as("p", Dialect::Sharded(Mode::Dynamic), Parser::default());
    assert_eq!(
        String::from_utf8(completed(&sharded, &args)).unwrap(),
        concat!(
            r#"{"type":3,"data":{"packet":{"type":2,"data":["e",1]},"#,
            r#""opts":{"rooms":["r"],"except":[],"flags":{}}},"#,
            r#""uid":"log","nsp":"/","position":[7,258]}"#
        )
    );
    let numbers = b"\x92\xcf\0\0\0\0\0\0\0\x07\xcf\0\0\0\0\0\0\x01\x02";
    let msgpack = completed(&wire_as("p", Dialect::Classic, Parser::Msgpack), &args);
    assert!(msgpack.starts_with(b"\x94\xa3log") && msgpack.ends_with(numbers));
    let msgpack = completed(&sharded, &binary());
    assert!(msgpack.starts_with(b"\x85\xa4type"), "{msgpack:?}");
    assert!(msgpack.ends_with(&[&b"\xa8position"[..], numbers].concat()));
}
