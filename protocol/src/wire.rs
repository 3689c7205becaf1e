//! The messages of a cluster as bytes, in the dialects of Node's Redis adapters.
//!
//! [`Wire`] writes messages, questions and answers, and reads those of Roomcast nodes, of Node's
//! adapters and emitters, and of emitters in other languages. Hostile bytes give errors, never
//! panics. Written messages never harm a Node server, some of which stop receiving for ever at a
//! payload that they cannot read.
//!
//! Each envelope is a struct with serde's derive. `serde_json` and `rmp_serde` write it;
//! `serde_json` and [`crate::msgpack`] read it:
//!
//! ```text
//! bytes ── Echo::is_own: the first or last bytes identify the node's own messages: dropped
//!   │
//!   ▼  one pass over the envelope; its members stay slices (crate::raw)
//! Raw ──▶ Envelope / Request / Members ──▶ Message, Question or Reply
//!              │
//!              └── arguments: JSON stays the text that it is; MessagePack becomes text,
//!                  binary becomes attachments (payload, msgpack::to_json, buffers)
//! ```
//!
//! The captured messages in `tests/fixtures` define the accepted and the written forms.

mod answers;
mod buffers;
mod classic;
mod parts;
mod payload;
mod session;
mod sharded;
mod streams;
mod unplaced;

use std::time::Duration;

use bytes::Bytes;

use serde::Serialize;

pub use self::{
    session::{HOLDER, StoredSession},
    streams::Entry,
    unplaced::{placed, unplaced},
};

use self::payload::{Arguments, Encoding};
use crate::{
    args::{Args, ArgsError, json::JsonError},
    channel::{Channels, Dialect, Kind},
    id::NodeId,
    message::{Message, Position},
    msgpack::{MsgpackError, TranscodeLimits},
    question::{Answer, Question},
    raw::{Raw, RawError},
    target::Target,
};

/// The time that sockets have to acknowledge if the message states none. Node waits the same time
/// for answers.
pub const DEFAULT_ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The encoding of broadcasts in the classic dialect (Node's option `parser`). All
/// members of a cluster must use the same. The sharded dialect and the entries of streams
/// use MessagePack for binary and JSON otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Parser {
    /// MessagePack, Node's default.
    #[default]
    Msgpack,
    /// JSON. Binary is an object with an array of numbers, as `JSON.stringify` writes a `Buffer`.
    Json,
}

/// Writes and reads the messages of a cluster.
#[derive(Debug, Clone)]
pub struct Wire {
    channels: Channels,
    parser: Parser,
    limits: TranscodeLimits,
    has_specific_responses: bool,
}

/// A message that is ready to be published, with SPUBLISH in the sharded dialect and
/// PUBLISH otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The channel.
    pub channel: String,
    /// The bytes.
    pub payload: Bytes,
}

/// A message that came on a channel.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// A message to carry out.
    Message {
        /// The message.
        message: Message,
        /// The id of the [`Question::Reached`] that will ask for the number of sockets reached.
        confirm: Option<Box<str>>,
        /// The place of a broadcast that was stored in a log.
        position: Option<Position>,
    },
    /// A question to answer with [`Wire::response`].
    Question {
        /// The sender.
        asker: Asker,
        /// The id, which the answer repeats.
        id: Box<str>,
        /// The question.
        question: Question,
    },
    /// An answer.
    Response {
        /// The id of the question.
        id: Box<str>,
        /// The node that answers. Node's servers do not name themselves.
        node: Option<NodeId>,
        /// The answer or a part of it.
        reply: Reply,
    },
    /// A message for another namespace, or of a type that has no meaning for a Redis adapter.
    Ignored,
}

/// The sender of a question.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asker {
    /// The uid, which is part of the name of the asker's response channel.
    pub uid: Option<Box<str>>,
    /// The name of a Roomcast node or emitter, which understands more than a Node server.
    pub node: Option<NodeId>,
}

/// One answer of one node. A question about acknowledgements can have several.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The whole answer. An empty list of sockets is always read as [`Answer::Sockets`], never as
    /// [`Answer::SocketIds`].
    Answer(Answer),
    /// How many sockets were asked to acknowledge. Node expects it first, and from every server.
    Asked(usize),
    /// The acknowledgement of one socket. Node sends the first argument only.
    Acknowledged(Args),
}

