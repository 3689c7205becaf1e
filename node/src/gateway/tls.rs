//! TLS of the ports: the certificates that the options name, their expiry, their reload.
//!
//! Files are read completely and checked with their keys before anything changes, at startup and by
//! SIGHUP. A key is never logged; errors name the file only.
//!
//! ```text
//!  start, SIGHUP ─► pairs of files ─► read, key fits? ─► used by new connections, shown in log and metric
//!                                         └─ no: start fails, or the certificates in force stay
//! ```
//!
//! Connections that exist keep the certificate with which they began, so a renewal disconnects no
//! client. The expiry is a metric, because a missing renewal is the one failure of TLS that can be
//! seen days before.

use std::{
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use clap::{Args, ValueEnum};
use prometheus::{IntGaugeVec, Opts};
use roomcast::{Certificate, Server, Tls, TlsVersion};
use tracing::{info, warn};

use super::{
    clock,
    config::Config,
    relay,
    reload::{Preparing, Reloadable, prepared},
    values::{self, OrOff, or_off},
};

/// The time before a certificate's expiry at which the log warns of it. Renewal is usual
/// a month before.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsOptions {
    /// TLS certificates of the port for clients: `off`, or PEM files separated by commas
    ///
    /// Each file begins with the server's certificate, and its chain follows. A client gets the
    /// certificate for the name that it requests, otherwise the first one. SIGHUP reloads the
    /// files.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    #[arg(default_value = "off", value_parser = or_off(values::file))]
    pub(crate) tls_cert: Vec<OrOff<PathBuf>>,

    /// Their private keys in the same order: PEM files, or `off` if the files of --tls-cert contain
    /// them
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    #[arg(default_value = "off", value_parser = or_off(values::file))]
    pub(crate) tls_key: Vec<OrOff<PathBuf>>,

    /// TLS certificates of the port for operators, and of the API's port if it has its own
    ///
    /// They have the form of --tls-cert, and SIGHUP reloads them. Processes of this
    /// machine may connect without TLS.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    #[arg(default_value = "off", value_parser = or_off(values::file))]
    pub(crate) internal_tls_cert: Vec<OrOff<PathBuf>>,

    /// Their private keys, as with --tls-key
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    #[arg(default_value = "off", value_parser = or_off(values::file))]
    pub(crate) internal_tls_key: Vec<OrOff<PathBuf>>,

    /// Oldest version of TLS that clients and operators may use
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

/// A port with certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// The one for clients.
    Public,
    /// The one for operators, and that of the API.
    Internal,
}

impl Port {
    /// The options of its certificates and their keys.
    fn options(self) -> [&'static str; 2] {
        match self {
            Self::Public => ["--tls-cert", "--tls-key"],
            Self::Internal => ["--internal-tls-cert", "--internal-tls-key"],
        }
    }
}

impl TlsOptions {
    /// Checks that options fit together.
    pub(crate) fn fits(&self) -> Result<(), String> {
        self.pairs(Port::Public)?;
        self.pairs(Port::Internal).map(drop)
    }

    /// The files of each certificate and its key. The error names options that do not fit together.
    fn pairs(&self, port: Port) -> Result<Vec<(PathBuf, PathBuf)>, String> {
        let named = |files: &[OrOff<PathBuf>]| {
            let files = files.iter().filter_map(|file| file.0.clone());
            files.collect::<Vec<_>>()
        };
        let (chains, keys) = match port {
            Port::Public => (named(&self.tls_cert), named(&self.tls_key)),
            Port::Internal => (
                named(&self.internal_tls_cert),
                named(&self.internal_tls_key),
            ),
        };
        // Tools that renew certificates often write both into one file.
        if keys.is_empty() {
            return Ok(chains.iter().cloned().zip(chains.clone()).collect());
        }
        if keys.len() != chains.len() {
            let [of_chains, of_keys] = port.options();
            return Err(format!(
                "{of_chains} names {} files and {of_keys} {}: each certificate needs its key, in \
                 the same order",
                chains.len(),
                keys.len()
            ));
        }
        Ok(chains.into_iter().zip(keys).collect())
    }

    /// Reads the certificates of a port, without effect. Empty if its TLS is off.
    fn read(&self, port: Port) -> Result<Vec<(PathBuf, Certificate)>, String> {
        let pairs = self.pairs(port)?.into_iter();
        let certificates = pairs.map(|(chain, key)| {
            let certificate = Certificate::from_files(&chain, &key);
            let certificate = certificate.map_err(|error| {
                let [of_chains, of_keys] = port.options();
                let (chain, key) = (chain.display(), key.display());
                format!(
                    "the certificate {chain} with the key {key} cannot be used: {error} \
                     (set with {of_chains} and {of_keys})"
                )
            })?;
            Ok((chain, certificate))
        });
        certificates.collect()
    }
}

