//! Messages made by hand and what a server of Node's does with them: what it takes we take with
//! the same meaning, and what stops it is an error here.

use std::fmt::Debug;

use roomcast_protocol::channel::{Kind, Mode};
use roomcast_protocol::message::{Broadcast, Message};
use roomcast_protocol::question::{Answer, Question};
use roomcast_protocol::target::Target;
use roomcast_protocol::wire::{Asker, Incoming, Reply, Wire, WireError};

use crate::captures::{Capture, classic, node, read, sharded};

/// Reads a payload as a node with the room `r1` does: the channel of a room that it has not is not
/// looked at.
fn heard(wire: &Wire, capture: &Capture) -> Result<Incoming, WireError> {
    let channel = capture.text("channel");
    let Some(place) = wire
        .channels()
        .parse(channel)
        .find(|place| place.namespace == "/")
    else {
        return Ok(Incoming::Ignored);
    };
    let is_foreign_room = |room| !["r1", "42"].contains(&room);
    if place.kind == Kind::Broadcast && place.rest.is_some_and(is_foreign_room) {
        return Ok(Incoming::Ignored);
    }
    wire.read("/", place.kind, &capture.payload().unwrap())
}

/// What the client of the Node server got, as this message would give it to ours.
fn delivered(heard: &Incoming) -> Option<String> {
    let (Incoming::Message {
        message:
            Message::Broadcast(Broadcast {
                target,
                event,
                args,
            }),
        ..
    }
    | Incoming::Question {
        question:
            Question::Acks {
                target,
                event,
                args,
                ..
            },
        ..
    }) = heard
    else {
        return None;
    };
    let is_meant = target.rooms.is_empty() || target.rooms.iter().any(|room| **room == *"r1");
    let data = args.json().strip_prefix('[')?.strip_suffix(']')?;
    is_meant.then(|| format!("[[\"{event}\",{data}]]"))
}

