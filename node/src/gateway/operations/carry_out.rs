//! Carries out checked operations, one after the other, with the library's public API.
//!
//! The list was checked completely, so an operation fails only for reasons outside of
//! it: the socket has disconnected, other nodes cannot be reached, or a limit of the library
//! applies. The first such failure ends the list, because later operations may rely on earlier
//! ones. Not reaching other nodes does not end it: this node has done its part, and stopping in the
//! middle would leave its clients worse off.

use roomcast::{
    Ack, BroadcastOperator, BusError, Delivery, EmitError, Health, JoinError, Receipt, Socket,
};

use super::{Checked, Flags, Idempotency, Operation, Whom, refused};
use crate::gateway::session;

/// The effect of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It is done, on this node at once and on others when they have received it.
    Done,
    /// The event is in the outbox of these sockets and was published to these nodes.
    Emitted(Delivery),
    /// The event was published, and the sockets of this node receive it like those of others,
    /// through Redis or the journal, so they are not counted.
    Published(Receipt),
    /// The event has reached these sockets.
    Confirmed(Receipt),
    /// The operation selected no socket: the asking socket has disconnected, or the selection is
    /// empty.
    Nobody,
}

/// The results of a list, one for each operation that was carried out. After an operation that
/// failed, nothing else was, unless other nodes could not be reached: then this node did its part.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) results: Vec<Result<Effect, EmitError>>,
}

impl Report {
    /// The error that ended the list, with the index of its operation.
    pub(crate) fn failure(&self) -> Option<(usize, &EmitError)> {
        let last = self.results.len().checked_sub(1)?;
        let error = self.results[last].as_ref().err()?;
        (!is_partial(error)).then_some((last, error))
    }

    /// Whether an operation may not have reached other nodes.
    pub(crate) fn missed_nodes(&self) -> Option<&EmitError> {
        let errors = self
            .results
            .iter()
            .filter_map(|result| result.as_ref().err());
        errors.into_iter().find(|error| is_partial(error))
    }
}

impl Operation {
    /// Whether it emits to other nodes, too.
    pub(super) fn is_published(&self) -> bool {
        matches!(self, Self::Emit { flags, .. } if !flags.local)
    }
}

impl Effect {
    /// The effect of an emit whose sockets on this node were not counted.
    fn of_published(self, is_once: bool) -> Self {
        match self {
            Self::Emitted(delivery) if is_once || delivery.position.is_some() => {
                Self::Published(delivery.into())
            }
            other => other,
        }
    }
}

/// Whether this node has done its part in spite of the error.
/// Under a key that was used for another event, nothing at all was published.
fn is_partial(error: &EmitError) -> bool {
    matches!(error, EmitError::Bus(error) if !matches!(error, BusError::KeyReused))
}

impl Checked {
    /// Carries out the operations in their order.
    ///
    /// `ack` is taken and sent where the list acknowledges or refuses, or at the end if it does
    /// neither. After a failure it may still be there, for an error.
    /// `asker` must be given unless the list was checked for [`Asks::Nobody`](super::Asks::Nobody).
    pub(crate) async fn carry_out(
        self,
        namespace: &BroadcastOperator,
        asker: Option<&Socket>,
        ack: &mut Option<Ack>,
    ) -> Report {
        let mut report = Report::default();
        let Self(operations, once) = self;
        let is_one = operations.len() == 1;
        for (index, operation) in operations.into_iter().enumerate() {
            let once = once.as_ref();
            let is_once = once.is_some() && operation.is_published();
            let namespace = &match once.filter(|_| matches!(operation, Operation::Emit { .. })) {
                None => namespace.clone(),
                Some(once) if is_one => namespace.clone().idempotency_key(&once.key, once.time),
                Some(Idempotency { key, time }) => {
                    // The library knows one event for each key, and the index is the
                    // same in a repetition.
                    let key = format!("{key}/{index}");
                    namespace.clone().idempotency_key(&key, *time)
                }
            };
            let result = match operation {
                Operation::Ack { args } => acknowledge(ack.take(), args),
                // Larger than the futures of most events, which are moved as a whole.
                other => Box::pin(one(other, namespace, asker, ack)).await,
            };
            let result = result.map(|effect| effect.of_published(is_once));
            let ends = matches!(&result, Err(error) if !is_partial(error));
            report.results.push(result);
            if ends {
                return report;
            }
        }
        // The client waits for an acknowledgement, and a list without one means that
        // all is well.
        if let Some(ack) = ack.take() {
            // Fails only if the client has disconnected, which then expects nothing.
            drop(ack.send(()));
        }
        report
    }
}

