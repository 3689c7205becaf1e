//! The subscriber link: one connection to Redis that only listens.
//!
//! A task owns the socket, the parser and what has been subscribed; messages are handed to a
//! [`Sink`] inline and in order. The link reconnects for ever, subscribes everything again, and
//! says in which span of time messages may have been lost. That a connection is open proves
//! nothing: the link is healthy while numbers that its owner publishes come back through it.
//!
//! What to subscribe and when to give it up is the owner's decision.

mod buffer;
mod cluster;
mod predecessor;
mod probe;
mod session;
mod subscribers;
mod subscriptions;
mod task;
mod waiting;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use roomcast_emitter::{
    endpoint::{Address, Endpoint},
    resp::RespError,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time,
};

pub use self::{
    subscribers::{ProbeChannel, SendProbeOn, Subscribers, SubscribersConfig},
    subscriptions::{Counts, Priority},
    waiting::ConfirmError,
};
use self::{
    subscriptions::{Key, Subscriptions},
    task::{Server, Task},
};
pub use roomcast_emitter::resp::SubscriptionKind;

/// Takes what arrives over a link.
///
/// Called on the link's task, in order: what it does, it does before the next bytes are read. It
/// may use the link's handle, and it should not block: Redis cuts off who reads too slowly, and
/// that is the only limit on what waits.
pub trait Sink: Send + 'static {
    /// Somebody has published.
    fn message(&mut self, channel: &[u8], payload: &[u8]);

    /// Something has happened to the link.
    fn event(&mut self, event: LinkEvent);
}

/// What happens to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// A connection has been made, and Redis has confirmed all that was wanted at that time.
    Up {
        /// How many names that were.
        resubscribed: usize,
        /// How long it took to subscribe them.
        took: Duration,
    },
    /// The connection was lost.
    Down {
        /// Why.
        reason: DownReason,
    },
    /// Messages that were published in this span of time may not have arrived. Comes after `Up`.
    Gap {
        /// The last moment of which is known that everything published before has arrived.
        from: SystemTime,
        /// From then on everything arrives again.
        to: SystemTime,
    },
    /// Redis does not give a subscription. It is asked for again with the next connection.
    Refused {
        /// The channel or pattern.
        name: Arc<str>,
        /// What Redis says.
        error: Box<str>,
    },
}

/// Why a link does not carry messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DownReason {
    /// It has been started a moment ago.
    #[error("connecting to Redis")]
    Starting,
    /// Connected; not everything is subscribed yet, or no probe has come back.
    #[error("subscribing")]
    Subscribing,
    /// There is no connection to be had.
    #[error("{0}")]
    Unreachable(Box<str>),
    /// Redis has closed the connection. Among its reasons is a reader that is too slow; only its
    /// log tells.
    #[error("Redis has closed the connection")]
    Closed,
    /// The connection broke.
    #[error("connection to Redis lost: {0}")]
    Broken(Box<str>),
    /// What came was not RESP.
    #[error("unintelligible reply of Redis: {0}")]
    Unintelligible(#[from] RespError),
    /// Redis confirmed what was not asked for.
    #[error("Redis confirms what was not asked for")]
    OutOfStep,
    /// A probe was published and did not come back.
    #[error("a probe did not come back within {} s", after.as_secs_f32())]
    ProbeLate {
        /// The time it was given.
        after: Duration,
    },
    /// Redis does not let the link watch itself.
    #[error("Redis refuses the probe's channel: {0}")]
    ProbeRefused(Box<str>),
    /// The owner has closed the link, or dropped it.
    #[error("the link is closed")]
    Stopped,
}

/// Whether messages arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// They do: everything is subscribed, and a probe came back not long ago.
    Up {
        /// Since when.
        since: SystemTime,
        /// How long the last probe was on its way.
        last_probe_round_trip: Duration,
    },
    /// They do not, or nobody knows.
    Down {
        /// Why.
        reason: DownReason,
    },
}