/// Reads all certificates that the options name, to check them.
pub(crate) fn check(config: &Config) -> Result<(), String> {
    config.tls.read(Port::Public)?;
    config.tls.read(Port::Internal)?;
    relay::authorities(&config.relay).map(drop)
}

/// TLS of the ports that have certificates.
pub(crate) struct Ports {
    pub(crate) public: Option<Tls>,
    /// For the internal port and that of the API.
    pub(crate) internal: Option<Tls>,
    expiry: IntGaugeVec,
}

impl Ports {
    pub(crate) fn start(options: &TlsOptions) -> Result<Self, String> {
        let version = match options.tls_min_version {
            MinVersion::Tls12 => TlsVersion::V1_2,
            MinVersion::Tls13 => TlsVersion::V1_3,
        };
        let mut all = Vec::new();
        let mut tls = |port| {
            let certificates = options.read(port)?;
            if certificates.is_empty() {
                return Ok(None);
            }
            let tls = Tls::with_minimum(used(&certificates), version);
            all.extend(certificates);
            tls.map(Some).map_err(|error| error.to_string())
        };
        let (public, internal) = (tls(Port::Public)?, tls(Port::Internal)?);
        let opts = Opts::new(
            "roomcast_tls_certificate_not_after_seconds",
            "When a certificate expires, in seconds since 1970, by file.",
        );
        let expiry = IntGaugeVec::new(opts, &["file"]).map_err(|error| error.to_string())?;
        show(&expiry, &all);
        Ok(Self {
            public,
            internal,
            expiry,
        })
    }

    /// Adds the metric to those of the server.
    pub(crate) fn register(&self, server: &Server) -> Result<(), prometheus::Error> {
        if self.public.is_none() && self.internal.is_none() {
            return Ok(());
        }
        server.registry().register(Box::new(self.expiry.clone()))
    }

    /// Reads the certificates that replace those in use, if the port has TLS.
    fn replacement(
        tls: Option<&Tls>,
        port: Port,
        options: &TlsOptions,
    ) -> Result<Vec<(PathBuf, Certificate)>, String> {
        if tls.is_none() {
            return Ok(Vec::new());
        }
        let certificates = options.read(port)?;
        if certificates.is_empty() {
            let [option, _] = port.options();
            return Err(format!(
                "TLS cannot be switched off without a restart ({option})"
            ));
        }
        Ok(certificates)
    }
}

fn used(certificates: &[(PathBuf, Certificate)]) -> impl Iterator<Item = Certificate> {
    certificates
        .iter()
        .map(|(_, certificate)| certificate.clone())
}

impl Reloadable for Ports {
    /// Without TLS at the start, a port needs a restart for it.
    fn keys(&self) -> &'static [&'static str] {
        match (&self.public, &self.internal) {
            (None, None) => &[],
            (Some(_), None) => &["tls_cert", "tls_key"],
            (None, Some(_)) => &["internal_tls_cert", "internal_tls_key"],
            (Some(_), Some(_)) => &[
                "tls_cert",
                "tls_key",
                "internal_tls_cert",
                "internal_tls_key",
            ],
        }
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        let read = |tls: &Option<Tls>, port| Self::replacement(tls.as_ref(), port, &config.tls);
        prepared(read(&self.public, Port::Public).and_then(|public| {
            let internal = read(&self.internal, Port::Internal)?;
            let ports = [self.public.clone(), self.internal.clone()];
            let expiry = self.expiry.clone();
            Ok(move || {
                for (tls, certificates) in ports.into_iter().zip([&public, &internal]) {
                    if let Some(tls) = tls {
                        // Only the existence of a certificate is checked.
                        drop(tls.replace(used(certificates)));
                    }
                }
                show(&expiry, &[public, internal].concat());
            })
        }))
    }
}

/// Names the certificates in the log and in the metric, and warns of those that expire soon.
fn show(expiry: &IntGaugeVec, certificates: &[(PathBuf, Certificate)]) {
    // A file that is no longer used must not stay in the metric, where its expiry would alert.
    expiry.reset();
    let now = clock::unix_time();
    for (file, certificate) in certificates {
        let not_after = certificate.not_after();
        let file = file.display();
        let end = not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(end.as_secs()).unwrap_or(i64::MAX);
        expiry.with_label_values(&[&file.to_string()]).set(seconds);
        let names = certificate.names().collect::<Vec<_>>().join(", ");
        let expires = httpdate::fmt_http_date(not_after);
        info!(%file, names, expires, "using a certificate");
        match end.checked_sub(now) {
            None => {
                warn!(%file, expires, "the certificate has expired: renew it, then send SIGHUP")
            }
            Some(left) if left < EXPIRES_SOON => {
                warn!(%file, expires, "the certificate expires soon: renew it, then send SIGHUP");
            }
            Some(_) => {}
        }
    }
}
