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
    net::{TcpStream, UnixStream, tcp, unix},
};
use tokio_rustls::client::TlsStream;

use crate::redis::Address;

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

// Split, so that a caller's thread can write while the link's task waits for answers.
#[derive(Debug)]
enum Kind {
    Tcp(tcp::OwnedReadHalf, Arc<tcp::OwnedWriteHalf>),
    Unix(unix::OwnedReadHalf, Arc<unix::OwnedWriteHalf>),
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
        let (reader, writer) = stream.into_split();
        Ok(Self(Kind::Unix(reader, Arc::new(writer))))
    }

    /// A second handle, which writes without waiting. None with TLS, whose state is not shared.
    pub(crate) fn direct_writer(&self) -> Option<DirectWriter> {
        match &self.0 {
            Kind::Tcp(_, writer) => Some(DirectWriter::Tcp(writer.clone())),
            Kind::Unix(_, writer) => Some(DirectWriter::Unix(writer.clone())),
            Kind::Tls(_) => None,
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self(Kind::Tcp(reader, Arc::new(writer)))
    }
}

impl From<TlsStream<TcpStream>> for Stream {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        Self(Kind::Tls(Box::new(stream)))
    }
}

/// Writes what the kernel takes at once. The connection lives as long as this does.
#[derive(Debug, Clone)]
pub(crate) enum DirectWriter {
    Tcp(Arc<tcp::OwnedWriteHalf>),
    Unix(Arc<unix::OwnedWriteHalf>),
}

impl DirectWriter {
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(writer) => writer.try_write(bytes),
            Self::Unix(writer) => writer.try_write(bytes),
        }
    }
}

/// Writes once the socket is writable. The kinds of sockets differ in type only.
macro_rules! poll_write {
    ($writer:expr, $context:expr, $bytes:expr) => {
        loop {
            ready!($writer.as_ref().as_ref().poll_write_ready($context))?;
            match $writer.try_write($bytes) {
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
            Kind::Tcp(reader, _) => Pin::new(reader).poll_read(context, buffer),
            Kind::Unix(reader, _) => Pin::new(reader).poll_read(context, buffer),
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
            Kind::Tcp(_, writer) => poll_write!(writer, context, bytes),
            Kind::Unix(_, writer) => poll_write!(writer, context, bytes),
            Kind::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tcp(..) | Kind::Unix(..) => Poll::Ready(Ok(())),
            Kind::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tcp(_, writer) => Poll::Ready(shut_down(AsRef::<TcpStream>::as_ref(&**writer))),
            Kind::Unix(_, writer) => Poll::Ready(shut_down(AsRef::<UnixStream>::as_ref(&**writer))),
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
