//! The HTTP API of the program: real processes, real clients, requests as any HTTP client sends them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;

use std::os::unix::fs::PermissionsExt as _;

use process::{Program, client::Client, field, hash, http_with, roomcast};
use serde_json::{Value, json};

#[test]
fn an_event_that_is_emitted_with_the_key_of_the_demo_reaches_a_client() {
    let (_demo, address, api) = demo();
    let mut client = Client::connect(&address);
    client.ask(&json!(["join", "tea"]));
    let event = json!({ "event": "news", "args": ["it rains", 7], "rooms": ["tea"] });
    let (status, result) = api.post("emit", &event);
    assert_eq!(
        (status, result),
        (
            200,
            json!({ "effect": "emitted", "local_sockets": 1, "nodes": 0 })
        )
    );
    assert_eq!(client.event("news"), json!(["it rains", 7]));
}

#[test]
fn a_call_without_a_known_key_is_refused_and_changes_nothing() {
    let (_demo, address, api) = demo();
    let _client = Client::connect(&address);
    let all = json!({ "all": true });
    for header in [
        "",
        "Authorization: Bearer wrong\r\n",
        "Authorization: Basic demo-key\r\n",
    ] {
        let keyless = Api {
            address: api.address.clone(),
            headers: header.to_owned(),
        };
        let (status, problem) = keyless.post("disconnect", &all);
        assert_eq!(status, 401, "{problem}");
        assert_eq!(problem["type"], "urn:roomcast:problem:unauthorized");
    }
    let (_, sockets) = api.get("sockets");
    assert_eq!(sockets["total"], 1);
}

#[test]
fn arguments_that_nest_deeper_than_nodes_read_are_refused() {
    let (_demo, _, api) = demo();
    for (depth, wanted) in [(400, 200), (401, 400), (450, 400), (500, 400), (501, 400)] {
        let args = (1..depth).fold(json!([]), |inner, _| Value::Array(vec![inner]));
        let event = json!({ "event": "x", "args": args, "all": true });
        let (status, problem) = api.post("emit", &event);
        assert_eq!(status, wanted, "{depth} {problem}");
        if wanted == 400 {
            assert_eq!(problem["field"], "args", "{problem}");
        }
    }
}

