//! Finds the payload in a message.
//!
//! A message is `["message", …]` with the payload as a string at any depth. The finder remembers
//! the position in the last message, so messages of the same form need no parsing.

use serde_json::Value;

use crate::label::{Label, MAGIC};

pub(crate) struct Finder {
    payload_bytes: usize,
    /// Start of the payload in the last message, and the bytes behind it.
    start: usize,
    tail: Vec<u8>,
}

impl Finder {
    pub(crate) fn new(payload_bytes: usize) -> Self {
        Self {
            payload_bytes,
            start: 0,
            tail: Vec::new(),
        }
    }

    /// Reads the label in the body of an event. Returns `None` if any byte differs from what was
    /// sent.
    pub(crate) fn find(&mut self, body: &[u8]) -> Option<Label> {
        let end = self.start + self.payload_bytes;
        if self.start > 0
            && body.get(end..) == Some(&self.tail[..])
            && let Some(label) = Label::read(&body[self.start..end], self.payload_bytes)
        {
            return Some(label);
        }
        self.find_anew(body)
    }

    #[cold]
    fn find_anew(&mut self, body: &[u8]) -> Option<Label> {
        let event: Value = serde_json::from_slice(body).ok()?;
        let args = event.as_array()?;
        let payload = args.iter().skip(1).find_map(string_with_magic)?;
        let label = Label::read(payload.as_bytes(), self.payload_bytes)?;
        // The body contains the payload verbatim, because it needs no escaping.
        let quoted = format!("\"{payload}\"");
        let at = find(body, quoted.as_bytes())?;
        self.start = at + 1;
        self.tail = body[self.start + self.payload_bytes..].to_vec();
        Some(label)
    }
}

fn string_with_magic(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => text.as_bytes().starts_with(MAGIC).then_some(text.as_str()),
        Value::Array(items) => items.iter().find_map(string_with_magic),
        Value::Object(fields) => fields.values().find_map(string_with_magic),
        _ => None,
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(sequence: u32) -> (Label, String) {
        let label = Label {
            run: 1,
            sender: 2,
            sequence,
            time: 3,
        };
        let mut bytes = Vec::new();
        label.write(&mut bytes, 64);
        (label, String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_payload_is_found_in_any_form_of_message() {
        let mut finder = Finder::new(64);
        let forms = [
            r#"["message",{"room":"a","from":"b","data":"@"}]"#,
            r#"["message","@"]"#,
            r#"["message",{"data":"@","room":"a"},1]"#,
            r#"["message","room",["@"]]"#,
        ];
        for sequence in 0..40 {
            let (label, payload) = payload(sequence);
            let form = forms[sequence as usize / 3 % forms.len()];
            let body = form.replace('@', &payload);
            assert_eq!(finder.find(body.as_bytes()), Some(label), "{body}");
        }
    }

    #[test]
    fn a_message_that_was_changed_or_cut_anywhere_is_not_found() {
        let mut finder = Finder::new(64);
        let form = r#"["message",{"room":"a","data":"@"}]"#;
        let first = form.replace('@', &payload(0).1);
        assert!(finder.find(first.as_bytes()).is_some());
        let whole = form.replace('@', &payload(1).1);
        for cut in 11..whole.len() {
            assert_eq!(finder.find(&whole.as_bytes()[..cut]), None, "{cut}");
        }
        let start = find(whole.as_bytes(), b"rl1").unwrap();
        for at in start..whole.len() {
            let mut changed = whole.clone().into_bytes();
            changed[at] = if changed[at] == b'!' { b'?' } else { b'!' };
            assert_eq!(finder.find(&changed), None, "{at}");
        }
        assert!(finder.find(whole.as_bytes()).is_some());
    }
}
