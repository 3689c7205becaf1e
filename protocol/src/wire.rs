//! What is published, and what is heard, as bytes.
//!
//! [`Wire`] writes messages, questions and answers in the dialect of the cluster and reads those of
//! others: of our own nodes, of Node's adapters and emitters, of emitters in other languages.
//! Hostile bytes give errors, never panics. What is written never harms a server of Node's, some of
//! which stop for ever at a payload that they cannot read. Nothing here knows Redis or time.

mod answers;
mod buffers;
mod classic;
mod parts;
mod payload;
mod sharded;

use std::time::Duration;

use bytes::Bytes;

use serde::Serialize;

use self::payload::{Arguments, Encoding};
use crate::{
    args::{Args, ArgsError, json::JsonError},
    channel::{Channels, Dialect, Kind},
    id::NodeId,
    message::Message,
    msgpack::{MsgpackError, TranscodeLimits},
    question::{Answer, Question},
    raw::{Raw, RawError},
    target::Target,
};

/// How long sockets have to acknowledge if the asker does not say: as long as Node waits for
/// answers.
pub const DEFAULT_ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// How broadcasts are encoded in the classic dialect (Node's option `parser`). All members of a
/// cluster have to agree. The sharded dialect chooses by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Parser {
    /// MessagePack, Node's default.
    #[default]
    Msgpack,
    /// JSON, in which binary is an object with an array of numbers.
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

/// A message ready to be published, with PUBLISH or SPUBLISH as the dialect asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Where.
    pub channel: String,
    /// What.
    pub payload: Bytes,
}

/// What was heard on a channel.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// Something to be carried out.
    Message {
        /// What.
        message: Message,
        /// The id of the [`Question::Reached`] that will ask for the number of sockets reached.
        confirm: Option<Box<str>>,
    },
    /// Something to be answered with [`Wire::response`].
    Question {
        /// By whom.
        asker: Asker,
        /// The id, to be repeated in the answer.
        id: Box<str>,
        /// What.
        question: Question,
    },
    /// An answer.
    Response {
        /// The id of the question.
        id: Box<str>,
        /// Who answers; Node's servers don't say.
        node: Option<NodeId>,
        /// The answer.
        reply: Reply,
    },
    /// Nothing for this namespace, or nothing that a Redis adapter has use for.
    Ignored,
}

/// Who has asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asker {
    /// The uid, which names the channel of the asker's responses.
    pub uid: Option<Box<str>>,
    /// The name of a node or an emitter of ours, which understands more than Node does.
    pub node: Option<NodeId>,
}

/// What one node says to a question at one time.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The whole answer. An empty list of sockets is always read as [`Answer::Sockets`], never as
    /// [`Answer::SocketIds`].
    Answer(Answer),
    /// How many sockets were asked to acknowledge. Node expects it from everybody, and first.
    Asked(usize),
    /// What one socket has acknowledged. Only the first argument travels.
    Acknowledged(Args),
}

