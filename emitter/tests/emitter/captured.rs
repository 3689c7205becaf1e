//! The same calls as were made of `@socket.io/redis-emitter`: the same bytes on the same channels.

use std::collections::BTreeSet;

use bytes::Bytes;
use roomcast_emitter::{EmitError, Emitter};
use roomcast_protocol::wire::Parser;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{ear::Ear, support::Redis};

const CAPTURED: &str = include_str!("../../../protocol/tests/fixtures/emitter.jsonl");

/// What has no counterpart here, and what is an error instead.
const DIFFERENT: [&str; 4] = [
    // A namespace without slash is an error.
    "emit_nsp_noslash",
    // JSON has neither.
    "emit_undefined_date",
    // Both throw there.
    "emit_reserved",
    "server_side_emit_ack",
];

#[derive(Serialize)]
struct X {
    x: Bytes,
}

#[tokio::test]
async fn what_is_published_is_byte_for_byte_what_nodes_emitter_publishes() {
    let redis = Redis::start();
    let url = redis.url();
    let mut ear = Ear::pattern(&url, "*").await;
    let emitter = Emitter::connect(&url).await.unwrap();
    let keyed = Emitter::builder().prefix("myapp").connect(&url);
    let keyed = keyed.await.unwrap();
    let json = Emitter::builder().parser(Parser::Json).connect(&url);
    let json = json.await.unwrap();

    let mut seen: BTreeSet<_> = DIFFERENT.map(str::to_owned).into();
    for line in CAPTURED.lines() {
        let captured: Value = serde_json::from_str(line).unwrap();
        let name = captured["name"].as_str().unwrap();
        if DIFFERENT.contains(&name) {
            continue;
        }
        let of = match name {
            "parser_json_emit" => &json,
            name if name.starts_with("key_") => &keyed,
            _ => &emitter,
        };
        say(name, of).await.unwrap();
        let (channel, payload) = ear.next().await;
        assert_eq!(channel, captured["channel"].as_str().unwrap(), "{name}");
        let expected = unhex(captured["payload_hex"].as_str().unwrap());
        assert_eq!(
            payload,
            expected,
            "{name}: {} instead of {}",
            String::from_utf8_lossy(&payload),
            String::from_utf8_lossy(&expected)
        );
        assert!(seen.insert(name.to_owned()), "{name} twice");
    }
    assert_eq!(seen.len(), CAPTURED.lines().count());
}

async fn say(name: &str, emitter: &Emitter) -> Result<(), EmitError> {
    let room = || emitter.to("room1");
    let chat = || emitter.of("/chat");
    match name {
        "emit_all" => emitter.emit("hello", (1, "a", json!({ "b": true }))).await,
        "emit_nsp" => chat().emit("hello", ()).await,
        "emit_room" | "key_emit_room" => room().emit("hello", 1).await,
        "emit_in_rooms" => emitter.in_(["room1", "room2"]).emit("hello", 1).await,
        "emit_same_room_twice" => room().to("room1").emit("hello", 1).await,
        "emit_nsp_room" | "parser_json_emit" => chat().to("room1").emit("hello", 1).await,
        "emit_except" => emitter.except("room2").emit("hello", 1).await,
        "emit_room_except" => room().except(["room2", "room3"]).emit("hello", 1).await,
        "emit_volatile" => emitter.of("/").volatile().emit("hello", 1).await,
        "emit_compress" => room().compress(false).emit("hello", 1).await,
        "emit_binary" => {
            let x = Bytes::from_static(&[4]);
            let args = (Bytes::from_static(&[1, 2, 3]), X { x });
            room().emit("bin", args).await
        }
        "sockets_join" => emitter.of("/").sockets_join("room5").await,
        "sockets_join_room" => {
            let them = room().except("room2");
            them.sockets_join(["room5", "room6"]).await
        }
        "key_sockets_join" => room().sockets_join("room5").await,
        "sockets_leave" => room().sockets_leave("room5").await,
        "disconnect_sockets" => emitter.of("/").disconnect_sockets(false).await,
        "disconnect_sockets_room_close" => chat().in_("room1").disconnect_sockets(true).await,
        "server_side_emit" => {
            let args = ("a", json!({ "b": 1 }));
            emitter.of("/").server_side_emit("hello", args).await
        }
        "server_side_emit_nsp" => chat().server_side_emit("hello", ()).await,
        name => panic!("{name} is not said"),
    }
    .map(drop)
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}
