//! The receiving end of one connection: the push callback of the `redis` crate.
//!
//! ```text
//!   socket ──▶ driver task of the crate ──▶ Incoming::push ──▶ Sink      messages, inline
//!                                             │        └─────▶ Probes    probes that return
//!                                             └──────────────▶ Session   connection lost, slot gone
//! ```
//!
//! The callback handles each message before the driver parses the next one. Nothing is queued, so
//! a sink that is too slow stops the reading, and Redis cuts the connection off when its own
//! buffer for it is full. That is the only limit for waiting messages, and the memory of this
//! process stays flat. A channel between driver and sink would hide the stall from Redis and grow.
//!
//! The driver reads as long as the socket has data. [`Turn`] makes it yield, since some
//! messages mean thousands of sockets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::{sync::Notify, task::coop, time::Instant};

use super::{SubscriberState, probe::Probes, server::Shared, subscriptions::Outcome};

/// Most messages that are handled before other tasks may run.
const TURN: u64 = 256;

/// Longest time that messages are handled before other tasks may run. The clock is read every
/// [`CLOCK_EVERY`] messages.
const TURN_TIME: Duration = Duration::from_millis(2);

const CLOCK_EVERY: u64 = 8;

/// More than the budget that tokio gives a task for one poll.
const BUDGET: usize = 1024;

/// The state that the callback of one connection shares with its session.
pub(super) struct Incoming {
    shared: Arc<Shared>,
    probe_channel: Arc<str>,
    pub(super) watch: Mutex<Watch>,
    turn: Mutex<Turn>,
    /// Messages received.
    received: AtomicU64,
    /// The sink is at work.
    is_busy: AtomicBool,
    /// The session has ended; the crate's driver may not have.
    is_over: AtomicBool,
    /// The connection is lost.
    pub(super) lost: Notify,
}

/// The state of the connection.
pub(super) struct Watch {
    pub(super) probes: Probes,
    /// Every name is subscribed that was wanted when the connection was made.
    pub(super) is_complete: bool,
    /// A probe came back after that, and none has been late since.
    pub(super) is_up: bool,
}

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>, probe_channel: Arc<str>, probes: Probes) -> Self {
        Self {
            shared,
            probe_channel,
            watch: Mutex::new(Watch {
                probes,
                is_complete: false,
                is_up: false,
            }),
            turn: Mutex::new(Turn::default()),
            received: AtomicU64::new(0),
            is_busy: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            lost: Notify::new(),
        }
    }

    /// The push callback.
    pub(super) fn push(&self, info: &PushInfo) {
        if self.is_over.load(Ordering::Acquire) {
            return;
        }
        match (&info.kind, &*info.data) {
            (
                PushKind::Message | PushKind::SMessage,
                [Value::BulkString(channel), Value::BulkString(payload)],
            ) => self.message(None, channel, payload),
            (
                PushKind::PMessage,
                [
                    Value::BulkString(pattern),
                    Value::BulkString(channel),
                    Value::BulkString(payload),
                ],
            ) => self.message(Some(pattern), channel, payload),
            (PushKind::SUnsubscribe, [Value::BulkString(name), ..]) => {
                let outcome = self.shared.subscriptions.lock().ended(name);
                if outcome == Outcome::Moved {
                    (self.shared.moved)();
                }
            }
            (PushKind::Disconnection, _) => self.lost.notify_one(),
            // Confirmations: the session gets them as replies.
            _ => {}
        }
    }

    fn message(&self, pattern: Option<&[u8]>, channel: &[u8], payload: &[u8]) {
        let received = self.received.load(Ordering::Relaxed) + 1;
        self.received.store(received, Ordering::Relaxed);
        if channel == self.probe_channel.as_bytes() {
            self.probe_returned(payload);
        } else {
            self.is_busy.store(true, Ordering::Relaxed);
            let sink = &self.shared.sink;
            match pattern {
                Some(pattern) => sink.matched(pattern, channel, payload),
                None => sink.message(channel, payload),
            }
            self.is_busy.store(false, Ordering::Relaxed);
        }
        if received.is_multiple_of(CLOCK_EVERY) {
            self.turn.lock().note(received);
        }
    }

    fn probe_returned(&self, payload: &[u8]) {
        let text = std::str::from_utf8(payload).ok();
        let Some(number) = text.and_then(|text| text.parse().ok()) else {
            return;
        };
        let mut watch = self.watch.lock();
        let Some(returned) = watch.probes.returned(number, Instant::now()) else {
            return;
        };
        if !watch.is_complete || self.is_over.load(Ordering::Acquire) {
            return;
        }
        watch.is_up = true;
        let mut proof = self.shared.proof.lock();
        *proof = (*proof).max(Some(returned.sent));
        drop(proof);
        self.shared.set_state(SubscriberState::Up {
            probe_round_trip: returned.round_trip,
        });
    }

    /// How many messages have been received. None while the sink is at work on one.
    pub(super) fn idle_after(&self) -> Option<u64> {
        let is_busy = self.is_busy.load(Ordering::Relaxed);
        (!is_busy).then(|| self.received.load(Ordering::Relaxed))
    }

    /// From now on nothing reaches the sink, except a message that it is at work on, and no probe
    /// changes the state.
    pub(super) fn end(&self) {
        let _watch = self.watch.lock();
        self.is_over.store(true, Ordering::Release);
    }
}

/// How long the driver has been handling messages without a break.
#[derive(Default)]
struct Turn {
    began: Option<Instant>,
    first: u64,
}

impl Turn {
    fn note(&mut self, received: u64) {
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        if now.duration_since(began) < TURN_TIME && received - self.first < TURN {
            return;
        }
        // With its budget used up, the driver's next read is not ready until other tasks have run.
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..BUDGET {
            match coop::poll_proceed(&mut context) {
                Poll::Ready(budget) => budget.made_progress(),
                Poll::Pending => break,
            }
        }
        (self.began, self.first) = (Some(now), received);
    }
}
