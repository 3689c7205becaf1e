//! The socket under HTTP. It keeps back the head of the response that ends HTTP (the
//! sequence is in [`serve`](super::serve)), completes the refusals that hyper writes by
//! itself, fails when a client does not read its response, and repeats a request that was
//! [parked](super::parking).
//!
//! **Why under hyper and not next to it.** hyper owns the socket until HTTP has ended,
//! and offers no way to write its 101 together with the first frame, to see its own
//! refusals, or to time a client that does not read. A stream that inspects hyper's output can do
//! all three.
//!
//! **Why text is compared.** hyper reports nothing about the responses that it makes by
//! itself. They are the only ones that begin while no request is in flight, so their
//! first bytes identify them.

use std::{
    fmt,
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderValue, Method, Request, Version, header};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead as _, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::{connection_state::SHUTDOWN_LINGER, engine::Engine, parking::Waiting, stream::Socket};
use crate::close::Limit;

/// A socket under HTTP, with or without TLS. The requests on it carry the [`Handoff`].
pub(super) struct HttpStream {
    io: TokioIo<Socket>,
    engine: Arc<Engine>,
    handoff: Handoff,
    /// The head of the response that switches protocols.
    kept: Vec<u8>,
    /// The bytes that are read before all others.
    unread: Vec<u8>,
    /// The unwritten rest of a refusal that took the place of hyper's.
    refusal: Vec<u8>,
    /// The origin of the last request, for the refusal of a request that hyper cannot read.
    origin: Option<Box<[u8]>>,
    /// While the client takes nothing: when the connection has failed.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// The state that the requests of an HTTP connection share with its task.
#[derive(Clone, Default)]
pub(super) struct Handoff(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Opens the connection once HTTP has ended.
    opening: Mutex<Option<Opening>>,
    /// A request has begun whose response is not written yet.
    awaits_head: AtomicBool,
    /// The application handles a request, or has not provided all of its response.
    is_active: AtomicBool,
    /// The client takes nothing of a response.
    is_stalled: AtomicBool,
    /// The request can be parked: a short form of it has the same meaning to HTTP.
    may_park: AtomicBool,
    /// A part of its body has not been received.
    has_body: AtomicBool,
    /// The client does not keep the connection.
    closes: AtomicBool,
    parked: Mutex<Parked>,
    /// Wakes the task when a request is parked by another one.
    task: AtomicWaker,
}

/// A request that waits without HTTP.
#[derive(Default)]
enum Parked {
    #[default]
    No,
    Waiting(Waiting),
    /// HTTP is about to write the response.
    Responded(Box<Response<Body>>),
}

type Opening = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Space for the head that is kept, and for the packet that goes with it.
const CAPACITY: usize = 512;

/// Bytes that are read at once.
const READ_BYTES: usize = 8 * 1024;

/// Bytes that are read of the next request while one is parked.
const READ_AHEAD_BYTES: usize = 1024;

/// The beginning of a response that ends HTTP.
const SWITCHING: &[u8] = b"HTTP/1.1 101 ";

/// Beginnings of the responses that hyper writes by itself, and the labels of their metric.
const REFUSALS: [(&[u8], &str); 3] = [
    (b"HTTP/1.1 400 ", "malformed"),
    (b"HTTP/1.1 414 ", "url_too_long"),
    (b"HTTP/1.1 431 ", "headers_too_large"),
];

impl HttpStream {
    pub(super) fn new(socket: Socket, engine: Arc<Engine>, handoff: Handoff) -> Self {
        Self {
            io: TokioIo::new(socket),
            engine,
            handoff,
            kept: Vec::new(),
            unread: Vec::new(),
            refusal: Vec::new(),
            origin: None,
            stalled: None,
        }
    }

    /// The socket, the bytes to read before anything else, and the bytes to write to it.
    pub(super) fn into_parts(self) -> (Socket, Vec<u8>, Vec<u8>) {
        (self.io.into_inner(), self.unread, self.kept)
    }

    /// Keeps the bytes that were read but not used.
    pub(super) fn unread(&mut self, bytes: &[u8]) {
        self.unread.splice(0..0, bytes.iter().copied());
    }

    /// Makes a request in short form the next that is read, for a response that was awaited without
    /// HTTP. It says what matters to HTTP: whether the connection is kept.
    pub(super) fn repeat_request(&mut self, closes: bool) {
        let head: &[u8] = match closes {
            true => b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
            false => b"GET / HTTP/1.1\r\n\r\n",
        };
        self.unread(head);
    }

