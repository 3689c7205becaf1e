//! TLS of a listener: certificates from files, chosen by the name that the client requests, and
//! replaced while the server runs.
//!
//! ```text
//! ClientHello ── server name ──▶ exact name ──▶ wildcard ──▶ the first certificate
//!                                └── of several: the first whose key the client can verify
//! ```
//!
//! A replacement is one swap of the table, so a handshake sees the old certificates or
//! the new ones. Connections that are open keep theirs.

use std::{
    collections::HashMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::RwLock;
use rustls::{
    ServerConfig,
    crypto::ring::{Ticketer, default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use x509_cert::{
    Certificate as X509,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// The only protocol that is offered. Clients that could choose HTTP/2 open WebSockets by HTTP/1.1.
const ALPN: &[u8] = b"http/1.1";

/// A certificate with its chain and its key.
#[derive(Clone)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    names: Arc<[Box<str>]>,
    not_after: SystemTime,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The text has no certificate in PEM.
    #[error("there is no certificate in PEM in it")]
    NoCertificate,
    /// The text has no private key in PEM.
    #[error("there is no private key in PEM in it")]
    NoKey,
    /// The certificate is broken.
    #[error("the certificate is invalid: {0}")]
    Invalid(String),
    /// The key is of a kind that is not supported, or belongs to another certificate.
    #[error("the key does not fit the certificate: {0}")]
    Key(rustls::Error),
    /// There is no certificate at all.
    #[error("at least one certificate is needed")]
    None,
}

impl Certificate {
    /// Reads a chain, the server's own certificate first, and its private key, both in
    /// PEM. One file may have both.
    pub fn from_files(
        chain: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, CertificateError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| CertificateError::Read {
                path: path.to_owned(),
                source,
            })
        };
        Self::from_pem(&read(chain.as_ref())?, &read(key.as_ref())?)
    }

    /// The same from memory.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| CertificateError::Invalid(error.to_string()))?;
        let own = chain.first().ok_or(CertificateError::NoCertificate)?;
        let parsed =
            X509::from_der(own).map_err(|error| CertificateError::Invalid(error.to_string()))?;
        let tbs = parsed.tbs_certificate();
        let not_after = tbs.validity().not_after.to_system_time();
        let alternative = tbs
            .get_extension::<SubjectAltName>()
            .map_err(|error| CertificateError::Invalid(error.to_string()))?;
        let names = alternative.into_iter().flat_map(|(_, names)| names.0);
        let names = names.filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase().into()),
            _ => None,
        });
        let names = names.collect();
        // The error of the parser could quote the text, which is secret.
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::NoKey)?;
        let key = CertifiedKey::from_der(chain, key, &default_provider());
        Ok(Self {
            key: Arc::new(key.map_err(CertificateError::Key)?),
            names,
            not_after,
        })
    }

    /// The names of servers that it is for, in lower case; `*.` at the beginning stands
    /// for one label.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// When it expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl fmt::Debug for Certificate {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("names", &self.names)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The oldest version of TLS that clients may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2. The default.
    #[default]
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// The settings of a listener that serves over TLS. Cheap to clone; clones share their
/// certificates.
///
/// ```no_run
/// # async fn run(io: roomcast::Server, listener: tokio::net::TcpListener) -> Result<(), Box<dyn std::error::Error>> {
/// use roomcast::{Certificate, Tls};
///
/// let tls = Tls::new([Certificate::from_files("site.pem", "site.key")?])?;
/// io.serve(listener, io.router()).with_tls(tls.clone()).await?;
/// // Later, for new connections:
/// tls.replace([Certificate::from_files("site.pem", "site.key")?])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    chooser: Arc<Chooser>,
}

impl Tls {
    /// Serves with these certificates. The first is for clients that name no server, or one that no
    /// certificate is for.
    pub fn new(
        certificates: impl IntoIterator<Item = Certificate>,
    ) -> Result<Self, CertificateError> {
        Self::with_minimum(certificates, TlsVersion::default())
    }

    /// The same for clients that have at least this version of TLS.
    pub fn with_minimum(
        certificates: impl IntoIterator<Item = Certificate>,
        version: TlsVersion,
    ) -> Result<Self, CertificateError> {
        let table = Table::new(certificates)?;
        let chooser = Arc::new(Chooser(RwLock::new(Arc::new(table))));
        let versions: &[_] = match version {
            TlsVersion::V1_2 => &[&rustls::version::TLS12, &rustls::version::TLS13],
            TlsVersion::V1_3 => &[&rustls::version::TLS13],
        };
        let resolver = Arc::clone(&chooser);
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .map_err(CertificateError::Key)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A returning client saves a round trip, and the server a signature. Tickets keep
        // nothing in memory.
        config.ticketer = Ticketer::new().map_err(CertificateError::Key)?;
        Ok(Self {
            config: Arc::new(config),
            chooser,
        })
    }

    /// Uses these certificates for new connections.
    pub fn replace(
        &self,
        certificates: impl IntoIterator<Item = Certificate>,
    ) -> Result<(), CertificateError> {
        let table = Arc::new(Table::new(certificates)?);
        *self.chooser.0.write() = table;
        Ok(())
    }

    /// The certificates in use.
    pub fn certificates(&self) -> Vec<Certificate> {
        self.chooser.0.read().certificates.clone()
    }

    /// The settings for a listener that the application serves by itself, with the
    /// certificates in use at each handshake. They offer HTTP/1.1.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.chooser).finish()
    }
}

/// Chooses a certificate for each handshake.
struct Chooser(RwLock<Arc<Table>>);

struct Table {
    certificates: Vec<Certificate>,
    /// The places in the list, by name.
    by_name: HashMap<Box<str>, Vec<usize>>,
}

impl Table {
    fn new(certificates: impl IntoIterator<Item = Certificate>) -> Result<Self, CertificateError> {
        let certificates: Vec<_> = certificates.into_iter().collect();
        if certificates.is_empty() {
            return Err(CertificateError::None);
        }
        let mut by_name = HashMap::<_, Vec<_>>::new();
        for (place, certificate) in certificates.iter().enumerate() {
            for name in certificate.names() {
                by_name.entry(name.into()).or_default().push(place);
            }
        }
        Ok(Self {
            certificates,
            by_name,
        })
    }

    /// The places of the certificates for a name.
    fn named(&self, name: &str) -> Option<&[usize]> {
        let name = name.to_ascii_lowercase();
        let wildcard = || {
            let (_, domain) = name.split_once('.')?;
            self.by_name.get(&*format!("*.{domain}"))
        };
        self.by_name
            .get(&*name)
            .or_else(wildcard)
            .map(Vec::as_slice)
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = Arc::clone(&self.0.read());
        let named = hello.server_name().and_then(|name| table.named(name));
        let keys = |places: &[usize]| {
            let keys = places.iter().map(|&place| &table.certificates[place].key);
            let fits = |key: &&Arc<CertifiedKey>| {
                key.key.choose_scheme(hello.signature_schemes()).is_some()
            };
            keys.clone()
                .find(fits)
                .or_else(|| keys.clone().next())
                .cloned()
        };
        named.and_then(keys).or_else(|| {
            table
                .certificates
                .first()
                .map(|first| Arc::clone(&first.key))
        })
    }
}

impl fmt::Debug for Chooser {
    /// Without keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = Arc::clone(&self.0.read());
        f.debug_list().entries(&table.certificates).finish()
    }
}
