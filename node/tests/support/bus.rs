//! A bus without other nodes: it notes what it is told and answers what a test has prepared.

use std::{
    future::{pending, ready},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use roomcast::{
    Args, BusError, Gap, Health, HistoryEntry, NodeId, Position,
    bus::{
        Answered, Attachment, Broadcast, Bus, BusFuture, BusHandle, JournalEntry, JournalPage,
        Listener, Log, LogLimits, Message, Page, Published, Question, Session, Sessions, Taken,
        Target, Tracking,
    },
};
use roomcast_adapter::MemorySessions;

#[derive(Clone)]
pub(crate) struct FakeBus(Arc<State>);

type OnGap = Box<dyn Fn(&Gap) + Send + Sync>;

struct State {
    tracking: Tracking,
    log: Mutex<Vec<String>>,
    listeners: Mutex<Vec<(String, Weak<dyn Listener>)>>,
    on_gap: Mutex<Vec<OnGap>>,
    health: Mutex<Health>,
    answered: Mutex<Answered>,
    confirms: Mutex<Result<(), BusError>>,
    /// Retiring and closing never come to an end.
    hangs: bool,
    gauges: Vec<prometheus::IntGauge>,
    /// The events of all rooms.
    entries: Mutex<Vec<HistoryEntry>>,
    /// Logs cannot be read.
    is_unreadable: Mutex<bool>,
    /// The broadcasts of the journal.
    journal: Mutex<Vec<JournalEntry>>,
    sessions: MemorySessions,
    /// Sessions cannot be stored or taken.
    is_storeless: Arc<AtomicBool>,
}

impl FakeBus {
    pub(crate) fn new() -> Self {
        Self::with(Tracking::Nothing, false, Vec::new())
    }

    pub(crate) fn tracking(tracking: Tracking) -> Self {
        Self::with(tracking, false, Vec::new())
    }

    pub(crate) fn hanging() -> Self {
        Self::with(Tracking::Nothing, true, Vec::new())
    }

    /// A bus with one metric.
    pub(crate) fn metered(name: &str) -> Self {
        let gauge = prometheus::IntGauge::new(name, "A metric of the bus.").unwrap();
        Self::with(Tracking::Nothing, false, vec![gauge])
    }

    fn with(tracking: Tracking, hangs: bool, gauges: Vec<prometheus::IntGauge>) -> Self {
        Self(Arc::new(State {
            tracking,
            log: Mutex::default(),
            listeners: Mutex::default(),
            on_gap: Mutex::default(),
            health: Mutex::new(Health::Flowing),
            answered: Mutex::default(),
            confirms: Mutex::new(Ok(())),
            hangs,
            gauges,
            entries: Mutex::default(),
            is_unreadable: Mutex::default(),
            journal: Mutex::default(),
            sessions: MemorySessions::default(),
            is_storeless: Arc::default(),
        }))
    }

    /// The bus of another node, with the sessions of this one.
    pub(crate) fn with_sessions_of(other: &Self) -> Self {
        let mut bus = Self::new();
        let state = Arc::get_mut(&mut bus.0).unwrap();
        state.sessions = other.0.sessions.clone();
        bus
    }

    /// Whether the sessions can be reached from now on.
    pub(crate) fn set_storing(&self, is_storing: bool) {
        self.0.is_storeless.store(!is_storing, Ordering::SeqCst);
    }

    /// What the bus was told since the last call.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.log.lock())
    }

    /// Notes something of the test's own, to see what came before it.
    pub(crate) fn note(&self, what: impl Into<String>) {
        self.0.log.lock().push(what.into());
    }

    /// The namespace as another node would reach it.
    pub(crate) fn listener(&self, namespace: &str) -> Arc<dyn Listener> {
        let listeners = self.0.listeners.lock();
        let mut found = listeners.iter().filter(|(name, _)| name == namespace);
        let (_, listener) = found.next_back().unwrap();
        listener.upgrade().unwrap()
    }

    pub(crate) fn report(&self, gap: Gap) {
        for on_gap in self.0.on_gap.lock().iter() {
            on_gap(&gap);
        }
    }

    pub(crate) fn set_health(&self, health: Health) {
        *self.0.health.lock() = health;
    }

    /// What is answered from now on, whatever is asked.
    pub(crate) fn answers(&self, answered: Answered) {
        *self.0.answered.lock() = answered;
    }

    /// Adds an entry to the log of its room.
    pub(crate) fn keep(&self, entry: HistoryEntry) {
        self.0.entries.lock().push(entry);
    }

    /// Loses what is kept of all rooms.
    pub(crate) fn lose(&self) {
        self.0.entries.lock().clear();
    }

    /// Whether logs of rooms can be read from now on.
    pub(crate) fn set_readable(&self, is_readable: bool) {
        *self.0.is_unreadable.lock() = !is_readable;
    }

    /// Replaces what the journal keeps. An entry whose event is [`UNREADABLE`] cannot be read.
    pub(crate) fn set_journal(&self, entries: Vec<JournalEntry>) {
        *self.0.journal.lock() = entries;
    }

    /// A broadcast of the journal arrives.
    pub(crate) fn hear(&self, entry: JournalEntry) {
        let message = Message::Broadcast(entry.broadcast);
        self.listener("/").receive(&message, Some(entry.position));
    }

    pub(crate) fn cannot_confirm(&self) {
        *self.0.confirms.lock() = Err(BusError::Unavailable("cut off".into()));
    }
}

