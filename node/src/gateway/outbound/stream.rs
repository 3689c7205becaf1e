//! A connection to a peer, with TLS or without, and how it is opened.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::ServiceExt as _;

use super::causes;

/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens connections to a peer.
pub(crate) struct Connector {
    pub(crate) tcp: HttpConnector,
    pub(crate) tls: Option<PeerTls>,
}

/// How the certificate of a peer is verified.
pub(crate) struct PeerTls {
    /// Returns the settings of a new connection.
    pub(crate) settings: Box<dyn Fn() -> Arc<ClientConfig> + Send + Sync>,
    pub(crate) name: ServerName<'static>,
}

impl From<HttpConnector> for Connector {
    fn from(tcp: HttpConnector) -> Self {
        Self { tcp, tls: None }
    }
}

impl Connector {
    /// Opens a connection to the host of a URL. The error names its causes.
    pub(super) async fn connect(&self, url: Uri) -> Result<Stream, String> {
        let stream = self.tcp.clone().oneshot(url).await;
        let stream = stream.map_err(|error| causes(&error))?.into_inner();
        let Some(tls) = &self.tls else {
            return Ok(Stream::Tcp(stream));
        };
        let connector = TlsConnector::from((tls.settings)());
        let handshake = connector.connect(tls.name.clone(), stream);
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
            Ok(Err(error)) => Err(format!("the TLS handshake failed: {error}")),
            Err(_) => Err("the TLS handshake took too long".to_owned()),
        }
    }
}

/// A connection to a peer.
pub(crate) enum Stream {
    Tcp(TcpStream),
    /// Its session is large.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether it is still open, as far as the kernel knows, and no unrequested bytes have arrived.
    /// Such bytes would be taken for the next response.
    pub(super) fn is_usable(&mut self) -> bool {
        match self {
            Self::Tcp(stream) => {
                let read = stream.try_read(&mut [0]);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            // The bytes may be for TLS itself, such as a ticket.
            Self::Tls(stream) => {
                let mut cx = Context::from_waker(Waker::noop());
                let mut byte = [0];
                let mut buffer = ReadBuf::new(&mut byte);
                Pin::new(&mut **stream)
                    .poll_read(&mut cx, &mut buffer)
                    .is_pending()
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => {
                // A session may hold bytes that it has accepted. Its owner waits for a response.
                if let Poll::Ready(Err(error)) = Pin::new(&mut **stream).poll_flush(cx) {
                    return Poll::Ready(Err(error));
                }
                Pin::new(stream).poll_read(cx, buffer)
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
