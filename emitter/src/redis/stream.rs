//! Byte streams to a server: TCP, TLS over TCP, or a Unix socket.
//!
//! The `redis` crate can open them, too, but keeps them, and a [`Wire`](super::wire::Wire) needs one of its
//! own. All connections are opened here, so that they have the same settings and the same errors.

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use futures_util::future::select_ok;
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream, lookup_host},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::{
    error::ConnectError,
    url::{Address, TlsFiles},
};

/// Idle time before the kernel probes the peer, and the interval between probes.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Unanswered probes before the kernel closes the connection.
const KEEPALIVE_PROBES: u32 = 3;

/// Written data that the peer's kernel does not acknowledge for this long ends the connection.
/// Without it, the kernel retries for a quarter of an hour.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// One server.
pub(super) enum Target<'a> {
    Tcp(&'a Address),
    Unix(&'a Path),
}

impl Target<'_> {
    pub(super) fn address(&self) -> Option<Address> {
        match self {
            Self::Tcp(address) => Some((*address).clone()),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A stream to a server.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(super) type BoxStream = Box<dyn Stream>;

/// Opens a stream. `tls` has the files for TLS, if it is used.
pub(super) async fn open(
    target: &Target<'_>,
    tls: Option<&TlsFiles>,
) -> Result<BoxStream, ConnectError> {
    let unreachable = |error: io::Error| ConnectError::of_stream(&target.to_string(), &error);
    match (target, tls) {
        (Target::Unix(path), _) => {
            let stream = UnixStream::connect(path).await.map_err(unreachable)?;
            Ok(Box::new(stream))
        }
        (Target::Tcp(address), None) => Ok(Box::new(tcp(address).await.map_err(unreachable)?)),
        (Target::Tcp(address), Some(files)) => {
            let name = ServerName::try_from(&*address.host).map_err(|error| ConnectError::Tls {
                server: address.to_string(),
                reason: error.to_string(),
            })?;
            let connector = connector(files.clone()).await?;
            let stream = tcp(address).await.map_err(unreachable)?;
            let stream = connector.connect(name.to_owned(), stream).await;
            Ok(Box::new(stream.map_err(unreachable)?))
        }
    }
}

/// Connects to the address of the host that answers first.
async fn tcp(address: &Address) -> io::Result<TcpStream> {
    let found = lookup_host((&*address.host, address.port)).await?;
    let connecting: Vec<_> = found.map(|one| Box::pin(TcpStream::connect(one))).collect();
    if connecting.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the name of the host has no address",
        ));
    }
    let (stream, _) = select_ok(connecting).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(stream)
}

/// The settings for TLS. The files are read for every connection: certificates may be replaced while the
/// process runs.
async fn connector(files: TlsFiles) -> Result<TlsConnector, ConnectError> {
    let reading = tokio::task::spawn_blocking(move || tls_config(&files));
    // The task is cancelled only when the runtime shuts down.
    let config = reading.await.unwrap_or_else(|error| {
        Err(ConnectError::Unreachable {
            server: "TLS".to_owned(),
            reason: error.to_string(),
        })
    });
    Ok(TlsConnector::from(Arc::new(config?)))
}

fn tls_config(files: &TlsFiles) -> Result<ClientConfig, ConnectError> {
    let mut roots = RootCertStore::empty();
    match &files.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| unusable(path, &error))?;
            }
        }
        // Some of the system's may be unreadable; a server whose authority is missing is rejected.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(roots);
    let Some((certificate, key)) = &files.own else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
    let config = builder.with_client_auth_cert(chain, private);
    config.map_err(|error| unusable(key, &error))
}

/// The certificates of a file, which has at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<_> = certificates.map_err(|error| unusable(path, &error))?;
    match certificates.is_empty() {
        true => Err(unusable(path, &"the file has no certificate")),
        false => Ok(certificates),
    }
}

fn unusable(path: &Path, reason: &dyn fmt::Display) -> ConnectError {
    ConnectError::TlsFile {
        path: path.into(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_sends_at_once_and_notices_a_peer_that_is_gone() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = tcp(&Address::new("127.0.0.1", port)).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
    }
}
