//! The realtime channels of Pakyow 0.10 and 0.11: the identity of a socket, and the text frames of
//! its WebSocket.
//!
//! ```text
//! page       renders a connection id, and keeps a key in the visitor's session
//! digest     SHA-1 of both: subscriptions belong to it, also before the socket exists
//! client ──► {"id", "action", "input", …}         read() ──► Message
//! client ◄── {"id", "status", "headers", "body"}  Reply
//! client ◄── {"payload", "channel"}               write_push()
//! ```
//!
//! Messages of clients are hostile: [`read`] bounds the depth of its JSON, [`target`]
//! never lets it name a host, and [`Pattern`] needs time in proportion to the lengths of
//! pattern and name at most.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use sha1::{Digest as _, Sha1};

/// The beginning of the private channel of a socket, which its digest follows.
pub const SOCKET_CHANNEL: &str = "pw:socket:";

/// The longest method of a route, in bytes.
const MAX_METHOD: usize = 32;

/// Returns the digest of a connection id and its key, in lower-case hexadecimal digits.
/// SHA-1 is part of the protocol. It is only the name of the pair, and both parts are
/// random.
#[must_use]
pub fn digest(key: &str, connection_id: &str) -> String {
    let digest = Sha1::digest(format!("--{key}--{connection_id}--"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text has the form of a digest.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == 40 && text.bytes().all(is_digit)
}

/// A message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The JSON of the id, as the client wrote it. The reply repeats it.
    pub id: String,
    /// The request of the client.
    pub action: Action,
}

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A sign of life.
    Ping,
    /// The response of a route of the application.
    CallRoute(Call),
    /// A call of a route that cannot be made: its reply.
    Refused(Reply),
    /// Anything else, which the application has to know: its name. `fetch-view` is one.
    Other(String),
}

/// A route that a client calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// In capitals; `GET` if the client named none.
    pub method: String,
    /// As the client wrote it, see [`target`].
    pub uri: String,
    /// Parameters in addition to those of the query.
    pub input: Map<String, Value>,
    /// The part of the view that the client wants.
    pub container: Option<String>,
    /// The partial of the view that the client wants.
    pub partial: Option<String>,
}

/// Reads a text frame of a client. Returns `None` for texts without a reply: broken JSON, JSON that
/// is not an object or nested deeper than 127 levels, and a message without an id or an action.
#[must_use]
pub fn read(text: &str) -> Option<Message> {
    // Checks the depth of members that are only cut out.
    let value: Value = serde_json::from_str(text).ok()?;
    let Value::Object(mut members) = value else {
        return None;
    };
    let raw: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    let id = raw
        .get("id")
        .map(|id| id.get())
        .filter(|id| *id != "null")?;
    let Value::String(name) = members.remove("action")? else {
        return None;
    };
    let action = match name.as_str() {
        "ping" => Action::Ping,
        "call-route" => match call(members) {
            Ok(call) => Action::CallRoute(call),
            Err(reply) => Action::Refused(reply),
        },
        _ => Action::Other(name),
    };
    let id = id.to_owned();
    Some(Message { id, action })
}

fn call(mut members: Map<String, Value>) -> Result<Call, Reply> {
    let mut text = |name: &str| match members.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let mut method = text("method").unwrap_or_else(|| "GET".to_owned());
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if !(1..=MAX_METHOD).contains(&method.len()) || !method.bytes().all(is_token) {
        return Err(Reply::plain(400, "the method is invalid"));
    }
    method.make_ascii_uppercase();
    // They are about the connection, and no route handles them. CONNECT has no path.
    if matches!(method.as_str(), "CONNECT" | "TRACE") {
        return Err(Reply::plain(405, "the method is not for routes"));
    }
    Ok(Call {
        method,
        uri: text("uri").ok_or_else(|| Reply::plain(400, "the uri is missing"))?,
        container: text("container"),
        partial: text("partial"),
        input: match members.remove("input") {
            Some(Value::Object(input)) => input,
            _ => Map::new(),
        },
    })
}

/// Returns the path and the query of a URI in the form in which they stand in a request.
/// The result begins with exactly one slash and consists of visible ASCII characters, so it can
/// never name a host: scheme, host and fragment are left out.
#[must_use]
pub fn target(uri: &str) -> String {
    let uri = uri.split('#').next().unwrap_or_default();
    let rest = without_scheme(uri);
    let rest = match rest.strip_prefix("//") {
        Some(rest) => rest.find(['/', '?']).map_or("", |end| &rest[end..]),
        None => rest,
    };
    let mut target = String::with_capacity(rest.len() + 1);
    target.push('/');
    for byte in rest.trim_start_matches('/').bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            target.push(char::from(byte));
        } else {
            target.push_str(&format!("%{byte:02X}"));
        }
    }
    target
}

