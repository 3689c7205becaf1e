//! The default parser against captured packets and against itself.

use crate::args::Args;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{DecodeError as E, *};
use crate::{
    notation::{canonical, hex, unhex},
    socket_io::encode,
};

const LIMITS: Limits = Limits {
    json_depth: 100,
    attachments: 10,
    event_name_bytes: 1024,
    namespace_bytes: 2048,
};

fn vectors(part: &str) -> Vec<Value> {
    let file: Value =
        serde_json::from_str(include_str!("../../../tests/data/parser-vectors.json")).unwrap();
    file[part].as_array().unwrap().clone()
}

fn is_waiting(decoder: &Decoder) -> bool {
    decoder.partial.is_some()
}

fn one(text: &str) -> Result<Option<Packet<'_>>, DecodeError> {
    Decoder::default().text(text, &LIMITS)
}

#[test]
fn numbers_of_a_client_are_passed_on_in_the_form_of_all_nodes() {
    let text = r#"2["e",1.0,-0.0,{"a":[1.50,1e2,1e999,2.5]},"1.0"]"#;
    let packet = one(text).unwrap().unwrap();
    let expected = r#"[1,0,{"a":[1.5,100,null,2.5]},"1.0"]"#;
    assert_eq!(packet.to_args().json(), expected);
    assert_eq!(packet.payload().to_args().unwrap().json(), expected);
    let ack = one("37[1.0]").unwrap().unwrap();
    assert_eq!(ack.to_args().json(), "[1]");
}

/// The result of a sequence of messages: packets, then perhaps an error.
fn all(messages: &[Value]) -> (Vec<Packet<'_>>, Option<DecodeError>, bool) {
    let mut decoder = Decoder::default();
    let mut packets = Vec::new();
    for message in messages {
        let result = match message.as_str() {
            Some(text) => decoder.text(text, &LIMITS),
            None => decoder.binary(&unhex(message["bin_hex"].as_str().unwrap()), &LIMITS),
        };
        match result {
            Ok(packet) => packets.extend(packet),
            Err(error) => return (packets, Some(error), is_waiting(&decoder)),
        }
    }
    (packets, None, is_waiting(&decoder))
}

/// Puts binary in the notation of the vectors back into a payload.
fn inline(value: &mut Value, attachments: &[Bytes]) {
    if value.get("_placeholder") == Some(&Value::Bool(true)) && !attachments.is_empty() {
        let bytes = &attachments[value["num"].as_u64().unwrap() as usize];
        *value = json!({"$bin": hex(bytes)});
        return;
    }
    match value {
        Value::Array(values) => values
            .iter_mut()
            .for_each(|value| inline(value, attachments)),
        Value::Object(map) => map
            .values_mut()
            .for_each(|value| inline(value, attachments)),
        _ => {}
    }
}

fn described(packet: &Packet<'_>) -> Value {
    let mut description = json!({"type": packet.kind.number(), "nsp": packet.nsp});
    if let Some(id) = packet.id {
        description["id"] = json!(id);
    }
    if !packet.data.is_empty() {
        let mut data = serde_json::from_str(&packet.data).unwrap();
        inline(&mut data, &packet.attachments);
        description["data"] = data;
    }
    description
}

#[test]
fn captured_messages_decode_as_in_javascript_or_differ_on_purpose() {
    for vector in vectors("socketio_decode") {
        let messages = vector["messages"].as_array().unwrap();
        let (packets, error, waiting) = all(messages);
        match messages[0].as_str() {
            // Engine.IO hands no empty message on, so that Node.js closes, too.
            Some("") => assert_eq!(error, Some(DecodeError::Empty)),
            Some("5 1-[\"a\"]") => assert_eq!(error, Some(DecodeError::AttachmentCount)),
            // A space is the number 0 to JavaScript; here it is white space around the payload.
            Some("2 [\"a\"]") => assert_eq!((packets[0].id, error), (None, None)),
            Some("29007199254740993[\"a\"]") => {
                assert_eq!(packets[0].id, Some(9_007_199_254_740_993));
            }
            _ => {
                let found: Vec<_> = packets.iter().map(described).collect();
                assert_eq!(Value::from(found), vector["decoded"], "{vector}");
                assert_eq!(error.is_some(), vector.get("error").is_some(), "{vector}");
                assert_eq!(waiting, vector.get("incomplete").is_some(), "{vector}");
            }
        }
    }
}

