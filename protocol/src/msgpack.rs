//! MessagePack in the dialect of notepack.io, which Node.js peers and clients speak.
//!
//! Envelopes, the maps around a packet, are typed structs: `rmp_serde` writes them, and [`Reader`]
//! is the deserializer that reads them. [`json_to_msgpack`] and [`msgpack_to_json`] carry arguments
//! between MessagePack and the canonical form of [`crate::args`]. Hostile input gives errors: a
//! length never reserves more memory than there are bytes, and nesting has a limit.

mod date;
mod de;
mod from_json;
mod reader;
mod to_json;

use crate::args::ArgsError;

pub(crate) use self::de::RAW;
pub use self::from_json::json_to_msgpack;
pub(crate) use self::from_json::{Packed, write};
pub use self::reader::{Reader, Token};
pub use self::to_json::{TranscodeLimits, msgpack_to_json, read_args, read_event};

/// Why bytes are not the expected MessagePack, or a text cannot be written as MessagePack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MsgpackError {
    /// The bytes end inside a value, or a length exceeds them.
    #[error("MessagePack ends early")]
    UnexpectedEnd,
    /// `0xc1`, which MessagePack does not use.
    #[error("byte 0x{byte:02x} is not MessagePack")]
    InvalidByte {
        /// The byte.
        byte: u8,
    },
    /// A value of another type stands here.
    #[error("expected {expected}")]
    UnexpectedType {
        /// The type that was expected.
        expected: &'static str,
    },
    /// An envelope does not have the expected shape. The text is serde's.
    #[error("{0}")]
    Unexpected(String),
    /// Bytes follow the value.
    #[error("{count} bytes behind the end of MessagePack")]
    TrailingBytes {
        /// The number of bytes.
        count: usize,
    },
    /// Arrays and maps are nested deeper than the limit.
    #[error("MessagePack nested deeper than {limit}")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// A value has more binary parts than the limit.
    #[error("more than {limit} attachments")]
    TooManyAttachments {
        /// The limit.
        limit: usize,
    },
    /// The key of a map is a container or an extension, which has no text in JavaScript.
    #[error("key of a map is not text")]
    UnsupportedKey,
    /// The canonical form of the arguments is invalid, or would be.
    #[error(transparent)]
    Args(#[from] ArgsError),
}
