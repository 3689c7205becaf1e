//! A link to one server: commands of many callers in few packets, replies in order.
//!
//! A link owns one task, which connects, connects again for ever, writes and reads. Callers append
//! to a queue bounded in bytes; while there is no connection they are told at once, and nothing is
//! kept for later: whoever cares about a message hears that it was not sent.

mod commands;
mod driver;
mod queue;

use std::{
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
};

pub(crate) use self::commands::{Commands, push_joined_arg, push_written_arg};
use self::{
    driver::Driver,
    queue::{Outcomes, Queue, Reply, Told},
};
use crate::{
    backoff::Backoff,
    endpoint::{Address, ConnectError, Connection, Endpoint, Purpose},
    value::Value,
};

/// Why there is no connection before the first attempt has ended.
const NOT_YET: &str = "not connected yet";

/// What a link holds and how long it waits.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Bytes of commands that are not answered. 16 MiB by default.
    pub max_queue_bytes: usize,
    /// A server that answers nothing for this long, though it should, is left. 5 s by default;
    /// noticed up to an eighth late.
    pub reply_timeout: Duration,
    /// The delays between attempts to connect. Up to 50 ms at first, 2 s at last by default.
    pub backoff: Backoff,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            max_queue_bytes: 16 << 20,
            reply_timeout: Duration::from_secs(5),
            backoff: Backoff::default(),
        }
    }
}

/// Figures of one or more links.
#[derive(Debug, Default)]
pub struct LinkStats {
    /// Connections that were opened after the first one of each link.
    pub reconnects: AtomicU64,
    /// Bytes that were written.
    pub written_bytes: AtomicU64,
    /// Bytes of commands that are not answered now.
    pub queued_bytes: AtomicU64,
}

/// Why a command has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// There is no connection. The command was not carried out.
    #[error("Redis is not available: {0}")]
    Unavailable(Arc<str>),
    /// The connection broke or the server fell silent. Whether the command was carried out is not
    /// known.
    #[error("Redis did not confirm: {0}")]
    Unconfirmed(Arc<str>),
    /// Too much waits for answers already. The command was not carried out.
    #[error("{queued_bytes} bytes wait for Redis already")]
    Overloaded {
        /// What waits.
        queued_bytes: usize,
    },
    /// The command is larger than all that may wait. It was not carried out.
    #[error("a command of {bytes} bytes, allowed are {max_bytes}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
}

impl LinkError {
    fn closed() -> Self {
        Self::Unavailable("the link has been closed".into())
    }
}

/// Whether commands are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// There is a connection.
    Up,
    /// There is none, for this reason; another attempt follows.
    Down(Arc<str>),
}

/// Where a link leads.
#[derive(Debug, Clone)]
pub enum Destination {
    /// To the server, the primary or any node of the cluster, found anew for each connection.
    Endpoint(Endpoint),
    /// To one node of the cluster.
    Node(Endpoint, Address),
}

impl Destination {
    async fn connect(&self) -> Result<Connection, ConnectError> {
        match self {
            Self::Endpoint(endpoint) => endpoint.connect(Purpose::Publisher).await,
            Self::Node(endpoint, address) => endpoint.connect_to(address, Purpose::Publisher).await,
        }
    }
}

/// A link to one server. Closed when it is dropped, without waiting for what is under way.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    state: watch::Receiver<LinkState>,
    task: Mutex<Option<JoinHandle<()>>>,
    abort: tokio::task::AbortHandle,
}

