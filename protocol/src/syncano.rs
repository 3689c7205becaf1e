//! Requests to Syncano's real-time channels: paths, queries and bodies, as its SDKs write them.
//!
//! ```text
//! POST /v1.1/instances/shop/channels/chat/publish/?api_key=…     Path, Query
//! {"room": "tea", "payload": "{\"text\":\"hello\"}"}             fields() ──► Message
//! ```
//!
//! The SDKs send the same thing in different forms: a payload is an object or a text that
//! holds one, an absent parameter is an empty one, a number is a text in a form. Both are
//! read alike here. A value that cannot be read is a [`Mistake`] in the words of the
//! original server, because programs compare them.

use serde_json::{Map, Value};

/// A mistake in a request, in the words of the original server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Mistake {
    /// The field or parameter. `None` if the body as a whole cannot be read.
    pub field: Option<Box<str>>,
    /// The words.
    pub text: String,
}

impl Mistake {
    fn of(field: &str, text: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            text: text.into(),
        }
    }
}

/// The prefixes under which the original serves all paths.
pub const VERSIONS: [&str; 2] = ["/v1", "/v1.1"];

/// The subject of a request. Names are those of channels and classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// All channels.
    Channels,
    /// A channel.
    Channel(String),
    /// The next notification of a channel.
    Poll(String),
    /// A new notification of a channel.
    Publish(String),
    /// The notifications of a channel.
    History(String),
    /// One of them, by its id.
    Notification(String, u64),
    /// A class.
    Class(String),
    /// The objects of a class.
    Objects(String),
    /// One of them, by its id.
    Object(String, u64),
    /// The key of a user, for the password.
    UserAuth,
}

/// A path below an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The beginning of links in the response, such as `/v1.1/instances/shop`.
    pub base: String,
    /// The name of the instance.
    pub instance: String,
    /// The rest.
    pub resource: Resource,
}

impl Path {
    /// Reads a path. Names of instances, channels and classes are folded to lower case.
    /// Returns `None` if nothing has this path.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let mut segments = path.trim_start_matches('/').split('/').map(decode);
        let version = segments.next()?;
        let version = VERSIONS.iter().find(|known| known[1..] == version)?;
        if segments.next()? != "instances" {
            return None;
        }
        let instance = segments.next()?.to_lowercase();
        let mut rest: Vec<_> = segments.collect();
        // All paths end in a slash; one without it means the same.
        rest.pop_if(|last| last.is_empty());
        let rest: Vec<_> = rest.iter().map(String::as_str).collect();
        let name = |text: &str| text.to_lowercase();
        let resource = match rest[..] {
            ["channels"] => Resource::Channels,
            ["channels", channel] => Resource::Channel(name(channel)),
            ["channels", channel, "poll"] => Resource::Poll(name(channel)),
            ["channels", channel, "publish"] => Resource::Publish(name(channel)),
            ["channels", channel, "history"] => Resource::History(name(channel)),
            ["channels", channel, "history", id] => {
                Resource::Notification(name(channel), id.parse().ok()?)
            }
            ["classes", class] => Resource::Class(name(class)),
            ["classes", class, "objects"] => Resource::Objects(name(class)),
            ["classes", class, "objects", id] => Resource::Object(name(class), id.parse().ok()?),
            ["user", "auth"] => Resource::UserAuth,
            _ => return None,
        };
        Some(Self {
            base: format!("{version}/instances/{instance}"),
            instance,
            resource,
        })
    }
}

/// Decodes `%XX`. A segment that is not UTF-8 then names nothing that exists.
fn decode(segment: &str) -> String {
    percent_encoding::percent_decode_str(segment)
        .decode_utf8_lossy()
        .into_owned()
}

/// The query of a request. An empty value means the same as none, because the JavaScript SDK sends
/// `?last_id=&room=` for null.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query, without the question mark.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pairs = form_urlencoded::parse(text.as_bytes());
        let pairs = pairs.filter(|(_, value)| !value.is_empty());
        Self(
            pairs
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
        )
    }

    /// The first value of a parameter, if it has one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.0.iter();
        let found = pairs.find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A whole number of any size. One that is larger than every id means the same as the largest.
    ///
    /// # Errors
    ///
    /// The value is not an integer.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Mistake> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let text = text.trim();
        let (is_negative, digits) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(Mistake::of(name, "A valid integer is required."));
        }
        Ok(Some(text.parse().unwrap_or(match is_negative {
            true => i64::MIN,
            false => i64::MAX,
        })))
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