impl Bus for FakeBus {
    fn attach(&self, attachment: Attachment<'_>) -> Arc<dyn BusHandle> {
        let namespace = attachment.namespace.to_owned();
        self.note(format!("attach {namespace}"));
        let listener = (namespace.clone(), attachment.listener);
        self.0.listeners.lock().push(listener);
        let bus = self.clone();
        Arc::new(Handle { bus, namespace })
    }

    fn health(&self) -> Health {
        self.0.health.lock().clone()
    }

    fn on_gap(&self, f: OnGap) {
        self.0.on_gap.lock().push(f);
    }

    fn retire(&self, _: &NodeId) -> BusFuture<()> {
        self.note("retire");
        self.end()
    }

    fn close(&self, _: &NodeId) -> BusFuture<()> {
        self.note("close");
        self.end()
    }

    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        let gauges = self.0.gauges.iter().cloned();
        gauges.map(|gauge| Box::new(gauge) as _).collect()
    }
}

impl Log for FakeBus {
    fn publish(&self, _: &str, _: &str, _: Args) -> BusFuture<Result<Position, BusError>> {
        Box::pin(ready(Err(BusError::Unavailable("cut off".into()))))
    }

    fn read(
        &self,
        room: &str,
        page: Page,
        limit: usize,
    ) -> BusFuture<Result<Vec<HistoryEntry>, BusError>> {
        self.note(format!("read {room}"));
        if *self.0.is_unreadable.lock() {
            return Box::pin(ready(Err(BusError::Unavailable("cut off".into()))));
        }
        let entries = self.0.entries.lock();
        let given = entries.iter().map(|entry| entry.id).max().unwrap_or(0);
        let mut of_room = entries.iter().filter(|entry| *entry.room == *room);
        let read: Vec<_> = match page {
            Page::After(id) => of_room
                .filter(|entry| entry.id > id || id > given)
                .take(limit)
                .cloned()
                .collect(),
            Page::Before(id) => {
                let before = of_room.rfind(|entry| entry.id < id);
                before.cloned().into_iter().collect()
            }
            _ => of_room.next_back().cloned().into_iter().collect(),
        };
        Box::pin(ready(Ok(read)))
    }

    fn broadcast(&self, _: Broadcast) -> BusFuture<Result<Published, BusError>> {
        Box::pin(ready(Err(BusError::Unconfirmed("cut off".into()))))
    }

    fn read_journal(&self, page: Page, limit: usize) -> BusFuture<Result<JournalPage, BusError>> {
        let journal = self.0.journal.lock();
        let kept = journal.iter();
        let entries: Vec<_> = match page {
            Page::After(id) => kept
                .filter(|entry| entry.position.id > id)
                .take(limit)
                .cloned()
                .collect(),
            Page::Only(id) => kept
                .filter(|entry| entry.position.id == id)
                .cloned()
                .collect(),
            _ => kept.last().cloned().into_iter().collect(),
        };
        Box::pin(ready(Ok(JournalPage {
            is_full: entries.len() == limit,
            entries: entries
                .iter()
                .filter(|entry| !unreadable(entry))
                .cloned()
                .collect(),
            unreadable: entries
                .iter()
                .filter(|entry| unreadable(entry))
                .map(|entry| entry.position)
                .collect(),
            newest: journal.last().map_or(0, |entry| entry.position.id),
        })))
    }
}

