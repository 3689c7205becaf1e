//! Arguments as plain JSON, for readers without attachments.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::Value;

/// The only key of an object that stands for binary.
const MARK: &str = "$binary";

pub(super) fn to_json(values: &[Value]) -> serde_json::Result<String> {
    let marked: Vec<_> = values.iter().map(Marked).collect();
    serde_json::to_string(&marked)
}

/// A value that is written with marks.
struct Marked<'a>(&'a Value);

impl Serialize for Marked<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Binary(bytes) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry(MARK, &STANDARD.encode(bytes))?;
                map.end()
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Marked)),
            Value::Map(members) => serializer.collect_map(
                members
                    .iter()
                    .map(|(key, value)| (Marked(key), Marked(value))),
            ),
            plain => plain.serialize(serializer),
        }
    }
}
