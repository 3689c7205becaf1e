//! TLS to a server, set up anew for each connection, so that certificates may be exchanged while
//! the process runs.

use std::{io, path::Path, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem, pem::PemObject},
    },
};

use crate::redis::{Address, ConnectError, TlsFiles};

/// Secures the connection; the certificate must be one for the host.
pub(super) async fn secure(
    stream: TcpStream,
    address: &Address,
    files: &TlsFiles,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let files = files.clone();
    let config = tokio::task::spawn_blocking(move || client_config(&files)).await;
    // Otherwise the runtime is about to end.
    let config = config.map_err(|error| ConnectError::Unreachable {
        server: address.to_string(),
        reason: error.to_string(),
    })??;
    let failed = |reason: String| ConnectError::Tls {
        server: address.to_string(),
        reason,
    };
    let name = ServerName::try_from(String::from(&*address.host));
    let name = name.map_err(|error| failed(error.to_string()))?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await;
    stream.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => failed(error.to_string()),
        _ => ConnectError::Unreachable {
            server: address.to_string(),
            reason: error.to_string(),
        },
    })
}

fn client_config(files: &TlsFiles) -> Result<ClientConfig, ConnectError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(roots(files.ca.as_deref())?);
    let Some((certificates, key)) = &files.own else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates_in(certificates)?;
    let key_of = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
    let config = builder.with_client_auth_cert(chain, key_of);
    config.map_err(|error| ConnectError::TlsFile {
        path: key.clone(),
        reason: error.to_string(),
    })
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, ConnectError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates_in(path)? {
                let added = roots.add(certificate);
                added.map_err(|error: rustls::Error| ConnectError::TlsFile {
                    path: path.into(),
                    reason: error.to_string(),
                })?;
            }
        }
        // What cannot be read is left out: a connection that needs it names the missing issuer.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

fn certificates_in(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<_> = certificates.map_err(|error| unusable(path, &error))?;
    if certificates.is_empty() {
        return Err(unusable(path, &pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn unusable(path: &Path, error: &pem::Error) -> ConnectError {
    ConnectError::TlsFile {
        path: path.into(),
        reason: error.to_string(),
    }
}
