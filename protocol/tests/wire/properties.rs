//! Whatever is written is read as it was meant, and whatever is read does no harm.

use std::sync::OnceLock;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use roomcast_protocol::args::{Args, Value as Tree};
use roomcast_protocol::channel::{Dialect, EMITTER_UID, Kind, Mode};
use roomcast_protocol::id::{NodeId, SocketId};
use roomcast_protocol::message::{Broadcast, Message, Position};
use roomcast_protocol::question::{Answer, Description, Question};
use roomcast_protocol::target::Target;
use roomcast_protocol::wire::{Asker, Entry, Incoming, Parser, Reply, Wire, placed, unplaced};

use crate::captures::{classic, node, read, sharded, wire_as};

fn wires() -> [Wire; 5] {
    [
        classic(),
        wire_as("p", Dialect::Classic, Parser::Json),
        wire_as("p", Dialect::Streams, Parser::Msgpack),
        sharded(Mode::Static),
        sharded(Mode::Dynamic),
    ]
}

fn names() -> impl Strategy<Value = Vec<Box<str>>> {
    vec(".{0,6}".prop_map(Box::from), 0..3)
}

fn targets() -> impl Strategy<Value = Target> {
    let flags = (any::<bool>(), any::<Option<bool>>());
    (names(), names(), flags).prop_map(|(rooms, except, (volatile, compress))| {
        let mut target = Target {
            rooms,
            except,
            ..Target::default()
        };
        target.flags.volatile = volatile;
        target.flags.compress = compress;
        target
    })
}

/// Any data. It must be the same on every node, numbers included.
fn trees() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        Just(Tree::Nil),
        any::<bool>().prop_map(Tree::from),
        any::<i64>().prop_map(Tree::from),
        any::<u64>().prop_map(Tree::from),
        any::<f64>()
            .prop_filter("JSON has it", |n| n.is_finite())
            .prop_map(Tree::from),
        any::<i32>().prop_map(|n| Tree::from(f64::from(n))),
        Just(Tree::from(-0.0)),
        any::<String>().prop_map(Tree::from),
        vec(any::<u8>(), 0..40).prop_map(Tree::Binary),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let pair = (any::<String>().prop_map(Tree::from), inner.clone());
        prop_oneof![
            vec(inner, 0..4).prop_map(Tree::Array),
            vec(pair, 0..4).prop_map(Tree::Map),
        ]
    })
}

fn single() -> impl Strategy<Value = Args> {
    trees().prop_filter_map("looks like a placeholder", |tree| {
        Args::encode(&(tree,)).ok()
    })
}

fn args() -> impl Strategy<Value = Args> {
    let several = (trees(), trees()).prop_filter_map("looks like a placeholder", |trees| {
        Args::encode(&trees).ok()
    });
    prop_oneof![Just(Args::default()), single(), several]
}

fn events() -> impl Strategy<Value = (Box<str>, Args)> {
    (any::<String>().prop_map(Box::from), args())
}

fn orders() -> impl Strategy<Value = Message> {
    prop_oneof![
        (targets(), names()).prop_map(|(target, rooms)| Message::SocketsJoin { target, rooms }),
        (targets(), names()).prop_map(|(target, rooms)| Message::SocketsLeave { target, rooms }),
        (targets(), any::<bool>())
            .prop_map(|(target, close)| Message::DisconnectSockets { target, close }),
    ]
}

fn broadcasts() -> impl Strategy<Value = Broadcast> {
    (targets(), events()).prop_map(|(target, (event, args))| Broadcast {
        target,
        event,
        args,
    })
}

fn messages() -> impl Strategy<Value = Message> {
    prop_oneof![
        broadcasts().prop_map(Message::Broadcast),
        orders(),
        events().prop_map(|(event, args)| Message::ServerSideEmit { event, args }),
    ]
}

fn questions() -> impl Strategy<Value = Question> {
    prop_oneof![
        targets().prop_map(Question::Sockets),
        targets().prop_map(Question::SocketIds),
        targets().prop_map(Question::Reached),
        Just(Question::Rooms),
        (targets(), events(), 0..1u64 << 31).prop_map(|(target, (event, args), timeout)| {
            Question::Acks {
                target,
                event,
                args,
                timeout: Duration::from_millis(timeout),
            }
        }),
        events().prop_map(|(event, args)| Question::ServerSideEmit { event, args }),
        orders().prop_map(Question::Command),
    ]
}

fn ids() -> impl Strategy<Value = SocketId> {
    ".{1,22}".prop_map(|id| SocketId::new(&id))
}

fn descriptions() -> impl Strategy<Value = Description> {
    let data = prop_oneof![
        Just(serde_json::json!(null)),
        Just(serde_json::json!({"a": [1, 1.5, "x", {}]})),
    ];
    (ids(), vec(".{0,6}", 0..3), data).prop_map(|(id, rooms, data)| Description {
        id,
        rooms,
        handshake: serde_json::json!({"auth": data}),
        data,
    })
}

