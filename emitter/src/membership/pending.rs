//! Questions that wait for answers, and when to stop waiting.
//!
//! Answers arrive over a subscription and are passed to [`PendingQuestions::receive`].
//! While one is missing, the members are counted again and again, so that no question
//! waits for a node that died. The result contains all answers that have arrived when the timeout
//! ends.
//!
//! ```text
//!   open ─▶ gather ─▶ look ─▶ complete? ──yes──▶ outcome
//!                      ▲         │ no
//!                      │         ▼
//!                      └── 200 ms, or an answer of an unknown node ── timeout ──▶ outcome
//! ```
//!
//! *Complete* refers to the members that are present now: the question no longer waits for a member
//! that left, but the member remains in the list of silent nodes.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time};

use super::roster::Roster;
use roomcast_protocol::{
    args::Args,
    id::NodeId,
    question::{Answer, Answered, Question},
    wire::Reply,
};

/// How often the members are counted while an answer is missing.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum number of questions that wait at a time.
const MAX_PENDING: usize = 10_000;

/// Maximum size of the answers to one question, in bytes, estimated.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// How long a question waits for a Node.js server that did not answer the last question, and for a
/// node whose lease has expired. The one may be back, and the other may live while Redis refuses
/// writes; both answer in milliseconds.
const SECOND_CHANCE: Duration = Duration::from_millis(300);

/// Whether a server answers such a question at once, without asking clients or handlers.
pub fn is_quick(question: &Question) -> bool {
    match question {
        Question::Sockets(_)
        | Question::SocketIds(_)
        | Question::Rooms
        | Question::Reached(_)
        | Question::Command(_) => true,
        Question::Acks { .. } | Question::ServerSideEmit { .. } => false,
    }
}

/// The name of a silent server of other make, whose answers do not carry a name.
pub const FOREIGN: &str = "foreign";

/// The questions of one node or emitter.
#[derive(Debug, Default)]
pub struct PendingQuestions {
    pending: Arc<Mutex<Questions>>,
    /// How many servers of other make did not answer the last question.
    hanging: Arc<AtomicUsize>,
}

type Questions = HashMap<Box<str>, Arc<Pending>>;

/// A question that waits. Dropping it removes the question.
#[derive(Debug)]
pub struct Waiting {
    questions: Arc<Mutex<Questions>>,
    hanging: Arc<AtomicUsize>,
    id: Box<str>,
    pending: Arc<Pending>,
}

/// Too many questions wait for answers already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_PENDING} questions are waiting for answers already")]
pub struct TooManyQuestions;

/// The result of a question.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// The answers, and the silent nodes.
    pub answered: Answered,
    /// Whether all answers are in.
    pub is_complete: bool,
    /// Nodes of ours that answered and have no lease where this one looks for it. Their
    /// URLs may name another database of the same Redis.
    pub without_lease: Vec<NodeId>,
}

#[derive(Debug, Default)]
struct Pending {
    received: Mutex<Received>,
    changed: Notify,
}

/// The answers so far.
#[derive(Debug, Default)]
struct Received {
    /// Our nodes that answered.
    nodes: HashSet<NodeId>,
    answers: Vec<Answer>,
    bytes: usize,
    /// Answers, and first parts of answers, from servers of other make.
    foreign: usize,
    /// Sockets that these servers asked.
    foreign_asked: usize,
    /// Acknowledgements of those sockets.
    foreign_acks: Vec<Args>,
}

impl PendingQuestions {
    /// Without questions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a question: from now on, answers with this id are kept.
    pub fn open(&self, id: &str) -> Result<Waiting, TooManyQuestions> {
        let mut questions = self.pending.lock();
        if questions.len() >= MAX_PENDING {
            return Err(TooManyQuestions);
        }
        let pending = Arc::<Pending>::default();
        questions.insert(id.into(), Arc::clone(&pending));
        Ok(Waiting {
            questions: Arc::clone(&self.pending),
            hanging: Arc::clone(&self.hanging),
            id: id.into(),
            pending,
        })
    }

    /// Whether a question with this id waits.
    pub fn is_waiting(&self, id: &str) -> bool {
        self.pending.lock().contains_key(id)
    }

    /// Whether no question waits.
    pub fn is_idle(&self) -> bool {
        self.pending.lock().is_empty()
    }

