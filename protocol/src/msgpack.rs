//! MessagePack in the dialect of notepack.io, which Node.js peers and clients speak.
//!
//! [`Reader`] and the `write_*` functions are for envelopes, the maps around a packet;
//! [`json_to_msgpack`] and [`msgpack_to_json`] carry arguments between MessagePack and the canonical
//! form of [`crate::args`]. Hostile input gives errors: lengths are believed only as far as there
//! are bytes, and nesting has a limit.

mod date;
mod from_json;
mod reader;
mod to_json;

use crate::args::ArgsError;

pub use self::from_json::{json_to_msgpack, write_args};
pub use self::reader::{Reader, Token};
pub use self::to_json::{TranscodeLimits, msgpack_to_json, read_args, read_event};

/// Why bytes are not the MessagePack that was expected, or a text could not be written as such.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MsgpackError {
    /// The bytes end inside a value, or a length goes beyond them.
    #[error("MessagePack ends early")]
    UnexpectedEnd,
    /// `0xc1`, which MessagePack never uses.
    #[error("byte 0x{byte:02x} is not MessagePack")]
    InvalidByte {
        /// The byte.
        byte: u8,
    },
    /// Another kind of value stands here.
    #[error("expected {expected}")]
    UnexpectedType {
        /// What would have been right.
        expected: &'static str,
    },
    /// Bytes are left behind the value.
    #[error("{count} bytes behind the end of MessagePack")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// Arrays and maps nest deeper than the limit.
    #[error("MessagePack nested deeper than {limit}")]
    TooDeep {
        /// The limit that was reached.
        limit: usize,
    },
    /// A value holds more binary parts than the limit.
    #[error("more than {limit} attachments")]
    TooManyAttachments {
        /// The limit that was reached.
        limit: usize,
    },
    /// The key of a map is itself a container or an extension.
    #[error("key of a map is not text")]
    UnsupportedKey,
    /// The canonical form beside it is broken, or would be.
    #[error(transparent)]
    Args(#[from] ArgsError),
}

/// Writes nil.
pub fn write_nil(out: &mut Vec<u8>) {
    out.push(0xc0);
}

/// Writes `undefined` as notepack 2 does: an extension.
pub fn write_undefined(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xd4, 0x00, 0x00]);
}

/// Writes a boolean.
pub fn write_bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { 0xc3 } else { 0xc2 });
}

/// Writes a whole number in its shortest form.
pub fn write_uint(out: &mut Vec<u8>, value: u64) {
    if value < 0x80 {
        out.push(value as u8);
    } else if let Ok(value) = u8::try_from(value) {
        out.extend_from_slice(&[0xcc, value]);
    } else if let Ok(value) = u16::try_from(value) {
        tagged(out, 0xcd, value.to_be_bytes());
    } else if let Ok(value) = u32::try_from(value) {
        tagged(out, 0xce, value.to_be_bytes());
    } else {
        tagged(out, 0xcf, value.to_be_bytes());
    }
}

/// Writes a whole number, negative ones included, in its shortest form.
pub fn write_int(out: &mut Vec<u8>, value: i64) {
    if let Ok(value) = u64::try_from(value) {
        write_uint(out, value);
    } else if value >= -32 {
        out.push(value as u8);
    } else if let Ok(value) = i8::try_from(value) {
        tagged(out, 0xd0, value.to_be_bytes());
    } else if let Ok(value) = i16::try_from(value) {
        tagged(out, 0xd1, value.to_be_bytes());
    } else if let Ok(value) = i32::try_from(value) {
        tagged(out, 0xd2, value.to_be_bytes());
    } else {
        tagged(out, 0xd3, value.to_be_bytes());
    }
}

/// Writes a number as JavaScript means it: whole ones as integers while 64 bits hold them, all
/// others as 64-bit floats.
///
/// notepack writes whole numbers beyond 64 bits as the integer 0 (so `1e300` arrives as `0`); here
/// they keep their value as floats.
pub fn write_number(out: &mut Vec<u8>, value: f64) {
    const TWO_POW_63: f64 = 9_223_372_036_854_775_808.0;
    if value.fract() == 0.0 && (0.0..2.0 * TWO_POW_63).contains(&value) {
        write_uint(out, value as u64);
    } else if value.fract() == 0.0 && (-TWO_POW_63..0.0).contains(&value) {
        write_int(out, value as i64);
    } else {
        tagged(out, 0xcb, value.to_be_bytes());
    }
}

/// Writes text.
#[inline]
pub fn write_str(out: &mut Vec<u8>, value: &str) {
    write_len(out, value.len(), Some((0xa0, 31)), Some(0xd9), 0xda, 0xdb);
    out.extend_from_slice(value.as_bytes());
}

/// Writes binary.
pub fn write_bin(out: &mut Vec<u8>, value: &[u8]) {
    write_len(out, value.len(), None, Some(0xc4), 0xc5, 0xc6);
    out.extend_from_slice(value);
}

/// Writes the head of an array; `len` values have to follow.
#[inline]
pub fn write_array_len(out: &mut Vec<u8>, len: usize) {
    write_len(out, len, Some((0x90, 15)), None, 0xdc, 0xdd);
}

/// Writes the head of a map; `len` pairs of key and value have to follow.
#[inline]
pub fn write_map_len(out: &mut Vec<u8>, len: usize) {
    write_len(out, len, Some((0x80, 15)), None, 0xde, 0xdf);
}

/// A length in the shortest of the forms that its kind has.
#[inline(always)]
fn write_len(
    out: &mut Vec<u8>,
    len: usize,
    fixed: Option<(u8, usize)>,
    short: Option<u8>,
    medium: u8,
    long: u8,
) {
    match (fixed, short) {
        (Some((tag, most)), _) if len <= most => out.push(tag | len as u8),
        (_, Some(tag)) if len <= 0xff => out.extend_from_slice(&[tag, len as u8]),
        _ if len <= 0xffff => tagged(out, medium, (len as u16).to_be_bytes()),
        _ => {
            let len = u32::try_from(len).expect("no message has 4 GiB");
            tagged(out, long, len.to_be_bytes());
        }
    }
}

fn tagged<const N: usize>(out: &mut Vec<u8>, tag: u8, bytes: [u8; N]) {
    out.push(tag);
    out.extend_from_slice(&bytes);
}
