//! The way to Redis: a connection of the emitter's own, or a pool of the application.
//!
//! A batch is handed over in pieces, with at most 1 MiB in flight:
//!
//! ```text
//!   pieces of 16 KiB ─▶ window (1 MiB) ─▶ queue of the link (16 MiB, shared by all callers)
//! ```
//!
//! The window keeps a large batch from filling the queue, in which case single emits of other tasks
//! would fail as `Overloaded`.

use std::{collections::VecDeque, sync::Arc};

use redis::Value;
use roomcast_protocol::{channel::Channels, receipt::Receipt, wire::Publication};

use super::{encoder::Encoder, results::Delivery};
#[cfg(feature = "pool")]
use crate::pool::PoolPublisher;
use crate::{
    error::EmitError,
    log::{self, JOURNAL, KeyReused, Names, Once, Placed, PublishedOnce, Script, appended},
    membership::{self, Counted, Leases},
    redis::{Commands, PublishError, Publisher, PublishingMany, Reply, Route, receivers},
};

/// The bytes of a batch that are in flight to Redis at a time: enough that neither side waits for
/// the other, and far below the limit of the queue.
const WINDOW_BYTES: usize = 1 << 20;

/// How many broadcasts of a batch are on their way to a journal at a time.
const WINDOW_COMMANDS: usize = 256;

#[derive(Debug)]
pub(super) enum Transport {
    Own(Publisher),
    #[cfg(feature = "pool")]
    Pool(PoolPublisher),
}

impl Transport {
    /// Publishes and returns the number of receivers. Calls that are polled one after the other
    /// keep their order.
    pub(super) async fn publish(
        &self,
        encoder: &Encoder,
        publication: &Publication,
    ) -> Result<usize, EmitError> {
        match self {
            Self::Own(publisher) => {
                let Publication { channel, payload } = publication;
                nodes(
                    publisher
                        .publish(channel, payload, encoder.is_sharded)
                        .await,
                )
            }
            #[cfg(feature = "pool")]
            Self::Pool(pool) => {
                let mut commands = Commands::default();
                encoder.write(&mut commands, &publication.channel, &publication.payload);
                let reply = publish_over(pool, &[commands.into()]).await.pop();
                reply.expect("there is one reply for each command")
            }
        }
    }

    /// Publishes messages and returns their numbers of receivers, both in order.
    pub(super) async fn publish_all(
        &self,
        pieces: &[Arc<Commands>],
    ) -> Vec<Result<usize, EmitError>> {
        match self {
            Self::Own(publisher) => {
                let mut window = Window {
                    publisher,
                    under_way: VecDeque::new(),
                    bytes: 0,
                    results: Vec::with_capacity(pieces.iter().map(|piece| piece.len()).sum()),
                };
                for piece in pieces {
                    window.publish(piece).await;
                }
                while !window.under_way.is_empty() {
                    window.settle().await;
                }
                window.results
            }
            #[cfg(feature = "pool")]
            Self::Pool(pool) => publish_over(pool, pieces).await,
        }
    }

    /// Subscribers of a channel by its name, without those by a pattern. In a cluster with classic
    /// channels, those of the server that publishes. `None` if Redis does not return it.
    pub(super) async fn subscribers(&self, encoder: &Encoder, channel: &str) -> Option<usize> {
        let (command, route) = match encoder.is_sharded {
            true => ("SHARDNUMSUB", Route::Channel(channel)),
            false => ("NUMSUB", Route::Any),
        };
        let command = ["PUBSUB", command, channel].map(str::to_owned).into();
        let replies = self.ask(&[command], route).await.ok()?;
        let (_, subscribers) = *replies.first()?.pairs()?.first()?;
        usize::try_from(subscribers.integer()?).ok()
    }

    /// Runs the script that stores and publishes, once for each of these commands, and
    /// returns the outcomes, both in order.
    pub(super) async fn append_all(
        &self,
        names: &Names,
        commands: Vec<Vec<Vec<u8>>>,
    ) -> Vec<Result<Placed, EmitError>> {
        let spell_out = |command: &mut [Vec<u8>]| JOURNAL.spell_out(command);
        let replies = self.run_scripts(commands, &names.counter, spell_out).await;
        let placed = replies.into_iter().map(|reply| {
            let reply = reply?;
            let mut placed = appended(&reply);
            Ok(placed.next().unwrap_or_else(|| Err(log::unexpected()))?)
        });
        placed.collect()
    }