/// Where a client of ours gets something else than that of the Node server.
const BETTER: [(&str, Option<&str>); 2] = [
    // Old emitters mark binary like that; Node's client closes its connection.
    (
        "type_5_binary_event",
        Some(r#"[["e",{"_placeholder":true,"num":0}]]"#),
    ),
    (
        "ok_msgpack",
        Some(r#"[["e",{"_placeholder":true,"num":0}]]"#),
    ),
];

fn check_deliveries(file: &str, wire: &Wire) {
    for capture in read(file) {
        let name = capture.name();
        let heard = heard(wire, &capture);
        let got = heard.as_ref().ok().and_then(delivered);
        let better = BETTER.iter().find(|(step, _)| *step == name);
        let expected = match better {
            Some((_, expected)) => expected.map(String::from),
            None => {
                let list = capture.list("client_got");
                (!list.is_empty()).then(|| serde_json::to_string(list).unwrap())
            }
        };
        assert_eq!(got, expected, "{file} {name}: {heard:?}");
    }
}

#[test]
fn clients_get_what_those_of_nodes_servers_get() {
    check_deliveries("tolerance-classic", &classic());
    check_deliveries("tolerance-sharded", &sharded(Mode::Dynamic));
}

#[test]
fn what_stops_a_server_of_nodes_is_an_error() {
    for (file, wire, expected) in [
        (
            "tolerance-classic",
            classic(),
            &[
                ("two_element_on_new_channel", "options missing"),
                ("garbage", "byte 0xc1 is not MessagePack"),
                ("empty", "MessagePack ends early"),
                ("trailing_bytes", "1 bytes behind the end of MessagePack"),
                ("req_json_null_opts", "opts missing"),
            ][..],
        ),
        (
            "tolerance-sharded",
            sharded(Mode::Static),
            &[
                ("json_without_data", "data missing"),
                ("response_without_data_on_main", "data missing"),
            ],
        ),
    ] {
        let mut errors = Vec::new();
        for capture in read(file) {
            let stops = capture.is_true("node_stops_receiving") || capture.is_true("node_crashed");
            if stops {
                let error = heard(&wire, &capture).unwrap_err().to_string();
                errors.push((String::from(capture.name()), error));
            }
        }
        let expected = expected.iter().map(|(name, error)| {
            let owned: (String, String) = ((*name).into(), (*error).into());
            owned
        });
        assert_eq!(errors, expected.collect::<Vec<_>>());
    }
}

#[test]
fn what_node_only_ignores_is_ignored_or_an_error() {
    for (file, wire, ignored, errors) in [
        (
            "tolerance-classic",
            classic(),
            &[
                "packet_nsp_mismatch",
                "nsp_as_bin",
                "legacy_two_element",
                "req_unknown_type",
            ][..],
            &[
                "event_as_bin",
                "data_is_map",
                "packet_nil",
                "req_malformed_json",
                "resp_malformed",
            ][..],
        ),
        (
            "tolerance-sharded",
            sharded(Mode::Static),
            &["nsp_mismatch", "no_nsp", "heartbeat_types", "unknown_type"],
            &["classic_array_on_sharded_channel", "garbage"],
        ),
    ] {
        for capture in read(file) {
            let (name, heard) = (capture.name(), heard(&wire, &capture));
            if ignored.contains(&name) {
                assert_eq!(heard.unwrap(), Incoming::Ignored, "{name}");
            } else if errors.contains(&name) {
                assert!(heard.is_err(), "{name}: {heard:?}");
            }
        }
    }
}

/// Answers as the server of the captures did.
fn answers(question: &Question, captured: &[String]) -> Vec<Reply> {
    match question {
        Question::Rooms => {
            // The first room is the socket's own, whose id is new in every run.
            let captured: serde_json::Value = serde_json::from_str(&captured[0]).unwrap();
            let rooms = captured["rooms"].as_array().unwrap().iter();
            let rooms = rooms.map(|room| Box::from(room.as_str().unwrap()));
            vec![Reply::Answer(Answer::Rooms(rooms.collect()))]
        }
        Question::SocketIds(_) => {
            let captured: serde_json::Value = serde_json::from_str(&captured[0]).unwrap();
            let id = captured["sockets"][0].as_str().unwrap();
            let ids = vec![roomcast_protocol::id::SocketId::new(id)];
            vec![Reply::Answer(Answer::SocketIds(ids))]
        }
        Question::Sockets(target) => {
            assert_eq!(*target.rooms, [Box::from("nope")]);
            vec![Reply::Answer(Answer::Sockets(Vec::new()))]
        }
        Question::ServerSideEmit { event, .. } => {
            let args = roomcast_protocol::args::Args::encode("ok").unwrap();
            let args = (&**event == "hello").then_some(args);
            vec![Reply::Answer(Answer::ServerSideEmit(args))]
        }
        Question::Acks { .. } => {
            let args = roomcast_protocol::args::Args::encode("acked").unwrap();
            vec![Reply::Asked(1), Reply::Acknowledged(args)]
        }
        Question::Command(Message::SocketsJoin { target, rooms }) => {
            assert_eq!(*target.rooms, [Box::from("no-such-sid")]);
            assert_eq!(**rooms, [Box::from("x")]);
            vec![Reply::Answer(Answer::Command(false))]
        }
        other => panic!("nobody asks {other:?}"),
    }
}

/// What was answered to each question, as `channel payload`.
fn check_answers(file: &str, wire: &Wire) -> usize {
    let mut questions = 0;
    for capture in read(file) {
        let Ok(Incoming::Question {
            asker,
            id,
            question,
        }) = heard(wire, &capture)
        else {
            continue;
        };
        questions += 1;
        let text =
            |response: &serde_json::Value, key: &str| String::from(response[key].as_str().unwrap());
        let responses = capture.list("responses");
        let payloads: Vec<_> = responses.iter().map(|r| text(r, "payload")).collect();
        let channels: Vec<_> = responses.iter().map(|r| text(r, "channel")).collect();

        let replies = answers(&question, &payloads);
        let written: Vec<_> = replies
            .iter()
            .filter_map(|reply| wire.response("/", &asker, &id, &node(), reply).unwrap())
            .collect();
        let name = capture.name();
        let own: Vec<_> = written.iter().map(|one| &one.channel).collect();
        assert_eq!(own, channels.iter().collect::<Vec<_>>(), "{name}");
        for (one, payload) in written.iter().zip(&payloads) {
            same_answer(wire, &one.payload, payload.as_bytes(), name);
        }
    }
    questions
}

fn same_answer(wire: &Wire, own: &[u8], captured: &[u8], name: &str) {
    let read = |payload| wire.read("/", Kind::Response, payload).unwrap();
    assert_eq!(read(own), read(captured), "{name}");
    assert!(matches!(read(own), Incoming::Response { node: None, .. }));
}

#[test]
fn questions_of_all_ages_get_the_answers_that_node_gives() {
    assert_eq!(check_answers("tolerance-classic", &classic()), 10);
    assert_eq!(
        check_answers("tolerance-sharded", &sharded(Mode::Static)),
        4
    );
}

fn ok<T: Debug>(wire: &Wire, kind: Kind, json: &str, f: impl Fn(Incoming) -> Option<T>) -> T {
    let heard = wire.read("/", kind, json.as_bytes()).unwrap();
    f(heard).unwrap_or_else(|| panic!("{json} is something else"))
}

fn broadcast_target(heard: Incoming) -> Option<Target> {
    match heard {
        Incoming::Message {
            message: Message::Broadcast(broadcast),
            ..
        } => Some(broadcast.target),
        _ => None,
    }
}

/// Rooms that are no names must not become everybody.
#[test]
fn rooms_that_are_no_text_mean_nobody() {
    for (rooms, expected) in [
        ("[null]", &["\0"][..]),
        ("[{}]", &["\0"]),
        ("[true]", &["\0"]),
        (r#"[null,"a"]"#, &["a"]),
        ("[42,1.5,-0.0]", &["42", "1.5", "0"]),
        (r#""a""#, &["a"]),
        (r#""""#, &[]),
        ("null", &[]),
        ("[]", &[]),
        ("{}", &[]),
    ] {
        let json = format!(r#"["u",{{"type":2,"data":["e"],"nsp":"/"}},{{"rooms":{rooms}}}]"#);
        let target = ok(&classic(), Kind::Broadcast, &json, broadcast_target);
        let expected: Vec<_> = expected.iter().copied().map(Box::from).collect();
        assert_eq!(target.rooms, expected, "{rooms}");
    }
    for rooms in ["7", "true", r#"{"0":"a"}"#] {
        let json = format!(r#"["u",{{"type":2,"data":["e"],"nsp":"/"}},{{"rooms":{rooms}}}]"#);
        let heard = classic().read("/", Kind::Broadcast, json.as_bytes());
        assert!(heard.is_err(), "{rooms}: {heard:?}");
    }
    let join = r#"{"type":2,"opts":{"rooms":["a"]},"rooms":[null,"b"]}"#;
    let heard = classic().read("/", Kind::Request, join.as_bytes()).unwrap();
    let Incoming::Message {
        message: Message::SocketsJoin { rooms, .. },
        ..
    } = heard
    else {
        panic!("{heard:?}");
    };
    assert_eq!(rooms, [Box::from("b")]);
}

#[test]
fn timeouts_are_bounded_and_strange_flags_have_no_meaning() {
    for (flags, milliseconds) in [
        (r#"{"timeout":800}"#, Some(800)),
        (r#"{"timeout":0.5}"#, Some(0)),
        (r#"{"timeout":1e300}"#, Some(i32::MAX as u128)),
        (r#"{"timeout":-1}"#, None),
        (r#"{"timeout":"x"}"#, None),
        (r#"{"volatile":"yes","compress":1,"x":{"y":[1]}}"#, None),
        ("7", None),
    ] {
        let json = format!(r#"["u",{{"type":2,"data":["e"]}},{{"flags":{flags}}}]"#);
        let target = ok(&classic(), Kind::Broadcast, &json, broadcast_target);
        let timeout = target.flags.timeout.map(|timeout| timeout.as_millis());
        assert_eq!(timeout, milliseconds, "{flags}");
        assert!(!target.flags.volatile && target.flags.compress.is_none());
    }
}

#[test]
fn an_envelope_may_come_in_any_order() {
    let wire = sharded(Mode::Static);
    let data = r#""data":{"opts":{},"packet":{"data":["e",1],"type":2}}"#;
    for json in [
        format!(r#"{{{data},"nsp":"/","type":3,"uid":"u"}}"#),
        format!(r#"{{"type":3,"nsp":"/",{data}}}"#),
    ] {
        let target = ok(&wire, Kind::Broadcast, &json, broadcast_target);
        assert_eq!(target, Target::default());
    }
}

#[test]
fn an_old_order_to_one_socket_is_answered_by_its_owner() {
    let wire = classic();
    for (json, expected) in [
        (
            r#"{"requestId":"q","type":3,"sid":"s","room":"x"}"#,
            "SocketsLeave",
        ),
        (
            r#"{"requestId":"q","type":4,"sid":"s","close":true}"#,
            "DisconnectSockets",
        ),
    ] {
        let heard = wire.read("/", Kind::Request, json.as_bytes()).unwrap();
        let Incoming::Question { question, .. } = heard else {
            panic!("{heard:?}");
        };
        assert!(format!("{question:?}").starts_with(&format!("Command({expected}")));
    }
    let asker = Asker::default();
    let answer = |was_meant| {
        let reply = Reply::Answer(Answer::Command(was_meant));
        wire.response("/", &asker, "q", &node(), &reply).unwrap()
    };
    let answered = answer(true).unwrap();
    assert_eq!(answered.channel, "socket.io-response#/#");
    assert_eq!(answered.payload, r#"{"requestId":"q"}"#);
    assert_eq!(answer(false), None);
}
