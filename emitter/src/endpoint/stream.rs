//! A byte stream to a server: TCP, TLS over TCP, or a Unix socket.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use super::url::Address;

/// A connection that carries nothing is asked for a sign of life after this time, and that often.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// How many such questions may stay unanswered.
const KEEPALIVE_PROBES: u32 = 3;

/// What was written and is not acknowledged by the peer's kernel after this time ends the
/// connection.
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// A byte stream to a server.
#[derive(Debug)]
pub struct Stream(Kind);

#[derive(Debug)]
enum Kind {
    // Shared, so that a caller's thread can write while the link's task waits for answers.
    Tcp(Arc<TcpStream>),
    Unix(Arc<UnixStream>),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(super) async fn tcp(address: &Address) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((&*address.host, address.port)).await?;
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE)?;
        sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
        // Without it, what was written into a dead connection is retried for a quarter of an hour.
        #[cfg(target_os = "linux")]
        sockopt::set_tcp_user_timeout(
            &stream,
            u32::try_from(USER_TIMEOUT.as_millis()).expect("it is a few seconds"),
        )?;
        Ok(stream)
    }

    pub(super) async fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        Ok(Self(Kind::Unix(Arc::new(stream))))
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self(Kind::Tcp(Arc::new(stream)))
    }
}

impl From<TlsStream<TcpStream>> for Stream {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        Self(Kind::Tls(Box::new(stream)))
    }
}

/// Writes what the kernel takes at once. The connection lives as long as this does.
#[derive(Debug)]
pub(crate) enum DirectWriter {
    Tcp(Arc<TcpStream>),
    Unix(Arc<UnixStream>),
}

impl DirectWriter {
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }
}

/// Reads into the buffer once the socket is readable. The kinds of sockets differ in type only.
macro_rules! poll_read {
    ($stream:expr, $context:expr, $buffer:expr) => {
        loop {
            ready!($stream.poll_read_ready($context))?;
            match $stream.try_read($buffer.initialize_unfilled()) {
                Ok(read) => {
                    $buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    };
}

macro_rules! poll_write {
    ($stream:expr, $context:expr, $bytes:expr) => {
        loop {
            ready!($stream.poll_write_ready($context))?;
            match $stream.try_write($bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tcp(stream) => poll_read!(stream, context, buffer),
            Kind::Unix(stream) => poll_read!(stream, context, buffer),
            Kind::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Tcp(stream) => poll_write!(stream, context, bytes),
            Kind::Unix(stream) => poll_write!(stream, context, bytes),
            Kind::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tcp(_) | Kind::Unix(_) => Poll::Ready(Ok(())),
            Kind::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tcp(stream) => Poll::Ready(shut_down(stream)),
            Kind::Unix(stream) => Poll::Ready(shut_down(stream)),
            Kind::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// Says that nothing more will be written.
fn shut_down(stream: impl std::os::fd::AsFd) -> io::Result<()> {
    match rustix::net::shutdown(stream, rustix::net::Shutdown::Write) {
        Err(rustix::io::Errno::NOTCONN) => Ok(()),
        result => Ok(result?),
    }
}
