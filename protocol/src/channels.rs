//! The messages that clients of channels send and receive: JSON over HTTP and over a plain
//! WebSocket.
//!
//! A room's event has one shape everywhere: in an event stream, in the response to a poll, in a
//! room's history, and, with `"type":"event"`, in a WebSocket.
//!
//! ```text
//! {"id":"17","room":"news","event":"message","data":{"text":"hi"},"time":1700000000000}
//!  └ in the room's log      └ name           └ or "args":[…], unless there is exactly one
//! ```
//!
//! Ids are texts, because JavaScript's numbers are exact up to 2⁵³ only.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::value::RawValue;

/// An event of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// The id in the log, if it was stored there.
    pub id: Option<u64>,
    /// The room, if the event was emitted to exactly one.
    pub room: Option<&'a str>,
    /// The name.
    pub name: &'a str,
    /// The arguments as a JSON array.
    pub args: &'a str,
    /// When it was stored, in milliseconds since 1970.
    pub time: Option<u64>,
}

impl Event<'_> {
    /// Appends the event as a JSON object.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_after(b"{", out);
    }

    /// Appends the event as a frame of a WebSocket.
    pub fn write_frame(&self, out: &mut Vec<u8>) {
        self.write_after(b"{\"type\":\"event\",", out);
    }

    /// Appends the event as one of an event stream. Its JSON may have line breaks between
    /// values, which would end a line of the stream.
    pub fn write_stream(&self, out: &mut Vec<u8>) {
        if let Some(id) = self.id {
            out.extend_from_slice(format!("id: {id}\n").as_bytes());
        }
        out.extend_from_slice(b"data: ");
        let start = out.len();
        self.write(out);
        let breaks = out[start..].iter_mut();
        breaks
            .filter(|byte| matches!(byte, b'\n' | b'\r'))
            .for_each(|byte| *byte = b' ');
        out.extend_from_slice(b"\n\n");
    }

    fn write_after(&self, start: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(start);
        if let Some(id) = self.id {
            out.extend_from_slice(format!("\"id\":\"{id}\",").as_bytes());
        }
        if let Some(room) = self.room {
            out.extend_from_slice(b"\"room\":");
            text(room, out);
            out.push(b',');
        }
        out.extend_from_slice(b"\"event\":");
        text(self.name, out);
        let (key, value) = match only(self.args) {
            Some(data) => ("data", data),
            None => ("args", self.args),
        };
        out.extend_from_slice(format!(",\"{key}\":").as_bytes());
        out.extend_from_slice(value.as_bytes());
        if let Some(time) = self.time {
            out.extend_from_slice(format!(",\"time\":{time}").as_bytes());
        }
        out.push(b'}');
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    // Fails only if writing fails, which a vector never does.
    let _ = serde_json::to_writer(out, text);
}

/// The element of a JSON array that has exactly one.
fn only(array: &str) -> Option<&str> {
    match *serde_json::from_str::<Vec<&RawValue>>(array).ok()? {
        [data] => Some(data.get()),
        _ => None,
    }
}

/// An event that a client publishes: an event and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The name. Default `message`.
    pub event: String,
    /// The arguments as a JSON array: of `data` alone, or `args`.
    pub args: String,
}

/// A frame of a client over a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// A JSON value of the client's, which the reply has as `ref`.
    pub reference: Option<String>,
    /// The request.
    pub request: Request,
}

/// The request of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// To receive the events of these rooms.
    Subscribe {
        /// At least one.
        rooms: Vec<String>,
        /// The last event that it has seen; the ones after it are sent first.
        last_id: Option<u64>,
    },
    /// To receive nothing more of these rooms.
    Unsubscribe {
        /// At least one.
        rooms: Vec<String>,
    },
    /// To publish an event in a room.
    Publish {
        /// The room.
        room: String,
        /// The event.
        publish: Publish,
    },
    /// To be known by a fresh token of the same user.
    Token {
        /// The token.
        token: String,
    },
    /// A reply.
    Ping,
}

