//! The journal of a namespace, as one node follows it.
//!
//! Each position names the previous one, so the broadcasts that this node has delivered form a
//! chain. A broadcast that does not continue the chain shows that others are missing. It waits in
//! the journal until the node has read and delivered its predecessors, so every socket receives
//! broadcasts in one order, each once:
//!
//! ```text
//!            continues the chain: deliver                    read a page, deliver
//!            ┌───────┐                                       ┌───────┐
//!            │       ▼     missing, or a gap is reported     │       ▼
//!          FOLLOWING ─────────────────────────────────────▶ REPAIRING
//!                  ◀───────────────────────────────────────
//!                     the newest is delivered: repaired, or not if a link of the chain is gone
//! ```
//!
//! Delivering, repairing and admitting sockets take one lock, so for each socket the
//! chain has one place at which it began to receive. For recovery, the latest frames are
//! kept: the tail.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use roomcast_adapter::{BusError, JournalPage, Log, Page, Position, Published};
use roomcast_protocol::{
    args::Args,
    message::{Broadcast, Message},
    target::Target,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::{sleep, timeout},
};

use super::{broadcast::Delivery, error::EmitError, live_namespace::LiveNamespace, socket::Socket};
use crate::{clock::unix_millis, line_limit::LineLimit, transport::frame::Frame};

/// Entries that are read with one command.
const PAGE: usize = 100;

/// The limits of the tail, in frames and in bytes. Frames wait in outboxes as well, so their bytes
/// seldom cost memory twice.
const TAIL_FRAMES: usize = 4096;
const TAIL_BYTES: usize = 4 << 20;

/// How often reading is tried until a gap is reported as not repaired.
const TRIES: u32 = 30;

/// The time between two tries.
const RETRY: Duration = Duration::from_millis(500);

/// How often the journal is announced to emitters.
const ANNOUNCE: Duration = Duration::from_secs(5);

/// How long a connecting client waits for the node to know where the journal ends.
/// Without Redis, the node does not know.
const BEGIN: Duration = Duration::from_secs(1);

/// How long a returning client waits until this node has delivered the events that it received
/// elsewhere.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How long entries that were read for one returning client serve others, in milliseconds.
const SHARED: u64 = 10_000;

pub(super) struct Journal {
    pub(super) log: Arc<dyn Log>,
    state: Mutex<State>,
    /// Notified when the chain has grown, or has got its beginning.
    grown: Notify,
    /// The entries before the tail, as they were read last.
    earlier: AsyncMutex<Option<Earlier>>,
    has_tail: bool,
}

/// The chain as far as it was delivered.
#[derive(Default)]
pub(super) struct State {
    /// The last link; `None` until the node knows where the journal ends.
    last: Option<Position>,
    /// The greatest id that was seen.
    newest: u64,
    is_repairing: bool,
    tail: VecDeque<Arc<Kept>>,
    tail_bytes: usize,
}

/// A broadcast that was delivered, or that a returning client has missed.
pub(super) struct Kept {
    position: Position,
    /// `None` if it cannot be read, or not be encoded for clients: then it is only a link.
    sent: Option<(Target, Frame)>,
}

impl Kept {
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// The receivers, and the packets for them.
    pub(super) fn sent(&self) -> Option<(&Target, &Frame)> {
        self.sent.as_ref().map(|(target, frame)| (target, frame))
    }

    pub(super) fn cost(&self) -> usize {
        self.sent.as_ref().map_or(0, |(_, frame)| frame.cost())
    }
}

/// The place in the chain up to which a client has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offset {
    pub(super) id: u64,
    /// 0 if it is not known.
    pub(super) time: u64,
}

struct Earlier {
    from: Offset,
    kept: VecDeque<Arc<Kept>>,
    /// When it is removed, in milliseconds since 1970.
    until: u64,
}

/// The relation of a broadcast to the chain.
#[derive(Debug, PartialEq, Eq)]
enum Link {
    Next,
    /// It was delivered already.
    Known,
    /// Something before it is missing.
    Missing,
}

/// How far a repair has come.
enum Step {
    More,
    Done,
    /// The next entry is no longer kept.
    Broken,
}

impl Offset {
    fn is(&self, position: &Position) -> bool {
        let is_time = self.time == 0 || position.time == 0 || self.time == position.time;
        self.id == position.id && is_time
    }

    /// Whether a link comes directly after this place.
    fn precedes(&self, position: &Position) -> bool {
        position.after == Some(self.id) && position.id > self.id
    }
}

