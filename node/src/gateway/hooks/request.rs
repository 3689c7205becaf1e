//! The bodies of requests, and the parts of a client's own request that are passed on.
//!
//! A body has everything that an application needs to decide without asking back: the
//! socket, its user, rooms and data, and the parts of its first request that the
//! settings select. Headers and cookies are passed on only if they are named, because
//! they hold secrets of other services.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use roomcast::{Event, Handshake, Recovering, Socket};
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};

use super::settings::Forwarded;
use crate::gateway::{auth::cookie, session::SocketData};

/// Room for a body. Most fit.
const BODY_BYTES: usize = 1024;

/// The common part of all requests of a node.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) hook: &'a str,
    /// Unique. A request that is repeated has the same.
    pub(super) id: &'a str,
    pub(super) node: &'a str,
    pub(super) namespace: &'a str,
}

/// The body of a request.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    id: &'a str,
    hook: &'a str,
    node: &'a str,
    namespace: &'a str,
    #[serde(flatten)]
    occasion: Occasion<'a>,
    socket: SocketPart<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Occasion<'a> {
    Connect {
        auth: Value,
        query: Map<String, Value>,
        /// Whether the client comes back to its session.
        recovered: bool,
    },
    Event {
        event: &'a str,
        args: &'a RawValue,
        /// Whether the client waits for an acknowledgement.
        ack: bool,
    },
    Disconnect {
        reason: String,
    },
}

#[derive(Serialize)]
struct SocketPart<'a> {
    id: &'a str,
    user: Option<&'a str>,
    /// Without the private room.
    rooms: Vec<String>,
    data: &'a Map<String, Value>,
    address: Option<IpAddr>,
    headers: BTreeMap<&'a str, Cow<'a, str>>,
    cookies: BTreeMap<&'a str, String>,
}

/// The parts of the client's own request that a hook passes on: in the body, which is
/// signed, and as headers, where the session middleware of web frameworks looks for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub(super) headers: Vec<Forwarded>,
    pub(super) cookies: Vec<String>,
}

impl Selection {
    fn headers<'a>(&'a self, handshake: &'a Handshake) -> BTreeMap<&'a str, Cow<'a, str>> {
        let value = |Forwarded(name): &'_ Forwarded| handshake.header(name.as_str());
        self.headers
            .iter()
            .filter_map(|name| Some((name.0.as_str(), value(name)?)))
            .collect()
    }

    /// Only the cookies that the settings name: the header as a whole holds those of
    /// other services.
    fn cookies(&self, handshake: &Handshake) -> BTreeMap<&str, String> {
        let all = handshake.header("cookie").unwrap_or_default();
        let wanted = self.cookies.iter();
        let found = wanted.filter_map(|name| Some((name.as_str(), cookie(&all, name)?.to_owned())));
        found.collect()
    }

    /// The same as headers of the request.
    /// Values that HTTP does not permit are left out. They came from a client, and must
    /// not make the request fail.
    pub(super) fn forward(&self, handshake: &Handshake) -> HeaderMap {
        let mut forwarded = HeaderMap::new();
        for Forwarded(name) in &self.headers {
            let value = handshake.header(name.as_str());
            if let Some(Ok(value)) = value.map(|value| HeaderValue::from_bytes(value.as_bytes())) {
                forwarded.insert(name.clone(), value);
            }
        }
        let cookies = self.cookies(handshake);
        let pairs: Vec<_> = cookies.iter().map(|(k, v)| format!("{k}={v}")).collect();
        if !pairs.is_empty()
            && let Ok(value) = HeaderValue::from_bytes(pairs.join("; ").as_bytes())
        {
            forwarded.insert(header::COOKIE, value);
        }
        forwarded
    }

    fn part<'a>(
        &'a self,
        id: &'a str,
        handshake: &'a Handshake,
        data: &'a SocketData,
    ) -> SocketPart<'a> {
        SocketPart {
            id,
            user: data.user.as_deref(),
            rooms: Vec::new(),
            data: &data.data,
            address: handshake.address().map(|address| address.ip()),
            headers: self.headers(handshake),
            cookies: self.cookies(handshake),
        }
    }

    fn socket<'a>(&'a self, socket: &'a Socket, data: &'a SocketData) -> SocketPart<'a> {
        let id = socket.id().as_str();
        let mut rooms = socket.rooms();
        rooms.retain(|room| room != id);
        SocketPart {
            rooms,
            ..self.part(id, socket.handshake(), data)
        }
    }
}