/// Publishes a number, as decimal text, on the probe's channel over another connection; says
/// whether it is on its way. Must not block.
pub type SendProbe = Arc<dyn Fn(u64) -> bool + Send + Sync>;

/// Settings of a link.
#[derive(Clone)]
pub struct SubscriberConfig {
    /// The channel by which the link watches itself. Nobody else may publish on it.
    pub probe_channel: Arc<str>,
    /// Whether that channel belongs to sharded pub/sub.
    pub probe_kind: SubscriptionKind,
    /// How probes get there.
    pub send_probe: SendProbe,
    /// Time between probes. One second by default.
    pub probe_interval: Duration,
    /// How long a probe may take before the connection is given up. Five seconds by default.
    pub probe_timeout: Duration,
    /// Longest message, in bytes; a longer one ends the connection. 64 MiB by default.
    pub max_message: usize,
}

impl SubscriberConfig {
    /// Defaults, with a probe on a plain channel.
    pub fn new(probe_channel: Arc<str>, send_probe: SendProbe) -> Self {
        Self {
            probe_channel,
            probe_kind: SubscriptionKind::Channel,
            send_probe,
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(5),
            max_message: 64 << 20,
        }
    }
}

/// Handle of a link. Clones are handles of the same link, which ends with the last of them.
#[derive(Clone)]
pub struct Subscriber {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What handles and task have in common.
struct Shared {
    subscriptions: Mutex<Subscriptions>,
    /// There may be commands to write.
    changed: Notify,
    state: watch::Sender<LinkState>,
    connections: AtomicU64,
    /// When everything published before was known to have arrived.
    proof: Mutex<Option<SystemTime>>,
}

impl Subscriber {
    /// Starts a link to the server, to the primary, or to any node of the cluster. It runs on the
    /// runtime of the caller.
    pub fn start(endpoint: Endpoint, config: SubscriberConfig, sink: impl Sink) -> Self {
        let server = Server {
            endpoint,
            address: None,
        };
        Self::start_at(server, config, None, Box::new(|| ()), sink)
    }

    /// Starts a link to one node of a cluster. `moved` is called when the node does not
    /// serve some of the names, or cannot be reached.
    fn start_to(
        endpoint: Endpoint,
        address: Address,
        slot: fn(&str) -> u16,
        moved: Box<dyn Fn() + Send>,
        config: SubscriberConfig,
        sink: impl Sink,
    ) -> Self {
        let server = Server {
            endpoint,
            address: Some(address),
        };
        Self::start_at(server, config, Some(slot), moved, sink)
    }

    fn start_at(
        server: Server,
        config: SubscriberConfig,
        slot: Option<fn(&str) -> u16>,
        moved: Box<dyn Fn() + Send>,
        sink: impl Sink,
    ) -> Self {
        let mut subscriptions = Subscriptions::new(slot);
        let probe_channel = Arc::clone(&config.probe_channel);
        subscriptions.subscribe(config.probe_kind, Priority::Probe, probe_channel);
        let shared = Arc::new(Shared {
            subscriptions: Mutex::new(subscriptions),
            changed: Notify::new(),
            state: watch::Sender::new(LinkState::Down {
                reason: DownReason::Starting,
            }),
            connections: AtomicU64::new(0),
            proof: Mutex::new(None),
        });
        let task = Task::new(server, config, Arc::clone(&shared), moved, sink);
        let task = Mutex::new(Some(tokio::spawn(task.run())));
        Self {
            owner: Arc::new(Owner { shared, task }),
        }
    }

    /// Wants these names from now on; names that are wanted already are none the worse for it.
    pub fn subscribe(
        &self,
        kind: SubscriptionKind,
        priority: Priority,
        names: impl IntoIterator<Item = Arc<str>>,
    ) {
        let shared = &self.owner.shared;
        let mut subscriptions = shared.subscriptions.lock();
        for name in names {
            subscriptions.subscribe(kind, priority, name);
        }
        drop(subscriptions);
        shared.changed.notify_one();
    }