/// Why a text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is no JSON object, or a member occurs twice.
    #[error("expected a JSON object: {0}")]
    Json(String),
    /// A member has another type or is unknown.
    #[error("{error}")]
    Member {
        /// Its name.
        name: String,
        /// The reason.
        error: String,
    },
    /// The type of a frame is unknown.
    #[error("`{0}` is no type of frame: use subscribe, unsubscribe, publish, token or ping")]
    Type(String),
    /// A member is missing.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A member is not allowed in a frame of this type, or not together with another.
    #[error("`{0}` has no place here")]
    Unexpected(&'static str),
    /// The reference is too long.
    #[error("`ref` is longer than {MAX_REFERENCE} bytes")]
    Reference,
}

impl ReadError {
    /// The name of the wrong member, if it is one.
    #[must_use]
    pub fn member(&self) -> Option<&str> {
        match self {
            Self::Json(_) => None,
            Self::Member { name, .. } => Some(name),
            Self::Type(_) => Some("type"),
            Self::Missing(name) | Self::Unexpected(name) => Some(name),
            Self::Reference => Some("ref"),
        }
    }
}

/// The longest reference in bytes.
pub const MAX_REFERENCE: usize = 256;

/// The name of an event that has none.
const DEFAULT_EVENT: &str = "message";

impl Publish {
    /// Reads the body of a request.
    pub fn read(text: &str) -> Result<Self, ReadError> {
        let Members {
            event, data, args, ..
        } = members(text, &["event", "data", "args"])?;
        Self::new(event, data, args)
    }

    fn new(
        event: Option<String>,
        data: Option<&RawValue>,
        args: Option<&RawValue>,
    ) -> Result<Self, ReadError> {
        let args = match (data, args) {
            (Some(data), None) => format!("[{}]", data.get()),
            (None, Some(args)) if args.get().starts_with('[') => args.get().to_owned(),
            (None, Some(_)) => {
                return Err(ReadError::Member {
                    name: "args".to_owned(),
                    error: "`args` is no array".to_owned(),
                });
            }
            (None, None) => return Err(ReadError::Missing("data")),
            (Some(_), Some(_)) => return Err(ReadError::Unexpected("args")),
        };
        Ok(Self {
            event: event.unwrap_or_else(|| DEFAULT_EVENT.to_owned()),
            args,
        })
    }
}

impl Frame {
    /// Reads a frame. The reference is returned with an error, too, if it could be read.
    pub fn read(text: &str) -> Result<Self, (ReadError, Option<String>)> {
        let all = members(text, ALL).map_err(|error| (error, reference(text)))?;
        let reference = all.reference.map(|reference| reference.get().to_owned());
        if reference.as_deref().is_some_and(is_too_long) {
            return Err((ReadError::Reference, None));
        }
        match request(all) {
            Ok(request) => Ok(Self { reference, request }),
            Err(error) => Err((error, reference)),
        }
    }
}

fn is_too_long(reference: &str) -> bool {
    reference.len() > MAX_REFERENCE
}

/// The reference of a frame whose other content cannot be read.
fn reference(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Reference<'a> {
        #[serde(borrow, default, rename = "ref", deserialize_with = "raw")]
        reference: Option<&'a RawValue>,
    }

    // A list would be read as the members in their order.
    let is_object = text.trim_ascii_start().starts_with('{');
    let read = serde_json::from_str::<Reference<'_>>(text).ok();
    let reference = read.filter(|_| is_object)?.reference?.get();
    (!is_too_long(reference)).then(|| reference.to_owned())
}

fn request(all: Members<'_>) -> Result<Request, ReadError> {
    let kind = all.kind.as_deref().ok_or(ReadError::Missing("type"))?;
    let allowed: &[_] = match kind {
        "subscribe" => &["room", "rooms", "last_id"],
        "unsubscribe" => &["room", "rooms"],
        "publish" => &["room", "event", "data", "args"],
        "token" => &["token"],
        "ping" => &[],
        other => return Err(ReadError::Type(other.to_owned())),
    };
    all.only(&[&["type", "ref"], allowed].concat())?;
    Ok(match kind {
        "subscribe" => Request::Subscribe {
            last_id: all.last_id,
            rooms: rooms(all.room, all.rooms)?,
        },
        "unsubscribe" => Request::Unsubscribe {
            rooms: rooms(all.room, all.rooms)?,
        },
        "publish" => Request::Publish {
            room: all.room.ok_or(ReadError::Missing("room"))?,
            publish: Publish::new(all.event, all.data, all.args)?,
        },
        "token" => Request::Token {
            token: all.token.ok_or(ReadError::Missing("token"))?,
        },
        _ => Request::Ping,
    })
}

