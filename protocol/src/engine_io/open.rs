//! The opening of an Engine.IO connection: the query string of a request, the handshake that
//! accepts it, and the errors that refuse it.
//!
//! Which sessions exist and which transports are enabled is decided by the HTTP routes.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

/// The handshake, which is the payload of the open packet.
///
/// Official clients read these five keys and no others. They are written in the order of Node's
/// server.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Handshake<'a> {
    /// The session's secret id.
    pub sid: &'a str,
    /// Transports that the client may upgrade to; empty if there is none.
    pub upgrades: &'a [TransportName],
    /// How often the server (revision 4) or the client (revision 3) pings. Written as whole
    /// milliseconds.
    #[serde(serialize_with = "millis")]
    pub ping_interval: Duration,
    /// How long the other side may take to reply to a ping. Written as whole milliseconds.
    #[serde(serialize_with = "millis")]
    pub ping_timeout: Duration,
    /// The largest body or message that the client may send, in bytes.
    pub max_payload: usize,
}

impl Handshake<'_> {
    /// The packet that opens a session: its type, and the handshake as JSON.
    pub fn to_packet(&self) -> String {
        /// Enough for a handshake with an upgrade and common numbers.
        const ROOM: usize = 160;
        let mut packet = Vec::with_capacity(ROOM);
        packet.push(b'0');
        serde_json::to_writer(&mut packet, self).expect("strings and integers are always JSON");
        String::from_utf8(packet).expect("JSON is written as UTF-8")
    }
}

/// The transports of Engine.IO by their names in query strings and handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportName {
    /// HTTP long polling.
    Polling,
    /// WebSocket.
    WebSocket,
}

impl TransportName {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Polling => "polling",
            Self::WebSocket => "websocket",
        }
    }
}

/// The revision of Engine.IO that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// Revision 3, of Socket.IO 2 clients. The client pings.
    V3,
    /// Revision 4, of clients since Socket.IO 3. The server pings.
    V4,
}

/// The decoded query string of a request. If a key is repeated, the last value counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// `EIO` as it was sent; [`Query::revision`] interprets it.
    pub eio: Option<String>,
    /// `transport` as it was sent; [`Query::transport_name`] interprets it.
    pub transport: Option<String>,
    /// The id of the session that the request belongs to; absent in the first request.
    pub sid: Option<String>,
    /// Whether the client can receive text only (`b64=1`), so that binary is sent as base64.
    pub b64: bool,
    /// A value that differs in every request, so that no cache on the way answers it.
    pub t: Option<String>,
    /// The application's own keys and their values, in the order of their first occurrence.
    pub application: Vec<(String, String)>,
}

impl Query {
    /// Decodes the text after the `?`. Invalid percent escapes are kept, and bytes that are not
    /// UTF-8 become U+FFFD, as in Node.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::BadRequest`] if the application has more than [`MAX_QUERY_KEYS`] keys.
    pub fn parse(query: &str) -> Result<Self, HandshakeError> {
        let mut parsed = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            parsed.set(&key, value.into_owned())?;
        }
        Ok(parsed)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), HandshakeError> {
        match key {
            "EIO" => self.eio = Some(value),
            "transport" => self.transport = Some(value),
            "sid" => self.sid = Some(value),
            // Any value counts, even `0`, because Node tests the text and not a number.
            "b64" => self.b64 = !value.is_empty(),
            "t" => self.t = Some(value),
            _ => return self.set_application(key, value),
        }
        Ok(())
    }

    fn set_application(&mut self, key: &str, value: String) -> Result<(), HandshakeError> {
        let known = self.application.iter().position(|(known, _)| *known == key);
        match known {
            Some(at) => self.application[at].1 = value,
            None if self.application.len() == MAX_QUERY_KEYS => {
                return Err(HandshakeError::BadRequest);
            }
            None => self.application.push((key.to_owned(), value)),
        }
        Ok(())
    }

    /// All keys and values; those of the protocol come first.
    pub fn into_pairs(self) -> Vec<(String, String)> {
        let b64 = self.b64.then(|| String::from("1"));
        let known = [
            ("EIO", self.eio),
            ("transport", self.transport),
            ("sid", self.sid),
            ("b64", b64),
            ("t", self.t),
        ];
        let known = known
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)));
        known.chain(self.application).collect()
    }

    /// The transport of the request. The caller checks whether it is enabled.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::TransportUnknown`] if it is missing or neither polling nor WebSocket.
    pub fn transport_name(&self) -> Result<TransportName, HandshakeError> {
        match self.transport.as_deref() {
            Some("polling") => Ok(TransportName::Polling),
            Some("websocket") => Ok(TransportName::WebSocket),
            _ => Err(HandshakeError::TransportUnknown),
        }
    }

    /// The revision that the client speaks. With `allow_v3`, anything but `EIO=4` is revision 3,
    /// because the oldest clients do not send `EIO` at all.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::UnsupportedProtocol`] for anything but `EIO=4` without `allow_v3`.
    pub fn revision(&self, allow_v3: bool) -> Result<Revision, HandshakeError> {
        match self.eio.as_deref() {
            Some("4") => Ok(Revision::V4),
            _ if allow_v3 => Ok(Revision::V3),
            _ => Err(HandshakeError::UnsupportedProtocol),
        }
    }
}

