//! Signed messages between nodes with a common key.
//!
//! Anyone who may publish in a Redis can emit to every client of a plain cluster. With a key, nodes
//! accept only messages that a node or emitter with the same key has sealed for this channel a
//! moment ago, and each only once:
//!
//! ```text
//! 93          a list of three                                   ┐
//! c4 LEN      header: version, number, time, signature, sender  │ Node's servers decode it and find
//! c0          nothing, where they look for the packet           │ no packet, so it does no harm there
//! c6 LEN      the message as it would be published unsigned     ┘
//!
//! 94 …        the same around a head of a log; the script in Redis appends the position as the fourth
//! ```
//!
//! The signature is an HMAC-SHA256 over header, channel and message, of which the first half is
//! sent. The position that a log appends is not signed, because Redis assigns it. The time in the
//! position is compared with the time that is signed.
//!
//! A receiver checks in this order, so that nothing unsigned takes memory:
//!
//! ```text
//! Sealed::read ──▶ SigningKeys::verify ──▶ Senders::admit: the time, then the sender's numbers
//!   unsigned           wrong key                stale              replayed
//! ```
//!
//! There is no clock here: times are milliseconds of a clock that all nodes share, which
//! is Redis's.

mod senders;

use std::{borrow::Cow, fmt, str::FromStr};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

pub use self::senders::Senders;
use crate::{message::Position, wire::placed};

/// Minimum length of a key in bytes. 32 hexadecimal digits have 128 random bits.
pub const MIN_KEY_BYTES: usize = 32;

/// Maximum number of keys: the one that signs, and one more while they are replaced.
pub const MAX_KEYS: usize = 2;

/// Separates this use of a key from all others.
const PURPOSE: &[u8] = b"roomcast message 1";

const VERSION: u8 = 1;

/// Length of a signature in bytes. An attacker guesses one of 2^128, as for the whole HMAC's key.
const SIGNATURE_BYTES: usize = 16;

/// Header without the sender's name.
const FIXED_BYTES: usize = 1 + 8 + 8 + SIGNATURE_BYTES;

/// Maximum length of a sender's name in bytes. Names of nodes have 20.
const MAX_SENDER_BYTES: usize = 255 - FIXED_BYTES;

const LIST_OF_3: u8 = 0x93;
const LIST_OF_4: u8 = 0x94;
const BIN_8: u8 = 0xc4;
const BIN_32: u8 = 0xc6;
const NIL: u8 = 0xc0;
const UINT_64: u8 = 0xcf;

/// The keys of a cluster: the first one signs, all verify. `Debug` does not print them.
#[derive(Clone)]
pub struct SigningKeys(Vec<Hmac<Sha256>>);

/// Why a text is not a key or a pair of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// A key is shorter than [`MIN_KEY_BYTES`].
    #[error(
        "a key needs at least {MIN_KEY_BYTES} characters, such as `openssl rand -hex 32` prints"
    )]
    TooShort,
    /// There are more than [`MAX_KEYS`].
    #[error("expected one key, or two with a comma between them")]
    TooMany,
}

impl SigningKeys {
    /// Prepares keys. The first one signs.
    ///
    /// # Errors
    ///
    /// There is no key or more than two, or one has less than 32 bytes.
    pub fn new<K: AsRef<[u8]>>(keys: &[K]) -> Result<Self, KeysError> {
        if keys.len() > MAX_KEYS {
            return Err(KeysError::TooMany);
        }
        let is_short = |key: &K| key.as_ref().len() < MIN_KEY_BYTES;
        if keys.is_empty() || keys.iter().any(is_short) {
            return Err(KeysError::TooShort);
        }
        // Derived once, because the same key may have other uses. It also makes keys of any length
        // one block.
        let derive = |key: &K| {
            let derived = hmac_of(key.as_ref()).chain_update(PURPOSE);
            hmac_of(&derived.finalize().into_bytes())
        };
        Ok(Self(keys.iter().map(derive).collect()))
    }

