//! Sessions of clients as `@socket.io/redis-streams-adapter` stores them: base64 of MessagePack.
//!
//! ```text
//! Node      { sid, pid, rooms, data }
//! Roomcast  { holder, sid, pid, rooms, data, nsp, record }
//!             └ a token at a fixed place, so that a script can compare and replace it
//! ```
//!
//! Node decodes ours and reads only its own four members. The data of a Roomcast node are in
//! `record`, as it was stored; of a session of Node's, the record is made from the four.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Wire, WireError,
    payload::{Encoding, expected, missing},
    streams::LENIENT,
};
use crate::raw::Raw;

/// Length of a holder's token, in ASCII characters.
pub const HOLDER: usize = 20;

/// The first bytes of a session of ours, before the token: a map of seven, its first key,
/// and the head of the token. Nine bytes, so that they end at a boundary of base64.
const HEAD: &[u8; 9] = b"\x87\xa6holder\xb4";

/// The byte after the token. With it, thirty bytes are forty characters that depend on
/// the token alone.
const AFTER_TOKEN: u8 = 0xa3;

/// A stored session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSession {
    /// The token of the holder. `None` if a Node server stored it.
    pub holder: Option<Box<str>>,
    /// The namespace, unless a Node server stored it.
    pub namespace: Option<Box<str>>,
    /// The state with which a node resumes the session: JSON with `sid`, `owner`,
    /// `rooms` without the private one, and `data`.
    pub record: Vec<u8>,
}

/// The members of a record that Node needs.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Record {
    sid: String,
    rooms: Vec<String>,
    data: Value,
}

#[derive(Serialize)]
struct Written<'a> {
    holder: &'a str,
    sid: &'a str,
    pid: &'a str,
    rooms: Vec<&'a str>,
    data: &'a Value,
    nsp: &'a str,
    record: &'a str,
}

#[derive(Deserialize, Default)]
#[serde(default, bound(deserialize = "'de: 'a"))]
struct Members<'a> {
    holder: Raw<'a>,
    sid: Raw<'a>,
    rooms: Raw<'a>,
    data: Raw<'a>,
    nsp: Raw<'a>,
    record: Raw<'a>,
}

impl StoredSession {
    /// The beginning of every session that a Roomcast node has stored.
    pub fn head() -> String {
        STANDARD.encode(HEAD)
    }

    /// The beginning of the sessions of a holder, whose token has [`HOLDER`] characters.
    pub fn head_of(holder: &str) -> String {
        STANDARD.encode([HEAD, holder.as_bytes(), &[AFTER_TOKEN]].concat())
    }

    /// Writes a session with its record, which is text.
    pub fn write(holder: &str, namespace: &str, pid: &str, record: &[u8]) -> String {
        let text = String::from_utf8_lossy(record);
        let known: Record = serde_json::from_str(&text).unwrap_or_default();
        let own = known.sid.as_str();
        let rooms = known.rooms.iter().map(String::as_str);
        // Node's handlers take it that there are data.
        let nothing = json!({});
        let bytes = Encoding::Msgpack.to_bytes(&Written {
            holder,
            sid: own,
            pid,
            rooms: std::iter::once(own).chain(rooms).collect(),
            data: if known.data.is_null() {
                &nothing
            } else {
                &known.data
            },
            nsp: namespace,
            record: &text,
        });
        STANDARD.encode(bytes)
    }
}

impl Wire {
    /// Reads a session of a Roomcast node or a Node server.
    ///
    /// # Errors
    ///
    /// It is neither, or its data exceed the limits.
    pub fn read_session(&self, text: &[u8]) -> Result<StoredSession, WireError> {
        let bytes = LENIENT.decode(text).map_err(|_| expected("base64"))?;
        let members: Members<'_> = Raw::Msgpack(&bytes).read()?;
        if let Some(record) = members.record.text() {
            return Ok(StoredSession {
                holder: members.holder.boxed_text(),
                namespace: members.nsp.boxed_text(),
                record: record.as_bytes().to_vec(),
            });
        }
        let sid = members.sid.text().ok_or_else(|| missing("sid"))?;
        let mut rooms = super::parts::Rooms::read(members.rooms)?.names();
        rooms.retain(|room| **room != *sid);
        let data = self.arguments().tree(members.data)?;
        let is_empty = data.as_object().is_some_and(serde_json::Map::is_empty);
        let data = if is_empty { Value::Null } else { data };
        let record =
            json!({ "sid": sid, "owner": "", "rooms": rooms, "data": data, "since": null });
        Ok(StoredSession {
            holder: None,
            namespace: None,
            record: record.to_string().into_bytes(),
        })
    }
}
