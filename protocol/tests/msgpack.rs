//! The dialect of notepack.io, against vectors captured from versions 2 and 3, and hostile bytes.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/notation.rs"]
mod notation;

use bytes::Bytes;
use notation::{canonical, hex, unhex};
use proptest::prelude::*;
use roomcast_protocol::args::{Args, ArgsError, Value as Tree};
use roomcast_protocol::msgpack::{
    MsgpackError, Reader, TranscodeLimits, json_to_msgpack, msgpack_to_json, read_args, read_event,
};
use serde_json::{Value, json};

const LIMITS: TranscodeLimits = TranscodeLimits {
    depth: 32,
    attachments: 10,
};

fn vectors(part: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(include_str!("data/msgpack-vectors.json")).unwrap();
    file[part].as_array().unwrap().clone()
}

fn encode(json: &str, attachments: &[Bytes]) -> Result<Vec<u8>, MsgpackError> {
    let mut out = Vec::new();
    json_to_msgpack(&mut out, None, json, attachments, LIMITS.depth).map(|()| out)
}

fn decode(bytes: &[u8]) -> Result<(String, Vec<Bytes>), MsgpackError> {
    let mut reader = Reader::new(bytes);
    let value = msgpack_to_json(&mut reader, LIMITS)?;
    reader.finish()?;
    Ok(value)
}

#[test]
fn values_are_written_as_notepack_3_does_or_differ_on_purpose() {
    let mut checked = 0;
    for vector in vectors("encode") {
        let (value, expected) = (&vector["value"], vector["hex_v3"].as_str().unwrap());
        let mut attachments = Vec::new();
        let mut json = canonical(value, &mut attachments).to_string();
        // Neither dates nor non-finite numbers exist in JSON: they leave as what JSON made of them.
        let mut expected = expected.to_owned();
        if let Some(date) = value.get("$date") {
            expected = "b8".to_owned() + &hex(date.as_str().unwrap().as_bytes());
        }
        if value.get("$number").is_some_and(|number| number != "-0") {
            expected = "c0".to_owned();
        }
        if value.as_f64() == Some(1e300) {
            // notepack writes the integer 0.
            expected = "cb7e37e43c8800759c".to_owned();
        }
        if value == &json!(9_223_372_036_854_776_000_u64) {
            // JavaScript's way to write 2^63; every digit counts here.
            expected = "cf80000000000000c0".to_owned();
        }
        if let Some(units) = value.get("$utf16") {
            // notepack pairs the surrogate with the next unit.
            let units = units.as_array().unwrap();
            let unit = |unit: &Value| format!("\\u{:0>4}", unit.as_str().unwrap());
            json = format!("\"{}\"", units.iter().map(unit).collect::<String>());
            expected = if units.len() == 1 {
                "a3efbfbd"
            } else {
                "a561efbfbd62"
            }
            .to_owned();
        }
        assert_eq!(
            hex(&encode(&json, &attachments).unwrap()),
            expected,
            "{value}"
        );
        checked += 1;
    }
    assert_eq!(checked, 65);
}

#[test]
fn what_both_versions_write_is_read_back() {
    for vector in vectors("encode") {
        let value = &vector["value"];
        if value.get("$utf16").is_some() || value.as_f64() == Some(1e300) {
            continue;
        }
        let mut attachments = Vec::new();
        let expected = canonical(value, &mut attachments);
        for version in ["hex_v3", "hex_v2"] {
            let bytes = unhex(vector[version].as_str().unwrap());
            let (json, found) = decode(&bytes).unwrap();
            assert_eq!(found, attachments, "{value}");
            let mut found: Value = serde_json::from_str(&json).unwrap();
            if value.get("b").is_some() && version == "hex_v2" {
                // Version 2 sends undefined members, which have to become something in JSON.
                assert_eq!(found["a"], Value::Null);
                found.as_object_mut().unwrap().shift_remove("a");
            }
            if value.as_f64().is_some_and(|number| number > 9e18) {
                assert_eq!(found.as_f64(), expected.as_f64(), "{value}");
            } else {
                assert_eq!(found, expected, "{value}");
            }
        }
    }
}

#[test]
fn vectors_are_read_as_notepack_3_does() {
    for vector in vectors("decode") {
        let bytes = unhex(vector["hex"].as_str().unwrap());
        let Some(expected) = vector.get("v3") else {
            assert!(decode(&bytes).is_err(), "{vector}");
            continue;
        };
        let mut attachments = Vec::new();
        let expected = canonical(expected, &mut attachments);
        let (json, found) = decode(&bytes).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&json).unwrap(),
            expected,
            "{vector}"
        );
        assert_eq!(found, attachments, "{vector}");
        // Version 2 knows no timestamps of type -1; all else it reads the same.
        if vector["v2"] != vector["v3"] {
            assert!(json.contains("T"), "{vector}");
        }
    }
}

