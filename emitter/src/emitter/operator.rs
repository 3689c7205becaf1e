//! Selecting sockets, and operations on them. The names are those of the server's operators.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use super::{
    core::{About, Core},
    results::{Answers, Delivery, Fetched},
};
use crate::{error::EmitError, log::Once};
use roomcast_protocol::{
    args::{Args, FromArgs, IntoArgs},
    event,
    message::{Broadcast, Message},
    question::Question,
    receipt::{Receipt, fingerprint},
    target::{Rooms, Target},
};

/// Default timeout for answers.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time that a node has for its answer beyond the timeout of its sockets.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// Selects sockets and acts on them. Returned by [`Emitter::of`](super::Emitter::of),
/// [`Emitter::to`](super::Emitter::to) and similar methods. Further methods narrow or widen the
/// selection; the last one acts.
#[derive(Clone)]
#[must_use = "nothing happens until `emit` or another operation is called and awaited"]
pub struct BroadcastOperator {
    core: Arc<Core>,
    namespace: Cow<'static, str>,
    pub(crate) target: Target,
    idempotency_key: Option<Box<str>>,
}

impl BroadcastOperator {
    pub(super) fn new(core: Arc<Core>, namespace: Cow<'static, str>) -> Self {
        Self {
            core,
            namespace,
            target: Target::default(),
            idempotency_key: None,
        }
    }

    super::narrowing!(target);

