//! Builds the server from the configuration: the one place that turns options into calls of the
//! library. It starts nothing.

use roomcast::{BuildError, Cookie, Cors, Namespace, Parser, Server};

use super::{
    access, cluster,
    config::{Browser, Config, PacketParser, Protocol, Transport},
    rooms,
    settings::NamespaceName,
    values::{CookieName, Origin},
};

/// Builds the server that the configuration describes.
pub(crate) async fn server(config: &Config) -> Result<Server, BuildError> {
    let Protocol { transports, .. } = &config.protocol;
    let mut builder = Server::builder()
        .path(&config.protocol.path)
        .ping_interval(config.protocol.ping_interval.0)
        .ping_timeout(config.protocol.ping_timeout.0)
        .upgrade_timeout(config.protocol.upgrade_timeout.0)
        .connect_timeout(config.protocol.connect_timeout.0)
        .max_payload(config.protocol.max_payload.0)
        // Longer than the process waits, which then reports what it has not waited for.
        .drain_timeout(config.operation.drain_timeout.0.saturating_mul(2))
        .transports(
            transports.contains(&Transport::Polling),
            transports.contains(&Transport::Websocket),
        )
        .allow_eio3(config.protocol.allow_eio3.0)
        .http_compression(config.protocol.http_compression.0)
        .limits((&config.limits).into());
    if config.protocol.parser == PacketParser::Msgpack {
        builder = builder.parser(Parser::Msgpack);
    }
    if let Some(redis) = cluster::redis(&config.redis, &config.cluster) {
        builder = builder.redis_with(redis);
    }
    if let Some(files) = &config.protocol.client_files.0 {
        builder = builder.client_files(files.clone());
    }
    if let Some(cors) = cors(&config.browser) {
        builder = builder.cors(cors);
    }
    if let CookieName::Named(name) = &config.browser.cookie {
        builder = builder.cookie(Cookie {
            name: name.clone(),
            ..Cookie::default()
        });
    }
    for (name, access) in config.access() {
        let namespace = access::guard(Namespace::new(name.as_str()), &name, access);
        let section = config.settings.namespaces.get(&NamespaceName(name));
        let has_rooms = section
            .and_then(|section| section.client_rooms)
            .unwrap_or(config.protocol.client_rooms.0);
        builder = builder.namespace(if has_rooms {
            rooms::open(namespace)
        } else {
            namespace
        });
    }
    builder.build().await
}

/// Returns `None` if the list contains `off`, and allows any origin if it contains `*`.
fn cors(browser: &Browser) -> Option<Cors> {
    if browser.cors_origin.contains(&Origin::Off) {
        return None;
    }
    let mut cors = if browser.cors_origin.contains(&Origin::Any) {
        Cors::any()
    } else {
        Cors::origins(browser.cors_origin.iter().map(ToString::to_string))
    };
    if !browser
        .cors_allowed_headers
        .iter()
        .any(|header| header == "any")
    {
        cors = cors.allowed_headers(browser.cors_allowed_headers.iter().cloned());
    }
    Some(cors.credentials(browser.cors_credentials.0))
}
