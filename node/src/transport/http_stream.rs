//! The socket under HTTP, which keeps back the head of the response that ends HTTP. The sequence
//! is in [`serve`](super::serve).

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

/// A TCP socket under HTTP. The requests on it carry the [`Handoff`].
pub(super) struct HttpStream {
    io: TokioIo<TcpStream>,
    handoff: Handoff,
    /// The head of the response that switches protocols.
    kept: Vec<u8>,
}

/// Where a request leaves the future that opens the connection once HTTP has ended.
#[derive(Clone, Default)]
pub(super) struct Handoff(Arc<Mutex<Option<Opening>>>);

type Opening = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Space for the head that is kept, and for the packet that goes with it.
const CAPACITY: usize = 512;

/// The beginning of a response that ends HTTP.
const SWITCHING: &[u8] = b"HTTP/1.1 101 ";

impl HttpStream {
    pub(super) fn new(tcp: TcpStream, handoff: Handoff) -> Self {
        Self {
            io: TokioIo::new(tcp),
            handoff,
            kept: Vec::new(),
        }
    }

    /// The socket, and what has to be written to it before anything else.
    pub(super) fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.io.into_inner(), self.kept)
    }

    /// Whether bytes that HTTP writes are kept. The opening alone does not tell, because the
    /// application may have replaced the response.
    fn keeps(&self, bytes: &[u8]) -> bool {
        bytes.starts_with(SWITCHING) && self.handoff.0.lock().is_some()
    }
}

impl Handoff {
    /// Leaves an opening, in the place of one that an earlier request has left.
    pub(super) fn leave(&self, opening: impl Future<Output = ()> + Send + 'static) {
        *self.0.lock() = Some(Box::pin(opening));
    }

    /// Drops the opening of an earlier request, because a new request begins.
    pub(super) fn clear(&self) {
        *self.0.lock() = None;
    }

    /// Runs the opening that the last request has left, once HTTP has ended.
    pub(super) async fn finish(self) {
        let opening = self.0.lock().take();
        if let Some(opening) = opening {
            opening.await;
        }
    }
}

impl Read for HttpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buffer)
    }
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
        if this.kept.is_empty() && !parts.first().is_some_and(|first| this.keeps(first)) {
            return Pin::new(&mut this.io).poll_write_vectored(cx, parts);
        }
        this.kept.reserve(CAPACITY);
        let before = this.kept.len();
        for part in parts {
            this.kept.extend_from_slice(part);
        }
        Poll::Ready(Ok(this.kept.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