fn rooms(room: Option<String>, rooms: Option<Vec<String>>) -> Result<Vec<String>, ReadError> {
    match (room, rooms) {
        (Some(room), None) => Ok(vec![room]),
        (None, Some(rooms)) if !rooms.is_empty() => Ok(rooms),
        (None, _) => Err(ReadError::Missing("room")),
        (Some(_), Some(_)) => Err(ReadError::Unexpected("rooms")),
    }
}

/// Reads an id, which is a text or a number.
pub fn id(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// All members that a body or a frame can have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Members<'a> {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(borrow, default, rename = "ref", deserialize_with = "raw")]
    reference: Option<&'a RawValue>,
    room: Option<String>,
    rooms: Option<Vec<String>>,
    #[serde(default, deserialize_with = "last_id")]
    last_id: Option<u64>,
    event: Option<String>,
    #[serde(borrow, default, deserialize_with = "raw")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "raw")]
    args: Option<&'a RawValue>,
    token: Option<String>,
}

/// The names of all members.
const ALL: &[&str] = &[
    "type", "ref", "room", "rooms", "last_id", "event", "data", "args", "token",
];

impl Members<'_> {
    /// Refuses a member that is not in the list.
    fn only(&self, allowed: &[&str]) -> Result<(), ReadError> {
        let there = [
            self.kind.is_some(),
            self.reference.is_some(),
            self.room.is_some(),
            self.rooms.is_some(),
            self.last_id.is_some(),
            self.event.is_some(),
            self.data.is_some(),
            self.args.is_some(),
            self.token.is_some(),
        ];
        let mut wrong = ALL.iter().zip(there);
        match wrong.find(|(name, is_there)| *is_there && !allowed.contains(*name)) {
            Some((name, _)) => Err(ReadError::Unexpected(name)),
            None => Ok(()),
        }
    }
}

fn members<'a>(text: &'a str, allowed: &[&str]) -> Result<Members<'a>, ReadError> {
    if text.trim_ascii_start().starts_with('[') {
        // Serde would read it as the members in their order.
        return Err(ReadError::Json("expected an object".to_owned()));
    }
    let read = serde_json::from_str::<Members<'_>>(text);
    let members = read.map_err(|error| {
        let of_member = wrong_member(text, allowed);
        of_member.unwrap_or_else(|| ReadError::Json(error.to_string()))
    })?;
    members.only(allowed)?;
    Ok(members)
}