fn without_scheme(uri: &str) -> &str {
    match uri.split_once(':') {
        Some((scheme, rest))
            if scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                && scheme
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) =>
        {
            rest
        }
        _ => uri,
    }
}

/// Adds parameters to a target: texts, numbers and truth values as they are, lists as
/// `name[]`, objects as `name[key]`. `null` is a parameter without a value.
#[must_use]
pub fn with_query(mut target: String, input: &Map<String, Value>) -> String {
    let mut pairs = Vec::new();
    for (name, value) in input {
        flatten(name.clone(), value, &mut pairs);
    }
    let mut separator = if target.contains('?') { '&' } else { '?' };
    for (name, value) in pairs {
        target.push(separator);
        encode(&name, &mut target);
        if let Some(value) = value {
            target.push('=');
            encode(&value, &mut target);
        }
        separator = '&';
    }
    target
}

fn flatten(name: String, value: &Value, pairs: &mut Vec<(String, Option<String>)>) {
    match value {
        Value::Null => pairs.push((name, None)),
        Value::String(text) => pairs.push((name, Some(text.clone()))),
        Value::Array(items) => {
            for item in items {
                flatten(format!("{name}[]"), item, pairs);
            }
        }
        Value::Object(members) => {
            for (key, member) in members {
                flatten(format!("{name}[{key}]"), member, pairs);
            }
        }
        other => pairs.push((name, Some(other.to_string()))),
    }
}

fn encode(text: &str, target: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~[]".contains(&byte) {
            target.push(char::from(byte));
        } else {
            target.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// The reply to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// A status of HTTP.
    pub status: u16,
    /// The headers of the response. Those with several values are joined.
    pub headers: BTreeMap<String, String>,
    /// The body of the response.
    pub body: String,
}

impl Reply {
    /// The reply to [`Action::Ping`].
    #[must_use]
    pub fn pong() -> Self {
        Self::plain(200, "pong")
    }

    /// A reply without headers.
    #[must_use]
    pub fn plain(status: u16, body: &str) -> Self {
        Self {
            status,
            headers: BTreeMap::new(),
            body: body.to_owned(),
        }
    }

    /// The frame. `id` is the JSON of the message's id.
    #[must_use]
    pub fn frame(&self, id: &str) -> String {
        let members = serde_json::to_string(self).unwrap_or_default();
        format!(r#"{{"id":{id},{}"#, members.trim_start_matches('{'))
    }
}

/// Writes the frame of a push. `payload` is JSON.
pub fn write_push(payload: &str, channel: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"payload":"#);
    out.extend_from_slice(payload.as_bytes());
    out.extend_from_slice(br#","channel":"#);
    // A text is always written.
    let channel = serde_json::to_string(channel).unwrap_or_default();
    out.extend_from_slice(channel.as_bytes());
    out.push(b'}');
}

/// The arguments of the event that carries a push between nodes: exactly one object with
/// these keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Push<'a> {
    /// JSON.
    #[serde(borrow)]
    pub payload: &'a RawValue,
    /// The channel.
    #[serde(borrow)]
    pub channel: std::borrow::Cow<'a, str>,
}

/// The name of a channel in a push. `*` stands for any text without a semicolon; everything else is
/// literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern<'a>(&'a str);

impl<'a> Pattern<'a> {
    /// Returns `None` for a name without a wildcard.
    #[must_use]
    pub fn new(name: &'a str) -> Option<Self> {
        name.contains('*').then_some(Self(name))
    }

