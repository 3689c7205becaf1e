//! A message that one node writes, a node with the same limit on depth reads.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::Duration;

use bytes::Bytes;
use roomcast_protocol::{
    args::{Args, json::JsonError},
    channel::{Channels, Dialect, Kind, Mode},
    id::NodeId,
    message::{Broadcast, Message, Position},
    msgpack::TranscodeLimits,
    question::Question,
    target::Target,
    wire::{Parser, Wire, WireError, placed},
};

const LIMIT: usize = 40;

fn wires() -> Vec<Wire> {
    let limits = TranscodeLimits {
        depth: LIMIT,
        ..TranscodeLimits::default()
    };
    let wire = |dialect, parser| Wire::new(Channels::new("p", dialect), parser, limits);
    vec![
        wire(Dialect::Classic, Parser::Msgpack),
        wire(Dialect::Classic, Parser::Json),
        wire(Dialect::Sharded(Mode::Static), Parser::Msgpack),
        wire(Dialect::Streams, Parser::Msgpack),
    ]
}

/// Arguments whose list and what is in it nest so deep, around a value.
fn nested(depth: usize, inner: &str, attachments: Vec<Bytes>) -> Args {
    let json = "[".repeat(depth) + inner + &"]".repeat(depth);
    Args::from_text(json.into(), attachments).unwrap()
}

/// Whether the arguments can be written in each of the forms. What can be written is read again.
fn is_written(wire: &Wire, args: &Args) -> [bool; 4] {
    let broadcast = Broadcast {
        target: Target::default(),
        event: "e".into(),
        args: args.clone(),
    };
    let stored = wire.unplaced("/", &broadcast);
    let message = Message::Broadcast(broadcast);
    let server_side = Message::ServerSideEmit {
        event: "e".into(),
        args: args.clone(),
    };
    let question = Question::Acks {
        target: Target::default(),
        event: "e".into(),
        args: args.clone(),
        timeout: Duration::from_secs(1),
    };
    let position = Position {
        id: 1,
        time: 1,
        after: None,
    };
    let request = match wire.channels().dialect() {
        Dialect::Classic => Kind::Request,
        Dialect::Sharded(_) | Dialect::Streams => Kind::Broadcast,
    };
    let forms = [
        (Kind::Broadcast, wire.message("/", "u", &message, None)),
        (request, wire.message("/", "u", &server_side, None)),
        (
            request,
            wire.question("/", "u", &NodeId::new("n"), "1", &question),
        ),
        (
            Kind::Broadcast,
            stored.map(|mut stored| {
                stored.payload = placed(&stored.payload, position).into();
                stored
            }),
        ),
    ];
    forms.map(|(kind, written)| match written {
        Ok(written) => {
            let read = wire.read("/", kind, &written.payload);
            read.unwrap_or_else(|error| panic!("{}: {error}", args.json()));
            true
        }
        Err(WireError::Tokens(JsonError::TooDeep { limit: LIMIT })) => false,
        Err(error) => panic!("{error}"),
    })
}

#[test]
fn what_nests_as_deep_as_the_limit_is_written_and_nothing_deeper() {
    for wire in wires() {
        for (depth, fits) in [
            (2, true),
            (LIMIT, true),
            (LIMIT + 1, false),
            (499, false),
            (600, false),
        ] {
            for inner in ["", "1", r#""text""#] {
                let args = nested(depth, inner, Vec::new());
                assert_eq!(is_written(&wire, &args), [fits; 4], "{depth}");
            }
            let args = nested(depth - 1, r#"{"a":1}"#, Vec::new());
            assert_eq!(is_written(&wire, &args), [fits; 4], "{depth}");
        }
        // Many that do not nest.
        let flat = format!("[{}[]]", "[],".repeat(2 * LIMIT));
        let flat = Args::from_text(flat.into(), Vec::new()).unwrap();
        assert_eq!(is_written(&wire, &flat), [true; 4]);
    }
}

#[test]
fn binary_counts_as_it_is_written() {
    let binary = || vec![Bytes::from_static(b"x")];
    for wire in wires() {
        for depth in LIMIT - 3..=LIMIT + 2 {
            let args = nested(depth, r#"{"_placeholder":true,"num":0}"#, binary());
            let written = is_written(&wire, &args);
            let is_binary = wire.channels().dialect() != Dialect::Classic;
            if is_binary {
                assert_eq!(written, [depth <= LIMIT; 4], "{depth}");
            } else {
                // Requests are JSON, in which a buffer is an object with a list.
                assert_eq!(written[1], depth + 2 <= LIMIT, "{depth}");
            }
        }
    }
}
