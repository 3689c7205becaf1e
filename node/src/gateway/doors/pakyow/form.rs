//! How clients of the door see the events of their channels.

use roomcast::{
    pakyow::{Push, SOCKET_CHANNEL, write_push},
    plain::{Event, Form, Heartbeat},
};
use serde_json::value::RawValue;

/// The event that carries a push between nodes, and to Socket.IO clients in the channel.
pub(super) const PUSH: &str = "push";

/// One frame per event, with exactly two members.
pub(super) struct Frames;

impl Form for Frames {
    fn event(&self, event: &Event<'_>, out: &mut Vec<u8>) {
        write(event.name, event.args, event.room, out);
    }

    /// Detects clients whose network has failed, because their subscriptions must end.
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::Ping
    }

    fn skips_binary(&self) -> bool {
        true
    }
}

/// A push is written as it was requested. Of any other event of the room, the payload is its only
/// argument, or the list of them.
fn write(name: &str, args: &str, room: Option<&str>, out: &mut Vec<u8>) {
    let room = room.unwrap_or_default();
    let single = serde_json::from_str::<[&RawValue; 1]>(args);
    let payload = single.as_ref().map_or(args, |[only]| only.get());
    if name == PUSH
        // A list would be read as the members in their order.
        && payload.starts_with('{')
        && let Ok(push) = serde_json::from_str::<Push<'_>>(payload)
        // Members of a room other than the application cannot name other channels.
        && (push.channel == room || room.starts_with(SOCKET_CHANNEL))
    {
        return write_push(push.payload.get(), &push.channel, out);
    }
    write_push(payload, room, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_written_as_it_was_requested_and_any_other_event_as_a_push_of_its_arguments() {
        let push = r#"[{"payload":[1,{"key":null}],"channel":"chat"}]"#;
        let foreign = r#"[{"payload":1,"channel":"admin"}]"#;
        let cases = [
            (PUSH, push, "chat", r#"[1,{"key":null}]"#),
            // A list is no push.
            (PUSH, r#"[[1,"chat"]]"#, "chat", r#"[1,"chat"]"#),
            // A member cannot name another channel.
            (PUSH, foreign, "chat", r#"{"payload":1,"channel":"admin"}"#),
            ("message", r#"["hi"]"#, "a", r#""hi""#),
            ("message", r#"[1,"b"]"#, "a", r#"[1,"b"]"#),
            ("message", "[]", "a", "[]"),
            ("message", "[[]]", "", "[]"),
        ];
        let written = |name, args, room: &str| {
            let mut out = Vec::new();
            write(
                name,
                args,
                Some(room).filter(|room| !room.is_empty()),
                &mut out,
            );
            String::from_utf8(out).unwrap()
        };
        let frame = |payload, channel| format!(r#"{{"payload":{payload},"channel":"{channel}"}}"#);
        for (name, args, room, payload) in cases {
            assert_eq!(written(name, args, room), frame(payload, room));
        }
        let private = written(PUSH, push, "pw:socket:7a1c");
        assert_eq!(private, frame(r#"[1,{"key":null}]"#, "chat"));
    }
}
