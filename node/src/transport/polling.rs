//! The state of a connection while its client polls: bodies that were posted and not handled yet,
//! the waiting poll, and the progress of an upgrade.
//!
//! ```text
//! GET ──▶ poll waits ──▶ frames, or a noop (6) if the client upgrades, or the close packet (1)
//! POST ─▶ posting ─────▶ inbox ──▶ driver
//!
//! upgrade:  polling ──▶ probing ──▶ upgrading ──▶ attached ──▶ over (the driver drops this)
//!                 ◀──── abandoned ────┘
//! ```
//!
//! After `attached`, the outbox goes to the WebSocket, but the driver first handles the bodies that
//! were posted before: only then does it read from the WebSocket.
//!
//! **Why one poll and one POST at a time.** The order of packets is that of the
//! requests. Two of a kind at the same time have no order, so the session ends, as in
//! Node's server.
//!
//! **Why a poll that is dropped ends the session.** hyper drops the future when the
//! client has closed the connection. The packets of the response are lost, and the client cannot
//! tell which it has missed.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{
    connection::{Connection, Locked},
    frame::Frame,
    refusals::{INBOX_FULL, OVERLAP, Refused},
};
use crate::close::{CloseReason, Limit};
use roomcast_protocol::engine_io::{
    open::{HandshakeError, Revision},
    payload, payload_v3,
};

#[derive(Default)]
pub(crate) struct Polling {
    inbox: VecDeque<Posted>,
    inbox_bytes: usize,
    /// A GET is in progress; inside is its waker, once it had to wait.
    poll: Option<Option<Waker>>,
    posting: bool,
    /// A WebSocket has been opened for an upgrade.
    probing: bool,
    /// The probe has succeeded: polls get a noop so that the client can finish the upgrade.
    upgrading: bool,
    /// The bytes that the WebSocket had received before the driver took it over.
    read: Vec<u8>,
    attached: bool,
    /// The waiting poll gets a noop, because it has to end.
    released: bool,
    /// The close packet was fetched.
    farewell: bool,
}

/// A body that a client posted.
pub(crate) struct Posted {
    pub(crate) form: payload_v3::Form,
    pub(crate) body: Bytes,
}

/// The body of the response to a poll.
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: &'static str,
}

impl Polling {
    /// For a connection that has its WebSocket already, on which this was received.
    pub(super) fn handed_over(read: Vec<u8>) -> Self {
        Self {
            read,
            attached: true,
            ..Self::default()
        }
    }

    /// Makes a waiting poll check again.
    pub(super) fn wake_poll(&mut self) {
        if let Some(Some(waker)) = &mut self.poll {
            waker.wake_by_ref();
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.poll.is_some()
    }

    pub(super) fn said_farewell(&self) -> bool {
        self.farewell
    }

    pub(super) fn attached(&mut self, read: Vec<u8>) {
        self.read = read;
        self.attached = true;
        self.wake_poll();
    }

    /// The next body for the driver.
    pub(super) fn take_posted(&mut self) -> Option<Posted> {
        let posted = self.inbox.pop_front()?;
        self.inbox_bytes -= posted.body.len();
        Some(posted)
    }

    /// Puts back the packets that the driver could not handle yet.
    pub(super) fn put_back(&mut self, posted: Posted) {
        self.inbox_bytes += posted.body.len();
        self.inbox.push_front(posted);
    }

    /// The bytes that the WebSocket received before it was attached; once.
    pub(super) fn take_read(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.read)
    }

    /// Whether the client has moved to its WebSocket and left nothing behind.
    pub(super) fn is_over(&self) -> bool {
        self.attached && self.inbox.is_empty() && self.poll.is_none() && !self.posting
    }
}

impl Connection {
    /// Refuses requests that cannot be for this session: it is closed, or it uses its WebSocket.
    fn check_polling(locked: &mut Locked) -> Result<&mut Polling, HandshakeError> {
        let is_closing = locked.state.closing().is_some();
        let has_stream = locked.stream.is_some();
        match locked.polling() {
            Some(polling) if is_closing && polling.farewell => Err(HandshakeError::SessionUnknown),
            None if is_closing => Err(HandshakeError::SessionUnknown),
            Some(polling) if !has_stream => Ok(polling),
            _ => Err(HandshakeError::BadRequest),
        }
    }

    /// Handles a GET: waits until there is something to send.
    pub(super) async fn poll(self: &Arc<Self>) -> Result<Body, Refused> {
        self.begin_poll()?;
        Ok(Waiting {
            connection: self,
            done: false,
        }
        .await)
    }

    fn begin_poll(&self) -> Result<(), Refused> {
        let mut locked = self.lock();
        let polling = Self::check_polling(&mut locked)?;
        if polling.poll.is_some() {
            self.begin_close(&mut locked, CloseReason::OverlappingRequests);
            return Err(OVERLAP);
        }
        polling.poll = Some(None);
        polling.released = false;
        Ok(())
    }

    /// Notes that a POST has begun; its body is still to come.
    pub(super) fn begin_post(self: &Arc<Self>) -> Result<Posting, Refused> {
        let mut locked = self.lock();
        let is_closing = locked.state.closing().is_some();
        let polling = Self::check_polling(&mut locked)?;
        if is_closing {
            return Err(HandshakeError::SessionUnknown.into());
        }
        if polling.posting {
            self.begin_close(&mut locked, CloseReason::OverlappingRequests);
            return Err(OVERLAP);
        }
        polling.posting = true;
        Ok(Posting(Arc::clone(self)))
    }

