//! The captured traffic, and the wires that have to understand it.

use std::{fs, path::Path};

use roomcast_protocol::channel::{Channels, Dialect, Mode};
use roomcast_protocol::id::NodeId;
use roomcast_protocol::message::Message;
use roomcast_protocol::msgpack::TranscodeLimits;
use roomcast_protocol::target::Target;
use roomcast_protocol::wire::{Incoming, Parser, Wire};
use serde_json::Value;

pub(crate) const NAMESPACES: [&str; 2] = ["/", "/chat"];

/// One line of a file.
pub(crate) struct Capture(Value);

impl Capture {
    pub(crate) fn text(&self, member: &str) -> &str {
        self.0[member].as_str().unwrap_or("")
    }

    pub(crate) fn has(&self, member: &str) -> bool {
        !self.0[member].is_null()
    }

    pub(crate) fn list(&self, member: &str) -> &[Value] {
        self.0[member].as_array().map_or(&[], |list| list)
    }

    pub(crate) fn is_true(&self, member: &str) -> bool {
        self.0[member] == true
    }

    pub(crate) fn name(&self) -> &str {
        self.text("name")
    }

    /// Whether it is the first one of its step.
    pub(crate) fn is_first(&self) -> bool {
        self.0["seq"] == 0
    }

    /// The message as its capturer decoded it.
    pub(crate) fn decoded(&self) -> Value {
        self.0["payload_decoded"].clone()
    }

    /// What was published, if this is a message.
    pub(crate) fn payload(&self) -> Option<Vec<u8>> {
        self.has("payload_hex")
            .then(|| unhex(self.text("payload_hex")))
    }
}

pub(crate) fn read(file: &str) -> Vec<Capture> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(file)
        .with_extension("jsonl");
    let captures: Vec<_> = fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| Capture(serde_json::from_str(line).unwrap()))
        .collect();
    assert!(captures.len() > 8, "{file}");
    captures
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

pub(crate) fn target(rooms: &[&str], except: &[&str]) -> Target {
    let mut target = Target::default();
    target.add_rooms(rooms);
    target.add_except(except);
    target
}

/// A message that has no position and is not asked about, as it is heard.
pub(crate) fn message(message: Message) -> Incoming {
    Incoming::Message {
        message,
        confirm: None,
        position: None,
    }
}

/// The node that writes where a capture has another sender.
pub(crate) fn node() -> NodeId {
    NodeId::new("AAAAbbbbccccddddeeee")
}

pub(crate) fn wire_as(prefix: &str, dialect: Dialect, parser: Parser) -> Wire {
    let channels = Channels::new(prefix, dialect);
    Wire::new(channels, parser, TranscodeLimits::default())
}

pub(crate) fn classic() -> Wire {
    wire_as("socket.io", Dialect::Classic, Parser::Msgpack)
}

pub(crate) fn sharded(mode: Mode) -> Wire {
    wire_as("socket.io", Dialect::Sharded(mode), Parser::Msgpack)
}

/// The wire with the settings of the servers that were captured.
pub(crate) fn wire_of(file: &str) -> Wire {
    match file {
        "classic" | "emitter" => classic(),
        "classic-key" => wire_as("myapp", Dialect::Classic, Parser::Msgpack),
        "classic-specific-response" => classic().with_specific_responses(true),
        "classic-json-parser" => wire_as("socket.io", Dialect::Classic, Parser::Json),
        "sharded-static" => sharded(Mode::Static),
        "sharded-dynamic" => sharded(Mode::Dynamic),
        "sharded-dynamic-private" => sharded(Mode::DynamicPrivate),
        "streams" | "streams-emitter" => wire_as("socket.io", Dialect::Streams, Parser::Msgpack),
        other => panic!("no settings for {other}"),
    }
}
