//! Messages and questions between the nodes of a namespace, in both directions.
//!
//! Outgoing: a message is published first, then the sockets of this node are served, then
//! the publish is awaited. So local delivery never waits for Redis, and an error of the
//! bus is still reported. Incoming: the bus calls [`Listener`] inline and in order, so
//! nothing here may block.
//!
//! ```text
//!  emit ─► frame ─► publish (enqueued) ─► fan out to local sockets ─► await the publish ─► Delivery
//!    └ journal ─► stored and published by Redis ──┐
//!    └ key ─────► published once by Redis ────────┴─► comes back like that of any node ─► fan out
//!  bus ──► Listener::receive ─► carry_out ─► fan out
//!      └─► Listener::answer ──► local sockets described, counted, asked
//! ```
//!
//! Emits with a journal or a key reach local sockets through Redis, too, because only Redis knows
//! the place in the order, or whether the key is new.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use roomcast_adapter::{
    Answer, Answered, Bus, BusError, BusFuture, BusHandle, Description, Listener, MemoryKeys,
    MemoryLogs, MemorySessions, NodeId, Once, Progress, Published, Question, SocketId,
};
use roomcast_protocol::{
    args::Args,
    message::{Broadcast, Message, Position},
    receipt::Receipt,
    target::{Rooms, Target},
};

use super::{
    broadcast::Delivery,
    error::EmitError,
    live_namespace::LiveNamespace,
    observe::Observation,
    recovery::ack_id,
    socket::{LocalSocket, Socket},
};
use crate::{
    clock::Stopwatch,
    transport::{frame::Frame, plain::Source},
};

/// The server as a node of a cluster. Without a bus, it has no other nodes.
#[derive(Clone)]
pub(crate) struct ClusterNode {
    pub(crate) node: NodeId,
    pub(crate) bus: Option<Arc<dyn Bus>>,
    /// The logs of namespaces without a bus.
    pub(crate) logs: MemoryLogs,
    /// The sessions of their clients.
    pub(crate) sessions: MemorySessions,
    /// The idempotency keys of namespaces without a bus.
    pub(crate) keys: MemoryKeys,
}

impl LiveNamespace {
    /// Emits an event to the selected sockets of all nodes. The order is: bus, then the
    /// sockets of this node, then the wait for the bus. The sockets of this node are
    /// served even if the bus fails.
    pub(super) async fn broadcast(
        &self,
        target: Target,
        event: &str,
        args: Args,
    ) -> Result<Delivery, EmitError> {
        if let Some(journal) = &self.journal
            && !target.flags.volatile
            && !target.flags.local
        {
            let event = event.into();
            let broadcast = Broadcast {
                target,
                event,
                args,
            };
            return self.broadcast_journaled(journal, broadcast).await;
        }
        let frame = self.frame(&target, None, event, &args, None)?;
        self.notify_outgoing(&target, event, &args);
        // Arguments are moved into the message, so a copy is made only for observers.
        let observed = self.observers.is_any_of_events().then(|| args.clone());
        let message = || Broadcast {
            target: target.clone(),
            event: event.into(),
            args,
        };
        let published = self.publish(&target, || Message::Broadcast(message()));
        let local_sockets = self.fan_out(&target, &frame, |_| {});
        if let Some(args) = observed {
            self.observed(&target, event, &args, local_sockets);
        }
        Ok(Delivery {
            local_sockets,
            nodes: resolve(published).await?.nodes,
            position: None,
            is_replayed: false,
        })
    }

    /// Emits an event once for each idempotency key. The sockets of this node receive it
    /// like those of others, after Redis has taken it: before, it is not known whether it
    /// is the first emit.
    pub(super) async fn broadcast_once(
        &self,
        broadcast: Broadcast,
        once: Once,
    ) -> Result<(Delivery, Option<Receipt>), EmitError> {
        let Broadcast {
            target,
            event,
            args,
        } = &broadcast;
        let is_stored = !target.flags.volatile && !target.flags.local;
        let journal = self.journal.as_ref().filter(|_| is_stored);
        let mut local_sockets = 0;
        let published = match (journal, self.bus(target)) {
            (Some(journal), _) => journal.log.broadcast_once(broadcast, once).await?,
            (None, Some(bus)) => bus.publish_once(broadcast, once).await?,
            (None, None) => {
                // It must be possible to deliver it before the key is used up.
                self.frame(target, None, event, args, None)?;
                let delivering = async {
                    let delivered = self.deliver(&broadcast, None);
                    local_sockets = delivered.map_or(0, |(_, sockets)| sockets);
                    Ok(Published::default())
                };
                self.keys.once(&self.name, &once, delivering).await?
            }
        };
        let delivery = Delivery {
            local_sockets,
            nodes: published.nodes,
            position: published.position,
            is_replayed: published.is_replayed,
        };
        Ok((delivery, published.receipt))
    }

