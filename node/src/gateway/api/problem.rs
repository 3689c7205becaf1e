//! Errors of the API, as `application/problem+json` (RFC 9457).
//!
//! The title belongs to the type and never changes. The detail is for people: it has
//! the names and limits of the call at hand, and the remedy if there is one. Programs
//! decide by `type`, because several types share a status.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use roomcast::{BusError, EmitError};
use serde::Serialize;
use serde_json::Value;

use crate::gateway::{auth::RevokeError, operations};

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) kind: Kind,
    detail: String,
    /// The field of the body or the parameter of the query, such as `operations[1].rooms[0]`.
    field: Option<String>,
    /// The results of the operations of a batch before the one that failed.
    results: Option<Vec<Value>>,
}

/// The kinds of problems. Each has a type, a title and a status, and clients may rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Invalid,
    Unauthorized,
    Forbidden,
    NotFound,
    UnknownNamespace,
    /// A revocation would have no effect.
    NoTokens,
    MethodNotAllowed,
    RequestTimeout,
    /// The first call with the idempotency key has no response yet.
    InProgress,
    TooLarge,
    MediaType,
    /// The idempotency key belongs to a call with another path or body, which is a
    /// mistake of the caller.
    KeyReused,
    TooManyAttempts,
    Internal,
    Busy,
    /// No other node has the event. The sockets of this node may have it.
    OtherNodes,
    Redis,
    Starting,
    /// The revocation is in force for connected clients only.
    Full,
    Timeout,
    Credentials,
    Denied,
    Origin,
    QueryTooLong,
    TooManyOpen,
    /// No client has received the event, so it can be repeated.
    NotStored,
    /// Somebody may have the event, so a repetition without an idempotency key may
    /// arrive twice.
    Unconfirmed,
    Stopping,
}

impl Kind {
    /// The status, the last part of the type, and the title.
    ///
    /// 503 means that a later attempt may succeed without a change of the request.
    /// If part of the work may be done already, the type states it, because the status cannot.
    fn described(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Invalid => (400, "invalid", "The request is invalid"),
            Self::Unauthorized => (401, "unauthorized", "The key is missing or unknown"),
            Self::Credentials => (
                401,
                "credentials",
                "The token or key is missing or not accepted",
            ),
            Self::Forbidden => (403, "forbidden", "The key does not permit this"),
            Self::Denied => (403, "denied", "The client may not do this"),
            Self::Origin => (403, "origin", "Pages of this origin may not use the server"),
            Self::NotFound => (404, "not-found", "There is nothing at this path"),
            Self::UnknownNamespace => (404, "unknown-namespace", "The namespace does not exist"),
            Self::NoTokens => (404, "no-tokens", "No namespace asks for tokens"),
            Self::MethodNotAllowed => (405, "method-not-allowed", "The path has another method"),
            Self::RequestTimeout => (408, "request-timeout", "The request did not arrive in time"),
            Self::InProgress => (409, "in-progress", "The same call is in progress"),
            Self::TooLarge => (413, "too-large", "The body is too large"),
            Self::QueryTooLong => (414, "query-too-long", "The query is too long"),
            Self::MediaType => (415, "media-type", "The body is not JSON"),
            Self::KeyReused => (
                422,
                "idempotency-key-reused",
                "The idempotency key belongs to another call",
            ),
            Self::TooManyAttempts => (429, "too-many-attempts", "Too many wrong keys"),
            Self::TooManyOpen => (429, "too-many-open", "Too many requests are open"),
            Self::Internal => (500, "internal", "The call failed"),
            Self::Busy => (503, "busy", "Too many calls are in progress"),
            Self::OtherNodes => (503, "other-nodes", "Other nodes were not reached"),
            Self::Redis => (503, "redis", "Redis is not available"),
            Self::Starting => (503, "starting", "The server is starting"),
            Self::Full => (503, "full", "No more revocations can be remembered"),
            Self::NotStored => (503, "not-stored", "The event was not stored"),
            Self::Unconfirmed => (503, "unconfirmed", "The event may have been published"),
            Self::Stopping => (503, "stopping", "The node accepts no more clients"),
            Self::Timeout => (504, "timeout", "The call took too long"),
        }
    }
}

