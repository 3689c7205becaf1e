//! The journal of a namespace, which is its part of the stream.
//!
//! Node's servers write to it and read it, too, so its entries have no separate chain. Each reader
//! makes one: the entry before another is the last one before it that belongs to the journal.
//!
//! ```text
//!  stream   a1  b1  a2  x   a3        a, b: namespaces; x: a question, which is nobody's to miss
//!  journal  a1 ◄─── a2 ◄─── a3        of a, as each reader of the stream sees it
//! ```
//!
//! **Why no separate key.** Clients of Node's servers come back to Roomcast nodes and vice versa,
//! so both must find the same broadcasts. The price is that a page of the journal may need several
//! reads, because the entries of all namespaces are in one stream.
//!
//! Redis trims the stream at its beginning only. So the existence of an entry proves that of all
//! later ones.

use std::sync::Arc;

use redis::Value;
use roomcast_emitter::redis::{PublishError, Route};
use roomcast_protocol::{
    args::Args,
    channel::LOG_UID,
    message::{Broadcast, Message, Position},
    wire::{Entry, Incoming},
};

use super::{
    Chain, Streams,
    entries::{self, Id, Read},
};
use crate::{
    bus::{BusError, BusFuture, HistoryEntry, JournalPage, Log, Once, Page, Published, to_room},
    redis_bus::{script::unexpected, subscriptions::AttachedNamespace, warnings::Warnings},
};

/// Entries that are read with one command.
/// Redis serves no other client meanwhile.
const PAGE: usize = 100;

/// The journal of one namespace of a node.
pub(in super::super) struct StreamLog {
    streams: Arc<Streams>,
    namespace: Arc<AttachedNamespace>,
    unreadable: Arc<Warnings>,
}

/// An entry of the journal.
struct Kept {
    id: Id,
    /// `None` if it cannot be read.
    broadcast: Option<Broadcast>,
}

impl StreamLog {
    pub(in super::super) fn new(
        streams: &Arc<Streams>,
        namespace: &Arc<AttachedNamespace>,
    ) -> Self {
        streams.follow_chain(&namespace.name);
        Self {
            streams: Arc::clone(streams),
            namespace: Arc::clone(namespace),
            unreadable: Arc::default(),
        }
    }

    fn store(&self, broadcast: Broadcast) -> BusFuture<Result<Position, BusError>> {
        let message = Message::Broadcast(broadcast);
        let wire = &self.streams.outgoing.wire;
        // Not this node's uid: it receives the broadcast, too, at its place among those of others.
        let entry = wire.entry(&self.namespace.name, LOG_UID, &message, None);
        let adding = self.streams.add(entry);
        Box::pin(async move {
            let id = adding?.await?;
            id.position(None).ok_or_else(|| unexpected().into())
        })
    }
}

impl Log for StreamLog {
    fn publish(
        &self,
        room: &str,
        event: &str,
        args: Args,
    ) -> BusFuture<Result<Position, BusError>> {
        self.store(to_room(room, event, args))
    }

    /// The stream has no histories of rooms.
    fn read(&self, _: &str, _: Page, _: usize) -> BusFuture<Result<Vec<HistoryEntry>, BusError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn broadcast(&self, broadcast: Broadcast) -> BusFuture<Result<Published, BusError>> {
        let storing = self.store(broadcast);
        let nodes = self.streams.others();
        Box::pin(async move {
            Ok(Published {
                nodes,
                position: Some(storing.await?),
                ..Published::default()
            })
        })
    }

    fn broadcast_once(
        &self,
        broadcast: Broadcast,
        once: Once,
    ) -> BusFuture<Result<Published, BusError>> {
        let message = Message::Broadcast(broadcast);
        let namespace = &self.namespace.name;
        self.streams
            .publish_once(namespace, LOG_UID, &message, once)
    }

    /// The id of the entry, as Node's servers write it.
    fn offset(&self, id: u64, _: u64) -> String {
        Id::of(id).to_string()
    }

    fn read_offset(&self, text: &str) -> Option<(u64, u64)> {
        let position = Id::parse(text)?.position(None)?;
        Some((position.id, position.time))
    }

    fn read_journal(&self, page: Page, limit: usize) -> BusFuture<Result<JournalPage, BusError>> {
        let reading = Self {
            streams: Arc::clone(&self.streams),
            namespace: Arc::clone(&self.namespace),
            unreadable: Arc::clone(&self.unreadable),
        };
        Box::pin(async move { Ok(reading.read_page(page, limit).await?) })
    }
}

impl StreamLog {
    /// Reads a page, and links its entries to a chain.
    async fn read_page(&self, page: Page, limit: usize) -> Result<JournalPage, PublishError> {
        let mut kept = Vec::new();
        let is_full = self.each(page, limit, &mut kept).await?;
        if matches!(page, Page::Before(_) | Page::Latest) {
            kept.reverse();
        }
        let newest = match (page, kept.last()) {
            (Page::After(_) | Page::Latest, Some(last)) if !is_full => Some(last.id),
            (Page::Latest, last) => last.map(|last| last.id),
            _ => self.newest().await?,
        };
        let mut read = JournalPage {
            is_full,
            newest: newest.map_or(Ok(0), |id| position(id, None).map(|at| at.id))?,
            ..JournalPage::default()
        };
        // Only after the beginning of time is it certain that nothing was before the first entry.
        let mut after = None;
        if page == Page::After(0) {
            let known = match kept.first() {
                Some(first) => self.streams.chain_before(&self.namespace, first.id).await?,
                None => 0,
            };
            after = Some(known);
        }
        for Kept { id, broadcast } in kept {
            let position = position(id, after)?;
            after = Some(position.id);
            read.push(position, broadcast);
        }
        Ok(read)
    }