    /// Keeps the receipt of a broadcast with its idempotency key, for those that repeat it.
    pub(super) async fn keep_receipt(&self, target: &Target, once: Once, receipt: Receipt) {
        let Some(bus) = self.bus(target) else {
            return self.keys.keep(&self.name, &once, receipt).await;
        };
        // Without it, a repetition has the position and the number of nodes only.
        if let Err(error) = bus.keep_receipt(once, receipt).await {
            tracing::debug!(%error, "the receipt of a broadcast is not kept with its idempotency key");
        }
    }

    /// Makes the selected sockets of all nodes join, leave or disconnect.
    pub(super) async fn command(&self, message: Message) -> Result<(), EmitError> {
        let target = message.target().expect("commands are about sockets");
        // Published first, so that other nodes get commands and events in the order of
        // the calls here.
        let published = self.publish(target, || message.clone());
        // An error of the bus goes first: it means that other nodes may not have taken
        // part, whereas the sockets here are known.
        let done = self.carry_out(&message, None);
        resolve(published).await?;
        done.map(drop)
    }

    /// Asks the other nodes. `None` if there are none to ask.
    pub(super) fn ask(
        &self,
        target: &Target,
        question: Question,
        timeout: Duration,
    ) -> Option<BusFuture<Result<Answered, BusError>>> {
        let bus = self.bus(target)?;
        Some(bus.ask(question, timeout))
    }

    /// Resolves once messages to these rooms, which have members here, are delivered.
    pub(super) async fn confirm(&self, rooms: Vec<Box<str>>) -> Result<(), BusError> {
        match &self.bus {
            Some(bus) => bus.confirm(rooms).await,
            None => Ok(()),
        }
    }

    /// Resolves once messages to a socket that is about to connect reach this node.
    /// `None` if there is nothing to wait for.
    pub(super) fn expect(
        &self,
        socket: &SocketId,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let expecting = self.bus.as_ref()?.expect(socket)?;
        Some(async move {
            // The bus's health reports the failure, and local messages arrive nevertheless.
            if let Err(error) = expecting.await {
                tracing::debug!(%error, "a socket may not receive messages of other nodes yet");
            }
        })
    }

    /// Waits until the namespace receives messages of other nodes. If that takes too long, the
    /// bus's health reports it, and the namespace serves its clients nevertheless.
    pub(super) async fn listening(&self) {
        if let Err(error) = self.confirm(Vec::new()).await {
            let namespace = &*self.name;
            tracing::warn!(namespace, %error, "the namespace may not receive messages of other nodes yet");
        }
    }

    /// Publishes a message if there are nodes to receive it. The message is built only then. It is
    /// enqueued when this returns, so messages keep the order of these calls.
    pub(super) fn publish(
        &self,
        target: &Target,
        message: impl FnOnce() -> Message,
    ) -> Option<BusFuture<Result<Published, BusError>>> {
        let bus = self.bus(target)?;
        Some(bus.publish(message()))
    }

    /// The bus, unless the operation is about sockets of this node alone.
    fn bus(&self, target: &Target) -> Option<&Arc<dyn BusHandle>> {
        self.bus.as_ref().filter(|_| !target.flags.local)
    }

    /// Applies a message to the sockets of this node. Returns the number of sockets.
    fn carry_out(&self, message: &Message, position: Option<Position>) -> Result<usize, EmitError> {
        let mut count = 0;
        match message {
            Message::Broadcast(broadcast) => (_, count) = self.deliver(broadcast, position)?,
            Message::SocketsJoin { target, rooms } => {
                let mut refused = None;
                for socket in self.local_sockets(target) {
                    count += 1;
                    match socket.join(rooms.as_slice()) {
                        // The others of the selection still join. A disconnected socket is not an
                        // error, because it could also have disconnected a moment later.
                        Ok(()) | Err(roomcast_adapter::JoinError::Disconnected) => {}
                        Err(error) => refused = Some(error),
                    }
                }
                return refused.map_or(Ok(count), |error| Err(error.into()));
            }
            Message::SocketsLeave { target, rooms } => {
                for socket in self.local_sockets(target) {
                    count += 1;
                    socket.leave(rooms.as_slice());
                }
            }
            Message::DisconnectSockets { target, close } => {
                for socket in self.local_sockets(target) {
                    count += 1;
                    socket.disconnect(*close);
                }
            }
            Message::ServerSideEmit { event, args } => {
                if !self.is_return(event, args) {
                    // The other node waits for no result.
                    drop(self.start_server_side(event, args));
                }
            }
        }
        Ok(count)
    }

