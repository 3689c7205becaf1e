//! What comes over the bus: looked at, decoded, and carried out, one message after the other.
//!
//! Runs on the task of the subscriber link, so order is the order of arrival. Most of what is not for
//! this node is told by the name of its channel and dropped before it is decoded.

use std::sync::Arc;

use roomcast_protocol::{
    channel::{Kind, Place},
    wire::Incoming,
};

use super::{Shared, namespaces::Attached, respond};
use crate::bus::Listener;

/// The readings of a channel's name that are tried: one per `#` in it.
pub(super) const MAX_PLACES: usize = 32;

/// Why a message was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dropped {
    UnknownNamespace,
    /// Somebody else was asked and is answered: no reason to worry.
    NotAsked,
    Unexpected,
    NoMember,
    Own,
    Undecodable,
}

impl Shared {
    /// A message has arrived.
    pub(super) fn receive(self: &Arc<Self>, channel: &[u8], payload: &[u8]) {
        self.metrics.messages_received.inc();
        self.metrics.received_bytes.inc_by(payload.len() as u64);
        let Ok(channel) = std::str::from_utf8(channel) else {
            self.dropped(Dropped::UnknownNamespace);
            return;
        };
        let mut why = Dropped::UnknownNamespace;
        for place in self.wire.channels().places(channel).take(MAX_PLACES) {
            let Some(attached) = self.namespaces.get(place.namespace) else {
                continue;
            };
            match self.receive_in(&attached, &place, payload) {
                Ok(()) => return,
                Err(dropped) => why = why.max(dropped),
            }
        }
        self.dropped(why);
    }

    fn receive_in(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        place: &Place<'_>,
        payload: &[u8],
    ) -> Result<(), Dropped> {
        let listener = attached.listener.upgrade();
        let listener = listener.ok_or(Dropped::UnknownNamespace)?;
        let uid = attached.uid.as_str();
        match (place.kind, place.rest) {
            (Kind::Broadcast, Some(room)) if room != uid && !listener.has_room(room) => {
                return Err(Dropped::NoMember);
            }
            (Kind::Request, _) if self.turnover.is_second_copy(payload) => {
                return Err(Dropped::NotAsked);
            }
            // Whoever waits for nothing does not read what others are answered.
            (Kind::Response, _) if self.asking.is_idle() => return Err(Dropped::NotAsked),
            _ => {}
        }
        if attached.echo.is_own(payload) {
            return Err(Dropped::Own);
        }
        let heard = self.wire.read(&attached.namespace, place.kind, payload);
        let heard = heard.map_err(|error| {
            tracing::debug!(namespace = &*attached.namespace, %error, "undecodable message");
            Dropped::Undecodable
        })?;
        self.carry_out(attached, listener, place, heard)
    }

    fn carry_out(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        listener: Arc<dyn Listener>,
        place: &Place<'_>,
        heard: Incoming,
    ) -> Result<(), Dropped> {
        let uid = attached.uid.as_str();
        match heard {
            Incoming::Message { message, confirm } => {
                let sockets = listener.receive(&message);
                if let Some(id) = confirm {
                    attached.reached.lock().note(&id, sockets);
                }
            }
            Incoming::Question {
                asker,
                id,
                question,
            } => {
                if asker.uid.as_deref() == Some(uid) {
                    return Err(Dropped::Own);
                }
                respond::respond(self, attached, listener, asker, &id, question);
            }
            Incoming::Response { id, node, reply } => {
                if !self.asking.hear(&id, node, reply) {
                    let is_own_channel = place.rest == Some(uid);
                    return Err(if is_own_channel {
                        Dropped::Unexpected
                    } else {
                        Dropped::NotAsked
                    });
                }
            }
            Incoming::Ignored => return Err(Dropped::UnknownNamespace),
        }
        Ok(())
    }

    pub(super) fn dropped(&self, why: Dropped) {
        let dropped = &self.metrics.dropped;
        match why {
            Dropped::UnknownNamespace => dropped.unknown_namespace.inc(),
            Dropped::NotAsked => {}
            Dropped::Unexpected => dropped.unexpected.inc(),
            Dropped::NoMember => dropped.no_member.inc(),
            Dropped::Own => dropped.own.inc(),
            Dropped::Undecodable => dropped.undecodable.inc(),
        }
    }
}
