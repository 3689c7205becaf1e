//! What a namespace says to other nodes, and what it does when they say something.

use std::{sync::Arc, time::Duration};

use roomcast_adapter::{
    Answer, Answered, Bus, BusError, BusFuture, Description, Listener, NodeId, Progress, Question,
    Tracking,
};
use roomcast_emitter::{
    args::Args,
    message::Message,
    target::{Rooms, Target},
};

use super::{broadcast::Delivery, error::EmitError, socket::Socket, space::Space};

/// How much longer than the sockets another node has for its answer.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// A server's place in its cluster. Without a bus, the server is alone.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) node: NodeId,
    pub(crate) bus: Option<Arc<dyn Bus>>,
}

impl Space {
    /// Emits an event everywhere. The order is: bus, then the sockets of this node, then the wait
    /// for the bus. The sockets of this node are served even if the bus fails.
    pub(super) async fn broadcast(
        &self,
        target: Target,
        event: &str,
        args: Args,
    ) -> Result<Delivery, EmitError> {
        let frame = self.parser.event(&self.name, None, event, &args)?;
        let published = self.publish(&target, || Message::Broadcast {
            target: target.clone(),
            event: event.into(),
            args,
        });
        let local_sockets = self.adapter.fan_out(&target, &frame, |_| {});
        self.count(local_sockets);
        Ok(Delivery {
            local_sockets,
            nodes: resolve(published).await?,
        })
    }

    /// Has all sockets that are meant, everywhere, do something to themselves.
    pub(super) async fn command(&self, message: Message) -> Result<(), EmitError> {
        let target = message.target().expect("commands are about sockets");
        let published = self.publish(target, || message.clone());
        let done = self.carry_out(&message);
        resolve(published).await?;
        done.map(drop)
    }

    /// Asks the other nodes.
    pub(super) fn ask(
        &self,
        target: &Target,
        question: Question,
        timeout: Duration,
    ) -> Option<BusFuture<Result<Answered, BusError>>> {
        let bus = self.bus(target)?;
        let timeout = timeout + ANSWER_GRACE;
        Some(bus.ask(&self.place.node, &self.name, question, timeout))
    }

    fn publish(
        &self,
        target: &Target,
        message: impl FnOnce() -> Message,
    ) -> Option<BusFuture<Result<usize, BusError>>> {
        let bus = self.bus(target)?;
        Some(bus.publish(&self.place.node, &self.name, message()))
    }

    fn bus(&self, target: &Target) -> Option<&Arc<dyn Bus>> {
        self.place.bus.as_ref().filter(|_| !target.flags.local)
    }

    /// Does what a message says to the sockets of this node.
    fn carry_out(&self, message: &Message) -> Result<usize, EmitError> {
        let mut count = 0;
        match message {
            Message::Broadcast {
                target,
                event,
                args,
            } => {
                let frame = self.parser.event(&self.name, None, event, args)?;
                count = self.adapter.fan_out(target, &frame, |_| {});
                self.count(count);
            }
            Message::SocketsJoin { target, rooms } => {
                let mut refused = None;
                for socket in self.local_sockets(target) {
                    count += 1;
                    match socket.join(rooms.as_slice()) {
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
            _ => tracing::debug!("a message of a kind that this version does not know"),
        }
        Ok(count)
    }

    /// The sockets of this node that are meant.
    pub(super) fn local_sockets(&self, target: &Target) -> Vec<Socket> {
        let members = self.adapter.select(target).into_iter();
        members
            .map(Socket::from)
            .filter(Socket::is_connected)
            .collect()
    }

    pub(super) fn describe(&self, target: &Target) -> Vec<Description> {
        let sockets = self.local_sockets(target);
        sockets.iter().map(Socket::describe).collect()
    }

    /// Emits an event to the sockets of this node and collects what they acknowledge.
    pub(super) async fn collect_acks(
        &self,
        target: &Target,
        event: &str,
        args: &Args,
        timeout: Duration,
    ) -> Result<Answer, EmitError> {
        let (awaited, gathering) = self.acks.many();
        let frame = self
            .parser
            .event(&self.name, Some(awaited.id), event, args)?;
        let expect = |socket: &_| gathering.expect(socket);
        self.count(self.adapter.fan_out(target, &frame, expect));
        gathering.seal();
        // Whether everybody answered or the time is over, what there is counts.
        let _ = tokio::time::timeout(timeout, gathering.complete()).await;
        let (answers, missing) = gathering.finish();
        let answers = answers.into_iter().map(|(id, args)| (Some(id), args));
        Ok(Answer::Acks {
            answers: answers.collect(),
            missing,
            missing_unnamed: 0,
        })
    }

    fn count(&self, recipients: usize) {
        let metrics = &self.hub.metrics;
        metrics.broadcasts.inc();
        metrics.deliveries.inc_by(recipients as u64);
    }
}

impl Listener for Space {
    fn receive(&self, message: &Message) -> usize {
        self.carry_out(message).unwrap_or_else(|error| {
            tracing::debug!(namespace = &*self.name, %error, "a message of another node failed");
            0
        })
    }

    fn has_room(&self, _: &str) -> bool {
        true
    }

    fn track(&self, _: Tracking) {}

    fn take_changes(&self, _: &mut dyn FnMut(&str, bool)) {}

    fn answer(
        self: Arc<Self>,
        question: Question,
        _: Option<Arc<dyn Progress>>,
    ) -> BusFuture<Answer> {
        Box::pin(async move {
            match question {
                Question::Acks {
                    target,
                    event,
                    args,
                    timeout,
                } => self
                    .collect_acks(&target, &event, &args, timeout)
                    .await
                    .unwrap_or_else(|_| Answer::Acks {
                        answers: Vec::new(),
                        missing: Vec::new(),
                        missing_unnamed: 0,
                    }),
                Question::Sockets(target) => Answer::Sockets(self.describe(&target)),
                _ => Answer::Sockets(Vec::new()),
            }
        })
    }
}

async fn resolve(
    published: Option<BusFuture<Result<usize, BusError>>>,
) -> Result<usize, EmitError> {
    match published {
        Some(published) => Ok(published.await?),
        None => Ok(0),
    }
}

/// The names of rooms, to travel with a message.
pub(super) fn names(rooms: &impl Rooms) -> Vec<Box<str>> {
    let mut names = Vec::new();
    rooms.each(&mut |room| names.push(room.into()));
    names
}
