//! What the arguments of an event look like, and what types receive.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::prelude::*;
use roomcast_protocol::args::json::MAX_DEPTH;
use roomcast_protocol::args::{
    Args, ArgsError, FromArgs, IntoArgs, Payload, Value, from_json, placeholders,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use serde_json::value::RawValue;

fn json<T: Serialize + ?Sized>(value: &T) -> String {
    Args::encode(value).unwrap().json().to_owned()
}

#[test]
fn numbers_are_encoded_as_javascript_means_them() {
    let numbers = (1.0, -0.0, 2.5, 1e300, 0.1_f32, 3.0_f32, u128::MAX);
    let expected = "[1,0,2.5,1e+300,0.1,3,3.402823669209385e+38]";
    assert_eq!(json(&numbers), expected);
    let numbers = (f64::NAN, f64::INFINITY, f32::NEG_INFINITY, 1.5);
    assert_eq!(json(&numbers), "[null,null,null,1.5]");
    let big = (i128::from(u64::MAX), i128::MIN, u128::from(u64::MAX));
    let expected = "[18446744073709551615,-1.7014118346046923e+38,18446744073709551615]";
    assert_eq!(json(&big), expected);
}

#[test]
fn numbers_of_foreign_text_have_one_form_however_they_come_in() {
    let foreign = "[1.0,-0.0,[1e2],1e999,2.50]";
    let expected = "[1,0,[100],null,2.5]";
    let raw = RawValue::from_string(foreign.to_owned()).unwrap();
    assert_eq!(json(&(raw,)), format!("[{expected}]"));
    assert_eq!(args(foreign).json(), expected);
    let parts = Args::from_parts(Bytes::from_static(foreign.as_bytes()), Vec::new()).unwrap();
    assert_eq!(parts.json(), expected);

    let payload = r#"["event",1.0,1e999]"#;
    let typed = Payload::new(payload, r#"["event","#.len(), &[]);
    let (whole, beyond) = <(u8, Value)>::from_payload(&typed).unwrap();
    assert_eq!((whole, beyond), (1, Value::Nil));
    assert_eq!(from_json::<i64>("-3.0").unwrap(), -3);
    assert!(from_json::<i64>("-3.5").is_err());
    assert!(from_json::<f64>("1e999").is_err());
}

#[test]
fn half_of_an_emoji_is_passed_on_as_it_is_and_decoded_as_u_fffd() {
    let cut = r#"["a\ud83d",{"\udc00k":["\ud83d\ude00"]},null]"#;
    let received = args(cut);
    assert_eq!(received.json(), cut);
    let (text, object): (String, serde_json::Value) = received.decode().unwrap();
    assert_eq!(text, "a\u{fffd}");
    assert_eq!(object, serde_json::json!({"\u{fffd}k": ["😀"]}));
    assert_eq!(received.decode::<String>().unwrap(), "a\u{fffd}");
    assert_eq!(
        received.decode::<Value>().unwrap(),
        Value::from("a\u{fffd}")
    );

    let binary = r#"["\ud83d",{"_placeholder":true,"num":0}]"#;
    let received = Args::from_text(binary.into(), vec![Bytes::from_static(b"x")]).unwrap();
    let (text, bytes): (String, ByteBuf) = received.decode().unwrap();
    assert_eq!((&*text, &**bytes), ("\u{fffd}", &b"x"[..]));

    let token: BTreeMap<String, String> = from_json(r#"{"token":"\ud83d"}"#).unwrap();
    assert_eq!(token["token"], "\u{fffd}");
    assert!(from_json::<String>(r#""\ud83d" x"#).is_err());
}

/// Worker threads have a stack of 2 MiB.
fn on_a_worker(f: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    thread.spawn(f).unwrap().join().unwrap();
}

#[test]
fn typed_decoding_goes_as_deep_as_the_limit_and_no_deeper() {
    on_a_worker(|| {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        for attachments in [vec![], vec![Bytes::from_static(b"x")]] {
            let deepest = Args::from_text(nested(MAX_DEPTH).into(), attachments.clone()).unwrap();
            assert!(deepest.decode::<serde_json::Value>().is_ok());
            assert!(deepest.decode::<Value>().is_ok());
            let deeper = Args::from_text(nested(MAX_DEPTH + 1).into(), attachments).unwrap();
            assert!(deeper.decode::<serde_json::Value>().is_err());
            assert!(deeper.decode::<Value>().is_err());
        }
        let endless = Args::from_text(nested(1_000_000).into(), vec![]).unwrap();
        assert!(endless.decode::<serde_json::Value>().is_err());
        let broken = Args::from_text((nested(200) + "x]").into(), vec![]).unwrap();
        assert!(broken.decode::<serde_json::Value>().is_err());
    });
}

#[test]
fn messagepack_is_written_and_read_as_deep_as_the_limit() {
    use roomcast_protocol::msgpack::{Reader, TranscodeLimits, json_to_msgpack, read_args};

    on_a_worker(|| {
        let nested = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
        let args = Args::from_text(nested.into(), vec![]).unwrap();
        let mut out = Vec::new();
        json_to_msgpack(&mut out, Some("e"), args.json(), &[], MAX_DEPTH).unwrap();
        out.clear();
        json_to_msgpack(&mut out, None, args.json(), &[], MAX_DEPTH).unwrap();
        let limits = TranscodeLimits {
            depth: MAX_DEPTH,
            ..TranscodeLimits::default()
        };
        assert_eq!(read_args(&mut Reader::new(&out), limits).unwrap(), args);
        assert!(read_args(&mut Reader::new(&out), TranscodeLimits::default()).is_err());
    });
}

fn args(json: &'static str) -> Args {
    Args::from_parts(Bytes::from_static(json.as_bytes()), Vec::new()).unwrap()
}

fn binary_args(json: &'static str, attachments: &[&'static [u8]]) -> Args {
    let attachments = attachments
        .iter()
        .copied()
        .map(Bytes::from_static)
        .collect();
    Args::from_parts(Bytes::from_static(json.as_bytes()), attachments).unwrap()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Point {
    x: i32,
    y: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Name(String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Both((u8, Name));

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pair(u8, u8);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Shape {
    Empty,
    Round(u32),
    Flat(u32, u32),
    Raw { data: ByteBuf },
}

#[test]
fn a_tuple_is_the_list_and_unit_is_no_argument() {
    assert_eq!(json(&("a", 1, [true])), r#"["a",1,[true]]"#);
    assert_eq!(json(&()), "[]");
    assert_eq!(json(&("a",)), r#"["a"]"#);
    assert_eq!(json(&[1, 2]), "[1,2]");
    assert_eq!(json(&Both((1, Name("n".into())))), r#"[1,"n"]"#);
    assert_eq!(json(&Box::new(&(1, 2))), "[1,2]");
}

#[test]
fn anything_else_is_one_argument() {
    assert_eq!(json("a"), r#"["a"]"#);
    assert_eq!(json(&7), "[7]");
    assert_eq!(json(&true), "[true]");
    assert_eq!(json(&vec![1, 2]), "[[1,2]]");
    assert_eq!(json(&Some((1, 2))), "[[1,2]]");
    assert_eq!(json(&None::<u8>), "[null]");
    assert_eq!(json(&Pair(1, 2)), "[[1,2]]");
    assert_eq!(json(&Point { x: 1, y: None }), r#"[{"x":1,"y":null}]"#);
    assert_eq!(json(&BTreeMap::from([(1, 'a')])), r#"[{"1":"a"}]"#);
    assert_eq!(json(&Shape::Empty), r#"["Empty"]"#);
    assert_eq!(json(&Shape::Flat(1, 2)), r#"[{"Flat":[1,2]}]"#);
    assert_eq!(
        json(&serde_json::json!([1, {"a": []}])),
        r#"[[1,{"a":[]}]]"#
    );
    assert_eq!(json(&format_args!("{}-{}", 1, 2)), r#"["1-2"]"#);
}

#[test]
fn a_result_is_its_value_or_an_object_with_the_error() {
    assert_eq!(json(&Ok::<_, ()>((1, 2))), "[1,2]");
    assert_eq!(json(&Ok::<_, ()>(())), "[]");
    assert_eq!(json(&Ok::<_, ()>(vec![1])), "[[1]]");
    assert_eq!(json(&Err::<(), _>("no")), r#"[{"error":"no"}]"#);
    assert_eq!(json(&Err::<(), _>((1, 2))), r#"[{"error":[1,2]}]"#);
    // Only the outermost one is special.
    assert_eq!(json(&(Err::<(), _>("no"),)), r#"[{"Err":"no"}]"#);
}

#[test]
fn a_map_without_text_keys_is_an_error() {
    let map = BTreeMap::from([((1, 2), 3)]);
    assert!(matches!(Args::encode(&map), Err(ArgsError::Encode(_))));
}

#[test]
fn bytes_become_attachments_at_any_depth() {
    let value = (
        Bytes::from_static(b"\x01"),
        vec![Some(ByteBuf::from([2])), None],
        BTreeMap::from([("k", Value::Binary(vec![3]))]),
    );
    let encoded = Args::encode(&value).unwrap();
    assert_eq!(
        encoded.json(),
        concat!(
            r#"[{"_placeholder":true,"num":0},[{"_placeholder":true,"num":1},null],"#,
            r#"{"k":{"_placeholder":true,"num":2}}]"#
        )
    );
    assert_eq!(encoded.attachments(), [&b"\x01"[..], b"\x02", b"\x03"]);
    type Back = (Bytes, Vec<Option<ByteBuf>>, BTreeMap<String, Value>);
    let (first, second, third): Back = encoded.decode().unwrap();
    assert_eq!((first, second), (value.0, value.1));
    assert_eq!(third["k"], Value::Binary(vec![3]));
}

#[test]
fn a_single_binary_is_one_argument() {
    let encoded = Args::encode(&Bytes::from_static(b"abc")).unwrap();
    assert_eq!(encoded.json(), r#"[{"_placeholder":true,"num":0}]"#);
    assert_eq!(encoded.decode::<Bytes>().unwrap(), "abc");
}

#[test]
fn data_that_looks_like_a_placeholder_is_data_unless_there_are_attachments() {
    let lookalike = serde_json::json!({"_placeholder": true, "num": 7});
    let alone = Args::encode(&(&lookalike,)).unwrap();
    assert!(alone.attachments().is_empty());
    assert_eq!(alone.decode::<serde_json::Value>().unwrap(), lookalike);
    let valid = serde_json::json!({"_placeholder": true, "num": 0});
    for lookalike in [lookalike, valid] {
        let beside = Args::encode(&(lookalike, Bytes::from_static(b"x")));
        let ambiguous = matches!(
            beside,
            Err(ArgsError::AmbiguousPlaceholder { attachments: 1 })
        );
        assert!(ambiguous, "{beside:?}");
    }
}

#[test]
fn a_tuple_takes_arguments_missing_ones_are_null_and_surplus_is_ignored() {
    let three = args(r#"["a",1,{"x":1,"y":2.5}]"#);
    type Three = (String, u8, Point);
    let point = Point { x: 1, y: Some(2.5) };
    assert_eq!(three.decode::<Three>().unwrap(), ("a".into(), 1, point));
    assert_eq!(three.decode::<(String,)>().unwrap(), ("a".into(),));
    assert_eq!(three.decode::<String>().unwrap(), "a");
    let four: (String, u8, Point, Option<Vec<u8>>) = three.decode().unwrap();
    assert_eq!(four.3, None);
    assert_eq!(three.decode::<(String, u8, Point, ())>().unwrap().3, ());
    assert!(three.decode::<(String, u8, Point, String)>().is_err());
    three.decode::<()>().unwrap();
    assert_eq!(args("[1,2,3]").decode::<[u8; 2]>().unwrap(), [1, 2]);
    assert_eq!(
        args(r#"[1,"n",3]"#).decode::<Both>().unwrap(),
        Both((1, Name("n".into())))
    );
}

#[test]
fn what_is_no_tuple_takes_the_first_argument() {
    assert_eq!(args("[[1,2],3]").decode::<Vec<u8>>().unwrap(), [1, 2]);
    assert_eq!(args("[[1,2],3]").decode::<Pair>().unwrap(), Pair(1, 2));
    assert_eq!(
        args(r#"["n",3]"#).decode::<Name>().unwrap(),
        Name("n".into())
    );
    assert_eq!(
        args("[[1,2]]").decode::<Option<(u8, u8)>>().unwrap(),
        Some((1, 2))
    );
    assert_eq!(args("[]").decode::<Option<String>>().unwrap(), None);
    assert_eq!(args("[ ]").decode::<Value>().unwrap(), Value::Nil);
    assert!(args("[]").decode::<String>().is_err());
    assert_eq!(
        args(r#"[{"Flat":[1,2]}]"#).decode::<Shape>().unwrap(),
        Shape::Flat(1, 2)
    );
}

#[test]
fn broken_text_is_an_error_wherever_it_breaks() {
    for json in ["[1]]", "[1,]", "[1,x]", "[1][2]", "[[]", r#"["a]"#] {
        assert!(args(json).decode::<u8>().is_err(), "{json}");
        assert!(args(json).decode::<(u8,)>().is_err(), "{json}");
        assert!(args(json).decode::<()>().is_err(), "{json}");
        assert!(binary_args(json, &[b"x"]).decode::<u8>().is_err(), "{json}");
    }
}

#[test]
fn parts_are_checked_for_utf8_and_brackets() {
    let parts = |json: &'static [u8]| Args::from_parts(Bytes::from_static(json), Vec::new());
    assert!(matches!(parts(b"[\"\xff\"]"), Err(ArgsError::NotUtf8)));
    for json in [&b""[..], b"[", b"]", b"{}", b" []", b"[] ", b"null"] {
        assert!(
            matches!(parts(json), Err(ArgsError::NotAnArray)),
            "{json:?}"
        );
    }
    assert!(parts(b"[]").unwrap().is_empty());
    assert!(parts(b"[ \n]").unwrap().is_empty());
    assert!(!parts(b"[0]").unwrap().is_empty());
    assert!(Args::default().is_empty());
}

#[test]
fn with_attachments_types_decode_as_without() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Everything {
        data: ByteBuf,
        unit: Shape,
        newtype: Shape,
        tuple: Shape,
        raw: Shape,
        numbers: HashMap<u8, Name>,
        flags: BTreeMap<bool, Option<u8>>,
        #[serde(flatten)]
        point: Point,
    }
    let everything = binary_args(
        concat!(
            r#"["n",{"data":{"num":1,"_placeholder":true},"unit":"Empty","newtype":{"Round":3},"#,
            r#""tuple":{"Flat":[1,2]},"raw":{"Raw":{"data":{"_placeholder":true,"num":0}}},"#,
            r#""numbers":{"7":"seven"},"flags":{"true":1,"false":null},"x":-1,"y":2}]"#
        ),
        &[b"zero", b"one"],
    );
    let (name, found): (Name, Everything) = everything.decode().unwrap();
    let expected = Everything {
        data: ByteBuf::from("one"),
        unit: Shape::Empty,
        newtype: Shape::Round(3),
        tuple: Shape::Flat(1, 2),
        raw: Shape::Raw {
            data: ByteBuf::from("zero"),
        },
        numbers: HashMap::from([(7, Name("seven".into()))]),
        flags: BTreeMap::from([(true, Some(1)), (false, None)]),
        point: Point {
            x: -1,
            y: Some(2.0),
        },
    };
    assert_eq!((name, found), (Name("n".into()), expected));
    everything.decode::<()>().unwrap();
    assert_eq!(everything.decode::<String>().unwrap(), "n");
    assert!(everything.decode::<(Name, Shape)>().is_err());
}

#[test]
fn a_placeholder_without_an_attachment_is_an_error() {
    for json in [
        r#"[{"_placeholder":true,"num":1}]"#,
        r#"[{"_placeholder":true,"num":"0"}]"#,
        r#"[{"_placeholder":true,"num":-1}]"#,
        r#"[{"_placeholder":true,"num":0.5}]"#,
        r#"[{"_placeholder":true}]"#,
    ] {
        assert!(
            binary_args(json, &[b"x"]).decode::<Value>().is_err(),
            "{json}"
        );
        assert!(
            matches!(placeholders(json, 1), Err(ArgsError::Placeholder)),
            "{json}"
        );
        assert_eq!(placeholders(json, 0).unwrap(), 0);
    }
    let twice = r#"[{"_placeholder":true,"num":0},[{"_placeholder":true,"num":0}]]"#;
    assert_eq!(placeholders(twice, 2).unwrap(), 2);
    let (first, second): (Bytes, (Bytes,)) = binary_args(twice, &[b"x", b"y"]).decode().unwrap();
    assert_eq!((first, second.0), (Bytes::from("x"), Bytes::from("x")));
}

#[test]
fn arguments_pass_through_unchanged() {
    fn emit(args: impl IntoArgs) -> Args {
        args.into_args().unwrap()
    }
    let original = binary_args(
        r#"[ {"_placeholder":true,"num":0},1e999]"#,
        &[b"x", b"unused"],
    );
    assert_eq!(emit(&original), original);
    assert_eq!(emit(original.clone()), original);
    assert_eq!(Args::from_args(&original).unwrap(), original);
    assert_eq!(emit(("a", 1)).json(), r#"["a",1]"#);
    let borrowed = &("a", 1);
    assert_eq!(emit(borrowed), emit(("a", 1)));
    assert_eq!(emit("a").json(), r#"["a"]"#);
    assert_eq!(<(u8, u8)>::from_args(&args("[1,2]")).unwrap(), (1, 2));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e300..1e300_f64).prop_map(Value::F64),
        any::<String>().prop_map(Value::from),
        any::<Vec<u8>>().prop_map(Value::Binary),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::btree_map(any::<String>(), inner, 0..5).prop_map(|map| {
                Value::Map(
                    map.into_iter()
                        .map(|(key, value)| (key.into(), value))
                        .collect(),
                )
            }),
        ]
    })
}

proptest! {
    #[test]
    fn decode_of_encode_is_the_value(value in any_value()) {
        // In a tuple, so that nil is an argument, too.
        let encoded = Args::encode(&(&value,)).unwrap();
        prop_assert_eq!(encoded.decode::<(Value,)>().unwrap().0, value);
    }

    #[test]
    fn the_parts_of_a_list_of_values_are_its_values(
        values in prop::collection::vec(any_value(), 0..6),
        first in 0_usize..7,
    ) {
        let args = Args::from_values(values.clone()).unwrap();
        prop_assert_eq!(args.len().unwrap(), values.len());
        let one_by_one: Result<Vec<Value>, _> = args.iter().unwrap().collect();
        prop_assert_eq!(one_by_one.unwrap(), &values[..]);
        let rest: Result<Vec<Value>, _> = args.skip(first).unwrap().iter().unwrap().collect();
        prop_assert_eq!(rest.unwrap(), &values[first.min(values.len())..]);
    }

    #[test]
    fn any_text_between_brackets_decodes_or_fails(
        inner in "[\\[\\]{}\",:0-9eE.+\\-truefalsn_placeholderu ]{0,60}",
        attachments in 0_usize..3,
    ) {
        let attachments = vec![Bytes::from_static(b"x"); attachments];
        let args = Args::from_parts(format!("[{inner}]").into(), attachments).unwrap();
        let decoded = args.decode::<serde_json::Value>();
        let plain = serde_json::from_str::<Vec<serde_json::Value>>(args.json());
        if args.attachments().is_empty() {
            prop_assert_eq!(decoded.is_ok(), plain.is_ok());
        }
    }
}