    /// Does not want these names any more.
    pub fn unsubscribe(
        &self,
        kind: SubscriptionKind,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) {
        let shared = &self.owner.shared;
        let mut subscriptions = shared.subscriptions.lock();
        for name in names {
            subscriptions.unsubscribe(kind, name.as_ref());
        }
        drop(subscriptions);
        shared.changed.notify_one();
    }

    /// Resolves once Redis has confirmed the last change of each of these names, all of them on one
    /// connection: those that are wanted are subscribed, those that are not are not any more.
    /// Waits across reconnects, no longer than `timeout`.
    pub fn confirmed(
        &self,
        kind: SubscriptionKind,
        names: Vec<Arc<str>>,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), ConfirmError>> + Send + use<> + 'static {
        let keys = names.into_iter().map(|name| Key { kind, name }).collect();
        let shared = Arc::clone(&self.owner.shared);
        let ticket = shared.subscriptions.lock().wait(keys);
        let place = ticket.map(|ticket| {
            ticket.map(|ticket| {
                (
                    Place {
                        shared,
                        id: ticket.id,
                    },
                    ticket.done,
                )
            })
        });
        async move {
            let Some((_place, done)) = place? else {
                return Ok(());
            };
            match time::timeout(timeout, done).await {
                Ok(answer) => answer.unwrap_or(Err(ConfirmError::Closed)),
                Err(_) => Err(ConfirmError::TimedOut),
            }
        }
    }

    /// Whether messages arrive, to be read or watched.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.owner.shared.state.subscribe()
    }

    /// Whether Redis has confirmed the subscription, on the present connection.
    pub fn is_confirmed(&self, kind: SubscriptionKind, name: &str) -> bool {
        self.owner
            .shared
            .subscriptions
            .lock()
            .is_confirmed(kind, name)
    }

    /// How the link stands with its names; the probe's channel counts.
    pub fn counts(&self) -> Counts {
        self.owner.shared.subscriptions.lock().counts()
    }

    /// How many connections have been made since the start.
    pub fn connections(&self) -> u64 {
        self.owner.shared.connections.load(Ordering::Relaxed)
    }

    /// The last moment of which is known that everything published before has arrived. None before
    /// the first connection has subscribed everything.
    pub fn last_proof(&self) -> Option<SystemTime> {
        *self.owner.shared.proof.lock()
    }

    /// The names that are wanted, except the probe's.
    fn wanted(&self) -> Vec<(Arc<str>, Priority)> {
        let subscriptions = self.owner.shared.subscriptions.lock();
        let wanted = subscriptions
            .wanted()
            .filter(|(_, priority)| *priority != Priority::Probe);
        wanted
            .map(|(key, priority)| (Arc::clone(&key.name), priority))
            .collect()
    }

    /// Asks once more for what the server did not give; answers which names these are.
    fn ask_again(&self) -> Vec<Arc<str>> {
        let names = self.owner.shared.subscriptions.lock().ask_again();
        self.owner.shared.changed.notify_one();
        names
    }

    /// Closes the connection and resolves when the sink has been dropped. Who waits for
    /// confirmations gets an error.
    pub async fn close(&self) {
        let task = self.owner.stop();
        if let Some(task) = task {
            // It was aborted, which is the only error there is.
            let _ = task.await;
        }
    }
}

impl Owner {
    fn stop(&self) -> Option<JoinHandle<()>> {
        let task = self.task.lock().take();
        if let Some(task) = &task {
            task.abort();
            self.shared.subscriptions.lock().close();
            let stopped = LinkState::Down {
                reason: DownReason::Stopped,
            };
            self.shared.state.send_replace(stopped);
        }
        task
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Somebody who waits; leaves when it is dropped.
struct Place {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.subscriptions.lock().waiting.leave(self.id);
    }
}