/// An empty list of ids is read as one of sockets.
fn replies() -> impl Strategy<Value = Reply> {
    let count = 0..1usize << 40;
    let acks = (
        vec((any::<Option<bool>>(), ids(), args()), 0..3),
        vec(ids(), 0..3),
        count.clone(),
    )
        .prop_map(|(answers, missing, missing_unnamed)| Answer::Acks {
            answers: answers
                .into_iter()
                .map(|(named, id, args)| (named.map(|_| id), args))
                .collect(),
            missing,
            missing_unnamed,
        });
    let answers = prop_oneof![
        vec(descriptions(), 0..3).prop_map(Answer::Sockets),
        vec(ids(), 1..3).prop_map(Answer::SocketIds),
        names().prop_map(Answer::Rooms),
        acks,
        Just(Answer::ServerSideEmit(None)),
        single().prop_map(|args| Answer::ServerSideEmit(Some(args))),
        count.clone().prop_map(Answer::Reached),
        any::<bool>().prop_map(Answer::Command),
    ];
    prop_oneof![
        answers.prop_map(Reply::Answer),
        count.prop_map(Reply::Asked),
        single().prop_map(Reply::Acknowledged),
    ]
}

fn kind_of(message: &Message) -> Kind {
    match message {
        Message::Broadcast(_) => Kind::Broadcast,
        _ => Kind::Request,
    }
}

/// Orders of the classic dialect have no flags.
fn without_flags(mut message: Message) -> Message {
    match &mut message {
        Message::SocketsJoin { target, .. }
        | Message::SocketsLeave { target, .. }
        | Message::DisconnectSockets { target, .. } => target.flags = Default::default(),
        _ => {}
    }
    message
}

