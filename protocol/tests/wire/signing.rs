//! Signed messages: what is sealed is opened with every key of the receiver, anything else is not, and a
//! Node server decodes it without harm.

use proptest::{collection::vec, prelude::*};
use roomcast_protocol::{
    args::IntoArgs,
    channel::{Dialect, Kind, Mode},
    message::{Broadcast, Message, Position},
    msgpack::Reader,
    signing::{KeysError, Sealed, SigningKeys, Stamp},
    wire::{Incoming, Parser, Wire, placed},
};

use crate::captures::{classic, sharded, target, wire_as};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

const STAMP: Stamp<'_> = Stamp {
    sender: "AAAAbbbbccccddddeeee",
    number: 7,
    time: 1_700_000_000_123,
};

fn keys(text: &str) -> SigningKeys {
    text.parse().unwrap()
}

fn wires() -> [Wire; 3] {
    [
        classic(),
        wire_as("p", Dialect::Classic, Parser::Json),
        sharded(Mode::Dynamic),
    ]
}

#[test]
fn it_is_what_other_languages_compute() {
    // key=$(printf 'roomcast message 1' | openssl dgst -sha256 -mac hmac -macopt key:$KEY | cut -d' ' -f2)
    // printf '\x93\x14\0\0\0\0\0\0\0\x07\0\0\x01\x8b\xcf\xe5\x68\x7b\0\0\0\x04AAAAbbbbccccddddeeeep#/#hello' |
    //   openssl dgst -sha256 -mac hmac -macopt hexkey:$key
    let sealed = keys(KEY).seal(STAMP, &["p#", "/#"], b"hello");
    assert_eq!(&sealed[..4], b"\x93\xc4\x35\x01");
    let hex: String = sealed[20..36].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, "d96ea5b778b0ddd768aba9f366403169");
    assert_eq!(
        &sealed[36..],
        b"AAAAbbbbccccddddeeee\xc0\xc6\0\0\0\x05hello"
    );
}

#[test]
fn keys_rotate_in_pairs() {
    let sealed = keys(&format!("{KEY}, {OTHER}")).seal(STAMP, &["c"], b"m");
    let sealed = Sealed::read(&sealed).unwrap();
    for receiver in [KEY, &format!("{OTHER},{KEY}")] {
        assert!(keys(receiver).verify(&sealed, "c"), "{receiver}");
    }
    assert!(
        !keys(OTHER).verify(&sealed, "c"),
        "the second key signs nothing"
    );
}

#[test]
fn a_key_is_long_and_is_not_printed() {
    let two = format!("{:?}", keys(&format!("{KEY},{OTHER}")));
    assert_eq!(two, "SigningKeys(2 keys)");
    let refused = |text: &str| text.parse::<SigningKeys>().unwrap_err();
    for short in [
        "",
        "short",
        &KEY[1..],
        &format!("{KEY},"),
        &format!("{KEY},short"),
    ] {
        assert_eq!(refused(short), KeysError::TooShort, "{short}");
    }
    assert_eq!(refused(&format!("{KEY},{KEY},{KEY}")), KeysError::TooMany);
}

#[test]
fn a_seal_is_for_one_channel_however_its_name_is_cut() {
    let sealed = keys(KEY).seal(STAMP, &["p#", "/#", "", "room#"], b"m");
    let sealed = Sealed::read(&sealed).unwrap();
    assert!(keys(KEY).verify(&sealed, "p#/#room#"));
    for other in ["p#/#", "p#/#rooms#", "p#/#room", ""] {
        assert!(!keys(KEY).verify(&sealed, other), "{other}");
    }
}

#[test]
fn a_node_server_decodes_it_and_finds_no_packet() {
    for wire in wires() {
        let head = wire.unplaced("/", &broadcast(&[])).unwrap();
        let position = Position {
            id: 1,
            time: 2,
            after: Some(1),
        };
        let keys = keys(KEY);
        let plain = keys.seal(STAMP, &[&head.channel], b"anything");
        let logged = keys.seal_head(STAMP, &[&head.channel], &head.payload);
        let logged = placed(&logged, position);
        for (payload, elements) in [(plain, 3), (logged, 4)] {
            // notepack refuses bytes after the value.
            let value = rmpv::decode::read_value(&mut &payload[..]).unwrap();
            let mut rest = Reader::new(&payload);
            rest.skip().unwrap();
            rest.finish().unwrap();
            let list = value.as_array().unwrap();
            assert_eq!((list.len(), list[1].is_nil()), (elements, true));
        }
    }
}

