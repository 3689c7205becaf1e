//! Many emits at once: encoded one after the other, published in as few writes as possible.
//!
//! Messages are encoded as they are added, or some of them while the batch is sent. Nothing is
//! published before that. What it may hold is limited in bytes, and so is what is on its way to Redis
//! while it is sent.

mod kept;
mod unsent;

use std::{borrow::Cow, fmt, mem, sync::Arc};

pub(super) use self::unsent::Unsent;
use super::{
    core::Core,
    error::EmitError,
    operator::{checked, names},
    results::Delivery,
};
use roomcast_protocol::{
    args::IntoArgs,
    message::Message,
    target::{Flags, Rooms, Target},
};

/// What a batch may hold if nothing else is said, in bytes.
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
    /// Of the message that is being added. Its lists are made once for all messages.
    target: Target,
}

/// All but what is said of the next one.
struct Messages {
    core: Arc<Core>,
    unsent: Unsent,
    limit: usize,
}

impl Batch {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let messages = Messages {
            core,
            unsent: Unsent::default(),
            limit: DEFAULT_LIMIT,
        };
        Self {
            messages,
            target: Target::default(),
        }
    }

    /// How many bytes the batch may hold, which is roughly what Redis will be sent. Default 64 MiB.
    pub fn limit(mut self, bytes: usize) -> Self {
        self.messages.limit = bytes;
        self
    }

    /// A namespace; its name begins with a slash.
    pub fn of(&mut self, namespace: &str) -> BatchOperator<'_> {
        BatchOperator {
            namespace: Cow::Owned(namespace.to_owned()),
            ..self.main()
        }
    }

    /// Whoever is in one of these rooms of the main namespace.
    pub fn to(&mut self, rooms: impl Rooms) -> BatchOperator<'_> {
        self.main().to(rooms)
    }

    /// The same as [`to`](Self::to).
    pub fn in_(&mut self, rooms: impl Rooms) -> BatchOperator<'_> {
        self.to(rooms)
    }

    /// Everybody in the main namespace but those in these rooms.
    pub fn except(&mut self, rooms: impl Rooms) -> BatchOperator<'_> {
        self.main().except(rooms)
    }

    /// Adds an event to everybody in the main namespace.
    pub fn emit(&mut self, event: &str, args: impl IntoArgs) -> Result<(), EmitError> {
        self.main().emit(event, args)
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.messages.unsent.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.messages.unsent.len() == 0
    }

    /// Publishes what it holds, and says of each message, in order, what became of it.
    ///
    /// Messages are tried again as [`Retry`](super::Retry) says; those that were are published after
    /// the others. The order is otherwise that of the batch.
    pub async fn send(self) -> Vec<Result<Delivery, EmitError>> {
        let Messages { core, unsent, .. } = self.messages;
        core.publish_all(unsent).await
    }

    fn main(&mut self) -> BatchOperator<'_> {
        self.target.rooms.clear();
        self.target.except.clear();
        self.target.flags = Flags::default();
        BatchOperator {
            messages: &mut self.messages,
            namespace: Cow::Borrowed("/"),
            target: &mut self.target,
        }
    }
}

impl Messages {
    fn add(&mut self, namespace: &str, message: &Message) -> Result<(), EmitError> {
        self.unsent.push(&self.core, namespace, message, self.limit)
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

/// Who shall receive a message of a batch, and how. The last method adds the message.
#[must_use = "nothing is added until `emit` or another operation is called"]
pub struct BatchOperator<'a> {
    messages: &'a mut Messages,
    namespace: Cow<'static, str>,
    target: &'a mut Target,
}

#[expect(
    unused_mut,
    reason = "elsewhere these methods have a target of their own"
)]
impl BatchOperator<'_> {
    super::narrowing!();

    /// Adds an event to everybody who is meant.
    pub fn emit(self, event: &str, args: impl IntoArgs) -> Result<(), EmitError> {
        let args = checked(event, args)?;
        // How long the caller waits is nobody else's business.
        self.target.flags.timeout = None;
        let Messages {
            core,
            unsent,
            limit,
        } = self.messages;
        let broadcast = (&*self.target, event, &args);
        unsent.push_broadcast(core, &self.namespace, broadcast, *limit)
    }

    /// Has everybody who is meant join rooms.
    #[expect(clippy::needless_pass_by_value, reason = "callers name rooms in place")]
    pub fn sockets_join(self, rooms: impl Rooms) -> Result<(), EmitError> {
        let (target, rooms) = (mem::take(self.target), names(&rooms));
        let message = Message::SocketsJoin { target, rooms };
        self.messages.add(&self.namespace, &message)
    }

    /// Has everybody who is meant leave rooms.
    #[expect(clippy::needless_pass_by_value, reason = "callers name rooms in place")]
    pub fn sockets_leave(self, rooms: impl Rooms) -> Result<(), EmitError> {
        let (target, rooms) = (mem::take(self.target), names(&rooms));
        let message = Message::SocketsLeave { target, rooms };
        self.messages.add(&self.namespace, &message)
    }

    /// Disconnects everybody who is meant: from the namespace or, with `close`, altogether.
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