/// Why a request is refused. Codes and texts are those of Node's server, because clients compare
/// them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.message())]
pub enum HandshakeError {
    /// The transport is missing, unknown or disabled.
    TransportUnknown,
    /// No open session has this id.
    SessionUnknown,
    /// The first request of a session is not a GET.
    BadHandshakeMethod,
    /// The request does not fit the session's transport, or is invalid.
    BadRequest,
    /// The application refused the client, with its own message or the default one.
    Forbidden(Option<Cow<'static, str>>),
    /// The client speaks a revision that the server does not support.
    UnsupportedProtocol,
}

impl HandshakeError {
    /// The number in the response body, the label in metrics, and the text. None ever changes.
    fn parts(&self) -> (u8, &'static str, &str) {
        match self {
            Self::TransportUnknown => (0, "transport_unknown", "Transport unknown"),
            Self::SessionUnknown => (1, "session_unknown", "Session ID unknown"),
            Self::BadHandshakeMethod => (2, "bad_handshake_method", "Bad handshake method"),
            Self::BadRequest => (3, "bad_request", "Bad request"),
            Self::Forbidden(message) => (4, "forbidden", message.as_deref().unwrap_or("Forbidden")),
            Self::UnsupportedProtocol => {
                (5, "unsupported_protocol", "Unsupported protocol version")
            }
        }
    }

    /// The error's text. It is the whole body of the response to a refused WebSocket upgrade.
    pub fn message(&self) -> &str {
        self.parts().2
    }

    /// The label of the error in metrics.
    pub fn label(&self) -> &'static str {
        self.parts().1
    }

    /// The HTTP status of the response: 403 if the application refused, otherwise 400.
    pub fn status(&self) -> u16 {
        if matches!(self, Self::Forbidden(_)) {
            403
        } else {
            400
        }
    }

    /// The body of the response: `{"code":…,"message":…}`.
    pub fn body(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            code: u8,
            message: &'a str,
        }
        let (code, _, message) = self.parts();
        serde_json::to_string(&Body { code, message })
            .expect("a number and a string are always JSON")
    }
}

/// Maximum number of different application keys in a query string.
pub const MAX_QUERY_KEYS: usize = 100;

