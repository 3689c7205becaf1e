//! The JSON of operations.
//!
//! Members that select sockets distinguish *absent* from *empty*: absent means the asking socket,
//! empty means no socket. A program that computes an empty list must never reach everybody.

use std::borrow::Cow;

use roomcast::Args;
use serde_json::value::RawValue;

use super::{Fields, Operation, Problem, Selected, Whom, binary, fields::without_position};
use crate::gateway::{options::nearest, session::user_room};

/// Reads a list of operations from a JSON array.
pub(crate) fn read(json: &RawValue) -> Result<Vec<Operation>, Problem> {
    let list: Vec<&RawValue> = serde_json::from_str(json.get())
        .map_err(|error| Problem::new("", without_position(&error.to_string())))?;
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

fn read_one(json: &RawValue) -> Result<Operation, Problem> {
    let fields = Fields::of(json.get().as_bytes());
    let mut fields =
        fields.map_err(|problem| Problem::new(problem.at, without_position(&problem.what)))?;
    let op: Cow<'_, str> = fields.require("op")?;
    read_as(&op, fields)
}

/// Reads the operation of this name from the members that are left.
pub(crate) fn read_as(name: &str, mut fields: Fields<'_>) -> Result<Operation, Problem> {
    let form = OPERATIONS.iter().find(|(known, _)| *known == name);
    let (_, members) = form.ok_or_else(|| Problem::new(".op", unknown_operation(name)))?;
    fields.only(members)?;
    Ok(match name {
        "ack" => Operation::Ack {
            args: arguments(fields.take::<Option<_>>("args")?.flatten())?,
        },
        "refuse" => Operation::Refuse {
            message: fields.require("message")?,
            data: fields.take::<Option<_>>("data")?.flatten(),
        },
        // `in` selects by rooms here, because `rooms` are those to join or leave.
        "join" => Operation::Join {
            rooms: fields.require("rooms")?,
            whom: whom(&mut fields, "in")?,
        },
        "leave" => Operation::Leave {
            rooms: fields.require("rooms")?,
            whom: whom(&mut fields, "in")?,
        },
        "emit" => Operation::Emit {
            event: fields.require("event")?,
            args: arguments(fields.take("args")?)?,
            whom: whom(&mut fields, "rooms")?,
            except: fields.take("except")?.unwrap_or_default(),
            flags: fields.take("flags")?.unwrap_or_default(),
        },
        "set_data" => Operation::SetData {
            data: fields.require("data")?,
        },
        "set_user" => Operation::SetUser {
            user: fields.require("user")?,
        },
        _ => Operation::Disconnect {
            close: fields.take("close")?.unwrap_or_default(),
            whom: whom(&mut fields, "rooms")?,
        },
    })
}

/// The operations with their members.
const OPERATIONS: [(&str, &[&str]); 8] = [
    ("ack", &["args"]),
    ("refuse", &["message", "data"]),
    ("join", &["rooms", "in", "sockets", "users", "all"]),
    ("leave", &["rooms", "in", "sockets", "users", "all"]),
    (
        "emit",
        &[
            "event", "args", "rooms", "sockets", "users", "all", "except", "flags",
        ],
    ),
    ("set_data", &["data"]),
    ("set_user", &["user"]),
    ("disconnect", &["close", "rooms", "sockets", "users", "all"]),
];

/// Names the nearest operation, because most unknown names are typing errors.
fn unknown_operation(name: &str) -> String {
    let names = OPERATIONS.map(|(name, _)| name);
    let known = names.join(", ");
    // Below this similarity, a suggestion would be a guess.
    match nearest(name, names).filter(|(similarity, _)| *similarity > 0.8) {
        Some((_, nearest)) => {
            format!("unknown operation `{name}`, did you mean `{nearest}`? ({known})")
        }
        None => format!("unknown operation `{name}`, expected one of {known}"),
    }
}

/// An event without arguments is common, so the member may be absent.
pub(crate) fn arguments(json: Option<&RawValue>) -> Result<Args, Problem> {
    json.map_or_else(
        || Ok(Args::default()),
        |json| binary::from_json(json).map_err(|what| Problem::new(".args", what)),
    )
}

/// The sockets that these members select together. A socket's id is the name of its private room.
/// `all` wins over lists, since it includes them.
fn whom(fields: &mut Fields<'_>, by_room: &'static str) -> Result<Whom, Problem> {
    let mut selected = Selected::default();
    for field in [by_room, "sockets", "users"] {
        let Some(names) = fields.take::<Vec<String>>(field)? else {
            continue;
        };
        let room = |name: String| match field {
            // An empty one is left for the check, which refuses it.
            "users" if !name.is_empty() => user_room(&name),
            _ => name,
        };
        selected.add(field, names.into_iter().map(room));
    }
    Ok(match fields.take("all")? {
        Some(true) => Whom::Everybody,
        _ if selected.fields.is_empty() => Whom::Asker,
        _ => Whom::Rooms(selected),
    })
}
