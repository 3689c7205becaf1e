//! Cross-origin headers, which browsers require when a page of another origin polls.
//!
//! CORS does not cover WebSockets; a server that refuses origins there checks the handshake. An
//! origin that is not allowed gets no matching header, but the request is served, as by Node.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{self, Next},
    response::Response,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

/// The origins that may use the server from a browser. Without it, no CORS header is sent.
///
/// ```
/// # use roomcast::{Cors, Server};
/// let cors = Cors::origins(["https://app.example", "https://admin.example"]);
/// let builder = Server::builder().cors(cors);
/// # drop(builder);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    origins: Origins,
    allowed_headers: Option<HeaderValue>,
    credentials: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origins {
    Any,
    Reflect,
    One(HeaderValue),
    List(Vec<HeaderValue>),
}

impl Cors {
    /// Any origin (`*`; with credentials, the origin of the request).
    pub fn any() -> Self {
        Self::new(Origins::Any)
    }

    /// Any origin; the response names it.
    pub fn reflect() -> Self {
        Self::new(Origins::Reflect)
    }

    /// These origins, such as `https://app.example`. A single one is sent with every response; of
    /// several, the one that the request names. Texts that cannot be header values never match.
    pub fn origins<T: AsRef<str>>(origins: impl IntoIterator<Item = T>) -> Self {
        let values = origins
            .into_iter()
            .filter_map(|o| HeaderValue::from_str(o.as_ref()).ok());
        let mut values: Vec<_> = values.collect();
        Self::new(match values.len() {
            1 => Origins::One(values.remove(0)),
            _ => Origins::List(values),
        })
    }

    /// Request headers that pages may send. The default is all requested headers.
    #[must_use]
    pub fn allowed_headers<T: AsRef<str>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        let names: Vec<_> = names
            .into_iter()
            .map(|name| name.as_ref().to_owned())
            .collect();
        self.allowed_headers = HeaderValue::from_str(&names.join(",")).ok();
        self
    }

    /// Whether pages may send cookies.
    #[must_use]
    pub fn credentials(mut self, allowed: bool) -> Self {
        self.credentials = allowed;
        self
    }

    /// Answers the preflight requests to an application's own routes, and adds the headers to all
    /// their responses. [`Builder::cors`](crate::Builder::cors) covers the server's routes only.
    ///
    /// ```
    /// # use axum::{Router, routing::get};
    /// # use roomcast::Cors;
    /// let app: Router = Cors::any().cover(Router::new().route("/status", get(async || "ok")));
    /// # drop(app);
    /// ```
    pub fn cover(self, app: Router) -> Router {
        let cors = Arc::new(self);
        app.layer(middleware::from_fn(move |request: Request, next: Next| {
            let cors = Arc::clone(&cors);
            async move { cors.run(request, next).await }
        }))
    }

    async fn run(&self, request: Request, next: Next) -> Response {
        let origin = Self::origin(request.headers());
        let mut response = if Self::is_preflight(request.method()) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = self.preflight(request.headers(), response.headers_mut());
            response
        } else {
            next.run(request).await
        };
        self.apply(origin.as_ref(), response.headers_mut());
        response
    }

    /// Copies the origin of a request. A clone would keep all that the HTTP connection
    /// has read, in a buffer of 8 KiB, while the request waits.
    pub(crate) fn origin(headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        HeaderValue::from_bytes(origin.as_bytes()).ok()
    }

    fn new(origins: Origins) -> Self {
        Self {
            origins,
            allowed_headers: None,
            credentials: false,
        }
    }

    /// Adds the headers of every response, errors included, because a browser hides an error
    /// without them from the page.
    pub(crate) fn apply(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let reflected = match &self.origins {
            Origins::Any if !self.credentials => {
                let any = HeaderValue::from_static("*");
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any);
                return;
            }
            Origins::Any | Origins::Reflect => origin,
            Origins::One(one) => Some(one),
            Origins::List(list) => origin.filter(|origin| list.contains(origin)),
        };
        if let Some(origin) = reflected {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        }
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
    }

    /// Adds the same headers as lines of a response that is written by hand.
    pub(crate) fn append(&self, origin: Option<&[u8]>, out: &mut Vec<u8>) {
        let mut headers = HeaderMap::new();
        let origin = origin.and_then(|origin| HeaderValue::from_bytes(origin).ok());
        self.apply(origin.as_ref(), &mut headers);
        for (name, value) in &headers {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Adds the headers of the response to a preflight request.
    pub(crate) fn preflight(&self, request: &HeaderMap, headers: &mut HeaderMap) -> StatusCode {
        let methods = HeaderValue::from_static("GET,HEAD,PUT,PATCH,POST,DELETE");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        if let Some(allowed) = &self.allowed_headers {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed.clone());
        } else {
            let asked = HeaderValue::from_static("Access-Control-Request-Headers");
            headers.append(header::VARY, asked);
            let lines = request.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS);
            let lines: Vec<_> = lines.iter().map(HeaderValue::as_bytes).collect();
            if let (false, Ok(asked)) = (
                lines.is_empty(),
                HeaderValue::from_bytes(&lines.join(&b", "[..])),
            ) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
            }
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        StatusCode::NO_CONTENT
    }

    pub(crate) fn is_preflight(method: &Method) -> bool {
        method == Method::OPTIONS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(cors: &Cors, origin: &'static str) -> (Option<String>, bool) {
        let mut headers = HeaderMap::new();
        cors.apply(Some(&HeaderValue::from_static(origin)), &mut headers);
        let text = |value: &HeaderValue| value.to_str().expect("text").to_owned();
        let allowed = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(text);
        (allowed, headers.contains_key(header::VARY))
    }

    #[test]
    fn a_star_is_never_sent_with_credentials() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(allowed(&Cors::any(), "http://a"), (some("*"), false));
        assert_eq!(
            allowed(&Cors::any().credentials(true), "http://a"),
            (some("http://a"), true)
        );
        assert_eq!(
            allowed(&Cors::reflect(), "http://a"),
            (some("http://a"), true)
        );
    }

    #[test]
    fn an_origin_that_is_not_listed_gets_no_header() {
        let list = Cors::origins(["http://a", "http://b"]);
        assert_eq!(allowed(&list, "http://b").0.as_deref(), Some("http://b"));
        assert_eq!(allowed(&list, "http://c"), (None, true));
        let one = Cors::origins(["http://a"]);
        assert_eq!(
            allowed(&one, "http://c").0.as_deref(),
            Some("http://a"),
            "sent verbatim"
        );
    }

    #[tokio::test]
    async fn the_routes_of_an_application_are_covered_with_their_errors() {
        use axum::routing::get;
        use tower::ServiceExt as _;

        let routes = Router::new().route("/status", get(async || "ok"));
        let app = Cors::origins(["http://a", "http://b"]).cover(routes);
        let statuses = [
            (Method::OPTIONS, StatusCode::NO_CONTENT),
            (Method::GET, StatusCode::OK),
            (Method::POST, StatusCode::METHOD_NOT_ALLOWED),
        ];
        for (method, status) in statuses {
            let request = Request::builder().uri("/status").method(method);
            let request = request.header(header::ORIGIN, "http://b");
            let request = request.body(Body::empty()).expect("a request");
            let response = app.clone().oneshot(request).await.expect("infallible");
            assert_eq!(response.status(), status);
            let allowed = &response.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN];
            assert_eq!(allowed, "http://b");
        }
    }
}
