//! Operations that an outside application can request: a list of Socket.IO operations, as JSON.
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
//! worse than none: a client that has joined a room but never receives the following event looks
//! healthy.

pub(crate) mod binary;
mod carry_out;
mod check;
mod fields;
mod forms;

use std::{sync::Arc, time::Duration};

use roomcast::Args;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

pub(crate) use carry_out::{Effect, Report};
pub(crate) use check::check;
pub(crate) use fields::Fields;
pub(crate) use forms::{arguments, read, read_as};

use super::{object::Object, session::SocketData};

/// The most operations of one list.
/// The list is held in memory until its last operation is done.
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

/// The sockets that an operation selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// The socket that asks.
    Asker,
    /// The members of these rooms, in the whole cluster. Sockets and users are rooms, too. An empty
    /// list selects no socket.
    Rooms(Selected),
    /// All sockets of the namespace, in the whole cluster.
    Everybody,
}

/// Rooms from several fields, which errors name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selected {
    rooms: Vec<String>,
    /// Each field with the number of its rooms, in the order of the rooms.
    fields: Vec<(&'static str, usize)>,
}

impl Selected {
    fn add(&mut self, field: &'static str, rooms: impl IntoIterator<Item = String>) {
        let before = self.rooms.len();
        self.rooms.extend(rooms);
        self.fields.push((field, self.rooms.len() - before));
    }

    /// The field of the room with this index, such as `.users[0]`.
    fn field(&self, mut index: usize) -> String {
        for (field, count) in &self.fields {
            if index < *count {
                return format!(".{field}[{index}]");
            }
            index -= count;
        }
        String::new()
    }
}

/// How an event is delivered.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default, expecting = "an object", remote = "Self")]
pub(crate) struct Flags {
    /// Clients that cannot receive right now miss the event.
    pub(crate) volatile: bool,
    /// Only the sockets of this node receive the event.
    pub(crate) local: bool,
    /// All nodes are asked how many sockets the event reached.
    pub(crate) confirmed: bool,
    /// Clients acknowledge the event, and receive it again if they come back and have not.
    pub(crate) at_least_once: bool,
}

impl<'de> Deserialize<'de> for Flags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(Object(deserializer))
    }
}

/// An error in a list of operations. None of the list has been carried out.
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

/// The origin of the list and its purpose.
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
pub(crate) struct Checked(Vec<Operation>, Option<Idempotency>);

/// The idempotency key of a list, and how long it is kept.
#[derive(Clone, Debug, PartialEq)]
struct Idempotency {
    key: String,
    time: Duration,
}

impl Checked {
    /// Emits of the list are published once for each key. The library shares keys with emitters, so
    /// each emit of a longer list has its own.
    pub(crate) fn once(mut self, key: &str, time: Duration) -> Self {
        let key = key.to_owned();
        self.1 = Some(Idempotency { key, time });
        self
    }

    /// Whether the list can be carried out again under its key without another effect
    /// than the first time.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.1.is_some() && self.0.iter().all(Operation::is_published)
    }

    /// The effect of the list on a client that connects: its data, or the refusal,
    /// which then is the only operation. The other operations are carried out when it has
    /// connected.
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

#[cfg(test)]
mod tests {
    use roomcast::{Limits, Server};
    use serde_json::value::RawValue;

    use super::*;
    use crate::gateway::session::user_room;

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
             "flags": {"volatile": true, "local": false, "at_least_once": true}},
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
                whom: Whom::Rooms(Selected {
                    rooms: vec!["b".to_owned(), "c".to_owned(), user_room("7")],
                    fields: vec![("in", 1), ("sockets", 1), ("users", 1)],
                }),
            },
            Operation::Emit {
                event: "x".to_owned(),
                args: args(r#"["y"]"#),
                whom: Whom::Rooms(Selected {
                    rooms: rooms(&["b"]),
                    fields: vec![("rooms", 1)],
                }),
                except: rooms(&["c"]),
                flags: Flags {
                    volatile: true,
                    local: false,
                    confirmed: false,
                    at_least_once: true,
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
        let Whom::Rooms(none) = whom(r#"[{"op":"disconnect","users":[]}]"#) else {
            panic!("a selection")
        };
        assert!(none.rooms.is_empty());
    }

    #[test]
    fn a_mistake_is_reported_with_its_field() {
        let cases = [
            (
                r#"[{"op":"ack"},{"op":"emti"}]"#,
                "[1].op: unknown operation `emti`, did you mean `emit`?",
            ),
            (r#"[{}]"#, "[0].op: missing field `op`"),
            (r#"[{"op":"emit"}]"#, "[0].event: missing field `event`"),
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
            (
                r#"[["ack"]]"#,
                "[0]: invalid type: sequence, expected an object",
            ),
            (
                r#"[{"op":"emit","event":"x","flags":[true]}]"#,
                "[0].flags: invalid type: sequence, expected an object",
            ),
            (
                r#"[{"op":"emit","event":"x","flags":[true,false,true,false]}]"#,
                "[0].flags: invalid type: sequence, expected an object",
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
    fn a_wrong_name_of_a_selection_is_reported_with_its_field() {
        let long = "x".repeat(257);
        for (operation, wanted) in [
            (
                r#""op":"emit","event":"x","rooms":[""]"#,
                ".rooms[0]: a name is empty",
            ),
            (
                r#""op":"emit","event":"x","rooms":["a"],"sockets":["b",""]"#,
                ".sockets[1]: a name",
            ),
            (
                r#""op":"leave","rooms":["a"],"in":["b",""]"#,
                ".in[1]: a name is empty",
            ),
            (
                r#""op":"join","rooms":["a"],"in":["b"],"users":["7",""]"#,
                ".users[1]: a name",
            ),
            (
                r#""op":"disconnect","rooms":["LONG"]"#,
                ".rooms[0]: a name is longer",
            ),
            (
                r#""op":"disconnect","rooms":["a"],"users":["LONG"]"#,
                ".users[0]: a name is longer",
            ),
        ] {
            let operation = operation.replace("LONG", &long);
            let text = problem(&format!("[{{{operation}}}]"), Asks::Event);
            assert!(text.starts_with(&format!("[0]{wanted}")), "{text}");
        }
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