impl From<Position> for Offset {
    fn from(position: Position) -> Self {
        Self {
            id: position.id,
            time: position.time,
        }
    }
}

impl State {
    fn link(&self, position: &Position) -> Link {
        let Some(last) = self.last else {
            return Link::Next;
        };
        if Offset::from(last).precedes(position) {
            Link::Next
        } else if position.id <= last.id && position.time <= last.time {
            Link::Known
        } else {
            // Also a smaller id with a later time: the journal was lost and begins again.
            Link::Missing
        }
    }

    /// Whether this link, or a later one of the same journal, was delivered.
    fn has_passed(&self, position: &Position) -> bool {
        self.last.is_some_and(|last| position.id <= last.id)
    }

    /// The chain goes up to this link.
    fn reach(&mut self, position: Position) {
        self.last = Some(position);
        self.newest = self.newest.max(position.id);
    }

    fn keep(&mut self, kept: Kept) {
        self.tail_bytes += kept.cost();
        self.tail.push_back(Arc::new(kept));
        while self.tail.len() > TAIL_FRAMES || self.tail_bytes > TAIL_BYTES {
            let Some(first) = self.tail.pop_front() else {
                return;
            };
            self.tail_bytes -= first.cost();
        }
    }

    fn forget_tail(&mut self) {
        self.tail.clear();
        self.tail_bytes = 0;
    }

    /// Whether everything after this place is in the tail.
    fn covers(&self, from: Offset) -> bool {
        if self.last.is_some_and(|last| from.is(&last)) {
            return true;
        }
        let Some(first) = self.tail.front() else {
            return false;
        };
        from.precedes(&first.position) || {
            let at = self.tail.partition_point(|kept| kept.position.id < from.id);
            let found = self.tail.get(at);
            found.is_some_and(|kept| from.is(&kept.position))
        }
    }

    /// The broadcasts that were delivered after this place, of `earlier` and of the tail.
    /// `None` if a link is missing between them.
    pub(super) fn after(&self, from: Offset, earlier: &[Arc<Kept>]) -> Option<Vec<Arc<Kept>>> {
        let last = self.last?;
        let earlier = earlier.iter().filter(|kept| {
            // This node delivers later entries by itself.
            kept.position.id > from.id && kept.position.id <= last.id
        });
        let mut found: Vec<_> = earlier.cloned().collect();
        let reached = found.last().map_or(from, |kept| kept.position.into());
        let at = self
            .tail
            .partition_point(|kept| kept.position.id <= reached.id);
        let is_whole = match self.tail.get(at) {
            Some(next) => reached.precedes(&next.position),
            None => reached.is(&last),
        };
        found.extend(self.tail.range(at..).cloned());
        is_whole.then_some(found)
    }

    /// Whether a place that a node has noted is among these links, which are everything from
    /// a place on, or behind them, because this node has not come as far. Otherwise it is
    /// before them, or in a journal that was lost.
    pub(super) fn is_ahead(&self, place: Offset, links: &[Arc<Kept>]) -> bool {
        match links.binary_search_by_key(&place.id, |kept| kept.position.id) {
            Ok(at) => place.is(&links[at].position),
            Err(_) => self
                .last
                .is_some_and(|last| place.id > last.id && place.time >= last.time),
        }
    }
}

impl Journal {
    /// `has_tail`: whether the latest frames are kept.
    pub(super) fn new(log: Arc<dyn Log>, has_tail: bool) -> Self {
        Self {
            log,
            state: Mutex::default(),
            grown: Notify::new(),
            earlier: AsyncMutex::default(),
            has_tail,
        }
    }

    /// The text by which clients name a place when they come back.
    pub(super) fn offset_text(&self, offset: Offset) -> String {
        self.log.offset(offset.id, offset.time)
    }

    /// Reads such a text.
    pub(super) fn read_offset(&self, text: &str) -> Option<Offset> {
        let (id, time) = self.log.read_offset(text)?;
        Some(Offset { id, time })
    }

    /// Sockets that are admitted under this lock receive broadcasts delivered after it is released.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The last broadcast that was delivered.
    pub(super) fn last(&self) -> Option<Position> {
        self.state.lock().last
    }

