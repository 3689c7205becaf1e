//! Settings that are read again on SIGHUP, and accounts.

use serde_json::json;

use crate::{
    channels::hash,
    node::{ACCOUNT, ANNA, FREE, NOTHING, Node, PLAIN, READER, detail, settings},
};

#[test]
fn a_reload_replaces_keys_channels_and_times_and_keeps_what_clients_have_made() {
    let mut node = Node::start("reload");
    let name = json!({ "name": "made" });
    let made = node.ask(ACCOUNT, "POST channels/", &name).body;
    let before = node.ask(FREE, "GET channels/news/", &NOTHING).body;
    let id = node.publish("news", &json!({ "payload": { "n": 1 } }));
    let hash_of_none = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let text = settings()
        .replace(&hash(READER), &hash_of_none("0"))
        .replace("news = {", "news = { description = \"changed\",");
    let with_timeout = format!("[doors.syncano]\npoll_timeout = \"1s\"\n{text}");
    node.reload(&with_timeout, "reloaded the settings");
    let unknown = node.ask(READER, "GET channels/news/", &NOTHING);
    assert_eq!(unknown.both(), (403, &detail("No such API Key.")));
    let news = node.ask(FREE, "GET channels/news/", &NOTHING).body;
    assert_eq!(news["description"], "changed");
    assert_eq!(news["created_at"], before["created_at"]);
    assert_ne!(news["updated_at"], before["updated_at"]);
    let still = node.ask(ACCOUNT, "GET channels/made/", &NOTHING).body;
    assert_eq!(still, made);
    let poll = |last: u64| format!("GET channels/news/poll/?last_id={last}");
    assert_eq!(node.ask(FREE, &poll(id - 1), &NOTHING).body["id"], id);
    assert_eq!(node.ask(FREE, &poll(id), &NOTHING).status, 204);

    // With a mistake, nothing changes.
    let broken = text.replace("key_env = \"ANNA_KEY\"", "key_env = \"NO_SUCH_KEY\"");
    let broken = broken.replace(&hash(PLAIN), &hash_of_none("1"));
    node.reload(&broken, "the variable NO_SUCH_KEY is not set");
    let headers = format!("X-API-KEY: {PLAIN}\r\nX-USER-KEY: {ANNA}\r\n");
    assert_eq!(node.send(&headers, "GET channels/news/", "").status, 200);
}

#[test]
fn an_instance_that_a_reload_adds_waits_for_a_restart_and_one_that_it_removes_is_closed() {
    let mut node = Node::start("reload-instances");
    let text = settings().replace("instances.shop", "instances.other");
    node.reload(&text, "/syncano/other");
    for instance in ["shop", "other"] {
        let request = format!("GET /v1/instances/{instance}/channels/");
        let answer = node.ask(FREE, &request, &NOTHING);
        assert_eq!(answer.both(), (404, &detail("Instance was not found.")));
    }
    node.reload(&settings(), "reloaded the settings");
    assert_eq!(node.ask(FREE, "GET channels/", &NOTHING).status, 200);
}

#[test]
fn an_account_gets_its_key_for_the_password() {
    let account = "[[doors.syncano.accounts]]\nid = 9\nemail = \"anna@example.org\"\n\
                   key_env = \"ACCOUNT_KEY\"\npassword_env = \"ANNA_PASSWORD\"\n";
    let trusted = "trusted_proxies = [\"127.0.0.1\"]\n";
    let node = Node::start_with("accounts", &format!("{trusted}{account}"));
    let log_in = |path: &str, email: &str, password: &str| {
        let body = json!({ "email": email, "password": password }).to_string();
        let json = "Content-Type: application/json\r\n";
        node.send(json, &format!("POST {path}"), &body)
    };
    for path in ["/v1.1/account/auth", "/v1/account/auth/"] {
        let found = log_in(path, "Anna@Example.org", "tea");
        assert_eq!(found.status, 200, "{}", found.body);
        assert_eq!(found.body["id"], 9);
        assert_eq!(found.body["account_key"], ACCOUNT);
    }
    let wrong = detail("Invalid email or password.");
    let path = "/v1.1/account/auth/";
    for (name, password) in [("anna", "coffee"), ("otto", "tea")] {
        let refused = log_in(path, &format!("{name}@example.org"), password);
        assert_eq!(refused.both(), (401, &wrong));
    }
    let missing = log_in(path, "anna@example.org", "");
    let wanted = json!({ "password": ["This field is required."] });
    assert_eq!(missing.both(), (400, &wanted));
    let method = node.send("", &format!("GET {path}"), "");
    assert_eq!(method.status, 405);
    let body = r#"{"email":"anna@example.org","password":"coffee"}"#;
    let length = body.len();
    // So many at once that a second has more than its share, from the addresses of one network.
    let attempts = (0..100).map(|host| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 2001:db8::{host}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    });
    let refused = node.pipeline(attempts.collect());
    assert!(refused.contains("HTTP/1.1 429 "), "{refused}");
    assert!(refused.contains("retry-after: 1\r\n"), "{refused}");
}
