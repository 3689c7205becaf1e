//! RFC 6455 case by case, then properties: the same verdict as tungstenite, wherever the stream
//! is cut.

use std::io::{Cursor, Read, Write};

use proptest::prelude::*;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message as Theirs, WebSocket};

use super::*;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const FIN: u8 = 0x80;
const LARGE: Limits = Limits {
    message_bytes: 1_000_000,
    fragments: 1024,
};
const SMALL: Limits = Limits {
    message_bytes: 300,
    fragments: 1024,
};

// Masking (section 5.3).

#[test]
fn the_masked_hello_of_the_standard_is_read() {
    let bytes = [
        0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
    ];
    assert_eq!(read(&bytes), (vec![said("Hello")], None));
}

#[test]
fn a_frame_without_a_mask_is_refused() {
    assert_eq!(read(b"\x81\x05Hello"), only(Refusal::Unmasked));
}

#[test]
fn every_length_and_offset_is_unmasked_alike() {
    let plain: Vec<u8> = (0..64).collect();
    for len in 0..plain.len() {
        let mut masked = plain[..len].to_vec();
        unmask(&mut masked, MASK);
        for (at, byte) in masked.iter().enumerate() {
            assert_eq!(*byte, plain[at] ^ MASK[at % 4]);
        }
    }
}

// Reserved bits and opcodes (section 5.2).

#[test]
fn reserved_bits_are_refused() {
    for bit in [0x40, 0x20, 0x10] {
        let bytes = frame(FIN | bit | 1, b"");
        assert_eq!(read(&bytes), only(Refusal::ReservedBits));
        assert_eq!(read(&bytes[..1]), only(Refusal::ReservedBits));
    }
}

#[test]
fn reserved_opcodes_are_refused() {
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        assert_eq!(
            read(&frame(FIN | opcode, b"")),
            only(Refusal::ReservedOpcode)
        );
    }
}

// Lengths (section 5.2).

#[test]
fn each_length_form_is_read() {
    for len in [0, 1, 125, 126, 127, 65_535, 65_536, 1_000_000] {
        let payload = vec![7; len];
        let (events, refusal) = read(&frame(FIN | 2, &payload));
        assert_eq!((events.len(), refusal), (1, None));
        assert_eq!(events[0], Event::Binary(Cow::Owned(payload)));
    }
}

#[test]
fn lengths_that_are_not_minimal_are_refused() {
    for head in [
        &[126, 0, 125][..],
        &[126, 0, 0],
        &[127, 0, 0, 0, 0, 0, 0, 255, 255],
    ] {
        let mut bytes = vec![FIN | 2, 0x80 | head[0]];
        bytes.extend_from_slice(&head[1..]);
        assert_eq!(read(&bytes), only(Refusal::Length));
    }
}

