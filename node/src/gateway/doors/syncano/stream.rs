//! The streams of an instance: rooms of its namespace, whose log has the notifications.
//!
//! ```text
//!  room chat#tea ◄── publish ──┬── notification, stored and heard in one step; its id is the log's
//!  room chat#    ◄─────────────┘── a copy with room and id, for the list of all rooms of a channel
//! ```
//!
//! No client receives the copy as a message, because no client can name its room. It is written
//! after the notification, so a node that ends in between loses an entry of that list, and no
//! message.
//!
//! The log keeps entries longer than they are listed: those that have left the lists and polls can
//! still be read by their id.
//!
//! ```text
//!  log  ├── by id only ──┼── listed, replayed by polls ────────► newest
//!       age + GRACE     age, or the newest ones of the event log
//! ```

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use roomcast::{BroadcastOperator, EmitError, HistoryEntry, HistoryError, PublishError, Server};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::warn;

use super::{
    channel::{Channel, Kind},
    failure::Failure,
    history::{MAX_PAGE, Page, Read},
    notification::{self, EVENT},
};
use crate::gateway::clock;

/// The event that a copy is.
pub(super) const COPY: &str = "notification:copy";

/// The most entries that are read of the copies of a channel.
/// It is the default number of notifications that are kept of a room.
const MAX_COPIES: usize = 1000;

/// The rooms of an instance.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) server: Server,
    pub(super) namespace: Arc<str>,
    /// How long a notification is listed.
    pub(super) age: Duration,
}

/// The result of a poll's look into the log.
pub(super) enum Next {
    Found(Notification),
    /// Nothing yet. All up to this id counts as seen.
    After(u64),
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
        let position = self.all().to(room).publish(EVENT, &argument).await?;
        let (id, time) = (position.id, position.time);
        // The response is created from the sent message, instead of being read from the log again.
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

    /// The oldest notification of a room after an id. An id that the instance has never assigned is
    /// from a lost log, so that all messages come after it.
    pub(super) async fn next(
        &self,
        channel: &Channel,
        room: &str,
        id: u64,
    ) -> Result<Next, Failure> {
        let oldest = match channel.listed() {
            Some(count) => self.nth_newest(room, count).await?,
            None => 0,
        };
        let (read, seen) = self.listed(room, id, 1).await?;
        Ok(match read.first() {
            Some(first) if first.id >= oldest => Next::Found(of_entry(first)),
            Some(_) => match self.first_after(room, oldest - 1).await? {
                Some(first) => Next::Found(first),
                None => Next::After(oldest - 1),
            },
            None => Next::After(seen),
        })
    }

    /// The first entries after an id that are young enough, and the id up to which all are too old.
    async fn listed(
        &self,
        room: &str,
        mut id: u64,
        limit: usize,
    ) -> Result<(Vec<HistoryEntry>, u64), Failure> {
        let (history, begin) = (self.all().history(room), self.begin());
        let mut count = limit;
        loop {
            let mut read = history.after(id, count).await?;
            let old = read.iter().rposition(|entry| entry.time < begin);
            let Some(old) = old else {
                read.truncate(limit);
                return Ok((read, id));
            };
            id = read[old].id;
            if old + 1 == read.len() && read.len() < count {
                return Ok((Vec::new(), id));
            }
            // Old entries lie before the young ones, so further ones are read in pages.
            count = limit.max(MAX_PAGE);
        }
    }

    /// The id of the entry before which there are `count - 1` newer ones, or 0.
    pub(super) async fn nth_newest(&self, room: &str, count: usize) -> Result<u64, Failure> {
        let read = self.all().history(room).latest(count).await?;
        let first = read.first().filter(|_| read.len() == count);
        Ok(first.map_or(0, |first| first.id))
    }

    /// The time of the oldest notifications that are listed, in milliseconds since 1970.
    fn begin(&self) -> u64 {
        clock::unix_millis().saturating_sub(clock::millis(self.age))
    }

    /// The oldest notification of a room after an id, if there is one.
    pub(super) async fn first_after(
        &self,
        room: &str,
        id: u64,
    ) -> Result<Option<Notification>, Failure> {
        let (read, _) = self.listed(room, id, 1).await?;
        Ok(read.first().map(of_entry))
    }