/// Reads the fields of a body with this `Content-Type`: JSON, or a form. By default curl declares a
/// form, so a text that looks like JSON is treated as JSON. An empty body has no fields.
///
/// # Errors
///
/// The body is not JSON, or no object.
pub fn fields(kind: &str, body: &[u8]) -> Result<Map<String, Value>, Mistake> {
    let start = body.trim_ascii_start();
    if start.is_empty() {
        return Ok(Map::new());
    }
    let is_form = kind
        .trim_start()
        .get(..FORM.len())
        .is_some_and(|kind| kind.eq_ignore_ascii_case(FORM));
    if is_form && !matches!(start[0], b'{' | b'[') {
        let pairs = form_urlencoded::parse(body);
        let pairs = pairs.map(|(name, value)| (name.into_owned(), value.into_owned().into()));
        return Ok(pairs.collect());
    }
    let value = serde_json::from_slice(body).map_err(|error| Mistake {
        field: None,
        text: format!("JSON parse error - {error}"),
    })?;
    let found = match value {
        Value::Object(fields) => return Ok(fields),
        Value::Array(_) => "list",
        Value::String(_) => "str",
        Value::Number(_) => "int",
        Value::Bool(_) | Value::Null => "bool",
    };
    let text = format!("Invalid data. Expected a dictionary, but got {found}.");
    Err(Mistake::of("non_field_errors", text))
}

/// A message that is published.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The content. Empty if the client sends none.
    pub payload: Map<String, Value>,
    /// The room of a channel with separate rooms.
    pub room: Option<String>,
}

impl Message {
    /// Reads `payload` and `room`. Both SDKs send the payload as a text that holds an object.
    ///
    /// # Errors
    ///
    /// The payload is not an object, or the room is not a text.
    pub fn read(fields: &Map<String, Value>) -> Result<Self, Mistake> {
        let wrong = |text| Mistake::of("payload", text);
        let invalid = "Payload passed in invalid format.";
        let payload = match fields.get("payload") {
            None => Map::new(),
            Some(Value::Object(payload)) => payload.clone(),
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Object(payload)) => payload,
                Ok(_) => return Err(wrong(invalid)),
                Err(_) => return Err(wrong("Not a valid JSON string.")),
            },
            Some(_) => return Err(wrong(invalid)),
        };
        Ok(Self {
            payload,
            room: text(fields, "room")?,
        })
    }
}

/// Reads a field with a name, which may be a whole number. Null is the same as none.
///
/// # Errors
///
/// The field is neither.
pub fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, Mistake> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(number) if integer(number).is_some() => Ok(Some(number.to_string())),
        Some(_) => Err(Mistake::of(name, "Not a valid string.")),
    }
}

