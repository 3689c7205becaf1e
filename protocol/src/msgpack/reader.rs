//! Reads MessagePack token by token, in the dialect of notepack.io.
//!
//! `rmp` knows the heads. Their meaning in the dialect is decided here, because it depends on how
//! a head is written and not only on its value: an extension of type 0 with a fixed size is
//! `undefined` or a date, and one that states its size is an `ArrayBuffer`. `rmp_serde` hands both
//! to a visitor in the same way, and hands over text that is not UTF-8 as if it were binary. The
//! fixture `tests/data/msgpack-vectors.json` has each of these cases.
//!
//! Lengths are checked against the bytes that are left before they are returned, so they can be
//! used to reserve memory.

use rmp::{
    Marker,
    decode::{RmpRead, ValueReadError, read_marker},
};

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
    /// A non-negative integer in an unsigned encoding.
    Uint(u64),
    /// A negative integer, or any integer in a signed encoding.
    Int(i64),
    /// A float of either size.
    Float(f64),
    /// Text. It may be invalid UTF-8.
    Str(&'a [u8]),
    /// Binary, including extensions of type 0 that state their size (notepack's `ArrayBuffer`).
    Bin(&'a [u8]),
    /// The head of an array: this many values follow.
    Array(usize),
    /// The head of a map: this many pairs of key and value follow.
    Map(usize),
    /// A point in time, in milliseconds since 1970-01-01 UTC.
    Date(i64),
    /// Any other extension: its type and its bytes.
    Ext(i8, &'a [u8]),
}

/// Reads values one after the other from a byte slice. Text and binary are borrowed.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The number of bytes that have not been read.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Reads a scalar or the head of a container.
    pub fn token(&mut self) -> Result<Token<'a>, MsgpackError> {
        let marker = read_marker(&mut self.rest).map_err(|_| MsgpackError::UnexpectedEnd)?;
        Ok(match marker {
            Marker::FixPos(value) => Token::Uint(value.into()),
            Marker::FixNeg(value) => Token::Int(value.into()),
            Marker::Null => Token::Nil,
            Marker::True => Token::Bool(true),
            Marker::False => Token::Bool(false),
            Marker::Reserved => return Err(MsgpackError::InvalidByte { byte: 0xc1 }),
            Marker::U8 => Token::Uint(self.number(RmpRead::read_data_u8)?.into()),
            Marker::U16 => Token::Uint(self.number(RmpRead::read_data_u16)?.into()),
            Marker::U32 => Token::Uint(self.number(RmpRead::read_data_u32)?.into()),
            Marker::U64 => Token::Uint(self.number(RmpRead::read_data_u64)?),
            Marker::I8 => Token::Int(self.number(RmpRead::read_data_i8)?.into()),
            Marker::I16 => Token::Int(self.number(RmpRead::read_data_i16)?.into()),
            Marker::I32 => Token::Int(self.number(RmpRead::read_data_i32)?.into()),
            Marker::I64 => Token::Int(self.number(RmpRead::read_data_i64)?),
            Marker::F32 => Token::Float(self.number(RmpRead::read_data_f32)?.into()),
            Marker::F64 => Token::Float(self.number(RmpRead::read_data_f64)?),
            Marker::FixStr(len) => Token::Str(self.take(len.into())?),
            Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                let len = self.len(marker)?;
                Token::Str(self.take(len)?)
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                let len = self.len(marker)?;
                Token::Bin(self.take(len)?)
            }
            Marker::FixArray(len) => self.array(len.into())?,
            Marker::Array16 | Marker::Array32 => {
                let len = self.len(marker)?;
                self.array(len)?
            }
            Marker::FixMap(len) => self.map(len.into())?,
            Marker::Map16 | Marker::Map32 => {
                let len = self.len(marker)?;
                self.map(len)?
            }
            Marker::FixExt1 => self.fixed_extension(1)?,
            Marker::FixExt2 => self.fixed_extension(2)?,
            Marker::FixExt4 => self.fixed_extension(4)?,
            Marker::FixExt8 => self.fixed_extension(8)?,
            Marker::FixExt16 => self.fixed_extension(16)?,
            Marker::Ext8 | Marker::Ext16 | Marker::Ext32 => {
                let len = self.len(marker)?;
                self.sized_extension(len)?
            }
        })
    }

    /// Skips one value with all that it contains, at any depth and without recursion.
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

    /// Skips one value and returns its bytes.
    pub(crate) fn raw(&mut self) -> Result<&'a [u8], MsgpackError> {
        let start = self.rest;
        self.skip()?;
        Ok(&start[..start.len() - self.rest.len()])
    }

    /// Ends the reading. Fails if bytes are left.
    pub fn finish(self) -> Result<(), MsgpackError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(MsgpackError::TrailingBytes { count }),
        }
    }

    fn number<T>(
        &mut self,
        read: fn(&mut &'a [u8]) -> Result<T, ValueReadError>,
    ) -> Result<T, MsgpackError> {
        read(&mut self.rest).map_err(|_| MsgpackError::UnexpectedEnd)
    }

    /// The length after a head that has one, in 1, 2 or 4 bytes.
    fn len(&mut self, marker: Marker) -> Result<usize, MsgpackError> {
        let len = match marker {
            Marker::Str8 | Marker::Bin8 | Marker::Ext8 => {
                u32::from(self.number(RmpRead::read_data_u8)?)
            }
            Marker::Str16 | Marker::Bin16 | Marker::Ext16 | Marker::Array16 | Marker::Map16 => {
                u32::from(self.number(RmpRead::read_data_u16)?)
            }
            _ => self.number(RmpRead::read_data_u32)?,
        };
        usize::try_from(len).map_err(|_| MsgpackError::UnexpectedEnd)
    }

    fn array(&self, len: usize) -> Result<Token<'a>, MsgpackError> {
        if len > self.rest.len() {
            return Err(MsgpackError::UnexpectedEnd);
        }
        Ok(Token::Array(len))
    }

    fn map(&self, len: usize) -> Result<Token<'a>, MsgpackError> {
        if len > self.rest.len() / 2 {
            return Err(MsgpackError::UnexpectedEnd);
        }
        Ok(Token::Map(len))
    }

    /// notepack 2 writes `undefined` and dates as type 0; notepack 3 writes dates as MessagePack's
    /// timestamps, which are type -1.
    fn fixed_extension(&mut self, len: usize) -> Result<Token<'a>, MsgpackError> {
        let kind = self.number(RmpRead::read_data_i8)?;
        let bytes = self.take(len)?;
        Ok(match (kind, len) {
            (0, 1) => Token::Undefined,
            (0, 8) => Token::Date(be_u64(bytes) as i64),
            (-1, 4) => timestamp(be_u64(bytes) as i64, 0),
            (-1, 8) => {
                let value = be_u64(bytes);
                timestamp((value & 0x3_ffff_ffff) as i64, value >> 34)
            }
            _ => Token::Ext(kind, bytes),
        })
    }

    fn sized_extension(&mut self, len: usize) -> Result<Token<'a>, MsgpackError> {
        let kind = self.number(RmpRead::read_data_i8)?;
        let bytes = self.take(len)?;
        Ok(match (kind, len) {
            (0, _) => Token::Bin(bytes),
            (-1, 12) => timestamp(be_u64(&bytes[4..]) as i64, be_u64(&bytes[..4])),
            _ => Token::Ext(kind, bytes),
        })
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
