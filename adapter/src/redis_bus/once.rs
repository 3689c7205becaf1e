//! Broadcasts under an idempotency key. Redis looks for the key, publishes, and keeps the
//! result, in one step.

use std::{future::ready, sync::Arc};

use roomcast_emitter::{
    log::{KeyReused, Names, Once, PublishedOnce},
    redis::Route,
};
use roomcast_protocol::{channel::EMITTER_UID, message::Broadcast, receipt::Receipt};
use tokio::time::Instant;

use super::{
    outgoing::{Outgoing, no_time},
    script::{run_command, unexpected},
    subscriptions::{AttachedNamespace, Subscriptions},
};
use crate::bus::{BusError, BusFuture, JournalLimits, Published};

/// Publishes to all nodes, this one included, and stores in the journal if there is one.
/// The payload is that of an emitter, because a node drops its own messages.
pub(super) fn publish(
    outgoing: &Arc<Outgoing>,
    subscriptions: &Subscriptions,
    namespace: &AttachedNamespace,
    broadcast: &Broadcast,
    once: Once,
    journal: Option<JournalLimits>,
) -> BusFuture<Result<Published, BusError>> {
    let (outgoing, name) = (Arc::clone(outgoing), &namespace.name);
    let mut payload = Vec::new();
    let wire = &outgoing.wire;
    let parts = (&broadcast.target, &*broadcast.event, &broadcast.args);
    if let Err(error) = wire.write_broadcast(&mut payload, name, EMITTER_UID, parts) {
        return Box::pin(ready(Err(outgoing.invalid(&error))));
    }
    let names = Names::new(wire.channels(), name);
    let own = subscriptions.own_subscriptions(namespace, &names.channel);
    let result = wire.channels().once(name, &once.key);
    let signer = outgoing.signer.as_deref();
    let Some(command) = once.command(&result, &names, &payload, journal, signer) else {
        return Box::pin(ready(Err(no_time().into())));
    };
    let publishing = run(&outgoing, &result, command, once, payload.len() as u64);
    Box::pin(async move {
        let (mut published, _) = publishing.await?;
        published.nodes = published.nodes.saturating_sub(own);
        Ok(published)
    })
}

/// Appends to the stream, once.
pub(super) fn append(
    outgoing: &Arc<Outgoing>,
    namespace: &str,
    entry: &[String],
    once: Once,
    members: usize,
) -> BusFuture<Result<(Published, Box<str>), BusError>> {
    let result = outgoing.wire.channels().once(namespace, &once.key);
    let command = once.entry_command(&result, entry, members);
    let bytes = entry.iter().map(String::len).sum::<usize>() as u64;
    let publishing = run(outgoing, &result, command, once, bytes);
    Box::pin(async move {
        let (published, entry) = publishing.await?;
        Ok((published, entry.ok_or_else(unexpected)?))
    })
}

/// Keeps the receipt with the result.
pub(super) fn keep(
    outgoing: &Outgoing,
    namespace: &str,
    once: &Once,
    receipt: &Receipt,
) -> BusFuture<Result<(), BusError>> {
    let result = outgoing.wire.channels().once(namespace, &once.key);
    let kept = outgoing.command(&once.keep(&result, receipt), Route::Key(&result));
    Box::pin(async move {
        kept.await?;
        Ok(())
    })
}

/// Runs the script. The command is enqueued when this returns. Resolves to what was published, for all
/// connections that received it, and the id of its entry in the streams dialect.
fn run(
    outgoing: &Arc<Outgoing>,
    result: &str,
    command: Vec<Vec<u8>>,
    once: Once,
    bytes: u64,
) -> impl Future<Output = Result<(Published, Option<Box<str>>), BusError>> + Send + use<> {
    let started = Instant::now();
    let running = run_command(outgoing, result, command, Once::spell_out);
    let outgoing = Arc::clone(outgoing);
    async move {
        let reply = running.await;
        match reply.and_then(|reply| once.read(&reply)) {
            Ok(Ok(published)) => {
                if !published.is_replayed {
                    outgoing.count(bytes, started, Ok(published.receivers));
                }
                let PublishedOnce {
                    position,
                    entry,
                    receivers,
                    is_replayed,
                    receipt,
                } = published;
                let published = Published {
                    nodes: usize::try_from(receivers).unwrap_or(usize::MAX),
                    position,
                    is_replayed,
                    receipt,
                };
                Ok((published, entry))
            }
            Ok(Err(KeyReused)) => Err(BusError::KeyReused),
            Err(error) => {
                outgoing.count(bytes, started, Err(&error));
                Err(error.into())
            }
        }
    }
}
