//! A link to one server: commands of many callers in few pipelines, replies in order.
//!
//! A link owns one task, which connects, reconnects for ever, sends and reads. Callers append to a
//! queue that is bounded in bytes:
//!
//! ```text
//!  caller ─push─▶ gathered ──┐            ┌─▶ wire ─▶ under way ─▶ replies ─▶ callers
//!  batch ──push─▶ a piece    ├─ segments ─┤           (at most MAX_UNDER_WAY)
//!                            ┘            └─▶ stay while the connection is lost? no: they fail
//! ```
//!
//! If nothing is in flight, a command is sent at once. While pipelines are in flight, further
//! commands are collected in one segment; with 64 callers, each costs Redis a thirtieth of a single
//! caller. Replies are handed out when all of a segment have arrived.
//!
//! The meaning of an error depends on where the command was. A segment that was never handed to the
//! connection was certainly not executed: `Unavailable`. One that was in flight may have been:
//! `Unconfirmed`. Nothing is kept for the next connection, because a caller that reported an error
//! must not see its message published later.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use redis::{ServerErrorKind, Value};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    commands::Commands,
    connect::{Connection, Endpoint, Purpose},
    error::ConnectError,
    outcome::{Outcome, PublishError, PublisherConfig, PublisherState, PublisherStats},
    queue::{Caller, Phase, Queue, STARTING, Segment, fail},
    url::Address,
    wire::Wire,
};
use crate::backoff::Backoff;
use crate::vital::vital;

/// Segments that are under way at a time. With two, Redis works on one while the replies of the
/// other are handed out and the next is gathered.
const MAX_UNDER_WAY: usize = 2;

/// Where a link leads.
#[derive(Debug, Clone)]
pub(super) enum Destination {
    /// To the server, the primary or any node of the cluster, found again for each connection.
    Endpoint(Endpoint),
    /// To one node of the cluster.
    Node(Endpoint, Address),
}

impl Destination {
    async fn connect(&self) -> Result<Connection, ConnectError> {
        let purpose = Purpose::Publisher;
        match self {
            Self::Endpoint(endpoint) => endpoint.connect(purpose, None).await,
            Self::Node(endpoint, address) => endpoint.connect_to(address, purpose, None).await,
        }
    }
}

/// A link to one server. Dropping it closes it without waiting for replies.
pub(super) struct Link {
    shared: Arc<Shared>,
    state: watch::Receiver<PublisherState>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The state that callers and the task share.
struct Shared {
    queue: Mutex<Queue>,
    /// The queue is no longer empty, or the phase changed.
    wake: Notify,
    /// The connection must be replaced.
    replace: Notify,
    /// The server of the present or last connection.
    peer: Mutex<Option<Address>>,
    stats: Arc<PublisherStats>,
    /// Notified after each change of the state.
    on_change: Option<Arc<Notify>>,
}

impl Link {
    /// Starts the link's task on the current runtime.
    ///
    /// `first` is a connection that exists already. To a node of a cluster, commands wait for the end of the
    /// first attempt to connect instead of failing.
    pub(super) fn start(
        destination: Destination,
        config: PublisherConfig,
        first: Option<Connection>,
        stats: Arc<PublisherStats>,
        on_change: Option<Arc<Notify>>,
    ) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::new(
                config.max_queue_bytes,
                matches!(destination, Destination::Node(..)),
            )),
            wake: Notify::new(),
            replace: Notify::new(),
            peer: Mutex::default(),
            stats,
            on_change,
        });
        let (state, receiver) = watch::channel(PublisherState::Down(STARTING.into()));
        let driver = Driver {
            destination,
            backoff: config.backoff,
            reply_timeout: config.reply_timeout,
            shared: Arc::clone(&shared),
            state,
        };
        // With a connection in hand, commands are accepted before the task has run.
        if let Some(connection) = &first {
            driver.connected(connection);
        }
        let task = tokio::spawn(vital("publisher", driver.run(first)));
        Self {
            shared,
            state: receiver,
            task: Mutex::new(Some(task)),
        }
    }

    /// Enqueues a command. Commands are sent in call order; the future resolves to the reply.
    pub(super) fn send(&self, command: Commands) -> Pending {
        let (reply, receiver) = oneshot::channel();
        Pending(self.push(receiver, |queue| queue.gather(command, Caller::One(reply))))
    }

    /// Enqueues two commands, of which the first prepares the second and has a reply that is ignored.
    pub(super) fn send_prepared(&self, commands: Commands) -> Pending {
        let (reply, receiver) = oneshot::channel();
        Pending(self.push(receiver, |queue| {
            queue.gather(commands, Caller::Second(reply))
        }))
    }

    /// Enqueues commands as a whole. Either all of them are enqueued or none.
    pub(super) fn send_many(&self, commands: Arc<Commands>) -> PendingMany {
        let count = commands.len();
        let (reply, receiver) = oneshot::channel();
        let caller = Caller::Many(count, reply);
        PendingMany(
            self.push(receiver, |queue| queue.push(commands, caller)),
            count,
        )
    }

    fn push<T>(
        &self,
        receiver: oneshot::Receiver<T>,
        push: impl FnOnce(&mut Queue) -> Result<(), PublishError>,
    ) -> Waiting<T> {
        let mut queue = self.shared.queue.lock();
        let (was_empty, before) = (queue.segments.is_empty(), queue.bytes);
        if let Err(error) = push(&mut queue) {
            return Waiting::Failed(error);
        }
        let bytes = queue.bytes - before;
        drop(queue);
        self.shared.pushed(bytes, was_empty);
        Waiting::For(receiver)
    }

    /// Closes the connection and opens another.
    pub(super) fn reconnect(&self) {
        if self.is_up() {
            self.shared.replace.notify_one();
        }
    }

    /// Accepts nothing more, waits for all replies (at most the reply timeout) and ends.
    pub(super) async fn close(&self) {
        {
            let mut queue = self.shared.queue.lock();
            queue.phase = match queue.phase {
                Phase::Up | Phase::Closing => Phase::Closing,
                _ => Phase::Closed,
            };
        }
        self.shared.wake.notify_one();
        let task = self.task.lock().take();
        if let Some(task) = task {
            // It ends by itself, or was aborted with the runtime.
            let _ = task.await;
        }
    }

    /// Whether commands are accepted; changes can be awaited.
    pub(super) fn state(&self) -> watch::Receiver<PublisherState> {
        self.state.clone()
    }

    /// Whether commands are accepted now.
    pub(super) fn is_up(&self) -> bool {
        *self.state.borrow() == PublisherState::Up
    }

    /// The server of the present or last connection.
    pub(super) fn peer(&self) -> Option<Address> {
        self.shared.peer.lock().clone()
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            // Pending commands fail when the task is dropped.
            task.abort();
        }
        self.shared.queue.lock().phase = Phase::Closed;
        self.shared.fail_queued(&PublishError::Unavailable(
            "the publisher was dropped".into(),
        ));
    }
}