    /// The last entry of the journal.
    async fn newest(&self) -> Result<Option<Id>, PublishError> {
        let mut last = Vec::new();
        self.each(Page::Latest, 1, &mut last).await?;
        Ok(last.first().map(|kept| kept.id))
    }

    /// Collects entries of the journal, in the direction of reading. Returns whether
    /// there may be more.
    async fn each(
        &self,
        page: Page,
        limit: usize,
        kept: &mut Vec<Kept>,
    ) -> Result<bool, PublishError> {
        let streams = &self.streams;
        // The last entries of the stream may all be of other namespaces, so a full page
        // is read even for one.
        let count = if page == Page::Latest {
            PAGE
        } else {
            PAGE.min(limit.max(10))
        };
        let mut from = match page {
            Page::After(0) => "-".to_owned(),
            Page::After(id) | Page::Before(id) => format!("({}", Id::of(id)),
            Page::Latest => "+".to_owned(),
            Page::Only(id) => Id::of(id).to_string(),
        };
        loop {
            let is_only = matches!(page, Page::Only(_));
            let (command, to) = match page {
                Page::After(_) => ("XRANGE", "+"),
                Page::Only(_) => ("XRANGE", &*from),
                Page::Before(_) | Page::Latest => ("XREVRANGE", "-"),
            };
            let reply = streams.range([command, &from, to], count).await?;
            let read = entries::entries(&reply).ok_or_else(unexpected)?;
            let is_end = read.len() < count || is_only;
            let last = read.last().map(|read| read.id);
            for Read { id, entry } in read {
                let Some(entry) = entry else { continue };
                if let Some(found) = self.kept(id, &entry) {
                    // One more was found, so there is a next page.
                    if kept.len() == limit {
                        return Ok(true);
                    }
                    kept.push(found);
                }
            }
            match last {
                Some(last) if !is_end => from = format!("({last}"),
                _ => return Ok(false),
            }
        }
    }

    /// The entry, if it belongs to the journal.
    fn kept(&self, id: Id, entry: &Entry<'_>) -> Option<Kept> {
        if !is_of(entry, &self.namespace) {
            return None;
        }
        let wire = &self.streams.outgoing.wire;
        let broadcast = match wire.read_entry(entry) {
            Ok(incoming) if !Entry::is_kept(&incoming) => return None,
            Ok(Incoming::Message {
                message: Message::Broadcast(broadcast),
                ..
            }) => Some(broadcast),
            Ok(_) => return None,
            Err(error) => {
                self.unreadable.warn(|suppressed| {
                    let namespace = &*self.namespace.name;
                    tracing::warn!(namespace, %id, %error, suppressed, "an entry of the stream cannot be read");
                });
                None
            }
        };
        Some(Kept { id, broadcast })
    }
}

impl Streams {
    /// The id of the last entry of the journal before this one, 0 if there is none.
    pub(super) async fn before(
        self: &Arc<Self>,
        namespace: &Arc<AttachedNamespace>,
        id: Id,
    ) -> Result<u64, BusError> {
        Ok(self.chain_before(namespace, id).await?)
    }

    async fn chain_before(
        self: &Arc<Self>,
        namespace: &Arc<AttachedNamespace>,
        id: Id,
    ) -> Result<u64, PublishError> {
        let log = StreamLog {
            streams: Arc::clone(self),
            namespace: Arc::clone(namespace),
            unreadable: Arc::default(),
        };
        let Some(position) = id.position(None) else {
            return Ok(0);
        };
        let mut found = Vec::new();
        log.each(Page::Before(position.id), 1, &mut found).await?;
        match found.first() {
            Some(kept) => Ok(position_of(kept.id)?),
            None => Ok(0),
        }
    }

    /// Something before the next entries was not read.
    /// The next entry of each namespace looks for the one before it, instead of
    /// claiming one.
    pub(super) fn chains_are_broken(&self) {
        for chain in self.chains.lock().values_mut() {
            *chain = Chain::Unknown;
        }
    }

    async fn range(
        &self,
        [command, from, to]: [&str; 3],
        count: usize,
    ) -> Result<Value, PublishError> {
        let count = count.to_string();
        let command = [command, &self.key, from, to, "COUNT", &count];
        let replies = self
            .outgoing
            .command(&command, Route::Key(&self.key))
            .await?;
        replies.into_iter().next().ok_or_else(unexpected)
    }
}

/// Whether an entry is a broadcast of the namespace that its clients may have missed.
/// Messages that this node publishes without its journal were for clients that cannot miss them.
fn is_of(entry: &Entry<'_>, namespace: &AttachedNamespace) -> bool {
    entry.kind == "3"
        && *entry.namespace == *namespace.name
        && *entry.uid != *namespace.uid.as_str()
}

fn position(id: Id, after: Option<u64>) -> Result<Position, PublishError> {
    let position = id.position(after);
    position.ok_or_else(|| PublishError::Unconfirmed("an id that has no position".into()))
}

fn position_of(id: Id) -> Result<u64, PublishError> {
    Ok(position(id, None)?.id)
}
