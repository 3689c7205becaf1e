//! The details of a client's first request: headers, query, address, time.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::client_address::ClientAddress;
use crate::clock::unix_millis;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, header};
use serde::de::DeserializeOwned;

use roomcast_protocol::{args::from_json, engine_io::open::Query};

/// The details of a connection's first request, and the client's `auth` when it connected to a
/// namespace. Cheap to clone.
///
/// It is packed, because every connection keeps it for its life. Headers that concern only the
/// connection itself are left out: `Connection`, `Upgrade`, `Sec-WebSocket-Key`, `-Version` and
/// `-Extensions`.
///
/// ```
/// # use roomcast::{Handshake, Namespace, Refused};
/// # #[derive(serde::Deserialize)] struct Login { token: String }
/// Namespace::new("/").authorize(async |handshake: Handshake| {
///     // From `io(url, { auth: { token: "…" } })`, or from a header.
///     let login = handshake.auth::<Login>();
///     let is_known = login.is_ok_and(|login| login.token == "secret");
///     if is_known || handshake.header("x-token").is_some() {
///         Ok(())
///     } else {
///         Err(Refused::new("unknown token"))
///     }
/// });
/// ```
#[derive(Clone)]
pub struct Handshake {
    request: Arc<Request>,
    auth: Option<Arc<str>>,
}

pub(crate) struct Request {
    /// The request's path and query, then the names and values of the headers. Each ends with a
    /// zero byte, which none of them can contain.
    packed: Box<[u8]>,
    address: Option<SocketAddr>,
    /// Milliseconds since 1970, twice, plus one if the client uses TLS: a separate field would cost
    /// every connection 16 bytes.
    issued_and_secure: u64,
    /// Boxed, because few applications keep any.
    extensions: Option<Box<Extensions>>,
}

/// Copies the value of one type from the extensions of a request.
pub(crate) type Keep = fn(&Extensions, &mut Extensions);

/// Copies the extensions of a request that the application wants to keep.
pub(crate) fn kept(keep: &[Keep], extensions: &Extensions) -> Option<Box<Extensions>> {
    let mut kept = Extensions::new();
    for keep in keep {
        keep(extensions, &mut kept);
    }
    (!kept.is_empty()).then(|| Box::new(kept))
}

impl Handshake {
    pub(crate) fn new(
        uri: &http::Uri,
        headers: &HeaderMap,
        client: Option<ClientAddress>,
        extensions: Option<Box<Extensions>>,
    ) -> Self {
        let mut packed = Vec::with_capacity(512);
        packed.extend_from_slice(
            uri.path_and_query()
                .map_or("", |uri| uri.as_str())
                .as_bytes(),
        );
        packed.push(0);
        for name in headers.keys().filter(|name| !concerns_connection(name)) {
            packed.extend_from_slice(name.as_str().as_bytes());
            packed.push(0);
            let mut lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
            packed.extend_from_slice(lines.next().unwrap_or_default());
            let separator: &[u8] = if name == header::COOKIE { b"; " } else { b", " };
            for line in lines.filter(|_| !is_single(name)) {
                packed.extend_from_slice(separator);
                packed.extend_from_slice(line);
            }
            packed.push(0);
        }
        let request = Request {
            packed: packed.into(),
            address: client.map(|client| client.address()),
            issued_and_secure: unix_millis() << 1
                | u64::from(client.is_some_and(|client| client.is_secure())),
            extensions,
        };
        Self {
            request: Arc::new(request),
            auth: None,
        }
    }

    /// The request without `auth`, as the connection keeps it.
    pub(crate) fn into_request(self) -> Arc<Request> {
        self.request
    }

    pub(crate) fn of(request: &Arc<Request>, auth: Option<&str>) -> Self {
        Self {
            request: Arc::clone(request),
            auth: auth.map(Arc::from),
        }
    }

