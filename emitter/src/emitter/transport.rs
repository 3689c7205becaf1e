//! The way to Redis: an own link, or a pool that the application has already.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use tokio::task::yield_now;

use super::{batch::Unsent, core::Core, error::EmitError};
use crate::{
    members::{Counted, Leases},
    publisher::{PublishError, Publisher, PublishingMany, Route},
    roll_call,
};
#[cfg(feature = "pool")]
use crate::{pool::PoolPublisher, value::Value};
use roomcast_protocol::{channel::Channels, wire::Publication};

/// What a batch has on its way to Redis at a time, in bytes: enough that neither side waits for the
/// other, and far from what the link refuses.
const WINDOW_BYTES: usize = 1 << 20;

/// What is written at a time, in bytes. Redis reads as much at a time.
const WRITE_BYTES: usize = 16 << 10;

/// What is written before others on the thread have their turn, in bytes.
const TURN_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) enum Transport {
    Own(Publisher),
    #[cfg(feature = "pool")]
    Pool(PoolPublisher),
}

impl Transport {
    /// Publishes; answers how many took it. The order of calls that are polled one after the other
    /// is kept.
    pub(super) async fn publish(
        &self,
        publication: &Publication,
        is_sharded: bool,
    ) -> Result<usize, EmitError> {
        match self {
            Self::Own(publisher) => {
                let Publication { channel, payload } = publication;
                let published = publisher.publish(channel, payload, is_sharded).await;
                receivers(published)
            }
            #[cfg(feature = "pool")]
            Self::Pool(pool) => {
                let command: &[u8] = if is_sharded { b"SPUBLISH" } else { b"PUBLISH" };
                let Publication { channel, payload } = publication;
                let command = vec![command, channel.as_bytes(), payload];
                let reply = pool.send(&[command]).await.pop();
                count(&reply.expect("there is one reply for each command")?)
            }
        }
    }

    /// Publishes messages in their order, and encodes those that are not; answers in that order,
    /// too.
    pub(super) async fn publish_all(
        &self,
        core: &Core,
        unsent: &mut Unsent,
    ) -> Vec<Result<usize, EmitError>> {
        match self {
            Self::Own(publisher) => Window::new(publisher, core, unsent).publish().await,
            #[cfg(feature = "pool")]
            Self::Pool(pool) => {
                unsent.encode_all(core);
                let commands = unsent.commands();
                let commands: Vec<_> = (0..commands.len())
                    .map(|index| commands.words(index))
                    .collect();
                let replies = pool.send(&commands).await.into_iter();
                replies.map(|reply| count(&reply?)).collect()
            }
        }
    }

    /// Counts the members of the namespace. The first poll sends it.
    pub(super) async fn count(
        &self,
        channels: &Channels,
        namespace: &str,
        leases: &Arc<Leases>,
    ) -> Result<Counted, EmitError> {
        let command = roll_call::subscribers(channels, namespace, leases);
        let replies = match self {
            Self::Own(publisher) => {
                let replies = publisher.command(&command, Route::AllPrimaries).await;
                replies.map_err(emit_error)?
            }
            #[cfg(feature = "pool")]
            Self::Pool(pool) => replies(pool, &[command]).await?,
        };
        roll_call::count(channels, leases, &replies).ok_or_else(|| unexpected("PUBSUB"))
    }

    pub(super) async fn leases(&self, channels: &Channels) -> Result<Leases, EmitError> {
        let command = roll_call::leases(channels);
        let replies = match self {
            Self::Own(publisher) => {
                let key = channels.leases();
                let route = Route::Key(&key);
                let leases = publisher.command(&command, route);
                let time = publisher.command(&roll_call::TIME, route);
                let leases = leases.await.map_err(emit_error)?;
                [leases, time.await.map_err(emit_error)?].concat()
            }
            #[cfg(feature = "pool")]
            Self::Pool(pool) => {
                let time = roll_call::TIME.map(str::to_owned).into();
                replies(pool, &[command, time]).await?
            }
        };
        match &replies[..] {
            [leases, time] => roll_call::read_leases(leases, time),
            _ => None,
        }
        .ok_or_else(|| unexpected("ZREVRANGE"))
    }
}

/// Publishes many messages, of which no more than a certain number of bytes are on their way.
struct Window<'a> {
    publisher: &'a Publisher,
    core: &'a Core,
    unsent: &'a mut Unsent,
    /// With the bytes of each.
    under_way: VecDeque<(usize, PublishingMany)>,
    bytes: usize,
    results: Vec<Result<usize, EmitError>>,
}

impl<'a> Window<'a> {
    fn new(publisher: &'a Publisher, core: &'a Core, unsent: &'a mut Unsent) -> Self {
        Self {
            publisher,
            core,
            under_way: VecDeque::new(),
            bytes: 0,
            results: Vec::with_capacity(unsent.len()),
            unsent,
        }
    }

    async fn publish(mut self) -> Vec<Result<usize, EmitError>> {
        let (mut next, mut written) = (0, 0);
        while next < self.unsent.len() {
            let piece = self.piece(next);
            let size = self.unsent.commands().bytes_of(&piece);
            while self.bytes > 0 && self.bytes + size > WINDOW_BYTES {
                self.settle().await;
            }
            next = piece.end;
            let publishing = self.publisher.publish_many(self.unsent.commands(), piece);
            self.under_way.push_back((size, publishing));
            self.bytes += size;
            written += size;
            // The link's task has to read, and to write what did not go at once.
            if written >= TURN_BYTES {
                written = 0;
                yield_now().await;
            }
        }
        while !self.under_way.is_empty() {
            self.settle().await;
        }
        self.results
    }

    /// What is to be written next, encoded only now, as Redis is busy with what was written before.
    fn piece(&mut self, first: usize) -> Range<usize> {
        loop {
            let commands = self.unsent.commands();
            let is_full = commands.bytes_of(&(first..commands.len())) >= WRITE_BYTES;
            if is_full || !self.unsent.encode_next(self.core) {
                return self.unsent.commands().piece(first, WRITE_BYTES);
            }
        }
    }

    /// Waits for the first piece.
    async fn settle(&mut self) {
        let Some((size, publishing)) = self.under_way.pop_front() else {
            return;
        };
        let results = &mut self.results;
        publishing
            .each(|published| results.push(receivers(published)))
            .await;
        self.bytes -= size;
    }
}

#[cfg(feature = "pool")]
async fn replies(pool: &PoolPublisher, commands: &[Vec<String>]) -> Result<Vec<Value>, EmitError> {
    pool.send(commands).await.into_iter().collect()
}

fn receivers(published: Result<u64, PublishError>) -> Result<usize, EmitError> {
    let receivers = published.map_err(emit_error)?;
    Ok(usize::try_from(receivers).unwrap_or(usize::MAX))
}

#[cfg(feature = "pool")]
fn count(reply: &Value) -> Result<usize, EmitError> {
    let receivers = reply
        .integer()
        .and_then(|number| usize::try_from(number).ok());
    receivers.ok_or_else(|| unexpected("PUBLISH"))
}

/// Redis has replied, but not what this command replies.
fn unexpected(command: &str) -> EmitError {
    EmitError::Unconfirmed(format!("an unexpected reply to {command}").into())
}

fn emit_error(error: PublishError) -> EmitError {
    match error {
        PublishError::Unavailable(reason) => EmitError::Unreachable(reason),
        PublishError::Unconfirmed(reason) => EmitError::Unconfirmed(reason),
        PublishError::Overloaded { queued_bytes } => EmitError::Overloaded { queued_bytes },
        PublishError::Refused(reason) => EmitError::Refused(reason),
    }
}
