//! From MessagePack to the canonical form.
//!
//! There is one pass without recursion; the open containers are in a list that the depth limit
//! bounds. Each byte of input becomes at most six bytes of JSON, except for binary values, whose
//! number is limited.

use std::borrow::Cow;

use bytes::Bytes;

use super::date::append_date;
use super::{MsgpackError, Reader, Token};
use crate::args::json::{DEFAULT_DEPTH, MAX_DEPTH};
use crate::args::{Args, Number, check_placeholders};

/// The limits of a value that is transcoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TranscodeLimits {
    /// Maximum depth of arrays and maps; more than [`MAX_DEPTH`] is [`MAX_DEPTH`].
    pub depth: usize,
    /// Maximum number of binary values.
    pub attachments: usize,
}

/// [`DEFAULT_DEPTH`](crate::args::json::DEFAULT_DEPTH) and unlimited attachments, for
/// trusted peers, whose messages are limited in bytes.
impl Default for TranscodeLimits {
    fn default() -> Self {
        Self {
            depth: DEFAULT_DEPTH,
            attachments: usize::MAX,
        }
    }
}

/// Reads one value as JSON text and attachments. The reader keeps the bytes that follow it.
///
/// Binary becomes a placeholder, `undefined` becomes `null`, dates of both versions of
/// notepack become ISO strings, and any other extension an array of its type and its
/// bytes. Keys that are not text become the text that they are in JavaScript. NaN and the
/// infinities become `null`.
///
/// # Errors
///
/// Invalid MessagePack, a value beyond the limits, and data that looks like a placeholder if there
/// is binary.
pub fn msgpack_to_json(
    reader: &mut Reader<'_>,
    limits: TranscodeLimits,
) -> Result<(String, Vec<Bytes>), MsgpackError> {
    let mut writer = Writer::new(limits);
    writer.value(reader)?;
    writer.checked()
}

/// Reads an array as arguments.
pub fn read_args(reader: &mut Reader<'_>, limits: TranscodeLimits) -> Result<Args, MsgpackError> {
    let len = array_len(reader)?;
    list(reader, len, limits)
}

/// Reads an array whose first element is the name of an event. The name may be a number, as in
/// Socket.IO; its text is returned.
pub fn read_event<'a>(
    reader: &mut Reader<'a>,
    limits: TranscodeLimits,
) -> Result<(Cow<'a, str>, Args), MsgpackError> {
    const EXPECTED: MsgpackError = MsgpackError::UnexpectedType {
        expected: "an event's name",
    };
    let len = array_len(reader)?.checked_sub(1).ok_or(EXPECTED)?;
    let name = match reader.token()? {
        Token::Str(bytes) => String::from_utf8_lossy(bytes),
        number @ (Token::Uint(_) | Token::Int(_) | Token::Float(_)) => key_text(number)?,
        _ => return Err(EXPECTED),
    };
    Ok((name, list(reader, len, limits)?))
}

fn array_len(reader: &mut Reader<'_>) -> Result<usize, MsgpackError> {
    match reader.token()? {
        Token::Array(len) => Ok(len),
        _ => Err(MsgpackError::UnexpectedType {
            expected: "an array",
        }),
    }
}

fn list(
    reader: &mut Reader<'_>,
    len: usize,
    limits: TranscodeLimits,
) -> Result<Args, MsgpackError> {
    let mut writer = Writer::new(limits);
    // Most arguments fit, so that nothing is copied while the text grows.
    writer.json.reserve(reader.remaining().min(512));
    writer.open(Open {
        left: len,
        map: false,
    })?;
    writer.rest(reader)?;
    let json = String::from_utf8(writer.json).expect("JSON is written as UTF-8");
    Ok(Args::sealed(json.into(), writer.attachments)?)
}

struct Writer {
    json: Vec<u8>,
    attachments: Vec<Bytes>,
    open: Vec<Open>,
    limits: TranscodeLimits,
}

/// An open container, and the number of its elements or pairs that are still to come.
struct Open {
    left: usize,
    map: bool,
}

impl Writer {
    fn new(limits: TranscodeLimits) -> Self {
        let limits = TranscodeLimits {
            depth: limits.depth.min(MAX_DEPTH),
            ..limits
        };
        Self {
            json: Vec::new(),
            attachments: Vec::new(),
            open: Vec::new(),
            limits,
        }
    }

