//! A bus between the servers of one process: for tests, for applications that run several servers,
//! and the reference for the guarantees of a bus.

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
    message::{Broadcast, Message},
    question::{Answered, Question},
    receipt::Receipt,
};
use tokio::sync::RwLock;

use crate::{
    bus::{
        Attachment, Bus, BusError, BusFuture, BusHandle, Listener, Log, LogLimits, Once, Published,
        Sessions,
    },
    memory_keys::MemoryKeys,
    memory_log::MemoryLogs,
    memory_sessions::MemorySessions,
};

/// Connects all servers that hold a clone of it. Nothing is lost and nothing waits in a queue: the
/// other servers have carried out a message before `publish` returns.
#[derive(Clone, Default)]
pub struct MemoryBus {
    namespaces: Arc<Mutex<Namespaces>>,
    logs: MemoryLogs,
    sessions: MemorySessions,
    keys: MemoryKeys,
}

/// The members of each namespace.
type Namespaces = HashMap<Box<str>, Vec<Arc<Member>>>;

/// A node in a namespace.
struct Member {
    node: NodeId,
    listener: Weak<dyn Listener>,
    /// Locked for reading while somebody waits for an answer. True once the node has retired.
    is_retired: Arc<RwLock<bool>>,
}

impl MemoryBus {
    /// Creates a bus without members.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Bus for MemoryBus {
    fn attach(&self, attachment: Attachment<'_>) -> Arc<dyn BusHandle> {
        let member = Arc::new(Member {
            node: attachment.node.clone(),
            listener: attachment.listener,
            is_retired: Arc::default(),
        });
        let mut namespaces = self.namespaces.lock();
        let members = namespaces.entry(attachment.namespace.into()).or_default();
        members.push(Arc::clone(&member));
        Arc::new(Handle {
            bus: self.clone(),
            namespace: attachment.namespace.into(),
            member,
        })
    }

    fn nodes(&self) -> Vec<NodeId> {
        let namespaces = self.namespaces.lock();
        let mut nodes: Vec<_> = namespaces
            .values()
            .flatten()
            .map(|m| m.node.clone())
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    fn retire(&self, node: &NodeId) -> BusFuture<()> {
        let namespaces = self.namespaces.lock();
        let members = namespaces.values().flatten();
        let own: Vec<_> = members
            .filter(|member| member.node == *node)
            .map(|member| Arc::clone(&member.is_retired))
            .collect();
        Box::pin(async move {
            for is_retired in own {
                *is_retired.write().await = true;
            }
        })
    }

    fn close(&self, node: &NodeId) -> BusFuture<()> {
        self.namespaces.lock().retain(|_, members| {
            members.retain(|member| member.node != *node);
            !members.is_empty()
        });
        Box::pin(ready(()))
    }
}

/// A member's access to its namespace.
struct Handle {
    bus: MemoryBus,
    namespace: Box<str>,
    member: Arc<Member>,
}

impl Handle {
    /// All other nodes in the namespace. Listeners are called without the lock, because they may
    /// publish.
    fn others(&self) -> Vec<(Arc<Member>, Arc<dyn Listener>)> {
        let namespaces = self.bus.namespaces.lock();
        let members = namespaces.get(&self.namespace).into_iter().flatten();
        members
            .filter(|other| other.node != self.member.node)
            .filter_map(|other| Some((Arc::clone(other), other.listener.upgrade()?)))
            .collect()
    }
}

impl BusHandle for Handle {
    fn publish(&self, message: Message) -> BusFuture<Result<Published, BusError>> {
        let others = self.others();
        for (_, listener) in &others {
            listener.receive(&message, None);
        }
        Box::pin(ready(Ok(Published {
            nodes: others.len(),
            ..Published::default()
        })))
    }

    fn publish_once(
        &self,
        broadcast: Broadcast,
        once: Once,
    ) -> BusFuture<Result<Published, BusError>> {
        let message = Message::Broadcast(broadcast);
        let (keys, namespace) = (self.bus.keys.clone(), self.namespace.clone());
        let own = self.member.listener.upgrade();
        let others = self.others().into_iter().map(|(_, listener)| listener);
        let listeners: Vec<_> = others.chain(own).collect();
        Box::pin(async move {
            let publishing = async {
                for listener in &listeners {
                    listener.receive(&message, None);
                }
                Ok(Published {
                    nodes: listeners.len().saturating_sub(1),
                    ..Published::default()
                })
            };
            keys.once(&namespace, &once, publishing).await
        })
    }

    fn keep_receipt(&self, once: Once, receipt: Receipt) -> BusFuture<Result<(), BusError>> {
        let (keys, namespace) = (self.bus.keys.clone(), self.namespace.clone());
        Box::pin(async move {
            keys.keep(&namespace, &once, receipt).await;
            Ok(())
        })
    }

    fn log(&self, limits: LogLimits) -> Option<Arc<dyn Log>> {
        let listener = Weak::clone(&self.member.listener);
        Some(self.bus.logs.open(&self.namespace, limits, listener))
    }

    fn sessions(&self) -> Option<Arc<dyn Sessions>> {
        Some(self.bus.sessions.of(&self.namespace))
    }

    fn ask(&self, question: Question, timeout: Duration) -> BusFuture<Result<Answered, BusError>> {
        let others = self.others();
        Box::pin(async move {
            let asked = others.into_iter().filter_map(|(other, listener)| {
                // A node that retires waits for its readers, and gets no more questions.
                let waiting = Arc::clone(&other.is_retired).try_read_owned().ok();
                let waiting = waiting.filter(|is_retired| !**is_retired)?;
                let answer = tokio::time::timeout(timeout, listener.answer(question.clone(), None));
                Some(async move {
                    let answer = answer.await;
                    drop(waiting);
                    (other, answer)
                })
            });
            let mut answered = Answered::default();
            for (other, answer) in join_all(asked).await {
                match answer {
                    Ok(answer) => answered.answers.push(answer),
                    Err(_) => answered.silent.push(other.node.clone()),
                }
            }
            Ok(answered)
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut namespaces = self.bus.namespaces.lock();
        if let Some(members) = namespaces.get_mut(&self.namespace) {
            members.retain(|member| !Arc::ptr_eq(member, &self.member));
            if members.is_empty() {
                namespaces.remove(&self.namespace);
            }
        }
    }
}

impl std::fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBus").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
