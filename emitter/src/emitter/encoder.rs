//! Messages of an emitter as commands.
//!
//! The payload is written by `roomcast-protocol`; here it becomes the last word of a PUBLISH. It is
//! first written to a buffer because RESP puts the length of a word in front of it.

use std::sync::Arc;

use roomcast_protocol::{
    args::Args,
    channel::{Dialect, EMITTER_UID},
    message::{Broadcast, Message},
    target::Target,
    wire::{Entry, Publication, Wire},
};

use crate::{error::EmitError, recent_joins::RecentJoins, redis::Commands};

/// Encodes messages in the dialect of the cluster.
pub(crate) struct Encoder {
    pub(crate) recent_joins: RecentJoins,
    pub(crate) wire: Arc<Wire>,
    pub(crate) is_sharded: bool,
    /// About how many entries the stream has at most, in the streams dialect.
    pub(crate) stream_max_len: usize,
}

impl Encoder {
    pub(super) fn encode(
        &self,
        namespace: &str,
        message: &Message,
    ) -> Result<Publication, EmitError> {
        check_namespace(namespace)?;
        let mut publication = self.wire.message(namespace, EMITTER_UID, message, None)?;
        self.redirect(namespace, message, &mut publication);
        Ok(publication)
    }

    /// Moves a broadcast to the channel that all nodes receive, if sockets have just been commanded
    /// to join its room.
    pub(super) fn redirect(
        &self,
        namespace: &str,
        message: &Message,
        publication: &mut Publication,
    ) {
        let channels = self.wire.channels();
        if let Some(channel) = self.recent_joins.channel(channels, namespace, message) {
            publication.channel = channel;
        }
    }

    /// Whether messages are entries of a stream.
    pub(super) fn has_stream(&self) -> bool {
        self.wire.channels().dialect() == Dialect::Streams
    }

    /// The words of the command that appends a message to the stream.
    pub(super) fn entry(
        &self,
        namespace: &str,
        message: &Message,
        confirm: Option<&str>,
    ) -> Result<Vec<Vec<u8>>, EmitError> {
        check_namespace(namespace)?;
        let entry = self.wire.entry(namespace, EMITTER_UID, message, confirm)?;
        Ok(self.append(&entry))
    }

    /// The words of the command that appends an entry.
    pub(super) fn append(&self, entry: &Entry<'_>) -> Vec<Vec<u8>> {
        let max_len = self.stream_max_len.to_string();
        let stream = self.wire.channels().stream();
        let head = ["XADD", stream, "MAXLEN", "~", &max_len, "*"];
        let fields = entry.fields().flat_map(|(name, value)| [name, value]);
        let words = head.into_iter().chain(fields);
        words.map(|word| word.as_bytes().to_vec()).collect()
    }

    /// Appends the command that publishes a message.
    pub(super) fn write_message(
        &self,
        commands: &mut Commands,
        namespace: &str,
        message: &Message,
    ) -> Result<(), EmitError> {
        if self.has_stream() {
            commands.push(&self.entry(namespace, message, None)?);
        } else {
            let publication = self.encode(namespace, message)?;
            self.write(commands, &publication.channel, &publication.payload);
        }
        Ok(())
    }

    /// Appends the command that publishes a payload.
    pub(super) fn write(&self, commands: &mut Commands, channel: &str, payload: &[u8]) {
        commands.push_publish(self.is_sharded, &[channel], payload);
    }

    /// Appends the command for a broadcast; a batch has many of them: no message is built for each.
    /// `payload` is memory to work with.
    pub(super) fn write_broadcast(
        &self,
        commands: &mut Commands,
        namespace: &str,
        broadcast: (&Target, &str, &Args),
        payload: &mut Vec<u8>,
    ) -> Result<(), EmitError> {
        if self.has_stream() {
            let (target, event, args) = broadcast;
            let broadcast = Broadcast {
                target: target.clone(),
                event: event.into(),
                args: args.clone(),
            };
            let message = Message::Broadcast(broadcast);
            return self.write_message(commands, namespace, &message);
        }
        check_namespace(namespace)?;
        payload.clear();
        let wire = &self.wire;
        wire.write_broadcast(payload, namespace, EMITTER_UID, broadcast)?;
        let channels = wire.channels();
        let redirected = self
            .recent_joins
            .channel_of(channels, namespace, broadcast.0);
        let channel = match &redirected {
            Some(channel) => [channel, "", "", "", "", ""],
            None => channels.parts_for_target(namespace, broadcast.0),
        };
        commands.push_publish(self.is_sharded, &channel, payload);
        Ok(())
    }
}

pub(super) fn check_namespace(namespace: &str) -> Result<(), EmitError> {
    if namespace.starts_with('/') {
        Ok(())
    } else {
        Err(EmitError::NamespaceWithoutSlash(namespace.into()))
    }
}
