//! A cursor over MessagePack.
//!
//! Reads one head at a time and leaves containers to its caller; text and binary are borrowed.
//! A length is returned only if there are enough bytes left for that many values, so it may be
//! used to reserve memory.

use std::borrow::Cow;

use super::MsgpackError;

/// A scalar, or the head of an array or map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    /// Nil.
    Nil,
    /// JavaScript's `undefined`: an extension of type 0 with one byte.
    Undefined,
    /// A boolean.
    Bool(bool),
    /// A whole number that is not negative.
    Uint(u64),
    /// A negative whole number, or one that was written as signed.
    Int(i64),
    /// A float of either size.
    Float(f64),
    /// Text, which may be invalid UTF-8.
    Str(&'a [u8]),
    /// Binary; also an extension of type 0 with a length, which is how notepack writes
    /// `ArrayBuffer`s.
    Bin(&'a [u8]),
    /// So many values follow.
    Array(usize),
    /// So many pairs of key and value follow.
    Map(usize),
    /// A point in time, in milliseconds since 1970.
    Date(i64),
    /// Any other extension.
    Ext(i8, &'a [u8]),
}

/// Reads values one after the other.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Reads a scalar or the head of a container.
    pub fn token(&mut self) -> Result<Token<'a>, MsgpackError> {
        let [head] = self.array()?;
        Ok(match head {
            0x00..=0x7f => Token::Uint(u64::from(head)),
            0x80..=0x8f => self.map(usize::from(head & 0x0f))?,
            0x90..=0x9f => self.list(usize::from(head & 0x0f))?,
            0xa0..=0xbf => Token::Str(self.take(usize::from(head & 0x1f))?),
            0xc0 => Token::Nil,
            0xc1 => return Err(MsgpackError::InvalidByte { byte: head }),
            0xc2 | 0xc3 => Token::Bool(head == 0xc3),
            0xc4..=0xc6 => self
                .len(head - 0xc4)
                .and_then(|len| self.take(len))
                .map(Token::Bin)?,
            0xc7..=0xc9 => {
                let len = self.len(head - 0xc7)?;
                let [kind] = self.array()?;
                sized_extension(kind as i8, self.take(len)?)
            }
            0xca => Token::Float(f64::from(f32::from_be_bytes(self.array()?))),
            0xcb => Token::Float(f64::from_be_bytes(self.array()?)),
            0xcc..=0xcf => Token::Uint(self.uint(head - 0xcc)?),
            0xd0 => Token::Int(i64::from(i8::from_be_bytes(self.array()?))),
            0xd1 => Token::Int(i64::from(i16::from_be_bytes(self.array()?))),
            0xd2 => Token::Int(i64::from(i32::from_be_bytes(self.array()?))),
            0xd3 => Token::Int(i64::from_be_bytes(self.array()?)),
            0xd4..=0xd8 => {
                let [kind] = self.array()?;
                fixed_extension(kind as i8, self.take(1 << (head - 0xd4))?)
            }
            0xd9..=0xdb => self
                .len(head - 0xd9)
                .and_then(|len| self.take(len))
                .map(Token::Str)?,
            0xdc | 0xdd => self.len(head - 0xdb).and_then(|len| self.list(len))?,
            0xde | 0xdf => self.len(head - 0xdd).and_then(|len| self.map(len))?,
            0xe0..=0xff => Token::Int(i64::from(head as i8)),
        })
    }

    /// Reads the head of an array: how many values follow.
    pub fn read_array_len(&mut self) -> Result<usize, MsgpackError> {
        match self.token()? {
            Token::Array(len) => Ok(len),
            _ => Err(MsgpackError::UnexpectedType {
                expected: "an array",
            }),
        }
    }

    /// Reads the head of a map: how many pairs follow.
    pub fn read_map_len(&mut self) -> Result<usize, MsgpackError> {
        match self.token()? {
            Token::Map(len) => Ok(len),
            _ => Err(MsgpackError::UnexpectedType { expected: "a map" }),
        }
    }

    /// Reads text. What is not UTF-8 becomes U+FFFD.
    pub fn read_str(&mut self) -> Result<Cow<'a, str>, MsgpackError> {
        match self.token()? {
            Token::Str(bytes) => Ok(String::from_utf8_lossy(bytes)),
            _ => Err(MsgpackError::UnexpectedType { expected: "text" }),
        }
    }

    /// Reads binary.
    pub fn read_bin(&mut self) -> Result<&'a [u8], MsgpackError> {
        match self.token()? {
            Token::Bin(bytes) => Ok(bytes),
            _ => Err(MsgpackError::UnexpectedType { expected: "binary" }),
        }
    }

    /// Reads a boolean.
    pub fn read_bool(&mut self) -> Result<bool, MsgpackError> {
        match self.token()? {
            Token::Bool(value) => Ok(value),
            _ => Err(MsgpackError::UnexpectedType {
                expected: "a boolean",
            }),
        }
    }

    /// Reads a whole number that is not negative, in whatever form it is written: JavaScript does
    /// not tell `3` from `3.0`.
    pub fn read_u64(&mut self) -> Result<u64, MsgpackError> {
        const TWO_POW_64: f64 = 18_446_744_073_709_551_616.0;
        match self.token()? {
            Token::Uint(value) => Ok(value),
            Token::Int(value) if value >= 0 => Ok(value as u64),
            Token::Float(value) if value.fract() == 0.0 && (0.0..TWO_POW_64).contains(&value) => {
                Ok(value as u64)
            }
            _ => Err(MsgpackError::UnexpectedType {
                expected: "a whole number",
            }),
        }
    }

    /// Takes `undefined`, if that comes next.
    pub fn take_undefined(&mut self) -> bool {
        let [0xd4, 0x00, _, rest @ ..] = self.rest else {
            return false;
        };
        self.rest = rest;
        true
    }

    /// Takes nil or `undefined`, if that comes next. Most envelopes mean the same by either and by
    /// leaving a key out.
    pub fn take_absent(&mut self) -> bool {
        let [0xc0, rest @ ..] = self.rest else {
            return self.take_undefined();
        };
        self.rest = rest;
        true
    }

    /// Passes over one value with all that it holds, however deep.
    pub fn skip(&mut self) -> Result<(), MsgpackError> {
        let mut values: usize = 1;
        while values > 0 {
            values -= 1;
            match self.token()? {
                Token::Array(len) => values += len,
                Token::Map(len) => values += 2 * len,
                _ => {}
            }
            // Each pending value has at least one byte still to come.
            if values > self.rest.len() {
                return Err(MsgpackError::UnexpectedEnd);
            }
        }
        Ok(())
    }

    /// Ends the reading: nothing may be left.
    pub fn finish(self) -> Result<(), MsgpackError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(MsgpackError::TrailingBytes { count }),
        }
    }

    fn list(&self, len: usize) -> Result<Token<'a>, MsgpackError> {
        if len > self.rest.len() {
            Err(MsgpackError::UnexpectedEnd)
        } else {
            Ok(Token::Array(len))
        }
    }

    fn map(&self, len: usize) -> Result<Token<'a>, MsgpackError> {
        if len > self.rest.len() / 2 {
            Err(MsgpackError::UnexpectedEnd)
        } else {
            Ok(Token::Map(len))
        }
    }

    /// A length of 1, 2 or 4 bytes.
    fn len(&mut self, size: u8) -> Result<usize, MsgpackError> {
        usize::try_from(self.uint(size)?).map_err(|_| MsgpackError::UnexpectedEnd)
    }

    /// A number of `2^size` bytes.
    fn uint(&mut self, size: u8) -> Result<u64, MsgpackError> {
        let bytes = self.take(1 << size)?;
        Ok(bytes
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MsgpackError> {
        let (head, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(MsgpackError::UnexpectedEnd)?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], MsgpackError> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(MsgpackError::UnexpectedEnd)?;
        self.rest = rest;
        Ok(head)
    }
}

/// Extensions whose size is in their head. notepack 2 writes `undefined` and dates as type 0,
/// notepack 3 dates as the timestamps of MessagePack, type -1.
fn fixed_extension<'a>(kind: i8, bytes: &'a [u8]) -> Token<'a> {
    match (kind, bytes.len()) {
        (0, 1) => Token::Undefined,
        (0, 8) => Token::Date(be_u64(bytes) as i64),
        (-1, 4) => timestamp(be_u64(bytes) as i64, 0),
        (-1, 8) => {
            let value = be_u64(bytes);
            timestamp((value & 0x3_ffff_ffff) as i64, value >> 34)
        }
        _ => Token::Ext(kind, bytes),
    }
}

/// Extensions that say their size.
fn sized_extension<'a>(kind: i8, bytes: &'a [u8]) -> Token<'a> {
    match (kind, bytes.len()) {
        (0, _) => Token::Bin(bytes),
        (-1, 12) => timestamp(be_u64(&bytes[4..]) as i64, be_u64(&bytes[..4])),
        _ => Token::Ext(kind, bytes),
    }
}

fn timestamp<'a>(seconds: i64, nanoseconds: u64) -> Token<'a> {
    Token::Date(
        seconds
            .saturating_mul(1000)
            .saturating_add_unsigned(nanoseconds / 1_000_000),
    )
}

fn be_u64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
