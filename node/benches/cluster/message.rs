//! What nodes of a cluster publish for a broadcast to one room, written by hand.
//!
//! The event is `cast`, its argument a labelled payload. Shares no code with the library.

use crate::payload::{Label, PAYLOAD_BYTES};

/// The adapter whose messages are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Of `@socket.io/redis-adapter`'s `createAdapter`: PUBLISH of MessagePack.
    Classic,
    /// Of its `createShardedAdapter`: SPUBLISH of JSON.
    Sharded,
}

impl Form {
    pub(crate) fn of(sharded: bool) -> Self {
        if sharded {
            Self::Sharded
        } else {
            Self::Classic
        }
    }

    pub(crate) fn publish(self) -> &'static [u8] {
        match self {
            Self::Classic => b"PUBLISH",
            Self::Sharded => b"SPUBLISH",
        }
    }

    pub(crate) fn subscribe(self) -> &'static [u8] {
        match self {
            Self::Classic => b"SUBSCRIBE",
            Self::Sharded => b"SSUBSCRIBE",
        }
    }

    pub(crate) fn unsubscribe(self) -> &'static [u8] {
        match self {
            Self::Classic => b"UNSUBSCRIBE",
            Self::Sharded => b"SUNSUBSCRIBE",
        }
    }

    pub(crate) fn count_subscribers(self) -> &'static [u8] {
        match self {
            Self::Classic => b"NUMSUB",
            Self::Sharded => b"SHARDNUMSUB",
        }
    }

    /// Writes the broadcast of a payload to a room whose name is shorter than 32 bytes.
    pub(crate) fn write(self, out: &mut Vec<u8>, room: &str, label: Label) {
        match self {
            Self::Classic => {
                out.extend_from_slice(
                    b"\x93\xa6bench0\x83\xa4type\x02\xa4data\x92\xa4cast\xd9\x80",
                );
                label.write(out);
                out.extend_from_slice(b"\xa3nsp\xa1/\x83\xa5rooms\x91");
                let length = u8::try_from(room.len()).expect("rooms have short names");
                out.push(0xa0 | length);
                out.extend_from_slice(room.as_bytes());
                out.extend_from_slice(b"\xa6except\x90\xa5flags\x80");
            }
            Self::Sharded => {
                out.extend_from_slice(br#"{"type":3,"data":{"packet":{"type":2,"data":["cast",""#);
                label.write(out);
                out.extend_from_slice(br#""]},"opts":{"rooms":[""#);
                out.extend_from_slice(room.as_bytes());
                out.extend_from_slice(
                    br#""],"except":[],"flags":{}}},"uid":"00000000000bench","nsp":"/"}"#,
                );
            }
        }
    }
}

pub(crate) fn channel(room: &str) -> String {
    format!("{CHANNEL_HEAD}{room}#")
}

/// The room whose channel this is.
pub(crate) fn room_of(channel: &[u8]) -> Option<&[u8]> {
    channel
        .strip_prefix(CHANNEL_HEAD.as_bytes())?
        .strip_suffix(b"#")
}

/// The payload in what any of the servers has published, in either form.
pub(crate) fn payload_of(message: &[u8]) -> Option<&[u8]> {
    let event = message.windows(4).position(|window| window == b"cast")? + 4;
    let rest = &message[event..];
    let payload = rest
        .strip_prefix(b"\xd9\x80")
        .or_else(|| rest.strip_prefix(b"\",\""))?;
    payload.get(..PAYLOAD_BYTES)
}

const CHANNEL_HEAD: &str = "socket.io#/#";
const _: () = assert!(
    PAYLOAD_BYTES == 0x80,
    "the length in the MessagePack header"
);
