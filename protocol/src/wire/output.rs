//! Writing an envelope in either encoding.
//!
//! The callers write the same calls for both: MessagePack takes the lengths and needs no ends, JSON
//! takes the ends and needs no lengths.

use serde::Serialize;

use super::WireError;
use super::buffers::lower;
use crate::{
    args::{
        Args,
        json::{MAX_DEPTH, Token, Tokens, plain_strings},
    },
    msgpack::{
        json_to_msgpack, write_args, write_array_len, write_bool, write_map_len, write_nil,
        write_str, write_uint,
    },
};

/// How a message is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Msgpack,
    /// Binary as Node's buffers write themselves.
    Json,
}

pub(super) struct Output {
    bytes: Vec<u8>,
    /// Where the message begins.
    start: usize,
    encoding: Encoding,
}

impl Output {
    pub(super) fn new(encoding: Encoding) -> Self {
        Self::behind(Vec::with_capacity(256), encoding)
    }

    /// Writes behind what there is already.
    pub(super) fn behind(bytes: Vec<u8>, encoding: Encoding) -> Self {
        Self {
            start: bytes.len(),
            bytes,
            encoding,
        }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn finish(self) -> bytes::Bytes {
        self.bytes.into()
    }

    pub(super) fn map(&mut self, len: usize) -> &mut Self {
        self.comma();
        match self.encoding {
            Encoding::Msgpack => write_map_len(&mut self.bytes, len),
            Encoding::Json => self.bytes.push(b'{'),
        }
        self
    }

    pub(super) fn end_map(&mut self) -> &mut Self {
        self.end(b'}')
    }

    pub(super) fn list(&mut self, len: usize) -> &mut Self {
        self.comma();
        match self.encoding {
            Encoding::Msgpack => write_array_len(&mut self.bytes, len),
            Encoding::Json => self.bytes.push(b'['),
        }
        self
    }

    pub(super) fn end_list(&mut self) -> &mut Self {
        self.end(b']')
    }

    /// Keys are known when this is compiled, and short: only then is this fast.
    #[inline(always)]
    pub(super) fn key(&mut self, key: &str) -> &mut Self {
        if self.encoding == Encoding::Msgpack && key.len() < 32 {
            self.bytes.reserve(1 + key.len());
            self.bytes.push(0xa0 | key.len() as u8);
            self.bytes.extend_from_slice(key.as_bytes());
            return self;
        }
        self.text(key);
        if self.encoding == Encoding::Json {
            self.bytes.push(b':');
        }
        self
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.comma();
        match self.encoding {
            Encoding::Msgpack => write_str(&mut self.bytes, text),
            Encoding::Json => self.json(text),
        }
        self
    }

    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.comma();
        match self.encoding {
            Encoding::Msgpack => write_uint(&mut self.bytes, number),
            Encoding::Json => self.json(&number),
        }
        self
    }

    pub(super) fn bool(&mut self, value: bool) -> &mut Self {
        self.comma();
        match self.encoding {
            Encoding::Msgpack => write_bool(&mut self.bytes, value),
            Encoding::Json => self.json(&value),
        }
        self
    }

    pub(super) fn nothing(&mut self) -> &mut Self {
        self.comma();
        match self.encoding {
            Encoding::Msgpack => write_nil(&mut self.bytes),
            Encoding::Json => self.bytes.extend_from_slice(b"null"),
        }
        self
    }

    pub(super) fn texts<T: AsRef<str>>(&mut self, texts: &[T]) -> &mut Self {
        self.list(texts.len());
        for text in texts {
            self.text(text.as_ref());
        }
        self.end_list()
    }

    /// The list of an event's name and its arguments.
    pub(super) fn event(&mut self, event: &str, args: &Args) -> Result<&mut Self, WireError> {
        self.bytes
            .reserve(ENVELOPE_BYTES + event.len() + args.json().len());
        if let Some(text) = only_text(args) {
            return Ok(self.list(2).text(event).text(text).end_list());
        }
        self.comma();
        match self.encoding {
            Encoding::Msgpack => write_args(&mut self.bytes, Some(event), args, MAX_DEPTH)?,
            Encoding::Json => {
                self.bytes.push(b'[');
                self.json(event);
                if args.is_empty() {
                    self.bytes.push(b']');
                } else {
                    // The comma takes the place of the arguments' own bracket.
                    let bracket = self.bytes.len();
                    lower(&mut self.bytes, args.json(), args.attachments())?;
                    self.bytes[bracket] = b',';
                }
            }
        }
        Ok(self)
    }

    /// The list of all arguments.
    pub(super) fn args(&mut self, args: &Args) -> Result<&mut Self, WireError> {
        self.comma();
        match self.encoding {
            Encoding::Msgpack => write_args(&mut self.bytes, None, args, MAX_DEPTH)?,
            Encoding::Json => lower(&mut self.bytes, args.json(), args.attachments())?,
        }
        Ok(self)
    }

    /// The first argument under this key, and nothing at all if there is none, as in JavaScript.
    pub(super) fn first(&mut self, key: &str, args: &Args) -> Result<&mut Self, WireError> {
        let Some(value) = first_value(args)? else {
            return Ok(self);
        };
        self.key(key);
        match self.encoding {
            Encoding::Msgpack => {
                json_to_msgpack(&mut self.bytes, value, args.attachments(), MAX_DEPTH)?;
            }
            Encoding::Json => lower(&mut self.bytes, value, args.attachments())?,
        }
        Ok(self)
    }

    /// Any data without binary.
    pub(super) fn data(&mut self, data: &serde_json::Value) -> Result<&mut Self, WireError> {
        self.comma();
        match self.encoding {
            Encoding::Msgpack => {
                json_to_msgpack(&mut self.bytes, &data.to_string(), &[], MAX_DEPTH)?;
            }
            Encoding::Json => self.json(data),
        }
        Ok(self)
    }

    fn end(&mut self, bracket: u8) -> &mut Self {
        if self.encoding == Encoding::Json {
            self.bytes.push(bracket);
        }
        self
    }

    /// What stands before a value says whether it is the first one: text and numbers never end in
    /// an opening bracket or a colon outside of quotes.
    fn comma(&mut self) {
        if self.encoding == Encoding::Msgpack {
            return;
        }
        let is_first = matches!(
            self.bytes[self.start..].last(),
            None | Some(b'[' | b'{' | b':')
        );
        if !is_first {
            self.bytes.push(b',');
        }
    }

    fn json<T: Serialize + ?Sized>(&mut self, value: &T) {
        serde_json::to_writer(&mut self.bytes, value).expect("text is JSON, and memory takes it");
    }
}

/// What most messages have around their arguments, so that a buffer seldom grows twice.
const ENVELOPE_BYTES: usize = 128;

/// The argument, if it is the only one and text that has no escapes: that is common, and needs no
/// look at each of its bytes.
fn only_text(args: &Args) -> Option<&str> {
    let (text, end) = plain_strings(args.json())?;
    (args.json()[end..] == *"]").then_some(text)
}

/// Whether there is a first argument; members of maps are counted before they are written.
pub(super) fn has_first(args: &Args) -> bool {
    !args.is_empty()
}

fn first_value(args: &Args) -> Result<Option<&str>, WireError> {
    if args.is_empty() {
        return Ok(None);
    }
    let mut tokens = Tokens::new(args.json(), MAX_DEPTH);
    if tokens.token()? != Some(Token::BeginArray) {
        return Err(WireError::Unexpected {
            expected: "arguments",
        });
    }
    Ok(Some(tokens.value_text()?))
}
