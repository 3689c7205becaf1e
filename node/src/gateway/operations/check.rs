//! The checks of a list of operations, which run before its first operation is carried out.
//!
//! The checks find every mistake that shows in the list alone, and name its field. An
//! application's tests then find the mistake, because no operation is carried out. The
//! limits are those of the library, which would refuse the same later.

use roomcast::{Limits, is_reserved};

use super::{Asks, Checked, MAX_OPERATIONS, Operation, Problem, Whom};
use crate::gateway::session::user_room;

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
    // Last, because it is about the list as a whole.
    check.verdicts(&operations)?;
    Ok(Checked(operations, None))
}

struct Check<'a> {
    asks: Asks,
    limits: &'a Limits,
}

impl Check<'_> {
    /// Checks one operation. The problem's path begins below it.
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
            // The name of a user is part of the name of a room, so it has the limit of
            // rooms.
            Operation::SetUser { user } => match self.asks {
                Asks::Connect => self
                    .room(&user_room(user))
                    .map_err(|what| Problem::new(".user", what)),
                _ => Err(Problem::new(".op", "only a connect can name the user")),
            },
            Operation::Disconnect { whom, .. } => self.whom(whom),
        }
    }

    /// Checks the name of an event, as the library would at the emit.
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

    /// Checks the selected sockets.
    fn whom(&self, whom: &Whom) -> Result<(), Problem> {
        match whom {
            Whom::Asker => self.asker(),
            Whom::Everybody => Ok(()),
            Whom::Rooms(selected) => {
                let mut rooms = selected.rooms.iter().enumerate();
                rooms.try_for_each(|(index, room)| {
                    self.room(room)
                        .map_err(|what| Problem::new(selected.field(index), what))
                })
            }
        }
    }

    /// Whether there is a socket that asks and can still be acted on.
    fn asker(&self) -> Result<(), Problem> {
        let reason = match self.asks {
            Asks::Connect | Asks::Event => return Ok(()),
            Asks::Disconnect => " because the socket has disconnected",
            Asks::Nobody => "",
        };
        let remedy = "set `rooms`, `sockets`, `users` or `all`";
        Err(Problem::new(
            "",
            format!("a selection is required{reason}: {remedy}"),
        ))
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
