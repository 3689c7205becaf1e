//! Broadcasts that are stored in a log before they are published.
//!
//! The log that stores one assigns its [`Position`], and appends it to bytes that were
//! prepared without it. The published message is an ordinary broadcast with one more element,
//! which Node's servers ignore:
//!
//! ```text
//! classic  [uid, packet, opts,                     [id, time] ]
//! sharded  { type, data, uid, nsp,       position: [id, time] }
//!          └──────── head: stored ───────────────┘└─ appended ─┘
//! ```
//!
//! In a journal, the id of the broadcast before it follows: `[id, time, after]`.
//!
//! In MessagePack all numbers have nine bytes, so that a script can write them. In JSON the end is
//! the bracket that the head begins with. So the first byte of a head determines how it is
//! completed.

use bytes::Bytes;

use super::{ENVELOPE_BYTES, Publication, Wire, WireError, classic, sharded};
use crate::{
    channel::{Dialect, LOG_UID},
    message::{Broadcast, Position},
};

impl Wire {
    /// Writes a broadcast without its position. It is published on the channel of the namespace
    /// regardless of its target, so that all nodes receive the entries of a log in one order.
    ///
    /// # Errors
    ///
    /// The arguments are not JSON or nested too deeply.
    pub fn unplaced(
        &self,
        namespace: &str,
        broadcast: &Broadcast,
    ) -> Result<Publication, WireError> {
        self.check_broadcast(&broadcast.args)?;
        let parts = broadcast.parts();
        let mut head = match self.channels.dialect() {
            Dialect::Classic => {
                let mut out = Vec::with_capacity(ENVELOPE_BYTES + broadcast.args.json().len());
                let (encoding, last) = (self.encoding(), Some(classic::Last::Unplaced));
                classic::write_broadcast(&mut out, encoding, namespace, LOG_UID, parts, last)?;
                Bytes::from(out)
            }
            Dialect::Sharded(_) | Dialect::Streams => {
                let around = sharded::Around {
                    is_unplaced: true,
                    ..self.around(namespace, LOG_UID)
                };
                sharded::write_broadcast(around, parts)?
            }
        };
        // The place was held by nothing: `null` and a bracket, or one byte.
        let is_json = matches!(head[0], b'[' | b'{');
        head.truncate(head.len() - if is_json { "null]".len() } else { 1 });
        Ok(Publication {
            channel: self.channels.broadcast(namespace),
            payload: head,
        })
    }
}

/// Makes the payload of a broadcast, as [`Wire::message`] writes it without `confirm`,
/// one without its position. `None` if it is of another form.
pub fn unplaced(payload: &[u8]) -> Option<Vec<u8>> {
    const NAME: &str = "position";
    let (first, rest) = payload.split_first()?;
    let mut head = Vec::with_capacity(payload.len() + 16);
    match first {
        0x93 => {
            head.push(0x94);
            head.extend_from_slice(rest);
        }
        0x84 => {
            head.push(0x85);
            head.extend_from_slice(rest);
            head.push(0xa0 | NAME.len() as u8);
            head.extend_from_slice(NAME.as_bytes());
        }
        b'[' => {
            head.extend_from_slice(payload.strip_suffix(b"]")?);
            head.push(b',');
        }
        b'{' => {
            head.extend_from_slice(payload.strip_suffix(b"}")?);
            head.extend_from_slice(format!(",\"{NAME}\":").as_bytes());
        }
        _ => return None,
    }
    Some(head)
}

/// Completes a broadcast from [`Wire::unplaced`], as the script does.
pub fn placed(head: &[u8], position: Position) -> Vec<u8> {
    let Position { id, time, after } = position;
    let numbers = [Some(id), Some(time), after].into_iter().flatten();
    let mut payload = head.to_vec();
    let end = match head.first() {
        Some(b'[') => b']',
        Some(b'{') => b'}',
        _ => {
            payload.push(if after.is_some() { 0x93 } else { 0x92 });
            for number in numbers {
                payload.push(0xcf);
                payload.extend_from_slice(&number.to_be_bytes());
            }
            return payload;
        }
    };
    let texts: Vec<_> = numbers.map(|number| number.to_string()).collect();
    payload.extend_from_slice(format!("[{}]", texts.join(",")).as_bytes());
    payload.push(end);
    payload
}
