//! A connection to a peer, with TLS or without, and how it is opened.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::BufMut;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
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
    pub(crate) async fn connect(&self, url: Uri) -> Result<Stream, String> {
        let stream = self.tcp.clone().oneshot(url).await;
        let stream = stream.map_err(|error| causes(&error))?.into_inner();
        let Some(tls) = &self.tls else {
            return Ok(Stream::Left(stream));
        };
        let connector = TlsConnector::from((tls.settings)());
        let handshake = connector.connect(tls.name.clone(), stream);
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(Stream::Right(Box::new(stream))),
            Ok(Err(error)) => Err(format!("the TLS handshake failed: {error}")),
            Err(_) => Err("the TLS handshake took too long".to_owned()),
        }
    }
}

/// A connection to a peer, with TLS on the right, whose session is large.
pub(crate) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Whether a connection is still open, as far as the kernel knows, and no unrequested bytes have
/// arrived. Such bytes would be taken for the next response.
pub(super) fn is_usable(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let mut cx = Context::from_waker(Waker::noop());
    // With TLS, the bytes may be for TLS itself, such as a ticket.
    let read = Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte));
    read.is_pending()
}

/// Reads the bytes that have arrived. A session of TLS may hold bytes that it has accepted, and the
/// caller waits for the response to them.
pub(super) fn poll_read(
    stream: &mut Stream,
    cx: &mut Context<'_>,
    buffer: &mut impl BufMut,
) -> Poll<io::Result<usize>> {
    if let Poll::Ready(Err(error)) = Pin::new(&mut *stream).poll_flush(cx) {
        return Poll::Ready(Err(error));
    }
    pin!(stream.read_buf(buffer)).poll(cx)
}
