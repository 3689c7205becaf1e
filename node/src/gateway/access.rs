//! Controls connects to namespaces. Without a setting, no client may connect.
//!
//! Each way in is a variant of [`Access`] and an authorizer in [`guard`]. An open namespace has no
//! authorizer, so it costs nothing per client.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use clap::ValueEnum;
use prometheus::proto::Metric;
use roomcast::{
    EngineId, HandlerError, Handshake, Namespace, Recovering, Refused, Server, SocketId,
};
use serde::Deserialize;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{
    auth::Auth,
    doors::Granted,
    hooks::{Connecting, Hooks},
    log_client::{ClientNames, TARGET},
    session::SocketData,
    settings::RecoverySettings,
    user_limit::UserLimit,
};

/// Time between two looks for foreign servers. They come and go with deployments.
const LOOK: Duration = Duration::from_secs(10);

/// The rule for connecting to a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Access {
    /// Nobody
    Closed,
    /// Everybody
    Open,
    /// Clients with a valid token
    Jwt,
    /// Clients that the application accepts through a hook
    Hook,
    /// Clients with a valid token that the application accepts
    #[value(name = "jwt+hook")]
    #[serde(rename = "jwt+hook")]
    JwtHook,
}

impl Access {
    /// Whether clients have to show a token.
    pub(crate) fn asks_for_token(self) -> bool {
        matches!(self, Self::Jwt | Self::JwtHook)
    }

    /// Whether a hook decides.
    pub(crate) fn asks_hook(self) -> bool {
        matches!(self, Self::Hook | Self::JwtHook)
    }
}

/// The access of each namespace that is served.
pub(crate) type AccessTable = BTreeMap<String, Access>;

/// The parts that accept or refuse clients.
#[derive(Clone)]
pub(crate) struct Guards {
    pub(crate) auth: Option<Arc<Auth>>,
    pub(crate) hooks: Hooks,
    pub(crate) users: UserLimit,
    pub(crate) recovery: Option<RecoverySettings>,
}

impl Guards {
    /// Whether a client that comes back keeps the earlier decision of the hook.
    fn trusts_session(&self, recovering: Recovering) -> bool {
        recovering.0
            && self
                .recovery
                .as_ref()
                .is_some_and(|recovery| !recovery.connect_hook)
    }
}

/// Adds the authorizers that the access demands. A door accepts clients with an API key, which it
/// adds to the extensions of their requests.
pub(crate) fn guard(namespace: Namespace, name: &str, access: Access, guards: Guards) -> Namespace {
    match access {
        Access::Open => namespace,
        Access::Jwt | Access::Hook | Access::JwtHook => {
            let name = name.to_owned();
            namespace.authorize(move |handshake: Handshake, id: SocketId, connection: EngineId, recovering: Recovering| {
                let (name, guards) = (name.clone(), guards.clone());
                let granted = handshake.extension::<Granted>().cloned();
                async move {
                    // The door has checked its own keys, and knows the user.
                    if let Some(granted) = granted {
                        return Ok(SocketData::of_user(granted.user));
                    }
                    let trusts_session = guards.trusts_session(recovering);
                    let Guards { auth, hooks, users, recovery } = guards;
                    let data = match (auth, access.asks_for_token()) {
                        (_, false) => SocketData::default(),
                        (Some(auth), true) => auth.admit(&handshake).await?,
                        (None, true) => {
                            return Err(Refused::new("tokens cannot be verified").into());
                        }
                    };
                    // Before the hook is asked, so that a user beyond the limit costs
                    // no request.
                    data.take_place(&name, &users)?;
                    if !access.asks_hook() {
                        return Ok::<_, HandlerError>(data);
                    }
                    if trusts_session {
                        return Ok(data.of_returning(&name, &users));
                    }
                    let before = data.user.clone();
                    let client = Connecting {
                        handshake: &handshake,
                        recovering,
                        can_come_back: recovery.is_some(),
                    };
                    let decided = hooks.connect(&name, client, &id, data).await;
                    // The hook may have named the user only now.
                    let now = decided.as_ref().ok().and_then(|data| data.user.as_deref());
                    let user = now.or(before.as_deref());
                    let ids = [Some(id.as_str()), Some(connection.as_str()), user];
                    if hooks.followed().is_asking(&handshake, &ids) {
                        let (namespace, socket, handshake) = (&*name, &id, &handshake);
                        let client = ClientNames { namespace, socket, user, handshake };
                        let error = decided.as_ref().err();
                        debug!(target: TARGET, ?client, ?error, "the hook has decided about the connect");
                    }
                    let data = decided?;
                    // Again, because the hook may have named another user.
                    data.take_place(&name, &users)?;
                    Ok(data)
                }
            })
        }
        Access::Closed => {
            let refusal = refusal(name);
            namespace.authorize(move |handshake: Handshake| {
                let granted = handshake.extension::<Granted>().cloned();
                let decided = match granted {
                    Some(granted) => Ok(SocketData::of_user(granted.user)),
                    None => Err(Refused::new(refusal.clone())),
                };
                async move { decided }
            })
        }
    }
}

/// The text for clients and the log. A developer who forgot the setting sees it at the
/// first connect.
pub(crate) fn refusal(name: &str) -> String {
    format!(
        "nobody may connect to {name} yet: start the server with --access, or set access in \
         [namespaces.{name:?}] of its settings"
    )
}

/// Logs which namespaces are closed or open, because both may be a mistake.
pub(crate) fn announce(table: &AccessTable) {
    for (namespace, access) in table {
        match access {
            Access::Closed => warn!(namespace, "{}", refusal(namespace)),
            Access::Open => info!(namespace, "everybody may connect"),
            Access::Jwt => info!(namespace, "clients with a valid token may connect"),
            Access::Hook | Access::JwtHook => info!(namespace, "a hook authorizes clients"),
        }
    }
}

/// Warns when Node.js servers share the cluster with an open namespace. Clients that
/// `io.use` refuses there can connect here, and receive the same rooms. Runs as long as
/// the server does.
pub(crate) async fn watch_foreign_servers(server: Server, table: &AccessTable) {
    let open = table.iter().filter(|(_, access)| **access == Access::Open);
    let open: Vec<_> = open.map(|(name, _)| name.as_str()).collect();
    if open.is_empty() {
        return;
    }
    let namespaces = open.join(", ");
    let mut were_there = false;
    loop {
        let are_there = has_foreign_servers(&server);
        if are_there && !were_there {
            warn!(
                namespaces,
                "Node.js servers share this cluster while everybody may connect to these namespaces here: \
                 clients that io.use refuses there get in here; set access for them"
            );
        }
        were_there = are_there;
        sleep(LOOK).await;
    }
}

/// Whether the bus sees servers in the cluster that are not Roomcast's.
fn has_foreign_servers(server: &Server) -> bool {
    let families = server.registry().gather();
    let counts = families
        .iter()
        .filter(|family| family.name() == "roomcast_bus_nodes")
        .flat_map(|family| family.get_metric());
    let is_foreign = |metric: &&Metric| {
        metric
            .get_label()
            .iter()
            .any(|label| label.value() == "foreign")
    };
    let mut foreign = counts.filter(is_foreign);
    foreign.any(|metric| metric.get_gauge().get_value() > 0.0)
}
