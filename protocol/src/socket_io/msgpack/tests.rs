//! The MessagePack parser against a captured session, and against hostile maps.

use bytes::Bytes;
use proptest::prelude::*;

use super::{DecodeError as E, *};
use crate::msgpack::json_to_msgpack;
use crate::notation::{hex, unhex};
use crate::socket_io::connect::{Dialect, connect_error, connect_reply, unknown_namespace};

const LIMITS: Limits = Limits {
    json_depth: 100,
    attachments: 10,
    event_name_bytes: 1024,
    namespace_bytes: 2048,
};

fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    hex(&out)
}

fn decoded(hex: &str) -> Result<Packet<'static>, E> {
    decode(&unhex(hex), &LIMITS)
}

fn packet(json: &str) -> Vec<u8> {
    let mut out = Vec::new();
    json_to_msgpack(&mut out, None, json, &[], MAX_DEPTH).unwrap();
    out
}

#[test]
fn packets_of_a_captured_client_are_read() {
    let connect = decoded("83a47479706500a36e7370a12fa46461746181a5746f6b656ea178").unwrap();
    assert_eq!((connect.kind, &*connect.nsp), (PacketKind::Connect, "/"));
    assert_eq!(connect.data, r#"{"token":"x"}"#);

    let event = decoded("83a47479706502a36e7370a12fa46461746193a46563686f01c4020102").unwrap();
    assert_eq!(event.event.as_ref().unwrap().name, "echo");
    assert_eq!(event.data, r#"["echo",1,{"_placeholder":true,"num":0}]"#);
    let args = event.to_args();
    assert_eq!(args.json(), r#"[1,{"_placeholder":true,"num":0}]"#);
    assert_eq!(args.attachments(), [Bytes::from_static(b"\x01\x02")]);

    let event = decoded("84a47479706502a36e7370a12fa46461746192a46563686fa161a2696403").unwrap();
    assert_eq!((event.id, event.to_args().json()), (Some(3), r#"["a"]"#));

    let connect = decoded("82a47479706500a36e7370a52f63686174").unwrap();
    assert_eq!((&*connect.nsp, &*connect.data), ("/chat", ""));
    let leave = decoded("82a47479706501a36e7370a52f63686174").unwrap();
    assert_eq!(leave.kind, PacketKind::Disconnect);
}

#[test]
fn packets_are_written_as_a_captured_server_does() {
    assert_eq!(
        written(|out| connect_reply(out, Dialect::Msgpack, "/", "D_UNgXG5NSvpNEnKAAA1", None)),
        concat!(
            "83a47479706500a46461746182a3736964b4445f554e675847354e5376704e456e4b41414131",
            "a3706964d40000a36e7370a12f"
        )
    );
    let args = Args::encode(&(1, Bytes::from_static(b"\x01\x02"))).unwrap();
    assert_eq!(
        written(|out| event(out, "/", None, "echo", &args).unwrap()),
        "83a47479706502a46461746193a46563686f01c4020102a36e7370a12f"
    );
    assert_eq!(
        written(|out| ack(out, "/", 3, &Args::encode("a").unwrap()).unwrap()),
        "84a2696403a47479706503a46461746191a161a36e7370a12f"
    );
    assert_eq!(
        written(|out| unknown_namespace(out, Dialect::Msgpack, "/unknown")),
        concat!(
            "83a47479706504a36e7370a82f756e6b6e6f776ea46461746181a76d657373616765",
            "b1496e76616c6964206e616d657370616365"
        )
    );
}

#[test]
fn what_is_written_is_read_back() {
    let reply = unhex(&written(|out| {
        connect_reply(out, Dialect::Msgpack, "/n", "abc", None)
    }));
    let reply = decode(&reply, &LIMITS).unwrap();
    assert_eq!(
        (&*reply.nsp, &*reply.data),
        ("/n", r#"{"sid":"abc","pid":null}"#)
    );
    let mut error = Vec::new();
    connect_error(&mut error, Dialect::Msgpack, "/n", "no", Some("[1]")).unwrap();
    let error = decode(&error, &LIMITS).unwrap();
    assert_eq!(error.kind, PacketKind::ConnectError);
    assert_eq!(error.data, r#"{"message":"no","data":[1]}"#);
    let leave = unhex(&written(|out| disconnect(out, "/n")));
    assert_eq!(
        decode(&leave, &LIMITS).unwrap().kind,
        PacketKind::Disconnect
    );
}

#[test]
fn each_error_is_told() {
    let long = "x".repeat(3000);
    let deep = "[".repeat(101) + &"]".repeat(101);
    let deep = format!(r#"{{"type":2,"nsp":"/","data":["a",{deep}]}}"#);
    let long_name = format!(r#"{{"type":2,"nsp":"/","data":["{long}"]}}"#);
    let long_nsp = format!(r#"{{"type":0,"nsp":"{long}"}}"#);
    for (json, error) in [
        (r#"{"nsp":"/","data":["a"]}"#, E::UnknownType),
        (r#"{"type":5,"nsp":"/","data":["a"]}"#, E::UnknownType),
        (r#"{"type":"2","nsp":"/","data":["a"]}"#, E::UnknownType),
        (r#"{"type":2,"data":["a"]}"#, E::Payload),
        (r#"{"type":2,"nsp":1,"data":["a"]}"#, E::Payload),
        (r#"{"type":2,"nsp":"/"}"#, E::Payload),
        (r#"{"type":2,"nsp":"/","data":[]}"#, E::Payload),
        (r#"{"type":2,"nsp":"/","data":{}}"#, E::Payload),
        (r#"{"type":2,"nsp":"/","data":[null]}"#, E::Payload),
        (
            r#"{"type":2,"nsp":"/","data":["connect"]}"#,
            E::ReservedEvent,
        ),
        (r#"{"type":2,"nsp":"/","data":["a"],"id":-1}"#, E::AckId),
        (r#"{"type":2,"nsp":"/","data":["a"],"id":null}"#, E::AckId),
        (r#"{"type":2,"nsp":"/","data":["a"],"id":"1"}"#, E::AckId),
        (r#"{"type":0,"nsp":"/","data":[]}"#, E::Payload),
        (r#"{"type":0,"nsp":"/","data":null}"#, E::Payload),
        (r#"{"type":0,"nsp":"/","data":"x"}"#, E::Payload),
        (r#"{"type":1,"nsp":"/","data":{}}"#, E::Payload),
        (r#"{"type":3,"nsp":"/","id":1}"#, E::Payload),
        (r#"{"type":3,"nsp":"/","id":1,"data":{}}"#, E::Payload),
        (r#"{"type":4,"nsp":"/","data":1}"#, E::Payload),
        (r#"[2]"#, E::Payload),
        (r#""2""#, E::Payload),
        (&deep, E::TooDeep { limit: 100 }),
        (&long_name, E::EventNameTooLong { limit: 1024 }),
        (&long_nsp, E::NamespaceTooLong { limit: 2048 }),
    ] {
        assert_eq!(decode(&packet(json), &LIMITS), Err(error), "{json}");
    }
    assert_eq!(decoded(""), Err(E::Syntax));
    let mut trailing = packet(r#"{"type":1,"nsp":"/"}"#);
    trailing.push(0xc0);
    assert_eq!(decode(&trailing, &LIMITS), Err(E::Syntax));
    // Binary in the place of the credentials.
    assert_eq!(
        decoded("83a47479706500a36e7370a12fa464617461c40101"),
        Err(E::Payload)
    );
}

#[test]
fn attachments_are_limited_and_placeholders_cannot_be_smuggled_in() {
    let event = |binaries: usize| {
        let args = Args::encode(&vec![Bytes::from_static(b"x"); binaries]).unwrap();
        let mut out = Vec::new();
        event(&mut out, "/", None, "a", &args).unwrap();
        decode(&out, &LIMITS)
    };
    assert_eq!(event(10).unwrap().attachments.len(), 10);
    assert_eq!(event(11), Err(E::TooManyAttachments { limit: 10 }));
    let mut bytes = packet(r#"{"type":2,"nsp":"/","data":["a",{"_placeholder":true,"num":9}]}"#);
    assert!(decode(&bytes, &LIMITS).is_ok());
    // A third element after the two of the array, which is the last value of the map.
    let array = bytes
        .windows(5)
        .position(|window| window == b"data\x92")
        .unwrap()
        + 4;
    bytes[array] = 0x93;
    bytes.extend_from_slice(&[0xc4, 0x01, 0x07]);
    assert_eq!(decode(&bytes, &LIMITS), Err(E::Placeholder));
}

#[test]
fn keys_in_any_order_unknown_ones_and_other_spellings_are_taken() {
    let odd = r#"{"extra":[{}],"data":["a"],"id":3.0,"nsp":"/","type":2.0,"x":null}"#;
    let event = decode(&packet(odd), &LIMITS).unwrap();
    assert_eq!((event.kind, event.id), (PacketKind::Event, Some(3)));
    // {"type":2,"nsp":"/","data":[5],"id":undefined,"nsp":"/b"}
    let twice = "85a47479706502a36e7370a12fa4646174619105a26964d40000a36e7370a22f62";
    let event = decoded(twice).unwrap();
    assert_eq!((&*event.nsp, event.id), ("/b", None));
    assert_eq!(
        (&*event.event.unwrap().name, &*event.data),
        ("5", r#"["5"]"#)
    );
}

proptest! {
    #[test]
    fn any_bytes_are_a_packet_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(packet) = decode(&bytes, &LIMITS) {
            packet.to_args();
        }
    }

    #[test]
    fn any_change_of_a_byte_is_a_packet_or_an_error(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let args = Args::encode(&(1, Bytes::from_static(b"x"), [["é"]])).unwrap();
        let mut bytes = Vec::new();
        event(&mut bytes, "/chat", Some(300), "message", &args).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(packet) = decode(&bytes, &LIMITS) {
            prop_assert!(packet.attachments.len() <= LIMITS.attachments);
            packet.to_args();
        }
    }
}
