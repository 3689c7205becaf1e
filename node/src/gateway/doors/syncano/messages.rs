//! Requests about the notifications of a channel: publish, and history.
//!
//! A message is stored in the log of its room and published in the same step, so a poll
//! that begins at any time gets each message once: from the log, or live. The id and
//! the time of a notification are those of its place in the log.

use axum::response::Response;
use http::{Method, StatusCode};
use roomcast::syncano::{Message, Query};
use serde_json::json;

use super::{
    Call, Service,
    channel::{Channel, Kind},
    failure::{Failure, json_response},
    history::Page,
    keys::Caller,
    notification::{self, with_links},
};

impl Service {
    /// Publishes a message. The response has the notification as polls get it, so the
    /// publisher knows its id.
    pub(super) async fn publish(
        &self,
        method: &Method,
        call: Call<'_>,
        name: &str,
    ) -> Result<Response, Failure> {
        Failure::unless(method, "POST")?;
        let channel = call.instance.channel(name).await?;
        channel.check_publish(&call.caller)?;
        let message = Message::read(&call.fields?)?;
        let room = channel.room(message.room.as_deref())?;
        let author = call.caller.author();
        let argument = notification::argument(None, author, message.payload);
        let streams = self.streams(call.instance);
        let (_, notification) = streams.publish(&channel, &room, argument).await?;
        let body = with_links(notification, call.base, name);
        Ok(json_response(StatusCode::CREATED, &body))
    }

    /// Returns a page of the notifications of a room, or of all rooms of the channel.
    pub(super) async fn history(
        &self,
        method: &Method,
        call: Call<'_>,
        name: &str,
        query: &Query,
    ) -> Result<Response, Failure> {
        let channel = self.readable(method, &call, name).await?;
        let page = Page::of(query)?;
        let room = room(&channel, &call.caller, page.room.as_deref())?;
        let streams = self.streams(call.instance);
        let found = streams.page(&channel, room.as_deref(), &page).await?;
        let ids: Vec<_> = found.iter().map(|(id, _)| *id).collect();
        let path = format!("{}/channels/{name}/history/", call.base);
        let (next, prev) = page.links(&path, &ids);
        let objects = found.into_iter();
        let objects = objects.map(|(_, notification)| with_links(notification, call.base, name));
        let objects: Vec<_> = objects.collect();
        let body = json!({ "next": next, "prev": prev, "objects": objects });
        Ok(json_response(StatusCode::OK, &body))
    }

    /// Returns one notification by its id, also some time after it has left the lists.
    pub(super) async fn notification(
        &self,
        method: &Method,
        call: Call<'_>,
        (name, id): (&str, u64),
        query: &Query,
    ) -> Result<Response, Failure> {
        let channel = self.readable(method, &call, name).await?;
        let room = room(&channel, &call.caller, query.get("room"))?;
        let streams = self.streams(call.instance);
        let (_, notification) = streams.get(&channel, room.as_deref(), id).await?;
        let body = with_links(notification, call.base, name);
        Ok(json_response(StatusCode::OK, &body))
    }

    /// The channel, if its history may be read. Its absence has other words here than elsewhere.
    async fn readable(
        &self,
        method: &Method,
        call: &Call<'_>,
        name: &str,
    ) -> Result<Channel, Failure> {
        Failure::unless(method, "GET")?;
        let channel = call.instance.channel(name).await;
        let channel = channel.map_err(|failure| match failure.status {
            StatusCode::NOT_FOUND => {
                Failure::detail(StatusCode::NOT_FOUND, "Channel was not found.")
            }
            _ => failure,
        })?;
        channel.check_subscribe(&call.caller)?;
        Ok(channel)
    }
}

/// The room whose history is read: `None` for all rooms of the channel, which callers
/// with all rights may leave out, because the Python SDK never sends it.
fn room(channel: &Channel, caller: &Caller, room: Option<&str>) -> Result<Option<String>, Failure> {
    if room.is_none() && channel.r#type == Kind::SeparateRooms && caller.has_all_rights() {
        return Ok(None);
    }
    channel.room(room).map(Some)
}