    /// Returns a value that a layer has put into the extensions of the request, if
    /// [`Builder::keep_extension`](crate::Builder::keep_extension) names its type.
    pub fn extension<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.request.extensions.as_ref()?.get()
    }

    /// The value of a header; `name` in lower case. Several lines of a header are joined as Node
    /// joins them: with a comma, or with a semicolon in the case of `cookie`. Of headers that have
    /// one value, such as `authorization`, the first line counts.
    pub fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.headers()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// All headers, each once, with names in lower case. See [`header`](Self::header).
    pub fn headers(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        let mut parts = self.request.packed.split(|&byte| byte == 0).skip(1);
        std::iter::from_fn(move || {
            let name = parts.next().filter(|name| !name.is_empty())?;
            let value = parts.next()?;
            Some((
                std::str::from_utf8(name).unwrap_or_default(),
                String::from_utf8_lossy(value),
            ))
        })
    }

    /// A value of the query string, decoded.
    pub fn query(&self, key: &str) -> Option<String> {
        self.queries()
            .into_iter()
            .find(|(known, _)| known == key)
            .map(|(_, value)| value)
    }

    /// The query string, decoded, with the keys of the protocol (`EIO`, `transport` …).
    pub fn queries(&self) -> Vec<(String, String)> {
        let query = self.url().split_once('?').map_or("", |(_, query)| query);
        Query::parse(query)
            .map(Query::into_pairs)
            .unwrap_or_default()
    }

    /// Path and query of the request.
    pub fn url(&self) -> &str {
        let uri = self.request.packed.split(|&byte| byte == 0).next();
        uri.and_then(|uri| std::str::from_utf8(uri).ok())
            .unwrap_or_default()
    }

    /// The client's address: the other end of the TCP connection, or the address that a [trusted
    /// proxy](crate::Builder::trusted_proxies) states. The port is 0 if the proxy does not name it.
    /// None if the embedding application does not provide the address (see
    /// `axum::extract::ConnectInfo`).
    pub fn address(&self) -> Option<SocketAddr> {
        self.request.address
    }

    /// Whether the client uses TLS, as far as the server knows: its own listener, or a
    /// trusted proxy that says so.
    pub fn is_secure(&self) -> bool {
        self.request.issued_and_secure & 1 == 1
    }

    /// When the request was received.
    pub fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.issued_millis())
    }

    /// [`time`](Self::time) in milliseconds since 1970, as JavaScript counts.
    pub fn issued_millis(&self) -> u64 {
        self.request.issued_and_secure >> 1
    }

    /// Returns the handshake in the form of Node.js servers: `headers`, `query`, `auth`, `address`,
    /// `time`, `issued`, `url`, `secure` and `xdomain`.
    pub fn to_json(&self) -> serde_json::Value {
        let headers: serde_json::Map<_, _> = self
            .headers()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        let query: serde_json::Map<_, _> = self
            .queries()
            .into_iter()
            .map(|(key, value)| (key, value.into()))
            .collect();
        let address = self.address().map(|address| address.ip().to_string());
        serde_json::json!({
            "xdomain": headers.contains_key("origin"),
            "headers": headers,
            "time": httpdate::fmt_http_date(self.time()),
            "address": address,
            "secure": self.is_secure(),
            "issued": self.issued_millis(),
            "url": self.url(),
            "query": query,
            "auth": self.auth::<serde_json::Value>().unwrap_or_default(),
        })
    }

    /// The client's `auth`, as JSON text; an object.
    pub fn auth_json(&self) -> Option<&str> {
        self.auth.as_deref()
    }

    /// The client's `auth`. A client that sent nothing has an empty object. It
    /// is decoded like the arguments of an event.
    pub fn auth<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        from_json(self.auth.as_deref().unwrap_or("{}"))
    }
}

impl std::fmt::Debug for Handshake {
    /// Headers and `auth` may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

/// Headers that Node shows by their first line only.
fn is_single(name: &HeaderName) -> bool {
    [
        header::AGE,
        header::AUTHORIZATION,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::ETAG,
        header::EXPIRES,
        header::FROM,
        header::HOST,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::LAST_MODIFIED,
        header::LOCATION,
        header::MAX_FORWARDS,
        header::PROXY_AUTHORIZATION,
        header::REFERER,
        header::RETRY_AFTER,
        header::SERVER,
        header::USER_AGENT,
    ]
    .contains(name)
}

fn concerns_connection(name: &HeaderName) -> bool {
    [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_EXTENSIONS,
    ]
    .contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_query_read_back() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", "1".parse().expect("a value"));
        headers.insert("upgrade", "websocket".parse().expect("a value"));
        headers.insert("cookie", "k=v".parse().expect("a value"));
        let uri = "/socket.io/?EIO=4&transport=polling&token=a%20b"
            .parse()
            .expect("a URI");
        let handshake = Handshake::new(&uri, &headers, None, None);
        let pairs: Vec<_> = handshake
            .headers()
            .map(|(name, _)| name.to_owned())
            .collect();
        assert_eq!(pairs, ["x-a", "cookie"]);
        assert_eq!(handshake.header("cookie").as_deref(), Some("k=v"));
        assert_eq!(handshake.query("token").as_deref(), Some("a b"));
        assert_eq!(handshake.query("EIO").as_deref(), Some("4"));
        assert!(handshake.auth_json().is_none());
    }

    #[test]
    fn lines_of_one_header_read_as_node_shows_them() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-list", "a"),
            ("cookie", "a=1"),
            ("authorization", "first"),
            ("x-list", "b, c"),
            ("cookie", "b=2"),
            ("authorization", "second"),
        ] {
            headers.append(name, value.parse().expect("a value"));
        }
        let handshake = Handshake::new(&"/".parse().expect("a URI"), &headers, None, None);
        let header = |name| handshake.header(name).map(Cow::into_owned);
        assert_eq!(header("x-list").as_deref(), Some("a, b, c"));
        assert_eq!(header("cookie").as_deref(), Some("a=1; b=2"));
        assert_eq!(header("authorization").as_deref(), Some("first"));
        assert_eq!(handshake.headers().count(), 3);
    }
}
