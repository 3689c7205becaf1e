//! The socket of a client that speaks HTTP, and how its WebSocket is taken over from there.
//!
//! The answer to a WebSocket's request is kept back and leaves with the session's first packet: a
//! segment of its own costs a tenth of a connect. The task that carried HTTP opens the connection,
//! so that none has to wait beside it. Where an application serves HTTP by itself, neither happens.

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

/// A TCP socket under HTTP. Give the requests on it the [`Handoff`].
pub(crate) struct HttpStream {
    io: TokioIo<TcpStream>,
    handoff: Handoff,
    /// The head of the answer that switches protocols.
    kept: Vec<u8>,
}

/// Where a request leaves what shall happen once its HTTP connection has become a WebSocket.
#[derive(Clone, Default)]
pub(crate) struct Handoff(Arc<Mutex<Option<Opening>>>);

type Opening = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Room for the head that is kept, and for the packet that goes with it.
const ROOM: usize = 512;

/// How every answer begins that ends HTTP.
const SWITCHING: &[u8] = b"HTTP/1.1 101 ";

impl HttpStream {
    pub(crate) fn new(tcp: TcpStream, handoff: Handoff) -> Self {
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

    /// Whether bytes that HTTP writes are kept: a request may have left an opening and have been
    /// answered by something else.
    fn keeps(&self, bytes: &[u8]) -> bool {
        bytes.starts_with(SWITCHING) && self.handoff.0.lock().is_some()
    }
}

impl Handoff {
    /// Leaves what shall happen, in the place of what an earlier request has left.
    pub(super) fn leave(&self, opening: impl Future<Output = ()> + Send + 'static) {
        *self.0.lock() = Some(Box::pin(opening));
    }

    /// A new request begins: what an earlier one has left can come to nothing any more.
    pub(crate) fn clear(&self) {
        *self.0.lock() = None;
    }

    /// Does what the last request has left, once HTTP has ended.
    pub(crate) async fn finish(self) {
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
        this.kept.reserve(ROOM);
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
