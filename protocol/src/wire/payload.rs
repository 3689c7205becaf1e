//! Arguments inside an envelope: cut out when it is read, put in when it is written.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::{Value, value::RawValue};

use super::{WireError, buffers};
use crate::{
    args::{
        Args, ArgsError, First, from_json,
        json::{MAX_DEPTH, Token, Tokens, plain_strings, unescape},
        scan,
    },
    msgpack::{self, Packed, Reader, TranscodeLimits, msgpack_to_json, read_args, read_event},
    raw::Raw,
};

/// The name of an event and its arguments.
pub(super) type Event = (Box<str>, Args);

/// The format of a message that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Msgpack,
    /// JSON, in which binary has the form of Node's `Buffer` (see [`buffers`]).
    Json,
}

impl Encoding {
    /// The encoding of a message with these arguments: binary has no form in the JSON of the sharded
    /// dialect.
    pub(super) fn with(self, args: &Args) -> Self {
        match args.attachments().is_empty() {
            true => self,
            false => Self::Msgpack,
        }
    }

    /// Appends an envelope.
    pub(super) fn write(self, out: &mut Vec<u8>, envelope: &impl Serialize) {
        match self {
            Self::Msgpack => msgpack::write(out, envelope),
            Self::Json => serde_json::to_writer(out, envelope)
                .expect("every envelope has a form in JSON, and memory takes it"),
        }
    }

    pub(super) fn to_bytes(self, envelope: &impl Serialize) -> bytes::Bytes {
        let mut out = Vec::with_capacity(256);
        self.write(&mut out, envelope);
        out.into()
    }
}

/// Arguments that can be written: they were checked for the format when this was made.
pub(super) enum Payload<'a> {
    /// An event with one argument, which is text without escapes. It is common, and its bytes need
    /// not be checked one by one.
    Text(&'a str, &'a str),
    Msgpack(Packed<'a>),
    Json(Box<RawValue>),
}

impl<'a> Payload<'a> {
    /// The list of an event's name and its arguments.
    pub(super) fn event(
        encoding: Encoding,
        event: &'a str,
        args: &'a Args,
    ) -> Result<Self, WireError> {
        if let Some(text) = only_text(args) {
            return Ok(Self::Text(event, text));
        }
        if encoding == Encoding::Msgpack {
            return Self::packed(Some(event), args.json(), args);
        }
        let mut json = String::with_capacity(event.len() + args.json().len() + 3);
        json.push('[');
        json += &serde_json::to_string(event).expect("text is JSON");
        if !args.is_empty() {
            json.push(',');
        }
        json += &buffers::lower(args.json(), args.attachments())?.trim_ascii_start()[1..];
        Ok(Self::Json(RawValue::from_string(json)?))
    }

    /// The list of all arguments.
    pub(super) fn args(encoding: Encoding, args: &'a Args) -> Result<Self, WireError> {
        Self::value(encoding, args.json(), args)
    }

    /// The first argument, if there is one.
    pub(super) fn first(encoding: Encoding, args: &'a Args) -> Result<Option<Self>, WireError> {
        if args.is_empty() {
            return Ok(None);
        }
        let mut tokens = Tokens::new(args.json(), MAX_DEPTH);
        if tokens.token()? != Some(Token::BeginArray) {
            return Err(ArgsError::NotAnArray.into());
        }
        Self::value(encoding, tokens.value_text()?, args).map(Some)
    }

    fn value(encoding: Encoding, json: &'a str, args: &'a Args) -> Result<Self, WireError> {
        if encoding == Encoding::Msgpack {
            return Self::packed(None, json, args);
        }
        let json = buffers::lower(json, args.attachments())?.into_owned();
        Ok(Self::Json(RawValue::from_string(json)?))
    }

    fn packed(event: Option<&'a str>, json: &'a str, args: &'a Args) -> Result<Self, WireError> {
        let packed = Packed::new(event, json, args.attachments(), MAX_DEPTH)?;
        Ok(Self::Msgpack(packed))
    }
}