    fn value(&mut self, reader: &mut Reader<'_>) -> Result<(), MsgpackError> {
        let token = reader.token()?;
        self.token(token)?;
        self.rest(reader)
    }

    /// Reads until every open container is closed.
    fn rest(&mut self, reader: &mut Reader<'_>) -> Result<(), MsgpackError> {
        while let Some(inner) = self.open.last_mut() {
            if inner.left == 0 {
                self.json.push(if inner.map { b'}' } else { b']' });
                self.open.pop();
                continue;
            }
            inner.left -= 1;
            let map = inner.map;
            if !matches!(self.json.last(), Some(b'[' | b'{')) {
                self.json.push(b',');
            }
            if map {
                let key = key_text(reader.token()?)?;
                self.text(&key);
                self.json.push(b':');
            }
            let token = reader.token()?;
            self.token(token)?;
        }
        Ok(())
    }

    fn token(&mut self, token: Token<'_>) -> Result<(), MsgpackError> {
        match token {
            Token::Nil | Token::Undefined => self.json.extend_from_slice(b"null"),
            Token::Bool(value) => self.json.extend_from_slice(bool_text(value).as_bytes()),
            Token::Uint(value) => self.number(value),
            Token::Int(value) => self.number(value),
            Token::Float(value) => self.number(Number::from(value)),
            Token::Str(bytes) => self.text(&String::from_utf8_lossy(bytes)),
            Token::Bin(bytes) => self.binary(bytes)?,
            Token::Array(left) => self.open(Open { left, map: false })?,
            Token::Map(left) => self.open(Open { left, map: true })?,
            Token::Date(milliseconds) => append_date(&mut self.json, milliseconds),
            Token::Ext(kind, bytes) => {
                // It is an array from here on, for the next readers, too.
                self.check_depth()?;
                self.json.push(b'[');
                self.number(kind);
                self.json.push(b',');
                self.binary(bytes)?;
                self.json.push(b']');
            }
        }
        Ok(())
    }

    fn check_depth(&self) -> Result<(), MsgpackError> {
        let limit = self.limits.depth;
        if self.open.len() < limit {
            return Ok(());
        }
        Err(MsgpackError::TooDeep { limit })
    }

    fn open(&mut self, container: Open) -> Result<(), MsgpackError> {
        self.check_depth()?;
        self.json.push(if container.map { b'{' } else { b'[' });
        self.open.push(container);
        Ok(())
    }

    fn binary(&mut self, bytes: &[u8]) -> Result<(), MsgpackError> {
        if self.attachments.len() >= self.limits.attachments {
            return Err(MsgpackError::TooManyAttachments {
                limit: self.limits.attachments,
            });
        }
        self.json
            .extend_from_slice(br#"{"_placeholder":true,"num":"#);
        self.number(self.attachments.len() as u64);
        self.json.push(b'}');
        self.attachments.push(Bytes::copy_from_slice(bytes));
        Ok(())
    }

    fn text(&mut self, text: &str) {
        serde_json::to_writer(&mut self.json, text).expect("text is JSON, and memory takes it");
    }

    fn number(&mut self, value: impl serde::Serialize) {
        serde_json::to_writer(&mut self.json, &value).expect("a number is JSON");
    }

    fn checked(self) -> Result<(String, Vec<Bytes>), MsgpackError> {
        let json = String::from_utf8(self.json).expect("JSON is written as UTF-8");
        check_placeholders(&json, self.attachments.len())?;
        Ok((json, self.attachments))
    }
}

/// The text that JavaScript would use as the name of a property.
pub(super) fn key_text(token: Token<'_>) -> Result<Cow<'_, str>, MsgpackError> {
    Ok(match token {
        Token::Str(bytes) | Token::Bin(bytes) => String::from_utf8_lossy(bytes),
        Token::Nil => "null".into(),
        Token::Undefined => "undefined".into(),
        Token::Bool(value) => bool_text(value).into(),
        Token::Uint(value) => value.to_string().into(),
        Token::Int(value) => value.to_string().into(),
        Token::Float(value) => match Number::from(value) {
            Number::Unsigned(value) => value.to_string().into(),
            Number::Signed(value) => value.to_string().into(),
            Number::Float(value) => value.to_string().into(),
        },
        _ => return Err(MsgpackError::UnsupportedKey),
    })
}

fn bool_text(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}
