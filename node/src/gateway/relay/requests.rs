//! The requests that this node has relayed to one owner over a link, and the responses
//! that it waits for.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::try_unfold;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use roomcast::relay::{self, Frame, INLINE_BYTES, Malformed, Request, Reset};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    link::{Handler, Outbox},
    metrics::Outcome,
};

/// How much of a response may be on its way to a client that does not take it.
pub(super) const WINDOW_BYTES: usize = 256 * 1024;

/// The response of the owner, or why there is none.
type Reply = Result<Response<Content>, Outcome>;

/// The body of a response.
enum Content {
    Whole(Bytes),
    /// This number of bytes, in parts.
    Parts(usize, mpsc::UnboundedReceiver<Bytes>),
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
    /// Whether the link has ended.
    is_ended: bool,
}

enum Waiting {
    Head {
        reply: oneshot::Sender<Reply>,
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
        !self.0.table.lock().is_ended
    }

    /// Sends a request with this body and returns the response. Each part of a long one must
    /// arrive within `stall`, and `held` is kept until its end. Dropping the future, or the body
    /// of the response, cancels the request.
    pub(super) async fn send<H: Send + 'static>(
        &self,
        mut request: Request<'_>,
        body: &Bytes,
        stall: Duration,
        held: H,
    ) -> Result<Response<Body>, Outcome> {
        let (reply, replied) = oneshot::channel();
        let stream = self.begin(reply)?;
        let exchange = Exchange(self.clone(), stream);
        request.length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let outbox = &self.0.outbox;
        if body.len() <= INLINE_BYTES {
            request.body = body;
            outbox.push(|records| records.request(stream, &request));
        } else {
            let rest = (stream, body.clone(), usize::MAX);
            outbox.push_with(|records| records.request(stream, &request), rest);
        }
        // An error means that the link has ended.
        let response = replied.await.unwrap_or(Err(Outcome::Gone))?;
        Ok(response.map(|content| match content {
            Content::Whole(bytes) => Body::from(bytes),
            Content::Parts(left, received) => {
                let parts = Parts {
                    exchange,
                    received,
                    left,
                    taken: 0,
                    stall,
                    _held: held,
                };
                Body::from_stream(try_unfold(parts, Parts::next))
            }
        }))
    }

    /// Notes a request and returns the number of its stream.
    fn begin(&self, reply: oneshot::Sender<Reply>) -> Result<u32, Outcome> {
        let mut table = self.0.table.lock();
        if table.is_ended {
            return Err(Outcome::Gone);
        }
        table.last = table.last.wrapping_add(1);
        let stream = table.last;
        table
            .waiting
            .insert(stream, Waiting::Head { reply, ticks: 0 });
        Ok(stream)
    }

    /// Ends all requests, after the link.
    pub(super) fn end(&self) {
        let mut table = self.0.table.lock();
        table.is_ended = true;
        table.waiting.clear();
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
        match self.0.table.lock().waiting.get_mut(&stream) {
            Some(Waiting::Body { credit, .. }) => *credit += bytes,
            // All of it has arrived.
            _ => return,
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
        let content = if response.body.len() == length {
            Content::Whole(Bytes::copy_from_slice(response.body))
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
            Content::Parts(length, received)
        };
        drop(table);
        let is_whole = matches!(content, Content::Whole(_));
        let mut responded = Response::new(content);
        let status = StatusCode::from_u16(response.status).map_err(|_| Malformed)?;
        *responded.status_mut() = status;
        let headers = responded.headers_mut();
        for (name, value) in response.headers.iter() {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Malformed)?;
            let value = HeaderValue::from_bytes(value).map_err(|_| Malformed)?;
            headers.append(name, value);
        }
        if !is_whole {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        // If the client has disconnected, nobody waits for it.
        drop(reply.send(Ok(responded)));
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
            drop(reply.send(Err(outcome)));
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

/// A request that was sent. Dropping it cancels the rest of the response.
struct Exchange(Requests, u32);

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.cancel(self.1);
    }
}

/// The body of a response that did not come in one piece.
struct Parts<H> {
    exchange: Exchange,
    received: mpsc::UnboundedReceiver<Bytes>,
    left: usize,
    /// Taken since the owner was given more credit.
    taken: usize,
    /// How long the owner may send nothing.
    stall: Duration,
    _held: H,
}

impl<H> Parts<H> {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let part = timeout(self.stall, self.received.recv()).await?;
        // Without another part, the link has ended.
        let part = part.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.left -= part.len();
        self.taken += part.len();
        if self.taken >= WINDOW_BYTES / 2 {
            let Exchange(requests, stream) = &self.exchange;
            requests.credit(*stream, std::mem::take(&mut self.taken));
        }
        Ok(Some((part, self)))
    }
}