/// The canonical arguments of a packet in the notation of the vectors, with the event's name.
fn arguments(data: &Value) -> (Option<String>, Args) {
    let mut attachments = Vec::new();
    let mut list = data.as_array().unwrap().clone();
    let name = list.first().and_then(Value::as_str).map(str::to_owned);
    if name.is_some() {
        list.remove(0);
    }
    let list = canonical(&Value::Array(list), &mut attachments);
    (
        name,
        Args::from_parts(list.to_string().into(), attachments).unwrap(),
    )
}

#[test]
fn packets_are_written_as_captured() {
    let mut written = 0;
    for vector in vectors("socketio_encode") {
        let (packet, messages) = (&vector["packet"], vector["messages"].as_array().unwrap());
        let (Some(nsp), data) = (packet["nsp"].as_str(), &packet["data"]) else {
            // An object with a JavaScript method.
            continue;
        };
        let mut out = Vec::new();
        let mut attachments = Vec::new();
        match packet["type"]
            .as_u64()
            .and_then(PacketKind::from_number)
            .unwrap()
        {
            PacketKind::Connect => {
                let data = packet.get("data").map(Value::to_string);
                encode::connect(&mut out, nsp, data.as_deref());
            }
            PacketKind::Disconnect => encode::disconnect(&mut out, nsp),
            PacketKind::ConnectError => encode::connect_error(&mut out, nsp, &data.to_string()),
            PacketKind::Event => {
                let (Some(name), args) = arguments(data) else {
                    // Our events have text for a name.
                    assert_eq!(data, &json!([1, 2]));
                    continue;
                };
                encode::event(&mut out, nsp, packet["id"].as_u64(), &name, &args);
                attachments = args.attachments().to_vec();
            }
            PacketKind::Ack => {
                // The first answer is an argument like the others.
                let (first, args) = arguments(data);
                let args = match first {
                    Some(_) => {
                        let rest = if args.is_empty() {
                            "]"
                        } else {
                            &args.json()[1..]
                        };
                        let comma = if args.is_empty() { "" } else { "," };
                        let json = format!("[{}{comma}{rest}", data[0]);
                        Args::from_parts(json.into(), args.attachments().to_vec()).unwrap()
                    }
                    None => args,
                };
                encode::ack(&mut out, nsp, packet["id"].as_u64().unwrap(), &args);
                attachments = args.attachments().to_vec();
            }
        }
        assert_eq!(
            String::from_utf8(out).unwrap(),
            messages[0].as_str().unwrap()
        );
        let expected: Vec<_> = messages[1..]
            .iter()
            .map(|message| unhex(message["bin_hex"].as_str().unwrap()))
            .collect();
        assert_eq!(attachments, expected);
        written += 1;
    }
    assert_eq!(written, 24);
}

