//! Subscribing sockets that are connected, here or on another node, and pushing to channels.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use roomcast::{
    Args, BroadcastOperator, EmitError, JoinError,
    pakyow::{Pattern, SOCKET_CHANNEL},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use tokio::time::sleep;

use super::{Failed, JOIN, LEAVE, PUSH_MATCHING, Pakyow, form::PUSH, registry::Holders};
use crate::gateway::{operations::binary, policy::USER_ROOMS};

/// How long other nodes may take to subscribe a socket.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The beginning of names that are no channels of an application.
pub(super) const RESERVED: &str = "pw:";

/// A change of the subscriptions of connected sockets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Change {
    pub(super) digest: String,
    pub(super) channels: Vec<String>,
}

/// A push to channels that only the nodes with members know.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MatchingPush {
    patterns: Vec<String>,
    /// Channels that get the push anyway.
    except: Vec<String>,
    /// JSON.
    message: String,
}

impl MatchingPush {
    fn matches(&self, room: &str) -> bool {
        let is_channel = !room.starts_with(RESERVED) && !room.starts_with(USER_ROOMS);
        let mut patterns = self.patterns.iter().filter_map(|name| Pattern::new(name));
        is_channel
            && !self.except.iter().any(|channel| channel == room)
            && patterns.any(|pattern| pattern.matches(room))
    }
}

impl Pakyow {
    /// Subscribes a digest. When this returns, pushes of any node reach its sockets.
    pub(super) async fn subscribe(&self, change: &Change) -> Result<(), Failed> {
        let holders = self.registry.add(&change.digest, &change.channels).await?;
        let (has_own, has_others) = holders.at(&self.node());
        if has_own {
            self.join_here(change).await?;
        }
        if has_others {
            self.ask_others(JOIN, change).await?;
        }
        Ok(())
    }

    /// Unsubscribes a digest.
    pub(super) async fn unsubscribe(&self, change: &Change) -> Result<(), Failed> {
        let holders: Holders = self
            .registry
            .remove(&change.digest, &change.channels)
            .await?;
        let (has_own, has_others) = holders.at(&self.node());
        if has_own {
            self.leave_here(change).await;
        }
        if has_others {
            self.ask_others(LEAVE, change).await?;
        }
        Ok(())
    }

    async fn ask_others(&self, event: &str, change: &Change) -> Result<(), Failed> {
        let servers = self.sockets_of_all()?.timeout(ANSWER_TIMEOUT);
        let asked = servers
            .server_side_emit_with_ack::<bool>(event, change)
            .await?;
        // Without an answer of the node that has the socket, nobody knows.
        if asked.answers.contains(&true) || asked.silent_nodes.is_empty() && asked.undecodable == 0
        {
            return Ok(());
        }
        let silent = asked.silent_nodes.join(", ");
        Err(Failed::Silent(match silent.is_empty() {
            true => "one of them has failed".to_owned(),
            false => silent,
        }))
    }