#[test]
fn placeholders_become_binary_in_their_place() {
    let attachments = [Bytes::from_static(b"\x01"), Bytes::from_static(b"\x02\x02")];
    let json = concat!(
        r#"[{"num":1,"x":[{"y":{}}],"_placeholder":true},{"a":{"_placeholder":true,"num":0}},"#,
        r#"{"_placeholder":false,"num":5},[[]]]"#
    );
    let expected = "94c402020281a161c4010182ac5f706c616365686f6c646572c2a36e756d059190";
    assert_eq!(hex(&encode(json, &attachments).unwrap()), expected);
    let alone = encode(r#"{"_placeholder":true,"num":5}"#, &[]).unwrap();
    assert_eq!(hex(&alone), "82ac5f706c616365686f6c646572c3a36e756d05");
    let out_of_range = encode(r#"[{"_placeholder":true,"num":5}]"#, &attachments);
    assert!(matches!(
        out_of_range,
        Err(MsgpackError::Args(ArgsError::Placeholder))
    ));
}

#[test]
fn smuggled_placeholders_are_refused() {
    let smuggled = encode(
        r#"[{"_placeholder":true,"num":99},{"_placeholder":true,"num":0}]"#,
        &[],
    );
    let mut bytes = smuggled.unwrap();
    assert_eq!(decode(&bytes).unwrap().1.len(), 0);
    bytes[0] = 0x93;
    bytes.extend_from_slice(&[0xc4, 0x01, 0x07]);
    let refused = |error| {
        matches!(
            error,
            MsgpackError::Args(ArgsError::AmbiguousPlaceholder { attachments: 1 })
        )
    };
    assert!(decode(&bytes).is_err_and(refused));
    assert!(read_args(&mut Reader::new(&bytes), LIMITS).is_err_and(refused));
}

#[test]
fn numbers_are_written_by_their_value() {
    for (json, expected) in [
        ("1.0", "01"),
        ("1e3", "cd03e8"),
        ("-0", "00"),
        ("18446744073709551615", "cfffffffffffffffff"),
        ("18446744073709551616", "cb43f0000000000000"),
        ("-9223372036854775808", "d38000000000000000"),
        ("1e999", "cb7ff0000000000000"),
    ] {
        assert_eq!(hex(&encode(json, &[]).unwrap()), expected, "{json}");
    }
    for (bytes, expected) in [
        ("cb4008000000000000", "3"),
        ("cb8000000000000000", "0"),
        ("cb4340000000000000", "9007199254740992"),
        ("cb7e37e43c8800759c", "1e+300"),
        ("cb7ff8000000000000", "null"),
        ("ca3fc00000", "1.5"),
    ] {
        let (json, _) = decode(&unhex(bytes)).unwrap();
        assert_eq!(json.parse::<f64>().ok(), expected.parse().ok(), "{bytes}");
        assert_eq!(json.contains('.'), expected.contains('.'), "{bytes}");
    }
}

#[test]
fn keys_that_are_not_text_become_it() {
    // {1: 0, nil: 0, true: 0, 1.5: 0, bin "b": 0, -1: 0, undefined: 0}
    let bytes = unhex("870100c000c300cb3ff800000000000000c4016200ff00d4000000");
    let (json, attachments) = decode(&bytes).unwrap();
    assert_eq!(
        json,
        r#"{"1":0,"null":0,"true":0,"1.5":0,"b":0,"-1":0,"undefined":0}"#
    );
    assert!(attachments.is_empty());
    for bytes in ["819000", "818000", "81d4050100"] {
        let error = decode(&unhex(bytes)).unwrap_err();
        assert!(matches!(error, MsgpackError::UnsupportedKey), "{bytes}");
    }
}

#[test]
fn events_carry_their_name_in_front_of_the_arguments() {
    let args = Args::encode(&(1, Bytes::from_static(b"\x01\x02"))).unwrap();
    let (json, attachments) = (args.json(), args.attachments());
    let mut out = Vec::new();
    json_to_msgpack(&mut out, Some("echo"), json, attachments, 8).unwrap();
    assert_eq!(hex(&out), "93a46563686f01c4020102");
    let (name, read) = read_event(&mut Reader::new(&out), LIMITS).unwrap();
    assert_eq!((&*name, read), ("echo", args.clone()));
    let out = encode(json, attachments).unwrap();
    assert_eq!(hex(&out), "9201c4020102");
    assert_eq!(read_args(&mut Reader::new(&out), LIMITS).unwrap(), args);
    let (name, read) = read_event(&mut Reader::new(&[0x92, 5, 1]), LIMITS).unwrap();
    assert_eq!((&*name, read.json()), ("5", "[1]"));
    for bytes in ["90", "91c0", "9190", "80", "01", "92a161"] {
        assert!(
            read_event(&mut Reader::new(&unhex(bytes)), LIMITS).is_err(),
            "{bytes}"
        );
    }
}

#[test]
fn limits_are_exact() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let deepest = encode(&nested(LIMITS.depth), &[]).unwrap();
    decode(&deepest).unwrap();
    assert!(encode(&nested(LIMITS.depth + 1), &[]).is_err());
    let deeper = [&[0x91], &*deepest].concat();
    assert!(matches!(
        decode(&deeper),
        Err(MsgpackError::TooDeep { limit: 32 })
    ));
    let binaries = |count: u8| [&[0xdc, 0, count], &*[0xc4, 0].repeat(count.into())].concat();
    assert_eq!(decode(&binaries(10)).unwrap().1.len(), 10);
    let error = decode(&binaries(11)).unwrap_err();
    assert!(matches!(
        error,
        MsgpackError::TooManyAttachments { limit: 10 }
    ));
}

#[test]
fn an_extension_counts_as_the_array_that_it_becomes() {
    let inside = |arrays: usize| [&vec![0x91; arrays][..], &[0xd4, 5, 0]].concat();
    let (json, attachments) = decode(&inside(LIMITS.depth - 1)).unwrap();
    // In JSON, its bytes are one more level.
    let mut again = Vec::new();
    json_to_msgpack(&mut again, None, &json, &attachments, LIMITS.depth + 1).unwrap();
    assert_eq!(decode(&again).unwrap(), (json, attachments));
    assert!(matches!(
        decode(&inside(LIMITS.depth)),
        Err(MsgpackError::TooDeep { limit: 32 })
    ));
}

#[test]
fn endless_nesting_neither_overflows_nor_is_accepted() {
    let bytes = vec![0x91; 1_000_000];
    assert!(decode(&bytes).is_err());
    assert!(Reader::new(&bytes).skip().is_err());
    let mut bytes = vec![0x91; 100_000];
    bytes.push(0xc0);
    let mut reader = Reader::new(&bytes);
    reader.skip().unwrap();
    reader.finish().unwrap();
}

#[test]
fn lengths_beyond_the_bytes_are_an_end() {
    for bytes in [
        "ddffffffff",
        "dfffffffff",
        "dbffffffff",
        "c6ffffffff00",
        "c9ffffffff00",
        "92c0",
        "df0000000200",
    ] {
        let bytes = unhex(bytes);
        assert!(
            matches!(decode(&bytes), Err(MsgpackError::UnexpectedEnd)),
            "{}",
            hex(&bytes)
        );
        assert!(matches!(
            Reader::new(&bytes).skip(),
            Err(MsgpackError::UnexpectedEnd)
        ));
    }
    // Each head promises what the next ones would have to hold as well.
    let bytes = [0xdd, 0x00, 0x00, 0x00, 0x40].repeat(16);
    assert!(Reader::new(&bytes).skip().is_err());
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        Just(Tree::Nil),
        any::<bool>().prop_map(Tree::from),
        any::<u64>().prop_map(Tree::from),
        any::<i64>().prop_map(Tree::from),
        any::<String>().prop_map(Tree::from),
        (0.1..0.9_f64).prop_map(Tree::F64),
        any::<[u8; 3]>().prop_map(|bytes| Tree::Binary(bytes.into())),
    ];
    leaf.prop_recursive(4, 24, 20, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Tree::Array),
            prop::collection::vec((any::<String>().prop_map(Tree::from), inner), 0..20)
                .prop_map(Tree::Map),
        ]
    })
}

