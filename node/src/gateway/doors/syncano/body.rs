//! Bodies of requests, within the size limit.

use axum::body::Body;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use roomcast::syncano;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::failure::Failure;

/// The fields of a body. An error is reported only after key and permission were checked, as by the
/// original.
pub(super) type Fields = Result<Map<String, Value>, Failure>;

/// Reads a body. The length that the request declares decides before anything is read.
pub(super) async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Fields, Failure> {
    let declared = headers.get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(Failure::too_large(limit));
    }
    let read = Limited::new(body, limit).collect().await;
    let body = read.map_err(|error| match error.is::<LengthLimitError>() {
        true => Failure::too_large(limit),
        false => Failure::detail(StatusCode::BAD_REQUEST, "The body is broken."),
    })?;
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    Ok(syncano::fields(kind, &body.to_bytes()).map_err(Failure::from))
}

/// A text that must exist.
pub(super) fn required<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str, Failure> {
    let text = fields.get(name).and_then(Value::as_str).unwrap_or_default();
    match text.is_empty() {
        true => Err(Failure::field(name, "This field is required.")),
        false => Ok(text),
    }
}

/// One of several words. An absent field, and null, are none. The error is the text of the problem.
pub(super) fn choice<T: DeserializeOwned>(
    fields: &Map<String, Value>,
    name: &str,
) -> Result<Option<T>, String> {
    let Some(value) = fields.get(name).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    T::deserialize(value).map(Some).map_err(|_| {
        let shown = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        format!("\"{shown}\" is not a valid choice.")
    })
}

/// The object of these members.
pub(super) fn object<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    let members = members.into_iter();
    members
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_declared_length_decides_before_anything_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, 11.into());
        let broken = Body::from_stream(futures_util::stream::once(async {
            Err::<bytes::Bytes, _>(std::io::Error::other("read"))
        }));
        let failure = read(&headers, broken, 10).await.unwrap_err();
        assert_eq!(failure, Failure::too_large(10));
        headers.clear();
        let failure = read(&headers, Body::from("a".repeat(11)), 10).await;
        assert_eq!(failure.unwrap_err(), Failure::too_large(10));
        let fields = read(&headers, Body::from("{\"a\":2}"), 10).await.unwrap();
        assert_eq!(fields.unwrap()["a"], 2);
    }
}