    /// Finds out where the journal ends. The namespace is subscribed already, so that later
    /// messages arrive. Emitters are notified whether broadcasts can be emitted at least once.
    pub(super) async fn begin(self: Arc<Self>, at_least_once: bool) {
        self.find_end().await;
        let journal = Arc::downgrade(&self);
        drop(self);
        // The limits are written again and again, because Redis may lose them.
        while let Some(journal) = journal.upgrade() {
            if let Err(error) = journal.log.announce(at_least_once).await {
                tracing::debug!(%error, "emitters may not know of a journal yet");
            }
            drop(journal);
            sleep(ANNOUNCE).await;
        }
    }

    async fn find_end(self: &Arc<Self>) {
        loop {
            match self.log.read_journal(Page::Latest, 1).await {
                Ok(page) => {
                    let mut state = self.state.lock();
                    state.last.get_or_insert_with(|| end_of(page));
                    drop(state);
                    self.grown.notify_waiters();
                    return;
                }
                Err(error) => tracing::debug!(%error, "the end of a journal is not known yet"),
            }
            if self.last().is_some() || Arc::strong_count(self) == 1 {
                return;
            }
            sleep(RETRY).await;
        }
    }

    /// Returns the later of two places, `None` if the journal cannot be read.
    ///
    /// The ids of a journal grow, also while the clock of Redis goes back. A journal that was
    /// lost begins again, perhaps with smaller ids, and with later times. So where ids and
    /// times contradict each other, the greater id is later if the journal has it.
    pub(super) async fn later(&self, one: Offset, other: Offset) -> Option<Offset> {
        let (greater, lesser) = match one.id > other.id {
            true => (one, other),
            false => (other, one),
        };
        let is_time_known = greater.time > 0 && lesser.time > 0;
        let is_later = !is_time_known || greater.time >= lesser.time || self.has(greater).await?;
        Some(if is_later { greater } else { lesser })
    }

    /// Whether the journal keeps the broadcast at this place. `None` if it cannot be read.
    async fn has(&self, place: Offset) -> Option<bool> {
        let page = self.log.read_journal(Page::Only(place.id), 1).await.ok()?;
        let found = links(page);
        Some(found.first().is_some_and(|link| place.is(&link.position)))
    }

    /// Resolves once the node knows where the journal ends, or after a while.
    pub(super) async fn begun(&self) {
        let begun = async {
            loop {
                let grown = self.grown.notified();
                if self.last().is_some() {
                    return;
                }
                grown.await;
            }
        };
        let _ = timeout(BEGIN, begun).await;
    }

    /// Reads the entries after this place that are not in the tail. `None` if one of them is no
    /// longer kept or cannot be read.
    pub(super) async fn read_after(
        &self,
        namespace: &LiveNamespace,
        from: Offset,
    ) -> Option<Vec<Arc<Kept>>> {
        let is_covered = timeout(CATCH_UP, self.reach(from)).await.ok()??;
        if is_covered {
            return Some(Vec::new());
        }
        self.read_earlier(namespace, from).await
    }

    /// Waits until this node has delivered the events that a client has received, because other
    /// nodes may have delivered them earlier. Returns whether the tail has everything after it;
    /// `None` if it is not in the journal.
    async fn reach(&self, from: Offset) -> Option<bool> {
        loop {
            let grown = self.grown.notified();
            {
                let state = self.state.lock();
                if state.covers(from) {
                    return Some(true);
                }
                if state.last.is_some_and(|last| last.id > from.id) {
                    return Some(false);
                }
            }
            self.has(from).await?.then_some(())?;
            let _ = timeout(RETRY, grown).await;
        }
    }

    /// Reads from this place to the tail. Clients that return at the same time share one reading.
    async fn read_earlier(
        &self,
        namespace: &LiveNamespace,
        from: Offset,
    ) -> Option<Vec<Arc<Kept>>> {
        let mut shared = self.earlier.lock().await;
        let end = {
            let state = self.state.lock();
            let first = state.tail.front();
            first.map_or_else(|| state.last, |first| Some(first.position))?
        };
        let mut known = shared
            .take()
            .filter(|earlier| {
                let last = earlier.kept.back();
                let reaches = last.is_some_and(|last| {
                    last.position.id >= end.id || end.after == Some(last.position.id)
                });
                reaches && unix_millis() < earlier.until
            })
            .unwrap_or_else(|| Earlier {
                from: end.into(),
                kept: VecDeque::new(),
                until: unix_millis() + SHARED,
            });
        let at = known
            .kept
            .partition_point(|kept| kept.position.id <= from.id);
        let is_known = known.from.is(&Position {
            id: from.id,
            time: from.time,
            after: None,
        }) || at > 0 && from.is(&known.kept[at - 1].position);
        if !is_known {
            let mut read = self.read_range(namespace, from, known.from.id).await?;
            read.append(&mut known.kept);
            known = Earlier {
                from,
                kept: read,
                until: unix_millis() + SHARED,
            };
        }
        let after = known.kept.iter();
        let after = after.filter(|kept| kept.position.id > from.id);
        let found = after.cloned().collect();
        *shared = Some(known);
        Some(found)
    }

