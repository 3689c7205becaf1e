//! The bytes before HTTP on a connection, if the listener expects some: the PROXY header
//! of a balancer, then a TLS handshake.
//!
//! Whether there is a header is a setting and never a guess, because any client could
//! send one. No byte after it is read, so that TLS or HTTP begins on an untouched socket.
//!
//! ```text
//!  accepted ─► place among `handshakes`? ─► PROXY header? ─► TLS? ─► HTTP
//!                 └─ no: closed                └── all of it within `handshake_timeout`
//! ```
//!
//! Silent connections are cheap to open, so both their number and their time are limited before
//! anything is known about them.

use std::{future::Future, io, net::SocketAddr};

use roomcast_protocol::proxy::{self, HeaderError, Progress};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use super::{client_address::ClientAddress, engine::Engine, stream::Socket, tls::Tls};
use crate::close::Limit;

/// The bytes that a listener expects before HTTP.
#[derive(Clone, Debug, Default)]
pub(crate) struct Preamble {
    /// A header of the PROXY protocol, from a trusted proxy.
    pub(crate) proxy_header: bool,
    pub(crate) tls: Option<Tls>,
}

/// Bytes that are inspected at once. Headers are shorter, unless they have large extensions.
const PEEK_BYTES: usize = 512;

/// A connection that is closed before HTTP.
enum Failed {
    /// Opened and closed without a byte, as a health check does.
    Unused,
    /// The header is missing or wrong, for this reason.
    Header(&'static str),
    /// The handshake of TLS has failed.
    Tls(&'static str, io::Error),
}

impl From<HeaderError> for Failed {
    fn from(error: HeaderError) -> Self {
        Self::Header(match error {
            HeaderError::Malformed => "malformed",
            HeaderError::TooLarge => "too_large",
        })
    }
}

/// The reason for a connection that ends within the header.
const CLOSED: Failed = Failed::Header("closed");

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Self {
        CLOSED
    }
}

impl Preamble {
    pub(super) fn is_empty(&self) -> bool {
        !self.proxy_header && self.tls.is_none()
    }

    /// Receives it, within the limits of time and number. Returns `None` if the connection must be
    /// closed; it has then been counted.
    pub(super) async fn receive(
        &self,
        engine: &Engine,
        tcp: TcpStream,
        peer: SocketAddr,
        stopped: impl Future<Output = ()>,
    ) -> Option<(Socket, ClientAddress)> {
        let Ok(_place) = engine.preambles.try_acquire() else {
            engine.metrics.limit_reached(Limit::Handshakes);
            return None;
        };
        let limit = engine.config.limits.handshake_timeout;
        let received = tokio::select! {
            received = timeout(limit, self.receive_all(engine, tcp, peer)) => received,
            // A client that has sent no request yet expects nothing.
            () = stopped => return None,
        };
        match received {
            Ok(Ok(received)) => return Some(received),
            Ok(Err(Failed::Unused)) => {}
            Ok(Err(Failed::Header(reason))) => {
                engine.metrics.proxy_header_error(reason);
                tracing::debug!(%peer, reason, "a connection without a valid PROXY header is closed");
            }
            Ok(Err(Failed::Tls(reason, error))) => {
                engine.metrics.tls_handshake_error(reason);
                tracing::debug!(%peer, reason, %error, "a TLS handshake failed");
            }
            Err(_) => engine.metrics.limit_reached(Limit::HandshakeTimeout),
        }
        None
    }

    async fn receive_all(
        &self,
        engine: &Engine,
        mut tcp: TcpStream,
        peer: SocketAddr,
    ) -> Result<(Socket, ClientAddress), Failed> {
        let client = match self.proxy_header {
            false => peer,
            true if engine.config.trusted_proxies.trusts(peer.ip()) => {
                read_header(&mut tcp).await?.unwrap_or(peer)
            }
            // A header from an untrusted client would let it choose the address that limits and
            // logs use.
            true => return Err(Failed::Header("untrusted")),
        };
        let socket = match &self.tls {
            None => Socket::Left(tcp),
            Some(tls) => shake_hands(tls, tcp).await?,
        };
        Ok((socket, ClientAddress::direct(client, self.tls.is_some())))
    }
}

async fn shake_hands(tls: &Tls, tcp: TcpStream) -> Result<Socket, Failed> {
    // A port check closes without a byte, and is not a handshake.
    if tcp.peek(&mut [0]).await.ok() == Some(0) {
        return Err(Failed::Unused);
    }
    match tls.acceptor().accept(tcp).await {
        Ok(stream) => Ok(Socket::Right(Box::new(stream))),
        Err(error) => {
            let cause = error.get_ref().and_then(|error| error.downcast_ref());
            let reason = match cause {
                Some(rustls::Error::InvalidMessage(_)) => "not_tls",
                Some(rustls::Error::AlertReceived(_)) => "rejected",
                Some(rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol) => {
                    "incompatible"
                }
                Some(_) => "other",
                None => "closed",
            };
            Err(Failed::Tls(reason, error))
        }
    }
}

/// Reads a header and not a byte more. Returns the client that it names.
async fn read_header(tcp: &mut TcpStream) -> Result<Option<SocketAddr>, Failed> {
    let mut header = Vec::new();
    let mut buffer = [0; PEEK_BYTES];
    loop {
        let count = tcp.peek(&mut buffer).await?;
        if count == 0 {
            return Err(match header.is_empty() {
                true => Failed::Unused,
                false => CLOSED,
            });
        }
        let before = header.len();
        header.extend_from_slice(&buffer[..count]);
        match proxy::read(&header)? {
            // All of it belongs to the header. If it stayed in the socket, the next look
            // would return at once with nothing new.
            Progress::Incomplete => drop(tcp.read_exact(&mut buffer[..count]).await?),
            Progress::Complete(complete) => {
                let rest = complete.length - before;
                tcp.read_exact(&mut buffer[..rest]).await?;
                return Ok(complete.client);
            }
        }
    }
}