    /// Whether it stands for the channel.
    #[must_use]
    pub fn matches(self, channel: &str) -> bool {
        // A wildcard does not cross a semicolon, so the parts between them match one by one.
        let (mut patterns, mut parts) = (self.0.split(';'), channel.split(';'));
        loop {
            match (patterns.next(), parts.next()) {
                (None, None) => return true,
                (Some(pattern), Some(part)) if matches_part(pattern, part) => {}
                _ => return false,
            }
        }
    }
}

/// Each text between wildcards is taken at its first occurrence, the last one at the end. Any later
/// occurrence would leave less text for the rest.
fn matches_part(pattern: &str, part: &str) -> bool {
    let mut texts = pattern.split('*');
    let first = texts.next().unwrap_or_default();
    let Some(mut rest) = part.strip_prefix(first) else {
        return false;
    };
    let Some(last) = texts.next_back() else {
        return rest.is_empty();
    };
    for text in texts {
        match rest.find(text) {
            Some(at) => rest = &rest[at + text.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_digest_is_the_one_of_a_pakyow_process() {
        let known = "7a1c653e3a0aec95b6f395b05a46eace0ce22a50";
        assert_eq!(digest("k1", "abc"), known);
        assert!(is_digest(known));
        for wrong in [
            "",
            &known[1..],
            &known.to_uppercase(),
            &known.replace('a', "g"),
        ] {
            assert!(!is_digest(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_ping_is_answered_under_its_own_id() {
        let text = r#"{"id": "a-1", "action": "ping", "input": {"socket_connection_id": "x"}}"#;
        let message = read(text).unwrap();
        assert_eq!(message.action, Action::Ping);
        let frame = Reply::pong().frame(&message.id);
        let wanted = r#"{"id":"a-1","status":200,"headers":{},"body":"pong"}"#;
        assert_eq!(frame, wanted);
    }

    #[test]
    fn an_id_keeps_its_value_and_type() {
        for id in [
            "7",
            "1.0",
            "\"7\"",
            "[1,{\"a\":null}]",
            "true",
            "12345678901234567890123",
        ] {
            let message = read(&format!(r#"{{"action":"ping","id":{id}}}"#)).unwrap();
            assert_eq!(message.id, id);
        }
    }

    #[test]
    fn what_is_no_message_has_no_reply() {
        let deep = format!(
            r#"{{"id":1,"action":"ping","x":{}1{}}}"#,
            "[".repeat(500),
            "]".repeat(500)
        );
        for text in [
            "",
            "{",
            "[]",
            "7",
            "\"ping\"",
            "null",
            r#"{"action":"ping"}"#,
            r#"{"id":null,"action":"ping"}"#,
            r#"{"id":1}"#,
            r#"{"id":1,"action":7}"#,
            &deep,
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_call_has_a_method_of_any_case_a_uri_and_parameters() {
        let text = r#"{"id":1,"action":"call-route","method":"post","uri":"/a?b=1","input":{"c":[1]},
            "container":"main","partial":"row"}"#;
        let Some(Action::CallRoute(call)) = read(text).map(|message| message.action) else {
            panic!("a call")
        };
        assert_eq!(
            (call.method.as_str(), call.uri.as_str()),
            ("POST", "/a?b=1")
        );
        assert_eq!(Value::Object(call.input), json!({ "c": [1] }));
        assert_eq!(call.container.as_deref(), Some("main"));
        assert_eq!(call.partial.as_deref(), Some("row"));
        let bare = r#"{"id":1,"action":"call-route","uri":"a","input":7}"#;
        let Some(Action::CallRoute(call)) = read(bare).map(|message| message.action) else {
            panic!("a call")
        };
        assert_eq!((call.method.as_str(), call.input.len()), ("GET", 0));
    }

    #[test]
    fn a_call_that_cannot_be_made_has_a_reply_and_does_not_reach_the_application() {
        for (call, status) in [
            (r#""method":"GET""#, 400),
            (r#""method":"GET","uri":7"#, 400),
            (r#""method":"G T","uri":"/""#, 400),
            (r#""method":"","uri":"/""#, 400),
            (r#""method":"CONNECT","uri":"/x""#, 405),
            (r#""method":"connect","uri":"/x""#, 405),
            (r#""method":"TRACE","uri":"/x""#, 405),
        ] {
            let text = format!(r#"{{"id":"a","action":"call-route",{call}}}"#);
            let message = read(&text).expect(call);
            let Action::Refused(reply) = message.action else {
                panic!("{call} is a call")
            };
            assert_eq!((message.id.as_str(), reply.status), (r#""a""#, status));
        }
    }

    #[test]
    fn other_actions_are_for_the_application() {
        for name in ["fetch-view", "dance", "Ping", ""] {
            let text = json!({ "id": 1, "action": name }).to_string();
            let action = read(&text).map(|message| message.action);
            assert_eq!(action, Some(Action::Other(name.to_owned())));
        }
    }

    #[test]
    fn a_uri_never_chooses_the_host() {
        for (uri, wanted) in [
            ("/a?b=c#d", "/a?b=c"),
            ("a/b", "/a/b"),
            ("?a=b", "/?a=b"),
            ("", "/"),
            ("http://evil.example/a?b", "/a?b"),
            ("HTTP://evil.example", "/"),
            ("https://evil.example?a", "/?a"),
            ("//evil.example/a", "/a"),
            ("http:////evil.example//a", "/evil.example//a"),
            ("///evil.example/a", "/evil.example/a"),
            ("\\\\evil.example/a", "/%5C%5Cevil.example/a"),
            ("http:evil", "/evil"),
            ("/a b\r\nHost: evil", "/a%20b%0D%0AHost:%20evil"),
            ("/ä%20{x}", "/%C3%A4%20%7Bx%7D"),
        ] {
            assert_eq!(target(uri), wanted, "{uri}");
        }
    }

    #[test]
    fn parameters_are_merged_into_those_of_the_query() {
        let query = |target: &str, input: Value| match input {
            Value::Object(input) => with_query(target.to_owned(), &input),
            other => panic!("{other}"),
        };
        assert_eq!(query("/a", json!({})), "/a");
        assert_eq!(query("/a", json!({ "b": "c d" })), "/a?b=c%20d");
        assert_eq!(
            query("/a?x=1", json!({ "b": 7, "c": true })),
            "/a?x=1&b=7&c=true"
        );
        assert_eq!(query("/a", json!({ "b": [1, "&"] })), "/a?b[]=1&b[]=%26");
        assert_eq!(query("/a", json!({ "b": { "c": null } })), "/a?b[c]");
    }

    #[test]
    fn a_push_has_exactly_its_payload_and_its_channel() {
        let mut frame = Vec::new();
        write_push(r#"[1,{"key":"x"}]"#, "a\"b", &mut frame);
        let frame = String::from_utf8(frame).unwrap();
        assert_eq!(frame, r#"{"payload":[1,{"key":"x"}],"channel":"a\"b"}"#);
        let push: Push<'_> = serde_json::from_str(&frame).unwrap();
        assert_eq!(
            (push.payload.get(), &*push.channel),
            (r#"[1,{"key":"x"}]"#, "a\"b")
        );
        assert!(serde_json::from_str::<Push<'_>>(r#"{"payload":1,"channel":"a","x":1}"#).is_err());
    }

    #[test]
    fn a_wildcard_stands_for_any_text_without_a_semicolon() {
        let matches = |pattern, channel| Pattern::new(pattern).unwrap().matches(channel);
        for (pattern, channel) in [
            ("*", ""),
            ("*", "news"),
            ("chat:*", "chat:"),
            ("chat:*", "chat:1:2"),
            ("*:1", "chat:1"),
            ("a*b*c", "abbc"),
            ("a*aa", "aaaa"),
            (
                "scope:post;mutation:*::id:*",
                "scope:post;mutation:create::id:7",
            ),
            ("scope:*;*", "scope:a;b"),
        ] {
            assert!(matches(pattern, channel), "{pattern} {channel}");
        }
        for (pattern, channel) in [
            ("chat:*", "xchat:1"),
            ("*:1", "chat:12"),
            ("*", "a;b"),
            ("scope:post*", "scope:post;mutation:create"),
            ("a.*", "abc"),
            ("[a]*", "a"),
            ("a*aa", "aa"),
            ("*;*", "a;b;c"),
        ] {
            assert!(!matches(pattern, channel), "{pattern} {channel}");
        }
        assert_eq!(Pattern::new("plain.name"), None);
    }

    proptest! {
        #[test]
        fn a_target_is_always_a_path_of_visible_characters(uri in "\\PC{0,40}|[a-c:/?#\\\\@ \r\n]{0,20}") {
            let target = target(&uri);
            prop_assert!(target.starts_with('/') && !target.starts_with("//"), "{}", target);
            prop_assert!(target.bytes().all(|byte| byte.is_ascii_graphic()), "{}", target);
        }

        #[test]
        fn a_pattern_matches_what_its_wildcards_are_replaced_by(
            parts in proptest::collection::vec("[ab;]{0,3}", 2..5), fill in "[ab]{0,3}",
        ) {
            let pattern = parts.join("*");
            prop_assert!(Pattern::new(&pattern).unwrap().matches(&parts.join(&fill)), "{}", pattern);
        }
    }
}