    /// The id of the notification of a room before this one, or 0.
    pub(super) async fn previous(&self, room: &str, id: u64) -> Result<u64, Failure> {
        let read = self.all().history(room).before(id, 1).await?;
        Ok(read.first().map_or(0, |entry| entry.id))
    }

    /// A page of a room, or of all rooms of the channel.
    pub(super) async fn page(
        &self,
        channel: &Channel,
        room: Option<&str>,
        page: &Page,
    ) -> Result<Vec<Notification>, Failure> {
        let begin = self.begin();
        let Some(room) = room else {
            let copies = self.copies(channel).await?.into_iter();
            let listed = copies.filter(|(time, _)| *time >= begin);
            let mut listed: Vec<_> = listed.map(|(_, notification)| notification).collect();
            if let Some(count) = channel.listed() {
                listed.drain(..listed.len().saturating_sub(count));
            }
            return Ok(page.select(listed, |(id, _)| *id));
        };
        let history = self.all().history(room);
        let read = match (channel.listed(), page.read()) {
            (Some(count), _) => history.latest(count).await,
            (None, Read::Latest) => history.latest(page.size).await,
            (None, Read::Before(id)) => history.before(id, page.size).await,
            (None, Read::After(id)) => Ok(self.listed(room, id, page.size).await?.0),
        };
        let entries = read?;
        let listed = entries.iter().filter(|entry| entry.time >= begin);
        let listed = listed.map(of_entry).collect();
        Ok(match channel.listed() {
            Some(_) => page.select(listed, |(id, _)| *id),
            None => page.arrange(listed, |(id, _)| *id),
        })
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
                let entry = self.all().history(room).get(id).await?;
                entry.as_ref().map(of_entry)
            }
            None => {
                let copies = self.copies(channel).await?.into_iter();
                let mut copies = copies.map(|(_, notification)| notification);
                copies.find(|(known, _)| *known == id)
            }
        };
        found.ok_or_else(Failure::not_found)
    }

    /// The copies of a channel with their times, the oldest first.
    async fn copies(&self, channel: &Channel) -> Result<Vec<(u64, Notification)>, Failure> {
        let history = self.all().history(&whole(channel));
        let entries = history.latest(MAX_COPIES).await?;
        let copies = entries.iter().filter_map(|entry| {
            let [copy] = serde_json::from_str::<[Copy; 1]>(entry.args.json()).ok()?;
            let args = Value::Array(vec![copy.argument]).to_string();
            let notification = notification::of_event(EVENT, &args, copy.id, copy.time);
            Some((copy.time, (copy.id, notification)))
        });
        Ok(copies.collect())
    }
}

/// The room of the copies of a channel. No room of the channel has this name, because rooms have
/// non-empty names.
fn whole(channel: &Channel) -> String {
    format!("{}#", channel.name)
}

fn of_entry(entry: &HistoryEntry) -> Notification {
    let HistoryEntry { id, time, .. } = *entry;
    let notification = notification::of_event(&entry.event, entry.args.json(), id, time);
    (id, notification)
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let text = error.to_string();
        match error {
            PublishError::TooLarge { .. } => Self::detail(StatusCode::PAYLOAD_TOO_LARGE, text),
            PublishError::Emit(EmitError::Args(_)) => Self::detail(StatusCode::BAD_REQUEST, text),
            _ => Self::unavailable(text),
        }
    }
}

impl From<HistoryError> for Failure {
    fn from(error: HistoryError) -> Self {
        Self::unavailable(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use roomcast::Args;

    use super::*;

    #[test]
    fn what_can_never_be_published_is_the_mistake_of_the_request() {
        let error = Args::from_text("{}".into(), Vec::new()).unwrap_err();
        let error = PublishError::from(EmitError::Args(error));
        assert_eq!(Failure::from(error).status, StatusCode::BAD_REQUEST);
        let error = PublishError::Unavailable("Redis is down".into());
        assert_eq!(Failure::from(error).status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