/// The body of the response.
#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<&'a [Value]>,
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            field: None,
            results: None,
        }
    }

    /// Names the field.
    pub(crate) fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into()).filter(|field| !field.is_empty());
        self
    }

    /// The call did part of its work before it failed.
    /// The results are part of the problem, because the caller must not repeat those
    /// operations.
    pub(crate) fn after(mut self, results: Vec<Value>) -> Self {
        self.results = Some(results);
        self
    }

    pub(crate) fn invalid(field: &str, detail: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, detail).at(field)
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) fn status(&self) -> StatusCode {
        let (status, ..) = self.kind.described();
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The body, which is the same on each node.
    /// It has no id of a request and no time: with an idempotency key, another node may
    /// return it again, and a repetition has to get the same bytes.
    pub(crate) fn body(&self) -> Vec<u8> {
        let (status, name, title) = self.kind.described();
        let body = Body {
            r#type: format!("urn:roomcast:problem:{name}"),
            title,
            status,
            detail: &self.detail,
            field: self.field.as_deref(),
            results: self.results.as_deref(),
        };
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// A problem with a list of operations. `below` is the path of the list in the body.
    pub(crate) fn of_operations(problem: operations::Problem, below: &str) -> Self {
        let field = format!("{below}{}", problem.at);
        Self::invalid(field.trim_start_matches('.'), problem.what)
    }

    pub(crate) fn of_revoke(error: &RevokeError) -> Self {
        match error {
            // Clients are disconnected, but the tokens would be accepted again: the caller must not
            // treat it as done.
            RevokeError::TooMany(error) => Self::new(
                Kind::Full,
                format!("connected clients of this node were disconnected, but {error}"),
            ),
            RevokeError::Emit(error) => Self::of_emit(error),
        }
    }

    /// Whether other nodes were not reached, or perhaps not.
    pub(crate) fn is_of_other_nodes(&self) -> bool {
        matches!(self.kind, Kind::OtherNodes | Kind::Unconfirmed)
    }

    pub(crate) fn of_emit(error: &EmitError) -> Self {
        let detail = error.to_string();
        match error {
            EmitError::UnknownNamespace(_) => {
                Self::new(Kind::UnknownNamespace, detail).at("namespace")
            }
            EmitError::ReservedEvent(_) => Self::invalid("event", detail),
            EmitError::Args(_) => Self::invalid("args", detail),
            EmitError::AtLeastOnce(_) => Self::invalid("flags.at_least_once", detail),
            // The key was used for another event, perhaps through another door.
            EmitError::Bus(BusError::KeyReused) => {
                Self::new(Kind::KeyReused, detail).at("Idempotency-Key")
            }
            // The command was handed over, but its reply was lost, so other nodes may
            // have the event.
            EmitError::Bus(BusError::Unconfirmed(_)) => Self::new(Kind::Unconfirmed, detail),
            EmitError::Bus(_) => Self::new(Kind::OtherNodes, detail),
            _ => Self::new(Kind::Internal, detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (
            self.status(),
            [(header::CONTENT_TYPE, "application/problem+json")],
            self.body(),
        )
            .into_response();
        let headers = response.headers_mut();
        match self.kind {
            // HTTP demands the header with the status 401.
            Kind::Unauthorized | Kind::Credentials => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    http::HeaderValue::from_static("Bearer realm=\"roomcast\""),
                );
            }
            // These pass by themselves, and nothing was done. After `OtherNodes` and
            // `Unconfirmed`, sockets of this node may have the event, so clients are
            // not invited to repeat the call blindly.
            Kind::Busy
            | Kind::InProgress
            | Kind::Starting
            | Kind::TooManyOpen
            | Kind::NotStored
            | Kind::Stopping => {
                headers.insert(header::RETRY_AFTER, http::HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