    /// Reads the entries after `from`, up to and including `end`. `None` if the chain does
    /// not begin there.
    async fn read_range(
        &self,
        namespace: &LiveNamespace,
        from: Offset,
        end: u64,
    ) -> Option<VecDeque<Arc<Kept>>> {
        let mut read = VecDeque::new();
        let mut reached = from;
        loop {
            let page = Page::After(reached.id.saturating_sub(1));
            let page = self.log.read_journal(page, PAGE).await.ok()?;
            let is_full = page.is_full;
            let mut links = links(page).into_iter().peekable();
            if links.next_if(|link| reached.is(&link.position)).is_none()
                && !links
                    .peek()
                    .is_some_and(|link| reached.precedes(&link.position))
            {
                return None;
            }
            for link in links {
                if !reached.precedes(&link.position) {
                    return None;
                }
                reached = link.position.into();
                read.push_back(Arc::new(namespace.kept(link)));
                if reached.id >= end {
                    return Some(read);
                }
            }
            if !is_full {
                // The end itself was read, or it was removed with all before it.
                return (reached.id >= end).then_some(read);
            }
        }
    }

    /// Notes that something may be missing. Returns `false` if a repair is in flight already.
    fn begin_repair(&self) -> bool {
        let mut state = self.state.lock();
        !std::mem::replace(&mut state.is_repairing, true)
    }

    /// Delivers a page of the journal that was read from `last` on.
    fn take_page(&self, namespace: &LiveNamespace, last: Position, page: JournalPage) -> Step {
        let mut state = self.state.lock();
        let from = Offset::from(last);
        let (is_full, newest) = (page.is_full, page.newest);
        let links = links(page);
        let is_whole = match links.first() {
            Some(first) => from.is(&first.position) || from.precedes(&first.position),
            None => newest == last.id,
        };
        if !is_whole {
            return Step::Broken;
        }
        for link in links {
            match state.link(&link.position) {
                Link::Next => namespace.take_link(self, &mut state, link),
                Link::Known => {}
                // Delivered meanwhile, before the clock of Redis went back: the page continues
                // the chain, so the ids are those of one journal.
                Link::Missing if state.has_passed(&link.position) => {}
                Link::Missing => return Step::Broken,
            }
        }
        let is_behind = state.last.is_some_and(|last| last.id < state.newest);
        if is_full || is_behind {
            return Step::More;
        }
        state.is_repairing = false;
        Step::Done
    }

    /// Continues after a break of the chain, with all kept entries that were stored later than the
    /// delivered ones: those with a greater id, or with a later time if the journal has begun again.
    async fn skip(&self, namespace: &LiveNamespace) -> Result<(), BusError> {
        let before = self.last();
        self.state.lock().forget_tail();
        let (mut reached, mut end, mut is_any) = (0, None, false);
        loop {
            let page = self.log.read_journal(Page::After(reached), PAGE).await?;
            let (is_full, newest) = (page.is_full, page.newest);
            let mut state = self.state.lock();
            for link in links(page) {
                let position = link.position;
                reached = position.id;
                end = Some(position);
                let is_later = before
                    .is_none_or(|before| position.id > before.id || position.time > before.time);
                let is_known = match is_any {
                    // Both are of the journal that is read.
                    true => state.has_passed(&position),
                    false => state.link(&position) == Link::Known,
                };
                if is_later && !is_known {
                    // The next broadcast continues this one.
                    state.last = None;
                    namespace.take_link(self, &mut state, link);
                    is_any = true;
                }
            }
            if !is_full {
                if state.last.is_none() || !is_any && state.last == before {
                    // As it is kept, or the next page would not begin with it and break again.
                    let end = end.filter(|end| end.id == newest);
                    state.last = Some(end.unwrap_or_else(|| Position {
                        id: newest,
                        time: before.map_or(0, |before| before.time),
                        after: None,
                    }));
                }
                state.newest = state.last.map_or(0, |last| last.id);
                return Ok(());
            }
        }
    }

