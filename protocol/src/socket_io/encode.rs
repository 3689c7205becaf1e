//! The default parser's encoder.
//!
//! Each function appends the text of one packet without its Engine.IO type and copies the encoded
//! arguments. Attachments are not written; the caller sends them as binary messages directly after
//! the packet.

use crate::args::Args;

use super::packet::PacketKind;

/// Appends an event. With an id, the sender expects an acknowledgement.
pub fn event(out: &mut Vec<u8>, nsp: &str, id: Option<u64>, name: &str, args: &Args) {
    out.reserve(HEAD + nsp.len() + name.len() + args.json().len());
    head(out, PacketKind::Event, args.attachments().len(), nsp);
    if let Some(id) = id {
        push_number(out, id);
    }
    out.push(b'[');
    push_string(out, name);
    if args.is_empty() {
        out.push(b']');
    } else {
        out.push(b',');
        out.extend_from_slice(&args.json().as_bytes()[1..]);
    }
}

/// Appends an acknowledgement.
pub fn ack(out: &mut Vec<u8>, nsp: &str, id: u64, args: &Args) {
    out.reserve(HEAD + nsp.len() + args.json().len());
    head(out, PacketKind::Ack, args.attachments().len(), nsp);
    push_number(out, id);
    out.extend_from_slice(args.json().as_bytes());
}

/// Appends the reply to a CONNECT, with or without a JSON payload.
pub fn connect(out: &mut Vec<u8>, nsp: &str, data: Option<&str>) {
    with_data(out, PacketKind::Connect, nsp, data.unwrap_or_default());
}

/// Appends the refusal of a CONNECT, with a JSON payload.
pub fn connect_error(out: &mut Vec<u8>, nsp: &str, data: &str) {
    with_data(out, PacketKind::ConnectError, nsp, data);
}

/// Appends the packet that ends a namespace. Official clients do not reconnect after it.
pub fn disconnect(out: &mut Vec<u8>, nsp: &str) {
    with_data(out, PacketKind::Disconnect, nsp, "");
}

/// Appends `text` as a JSON string.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    if text
        .bytes()
        .any(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f))
    {
        serde_json::to_writer(out, text).expect("text is JSON, and memory takes it");
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// The length of everything but names and payload: the type, two numbers of up to 20 digits, `-`,
/// `,`, brackets and quotes.
const HEAD: usize = 48;

fn with_data(out: &mut Vec<u8>, kind: PacketKind, nsp: &str, data: &str) {
    out.reserve(HEAD + nsp.len() + data.len());
    head(out, kind, 0, nsp);
    out.extend_from_slice(data.as_bytes());
}

fn head(out: &mut Vec<u8>, kind: PacketKind, attachments: usize, nsp: &str) {
    debug_assert!(
        nsp.starts_with('/') && !nsp.contains(','),
        "clients could not read {nsp}"
    );
    if attachments == 0 {
        out.push(b'0' + kind.number());
    } else {
        debug_assert!(matches!(kind, PacketKind::Event | PacketKind::Ack));
        out.push(b'0' + kind.number() + BINARY);
        push_number(out, attachments as u64);
        out.push(b'-');
    }
    if nsp != "/" {
        out.extend_from_slice(nsp.as_bytes());
        out.push(b',');
    }
}

/// How far the kinds with binary are from those without: EVENT is 2 or 5, ACK 3 or 6.
const BINARY: u8 = 3;

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn names_are_escaped_where_json_asks_for_it() {
        for name in [
            "plain",
            "é😀",
            "\"",
            "a\\b",
            "line\nbreak",
            "\u{0}",
            "\u{7f}\u{2028}",
            "",
        ] {
            let text = written(|out| event(out, "/", None, name, &Args::default()));
            let parsed: Vec<String> = serde_json::from_str(&text[1..]).unwrap();
            assert_eq!(parsed, [name]);
        }
    }

    #[test]
    fn numbers_are_written_in_full() {
        for id in [0, 9, 10, 99, 100, 1_234_567_890, u64::MAX] {
            let text = written(|out| ack(out, "/", id, &Args::default()));
            assert_eq!(text, format!("3{id}[]"));
        }
    }

    #[test]
    fn packets_are_appended_without_growing_twice() {
        let args = Args::encode(&("x".repeat(1000), bytes::Bytes::from_static(b"b"))).unwrap();
        let nsp = "/namespace";
        let mut out = Vec::new();
        event(&mut out, nsp, Some(u64::MAX), "name", &args);
        assert!(out.len() <= HEAD + nsp.len() + "name".len() + args.json().len());
        let first = out.clone();
        ack(&mut out, nsp, u64::MAX, &args);
        assert!(out.starts_with(&first));
        assert!(out.len() - first.len() <= HEAD + nsp.len() + args.json().len());
    }
}
