//! What an application outside can tell the server to do: a list of Socket.IO operations, as JSON.
//!
//! The response of a hook is such a list, and a call of the HTTP API is the same list without a
//! socket that asks. There is one type, one check and one interpreter for both.
//!
//! ```text
//! JSON ── read ──► Vec<Operation> ── check ──► Checked ── carry_out ──► a result for each operation
//!          │                            │
//!          └── Problem ◄────────────────┘      nothing is carried out
//! ```
//!
//! The whole list is checked before its first operation is carried out, because half a response is
//! worse than none: a client that has joined a room, but never receives what should have followed,
//! looks healthy to everybody.

pub(crate) mod binary;
mod carry_out;

use std::{borrow::Cow, sync::Arc};

use roomcast::{Args, Limits, is_reserved};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, value::RawValue};

#[allow(
    unused_imports,
    reason = "the HTTP API reports the results of each operation"
)]
pub(crate) use carry_out::{Effect, Report};

use super::session::{SocketData, user_room};

/// The most operations of one list.
pub(crate) const MAX_OPERATIONS: usize = 1000;

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operation {
    /// Acknowledges the event of the socket that asks.
    Ack { args: Args },
    /// Refuses the connect or the event of the socket that asks.
    Refuse {
        message: String,
        data: Option<Value>,
    },
    /// Adds sockets to rooms.
    Join { rooms: Vec<String>, whom: Whom },
    /// Removes sockets from rooms.
    Leave { rooms: Vec<String>, whom: Whom },
    /// Emits an event.
    Emit {
        event: String,
        args: Args,
        whom: Whom,
        except: Vec<String>,
        flags: Flags,
    },
    /// Replaces the data of the socket that asks.
    SetData { data: Map<String, Value> },
    /// Names the user of the client that asks to connect.
    SetUser { user: String },
    /// Disconnects sockets from the namespace; with `close`, closes their connections.
    Disconnect { close: bool, whom: Whom },
}

/// The sockets that an operation concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// The socket that asks.
    Asker,
    /// The members of these rooms, in the whole cluster. Sockets and users are rooms, too. An empty
    /// list selects nobody.
    Rooms(Vec<String>),
    /// All sockets of the namespace, in the whole cluster.
    Everybody,
}

/// How an event is delivered.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Flags {
    /// Clients that cannot receive right now miss the event.
    pub(crate) volatile: bool,
    /// Only the sockets of this node receive the event.
    pub(crate) local: bool,
    /// All nodes are asked how many sockets the event reached.
    pub(crate) confirmed: bool,
}

/// What is wrong with a list of operations. Nothing of it has been carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}{}{what}", if .at.is_empty() { "" } else { ": " })]
pub(crate) struct Problem {
    /// The field, such as `[1].rooms[0]`.
    pub(crate) at: String,
    pub(crate) what: String,
}

impl Problem {
    pub(crate) fn new(at: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            at: at.into(),
            what: what.into(),
        }
    }
}

/// Who gave the list, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// No socket asks.
    Nobody,
    /// A client asks to connect. The operations are carried out when it has.
    Connect,
    /// A socket waits for the result of its event.
    Event,
    /// A socket has disconnected.
    Disconnect,
}

/// A list that has been checked completely.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checked(Vec<Operation>);

impl Checked {
    /// What the list makes of a client that asks to connect: its data, or the refusal, which then is
    /// the only operation. The other operations are carried out when it has connected.
    pub(crate) fn admit(&self, mut data: SocketData) -> Result<SocketData, roomcast::Refused> {
        for operation in &self.0 {
            match operation {
                Operation::Refuse { message, data } => {
                    return Err(refused(message, data.as_ref()));
                }
                Operation::SetData { data: set } => data.data = Arc::new(set.clone()),
                Operation::SetUser { user } => data.user = Some(user.clone()),
                _ => {}
            }
        }
        Ok(data)
    }

    /// Checks that no operation names another user than the one that the client's token has shown:
    /// the user's rooms and revocations follow the token.
    pub(crate) fn keeps_user(&self, shown: &str) -> Result<(), Problem> {
        let is_other = |operation: &Operation| matches!(operation, Operation::SetUser { user } if user != shown);
        match self.0.iter().position(is_other) {
            Some(index) => Err(Problem::new(
                format!("[{index}].user"),
                "the token of the client has shown another user",
            )),
            None => Ok(()),
        }
    }