proptest! {
    /// The reference is `rmpv`, which knows nothing of our code.
    #[test]
    fn another_implementation_reads_what_is_written(tree in any_tree()) {
        let args = Args::encode(&(&tree,)).unwrap();
        let mut out = Vec::new();
        json_to_msgpack(&mut out, None, args.json(), args.attachments(), 32).unwrap();
        let mut expected = Vec::new();
        rmpv::encode::write_value(&mut expected, &Tree::Array(vec![tree])).unwrap();
        prop_assert_eq!(&out, &expected);
        let limits = TranscodeLimits::default();
        let back = read_args(&mut Reader::new(&out), limits).unwrap();
        prop_assert_eq!(back, args);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut reader = Reader::new(&bytes);
        if reader.skip().is_ok() {
            let mut other = Reader::new(&bytes);
            if let Ok((json, attachments)) = msgpack_to_json(&mut other, LIMITS) {
                prop_assert_eq!(reader.remaining(), other.remaining());
                prop_assert!(attachments.len() <= LIMITS.attachments);
                serde_json::from_str::<serde::de::IgnoredAny>(&json).unwrap();
            }
        } else {
            prop_assert!(decode(&bytes).is_err());
        }
    }

    #[test]
    fn any_text_is_written_or_refused(json in "[\\[\\]{}\",:0-9eE.+\\-truefalsnu\\\\ ]{0,40}") {
        let written = encode(&json, &[]);
        if serde_json::from_str::<Value>(&json).is_ok() {
            let bytes = written.unwrap();
            decode(&bytes).unwrap();
        }
    }
}
