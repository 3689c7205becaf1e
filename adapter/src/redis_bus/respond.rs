//! Answering what other nodes and emitters ask.
//!
//! Roomcast's own get one answer with everything in it. Node's servers count answers: they get
//! exactly one, empty or not, or for a broadcast with acknowledgement the number of sockets first
//! and then each acknowledgement.

use std::{
    future::Future,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use roomcast_protocol::{
    args::Args,
    id::SocketId,
    question::{Answer, Question},
    wire::{Asker, Reply},
};

use tokio::time;

use super::{Shared, namespaces::Attached};
use crate::bus::{Listener, Progress};

/// The most questions that are in work at a time; whoever asks more has to do with silence.
const MAX_ANSWERING: usize = 10_000;

/// How long the ids of a question and of who asks may be to be kept. Those of Node's servers have 6 or
/// 16 characters.
const MAX_ADDRESS_BYTES: usize = 256;

/// Answers on the link's task if it can be done at once, else on a task of its own.
pub(super) fn respond(
    shared: &Arc<Shared>,
    attached: &Arc<Attached>,
    listener: Arc<dyn Listener>,
    asker: Asker,
    id: &str,
    question: Question,
) {
    shared.metrics.answered(&question);
    let address = Arc::new(Address {
        shared: Arc::downgrade(shared),
        attached: Arc::clone(attached),
        asker,
        id: id.into(),
    });
    if let Question::Reached(_) = question {
        let sockets = attached.reached.lock().take(id);
        address.send(&Reply::Answer(Answer::Reached(sockets)));
        return;
    }
    // What acts on sockets has its place in the order of messages; what describes them has none,
    // and may take long.
    let acts = !matches!(
        question,
        Question::Sockets(_) | Question::SocketIds(_) | Question::Rooms
    );
    let counts = address.asker.node.is_none();
    if counts && shared.turnover.is_none_of_ours(&question) {
        return;
    }
    if counts {
        let known = Arc::clone(&shared.leases.lock());
        shared.unanswered.remember(&address, &question, &known);
    }
    let delay = if counts && !matches!(question, Question::Acks { .. } | Question::Command(_)) {
        shared.turnover.delay(attached)
    } else {
        Duration::ZERO
    };
    let counts_acks = matches!(question, Question::Acks { .. }) && address.asker.node.is_none();
    let progress = counts_acks.then(|| Arc::clone(&address) as Arc<dyn Progress>);
    let mut answering = listener.answer(question, progress);
    if acts {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(answer) = answering.as_mut().poll(&mut context) {
            if delay.is_zero() {
                address.finish(answer);
                return;
            }
            answering = Box::pin(std::future::ready(answer));
        }
    }
    shared.answer_later(async move {
        if !delay.is_zero() {
            time::sleep(delay).await;
        }
        let answer = answering.await;
        address.finish(answer);
    });
}

impl Shared {
    /// Has it done on a task of its own, which a shutdown waits for.
    fn answer_later(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.answering.lock();
        while tasks.try_join_next().is_some() {}
        if tasks.len() < MAX_ANSWERING {
            tasks.spawn_on(work, &self.runtime);
        } else {
            self.metrics.dropped.unexpected.inc();
        }
    }
}

/// Where an answer goes.
pub(super) struct Address {
    shared: Weak<Shared>,
    attached: Arc<Attached>,
    asker: Asker,
    id: Box<str>,
}

impl Address {
    pub(super) fn namespace(&self) -> &Arc<str> {
        &self.attached.namespace
    }

    /// Whether it is one that a server makes: others are not worth the memory.
    pub(super) fn is_short(&self) -> bool {
        let uid = self.asker.uid.as_deref().unwrap_or_default();
        self.id.len() + uid.len() <= MAX_ADDRESS_BYTES
    }

    /// The question is answered.
    pub(super) fn finish(&self, answer: Answer) {
        self.send(&Reply::Answer(answer));
    }

    fn send(&self, reply: &Reply) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let response = shared.wire.response(
            &self.attached.namespace,
            &self.asker,
            &self.id,
            &shared.node,
            reply,
        );
        match response {
            // It is on its way at once, behind what was said before; what becomes of it is the
            // asker's to notice.
            Ok(Some(publication)) => drop(shared.send(publication)),
            // The asker does not expect to be told, or has been told on the way.
            Ok(None) => {}
            Err(error) => {
                shared.metrics.published.invalid.inc();
                tracing::warn!(namespace = &*self.attached.namespace, %error, "an answer was not sent");
            }
        }
    }
}

impl Progress for Address {
    fn asked(&self, sockets: usize) {
        self.send(&Reply::Asked(sockets));
    }

    fn acknowledged(&self, _: &SocketId, args: &Args) {
        self.send(&Reply::Acknowledged(args.clone()));
    }
}