    /// Seals a message for a channel, whose name is given in parts.
    pub fn seal(&self, stamp: Stamp<'_>, channel: &[&str], message: &[u8]) -> Vec<u8> {
        self.write(LIST_OF_3, stamp, channel, message)
    }

    /// Seals the head of a broadcast that a log stores, from
    /// [`Wire::unplaced`](crate::wire::Wire::unplaced). The script of the log completes
    /// it.
    pub fn seal_head(&self, stamp: Stamp<'_>, channel: &[&str], head: &[u8]) -> Vec<u8> {
        self.write(LIST_OF_4, stamp, channel, head)
    }

    /// Whether the message was sealed with one of the keys for this channel, by the
    /// sender and at the time that it states.
    pub fn verify(&self, sealed: &Sealed<'_>, channel: &str) -> bool {
        let Sealed {
            stamp,
            signature,
            message,
            list,
            ..
        } = sealed;
        self.0.iter().any(|key| {
            let mac = mac(key, *list, *stamp, &[channel], message);
            // In constant time.
            mac.verify_truncated_left(signature).is_ok()
        })
    }

    fn write(&self, list: u8, stamp: Stamp<'_>, channel: &[&str], message: &[u8]) -> Vec<u8> {
        let stamp = Stamp {
            sender: shortened(stamp.sender),
            ..stamp
        };
        let signature = mac(&self.0[0], list, stamp, channel, message)
            .finalize()
            .into_bytes();
        let Stamp {
            sender,
            number,
            time,
        } = stamp;
        let header = FIXED_BYTES + sender.len();
        let mut sealed = Vec::with_capacity(3 + header + 6 + message.len());
        sealed.extend([list, BIN_8, header as u8, VERSION]);
        sealed.extend_from_slice(&number.to_be_bytes());
        sealed.extend_from_slice(&time.to_be_bytes());
        sealed.extend_from_slice(&signature[..SIGNATURE_BYTES]);
        sealed.extend_from_slice(sender.as_bytes());
        sealed.extend([NIL, BIN_32]);
        // Redis takes no message of 4 GiB.
        sealed.extend_from_slice(&(message.len() as u32).to_be_bytes());
        sealed.extend_from_slice(message);
        sealed
    }
}

fn hmac_of(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Everything that has no fixed length has its length in front, so no two inputs have the
/// same bytes.
fn mac(
    key: &Hmac<Sha256>,
    list: u8,
    stamp: Stamp<'_>,
    channel: &[&str],
    message: &[u8],
) -> Hmac<Sha256> {
    let channel_bytes: usize = channel.iter().map(|part| part.len()).sum();
    let mut fixed = [0; 22];
    fixed[0] = list;
    fixed[1] = stamp.sender.len() as u8;
    fixed[2..10].copy_from_slice(&stamp.number.to_be_bytes());
    fixed[10..18].copy_from_slice(&stamp.time.to_be_bytes());
    fixed[18..].copy_from_slice(&(channel_bytes as u32).to_be_bytes());
    // The state after the key is copied, not computed.
    let mut mac = key.clone();
    mac.update(&fixed);
    mac.update(stamp.sender.as_bytes());
    for part in channel {
        mac.update(part.as_bytes());
    }
    mac.update(message);
    mac
}

fn shortened(sender: &str) -> &str {
    &sender[..sender.floor_char_boundary(MAX_SENDER_BYTES)]
}

/// Reads `KEY` or `KEY,OLDKEY`. Spaces around a key are not part of it.
impl FromStr for SigningKeys {
    type Err = KeysError;

    fn from_str(text: &str) -> Result<Self, KeysError> {
        let keys: Vec<_> = text.split(',').map(str::trim).collect();
        Self::new(&keys)
    }
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKeys({} keys)", self.0.len())
    }
}

