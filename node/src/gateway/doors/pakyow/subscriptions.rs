//! Subscribing sockets that are connected, here or on another node, and pushing to channels.
//!
//! ```text
//!  subscribe ─► registry: stored; which nodes have sockets of the digest?
//!                  ├── this one ──► its sockets join
//!                  ├── others ────► they are asked, and confirm once theirs have joined
//!                  └── none ──────► the next socket of the digest joins when it connects
//! ```
//!
//! **Why the registry first.** A socket that connects at the same moment enters its
//! node and reads its channels in one step. If that step comes first, the node is a
//! holder and is asked. Otherwise the socket finds the subscription.
//!
//! **Why nodes are asked and not only notified.** The application renders the page after
//! its call, and pushes at once. A push that is published before the socket has joined
//! is lost, because pushes are in no log.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use roomcast::{
    Args, BroadcastOperator, EmitError, JoinError, Socket,
    pakyow::{Pattern, SOCKET_CHANNEL},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use tokio::time::timeout;

use super::{
    Failed, JOIN, LEAVE, PUSH_MATCHING, Pakyow,
    form::PUSH,
    registry::{BATCH, RegistryError},
};
use crate::gateway::{operations::binary, policy::USER_ROOMS};

/// How long other nodes may take to subscribe a socket.
/// It is within the timeout of a call, by default 10 s, so the caller receives the names of silent
/// nodes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The beginning of names that are not channels of an application.
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
    /// Rooms of users and private ones are not channels, so no pattern may reach them.
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
        self.change_elsewhere(JOIN, change, has_others).await
    }

    /// Unsubscribes a digest.
    pub(super) async fn unsubscribe(&self, change: &Change) -> Result<(), Failed> {
        let Change { digest, channels } = change;
        let holders = self.registry.remove(digest, channels).await?;
        let (has_own, has_others) = holders.at(&self.node());
        if has_own {
            self.leave_here(change).await;
        }
        self.change_elsewhere(LEAVE, change, has_others).await
    }

    /// Asks the nodes with sockets of the digest, if there are `others`, and notifies those of
    /// other clusters.
    async fn change_elsewhere(
        &self,
        event: &str,
        change: &Change,
        others: bool,
    ) -> Result<(), Failed> {
        if others {
            self.ask_others(event, change).await?;
        }
        if let Some(ruby) = &self.ruby {
            ruby.changed(&change.digest).await;
        }
        Ok(())
    }

    async fn ask_others(&self, event: &str, change: &Change) -> Result<(), Failed> {
        let servers = self.sockets_of_all()?.timeout(ANSWER_TIMEOUT);
        let asked = servers
            .server_side_emit_with_ack::<bool>(event, change)
            .await?;
        // Only the node with the socket can confirm.
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
    pub(super) async fn join_here(&self, change: &Change) -> Result<bool, Failed> {
        let _turn = self.turn(&change.digest).await;
        let sockets = self.held(&change.digest).sockets;
        if sockets.is_empty() {
            return Ok(false);
        }
        self.note(&change.digest, |known| {
            known.extend(change.channels.iter().cloned());
        });
        self.join(&sockets, &change.channels).await?;
        Ok(true)
    }

    /// Returns whether this node has sockets of the digest.
    pub(super) async fn leave_here(&self, change: &Change) -> bool {
        let _turn = self.turn(&change.digest).await;
        let sockets = self.held(&change.digest).sockets;
        for socket in &sockets {
            socket.leave(change.channels.as_slice());
        }
        self.note(&change.digest, |known| {
            known.retain(|channel| !change.channels.contains(channel));
        });
        !sockets.is_empty()
    }

    /// Joins channels. When this returns, the sockets receive the pushes of all nodes,
    /// and of Pakyow's processes.
    pub(super) async fn join(&self, sockets: &[Socket], channels: &[String]) -> Result<(), Failed> {
        for socket in sockets {
            match socket.join_confirmed(channels).await {
                Ok(()) | Err(EmitError::Join(JoinError::Disconnected)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(ruby) = &self.ruby {
            ruby.listen(channels).await?;
        }
        Ok(())
    }

    /// Returns the channels that a socket can join, because the registry may contain anything.
    pub(super) fn usable(&self, channels: Vec<String>) -> Vec<String> {
        let most = self.limits.room_name_bytes;
        let channels = channels.into_iter();
        let usable = channels.filter(|channel| (1..=most).contains(&channel.len()));
        usable.take(self.settings().max_channels).collect()
    }

    /// Pushes a message to channels. A socket gets it once for each channel that it is
    /// in, whichever of the names stand for it.
    pub(super) async fn push(&self, message: &RawValue, channels: &[String]) -> Result<(), Failed> {
        self.check_message(message)?;
        let names: BTreeSet<_> = channels.iter().cloned().collect();
        let (patterns, except): (Vec<_>, Vec<_>) = names
            .into_iter()
            .partition(|name| Pattern::new(name).is_some());
        // Names without a `*` go to the room directly, on any node. Only patterns require a check
        // of the rooms of every node.
        self.push_exactly(message, &except).await?;
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

    /// Checks a message that goes to other processes as text, and may be an event only there.
    fn check_message(&self, message: &RawValue) -> Result<(), Failed> {
        let args = push_args(message.get(), "")?;
        let checked = args.check_depth(self.limits.json_depth);
        checked.map_err(|error| Failed::Message(error.to_string()))
    }

    async fn push_exactly(&self, message: &RawValue, channels: &[String]) -> Result<(), Failed> {
        if let Some(ruby) = &self.ruby {
            let pushes = channels.iter();
            let pushes = pushes.map(|channel| ruby.push(channel, message.get()));
            for pushed in join_all(pushes).await {
                pushed.map_err(RegistryError::from)?;
            }
            return Ok(());
        }
        let mut emits = Vec::new();
        for channel in channels {
            let args = push_args(message.get(), channel)?;
            emits.push(self.sockets_of_all()?.to(channel).emit(PUSH, args));
        }
        // All are enqueued before the first is awaited.
        for emitted in join_all(emits).await {
            emitted?;
        }
        Ok(())
    }

    /// Pushes to the channels of this node that patterns stand for.
    /// Each node pushes to its own members, because only it knows its rooms.
    pub(super) async fn push_here(&self, push: &MatchingPush) -> Result<(), EmitError> {
        let namespace = self.sockets_of_all()?.local();
        let rooms = namespace.clone().rooms().await?.rooms;
        for room in rooms.iter().filter(|room| push.matches(room)) {
            // The private room of a socket is not a channel.
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
        self.check_message(message)?;
        if let Some(ruby) = &self.ruby {
            let pushed = ruby.push_to(digest, channel, message).await;
            return Ok(pushed.map_err(RegistryError::from)?);
        }
        let args = push_args(message.get(), channel)?;
        let room = format!("{SOCKET_CHANNEL}{digest}");
        self.sockets_of_all()?.to(&room).emit(PUSH, args).await?;
        Ok(())
    }

    pub(super) fn sockets_of_all(&self) -> Result<BroadcastOperator, EmitError> {
        let namespace = self.namespace();
        let server = self.server().map(|server| server.of(namespace));
        server.ok_or_else(|| EmitError::UnknownNamespace(namespace.into()))
    }

    /// Renews the digests of this node in Redis, and writes those again that it has lost.
    pub(super) async fn renew_always(self: Arc<Self>) {
        loop {
            let pause = self.settings().lifetime.0 / 3;
            // After a reload, the time that is left may be longer than the new lifetime.
            drop(timeout(pause, self.is_reloaded.notified()).await);
            for digest in self.digests() {
                // The others would fail in the same way. The next round begins after a
                // third of the lifetime, so two rounds may fail.
                if let Err(error) = self.renew(&digest).await {
                    tracing::warn!(%error, "subscriptions of Pakyow clients cannot be renewed");
                    break;
                }
            }
            if let Err(error) = self.registry.sweep().await {
                tracing::warn!(%error, "expired subscriptions of Pakyow clients stay for now");
            }
        }
    }

    async fn renew(&self, digest: &str) -> Result<(), Failed> {
        if self.registry.renew(digest, &self.node()).await? {
            return Ok(());
        }
        let _turn = self.turn(digest).await;
        self.restore(digest).await
    }

    /// Writes the subscriptions of a digest again, if it has sockets. They join what was
    /// subscribed since Redis has lost that they are connected.
    async fn restore(&self, digest: &str) -> Result<(), Failed> {
        let held = self.held(digest);
        if held.sockets.is_empty() {
            return Ok(());
        }
        let since = self.registry.open(digest, &self.node()).await?;
        let mut since = self.usable(since);
        since.retain(|channel| !held.channels.contains(channel));
        let channels: Vec<_> = held.channels.into_iter().collect();
        if !channels.is_empty() {
            self.registry.add(digest, &channels).await?;
        }
        if since.is_empty() {
            return Ok(());
        }
        self.note(digest, |known| known.extend(since.iter().cloned()));
        self.join(&held.sockets, &since).await
    }

    /// Carries out the changes that processes and other nodes have made to the subscriptions.
    pub(super) async fn read_again(&self, digests: &[String]) -> Result<(), Failed> {
        for digests in digests.chunks(BATCH) {
            let Some(lists) = self.registry.read(digests).await? else {
                return Ok(());
            };
            for (digest, channels) in digests.iter().zip(lists) {
                let channels: BTreeSet<_> = self.usable(channels).into_iter().collect();
                if channels != self.held(digest).channels {
                    self.follow(digest).await?;
                }
            }
        }
        Ok(())
    }

    /// Carries out the changes to the subscriptions of a digest. When this returns, they
    /// are in force here.
    pub(super) async fn follow(&self, digest: &str) -> Result<(), Failed> {
        let _turn = self.turn(digest).await;
        let held = self.held(digest);
        if held.sockets.is_empty() {
            return Ok(());
        }
        // If Redis has lost its data, the subscriptions were not changed.
        if !self.registry.renew(digest, &self.node()).await? {
            return self.restore(digest).await;
        }
        let read = self.registry.read(&[digest.to_owned()]).await?;
        let Some(channels) = read.and_then(|mut lists| lists.pop()) else {
            return Ok(());
        };
        let channels: BTreeSet<_> = self.usable(channels).into_iter().collect();
        let left: Vec<_> = held.channels.difference(&channels).cloned().collect();
        for socket in held.sockets.iter().filter(|_| !left.is_empty()) {
            socket.leave(left.as_slice());
        }
        let joined: Vec<_> = channels.difference(&held.channels).cloned().collect();
        self.note(digest, |known| *known = channels);
        match joined.is_empty() {
            true => Ok(()),
            false => self.join(&held.sockets, &joined).await,
        }
    }
}

/// The arguments of the event that carries a push. Binary may stand in it as the HTTP API has it.
pub(super) fn push_args(message: &str, channel: &str) -> Result<Args, Failed> {
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
