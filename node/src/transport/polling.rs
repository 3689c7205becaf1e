//! What a connection keeps while its client polls: bodies that were posted and not handled yet,
//! the poll that waits for an answer, and how far an upgrade is.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::connection::{Connection, State};
use crate::close::{CloseReason, Limit};
use roomcast_protocol::engine_io::{
    open::{HandshakeError, Revision},
    payload, payload_v3,
};

#[derive(Default)]
pub(crate) struct Polling {
    inbox: VecDeque<Posted>,
    inbox_bytes: usize,
    /// A GET is in progress; its waker, once it had to wait.
    poll: Option<Option<Waker>>,
    posting: bool,
    /// A WebSocket has been opened for an upgrade.
    probing: bool,
    /// A probe was answered: polls are sent home so that the client can finish the upgrade.
    upgrading: bool,
    /// What the WebSocket had received before the driver took it over.
    read: Vec<u8>,
    attached: bool,
    /// The close packet was fetched.
    farewell: bool,
}

/// A body that a client posted.
pub(crate) struct Posted {
    pub(crate) form: payload_v3::Form,
    pub(crate) body: Bytes,
}

/// The answer to a poll.
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: &'static str,
}

/// Why a polling request is refused.
#[derive(Debug)]
pub(crate) enum Refused {
    Handshake(HandshakeError),
    /// Status 400 without a body, as a second request at the same time gets.
    Overlap,
    /// The inbox is full.
    Full,
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

    /// Has a waiting poll look again.
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

    /// Puts back what the driver could not handle yet.
    pub(super) fn put_back(&mut self, posted: Posted) {
        self.inbox_bytes += posted.body.len();
        self.inbox.push_front(posted);
    }

    /// What the WebSocket received before it was attached; once.
    pub(super) fn take_read(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.read)
    }

    /// Whether the client has moved to its WebSocket and left nothing behind.
    pub(super) fn is_over(&self) -> bool {
        self.attached && self.inbox.is_empty() && self.poll.is_none() && !self.posting
    }
}

impl Connection {
    /// Refuses requests that cannot be for this session: it is closed, or it has moved on.
    fn check_polling(state: &State) -> Result<(), Refused> {
        let over = state.closing.is_some() && state.polling.as_ref().is_none_or(|p| p.farewell);
        if over {
            return Err(Refused::Handshake(HandshakeError::SessionUnknown));
        }
        if state.stream.is_some() || state.polling.is_none() {
            return Err(Refused::Handshake(HandshakeError::BadRequest));
        }
        Ok(())
    }

    /// Answers a GET: waits until there is something to say.
    pub(super) async fn poll(self: &Arc<Self>) -> Result<Body, Refused> {
        self.begin_poll()?;
        Ok(Waiting {
            connection: self,
            done: false,
        }
        .await)
    }

    fn begin_poll(&self) -> Result<(), Refused> {
        let mut state = self.lock();
        Self::check_polling(&state)?;
        let polling = state.polling.as_mut().expect("checked above");
        if polling.poll.is_some() {
            self.begin_close(&mut state, CloseReason::OverlappingRequests);
            return Err(Refused::Overlap);
        }
        polling.poll = Some(None);
        Ok(())
    }

    /// Notes that a POST has begun; its body is still to come.
    pub(super) fn begin_post(self: &Arc<Self>) -> Result<Posting, Refused> {
        let mut state = self.lock();
        Self::check_polling(&state)?;
        if state.closing.is_some() {
            return Err(Refused::Handshake(HandshakeError::SessionUnknown));
        }
        let polling = state.polling.as_mut().expect("checked above");
        if polling.posting {
            self.begin_close(&mut state, CloseReason::OverlappingRequests);
            return Err(Refused::Overlap);
        }
        polling.posting = true;
        Ok(Posting(Arc::clone(self)))
    }

    /// A WebSocket was opened for an upgrade. Answers false if it comes too late, or while another
    /// one is tried.
    pub(super) fn begin_probe(&self) -> bool {
        let mut state = self.lock();
        let unused = state.closing.is_none() && state.stream.is_none();
        match &mut state.polling {
            Some(polling) if unused && !polling.probing => {
                polling.probing = true;
                true
            }
            _ => false,
        }
    }

    /// The probe was answered: polls are sent home, so that the client can finish the upgrade.
    pub(super) fn release_poll(&self) {
        if let Some(polling) = &mut self.lock().polling {
            polling.upgrading = true;
            polling.wake_poll();
        }
    }

