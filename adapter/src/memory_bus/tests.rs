//! Behaviour of the bus in memory beyond the guarantees of every bus.

use std::future::pending;

use futures_util::FutureExt as _;
use roomcast_protocol::{message::Position, question::Answer, target::Target};

use super::*;
use crate::bus::Progress;

#[derive(Default)]
struct Node {
    heard: Mutex<Vec<Message>>,
    is_mute: bool,
}

impl Listener for Node {
    fn receive(&self, message: &Message, _: Option<Position>) -> usize {
        self.heard.lock().push(message.clone());
        0
    }

    fn answer(self: Arc<Self>, _: Question, _: Option<Arc<dyn Progress>>) -> BusFuture<Answer> {
        if self.is_mute {
            Box::pin(pending())
        } else {
            Box::pin(ready(Answer::Sockets(Vec::new())))
        }
    }

    fn has_room(&self, _: &str) -> bool {
        true
    }

    fn take_changes(&self, _: &mut dyn FnMut(&str, bool)) {}
}

fn attach(
    bus: &MemoryBus,
    name: &str,
    namespace: &str,
    is_mute: bool,
) -> (Arc<dyn BusHandle>, Arc<Node>) {
    let node = Arc::new(Node {
        is_mute,
        ..Node::default()
    });
    let listener: Weak<Node> = Arc::downgrade(&node);
    let handle = bus.attach(Attachment {
        node: &NodeId::new(name),
        namespace,
        is_dynamic: false,
        listener,
    });
    (handle, node)
}

/// Publishes, and returns how many nodes received it.
async fn publish(handle: &Arc<dyn BusHandle>, close: bool) -> usize {
    handle.publish(disconnect(close)).await.unwrap().nodes
}

fn disconnect(close: bool) -> Message {
    Message::DisconnectSockets {
        target: Target::default(),
        close,
    }
}

#[tokio::test]
async fn a_handle_that_is_dropped_detaches_its_listener_and_not_its_successor() {
    let bus = MemoryBus::new();
    let (a, _node_a) = attach(&bus, "a", "/", false);
    let (b, _node_b) = attach(&bus, "b", "/", false);
    let (later, successor) = attach(&bus, "b", "/", false);
    drop(b);
    assert_eq!(publish(&a, true).await, 1);
    assert_eq!(successor.heard.lock().len(), 1);
    drop(later);
    assert_eq!(publish(&a, true).await, 0);
}

#[tokio::test]
async fn a_node_that_retires_is_asked_no_more_once_it_has_answered_and_still_hears_messages() {
    let bus = MemoryBus::new();
    let (a, _node_a) = attach(&bus, "a", "/", false);
    let (b, (_b, node_b)) = (NodeId::new("b"), attach(&bus, "b", "/", true));
    let ask = || {
        let question = Question::Sockets(Target::default());
        a.ask(question, Duration::from_secs(3600))
    };
    let mut waiting = by_hand(ask());
    assert!(waiting.poll().is_none());
    let mut retiring = by_hand(bus.retire(&b));
    assert!(retiring.poll().is_none(), "somebody waits for its answer");
    let later = ask().await.unwrap();
    assert_eq!(later, Answered::default(), "it is not asked any more");
    drop(waiting);
    assert!(retiring.poll().is_some());
    assert_eq!(ask().await.unwrap(), Answered::default());
    assert_eq!(publish(&a, true).await, 1);
    assert_eq!(node_b.heard.lock().len(), 1);
    bus.close(&b).await;
    assert_eq!(publish(&a, true).await, 0);
}

/// A future that is polled by hand.
struct ByHand<T>(BusFuture<T>);

fn by_hand<T>(future: BusFuture<T>) -> ByHand<T> {
    ByHand(future)
}

impl<T> ByHand<T> {
    fn poll(&mut self) -> Option<T> {
        self.0.as_mut().now_or_never()
    }
}