#[test]
fn a_sender_with_a_long_name_is_cut_off() {
    let long = "ä".repeat(200);
    let stamp = Stamp {
        sender: &long,
        ..STAMP
    };
    let sealed = keys(KEY).seal(stamp, &["c"], b"m");
    let sealed = Sealed::read(&sealed).unwrap();
    assert_eq!(sealed.stamp().sender.len(), 222);
    assert!(keys(KEY).verify(&sealed, "c"));
}

fn broadcast(rooms: &[&str]) -> Broadcast {
    Broadcast {
        target: target(rooms, &[]),
        event: "e".into(),
        args: ("text", 1).into_args().unwrap(),
    }
}

#[test]
fn a_broadcast_of_a_log_is_read_with_its_position_in_every_form() {
    for wire in wires() {
        for after in [None, Some(6)] {
            let position = Position {
                id: 7,
                time: 1_700_000_000_100,
                after,
            };
            let broadcast = broadcast(&["r"]);
            let head = wire.unplaced("/", &broadcast).unwrap();
            let sealed = keys(KEY).seal_head(STAMP, &[&head.channel], &head.payload);
            let published = placed(&sealed, position);
            let published = Sealed::read(&published).unwrap();
            let stored = Sealed::read_head(&sealed, position).unwrap();
            for sealed in [published, stored] {
                assert!(keys(KEY).verify(&sealed, &head.channel));
                assert_eq!(sealed.position(), Some(position));
                let read = wire.read("/", Kind::Broadcast, &sealed.message()).unwrap();
                let expected = Incoming::Message {
                    message: Message::Broadcast(broadcast.clone()),
                    confirm: None,
                    position: Some(position),
                };
                assert_eq!(read, expected);
            }
            assert_eq!(Sealed::read(&sealed), None, "it has no position yet");
        }
    }
    let plain = keys(KEY).seal(STAMP, &["c"], b"m");
    let position = Position {
        id: 1,
        time: 1,
        after: None,
    };
    assert_eq!(Sealed::read_head(&plain, position), None);
}

proptest! {
    #[test]
    fn what_is_sealed_is_opened(
        (sender, number, time) in (".{0,40}", any::<u64>(), any::<u64>()),
        channel in ".{0,20}",
        message in vec(any::<u8>(), 0..300),
    ) {
        let stamp = Stamp { sender: &sender, number, time };
        let bytes = keys(KEY).seal(stamp, &[&channel], &message);
        let sealed = Sealed::read(&bytes).unwrap();
        prop_assert_eq!(sealed.stamp(), stamp);
        prop_assert_eq!(&*sealed.message(), &message[..]);
        prop_assert_eq!(sealed.as_sealed(), &message[..]);
        prop_assert!(keys(KEY).verify(&sealed, &channel));
        prop_assert!(!keys(OTHER).verify(&sealed, &channel));
    }

    #[test]
    fn what_was_changed_or_cut_anywhere_is_not_accepted(
        message in vec(any::<u8>(), 0..40),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
        is_logged: bool,
    ) {
        let keys = keys(KEY);
        let bytes = if is_logged {
            let head = keys.seal_head(STAMP, &["c"], &message);
            placed(&head, Position { id: 1, time: 2, after: Some(3) })
        } else {
            keys.seal(STAMP, &["c"], &message)
        };
        // The position is the log's, and is not signed.
        let signed = bytes.len() - if is_logged { 28 } else { 0 };
        let at = at.index(signed);
        let mut changed = bytes.clone();
        changed[at] ^= 1 << bit;
        let accepted = |bytes: &[u8]| {
            Sealed::read(bytes).is_some_and(|sealed| keys.verify(&sealed, "c"))
        };
        prop_assert!(accepted(&bytes));
        prop_assert!(!accepted(&changed));
        prop_assert!(!accepted(&bytes[..at]));
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(!accepted(&longer));
    }

    #[test]
    fn any_bytes_do_no_harm(mut bytes in vec(any::<u8>(), 0..120), beginning in 0..90_usize) {
        let sealed = keys(KEY).seal(STAMP, &["c"], b"message");
        let kept = beginning.min(sealed.len());
        bytes.splice(0..0, sealed[..kept].iter().copied());
        if let Some(read) = Sealed::read(&bytes) {
            let _ = read.message();
            prop_assert!(!keys(KEY).verify(&read, "c") || bytes == sealed);
        }
    }
}