/// What callers and the task share.
struct Shared {
    queue: Mutex<Queue>,
    /// The server of the last connection.
    peer: Mutex<Option<Address>>,
    stats: Arc<LinkStats>,
    /// Ends attempts and delays early.
    closed: Notify,
    /// Told whenever the state has changed.
    on_change: Option<Arc<Notify>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Link {
    /// Starts the link's task on the current runtime. `first` is a connection that exists already.
    ///
    /// `on_change` is notified after each change of the state.
    pub fn start(
        destination: Destination,
        config: LinkConfig,
        first: Option<Connection>,
        stats: Arc<LinkStats>,
        on_change: Option<Arc<Notify>>,
    ) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::new(config.max_queue_bytes)),
            peer: Mutex::default(),
            stats,
            closed: Notify::new(),
            on_change,
        });
        let (driver, state) = Driver::new(destination, config, first, shared.clone());
        let task = tokio::spawn(driver.run());
        Self {
            shared,
            state,
            abort: task.abort_handle(),
            task: Mutex::new(Some(task)),
        }
    }

    /// Says a command. It is queued when this returns, behind those that were said before; the
    /// future is of its reply.
    pub fn send<A: AsRef<[u8]>>(&self, args: &[A]) -> Pending {
        self.push(|queue, reply| queue.push(args, reply))
    }

    /// Says a command that is encoded already, right after one that prepares it, whose reply is
    /// dropped.
    pub fn send_encoded(&self, preparation: Option<&[u8]>, command: &[u8]) -> Pending {
        self.push(|queue, reply| queue.push_encoded(preparation, command, reply))
    }

    fn push(&self, push: impl FnOnce(&mut Queue, Reply) -> Result<(), LinkError>) -> Pending {
        let (reply, receiver) = oneshot::channel();
        let mut queue = self.shared.queue.lock();
        let before = queue.queued_bytes();
        if let Err(error) = push(&mut queue, reply) {
            return Pending::failed(error);
        }
        self.pushed(queue, before);
        Pending(Kind::Waiting(receiver))
    }

    /// Says some commands. Those for which there is room are queued when this returns; the future
    /// is of all outcomes.
    pub(crate) fn send_many(&self, commands: &Commands, range: Range<usize>) -> PendingMany {
        let (reply, receiver) = oneshot::channel();
        let count = range.len();
        let mut queue = self.shared.queue.lock();
        let before = queue.queued_bytes();
        if let Err(outcomes) = queue.push_many(commands, range, reply) {
            return PendingMany(ManyKind::Failed(outcomes));
        }
        self.pushed(queue, before);
        PendingMany(ManyKind::Waiting(receiver, count))
    }

    /// Sees to it that what was pushed is written.
    fn pushed(&self, mut queue: MutexGuard<'_, Queue>, bytes_before: usize) {
        self.shared.add_queued(queue.queued_bytes() - bytes_before);
        let (direct, waker) = queue.after_push();
        drop(queue);
        let waker = match direct {
            // An error shows to the task, too, which knows what to do about it.
            Some(direct) => {
                let written = direct.writer.try_write(&direct.bytes).unwrap_or(0);
                self.shared.add_written(written);
                self.shared.queue.lock().after_direct(direct, written)
            }
            None => waker,
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Leaves the connection, if there is one, and opens another.
    pub fn reconnect(&self) {
        let waker = self.shared.queue.lock().replace();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes nothing more, waits for all replies (no longer than the reply timeout) and ends.
    pub async fn close(&self) {
        let waker = self.shared.queue.lock().close();
        self.shared.closed.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
        let task = self.task.lock().take();
        if let Some(task) = task {
            // It ends by itself, or has been aborted with the runtime.
            let _ = task.await;
        }
    }

    /// Whether commands are taken; changes can be waited for.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Whether commands are taken now.
    pub fn is_up(&self) -> bool {
        *self.state.borrow() == LinkState::Up
    }

    /// Whether the first attempt to connect is still under way.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(&*self.state.borrow(), LinkState::Down(reason) if **reason == *NOT_YET)
    }

    /// The server of the present or the last connection.
    pub fn peer(&self) -> Option<Address> {
        self.shared.peer.lock().clone()
    }

    /// Bytes of commands that are not answered.
    pub fn queued_bytes(&self) -> usize {
        self.shared.queue.lock().queued_bytes()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.abort.abort();
        let failed = {
            let mut queue = self.shared.queue.lock();
            let _ = queue.close();
            let before = queue.queued_bytes();
            self.shared.remove_queued(before);
            queue.disconnected(&"the link has been dropped".into())
        };
        failed.into_iter().for_each(Told::tell);
    }
}

impl Shared {
    fn add_queued(&self, bytes: usize) {
        self.stats
            .queued_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn remove_queued(&self, bytes: usize) {
        self.stats
            .queued_bytes
            .fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    fn add_written(&self, bytes: usize) {
        self.stats
            .written_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The reply to a command, which is on its way already. Dropping it does not take the command back.
#[derive(Debug)]
#[must_use = "what became of the command is not known before this is awaited"]
pub struct Pending(Kind);

#[derive(Debug)]
enum Kind {
    Failed(LinkError),
    Waiting(oneshot::Receiver<Result<Value, LinkError>>),
}

impl Pending {
    pub(crate) fn failed(error: LinkError) -> Self {
        Self(Kind::Failed(error))
    }
}

impl Future for Pending {
    type Output = Result<Value, LinkError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Kind::Failed(error) => Poll::Ready(Err(error.clone())),
            Kind::Waiting(receiver) => Pin::new(receiver).poll(context).map(|received| {
                let lost = || Err(LinkError::Unconfirmed("the link has ended".into()));
                received.unwrap_or_else(|_| lost())
            }),
        }
    }
}

/// The replies to many commands, which are on their way already.
#[derive(Debug)]
#[must_use = "what became of the commands is not known before this is awaited"]
pub(crate) struct PendingMany(ManyKind);

#[derive(Debug)]
enum ManyKind {
    Failed(Outcomes),
    /// And how many they are.
    Waiting(oneshot::Receiver<Outcomes>, usize),
}

impl Future for PendingMany {
    type Output = Outcomes;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            ManyKind::Failed(outcomes) => Poll::Ready(std::mem::take(outcomes)),
            ManyKind::Waiting(receiver, count) => {
                let count = *count;
                Pin::new(receiver).poll(context).map(|received| {
                    let lost = LinkError::Unconfirmed("the link has ended".into());
                    received.unwrap_or_else(|_| vec![Err(lost); count])
                })
            }
        }
    }
}
