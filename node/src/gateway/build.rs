//! Builds the server from the configuration: the one place that turns options into calls of the
//! library. It starts nothing.
//!
//! ```text
//!  Config ─► limits, protocol, Redis, CORS, origins ─► ServerBuilder
//!         ─► for each namespace: access, policy, hooks, rooms, presence, history ─► Namespace
//!                                        build (joins the cluster) ─► Server ─► run: parts start
//! ```
//!
//! It is called repeatedly while Redis is unreachable, so a failed call must leave no state: ports,
//! hooks and doors exist before and are only borrowed.

use std::{future::ready, sync::Arc};

use roomcast::{
    BuildError, Cookie, Cors, ForwardedHeader, Handshake, InvalidNetwork, Limits, Parser, Refused,
    Server, TrustedProxies,
};

use super::{
    access::Access,
    admin::View,
    auth::{Auth, KeyError},
    cluster,
    config::{Browser, Config, HeaderOfProxies, PacketParser, Protocol, Transport},
    demo::Demo,
    doors::{
        Granted,
        pakyow::{Pakyow, Visitor},
    },
    hooks::Hooks,
    log_client::FollowedClients,
    namespaces::{self, Parts},
    origins::Origins,
    policy::RoomPolicy,
    presence::Presence,
    reload::{Preparing, Reloadable, prepared},
    rooms::Rooms,
    user_limit::UserLimit,
    values::Origin,
};

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unbuilt {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Proxies(#[from] InvalidNetwork),
}

impl Unbuilt {
    /// Returns `true` if another attempt may succeed without a change of the configuration.
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(self, Self::Build(error) if error.is_temporary())
    }
}

/// A server, and the parts of it that are needed later.
pub(crate) struct Built {
    pub(crate) server: Server,
    /// The verifier of tokens, if any namespace asks for them.
    pub(crate) auth: Option<Arc<Auth>>,
    pub(crate) policies: Policies,
    pub(crate) users: UserLimit,
    pub(crate) followed: FollowedClients,
    pub(crate) presence: Presence,
}

/// The parts that exist before the server does, because its namespaces have their handlers.
pub(crate) struct Defined<'a> {
    pub(crate) hooks: &'a Hooks,
    pub(crate) view: &'a Arc<View>,
    /// The demo's page, if there is one.
    pub(crate) demo: Option<&'a Arc<Demo>>,
    pub(crate) pakyow: Option<&'a Arc<Pakyow>>,
    /// Where other nodes reach this one, if requests are relayed.
    pub(crate) address: Option<&'a str>,
    /// Whether the keys of tokens are fetched from their issuer.
    pub(crate) asks_issuer: bool,
}

/// Builds the server that the configuration describes.
pub(crate) async fn server(config: &Config, parts: &Defined<'_>) -> Result<Built, Unbuilt> {
    let &Defined {
        hooks,
        view,
        demo,
        pakyow,
        address,
        asks_issuer,
    } = parts;
    let Protocol { transports, .. } = &config.protocol;
    let mut limits = Limits::from(&config.limits);
    // Relayed requests need descriptors in addition to those of clients.
    limits.sockets = config.relay.sockets(limits.sockets);
    let mut builder = Server::builder()
        .path(&config.protocol.path)
        .ping_interval(config.protocol.ping_interval.0)
        .ping_timeout(config.protocol.ping_timeout.0)
        .upgrade_timeout(config.protocol.upgrade_timeout.0)
        .connect_timeout(config.protocol.connect_timeout.0)
        .max_payload(config.protocol.max_payload.0)
        // Longer than the process waits, which then reports the rest.
        .drain_timeout(config.operation.drain_timeout.0.saturating_mul(2))
        .transports(
            transports.contains(&Transport::Polling),
            transports.contains(&Transport::Websocket),
        )
        .allow_eio3(config.protocol.allow_eio3.0)
        .http_compression(config.protocol.http_compression.0)
        .trusted_proxies(trusted_proxies(config)?)
        .limits(limits);
    // These doors decide about a client before the server sees its request, and hand
    // the decision on with it.
    let doors = &config.settings.doors;
    if !doors.syncano.instances.is_empty() || !doors.channels.namespaces.is_empty() {
        builder = builder.keep_extension::<Granted>();
    }
    if pakyow.is_some() {
        builder = builder.keep_extension::<Arc<Visitor>>();
    }
    if config.protocol.parser == PacketParser::Msgpack {
        builder = builder.parser(Parser::Msgpack);
    }
    if let Some(mut redis) = cluster::redis(&config.redis, &config.cluster) {
        redis.address = address.map(str::to_owned);
        builder = builder.redis_with(redis);
    }
    if let Some(files) = &config.protocol.bundles.client_files.0 {
        builder = builder.client_files(files.clone());
    }
    if let Some(cors) = cors(&config.browser) {
        builder = builder.cors(cors);
    }
    if let Some(name) = &config.browser.cookie.0 {
        builder = builder.cookie(Cookie {
            name: name.clone(),
            ..Cookie::default()
        });
    }
    let origins = Origins::new(&config.browser.cors_origin);
    // Browsers do not apply CORS to WebSockets, so the origin is checked here for all
    // transports.
    builder = builder.allow_request(move |handshake: Handshake| {
        let (origin, host) = (handshake.header("origin"), handshake.header("host"));
        let is_allowed = origins.allow(origin.as_deref(), host.as_deref());
        ready(match is_allowed {
            true => Ok(()),
            false => Err(Refused::new("the origin is not allowed; see --cors-origin")),
        })
    });
    let auth = auth(config, asks_issuer).await?;
    let mut policies = Policies::default();
    let followed = hooks.followed().clone();
    let presence = Presence::new(&config.settings.presence);
    let users = UserLimit::new(config.limits.max_sockets_per_user.0);
    for (name, access) in config.access() {
        let rooms = Arc::new(Rooms::new(policy(config, &name, access)));
        let parts = Parts {
            access,
            auth: auth.clone(),
            hooks: hooks.clone(),
            users: users.clone(),
            rooms: has_rooms(config, &name).then(|| Arc::clone(&rooms)),
            presence: presence.of(&name).cloned(),
            demo: demo.cloned(),
            pakyow: pakyow.filter(|door| door.namespace() == name).cloned(),
            history: config.history(&name),
            journal: config.journal(&name),
            recovery: config.recovery(&name),
        };
        policies.0.push((name.clone(), access, rooms));
        let mut namespace = namespaces::define(&name, parts);
        if let Some(history) = config.settings.doors.syncano.history_of(&name) {
            namespace = namespace.history(history);
        }
        let namespace = presence.with_messages(&name, view.with_statuses(namespace));
        builder = builder.namespace(namespace);
    }
    let server = builder.build().await?;
    // Only now, because its tasks ask the cluster and would outlive a failed build.
    if let Some(auth) = &auth {
        auth.start(&server);
    }
    Ok(Built {
        server,
        auth,
        policies,
        users,
        followed,
        presence,
    })
}

