//! The owner's side of a link: hands requests to their sessions, and sends the responses back.
//!
//! A request whose response is ready at once, as that to a post, is served where it is read. A
//! waiting poll gets a task, which ends with the link, so its session notices the disconnect of its
//! client.

use std::{
    collections::{HashMap, hash_map::Entry},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{HeaderValue, Method, Request, Response, Uri, header};
use parking_lot::Mutex;
use prometheus::IntCounter;
use roomcast::{
    Server,
    relay::{self, Frame, INLINE_BYTES, Malformed, Reset},
};
use tokio::task::AbortHandle;

use super::{
    key::TOLERANCE,
    link::{Handler, Outbox},
    metrics::Metrics,
    requests::WINDOW_BYTES,
};

/// The most requests of a link at a time. The other node has its own, lower limit.
const MAX_STREAMS: usize = 1 << 17;

/// Requests that another node relays over a link.
pub(super) struct Serving {
    server: Server,
    outbox: Arc<Outbox>,
    /// Requests whose bodies are being received.
    receiving: HashMap<u32, Receiving>,
    receiving_bytes: usize,
    limits: ServingLimits,
    running: Arc<Mutex<HashMap<u32, AbortHandle>>>,
    accepted: IntCounter,
    metrics: Metrics,
    /// Resolves when this node stops.
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_stopped: bool,
}

/// Limits of a link, in bytes.
#[derive(Clone, Copy)]
pub(super) struct ServingLimits {
    /// Of a body.
    pub(super) body: usize,
    /// Of all bodies that are being received.
    pub(super) bodies: usize,
}

struct Receiving {
    request: Request<Bytes>,
    body: BytesMut,
    length: usize,
}

impl Serving {
    pub(super) fn new(
        server: Server,
        outbox: Arc<Outbox>,
        limits: ServingLimits,
        metrics: Metrics,
        stopped: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self {
            server,
            outbox,
            receiving: HashMap::new(),
            receiving_bytes: 0,
            limits,
            running: Arc::default(),
            accepted: metrics.accepted(),
            metrics,
            stopped: Box::pin(stopped),
            has_stopped: false,
        }
    }

    fn begin(&mut self, stream: u32, request: &relay::Request<'_>) -> Result<(), Malformed> {
        let length = usize::try_from(request.length).map_err(|_| Malformed)?;
        let head = match self.admit(request, length) {
            Ok(head) => head,
            Err((reason, reset)) => {
                self.metrics.received(reason);
                self.outbox.push(|records| records.reset(stream, reset));
                return Ok(());
            }
        };
        if request.body.len() == length {
            let body = Bytes::copy_from_slice(request.body);
            self.serve(stream, head.map(|()| body));
            return Ok(());
        }
        let mut body = BytesMut::with_capacity(length);
        body.extend_from_slice(request.body);
        let receiving = Receiving {
            request: head.map(|()| Bytes::new()),
            body,
            length,
        };
        self.receiving_bytes += length;
        let before = self.receiving.insert(stream, receiving);
        before.map_or(Ok(()), |_| Err(Malformed))
    }

    /// Checks whether a request is in time and within the limits, and returns its
    /// head. The error has the label of the metric.
    fn admit(
        &self,
        request: &relay::Request<'_>,
        length: usize,
    ) -> Result<Request<()>, (&'static str, Reset)> {
        let now = self.server.cluster_time().ok_or(("time", Reset::Time))?;
        if now.abs_diff(Duration::from_millis(request.time)) > TOLERANCE {
            return Err(("time", Reset::Time));
        }
        let is_full = self.receiving.len() + self.running.lock().len() >= MAX_STREAMS;
        if is_full
            || length > self.limits.body
            || length > self.limits.bodies - self.receiving_bytes
        {
            return Err(("body", Reset::Refused));
        }
        http_of(request).ok_or(("head", Reset::Refused))
    }

    fn continue_body(&mut self, stream: u32, bytes: &[u8]) -> Result<(), Malformed> {
        let Entry::Occupied(mut entry) = self.receiving.entry(stream) else {
            // It was refused.
            return Ok(());
        };
        let receiving = entry.get_mut();
        if bytes.len() > receiving.length - receiving.body.len() {
            return Err(Malformed);
        }
        receiving.body.extend_from_slice(bytes);
        if receiving.body.len() == receiving.length {
            let Receiving {
                request,
                body,
                length,
            } = entry.remove();
            self.receiving_bytes -= length;
            self.serve(stream, request.map(|_| body.freeze()));
        }
        Ok(())
    }

    fn serve(&self, stream: u32, request: Request<Bytes>) {
        self.accepted.inc();
        let mut responding = Box::pin(self.server.respond_to_relayed(request));
        if let Some(response) = responding.as_mut().now_or_never() {
            respond(&self.outbox, stream, response);
            return;
        }
        let outbox = Arc::clone(&self.outbox);
        let (running, own) = (&self.running, Arc::clone(&self.running));
        // Locked, so that it is noted before it ends.
        let mut running = running.lock();
        let task = tokio::spawn(async move {
            let response = responding.await;
            own.lock().remove(&stream);
            respond(&outbox, stream, response);
        });
        running.insert(stream, task.abort_handle());
    }

    fn cancel(&mut self, stream: u32) {
        if let Some(Receiving { length, .. }) = self.receiving.remove(&stream) {
            self.receiving_bytes -= length;
        }
        if let Some(task) = self.running.lock().remove(&stream) {
            task.abort();
        }
        self.outbox.cut(stream);
    }
}

impl Handler for Serving {
    fn receive(&mut self, stream: u32, frame: Frame<'_>) -> Result<(), Malformed> {
        match frame {
            Frame::Request(request) => self.begin(stream, &request)?,
            Frame::Data(bytes) => self.continue_body(stream, bytes)?,
            Frame::Reset(_) => self.cancel(stream),
            Frame::Credit(bytes) => {
                let bytes = usize::try_from(bytes).map_err(|_| Malformed)?;
                self.outbox.credit(stream, bytes);
            }
            Frame::Response(_) | Frame::Ping | Frame::Pong => return Err(Malformed),
        }
        Ok(())
    }

    fn expects(&self) -> bool {
        !self.receiving.is_empty() || !self.running.lock().is_empty()
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.has_stopped = self.has_stopped || self.stopped.as_mut().poll(cx).is_ready();
        if self.has_stopped {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.running.lock().values().for_each(AbortHandle::abort);
    }
}

/// The head of a request as the library takes it.
fn http_of(request: &relay::Request<'_>) -> Option<Request<()>> {
    let mut head = Request::new(());
    *head.method_mut() = match request.method {
        relay::Method::Get => Method::GET,
        relay::Method::Post => Method::POST,
        relay::Method::Delete => Method::DELETE,
    };
    let path = Bytes::from(["/?", request.query].concat());
    *head.uri_mut() = Uri::from_maybe_shared(path).ok()?;
    let headers = head.headers_mut();
    for (name, text) in [
        (header::ACCEPT_ENCODING, request.accept_encoding),
        (header::CONTENT_TYPE, request.content_type),
    ] {
        if !text.is_empty() {
            headers.insert(name, HeaderValue::from_str(text).ok()?);
        }
    }
    Some(head)
}

fn respond(outbox: &Outbox, stream: u32, response: Response<Bytes>) {
    let (head, body) = response.into_parts();
    let status = head.status.as_u16();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let headers = head.headers.iter();
    let headers = headers.map(|(name, value)| (name.as_str(), value.as_bytes()));
    if body.len() <= INLINE_BYTES {
        outbox.push(|records| records.response(stream, status, headers, length, &body));
    } else {
        let rest = (stream, body, WINDOW_BYTES);
        outbox.push_with(
            |records| records.response(stream, status, headers, length, &[]),
            rest,
        );
    }
}