impl Shared {
    fn pushed(&self, bytes: usize, was_empty: bool) {
        let queued = &self.stats.queued_bytes;
        queued.fetch_add(bytes as u64, Ordering::Relaxed);
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// Commands have their replies.
    fn settled(&self, bytes: usize) {
        self.queue.lock().bytes -= bytes;
        let queued = &self.stats.queued_bytes;
        queued.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    fn fail_queued(&self, error: &PublishError) {
        let segments = std::mem::take(&mut self.queue.lock().segments);
        for segment in segments {
            self.settled(segment.commands.bytes().len());
            fail(segment.callers, error);
        }
    }
}

/// The task of a link.
struct Driver {
    destination: Destination,
    backoff: Backoff,
    reply_timeout: Duration,
    shared: Arc<Shared>,
    state: watch::Sender<PublisherState>,
}

impl Driver {
    async fn run(mut self, mut first: Option<Connection>) {
        let mut is_first = true;
        loop {
            let opened = match first.take() {
                Some(connection) => Some(Ok(connection)),
                None => self.connect().await,
            };
            let reason = match opened {
                Some(Ok(connection)) => {
                    if !is_first {
                        let reconnects = &self.shared.stats.reconnects;
                        reconnects.fetch_add(1, Ordering::Relaxed);
                    }
                    is_first = false;
                    self.backoff.reset();
                    self.serve(connection.into_wire().await).await
                }
                Some(Err(reason)) => Some(reason),
                None => None,
            };
            self.disconnected(reason.unwrap_or_else(|| "the publisher is closed".into()));
            let delay = self.backoff.next_delay();
            if timeout(delay, self.closed()).await.is_ok() {
                return;
            }
        }
    }

    /// Resolves when the link is closed.
    async fn closed(&self) {
        while !self.shared.queue.lock().is_closed() {
            self.shared.wake.notified().await;
        }
    }

    /// `None` if the link was closed meanwhile.
    async fn connect(&self) -> Option<Result<Connection, Arc<str>>> {
        let connected = tokio::select! {
            connected = self.destination.connect() => connected,
            () = self.closed() => return None,
        };
        match connected {
            Ok(connection) => self.connected(&connection).then_some(Ok(connection)),
            Err(error) => Some(Err(error.to_string().into())),
        }
    }

    /// False if the link was closed meanwhile.
    fn connected(&self, connection: &Connection) -> bool {
        let address = &connection.info().address;
        self.shared.peer.lock().clone_from(address);
        let mut queue = self.shared.queue.lock();
        if queue.is_closed() {
            return false;
        }
        queue.phase = Phase::Up;
        drop(queue);
        self.change(PublisherState::Up);
        true
    }

    fn disconnected(&self, reason: Arc<str>) {
        {
            let mut queue = self.shared.queue.lock();
            queue.phase = match queue.is_closed() {
                true => Phase::Closed,
                false => Phase::Down(reason.clone()),
            };
        }
        self.change(PublisherState::Down(reason.clone()));
        self.shared.fail_queued(&PublishError::Unavailable(reason));
    }

    fn change(&self, state: PublisherState) {
        self.state.send_replace(state);
        if let Some(on_change) = &self.shared.on_change {
            on_change.notify_one();
        }
    }

    /// Sends queued commands until the connection is lost, and returns the reason; `None` if the
    /// link was closed and everything has its reply.
    async fn serve(&self, mut wire: Wire) -> Option<Arc<str>> {
        let mut under_way = UnderWay::new(&self.shared);
        let mut silence = pin!(sleep_until(Instant::now()));
        let reason: Arc<str> = loop {
            while under_way.flights.len() < MAX_UNDER_WAY {
                let Some(segment) = self.shared.queue.lock().segments.pop_front() else {
                    break;
                };
                wire.send(Arc::clone(&segment.commands));
                under_way.add(segment);
            }
            let oldest = under_way.flights.front().map(|flight| flight.since);
            if oldest.is_none() && self.shared.queue.lock().is_closed() {
                return None;
            }
            let mut is_replica = false;
            let mut reply = |value| is_replica |= under_way.reply(value);
            tokio::select! {
                // Replies that have arrived count, even if the connection was lost since.
                biased;
                read = poll_fn(|context| wire.poll(context, &mut reply)) => {
                    if is_replica {
                        break "the server is no longer a primary".into();
                    }
                    if let Err(reason) = read {
                        break reason.into();
                    }
                }
                () = self.shared.wake.notified() => {}
                () = self.shared.replace.notified() => break "the primary has changed".into(),
                // It elapses early, because the timer is not set for each segment.
                () = &mut silence, if oldest.is_some() => {
                    let until = oldest.map(|since| since + self.reply_timeout);
                    match until.filter(|until| *until > Instant::now()) {
                        Some(until) => silence.as_mut().reset(until),
                        None => break "Redis did not reply in time".into(),
                    }
                }
            }
        };
        // First the state: a caller that gets the error must not find the link up.
        self.disconnected(reason.clone());
        under_way.fail(&reason);
        Some(reason)
    }
}

/// The segments that were handed to the connection, in order. Dropping it, as when the task is
/// aborted, fails their callers.
struct UnderWay<'a> {
    flights: VecDeque<Flight>,
    shared: &'a Shared,
}

/// A segment on its way.
struct Flight {
    segment: Segment,
    since: Instant,
    replies: Vec<Value>,
}

impl<'a> UnderWay<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            flights: VecDeque::with_capacity(MAX_UNDER_WAY),
            shared,
        }
    }

    fn add(&mut self, segment: Segment) {
        self.flights.push_back(Flight {
            replies: Vec::with_capacity(segment.commands.len()),
            since: Instant::now(),
            segment,
        });
    }

    /// Takes the next reply. Returns whether it completes a segment and the server is a replica.
    fn reply(&mut self, value: Value) -> bool {
        let Some(flight) = self.flights.front_mut() else {
            return false;
        };
        flight.replies.push(value);
        if flight.replies.len() < flight.segment.commands.len() {
            return false;
        }
        let Some(Flight {
            segment, replies, ..
        }) = self.flights.pop_front()
        else {
            return false;
        };
        self.shared.settled(segment.commands.bytes().len());
        let is_replica = replies.iter().any(is_read_only);
        let mut replies = replies.into_iter().map(Ok);
        segment
            .callers
            .into_iter()
            .for_each(|caller| caller.finish(&mut replies));
        is_replica
    }

    fn fail(&mut self, reason: &Arc<str>) {
        let error = PublishError::Unconfirmed(reason.clone());
        for Flight { segment, .. } in self.flights.drain(..) {
            self.shared.settled(segment.commands.bytes().len());
            fail(segment.callers, &error);
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.fail(&"the publisher was dropped".into());
    }
}

