//! The targets of the messages between nodes: what was read can be written, and means the same when
//! it is read again.
//!
//! The first writing may change a message: numbers get other digits in MessagePack, an empty list of
//! ids is one of sockets, and the old forms of a question become its new one. So what is compared is
//! the second writing with the third.

use roomcast_protocol::channel::{Channels, Dialect, Kind, Mode};
use roomcast_protocol::id::NodeId;
use roomcast_protocol::message::Message;
use roomcast_protocol::msgpack::TranscodeLimits;
use roomcast_protocol::signing::{Sealed, SigningKeys};
use roomcast_protocol::wire::{Asker, Entry, Incoming, Parser, Publication, Wire, placed};

const NAMESPACE: &str = "/";
const UID: &str = "u";

/// A broadcast of the classic dialect, in either encoding.
pub(crate) fn classic(data: &[u8]) {
    for parser in [Parser::Msgpack, Parser::Json] {
        check(Dialect::Classic, parser, Kind::Broadcast, data);
    }
}

/// A request or a response of the classic dialect.
pub(crate) fn request(data: &[u8]) {
    for kind in [Kind::Request, Kind::Response] {
        check(Dialect::Classic, Parser::Msgpack, kind, data);
    }
}

/// Any message of the sharded dialect.
pub(crate) fn sharded(data: &[u8]) {
    let dialect = Dialect::Sharded(Mode::Dynamic);
    check(dialect, Parser::Msgpack, Kind::Broadcast, data);
}

/// The name of a channel.
pub(crate) fn channel(data: &[u8]) {
    let Ok(name) = str::from_utf8(data) else {
        return;
    };
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::Static)] {
        let channels = Channels::new("p", dialect);
        for place in channels.parse(name).take(64) {
            let namespace = place.namespace;
            let again = match (place.kind, place.rest) {
                (Kind::Broadcast, None) => channels.broadcast(namespace),
                (Kind::Broadcast, Some(room)) => channels.room(namespace, room),
                (Kind::Request, _) => channels.request(namespace),
                (Kind::Response, None) => channels.response(namespace).expect("it was read"),
                (Kind::Response, Some(uid)) => channels.response_of(namespace, uid),
            };
            assert_eq!(again, name);
            if place.kind == Kind::Broadcast {
                assert_eq!(channels.room_of(name, namespace), Some(place.rest));
            }
        }
    }
}

/// A cut seal never passes for a signed message, wherever it was cut.
pub(crate) fn signed(data: &[u8]) {
    let keys: SigningKeys = "a key that the fuzzer does not have"
        .parse()
        .expect("it is long");
    let Some(sealed) = Sealed::read(data) else {
        return;
    };
    assert!(!keys.verify(&sealed, "p#/#"));
    let (stamp, message) = (sealed.stamp(), sealed.as_sealed());
    let again = match sealed.position() {
        None => keys.seal(stamp, &["p#/#"], message),
        Some(position) => placed(&keys.seal_head(stamp, &["p#/#"], message), position),
    };
    let again = Sealed::read(&again).expect("it was just sealed");
    assert!(keys.verify(&again, "p#/#"));
    assert_eq!((again.stamp(), again.message()), (stamp, sealed.message()));
}

/// A session of a client, or an entry of a stream: the number of its type on the first line, then its data.
pub(crate) fn streams(data: &[u8]) {
    let wire = |limits| {
        Wire::new(
            Channels::new("p", Dialect::Streams),
            Parser::Msgpack,
            limits,
        )
    };
    let reader = wire(TranscodeLimits {
        attachments: 10,
        ..TranscodeLimits::default()
    });
    let _ = reader.read_session(data);
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let fields: [(&str, &[u8]); 4] = [
        ("uid", UID.as_bytes()),
        ("nsp", NAMESPACE.as_bytes()),
        ("type", &data[..end]),
        ("data", &data[end + 1..]),
    ];
    let fields = fields.map(|(name, value)| (name.as_bytes(), value));
    let Some(entry) = Entry::from_fields(fields) else {
        return;
    };
    let Ok(Incoming::Message { message, .. }) = reader.read_entry(&entry) else {
        return;
    };
    // Limits are for what others write.
    let wire = wire(TranscodeLimits::default());
    let again = |message| {
        let written = wire.entry(NAMESPACE, UID, message, None);
        let heard = wire.read_entry(&written.expect("what was read can be written"));
        let Ok(Incoming::Message { message, .. }) = heard else {
            panic!("it was just written: {heard:?}");
        };
        message
    };
    let once = again(&message);
    assert_eq!(again(&once), once, "of {message:?}");
}

fn check(dialect: Dialect, parser: Parser, kind: Kind, data: &[u8]) {
    let limits = TranscodeLimits {
        attachments: 10,
        ..TranscodeLimits::default()
    };
    let channels = Channels::new("p", dialect);
    let wire = Wire::new(channels, parser, limits);
    let _ = wire.echo(NAMESPACE, UID).is_own(data);
    let Ok(heard) = wire.read(NAMESPACE, kind, data) else {
        return;
    };
    // Limits are for what others write.
    let wire = Wire::new(wire.channels().clone(), parser, TranscodeLimits::default());
    if let Some(once) = again(&wire, kind, &heard) {
        let twice = again(&wire, kind, &once);
        assert_eq!(twice.as_ref(), Some(&once), "of {heard:?}");
    }
}

/// The message as it is read after it was written by a node of ours; nothing if it is for nobody.
fn again(wire: &Wire, kind: Kind, heard: &Incoming) -> Option<Incoming> {
    let node = NodeId::new("node");
    let written = match heard {
        Incoming::Message {
            message: Message::Broadcast(broadcast),
            position: Some(position),
            ..
        } => {
            let head = wire.unplaced(NAMESPACE, broadcast);
            head.map(|head| Publication {
                payload: placed(&head.payload, *position).into(),
                ..head
            })
        }
        Incoming::Message {
            message, confirm, ..
        } => wire.message(NAMESPACE, UID, message, confirm.as_deref()),
        Incoming::Question { id, question, .. } => {
            wire.question(NAMESPACE, UID, &node, id, question)
        }
        Incoming::Response { id, reply, .. } => {
            let to = Asker {
                uid: Some(UID.into()),
                node: Some(node.clone()),
            };
            let written = wire.response(NAMESPACE, &to, id, &node, reply);
            written.map(|written| written.expect("our nodes understand every reply"))
        }
        Incoming::Ignored => return None,
    };
    let written = written.expect("what was read can be written");
    let heard = wire.read(NAMESPACE, kind, &written.payload);
    Some(heard.expect("it was just written"))
}
