//! A node that is nothing but its side of a namespace.
//!
//! Other tests of this crate include this file by its path.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::HashMap,
    future::{pending, ready},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use roomcast_adapter::{
    Answer, Attachment, Bus, BusFuture, BusHandle, Description, Gap, Health, Listener, Log,
    LogLimits, NodeId, Position, Progress, Question, SocketId, Tracking,
};
use roomcast_protocol::{
    args::Args,
    message::{Broadcast, Message},
    target::Target,
};

/// How long anything may take before the test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) handle: Arc<dyn BusHandle>,
    pub(crate) side: Arc<Side>,
}

/// What the bus calls.
#[derive(Default)]
pub(crate) struct Side {
    heard: Mutex<Vec<Message>>,
    /// The positions of what was stored, in the order in which it came, with the number in it.
    stored: Mutex<Vec<(Position, u32)>>,
    rooms: Mutex<HashMap<Box<str>, usize>>,
    tracking: Mutex<Tracking>,
    changes: Mutex<Vec<(Box<str>, bool)>>,
    is_mute: AtomicBool,
    socket: Mutex<Option<SocketId>>,
}

impl Node {
    pub(crate) fn attach(bus: Arc<dyn Bus>, id: NodeId, namespace: &'static str) -> Self {
        Self::attach_as(bus, id, namespace, false)
    }

    pub(crate) fn attach_as(
        bus: Arc<dyn Bus>,
        id: NodeId,
        namespace: &'static str,
        is_dynamic: bool,
    ) -> Self {
        let side = Arc::<Side>::default();
        let listener: Weak<Side> = Arc::downgrade(&side);
        let handle = bus.attach(Attachment {
            node: &id,
            namespace,
            is_dynamic,
            listener,
        });
        *side.tracking.lock() = handle.tracking();
        Self {
            id,
            bus,
            handle,
            side,
        }
    }

    /// A socket connects: its private room begins with the node's tag.
    pub(crate) fn connect(&self, number: u32) -> SocketId {
        let id = format!("{}{number:016}", &self.id.as_str()[..4]);
        self.side.enter(&id, true);
        self.handle.changed();
        let id = SocketId::new(&id);
        *self.side.socket.lock() = Some(id.clone());
        id
    }

    /// Joins and waits until the cluster would deliver.
    pub(crate) async fn join(&self, room: &str) {
        self.side.enter(room, false);
        self.handle.changed();
        self.confirm(room).await;
    }

    pub(crate) async fn confirm(&self, room: &str) {
        within(self.handle.confirm(vec![room.into()]))
            .await
            .unwrap();
    }

    pub(crate) fn leave(&self, room: &str) {
        self.side.leave(room);
        self.handle.changed();
    }

    pub(crate) async fn publish(&self, message: Message) -> usize {
        within(self.handle.publish(message)).await.unwrap().nodes
    }

    pub(crate) async fn ask(
        &self,
        question: Question,
        timeout: Duration,
    ) -> roomcast_adapter::Answered {
        within(self.handle.ask(question, timeout)).await.unwrap()
    }

    pub(crate) fn be_mute(&self) {
        self.side.is_mute.store(true, Ordering::Relaxed);
    }

    /// Waits until that many messages have come, and takes them.
    pub(crate) async fn heard(&self, count: usize) -> Vec<Message> {
        eventually("the messages have come", || {
            self.side.heard.lock().len() >= count
        })
        .await;
        std::mem::take(&mut *self.side.heard.lock())
    }

    /// Waits until that many stored messages have come, and takes them.
    pub(crate) async fn stored(&self, count: usize) -> Vec<(Position, u32)> {
        eventually("the stored messages have come", || {
            self.side.stored.lock().len() >= count
        })
        .await;
        std::mem::take(&mut *self.side.stored.lock())
    }

    /// Waits until messages flow again.
    pub(crate) async fn until_flowing(&self) {
        let is_flowing = || self.bus.health() == Health::Flowing;
        eventually("messages flow again", is_flowing).await;
    }

    /// Waits until the node knows that messages do not flow.
    pub(crate) async fn until_interrupted(&self) {
        let is_interrupted = || self.bus.health() != Health::Flowing;
        eventually("the node knows", is_interrupted).await;
    }

    /// Notes all gaps from now on.
    pub(crate) fn gaps(&self) -> Arc<Mutex<Vec<Gap>>> {
        let gaps = Arc::<Mutex<Vec<Gap>>>::default();
        let noted = Arc::clone(&gaps);
        self.bus
            .on_gap(Box::new(move |gap| noted.lock().push(*gap)));
        gaps
    }