    /// Publishes the event once, however often it is emitted with this key: by this emitter, by another one, by a
    /// server, or over the HTTP API. The first emit takes effect, and later ones return its receipt
    /// with `is_replayed`, including the number of sockets if it was confirmed. Unconfirmed
    /// messages are therefore retried, too.
    ///
    /// Keys belong to a namespace. The result is kept for
    /// [`Builder::idempotency_time`](crate::Builder::idempotency_time). Applies to
    /// [`emit`](Self::emit) and [`emit_confirmed`](Self::emit_confirmed).
    ///
    /// # Errors
    ///
    /// The emit fails with [`EmitError::KeyReused`] if another event, other arguments,
    /// other rooms or other flags (`volatile`, `at_least_once`) had this key.
    pub fn idempotency_key(mut self, key: impl Into<Box<str>>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Makes the client of each socket acknowledge the event, and receive it again if it comes back
    /// without having done so. The handler of the official client receives a function as its last
    /// argument, and calls it when it has handled the event. It may receive an event twice, and
    /// should check an id in the arguments.
    ///
    /// Applies to [`emit`](Self::emit) and [`emit_confirmed`](Self::emit_confirmed). The
    /// acknowledgements are not returned. Clients of Node.js servers receive the event at most
    /// once.
    ///
    /// # Errors
    ///
    /// The emit fails with [`EmitError::AtLeastOnce`] if the namespace has no recovery
    /// with `at_least_once` turned on, or the event is volatile. In the streams dialect it always
    /// fails, because nodes do not announce it to emitters there: use the HTTP API.
    pub fn at_least_once(mut self) -> Self {
        self.target.flags.at_least_once = true;
        self
    }

    /// Emits an event to the selected sockets. Resolves when Redis has accepted it.
    ///
    /// If the namespace has a journal, the event is stored there, unless it is
    /// [`volatile`](Self::volatile).
    pub async fn emit(self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        let args = checked(event, args)?;
        let once = self.once(event, &args);
        let message = broadcast(self.target, event, args);
        self.core
            .publish(&self.namespace, &message, once.as_ref())
            .await
    }

    /// Emits an event and waits until the nodes have reported how many sockets it reached.
    ///
    /// Nodes that do not respond within the timeout (default 5 s) are listed as silent,
    /// which is not an error. Node's servers cannot report this; they are asked for the currently
    /// selected sockets.
    pub async fn emit_confirmed(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Receipt, EmitError> {
        let args = checked(event, args)?;
        let timeout = self.timeout_or_default();
        let question = Question::Reached(self.target.clone());
        let once = self.once(event, &args);
        let message = broadcast(self.target, event, args);
        let asking = (&question, timeout);
        let confirming = self
            .core
            .confirm(&self.namespace, &message, once.as_ref(), asking);
        confirming.await
    }

    /// Emits an event and collects acknowledgements until all sockets have acknowledged
    /// or the timeout (default 5 s) ends. A timeout is not an error: the result lists
    /// what is missing.
    pub async fn emit_with_ack<T: FromArgs>(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Answers<T>, EmitError> {
        let args = checked(event, args)?;
        if self.target.flags.at_least_once {
            let reason = "its acknowledgements are awaited, so it is not in the journal";
            return Err(EmitError::AtLeastOnce(reason));
        }
        let timeout = self.timeout_or_default();
        let question = Question::Acks {
            target: self.target.clone(),
            event: event.into(),
            args,
            timeout,
        };
        let asked = self.core.ask(
            &self.namespace,
            About::Nothing,
            &question,
            timeout + ANSWER_GRACE,
        );
        Ok(Answers::from(asked.await?))
    }

    /// Returns the selected sockets, with their rooms and data.
    pub async fn fetch_sockets(self) -> Result<Fetched, EmitError> {
        let timeout = self.timeout_or_default();
        let question = Question::Sockets(self.target.clone());
        let asked = self
            .core
            .ask(&self.namespace, About::Nothing, &question, timeout);
        Ok(Fetched::from(asked.await?))
    }

    /// Makes the selected sockets join rooms.
    pub async fn sockets_join(self, rooms: impl Rooms) -> Result<Delivery, EmitError> {
        let (target, rooms) = (self.target.clone(), names(&rooms));
        self.publish(Message::SocketsJoin { target, rooms }).await
    }

    /// Makes the selected sockets leave rooms.
    pub async fn sockets_leave(self, rooms: impl Rooms) -> Result<Delivery, EmitError> {
        let (target, rooms) = (self.target.clone(), names(&rooms));
        self.publish(Message::SocketsLeave { target, rooms }).await
    }

    /// Disconnects the selected sockets from the namespace or, with `close`, closes their
    /// connections.
    pub async fn disconnect_sockets(self, close: bool) -> Result<Delivery, EmitError> {
        let target = self.target.clone();
        self.publish(Message::DisconnectSockets { target, close })
            .await
    }

    /// Calls the server-side handlers of an event on all servers.
    pub async fn server_side_emit(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Delivery, EmitError> {
        let args = checked(event, args)?;
        if !(self.target.rooms.is_empty() && self.target.except.is_empty()) {
            return Err(EmitError::ServersHaveNoRooms);
        }
        let event = event.into();
        self.publish(Message::ServerSideEmit { event, args }).await
    }

    async fn publish(self, message: Message) -> Result<Delivery, EmitError> {
        self.core.publish(&self.namespace, &message, None).await
    }

    fn once(&self, event: &str, args: &Args) -> Option<Once> {
        let key = self.idempotency_key.clone()?;
        Some(once(&self.core, key, &self.target, event, args))
    }

    fn timeout_or_default(&self) -> Duration {
        self.target.flags.timeout.unwrap_or(TIMEOUT)
    }
}

impl fmt::Debug for BroadcastOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastOperator")
            .field("namespace", &self.namespace)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// Encodes the arguments, unless the event name is reserved.
pub(super) fn checked(event: &str, args: impl IntoArgs) -> Result<Args, EmitError> {
    if event::is_reserved(event) {
        return Err(EmitError::ReservedEvent(event.into()));
    }
    Ok(args.into_args()?)
}

/// A broadcast without acknowledgement. The caller's timeout does not apply to the nodes.
pub(super) fn broadcast(mut target: Target, event: &str, args: Args) -> Message {
    target.flags.timeout = None;
    Message::Broadcast(Broadcast {
        target,
        event: event.into(),
        args,
    })
}

/// An event under an idempotency key.
pub(super) fn once(core: &Core, key: Box<str>, target: &Target, event: &str, args: &Args) -> Once {
    Once {
        key,
        lifetime: core.idempotency_time,
        fingerprint: fingerprint(target, event, args).into(),
    }
}

pub(super) fn names(rooms: &impl Rooms) -> Vec<Box<str>> {
    let mut names: Vec<Box<str>> = Vec::new();
    rooms.each(&mut |room| names.push(room.into()));
    names
}
