//! Batches of events: one request for many of them.
//!
//! ```text
//!  event ─► run of the socket ── has its turn ──► ready ── size or delay ──► request ─► operations
//!              ▲    │                               ▲                                       │
//!   more events┘    └─ over: the turn goes on ◄─────┴──── more events? ◄────────────────────┘
//! ```
//!
//! A run has the events of one socket that arrived one after the other. While some of them are in
//! flight, the others wait, so the application receives the events of a socket in order, and no
//! socket waits for another. Several batches are in flight at the same time, as many as the hook
//! allows requests; while all of them are, events collect in fewer and larger batches.
//!
//! With `acks`, events that wait for an acknowledgement go in batches, too. Clients wait for them,
//! so a batch is sent at once while no other is in flight, and an application that is fast enough
//! receives each event alone.
//!
//! The handler of each event waits for its batch. The limit of a connection's events in flight
//! therefore applies to these events, too.
//!
//! **Locks:** the state of the batches, then that of a run. Nothing is awaited under
//! them.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Weak},
    vec,
};

use futures_util::future::join_all;
use http::HeaderMap;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use roomcast::{Ack, Event, Refused, Socket};
use tokio::{sync::oneshot, time::sleep};

use super::{
    Hooks,
    backend::{Backend, Failure, Subject, read_lists},
    metrics::Metrics,
    noted,
    request::{self, BatchBody},
    settings::{Batch, Settings},
    turns::{Turn, Turns},
};
use crate::gateway::operations::{Operation, Problem};

/// A batch that has reached this size, in bytes, takes no further events.
const MAX_BYTES: usize = 1 << 20;

/// The batches of one hook.
pub(super) struct Batches {
    backend: Arc<Backend>,
    settings: Batch,
    /// Batches under way at the same time.
    at_once: usize,
    /// The most runs that wait while all batches are in flight.
    queue: usize,
    state: Mutex<State>,
    waiting: IntGauge,
    sent: IntCounter,
}

#[derive(Default)]
struct State {
    /// Runs whose turn it is and which have no events under way.
    ready: VecDeque<Arc<Run>>,
    /// The number of their events.
    events: usize,
    under_way: usize,
    /// Whether a task waits for the delay.
    is_delayed: bool,
    /// Whether events are sent as soon as possible.
    is_hurried: bool,
}

/// Successive events of one socket.
pub(super) struct Run {
    batches: Weak<Batches>,
    /// Locked after the state of the batches.
    state: Mutex<RunState>,
}

#[derive(Default)]
struct RunState {
    events: VecDeque<Pending>,
    turn: Option<Turn>,
    is_ready: bool,
    /// Its turn has ended. It takes no further events.
    is_over: bool,
}

/// An event that waits.
struct Pending {
    socket: Socket,
    event: Event,
    /// Taken where the operations acknowledge or refuse.
    ack: Option<Ack>,
    done: oneshot::Sender<Result<(), Refused>>,
}

impl Pending {
    /// About the bytes of its arguments.
    fn size(&self) -> usize {
        let args = self.event.args();
        let attachments = args.attachments().iter().map(|bytes| bytes.len());
        args.json().len() + attachments.sum::<usize>()
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            request: None,
            event: Some(self.event.name()),
        }
    }
}

/// Events of one request, by their runs.
#[derive(Default)]
struct Taken {
    runs: Vec<(Arc<Run>, Vec<Pending>)>,
    count: usize,
    bytes: usize,
}

impl Batches {
    pub(super) fn new(
        backend: &Arc<Backend>,
        settings: &Settings,
        batch: Batch,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let name = [&*backend.name];
        Arc::new(Self {
            backend: Arc::clone(backend),
            at_once: settings.concurrency,
            queue: settings.queue,
            settings: batch,
            state: Mutex::default(),
            waiting: metrics.batch_waiting.with_label_values(&name),
            sent: metrics.batch_events.with_label_values(&name),
        })
    }

    /// Whether an event with this acknowledgement goes in a batch.
    pub(super) fn takes(&self, ack: &Ack) -> bool {
        self.settings.acks || !ack.is_wanted()
    }

