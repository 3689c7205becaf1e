//! The application behind the door: its routes, which clients call over the socket, and its hook.
//!
//! A client chooses the path and the parameters of a request, nothing else of it. Its
//! session is the cookie of its handshake. Without a response of the application, the
//! reply has a status of a gateway: 502 if it cannot be reached, 503 if too many requests
//! wait, 504 if it takes too long.
//!
//! Requests have the limits, the circuit breaker and the metrics of a hook, because the
//! application behind both is the same. Cookies are those of the handshake: a WebSocket
//! has no later requests that could bring new ones.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header, request::Parts};
use http_body_util::Full;
use roomcast::pakyow::{self, Call, Reply, is_digest};
use serde::{Deserialize, Serialize};

use super::{
    Visitor,
    settings::{HookSettings, Occasion, Settings},
};
use crate::gateway::{
    hooks::{Backend, Failure, Hooks, Subject},
    object,
    operations::Problem,
};

/// The names under which metrics and logs show the requests.
const ROUTES: &str = "pakyow-routes";
const HOOK: &str = "pakyow";

/// Headers of a response that concern the connection to the application, or its cookies,
/// which scripts of a page must not read.
const LEFT_OUT: [HeaderName; 4] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::SET_COOKIE,
    HeaderName::from_static("keep-alive"),
];

/// The routes and the hook that the settings name.
pub(super) struct Application {
    routes: Option<Backend>,
    actions: Option<String>,
    max_response: usize,
    hook: Option<Hook>,
}

struct Hook {
    backend: Backend,
    on: Vec<Occasion>,
}

/// The body of a request of the hook.
#[derive(Serialize)]
struct Notice<'a> {
    r#type: Occasion,
    connection_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'a str>,
}

/// The response to a request of the kind `connect`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Identity {
    pub(super) socket_key: Option<String>,
    pub(super) digest: Option<String>,
}

impl Application {
    pub(super) fn new(settings: &Settings, hooks: &Hooks) -> Result<Self, String> {
        let routes = settings.routes();
        let routes = routes.map(|settings| hooks.backend(ROUTES, &settings));
        let hook = |settings: &HookSettings| {
            let backend = hooks.backend(HOOK, &settings.backend());
            let backend = backend.map_err(|problem| format!("doors.pakyow.hook: {problem}"))?;
            let on = settings.on.clone();
            Ok::<_, String>(Hook { backend, on })
        };
        Ok(Self {
            routes: routes.transpose()?,
            actions: settings.actions.clone(),
            max_response: settings.max_response.0,
            hook: settings.hook.as_ref().map(hook).transpose()?,
        })
    }

    /// Another one takes its place.
    pub(super) fn retire(&self) {
        let of_hook = self.hook.as_ref().map(|hook| &hook.backend);
        self.routes.iter().chain(of_hook).for_each(Backend::retire);
    }

    /// Whether actions that the door does not know are sent to the application.
    pub(super) fn has_actions(&self) -> bool {
        self.actions.is_some()
    }

    /// Calls a route.
    pub(super) async fn call(&self, visitor: &Visitor, call: &Call) -> Reply {
        // Scheme and host are dropped: a client must not make the node call other
        // servers.
        let target = pakyow::target(&call.uri);
        let is_query = matches!(call.method.as_str(), "GET" | "HEAD");
        let (target, body) = match is_query {
            // GET and HEAD have no body that frameworks read.
            true => (pakyow::with_query(target, &call.input), Bytes::new()),
            false => (
                target,
                serde_json::to_vec(&call.input).unwrap_or_default().into(),
            ),
        };
        let mut request = Request::new(Full::new(body));
        let headers = request.headers_mut();
        insert(headers, "x-socket-container", call.container.as_deref());
        insert(headers, "x-socket-partial", call.partial.as_deref());
        // The characters of both were checked when the message was read.
        match Method::from_bytes(call.method.as_bytes()) {
            Ok(method) => *request.method_mut() = method,
            Err(_) => return Reply::plain(400, "the method is invalid"),
        }
        self.send(visitor, &target, !is_query, request).await
    }

    /// Posts a message whose action the application knows.
    pub(super) async fn act(&self, visitor: &Visitor, action: &str, message: String) -> Reply {
        let path = self.actions.as_deref().unwrap_or("/");
        let mut request = Request::new(Full::new(Bytes::from(message)));
        *request.method_mut() = Method::POST;
        insert(request.headers_mut(), "x-socket-action", Some(action));
        self.send(visitor, path, true, request).await
    }

    async fn send(
        &self,
        visitor: &Visitor,
        target: &str,
        is_json: bool,
        mut request: Request<Full<Bytes>>,
    ) -> Reply {
        let Some(routes) = &self.routes else {
            return Reply::plain(502, "no application is configured");
        };
        match target.parse() {
            Ok(uri) => *request.uri_mut() = uri,
            Err(_) => return Reply::plain(400, "the uri is invalid"),
        }
        let headers = request.headers_mut();
        insert(
            headers,
            "content-type",
            is_json.then_some("application/json"),
        );
        if let Some(cookie) = &visitor.cookie {
            headers.insert(header::COOKIE, cookie.clone());
        }
        insert(headers, "x-socket-digest", Some(&visitor.digest));
        insert(
            headers,
            "x-socket-connection-id",
            Some(&visitor.connection_id),
        );
        match routes.fetch(request, self.max_response).await {
            Ok(response) => reply(&response),
            Err(failure) => failed(&failure),
        }
    }