#[test]
fn a_length_of_64_bits_is_refused() {
    let bytes = [FIN | 2, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(read(&bytes), only(Refusal::Length));
}

// Limits.

#[test]
fn an_announced_length_above_the_limit_is_refused_before_the_payload() {
    let bytes = frame(FIN | 1, &[b'x'; 301]);
    let refusal = read_with(&mut Reader::default(), &bytes[..4], &SMALL).1;
    assert_eq!(refusal, Some(Refusal::TooLarge));
    assert_eq!(refusal.map(Refusal::close_code), Some(1009));
    let bytes = frame(FIN | 1, &[b'x'; 300]);
    assert_eq!(read_with(&mut Reader::default(), &bytes, &SMALL).0.len(), 1);
}

#[test]
fn the_fragments_of_a_message_share_one_limit() {
    let mut bytes = frame(2, &[0; 200]);
    bytes.extend(frame(FIN | 9, &[0; 125]));
    bytes.extend(&frame(FIN, &[0; 101])[..2]);
    let (events, refusal) = read_with(&mut Reader::default(), &bytes, &SMALL);
    assert_eq!((events.len(), refusal), (1, Some(Refusal::TooLarge)));
}

#[test]
fn a_message_has_a_limit_of_fragments() {
    let limits = Limits {
        fragments: 3,
        ..SMALL
    };
    let mut bytes = [frame(1, b"a"), frame(0, b""), frame(FIN, b"b")].concat();
    assert_eq!(
        read_with(&mut Reader::default(), &bytes, &limits).0,
        [said("ab")]
    );
    bytes = [frame(1, b"a"), frame(0, b""), frame(0, b""), frame(0, b"")].concat();
    for cut in [bytes.len(), 3] {
        let refusal = read_pieces(&bytes, &[cut], &limits).1;
        assert_eq!(refusal, Some(Refusal::TooManyFragments));
    }
}

#[test]
fn memory_follows_what_was_received_and_not_what_was_announced() {
    let bytes = frame(FIN | 2, &vec![0; LARGE.message_bytes]);
    let mut reader = Reader::default();
    for (received, byte) in bytes[..5000].iter().enumerate() {
        assert_eq!(read_with(&mut reader, &[*byte], &LARGE), (vec![], None));
        let held = reader
            .partial
            .as_ref()
            .and_then(|partial| partial.message.as_ref());
        assert!(held.map_or(0, |message| message.bytes.capacity()) <= 2 * received + 64);
    }
}

#[test]
fn nothing_is_held_between_frames_and_after_messages() {
    assert!(size_of::<Reader>() <= 16);
    let mut reader = Reader::default();
    let bytes = [frame(1, b"a"), frame(FIN | 9, b"b"), frame(FIN, b"c")].concat();
    for _ in 0..3 {
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(read_with(&mut reader, &[*byte], &SMALL).1, None);
            assert_eq!(reader.partial.is_some(), at + 1 < bytes.len());
        }
    }
}

#[test]
fn whole_frames_are_lent_and_only_pieces_are_copied() {
    let mut bytes = [
        frame(FIN | 1, b"a"),
        frame(FIN | 2, b"b"),
        frame(FIN | 9, b"c"),
    ]
    .concat();
    let mut reader = Reader::default();
    let input = &mut &mut bytes[..];
    assert!(matches!(
        reader.next(input, &SMALL),
        Ok(Some(Event::Text(Cow::Borrowed("a"))))
    ));
    assert!(matches!(
        reader.next(input, &SMALL),
        Ok(Some(Event::Binary(Cow::Borrowed(b"b"))))
    ));
    assert!(matches!(
        reader.next(input, &SMALL),
        Ok(Some(Event::Ping(Cow::Borrowed(b"c"))))
    ));
    assert_eq!(reader.next(input, &SMALL), Ok(None));

    // Even a frame whose header was cut is lent if its payload was not.
    let mut bytes = frame(FIN | 1, b"abc");
    let (head, payload) = bytes.split_at_mut(3);
    assert_eq!(reader.next(&mut &mut *head, &SMALL), Ok(None));
    let event = reader.next(&mut &mut *payload, &SMALL);
    assert!(matches!(event, Ok(Some(Event::Text(Cow::Borrowed("abc"))))));
}

#[test]
fn a_caller_may_stop_after_any_event_and_go_on_with_the_rest() {
    let mut bytes = [frame(FIN | 1, b"a"), frame(FIN | 1, b"b")].concat();
    let mut reader = Reader::default();
    let mut input = &mut bytes[..];
    assert_eq!(reader.next(&mut input, &SMALL), Ok(Some(said("a"))));
    let kept = input.to_vec();
    assert_eq!(
        read_with(&mut reader, &kept, &SMALL),
        (vec![said("b")], None)
    );
}

// Fragmentation (section 5.4).

