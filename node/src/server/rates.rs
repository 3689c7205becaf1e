//! The rates at which a client may send: events and bytes per second.
//!
//! A packet is measured when it is complete, with its attachments, before it is handled. A dropped
//! packet does not reduce the allowance, so a client that always sends too much still has packets
//! handled at the permitted rate. A client that has sent nothing owns no bucket, and while no rate
//! is configured, a packet costs two relaxed loads.

use bytes::Bytes;
use roomcast_protocol::socket_io::{
    connect::split_query,
    packet::{Packet, PacketKind},
};

use super::{client::Client, error::Refused, socket::Socket};
use crate::{
    close::{CloseReason, Limit},
    line_limit::LineLimit,
    rate::Bucket,
    transport::{admission::ClientRates, config::RatePolicy, driver::Turn},
};

/// The used parts of a client's rates.
#[derive(Default)]
pub(super) struct Rates {
    events: Bucket,
    bytes: Bucket,
}

/// A packet is beyond a rate.
#[derive(Clone, Copy)]
pub(super) struct Over {
    pub(super) limit: Limit,
    policy: RatePolicy,
}

impl Over {
    /// The error that the client receives.
    pub(super) fn refused(self) -> Refused {
        let message = match self.limit {
            Limit::ByteRate => "too many bytes",
            _ => "too many events",
        };
        let data = serde_json::json!({ "limit": self.limit.label() });
        Refused::new(message).data(&data)
    }
}

impl Client {
    /// Measures a packet. Returns the rate that it is beyond, if it is.
    pub(super) fn over_rate(&mut self, packet: &Packet<'_>) -> Option<Over> {
        let is_event = matches!(packet.kind, PacketKind::Event | PacketKind::Connect);
        self.over(is_event, || bytes_of(packet))
    }

    /// Measures an event, or something else that has bytes.
    pub(super) fn over(&mut self, is_event: bool, size: impl Fn() -> u64) -> Option<Over> {
        let engine = &self.server.engine;
        let ClientRates {
            events,
            bytes,
            policy,
        } = engine.admission.client_rates()?;
        let now = engine.clock.now();
        let used = self.rates.get_or_insert_default();
        let mut events = events.filter(|_| is_event).into_iter();
        let limit = if events.any(|rate| !used.events.take(rate, now, 1)) {
            Limit::EventRate
        } else if bytes.is_some_and(|rate| !used.bytes.take(rate, now, size())) {
            Limit::ByteRate
        } else {
            return None;
        };
        Some(Over { limit, policy })
    }

    /// Counts and logs a packet beyond a rate, and decides about it. Returns `true` if the packet
    /// must be dropped, and an error if the connection must be closed.
    pub(super) fn exceed(
        &self,
        turn: &Turn<'_, '_>,
        socket: Option<&Socket>,
        packet: &Packet<'_>,
        over: Over,
    ) -> Result<bool, CloseReason> {
        // Clients of revision 2 append their credentials.
        let (namespace, _) = split_query(&packet.nsp);
        let event = packet.event.as_ref().map(|event| &*event.name);
        self.exceed_with(turn, socket, namespace, event, over)
    }

    /// The same for an event of this name, if it has one.
    pub(super) fn exceed_with(
        &self,
        turn: &Turn<'_, '_>,
        socket: Option<&Socket>,
        namespace: &str,
        event: Option<&str>,
        Over { limit, policy }: Over,
    ) -> Result<bool, CloseReason> {
        static LINES: LineLimit = LineLimit::new();
        if let Some(left_out) = LINES.pass() {
            tracing::info!(
                limit = limit.label(),
                ?policy,
                namespace,
                socket = socket.map(|socket| tracing::field::display(socket.id())),
                event,
                connection = turn.connection.id().as_str(),
                address = self.address(),
                left_out,
                "a client sends too fast"
            );
        }
        // A connection that is closed is counted with its reason.
        if policy == RatePolicy::Close {
            return Err(CloseReason::LimitReached(limit));
        }
        self.server.engine.metrics.limit_reached(limit);
        Ok(policy == RatePolicy::Drop)
    }
}

/// The bytes of a packet that are its sender's choice.
fn bytes_of(packet: &Packet<'_>) -> u64 {
    let attachments: usize = packet.attachments.iter().map(Bytes::len).sum();
    u64::try_from(packet.nsp.len() + packet.data.len() + attachments).unwrap_or(u64::MAX)
}