    /// The upgrade failed; the client stays on polling.
    pub(super) fn abandon_probe(&self) {
        if let Some(polling) = &mut self.lock().polling {
            polling.probing = false;
            polling.upgrading = false;
        }
    }

    fn take_body(&self, state: &mut State) -> Option<Body> {
        let polling = state.polling.as_mut()?;
        let packet = |text: &'static str| Some(self.body_of(text));
        if polling.attached {
            return packet("6");
        }
        if !state.outbox.is_empty() {
            return Some(self.fill_body(state));
        }
        match state.closing.as_deref() {
            Some(CloseReason::TransportClose) => {
                polling.farewell = true;
                state.wake_driver();
                packet("6")
            }
            Some(_) => {
                polling.farewell = true;
                state.wake_driver();
                packet("1")
            }
            None if polling.upgrading => packet("6"),
            None => None,
        }
    }

    fn body_of(&self, text: &'static str) -> Body {
        let bytes = match self.revision() {
            Revision::V4 => text.into(),
            Revision::V3 => format!("{}:{text}", text.len()).into(),
        };
        Body {
            bytes,
            content_type: TEXT,
        }
    }

    /// Takes frames from the outbox: as many packets as any client takes in one body.
    fn fill_body(&self, state: &mut State) -> Body {
        let mut frames = Vec::new();
        let (mut packets, mut bytes) = (0, 0);
        while let Some(next) = state.outbox.first() {
            packets += next.packets();
            bytes += next.cost();
            let full =
                packets > payload::MAX_PACKETS_PER_BODY || bytes > self.engine().config.max_payload;
            if full && !frames.is_empty() {
                break;
            }
            frames.extend(state.outbox.pop());
        }
        match self.revision() {
            Revision::V4 => {
                let mut body = payload::BodyWriter::new();
                frames
                    .iter()
                    .for_each(|frame| frame.write_polling_v4(&mut body));
                Body {
                    bytes: body.finish(),
                    content_type: TEXT,
                }
            }
            Revision::V3 => {
                let binary = frames.iter().any(|frame| frame.has_binary());
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
    }
}

const TEXT: &str = "text/plain; charset=UTF-8";

/// A GET that waits. Dropped unanswered, the client has gone: the connection is closed.
struct Waiting<'a> {
    connection: &'a Arc<Connection>,
    done: bool,
}

impl Future for Waiting<'_> {
    type Output = Body;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Body> {
        let mut state = self.connection.lock();
        let body = self.connection.take_body(&mut state);
        let Some(polling) = &mut state.polling else {
            // Only an attached WebSocket takes the polling state away, and not under a poll.
            return Poll::Ready(self.connection.body_of("6"));
        };
        let Some(body) = body else {
            polling.poll = Some(Some(cx.waker().clone()));
            return Poll::Pending;
        };
        polling.poll = None;
        if polling.attached {
            state.wake_driver();
        }
        drop(state);
        self.done = true;
        Poll::Ready(body)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.connection.lock();
        if let Some(polling) = &mut state.polling {
            polling.poll = None;
        }
        self.connection
            .begin_close(&mut state, CloseReason::TransportError);
    }
}

/// A POST whose body is being received; only one at a time.
pub(super) struct Posting(Arc<Connection>);

impl Posting {
    /// Hands the body to the driver.
    pub(super) fn finish(self, form: payload_v3::Form, body: Bytes) -> Result<(), Refused> {
        let mut state = self.0.lock();
        let limit = self.0.engine().config.limits.inbox_bytes;
        let Some(polling) = &mut state.polling else {
            return Err(Refused::Handshake(HandshakeError::BadRequest));
        };
        if polling.inbox_bytes + body.len() > limit {
            self.0
                .begin_close(&mut state, CloseReason::LimitReached(Limit::Inbox));
            return Err(Refused::Full);
        }
        polling.inbox_bytes += body.len();
        polling.inbox.push_back(Posted { form, body });
        state.wake_driver();
        Ok(())
    }

    /// Closes the session for what was posted.
    pub(super) fn close(self, reason: CloseReason) {
        self.0.close(reason);
    }
}

impl Drop for Posting {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let Some(polling) = &mut state.polling {
            polling.posting = false;
        }
        state.wake_driver();
    }
}