    /// Ready when the client has disconnected. When it sends something, that is kept for the next
    /// request, and its end is not noticed before the response is written; hyper does the
    /// same.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.unread.is_empty() {
            let mut bytes = [0; READ_AHEAD_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(self.io.inner_mut()).poll_read(cx, &mut read)) {
                Ok(()) if !read.filled().is_empty() => self.unread.extend_from_slice(read.filled()),
                _ => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// Whether bytes that HTTP writes are kept. The opening alone is not enough, because the
    /// application may have replaced the response.
    fn keeps(&self, bytes: &[u8]) -> bool {
        bytes.starts_with(SWITCHING) && self.handoff.0.opening.lock().is_some()
    }

    /// Completes a refusal of hyper's, which has no CORS headers and is in no metric.
    fn refuse(&self, parts: &[IoSlice<'_>]) -> Option<Vec<u8>> {
        let first = parts.first()?;
        let is_continue = first.starts_with(b"HTTP/1.1 100 ");
        if !is_continue && self.handoff.0.awaits_head.swap(false, Ordering::Relaxed) {
            return None;
        }
        let matches = |(beginning, _): &&(&[u8], _)| first.starts_with(beginning);
        let (_, label) = REFUSALS.iter().find(matches)?;
        self.engine.metrics.refused(label);
        let mut response: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        response.truncate(response.len().saturating_sub(b"\r\n".len()));
        if let Some(cors) = &self.engine.config.cors {
            cors.append(self.origin.as_deref(), &mut response);
        }
        response.extend_from_slice(b"\r\n");
        Some(response)
    }

    /// Writes the rest of a refusal.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.refusal.is_empty() {
            let written = Pin::new(self.io.inner_mut()).poll_write(cx, &self.refusal);
            let count = ready!(self.progress(cx, written))?;
            self.refusal.drain(..count);
        }
        Poll::Ready(Ok(()))
    }

    /// Fails if the client has taken nothing for too long. While the server stops, that is soon.
    fn progress<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let is_stalled = written.is_pending();
        self.handoff
            .0
            .is_stalled
            .store(is_stalled, Ordering::Relaxed);
        if !is_stalled {
            self.stalled = None;
            return written;
        }
        let timeout = self.engine.config.limits.response_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        self.engine.metrics.limit_reached(Limit::ResponseTimeout);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff").finish_non_exhaustive()
    }
}

impl Handoff {
    /// Leaves an opening, in the place of one that an earlier request has left.
    pub(super) fn leave(&self, opening: impl Future<Output = ()> + Send + 'static) {
        *self.0.opening.lock() = Some(Box::pin(opening));
    }

    /// A new request begins. Drops the opening of an earlier one.
    /// An opening that is left is of a request whose upgrade did not happen.
    pub(super) fn begin_request<B: HttpBody>(&self, request: &Request<B>) {
        *self.0.opening.lock() = None;
        let connection = request.headers().get(header::CONNECTION);
        let mut options = connection
            .map_or(&b""[..], HeaderValue::as_bytes)
            .split(|&byte| byte == b',');
        let closes = options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
        // The short form in which the request is repeated must have the same effect on
        // HTTP.
        let may_park = request.method() == Method::GET
            && request.version() == Version::HTTP_11
            && !request.headers().contains_key(header::UPGRADE);
        self.0.closes.store(closes, Ordering::Relaxed);
        self.0.may_park.store(may_park, Ordering::Relaxed);
        let has_body = !request.body().is_end_stream();
        self.0.has_body.store(has_body, Ordering::Relaxed);
        self.0.awaits_head.store(true, Ordering::Relaxed);
        self.0.is_active.store(true, Ordering::Relaxed);
    }

    /// Notes the end of the request when the body of the response has been taken.
    pub(super) fn track(&self, response: Response<Body>) -> Response<Body> {
        response.map(|body| {
            let handoff = self.clone();
            Body::new(Tracked { body, handoff })
        })
    }

    /// Whether the request can be parked: what HTTP reads next must be another one.
    pub(super) fn may_park(&self) -> bool {
        self.0.may_park.load(Ordering::Relaxed) && !self.0.has_body.load(Ordering::Relaxed)
    }

    /// The body of the request, whose end is noted.
    pub(super) fn receive(&self, body: Incoming) -> Body {
        match self.0.has_body.load(Ordering::Relaxed) {
            true => Body::new(Received {
                body,
                handoff: self.clone(),
            }),
            false => Body::new(body),
        }
    }

    /// Whether the client of the last request does not keep the connection.
    pub(super) fn closes(&self) -> bool {
        self.0.closes.load(Ordering::Relaxed)
    }

