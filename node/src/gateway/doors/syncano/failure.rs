//! Refusals, as the original writes them: `{"detail": text}`, or fields with one text or several.
//! Both SDKs print the text, and react to the status.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use roomcast::syncano::Mistake;
use serde_json::{Map, Value, json};

use super::body::object;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) body: Value,
    header: Option<(&'static str, &'static str)>,
}

impl Failure {
    pub(super) fn detail(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            body: json!({ "detail": text.into() }),
            header: None,
        }
    }

    /// A field with the texts of its mistakes.
    pub(super) fn field(name: &str, text: impl Into<String>) -> Self {
        Self::fields(object([(name, json!([text.into()]))]))
    }

    pub(super) fn fields(fields: Map<String, Value>) -> Self {
        Self {
            body: Value::Object(fields),
            ..Self::detail(StatusCode::BAD_REQUEST, "")
        }
    }

    /// The original sends a text here, not a list.
    pub(super) fn no_room() -> Self {
        let text = "This field is required for channels with separate rooms.";
        Self::fields(object([("room", text.into())]))
    }

    /// The status is 403 and not 401, because the original names no scheme of authentication.
    pub(super) fn unknown_key() -> Self {
        Self::detail(StatusCode::FORBIDDEN, "No such API Key.")
    }

    pub(super) fn forbidden() -> Self {
        let text = "You do not have permission to perform this action.";
        Self::detail(StatusCode::FORBIDDEN, text)
    }

    pub(super) fn not_found() -> Self {
        Self::detail(StatusCode::NOT_FOUND, "Not found.")
    }

    pub(super) fn no_integer(field: &str) -> Self {
        Self::field(field, "A valid integer is required.")
    }

    pub(super) fn bad_page() -> Self {
        let text = "Incorrect page parameter provided.";
        Self::detail(StatusCode::BAD_REQUEST, text)
    }

    pub(super) fn too_large(limit: usize) -> Self {
        let text = format!("Request size limit exceeded ({limit}).");
        Self::detail(StatusCode::PAYLOAD_TOO_LARGE, text)
    }

    pub(super) fn method(method: &http::Method, allow: &'static str) -> Self {
        let text = format!("Method \"{method}\" not allowed.");
        Self {
            // HTTP demands the header with this status.
            header: Some(("allow", allow)),
            ..Self::detail(StatusCode::METHOD_NOT_ALLOWED, text)
        }
    }

    /// Refuses any other method than the only one of the path.
    pub(super) fn unless(method: &http::Method, only: &'static str) -> Result<(), Self> {
        match method.as_str() == only {
            true => Ok(()),
            false => Err(Self::method(method, only)),
        }
    }

    /// Both SDKs pause and repeat the request unchanged.
    pub(super) fn throttled() -> Self {
        let text = "Request was throttled.";
        Self::detail(StatusCode::TOO_MANY_REQUESTS, text).with_pause()
    }

    /// Redis, or the application of a class, is not available.
    pub(super) fn unavailable(text: impl Into<String>) -> Self {
        Self::detail(StatusCode::SERVICE_UNAVAILABLE, text).with_pause()
    }

    /// Whole seconds. The JavaScript SDK computes its pause from it.
    fn with_pause(mut self) -> Self {
        self.header = Some(("retry-after", "1"));
        self
    }
}

impl From<Mistake> for Failure {
    fn from(Mistake { field, text }: Mistake) -> Self {
        match field {
            Some(field) => Self::field(&field, text),
            None => Self::detail(StatusCode::BAD_REQUEST, text),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body);
        if let Some((name, value)) = self.header {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// A response whose body is JSON.
pub(super) fn json_response(status: StatusCode, body: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (status, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_requests_are_to_pause_for_whole_seconds() {
        for failure in [Failure::throttled(), Failure::unavailable("Redis")] {
            let response = failure.into_response();
            assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        }
    }
}
