//! The way to Redis: an own link, or a pool that the application has already.

use std::collections::VecDeque;

use super::error::EmitError;
use crate::{
    channel::Channels,
    members::{Leases, Roster},
    publisher::{PublishError, Publisher, Route},
    roll_call,
    wire::Publication,
};
#[cfg(feature = "pool")]
use crate::{pool::PoolPublisher, value::Value};

/// What a batch has on its way to Redis at a time, in bytes: enough that neither side waits for the
/// other, and far from what the link refuses.
const WINDOW_BYTES: usize = 1 << 20;

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
                let published = self.publish_all(std::slice::from_ref(publication), is_sharded);
                let published = published.await.pop();
                published.expect("there is one result for each publication")
            }
        }
    }

    /// Publishes in order; answers in that order, too.
    pub(super) async fn publish_all(
        &self,
        publications: &[Publication],
        is_sharded: bool,
    ) -> Vec<Result<usize, EmitError>> {
        match self {
            Self::Own(publisher) => publish_windowed(publisher, publications, is_sharded).await,
            #[cfg(feature = "pool")]
            Self::Pool(pool) => {
                let command = if is_sharded { "SPUBLISH" } else { "PUBLISH" };
                let commands: Vec<_> = publications
                    .iter()
                    .map(|publication| -> Vec<&[u8]> {
                        let channel = publication.channel.as_bytes();
                        vec![command.as_bytes(), channel, &publication.payload]
                    })
                    .collect();
                let replies = pool.send(&commands).await.into_iter();
                replies.map(|reply| count(&reply?)).collect()
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

/// Keeps as much on its way as the window holds.
async fn publish_windowed(
    publisher: &Publisher,
    publications: &[Publication],
    is_sharded: bool,
) -> Vec<Result<usize, EmitError>> {
    let mut results = Vec::with_capacity(publications.len());
    let mut under_way = VecDeque::new();
    let mut bytes = 0;
    for Publication { channel, payload } in publications {
        let size = channel.len() + payload.len();
        while bytes > 0 && bytes + size > WINDOW_BYTES {
            let (size, publishing) = under_way.pop_front().expect("something has these bytes");
            results.push(receivers(publishing.await));
            bytes -= size;
        }
        let publishing = publisher.publish(channel, payload, is_sharded);
        under_way.push_back((size, publishing));
        bytes += size;
    }
    for (_, publishing) in under_way {
        results.push(receivers(publishing.await));
    }
    results
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
