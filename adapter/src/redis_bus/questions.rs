//! Questions: asking the other nodes, and answering their questions.
//!
//! ```text
//! asker   count who is subscribed ─► publish question ─► leases, counts again every 200 ms
//!                                                         until nobody is missing or time is up
//! others  incoming ─► answer at once, or on a task ─► publish the answer on the asker's channel
//! asker   incoming ─► `Questions::receive` ─► the waiting question
//! ```

mod answer;
mod ask;

use std::sync::{Arc, atomic::AtomicU64};

use parking_lot::Mutex;
use roomcast_emitter::membership::PendingQuestions;
use roomcast_protocol::{id::NodeId, wire::Reply};
use tokio::{runtime::Handle, task::JoinSet};

use super::{
    membership::Membership, metrics::QuestionMetrics, node_js::NodeJs, outgoing::Outgoing,
    warnings::Warnings,
};

/// The questions of this node, and those that it is answering.
pub(super) struct Questions {
    outgoing: Arc<Outgoing>,
    membership: Arc<Membership>,
    node_js: Arc<NodeJs>,
    asking: PendingQuestions,
    /// Number of questions asked so far, for their ids.
    asked: AtomicU64,
    answering: Mutex<JoinSet<()>>,
    warnings: Warnings,
    runtime: Handle,
    metrics: QuestionMetrics,
}

impl Questions {
    /// Must be called on a tokio runtime.
    pub(super) fn new(
        outgoing: Arc<Outgoing>,
        membership: Arc<Membership>,
        node_js: Arc<NodeJs>,
        metrics: QuestionMetrics,
    ) -> Self {
        Self {
            outgoing,
            membership,
            node_js,
            asking: PendingQuestions::new(),
            asked: AtomicU64::new(0),
            answering: Mutex::default(),
            warnings: Warnings::default(),
            runtime: Handle::current(),
            metrics,
        }
    }

    /// Returns whether no question of this node waits for answers.
    pub(super) fn is_idle(&self) -> bool {
        self.asking.is_idle()
    }

    /// An answer has arrived. Returns whether a question of this id waits.
    pub(super) fn receive(&self, id: &str, node: Option<NodeId>, reply: Reply) -> bool {
        self.asking.receive(id, node, reply)
    }

    /// Waits until all questions that are being answered are answered.
    pub(super) async fn finish(&self) {
        let mut answering = std::mem::take(&mut *self.answering.lock());
        while answering.join_next().await.is_some() {}
    }
}