#[test]
fn control_frames_may_come_between_fragments() {
    let bytes = [
        frame(1, b"Hel"),
        frame(FIN | 9, b"now"),
        frame(0, b"l"),
        frame(FIN | 10, b""),
        frame(FIN, b"o"),
    ]
    .concat();
    let events = vec![
        Event::Ping(Cow::Borrowed(&b"now"[..])),
        Event::Pong(Cow::Borrowed(&b""[..])),
        said("Hello"),
    ];
    assert_eq!(read(&bytes), (events.clone(), None));
    for at in 0..bytes.len() {
        assert_eq!(read_pieces(&bytes, &[at], &SMALL), (events.clone(), None));
    }
}

#[test]
fn a_continuation_needs_a_message() {
    let whole = frame(FIN | 1, b"a");
    for stray in [frame(FIN, b"b"), frame(0, b"b")] {
        let refusal = Some(Refusal::UnexpectedContinuation);
        assert_eq!(read(&stray), (vec![], refusal));
        assert_eq!(
            read(&[&whole[..], &stray].concat()),
            (vec![said("a")], refusal)
        );
    }
}

#[test]
fn a_message_inside_a_fragmented_one_is_refused() {
    for opcode in [1, 2, FIN | 1, FIN | 2] {
        let bytes = [frame(1, b""), frame(opcode, b"b")].concat();
        assert_eq!(read(&bytes), only(Refusal::UnfinishedMessage));
    }
}

// Control frames (section 5.5).

#[test]
fn fragmented_control_frames_are_refused() {
    for opcode in [8, 9, 10] {
        assert_eq!(read(&frame(opcode, b"")), only(Refusal::FragmentedControl));
    }
}

#[test]
fn control_frames_above_125_bytes_are_refused() {
    for opcode in [8, 9, 10] {
        let bytes = frame(FIN | opcode, &[0; 126]);
        assert_eq!(read(&bytes), only(Refusal::LongControl));
        assert_eq!(read(&bytes[..2]), only(Refusal::LongControl));
    }
    let payload = Cow::Borrowed(&[0; 125][..]);
    assert_eq!(
        read(&frame(FIN | 9, &payload)),
        (vec![Event::Ping(payload)], None)
    );
}

#[test]
fn a_close_frame_may_have_a_code_and_a_reason() {
    assert_eq!(read(&frame(FIN | 8, b"")), (vec![Event::Close(None)], None));
    for code in [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1014, 3000, 4999] {
        let payload = [&u16::to_be_bytes(code)[..], "bye \u{e9}".as_bytes()].concat();
        let event = Event::Close(Some((code, "bye \u{e9}".into())));
        assert_eq!(read(&frame(FIN | 8, &payload)), (vec![event.clone()], None));
        assert_eq!(
            read_pieces(&frame(FIN | 8, &payload), &[8], &SMALL),
            (vec![event], None)
        );
    }
}

#[test]
fn damaged_close_frames_are_refused() {
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        let bytes = frame(FIN | 8, &u16::to_be_bytes(code));
        assert_eq!(read(&bytes), only(Refusal::CloseCode));
    }
    assert_eq!(read(&frame(FIN | 8, &[3])), only(Refusal::CloseCode));
    assert_eq!(read(&frame(FIN | 8, b"\x03\xe8\xff")), only(Refusal::Utf8));
}

#[test]
fn nothing_is_read_after_a_close_frame_or_a_refusal() {
    for (end, expected) in [(frame(FIN | 8, b""), 1), (frame(FIN, b""), 0)] {
        let mut reader = Reader::default();
        let bytes = [end, frame(FIN | 1, b"late")].concat();
        assert_eq!(read_with(&mut reader, &bytes, &SMALL).0.len(), expected);
        assert_eq!(
            read_with(&mut reader, &frame(FIN | 1, b"late"), &SMALL),
            (vec![], None)
        );
        assert!(reader.partial.is_none());
    }
}

// UTF-8 (section 8.1).

