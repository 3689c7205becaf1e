//! The byte stream under a WebSocket: a TCP socket that can be read and written in place,
//! TLS of our own listener over one, or any other stream that HTTP was upgraded on (TLS
//! of an embedding application, for example).
//!
//! A TCP socket is read and written by plain system calls. Those of the C library are cancellation
//! points, which cost extra on every call in a program with several threads.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::{http_stream::HttpStream, tls_stream};

/// The result of a read.
pub(crate) struct Read {
    /// In bytes; zero is the end of the stream.
    pub(crate) count: usize,
    /// There may be more now. If not, the task is woken when there is.
    pub(crate) more: bool,
}

/// A stream. It is used under the lock of its connection.
pub(crate) enum Stream {
    Tcp(TcpStream),
    /// Boxed, because a TCP socket alone is much smaller.
    Tls(Box<TlsStream<TcpStream>>),
    /// Only the driver reads and writes it, because such a stream keeps only one waker.
    Other(Box<TokioIo<Upgraded>>),
}

/// The parts of a connection whose HTTP has ended with an upgrade.
pub(crate) struct Unwrapped {
    pub(crate) stream: Stream,
    /// Bytes that hyper had already read.
    pub(crate) read: Vec<u8>,
    /// The head of the response, if it still has to be written before anything else.
    pub(crate) head: Vec<u8>,
}

impl Unwrapped {
    /// Drops hyper's read buffer, which would cost 8 KiB for the life of the connection.
    pub(crate) fn new(upgraded: Upgraded) -> Self {
        let upgraded = match upgraded.downcast::<HttpStream>() {
            Ok(parts) => {
                let (socket, unread, head) = parts.io.into_parts();
                return Self {
                    stream: match socket {
                        Either::Left(tcp) => Stream::Tcp(tcp),
                        Either::Right(tls) => Stream::Tls(tls),
                    },
                    read: [&parts.read_buf[..], &unread].concat(),
                    head,
                };
            }
            Err(upgraded) => upgraded,
        };
        let (stream, read) = Stream::of_others(upgraded);
        Self {
            stream,
            read,
            head: Vec::new(),
        }
    }
}

impl Stream {
    /// The stream of an application that serves HTTP by itself.
    fn of_others(upgraded: Upgraded) -> (Self, Vec<u8>) {
        let upgraded = match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => return (Self::tcp(parts.io.into_inner()), parts.read_buf.to_vec()),
            Err(upgraded) => upgraded,
        };
        // Under `axum::serve`, the stream is wrapped once more.
        match hyper_util::server::conn::auto::upgrade::downcast::<TokioIo<TcpStream>>(upgraded) {
            Ok(parts) => (Self::tcp(parts.io.into_inner()), parts.read_buf.to_vec()),
            Err(upgraded) => (Self::Other(Box::new(TokioIo::new(upgraded))), Vec::new()),
        }
    }

    /// Switches off Nagle's algorithm, which an embedding application may have left on. An error
    /// means that the socket is dead; the first read reports it.
    fn tcp(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self::Tcp(stream)
    }

    /// Reads once. A short read means that no more has arrived: the task is registered without
    /// asking the kernel again, so an echo costs one `recv` and one `send`.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<Read>> {
        match self {
            Self::Tcp(tcp) => poll_read_tcp(tcp, cx, buffer),
            Self::Tls(tls) => tls_stream::poll_read(tls, cx, buffer),
            Self::Other(stream) => {
                let mut read = ReadBuf::new(buffer);
                ready!(Pin::new(stream).poll_read(cx, &mut read))?;
                Poll::Ready(Ok(Read {
                    count: read.filled().len(),
                    more: true,
                }))
            }
        }
    }

    /// Writes as much as the kernel accepts now, or TLS until its buffer is full. A stream that is
    /// neither needs a context, which only the driver has; without one it "would block".
    pub(crate) fn try_write(
        &mut self,
        cx: Option<&mut Context<'_>>,
        bytes: &[u8],
    ) -> io::Result<usize> {
        match (self, cx) {
            (Self::Tcp(tcp), _) => tcp.try_io(Interest::WRITABLE, || {
                Ok(rustix::net::send(&*tcp, bytes, SendFlags::NOSIGNAL)?)
            }),
            (Self::Tls(tls), _) => tls_stream::try_write(tls, bytes),
            (Self::Other(stream), Some(cx)) => {
                let mut stream = Pin::new(stream);
                let Poll::Ready(written) = stream.as_mut().poll_write(cx, bytes) else {
                    return Err(io::ErrorKind::WouldBlock.into());
                };
                // TLS buffers; pending is fine, because the driver returns to it.
                let _ = stream.poll_flush(cx)?;
                written
            }
            (Self::Other(_), None) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Ready when writing is worth another try. Only for the driver.
    pub(crate) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(tcp) => tcp.poll_write_ready(cx).map(|_| ()),
            // An error shows with the next write.
            Self::Tls(tls) => tls_stream::poll_flush(tls, cx).map(|_| ()),
            // The write that would have blocked has left its waker.
            Self::Other(_) => Poll::Pending,
        }
    }

    /// Whether bytes that were written wait here for the socket.
    pub(crate) fn holds_bytes(&self) -> bool {
        match self {
            Self::Tls(tls) => tls_stream::has_records(tls),
            Self::Tcp(_) | Self::Other(_) => false,
        }
    }

    /// Ready when no more bytes wait here. Only for the driver.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tls(tls) => tls_stream::poll_flush(tls, cx),
            Self::Tcp(_) | Self::Other(_) => Poll::Ready(Ok(())),
        }
    }

    /// Signals the peer that nothing more follows.
    pub(crate) fn shut_down(&mut self, cx: &mut Context<'_>) {
        match self {
            // An error means that the peer has disconnected, which is the goal.
            Self::Tcp(tcp) => drop(rustix::net::shutdown(&*tcp, Shutdown::Write)),
            Self::Tls(tls) => tls_stream::shut_down(tls, cx),
            Self::Other(stream) => drop(Pin::new(stream).poll_shutdown(cx)),
        }
    }

    /// The peer's address, where the stream knows it.
    pub(crate) fn peer(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.peer_addr().ok(),
            Self::Tls(tls) => tls.get_ref().0.peer_addr().ok(),
            Self::Other(_) => None,
        }
    }
}

/// The socket that carries HTTP on our own listeners.
pub(super) type Socket = Either<TcpStream, Box<TlsStream<TcpStream>>>;

fn poll_read_tcp(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<Read>> {
    loop {
        let mut read = None;
        let outcome = tcp.try_io(Interest::READABLE, || {
            let (count, _) = rustix::net::recv(tcp, &mut *buffer, RecvFlags::empty())?;
            read = Some(count);
            // Reporting "would block" clears the readiness; an event in between is not lost,
            // because tokio samples its tick before the call.
            if count > 0 && count < buffer.len() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        if let Some(count) = read {
            let more = outcome.is_ok() || tcp.poll_read_ready(cx).is_ready();
            return Poll::Ready(Ok(Read { count, more }));
        }
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(tcp.poll_read_ready(cx))?;
            }
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Poll::Ready(Err(error));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_kinds_of_streams_cost_a_tcp_connection_no_memory() {
        assert_eq!(size_of::<Option<Stream>>(), size_of::<TcpStream>());
        assert_eq!(size_of::<Socket>(), size_of::<TcpStream>());
    }
}
