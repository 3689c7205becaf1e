//! The examples, run as a reader would run them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;

use std::{env, path::PathBuf, process::Command};

use process::{Program, client::Client, field, http};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn the_chat_has_names_rooms_and_a_clean_end() {
    let (chat, address) = start("chat");
    let refused = Client::connect_as(&address, &json!({})).err().unwrap();
    assert_eq!(
        refused["message"],
        "who are you? connect with auth: { name }"
    );
    let mut ada = Client::connect_as(&address, &json!({ "name": "Ada" })).unwrap();
    let mut ben = Client::connect_as(&address, &json!({ "name": "Ben" })).unwrap();
    let mut eve = Client::connect_as(&address, &json!({ "name": "Eve" })).unwrap();
    assert_eq!(ada.ask(&json!(["join", "tea"])), json!([]));
    assert_eq!(ben.ask(&json!(["join", "tea"])), json!([]));
    assert_eq!(ada.event("joined"), json!(["tea", "Ben"]));

    let total = ben.ask(&json!(["say", "tea", "hello"]));
    assert_eq!(total, json!([1]));
    assert_eq!(ada.event("said"), json!(["tea", "Ben", "hello"]));

    // A room that is named like a socket is not the socket's private room.
    eve.ask(&json!(["join", ada.id()]));
    ben.ask(&json!(["say", ada.id(), "psst"]));
    assert_eq!(eve.event("said"), json!([ada.id(), "Ben", "psst"]));
    assert_eq!(ben.ask(&json!(["leave", "tea"])), json!([]));
    assert_eq!(ada.event("left"), json!(["tea", "Ben"]));
    ben.ask(&json!(["join", "tea"]));
    drop(ben);
    assert_eq!(ada.event("left"), json!(["tea", "Ben"]));

    chat.signal(Signal::INT);
    assert_eq!((ada.rest(), eve.rest()), (vec![], vec![]));
    assert_eq!(chat.end().0, Some(0));
}

#[test]
fn an_application_keeps_its_routes_and_emits_from_everywhere() {
    let (embed, address) = start("embed");
    assert_eq!(
        http(&address, "GET /", ""),
        (200, "news, as they come\n".into())
    );
    let mut reader = Client::connect(&address);
    let before = reader.event("tick")[0].as_u64().unwrap();
    assert_eq!(reader.event("tick"), json!([before + 1]));
    let posted = http(&address, "POST /news", "It rains.");
    assert_eq!(posted, (200, "published\n".into()));
    assert_eq!(reader.event("news"), json!(["It rains."]));

    embed.signal(Signal::INT);
    let rest = reader.rest();
    assert!(
        rest.iter().all(|packet| packet.starts_with("42[\"tick\"")),
        "{rest:?}"
    );
    assert_eq!(embed.end().0, Some(0));
}

/// Starts an example on a free port; answers its address.
fn start(name: &str) -> (Program, String) {
    let mut program = Program::start(Command::new(example(name)).env("PORT", "0"));
    let line = program.line_with("listening on ");
    (program, field(&line, "listening on "))
}

/// Cargo builds examples along with the tests, beside the folder of the test itself.
fn example(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    let path = folder.join("examples").join(name);
    assert!(
        path.exists(),
        "not built: run `cargo test` without `--test`, or build {name}"
    );
    path
}
