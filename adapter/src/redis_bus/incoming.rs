//! The messages that arrive from Redis: checked, decoded, and carried out, one message after the
//! other.
//!
//! ```text
//! channel name ─► namespace, kind, room ─► room without a member here?   dropped
//!                                       ─► own message, by first bytes?  dropped
//!                                       ─► not signed, while others are? dropped
//!                                       ─► decode ─► message   ─► listener
//!                                                 ─► question  ─► `Questions::answer`
//!                                                 ─► answer    ─► `Questions::receive`
//! ```
//!
//! All of it runs on the task of the subscriber link, so that the order is the order of arrival.
//! Most messages that do not concern this node are recognized by the name of their channel and
//! dropped before they are decoded.
//!
//! **Why by the name first.** A cluster has messages for rooms that have members on one
//! node only. Decoding costs much more than a check of the channel, so the order of checks is that
//! of their costs: name, room, own bytes, size, seal, decoding.
//!
//! **Why several readings.** `#` separates the parts of a channel's name, but
//! namespaces and rooms may contain it. So each way to cut the name is tried, for the
//! namespaces that exist here. If none fits, the most specific reason is reported.
//!
//! A message never ends more than itself: any undecodable message is dropped, counted and logged,
//! and the next one is read.

use std::{borrow::Cow, cell::OnceCell, fmt, sync::Arc};

use roomcast_emitter::signing::Signer;
use roomcast_protocol::{
    channel::{Kind, ParsedChannel},
    message::Position,
    signing::{Rejection, Sealed},
    wire::{Entry, Incoming, Wire, WireError},
};

use super::{
    metrics::IncomingMetrics,
    node_js::NodeJs,
    questions::Questions,
    subscriptions::{AttachedNamespace, Subscriptions},
};
use crate::bus::Listener;

/// Maximum number of ways in which a channel's name is read: one per `#` in it.
/// Room names come from clients, and a name of thousands of `#` must not cost a search
/// each.
const MAX_PLACES: usize = 32;

/// Maximum size of a message, in bytes. Redis takes messages of 512 MB, and to decode one
/// takes several times its size.
const MAX_MESSAGE: usize = 64 << 20;

/// The receiving side of the bus.
pub(super) struct Receiver {
    pub(super) wire: Arc<Wire>,
    /// `None` if the cluster does not sign.
    pub(super) signer: Option<Arc<Signer>>,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) questions: Arc<Questions>,
    pub(super) node_js: Arc<NodeJs>,
    pub(super) metrics: IncomingMetrics,
}

/// Why a message was not carried out, the most telling reason last.
#[derive(Debug)]
enum Dropped {
    /// The namespace or the kind of the message is unknown.
    UnknownNamespace,
    /// Another node was asked or is answered, which is normal.
    NotAsked,
    Unexpected,
    NoMember,
    Own,
    TooLarge,
    Rejected(Rejection),
    Undecodable(WireError),
}

impl Dropped {
    /// How specific the reason is for a message whose channel can be read in several ways.
    fn weight(&self) -> u8 {
        match self {
            Self::UnknownNamespace => 0,
            Self::NotAsked => 1,
            Self::Unexpected => 2,
            Self::NoMember => 3,
            Self::Own => 4,
            Self::TooLarge => 5,
            Self::Rejected(_) => 6,
            Self::Undecodable(_) => 7,
        }
    }
}

/// A message that came on a channel. Its seal is opened once, however many ways there are
/// to read the name of the channel, because the second time it would count as replayed.
struct Arrived<'a> {
    channel: &'a str,
    payload: &'a [u8],
    /// `None` if the cluster does not sign.
    signer: Option<&'a Signer>,
    opened: OnceCell<Result<Cow<'a, [u8]>, Rejection>>,
}

impl Arrived<'_> {
    /// The message as its sender wrote it, if that is the node itself. Not verified.
    fn unverified(&self) -> &[u8] {
        let sealed = self.signer.and_then(|_| Sealed::read(self.payload));
        sealed.map_or(self.payload, |sealed| sealed.as_sealed())
    }

    fn message(&self) -> Result<&[u8], Dropped> {
        let Some(signer) = self.signer else {
            return Ok(self.payload);
        };
        let opened = self
            .opened
            .get_or_init(|| signer.open(self.channel, self.payload));
        match opened {
            Ok(message) => Ok(message),
            Err(rejection) => Err(Dropped::Rejected(*rejection)),
        }
    }
}