    /// Whether it may change the rooms or the data of the socket that asks.
    pub(crate) fn changes_asker(&self) -> bool {
        self.0.iter().any(|operation| {
            matches!(
                operation,
                Operation::Join { .. } | Operation::Leave { .. } | Operation::SetData { .. }
            )
        })
    }
}

fn refused(message: &str, data: Option<&Value>) -> roomcast::Refused {
    let refused = roomcast::Refused::new(message.to_owned());
    match data {
        Some(data) => refused.data(data),
        None => refused,
    }
}

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

/// Reads one operation from a JSON object.
pub(crate) fn read_one(json: &RawValue) -> Result<Operation, Problem> {
    #[derive(Deserialize)]
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
            let whom = whom(form.rooms, form.sockets, form.users, form.all);
            let close = form.close;
            Operation::Disconnect { close, whom }
        }
        unknown => return Err(Problem::new(".op", unknown_operation(unknown))),
    })
}

fn unknown_operation(name: &str) -> String {
    let nearest = OPERATIONS.iter().max_by(|a, b| {
        let [a, b] = [a, b].map(|known| strsim::jaro_winkler(known, name));
        a.total_cmp(&b)
    });
    let known = OPERATIONS.join(", ");
    match nearest.filter(|known| strsim::jaro_winkler(known, name) > 0.8) {
        Some(nearest) => {
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
    let mut deserializer = serde_json::Deserializer::from_str(json.get());
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let at = if path == "." {
            String::new()
        } else {
            format!(".{path}")
        };
        Problem::new(at, without_position(&error.into_inner().to_string()))
    })
}

/// The position is one within the operation, which misleads.
fn without_position(text: &str) -> &str {
    text.rsplit_once(" at line ").map_or(text, |(text, _)| text)
}

/// The name of the operation has been read before.
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
        let whom = whom(self.inside, self.sockets, self.users, self.all);
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
            whom: whom(self.rooms, self.sockets, self.users, self.all),
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

fn arguments(json: Option<&RawValue>) -> Result<Args, Problem> {
    json.map_or_else(
        || Ok(Args::default()),
        |json| binary::from_json(json).map_err(|what| Problem::new(".args", what)),
    )
}

/// The sockets that these lists select together. A socket's id is the name of its private room.
pub(crate) fn whom(
    rooms: Option<Vec<String>>,
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
    let mut selected = rooms.unwrap_or_default();
    selected.extend(sockets.into_iter().flatten());
    let rooms_of_users = users.into_iter().flatten().map(|user| match &*user {
        // Left empty for the check, which refuses it.
        "" => user,
        user => user_room(user),
    });
    selected.extend(rooms_of_users);
    Whom::Rooms(selected)
}

/// Checks a list completely.
pub(crate) fn check(
    operations: Vec<Operation>,
    asks: Asks,
    limits: &Limits,
) -> Result<Checked, Problem> {
    if operations.len() > MAX_OPERATIONS {
        let count = operations.len();
        let what = format!("{count} operations, more than {MAX_OPERATIONS}");
        return Err(Problem::new("", what));
    }
    let check = Check { asks, limits };
    for (index, operation) in operations.iter().enumerate() {
        check.one(operation).map_err(|Problem { at, what }| {
            let at = format!("[{index}]{at}");
            Problem { at, what }
        })?;
    }
    check.verdicts(&operations)?;
    Ok(Checked(operations))
}

struct Check<'a> {
    asks: Asks,
    limits: &'a Limits,
}

