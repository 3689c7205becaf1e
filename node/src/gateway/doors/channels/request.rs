//! Reads the names in a request: the namespace, rooms, and the parameters of the query.
//!
//! Everything that the head of a request can show to be wrong is refused before its
//! body is read and before the client is recognized.

use std::{collections::BTreeMap, time::Duration};

use form_urlencoded::parse;
use http::{header, request::Parts};
use roomcast::channels::id;

use super::Channels;
use crate::gateway::{
    api::{Kind, Problem, bearer},
    doors::{Door, DoorLimit},
    values::Span,
};

/// The purpose of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Events,
    Poll,
    Publish,
    History,
    Presence,
}

impl Endpoint {
    /// The parameters that its query may have. `room` may be repeated.
    /// Unknown ones are refused: a client that misspells `last_id` would miss events
    /// silently.
    fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::Events | Self::Poll => &["room", "last_id", "timeout", "limit", "token"],
            Self::Publish | Self::Presence => &["token"],
            Self::History => &["last_id", "before", "limit", "token"],
        }
    }
}

/// A request, as far as its head has been read.
pub(super) struct Call {
    pub(super) namespace: String,
    /// Without repetitions. Streams may begin without one, if they are WebSockets.
    pub(super) rooms: Vec<String>,
    pub(super) last_id: Option<u64>,
    /// The id is from a header, which browsers add when they reconnect.
    pub(super) is_reconnect: bool,
    pub(super) before: Option<u64>,
    pub(super) limit: usize,
    pub(super) timeout: Duration,
    /// The credential of the client: a key of the API or a token.
    pub(super) token: Option<String>,
}

impl Call {
    /// Reads the head of a request. `path` has the parts of the path that the route names.
    pub(super) fn read(
        channels: &Channels,
        endpoint: Endpoint,
        path: &BTreeMap<String, String>,
        parts: &Parts,
    ) -> Result<Self, Problem> {
        let settings = channels.settings();
        let namespace = namespace(path.get("namespace").map_or("", String::as_str));
        if !settings.has(&namespace) {
            let detail = format!(
                "{namespace} has no channels: `doors.channels.namespaces` lists those that have"
            );
            return Err(Problem::new(Kind::UnknownNamespace, detail));
        }
        let query = parts.uri.query().unwrap_or_default();
        let longest = channels.doors.settings.max_query;
        if query.len() > longest.0 {
            channels.reached(DoorLimit::Query);
            let detail = format!("a query has at most {longest}");
            return Err(Problem::new(Kind::QueryTooLong, detail));
        }
        let mut call = Self {
            namespace,
            rooms: path.get("room").cloned().into_iter().collect(),
            last_id: None,
            is_reconnect: false,
            before: None,
            limit: settings.max_events,
            timeout: settings.poll_timeout.0,
            token: token(parts),
        };
        for (name, value) in parse(query.as_bytes()) {
            if !endpoint.parameters().contains(&&*name) {
                let detail = format!("there is no parameter `{name}` here");
                return Err(Problem::invalid(&name, detail));
            }
            call.parameter(channels, &name, value.into_owned())?;
        }
        // A browser keeps the query of the first request, and adds the header to the later ones.
        if let Some(last_id) = parts.headers.get("last-event-id")
            && !last_id.is_empty()
        {
            let text = last_id.to_str().unwrap_or_default();
            call.last_id = Some(event_id("Last-Event-ID", text)?);
            call.is_reconnect = true;
        }
        channels.check_rooms(call.rooms.len(), &call.rooms)?;
        Ok(call)
    }

    fn parameter(&mut self, channels: &Channels, name: &str, value: String) -> Result<(), Problem> {
        let settings = channels.settings();
        match name {
            "room" if !self.rooms.contains(&value) => self.rooms.push(value),
            "last_id" => self.last_id = Some(event_id(name, &value)?),
            "before" => self.before = Some(event_id(name, &value)?),
            "limit" => {
                let most = settings.max_events;
                let limit = value.parse().ok();
                let limit = limit.filter(|limit| (1..=most).contains(limit));
                let expected = || Problem::invalid(name, format!("expected 1 to {most}"));
                self.limit = limit.ok_or_else(expected)?;
            }
            "timeout" => {
                let most = settings.poll_timeout;
                // Seconds, as long as they have no unit.
                let span = value.parse().or_else(|_| format!("{value}s").parse());
                let span = span.ok().map(|span: Span| span.0);
                // A setting cannot be zero; a poll with it returns the events that are available
                // already.
                let span = span.or_else(|| is_zero(&value).then_some(Duration::ZERO));
                let span = span.filter(|span| *span <= most.0);
                let expected = || {
                    let detail =
                        format!("expected seconds, or a duration such as 500ms, up to {most}");
                    Problem::invalid(name, detail)
                };
                self.timeout = span.ok_or_else(expected)?;
            }
            "token" if !settings.query_token => {
                let detail = "tokens in the query are not allowed here, because URLs end up in \
                              logs: send Authorization: Bearer, or set query_token";
                return Err(Problem::invalid(name, detail));
            }
            "token" if !value.is_empty() => self.token = Some(value),
            _ => {}
        }
        Ok(())
    }
}

impl Channels {
    /// Checks the names of rooms, and how many a stream would have.
    /// `count` is that of all rooms that the stream would have, and may be larger than
    /// the list.
    pub(super) fn check_rooms(&self, count: usize, rooms: &[String]) -> Result<(), Problem> {
        let most = self.settings().max_rooms;
        if count > most {
            self.reached(DoorLimit::Rooms);
            let detail = format!("a stream has at most {most} rooms");
            return Err(Problem::invalid("room", detail));
        }
        let longest = self.doors.limits.room_name_bytes;
        for room in rooms {
            if room.is_empty() {
                return Err(Problem::invalid("room", "a room needs a name"));
            }
            if room.len() > longest {
                self.reached(DoorLimit::Name);
                let detail = format!("the name of a room has at most {longest} bytes");
                return Err(Problem::invalid("room", detail));
            }
        }
        Ok(())
    }

    pub(super) fn reached(&self, limit: DoorLimit) {
        self.doors.reached(Door::Channels, limit);
    }
}

/// The namespace of a path: its first slash may be left out, and so may be the name of
/// the main one.
fn namespace(text: &str) -> String {
    match text.strip_prefix('/') {
        Some(_) => text.to_owned(),
        None => format!("/{text}"),
    }
}

/// Whether a time is zero, in whichever unit.
fn is_zero(span: &str) -> bool {
    matches!(span, "0" | "0s" | "0ms")
}

fn event_id(name: &str, text: &str) -> Result<u64, Problem> {
    id(text).ok_or_else(|| Problem::invalid(name, "expected the id of an event"))
}

/// The token of the header `Authorization: Bearer`.
fn token(parts: &Parts) -> Option<String> {
    let token = bearer(parts.headers.get(header::AUTHORIZATION)?)?;
    Some(std::str::from_utf8(token).ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_namespace_has_no_name_in_a_path() {
        for (text, name) in [
            ("", "/"),
            ("/", "/"),
            ("chat", "/chat"),
            ("/chat", "/chat"),
            ("org/7", "/org/7"),
        ] {
            assert_eq!(namespace(text), name);
        }
    }
}
