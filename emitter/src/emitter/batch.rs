//! Many emits at once, published in as few pipelines as possible.
//!
//! Messages are encoded when they are added; nothing is published before the batch is
//! sent. The size of a batch is limited in bytes, and so are the bytes in flight to Redis.
//!
//! A message that cannot be encoded, or that does not fit, is an error of the call that
//! adds it. Messages in the batch can therefore only fail in Redis or on the way there.

use std::{borrow::Cow, fmt, mem, sync::Arc};

use super::{
    core::Core,
    operator::{checked, names, once},
    results::Delivery,
    unsent::{Keyed, Mark, Unsent},
};
use crate::error::EmitError;
use roomcast_protocol::{
    args::IntoArgs,
    message::Message,
    target::{Flags, Rooms, Target},
};

/// Default limit of a batch, in bytes.
const DEFAULT_LIMIT: usize = 64 << 20;

/// Emits that are published together, in their order. Made by
/// [`Emitter::batch`](super::Emitter::batch).
///
/// ```no_run
/// # async fn run(emitter: roomcast_emitter::Emitter) -> Result<(), roomcast_emitter::EmitError> {
/// let mut batch = emitter.batch();
/// for user in 0..10_000 {
///     batch.to(format!("user:{user}")).emit("digest", user)?;
/// }
/// for delivery in batch.send().await {
///     delivery?;
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing happens until the batch is sent"]
pub struct Batch {
    messages: Messages,
    /// The target of the message that is being added. Its lists are allocated once.
    target: Target,
}

/// The messages so far.
struct Messages {
    core: Arc<Core>,
    unsent: Unsent,
    /// Those of the broadcasts that belong in a journal, if the namespace has one.
    namespaces: Vec<Box<str>>,
    limit: usize,
    /// Memory for the payload that is being encoded.
    payload: Vec<u8>,
}

impl Batch {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let messages = Messages {
            core,
            unsent: Unsent::default(),
            namespaces: Vec::new(),
            limit: DEFAULT_LIMIT,
            payload: Vec::new(),
        };
        Self {
            messages,
            target: Target::default(),
        }
    }

    /// Sets the maximum size in bytes, roughly as sent to Redis. Default 64 MiB.
    pub fn limit(mut self, bytes: usize) -> Self {
        self.messages.limit = bytes;
        self
    }

    /// Selects a namespace. Its name begins with a slash.
    pub fn of(&mut self, namespace: &str) -> BatchOperator<'_> {
        BatchOperator {
            namespace: Cow::Owned(namespace.to_owned()),
            ..self.main()
        }
    }

    /// Selects the sockets in any of these rooms of the main namespace.
    pub fn to(&mut self, rooms: impl Rooms) -> BatchOperator<'_> {
        self.main().to(rooms)
    }

    /// The same as [`to`](Self::to).
    pub fn in_(&mut self, rooms: impl Rooms) -> BatchOperator<'_> {
        self.to(rooms)
    }

    /// Selects all sockets of the main namespace except those in these rooms.
    pub fn except(&mut self, rooms: impl Rooms) -> BatchOperator<'_> {
        self.main().except(rooms)
    }

    /// Adds an event for all sockets of the main namespace.
    pub fn emit(&mut self, event: &str, args: impl IntoArgs) -> Result<(), EmitError> {
        self.main().emit(event, args)
    }

    /// The number of messages.
    pub fn len(&self) -> usize {
        self.messages.unsent.len()
    }

    /// Whether there are no messages.
    pub fn is_empty(&self) -> bool {
        self.messages.unsent.len() == 0
    }

    /// Publishes the messages and returns the outcome of each, both in order.
    ///
    /// Failed messages are retried according to [`Retry`](super::Retry); these are
    /// published after the others.
    pub async fn send(self) -> Vec<Result<Delivery, EmitError>> {
        let Messages {
            core,
            unsent,
            namespaces,
            ..
        } = self.messages;
        core.publish_all(&unsent, &namespaces).await
    }

    fn main(&mut self) -> BatchOperator<'_> {
        self.target.rooms.clear();
        self.target.except.clear();
        self.target.flags = Flags::default();
        BatchOperator {
            messages: &mut self.messages,
            namespace: Cow::Borrowed("/"),
            target: &mut self.target,
            idempotency_key: None,
        }
    }
}

