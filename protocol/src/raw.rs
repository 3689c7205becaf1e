//! One value of an envelope, cut out in the format in which it came.
//!
//! [`Raw`] is the one visitor of both formats: `serde_json` cuts out text, the MessagePack reader
//! cuts out bytes. It serves two purposes. Peers of several ages and languages write one member in
//! several ways (`""` or `[]` for an empty map, one room instead of a list), and a `Raw` can be
//! looked at before it is read as a type. And arguments become [`Args`](crate::args::Args) without
//! a tree: JSON keeps its text, with every digit and with halves of surrogate pairs.
//!
//! Cutting out is iterative in both formats, so nesting cannot exhaust the stack.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use crate::{
    args::json::unescape,
    msgpack::{MsgpackError, RAW, Reader, Token},
};

/// A value that has not been read yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Raw<'a> {
    /// Valid JSON without white space around it.
    Json(&'a str),
    /// One whole value.
    Msgpack(&'a [u8]),
}

/// What a value looks like from outside.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Look<'a> {
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

    /// Calls `f` with each element of a list. MessagePack is read without a list of its own, because
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

    pub(crate) fn text(self) -> Option<Cow<'a, str>> {
        match self.look() {
            Look::Text(text) => Some(text),
            _ => None,
        }
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

impl<'de> Deserialize<'de> for Raw<'de> {
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

/// Lenient readers of members, for `deserialize_with`. A value of another type counts as absent,
/// because peers leave members out or write something empty and mean the same.
pub(crate) mod lenient {
    use super::{Cow, Deserialize, Deserializer, Look, Raw};

    pub(crate) fn text<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Cow<'de, str>>, D::Error> {
        Ok(Raw::deserialize(d)?.text())
    }

    pub(crate) fn boolean<'de, D: Deserializer<'de>>(d: D) -> Result<Option<bool>, D::Error> {
        Ok(match Raw::deserialize(d)?.look() {
            Look::Bool(value) => Some(value),
            _ => None,
        })
    }

    pub(crate) fn is_true<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
        Ok(boolean(d)?.unwrap_or(false))
    }

    pub(crate) fn number<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        Ok(match Raw::deserialize(d)?.look() {
            Look::Number(number) => Some(number),
            _ => None,
        })
    }

    /// A whole number up to 2^53, beyond which JavaScript cannot count.
    pub(crate) fn whole<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
        const SAFE: f64 = 9_007_199_254_740_992.0;
        let is_whole = |number: &f64| number.fract() == 0.0 && (0.0..=SAFE).contains(number);
        Ok(number(d)?.filter(is_whole).map(|number| number as u64))
    }

    /// Any value, also `null`.
    pub(crate) fn raw<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Raw<'de>>, D::Error> {
        Raw::deserialize(d).map(Some)
    }

    /// A map; anything else counts as absent.
    pub(crate) fn map<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
        d: D,
    ) -> Result<Option<T>, D::Error> {
        let raw = Raw::deserialize(d)?;
        if raw.look() != Look::Map {
            return Ok(None);
        }
        raw.read().map(Some).map_err(serde::de::Error::custom)
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
