//! The streams of an instance: rooms of its namespace, whose log has the notifications.
//!
//! ```text
//!  room chat#tea ◄── publish ──┬── notification, stored and heard in one step; its id is the log's
//!  room chat#    ◄─────────────┘── a copy with room and id, for those who read all rooms of a channel
//! ```
//!
//! The copy is nobody's message, because no client can name its room. It is written after the
//! notification, so a node that ends in between loses an entry of that list, and no message.

use std::sync::Arc;

use http::StatusCode;
use roomcast::{BroadcastOperator, HistoryEntry, HistoryError, PublishError, Server};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::warn;

use super::{
    channel::{Channel, Kind},
    failure::Failure,
    history::{Page, Read},
    notification::{self, EVENT},
};

/// The event that a copy is.
pub(super) const COPY: &str = "notification:copy";

/// The most entries that are read of the copies of a channel.
const MAX_COPIES: usize = 1000;

/// The rooms of an instance.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) server: Server,
    pub(super) namespace: Arc<str>,
}

/// A notification with its id.
pub(super) type Notification = (u64, Map<String, Value>);

/// The copy of a notification.
#[derive(Serialize, Deserialize)]
struct Copy {
    id: u64,
    time: u64,
    argument: Value,
}

impl Streams {
    fn all(&self) -> BroadcastOperator {
        self.server.of(&self.namespace)
    }

    /// Publishes a notification. When this returns, it is stored.
    pub(super) async fn publish(
        &self,
        channel: &Channel,
        room: &str,
        argument: Value,
    ) -> Result<Notification, Failure> {
        let published = self.all().to(room).publish(EVENT, &argument).await;
        let position = published.map_err(|error| refused(&error))?;
        let (id, time) = (position.id, position.time);
        let args = Value::Array(vec![argument]);
        let notification = notification::of_event(EVENT, &args.to_string(), id, time);
        if let (Kind::SeparateRooms, Value::Array(args)) = (channel.r#type, args)
            && let Some(argument) = args.into_iter().next()
        {
            let copy = Copy { id, time, argument };
            let publishing = self.all().to(whole(channel)).publish(COPY, &copy);
            if let Err(error) = publishing.await {
                let channel = &*channel.name;
                warn!(%error, channel, id, "a notification is missing in the list of all rooms");
            }
        }
        Ok((id, notification))
    }

    /// The oldest notification of a room after an id.
    pub(super) async fn first_after(
        &self,
        room: &str,
        id: u64,
    ) -> Result<Option<Notification>, Failure> {
        let reading = self.all().history(room);
        let read = reading.after(id, 1).await.map_err(|error| unread(&error))?;
        Ok(read.first().map(of_entry))
    }

    /// The newest id of a room, or 0.
    pub(super) async fn newest(&self, room: &str) -> Result<u64, Failure> {
        let reading = self.all().history(room);
        let read = reading.latest(1).await.map_err(|error| unread(&error))?;
        Ok(read.first().map_or(0, |entry| entry.id))
    }

    /// A page of a room, or of all rooms of the channel.
    pub(super) async fn page(
        &self,
        channel: &Channel,
        room: Option<&str>,
        page: &Page,
    ) -> Result<Vec<Notification>, Failure> {
        let Some(room) = room else {
            let copies = self.copies(channel).await?;
            return Ok(page.select(copies, |(id, _)| *id));
        };
        let history = self.all().history(room);
        let read = match page.read() {
            Read::Latest => history.latest(page.size).await,
            Read::After(id) => history.after(id, page.size).await,
            Read::Before(id) => history.before(id, page.size).await,
        };
        let entries = read.map_err(|error| unread(&error))?;
        let entries = entries.iter().map(of_entry).collect();
        Ok(page.arrange(entries, |(id, _)| *id))
    }

    /// One notification of a room, or of any room of the channel.
    pub(super) async fn get(
        &self,
        channel: &Channel,
        room: Option<&str>,
        id: u64,
    ) -> Result<Notification, Failure> {
        let found = match room {
            Some(room) => {
                let entry = self.all().history(room).get(id).await;
                entry
                    .map_err(|error| unread(&error))?
                    .as_ref()
                    .map(of_entry)
            }
            None => {
                let copies = self.copies(channel).await?;
                copies.into_iter().find(|(known, _)| *known == id)
            }
        };
        found.ok_or_else(Failure::not_found)
    }

    async fn copies(&self, channel: &Channel) -> Result<Vec<Notification>, Failure> {
        let history = self.all().history(&whole(channel));
        let entries = history.latest(MAX_COPIES).await;
        let entries = entries.map_err(|error| unread(&error))?;
        let copies = entries.iter().filter_map(|entry| {
            let [copy] = serde_json::from_str::<[Copy; 1]>(entry.args.json()).ok()?;
            let args = Value::Array(vec![copy.argument]).to_string();
            let notification = notification::of_event(EVENT, &args, copy.id, copy.time);
            Some((copy.id, notification))
        });
        Ok(copies.collect())
    }
}

/// The room of the copies of a channel. No room of the channel has this name, because those have a
/// name of their own.
fn whole(channel: &Channel) -> String {
    format!("{}#", channel.name)
}

fn of_entry(entry: &HistoryEntry) -> Notification {
    let HistoryEntry { id, time, .. } = *entry;
    let notification = notification::of_event(&entry.event, entry.args.json(), id, time);
    (id, notification)
}

fn refused(error: &PublishError) -> Failure {
    match error {
        PublishError::TooLarge { .. } => {
            Failure::detail(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
        }
        _ => Failure::unavailable(error.to_string()),
    }
}

fn unread(error: &HistoryError) -> Failure {
    Failure::unavailable(error.to_string())
}