    /// Appends entries to the stream, and returns the outcomes, both in order.
    pub(super) async fn append_entries(
        &self,
        stream: &str,
        commands: &[Vec<Vec<u8>>],
    ) -> Vec<Result<(), EmitError>> {
        let mut results = Vec::with_capacity(commands.len());
        for commands in commands.chunks(WINDOW_COMMANDS) {
            let replies = self.run_all(commands, stream).await.into_iter();
            results.extend(replies.map(|reply| reply.map(drop).map_err(EmitError::from)));
        }
        results
    }

    /// Publishes under idempotency keys, and returns the outcomes, both in order. `result` is the key of one of the
    /// results, which are in one slot.
    pub(super) async fn publish_once(
        &self,
        result: &str,
        commands: Vec<(&Once, Vec<Vec<u8>>)>,
    ) -> Vec<Result<Delivery, EmitError>> {
        let (once, commands): (Vec<_>, Vec<_>) = commands.into_iter().unzip();
        let replies = self.run_scripts(commands, result, Once::spell_out).await;
        let replies = once.into_iter().zip(replies);
        replies
            .map(|(once, reply)| delivered_once(once, reply))
            .collect()
    }

    /// Runs scripts at the owner of a key. Those that Redis has forgotten are sent once
    /// more, with their text.
    async fn run_scripts(
        &self,
        mut commands: Vec<Vec<Vec<u8>>>,
        key: &str,
        spell_out: impl Fn(&mut [Vec<u8>]),
    ) -> Vec<Result<Value, PublishError>> {
        let mut results = Vec::with_capacity(commands.len());
        for commands in commands.chunks_mut(WINDOW_COMMANDS) {
            let replies = self.run_all(commands, key).await;
            for (mut reply, command) in replies.into_iter().zip(commands) {
                if Script::is_forgotten(&reply) {
                    spell_out(command);
                    reply = self.run(command, key).await;
                }
                results.push(reply);
            }
        }
        results
    }

    /// The receipt that is kept with the result of an idempotency key.
    pub(super) async fn receipt(&self, once: &Once, result: &str) -> Option<Receipt> {
        let text = self.get(result).await.ok()??;
        let kept = Value::Array(vec![Value::Int(1), Value::BulkString(text.into_bytes())]);
        once.read(&kept).ok()?.ok()?.receipt
    }

    /// Keeps the receipt with the result of an idempotency key.
    pub(super) async fn keep_receipt(
        &self,
        once: &Once,
        result: &str,
        receipt: &Receipt,
    ) -> Result<(), EmitError> {
        let command = once.keep(result, receipt).map(String::into_bytes);
        self.run(&command, result).await?;
        Ok(())
    }

    /// The text under a key.
    pub(super) async fn get(&self, key: &str) -> Result<Option<String>, EmitError> {
        let command = ["GET", key].map(|word| word.as_bytes().to_vec());
        let reply = self.run(&command, key).await?;
        Ok(reply.text().map(str::to_owned))
    }

    /// Sends a command to the owner of a key.
    async fn run(&self, command: &[Vec<u8>], key: &str) -> Result<Value, PublishError> {
        let command = [command.to_vec()];
        let reply = self.run_all(&command, key).await.pop();
        reply.expect("there is one reply for each command")
    }

    /// Sends commands to the owner of a key. The replies are in the order of the commands.
    async fn run_all(
        &self,
        commands: &[Vec<Vec<u8>>],
        key: &str,
    ) -> Vec<Result<Value, PublishError>> {
        let replies = self.send(commands, Route::Key(key)).await.into_iter();
        let only = |mut replies: Vec<Value>| replies.pop().ok_or_else(log::unexpected);
        replies.map(|reply| reply.and_then(only)).collect()
    }

    /// Counts the members of the namespace. The first poll sends the command.
    pub(super) async fn count(
        &self,
        channels: &Channels,
        namespace: &str,
        leases: &Arc<Leases>,
    ) -> Result<Counted, EmitError> {
        let command = membership::subscribers(channels, namespace, leases);
        let replies = self.ask(&[command], Route::AllServers).await?;
        membership::count(channels, leases, &replies).ok_or_else(|| unexpected("PUBSUB"))
    }

    /// Redis's time in milliseconds since 1970, of the server that has the leases: all
    /// nodes read it there.
    pub(super) async fn time(&self, channels: &Channels) -> Result<u64, EmitError> {
        let key = channels.leases();
        let time = membership::TIME.map(str::to_owned).into();
        let replies = self.ask(&[time], Route::Key(&key)).await?;
        let time = replies.first().and_then(membership::read_time);
        time.ok_or_else(|| unexpected("TIME"))
    }

