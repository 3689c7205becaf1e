//! A link to one server: commands of many callers in few pipelines, replies in order.
//!
//! A link owns one task, which connects, reconnects for ever, sends and reads. Callers append to a
//! queue that is bounded in bytes:
//!
//! ```text
//!  caller ─push─▶ gathered ──┐            ┌─▶ under way ─▶ replies ─▶ callers
//!  batch ──push─▶ a pipeline ├─ segments ─┤   (at most MAX_UNDER_WAY)
//!                            ┘            └─▶ stay while the connection is lost? no: they fail
//! ```
//!
//! If nothing is in flight, a command is sent at once. While pipelines are in flight, further
//! commands are collected in one segment; with 64 callers, each costs Redis a thirtieth of a single
//! caller.
//!
//! The meaning of an error depends on where the command was. A segment that was never handed to the
//! connection was certainly not executed: `Unavailable`. One that was in flight may have been:
//! `Unconfirmed`. Nothing is kept for the next connection, because a caller that reported an error
//! must not see its message published later.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use parking_lot::Mutex;
use redis::{
    Cmd, Pipeline, PushInfo, PushKind, RedisError, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{
    connect::{Connection, Endpoint, Purpose, Push},
    error::{ConnectError, text},
    outcome::{Outcome, PublishError, PublisherConfig, PublisherState, PublisherStats},
    queue::{Caller, Commands, Phase, Queue, STARTING, Segment, bytes_of, fail},
    url::Address,
};
use crate::backoff::Backoff;
use crate::vital::vital;

/// Pipelines that are under way at a time. With two, Redis works on one while the replies of the
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
    async fn connect(&self, push: Push) -> Result<Connection, ConnectError> {
        let (purpose, push) = (Purpose::Publisher, Some(push));
        match self {
            Self::Endpoint(endpoint) => endpoint.connect(purpose, push).await,
            Self::Node(endpoint, address) => endpoint.connect_to(address, purpose, push).await,
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
    /// `first` is a connection that exists already, with what [`watch_end`] notifies. With `queues_at_start`,
    /// commands wait for the end of the first attempt to connect instead of failing.
    pub(super) fn start(
        destination: Destination,
        config: PublisherConfig,
        first: Option<(Connection, Arc<Notify>)>,
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
        if let Some((connection, _)) = &first {
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
    pub(super) fn send(&self, command: Cmd) -> Pending {
        let bytes = bytes_of(&command);
        self.push(bytes, Caller::One, |pipeline| {
            pipeline.add_command(command);
        })
    }

    /// Enqueues a command right after one that prepares it, whose reply is ignored.
    pub(super) fn send_prepared(&self, preparation: Cmd, command: Cmd) -> Pending {
        let bytes = bytes_of(&preparation) + bytes_of(&command);
        self.push(bytes, Caller::Second, |pipeline| {
            pipeline.add_command(preparation);
            pipeline.add_command(command);
        })
    }

    fn push(
        &self,
        bytes: usize,
        caller: impl FnOnce(oneshot::Sender<Outcome>) -> Caller,
        add: impl FnOnce(&mut Pipeline),
    ) -> Pending {
        let (reply, receiver) = oneshot::channel();
        let mut queue = self.shared.queue.lock();
        if let Err(error) = queue.admit(bytes) {
            return Pending(Waiting::Failed(error));
        }
        let was_empty = queue.segments.is_empty();
        queue.gather(bytes, caller(reply), add);
        drop(queue);
        self.shared.pushed(bytes, was_empty);
        Pending(Waiting::For(receiver))
    }

    /// Enqueues a pipeline of `bytes` bytes as a whole. Either all of it is enqueued or nothing.
    pub(super) fn send_many(&self, pipeline: Arc<Pipeline>, bytes: usize) -> PendingMany {
        let count = pipeline.len();
        let (reply, receiver) = oneshot::channel();
        let mut queue = self.shared.queue.lock();
        if let Err(error) = queue.admit(bytes) {
            return PendingMany(Waiting::Failed(error), count);
        }
        let was_empty = queue.segments.is_empty();
        queue.segments.push_back(Segment {
            commands: Commands::Whole(pipeline),
            callers: vec![Caller::Many(count, reply)],
            bytes,
        });
        drop(queue);
        self.shared.pushed(bytes, was_empty);
        PendingMany(Waiting::For(receiver), count)
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
            self.settled(segment.bytes);
            fail(segment.callers, error);
        }
    }
}

/// The callback for a new connection. It notifies when the connection has ended, even while nothing is
/// in flight.
pub(super) fn watch_end() -> (Arc<Notify>, Push) {
    let lost = Arc::<Notify>::default();
    let told = Arc::clone(&lost);
    let push = move |push: PushInfo| {
        if push.kind == PushKind::Disconnection {
            told.notify_one();
        }
        Ok::<_, ()>(())
    };
    (lost, Arc::new(push))
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
    async fn run(mut self, mut first: Option<(Connection, Arc<Notify>)>) {
        let mut is_first = true;
        loop {
            let opened = match first.take() {
                Some(opened) => Some(Ok(opened)),
                None => self.connect().await,
            };
            let reason = match opened {
                Some(Ok((connection, lost))) => {
                    if !is_first {
                        let reconnects = &self.shared.stats.reconnects;
                        reconnects.fetch_add(1, Ordering::Relaxed);
                    }
                    is_first = false;
                    self.backoff.reset();
                    self.serve(connection, &lost).await
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
    async fn connect(&self) -> Option<Result<(Connection, Arc<Notify>), Arc<str>>> {
        let (lost, push) = watch_end();
        let connected = tokio::select! {
            connected = self.destination.connect(push) => connected,
            () = self.closed() => return None,
        };
        match connected {
            Ok(connection) => self
                .connected(&connection)
                .then_some(Ok((connection, lost))),
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
    async fn serve(&self, connection: Connection, lost: &Notify) -> Option<Arc<str>> {
        let mut connection = connection.into_inner();
        connection.set_response_timeout(self.reply_timeout);
        let mut replies = FuturesOrdered::new();
        let mut under_way = UnderWay::new(&self.shared);
        let reason: Arc<str> = loop {
            while under_way.callers.len() < MAX_UNDER_WAY {
                let Some(segment) = self.shared.queue.lock().segments.pop_front() else {
                    break;
                };
                replies.push_back(send(connection.clone(), segment.commands));
                under_way
                    .callers
                    .push_back((segment.callers, segment.bytes));
            }
            let is_idle = under_way.callers.is_empty();
            if is_idle && self.shared.queue.lock().is_closed() {
                return None;
            }
            tokio::select! {
                // Replies that have arrived count, even if the connection was lost since.
                biased;
                Some(replied) = replies.next(), if !is_idle => match replied {
                    Ok(values) => {
                        let is_replica = values.iter().any(is_read_only);
                        under_way.settle(values);
                        if is_replica {
                            break "the server is no longer a primary".into();
                        }
                    }
                    Err(error) => break text(&error).into(),
                },
                () = self.shared.wake.notified() => {}
                () = lost.notified() => break "Redis closed the connection".into(),
                () = self.shared.replace.notified() => break "the primary has changed".into(),
            }
        };
        // First the state: a caller that gets the error must not find the link up.
        self.disconnected(reason.clone());
        under_way.fail(&reason);
        Some(reason)
    }
}

/// The callers whose commands were handed to the connection, in order. Dropping it, as
/// when the task is aborted, fails them.
struct UnderWay<'a> {
    callers: VecDeque<(Vec<Caller>, usize)>,
    shared: &'a Shared,
}

impl<'a> UnderWay<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            callers: VecDeque::with_capacity(MAX_UNDER_WAY),
            shared,
        }
    }

    fn settle(&mut self, values: Vec<Value>) {
        let Some((callers, bytes)) = self.callers.pop_front() else {
            return;
        };
        self.shared.settled(bytes);
        let mut replies = values.into_iter().map(Ok);
        callers
            .into_iter()
            .for_each(|caller| caller.finish(&mut replies));
    }

    fn fail(&mut self, reason: &Arc<str>) {
        let error = PublishError::Unconfirmed(reason.clone());
        for (callers, bytes) in self.callers.drain(..) {
            self.shared.settled(bytes);
            fail(callers, &error);
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

/// Sends one pipeline. The crate never repeats it.
fn send(
    mut connection: MultiplexedConnection,
    commands: Commands,
) -> BoxFuture<'static, Result<Vec<Value>, RedisError>> {
    async move {
        let pipeline = match &commands {
            Commands::Gathered(pipeline) => pipeline,
            Commands::Whole(pipeline) => &**pipeline,
        };
        let mut commands = pipeline.cmd_iter();
        match (commands.next(), pipeline.len()) {
            (Some(command), 1) => Ok(vec![connection.send_packed_command(command).await?]),
            (_, count) => connection.send_packed_commands(pipeline, 0, count).await,
        }
    }
    .boxed()
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
