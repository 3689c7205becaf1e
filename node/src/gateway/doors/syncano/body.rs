//! Bodies of requests: JSON or a form, within the size limit.

use axum::body::Body;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Map, Value};

use super::{channel::integer, failure::Failure};

/// The fields of a body. What is wrong with it is reported only after key and permission were
/// checked, as by the original.
pub(super) type Fields = Result<Map<String, Value>, Failure>;

/// Reads a body. The length that the request declares decides before anything is read.
pub(super) async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Fields, Failure> {
    let declared = headers.get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(Failure::too_large(limit));
    }
    let read = Limited::new(body, limit).collect().await;
    let body = read.map_err(|error| match error.is::<LengthLimitError>() {
        true => Failure::too_large(limit),
        false => Failure::detail(StatusCode::BAD_REQUEST, "The body is broken."),
    })?;
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    Ok(parse(kind, &body.to_bytes()))
}

/// Parses a body. curl declares a form when it is not told otherwise, so that a text that looks like
/// JSON is taken as such.
fn parse(kind: &str, body: &[u8]) -> Fields {
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
    let value = serde_json::from_slice(body).map_err(|error| Failure::not_json(&error))?;
    match value {
        Value::Object(fields) => Ok(fields),
        other => {
            let found = match other {
                Value::Array(_) => "list",
                Value::String(_) => "str",
                Value::Number(_) => "int",
                _ => "bool",
            };
            let text = format!("Invalid data. Expected a dictionary, but got {found}.");
            Err(Failure::field("non_field_errors", text))
        }
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

/// The fields of a message that is published.
#[derive(Debug, PartialEq)]
pub(super) struct Message {
    pub(super) payload: Map<String, Value>,
    pub(super) room: Option<String>,
}

impl Message {
    /// Reads `payload` and `room`. Both SDKs send the payload as a text that holds an object.
    pub(super) fn read(fields: &Map<String, Value>) -> Result<Self, Failure> {
        let wrong = || Failure::field("payload", "Payload passed in invalid format.");
        let payload = match fields.get("payload") {
            None => Map::new(),
            Some(Value::Object(payload)) => payload.clone(),
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Object(payload)) => payload,
                Ok(_) => return Err(wrong()),
                Err(_) => return Err(Failure::field("payload", "Not a valid JSON string.")),
            },
            Some(_) => return Err(wrong()),
        };
        Ok(Self {
            payload,
            room: room(fields, "room")?,
        })
    }
}

/// Reads the name of a room.
pub(super) fn room(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(room)) => Ok(Some(room.clone())),
        Some(number) if integer(number).is_some() => Ok(Some(number.to_string())),
        Some(_) => Err(Failure::field(name, "Not a valid string.")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const JSON: &str = "application/json";

    fn message(json: &Value) -> Result<Message, Failure> {
        Message::read(json.as_object().unwrap())
    }

    #[test]
    fn a_body_is_json_or_a_form() {
        let of = |kind, text: &str| Value::Object(parse(kind, text.as_bytes()).unwrap());
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
        let of = |text: &str| parse(JSON, text.as_bytes()).unwrap_err().body;
        let detail = of("{").get("detail").cloned().unwrap();
        assert!(
            detail.as_str().unwrap().starts_with("JSON parse error - "),
            "{detail}"
        );
        let text = "Invalid data. Expected a dictionary, but got list.";
        assert_eq!(of("[]"), json!({ "non_field_errors": [text] }));
    }

    #[tokio::test]
    async fn the_declared_length_decides_before_anything_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, 11.into());
        let broken = Body::from_stream(futures_util::stream::once(async {
            Err::<bytes::Bytes, _>(std::io::Error::other("read"))
        }));
        let failure = read(&headers, broken, 10).await.unwrap_err();
        assert_eq!(failure, Failure::too_large(10));
        headers.clear();
        let failure = read(&headers, Body::from("a".repeat(11)), 10).await;
        assert_eq!(failure.unwrap_err(), Failure::too_large(10));
        let fields = read(&headers, Body::from("{\"a\":2}"), 10).await.unwrap();
        assert_eq!(fields.unwrap()["a"], 2);
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
        let of = |payload: Value| message(&json!({ "payload": payload })).unwrap_err().body;
        for payload in [json!([]), json!(7), json!(null), json!("[1]")] {
            assert_eq!(
                of(payload),
                json!({ "payload": ["Payload passed in invalid format."] })
            );
        }
        assert_eq!(
            of(json!("{")),
            json!({ "payload": ["Not a valid JSON string."] })
        );
    }

    #[test]
    fn a_room_is_text() {
        let of = |room: Value| message(&json!({ "room": room }));
        assert_eq!(of(json!(7)).unwrap().room.as_deref(), Some("7"));
        assert_eq!(of(json!(null)).unwrap().room, None);
        let text = "Not a valid string.";
        assert_eq!(of(json!([])).unwrap_err().body, json!({ "room": [text] }));
    }
}