    /// Leaves the future of a response, which waits without HTTP from now on.
    pub(super) fn park(&self, response: Waiting) {
        *self.0.parked.lock() = Parked::Waiting(response);
        self.0.task.wake();
    }

    /// Takes the future that the last request has left. Not while bytes of an earlier
    /// response wait in HTTP.
    pub(super) fn take_parked(&self, cx: &Context<'_>) -> Option<Waiting> {
        self.0.task.register(cx.waker());
        let mut parked = self.0.parked.lock();
        if !matches!(*parked, Parked::Waiting(_)) || self.0.is_stalled.load(Ordering::Relaxed) {
            return None;
        }
        match std::mem::take(&mut *parked) {
            Parked::Waiting(response) => Some(response),
            _ => None,
        }
    }

    /// The response to the request that HTTP reads next.
    pub(super) fn respond(&self, response: Response<Body>) {
        *self.0.parked.lock() = Parked::Responded(Box::new(response));
    }

    /// Takes the response that was awaited without HTTP.
    pub(super) fn take_response(&self) -> Option<Response<Body>> {
        match std::mem::take(&mut *self.0.parked.lock()) {
            Parked::Responded(response) => Some(*response),
            _ => None,
        }
    }

    /// Resolves when the connection has waited only for the client for some time: it sends no
    /// request, or does not read its response.
    pub(super) async fn abandoned(&self) {
        loop {
            sleep(SHUTDOWN_LINGER).await;
            let is_stalled = self.0.is_stalled.load(Ordering::Relaxed);
            if is_stalled || !self.0.is_active.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Runs the opening that the last request has left, once HTTP has ended.
    pub(super) async fn finish(self) {
        let opening = self.0.opening.lock().take();
        if let Some(opening) = opening {
            opening.await;
        }
    }
}

/// The body of a request.
struct Received {
    body: Incoming,
    handoff: Handoff,
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.handoff.0.has_body.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a response.
struct Tracked {
    body: Body,
    handoff: Handoff,
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.handoff.0.is_active.store(false, Ordering::Relaxed);
    }
}

impl Read for HttpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.unread.is_empty() {
            let count = buffer.remaining().min(this.unread.len());
            buffer.put_slice(&this.unread[..count]);
            this.unread.drain(..count);
            // An idle connection owns no buffer.
            this.unread.shrink_to_fit();
            return Poll::Ready(Ok(()));
        }
        if this.engine.config.cors.is_none() {
            return Pin::new(&mut this.io).poll_read(cx, buffer);
        }
        // Only with CORS: the refusal of a request that hyper cannot read needs its
        // origin, which only the bytes have.
        let mut bytes = [0; READ_BYTES];
        let room = buffer.remaining().min(READ_BYTES);
        let mut read = ReadBuf::new(&mut bytes[..room]);
        ready!(Pin::new(this.io.inner_mut()).poll_read(cx, &mut read))?;
        this.origin = origin(read.filled()).or_else(|| this.origin.take());
        buffer.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

/// The origin that a request names, if its head is among these bytes.
fn origin(bytes: &[u8]) -> Option<Box<[u8]>> {
    const NAME: &[u8] = b"origin:";
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let named = |line: &&[u8]| {
        let name = line.get(..NAME.len());
        name.is_some_and(|name| name.eq_ignore_ascii_case(NAME))
    };
    Some(lines.find(named)?[NAME.len()..].trim_ascii().into())
}

impl Write for HttpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let all = || parts.iter().map(|part| part.len()).sum();
        if !this.kept.is_empty() || parts.first().is_some_and(|first| this.keeps(first)) {
            this.kept.reserve(CAPACITY);
            parts
                .iter()
                .for_each(|part| this.kept.extend_from_slice(part));
            return Poll::Ready(Ok(all()));
        }
        if let Some(refusal) = this.refuse(parts) {
            this.refusal = refusal;
            return Poll::Ready(Ok(all()));
        }
        let written = Pin::new(this.io.inner_mut()).poll_write_vectored(cx, parts);
        this.progress(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_refusal(cx))?;
        // TCP has nothing to flush, and TLS may have records.
        let flushed = Pin::new(this.io.inner_mut()).poll_flush(cx);
        this.progress(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_refusal(cx))?;
        Pin::new(this.io.inner_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_is_found_whatever_else_is_wrong_with_the_request() {
        let head = b"GET /?\"<> HTTP/1.1\r\nHost: a\r\nOrIgIn:  http://a \r\nX: y\r\n\r\n";
        assert_eq!(origin(head).as_deref(), Some(&b"http://a"[..]));
        assert_eq!(origin(b"GET / HTTP/1.1\r\nX-Origin: b\r\n\r\n"), None);
    }
}
