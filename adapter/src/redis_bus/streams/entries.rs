//! Entries of the stream as Redis returns them, and their ids.

use redis::Value;
use roomcast_emitter::redis::Reply;
use roomcast_protocol::{message::Position, wire::Entry};

/// The bits of a position's id that count the entries of one millisecond. Its time has 41
/// bits, so that JavaScript can count up to it.
const SEQUENCE_BITS: u32 = 12;

/// The id of an entry: milliseconds since 1970, and a number among the entries of that millisecond.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) time: u64,
    pub(super) sequence: u64,
}

impl Id {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (time, sequence) = text.split_once('-')?;
        Some(Self {
            time: time.parse().ok()?,
            sequence: sequence.parse().ok()?,
        })
    }

    /// The id of the entry at a position.
    pub(super) fn of(position: u64) -> Self {
        Self {
            time: position >> SEQUENCE_BITS,
            sequence: position & ((1 << SEQUENCE_BITS) - 1),
        }
    }

    /// The position of the entry. `None` if Redis has given more ids in a millisecond
    /// than positions have: its clock was set back far.
    pub(super) fn position(self, after: Option<u64>) -> Option<Position> {
        let fits = self.sequence >> SEQUENCE_BITS == 0 && self.time >> 41 == 0;
        fits.then_some(Position {
            id: self.time << SEQUENCE_BITS | self.sequence,
            time: self.time,
            after,
        })
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.time, self.sequence)
    }
}

/// An entry with its id. `entry` is `None` if it is not a message.
pub(super) struct Read<'a> {
    pub(super) id: Id,
    pub(super) entry: Option<Entry<'a>>,
}

/// Reads the entries of a reply to XRANGE and XREVRANGE. `None` if it has another form.
pub(super) fn entries(reply: &Value) -> Option<Vec<Read<'_>>> {
    let entries = reply.list()?.iter();
    entries.map(entry).collect()
}

/// Reads the reply to XREAD of one stream, which is nothing if there were no entries in time.
pub(super) fn entries_of_stream(reply: &Value) -> Option<Vec<Read<'_>>> {
    if *reply == Value::Nil {
        return Some(Vec::new());
    }
    let streams = reply.pairs()?;
    entries(streams.first()?.1)
}

fn entry(value: &Value) -> Option<Read<'_>> {
    let [id, fields] = value.list()? else {
        return None;
    };
    let id = Id::parse(id.text()?)?;
    // Redis returns nothing in place of an entry that was deleted meanwhile.
    let fields = fields.pairs().unwrap_or_default();
    let fields = fields
        .into_iter()
        .map(|(name, value)| (bytes(name), bytes(value)));
    Some(Read {
        id,
        entry: Entry::from_fields(fields),
    })
}

fn bytes(value: &Value) -> &[u8] {
    match value {
        Value::BulkString(bytes) => bytes,
        _ => &[],
    }
}

/// The bytes of an entry, roughly.
pub(super) fn size(entry: &Entry<'_>) -> usize {
    entry
        .fields()
        .map(|(name, value)| name.len() + value.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_positions_in_the_same_order_and_back() {
        let ids = [
            "0-1",
            "1795158936777-0",
            "1795158936777-4095",
            "1795158936778-0",
        ];
        let ids = ids.map(|text| Id::parse(text).unwrap());
        let positions = ids.map(|id| id.position(None).unwrap());
        assert!(positions.is_sorted_by(|a, b| a.id < b.id));
        assert_eq!(positions.map(|position| Id::of(position.id)), ids);
        assert!(positions.iter().all(|position| position.id < 1 << 53));
        let many = Id::parse("1795158936777-4096").unwrap();
        assert_eq!(many.position(None), None);
        assert_eq!(Id::parse("1-x"), None);
    }
}
