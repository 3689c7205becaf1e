//! `roomcast emit` end to end: a real process, a real Redis, real nodes with real clients.

#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;
#[path = "../../emitter/tests/support/mod.rs"]
mod redis;

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
};

use process::{Program, client::Client, hash, http_with, roomcast, serve};
use redis::{Cluster, Listener, Redis};
use serde_json::{Value, json};

const PAGE: &str = include_str!("../../docs/src/emitter.md");

/// What a run of the program came to.
#[derive(Debug)]
struct Said {
    status: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    /// What `--json` prints.
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn emit(url: &str, line: &[&str]) -> Said {
    emit_with(url, line, "")
}

/// With something on its standard input.
fn emit_with(url: &str, line: &[&str], input: &str) -> Said {
    let mut command = roomcast();
    command.args(["emit", "--redis", url]).args(line);
    run(&mut command, input)
}

fn run(command: &mut Command, input: &str) -> Said {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // It may end without reading everything.
    let writing = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    Said {
        status: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A node that lets clients use rooms, and its address.
fn node(url: &str, dialect: &str) -> (Program, String) {
    node_of(roomcast(), url, dialect)
}

fn node_of(mut command: Command, url: &str, dialect: &str) -> (Program, String) {
    command.args(["serve", "--access=open", "--client-rooms"]);
    command.args(["--redis", url, "--redis-dialect", dialect]);
    let (program, address, _) = serve(&mut command);
    (program, address)
}

#[test]
fn it_tells_nodes_with_members_of_the_room_from_servers_that_receive_everything() {
    let redis = Redis::start();
    // As a server of Node's does.
    let _theirs = Listener::start(&redis, "PSUBSCRIBE", "socket.io#/#*");
    let said = emit(&redis.url(), &["--room", "nobody", "news"]);
    assert_eq!(said.status, Some(0), "{said:?}");
    let lines = "1 message emitted, taken by 1 node\n0 of them with members of the room; the \
                 others, such as Node.js servers, receive every message\n";
    assert_eq!(said.out, lines);
    let said = emit(&redis.url(), &["--json", "--room", "nobody", "news"]).json();
    assert_eq!(
        (&said["nodes"], &said["nodes_with_members"]),
        (&json!(1), &json!(0))
    );
}

#[test]
fn an_event_reaches_the_clients_of_all_nodes_that_have_the_room() {
    let redis = Redis::start();
    let url = redis.url();
    let (one, two) = (node(&url, "classic"), node(&url, "classic"));
    let (mut ada, mut ben) = (Client::connect(&one.1), Client::connect(&two.1));
    let mut eve = Client::connect(&two.1);
    for client in [&mut ada, &mut ben] {
        client.ask(&json!(["join", "tea"]));
    }
    // Confirmed, as a join is known to other processes a moment later.
    let line = ["--room", "tea", "--confirm", "--json", "ready", "true"];
    redis::until("both nodes listen to the room", || {
        (emit(&url, &line).json()["sockets"] == json!(2)).then_some(())
    });

    let said = emit(&url, &["--room", "tea", "news", "{\"a\":1}", "\"x\""]);
    assert_eq!(said.status, Some(0), "{said:?}");
    assert_eq!(said.out, "1 message emitted, taken by 2 nodes\n");
    let said = emit(&url, &["news", "--confirm", "--except", ada.id()]);
    assert_eq!(
        said.out, "1 message emitted, reached 2 sockets on 2 nodes\n",
        "{said:?}"
    );
    assert_eq!(ada.event("news"), json!([{ "a": 1 }, "x"]));
    assert_eq!(ben.event("news"), json!([{ "a": 1 }, "x"]));
    assert_eq!(ben.event("news"), json!([]));
    assert_eq!(eve.event("news"), json!([]));

    // Nobody acknowledges: they are missing, and named.
    let line = [
        "--room",
        "tea",
        "--ack",
        "--timeout=300ms",
        "--json",
        "vote?",
    ];
    let said = emit(&url, &line);
    let mut missing: Vec<_> = said.json()["missing"].as_array().unwrap().clone();
    missing.sort_by_key(Value::to_string);
    let mut asked = [json!(ada.id()), json!(ben.id())];
    asked.sort_by_key(Value::to_string);
    assert_eq!(
        (said.status, missing),
        (Some(10), asked.to_vec()),
        "{said:?}"
    );
    let said = emit(&url, &["--room", "nowhere", "--ack", "vote?"]);
    assert_eq!(
        (said.status, said.out.as_str()),
        (Some(9), "0 answers, 0 missing\n")
    );
    let said = emit(&url, &["--room", "nowhere", "--confirm", "--json", "news"]);
    assert_eq!(
        said.json(),
        json!({ "messages": 1, "reached_nobody": 1, "nodes": 2, "sockets": 0,
            "silent_nodes": [], "status": 9 })
    );
}

#[test]
fn with_a_key_only_those_who_have_it_reach_clients() {
    let redis = Redis::start();
    let url = redis.url();
    let signed = |key: &str| {
        let mut command = roomcast();
        command.env("ROOMCAST_REDIS_SIGNING_KEY", key);
        command
    };
    let (key, next) = ("k".repeat(32), "n".repeat(32));
    let (mut node, address) = node_of(signed(&key), &url, "classic");
    let mut client = Client::connect(&address);
    let emit = |mut command: Command, number: &str, more: &[&str]| {
        command.args(["emit", "--redis", &url, "news", number]);
        run(command.args(more), "")
    };
    // The first two reach the node, which drops them.
    assert_eq!(emit(roomcast(), "1", &[]).status, Some(0));
    assert_eq!(emit(signed(&next), "2", &[]).status, Some(0));
    let said = emit(
        signed(&format!("{key},{next}")),
        "3",
        &["--confirm", "--json"],
    );
    assert_eq!(said.json()["sockets"], json!(1), "{said:?}");
    assert_eq!(client.event("news"), json!([3]));
    let said = run(
        signed(&key).args(["emit", "--redis", &url, "news", "--file", "-"]),
        "4\n5\n",
    );
    assert_eq!(said.status, Some(0), "{said:?}");
    assert_eq!(client.event("news"), json!([4]));
    assert_eq!(client.event("news"), json!([5]));
    node.line_with("error=it is not signed");
    node.line_with("error=its signature is of another key");
}

#[test]
fn acknowledgements_of_clients_are_printed() {
    let redis = Redis::start();
    let (_node, address) = node(&redis.url(), "classic");
    let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
    let (mut client, _) = tungstenite::connect(url).unwrap();
    let mut packet = |answer: &str| {
        if !answer.is_empty() {
            client.send(tungstenite::Message::text(answer)).unwrap();
        }
        client.read().unwrap().into_text().unwrap().to_string()
    };
    assert!(packet("").starts_with("0{"));
    assert!(packet("40").starts_with("40{"));
    let url = redis.url();
    let emitting = thread::spawn(move || emit(&url, &["--ack", "--json", "vote?", "7"]));
    let asked = packet("");
    let id = asked.strip_prefix("42").unwrap();
    let id = id.strip_suffix("[\"vote?\",7]").unwrap();
    client
        .send(tungstenite::Message::text(format!("43{id}[\"yes\"]")))
        .unwrap();
    let said = emitting.join().unwrap();
    assert_eq!(said.status, Some(0), "{said:?}");
    assert_eq!(said.json()["answers"], json!(["yes"]));
}

/// The response to an emit over the API.
fn post(address: &str, key: &str, body: &Value) -> Value {
    let headers = format!(
        "Authorization: Bearer a-key-for-a-test\r\nContent-Type: application/json\r\n\
         Idempotency-Key: {key}\r\n"
    );
    let (_, _, body) = http_with(address, "POST /api/emit", &headers, &body.to_string());
    serde_json::from_str(&body).unwrap()
}

#[test]
fn the_receipt_has_the_place_in_the_journal_and_is_shared_under_a_key() {
    let redis = Redis::start();
    let settings = redis.directory.file("journal.toml");
    let hash = hash("a-key-for-a-test");
    let api = format!(
        "[[api.keys]]\nname = \"test\"\nhash = \"{hash}\"\nnamespaces = [\"/\"]\nverbs = [\"emit\"]\n"
    );
    std::fs::write(&settings, format!("{api}[namespaces.\"/\".journal]\n")).unwrap();
    let mut command = roomcast();
    command.args(["serve", "--access=open", "--config", &settings]);
    command.args(["--redis", &redis.url()]);
    let (_node, address, internal) = serve(&mut command);
    let mut client = Client::connect(&address);
    let emit = |line: &[&str]| emit(&redis.url(), &[&["--json", "news"], line].concat()).json();
    let first = redis::until("the node has written that it has a journal", || {
        let said = emit(&[]);
        said["position"]["id"].is_u64().then_some(said)
    });
    let second = emit(&["--confirm"]);
    assert_eq!(
        (&second["sockets"], &second["nodes"]),
        (&json!(1), &json!(1)),
        "{second}"
    );
    let id = |said: &Value| said["position"]["id"].as_u64().unwrap();
    assert!(id(&second) > id(&first));
    assert_eq!(emit(&["--volatile"])["position"], Value::Null);
    let refused = emit(&["--at-least-once"]);
    let reason = refused["error"].as_str().unwrap();
    assert!(
        reason.contains("recovery with `at_least_once` turned on"),
        "{refused}"
    );
    let once = ["--idempotency-key=order-7"];
    let (first, again) = (emit(&once), emit(&once));
    assert_eq!(first["position"], again["position"]);
    assert_eq!(
        (&first["is_replayed"], &again["is_replayed"]),
        (&Value::Null, &json!(true))
    );
    // The API shares the key, and its emit has the same receipt.
    let body = json!({ "event": "news", "all": true, "args": [] });
    let shared = post(&internal, "order-7", &body);
    assert_eq!(
        (&shared["position"], &shared["is_replayed"]),
        (&first["position"], &json!(true)),
        "{shared}"
    );
    let body = json!({ "event": "other", "all": true });
    let refused = post(&internal, "order-7", &body);
    assert_eq!(refused["status"], json!(422), "{refused}");
    // And the other way round.
    let body = json!({ "event": "news", "all": true });
    let first = post(&internal, "order-8", &body);
    let again = emit(&["--idempotency-key=order-8"]);
    assert_eq!(first["position"], again["position"], "{first} {again}");
    assert_eq!(again["is_replayed"], json!(true));
    assert_eq!(client.event("news"), json!([]));
    // An error after which the caller cannot know more is not remembered, so a repetition takes effect.
    redis.command(&["ACL", "SETUSER", "default", "-eval", "-evalsha"]);
    let body = json!({ "event": "later", "all": true });
    let post = || post(&internal, "order-9", &body);
    let refused = post();
    let kind = json!("urn:roomcast:problem:other-nodes");
    assert_eq!(refused["type"], kind, "{refused}");
    redis.command(&["ACL", "SETUSER", "default", "+eval", "+evalsha"]);
    let stored = post();
    assert!(stored["position"]["id"].is_u64(), "{stored}");
    assert_eq!(post()["position"], stored["position"]);
    assert_eq!(client.event("later"), json!([]));
    assert_eq!(stored["local_sockets"], Value::Null, "{stored}");
    // A node has claimed the call and is gone. Its claim lapses, and the repetition waits for that.
    let claim = "local claimed = 0 for _, key in ipairs(redis.call('KEYS', '*-api#*')) do \
        local print = string.match(redis.call('GET', key), '^%S+') claimed = claimed + 1 \
        redis.call('SET', key, print .. ' 0 gone', 'PX', 1000) end return claimed";
    assert_ne!(redis.command(&["EVAL", claim, "0"]).trim(), ":0");
    let waited = post();
    assert_eq!(waited["position"], stored["position"], "{waited}");
    assert_eq!(waited["is_replayed"], json!(true));
    // A file has a key for each line, so it can be repeated after a failure, also with more lines.
    let lines = |input: &str| {
        let line = ["--json", "--idempotency-key=f", "--file=-", "line"];
        emit_with(&redis.url(), &line, input).json()
    };
    let new = lines("1\n\n2\n");
    assert_eq!(
        (&new["messages"], &new["replayed"]),
        (&json!(2), &Value::Null)
    );
    let more = lines("1\n\n2\n3\n");
    assert_eq!(
        (&more["messages"], &more["replayed"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(more["is_replayed"], json!(false));
    for number in [1, 2, 3] {
        assert_eq!(client.event("line"), json!([number]));
    }
    // The whole receipt of a confirmed emit is kept.
    let confirmed = ["--idempotency-key=c", "--confirm"];
    let (first, again) = (emit(&confirmed), emit(&confirmed));
    assert_eq!(
        (&first["sockets"], &again["sockets"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(again["is_replayed"], json!(true));
}

#[test]
fn a_cluster_of_redis_is_as_good_as_one_server() {
    for dialect in ["classic", "sharded-dynamic"] {
        // Its own, because the nodes of the other dialect, killed just now, count as silent for a while.
        let redis = Cluster::start(3);
        let url = redis.url();
        let (one, two) = (node(&url, dialect), node(&url, dialect));
        let (mut ada, mut ben) = (Client::connect(&one.1), Client::connect(&two.1));
        for client in [&mut ada, &mut ben] {
            client.ask(&json!(["join", "tea"]));
        }
        let dialect = ["--redis-dialect", dialect];
        let emit = |line: &[&str]| emit(&url, &[&dialect[..], line].concat());
        let line = ["--room=tea", "--confirm", "--json", "ready"];
        redis::until("both nodes listen to the room", || {
            (emit(&line).json()["sockets"] == json!(2)).then_some(())
        });
        let said = emit(&["--room=tea", "news", "1"]);
        assert_eq!(said.status, Some(0), "{said:?}");
        let said = emit(&["--namespace=/", "news", "2", "--confirm"]);
        let reached = "1 message emitted, reached 2 sockets on 2 nodes\n";
        assert_eq!(said.out, reached, "{said:?}");
        for client in [&mut ada, &mut ben] {
            assert_eq!(client.event("news"), json!([1]));
            assert_eq!(client.event("news"), json!([2]));
        }
    }
}

#[test]
fn each_way_to_fail_has_its_own_status() {
    let redis = Redis::start();
    let protected = Redis::with(&["--requirepass", "secret"]);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = format!("redis://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let (url, protected) = (redis.url(), protected.url());
    let wrong = protected.replace("redis://", "redis://:wrong@");
    let table: [(&str, &[&str], i32, &str); 19] = [
        (&url, &["news"], 9, "had no recipient"),
        // As the ids of sockets may begin.
        (
            &url,
            &["--room", "-x", "--except", "--y", "news"],
            9,
            "had no recipient",
        ),
        (
            &url,
            &["news", "--room", "--confirm"],
            2,
            "this is an option",
        ),
        (&url, &["disconnect"], 3, "reserved"),
        (&url, &["news", "hello"], 4, "`hello`: invalid JSON"),
        (&url, &["news", "[1"], 4, "invalid JSON"),
        (
            &url,
            &["--namespace", "chat", "news"],
            5,
            "does not begin with `/`",
        ),
        (&gone, &["--retry=0", "news"], 6, "cannot be reached"),
        (
            &gone,
            &["--retry=0", "--confirm", "news"],
            6,
            "cannot be reached",
        ),
        (&protected, &["news"], 7, "requires a password"),
        (&wrong, &["news"], 7, "does not accept"),
        (&url, &["--file", "no-such-file", "news"], 1, "no-such-file"),
        (&url, &[], 2, "EVENT"),
        (&url, &["--ack", "--confirm", "news"], 2, "--confirm"),
        (&url, &["--ack", "news", "-"], 2, "--ack"),
        (&url, &["--file", "x", "news", "1"], 2, "--file"),
        (&url, &["--timeout", "5", "news"], 2, "--timeout"),
        ("off", &["news"], 2, "ROOMCAST_REDIS"),
        ("http://x", &["news"], 2, "--redis"),
    ];
    for (url, line, status, words) in table {
        let said = emit(url, line);
        assert_eq!(said.status, Some(status), "{line:?}: {said:?}");
        assert!(said.err.contains(words), "{line:?}: {said:?}");
    }
    // Before anything is asked of Redis: a mistake shows without one.
    for (line, status) in [(["connect", "1"], 3), (["news", "{"], 4)] {
        assert_eq!(emit(&gone, &line).status, Some(status));
    }
    assert!(!emit(&wrong, &["news"]).err.contains("wrong@"));
}

#[test]
fn what_redis_does_not_confirm_is_said_to_be_uncertain() {
    let redis = Redis::start();
    let target = redis.url().replace("redis://", "");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    // A proxy that forwards the login, and hangs up at the publish.
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut redis = TcpStream::connect(target.trim_end_matches('/')).unwrap();
        let (mut replies, mut back) = (redis.try_clone().unwrap(), client.try_clone().unwrap());
        let replying = thread::spawn(move || io::copy(&mut replies, &mut back));
        let mut buffer = [0; 4096];
        loop {
            let read = client.read(&mut buffer).unwrap();
            if read == 0 || buffer[..read].windows(7).any(|word| word == b"PUBLISH") {
                break;
            }
            redis.write_all(&buffer[..read]).unwrap();
        }
        client.shutdown(Shutdown::Both).unwrap();
        redis.shutdown(Shutdown::Both).unwrap();
        let _ = replying.join().unwrap();
    });
    let said = emit(&url, &["news", "1", "--json"]);
    server.join().unwrap();
    assert_eq!(said.status, Some(8), "{said:?}");
    assert_eq!(said.json()["messages"], json!(0));
    assert!(
        said.json()["error"]
            .as_str()
            .unwrap()
            .contains("did not confirm")
    );
}

#[test]
fn each_line_of_a_file_or_of_the_standard_input_is_a_message() {
    let redis = Redis::start();
    let url = redis.url();
    let mut all = Listener::start(&redis, "SUBSCRIBE", "socket.io#/#a#");
    let lines: String = (0..1_500).map(|number| format!("{number}\n")).collect();
    let json = ["--redis-parser=json", "--room=a"];
    let mut heard = |args: &str| {
        let payload: Value = serde_json::from_str(&all.next()).unwrap();
        assert_eq!(payload[1]["data"].to_string(), args);
    };

    let said = emit_with(&url, &[&json[..], &["tick", "-"]].concat(), &lines);
    assert_eq!(said.status, Some(0), "{said:?}");
    assert_eq!(said.out, "1500 messages emitted, taken by 1 node\n");
    assert_eq!(said.err, "", "no progress where there is no terminal");
    for number in 0..1_500 {
        heard(&format!("[\"tick\",{number}]"));
    }

    let file = redis.directory.file("messages.jsonl");
    let objects = "{\"event\":\"a\",\"args\":[1,[2]]}\n\n{\"event\":\"b\",\"rooms\":[\"a\"]}\n";
    std::fs::write(&file, objects).unwrap();
    let said = emit(&url, &[&json[..], &["--file", &file, "--json"]].concat());
    assert_eq!(
        said.json(),
        json!({ "messages": 2, "reached_nobody": 0, "nodes": 1, "status": 0 })
    );
    heard("[\"a\",1,[2]]");
    heard("[\"b\"]");

    let line = [&json[..], &["tick", "--file=-", "--confirm", "--json"]].concat();
    let said = emit_with(&url, &line, "1\n2\n");
    assert_eq!(
        (said.status, &said.json()["messages"]),
        (Some(9), &json!(2))
    );
    heard("[\"tick\",1]");
    heard("[\"tick\",2]");
}

/// Runs the program on a terminal of its own, through a shell that adds the redirections: what the
/// terminal showed.
fn emit_on_a_terminal(url: &str, line: &str) -> String {
    let bin = env!("CARGO_BIN_EXE_roomcast");
    let line = format!("'{bin}' emit --redis {url} {line}");
    let mut command = Command::new("script");
    command.env_clear().env("PATH", "/usr/bin:/bin");
    // From util-linux. It ends with the status of the program, and writes what it shows to nowhere else.
    command
        .env("SHELL", "/bin/sh")
        .args(["-qec", &line, "/dev/null"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{shown}");
    shown
}

#[test]
fn progress_is_shown_where_standard_error_is_a_terminal_and_nowhere_else() {
    let redis = Redis::start();
    let url = redis.url();
    let _all = Listener::start(&redis, "SUBSCRIBE", "socket.io#/#");
    let file = |name: &str| redis.directory.file(name);
    let (messages, out, err) = (file("messages"), file("out"), file("err"));
    let lines: String = (0..2_000).map(|number| format!("{number}\n")).collect();
    std::fs::write(&messages, lines).unwrap();
    let said = "2000 messages emitted, taken by 1 node\n";
    let read = |path: &str| std::fs::read_to_string(path).unwrap();

    let shown = emit_on_a_terminal(&url, &format!("tick --file {messages} > {out}"));
    let steps: Vec<_> = shown.split('\r').collect();
    let (first, end) = (steps[1], &steps[steps.len() - 2..]);
    let fifth = format!("[######{}]  21 %  512 messages\x1b[K", ".".repeat(24));
    assert_eq!(first, fifth, "{shown:?}");
    let whole = format!("[{}] 100 %  2000 messages\x1b[K", "#".repeat(30));
    // The line is clean again in the end.
    assert_eq!(end, [&whole, "\x1b[K"], "{shown:?}");
    assert_eq!(read(&out), said);

    // How much there is on standard input, nobody knows.
    let line = format!("tick - > {out} < {messages}");
    let shown = emit_on_a_terminal(&url, &line);
    assert!(shown.contains("\r512 messages\x1b[K"), "{shown:?}");
    assert!(!shown.contains('%'), "{shown:?}");

    let line = format!("tick --file {messages} 2> {err}");
    let shown = emit_on_a_terminal(&url, &line);
    assert_eq!(shown, said.replace('\n', "\r\n"));
    assert_eq!(read(&err), "");
    let shown = emit_on_a_terminal(&url, &format!("tick --file {messages} --json > {out}"));
    assert_eq!(shown, "", "what is for scripts shows nothing");
}

#[test]
fn the_first_line_that_cannot_be_emitted_ends_it_and_is_named() {
    let redis = Redis::start();
    let url = redis.url();
    let _all = Listener::start(&redis, "SUBSCRIBE", "socket.io#/#");
    let said = emit_with(&url, &["tick", "-"], "1\n2\noops\n4\n");
    assert_eq!(said.status, Some(4), "{said:?}");
    assert_eq!(said.out, "2 messages emitted, taken by 1 node\n");
    assert!(said.err.contains("error: line 3: invalid JSON"), "{said:?}");

    let input = "{\"event\":\"a\"}\n{\"event\":\"connect\"}\n{\"event\":\"b\"}\n";
    let said = emit_with(&url, &["--file", "-", "--json"], input);
    assert_eq!(
        (said.status, &said.json()["messages"]),
        (Some(3), &json!(1))
    );
    assert!(
        said.json()["error"]
            .as_str()
            .unwrap()
            .starts_with("line 2: ")
    );
    let said = emit_with(&url, &["--file", "-", "--confirm"], input);
    assert_eq!(said.status, Some(3), "{said:?}");
    assert!(said.err.contains("line 2: "), "{said:?}");
}

#[test]
fn a_slow_source_is_emitted_as_it_comes() {
    let redis = Redis::start();
    let mut all = Listener::start(&redis, "SUBSCRIBE", "socket.io#/#");
    let mut command = roomcast();
    command.args([
        "emit",
        "--redis",
        &redis.url(),
        "--redis-parser=json",
        "tick",
        "-",
    ]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for number in 0..3 {
        writeln!(input, "{number}").unwrap();
        // Before the next line is there.
        assert!(all.next().contains(&format!("[\"tick\",{number}]")));
    }
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_options_for_redis_are_those_of_the_server_and_its_environment() {
    let redis = Redis::start();
    let mut all = Listener::start(&redis, "SSUBSCRIBE", "app#/chat#a#");
    let mut command = roomcast();
    let settings = [
        ("ROOMCAST_REDIS", redis.url()),
        ("ROOMCAST_REDIS_PREFIX", "app".to_owned()),
        ("ROOMCAST_REDIS_DIALECT", "sharded-dynamic".to_owned()),
    ];
    command
        .envs(settings)
        .args(["emit", "--namespace=/chat", "--room=a", "news", "1"]);
    let said = run(&mut command, "");
    assert_eq!(said.status, Some(0), "{said:?}");
    assert!(all.next().contains("\"data\":[\"news\",1]"));
}

#[test]
fn the_help_lists_every_status_and_hides_what_is_secret() {
    let mut command = roomcast();
    command.env("ROOMCAST_REDIS", "redis://:secret@localhost");
    let said = run(command.args(["emit", "--help"]), "");
    let (_, listed) = said.out.split_once("Exit status:").unwrap();
    for status in 0..=10 {
        assert!(
            listed.contains(&format!("\n  {status:2}  ")),
            "{status}: {listed}"
        );
    }
    assert!(!said.out.contains("secret"));
}

#[test]
fn the_book_names_every_option() {
    let help = run(roomcast().args(["emit", "--help"]), "").out;
    let named = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| c != '-' && !c.is_ascii_lowercase());
        words
            .filter(|word| word.starts_with("--"))
            .map(str::to_owned)
            .collect()
    };
    let options = named(&help);
    assert!(options.contains("--redis-prefix"), "{help}");
    let mut missing = &options - &named(PAGE);
    missing.remove("--help");
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_commands_of_the_book_are_understood() {
    let (_, section) = PAGE.split_once("## From a shell").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let redis = Redis::start();
    let commands = section
        .lines()
        .filter(|line| line.contains("roomcast emit "));
    let mut count = 0;
    for line in commands {
        let mut shell = Command::new("sh");
        let bin = env!("CARGO_BIN_EXE_roomcast");
        let line = line.replace("roomcast emit", &format!("{bin} emit"));
        shell.env_clear().env("PATH", "/usr/bin:/bin");
        shell.env("ROOMCAST_REDIS", redis.url()).args(["-c", &line]);
        let said = run(&mut shell, "");
        // Nobody listens, but everything was right.
        assert_eq!(said.status, Some(9), "{line}: {said:?}");
        count += 1;
    }
    assert!(count >= 3, "{section}");
}
