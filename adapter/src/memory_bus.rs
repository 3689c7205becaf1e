//! A bus between the servers of one process: for tests, for applications that run several servers,
//! and the reference for what a bus promises.

use std::{
    collections::HashMap,
    future::ready,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::join_all;
use parking_lot::Mutex;
use roomcast_protocol::{
    id::NodeId,
    message::Message,
    question::{Answered, Question},
};
use tokio::sync::RwLock;

use crate::bus::{Attachment, Bus, BusError, BusFuture, Listener};

/// Connects all servers that hold a clone of it. Nothing is lost, nothing waits in a queue: a
/// message is carried out by the other servers before `publish` returns.
#[derive(Clone, Default)]
pub struct MemoryBus {
    listeners: Arc<Mutex<HashMap<Box<str>, Vec<Attached>>>>,
}

/// A node in a namespace.
#[derive(Clone)]
struct Attached {
    node: NodeId,
    listener: Weak<dyn Listener>,
    /// Read by everybody who waits for an answer; true once nobody shall any more.
    is_retired: Arc<RwLock<bool>>,
}

impl MemoryBus {
    /// A bus to which nobody is attached yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// All others in the namespace. Listeners are called without the lock, as they may publish.
    fn others(&self, node: &NodeId, namespace: &str) -> Vec<(Attached, Arc<dyn Listener>)> {
        let listeners = self.listeners.lock();
        let attached = listeners.get(namespace).into_iter().flatten();
        attached
            .filter(|other| other.node != *node)
            .filter_map(|other| Some((other.clone(), other.listener.upgrade()?)))
            .collect()
    }
}

impl Bus for MemoryBus {
    fn attach(&self, attachment: Attachment<'_>) {
        let mut listeners = self.listeners.lock();
        let attached = listeners.entry(attachment.namespace.into()).or_default();
        attached.push(Attached {
            node: attachment.node.clone(),
            listener: attachment.listener,
            is_retired: Arc::default(),
        });
    }

    fn detach(&self, node: &NodeId, namespace: &str) {
        let mut listeners = self.listeners.lock();
        if let Some(attached) = listeners.get_mut(namespace) {
            // A namespace that was made anew may be attached before the old one is gone.
            attached.retain(|other| other.node != *node || other.listener.strong_count() > 0);
            if attached.is_empty() {
                listeners.remove(namespace);
            }
        }
    }

    fn publish(
        &self,
        node: &NodeId,
        namespace: &str,
        message: Message,
    ) -> BusFuture<Result<usize, BusError>> {
        let others = self.others(node, namespace);
        for (_, listener) in &others {
            listener.receive(&message);
        }
        Box::pin(ready(Ok(others.len())))
    }

    fn ask(
        &self,
        node: &NodeId,
        namespace: &str,
        question: Question,
        timeout: Duration,
    ) -> BusFuture<Result<Answered, BusError>> {
        let others = self.others(node, namespace);
        Box::pin(async move {
            let asked = others.into_iter().filter_map(|(other, listener)| {
                // Whoever retires waits for those that read, and is not asked any more.
                let waiting = other.is_retired.try_read_owned().ok();
                let waiting = waiting.filter(|is_retired| !**is_retired)?;
                let answer = tokio::time::timeout(timeout, listener.answer(question.clone(), None));
                Some(async move {
                    let answer = answer.await;
                    drop(waiting);
                    (other.node, answer)
                })
            });
            let mut answered = Answered::default();
            for (other, answer) in join_all(asked).await {
                match answer {
                    Ok(answer) => answered.answers.push(answer),
                    Err(_) => answered.silent.push(other),
                }
            }
            Ok(answered)
        })
    }

    fn retire(&self, node: &NodeId) -> BusFuture<()> {
        let listeners = self.listeners.lock();
        let own = listeners
            .values()
            .flatten()
            .filter(|attached| attached.node == *node);
        let own: Vec<_> = own
            .map(|attached| Arc::clone(&attached.is_retired))
            .collect();
        Box::pin(async move {
            for is_retired in own {
                *is_retired.write().await = true;
            }
        })
    }

    fn close(&self, node: &NodeId) -> BusFuture<()> {
        self.listeners.lock().retain(|_, attached| {
            attached.retain(|other| other.node != *node);
            !attached.is_empty()
        });
        Box::pin(ready(()))
    }
}

impl std::fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBus").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