    pub(super) async fn leases(&self, channels: &Channels) -> Result<Leases, EmitError> {
        let key = channels.leases();
        let time = membership::TIME.map(str::to_owned).into();
        let commands = [membership::leases(channels), time];
        let replies = self.ask(&commands, Route::Key(&key)).await?;
        match &replies[..] {
            [leases, time] => membership::read_leases(leases, time),
            _ => None,
        }
        .ok_or_else(|| unexpected("ZREVRANGE"))
    }

    /// Sends commands and returns their replies, one or, if each server is asked, several
    /// of each.
    async fn ask(
        &self,
        commands: &[Vec<String>],
        route: Route<'_>,
    ) -> Result<Vec<Value>, PublishError> {
        let replies = self.send(commands, route).await.into_iter();
        let replies: Vec<_> = replies.collect::<Result<_, _>>()?;
        Ok(replies.concat())
    }

    /// Sends commands, all of them before the first reply is awaited, and returns the replies.
    async fn send<W: AsRef<[u8]>>(
        &self,
        commands: &[Vec<W>],
        route: Route<'_>,
    ) -> Vec<Result<Vec<Value>, PublishError>> {
        match self {
            Self::Own(publisher) => {
                let sent = commands.iter();
                let sent: Vec<_> = sent.map(|one| publisher.command(one, route)).collect();
                let mut replies = Vec::with_capacity(commands.len());
                for reply in sent {
                    replies.push(reply.await);
                }
                replies
            }
            #[cfg(feature = "pool")]
            Self::Pool(pool) => {
                let replies = pool.send(&[gathered(commands)]).await.into_iter();
                replies
                    .map(|reply| reply.map(|reply| vec![reply]))
                    .collect()
            }
        }
    }
}

fn delivered_once(once: &Once, reply: Result<Value, PublishError>) -> Result<Delivery, EmitError> {
    let published = once.read(&reply?)?;
    let PublishedOnce {
        position,
        receivers,
        is_replayed,
        ..
    } = published.map_err(|KeyReused| EmitError::KeyReused(once.key.clone()))?;
    let nodes = usize::try_from(receivers).unwrap_or(usize::MAX);
    Ok(Delivery {
        position,
        is_replayed,
        ..Delivery::new(nodes)
    })
}

/// Publishes many messages, with a limited number of bytes in flight.
struct Window<'a> {
    publisher: &'a Publisher,
    /// With the bytes of each.
    under_way: VecDeque<(usize, PublishingMany)>,
    bytes: usize,
    results: Vec<Result<usize, EmitError>>,
}

impl Window<'_> {
    async fn publish(&mut self, piece: &Arc<Commands>) {
        let bytes = piece.bytes().len();
        while self.bytes > 0 && self.bytes + bytes > WINDOW_BYTES {
            self.settle().await;
        }
        let publishing = self.publisher.publish_many(piece);
        self.under_way.push_back((bytes, publishing));
        self.bytes += bytes;
    }

    /// Waits for the first piece.
    async fn settle(&mut self) {
        let Some((bytes, publishing)) = self.under_way.pop_front() else {
            return;
        };
        let results = &mut self.results;
        publishing
            .each(|published| results.push(nodes(published)))
            .await;
        self.bytes -= bytes;
    }
}

#[cfg(feature = "pool")]
async fn publish_over(
    pool: &PoolPublisher,
    pieces: &[Arc<Commands>],
) -> Vec<Result<usize, EmitError>> {
    let replies = pool.send(pieces).await.into_iter();
    replies
        .map(|reply| nodes(reply.and_then(|value| receivers(Ok(value)))))
        .collect()
}

#[cfg(feature = "pool")]
fn gathered<W: AsRef<[u8]>>(commands: &[Vec<W>]) -> Arc<Commands> {
    let mut gathered = Commands::default();
    for words in commands {
        gathered.push(words);
    }
    gathered.into()
}

fn nodes(published: Result<u64, PublishError>) -> Result<usize, EmitError> {
    Ok(usize::try_from(published?).unwrap_or(usize::MAX))
}

/// Redis replied, but not in the form of this command's reply.
fn unexpected(command: &str) -> EmitError {
    EmitError::Unconfirmed(format!("an unexpected reply to {command}").into())
}