/// The question as it is read where the dialect has no words for it.
fn as_read(question: Question, dialect: Dialect) -> Question {
    let plain = |mut target: Target| {
        target.flags = Default::default();
        target
    };
    match (question, dialect) {
        (Question::Rooms, Dialect::Sharded(_) | Dialect::Streams) => {
            Question::Sockets(Target::default())
        }
        (Question::SocketIds(target), Dialect::Sharded(_) | Dialect::Streams) => {
            Question::Sockets(target)
        }
        (question, Dialect::Sharded(_) | Dialect::Streams) => question,
        (Question::SocketIds(target), _) if !target.except.is_empty() => {
            Question::Sockets(plain(target))
        }
        (Question::SocketIds(target), _) => Question::SocketIds(plain(target)),
        (Question::Sockets(target), _) => Question::Sockets(plain(target)),
        (Question::Reached(target), _) => Question::Reached(plain(target)),
        (Question::Command(order), _) => Question::Command(without_flags(order)),
        (question, _) => question,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_are_read_as_they_were_meant(
        message in messages(),
        namespace in "/[a-z#\"é]{0,4}",
        uid in ".{1,6}",
        confirm in any::<Option<bool>>(),
    ) {
        for wire in wires() {
            let confirm = confirm.map(|_| "id");
            let written = wire.message(&namespace, &uid, &message, confirm).unwrap();
            let heard = wire.read(&namespace, kind_of(&message), &written.payload).unwrap();
            let expected = match wire.channels().dialect() {
                Dialect::Classic => without_flags(message.clone()),
                Dialect::Sharded(_) | Dialect::Streams => message.clone(),
            };
            let expected = Incoming::Message { message: expected, confirm: confirm.map(Box::from), position: None };
            prop_assert_eq!(heard, expected);
            prop_assert!(wire.echo(&namespace, &uid).is_own(&written.payload));
            let other = wire.read("/other", kind_of(&message), &written.payload).unwrap();
            let names_it = !matches!(
                (wire.channels().dialect(), kind_of(&message)),
                (Dialect::Classic, Kind::Request)
            );
            prop_assert_eq!(names_it, other == Incoming::Ignored);
        }
    }

    #[test]
    fn entries_of_a_stream_are_read_as_they_were_meant(
        message in messages(),
        namespace in "/[a-z#\"é]{0,4}",
        uid in ".{1,6}",
        confirm in any::<Option<bool>>(),
    ) {
        let wire = wire_as("p", Dialect::Streams, Parser::Msgpack);
        let confirm = confirm.map(|_| "id");
        let written = wire.entry(&namespace, &uid, &message, confirm).unwrap();
        let fields = written.fields().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let entry = Entry::from_fields(fields).unwrap();
        prop_assert_eq!(&entry, &written);
        let heard = wire.read_entry(&entry).unwrap();
        let expected = Incoming::Message { message, confirm: confirm.map(Box::from), position: None };
        prop_assert_eq!(heard, expected);
    }

    #[test]
    fn no_entry_and_no_session_makes_a_reader_panic(
        kind in 0_u8..16,
        data in prop_oneof![".{0,40}", "[A-Za-z0-9+/]{0,40}", "\\{.{0,40}\\}"],
    ) {
        let wire = wire_as("p", Dialect::Streams, Parser::Msgpack);
        let kind = kind.to_string();
        let fields = [("nsp", "/"), ("type", &*kind), ("data", &*data)];
        let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let _ = wire.read_entry(&Entry::from_fields(fields).unwrap());
        let _ = wire.read_session(data.as_bytes());
    }

    #[test]
    fn stored_broadcasts_are_read_with_their_position(
        broadcast in broadcasts(),
        namespace in "/[a-z#\"é]{0,4}",
        id in 0..=1u64 << 53,
        time in 0..=1u64 << 53,
        after in proptest::option::of(0..=1u64 << 53),
    ) {
        let position = Position { id, time, after };
        for wire in wires() {
            let head = wire.unplaced(&namespace, &broadcast).unwrap();
            let heard = wire.read(&namespace, Kind::Broadcast, &placed(&head.payload, position));
            let message = Message::Broadcast(broadcast.clone());
            let plain = wire.message(&namespace, EMITTER_UID, &message, None).unwrap();
            let expected = Incoming::Message { message, confirm: None, position: Some(position) };
            prop_assert_eq!(heard.unwrap(), expected.clone());
            // An entry that an emitter has written becomes the same.
            let head = unplaced(&plain.payload).unwrap();
            let heard = wire.read(&namespace, Kind::Broadcast, &placed(&head, position));
            prop_assert_eq!(heard.unwrap(), expected);
        }
    }

    #[test]
    fn no_bytes_in_the_place_of_a_position_change_the_message(
        broadcast in broadcasts(),
        extra in vec(any::<u8>(), 0..40),
    ) {
        for wire in wires() {
            let head = wire.unplaced("/", &broadcast).unwrap();
            let end: &[u8] = match head.payload[0] {
                b'[' => b"]",
                b'{' => b"}",
                _ => b"",
            };
            let payload = [&head.payload[..], &extra, end].concat();
            if let Ok(heard) = wire.read("/", Kind::Broadcast, &payload) {
                let Incoming::Message { message: Message::Broadcast(read), .. } = heard else {
                    panic!("{heard:?}");
                };
                prop_assert_eq!(&read, &broadcast);
            }
        }
    }

    #[test]
    fn questions_are_read_as_they_were_meant(question in questions(), uid in ".{1,6}") {
        let asker = NodeId::new("asker");
        for wire in wires() {
            let written = wire.question("/", &uid, &asker, "id", &question).unwrap();
            let heard = wire.read("/", Kind::Request, &written.payload).unwrap();
            let expected = Incoming::Question {
                asker: Asker { uid: Some(uid.as_str().into()), node: Some(asker.clone()) },
                id: "id".into(),
                question: as_read(question.clone(), wire.channels().dialect()),
            };
            prop_assert_eq!(heard, expected);
            prop_assert!(wire.echo("/", &uid).is_own(&written.payload));
        }
    }

    #[test]
    fn replies_are_read_as_they_were_meant(reply in replies(), is_ours in any::<bool>()) {
        let asker = NodeId::new("asker");
        let to = Asker { uid: Some("u".into()), node: is_ours.then_some(asker) };
        for wire in wires() {
            let Some(written) = wire.response("/", &to, "id", &node(), &reply).unwrap() else {
                prop_assert!(!is_ours);
                continue;
            };
            let heard = wire.read("/", Kind::Response, &written.payload).unwrap();
            let expected = Incoming::Response {
                id: "id".into(),
                node: is_ours.then(node),
                reply: reply.clone(),
            };
            prop_assert_eq!(heard, expected);
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in vec(any::<u8>(), 0..200)) {
        read_everywhere(&bytes);
    }

    #[test]
    fn no_change_of_a_real_message_makes_a_reader_panic(
        which in any::<Index>(),
        changes in vec((any::<Index>(), any::<u8>()), 1..4),
        cut in any::<Index>(),
    ) {
        let mut payload = which.get(payloads()).clone();
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        read_everywhere(&payload);
        payload.truncate(cut.index(payload.len()));
        read_everywhere(&payload);
    }
}

fn payloads() -> &'static [Vec<u8>] {
    static PAYLOADS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    PAYLOADS.get_or_init(|| {
        let files = ["classic", "classic-json-parser", "sharded-dynamic"];
        let captures = files.into_iter().flat_map(read);
        captures.filter_map(|capture| capture.payload()).collect()
    })
}

fn read_everywhere(payload: &[u8]) {
    for wire in wires() {
        for kind in [Kind::Broadcast, Kind::Request, Kind::Response] {
            let _ = wire.read("/", kind, payload);
        }
        let _ = wire.echo("/", "u").is_own(payload);
    }
}
