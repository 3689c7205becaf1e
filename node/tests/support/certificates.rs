//! Certificates for tests, made by openssl.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// An authority with a folder for what it signs. Dropping it removes the folder.
pub(crate) struct Authority(PathBuf);

impl Authority {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("roomcast-tls-{}-{number}", std::process::id());
        let authority = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(&authority.0).unwrap();
        authority.openssl(&format!(
            "req -x509 {KEY} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"
        ));
        authority
    }

    /// Signs a certificate for these names: `NAME.pem` and `NAME.key`.
    pub(crate) fn sign(&self, file: &str, names: &str, days: u32) {
        self.openssl(&format!(
            "req {KEY} -keyout {file}.key -out {file}.csr -subj /CN={file}"
        ));
        let extension = self.path(&format!("{file}.txt"));
        fs::write(extension, format!("subjectAltName={names}")).unwrap();
        self.openssl(&format!(
            "x509 -req -in {file}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {file}.pem \
             -days {days} -extfile {file}.txt"
        ));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn der(&self, file: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(file)).unwrap()
    }

    /// A client that trusts the authority.
    pub(crate) fn client(&self, protocols: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.der("ca.pem")).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut client = builder.with_root_certificates(roots).with_no_client_auth();
        client.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().into())
            .collect();
        client
    }

    fn openssl(&self, args: &str) {
        let mut command = Command::new("openssl");
        let made = command.current_dir(&self.0).args(args.split(' ')).output();
        let made = made.unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// A handshake that names this server.
pub(crate) async fn handshake(
    client: ClientConfig,
    server: &str,
    stream: TcpStream,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(server.to_owned()).unwrap();
    TlsConnector::from(Arc::new(client))
        .connect(name, stream)
        .await
}

/// Copies a certificate with its key over another one.
pub(crate) fn copy(from: &Path, to: &Path) {
    for extension in ["pem", "key"] {
        fs::copy(from.with_extension(extension), to.with_extension(extension)).unwrap();
    }
}