    /// Asks the application for the identity of a client. `None` if it is not asked.
    pub(super) async fn identify(
        &self,
        parts: &Parts,
        connection_id: &str,
    ) -> Option<Result<Identity, Failure>> {
        let hook = self.hook_on(Occasion::Connect)?;
        let notice = Notice {
            r#type: Occasion::Connect,
            connection_id,
            digest: None,
            path: Some(parts.uri.path()),
            query: parts.uri.query(),
        };
        let cookie = parts.headers.get(header::COOKIE);
        Some(hook.call(&notice, cookie, read_identity).await)
    }

    /// Notifies the application that a socket has connected or disconnected. A failure is counted
    /// and logged.
    pub(super) async fn notify(&self, occasion: Occasion, visitor: &Visitor) {
        let Some(hook) = self.hook_on(occasion) else {
            return;
        };
        let notice = Notice {
            r#type: occasion,
            connection_id: &visitor.connection_id,
            digest: Some(&visitor.digest),
            path: None,
            query: None,
        };
        drop(
            hook.call(&notice, visitor.cookie.as_ref(), |_| Ok(()))
                .await,
        );
    }

    fn hook_on(&self, occasion: Occasion) -> Option<&Hook> {
        self.hook
            .as_ref()
            .filter(|hook| hook.on.contains(&occasion))
    }
}

impl Hook {
    async fn call<T>(
        &self,
        notice: &Notice<'_>,
        cookie: Option<&HeaderValue>,
        read: impl FnOnce(&[u8]) -> Result<T, Problem>,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(notice).unwrap_or_default();
        let cookie = cookie.map(|cookie| (header::COOKIE, cookie.clone()));
        let forwarded: HeaderMap = cookie.into_iter().collect();
        let subject = Subject::default();
        self.backend
            .call(subject, body.into(), forwarded, read)
            .await
    }
}

/// Adds a header, unless its value cannot be one.
fn insert(headers: &mut HeaderMap, name: &'static str, value: Option<&str>) {
    if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
        headers.insert(name, value);
    }
}

fn read_identity(response: &[u8]) -> Result<Identity, Problem> {
    if response.is_empty() {
        return Ok(Identity::default());
    }
    let identity: Identity =
        object::read(response).map_err(|(at, error)| Problem::new(at, error.to_string()))?;
    match &identity.digest {
        Some(digest) if !is_digest(digest) => {
            let what = "digest is not 40 lower-case hexadecimal digits";
            Err(Problem::new("", what.to_owned()))
        }
        _ => Ok(identity),
    }
}

fn reply(response: &Response<Bytes>) -> Reply {
    let mut headers = BTreeMap::<_, String>::new();
    for (name, value) in response.headers() {
        if LEFT_OUT.contains(name) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        let known = headers.entry(name.to_string()).or_default();
        // A header on several lines has the same meaning as one with commas. Only
        // cookies differ, and they are left out.
        if !known.is_empty() {
            known.push_str(", ");
        }
        known.push_str(&value);
    }
    Reply {
        status: response.status().as_u16(),
        headers,
        body: String::from_utf8_lossy(response.body()).into_owned(),
    }
}

/// The reply to a client after a failure, without the reason in detail.
pub(super) fn failed(failure: &Failure) -> Reply {
    match failure {
        Failure::Timeout => Reply::plain(504, "the application did not respond in time"),
        Failure::Overloaded => Reply::plain(503, "too many requests wait for the application"),
        Failure::Request(_) => Reply::plain(400, "the request is invalid"),
        Failure::TooLarge(_) => Reply::plain(502, "the response of the application is too large"),
        _ => Reply::plain(502, "the application is unavailable"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_has_the_status_the_headers_and_the_body_of_the_response() {
        let response = Response::builder()
            .status(404)
            .header("content-type", "text/html")
            .header("vary", "a")
            .header("vary", "b")
            .header("set-cookie", "session=secret")
            .header("connection", "close")
            .body(Bytes::from_static(b"<p>\xff</p>"))
            .unwrap();
        let reply = reply(&response);
        assert_eq!((reply.status, &*reply.body), (404, "<p>\u{fffd}</p>"));
        let wanted = [("content-type", "text/html"), ("vary", "a, b")];
        let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(reply.headers, wanted.into());
    }

    #[test]
    fn a_failure_has_the_status_of_a_gateway() {
        let status = |failure: Failure| failed(&failure).status;
        assert_eq!(status(Failure::Timeout), 504);
        assert_eq!(status(Failure::Overloaded), 503);
        assert_eq!(status(Failure::TooLarge(1024)), 502);
        assert_eq!(status(Failure::Unreachable("refused".to_owned())), 502);
    }

    #[test]
    fn the_hook_names_a_key_a_digest_or_neither() {
        let read = |text: &str| read_identity(text.as_bytes());
        assert_eq!(read(""), Ok(Identity::default()));
        assert_eq!(read("{}"), Ok(Identity::default()));
        let key = read(r#"{"socket_key":"k","more":1}"#).unwrap();
        assert_eq!(key.socket_key.as_deref(), Some("k"));
        let digest = "7a1c653e3a0aec95b6f395b05a46eace0ce22a50";
        let known = read(&format!(r#"{{"digest":"{digest}"}}"#)).unwrap();
        assert_eq!(known.digest.as_deref(), Some(digest));
        assert!(read(r#"{"digest":"x"}"#).unwrap_err().what.contains("40"));
        assert!(read("[").is_err());
        assert!(read(r#"["k"]"#).is_err(), "a list is no object");
        assert_eq!(read(r#"{"digest":7}"#).unwrap_err().at, "digest");
    }
}
