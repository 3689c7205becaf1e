//! The metrics of the API.
//!
//! Calls are labelled by their name and not by their path, and statuses by their
//! number, so the number of series is known. Calls that find no endpoint are not
//! counted here.

use http::StatusCode;
use prometheus::{HistogramOpts, HistogramTimer, HistogramVec, IntCounterVec, Opts, Registry};

use super::calls::Endpoint;

pub(crate) struct Metrics {
    requests: IntCounterVec,
    durations: HistogramVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new(
                "roomcast_api_requests_total",
                "calls of the HTTP API, by call and status",
            ),
            &["call", "status"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "roomcast_api_request_seconds",
                "time from the head of a request to its response, by call",
            )
            .buckets(vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]),
            &["call"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        Ok(Self {
            requests,
            durations,
        })
    }

    /// The time begins with the head of the request, so it includes the wait for the
    /// body.
    pub(crate) fn start(&self, endpoint: Endpoint) -> Timing<'_> {
        Timing {
            metrics: self,
            endpoint,
            timer: self
                .durations
                .with_label_values(&[endpoint.name()])
                .start_timer(),
        }
    }
}

/// A call that is being measured.
pub(crate) struct Timing<'a> {
    metrics: &'a Metrics,
    endpoint: Endpoint,
    timer: HistogramTimer,
}

impl Timing<'_> {
    pub(crate) fn end(self, status: StatusCode) {
        self.timer.observe_duration();
        let labels = [self.endpoint.name(), status.as_str()];
        self.metrics.requests.with_label_values(&labels).inc();
    }
}