fn trusted_proxies(config: &Config) -> Result<TrustedProxies, InvalidNetwork> {
    let proxies = TrustedProxies::new(config.trusted_proxies())?;
    Ok(proxies.header(match config.listen.forwarded_header {
        HeaderOfProxies::XForwardedFor => ForwardedHeader::XForwardedFor,
        HeaderOfProxies::Forwarded => ForwardedHeader::Forwarded,
    }))
}

/// Reads the keys if any namespace requires tokens.
async fn auth(config: &Config, asks_issuer: bool) -> Result<Option<Arc<Auth>>, KeyError> {
    let asks = config.access().into_iter();
    let asks = asks.filter(|(_, access)| access.asks_for_token());
    let namespaces: Vec<_> = asks.map(|(name, _)| name).collect();
    if namespaces.is_empty() {
        return Ok(None);
    }
    let auth = Auth::new(config.settings.jwt.clone(), namespaces, asks_issuer).await?;
    Ok(Some(auth))
}

/// Whether Socket.IO clients of a namespace may use rooms by themselves, by its section
/// of the file or the options for all namespaces.
fn has_rooms(config: &Config, name: &str) -> bool {
    let section = config.settings.namespace(name);
    let has_rooms = section.and_then(|section| section.client_rooms);
    has_rooms.unwrap_or(config.protocol.client_rooms.0)
}

/// The room policy of a namespace.
fn policy(config: &Config, name: &str, access: Access) -> RoomPolicy {
    let section = config.settings.namespace(name);
    let policy = section.and_then(|section| section.rooms.clone());
    policy.unwrap_or_else(|| match access {
        Access::Open => RoomPolicy::open(),
        // Clients that must authenticate may use only rooms that the settings or tokens name.
        _ => RoomPolicy::default(),
    })
}

/// The rooms of each namespace. The access is the one in force, because a
/// reload does not replace it.
#[derive(Clone, Default)]
pub(crate) struct Policies(Vec<(String, Access, Arc<Rooms>)>);

impl Policies {
    /// The room policy of a namespace, as its clients see it.
    pub(crate) fn of(&self, namespace: &str) -> Option<&Arc<Rooms>> {
        let mut all = self.0.iter();
        all.find(|(name, ..)| name == namespace)
            .map(|(.., rooms)| rooms)
    }
}

impl Reloadable for Policies {
    fn keys(&self) -> &'static [&'static str] {
        &["namespaces.*.rooms"]
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        let policies = self.0.iter().map(|(name, access, rooms)| {
            let policy = policy(config, name, *access);
            (Arc::clone(rooms), policy)
        });
        let policies: Vec<_> = policies.collect();
        prepared(Ok(move || {
            for (rooms, policy) in policies {
                rooms.set_policy(policy);
            }
        }))
    }
}

/// Returns `None` if the list contains `off`, and allows any origin if it contains `*`.
pub(crate) fn cors(browser: &Browser) -> Option<Cors> {
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