impl Receiver {
    /// A message has arrived by a channel.
    pub(super) fn receive(&self, channel: &[u8], payload: &[u8]) {
        if self.subscriptions.hears_all_rooms() {
            self.node_js.received(channel, payload);
        }
        self.handle(channel, payload);
    }

    /// A message has arrived by a pattern: that of private rooms, of the questions while this node
    /// leaves, or of all rooms.
    pub(super) fn receive_by(&self, pattern: &[u8], channel: &[u8], payload: &[u8]) {
        // So ends the pattern of all rooms.
        if !pattern.ends_with(b"#?*") {
            self.receive(channel, payload);
            return;
        }
        // Redis sends by the pattern until it has carried out that it is given up. Single rooms
        // have their channels again by then, so every message of the pattern arrives on them, too.
        let is_redundant = |channel| {
            !self.subscriptions.hears_by_pattern(channel)
                || self.subscriptions.is_private_copy(channel)
        };
        let is_copy = self.node_js.is_copy(channel, payload)
            || std::str::from_utf8(channel).is_ok_and(is_redundant);
        if !is_copy {
            self.handle(channel, payload);
        }
    }

    /// Reads an entry of the stream. `None` if it is not for this node, or cannot be read.
    pub(super) fn read_entry(
        &self,
        entry: &Entry<'_>,
    ) -> Option<(Arc<AttachedNamespace>, Incoming)> {
        self.metrics.messages.inc();
        self.metrics.bytes.inc_by(entry.data.len() as u64);
        let Some(namespace) = self.subscriptions.namespace(&entry.namespace) else {
            // All namespaces of the cluster share the stream.
            self.metrics.no_member.inc();
            return None;
        };
        let read = if *entry.uid == *namespace.uid.as_str() {
            Err(Dropped::Own)
        } else if entry.data.len() > MAX_MESSAGE {
            Err(Dropped::TooLarge)
        } else {
            let read = self.wire.read_entry(entry);
            read.map_err(Dropped::Undecodable)
        };
        match read {
            Ok(incoming) => Some((namespace, incoming)),
            Err(why) => {
                let channels = self.wire.channels();
                self.note(&why, channels.stream(), entry.data.as_bytes());
                None
            }
        }
    }

    /// Handles the entries that were read from the stream.
    pub(super) fn carry_out_entry(
        &self,
        namespace: &Arc<AttachedNamespace>,
        incoming: Incoming,
        position: Option<Position>,
    ) {
        let incoming = match incoming {
            Incoming::Message {
                message, confirm, ..
            } => Incoming::Message {
                message,
                confirm,
                position,
            },
            other => other,
        };
        let place = ParsedChannel {
            kind: Kind::Broadcast,
            namespace: &namespace.name,
            rest: None,
        };
        let carried_out = match namespace.listener.upgrade() {
            Some(listener) => self.carry_out(namespace, listener, &place, &[], incoming),
            None => Err(Dropped::UnknownNamespace),
        };
        if let Err(why) = carried_out {
            self.note(&why, self.wire.channels().stream(), &[]);
        }
    }

    fn handle(&self, channel: &[u8], payload: &[u8]) {
        self.metrics.messages.inc();
        self.metrics.bytes.inc_by(payload.len() as u64);
        let Ok(channel) = std::str::from_utf8(channel) else {
            let channel = String::from_utf8_lossy(channel);
            self.note(&Dropped::UnknownNamespace, &channel, payload);
            return;
        };
        let arrived = Arrived {
            channel,
            payload,
            signer: self.signer.as_deref(),
            opened: OnceCell::new(),
        };
        let mut why = Dropped::UnknownNamespace;
        for place in self.wire.channels().parse(channel).take(MAX_PLACES) {
            let Some(namespace) = self.subscriptions.namespace(place.namespace) else {
                continue;
            };
            match self.receive_in(&namespace, &place, &arrived) {
                Ok(()) => return,
                Err(dropped) if dropped.weight() > why.weight() => why = dropped,
                Err(_) => {}
            }
        }
        self.note(&why, channel, payload);
    }