fn millis<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_handshake_is_the_captured_text() {
        let mut handshake = Handshake {
            sid: "lT7gf_hQKIsMKhJGAAAr",
            upgrades: &[TransportName::WebSocket],
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(20),
            max_payload: 1_000_000,
        };
        assert_eq!(
            handshake.to_packet(),
            r#"0{"sid":"lT7gf_hQKIsMKhJGAAAr","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#
        );
        handshake.upgrades = &[];
        assert!(handshake.to_packet().contains(r#","upgrades":[],"#));
    }

    #[test]
    fn a_query_is_taken_apart() {
        let query =
            Query::parse("EIO=4&transport=polling&sid=a_b-c&t=x1&room=1&&user=j%20d+e&flag")
                .unwrap();
        assert_eq!(query.eio.as_deref(), Some("4"));
        assert_eq!(query.transport_name(), Ok(TransportName::Polling));
        assert_eq!(query.sid.as_deref(), Some("a_b-c"));
        assert_eq!(query.t.as_deref(), Some("x1"));
        assert!(!query.b64);
        assert_eq!(
            query.application,
            pairs(&[("room", "1"), ("user", "j d e"), ("flag", "")])
        );
    }

    #[test]
    fn of_a_repeated_key_the_last_value_counts() {
        let query = Query::parse("transport=polling&a=1&b=2&a=3&transport=websocket").unwrap();
        assert_eq!(query.transport_name(), Ok(TransportName::WebSocket));
        assert_eq!(query.application, pairs(&[("a", "3"), ("b", "2")]));
    }

    #[test]
    fn escapes_are_decoded_and_damaged_ones_kept() {
        let query = Query::parse("k%C3%A9y=%E2%82%AC&x=%&y=%4&z=%zz%41&%=%ff").unwrap();
        assert_eq!(
            query.application,
            pairs(&[
                ("k\u{e9}y", "\u{20ac}"),
                ("x", "%"),
                ("y", "%4"),
                ("z", "%zzA"),
                ("%", "\u{fffd}")
            ])
        );
    }

    #[test]
    fn too_many_keys_are_refused() {
        let query = |keys| (0..keys).map(|key| format!("k{key}=&")).collect::<String>();
        assert!(Query::parse(&query(MAX_QUERY_KEYS)).is_ok());
        assert_eq!(
            Query::parse(&query(MAX_QUERY_KEYS + 1)),
            Err(HandshakeError::BadRequest)
        );
    }

    #[test]
    fn base64_is_asked_for_by_any_value() {
        assert!(Query::parse("b64=1").unwrap().b64);
        assert!(Query::parse("b64=0").unwrap().b64);
        assert!(!Query::parse("b64=").unwrap().b64);
    }

    #[test]
    fn transports_are_known_by_their_exact_names() {
        for query in [
            "",
            "transport=",
            "transport=Polling",
            "transport=webtransport",
        ] {
            let transport = Query::parse(query).unwrap().transport_name();
            assert_eq!(transport, Err(HandshakeError::TransportUnknown), "{query}");
        }
        assert_eq!(TransportName::WebSocket.as_str(), "websocket");
        assert_eq!(TransportName::Polling.as_str(), "polling");
    }

    #[test]
    fn old_revisions_are_served_only_where_they_are_let_in() {
        let revision = |query, lenient| Query::parse(query).unwrap().revision(lenient);
        assert_eq!(revision("EIO=4", false), Ok(Revision::V4));
        assert_eq!(revision("EIO=4", true), Ok(Revision::V4));
        for query in ["EIO=3", "EIO=5", ""] {
            let refused = Err(HandshakeError::UnsupportedProtocol);
            assert_eq!(revision(query, false), refused, "{query}");
            assert_eq!(revision(query, true), Ok(Revision::V3), "{query}");
        }
    }

    #[test]
    fn errors_are_the_ones_that_clients_know() {
        use HandshakeError as E;
        for (error, status, code, message) in [
            (E::TransportUnknown, 400, 0, "Transport unknown"),
            (E::SessionUnknown, 400, 1, "Session ID unknown"),
            (E::BadHandshakeMethod, 400, 2, "Bad handshake method"),
            (E::BadRequest, 400, 3, "Bad request"),
            (E::Forbidden(None), 403, 4, "Forbidden"),
            (E::Forbidden(Some("a \"b\"".into())), 403, 4, r#"a \"b\""#),
            (
                E::UnsupportedProtocol,
                400,
                5,
                "Unsupported protocol version",
            ),
        ] {
            let body = format!(r#"{{"code":{code},"message":"{message}"}}"#);
            assert_eq!((error.status(), error.body()), (status, body));
            assert_eq!(error.to_string(), error.message());
        }
    }

    proptest! {
        #[test]
        fn any_query_is_read_without_panic(query in ".*") {
            if let Ok(query) = Query::parse(&query) {
                prop_assert!(query.application.len() <= MAX_QUERY_KEYS);
            }
        }

        #[test]
        fn escaped_text_decodes_to_itself(text in ".*") {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let query = Query::parse(&format!("a={escaped}")).unwrap();
            prop_assert_eq!(query.application, pairs(&[("a", &text)]));
        }
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }
}
