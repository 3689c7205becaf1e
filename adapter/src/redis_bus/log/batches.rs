//! Broadcasts on their way to the journal, many with one call of the script.
//!
//! A call costs Redis two to three times as much as a broadcast in it, so broadcasts are combined:
//!
//! ```text
//! broadcast ─► waiting ─┬─ up to 128, or 64 KiB ─► one EVALSHA ─► a place for each
//!               ▲       └─ publish to a room, alone ─► its own script
//!               └─────────────── the next ones, when the call has its reply
//! ```
//!
//! A lone broadcast leaves at once. One call is in flight at a time, because Redis may
//! have forgotten the script: a second call would overtake the repetition of the first.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use roomcast_emitter::redis::PublishError;
use tokio::{sync::oneshot, time::Instant};

use super::{JOURNAL, Names, PUBLISH, Placed, appended, published, run};
use crate::redis_bus::outgoing::Outgoing;

/// The most broadcasts of one call, and their bytes. Redis serves no other client meanwhile:
/// 128 take it half a millisecond.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 64 << 10;

/// Maximum number of waiting bytes, as in the queue of the link below.
const WAITING_BYTES: usize = 16 << 20;

/// The queue of one namespace.
pub(super) struct Batches {
    outgoing: Arc<Outgoing>,
    names: Arc<Names>,
    /// The arguments of the script before the broadcasts.
    settings: Vec<Vec<u8>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    is_calling: bool,
}

/// The keys and arguments of a call of the script for rooms.
pub(super) struct Single {
    pub(super) keys: Vec<String>,
    pub(super) args: Vec<Vec<u8>>,
}

/// A broadcast that has no place yet.
struct Waiting {
    /// Without its place.
    head: Bytes,
    /// Set if it is for the log of a room as well.
    single: Option<Single>,
    started: Instant,
    /// The receiver may have been dropped.
    done: oneshot::Sender<Result<Placed, PublishError>>,
}

impl State {
    /// Takes the broadcasts of the next call: many for the journal, or one for the log of a room.
    fn take(&mut self) -> Vec<Waiting> {
        let mut bytes = 0;
        let mut count = 0;
        for waiting in &self.waiting {
            bytes += waiting.head.len();
            let is_more = count == BATCH || bytes > BATCH_BYTES || waiting.single.is_some();
            if count > 0 && is_more {
                break;
            }
            count += 1;
            if waiting.single.is_some() {
                break;
            }
        }
        let taken: Vec<_> = self.waiting.drain(..count).collect();
        self.bytes -= taken
            .iter()
            .map(|waiting| waiting.head.len())
            .sum::<usize>();
        taken
    }
}

impl Batches {
    /// `settings`: the arguments of the script before the broadcasts.
    pub(super) fn new(
        outgoing: &Arc<Outgoing>,
        names: &Arc<Names>,
        settings: Vec<Vec<u8>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            outgoing: Arc::clone(outgoing),
            names: Arc::clone(names),
            settings,
            state: Mutex::default(),
        })
    }

    /// Enqueues a broadcast. The future resolves to its place and the number of connections that
    /// received it. Dropping it changes nothing.
    pub(super) fn push(
        self: &Arc<Self>,
        head: Bytes,
        single: Option<Single>,
    ) -> impl Future<Output = Result<Placed, PublishError>> + Send + use<> {
        let (done, outcome) = oneshot::channel();
        self.enqueue(Waiting {
            head,
            single,
            started: Instant::now(),
            done,
        });
        async move {
            let ended = || PublishError::Unconfirmed("the server ends".into());
            outcome.await.unwrap_or_else(|_| Err(ended()))
        }
    }

    fn enqueue(self: &Arc<Self>, waiting: Waiting) {
        let mut state = self.state.lock();
        let size = waiting.head.len();
        if state.bytes + size > WAITING_BYTES {
            let queued_bytes = state.bytes;
            drop(state);
            let overloaded = Err(PublishError::Overloaded { queued_bytes });
            waiting.finish(&self.outgoing, overloaded);
            return;
        }
        state.bytes += size;
        state.waiting.push_back(waiting);
        if !std::mem::replace(&mut state.is_calling, true) {
            let batch = state.take();
            drop(state);
            let call = self.call(batch);
            self.outgoing.spawn(Arc::clone(self).run(call));
        }
    }

    /// Awaits a call, and makes further calls while broadcasts wait.
    async fn run(self: Arc<Self>, first: impl Future<Output = ()> + Send) {
        first.await;
        while let Some(call) = self.next() {
            call.await;
        }
    }

    fn next(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            state.is_calling = false;
            return None;
        }
        let batch = state.take();
        drop(state);
        Some(self.call(batch))
    }

    /// Stores and publishes broadcasts. The command is enqueued when this returns.
    fn call(&self, batch: Vec<Waiting>) -> impl Future<Output = ()> + Send + use<> {
        let outgoing = Arc::clone(&self.outgoing);
        let single = batch.first().and_then(|first| first.single.as_ref());
        let is_single = single.is_some();
        let running = if let Some(Single { keys, args }) = single {
            let keys: Vec<_> = keys.iter().map(String::as_str).collect();
            let args: Vec<_> = args.iter().map(Vec::as_slice).collect();
            run(&PUBLISH, &outgoing, &keys, &args)
        } else {
            let keys = [&*self.names.counter, &*self.names.journal];
            let settings = self.settings.iter().map(Vec::as_slice);
            let heads = batch.iter().map(|waiting| &*waiting.head);
            let args: Vec<_> = settings.chain(heads).collect();
            run(&JOURNAL, &outgoing, &keys, &args)
        };
        async move {
            let placed = match running.await {
                Ok(reply) if is_single => vec![published(&reply)],
                Ok(reply) => appended(&reply).take(batch.len()).collect(),
                Err(error) => vec![Err(error); batch.len()],
            };
            for (waiting, outcome) in batch.into_iter().zip(placed) {
                waiting.finish(&outgoing, outcome);
            }
        }
    }
}

impl Waiting {
    fn finish(self, outgoing: &Outgoing, outcome: Result<Placed, PublishError>) {
        let receivers = outcome.as_ref().map(|(_, receivers)| *receivers);
        outgoing.count(self.head.len() as u64, self.started, receivers);
        drop(self.done.send(outcome));
    }
}