/// Why a message cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The MessagePack is invalid, or arguments cannot be written as MessagePack.
    #[error(transparent)]
    Msgpack(#[from] MsgpackError),
    /// The JSON is invalid or does not have the expected shape.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The JSON of arguments is invalid or nested too deeply.
    #[error(transparent)]
    Tokens(#[from] JsonError),
    /// The arguments are invalid.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// The data or the handshake in the description of a socket is invalid.
    #[error("description of a socket: {0}")]
    Value(#[source] serde_json::Error),
    /// A value of another type.
    #[error("expected {expected}")]
    Unexpected {
        /// The expected part.
        expected: &'static str,
    },
    /// A required part is missing.
    #[error("{what} missing")]
    Missing {
        /// The part.
        what: &'static str,
    },
    /// More binary values than the limit.
    #[error("more than {limit} attachments")]
    TooManyAttachments {
        /// The limit.
        limit: usize,
    },
    /// The dialect has no form for the message.
    #[error("the dialect has no form for {what}")]
    Inexpressible {
        /// The message.
        what: &'static str,
    },
}

impl Wire {
    /// `limits` apply to the arguments of messages that are read. The depth applies to written
    /// messages as well, so that no node receives a message that it refuses by the same limit.
    pub fn new(channels: Channels, parser: Parser, limits: TranscodeLimits) -> Self {
        Self {
            channels,
            parser,
            limits,
            has_specific_responses: false,
        }
    }

    /// Whether Node's servers are answered on their own channels instead of the shared one (Node's
    /// option `publishOnSpecificResponseChannel`). Off by default. Servers with and without it work
    /// together.
    #[must_use]
    pub fn with_specific_responses(mut self, on: bool) -> Self {
        self.has_specific_responses = on;
        self
    }

    /// The names of the cluster's channels.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Writes a message. `uid` is the sender's, [`crate::channel::EMITTER_UID`] for an
    /// emitter. With `confirm`, Roomcast nodes remember how many sockets the message
    /// reached, for the [`Question::Reached`] with this id.
    ///
    /// # Errors
    ///
    /// The arguments are not JSON or nested too deeply.
    pub fn message(
        &self,
        namespace: &str,
        uid: &str,
        message: &Message,
        confirm: Option<&str>,
    ) -> Result<Publication, WireError> {
        self.check_message(message)?;
        let payload = match (message, self.channels.dialect()) {
            (_, Dialect::Sharded(_) | Dialect::Streams) => {
                let around = sharded::Around {
                    confirm,
                    ..self.around(namespace, uid)
                };
                sharded::write_message(around, message)?
            }
            (Message::Broadcast(broadcast), Dialect::Classic) => {
                let mut out = Vec::with_capacity(ENVELOPE_BYTES + broadcast.args.json().len());
                let encoding = self.encoding();
                let last = confirm.map(|confirm| classic::Last::Asked { confirm });
                let parts = broadcast.parts();
                classic::write_broadcast(&mut out, encoding, namespace, uid, parts, last)?;
                out.into()
            }
            (_, Dialect::Classic) => classic::write_message(uid, message, confirm)?,
        };
        // In the sharded dialect the question goes to the main channel, and a broadcast is certain
        // to arrive before its question only on the same channel.
        let is_asked = confirm.is_some() && self.channels.dialect() != Dialect::Classic;
        Ok(Publication {
            channel: self.channels.for_message(namespace, message, is_asked),
            payload,
        })
    }

    /// Appends the payload of a broadcast: the target, the name of the event, and its arguments.
    ///
    /// # Errors
    ///
    /// The arguments are not JSON or nested too deeply. `bytes` may have grown.
    pub fn write_broadcast(
        &self,
        bytes: &mut Vec<u8>,
        namespace: &str,
        uid: &str,
        broadcast: (&Target, &str, &Args),
    ) -> Result<(), WireError> {
        self.check_broadcast(broadcast.2)?;
        if self.channels.dialect() != Dialect::Classic {
            let around = self.around(namespace, uid);
            bytes.extend_from_slice(&sharded::write_broadcast(around, broadcast)?);
            return Ok(());
        }
        bytes.reserve(ENVELOPE_BYTES + broadcast.2.json().len());
        classic::write_broadcast(bytes, self.encoding(), namespace, uid, broadcast, None)
    }

    /// Writes a question. `uid` is the asker's own in the namespace, also for an emitter,
    /// because it is part of the name of the response channel.
    ///
    /// [`Question::Rooms`] and [`Question::SocketIds`] have no form in the sharded dialect, nor has
    /// [`Question::SocketIds`] with exceptions in the classic one. They are written as
    /// [`Question::Sockets`], and the asker takes rooms and ids from the answers.
    ///
    /// # Errors
    ///
    /// The arguments are not JSON or nested too deeply, or [`Question::Command`] contains a message
    /// that is not a command.
    pub fn question(
        &self,
        namespace: &str,
        uid: &str,
        asker: &NodeId,
        id: &str,
        question: &Question,
    ) -> Result<Publication, WireError> {
        match question {
            Question::Acks { args, .. } => self.check_broadcast(args)?,
            Question::ServerSideEmit { args, .. } => self.check_request(args)?,
            Question::Command(message) => self.check_message(message)?,
            _ => {}
        }
        let payload = match self.channels.dialect() {
            Dialect::Sharded(_) | Dialect::Streams => {
                let around = sharded::Around {
                    node: Some(asker.as_str()),
                    ..self.around(namespace, uid)
                };
                sharded::write_question(around, id, question)
            }
            Dialect::Classic => classic::write_question(self, namespace, uid, asker, id, question),
        }?;
        Ok(Publication {
            channel: self.channels.request(namespace),
            payload,
        })
    }

    /// Writes the answer of `node` to the question `id`. Returns `None` if the asker is a
    /// Node server that expects no such answer: it gets acknowledgements one by one
    /// ([`Reply::Asked`], [`Reply::Acknowledged`]), and nothing if there is no handler.
    ///
    /// # Errors
    ///
    /// The arguments are not JSON or nested too deeply.
    pub fn response(
        &self,
        namespace: &str,
        to: &Asker,
        id: &str,
        node: &NodeId,
        reply: &Reply,
    ) -> Result<Option<Publication>, WireError> {
        match self.channels.dialect() {
            Dialect::Classic => classic::write_response(self, namespace, to, id, node, reply),
            Dialect::Sharded(_) | Dialect::Streams => {
                sharded::write_response(self, namespace, to, id, node, reply)
            }
        }
    }

    /// Reads a payload that came on a channel of this kind. `namespace` is the receiver's
    /// reading of the channel's name; a message for another namespace is
    /// [`Incoming::Ignored`].
    ///
    /// # Errors
    ///
    /// The payload is invalid, a required part is missing, or the arguments exceed the limits.
    pub fn read(&self, namespace: &str, kind: Kind, payload: &[u8]) -> Result<Incoming, WireError> {
        if !matches!(payload.first(), Some(b'{' | b'[')) {
            return self.read_raw(namespace, kind, Raw::Msgpack(payload));
        }
        let text = String::from_utf8_lossy(payload);
        self.read_raw(namespace, kind, Raw::Json(text.trim_ascii_end()))
    }

    /// Recognizes the messages of the sender `uid` in the namespace.
    pub fn echo(&self, namespace: &str, uid: &str) -> Echo {
        Echo::new(namespace, uid, self.channels.dialect())
    }

    /// The bytes around the data of a message of this sender.
    fn around<'a>(&self, namespace: &'a str, uid: &'a str) -> sharded::Around<'a> {
        sharded::Around {
            namespace,
            uid,
            node: None,
            confirm: None,
            is_packed: self.channels.dialect() == Dialect::Streams,
            is_unplaced: false,
        }
    }

    fn read_raw(&self, namespace: &str, kind: Kind, raw: Raw<'_>) -> Result<Incoming, WireError> {
        let arguments = self.arguments();
        match (self.channels.dialect(), kind) {
            (Dialect::Sharded(_) | Dialect::Streams, _) => {
                sharded::read(&arguments, namespace, raw)
            }
            (Dialect::Classic, Kind::Broadcast) => {
                classic::read_broadcast(&arguments, namespace, raw)
            }
            (Dialect::Classic, Kind::Request) => classic::read_request(&arguments, namespace, raw),
            (Dialect::Classic, Kind::Response) => classic::read_response(&arguments, raw),
        }
    }

    fn arguments(&self) -> Arguments {
        Arguments {
            limits: self.limits,
            has_buffers: self.channels.dialect() == Dialect::Classic,
        }
    }

    fn check_message(&self, message: &Message) -> Result<(), WireError> {
        match message {
            Message::Broadcast(broadcast) => self.check_broadcast(&broadcast.args),
            Message::ServerSideEmit { args, .. } => self.check_request(args),
            _ => Ok(()),
        }
    }

    /// Checks the depth of arguments that are written with the parser of the cluster.
    fn check_broadcast(&self, args: &Args) -> Result<(), WireError> {
        let is_json = self.channels.dialect() == Dialect::Classic && self.parser == Parser::Json;
        self.check_depth(args, is_json)
    }

    /// Checks the depth of arguments that the classic dialect writes as JSON.
    fn check_request(&self, args: &Args) -> Result<(), WireError> {
        self.check_depth(args, self.channels.dialect() == Dialect::Classic)
    }

    /// In JSON a buffer is an object with a list.
    fn check_depth(&self, args: &Args, is_json: bool) -> Result<(), WireError> {
        let of_binary = if is_json { 2 } else { 0 };
        Ok(args.check_depth_with(self.limits.depth, of_binary)?)
    }

    fn encoding(&self) -> Encoding {
        match self.parser {
            Parser::Msgpack => Encoding::Msgpack,
            Parser::Json => Encoding::Json,
        }
    }
}

/// The bytes that most messages have around their arguments, so that a buffer seldom grows twice.
const ENVELOPE_BYTES: usize = 192;

impl From<RawError> for WireError {
    fn from(error: RawError) -> Self {
        match error {
            RawError::Json(error) => Self::Json(error),
            RawError::Msgpack(error) => Self::Msgpack(error),
        }
    }
}

impl Asker {
    fn read(uid: Raw<'_>, node: Raw<'_>) -> Self {
        Self {
            uid: uid.boxed_text(),
            node: node.text().map(|name| NodeId::new(&name)),
        }
    }
}

/// Recognizes a message that the node itself published and that comes back to it, by comparing its
/// first or last bytes. Answers are not recognized, because they go to other nodes.
#[derive(Debug, Clone)]
pub struct Echo {
    dialect: Dialect,
    /// The beginning of a list whose first element is the uid, without the head of the list.
    list: [Box<[u8]>; 2],
    /// The beginning of a map whose first member is the uid (classic), or the end of one whose last
    /// members are uid and namespace (sharded); without the head of the map.
    map: [Box<[u8]>; 2],
}

impl Echo {
    fn new(namespace: &str, uid: &str, dialect: Dialect) -> Self {
        #[derive(Serialize)]
        struct Members<'a> {
            uid: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            nsp: Option<&'a str>,
        }

        let nsp = (dialect != Dialect::Classic).then_some(namespace);
        let forms = [Encoding::Msgpack, Encoding::Json];
        let list = forms.map(|encoding| encoding.to_bytes(&uid).to_vec().into());
        // The bracket or head in front is not compared, and in the classic dialect the closing
        // bracket is not compared either.
        let map = forms.map(|encoding| {
            let map = encoding.to_bytes(&Members { uid, nsp });
            let is_open = encoding == Encoding::Json && dialect == Dialect::Classic;
            map[1..map.len() - usize::from(is_open)].into()
        });
        Self { dialect, list, map }
    }

    /// Whether the sender wrote the payload.
    pub fn is_own(&self, payload: &[u8]) -> bool {
        let Some((head, rest)) = payload.split_first() else {
            return false;
        };
        let [msgpack_list, json_list] = &self.list;
        let [msgpack_map, json_map] = &self.map;
        match (self.dialect, head) {
            (Dialect::Classic, b'[') => follows(rest, json_list),
            (Dialect::Classic, b'{') => follows(rest, json_map),
            (Dialect::Classic, 0x90..=0x9f) => rest.starts_with(msgpack_list),
            (Dialect::Classic, _) => rest.starts_with(msgpack_map),
            (_, b'{') => rest.ends_with(json_map),
            (_, _) => rest.ends_with(msgpack_map),
        }
    }
}

/// Whether the text begins with this value and a comma.
fn follows(text: &[u8], value: &[u8]) -> bool {
    text.strip_prefix(value)
        .is_some_and(|rest| rest.first() == Some(&b','))
}