    /// Takes whatever arrives next, because the journal cannot be read.
    fn give_up(&self) {
        let mut state = self.state.lock();
        state.forget_tail();
        state.last = None;
        state.is_repairing = false;
    }
}

/// Where a journal ends whose newest entry was read.
fn end_of(page: JournalPage) -> Position {
    let newest = Position {
        id: page.newest,
        time: 0,
        after: None,
    };
    links(page).last().map_or(newest, |link| link.position)
}

/// A link of the chain as it was read.
struct Stored {
    position: Position,
    /// `None` if it cannot be read.
    broadcast: Option<Broadcast>,
}

/// The entries that were read, in the order of the journal.
fn links(page: JournalPage) -> Vec<Stored> {
    let read = page.entries.into_iter().map(|entry| Stored {
        position: entry.position,
        broadcast: Some(entry.broadcast),
    });
    let unreadable = page.unreadable.into_iter().map(|position| Stored {
        position,
        broadcast: None,
    });
    let mut links: Vec<_> = read.chain(unreadable).collect();
    links.sort_unstable_by_key(|link| link.position.id);
    links
}

impl LiveNamespace {
    /// Emits an event through the journal: the sockets of this node receive it like
    /// those of all others, in the order of the journal.
    pub(super) async fn broadcast_journaled(
        &self,
        journal: &Journal,
        broadcast: Broadcast,
    ) -> Result<Delivery, EmitError> {
        let published = journal.log.broadcast(broadcast).await?;
        Ok(Delivery {
            local_sockets: 0,
            nodes: published.nodes,
            position: published.position,
            is_replayed: false,
        })
    }

    /// Emits an event to one socket through the journal. It has its place among the
    /// other events of this node when this returns. If it was not stored, the socket
    /// receives it all the same, but only now.
    pub(super) fn unicast_journaled(
        &self,
        journal: &Journal,
        socket: &Socket,
        event: &str,
        args: Args,
    ) {
        static LINES: LineLimit = LineLimit::new();
        let mut target = Target::default();
        target.add_rooms(socket.id());
        let (socket, event) = (socket.clone(), Box::<str>::from(event));
        let mut storing = journal.log.broadcast(Broadcast {
            target,
            event: event.clone(),
            args: args.clone(),
        });
        // It is enqueued with the first poll, or delivered in a namespace without Redis.
        let first = storing
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        let Some(server) = self.server.upgrade() else {
            return;
        };
        let finish = move |stored: Result<Published, BusError>| match stored {
            Ok(_) => {}
            Err(BusError::Unconfirmed(error)) => {
                tracing::debug!(%error, "an event to a socket may not have been stored");
            }
            Err(error) => {
                if let Some(left_out) = LINES.pass() {
                    let namespace = socket.namespace_name();
                    tracing::warn!(namespace, %error, left_out, "events to sockets cannot be stored: clients that come back miss them");
                }
                drop(socket.send_event(&event, args));
            }
        };
        match first {
            Poll::Ready(stored) => finish(stored),
            Poll::Pending => {
                let following = async move { finish(storing.await) };
                drop(server.tasks.runtime().spawn(following));
            }
        }
    }

    /// A broadcast of the journal has arrived. Returns the number of sockets that it was meant for.
    pub(super) fn receive_journaled(
        &self,
        journal: &Arc<Journal>,
        message: &Message,
        position: Position,
    ) -> usize {
        let Message::Broadcast(broadcast) = message else {
            return 0;
        };
        let mut state = journal.state.lock();
        state.newest = state.newest.max(position.id);
        match state.link(&position) {
            Link::Next => {
                let sockets = self.deliver_link(journal, &mut state, broadcast, position);
                drop(state);
                journal.grown.notify_waiters();
                sockets
            }
            Link::Known => 0,
            Link::Missing => {
                if position.id < state.newest && state.last.is_some_and(|l| position.id <= l.id) {
                    // A journal that begins again.
                    state.newest = position.id;
                }
                drop(state);
                self.repair_later(journal);
                0
            }
        }
    }

    /// Delivers the next link of the chain. One that cannot be read, because the settings
    /// of the cluster were changed or a faulty node wrote it, is passed over: reading
    /// again would not help.
    fn take_link(&self, journal: &Journal, state: &mut State, next: Stored) {
        let Stored {
            position,
            broadcast,
        } = next;
        if let Some(broadcast) = broadcast {
            self.deliver_link(journal, state, &broadcast, position);
            return;
        }
        let metrics = &self.engine.metrics;
        metrics
            .journal_gaps
            .with_label_values(&["unreadable"])
            .inc();
        tracing::warn!(
            namespace = &*self.name,
            id = position.id,
            "a broadcast of the journal cannot be read, and is skipped"
        );
        state.reach(position);
        if journal.has_tail {
            state.keep(Kept {
                position,
                sent: None,
            });
        }
    }

