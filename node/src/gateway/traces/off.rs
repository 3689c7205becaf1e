//! The functions of traces in a build without them.

use http::HeaderMap;

use super::Span;

pub(crate) struct Begun;

impl Begun {
    pub(crate) fn during<F: Future>(self, future: F) -> F {
        future
    }
}

pub(crate) fn begin(_: &Span<'_>) -> Begun {
    Begun
}

pub(crate) fn failed(_: &str) {}

pub(crate) fn inject(_: &mut HeaderMap) {}
