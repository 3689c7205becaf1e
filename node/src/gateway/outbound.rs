//! Connections that the program opens to web servers: backends of hooks, other nodes, and
//! a balancer that is checked.

mod connections;
mod http1;
mod response;
mod stream;

use std::{error::Error, time::Duration};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;

pub(crate) use self::{
    connections::Http1Error,
    http1::Http1Client,
    response::ResponseError,
    stream::{Connector, PeerTls},
};

/// HTTP versions that a connection may negotiate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versions {
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/1.1 and HTTP/2.
    All,
}

/// Opens connections with and without TLS. Trusts the certificate authorities of this host.
pub(crate) fn connector(
    connect_timeout: Duration,
    versions: Versions,
) -> Result<HttpsConnector<HttpConnector>, String> {
    let connector = tcp_connector(connect_timeout);
    let builder = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
        .map_err(|error| format!("the certificates of this host cannot be read: {error}"))?
        .https_or_http();
    Ok(match versions {
        Versions::Http1 => builder.enable_http1().wrap_connector(connector),
        Versions::All => builder.enable_all_versions().wrap_connector(connector),
    })
}

/// Opens connections without TLS.
pub(crate) fn tcp_connector(connect_timeout: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.enforce_http(false);
    connector
}

/// The whole chain of causes. The outermost error of a client states only that it cannot connect.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