    /// Adds an answer. Returns `false` if no question waits for it.
    pub fn receive(&self, id: &str, node: Option<NodeId>, reply: Reply) -> bool {
        let pending = self.pending.lock().get(id).cloned();
        let Some(pending) = pending else {
            return false;
        };
        pending.received.lock().add(node, reply);
        pending.changed.notify_one();
        true
    }
}

impl Waiting {
    /// Waits until every member has answered or left, at most for `timeout`. `look`
    /// returns the members that have to answer. It is given nodes that have answered and
    /// have no lease, to find out whether they are still there. If its first call fails,
    /// that is the error; a later failure ends the wait.
    ///
    /// With `is_quick`, servers of other make answer such a question at once, if at all. Those that
    /// did not answer the last one get little time for this one.
    pub async fn gather<E, F>(
        self,
        timeout: Duration,
        is_quick: bool,
        mut look: impl FnMut(Vec<NodeId>) -> F,
    ) -> Result<Outcome, E>
    where
        F: Future<Output = Result<Roster, E>>,
    {
        let start = time::Instant::now();
        let deadline = start + timeout;
        let hanging = if is_quick {
            self.hanging.load(Ordering::Relaxed)
        } else {
            0
        };
        let first = time::timeout_at(deadline, look(Vec::new())).await;
        let mut expected = Expected::default();
        match first {
            Ok(roster) => expected.look(roster?),
            Err(_) => return Ok(self.outcome(&expected)),
        }
        let mut next_look = time::Instant::now() + LOOK_INTERVAL;
        let mut unknown = 0;
        loop {
            let now = time::Instant::now();
            let chance = start + SECOND_CHANCE;
            let has_chance = now < chance;
            let forgiven = if has_chance { 0 } else { hanging };
            let is_complete = {
                let received = self.pending.received.lock();
                received.is_complete(&expected.now, forgiven)
                    && (!has_chance || received.has_all(&expected.now.stalled))
            };
            if is_complete || now >= deadline {
                break;
            }
            // A node that answers and is not known came just now, has left, or has no
            // lease. Until the next look it counts as a server of other make.
            let now_unknown = self.pending.received.lock().unknown(&expected.now);
            if now_unknown.len() > unknown {
                next_look = now;
            }
            unknown = now_unknown.len();
            let mut until = next_look.min(deadline);
            if has_chance && (hanging > 0 || !expected.now.stalled.is_empty()) {
                until = until.min(chance);
            }
            if time::timeout_at(until, self.pending.changed.notified())
                .await
                .is_err()
                && until == next_look
            {
                match time::timeout_at(deadline, look(now_unknown.clone())).await {
                    Ok(Ok(roster)) => {
                        let is_there = |node: &NodeId| roster.stalled.contains(node);
                        let found = now_unknown.into_iter().filter(is_there);
                        expected.without_lease.extend(found);
                        expected.look(roster);
                    }
                    _ => break,
                }
                next_look = time::Instant::now() + LOOK_INTERVAL;
            }
        }
        if is_quick {
            let silent = expected.silent_foreign(&self.pending.received.lock());
            self.hanging.store(silent, Ordering::Relaxed);
        }
        Ok(self.outcome(&expected))
    }

    fn outcome(&self, expected: &Expected) -> Outcome {
        let mut received = std::mem::take(&mut *self.pending.received.lock());
        let silent = expected.silent(&received);
        let without_lease = expected.without_lease.iter().cloned().collect();
        let missing_unnamed = received
            .foreign_asked
            .saturating_sub(received.foreign_acks.len());
        let is_complete = silent.is_empty() && missing_unnamed == 0;
        if received.foreign_asked > 0 || !received.foreign_acks.is_empty() {
            received.answers.push(Answer::Acks {
                answers: received
                    .foreign_acks
                    .into_iter()
                    .map(|ack| (None, ack))
                    .collect(),
                missing: Vec::new(),
                missing_unnamed,
            });
        }
        Outcome {
            answered: Answered {
                answers: received.answers,
                silent,
            },
            is_complete,
            without_lease,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.questions.lock().remove(&self.id);
    }
}

impl Received {
    fn add(&mut self, node: Option<NodeId>, reply: Reply) {
        self.bytes = self.bytes.saturating_add(size_of_reply(&reply));
        // A node that sends that much is treated as silent.
        if self.bytes > MAX_ANSWER_BYTES {
            return;
        }
        match (node, reply) {
            (Some(node), Reply::Answer(answer)) => {
                // A second answer of the same node is ignored.
                if self.nodes.insert(node) {
                    self.answers.push(answer);
                }
            }
            (None, Reply::Answer(answer)) => {
                self.foreign += 1;
                self.answers.push(answer);
            }
            (_, Reply::Asked(sockets)) => {
                self.foreign += 1;
                self.foreign_asked = self.foreign_asked.saturating_add(sockets);
            }
            (_, Reply::Acknowledged(args)) => self.foreign_acks.push(args),
        }
    }