    /// Sends an event with a batch and carries out the operations for it. The first poll
    /// determines its place among the events of the socket.
    pub(super) async fn event(
        self: &Arc<Self>,
        hooks: &Hooks,
        socket: &Socket,
        event: &Event,
        ack: Ack,
    ) -> Result<(), Refused> {
        let (done, outcome) = oneshot::channel();
        let pending = Pending {
            socket: socket.clone(),
            event: event.clone(),
            ack: Some(ack),
            done,
        };
        self.waiting.inc();
        let turns = Turns::of(socket);
        let new = turns.join_run(|open| self.join(open, pending));
        if let Some(run) = new {
            let turn = turns.next().await;
            self.ready(hooks, &run, Some(turn));
        } else {
            self.wake(hooks);
        }
        // Nothing is left unsent but by the end of the process.
        outcome.await.unwrap_or(Ok(()))
    }

    /// From now on events do not wait for others, because the process ends or a reload has replaced
    /// the hook.
    pub(super) fn hurry(self: &Arc<Self>, hooks: &Hooks) {
        self.state.lock().is_hurried = true;
        self.wake(hooks);
    }

    /// Adds an event to a run that is open, or else returns a new one.
    fn join(self: &Arc<Self>, open: Option<&Arc<Run>>, pending: Pending) -> Option<Arc<Run>> {
        let own = open.filter(|run| run.batches.as_ptr() == Arc::as_ptr(self));
        if let Some(run) = own {
            let mut state = self.state.lock();
            let mut run = run.state.lock();
            if !run.is_over {
                run.events.push_back(pending);
                // Events of a run that is in flight count as soon as it is ready again.
                state.events += usize::from(run.is_ready);
                return None;
            }
        }
        Some(Arc::new(Run {
            batches: Arc::downgrade(self),
            state: Mutex::new(RunState {
                events: [pending].into(),
                ..RunState::default()
            }),
        }))
    }

    /// Nothing of the run is in flight. Ends it if nothing is left, or if too many runs wait
    /// already. Runs are counted and not events, so that a socket that sends many events takes
    /// no room from the others.
    fn ready(self: &Arc<Self>, hooks: &Hooks, run: &Arc<Run>, turn: Option<Turn>) {
        let mut state = self.state.lock();
        let mut own = run.state.lock();
        let turn = turn.or_else(|| own.turn.take());
        let is_full = state.under_way >= self.at_once && state.ready.len() >= self.queue;
        if own.events.is_empty() || is_full {
            own.is_over = true;
            let refused = mem::take(&mut own.events);
            drop((own, state));
            for pending in refused {
                self.waiting.dec();
                let refused =
                    noted(&self.backend, pending.subject(), Failure::Overloaded).refused();
                // The client may have gone.
                drop(pending.done.send(Err(refused)));
            }
            drop(turn);
            return;
        }
        own.turn = turn;
        own.is_ready = true;
        state.events += own.events.len();
        state.ready.push_back(Arc::clone(run));
        drop((own, state));
        self.wake(hooks);
    }

    /// Sends a batch if there are enough events, or else waits for the delay.
    fn wake(self: &Arc<Self>, hooks: &Hooks) {
        let mut state = self.state.lock();
        while state.events >= self.enough(&state) && state.under_way < self.at_once {
            let taken = self.take(&mut state);
            self.start(&mut state, hooks, taken);
        }
        if state.events > 0 && !state.is_delayed && state.under_way < self.at_once {
            state.is_delayed = true;
            let (batches, hooks) = (Arc::clone(self), hooks.clone());
            tokio::spawn(async move {
                sleep(batches.settings.delay).await;
                batches.delay_over(&hooks);
            });
        }
    }

    /// The events that are sent without waiting for more.
    fn enough(&self, state: &State) -> usize {
        let is_awaited = self.settings.acks && state.under_way == 0;
        match state.is_hurried || is_awaited {
            true => 1,
            false => self.settings.size,
        }
    }

    fn delay_over(self: &Arc<Self>, hooks: &Hooks) {
        let mut state = self.state.lock();
        state.is_delayed = false;
        if state.events > 0 && state.under_way < self.at_once {
            let taken = self.take(&mut state);
            self.start(&mut state, hooks, taken);
        }
        drop(state);
        self.wake(hooks);
    }

    fn start(self: &Arc<Self>, state: &mut State, hooks: &Hooks, taken: Taken) {
        state.under_way += 1;
        let (batches, hooks) = (Arc::clone(self), hooks.clone());
        tokio::spawn(async move { batches.send(&hooks, taken).await });
    }