impl Messages {
    /// The number of a namespace. A batch seldom has more than one.
    fn number(&mut self, namespace: &str) -> usize {
        let mut known = self.namespaces.iter();
        known
            .rposition(|known| **known == *namespace)
            .unwrap_or_else(|| {
                self.namespaces.push(namespace.into());
                self.namespaces.len() - 1
            })
    }

    fn add(&mut self, namespace: &str, message: &Message) -> Result<(), EmitError> {
        // Members are counted by namespace, because Redis does not report the readers of a stream.
        let mark = match self.core.encoder.has_stream() {
            true => Mark::Journaled(self.number(namespace)),
            false => Mark::Plain,
        };
        let encoder = &self.core.encoder;
        self.unsent.push(mark, self.limit, |commands| {
            encoder.write_message(commands, namespace, message)
        })
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("messages", &self.messages.unsent.len())
            .field("bytes", &self.messages.unsent.bytes())
            .finish_non_exhaustive()
    }
}

/// Selects the sockets for one message of a batch. The last method adds the message.
#[must_use = "nothing is added until `emit` or another operation is called"]
pub struct BatchOperator<'a> {
    messages: &'a mut Messages,
    namespace: Cow<'static, str>,
    target: &'a mut Target,
    idempotency_key: Option<Box<str>>,
}

#[expect(
    unused_mut,
    reason = "elsewhere these methods have a target of their own"
)]
impl BatchOperator<'_> {
    super::narrowing!(target);

    /// Publishes the event once, however often it is emitted with this key, in a batch or alone. See
    /// [`BroadcastOperator::idempotency_key`](super::BroadcastOperator::idempotency_key). Each
    /// event of a batch needs its own key. Applies to [`emit`](Self::emit).
    pub fn idempotency_key(mut self, key: impl Into<Box<str>>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Adds an event for the selected sockets.
    pub fn emit(self, event: &str, args: impl IntoArgs) -> Result<(), EmitError> {
        let args = checked(event, args)?;
        // The caller's timeout does not concern the nodes.
        self.target.flags.timeout = None;
        let has_stream = self.messages.core.encoder.has_stream();
        let is_stored = !self.target.flags.volatile;
        let mark = match self.idempotency_key {
            Some(key) => Mark::Keyed(Arc::new(Keyed {
                once: once(&self.messages.core, key, self.target, event, &args),
                namespace: self.messages.number(&self.namespace),
                is_stored,
            })),
            None if is_stored || has_stream => {
                Mark::Journaled(self.messages.number(&self.namespace))
            }
            None => Mark::Plain,
        };
        let Messages {
            core,
            unsent,
            limit,
            payload,
            ..
        } = self.messages;
        let broadcast = (&*self.target, event, &args);
        unsent.push(mark, *limit, |commands| {
            let encoder = &core.encoder;
            encoder.write_broadcast(commands, &self.namespace, broadcast, payload)
        })
    }

    /// Makes the selected sockets join rooms.
    #[expect(clippy::needless_pass_by_value, reason = "callers name rooms in place")]
    pub fn sockets_join(self, rooms: impl Rooms) -> Result<(), EmitError> {
        let (target, rooms) = (mem::take(self.target), names(&rooms));
        let message = Message::SocketsJoin { target, rooms };
        self.messages.add(&self.namespace, &message)
    }

    /// Makes the selected sockets leave rooms.
    #[expect(clippy::needless_pass_by_value, reason = "callers name rooms in place")]
    pub fn sockets_leave(self, rooms: impl Rooms) -> Result<(), EmitError> {
        let (target, rooms) = (mem::take(self.target), names(&rooms));
        let message = Message::SocketsLeave { target, rooms };
        self.messages.add(&self.namespace, &message)
    }

    /// Disconnects the selected sockets from the namespace or, with `close`, closes their
    /// connections.
    pub fn disconnect_sockets(self, close: bool) -> Result<(), EmitError> {
        let target = mem::take(self.target);
        let message = Message::DisconnectSockets { target, close };
        self.messages.add(&self.namespace, &message)
    }
}

impl fmt::Debug for BatchOperator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchOperator")
            .field("namespace", &self.namespace)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}
