//! The way to Redis: an own link, or a pool that the application has already.

use std::collections::VecDeque;

use tokio::task::yield_now;

use super::error::EmitError;
use crate::{
    channel::Channels,
    members::{Leases, Roster},
    publisher::{PublishError, Publisher, Publishing, Route},
    roll_call,
    wire::Publication,
};
#[cfg(feature = "pool")]
use crate::{pool::PoolPublisher, value::Value};

/// What a batch has on its way to Redis at a time, in bytes: enough that neither side waits for the
/// other, and far from what the link refuses.
const WINDOW_BYTES: usize = 1 << 20;

/// What is encoded before the first of it is written, in bytes.
const WRITE_BYTES: usize = 16 << 10;

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
            Self::Pool(_) => {
                let one = std::iter::once(Ok(publication.clone()));
                let published = self.publish_all(one, is_sharded);
                let published = published.await.pop();
                published.expect("there is one result for each publication")
            }
        }
    }

    /// Publishes in order; answers in that order, too. What cannot be encoded is left out.
    pub(super) async fn publish_all(
        &self,
        publications: impl Iterator<Item = Result<Publication, EmitError>>,
        is_sharded: bool,
    ) -> Vec<Result<usize, EmitError>> {
        match self {
            Self::Own(publisher) => {
                let window = Window::new(publisher, is_sharded);
                window.publish(publications).await
            }
            #[cfg(feature = "pool")]
            Self::Pool(pool) => {
                let command = if is_sharded { "SPUBLISH" } else { "PUBLISH" };
                let publications: Vec<_> = publications.collect();
                let commands: Vec<_> = publications
                    .iter()
                    .flatten()
                    .map(|publication| -> Vec<&[u8]> {
                        let channel = publication.channel.as_bytes();
                        vec![command.as_bytes(), channel, &publication.payload]
                    })
                    .collect();
                let mut replies = pool.send(&commands).await.into_iter();
                let reply = |publication: Result<Publication, EmitError>| {
                    publication?;
                    let reply = replies.next().expect("there is one for each command");
                    count(&reply?)
                };
                publications.into_iter().map(reply).collect()
            }
        }
    }

    /// Who has to answer a question in the namespace now.
    pub(super) async fn roster(
        &self,
        channels: &Channels,
        namespace: &str,
    ) -> Result<Roster, EmitError> {
        let leases = self.leases(channels).await?;
        let command = roll_call::subscribers(channels, namespace, &leases);
        let replies = match self {
            Self::Own(publisher) => {
                let replies = publisher.command(&command, Route::AllPrimaries).await;
                replies.map_err(emit_error)?
            }
            #[cfg(feature = "pool")]
            Self::Pool(pool) => replies(pool, &[command]).await?,
        };
        roll_call::roster(channels, &leases, &replies).ok_or_else(|| unexpected("PUBSUB"))
    }

    async fn leases(&self, channels: &Channels) -> Result<Leases, EmitError> {
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
    is_sharded: bool,
    /// With the bytes of each.
    under_way: VecDeque<(usize, Result<Publishing, EmitError>)>,
    bytes: usize,
    results: Vec<Result<usize, EmitError>>,
}

impl<'a> Window<'a> {
    fn new(publisher: &'a Publisher, is_sharded: bool) -> Self {
        Self {
            publisher,
            is_sharded,
            under_way: VecDeque::new(),
            bytes: 0,
            results: Vec::new(),
        }
    }

    async fn publish(
        mut self,
        publications: impl Iterator<Item = Result<Publication, EmitError>>,
    ) -> Vec<Result<usize, EmitError>> {
        self.results.reserve(publications.size_hint().0);
        let mut unwritten = 0;
        for publication in publications {
            let size = self.push(publication).await;
            unwritten += size;
            // The link's task has its turn to write, and Redis to work, while more is encoded.
            if unwritten > WRITE_BYTES {
                unwritten = 0;
                yield_now().await;
            }
        }
        while !self.under_way.is_empty() {
            self.settle().await;
        }
        self.results
    }

    async fn push(&mut self, publication: Result<Publication, EmitError>) -> usize {
        let (size, publishing) = match publication {
            Ok(Publication { channel, payload }) => {
                let size = channel.len() + payload.len();
                while self.bytes > 0 && self.bytes + size > WINDOW_BYTES {
                    self.settle().await;
                }
                let publisher = self.publisher;
                let publishing = publisher.publish_followed(&channel, &payload, self.is_sharded);
                (size, Ok(publishing))
            }
            Err(error) => (0, Err(error)),
        };
        self.bytes += size;
        self.under_way.push_back((size, publishing));
        size
    }

    /// Waits for the first one.
    async fn settle(&mut self) {
        let Some((size, publishing)) = self.under_way.pop_front() else {
            return;
        };
        let result = match publishing {
            Ok(publishing) => receivers(publishing.await),
            Err(error) => Err(error),
        };
        self.bytes -= size;
        self.results.push(result);
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