impl Serialize for Payload<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(event, text) => (event, text).serialize(serializer),
            Self::Msgpack(packed) => packed.serialize(serializer),
            Self::Json(text) => text.serialize(serializer),
        }
    }
}

/// The argument, if it is the only one and text without escapes.
fn only_text(args: &Args) -> Option<&str> {
    let (text, end) = plain_strings(args.json())?;
    (args.json()[end..] == *"]").then_some(text)
}

/// How arguments are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arguments {
    pub(super) limits: TranscodeLimits,
    /// Whether the output of `JSON.stringify` for a `Buffer` becomes binary again. It is in the
    /// classic dialect; the sharded one never writes binary as JSON.
    pub(super) has_buffers: bool,
}

impl Arguments {
    /// Reads a list of an event's name and its arguments.
    pub(super) fn event(&self, raw: Raw<'_>) -> Result<Event, WireError> {
        match raw {
            Raw::Absent => Err(missing("an event")),
            Raw::Json(array) => {
                let (name, rest) = self.split_event(array)?;
                let args = Args::after_event(&array[rest..], Vec::new())?;
                Ok((name.into(), self.lifted(args)?))
            }
            Raw::Msgpack(bytes) => {
                let (name, args) = read_event(&mut Reader::new(bytes), self.limits)?;
                Ok((name.into(), args))
            }
        }
    }

    /// Reads a list of arguments.
    pub(super) fn args(&self, raw: Raw<'_>) -> Result<Args, WireError> {
        match raw {
            Raw::Absent => Err(missing("arguments")),
            Raw::Json(text) => self.checked(text.into()),
            Raw::Msgpack(bytes) => Ok(read_args(&mut Reader::new(bytes), self.limits)?),
        }
    }

    /// Reads any value as a single argument; without a value there is none.
    pub(super) fn argument(&self, raw: Raw<'_>) -> Result<Args, WireError> {
        match raw {
            Raw::Absent => Ok(Args::default()),
            Raw::Json(text) => self.checked(format!("[{text}]")),
            Raw::Msgpack(bytes) => {
                let (value, attachments) = msgpack_to_json(&mut Reader::new(bytes), self.limits)?;
                Ok(Args::after_event(&(value + "]"), attachments)?)
            }
        }
    }

    /// Reads any value as a tree. Binary becomes the output of Node's `JSON.stringify` for it.
    pub(super) fn tree(&self, raw: Raw<'_>) -> Result<Value, WireError> {
        match raw {
            Raw::Absent => Ok(Value::Null),
            Raw::Json(text) => from_json(text).map_err(WireError::Value),
            Raw::Msgpack(bytes) => {
                let (value, attachments) = msgpack_to_json(&mut Reader::new(bytes), self.limits)?;
                let text = buffers::lower(&value, &attachments)?;
                from_json(&text).map_err(WireError::Value)
            }
        }
    }

    fn checked(&self, json: String) -> Result<Args, WireError> {
        Tokens::new(&json, self.limits.depth).finish()?;
        self.lifted(Args::from_text(json.into(), Vec::new())?)
    }

    fn lifted(&self, args: Args) -> Result<Args, WireError> {
        if !self.has_buffers {
            return Ok(args);
        }
        let Some((json, attachments)) = buffers::lift(args.json(), self.limits.attachments)? else {
            return Ok(args);
        };
        // If data looks like a placeholder, the buffers stay objects.
        Ok(Args::sealed(json.into(), attachments).unwrap_or(args))
    }

    /// The name of an event, and the offset after the name and its comma.
    fn split_event<'a>(&self, array: &'a str) -> Result<(Cow<'a, str>, usize), WireError> {
        match scan(array, self.limits.depth)?.first {
            Some(First {
                token: Token::String(raw),
                rest,
            }) => Ok((unescape(raw), rest)),
            Some(First {
                token: Token::Number(text),
                rest,
            }) => Ok((text.into(), rest)),
            _ => Err(expected("an event")),
        }
    }
}

pub(super) fn expected(expected: &'static str) -> WireError {
    WireError::Unexpected { expected }
}

pub(super) fn missing(what: &'static str) -> WireError {
    WireError::Missing { what }
}
