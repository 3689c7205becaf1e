//! The metrics of the doors.

use http::StatusCode;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// A front door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Door {
    Channels,
    Syncano,
    Pakyow,
}

impl Door {
    /// The label `door` of the metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Channels => "channels",
            Self::Syncano => "syncano",
            Self::Pakyow => "pakyow",
        }
    }
}

/// The limit that a request has reached. Each door words the error in its own form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DoorLimit {
    Body,
    Query,
    /// One frame of a WebSocket.
    Frame,
    /// The name of a room, a channel or an event.
    Name,
    /// The rooms of one stream.
    Rooms,
    ParkedPerAddress,
    ParkedPerKey,
    /// Subscriptions that wait for their sockets.
    Waiting,
    /// Refused requests of a client that repeats them too fast.
    Refusals,
}

impl DoorLimit {
    /// The label `limit` of the metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Query => "query",
            Self::Frame => "frame",
            Self::Name => "name",
            Self::Rooms => "rooms",
            Self::ParkedPerAddress => "parked_per_address",
            Self::ParkedPerKey => "parked_per_key",
            Self::Waiting => "waiting",
            Self::Refusals => "refusals",
        }
    }
}

pub(super) struct Metrics {
    requests: IntCounterVec,
    limits: IntCounterVec,
    pub(super) parked: IntGaugeVec,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = Opts::new(
            "roomcast_door_requests_total",
            "requests to the doors, by door and outcome",
        );
        let limits = Opts::new(
            "roomcast_door_limits_total",
            "requests to the doors that were refused because of a limit, by door and limit",
        );
        let parked = Opts::new(
            "roomcast_door_parked",
            "open polls, streams and WebSockets of the doors, by door",
        );
        let metrics = Self {
            requests: IntCounterVec::new(requests, &["door", "outcome"])?,
            limits: IntCounterVec::new(limits, &["door", "limit"])?,
            parked: IntGaugeVec::new(parked, &["door"])?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.limits.clone()))?;
        registry.register(Box::new(metrics.parked.clone()))?;
        Ok(metrics)
    }

    pub(super) fn count(&self, door: Door, status: StatusCode) {
        let labels = [door.label(), outcome(status)];
        self.requests.with_label_values(&labels).inc();
    }

    pub(super) fn reached(&self, door: Door, limit: DoorLimit) {
        let labels = [door.label(), limit.label()];
        self.limits.with_label_values(&labels).inc();
    }
}

/// The label `outcome` of a response.
fn outcome(status: StatusCode) -> &'static str {
    match status {
        // A poll whose time was up.
        StatusCode::NO_CONTENT => "empty",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "refused",
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::URI_TOO_LONG
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "limit",
        status if status.is_client_error() => "invalid",
        status if status.is_server_error() => "error",
        _ => "ok",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_counted_by_outcome() {
        let outcomes = [
            (101, "ok"),
            (201, "ok"),
            (204, "empty"),
            (400, "invalid"),
            (401, "refused"),
            (403, "refused"),
            (404, "not_found"),
            (413, "limit"),
            (429, "limit"),
            (503, "error"),
        ];
        for (status, expected) in outcomes {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(outcome(status), expected, "{status}");
        }
    }
}