    /// Takes events of runs that are ready.
    fn take(&self, state: &mut State) -> Taken {
        let mut taken = Taken::default();
        let is_full = |taken: &Taken| taken.count >= self.settings.size || taken.bytes >= MAX_BYTES;
        while !is_full(&taken)
            && let Some(run) = state.ready.pop_front()
        {
            let mut own = run.state.lock();
            own.is_ready = false;
            state.events -= own.events.len();
            let mut events = Vec::new();
            while !is_full(&taken)
                && let Some(pending) = own.events.pop_front()
            {
                taken.count += 1;
                taken.bytes += pending.size();
                events.push(pending);
            }
            drop(own);
            taken.runs.push((run, events));
        }
        self.waiting.sub(taken.count as i64);
        taken
    }

    async fn send(self: &Arc<Self>, hooks: &Hooks, taken: Taken) {
        let backend = &self.backend;
        let request = hooks.next_id();
        let mut body = BatchBody::new(hooks.origin(backend, &request, ""));
        let runs = taken.runs.into_iter().map(|(run, events)| {
            let events = events.into_iter().map(|pending| {
                let written = self.write(hooks, &mut body, &pending);
                (pending, written)
            });
            (run, events.collect::<Vec<_>>())
        });
        let runs: Vec<_> = runs.collect();
        let count = body.count();
        self.sent.inc_by(count as u64);
        let called = match count {
            0 => Ok(Vec::new()),
            _ => {
                let read = |response: &[u8]| read_lists(response, count);
                let subject = Subject::request(&request);
                backend
                    .call(subject, body.finish(), HeaderMap::new(), read)
                    .await
            }
        };
        // Before the operations are carried out, which may wait: the next batch only
        // needs the backend.
        self.state.lock().under_way -= 1;
        self.wake(hooks);
        let mut lists = called
            .map(Vec::into_iter)
            .map_err(|failure| failure.refused());
        let all = runs.into_iter().map(|(run, events)| {
            let events = events.into_iter().map(|(pending, written)| {
                let list = written.and_then(|()| self.list(&pending, &mut lists));
                (pending, list)
            });
            self.carry_out(hooks, run, events.collect())
        });
        let all: Vec<_> = all.collect();
        join_all(all).await;
    }

    /// Adds an event to the body.
    fn write(&self, hooks: &Hooks, body: &mut BatchBody, pending: &Pending) -> Result<(), Refused> {
        let Pending { socket, event, .. } = pending;
        let wants_ack = pending.ack.as_ref().is_some_and(Ack::is_wanted);
        let id = hooks.next_id();
        let origin = hooks.origin(&self.backend, &id, socket.namespace_name());
        let written = request::event(origin, &self.backend.selection, socket, event, wants_ack);
        let written = written
            .map_err(|error| noted(&self.backend, pending.subject(), Failure::Request(error)));
        body.push(&written.map_err(|failure| failure.refused())?);
        Ok(())
    }

    /// The operations for the next event of the response. An empty response has none.
    fn list(
        &self,
        pending: &Pending,
        lists: &mut Result<Lists, Refused>,
    ) -> Result<Vec<Operation>, Refused> {
        match lists.as_mut().map_err(|refused| refused.clone())?.next() {
            Some(Err(problem)) => {
                Err(noted(&self.backend, pending.subject(), problem.into()).refused())
            }
            list => Ok(list.transpose().ok().flatten().unwrap_or_default()),
        }
    }

    /// Carries out the response's operations for the events of one run.
    async fn carry_out(
        self: &Arc<Self>,
        hooks: &Hooks,
        run: Arc<Run>,
        events: Vec<(Pending, Result<Vec<Operation>, Refused>)>,
    ) {
        // One after the other, since they are of one socket.
        for (mut pending, list) in events {
            let backend = &self.backend;
            // Out of the pending event, whose name the log needs.
            let mut ack = pending.ack.take();
            let result = match list {
                Ok(list) => {
                    let (socket, subject) = (&pending.socket, pending.subject());
                    hooks.answer(backend, subject, socket, list, &mut ack).await
                }
                Err(refused) => Err(refused),
            };
            // The client may have disconnected.
            drop(pending.done.send(result));
        }
        self.ready(hooks, &run, None);
    }
}

/// The lists of operations of a response, one for each event.
type Lists = vec::IntoIter<Result<Vec<Operation>, Problem>>;
