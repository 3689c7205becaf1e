//! The notation of the captured vectors: bytes as hexadecimal digits, and values of JavaScript that
//! JSON does not have as objects. The unit tests include this file, too.

use bytes::Bytes;
use serde_json::{Value, json};

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The canonical form of a value in the notation of the vectors, as JavaScript would make JSON of
/// it; binary goes to the attachments.
pub(crate) fn canonical(value: &Value, attachments: &mut Vec<Bytes>) -> Value {
    if let Some(bytes) = value.get("$bin") {
        attachments.push(unhex(bytes.as_str().unwrap()).into());
        return json!({"_placeholder": true, "num": attachments.len() - 1});
    }
    if let Some(date) = value.get("$date") {
        return date.clone();
    }
    match value {
        Value::Object(map) if map.contains_key("$undefined") => Value::Null,
        Value::Object(map) if map.contains_key("$number") => match &map["$number"] {
            Value::String(number) if number == "-0" => json!(0),
            _ => Value::Null,
        },
        Value::Object(map) => map
            .iter()
            .filter(|(_, member)| member.get("$undefined").is_none())
            .map(|(key, member)| (key.clone(), canonical(member, attachments)))
            .collect(),
        Value::Array(list) => list
            .iter()
            .map(|element| canonical(element, attachments))
            .collect(),
        plain => plain.clone(),
    }
}