/// The identity of a signed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp<'a> {
    /// The node or emitter. A process takes a new name at every start, because its
    /// numbers begin again. More than 222 bytes are cut off.
    pub sender: &'a str,
    /// The number of the message, which the sender uses once.
    pub number: u64,
    /// When it was sealed, in milliseconds since 1970.
    pub time: u64,
}

/// A message in its seal, which is not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed<'a> {
    stamp: Stamp<'a>,
    signature: &'a [u8],
    message: &'a [u8],
    list: u8,
    position: Option<Position>,
}

impl<'a> Sealed<'a> {
    /// Reads a published message. Returns `None` if it has another form: it is not signed.
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let (mut sealed, rest) = Self::parse(payload)?;
        if sealed.list == LIST_OF_4 {
            sealed.position = Some(read_position(rest)?);
        } else if !rest.is_empty() {
            return None;
        }
        Some(sealed)
    }

    /// Reads an entry of a log, whose position is passed separately.
    pub fn read_head(head: &'a [u8], position: Position) -> Option<Self> {
        let (mut sealed, rest) = Self::parse(head)?;
        sealed.position = Some(position);
        (sealed.list == LIST_OF_4 && rest.is_empty()).then_some(sealed)
    }

    /// The stamp that the sender has put on it.
    pub fn stamp(&self) -> Stamp<'a> {
        self.stamp
    }

    /// The position that a log has given it.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// The message as it was sealed: without its position.
    pub fn as_sealed(&self) -> &'a [u8] {
        self.message
    }

    /// The message as an unsigned one would have come, with its position.
    pub fn message(&self) -> Cow<'a, [u8]> {
        match self.position {
            Some(position) => Cow::Owned(placed(self.message, position)),
            None => Cow::Borrowed(self.message),
        }
    }

    fn parse(payload: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&[list, BIN_8, header], rest) = payload.split_first_chunk()? else {
            return None;
        };
        if !matches!(list, LIST_OF_3 | LIST_OF_4) {
            return None;
        }
        let (header, rest) = rest.split_at_checked(header.into())?;
        let (&[VERSION], header) = header.split_first_chunk()? else {
            return None;
        };
        let (number, header) = header.split_first_chunk()?;
        let (time, header) = header.split_first_chunk()?;
        let (signature, sender) = header.split_at_checked(SIGNATURE_BYTES)?;
        let (&[NIL, BIN_32], rest) = rest.split_first_chunk()? else {
            return None;
        };
        let (length, rest) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (message, rest) = rest.split_at_checked(length)?;
        let sealed = Self {
            stamp: Stamp {
                sender: str::from_utf8(sender).ok()?,
                number: u64::from_be_bytes(*number),
                time: u64::from_be_bytes(*time),
            },
            signature,
            message,
            list,
            position: None,
        };
        Some((sealed, rest))
    }
}

/// Reads the text that the script of a log appends, up to the end.
fn read_position(bytes: &[u8]) -> Option<Position> {
    let (head, mut rest) = bytes.split_first()?;
    let mut number = || {
        let (&[UINT_64], after) = rest.split_first_chunk()? else {
            return None;
        };
        let (number, after) = after.split_first_chunk()?;
        rest = after;
        Some(u64::from_be_bytes(*number))
    };
    let (id, time) = (number()?, number()?);
    let after = match head {
        0x92 => None,
        0x93 => Some(number()?),
        _ => return None,
    };
    rest.is_empty().then_some(Position { id, time, after })
}

/// Why a message is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It has no seal: a Node server, an emitter without the key, or another program published it.
    #[error("it is not signed")]
    Unsigned,
    /// None of the keys fits, or it was altered, or it was sealed for another channel.
    #[error("its signature is of another key, or of another message")]
    Forged,
    /// It was sealed too long ago, or in the future.
    #[error("it was not signed just now")]
    Stale,
    /// It has come before, or too many later ones came before it.
    #[error("it has come before")]
    Replayed,
}