/// A server that follows another one rejects writes, for example of a lease.
fn is_read_only(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::ReadOnly))
}

/// The reply to a command, which is enqueued already. Dropping it does not take the command back.
#[derive(Debug)]
#[must_use = "the outcome of the command is not known before this is awaited"]
pub(super) struct Pending(Waiting<Outcome>);

/// The replies to many commands.
#[derive(Debug)]
#[must_use = "the outcome of the commands is not known before this is awaited"]
pub(super) struct PendingMany(Waiting<Vec<Outcome>>, usize);

#[derive(Debug)]
enum Waiting<T> {
    Failed(PublishError),
    For(oneshot::Receiver<T>),
}

impl<T> Waiting<T> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<T, PublishError>> {
        match self {
            Self::Failed(error) => Poll::Ready(Err(error.clone())),
            Self::For(receiver) => Pin::new(receiver).poll(context).map(|received| {
                received.map_err(|_| PublishError::Unconfirmed("the publisher has ended".into()))
            }),
        }
    }
}

impl Pending {
    pub(super) fn failed(error: PublishError) -> Self {
        Self(Waiting::Failed(error))
    }
}

impl Future for Pending {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(context).map(Result::flatten)
    }
}

impl Future for PendingMany {
    type Output = Vec<Outcome>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let count = self.1;
        let polled = self.0.poll(context);
        polled.map(|received| received.unwrap_or_else(|error| vec![Err(error); count]))
    }
}