/// A whole number, also as text: forms have nothing else.
#[must_use]
pub fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const JSON: &str = "application/json";

    fn resource(rest: &str) -> Option<Resource> {
        let path = Path::parse(&format!("/v1.1/instances/shop/{rest}"))?;
        assert_eq!(
            (&*path.instance, &*path.base),
            ("shop", "/v1.1/instances/shop")
        );
        Some(path.resource)
    }

    #[test]
    fn every_path_of_the_table_is_known() {
        let chat = || "chat".to_owned();
        let book = || "book".to_owned();
        let rows = [
            ("channels/", Resource::Channels),
            ("channels/chat/", Resource::Channel(chat())),
            ("channels/chat/poll/", Resource::Poll(chat())),
            ("channels/chat/publish/", Resource::Publish(chat())),
            ("channels/chat/history/", Resource::History(chat())),
            (
                "channels/chat/history/7/",
                Resource::Notification(chat(), 7),
            ),
            ("classes/book/", Resource::Class(book())),
            ("classes/book/objects/", Resource::Objects(book())),
            ("classes/book/objects/7/", Resource::Object(book(), 7)),
            ("user/auth/", Resource::UserAuth),
        ];
        for (path, wanted) in rows {
            assert_eq!(resource(path), Some(wanted.clone()), "{path}");
            let bare = path.trim_end_matches('/');
            assert_eq!(
                resource(bare),
                Some(wanted),
                "{path} without the final slash"
            );
        }
    }

    #[test]
    fn both_versions_are_known_and_links_keep_that_of_the_request() {
        for version in VERSIONS {
            let path = Path::parse(&format!("{version}/instances/shop/channels/")).unwrap();
            assert_eq!(path.base, format!("{version}/instances/shop"));
        }
        for wrong in [
            "/v2/instances/shop/channels/",
            "/v1/instance/shop/channels/",
            "/v1/",
            "/",
        ] {
            assert_eq!(Path::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_are_folded_to_lower_case() {
        let path = Path::parse("/v1/instances/SHOP/channels/Ch%41t/poll/").unwrap();
        assert_eq!(path.instance, "shop");
        assert_eq!(path.resource, Resource::Poll("chat".to_owned()));
    }

    #[test]
    fn ids_are_numbers_and_nothing_else_has_a_path() {
        for wrong in [
            "channels/chat/history/x/",
            "channels/chat/poll/7/",
            "batch/",
        ] {
            assert_eq!(resource(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_empty_value_is_the_same_as_none() {
        let query = Query::parse("last_id=&room=&x=1&x=2&a%20b=%C3%A4+");
        assert_eq!((query.get("last_id"), query.get("room")), (None, None));
        assert_eq!((query.get("x"), query.get("a b")), (Some("1"), Some("ä ")));
        assert_eq!(query.integer("last_id"), Ok(None));
    }

    #[test]
    fn numbers_may_have_a_sign_and_any_size() {
        let of = |text: &str| Query::parse(&format!("last_id={text}")).integer("last_id");
        let rows = [
            ("0", 0),
            ("17", 17),
            ("-1", -1),
            ("%2B3", 3),
            ("99999999999999999999", i64::MAX),
            ("-99999999999999999999", i64::MIN),
        ];
        for (text, wanted) in rows {
            assert_eq!(of(text), Ok(Some(wanted)), "{text}");
        }
        let wanted = Mistake::of("last_id", "A valid integer is required.");
        for wrong in ["x", "1.5", "-", "1e3", "0x1", "null"] {
            assert_eq!(of(wrong), Err(wanted.clone()), "{wrong}");
        }
    }

    #[test]
    fn a_body_is_json_or_a_form() {
        let of = |kind, text: &str| Value::Object(fields(kind, text.as_bytes()).unwrap());
        assert_eq!(of(JSON, r#"{"a":1}"#), json!({ "a": 1 }));
        assert_eq!(of("", r#"{"a":1}"#), json!({ "a": 1 }));
        assert_eq!(of(JSON, ""), json!({}));
        let form = "Application/x-www-form-urlencoded; charset=utf-8";
        assert_eq!(
            of(form, "room=a+b&payload=%7B%7D"),
            json!({ "room": "a b", "payload": "{}" })
        );
        assert_eq!(of(form, r#" {"a":1}"#), json!({ "a": 1 }));
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        let of = |text: &str| fields(JSON, text.as_bytes()).unwrap_err();
        let broken = of("{");
        assert_eq!(broken.field, None);
        assert!(broken.text.starts_with("JSON parse error - "), "{broken}");
        let text = "Invalid data. Expected a dictionary, but got list.";
        assert_eq!(of("[]"), Mistake::of("non_field_errors", text));
    }

    fn message(json: &Value) -> Result<Message, Mistake> {
        Message::read(json.as_object().unwrap())
    }

    #[test]
    fn a_payload_is_an_object_or_a_text_that_holds_one() {
        for payload in [json!({ "a": 1 }), json!("{\"a\":1}")] {
            let read = message(&json!({ "payload": payload, "room": "x" })).unwrap();
            assert_eq!(Value::Object(read.payload), json!({ "a": 1 }));
            assert_eq!(read.room.as_deref(), Some("x"));
        }
        let empty = message(&json!({})).unwrap();
        assert_eq!((empty.payload.len(), empty.room), (0, None));
    }

    #[test]
    fn another_payload_is_refused_with_the_words_of_the_original() {
        let of = |payload: Value| message(&json!({ "payload": payload })).unwrap_err();
        for payload in [json!([]), json!(7), json!(null), json!("[1]")] {
            let wanted = Mistake::of("payload", "Payload passed in invalid format.");
            assert_eq!(of(payload), wanted);
        }
        let wanted = Mistake::of("payload", "Not a valid JSON string.");
        assert_eq!(of(json!("{")), wanted);
    }

    #[test]
    fn a_room_is_text() {
        let of = |room: Value| message(&json!({ "room": room }));
        assert_eq!(of(json!(7)).unwrap().room.as_deref(), Some("7"));
        assert_eq!(of(json!(null)).unwrap().room, None);
        let wanted = Mistake::of("room", "Not a valid string.");
        assert_eq!(of(json!([])).unwrap_err(), wanted);
    }
}