impl Check<'_> {
    fn one(&self, operation: &Operation) -> Result<(), Problem> {
        match operation {
            Operation::Ack { .. } => match self.asks {
                Asks::Event => Ok(()),
                _ => Err(Problem::new(".op", "only an event can be acknowledged")),
            },
            Operation::Refuse { .. } => match self.asks {
                Asks::Event | Asks::Connect => Ok(()),
                _ => Err(Problem::new(
                    ".op",
                    "only an event or a connect can be refused",
                )),
            },
            Operation::Join { rooms, whom } | Operation::Leave { rooms, whom } => {
                self.rooms(".rooms", rooms)?;
                self.whom(whom)
            }
            Operation::Emit {
                event,
                whom,
                except,
                ..
            } => {
                self.event(event)?;
                self.rooms(".except", except)?;
                if *whom == Whom::Asker && !except.is_empty() {
                    let what =
                        "an event for the asking socket has no exceptions: name `rooms` or `all`";
                    return Err(Problem::new(".except", what));
                }
                self.whom(whom)
            }
            Operation::SetData { .. } => self.asker(),
            Operation::SetUser { user } => match self.asks {
                Asks::Connect => self
                    .room(&user_room(user))
                    .map_err(|what| Problem::new(".user", what)),
                _ => Err(Problem::new(".op", "only a connect can name the user")),
            },
            Operation::Disconnect { whom, .. } => self.whom(whom),
        }
    }

    fn event(&self, event: &str) -> Result<(), Problem> {
        let limit = self.limits.event_name_bytes;
        let problem = match event {
            "" => "is empty".to_owned(),
            event if event.len() > limit => format!("is longer than {limit} bytes"),
            event if is_reserved(event) => format!("`{event}` is reserved by Socket.IO"),
            _ => return Ok(()),
        };
        Err(Problem::new(".event", problem))
    }

    fn whom(&self, whom: &Whom) -> Result<(), Problem> {
        match whom {
            Whom::Asker => self.asker(),
            Whom::Everybody => Ok(()),
            // They come from `rooms`, `sockets` and `users`, so the field is not known any more.
            Whom::Rooms(rooms) => rooms
                .iter()
                .try_for_each(|room| self.room(room).map_err(|what| Problem::new("", what))),
        }
    }

    /// Whether there is a socket that asks and can still be acted on.
    fn asker(&self) -> Result<(), Problem> {
        let what = match self.asks {
            Asks::Connect | Asks::Event => return Ok(()),
            Asks::Disconnect => "the asking socket has disconnected",
            Asks::Nobody => "no socket asks",
        };
        let remedy = "name `rooms`, `sockets` or `users`, or set `all`";
        Err(Problem::new("", format!("{what}: {remedy}")))
    }

    fn rooms(&self, field: &str, rooms: &[String]) -> Result<(), Problem> {
        let limit = self.limits.rooms_per_socket;
        if rooms.len() > limit {
            let what = format!("{} rooms, more than {limit}", rooms.len());
            return Err(Problem::new(field, what));
        }
        for (index, room) in rooms.iter().enumerate() {
            self.room(room)
                .map_err(|what| Problem::new(format!("{field}[{index}]"), what))?;
        }
        Ok(())
    }

    fn room(&self, room: &str) -> Result<(), String> {
        let limit = self.limits.room_name_bytes;
        if room.is_empty() {
            Err("a name is empty".to_owned())
        } else if room.len() > limit {
            Err(format!("a name is longer than {limit} bytes"))
        } else {
            Ok(())
        }
    }

    /// A client gets one answer. A client that may not connect has nothing that could be acted on.
    fn verdicts(&self, operations: &[Operation]) -> Result<(), Problem> {
        let is_verdict =
            |op: &Operation| matches!(op, Operation::Ack { .. } | Operation::Refuse { .. });
        let mut verdicts = (0..).zip(operations).filter(|(_, op)| is_verdict(op));
        let Some((_, first)) = verdicts.next() else {
            return Ok(());
        };
        if let Some((second, _)) = verdicts.next() {
            let what = "the event already has its `ack` or `refuse`";
            return Err(Problem::new(format!("[{second}].op"), what));
        }
        let refuses = matches!(first, Operation::Refuse { .. });
        if self.asks == Asks::Connect && refuses && operations.len() > 1 {
            let what = "a connect that is refused has no other operations";
            return Err(Problem::new("", what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use roomcast::Server;

    use super::*;

    fn read_text(json: &str) -> Result<Vec<Operation>, Problem> {
        let raw: Box<RawValue> = serde_json::from_str(json).expect("JSON");
        read(&raw)
    }

    fn checked(json: &str, asks: Asks) -> Result<Checked, Problem> {
        let limits = Limits {
            rooms_per_socket: 2,
            ..Limits::default()
        };
        check(read_text(json)?, asks, &limits)
    }

    /// The text of the problem.
    fn problem(json: &str, asks: Asks) -> String {
        match checked(json, asks) {
            Err(problem) => problem.to_string(),
            Ok(checked) => panic!("{json} is {checked:?}"),
        }
    }

    #[test]
    fn a_user_without_a_name_is_refused() {
        let problem = problem(r#"[{"op": "disconnect", "users": [""]}]"#, Asks::Nobody);
        assert!(problem.contains("a name is empty"), "{problem}");
    }

    #[test]
    fn every_operation_is_read_with_all_its_fields() {
        let json = r#"[
            {"op": "ack", "args": [1, {"a": null}]},
            {"op": "join", "rooms": ["a"]},
            {"op": "leave", "rooms": ["a"], "in": ["b"], "sockets": ["c"], "users": ["7"]},
            {"op": "emit", "event": "x", "args": ["y"], "rooms": ["b"], "except": ["c"],
             "flags": {"volatile": true, "local": false}},
            {"op": "set_data", "data": {"name": "Ada"}},
            {"op": "set_user", "user": "7"},
            {"op": "disconnect", "close": true, "all": true},
            {"op": "refuse", "message": "no", "data": [1]}
        ]"#;
        let operations = read_text(json).unwrap();
        let rooms = |names: &[&str]| names.iter().map(|name| String::from(*name)).collect();
        let args = |json: &str| Args::from_text(json.into(), Vec::new()).unwrap();
        let data = serde_json::from_str(r#"{"name": "Ada"}"#).unwrap();
        let wanted = [
            Operation::Ack {
                args: args(r#"[1, {"a": null}]"#),
            },
            Operation::Join {
                rooms: rooms(&["a"]),
                whom: Whom::Asker,
            },
            Operation::Leave {
                rooms: rooms(&["a"]),
                whom: Whom::Rooms(vec!["b".to_owned(), "c".to_owned(), user_room("7")]),
            },
            Operation::Emit {
                event: "x".to_owned(),
                args: args(r#"["y"]"#),
                whom: Whom::Rooms(rooms(&["b"])),
                except: rooms(&["c"]),
                flags: Flags {
                    volatile: true,
                    local: false,
                    confirmed: false,
                },
            },
            Operation::SetData { data },
            Operation::SetUser {
                user: "7".to_owned(),
            },
            Operation::Disconnect {
                close: true,
                whom: Whom::Everybody,
            },
            Operation::Refuse {
                message: "no".to_owned(),
                data: Some(serde_json::json!([1])),
            },
        ];
        assert_eq!(operations, wanted);
    }

    #[test]
    fn an_empty_selection_is_nobody_and_none_is_the_asking_socket() {
        let whom = |json: &str| match read_text(json).unwrap().remove(0) {
            Operation::Disconnect { whom, .. } => whom,
            other => panic!("{other:?}"),
        };
        assert_eq!(whom(r#"[{"op":"disconnect"}]"#), Whom::Asker);
        let none = Whom::Rooms(Vec::new());
        assert_eq!(whom(r#"[{"op":"disconnect","users":[]}]"#), none);
    }

    #[test]
    fn a_mistake_is_reported_with_its_field() {
        let cases = [
            (
                r#"[{"op":"ack"},{"op":"emti"}]"#,
                "[1].op: unknown operation `emti`, did you mean `emit`?",
            ),
            (r#"[{}]"#, "[0]: missing field `op`"),
            (r#"[{"op":"emit"}]"#, "[0]: missing field `event`"),
            (
                r#"[{"op":"emit","event":"x","room":"a"}]"#,
                "[0].room: unknown field `room`, expected one of",
            ),
            (
                r#"[{"op":"join","rooms":["a",1]}]"#,
                "[0].rooms[1]: invalid type: integer `1`, expected a string",
            ),
            (
                r#"[{"op":"disconnect","rooms":[],"users":null}]"#,
                "[0].users: invalid type: null",
            ),
            (
                r#"[{"op":"emit","event":"x","args":null}]"#,
                "[0].args: arguments are not an array",
            ),
            (
                r#"[{"op":"emit","event":"x","args":{}}]"#,
                "[0].args: arguments are not an array",
            ),
            (
                r#"[{"op":"set_data","data":[]}]"#,
                "[0].data: invalid type: sequence",
            ),
            (
                r#"[{"op":"join","rooms":[""]}]"#,
                "[0].rooms[0]: a name is empty",
            ),
            (
                r#"[{"op":"join","rooms":["a","b","c"]}]"#,
                "[0].rooms: 3 rooms, more than 2",
            ),
            (
                r#"[{"op":"emit","event":"disconnect"}]"#,
                "[0].event: `disconnect` is reserved",
            ),
            (
                r#"[{"op":"emit","event":"x","except":["a"]}]"#,
                "[0].except: an event for the asking socket",
            ),
            (
                r#"[{"op":"ack"},{"op":"refuse","message":"no"}]"#,
                "[1].op: the event already has its",
            ),
            ("{}", "invalid type: map"),
        ];
        for (json, wanted) in cases {
            let text = problem(json, Asks::Event);
            assert!(text.starts_with(wanted), "{json}: {text}");
            assert!(!text.contains(" at line "), "{text}");
        }
        let long = format!(r#"[{{"op":"emit","event":"{}"}}]"#, "x".repeat(257));
        assert!(problem(&long, Asks::Event).contains("longer than 256 bytes"));
        let many = serde_json::json!(vec![serde_json::json!({"op": "disconnect"}); 1001]);
        assert!(problem(&many.to_string(), Asks::Event).contains("more than 1000"));
    }

    #[test]
    fn an_operation_needs_what_it_acts_on() {
        let own = r#"[{"op":"join","rooms":["a"]}]"#;
        let of_others = r#"[{"op":"join","rooms":["a"],"users":["7"]}]"#;
        let ack = r#"[{"op":"ack"}]"#;
        let refuse = r#"[{"op":"refuse","message":"no"}]"#;
        let user = r#"[{"op":"set_user","user":"7"}]"#;
        for (json, allowed) in [
            (own, &[Asks::Connect, Asks::Event][..]),
            (
                of_others,
                &[Asks::Nobody, Asks::Connect, Asks::Event, Asks::Disconnect],
            ),
            (ack, &[Asks::Event]),
            (refuse, &[Asks::Connect, Asks::Event]),
            (user, &[Asks::Connect]),
        ] {
            for asks in [Asks::Nobody, Asks::Connect, Asks::Event, Asks::Disconnect] {
                let is_allowed = checked(json, asks).is_ok();
                assert_eq!(is_allowed, allowed.contains(&asks), "{json} {asks:?}");
            }
        }
    }

    #[test]
    fn a_refused_connect_has_nothing_else_and_its_refusal_is_found() {
        let refuse = r#"{"op":"refuse","message":"no","data":{"code":7}}"#;
        let alone = checked(&format!("[{refuse}]"), Asks::Connect).unwrap();
        let wanted = roomcast::Refused::new("no").data(&serde_json::json!({"code": 7}));
        let admitted = alone.admit(SocketData::default());
        assert_eq!(admitted.unwrap_err(), wanted);
        let text = problem(
            &format!(r#"[{refuse},{{"op":"join","rooms":["a"]}}]"#),
            Asks::Connect,
        );
        assert!(text.contains("no other operations"), "{text}");
    }

    #[test]
    fn a_connect_gets_its_user_and_data() {
        let list = r#"[{"op":"set_user","user":"7"},{"op":"set_data","data":{"name":"Ada"}}]"#;
        let checked = checked(list, Asks::Connect).unwrap();
        let data = checked.admit(SocketData::default()).unwrap();
        assert_eq!(data.user.as_deref(), Some("7"));
        assert_eq!(data.data["name"], "Ada");
        let unchanged = Checked::default().admit(data.clone()).unwrap();
        assert_eq!(unchanged.user, data.user);
    }

    #[tokio::test]
    async fn operations_without_a_socket_are_carried_out_in_order_until_one_fails() {
        let server = Server::builder()
            .namespace(roomcast::Namespace::new("/"))
            .build()
            .await
            .unwrap();
        let list = r#"[
            {"op": "emit", "event": "x", "all": true},
            {"op": "leave", "rooms": ["a"], "in": []},
            {"op": "disconnect", "rooms": ["a"]}
        ]"#;
        let list = checked(list, Asks::Nobody).unwrap();
        let report = list
            .clone()
            .carry_out(&server.of("/"), None, &mut None)
            .await;
        assert!(report.failure().is_none());
        assert!(report.missed_nodes().is_none());
        let [
            Ok(Effect::Emitted(delivery)),
            Ok(Effect::Nobody),
            Ok(Effect::Done),
        ] = &report.results[..]
        else {
            panic!("{report:?}")
        };
        assert_eq!((delivery.local_sockets, delivery.nodes), (0, 0));

        let report = list
            .carry_out(&server.of("/unknown"), None, &mut None)
            .await;
        assert_eq!(report.results.len(), 1);
        let (index, error) = report.failure().expect("a failure");
        assert_eq!(index, 0);
        assert!(error.to_string().contains("/unknown"), "{error}");
    }
}