    /// Returns whether all have answered except for this number of Node.js servers.
    fn is_complete(&self, now: &Roster, forgiven: usize) -> bool {
        self.has_all(&now.alive)
            && self.foreign + forgiven >= now.foreign
            && self.foreign_acks.len() >= self.foreign_asked
    }

    /// Returns whether these nodes of ours have answered.
    fn has_all(&self, nodes: &[NodeId]) -> bool {
        nodes.iter().all(|node| self.nodes.contains(node))
    }

    /// Our nodes that answered without being known as present.
    fn unknown(&self, now: &Roster) -> Vec<NodeId> {
        let known = |node: &NodeId| {
            now.alive.contains(node) || now.stalled.contains(node) || now.deaf.contains(node)
        };
        let unknown = self.nodes.iter().filter(|node| !known(node));
        unknown.cloned().collect()
    }
}

/// The members that have to answer.
#[derive(Debug, Default)]
struct Expected {
    now: Roster,
    /// Nodes that were present at some time during the wait.
    nodes: HashSet<NodeId>,
    /// The highest number of servers of other make that were present.
    foreign: usize,
    /// Nodes that answered and were there without a lease at a look.
    without_lease: HashSet<NodeId>,
}

impl Expected {
    fn look(&mut self, roster: Roster) {
        // A node that was too young to be known at the last look was counted as foreign then.
        let nodes = roster.alive.iter().chain(&roster.stalled);
        let fresh = nodes.filter(|node| self.nodes.insert((*node).clone()));
        let reclassified = self.foreign.saturating_sub(fresh.count());
        // These were not counted at all.
        self.nodes.extend(roster.deaf.iter().cloned());
        self.foreign = reclassified.max(roster.foreign);
        self.now = roster;
    }

    fn silent_foreign(&self, received: &Received) -> usize {
        self.foreign.saturating_sub(received.foreign)
    }

    fn silent(&self, received: &Received) -> Vec<NodeId> {
        let missing = self
            .nodes
            .iter()
            .filter(|node| !received.nodes.contains(*node));
        let mut silent: Vec<NodeId> = missing.cloned().collect();
        silent.sort_unstable();
        let foreign = 0..self.silent_foreign(received);
        silent.extend(foreign.map(|_| NodeId::new(FOREIGN)));
        silent
    }
}

/// The memory that a reply takes, roughly.
fn size_of_reply(reply: &Reply) -> usize {
    const ITEM: usize = 64;
    let of_args = |args: &Args| {
        let attachments = args.attachments().iter();
        ITEM + args.json().len() + attachments.map(|bytes| ITEM + bytes.len()).sum::<usize>()
    };
    match reply {
        Reply::Asked(_) => ITEM,
        Reply::Acknowledged(args) => of_args(args),
        Reply::Answer(answer) => match answer {
            Answer::Sockets(sockets) => sockets
                .iter()
                .map(|socket| {
                    let rooms = socket.rooms.iter().map(|room| ITEM + room.len());
                    // The handshake is a tree of a few dozen short strings.
                    2048 + rooms.sum::<usize>()
                })
                .sum(),
            Answer::SocketIds(ids) => ids.len() * ITEM,
            Answer::Rooms(rooms) => rooms.iter().map(|room| ITEM + room.len()).sum(),
            Answer::Acks {
                answers, missing, ..
            } => {
                answers.iter().map(|(_, args)| of_args(args)).sum::<usize>() + missing.len() * ITEM
            }
            Answer::ServerSideEmit(Some(args)) => of_args(args),
            _ => ITEM,
        },
    }
}

#[cfg(test)]
mod tests;
