//! A description, for the log, of the frames that waited for a slow client: which events filled its
//! outbox. An operator then knows whether to send less of them, or to send them volatile.

use std::collections::HashMap;

use super::frame::Frame;

/// Maximum number of frames to inspect. A flood repeats itself, and the outbox is summed up under a
/// lock.
const SAMPLE: usize = 256;

/// Events that are named.
const NAMED: usize = 3;

/// Characters of an event's name that are shown.
const NAME_CHARS: usize = 40;

/// Sums up frames by event, the largest sums first, such as `"news" 250 × (1.2 MB),
/// "chat" 6 × (2 kB)`.
pub(super) fn describe<'a>(frames: impl Iterator<Item = &'a Frame>) -> Box<str> {
    let mut kinds: HashMap<&str, (usize, usize)> = HashMap::new();
    for frame in frames.take(SAMPLE) {
        let (count, bytes) = kinds.entry(kind(frame)).or_default();
        *count += 1;
        *bytes += frame.cost();
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_unstable_by_key(|&(kind, (_, bytes))| (std::cmp::Reverse(bytes), kind));
    let named = kinds.iter().take(NAMED).map(|(kind, (count, bytes))| {
        let kind: String = kind.chars().take(NAME_CHARS).collect();
        format!("{kind:?} {count} × ({bytes} bytes)")
    });
    named.collect::<Vec<_>>().join(", ").into()
}

/// The name of the event that a packet carries, or the kind of packet.
fn kind(frame: &Frame) -> &str {
    let text = std::str::from_utf8(frame.packet_text()).unwrap_or_default();
    // `4` for a message of Engine.IO, `2` or `5` for an event of Socket.IO.
    match text.as_bytes() {
        [b'4', b'2' | b'5', ..] => {
            let args = text.split_once("[\"").map_or("", |(_, args)| args);
            args.split_once('"').map_or("event", |(name, _)| name)
        }
        [b'4', ..] => "control packet",
        [] => "binary",
        _ => "heartbeat",
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn the_events_that_fill_an_outbox_are_named_with_the_largest_first() {
        let event = |text: &str| Frame::message(|out| out.extend_from_slice(text.as_bytes()), &[]);
        let frames = [
            event(r#"2["chat","hi"]"#),
            event(&format!(r#"2/news,7["breaking","{}"]"#, "x".repeat(500))),
            event(r#"2["chat","ho"]"#),
            Frame::packet("2"),
            Frame::binary(Bytes::from_static(&[1, 2, 3])),
        ];
        let text = describe(frames.iter());
        let expected =
            r#""breaking" 1 × (528 bytes), "chat" 2 × (34 bytes), "binary" 1 × (5 bytes)"#;
        assert_eq!(&*text, expected);
    }
}
