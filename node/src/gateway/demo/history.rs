//! The latest messages of each room, for those who come later.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The messages that are kept of a room.
const MESSAGES: usize = 50;

/// The rooms with messages. Beyond it, the room that was silent for the longest time is removed.
const ROOMS: usize = 200;

/// A longer message, as JSON, is not kept. With the limits above, a history has at most 40 MB.
const MAX_BYTES: usize = 4096;

/// A message as the page shows it, and as nodes tell it to each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) room: String,
    /// The id of the socket.
    pub(super) from: String,
    #[serde(flatten)]
    pub(super) profile: Profile,
    pub(super) data: Box<RawValue>,
    /// In seconds since 1970.
    pub(super) at: u64,
}

/// How a client wants to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Profile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) colour: Option<u8>,
}

#[derive(Debug, Default)]
pub(super) struct History {
    rooms: HashMap<String, Room>,
    /// The number of messages so far, which orders the rooms by their latest message.
    count: u64,
}

#[derive(Debug, Default)]
struct Room {
    messages: VecDeque<Said>,
    latest: u64,
}

impl History {
    pub(super) fn add(&mut self, said: Said) {
        if said.data.get().len() > MAX_BYTES {
            return;
        }
        self.count += 1;
        let room = self.rooms.entry(said.room.clone()).or_default();
        room.latest = self.count;
        if room.messages.len() == MESSAGES {
            room.messages.pop_front();
        }
        room.messages.push_back(said);
        if self.rooms.len() > ROOMS {
            let quietest = self.rooms.iter().min_by_key(|(_, room)| room.latest);
            if let Some(name) = quietest.map(|(name, _)| name.clone()) {
                self.rooms.remove(&name);
            }
        }
    }

    /// The messages of a room, the oldest first.
    pub(super) fn of(&self, room: &str) -> Vec<Said> {
        let room = self.rooms.get(room);
        room.map_or_else(Vec::new, |room| room.messages.iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(history: &mut History, room: &str, text: &str) {
        let data = serde_json::value::to_raw_value(text).unwrap();
        history.add(Said {
            room: room.to_owned(),
            from: "socket".to_owned(),
            profile: Profile::default(),
            data,
            at: 0,
        });
    }

    fn texts(history: &History, room: &str) -> Vec<String> {
        let of = history.of(room);
        of.iter().map(|said| said.data.get().to_owned()).collect()
    }

    #[test]
    fn a_room_keeps_its_latest_messages() {
        let mut history = History::default();
        for number in 0..MESSAGES + 2 {
            say(&mut history, "a", &number.to_string());
        }
        say(&mut history, "b", "other");
        let kept = texts(&history, "a");
        assert_eq!((kept.len(), kept[0].as_str()), (MESSAGES, "\"2\""));
        assert_eq!(texts(&history, "b"), ["\"other\""]);
        assert!(history.of("c").is_empty());
    }

    #[test]
    fn the_room_that_was_quiet_for_the_longest_time_is_forgotten() {
        let mut history = History::default();
        for number in 0..ROOMS {
            say(&mut history, &format!("room {number}"), "x");
        }
        say(&mut history, "room 0", "y");
        say(&mut history, "one more", "x");
        assert_eq!(history.rooms.len(), ROOMS);
        assert_eq!(texts(&history, "room 0").len(), 2);
        assert!(history.of("room 1").is_empty());
    }

    #[test]
    fn a_message_is_told_to_other_nodes_as_it_is() {
        let text = r#"{"room":"a","from":"b","name":"Ada","colour":3,"data":{"x": [1.0]},"at":7}"#;
        let said: Said = serde_json::from_str(text).unwrap();
        assert_eq!(said.profile.name.as_deref(), Some("Ada"));
        assert_eq!(serde_json::to_string(&said).unwrap(), text);
    }

    #[test]
    fn a_long_message_is_not_kept() {
        let mut history = History::default();
        say(&mut history, "a", &"x".repeat(MAX_BYTES));
        assert!(history.of("a").is_empty() && history.rooms.is_empty());
    }
}
