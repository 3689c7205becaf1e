//! TLS between nodes: which nodes serve with it, and how their certificates are verified.
//!
//! A node that has a certificate and authorities states `https://` before its address. So the others know
//! what to expect, and a cluster can change one node after the other: first all nodes get the
//! authorities, then their certificates. Requests are signed with the key of the cluster, so nodes
//! that relay need no certificate.

use std::{fs, path::Path, sync::Arc};

use hyper_util::client::legacy::connect::HttpConnector;
use parking_lot::RwLock;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

use super::options::{RelayOptions, TlsName};
use crate::gateway::{
    config::Config,
    outbound::{Connector, PeerTls},
    reload::{Preparing, Reloadable, prepared},
    values::OrOff,
};

/// Stands before the address of a node that serves with TLS.
const SCHEME: &str = "https://";

/// How this node verifies others. Cheap to clone; clones share the authorities.
#[derive(Clone)]
pub(crate) struct NodeTls {
    settings: Option<Arc<RwLock<Arc<ClientConfig>>>>,
    name: TlsName,
}

impl NodeTls {
    pub(super) fn new(options: &RelayOptions) -> Result<Self, String> {
        let settings = authorities(options)?;
        Ok(Self {
            settings: settings.map(|settings| Arc::new(RwLock::new(settings))),
            name: options.relay_tls_name.clone(),
        })
    }

    /// Whether others may be asked to use TLS.
    pub(super) fn is_on(&self) -> bool {
        self.settings.is_some()
    }

    /// The address to state for a listener with TLS.
    pub(super) fn stated(address: &str) -> String {
        format!("{SCHEME}{address}")
    }

    /// Returns how to connect to the node that states this address. The error names the missing
    /// option.
    pub(super) fn connector(
        &self,
        tcp: HttpConnector,
        stated: &str,
    ) -> Result<Connector, &'static str> {
        let Some(address) = stated.strip_prefix(SCHEME) else {
            return Ok(Connector::from(tcp));
        };
        let settings = self.settings.clone().ok_or("set --relay-tls-ca")?;
        let name = match &self.name {
            TlsName::Address => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                ServerName::try_from(host.to_owned()).map_err(|_| "it has no valid host")?
            }
            TlsName::Fixed(name) => name.clone(),
        };
        let tls = PeerTls {
            settings: Box::new(move || Arc::clone(&settings.read())),
            name,
        };
        Ok(Connector {
            tcp,
            tls: Some(tls),
        })
    }
}

/// The host and port of a stated address.
pub(super) fn authority(stated: &str) -> &str {
    stated.strip_prefix(SCHEME).unwrap_or(stated)
}

impl Reloadable for NodeTls {
    /// Without authorities at the start, they need a restart.
    fn keys(&self) -> &'static [&'static str] {
        match self.is_on() {
            true => &["relay_tls_ca"],
            false => &[],
        }
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        let Some(current) = &self.settings else {
            return prepared(Ok(|| {}));
        };
        let current = Arc::clone(current);
        prepared(authorities(&config.relay).and_then(|settings| {
            let settings = settings.ok_or(
                "TLS between nodes cannot be switched off without a restart (relay_tls_ca)",
            )?;
            Ok(move || *current.write() = settings)
        }))
    }
}

/// Reads the authorities that the options name.
pub(crate) fn authorities(options: &RelayOptions) -> Result<Option<Arc<ClientConfig>>, String> {
    let OrOff(Some(file)) = &options.relay_tls_ca else {
        return Ok(None);
    };
    let settings = trusting(file).map_err(|error| {
        let file = file.display();
        format!("the authorities in {file} cannot be used: {error} (set with --relay-tls-ca)")
    })?;
    Ok(Some(Arc::new(settings)))
}

fn trusting(file: &Path) -> Result<ClientConfig, String> {
    let text = fs::read(file).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("there is no certificate in PEM in it".to_owned());
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