    /// Emits an event to the selected sockets of this node. Returns its frame and their number.
    pub(super) fn deliver(
        &self,
        broadcast: &Broadcast,
        position: Option<Position>,
    ) -> Result<(Frame, usize), EmitError> {
        let Broadcast {
            target,
            event,
            args,
        } = broadcast;
        let frame = self.frame(target, None, event, args, position)?;
        self.notify_outgoing(target, event, args);
        let count = match self.to_acknowledge(target, position) {
            None => self.fan_out(target, &frame, |_| {}),
            Some(position) => self.fan_out(target, &frame, |socket| {
                socket.has_to_acknowledge(position, frame.cost());
            }),
        };
        if self.observers.is_any_of_events() {
            self.observed(target, event, args, count);
        }
        Ok((frame, count))
    }

    /// The selected sockets of this node.
    pub(super) fn local_sockets(&self, target: &Target) -> Vec<Socket> {
        let members = self.adapter.select(target).into_iter();
        members
            .map(Socket::from)
            .filter(Socket::is_connected)
            .collect()
    }

    /// The selected sockets of this node as other nodes see them.
    pub(super) fn describe(&self, target: &Target) -> Vec<Description> {
        let sockets = self.local_sockets(target);
        sockets.iter().map(Socket::describe).collect()
    }

    /// Emits an event to the selected sockets of this node and collects their acknowledgements.
    /// `progress` is notified of each.
    pub(super) async fn collect_acks(
        &self,
        target: &Target,
        event: &str,
        args: &Args,
        timeout: Duration,
        progress: Option<Arc<dyn Progress>>,
    ) -> Result<Answer, EmitError> {
        // Before the event is sent, because the first client may acknowledge at once.
        let (awaited, gathering) = self.acks.many(progress);
        let frame = self.frame(target, Some(awaited.id), event, args, None)?;
        self.notify_outgoing(target, event, args);
        // Clients of plain connections cannot acknowledge, so the broadcast does not wait for them.
        let mut plain = 0;
        let reached = self.fan_out(target, &frame, |socket| {
            if socket.is_plain() {
                plain += 1;
            } else {
                gathering.expect(socket);
            }
        });
        let asked = reached - plain;
        if self.observers.is_any_of_events() {
            self.observed(target, event, args, asked);
        }
        // Only now is it known how many were asked, so only now can the last
        // acknowledgement complete the collection.
        gathering.seal(asked);
        // After a timeout, the answers so far count.
        let _ = tokio::time::timeout(timeout, gathering.complete()).await;
        gathering.reported().await;
        let (answers, missing) = gathering.finish();
        let answers = answers.into_iter().map(|(id, args)| (Some(id), args));
        Ok(Answer::Acks {
            answers: answers.collect(),
            missing,
            missing_unnamed: 0,
        })
    }

    /// Encodes an event. The frame keeps the event for plain connections only if there are any. In
    /// a namespace with recovery, the place in the journal is one more argument for Socket.IO's
    /// clients, except for events that they acknowledge: the official client reads it from the last
    /// argument, which then is the function that acknowledges.
    pub(super) fn frame(
        &self,
        target: &Target,
        id: Option<u64>,
        event: &str,
        args: &Args,
        position: Option<Position>,
    ) -> Result<Frame, EmitError> {
        let journal = self.journal.as_ref().filter(|_| self.recovery.is_some());
        let offset = position.filter(|place| place.after.is_some()).zip(journal);
        let frame = match offset {
            Some((place, _)) if self.to_acknowledge(target, Some(place)).is_some() => {
                let id = Some(ack_id(place.id));
                self.parser.event(&self.name, id, event, args)?
            }
            Some((place, journal)) => {
                let args = args.with_last(&journal.offset_text(place.into()));
                self.parser.event(&self.name, id, event, &args)?
            }
            None => self.parser.event(&self.name, id, event, args)?,
        };
        // Arguments of the event would be kept as long as the frame waits in any
        // outbox.
        if self.plain_sockets.load(Ordering::Relaxed) == 0 {
            return Ok(frame);
        }
        let room = match &*target.rooms {
            [room] => Some(room.clone()),
            _ => None,
        };
        Ok(frame.of_event(Source {
            name: event.into(),
            args: args.clone(),
            room,
            position,
        }))
    }