    /// Opens the log of the namespace.
    pub(crate) fn log(&self, limits: impl Into<LogLimits>) -> Arc<dyn Log> {
        self.handle.log(limits.into()).unwrap()
    }

    /// Waits until the message has come.
    pub(crate) async fn hears(&self, message: &Message) {
        eventually("the message has come", || {
            self.side.heard.lock().contains(message)
        })
        .await;
    }
}

impl Side {
    /// Takes what has come so far.
    pub(crate) fn take_heard(&self) -> Vec<Message> {
        std::mem::take(&mut *self.heard.lock())
    }

    pub(crate) fn enter(&self, room: &str, is_private: bool) {
        let mut rooms = self.rooms.lock();
        let members = rooms.entry(room.into()).or_default();
        *members += 1;
        let is_tracked = match *self.tracking.lock() {
            Tracking::Nothing => false,
            Tracking::Rooms => !is_private || room.len() != SocketId::LEN,
            Tracking::RoomsAndSockets => true,
        };
        if *members == 1 && is_tracked {
            self.changes.lock().push((room.into(), true));
        }
    }

    pub(crate) fn leave(&self, room: &str) {
        let mut rooms = self.rooms.lock();
        let members = rooms.get_mut(room).unwrap();
        *members -= 1;
        if *members == 0 {
            rooms.remove(room);
            self.changes.lock().push((room.into(), false));
        }
    }
}

impl Listener for Side {
    fn receive(&self, message: &Message, position: Option<Position>) -> usize {
        if let (Some(position), Message::Broadcast(broadcast)) = (position, message) {
            let number = number_of(&broadcast.args);
            self.stored.lock().push((position, number));
        }
        // The bus is not told: it finds out by itself, a moment later.
        if let Message::SocketsJoin { rooms, .. } = message {
            rooms.iter().for_each(|room| self.enter(room, false));
        }
        self.heard.lock().push(message.clone());
        1
    }

    fn answer(
        self: Arc<Self>,
        question: Question,
        progress: Option<Arc<dyn Progress>>,
    ) -> BusFuture<Answer> {
        if self.is_mute.load(Ordering::Relaxed) {
            return Box::pin(pending());
        }
        let socket = self.socket.lock().clone();
        let answer = match question {
            Question::Sockets(_) => Answer::Sockets(socket.into_iter().map(describe).collect()),
            Question::Rooms => Answer::Rooms(self.rooms.lock().keys().cloned().collect()),
            Question::Acks { args, .. } => {
                if let (Some(progress), Some(socket)) = (progress, &socket) {
                    progress.asked(1);
                    progress.acknowledged(socket, &args);
                }
                Answer::Acks {
                    answers: vec![(socket, args)],
                    missing: vec![SocketId::new("somebody-who-is-mute")],
                    missing_unnamed: 0,
                }
            }
            Question::ServerSideEmit { args, .. } => Answer::ServerSideEmit(Some(args)),
            _ => Answer::Command(false),
        };
        Box::pin(ready(answer))
    }

    fn has_room(&self, room: &str) -> bool {
        self.rooms.lock().contains_key(room)
    }

    fn take_changes(&self, f: &mut dyn FnMut(&str, bool)) {
        for (room, has_members) in std::mem::take(&mut *self.changes.lock()) {
            f(&room, has_members);
        }
    }
}

fn describe(id: SocketId) -> Description {
    Description {
        rooms: vec![id.to_string(), "a".into()],
        data: serde_json::json!({"name": "x"}),
        handshake: serde_json::json!({"query": {}}),
        id,
    }
}

/// An event to everybody, or to these rooms.
pub(crate) fn broadcast(rooms: &[&str], number: u32) -> Message {
    Message::Broadcast(event(rooms, number))
}

pub(crate) fn event(rooms: &[&str], number: u32) -> Broadcast {
    let mut target = Target::default();
    target.add_rooms(rooms);
    Broadcast {
        target,
        event: "e".into(),
        args: args(number),
    }
}

/// The number in an event.
pub(crate) fn number_of(args: &Args) -> u32 {
    args.decode::<(u32,)>().unwrap().0
}

pub(crate) fn args(number: u32) -> Args {
    Args::encode(&(number,)).unwrap()
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(DEADLINE, future).await;
    done.expect("it takes too long")
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
