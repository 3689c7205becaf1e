//! Node's `@socket.io/redis-streams-adapter`: messages are entries of a stream, questions
//! and answers are published on channels as envelopes of the sharded dialect in
//! MessagePack.
//!
//! ```text
//! XADD stream MAXLEN ~ n *  uid U  nsp N  type "3"  data D   [node, confirm]
//!                                                    └ JSON, or base64 of MessagePack if it has binary
//! ```
//!
//! Fields in addition to Node's four are Roomcast's, and Node ignores them.

use std::borrow::Cow;

use base64::{
    Engine as _,
    engine::{
        DecodePaddingMode,
        general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD},
    },
};

use super::{Incoming, Wire, WireError, payload::Encoding, payload::expected, sharded};
use crate::{id::NodeId, message::Message, raw::Raw, target::Target};

/// The input that Node's decoder accepts: with padding or without.
pub(super) const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One entry of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The uid of the sender.
    pub uid: Cow<'a, str>,
    /// The namespace.
    pub namespace: Cow<'a, str>,
    /// The type of the message, a number.
    pub kind: Cow<'a, str>,
    /// The data of the message.
    pub data: Cow<'a, str>,
    /// The name of a Roomcast node or emitter that asks.
    pub node: Option<Cow<'a, str>>,
    /// The id of the question that will ask for the number of sockets reached.
    pub confirm: Option<Cow<'a, str>>,
}

impl<'a> Entry<'a> {
    /// Reads the fields of an entry. `None` if it is not a message: Node skips entries
    /// without a namespace.
    pub fn from_fields(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Option<Self> {
        let (mut uid, mut namespace, mut kind, mut data) = (None, None, None, None);
        let (mut node, mut confirm) = (None, None);
        for (name, value) in fields {
            let field = match name {
                b"uid" => &mut uid,
                b"nsp" => &mut namespace,
                b"type" => &mut kind,
                b"data" => &mut data,
                b"node" => &mut node,
                b"confirm" => &mut confirm,
                _ => continue,
            };
            *field = Some(String::from_utf8_lossy(value));
        }
        Some(Self {
            uid: uid.unwrap_or_default(),
            namespace: namespace.filter(|name| !name.is_empty())?,
            kind: kind?,
            data: data.unwrap_or_default(),
            node,
            confirm,
        })
    }

    /// Its fields, Node's first and in Node's order.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let own = [("node", &self.node), ("confirm", &self.confirm)];
        let own = own
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)));
        [
            ("uid", &*self.uid),
            ("nsp", &*self.namespace),
            ("type", &*self.kind),
            ("data", &*self.data),
        ]
        .into_iter()
        .chain(own)
    }

    /// Whether it is a broadcast that clients can miss: neither volatile nor a question.
    pub fn is_kept(incoming: &Incoming) -> bool {
        matches!(
            incoming,
            Incoming::Message { message: Message::Broadcast(broadcast), .. }
                if !broadcast.target.flags.volatile
        )
    }
}

impl Wire {
    /// Writes a message as an entry of the stream.
    ///
    /// # Errors
    ///
    /// The arguments are not JSON or nested too deeply.
    pub fn entry<'a>(
        &self,
        namespace: &'a str,
        uid: &'a str,
        message: &Message,
        confirm: Option<&'a str>,
    ) -> Result<Entry<'a>, WireError> {
        self.check_message(message)?;
        let (kind, encoding, data) = sharded::message_data(Encoding::Json, message)?;
        Ok(Entry {
            confirm: confirm.map(Cow::Borrowed),
            ..entry(namespace, uid, kind, encoding, &data)
        })
    }

    /// Writes [`Question::Reached`](crate::question::Question::Reached) as an entry of the stream,
    /// after the broadcast to which it refers.
    pub fn entry_of_reached<'a>(
        &self,
        namespace: &'a str,
        uid: &'a str,
        asker: &'a NodeId,
        id: &str,
        target: &Target,
    ) -> Entry<'a> {
        let (kind, data) = sharded::reached_data(target, id);
        Entry {
            node: Some(asker.as_str().into()),
            ..entry(namespace, uid, kind, Encoding::Json, &data)
        }
    }

    /// Reads an entry of the stream.
    ///
    /// # Errors
    ///
    /// The data is invalid, a required part is missing, or the arguments exceed the limits.
    pub fn read_entry(&self, entry: &Entry<'_>) -> Result<Incoming, WireError> {
        let Ok(kind) = entry.kind.parse::<u8>() else {
            return Ok(Incoming::Ignored);
        };
        let packed;
        let data = if entry.data.starts_with('{') {
            Raw::Json(entry.data.trim_ascii_end())
        } else {
            let decoded = LENIENT.decode(entry.data.as_bytes());
            packed = decoded.map_err(|_| expected("base64"))?;
            Raw::Msgpack(&packed)
        };
        let text = |value: &str| serde_json::Value::from(value).to_string();
        let uid = text(&entry.uid);
        let node = entry.node.as_deref().map(text);
        let confirm = entry.confirm.as_deref().map(text);
        let sender = [Some(&*uid), node.as_deref(), confirm.as_deref()];
        let heard = sharded::read_parts(&self.arguments(), kind, data, sender)?;
        // Answers come on channels.
        Ok(match heard {
            Incoming::Response { .. } => Incoming::Ignored,
            heard => heard,
        })
    }
}

fn entry<'a>(
    namespace: &'a str,
    uid: &'a str,
    kind: u8,
    encoding: Encoding,
    data: &sharded::WrittenData<'_>,
) -> Entry<'a> {
    let bytes = encoding.to_bytes(data);
    let data = match encoding {
        Encoding::Msgpack => STANDARD.encode(&bytes),
        Encoding::Json => String::from_utf8_lossy(&bytes).into_owned(),
    };
    Entry {
        uid: uid.into(),
        namespace: namespace.into(),
        kind: kind.to_string().into(),
        data: data.into(),
        node: None,
        confirm: None,
    }
}