/// Why a message could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The MessagePack is broken, or arguments cannot be written as such.
    #[error(transparent)]
    Msgpack(#[from] MsgpackError),
    /// The JSON is broken, or does not have the expected shape.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The JSON of arguments is broken or nests too deeply.
    #[error(transparent)]
    Tokens(#[from] JsonError),
    /// The arguments are not usable.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// What a socket is described with is not usable.
    #[error("description of a socket: {0}")]
    Value(#[source] serde_json::Error),
    /// Something else stands here.
    #[error("expected {expected}")]
    Unexpected {
        /// What would have been right.
        expected: &'static str,
    },
    /// A part without which the message has no meaning.
    #[error("{what} missing")]
    Missing {
        /// Which one.
        what: &'static str,
    },
    /// More binary parts than the limit.
    #[error("more than {limit} attachments")]
    TooManyAttachments {
        /// The limit that was reached.
        limit: usize,
    },
    /// The dialect has no form for it.
    #[error("the dialect cannot say {what}")]
    Inexpressible {
        /// What.
        what: &'static str,
    },
}

impl Wire {
    /// The limits are for the arguments of what is read.
    pub fn new(channels: Channels, parser: Parser, limits: TranscodeLimits) -> Self {
        Self {
            channels,
            parser,
            limits,
            has_specific_responses: false,
        }
    }

    /// Answers Node's servers on their own channels instead of the shared one, off by default.
    /// (Node's option `publishOnSpecificResponseChannel`; servers with and without it get along.)
    #[must_use]
    pub fn with_specific_responses(mut self, on: bool) -> Self {
        self.has_specific_responses = on;
        self
    }

    /// The channels.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Writes a message of the sender `uid`, which is [`crate::channel::EMITTER_UID`] for an
    /// emitter. With `confirm`, the nodes of ours remember how many sockets it reached for the
    /// question of this id.
    pub fn message(
        &self,
        namespace: &str,
        uid: &str,
        message: &Message,
        confirm: Option<&str>,
    ) -> Result<Publication, WireError> {
        let payload = match (message, self.channels.dialect()) {
            (_, Dialect::Sharded(_)) => {
                let around = sharded::Around {
                    namespace,
                    uid,
                    node: None,
                    confirm,
                };
                sharded::write_message(around, message)?
            }
            (
                Message::Broadcast {
                    target,
                    event,
                    args,
                },
                Dialect::Classic,
            ) => {
                let mut out = Vec::with_capacity(ENVELOPE_BYTES + args.json().len());
                let broadcast = (target, &**event, args);
                let encoding = self.encoding();
                classic::write_broadcast(&mut out, encoding, namespace, uid, broadcast, confirm)?;
                out.into()
            }
            (_, Dialect::Classic) => classic::write_message(uid, message, confirm)?,
        };
        // In the sharded dialect the question comes on the main channel, and a broadcast is surely
        // before its question only on the same one.
        let is_asked = confirm.is_some() && self.channels.dialect() != Dialect::Classic;
        Ok(Publication {
            channel: self.channels.for_message(namespace, message, is_asked),
            payload,
        })
    }

    /// Appends the payload of a broadcast: to whom, the name of the event, and its arguments.
    pub fn write_broadcast(
        &self,
        bytes: &mut Vec<u8>,
        namespace: &str,
        uid: &str,
        broadcast: (&Target, &str, &Args),
    ) -> Result<(), WireError> {
        if self.channels.dialect() != Dialect::Classic {
            let around = sharded::Around {
                namespace,
                uid,
                node: None,
                confirm: None,
            };
            bytes.extend_from_slice(&sharded::write_broadcast(around, broadcast)?);
            return Ok(());
        }
        bytes.reserve(ENVELOPE_BYTES + broadcast.2.json().len());
        classic::write_broadcast(bytes, self.encoding(), namespace, uid, broadcast, None)
    }

    /// Writes a question. `uid` is the asker's own in the namespace, also if it is an emitter, since
    /// it names the channel of the answers.
    ///
    /// [`Question::Rooms`] and [`Question::SocketIds`] have no form in the sharded dialect, and
    /// [`Question::SocketIds`] with exceptions none in the classic one: then it is asked who the
    /// sockets are, and the asker finds rooms and ids in the answers.
    pub fn question(
        &self,
        namespace: &str,
        uid: &str,
        asker: &NodeId,
        id: &str,
        question: &Question,
    ) -> Result<Publication, WireError> {
        let payload = match self.channels.dialect() {
            Dialect::Sharded(_) => {
                let around = sharded::Around {
                    namespace,
                    uid,
                    node: Some(asker.as_str()),
                    confirm: None,
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

    /// Writes what `node` says to the question `id`. Nothing if the asker, a server of Node's,
    /// expects no such message: it is told of acknowledgements one by one ([`Reply::Asked`],
    /// [`Reply::Acknowledged`]), and hears nothing where there is no handler.
    pub fn response(
        &self,
        namespace: &str,
        to: &Asker,
        id: &str,
        node: &NodeId,
        reply: &Reply,
    ) -> Result<Option<Publication>, WireError> {
        match self.channels.dialect() {
            Dialect::Sharded(_) => sharded::write_response(self, namespace, to, id, node, reply),
            Dialect::Classic => classic::write_response(self, namespace, to, id, node, reply),
        }
    }

    /// Reads what came on a channel of this kind, of which the receiver thinks that it belongs to
    /// the namespace.
    pub fn read(&self, namespace: &str, kind: Kind, payload: &[u8]) -> Result<Incoming, WireError> {
        if !matches!(payload.first(), Some(b'{' | b'[')) {
            return self.read_raw(namespace, kind, Raw::Msgpack(payload));
        }
        let text = String::from_utf8_lossy(payload);
        self.read_raw(namespace, kind, Raw::Json(text.trim_ascii_end()))
    }

    /// Knows what the sender `uid` publishes in the namespace.
    pub fn echo(&self, namespace: &str, uid: &str) -> Echo {
        Echo::new(namespace, uid, self.channels.dialect())
    }

    fn read_raw(&self, namespace: &str, kind: Kind, raw: Raw<'_>) -> Result<Incoming, WireError> {
        let arguments = Arguments {
            limits: self.limits,
            has_buffers: self.channels.dialect() == Dialect::Classic,
        };
        match (self.channels.dialect(), kind) {
            (Dialect::Sharded(_), _) => sharded::read(&arguments, namespace, raw),
            (Dialect::Classic, Kind::Broadcast) => {
                classic::read_broadcast(&arguments, namespace, raw)
            }
            (Dialect::Classic, Kind::Request) => classic::read_request(&arguments, namespace, raw),
            (Dialect::Classic, Kind::Response) => classic::read_response(&arguments, raw),
        }
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

/// Tells what a node has published itself, and what comes back to it, by a look at a few bytes.
/// Answers are not meant: they go to others.
#[derive(Debug, Clone)]
pub struct Echo {
    dialect: Dialect,
    /// A list that begins with the uid, without its head where that has a length.
    list: [Box<[u8]>; 2],
    /// A map that begins with the uid, or ends with uid and namespace.
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
        // The bracket or the head in front is not compared, and in the classic dialect neither is
        // the bracket behind.
        let map = forms.map(|encoding| {
            let map = encoding.to_bytes(&Members { uid, nsp });
            let is_open = encoding == Encoding::Json && dialect == Dialect::Classic;
            map[1..map.len() - usize::from(is_open)].into()
        });
        Self { dialect, list, map }
    }

    /// Whether the sender itself wrote the payload.
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
            (Dialect::Sharded(_), b'{') => rest.ends_with(json_map),
            (Dialect::Sharded(_), _) => rest.ends_with(msgpack_map),
        }
    }
}

/// Whether the text begins with this value and goes on behind it.
fn follows(text: &[u8], value: &[u8]) -> bool {
    text.strip_prefix(value)
        .is_some_and(|rest| rest.first() == Some(&b','))
}