    /// Calls the listener for outgoing events, once per recipient on this node.
    fn notify_outgoing(&self, target: &Target, event: &str, args: &Args) {
        // Selecting the sockets a second time costs as much as the fan-out, so it is
        // done only for a listener.
        if let Some(listener) = &self.handlers.any_outgoing {
            for socket in self.local_sockets(target) {
                listener(&socket, event, args);
            }
        }
    }

    /// Notifies the observers of a broadcast that was queued.
    fn observed(&self, target: &Target, event: &str, args: &Args, sockets: usize) {
        self.observers.notify(Observation::Broadcast {
            namespace: &self.name,
            rooms: &target.rooms,
            except: &target.except,
            event,
            args,
            sockets,
        });
    }

    /// Queues a packet to the selected sockets of this node, and measures it.
    fn fan_out(&self, target: &Target, frame: &Frame, each: impl FnMut(&LocalSocket)) -> usize {
        let stopwatch = Stopwatch::start();
        let recipients = self.adapter.fan_out(target, frame, each);
        let metrics = &self.engine.metrics;
        metrics.fan_out.observe(stopwatch.seconds());
        metrics.broadcasts.inc();
        metrics.deliveries.inc_by(recipients as u64);
        recipients
    }
}

impl Listener for LiveNamespace {
    fn receive(&self, message: &Message, position: Option<Position>) -> usize {
        if let Some(position) = position {
            match &self.journal {
                Some(journal) if position.after.is_some() => {
                    return self.receive_journaled(journal, message, position);
                }
                _ => self.arrived.note(position.id, position.time),
            }
        }
        self.carry_out(message, position).unwrap_or_else(|error| {
            tracing::debug!(namespace = &*self.name, %error, "a message of another node could not be applied");
            0
        })
    }

    fn answer(
        self: Arc<Self>,
        question: Question,
        progress: Option<Arc<dyn Progress>>,
    ) -> BusFuture<Answer> {
        Box::pin(async move {
            match question {
                Question::Sockets(target) => Answer::Sockets(self.describe(&target)),
                Question::SocketIds(target) => {
                    let sockets = self.local_sockets(&target).into_iter();
                    Answer::SocketIds(sockets.map(|socket| socket.id().clone()).collect())
                }
                Question::Rooms => Answer::Rooms(self.adapter.all_room_names()),
                Question::Acks {
                    target,
                    event,
                    args,
                    timeout,
                } => {
                    let asking = self.collect_acks(&target, &event, &args, timeout, progress);
                    asking.await.unwrap_or_else(|_| Answer::Acks {
                        answers: Vec::new(),
                        missing: Vec::new(),
                        missing_unnamed: 0,
                    })
                }
                Question::ServerSideEmit { event, args } => {
                    let answer = match self.start_server_side(&event, &args) {
                        // The sender is dropped with the server.
                        Some(answered) => answered.await.ok(),
                        None => None,
                    };
                    Answer::ServerSideEmit(answer)
                }
                Question::Reached(target) => Answer::Reached(self.local_sockets(&target).len()),
                Question::Command(message) => Answer::Command(self.receive(&message, None) > 0),
            }
        })
    }

    fn has_room(&self, room: &str) -> bool {
        self.adapter.has_room(room)
    }

    fn take_changes(&self, f: &mut dyn FnMut(&str, bool)) {
        self.adapter.take_changes(f);
    }
}

/// Waits for the bus; without other nodes, there is nothing to wait for.
pub(super) async fn resolve<T: Default>(
    pending: Option<BusFuture<Result<T, BusError>>>,
) -> Result<T, EmitError> {
    match pending {
        Some(pending) => Ok(pending.await?),
        None => Ok(T::default()),
    }
}

/// The names of rooms, owned, for a message.
pub(super) fn names(rooms: &impl Rooms) -> Vec<Box<str>> {
    let mut names = Vec::new();
    rooms.each(&mut |room| names.push(room.into()));
    names
}
