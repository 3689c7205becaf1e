//! The emitter without async, for cron jobs and other programs that have no runtime.
//!
//! A thread of its own carries the connections, so that they are looked after between calls. All
//! methods do what those of the same name on the async [`Emitter`](crate::Emitter) do. They wait,
//! and so must not be called from async code, where they panic.

use std::{fmt, io, sync::Arc, thread};

use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
};

use crate::{
    emitter::{
        self, Answers, BatchOperator, BuildError, Builder, Confirmed, Delivery, EmitError, Fetched,
    },
    endpoint::RedisUrl,
};
use roomcast_protocol::{
    args::{FromArgs, IntoArgs},
    target::{Rooms, Target},
};

/// Emits to the clients of a cluster. Cheap to clone; the connections end with the last clone.
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

    /// A namespace; its name begins with a slash.
    pub fn of(&self, namespace: &str) -> BroadcastOperator {
        BroadcastOperator {
            namespace: self.inner.of(namespace),
            target: Target::default(),
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// Whoever is in one of these rooms of the main namespace.
    pub fn to(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").to(rooms)
    }

    /// The same as [`to`](Self::to).
    pub fn in_(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.to(rooms)
    }

    /// Everybody in the main namespace but those in these rooms.
    pub fn except(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").except(rooms)
    }

    /// Emits an event to everybody in the main namespace, and waits until Redis has taken it.
    pub fn emit(&self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        self.of("/").emit(event, args)
    }

    /// Collects many emits, to publish them at once.
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

/// Who shall receive, and how. See [`emitter::BroadcastOperator`](crate::BroadcastOperator).
#[must_use = "nothing happens until `emit` or another operation is called"]
pub struct BroadcastOperator {
    namespace: emitter::BroadcastOperator,
    target: Target,
    runtime: Arc<Runtime>,
}

impl BroadcastOperator {
    emitter::narrowing!();

    /// Emits an event to everybody who is meant, and waits until Redis has taken it.
    pub fn emit(self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        self.act(async |to| to.emit(event, args).await)
    }

    /// Emits an event and waits until the nodes have said how many sockets it reached.
    pub fn emit_confirmed(self, event: &str, args: impl IntoArgs) -> Result<Confirmed, EmitError> {
        self.act(async |to| to.emit_confirmed(event, args).await)
    }

    /// Emits an event and collects the acknowledgements until everybody has answered or the timeout
    /// is over.
    pub fn emit_with_ack<T: FromArgs>(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Answers<T>, EmitError> {
        self.act(async |to| to.emit_with_ack(event, args).await)
    }

    /// The sockets that are meant, with their rooms and data.
    pub fn fetch_sockets(self) -> Result<Fetched, EmitError> {
        self.act(async |to| to.fetch_sockets().await)
    }

    /// Has everybody who is meant join rooms.
    pub fn sockets_join(self, rooms: impl Rooms) -> Result<Delivery, EmitError> {
        self.act(async |to| to.sockets_join(rooms).await)
    }

    /// Has everybody who is meant leave rooms.
    pub fn sockets_leave(self, rooms: impl Rooms) -> Result<Delivery, EmitError> {
        self.act(async |to| to.sockets_leave(rooms).await)
    }

    /// Disconnects everybody who is meant: from the namespace or, with `close`, altogether.
    pub fn disconnect_sockets(self, close: bool) -> Result<Delivery, EmitError> {
        self.act(async |to| to.disconnect_sockets(close).await)
    }

    /// Calls the handlers that the servers themselves have for an event, on all of them.
    pub fn server_side_emit(self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        self.act(async |to| to.server_side_emit(event, args).await)
    }

    fn act<T>(self, operation: impl AsyncFnOnce(emitter::BroadcastOperator) -> T) -> T {
        let to = self.namespace.with_target(self.target);
        self.runtime.handle.block_on(operation(to))
    }
}

impl fmt::Debug for BroadcastOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastOperator")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// Emits that are published together, in their order. See [`emitter::Batch`](crate::Batch).
#[must_use = "nothing happens until the batch is sent"]
#[derive(Debug)]
pub struct Batch {
    inner: emitter::Batch,
    runtime: Arc<Runtime>,
}

impl Batch {
    /// How many bytes the batch may hold. Default 64 MiB.
    pub fn limit(mut self, bytes: usize) -> Self {
        self.inner = self.inner.limit(bytes);
        self
    }

    /// A namespace; its name begins with a slash.
    pub fn of(&mut self, namespace: &str) -> BatchOperator<'_> {
        self.inner.of(namespace)
    }

    /// Whoever is in one of these rooms of the main namespace.
    pub fn to(&mut self, rooms: impl Rooms) -> BatchOperator<'_> {
        self.inner.to(rooms)
    }

    /// Adds an event to everybody in the main namespace.
    pub fn emit(&mut self, event: &str, args: impl IntoArgs) -> Result<(), EmitError> {
        self.inner.emit(event, args)
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// Publishes what it holds, and says of each message, in order, what became of it.
    pub fn send(self) -> Vec<Result<Delivery, EmitError>> {
        self.runtime.handle.block_on(self.inner.send())
    }
}

/// A thread that carries the connections until this is dropped.
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
            // It has nothing to say; a panic there has been printed.
            let _ = thread.join();
        }
    }
}
