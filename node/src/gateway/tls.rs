//! TLS of the port for clients: the certificates that the options name, their expiry, their reload.
//!
//! Files are read completely and checked with their keys before anything changes, at startup and by
//! SIGHUP. A key is never logged; errors name the file only.

use std::{
    future::ready,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, ValueEnum};
use prometheus::{IntGaugeVec, Opts};
use roomcast::{Certificate, Server, Tls, TlsVersion};
use tracing::{info, warn};

use super::{
    config::Config,
    reload::{Preparing, Reloadable, Swap},
    values::PemFile,
};

/// The time before a certificate's expiry at which the log warns of it. Renewal is usual
/// a month before.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsOptions {
    /// Certificates with which the port for clients serves over TLS: `off`, or files in
    /// PEM separated by commas
    ///
    /// Each file begins with the server's certificate, and its chain follows. A client
    /// gets the certificate for the name that it asks for, otherwise the first. SIGHUP
    /// reads the files again.
    #[arg(
        long,
        value_name = "FILE",
        value_delimiter = ',',
        default_value = "off"
    )]
    pub(crate) tls_cert: Vec<PemFile>,

    /// Their private keys in the same order: files in PEM, or `off` if those of
    /// --tls-cert contain them
    #[arg(
        long,
        value_name = "FILE",
        value_delimiter = ',',
        default_value = "off"
    )]
    pub(crate) tls_key: Vec<PemFile>,

    /// Oldest version of TLS that clients may use
    #[arg(long, value_name = "VERSION", value_enum, default_value = "1.2")]
    pub(crate) tls_min_version: MinVersion,
}

/// The oldest version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MinVersion {
    /// TLS 1.2
    #[value(name = "1.2")]
    Tls12,
    /// TLS 1.3
    #[value(name = "1.3")]
    Tls13,
}

impl TlsOptions {
    /// The files of each certificate and its key. The error names options that do not fit together.
    pub(crate) fn pairs(&self) -> Result<Vec<(PathBuf, PathBuf)>, String> {
        let named = |files: &[PemFile]| {
            let files = files.iter().filter_map(|file| file.0.clone());
            files.collect::<Vec<_>>()
        };
        let (chains, keys) = (named(&self.tls_cert), named(&self.tls_key));
        if keys.is_empty() {
            return Ok(chains.iter().cloned().zip(chains.clone()).collect());
        }
        if keys.len() != chains.len() {
            return Err(format!(
                "--tls-cert names {} files and --tls-key {}: each certificate needs its key, in \
                 the same order",
                chains.len(),
                keys.len()
            ));
        }
        Ok(chains.into_iter().zip(keys).collect())
    }
}

/// Reads the certificates that the options name, without effect. Empty if TLS is off.
pub(crate) fn read(options: &TlsOptions) -> Result<Vec<(PathBuf, Certificate)>, String> {
    let pairs = options.pairs()?.into_iter();
    let certificates = pairs.map(|(chain, key)| {
        let certificate = Certificate::from_files(&chain, &key);
        let certificate = certificate.map_err(|error| {
            let (chain, key) = (chain.display(), key.display());
            format!("the certificate {chain} with the key {key} cannot be used: {error}")
        })?;
        Ok((chain, certificate))
    });
    certificates.collect()
}

/// TLS of the port for clients, if the options name certificates.
pub(crate) struct PublicTls {
    pub(crate) tls: Tls,
    expiry: IntGaugeVec,
}

impl PublicTls {
    pub(crate) fn start(options: &TlsOptions) -> Result<Option<Self>, String> {
        let certificates = read(options)?;
        if certificates.is_empty() {
            return Ok(None);
        }
        let version = match options.tls_min_version {
            MinVersion::Tls12 => TlsVersion::V1_2,
            MinVersion::Tls13 => TlsVersion::V1_3,
        };
        let used = certificates
            .iter()
            .map(|(_, certificate)| certificate.clone());
        let opts = Opts::new(
            "roomcast_tls_certificate_not_after_seconds",
            "When a certificate expires, in seconds since 1970, by file.",
        );
        let started = Self {
            tls: Tls::with_minimum(used, version).map_err(|error| error.to_string())?,
            expiry: IntGaugeVec::new(opts, &["file"]).map_err(|error| error.to_string())?,
        };
        show(&started.expiry, &certificates);
        Ok(Some(started))
    }

    /// Adds the metric to those of the server.
    pub(crate) fn register(&self, server: &Server) -> Result<(), prometheus::Error> {
        server.registry().register(Box::new(self.expiry.clone()))
    }
}

impl Reloadable for PublicTls {
    fn keys(&self) -> &'static [&'static str] {
        &["tls_cert", "tls_key"]
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        let prepared = read(&config.tls).and_then(|certificates| {
            if certificates.is_empty() {
                return Err("TLS cannot be switched off without a restart (tls_cert)".to_owned());
            }
            let (tls, expiry) = (self.tls.clone(), self.expiry.clone());
            let swap: Swap = Box::new(move || {
                let used = certificates
                    .iter()
                    .map(|(_, certificate)| certificate.clone());
                // There is one, which is all that this asks for.
                if tls.replace(used).is_ok() {
                    show(&expiry, &certificates);
                }
            });
            Ok(swap)
        });
        Box::pin(ready(prepared))
    }
}

/// Names the certificates in the log and in the metric, and warns of those that expire soon.
fn show(expiry: &IntGaugeVec, certificates: &[(PathBuf, Certificate)]) {
    expiry.reset();
    let now = now();
    for (file, certificate) in certificates {
        let not_after = certificate.not_after();
        let file = file.display();
        let seconds = not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX);
        expiry.with_label_values(&[&file.to_string()]).set(seconds);
        let names = certificate.names().collect::<Vec<_>>().join(", ");
        let expires = httpdate::fmt_http_date(not_after);
        info!(%file, names, expires, "using a certificate");
        match not_after.duration_since(now) {
            Err(_) => {
                warn!(%file, expires, "the certificate has expired: renew it, then send SIGHUP")
            }
            Ok(left) if left < EXPIRES_SOON => {
                warn!(%file, expires, "the certificate expires soon: renew it, then send SIGHUP");
            }
            Ok(_) => {}
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "certificates expire by the host's clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}