/// The gateway's data of a socket. A namespace without tokens or hooks that decide keeps nothing.
fn data(socket: &Socket) -> Arc<SocketData> {
    socket.data().unwrap_or_default()
}

/// A client that wants to connect.
#[derive(Clone, Copy)]
pub(crate) struct Connecting<'a> {
    pub(crate) handshake: &'a Handshake,
    pub(crate) recovering: Recovering,
    /// Whether clients of the namespace can come back. Then the official client adds the secret name of its session
    /// and its place in the journal to `auth`.
    pub(crate) can_come_back: bool,
}

/// The body for a client that wants to connect.
pub(super) fn connect(
    origin: Origin<'_>,
    selection: &Selection,
    id: &str,
    connecting: Connecting<'_>,
    data: &SocketData,
) -> Result<Bytes, serde_json::Error> {
    let Connecting {
        handshake,
        recovering,
        can_come_back,
    } = connecting;
    let query = handshake.queries();
    let mut auth = handshake.auth::<Value>()?;
    if let (true, Some(fields)) = (can_come_back, auth.as_object_mut()) {
        // They are the client's secret: their holder can take over its session.
        fields.retain(|name, _| !["pid", "offset"].contains(&&**name));
    }
    let occasion = Occasion::Connect {
        auth,
        query: query.into_iter().map(|(k, v)| (k, v.into())).collect(),
        recovered: recovering.0,
    };
    write(origin, occasion, selection.part(id, handshake, data))
}

/// The body for an event. The error is about the arguments of the client.
pub(super) fn event(
    origin: Origin<'_>,
    selection: &Selection,
    socket: &Socket,
    event: &Event,
    ack: bool,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let args = event.args().to_plain_json()?;
    let occasion = Occasion::Event {
        event: event.name(),
        args: serde_json::from_str(&args)?,
        ack,
    };
    let data = data(socket);
    Ok(write(origin, occasion, selection.socket(socket, &data))?)
}

/// The body for several events.
/// The JSON is written event by event, so that a batch needs no tree of all its
/// arguments.
pub(super) struct BatchBody {
    json: Vec<u8>,
    count: usize,
}

impl BatchBody {
    /// The namespaces are those of the events.
    pub(super) fn new(origin: Origin<'_>) -> Self {
        let Origin { hook, id, node, .. } = origin;
        let head = serde_json::json!({ "id": id, "hook": hook, "node": node, "type": "batch" });
        let mut json = head.to_string().into_bytes();
        // The closing brace follows the events.
        json.pop();
        json.extend(b",\"events\":[");
        Self { json, count: 0 }
    }

    /// Adds the body that the event would have alone.
    pub(super) fn push(&mut self, event: &[u8]) {
        if self.count > 0 {
            self.json.push(b',');
        }
        self.json.extend(event);
        self.count += 1;
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn finish(mut self) -> Bytes {
        self.json.extend(b"]}");
        self.json.into()
    }
}

/// The body for a socket that has disconnected.
pub(super) fn disconnect(
    origin: Origin<'_>,
    selection: &Selection,
    socket: &Socket,
    reason: String,
) -> Result<Bytes, serde_json::Error> {
    let occasion = Occasion::Disconnect { reason };
    let data = data(socket);
    write(origin, occasion, selection.socket(socket, &data))
}

fn write(
    origin: Origin<'_>,
    occasion: Occasion<'_>,
    socket: SocketPart<'_>,
) -> Result<Bytes, serde_json::Error> {
    let body = Body {
        id: origin.id,
        hook: origin.hook,
        node: origin.node,
        namespace: origin.namespace,
        occasion,
        socket,
    };
    let mut json = Vec::with_capacity(BODY_BYTES);
    serde_json::to_writer(&mut json, &body)?;
    Ok(json.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_the_bodies_of_its_events() {
        let origin = Origin {
            hook: "app",
            id: "1",
            node: "n",
            namespace: "",
        };
        let mut body = BatchBody::new(origin);
        for event in [r#"{"a":1}"#, r#"{"b":[]}"#] {
            body.push(event.as_bytes());
        }
        assert_eq!(body.count(), 2);
        let json: Value = serde_json::from_slice(&body.finish()).unwrap();
        let wanted = serde_json::json!({
            "id": "1", "hook": "app", "node": "n", "type": "batch", "events": [{"a": 1}, {"b": []}],
        });
        assert_eq!(json, wanted);
    }
}