    /// Delivers the next broadcast of the chain.
    fn deliver_link(
        &self,
        journal: &Journal,
        state: &mut State,
        next: &Broadcast,
        position: Position,
    ) -> usize {
        state.reach(position);
        match self.deliver(next, Some(position)) {
            Ok((frame, sockets)) => {
                if journal.has_tail {
                    state.keep(Kept {
                        position,
                        sent: Some((next.target.clone(), frame)),
                    });
                }
                sockets
            }
            Err(error) => {
                // No client could read it, here or elsewhere.
                tracing::debug!(namespace = &*self.name, %error, "a broadcast of the journal cannot be delivered");
                state.forget_tail();
                0
            }
        }
    }

    /// An entry of the journal as a returning client receives it.
    fn kept(&self, link: Stored) -> Kept {
        let position = Some(link.position);
        let sent = link.broadcast.and_then(|read| {
            let frame = self.frame(&read.target, None, &read.event, &read.args, position);
            Some((read.target, frame.ok()?))
        });
        Kept {
            position: link.position,
            sent,
        }
    }

    fn repair_later(&self, journal: &Arc<Journal>) {
        if !journal.begin_repair() {
            return;
        }
        let (journal, me) = (Arc::clone(journal), Weak::clone(&self.me));
        if let Some(server) = self.server.upgrade() {
            drop(server.tasks.runtime().spawn(repair(journal, me)));
        }
    }

    /// Reads the entries that this node may have missed in a gap, and delivers them.
    pub(super) async fn repair_journal(&self) {
        if let Some(journal) = &self.journal
            && journal.last().is_some()
            && journal.begin_repair()
        {
            repair(Arc::clone(journal), Weak::clone(&self.me)).await;
        }
    }
}

/// Delivers the missing entries. Returns whether they were complete.
async fn repair(journal: Arc<Journal>, namespace: Weak<LiveNamespace>) {
    let mut failures = 0;
    let mut is_whole = true;
    let before = journal.last();
    loop {
        let Some(namespace) = namespace.upgrade() else {
            return;
        };
        let Some(last) = journal.last() else {
            journal.give_up();
            return;
        };
        // With the last link itself, because it shows that the journal is still the same.
        let page = Page::After(last.id.saturating_sub(1));
        let step = match journal.log.read_journal(page, PAGE).await {
            Ok(page) => match journal.take_page(&namespace, last, page) {
                Step::Broken => {
                    is_whole = false;
                    journal.skip(&namespace).await.map(|()| Step::More)
                }
                step => Ok(step),
            },
            Err(error) => Err(error),
        };
        journal.grown.notify_waiters();
        match step {
            Ok(Step::Done) => {
                if journal.last() != before || !is_whole {
                    namespace.report_repair(is_whole);
                }
                return;
            }
            Ok(_) => failures = 0,
            Err(error) if failures == TRIES => {
                tracing::warn!(namespace = &*namespace.name, %error, "the journal cannot be read");
                journal.give_up();
                namespace.report_repair(false);
                return;
            }
            Err(_) => {
                failures += 1;
                drop(namespace);
                sleep(RETRY).await;
            }
        }
    }
}

impl LiveNamespace {
    fn report_repair(&self, is_whole: bool) {
        let namespace = &*self.name;
        let outcome = if is_whole { "repaired" } else { "lost" };
        let metrics = &self.engine.metrics;
        metrics.journal_gaps.with_label_values(&[outcome]).inc();
        if is_whole {
            tracing::info!(
                namespace,
                "a gap of the journal is repaired: the missing broadcasts are delivered"
            );
        } else {
            tracing::warn!(
                namespace,
                "a gap of the journal is not repaired: the missing broadcasts are no longer kept"
            );
        }
    }
}

/// Whether a target selects a socket that was in the rooms for which `is_in` holds.
pub(super) fn is_meant(target: &Target, is_in: impl Fn(&str) -> bool) -> bool {
    let is_in_any = |names: &[Box<str>]| names.iter().any(|name| is_in(name));
    (target.rooms.is_empty() || is_in_any(&target.rooms)) && !is_in_any(&target.except)
}
