//! The requests that this node has relayed to one owner over a link, and the responses
//! that it waits for.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use hyper::body::{Body as HttpBody, Frame as BodyFrame, SizeHint};
use parking_lot::Mutex;
use roomcast::relay::{self, Frame, INLINE_BYTES, Malformed, Request, Reset};
use tokio::sync::{mpsc, oneshot};

use super::{
    link::{Handler, Outbox},
    metrics::Outcome,
};

/// How much of a response may be on its way to a client that does not take it.
pub(super) const WINDOW_BYTES: usize = 256 * 1024;

/// The response of the owner, or why there is none.
pub(super) type Reply = Result<Response<Body>, Outcome>;

/// The state of a waiting request.
enum Told {
    Reply(Reply),
    /// This node closes. The reply arrives here if the owner still sends it.
    Closing(oneshot::Receiver<Self>),
}

/// The requests of a link. Cheap to clone.
#[derive(Clone)]
pub(super) struct Requests(Arc<Inner>);

struct Inner {
    outbox: Arc<Outbox>,
    table: Mutex<Table>,
    /// The checks of the link after which a request has had its time.
    most_ticks: u32,
}

#[derive(Default)]
struct Table {
    last: u32,
    waiting: HashMap<u32, Waiting>,
    /// Why the link has ended.
    ended: Option<Outcome>,
    is_closing: bool,
}

enum Waiting {
    Head {
        reply: oneshot::Sender<Told>,
        ticks: u32,
    },
    Body {
        parts: mpsc::UnboundedSender<Bytes>,
        left: usize,
        /// The number of bytes that the owner may still send.
        credit: usize,
    },
}

impl Requests {
    /// Requests over a link that is written from this outbox. Each has this many
    /// checks of the link for a response to begin.
    pub(super) fn new(outbox: Arc<Outbox>, most_ticks: u32) -> Self {
        Self(Arc::new(Inner {
            outbox,
            table: Mutex::default(),
            most_ticks,
        }))
    }

    /// Whether requests can still be sent.
    pub(super) fn is_open(&self) -> bool {
        self.0.table.lock().ended.is_none()
    }

    /// Sends a request with this body. It is cancelled when [`Requested`] is dropped.
    pub(super) fn send<'a>(&self, mut request: Request<'a>, body: &'a Bytes) -> Requested {
        let (sender, reply) = oneshot::channel();
        let mut table = self.0.table.lock();
        table.last = table.last.wrapping_add(1);
        let stream = table.last;
        let requested = Requested {
            requests: self.clone(),
            stream,
            reply: Some(reply),
        };
        if let Some(outcome) = table.ended {
            // The receiver is in the same hand.
            drop(sender.send(Told::Reply(Err(outcome))));
            return requested;
        }
        let waiting = Waiting::Head {
            reply: sender,
            ticks: 0,
        };
        table.waiting.insert(stream, waiting);
        if table.is_closing {
            table.close(stream);
        }
        drop(table);
        request.length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let outbox = &self.0.outbox;
        if body.len() <= INLINE_BYTES {
            request.body = body;
            outbox.push(|records| records.request(stream, &request));
        } else {
            let rest = (stream, body.clone(), usize::MAX);
            outbox.push_with(|records| records.request(stream, &request), rest);
        }
        requested
    }

    /// Notifies waiting and later requests that this node closes.
    pub(super) fn close(&self) {
        let mut table = self.0.table.lock();
        table.is_closing = true;
        let streams: Vec<u32> = table.waiting.keys().copied().collect();
        streams.into_iter().for_each(|stream| table.close(stream));
    }

    /// Ends the link and all requests.
    pub(super) fn end(&self, outcome: Outcome) {
        let mut table = self.0.table.lock();
        table.ended.get_or_insert(outcome);
        let ended = std::mem::take(&mut table.waiting);
        drop(table);
        for waiting in ended.into_values() {
            if let Waiting::Head { reply, .. } = waiting {
                // The client may have disconnected meanwhile.
                drop(reply.send(Told::Reply(Err(outcome))));
            }
        }
        self.0.outbox.close();
    }

    /// Takes a stream out that this side ends.
    fn cancel(&self, stream: u32) {
        let waited = self.0.table.lock().waiting.remove(&stream);
        if waited.is_some() {
            self.0.outbox.cut(stream);
            let reset = |records: &mut relay::Records| records.reset(stream, Reset::Cancelled);
            self.0.outbox.push(reset);
        }
    }

    /// Lets the owner send more of a body.
    fn credit(&self, stream: u32, bytes: usize) {
        if let Some(Waiting::Body { credit, .. }) = self.0.table.lock().waiting.get_mut(&stream) {
            *credit += bytes;
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.0.outbox.push(|records| records.credit(stream, bytes));
    }

    fn respond(&self, stream: u32, response: &relay::Response<'_>) -> Result<(), Malformed> {
        let length = usize::try_from(response.length).map_err(|_| Malformed)?;
        let mut table = self.0.table.lock();
        let Some(waiting) = table.waiting.remove(&stream) else {
            // It was cancelled.
            return Ok(());
        };
        let Waiting::Head { reply, .. } = waiting else {
            return Err(Malformed);
        };
        let body = if response.body.len() == length {
            Body::from(Bytes::copy_from_slice(response.body))
        } else {
            let (parts, received) = mpsc::unbounded_channel();
            if !response.body.is_empty() {
                // There is a receiver.
                drop(parts.send(Bytes::copy_from_slice(response.body)));
            }
            let left = length - response.body.len();
            let waiting = Waiting::Body {
                parts,
                left,
                credit: WINDOW_BYTES,
            };
            table.waiting.insert(stream, waiting);
            Body::new(RelayedBody {
                requests: self.clone(),
                stream,
                received,
                left: length,
                taken: 0,
            })
        };
        drop(table);
        let mut responded = Response::new(body);
        let status = StatusCode::from_u16(response.status).map_err(|_| Malformed)?;
        *responded.status_mut() = status;
        let headers = responded.headers_mut();
        for (name, value) in response.headers.iter() {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Malformed)?;
            let value = HeaderValue::from_bytes(value).map_err(|_| Malformed)?;
            headers.append(name, value);
        }
        // If the client has disconnected, its guard was dropped too and found nothing to cancel.
        drop(reply.send(Told::Reply(Ok(responded))));
        Ok(())
    }

    fn receive(&self, stream: u32, bytes: &[u8]) -> Result<(), Malformed> {
        let mut table = self.0.table.lock();
        let Some(waiting) = table.waiting.get_mut(&stream) else {
            return Ok(());
        };
        let Waiting::Body {
            parts,
            left,
            credit,
        } = waiting
        else {
            return Err(Malformed);
        };
        if bytes.len() > *left || bytes.len() > *credit {
            return Err(Malformed);
        }
        *left -= bytes.len();
        *credit -= bytes.len();
        // Fails if the client has disconnected; its body then cancels the stream.
        drop(parts.send(Bytes::copy_from_slice(bytes)));
        if *left == 0 {
            table.waiting.remove(&stream);
        }
        Ok(())
    }

    fn fail(&self, stream: u32, outcome: Outcome) {
        let waiting = self.0.table.lock().waiting.remove(&stream);
        self.0.outbox.cut(stream);
        if let Some(Waiting::Head { reply, .. }) = waiting {
            // The client may have disconnected meanwhile.
            drop(reply.send(Told::Reply(Err(outcome))));
        }
    }
}