#[test]
fn a_wrong_field_is_named() {
    let (_demo, _, api) = demo();
    let emit = |body: Value| {
        let (status, problem) = api.post("emit", &body);
        assert_eq!(status, 400, "{problem}");
        assert_eq!(problem["status"], 400);
        problem["field"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(emit(json!({ "event": "", "all": true })), "event");
    assert_eq!(
        emit(json!({ "event": "x", "all": true, "args": 7 })),
        "args"
    );
    assert_eq!(emit(json!({ "event": "x", "rooms": ["a", 7] })), "rooms[1]");
    assert_eq!(
        emit(json!({ "event": "x", "all": true, "room": "a" })),
        "room"
    );
    assert_eq!(
        emit(json!({ "event": "x", "all": true, "namespace": "x" })),
        "namespace"
    );
    assert_eq!(
        emit(json!({ "event": "x", "all": true, "flags": [true] })),
        "flags"
    );
    assert_eq!(emit(json!({ "event": "x", "rooms": [""] })), "rooms[0]");
    let operations = json!([{ "op": "join", "rooms": ["a"], "all": true }, { "op": "join", "rooms": [""], "all": true }]);
    let (status, problem) = api.post("batch", &json!({ "operations": operations }));
    assert_eq!(
        (status, &problem["field"]),
        (400, &json!("operations[1].rooms[0]"))
    );
}

#[test]
fn a_call_that_is_repeated_under_its_idempotency_key_takes_effect_once() {
    let (_demo, address, api) = demo();
    let mut client = Client::connect(&address);
    let event = |name: &str| json!({ "event": name, "all": true });
    let key = "Idempotency-Key: order-7\r\n";
    let first = api.post_with("emit", key, &event("paid"));
    assert_eq!(first.0, 200, "{}", first.1);
    assert_eq!(api.post_with("emit", key, &event("paid")), first);
    let (status, problem) = api.post_with("emit", key, &event("unpaid"));
    assert_eq!(
        (status, &problem["field"]),
        (422, &json!("Idempotency-Key"))
    );
    let last = json!({ "event": "paid", "args": ["last"], "all": true });
    assert_eq!(api.post("emit", &last).0, 200);
    assert_eq!(client.event("paid"), json!([]));
    assert_eq!(client.event("paid"), json!(["last"]));
}

#[test]
fn users_of_rooms_are_listed_page_by_page_and_acted_on() {
    let (_demo, address, api) = demo();
    let clients: Vec<_> = (0..3).map(|_| Client::connect(&address)).collect();
    let ids: Vec<_> = clients.iter().map(Client::id).collect();
    let join = json!({ "rooms": ["a", "b"], "sockets": ids });
    assert_eq!(api.post("join", &join), (200, json!({ "effect": "done" })));
    let (_, rooms) = api.get("rooms?limit=1&after=a");
    assert_eq!(
        rooms["rooms"],
        json!([{ "room": "b", "sockets": 3, "users": 0 }])
    );
    assert_eq!(
        (&rooms["total"], &rooms["is_complete"]),
        (&json!(2), &json!(true))
    );
    let confirmed = json!({ "event": "x", "rooms": ["a"], "flags": { "confirmed": true } });
    let (_, result) = api.post("emit", &confirmed);
    assert_eq!(
        (&result["effect"], &result["sockets"]),
        (&json!("confirmed"), &json!(3))
    );
    let operations = json!([
        { "op": "leave", "rooms": ["a"], "sockets": [ids[0]] },
        { "op": "disconnect", "sockets": [ids[1]], "close": true },
        { "op": "emit", "event": "x", "rooms": [] },
    ]);
    let (status, result) = api.post("batch", &json!({ "operations": operations }));
    assert_eq!(status, 200, "{result}");
    assert_eq!(result["results"][2], json!({ "effect": "nobody" }));
    let (_, sockets) = api.get("sockets?room=a");
    assert_eq!(
        (&sockets["total"], &sockets["sockets"][0]["id"]),
        (&json!(1), &json!(ids[2]))
    );
    let (_, node) = api.get("node");
    assert_eq!(node["namespaces"], json!(["/"]));
    assert_eq!(api.get("users?namespace=%2Fnone").0, 404);
}

#[test]
fn a_key_is_for_its_verbs_and_namespaces_until_a_reload_replaces_it() {
    let file = std::env::temp_dir().join(format!("roomcast-api-{}.toml", std::process::id()));
    let settings = |key: &str| {
        let hash = hash(key);
        format!(
            "namespace = [\"/\", \"/chat\"]\n[api]\nmax_body = \"1KiB\"\nlisten = \"127.0.0.1:0\"\n[[api.keys]]\n\
             name = \"app\"\nhash = \"{hash}\"\nnamespaces = [\"/chat*\"]\nverbs = [\"emit\"]\n"
        )
    };
    std::fs::write(&file, settings("one")).unwrap();
    let config = format!("--config={}", file.display());
    let (mut program, _, internal) = start(&["serve", &config], "one");
    let own = field(&program.line_with("own listener"), "address=");
    let api = Api::with_key(own.clone(), "one");
    let event = |namespace: &str| json!({ "event": "x", "all": true, "namespace": namespace });
    assert_eq!(api.post("emit", &event("/chat")).0, 200);
    let (status, problem) = api.post("emit", &event("/"));
    assert_eq!((status, &problem["field"]), (403, &json!("namespace")));
    assert_eq!(api.get("sockets?namespace=/chat").0, 403);
    let operations =
        json!([{ "op": "emit", "event": "x", "all": true }, { "op": "disconnect", "all": true }]);
    let batch = json!({ "namespace": "/chat", "operations": operations });
    let (status, problem) = api.post("batch", &batch);
    assert_eq!(
        (status, &problem["field"]),
        (403, &json!("operations[1].op"))
    );
    let large = json!({ "event": "x", "all": true, "args": ["x".repeat(2000)] });
    assert_eq!(api.post("emit", &large).0, 413);
    // It has a listener of its own, so the internal port does not serve it.
    assert_eq!(internal.request("GET /api/openapi.json", "", "").0, 404);

    std::fs::write(&file, settings("two")).unwrap();
    program.signal(rustix::process::Signal::HUP);
    program.line_with("reloaded the settings");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(api.post("emit", &event("/chat")).0, 401);
    assert_eq!(
        Api::with_key(own, "two").post("emit", &event("/chat")).0,
        200
    );
}

#[test]
fn a_revoked_token_disconnects_its_client_and_lets_nobody_in_again() {
    let folder = std::env::temp_dir().join(format!("roomcast-revoke-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let [file, secret] = ["roomcast.toml", "secret"].map(|name| folder.join(name));
    std::fs::write(&secret, "a secret of 32 bytes at the least").unwrap();
    let secret = secret.display();
    let keys = [
        ("all", "*", "*"),
        ("chat", "/chat", "revoke"),
        ("mute", "*", "emit"),
    ];
    let keys = keys.map(|(key, namespace, verb)| {
        let hash = hash(key);
        format!("[[api.keys]]\nname = \"{key}\"\nhash = \"{hash}\"\nnamespaces = [\"{namespace}\"]\nverbs = [\"{verb}\"]\n")
    });
    let settings = format!(
        "access = \"jwt\"\n[[jwt.keys]]\nalgorithm = \"HS256\"\nsecret_file = \"{secret}\"\n{}",
        keys.concat()
    );
    std::fs::write(&file, settings).unwrap();
    let config = format!("--config={}", file.display());
    let (_program, address, api) = start(&["serve", &config], "all");
    let token = |user: &str, id: &str| {
        let mut command = roomcast();
        let id = format!("jti={id}");
        command.args(["token", &config, "--user", user, "--claim", &id]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let auth = |token: &str| json!({ "token": token.trim() });
    let refusal = |token: &str| {
        let refused = Client::connect_as(&address, &auth(token)).err();
        refused.map(|error| error["data"]["code"].clone())
    };
    let (one, two, other) = (
        token("ada", "one"),
        token("ada", "two"),
        token("bob", "three"),
    );
    let revoked = |token: &str, body: &Value| {
        let mut client = Client::connect_as(&address, &auth(token)).unwrap();
        assert_eq!(api.post("revoke", body), (200, json!({ "effect": "done" })));
        assert_eq!(client.event("token:revoked"), json!([]));
        assert_eq!(client.packet().as_deref(), Some("41"), "it is disconnected");
    };

    for (key, field) in [("chat", json!("namespace")), ("mute", Value::Null)] {
        let api = Api::with_key(api.address.clone(), key);
        let (status, problem) = api.post("revoke", &json!({ "token": "one" }));
        assert_eq!((status, &problem["field"]), (403, &field), "{problem}");
    }
    let expires = 4_000_000_000_u32;
    revoked(&one, &json!({ "token": "one", "expires": expires }));
    assert_eq!(refusal(&one), Some(json!("token_revoked")));
    assert_eq!(refusal(&two), None, "another token of the user");
    revoked(&two, &json!({ "user": "ada" }));
    assert_eq!(refusal(&two), Some(json!("token_revoked")));
    assert_eq!(refusal(&other), None, "another user");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn without_tokens_there_is_nothing_to_revoke() {
    let (_demo, _, api) = demo();
    let (status, problem) = api.post("revoke", &json!({ "user": "ada" }));
    assert_eq!(status, 404);
    assert_eq!(problem["type"], "urn:roomcast:problem:no-tokens");
    let (status, problem) = api.post("revoke", &json!({ "user": "" }));
    assert_eq!((status, &problem["field"]), (400, &json!("user")));
}

#[test]
fn created_keys_are_private_and_work_with_the_settings_that_were_printed() {
    let folder = std::env::temp_dir().join(format!("roomcast-keys-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let run = |arguments: &[&str]| {
        let output = roomcast().args(arguments).current_dir(&folder).output();
        let output = output.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        (
            output.status.code(),
            said,
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let create = |kind: &str| run(&["token", "key", kind, "--name", "app"]);
    let mut settings = "access = \"jwt\"\n".to_owned();
    for kind in ["jwt", "ed25519", "api", "hook"] {
        let (status, said, error) = create(kind);
        assert_eq!(status, Some(0), "{error}");
        settings += &said;
        let (status, _, error) = create(kind);
        assert!(
            status == Some(1) && error.contains("is not replaced"),
            "{error}"
        );
    }
    for name in [
        "app.jwt-secret",
        "app.jwt-private.pem",
        "app.api-key",
        "app.hook-secret",
    ] {
        let metadata = std::fs::metadata(folder.join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
    // Two keys of one id would leave open which one signs.
    let settings = settings.replacen("id = \"app\"", "id = \"shared\"", 1);
    std::fs::write(folder.join("roomcast.toml"), settings).unwrap();
    let config = format!("--config={}", folder.join("roomcast.toml").display());
    let key = std::fs::read_to_string(folder.join("app.api-key")).unwrap();
    let (_program, address, api) = start(&["serve", &config], key.trim_end());
    let event = json!({ "event": "news", "all": true });
    assert_eq!(api.post("emit", &event).0, 200);
    let (_, token, _) = run(&["token", &config, "--user", "ada"]);
    let auth = json!({ "token": token.trim_end() });
    assert!(Client::connect_as(&address, &auth).is_ok());
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The API of a program, with a key.
struct Api {
    address: String,
    headers: String,
}

impl Api {
    fn with_key(address: String, key: &str) -> Self {
        let headers = format!("Authorization: Bearer {key}\r\n");
        Self { address, headers }
    }

    fn post(&self, call: &str, body: &Value) -> (u16, Value) {
        self.post_with(call, "", body)
    }

    fn post_with(&self, call: &str, headers: &str, body: &Value) -> (u16, Value) {
        let headers = format!("Content-Type: application/json\r\n{headers}");
        let (status, _, body) =
            self.request(&format!("POST /api/{call}"), &headers, &body.to_string());
        (status, serde_json::from_str(&body).unwrap())
    }

    fn get(&self, call: &str) -> (u16, Value) {
        let (status, _, body) = self.request(&format!("GET /api/{call}"), "", "");
        (status, serde_json::from_str(&body).unwrap())
    }

    /// The status, the head and the body of a response.
    fn request(&self, line: &str, headers: &str, body: &str) -> (u16, String, String) {
        let headers = self.headers.clone() + headers;
        http_with(&self.address, line, &headers, body)
    }
}

/// A running demo, its address, and its API.
fn demo() -> (Program, String, Api) {
    start(&["demo"], "demo-key")
}

fn start(options: &[&str], key: &str) -> (Program, String, Api) {
    let (program, address, internal) = process::serve(roomcast().args(options));
    (program, address, Api::with_key(internal, key))
}
