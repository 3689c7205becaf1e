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

    fn written(name: &str, args: &str, room: Option<&str>) -> String {
        let mut out = Vec::new();
        write(name, args, room, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_push_is_a_frame_with_payload_and_channel() {
        let push = r#"[{"payload":[1,{"key":null}],"channel":"chat"}]"#;
        let wanted = r#"{"payload":[1,{"key":null}],"channel":"chat"}"#;
        assert_eq!(written("push", push, Some("chat")), wanted);
        assert_eq!(written("push", push, Some("pw:socket:7a1c")), wanted);
    }

    #[test]
    fn a_list_is_no_push() {
        let wanted = r#"{"payload":[1,"chat"],"channel":"chat"}"#;
        assert_eq!(written("push", r#"[[1,"chat"]]"#, Some("chat")), wanted);
    }

    #[test]
    fn a_push_of_a_member_cannot_name_another_channel() {
        let push = r#"[{"payload":1,"channel":"admin"}]"#;
        let wanted = r#"{"payload":{"payload":1,"channel":"admin"},"channel":"chat"}"#;
        assert_eq!(written("push", push, Some("chat")), wanted);
    }

    #[test]
    fn events_of_other_doors_are_pushes_of_their_arguments() {
        let frame = |args, room| written("message", args, room);
        assert_eq!(
            frame(r#"["hi"]"#, Some("a")),
            r#"{"payload":"hi","channel":"a"}"#
        );
        assert_eq!(
            frame(r#"[1,"b"]"#, Some("a")),
            r#"{"payload":[1,"b"],"channel":"a"}"#
        );
        assert_eq!(frame("[]", Some("a")), r#"{"payload":[],"channel":"a"}"#);
        assert_eq!(frame("[[]]", None), r#"{"payload":[],"channel":""}"#);
    }
}
