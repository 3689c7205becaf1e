//! Revocations in the whole cluster: sent to all nodes, learned from those that were
//! there before, and carried out on the sockets of this node.

use std::{sync::Arc, time::Duration};

use roomcast::{EmitError, Server};

use super::Auth;
use crate::gateway::{
    auth::{
        revocations::{Revocation, TooMany},
        user::User,
    },
    session,
};

/// The event between nodes that carries revocations.
pub(super) const REVOKE: &str = "roomcast:revoke";

/// The question of a node that has just started, or has missed messages.
pub(super) const REVOCATIONS: &str = "roomcast:revocations";

/// Time between two questions for the revocations of other nodes, until all have responded.
const RETRY: Duration = Duration::from_secs(5);

impl Auth {
    /// Remembers revocations and disconnects the sockets of this node that they concern.
    pub(super) fn take(&self, revocations: &[Revocation]) -> Result<(), TooMany> {
        let now = (self.now)();
        let mut taken = Ok(());
        {
            let mut known = self.revocations.lock();
            for revocation in revocations {
                let added = known.add(revocation, now);
                taken = taken.and(added);
            }
        }
        if let Err(error) = &taken {
            tracing::error!(%error, "a revocation is not remembered: its token is accepted at the next connect");
        }
        let sockets: Vec<_> = self.due.lock().sockets.values().cloned().collect();
        for socket in sockets {
            let user = session::of(&socket).map(|session| session.user());
            let is_concerned = |user: &Arc<User>| revocations.iter().any(|one| one.concerns(user));
            if user.as_ref().is_some_and(is_concerned) {
                self.end(&socket, "token:revoked");
            }
        }
        taken
    }

    /// Asks the other nodes for their revocations, until all have responded: at the
    /// start and again after messages were lost.
    pub(super) async fn learn_revocations(&self, server: &Server) {
        let mut was_flowing = false;
        let mut is_complete = false;
        loop {
            let is_flowing = server.health() == roomcast::Health::Flowing;
            is_complete &= was_flowing;
            if is_flowing && !is_complete {
                is_complete = self.ask_for_revocations(server).await;
            }
            was_flowing = is_flowing;
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn ask_for_revocations(&self, server: &Server) -> bool {
        let mut is_complete = true;
        for namespace in &self.namespaces {
            let asked = server.of(namespace);
            let asked = asked.server_side_emit_with_ack::<Vec<Revocation>>(REVOCATIONS, ());
            let Ok(answers) = asked.await else {
                is_complete = false;
                continue;
            };
            // Node.js servers do not respond, and do not support revocations.
            is_complete &= answers.silent_nodes.iter().all(|node| node == "foreign");
            for revocations in &answers.answers {
                drop(self.take(revocations));
            }
        }
        is_complete
    }
}

impl Auth {
    /// The namespaces that require tokens; revocations apply to all of them.
    pub(crate) fn namespaces(&self) -> &[String] {
        &self.namespaces
    }

    /// Revokes all tokens of a user that were issued until now, and disconnects the sockets that
    /// connected with one, in the whole cluster.
    pub(crate) async fn revoke_user(&self, server: &Server, user: &str) -> Result<(), RevokeError> {
        let now = (self.now)();
        let parts = self.parts();
        let settings = &parts.settings;
        let lifetime = settings.max_lifetime.as_secs() + 2 * settings.leeway.as_secs();
        let revocation = Revocation::User {
            user: user.to_owned(),
            issued_until: now,
            remember_until: now.saturating_add(lifetime),
        };
        self.revoke(server, revocation).await
    }

    /// Revokes one token by its `jti`. `expires` is the end of the token in seconds since
    /// 1970; without it, the longest lifetime of tokens counts.
    pub(crate) async fn revoke_token(
        &self,
        server: &Server,
        id: &str,
        expires: Option<u64>,
    ) -> Result<(), RevokeError> {
        let parts = self.parts();
        let leeway = parts.settings.leeway.as_secs();
        let latest = (self.now)().saturating_add(parts.settings.max_lifetime.as_secs() + leeway);
        let expires = expires.map_or(latest, |expires| expires.min(latest));
        let revocation = Revocation::Token {
            id: id.to_owned(),
            remember_until: expires.saturating_add(leeway),
        };
        self.revoke(server, revocation).await
    }

    async fn revoke(&self, server: &Server, revocation: Revocation) -> Result<(), RevokeError> {
        let list = vec![revocation];
        self.take(&list)?;
        // One namespace that other nodes have, too, would do. Nodes may be configured differently.
        let mut sent = Ok(());
        for namespace in &self.namespaces {
            let namespace = server.of(namespace);
            if let Err(error) = namespace.server_side_emit(REVOKE, (&list,)).await {
                sent = Err(error);
            }
        }
        Ok(sent?)
    }
}

/// Why a revocation may not be in force in the whole cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RevokeError {
    /// It is in force for connected clients of this node only.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// It is in force on this node. Others may not have been reached.
    #[error(transparent)]
    Emit(#[from] EmitError),
}