/// Finds the member because of which an object cannot be read.
fn wrong_member(text: &str, allowed: &[&str]) -> Option<ReadError> {
    let all: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    all.into_iter().find_map(|(name, value)| {
        if !allowed.contains(&name.as_str()) {
            let known = allowed.join("`, `");
            let error = format!("unknown field `{name}`, expected one of `{known}`");
            return Some(ReadError::Member { name, error });
        }
        let alone = format!(r#"{{"{name}":{}}}"#, value.get());
        let error = serde_json::from_str::<Members<'_>>(&alone).err()?;
        let error = error.to_string();
        // The position is one within the member, which misleads.
        let error = error
            .rsplit_once(" at line ")
            .map_or(&*error, |(text, _)| text);
        let error = error.to_owned();
        Some(ReadError::Member { name, error })
    })
}

/// A value unchanged; `null` is one.
fn raw<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn last_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "`last_id` is no id of an event")]
    enum Id<'a> {
        Number(u64),
        Text(#[serde(borrow)] Cow<'a, str>),
    }
    match Option::<Id<'_>>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Id::Number(id)) => Ok(Some(id)),
        Some(Id::Text(text)) => id(&text)
            .map(Some)
            .ok_or_else(|| D::Error::custom("`last_id` is no id of an event")),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        ReadError::{Missing, Type, Unexpected},
        *,
    };

    const EVENT: Event<'static> = Event {
        id: Some(17),
        room: Some("news"),
        name: "message",
        args: r#"[{"text":"hi"}]"#,
        time: Some(1_700_000_000_000),
    };

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn an_event_has_one_shape_everywhere() {
        let json = r#"{"id":"17","room":"news","event":"message","data":{"text":"hi"},"time":1700000000000}"#;
        assert_eq!(written(|out| EVENT.write(out)), json);
        assert_eq!(
            written(|out| EVENT.write_frame(out)),
            json.replacen('{', "{\"type\":\"event\",", 1)
        );
        assert_eq!(
            written(|out| EVENT.write_stream(out)),
            format!("id: 17\ndata: {json}\n\n")
        );
    }

    #[test]
    fn what_is_not_known_is_left_out_and_several_arguments_stay_a_list() {
        let event = Event {
            id: None,
            room: None,
            name: "a \"b\"",
            args: "[1, 2]",
            time: None,
        };
        let json = r#"{"event":"a \"b\"","args":[1, 2]}"#;
        assert_eq!(written(|out| event.write(out)), json);
        let none = Event {
            args: "[]",
            ..event
        };
        assert_eq!(
            written(|out| none.write(out)),
            r#"{"event":"a \"b\"","args":[]}"#
        );
    }

    #[test]
    fn an_event_is_one_line_of_a_stream() {
        let event = Event {
            args: "[\n{\r\n\"text\":\n\"a\\nb\"}]",
            ..EVENT
        };
        let stream = written(|out| event.write_stream(out));
        let (head, end) = stream.split_at(stream.len() - 2);
        assert_eq!(end, "\n\n");
        assert_eq!(head.lines().count(), 2, "{head}");
        assert!(!stream.contains('\r'));
        assert!(stream.contains(r"a\nb"));
    }

    #[test]
    fn a_body_has_data_or_a_list_of_arguments() {
        for (text, event, args) in [
            (r#"{"data":null}"#, "message", "[null]"),
            (
                r#"{"event":"news","data":{"a": [1]}}"#,
                "news",
                r#"[{"a": [1]}]"#,
            ),
            (r#"{"args":[1,"\ud800"]}"#, "message", r#"[1,"\ud800"]"#),
        ] {
            let read = Publish::read(text).expect(text);
            assert_eq!((&*read.event, &*read.args), (event, args));
        }
        for (text, error) in [
            ("{}", Missing("data")),
            (r#"{"data":1,"args":[]}"#, Unexpected("args")),
            (r#"{"data":1,"room":"x"}"#, Unexpected("room")),
        ] {
            assert_eq!(Publish::read(text), Err(error));
        }
    }

    #[test]
    fn a_member_that_is_wrong_is_named_and_only_members_of_a_body_are_expected() {
        for (body, member) in [
            (r#"{"event":5,"data":1}"#, Some("event")),
            (r#"{"args":5}"#, Some("args")),
            (r#"{"data":1,"colour":2}"#, Some("colour")),
            (r#"{"data":1,"ref":2}"#, Some("ref")),
            ("{}", Some("data")),
            ("", None),
            ("{", None),
        ] {
            let error = Publish::read(body).expect_err(body);
            assert_eq!(error.member(), member, "{body}");
        }
        let error = Publish::read(r#"{"data":1,"colour":2}"#).expect_err("unknown");
        let wanted = "unknown field `colour`, expected one of `event`, `data`, `args`";
        assert_eq!(error.to_string(), wanted);
        // Such as a text that was posted as it is.
        let error = Publish::read("hello").expect_err("no JSON").to_string();
        assert!(error.starts_with("expected a JSON object: "), "{error}");
    }

    #[test]
    fn frames_are_read_with_their_reference() {
        let a = || "a".to_owned();
        let subscribe = |rooms, last_id| Request::Subscribe { rooms, last_id };
        let both = || subscribe(vec![a(), "b".to_owned()], Some(17));
        let publish = Publish {
            event: "message".to_owned(),
            args: "[7]".to_owned(),
        };
        for (members, request) in [
            (
                r#""type":"subscribe","room":"a""#,
                subscribe(vec![a()], None),
            ),
            (
                r#""type":"subscribe","rooms":["a","b"],"last_id":17"#,
                both(),
            ),
            (
                r#""type":"subscribe","rooms":["a","b"],"last_id":"17""#,
                both(),
            ),
            (
                r#""type":"unsubscribe","room":"a""#,
                Request::Unsubscribe { rooms: vec![a()] },
            ),
            (
                r#""type":"publish","room":"a","data":7"#,
                Request::Publish { room: a(), publish },
            ),
            (
                r#""type":"token","token":"a""#,
                Request::Token { token: a() },
            ),
            (r#""type":"ping""#, Request::Ping),
        ] {
            for reference in [None, Some("null"), Some(r#"{"n":1}"#)] {
                let of_reference = reference.map(|json| format!(r#","ref":{json}"#));
                let text = format!("{{{members}{}}}", of_reference.unwrap_or_default());
                let frame = Frame::read(&text).expect("a frame");
                assert_eq!(frame.request, request, "{text}");
                assert_eq!(frame.reference.as_deref(), reference, "{text}");
            }
        }
    }

    #[test]
    fn a_wrong_frame_is_refused_with_its_reference_if_it_has_one() {
        for (members, error) in [
            (r#""room":"a""#, Missing("type")),
            (r#""type":"pong""#, Type("pong".to_owned())),
            (r#""type":"subscribe""#, Missing("room")),
            (r#""type":"subscribe","rooms":[]"#, Missing("room")),
            (
                r#""type":"subscribe","room":"a","rooms":["b"]"#,
                Unexpected("rooms"),
            ),
            (
                r#""type":"unsubscribe","room":"a","last_id":1"#,
                Unexpected("last_id"),
            ),
            (r#""type":"publish","data":1"#, Missing("room")),
            (r#""type":"publish","room":"a""#, Missing("data")),
            (r#""type":"token""#, Missing("token")),
            (r#""type":"ping","room":"a""#, Unexpected("room")),
        ] {
            let refused = Frame::read(&format!("{{{members}}}"));
            assert_eq!(refused, Err((error.clone(), None)), "{members}");
            let refused = Frame::read(&format!(r#"{{{members},"ref":7}}"#));
            assert_eq!(refused, Err((error, Some("7".to_owned()))), "{members}");
        }
        let long = format!(r#"{{"type":"ping","ref":"{}"}}"#, "a".repeat(MAX_REFERENCE));
        assert_eq!(Frame::read(&long), Err((ReadError::Reference, None)));
    }

    #[test]
    fn a_frame_with_a_wrong_member_keeps_its_reference() {
        for (member, about) in [
            (r#""last_id":"x""#, "no id of an event"),
            (r#""last_id":-1"#, "no id of an event"),
            (r#""last_id":{}"#, "no id of an event"),
            (r#""room":7"#, "expected a string"),
            (r#""unknown":7"#, "unknown field"),
        ] {
            for text in [
                format!(r#"{{"type":"subscribe",{member},"ref":{{"n":1}}}}"#),
                format!(r#"{{"ref":{{"n":1}},{member},"type":"subscribe"}}"#),
            ] {
                let (error, reference) = Frame::read(&text).unwrap_err();
                assert!(error.to_string().contains(about), "{error}");
                assert_eq!(reference.as_deref(), Some(r#"{"n":1}"#), "{text}");
            }
        }
        let long = format!(r#"{{"last_id":"x","ref":"{}"}}"#, "a".repeat(MAX_REFERENCE));
        assert_eq!(Frame::read(&long).unwrap_err().1, None);
    }

    #[test]
    fn errors_are_about_json_and_not_about_types_of_rust() {
        for wrong in ["7", "[]", "\"ping\"", "null", r#"["ping",1]"#] {
            let (error, reference) = Frame::read(wrong).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("expected an object"), "{wrong}: {text}");
            assert!(!text.contains("struct"), "{wrong}: {text}");
            assert_eq!(reference, None);
            let body = Publish::read(wrong).unwrap_err().to_string();
            assert!(body.contains("expected an object"), "{wrong}: {body}");
        }
    }

    #[test]
    fn ids_are_digits_only() {
        assert_eq!(id("17"), Some(17));
        assert_eq!(id("18446744073709551615"), Some(u64::MAX));
        for wrong in ["", "+1", "-1", "1.0", "18446744073709551616", "a"] {
            assert_eq!(id(wrong), None, "{wrong}");
        }
    }
}
