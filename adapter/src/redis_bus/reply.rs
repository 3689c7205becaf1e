//! Where the answer to one question goes.

use std::sync::Arc;

use roomcast_protocol::{
    args::Args,
    id::SocketId,
    question::Answer,
    wire::{Asker, Reply},
};

use super::{outgoing::Outgoing, subscriptions::AttachedNamespace};
use crate::bus::Progress;

/// The address of an answer: the asker, the question, and the channel.
pub(super) struct ReplyAddress {
    pub(super) outgoing: Arc<Outgoing>,
    pub(super) namespace: Arc<AttachedNamespace>,
    pub(super) asker: Asker,
    /// The id of the question.
    pub(super) id: Box<str>,
}

impl ReplyAddress {
    /// Sends the whole answer.
    pub(super) fn finish(&self, answer: Answer) {
        self.send(&Reply::Answer(answer));
    }

    fn send(&self, reply: &Reply) {
        let outgoing = &self.outgoing;
        let namespace = &*self.namespace.name;
        let (asker, id, node) = (&self.asker, &self.id, &outgoing.node);
        match outgoing.wire.response(namespace, asker, id, node, reply) {
            // It is enqueued after earlier messages. Whether it arrives is the asker's to
            // notice.
            Ok(Some(publication)) => drop(outgoing.publish(publication)),
            // The asker does not expect this part of an answer.
            Ok(None) => {}
            Err(error) => {
                let error = outgoing.invalid(&error);
                outgoing.warnings.warn(|suppressed| {
                    tracing::warn!(namespace, %error, suppressed, "an answer was not sent");
                });
            }
        }
    }
}

/// A Node server expects the parts of an answer as they arrive.
impl Progress for ReplyAddress {
    fn asked(&self, sockets: usize) {
        self.send(&Reply::Asked(sockets));
    }

    fn acknowledged(&self, _: &SocketId, args: &Args) {
        self.send(&Reply::Acknowledged(args.clone()));
    }
}
