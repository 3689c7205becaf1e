//! The emitter without async, for cron jobs and other programs without a runtime.
//!
//! A thread owns the connections, so that they stay alive between calls. All methods behave like
//! those of the same name on the async [`Emitter`](crate::Emitter). They block, and panic if they
//! are called from async code.
//!
//! ```text
//!   your thread ── block_on ──▶ emitter ──▶ connections, on the thread "roomcast-emitter"
//! ```
//!
//! The thread ends with the last clone of the emitter.

use std::{fmt, io, sync::Arc, thread};

use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
};

use crate::{
    emitter::{self, Answers, BatchOperator, Builder, Delivery, Fetched},
    error::{BuildError, EmitError},
    redis::RedisUrl,
};
use roomcast_protocol::{
    args::{FromArgs, IntoArgs},
    receipt::Receipt,
    target::Rooms,
};

/// Emits to the clients of a cluster. Cheap to clone; the connections close with the last clone.
#[derive(Clone)]
pub struct Emitter {
    inner: emitter::Emitter,
    runtime: Arc<Runtime>,
}

impl Emitter {
    /// Connects to Redis, with the defaults of [`Builder`].
    pub fn connect(url: &str) -> Result<Self, BuildError> {
        Self::connect_with(emitter::Emitter::builder(), url.parse()?)
    }

    /// Connects to Redis.
    pub fn connect_with(builder: Builder, url: RedisUrl) -> Result<Self, BuildError> {
        let runtime = Runtime::start().map_err(BuildError::Thread)?;
        let inner = runtime.handle.block_on(builder.connect_to(url))?;
        let runtime = Arc::new(runtime);
        Ok(Self { inner, runtime })
    }

    /// Selects a namespace. Its name begins with a slash.
    pub fn of(&self, namespace: &str) -> BroadcastOperator {
        BroadcastOperator {
            inner: self.inner.of(namespace),
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// Selects the sockets in any of these rooms of the main namespace.
    pub fn to(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").to(rooms)
    }

    /// The same as [`to`](Self::to).
    pub fn in_(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.to(rooms)
    }

    /// Selects all sockets of the main namespace except those in these rooms.
    pub fn except(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").except(rooms)
    }

    /// Emits an event to all sockets of the main namespace. Returns when Redis has accepted it.
    pub fn emit(&self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        self.of("/").emit(event, args)
    }

    /// Collects many emits and publishes them at once.
    pub fn batch(&self) -> Batch {
        Batch {
            inner: self.inner.batch(),
            runtime: Arc::clone(&self.runtime),
        }
    }
}

impl fmt::Debug for Emitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// Selects sockets and acts on them. See [`BroadcastOperator`](crate::BroadcastOperator).
#[must_use = "nothing happens until `emit` or another operation is called"]
pub struct BroadcastOperator {
    inner: emitter::BroadcastOperator,
    runtime: Arc<Runtime>,
}

impl BroadcastOperator {
    emitter::narrowing!(inner.target);

    /// Makes clients acknowledge the event, and receive it again if they come back without having
    /// done so. See [`BroadcastOperator::at_least_once`](crate::BroadcastOperator::at_least_once).
    pub fn at_least_once(mut self) -> Self {
        self.inner = self.inner.at_least_once();
        self
    }

    /// Publishes the event once, however often it is emitted with this key. See
    /// [`BroadcastOperator::idempotency_key`](crate::BroadcastOperator::idempotency_key).
    pub fn idempotency_key(mut self, key: impl Into<Box<str>>) -> Self {
        self.inner = self.inner.idempotency_key(key);
        self
    }

    /// Emits an event to the selected sockets. Returns when Redis has accepted it.
    pub fn emit(self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        self.act(async |to| to.emit(event, args).await)
    }

    /// Emits an event and waits until the nodes have reported how many sockets it reached.
    pub fn emit_confirmed(self, event: &str, args: impl IntoArgs) -> Result<Receipt, EmitError> {
        self.act(async |to| to.emit_confirmed(event, args).await)
    }

    /// Emits an event and collects acknowledgements until all sockets have acknowledged
    /// or the timeout ends.
    pub fn emit_with_ack<T: FromArgs>(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Answers<T>, EmitError> {
        self.act(async |to| to.emit_with_ack(event, args).await)
    }

    /// Returns the selected sockets, with their rooms and data.
    pub fn fetch_sockets(self) -> Result<Fetched, EmitError> {
        self.act(async |to| to.fetch_sockets().await)
    }

    /// Makes the selected sockets join rooms.
    pub fn sockets_join(self, rooms: impl Rooms) -> Result<Delivery, EmitError> {
        self.act(async |to| to.sockets_join(rooms).await)
    }

    /// Makes the selected sockets leave rooms.
    pub fn sockets_leave(self, rooms: impl Rooms) -> Result<Delivery, EmitError> {
        self.act(async |to| to.sockets_leave(rooms).await)
    }

    /// Disconnects the selected sockets from the namespace or, with `close`, closes their
    /// connections.
    pub fn disconnect_sockets(self, close: bool) -> Result<Delivery, EmitError> {
        self.act(async |to| to.disconnect_sockets(close).await)
    }

    /// Calls the server-side handlers of an event on all servers.
    pub fn server_side_emit(self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        self.act(async |to| to.server_side_emit(event, args).await)
    }

    fn act<T>(self, operation: impl AsyncFnOnce(emitter::BroadcastOperator) -> T) -> T {
        self.runtime.handle.block_on(operation(self.inner))
    }
}

impl fmt::Debug for BroadcastOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// Emits that are published together, in order. See [`Batch`](crate::Batch).
#[must_use = "nothing happens until the batch is sent"]
#[derive(Debug)]
pub struct Batch {
    inner: emitter::Batch,
    runtime: Arc<Runtime>,
}

impl Batch {
    /// Sets the maximum size in bytes. Default 64 MiB.
    pub fn limit(mut self, bytes: usize) -> Self {
        self.inner = self.inner.limit(bytes);
        self
    }

    /// Selects a namespace. Its name begins with a slash.
    pub fn of(&mut self, namespace: &str) -> BatchOperator<'_> {
        self.inner.of(namespace)
    }

    /// Selects the sockets in any of these rooms of the main namespace.
    pub fn to(&mut self, rooms: impl Rooms) -> BatchOperator<'_> {
        self.inner.to(rooms)
    }

    /// Adds an event for all sockets of the main namespace.
    pub fn emit(&mut self, event: &str, args: impl IntoArgs) -> Result<(), EmitError> {
        self.inner.emit(event, args)
    }

    /// The number of messages.
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    /// Whether there are no messages.
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// Publishes the messages and returns the outcome of each, both in order.
    pub fn send(self) -> Vec<Result<Delivery, EmitError>> {
        self.runtime.handle.block_on(self.inner.send())
    }
}

/// A thread that owns the connections until this is dropped.
#[derive(Debug)]
struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Runtime {
    fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("roomcast-emitter".to_owned());
        let thread = thread.spawn(move || {
            // Ends with a message or with the sender; either is the end.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It returns nothing; a panic there was printed.
            let _ = thread.join();
        }
    }
}
