//! Broadcasts under an idempotency key. Redis looks for the key, publishes, and keeps the
//! result, in one step.

use std::{future::ready, sync::Arc};

use roomcast_emitter::{
    log::{KeyReused, Names, Once, Script},
    redis::Route,
};
use roomcast_protocol::{args::Args, channel::EMITTER_UID, target::Target};
use tokio::time::Instant;

use super::{
    outgoing::{Outgoing, no_time},
    script::unexpected,
    subscriptions::{AttachedNamespace, Subscriptions},
};
use crate::bus::{BusError, BusFuture, JournalLimits, Published};

/// Publishes to all nodes, this one included, and stores in the journal if there is one.
/// The payload is that of an emitter, because a node drops what it has sent itself.
pub(super) fn publish(
    outgoing: &Arc<Outgoing>,
    subscriptions: &Subscriptions,
    namespace: &AttachedNamespace,
    broadcast: (&Target, &str, &Args),
    once: Once,
    journal: Option<JournalLimits>,
) -> BusFuture<Result<Published, BusError>> {
    let (outgoing, name) = (Arc::clone(outgoing), &namespace.name);
    let mut payload = Vec::new();
    let wire = &outgoing.wire;
    if let Err(error) = wire.write_broadcast(&mut payload, name, EMITTER_UID, broadcast) {
        return Box::pin(ready(Err(outgoing.invalid(&error))));
    }
    let names = Names::new(wire.channels(), name);
    let own = subscriptions.own_subscriptions(namespace, &names.channel);
    let result = wire.channels().once(name, &once.key);
    let signer = outgoing.signer.as_deref();
    let Some(mut command) = once.command(&result, &names, &payload, journal, signer) else {
        return Box::pin(ready(Err(no_time().into())));
    };
    let (started, bytes) = (Instant::now(), payload.len() as u64);
    let sent = outgoing.command(&command, Route::Key(&result));
    Box::pin(async move {
        let mut replies = sent.await;
        if Script::is_forgotten(&replies) {
            Once::spell_out(&mut command);
            replies = outgoing.command(&command, Route::Key(&result)).await;
        }
        let reply = replies.and_then(|mut replies| replies.pop().ok_or_else(unexpected));
        let published = match reply.and_then(|reply| once.read(&reply)) {
            Ok(Ok(published)) => published,
            Ok(Err(KeyReused)) => return Err(BusError::KeyReused),
            Err(error) => {
                outgoing.count(bytes, started, Err(&error));
                return Err(error.into());
            }
        };
        if !published.is_replayed {
            outgoing.count(bytes, started, Ok(published.receivers));
        }
        let receivers = usize::try_from(published.receivers).unwrap_or(usize::MAX);
        Ok(Published {
            nodes: receivers.saturating_sub(own),
            position: published.position,
            is_replayed: published.is_replayed,
        })
    })
}