/// The event of an entry of the journal that cannot be read.
pub(crate) const UNREADABLE: &str = "unreadable";

fn unreadable(entry: &JournalEntry) -> bool {
    &*entry.broadcast.event == UNREADABLE
}

/// A namespace on the bus.
struct Handle {
    bus: FakeBus,
    namespace: String,
}

impl BusHandle for Handle {
    fn tracking(&self) -> Tracking {
        self.bus.0.tracking
    }

    fn changed(&self) {
        let mut changes = Vec::new();
        self.bus
            .listener(&self.namespace)
            .take_changes(&mut |room, is_occupied| {
                let sign = if is_occupied { '+' } else { '-' };
                changes.push(format!("{sign}{room}"));
            });
        changes.sort();
        self.bus.0.log.lock().extend(changes);
    }

    fn confirm(&self, rooms: Vec<Box<str>>) -> BusFuture<Result<(), BusError>> {
        self.bus.note(format!("confirm {}", rooms.join(" ")));
        Box::pin(ready(self.bus.0.confirms.lock().clone()))
    }

    fn publish(&self, message: Message) -> BusFuture<Result<Published, BusError>> {
        self.bus.note(format!("publish {message:?}"));
        Box::pin(ready(Ok(Published {
            nodes: 1,
            ..Published::default()
        })))
    }

    fn log(&self, _: LogLimits) -> Option<Arc<dyn Log>> {
        Some(Arc::new(self.bus.clone()))
    }

    fn sessions(&self) -> Option<Arc<dyn Sessions>> {
        Some(Arc::new(Store {
            sessions: self.bus.0.sessions.of(&self.namespace),
            is_away: Arc::clone(&self.bus.0.is_storeless),
        }))
    }

    fn ask(&self, question: Question, timeout: Duration) -> BusFuture<Result<Answered, BusError>> {
        self.bus.note(format!("ask {question:?} for {timeout:?}"));
        Box::pin(ready(Ok(self.bus.0.answered.lock().clone())))
    }
}

/// Sessions that cannot be reached at times.
struct Store {
    sessions: Arc<dyn Sessions>,
    is_away: Arc<AtomicBool>,
}

impl Store {
    fn reach<T: Send + 'static>(
        &self,
        run: impl FnOnce(&dyn Sessions) -> BusFuture<Result<T, BusError>>,
    ) -> BusFuture<Result<T, BusError>> {
        if self.is_away.load(Ordering::SeqCst) {
            return Box::pin(ready(Err(BusError::Unavailable("cut off".into()))));
        }
        run(&*self.sessions)
    }
}

impl Sessions for Store {
    fn create(&self, session: Session) -> BusFuture<Result<(), BusError>> {
        self.reach(|sessions| sessions.create(session))
    }

    fn update(&self, session: Session) -> BusFuture<Result<bool, BusError>> {
        self.reach(|sessions| sessions.update(session))
    }

    fn remove(&self, pid: &str, owner: &str) -> BusFuture<Result<bool, BusError>> {
        self.reach(|sessions| sessions.remove(pid, owner))
    }

    fn refresh(&self, pids: &[Box<str>], life: Duration) -> BusFuture<Result<Vec<bool>, BusError>> {
        self.reach(|sessions| sessions.refresh(pids, life))
    }

    fn take(&self, pid: &str, owner: &str) -> BusFuture<Result<Option<Taken>, BusError>> {
        self.reach(|sessions| sessions.take(pid, owner))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.bus.note(format!("detach {}", self.namespace));
    }
}

impl FakeBus {
    fn end(&self) -> BusFuture<()> {
        if self.0.hangs {
            Box::pin(pending())
        } else {
            Box::pin(ready(()))
        }
    }
}