impl Table {
    fn close(&mut self, stream: u32) {
        if let Some(Waiting::Head { reply, .. }) = self.waiting.get_mut(&stream) {
            let (sender, receiver) = oneshot::channel();
            let told = std::mem::replace(reply, sender);
            // If the receiver was dropped, the stream is about to be cancelled.
            drop(told.send(Told::Closing(receiver)));
        }
    }
}

impl Handler for Requests {
    fn receive(&mut self, stream: u32, frame: Frame<'_>) -> Result<(), Malformed> {
        match frame {
            Frame::Response(response) => self.respond(stream, &response)?,
            Frame::Data(bytes) => Self::receive(self, stream, bytes)?,
            Frame::Reset(Reset::Cancelled | Reset::Refused | Reset::Time) => {
                self.fail(stream, Outcome::Refused);
            }
            Frame::Credit(_) | Frame::Request(_) | Frame::Ping | Frame::Pong => {
                return Err(Malformed);
            }
        }
        Ok(())
    }

    fn expects(&self) -> bool {
        !self.0.table.lock().waiting.is_empty()
    }

    fn tick(&mut self) {
        let most = self.0.most_ticks;
        let mut late = Vec::new();
        for (stream, waiting) in &mut self.0.table.lock().waiting {
            if let Waiting::Head { ticks, .. } = waiting {
                *ticks += 1;
                if *ticks > most {
                    late.push(*stream);
                }
            }
        }
        for stream in late {
            self.fail(stream, Outcome::Timeout);
            let reset = |records: &mut relay::Records| records.reset(stream, Reset::Cancelled);
            self.0.outbox.push(reset);
        }
    }
}

/// A request that was sent.
pub(super) struct Requested {
    requests: Requests,
    stream: u32,
    reply: Option<oneshot::Receiver<Told>>,
}

impl Requested {
    /// Waits for the reply. `None` if this node closes, after which there may still be one.
    pub(super) async fn reply(&mut self) -> Option<Reply> {
        let gone = Err(Outcome::Gone);
        let Some(reply) = &mut self.reply else {
            return Some(gone);
        };
        // The sender is dropped only with the link.
        let told = reply.await.unwrap_or(Told::Reply(gone));
        self.reply = None;
        match told {
            Told::Reply(reply) => Some(reply),
            Told::Closing(later) => {
                self.reply = Some(later);
                None
            }
        }
    }
}

impl Drop for Requested {
    fn drop(&mut self) {
        // A response, and its body, is no longer ours.
        if self.reply.is_some() {
            self.requests.cancel(self.stream);
        }
    }
}

/// The body of a response that did not come in one piece.
struct RelayedBody {
    requests: Requests,
    stream: u32,
    received: mpsc::UnboundedReceiver<Bytes>,
    left: usize,
    /// Taken since the owner was given more credit.
    taken: usize,
}

impl HttpBody for RelayedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<BodyFrame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        match self.received.poll_recv(cx) {
            Poll::Ready(Some(bytes)) => {
                self.left -= bytes.len();
                self.taken += bytes.len();
                if self.taken >= WINDOW_BYTES / 2 && self.left > 0 {
                    let taken = std::mem::take(&mut self.taken);
                    self.requests.credit(self.stream, taken);
                }
                Poll::Ready(Some(Ok(BodyFrame::data(bytes))))
            }
            // The link has ended.
            Poll::Ready(None) => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

impl Drop for RelayedBody {
    fn drop(&mut self) {
        self.requests.cancel(self.stream);
    }
}