#[test]
fn characters_may_be_cut_by_fragments() {
    let text = "\u{e9}\u{20ac}\u{1f600}".as_bytes();
    for at in 0..=text.len() {
        let bytes = [frame(1, &text[..at]), frame(FIN, &text[at..])].concat();
        for cut in 0..bytes.len() {
            let read = read_pieces(&bytes, &[cut], &SMALL);
            assert_eq!(read, (vec![said("\u{e9}\u{20ac}\u{1f600}")], None));
        }
    }
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    for bad in [
        &b"\xff"[..],
        b"a\xc3",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
    ] {
        let bytes = frame(FIN | 1, bad);
        for cut in 0..bytes.len() {
            assert_eq!(read_pieces(&bytes, &[cut], &SMALL), only(Refusal::Utf8));
        }
    }
    assert_eq!(Refusal::Utf8.close_code(), 1007);
}

#[test]
fn bad_text_is_refused_before_its_message_ends() {
    assert_eq!(read(&frame(1, b"a\xffb")), only(Refusal::Utf8));
    let bytes = frame(FIN | 1, b"a\xffbcdef");
    assert_eq!(read(&bytes[..8]), only(Refusal::Utf8));
}

// Writing.

#[test]
fn written_frames_have_the_shortest_header() {
    for (len, header) in [
        (0, &[0x82, 0][..]),
        (125, &[0x82, 125]),
        (126, &[0x82, 126, 0, 126]),
        (65_535, &[0x82, 126, 255, 255]),
        (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let (bytes, size) = frame_header(Opcode::Binary, len);
        assert_eq!(&bytes[..size], header);
    }
    let mut out = Vec::new();
    append_frame(&mut out, Opcode::Text, b"2");
    append_pong(&mut out, b"x");
    append_close(&mut out, None);
    append_close(&mut out, Some(1009));
    assert_eq!(out, b"\x81\x012\x8a\x01x\x88\x00\x88\x02\x03\xf1");
}

// The handshake (section 4.2).

#[test]
fn the_key_of_the_standard_is_answered() {
    let upgrade = Upgrade {
        connection: "keep-alive, Upgrade",
        upgrade: "WebSocket",
        version: "13",
        key: "dGhlIHNhbXBsZSBub25jZQ==",
    };
    assert_eq!(
        upgrade.accept().as_deref(),
        Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    let key = upgrade.key;
    for (connection, upgrade, version, key, error) in [
        (
            "keep-alive",
            "websocket",
            "13",
            key,
            UpgradeError::NotWebSocket,
        ),
        ("upgrade", "h2c", "13", key, UpgradeError::NotWebSocket),
        ("upgrade", "websocket", "8", key, UpgradeError::Version),
        ("upgrade", "websocket", "", key, UpgradeError::Version),
        ("upgrade", "websocket", "13", "", UpgradeError::Key),
        ("upgrade", "websocket", "13", "c2hvcnQ=", UpgradeError::Key),
    ] {
        let damaged = Upgrade {
            connection,
            upgrade,
            version,
            key,
        };
        assert_eq!(damaged.accept(), Err(error));
    }
}

// Properties.

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn streams_are_read_as_tungstenite_reads_them(
        frames in prop::collection::vec(frames(), 0..6),
        damage in prop::option::weighted(0.5, damage()),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut stream = frames.concat();
        if let Some(damage) = damage {
            damage.apply(&mut stream);
        }
        let whole = read_with(&mut Reader::default(), &stream, &SMALL);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(&read_pieces(&stream, &cuts, &SMALL), &whole);

        let (mut events, refusal) = whole;
        let (their_events, their_end) = read_by_tungstenite(&stream);
        match refusal {
            None => {
                let end = match events.last() {
                    // The registry has had 1014 (bad gateway) since tungstenite's table was made.
                    Some(Event::Close(Some((1014, _)))) => {
                        events.pop();
                        End::Refused
                    }
                    Some(Event::Close(_)) => End::Closed,
                    _ => End::Waiting,
                };
                prop_assert_eq!((&events, end), (&their_events, their_end));
            }
            // Tungstenite takes lengths in any form, even where the form alone shows that a control
            // frame is too long; what came before must agree.
            Some(Refusal::Length | Refusal::LongControl) => {
                prop_assert!(their_events.starts_with(&events));
            }
            Some(_) => {
                // Tungstenite checks most of a frame only when it is complete. The longest
                // frame that it waits for is complete with this many bytes more.
                stream.resize(stream.len() + SMALL.message_bytes + Header::MAX, 0);
                let (their_events, their_end) = read_by_tungstenite(&stream);
                prop_assert_eq!(&events, &their_events);
                prop_assert_eq!(their_end, End::Refused);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_alike_wherever_they_are_cut(
        bytes: Vec<u8>,
        cuts in prop::collection::vec(0..100_usize, 0..6),
    ) {
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let whole = read_with(&mut Reader::default(), &bytes, &SMALL);
        prop_assert_eq!(read_pieces(&bytes, &cuts, &SMALL), whole);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Waiting,
    Closed,
    Refused,
}

fn read_by_tungstenite(stream: &[u8]) -> (Vec<Event<'static>>, End) {
    struct Ends(Cursor<Vec<u8>>);
    impl Read for Ends {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(into)
        }
    }
    impl Write for Ends {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let config = WebSocketConfig::default()
        .read_buffer_size(256)
        .max_message_size(Some(SMALL.message_bytes))
        .max_frame_size(Some(SMALL.message_bytes));
    let stream = Ends(Cursor::new(stream.to_vec()));
    let mut peer = WebSocket::from_raw_socket(stream, Role::Server, Some(config));
    let mut events = Vec::new();
    loop {
        let event = match peer.read() {
            Ok(Theirs::Text(text)) => Event::Text(text.to_string().into()),
            Ok(Theirs::Binary(bytes)) => Event::Binary(bytes.to_vec().into()),
            Ok(Theirs::Ping(bytes)) => Event::Ping(bytes.to_vec().into()),
            Ok(Theirs::Pong(bytes)) => Event::Pong(bytes.to_vec().into()),
            Ok(Theirs::Close(close)) => {
                let close = close.map(|close| {
                    (
                        u16::from(close.code),
                        Cow::Owned(close.reason.as_str().to_owned()),
                    )
                });
                // It reports a code that it refuses as if the client had sent this.
                if close
                    .as_ref()
                    .is_some_and(|(_, reason)| reason == "Protocol violation")
                {
                    return (events, End::Refused);
                }
                events.push(Event::Close(close));
                return (events, End::Closed);
            }
            Ok(Theirs::Frame(_)) => unreachable!("frames are only for writing"),
            Err(Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => return (events, End::Waiting),
            Err(_) => return (events, End::Refused),
        };
        events.push(event);
    }
}

/// A few frames that belong together, most of them valid.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        8 => ".{0,12}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..12),
        1 => (120..310_usize).prop_map(|len| vec![b'x'; len]),
    ];
    let control = (
        prop_oneof![Just(9_u8), Just(10)],
        prop::collection::vec(any::<u8>(), 0..130),
    )
        .prop_map(|(opcode, payload)| masked(FIN | opcode, &payload, MASK));
    let close = (900..5100_u16, "[a-z]{0,4}", 0..4_u8).prop_map(|(code, reason, form)| {
        let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
        let payload = if form == 0 { &payload[..0] } else { &payload };
        masked(FIN | 8, payload, MASK)
    });
    let data = (
        1..3_u8,
        payload,
        any::<[u8; 4]>(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..4),
    );
    let data = data
        .prop_map(|(opcode, payload, mask, splits)| fragmented(opcode, &payload, mask, &splits));
    let odd = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..4))
        .prop_map(|(first, payload)| masked(first, &payload, MASK));
    prop_oneof![12 => data, 3 => control, 1 => close, 1 => odd]
}

/// A message cut into fragments, some of them followed by a ping.
fn fragmented(
    opcode: u8,
    payload: &[u8],
    mask: [u8; 4],
    splits: &[(prop::sample::Index, bool)],
) -> Vec<u8> {
    let mut ends: Vec<_> = splits
        .iter()
        .map(|(at, ping)| (at.index(payload.len() + 1), *ping))
        .collect();
    ends.sort_unstable();
    let (mut out, mut start, mut opcode) = (Vec::new(), 0, opcode);
    for (end, ping) in ends {
        out.extend(masked(opcode, &payload[start..end], mask));
        if ping {
            out.extend(masked(FIN | 9, b"between", mask));
        }
        (start, opcode) = (end, 0);
    }
    out.extend(masked(FIN | opcode, &payload[start..], mask));
    out
}

#[derive(Debug)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index),
    Insert(prop::sample::Index, u8),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), 0..8_u32).prop_map(|(at, bit)| Damage::Flip(at, 1 << bit)),
        at().prop_map(Damage::Cut),
        at().prop_map(Damage::Remove),
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
    ]
}