    /// A WebSocket was opened for an upgrade. Returns false if it is too late, or while another one
    /// is probed.
    pub(super) fn begin_probe(&self) -> bool {
        let mut locked = self.lock();
        let unused = locked.state.closing().is_none() && locked.stream.is_none();
        match locked.polling() {
            Some(polling) if unused && !polling.probing => {
                polling.probing = true;
                true
            }
            _ => false,
        }
    }

    /// The server has replied to the probe: a waiting poll gets a noop, so that the client can
    /// finish the upgrade.
    pub(super) fn release_poll(&self) {
        if let Some(polling) = self.lock().polling() {
            polling.upgrading = true;
            polling.wake_poll();
        }
    }

    /// Ends a poll that waits, with a noop: the client polls again.
    pub(super) fn end_poll(&self) {
        if let Some(polling) = self.lock().polling() {
            polling.released = true;
            polling.wake_poll();
        }
    }

    /// The upgrade failed; the client stays on polling.
    pub(super) fn abandon_probe(&self) {
        if let Some(polling) = self.lock().polling() {
            polling.probing = false;
            polling.upgrading = false;
        }
    }

    fn take_body(&self, locked: &mut Locked) -> Option<Body> {
        let polling = locked.polling()?;
        let gets_noop = polling.upgrading || polling.released;
        // The outbox belongs to the WebSocket by now. The noop ends the poll, whose end
        // the client awaits.
        if polling.attached {
            return Some(self.body_of("6"));
        }
        if locked.state.has_frames() {
            let max_bytes = self.engine().config.max_payload;
            let frames = locked
                .state
                .take_frames(payload::MAX_PACKETS_PER_BODY, max_bytes);
            return Some(self.body_with(&frames));
        }
        // Frames go first, so a client receives everything that was sent before the close.
        let Some(reason) = locked.state.closing() else {
            return gets_noop.then(|| self.body_of("6"));
        };
        locked.polling()?.farewell = true;
        locked.wake_driver();
        // A client that has closed the session itself gets no close packet in return.
        let is_clients = reason == CloseReason::TransportClose;
        Some(self.body_of(if is_clients { "6" } else { "1" }))
    }

    fn body_of(&self, packet: &str) -> Body {
        let bytes = match self.revision() {
            Revision::V4 => packet.into(),
            Revision::V3 => format!("{}:{packet}", packet.len()).into(),
        };
        Body {
            bytes,
            content_type: TEXT,
        }
    }

    fn body_with(&self, frames: &[Frame]) -> Body {
        if self.revision() == Revision::V4 {
            let mut body = payload::BodyWriter::new();
            frames
                .iter()
                .for_each(|frame| frame.write_polling_v4(&mut body));
            return Body {
                bytes: body.finish(),
                content_type: TEXT,
            };
        }
        let binary = frames.iter().any(Frame::has_binary);
        let form = payload_v3::Form::of_answer(binary, self.takes_base64_only());
        let mut body = payload_v3::BodyWriter::new(form);
        frames
            .iter()
            .for_each(|frame| frame.write_polling_v3(&mut body));
        Body {
            bytes: body.finish(),
            content_type: form.content_type(),
        }
    }
}

const TEXT: &str = "text/plain; charset=UTF-8";

/// A GET that waits. If it is dropped without a response, the client has disconnected and the
/// connection is closed.
struct Waiting<'a> {
    connection: &'a Arc<Connection>,
    done: bool,
}

impl Future for Waiting<'_> {
    type Output = Body;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Body> {
        let mut locked = self.connection.lock();
        let body = self.connection.take_body(&mut locked);
        let Some(polling) = locked.polling() else {
            // Only an attached WebSocket takes the polling state away, and not under a poll.
            return Poll::Ready(self.connection.body_of("6"));
        };
        let Some(body) = body else {
            polling.poll = Some(Some(cx.waker().clone()));
            return Poll::Pending;
        };
        polling.poll = None;
        let attached = polling.attached;
        let now = self.connection.engine().clock.now();
        locked.state.poll_ended(now);
        if attached {
            locked.wake_driver();
        }
        drop(locked);
        self.done = true;
        Poll::Ready(body)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut locked = self.connection.lock();
        if let Some(polling) = locked.polling() {
            polling.poll = None;
        }
        self.connection
            .begin_close(&mut locked, CloseReason::TransportError);
    }
}

/// A POST whose body is being received; only one at a time.
pub(super) struct Posting(Arc<Connection>);

impl Posting {
    /// Hands the body to the driver.
    pub(super) fn finish(self, form: payload_v3::Form, body: Bytes) -> Result<(), Refused> {
        let mut locked = self.0.lock();
        // The driver takes nothing while too many handlers run, so bodies gather here,
        // up to a limit.
        let limit = self.0.engine().config.limits.inbox_bytes;
        let Some(polling) = locked.polling() else {
            return Err(HandshakeError::BadRequest.into());
        };
        if polling.inbox_bytes + body.len() > limit {
            self.0
                .begin_close(&mut locked, CloseReason::LimitReached(Limit::Inbox));
            return Err(INBOX_FULL);
        }
        polling.inbox_bytes += body.len();
        // The response `ok` means that the body is received, not that its events are
        // handled.
        polling.inbox.push_back(Posted { form, body });
        locked.wake_driver();
        Ok(())
    }

    /// Closes the session because of a posted body.
    pub(super) fn close(self, reason: CloseReason) {
        self.0.close(reason);
    }
}

impl Drop for Posting {
    fn drop(&mut self) {
        let mut locked = self.0.lock();
        if let Some(polling) = locked.polling() {
            polling.posting = false;
        }
        locked.wake_driver();
    }
}