async fn one(
    operation: Operation,
    namespace: &BroadcastOperator,
    asker: Option<&Socket>,
    ack: &mut Option<Ack>,
) -> Result<Effect, EmitError> {
    match operation {
        Operation::Ack { args } => acknowledge(ack.take(), args),
        Operation::Refuse { message, data } => {
            acknowledge(ack.take(), refused(&message, data.as_ref()).to_answer())
        }
        Operation::Join { rooms, whom } => match select(whom, namespace, asker) {
            Selection::Socket(socket) => join(socket, &rooms).await,
            Selection::Sockets(sockets) => done(sockets.sockets_join(rooms).await),
            Selection::Nobody => Ok(Effect::Nobody),
        },
        Operation::Leave { rooms, whom } => match select(whom, namespace, asker) {
            Selection::Socket(socket) => {
                socket.leave(rooms);
                Ok(Effect::Done)
            }
            Selection::Sockets(sockets) => done(sockets.sockets_leave(rooms).await),
            Selection::Nobody => Ok(Effect::Nobody),
        },
        Operation::Emit {
            event,
            args,
            whom,
            except,
            flags,
        } => match select_to_emit(whom, namespace, asker, flags) {
            Selection::Socket(socket) => emit_to_socket(socket, &event, args, flags),
            Selection::Sockets(mut sockets) => {
                if flags.volatile {
                    sockets = sockets.volatile();
                }
                if flags.local {
                    sockets = sockets.local();
                }
                if flags.at_least_once {
                    sockets = sockets.at_least_once();
                }
                let sockets = sockets.except(except);
                if flags.confirmed {
                    let confirmed = sockets.emit_confirmed(&event, args).await;
                    return confirmed.map(Effect::Confirmed);
                }
                let emitted = sockets.emit(&event, args).await;
                emitted.map(Effect::Emitted)
            }
            Selection::Nobody => Ok(Effect::Nobody),
        },
        // It took effect when the client was let in.
        Operation::SetUser { user } => match asker {
            Some(socket) => join(socket, &[session::user_room(&user)]).await,
            None => Ok(Effect::Nobody),
        },
        Operation::SetData { data } => {
            let Some(socket) = asker else {
                return Ok(Effect::Nobody);
            };
            session::set_data(socket, data);
            Ok(Effect::Done)
        }
        Operation::Disconnect { close, whom } => match select(whom, namespace, asker) {
            Selection::Socket(socket) => {
                socket.disconnect(close);
                Ok(Effect::Done)
            }
            Selection::Sockets(sockets) => done(sockets.disconnect_sockets(close).await),
            Selection::Nobody => Ok(Effect::Nobody),
        },
    }
}

/// The sockets that an operation selects. A single socket is acted on directly: it is on this
/// node, so nothing needs to be published.
enum Selection<'a> {
    Socket(&'a Socket),
    Sockets(BroadcastOperator),
    Nobody,
}

fn select<'a>(
    whom: Whom,
    namespace: &BroadcastOperator,
    asker: Option<&'a Socket>,
) -> Selection<'a> {
    match whom {
        Whom::Asker => asker.map_or(Selection::Nobody, Selection::Socket),
        Whom::Everybody => Selection::Sockets(namespace.clone()),
        // Without a room the library would select everybody.
        Whom::Rooms(selected) if selected.rooms.is_empty() => Selection::Nobody,
        Whom::Rooms(selected) => Selection::Sockets(namespace.clone().to(selected.rooms)),
    }
}

/// The same for an event. One that is received at least once goes through the journal,
/// also to a single socket.
fn select_to_emit<'a>(
    whom: Whom,
    namespace: &BroadcastOperator,
    asker: Option<&'a Socket>,
    flags: Flags,
) -> Selection<'a> {
    match select(whom, namespace, asker) {
        Selection::Socket(socket) if flags.at_least_once => {
            Selection::Sockets(namespace.clone().to(socket.id()))
        }
        selection => selection,
    }
}

fn done(result: Result<(), EmitError>) -> Result<Effect, EmitError> {
    result.map(|()| Effect::Done)
}

fn acknowledge(ack: Option<Ack>, args: roomcast::Args) -> Result<Effect, EmitError> {
    match ack.map(|ack| ack.send(args)) {
        Some(Ok(())) => Ok(Effect::Done),
        Some(Err(EmitError::Disconnected)) | None => Ok(Effect::Nobody),
        Some(Err(error)) => Err(error),
    }
}

/// Joins so that emits of other nodes after the acknowledgement reach the socket. While other
/// nodes cannot be reached, the client does not wait for them.
async fn join(socket: &Socket, rooms: &[String]) -> Result<Effect, EmitError> {
    match socket.join(rooms) {
        Ok(()) => {}
        Err(JoinError::Disconnected) => return Ok(Effect::Nobody),
        Err(error) => return Err(error.into()),
    }
    let server = socket.server();
    if server.is_some_and(|server| server.health() == Health::Flowing) {
        match socket.join_confirmed(rooms).await {
            Err(EmitError::Join(JoinError::Disconnected)) => return Ok(Effect::Nobody),
            confirmed => confirmed?,
        }
    }
    Ok(Effect::Done)
}

fn emit_to_socket(
    socket: &Socket,
    event: &str,
    args: roomcast::Args,
    flags: Flags,
) -> Result<Effect, EmitError> {
    let emitted = if flags.volatile {
        socket.volatile().emit(event, args)
    } else {
        socket.emit(event, args)
    };
    match emitted {
        Err(EmitError::Disconnected) => Ok(Effect::Nobody),
        emitted => done(emitted),
    }
}
