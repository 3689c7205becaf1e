//! The JSON of operations.
//!
//! Each operation has its own form that denies unknown fields, because a misspelt
//! field such as `room` would otherwise select the asking socket instead. The name is
//! read first, so that the error is about the form that was meant and not about all of
//! them, as with an untagged enum.
//!
//! Fields that select sockets distinguish *absent* from *empty*: absent means the asking socket,
//! empty means no socket. A program that computes an empty list must never reach everybody.

use std::borrow::Cow;

use roomcast::Args;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, value::RawValue};

use super::{Flags, Operation, Problem, Selected, Whom, binary};
use crate::gateway::{object, options::nearest, session::user_room};

/// Reads a list of operations from a JSON array.
pub(crate) fn read(json: &RawValue) -> Result<Vec<Operation>, Problem> {
    let list: Vec<&RawValue> = serde_json::from_str(json.get())
        .map_err(|error| Problem::new("", without_position(&error.to_string())))?;
    // Each operation stays text until its form is known.
    list.into_iter()
        .enumerate()
        .map(|(index, operation)| {
            read_one(operation).map_err(|Problem { at, what }| Problem {
                at: format!("[{index}]{at}"),
                what,
            })
        })
        .collect()
}

/// Reads one operation from a JSON object.
pub(crate) fn read_one(json: &RawValue) -> Result<Operation, Problem> {
    #[derive(Deserialize)]
    #[serde(expecting = "an object")]
    struct Head<'a> {
        #[serde(borrow)]
        op: Cow<'a, str>,
    }
    let Head { op } = form(json)?;
    Ok(match &*op {
        "ack" => form::<AckForm>(json)?.operation()?,
        "refuse" => {
            let RefuseForm { message, data, .. } = form(json)?;
            Operation::Refuse { message, data }
        }
        "join" => {
            let (rooms, whom) = form::<RoomsForm>(json)?.parts();
            Operation::Join { rooms, whom }
        }
        "leave" => {
            let (rooms, whom) = form::<RoomsForm>(json)?.parts();
            Operation::Leave { rooms, whom }
        }
        "emit" => form::<EmitForm>(json)?.operation()?,
        "set_data" => {
            let SetDataForm { data, .. } = form(json)?;
            Operation::SetData { data }
        }
        "set_user" => {
            let SetUserForm { user, .. } = form(json)?;
            Operation::SetUser { user }
        }
        "disconnect" => {
            let form: DisconnectForm = form(json)?;
            let whom = whom(("rooms", form.rooms), form.sockets, form.users, form.all);
            let close = form.close;
            Operation::Disconnect { close, whom }
        }
        unknown => return Err(Problem::new(".op", unknown_operation(unknown))),
    })
}

/// Names the nearest operation, because most unknown names are typing errors.
fn unknown_operation(name: &str) -> String {
    let known = OPERATIONS.join(", ");
    // Below this similarity, a suggestion would be a guess.
    match nearest(name, OPERATIONS).filter(|(similarity, _)| *similarity > 0.8) {
        Some((_, nearest)) => {
            format!("unknown operation `{name}`, did you mean `{nearest}`? ({known})")
        }
        None => format!("unknown operation `{name}`, expected one of {known}"),
    }
}

const OPERATIONS: [&str; 8] = [
    "ack",
    "refuse",
    "join",
    "leave",
    "emit",
    "set_data",
    "set_user",
    "disconnect",
];

/// Reads an object and names the field that is wrong.
fn form<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Result<T, Problem> {
    object::read(json.get().as_bytes()).map_err(|(path, error)| {
        let at = match path.as_str() {
            "" => path,
            path => format!(".{path}"),
        };
        Problem::new(at, without_position(&error.to_string()))
    })
}

/// The position is one within the operation, which misleads.
fn without_position(text: &str) -> &str {
    text.rsplit_once(" at line ").map_or(text, |(text, _)| text)
}

/// The name of the operation has been read before.
/// Each form has the field nevertheless, because unknown fields are denied.
type Op = serde::de::IgnoredAny;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AckForm {
    #[serde(rename = "op")]
    _op: Op,
    args: Option<Box<RawValue>>,
}

impl AckForm {
    fn operation(self) -> Result<Operation, Problem> {
        let args = arguments(self.args.as_deref())?;
        Ok(Operation::Ack { args })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefuseForm {
    #[serde(rename = "op")]
    _op: Op,
    message: String,
    data: Option<Value>,
}

/// `in` selects by rooms here, because `rooms` are those to join or leave.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoomsForm {
    #[serde(rename = "op")]
    _op: Op,
    rooms: Vec<String>,
    #[serde(rename = "in", default, deserialize_with = "present")]
    inside: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    sockets: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    users: Option<Vec<String>>,
    #[serde(default)]
    all: bool,
}

impl RoomsForm {
    fn parts(self) -> (Vec<String>, Whom) {
        let whom = whom(("in", self.inside), self.sockets, self.users, self.all);
        (self.rooms, whom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmitForm {
    #[serde(rename = "op")]
    _op: Op,
    event: String,
    #[serde(default, deserialize_with = "present")]
    args: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    rooms: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    sockets: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    users: Option<Vec<String>>,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    except: Vec<String>,
    #[serde(default)]
    flags: Flags,
}

impl EmitForm {
    fn operation(self) -> Result<Operation, Problem> {
        Ok(Operation::Emit {
            args: arguments(self.args.as_deref())?,
            event: self.event,
            whom: whom(("rooms", self.rooms), self.sockets, self.users, self.all),
            except: self.except,
            flags: self.flags,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetDataForm {
    #[serde(rename = "op")]
    _op: Op,
    data: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetUserForm {
    #[serde(rename = "op")]
    _op: Op,
    user: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DisconnectForm {
    #[serde(rename = "op")]
    _op: Op,
    #[serde(default)]
    close: bool,
    #[serde(default, deserialize_with = "present")]
    rooms: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    sockets: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    users: Option<Vec<String>>,
    #[serde(default)]
    all: bool,
}

/// Reads a value that is present. `null` is refused, because the API's description permits none.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// An event without arguments is common, so the field may be absent.
fn arguments(json: Option<&RawValue>) -> Result<Args, Problem> {
    json.map_or_else(
        || Ok(Args::default()),
        |json| binary::from_json(json).map_err(|what| Problem::new(".args", what)),
    )
}

/// The sockets that these lists select together. A socket's id is the name of its private room.
/// `all` wins over lists, since it includes them.
fn whom(
    (field, rooms): (&'static str, Option<Vec<String>>),
    sockets: Option<Vec<String>>,
    users: Option<Vec<String>>,
    all: bool,
) -> Whom {
    if all {
        return Whom::Everybody;
    }
    if rooms.is_none() && sockets.is_none() && users.is_none() {
        return Whom::Asker;
    }
    let mut selected = Selected::default();
    if let Some(rooms) = rooms {
        selected.add(field, rooms);
    }
    if let Some(sockets) = sockets {
        selected.add("sockets", sockets);
    }
    let room = |user: String| match &*user {
        // Left empty for the check, which refuses it.
        "" => user,
        user => user_room(user),
    };
    if let Some(users) = users {
        selected.add("users", users.into_iter().map(room));
    }
    Whom::Rooms(selected)
}