#[test]
fn each_error_has_its_message_and_its_label() {
    let long_nsp = format!("0/{}", "x".repeat(2048));
    let long_name = format!("2[\"{}\"]", "x".repeat(1025));
    let deep = format!("2[\"a\",{}{}]", "[".repeat(100), "]".repeat(100));
    let many = format!("5{}-[]", "9".repeat(40));
    for (text, error) in [
        ("", E::Empty),
        ("7", E::UnknownType),
        ("é", E::UnknownType),
        (r#"50-["a"]"#, E::AttachmentCount),
        (r#"5-1-["a"]"#, E::AttachmentCount),
        (r#"51["a"]"#, E::AttachmentCount),
        (r#"511-["a"]"#, E::TooManyAttachments { limit: 10 }),
        (&many, E::TooManyAttachments { limit: 10 }),
        (&long_nsp, E::NamespaceTooLong { limit: 2048 }),
        (&long_name, E::EventNameTooLong { limit: 1024 }),
        (r#"218446744073709551616["a"]"#, E::AckId),
        (r#"2["a""#, E::Syntax),
        (r#"2["a"] x"#, E::Syntax),
        (&deep, E::TooDeep { limit: 100 }),
        ("2[]", E::Payload),
        ("2{}", E::Payload),
        ("2null", E::Payload),
        (r#"2[["a"]]"#, E::Payload),
        (r#"0["x"]"#, E::Payload),
        ("0null", E::Payload),
        ("1{}", E::Payload),
        ("3{}", E::Payload),
        (r#"2["disconnect"]"#, E::ReservedEvent),
        (r#"2["dis\u0063onnect"]"#, E::ReservedEvent),
        (r#"51-["a",{"_placeholder":true,"num":1}]"#, E::Placeholder),
        (
            r#"51-["a",{"_placeholder":true,"num":"0"}]"#,
            E::Placeholder,
        ),
    ] {
        assert_eq!(one(text), Err(error), "{text}");
        // The label is the name of the variant.
        let name = format!("{error:?}");
        let words = name.split(' ').next().unwrap().char_indices();
        let label = words.fold(String::new(), |label, (at, letter)| {
            let gap = if at > 0 && letter.is_uppercase() {
                "_"
            } else {
                ""
            };
            label + gap + &letter.to_lowercase().to_string()
        });
        assert_eq!(error.label(), label);
    }
    let mut decoder = Decoder::default();
    assert_eq!(decoder.binary(b"x", &LIMITS), Err(E::UnexpectedBinary));
    assert_eq!(decoder.text("51-[\"a\"]", &LIMITS), Ok(None));
    assert!(is_waiting(&decoder));
    assert_eq!(decoder.text("2[1]", &LIMITS), Err(E::UnexpectedText));
}

#[test]
fn limits_are_reached_before_they_are_passed() {
    let nsp = format!("/{}", "x".repeat(2047));
    assert_eq!(one(&format!("0{nsp}")).unwrap().unwrap().nsp, nsp);
    let name = "x".repeat(1024);
    let text = format!("2[\"{name}\"]");
    assert_eq!(one(&text).unwrap().unwrap().event.unwrap().name, name);
    one(&format!("2[\"a\",{}{}]", "[".repeat(99), "]".repeat(99))).unwrap();
    let text = format!("2{}[\"a\"]", u64::MAX);
    assert_eq!(one(&text).unwrap().unwrap().id, Some(u64::MAX));
}

#[test]
fn what_javascript_takes_without_complaint_is_taken() {
    for text in [
        "2",
        "2[1,2]",
        "3[]",
        "31[]",
        "3",
        "40",
        "4\"x\"",
        "0/chat",
        "0/chat,",
        "2[\"a\",1e999,\"\\ud800\"]",
        "2[\"\"]",
        "2[\"__proto__\",{\"__proto__\":1,\"__proto__\":2}]",
    ] {
        assert!(matches!(one(text), Ok(Some(_))), "{text}");
    }
    let twice = "51-[\"a\",{\"_placeholder\":true,\"num\":0},{\"_placeholder\":true,\"num\":0}]";
    for text in [twice, "51-[\"a\",1]", "51-"] {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.text(text, &LIMITS), Ok(None));
        let packet = decoder.binary(b"x", &LIMITS).unwrap().unwrap();
        assert_eq!(packet.attachments, ["x"]);
        assert!(!is_waiting(&decoder));
    }
}

#[test]
fn arguments_are_what_follows_the_name() {
    for (text, name, args) in [
        ("2[\"a\"]", Some("a"), "[]"),
        ("2[\"a\" ]", Some("a"), "[]"),
        ("2/n,5 [ \"a\" , 1 , [2] ] ", Some("a"), "[ 1 , [2] ]"),
        ("2[\"\\u0061\\n\",\"x\"]", Some("a\n"), "[\"x\"]"),
        ("2[\"\\ud800\",1]", Some("\u{fffd}"), "[1]"),
        ("2[7,1]", Some("7"), "[1]"),
        ("2", None, "[]"),
        ("31[\"a\",{}]", None, "[\"a\",{}]"),
        ("31[]", None, "[]"),
        ("31", None, "[]"),
        ("0{\"a\":1}", None, "[]"),
    ] {
        let packet = one(text).unwrap().unwrap();
        assert_eq!(
            packet.event.as_ref().map(|event| &*event.name),
            name,
            "{text}"
        );
        assert_eq!(packet.to_args().json(), args, "{text}");
        assert_eq!(packet.clone().into_owned().to_args().json(), args, "{text}");
    }
}

#[test]
fn an_event_without_attachments_is_read_in_place() {
    let packet = one("2/chat,12[\"message\",{\"a\":1}]").unwrap().unwrap();
    assert!(matches!(packet.nsp, Cow::Borrowed("/chat")));
    assert!(matches!(packet.data, Cow::Borrowed(_)));
    assert!(matches!(
        packet.event.unwrap().name,
        Cow::Borrowed("message")
    ));
    assert_eq!(packet.attachments.capacity(), 0);
    assert_eq!(size_of::<Decoder>(), size_of::<usize>());
}

fn any_args() -> impl Strategy<Value = Args> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let tree = leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    let attachments = prop::collection::vec(any::<Vec<u8>>(), 0..4);
    (prop::collection::vec(tree, 0..4), attachments).prop_map(|(mut list, attachments)| {
        for num in 0..attachments.len() {
            list.push(json!({"_placeholder": true, "num": num}));
        }
        let attachments = attachments.into_iter().map(Bytes::from).collect();
        Args::from_parts(Value::from(list).to_string().into(), attachments).unwrap()
    })
}

proptest! {
    #[test]
    fn decode_of_encode_is_the_packet(
        nsp in prop_oneof![Just("/".to_owned()), "/[^,]{0,20}"],
        name in any::<String>(),
        id in any::<Option<u64>>(),
        args in any_args(),
    ) {
        let mut text = Vec::new();
        encode::event(&mut text, &nsp, id, &name, &args);
        check_round_trip(&text, &args, |packet| {
            assert_eq!(packet.event.as_ref().unwrap().name, name);
            (packet.kind, packet.nsp.clone(), packet.id) == (PacketKind::Event, (&*nsp).into(), id)
        });
        let id = id.unwrap_or_default();
        let mut text = Vec::new();
        encode::ack(&mut text, &nsp, id, &args);
        check_round_trip(&text, &args, |packet| {
            (packet.kind, packet.nsp.clone(), packet.id) == (PacketKind::Ack, (&*nsp).into(), Some(id))
        });
    }

    #[test]
    fn any_messages_are_packets_or_errors_and_within_limits(
        messages in prop::collection::vec(
            prop_oneof![
                any::<String>().prop_map(Ok),
                "[0-7][0-9]{0,2}-?(/[a,]{0,2})?[0-9]{0,2}[\\[\\]{}\",:a1_ ]{0,12}".prop_map(Ok),
                Just(Ok("52-[\"a\",{\"_placeholder\":true,\"num\":1}]".to_owned())),
                any::<Vec<u8>>().prop_map(Err),
            ],
            0..6,
        ),
    ) {
        let mut decoder = Decoder::default();
        for message in &messages {
            let result = match message {
                Ok(text) => decoder.text(text, &LIMITS),
                Err(bytes) => decoder.binary(bytes, &LIMITS),
            };
            if let Ok(Some(packet)) = result {
                prop_assert!(!is_waiting(&decoder));
                prop_assert!(packet.attachments.len() <= LIMITS.attachments);
                prop_assert!(packet.nsp.len() <= LIMITS.namespace_bytes);
                packet.to_args();
            }
        }
    }
}

fn check_round_trip(text: &[u8], args: &Args, same: impl Fn(&Packet<'_>) -> bool) {
    let text = std::str::from_utf8(text).unwrap();
    let mut decoder = Decoder::default();
    let mut packet = decoder.text(text, &LIMITS).unwrap();
    for attachment in args.attachments() {
        assert_eq!(packet, None);
        packet = decoder.binary(attachment, &LIMITS).unwrap();
    }
    let packet = packet.unwrap();
    assert!(same(&packet), "{packet:?}");
    assert_eq!(packet.to_args(), *args);
}
