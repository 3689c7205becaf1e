//! One value of an envelope, cut out in the format in which it came.
//!
//! [`Raw`] is the one visitor of both formats: `serde_json` cuts out text, the
//! MessagePack reader cuts out bytes. It serves two purposes. Peers of several ages and
//! languages write one member in several ways (`""` or `[]` for an empty map, one room
//! instead of a list), and a `Raw` can be inspected before it is read as a type. A value
//! of another type than expected counts as absent. And arguments become
//! [`Args`](crate::args::Args) without a tree: JSON keeps its text, with every digit and
//! with halves of surrogate pairs.
//!
//! Cutting out is iterative in both formats, so nesting cannot exhaust the stack.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use crate::{
    args::json::unescape,
    msgpack::{MsgpackError, RAW, Reader, Token},
};

/// A value that has not been read yet. All members of an envelope that is read have this type.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) enum Raw<'a> {
    /// The envelope has no such member.
    #[default]
    Absent,
    /// Valid JSON without white space around it.
    Json(&'a str),
    /// One whole value.
    Msgpack(&'a [u8]),
}

/// The kind of a value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Look<'a> {
    /// `null`, `undefined`, or no value at all.
    Nothing,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
    List,
    Map,
    /// Binary, a date or an extension, none of which an envelope has.
    Other,
}

/// Why a value could not be read as a type.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RawError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Msgpack(#[from] MsgpackError),
}

impl<'a> Raw<'a> {
    /// Reads the value as a type. Nothing may follow it.
    pub(crate) fn read<T: Deserialize<'a>>(self) -> Result<T, RawError> {
        match self {
            Self::Absent => Err(serde_json::Error::custom("a value is missing").into()),
            Self::Json(text) => Ok(serde_json::from_str(text)?),
            Self::Msgpack(bytes) => {
                let mut reader = Reader::new(bytes);
                let value = T::deserialize(&mut reader)?;
                reader.finish()?;
                Ok(value)
            }
        }
    }

    pub(crate) fn look(self) -> Look<'a> {
        match self {
            Self::Absent => Look::Nothing,
            Self::Json(text) => look_at_json(text),
            Self::Msgpack(bytes) => match Reader::new(bytes).token() {
                Ok(Token::Nil | Token::Undefined) => Look::Nothing,
                Ok(Token::Bool(value)) => Look::Bool(value),
                Ok(Token::Uint(value)) => Look::Number(value as f64),
                Ok(Token::Int(value)) => Look::Number(value as f64),
                Ok(Token::Float(value)) => Look::Number(value),
                Ok(Token::Str(bytes)) => Look::Text(String::from_utf8_lossy(bytes)),
                Ok(Token::Array(_)) => Look::List,
                Ok(Token::Map(_)) => Look::Map,
                Ok(Token::Bin(_) | Token::Date(_) | Token::Ext(..)) | Err(_) => Look::Other,
            },
        }
    }

    /// Calls `f` with each element of a list. MessagePack is read without a separate list, because
    /// every broadcast of the classic dialect passes here.
    pub(crate) fn each<E: From<RawError>>(
        self,
        mut f: impl FnMut(Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self::Msgpack(bytes) = self else {
            return self.read::<Vec<Self>>()?.into_iter().try_for_each(f);
        };
        let mut reader = Reader::new(bytes);
        let Token::Array(len) = reader.token().map_err(RawError::from)? else {
            let error = MsgpackError::UnexpectedType { expected: "a list" };
            return Err(RawError::from(error).into());
        };
        for _ in 0..len {
            f(Self::Msgpack(reader.raw().map_err(RawError::from)?))?;
        }
        Ok(reader.finish().map_err(RawError::from)?)
    }

    /// The value, also if it is `null`; `None` if there is none.
    pub(crate) fn present(self) -> Option<Self> {
        (self != Self::Absent).then_some(self)
    }

    /// The value if it is a map.
    pub(crate) fn map(self) -> Option<Self> {
        (self.look() == Look::Map).then_some(self)
    }

    /// The value if it is a list.
    pub(crate) fn list(self) -> Option<Self> {
        (self.look() == Look::List).then_some(self)
    }

    pub(crate) fn text(self) -> Option<Cow<'a, str>> {
        match self.look() {
            Look::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn boxed_text(self) -> Option<Box<str>> {
        self.text().map(|text| text.into())
    }

    pub(crate) fn boolean(self) -> Option<bool> {
        match self.look() {
            Look::Bool(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn is_true(self) -> bool {
        self.boolean() == Some(true)
    }

    pub(crate) fn number(self) -> Option<f64> {
        match self.look() {
            Look::Number(number) => Some(number),
            _ => None,
        }
    }

    /// A whole number up to 2^53, beyond which JavaScript cannot count.
    pub(crate) fn whole(self) -> Option<usize> {
        const SAFE: f64 = 9_007_199_254_740_992.0;
        let number = self.number()?;
        (number.fract() == 0.0 && (0.0..=SAFE).contains(&number)).then_some(number as usize)
    }
}

fn look_at_json(text: &str) -> Look<'_> {
    match text.as_bytes().first() {
        Some(b'"') => Look::Text(unescape(&text[1..text.len() - 1])),
        Some(b'[') => Look::List,
        Some(b'{') => Look::Map,
        Some(b't') => Look::Bool(true),
        Some(b'f') => Look::Bool(false),
        Some(b'-' | b'0'..=b'9') => text.parse().map_or(Look::Other, Look::Number),
        _ => Look::Nothing,
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let raw = <&'de RawValue>::deserialize(deserializer)?;
            return Ok(Self::Json(raw.get()));
        }
        deserializer.deserialize_newtype_struct(RAW, Bytes)
    }
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Raw<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Raw<'de>, E> {
        Ok(Raw::Msgpack(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_cut_out_of_either_format_as_it_stands() {
        let json = Raw::Json(r#"{"a": [1, "\ud800", 1e999] ,"b":null}"#);
        let bytes = [0x82, 0xa1, b'a', 0x91, 0xd4, 0, 0, 0xa1, b'b', 0xc0];
        let members = |raw: Raw<'static>| {
            let members: std::collections::BTreeMap<String, Raw<'static>> = raw.read().unwrap();
            (members["a"], members["b"])
        };
        let expected = (Raw::Json(r#"[1, "\ud800", 1e999]"#), Raw::Json("null"));
        assert_eq!(members(json), expected);
        let bytes: &'static [u8] = bytes.to_vec().leak();
        let expected = (Raw::Msgpack(&bytes[3..7]), Raw::Msgpack(&bytes[9..]));
        assert_eq!(members(Raw::Msgpack(bytes)), expected);
    }

    #[test]
    fn hostile_nesting_is_cut_out_without_recursion() {
        let depth = 200_000;
        let json = "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(
            Raw::Json(&json).read::<Raw<'_>>().unwrap(),
            Raw::Json(&json)
        );
        let mut bytes = vec![0x91; depth];
        bytes.push(0xc0);
        let raw = Raw::Msgpack(&bytes);
        assert_eq!(raw.read::<Raw<'_>>().unwrap(), raw);
    }
}
