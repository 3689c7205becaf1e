//! Traces: spans of connects, events, requests to hooks and calls of the API.
//!
//! ```text
//! client ─► connect, event ─► hook ──traceparent──▶ application
//! application ──traceparent──▶ api
//! ```
//!
//! The cargo feature `otlp` exports them to a collector; see `otlp`. Without it, these functions do
//! nothing, and their callers cost nothing.

#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(feature = "otlp")]
mod otlp;

#[cfg(not(feature = "otlp"))]
pub(crate) use off::{begin, failed, inject};
#[cfg(feature = "otlp")]
pub(crate) use otlp::{TraceOptions, Traces, begin, failed, inject};

use http::HeaderMap;

/// The subject of a span.
#[cfg_attr(
    not(feature = "otlp"),
    expect(dead_code, reason = "only the exporter reads it")
)]
pub(crate) enum Span<'a> {
    /// An application decides about a client by a hook.
    Connect { namespace: &'a str },
    /// An event of a client, until the response to it has been carried out.
    Event { namespace: &'a str, event: &'a str },
    /// A request to the backend of a hook.
    Hook { name: &'a str },
    /// A call of the HTTP API, whose headers may continue a trace.
    Api {
        path: &'static str,
        headers: &'a HeaderMap,
    },
}
