//! Notifications: how one is published as an event, and how any event looks as one.
//!
//! The event `notification` carries the parts that are not in the log: action, author,
//! metadata, payload. Id and time come from the log. An event of another door becomes a
//! notification whose payload is its only argument if that is an object, and its name and
//! arguments otherwise.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{body::object, time};

/// The event that a notification is.
pub(super) const EVENT: &str = "notification";

/// An operation on an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Task {
    Create,
    Read,
    Update,
    Delete,
}

/// The argument of the event that a notification is. Its cause is a change to an object of a class,
/// or none for a message.
pub(super) fn argument(
    change: Option<(Task, &str)>,
    author: Value,
    payload: Map<String, Value>,
) -> Value {
    let (action, metadata) = match change {
        None => (json!("custom"), json!({ "type": "message" })),
        Some((task, class)) => (json!(task), json!({ "type": "object", "class": class })),
    };
    Value::Object(object([
        ("action", action),
        ("author", author),
        ("metadata", metadata),
        ("payload", payload.into()),
    ]))
}

/// The notification that an event is. `args` is the JSON text of its arguments.
/// Missing members get defaults, so that every notification has all of them.
pub(super) fn of_event(event: &str, args: &str, id: u64, millis: u64) -> Map<String, Value> {
    let args: Vec<Value> = serde_json::from_str(args).unwrap_or_default();
    let own = match &args[..] {
        // An event of this name from another door need not have the form.
        [Value::Object(only)] if event == EVENT && only.contains_key("action") => Some(only),
        _ => None,
    };
    let created_at = time::format(millis).into();
    let mut all = object([("id", id.into()), ("created_at", created_at)]);
    for (key, default) in [
        ("action", json!("custom")),
        ("author", json!({})),
        ("metadata", json!({ "type": "message" })),
        ("payload", Value::Null),
    ] {
        let value = own.and_then(|own| own.get(key)).cloned();
        all.insert(key.to_owned(), value.unwrap_or(default));
    }
    if own.is_none() {
        let payload = match <[Value; 1]>::try_from(args) {
            Ok([only @ Value::Object(_)]) => only,
            Ok([only]) => json!({ "event": event, "args": [only] }),
            Err(args) => json!({ "event": event, "args": args }),
        };
        all.insert("payload".to_owned(), payload);
    }
    all
}

/// The notification as history and publish show it: with a link to itself.
pub(super) fn with_links(mut notification: Map<String, Value>, base: &str, channel: &str) -> Value {
    let id = notification
        .get("id")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    let own = format!("{base}/channels/{channel}/history/{id}/");
    notification.insert("links".to_owned(), json!({ "self": own }));
    Value::Object(notification)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_six_keys_of_the_original() {
        let (author, payload) = (json!({ "api_key": 2, "user": 7 }), json!("hi"));
        let argument = argument(None, author, object([("text", payload)]));
        let args = json!([argument]).to_string();
        let notification = of_event(EVENT, &args, 17, 1_700_000_000_120);
        assert_eq!(
            Value::Object(notification).to_string(),
            r#"{"id":17,"created_at":"2023-11-14T22:13:20.120000Z","action":"custom","author":{"api_key":2,"user":7},"metadata":{"type":"message"},"payload":{"text":"hi"}}"#
        );
    }

    #[test]
    fn an_event_of_another_door_becomes_a_custom_message() {
        let payload = |event: &str, args: Value| {
            let notification = of_event(event, &args.to_string(), 1, 0);
            assert_eq!(notification.len(), 6);
            assert_eq!(notification["action"], "custom");
            assert_eq!(notification["author"], json!({}));
            notification["payload"].clone()
        };
        assert_eq!(payload("message", json!([{ "a": 1 }])), json!({ "a": 1 }));
        assert_eq!(
            payload("message", json!(["a"])),
            json!({ "event": "message", "args": ["a"] })
        );
        assert_eq!(payload("x", json!([])), json!({ "event": "x", "args": [] }));
        // A client that imitates the event has published an object, not a notification.
        assert_eq!(payload(EVENT, json!([{ "b": 1 }])), json!({ "b": 1 }));
    }
}
