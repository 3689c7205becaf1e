//! Answering the questions of other nodes and emitters.
//!
//! Roomcast's own nodes get one answer with everything in it. Node's servers get exactly
//! one answer, empty or not; for a broadcast with acknowledgement, the number of sockets
//! first and then each acknowledgement.

use std::{
    future::{Future, ready},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use roomcast_protocol::{
    question::{Answer, Question, REACHED_NOW},
    wire::Asker,
};
use tokio::time;

use super::{
    super::{reply::ReplyAddress, subscriptions::AttachedNamespace},
    Questions,
};
use crate::bus::{Listener, Progress};

/// Maximum number of questions that are being answered. Further questions are dropped, and their
/// askers time out.
const MAX_ANSWERING: usize = 10_000;

impl Questions {
    /// Answers on the link's task if the answer is available at once, otherwise on a separate task.
    pub(in super::super) fn answer(
        &self,
        namespace: &Arc<AttachedNamespace>,
        listener: Arc<dyn Listener>,
        asker: Asker,
        id: &str,
        question: Question,
    ) {
        self.metrics.answered(&question);
        let address = Arc::new(ReplyAddress {
            outgoing: Arc::clone(&self.outgoing),
            namespace: Arc::clone(namespace),
            asker,
            id: id.into(),
        });
        if let Question::Reached(_) = question
            && !id.ends_with(REACHED_NOW)
        {
            let sockets = namespace.reached.lock().take(id);
            address.finish(Answer::Reached(sockets));
            return;
        }
        let Some(delay) = self.node_js.delay(&address, &question) else {
            return;
        };
        // Questions that act on sockets have a place in the order of messages. Those that describe
        // sockets have none, and may take long.
        let acts = !matches!(
            question,
            Question::Sockets(_) | Question::SocketIds(_) | Question::Rooms
        );
        let wants_progress =
            matches!(question, Question::Acks { .. }) && address.asker.node.is_none();
        let progress = wants_progress.then(|| Arc::clone(&address) as Arc<dyn Progress>);
        let mut answering = listener.answer(question, progress);
        if acts {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(answer) = answering.as_mut().poll(&mut context) {
                if delay.is_zero() {
                    address.finish(answer);
                    return;
                }
                answering = Box::pin(ready(answer));
            }
        }
        self.answer_later(async move {
            if !delay.is_zero() {
                time::sleep(delay).await;
            }
            address.finish(answering.await);
        });
    }

    /// Answers on a separate task, for which a shutdown waits.
    fn answer_later(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.answering.lock();
        while tasks.try_join_next().is_some() {}
        if tasks.len() < MAX_ANSWERING {
            tasks.spawn_on(work, &self.runtime);
            return;
        }
        drop(tasks);
        self.metrics.unexpected.inc();
        self.warnings.warn(|suppressed| {
            tracing::warn!(
                limit = MAX_ANSWERING,
                suppressed,
                "a question was dropped: too many are being answered"
            );
        });
    }
}