    fn receive_in(
        &self,
        namespace: &Arc<AttachedNamespace>,
        place: &ParsedChannel<'_>,
        arrived: &Arrived<'_>,
    ) -> Result<(), Dropped> {
        let listener = namespace.listener.upgrade();
        let listener = listener.ok_or(Dropped::UnknownNamespace)?;
        let uid = namespace.uid.as_str();
        match (place.kind, place.rest) {
            // The subscription ends some time after the last member has left.
            (Kind::Broadcast, Some(room)) if room != uid && !listener.has_room(room) => {
                return Err(Dropped::NoMember);
            }
            (Kind::Request, _) if self.node_js.is_duplicate(arrived.payload) => {
                return Err(Dropped::NotAsked);
            }
            // While this node waits for nothing, the answers to others are not read.
            (Kind::Response, _) if self.questions.is_idle() => return Err(Dropped::NotAsked),
            _ => {}
        }
        // Before the seal is opened: our own messages are as many as we send, and were
        // just sealed here.
        if namespace.echo.is_own(arrived.unverified()) {
            return Err(Dropped::Own);
        }
        if arrived.payload.len() > MAX_MESSAGE {
            return Err(Dropped::TooLarge);
        }
        let payload = arrived.message()?;
        let incoming = self.wire.read(&namespace.name, place.kind, payload);
        let incoming = incoming.map_err(Dropped::Undecodable)?;
        self.carry_out(namespace, listener, place, payload, incoming)
    }

    fn carry_out(
        &self,
        namespace: &Arc<AttachedNamespace>,
        listener: Arc<dyn Listener>,
        place: &ParsedChannel<'_>,
        payload: &[u8],
        incoming: Incoming,
    ) -> Result<(), Dropped> {
        let uid = namespace.uid.as_str();
        match incoming {
            Incoming::Message {
                message,
                confirm,
                position,
            } => {
                let sockets = listener.receive(&message, position);
                // The emitter asks at once how many sockets a broadcast has reached.
                if let Some(id) = confirm {
                    namespace.reached.lock().note(&id, sockets);
                }
                let subscriptions = &self.subscriptions;
                self.node_js
                    .carried_out(subscriptions, namespace, &message, payload, sockets);
            }
            Incoming::Question {
                asker,
                id,
                question,
            } => {
                if asker.uid.as_deref() == Some(uid) {
                    return Err(Dropped::Own);
                }
                self.questions
                    .answer(namespace, listener, asker, &id, question);
            }
            Incoming::Response { id, node, reply } => {
                if !self.questions.receive(&id, node, reply) {
                    // On a channel that all nodes share, answers to others are the
                    // rule.
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

    /// Counts a message that was dropped, and logs it unless that is expected.
    fn note(&self, why: &Dropped, channel: &str, payload: &[u8]) {
        const UNKNOWN: &str =
            "a message of the cluster was dropped: its namespace or kind is unknown";
        const UNEXPECTED: &str = "an answer was dropped: no question is waiting for it";
        const TOO_LARGE: &str = "a message of the cluster was dropped: it is too large";
        const REJECTED: &str =
            "a message of the cluster was dropped: its signature is not accepted";
        const UNDECODABLE: &str = "a message of the cluster was dropped: it cannot be read";
        let metrics = &self.metrics;
        let (reason, text) = match why {
            Dropped::NotAsked => return,
            Dropped::NoMember => return metrics.no_member.inc(),
            Dropped::Own => return metrics.own.inc(),
            Dropped::UnknownNamespace => (&metrics.unknown_namespace, UNKNOWN),
            Dropped::Unexpected => (&metrics.unexpected, UNEXPECTED),
            Dropped::TooLarge => (&metrics.too_large, TOO_LARGE),
            Dropped::Rejected(Rejection::Unsigned) => (&metrics.unsigned, REJECTED),
            Dropped::Rejected(Rejection::Forged) => (&metrics.forged, REJECTED),
            Dropped::Rejected(Rejection::Stale) => (&metrics.stale, REJECTED),
            Dropped::Rejected(Rejection::Replayed) => (&metrics.replayed, REJECTED),
            Dropped::Undecodable(_) => (&metrics.undecodable, UNDECODABLE),
        };
        let bytes = payload.len();
        let limit = matches!(why, Dropped::TooLarge).then_some(MAX_MESSAGE);
        let error: Option<&dyn fmt::Display> = match why {
            Dropped::Rejected(rejection) => Some(rejection),
            Dropped::Undecodable(error) => Some(error),
            _ => None,
        };
        let error = error.map(tracing::field::display);
        reason.count.inc();
        reason.warnings.warn(|suppressed| match why {
            Dropped::UnknownNamespace | Dropped::Unexpected => {
                tracing::info!(channel, bytes, suppressed, "{text}");
            }
            _ => tracing::warn!(channel, error, bytes, limit, suppressed, "{text}"),
        });
    }
}
