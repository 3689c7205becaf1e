//! Who shall receive, and how; and what is done to them. The names are those of the server's
//! operators. What is published is decided by the language of the cluster, how by the core.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use super::{
    core::Core,
    error::EmitError,
    results::{Answers, Confirmed, Delivery, Fetched},
};
use roomcast_protocol::{
    args::{Args, FromArgs, IntoArgs},
    event,
    message::Message,
    question::Question,
    target::{Rooms, Target},
};

/// How long answers are waited for if nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How much longer than the sockets a node has for its answer.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// Who shall receive, and how. Made by [`Emitter::of`](super::Emitter::of),
/// [`Emitter::to`](super::Emitter::to) and their like; every method narrows or widens it, and the
/// last one acts.
#[derive(Clone)]
#[must_use = "nothing happens until `emit` or another operation is called and awaited"]
pub struct BroadcastOperator {
    core: Arc<Core>,
    namespace: Cow<'static, str>,
    target: Target,
}

impl BroadcastOperator {
    pub(super) fn new(core: Arc<Core>, namespace: Cow<'static, str>) -> Self {
        Self {
            core,
            namespace,
            target: Target::default(),
        }
    }

    super::narrowing!();

    pub(crate) fn with_target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// Emits an event to everybody who is meant, and waits until Redis has taken it.
    pub async fn emit(self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        let args = checked(event, args)?;
        let message = broadcast(self.target, event, args);
        self.core.publish(&self.namespace, &message).await
    }

    /// Emits an event and waits until the nodes have said how many sockets it reached.
    ///
    /// A node that does not say so within the timeout is silent, which is no error. Servers of
    /// other make are asked for the sockets that are meant now.
    pub async fn emit_confirmed(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Confirmed, EmitError> {
        let args = checked(event, args)?;
        let timeout = self.timeout_or_default();
        let question = Question::Reached(self.target.clone());
        let message = broadcast(self.target, event, args);
        let asked = self
            .core
            .ask(&self.namespace, Some(&message), &question, timeout);
        Ok(Confirmed::from(asked.await?))
    }

    /// Emits an event and collects the acknowledgements until everybody has answered or the
    /// timeout is over. A timeout is no error: the result says who is missing.
    pub async fn emit_with_ack<T: FromArgs>(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Answers<T>, EmitError> {
        let args = checked(event, args)?;
        let timeout = self.timeout_or_default();
        let question = Question::Acks {
            target: self.target.clone(),
            event: event.into(),
            args,
            timeout,
        };
        let asked = self
            .core
            .ask(&self.namespace, None, &question, timeout + ANSWER_GRACE);
        Ok(Answers::from(asked.await?))
    }

    /// The sockets that are meant, with their rooms and data.
    pub async fn fetch_sockets(self) -> Result<Fetched, EmitError> {
        let timeout = self.timeout_or_default();
        let question = Question::Sockets(self.target.clone());
        let asked = self.core.ask(&self.namespace, None, &question, timeout);
        Ok(Fetched::from(asked.await?))
    }

    /// Has everybody who is meant join rooms.
    pub async fn sockets_join(self, rooms: impl Rooms) -> Result<Delivery, EmitError> {
        let (target, rooms) = (self.target.clone(), names(&rooms));
        self.tell(Message::SocketsJoin { target, rooms }).await
    }

    /// Has everybody who is meant leave rooms.
    pub async fn sockets_leave(self, rooms: impl Rooms) -> Result<Delivery, EmitError> {
        let (target, rooms) = (self.target.clone(), names(&rooms));
        self.tell(Message::SocketsLeave { target, rooms }).await
    }

    /// Disconnects everybody who is meant: from the namespace or, with `close`, altogether.
    pub async fn disconnect_sockets(self, close: bool) -> Result<Delivery, EmitError> {
        let target = self.target.clone();
        self.tell(Message::DisconnectSockets { target, close })
            .await
    }

    /// Calls the handlers that the servers themselves have for an event, on all of them.
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
        self.tell(Message::ServerSideEmit { event, args }).await
    }

    async fn tell(self, message: Message) -> Result<Delivery, EmitError> {
        self.core.publish(&self.namespace, &message).await
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

/// The arguments of an event whose name is the application's.
pub(super) fn checked(event: &str, args: impl IntoArgs) -> Result<Args, EmitError> {
    if event::is_reserved(event) {
        return Err(EmitError::ReservedEvent(event.into()));
    }
    Ok(args.into_args()?)
}

/// A broadcast that nobody acknowledges. How long the caller waits is nobody else's business.
pub(super) fn broadcast(mut target: Target, event: &str, args: Args) -> Message {
    target.flags.timeout = None;
    Message::Broadcast {
        target,
        event: event.into(),
        args,
    }
}

pub(super) fn names(rooms: &impl Rooms) -> Vec<Box<str>> {
    let mut names: Vec<Box<str>> = Vec::new();
    rooms.each(&mut |room| names.push(room.into()));
    names
}