    /// Returns whether this node has sockets of the digest.
    pub(super) async fn join_here(&self, change: &Change) -> Result<bool, EmitError> {
        let _turn = self.turn(&change.digest).await;
        let sockets = self.sockets.lock().get(&change.digest).cloned();
        let sockets = sockets.unwrap_or_default();
        for socket in &sockets {
            match socket.join_confirmed(change.channels.as_slice()).await {
                Ok(()) | Err(EmitError::Join(JoinError::Disconnected)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(!sockets.is_empty())
    }

    /// Returns whether this node has sockets of the digest.
    pub(super) async fn leave_here(&self, change: &Change) -> bool {
        let _turn = self.turn(&change.digest).await;
        let sockets = self.sockets.lock().get(&change.digest).cloned();
        let sockets = sockets.unwrap_or_default();
        for socket in &sockets {
            socket.leave(change.channels.as_slice());
        }
        !sockets.is_empty()
    }

    /// Pushes a message to channels. A socket gets it once for each channel that it is in, whichever
    /// of the names stand for it.
    pub(super) async fn push(&self, message: &RawValue, channels: &[String]) -> Result<(), Failed> {
        let names: BTreeSet<_> = channels.iter().cloned().collect();
        let (patterns, except): (Vec<_>, Vec<_>) = names
            .into_iter()
            .partition(|name| Pattern::new(name).is_some());
        let mut emits = Vec::new();
        for channel in &except {
            let args = push_args(message.get(), channel)?;
            emits.push(self.sockets_of_all()?.to(channel).emit(PUSH, args));
        }
        // All are enqueued before the first is awaited.
        for emitted in join_all(emits).await {
            emitted?;
        }
        if patterns.is_empty() {
            return Ok(());
        }
        let push = MatchingPush {
            patterns,
            except,
            message: message.get().to_owned(),
        };
        let others = self.sockets_of_all()?;
        let (here, there) = tokio::join!(
            self.push_here(&push),
            others.server_side_emit(PUSH_MATCHING, &push)
        );
        here?;
        there?;
        Ok(())
    }

    /// Pushes to the channels of this node that patterns stand for.
    pub(super) async fn push_here(&self, push: &MatchingPush) -> Result<(), EmitError> {
        let namespace = self.sockets_of_all()?.local();
        let rooms = namespace.clone().rooms().await?.rooms;
        for room in rooms.iter().filter(|room| push.matches(room)) {
            // The private room of a socket is no channel.
            if namespace.socket(room).is_none()
                && let Ok(args) = push_args(&push.message, room)
            {
                namespace.clone().to(room).emit(PUSH, args).await?;
            }
        }
        Ok(())
    }

    /// Pushes a message to the sockets of a digest alone.
    pub(super) async fn push_to(
        &self,
        digest: &str,
        channel: &str,
        message: &RawValue,
    ) -> Result<(), Failed> {
        let args = push_args(message.get(), channel)?;
        let room = format!("{SOCKET_CHANNEL}{digest}");
        self.sockets_of_all()?.to(&room).emit(PUSH, args).await?;
        Ok(())
    }

    fn sockets_of_all(&self) -> Result<BroadcastOperator, EmitError> {
        let namespace = self.namespace();
        let server = self.server().map(|server| server.of(namespace));
        server.ok_or_else(|| EmitError::UnknownNamespace(namespace.into()))
    }

    /// Keeps the digests of this node in Redis, and puts those back that it has lost.
    pub(super) async fn renew_always(self: Arc<Self>) {
        loop {
            sleep(self.settings.lifetime.0 / 3).await;
            let digests: Vec<_> = self.sockets.lock().keys().cloned().collect();
            for digest in digests {
                if let Err(error) = self.renew(&digest).await {
                    tracing::warn!(%error, "subscriptions of Pakyow clients cannot be renewed");
                    break;
                }
            }
        }
    }

    async fn renew(&self, digest: &str) -> Result<(), super::RegistryError> {
        if self.registry.renew(digest).await? {
            return Ok(());
        }
        let _turn = self.turn(digest).await;
        let sockets = self.sockets.lock().get(digest).cloned();
        let Some(sockets) = sockets else {
            return Ok(());
        };
        let rooms = sockets.iter().flat_map(|socket| {
            let own = socket.id().as_str();
            let rooms = socket.rooms().into_iter();
            rooms.filter(move |room| room != own && !room.starts_with(RESERVED))
        });
        let rooms: BTreeSet<_> = rooms.collect();
        let rooms: Vec<_> = rooms.into_iter().collect();
        self.registry.open(digest, &self.node()).await?;
        if !rooms.is_empty() {
            self.registry.add(digest, &rooms).await?;
        }
        Ok(())
    }
}

/// The arguments of the event that carries a push. Binary may stand in it as the HTTP API has it.
fn push_args(message: &str, channel: &str) -> Result<Args, Failed> {
    let channel = Value::from(channel);
    let json = format!(r#"[{{"payload":{message},"channel":{channel}}}]"#);
    let json: &RawValue =
        serde_json::from_str(&json).map_err(|error| Failed::Message(error.to_string()))?;
    binary::from_json(json).map_err(Failed::Message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_stands_for_channels_only_and_not_for_those_that_get_the_push_anyway() {
        let push = MatchingPush {
            patterns: vec!["*".to_owned(), "a;*".to_owned()],
            except: vec!["news".to_owned()],
            message: "1".to_owned(),
        };
        assert!(push.matches("chat") && push.matches("a;b"));
        for room in ["news", "b;c", "pw:socket:7a1c", "user:ada"] {
            assert!(!push.matches(room), "{room}");
        }
    }

    #[test]
    fn a_payload_of_any_kind_arrives_as_it_was() {
        for message in [
            "null",
            "[1,[2]]",
            r#"{"key":"x","channel":"y"}"#,
            "\"a\\\"b\"",
            "1.5",
        ] {
            let args = push_args(message, "a\"b").unwrap();
            let wanted = format!(r#"[{{"payload":{message},"channel":"a\"b"}}]"#);
            assert_eq!(args.json(), wanted);
        }
    }
}