impl Damage {
    fn apply(&self, stream: &mut Vec<u8>) {
        if stream.is_empty() {
            return;
        }
        match self {
            Self::Flip(at, bits) => *at.get_mut(stream) ^= bits,
            Self::Cut(at) => stream.truncate(at.index(stream.len())),
            Self::Remove(at) => drop(stream.remove(at.index(stream.len()))),
            Self::Insert(at, byte) => stream.insert(at.index(stream.len()), *byte),
        }
    }
}

// How the tests write and read.

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    masked(first, payload, MASK)
}

fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let (header, size) = frame_header(Opcode::Binary, payload.len());
    let mut out = header[..size].to_vec();
    out[0] = first;
    out[1] |= 0x80;
    out.extend(mask);
    out.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    out
}

fn said(text: &str) -> Event<'_> {
    Event::Text(Cow::Borrowed(text))
}

type Outcome = (Vec<Event<'static>>, Option<Refusal>);

fn only(refusal: Refusal) -> Outcome {
    (Vec::new(), Some(refusal))
}

fn read(bytes: &[u8]) -> Outcome {
    read_with(&mut Reader::default(), bytes, &LARGE)
}

fn read_pieces(bytes: &[u8], cuts: &[usize], limits: &Limits) -> Outcome {
    let mut reader = Reader::default();
    let mut events = Vec::new();
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([bytes.len()]);
    for (start, end) in starts.zip(ends) {
        let (more, refusal) = read_with(&mut reader, &bytes[start..end], limits);
        events.extend(more);
        if refusal.is_some() {
            return (events, refusal);
        }
    }
    (events, None)
}

fn read_with(reader: &mut Reader, bytes: &[u8], limits: &Limits) -> Outcome {
    let mut bytes = bytes.to_vec();
    let mut input = &mut bytes[..];
    let mut events = Vec::new();
    loop {
        match reader.next(&mut input, limits) {
            Ok(Some(event)) => events.push(owned(event)),
            Ok(None) => return (events, None),
            Err(refusal) => return (events, Some(refusal)),
        }
    }
}

fn owned(event: Event<'_>) -> Event<'static> {
    let bytes = |bytes: Cow<'_, [u8]>| Cow::Owned(bytes.into_owned());
    match event {
        Event::Text(text) => Event::Text(Cow::Owned(text.into_owned())),
        Event::Binary(payload) => Event::Binary(bytes(payload)),
        Event::Ping(payload) => Event::Ping(bytes(payload)),
        Event::Pong(payload) => Event::Pong(bytes(payload)),
        Event::Close(close) => {
            Event::Close(close.map(|(code, reason)| (code, Cow::Owned(reason.into_owned()))))
        }
    }
}
