//! Answers on behalf of Roomcast nodes that have left.
//!
//! A Node server fails if one of the nodes that it has counted does not answer. Every node
//! therefore remembers the questions of such servers, and checks a while later whether a node left
//! or died at about that time. The first of those that remain gives an empty answer for each: more
//! than one could be taken for the answer of a slow server. Nothing is checked while nothing is
//! asked.
//!
//! A broadcast with acknowledgement is left alone: Node asks first and counts then, so that one
//! answer too many makes it fail.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use roomcast_emitter::{
    membership::{LEASE_SECONDS, Leases, RENEWAL_SECONDS, Roster, TRACE},
    redis::PublishError,
    signing::millis,
};
use roomcast_protocol::{
    args::Args,
    id::NodeId,
    question::{Answer, Question},
};
use tokio::time::{self, Instant, MissedTickBehavior};

use super::{super::membership::Reading, Membership, NodeJs, ReplyAddress};

/// How long after a question the leases are checked. Every living node has answered and renewed its
/// lease by then. The asker waits for 5 s.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The same for questions that handlers answer, which may take long. The rest of the 5 s
/// is a margin for busy machines.
const PATIENCE_WITH_HANDLERS: Duration = Duration::from_millis(3500);

/// How often the leases are checked, for all questions of that time.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum number of questions that are remembered.
const MAX_QUESTIONS: usize = 10_000;

/// Maximum length of a question's id and its asker's uid, in bytes, for the question to be
/// remembered. Those of Node's servers have 6 or 16 characters.
const MAX_ADDRESS_BYTES: usize = 256;

/// After this time without a renewal, a lease is late: the node may be dead.
const LATE_MILLIS: u64 = 1300;

/// A node that left earlier than this cannot have been counted for the question, even on a busy
/// machine. A longer time would produce answers that arrive too late.
const LEFT_BEFORE_MILLIS: u64 = 2000;

/// The same for the last renewal of a lease, if a node has died.
const RENEWED_BEFORE_MILLIS: u64 = LEFT_BEFORE_MILLIS + RENEWAL_SECONDS * 1000;

/// How far the nodes' extrapolations of Redis's clock may differ. A node that left later than the
/// question has answered it.
const SLACK_MILLIS: u64 = 100;

/// Questions of Node's servers that were not checked yet.
#[derive(Default)]
pub(super) struct Unanswered(Mutex<Vec<Asked>>);

struct Asked {
    address: Arc<ReplyAddress>,
    /// The answer on behalf of a node that has left.
    empty: Answer,
    heard: Instant,
    patience: Duration,
    /// The nodes that were known then. A node that came later has not received the question.
    known: Arc<Leases>,
}

impl Unanswered {
    /// Remembers a question of a Node server, if it is of a kind for which the server counts.
    pub(super) fn remember(
        &self,
        address: &Arc<ReplyAddress>,
        question: &Question,
        known: Arc<Leases>,
    ) {
        let Some((empty, patience)) = empty_answer(question) else {
            return;
        };
        let uid = address.asker.uid.as_deref().unwrap_or_default();
        if address.id.len() + uid.len() > MAX_ADDRESS_BYTES {
            return;
        }
        let mut asked = self.0.lock();
        if asked.len() < MAX_QUESTIONS {
            asked.push(Asked {
                address: Arc::clone(address),
                empty,
                heard: Instant::now(),
                patience,
                known,
            });
        }
    }

    fn take_due(&self, now: Instant) -> Vec<Asked> {
        let is_due = |asked: &mut Asked| now.duration_since(asked.heard) >= asked.patience;
        self.0.lock().extract_if(.., is_due).collect()
    }
}

/// Returns the answer of a node without sockets, and how long to wait for the other nodes.
fn empty_answer(question: &Question) -> Option<(Answer, Duration)> {
    match question {
        Question::Sockets(_) => Some((Answer::Sockets(Vec::new()), PATIENCE)),
        Question::SocketIds(_) => Some((Answer::SocketIds(Vec::new()), PATIENCE)),
        Question::Rooms => Some((Answer::Rooms(Vec::new()), PATIENCE)),
        Question::ServerSideEmit { .. } => {
            let nothing = Answer::ServerSideEmit(Some(Args::default()));
            Some((nothing, PATIENCE_WITH_HANDLERS))
        }
        Question::Acks { .. } | Question::Reached(_) | Question::Command(_) => None,
    }
}

/// Checks questions until the bus is closed.
pub(super) async fn watch(node_js: Weak<NodeJs>) {
    let mut ticks = time::interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(node_js) = node_js.upgrade() else {
            return;
        };
        let due = node_js.unanswered.take_due(Instant::now());
        let membership = &node_js.membership;
        // A node that came or left in the second before a question is known by now.
        let is_alone = membership.leases().nodes().len() < 2;
        if due.is_empty() || is_alone {
            continue;
        }
        if let Err(error) = stand_in(membership, due).await {
            tracing::debug!(%error, "missing nodes could not be determined");
        }
    }
}

/// Answers the questions on behalf of nodes that have left, if this node is responsible for it.
async fn stand_in(membership: &Membership, due: Vec<Asked>) -> Result<(), PublishError> {
    let Some(reading) = membership.read_leases().await? else {
        return Ok(());
    };
    let gone = Gone::new(&reading, membership.node());
    if gone.left.is_empty() && gone.late.is_empty() {
        return Ok(());
    }
    let read = Instant::now();
    let mut rosters = HashMap::new();
    for asked in due {
        let age = read.saturating_duration_since(asked.heard);
        let heard = reading.now.saturating_sub(millis(age));
        let late: Vec<_> = gone.late_at(heard).collect();
        let left = gone.left_at(heard);
        if left == 0 && late.is_empty() {
            continue;
        }
        let namespace = &asked.address.namespace.name;
        let roster = match rosters.entry(Arc::clone(namespace)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(sorted_roster(membership, namespace).await?),
        };
        if first_of(roster, &asked.known) != Some(membership.node()) {
            continue;
        }
        // A node that is late but subscribed hangs, and may answer yet.
        let hangs = |node: &NodeId| roster.alive.contains(node) || roster.stalled.contains(node);
        let died = late.into_iter().filter(|node| !hangs(node)).count();
        tracing::debug!(left, died, "answering on behalf of other nodes");
        for _ in 0..left + died {
            asked.address.finish(asked.empty.clone());
        }
    }
    Ok(())
}

async fn sorted_roster(membership: &Membership, namespace: &str) -> Result<Roster, PublishError> {
    let counted = membership.count(namespace, membership.leases()).await?;
    let mut roster = counted.roster();
    let by_name = |a: &NodeId, b: &NodeId| a.as_str().cmp(b.as_str());
    roster.alive.sort_unstable_by(by_name);
    Ok(roster)
}

/// Returns the substitute. All remaining nodes choose the same one. Nodes that were unknown
/// when the question came may not have received it.
fn first_of<'a>(roster: &'a Roster, known: &Leases) -> Option<&'a NodeId> {
    let is_known = |node: &&NodeId| known.nodes().any(|known| known == *node);
    roster.alive.iter().find(is_known)
}

/// The nodes that may have left in the last seconds, in milliseconds of Redis's clock.
struct Gone {
    /// When nodes have left.
    left: Vec<u64>,
    /// Nodes that should have renewed their leases, and when they did.
    late: Vec<(NodeId, u64)>,
}

impl Gone {
    fn new(reading: &Reading, own: &NodeId) -> Self {
        let earliest = reading
            .now
            .saturating_sub(millis(PATIENCE_WITH_HANDLERS + CHECK_INTERVAL * 4));
        let mut gone = Self {
            left: Vec::new(),
            late: Vec::new(),
        };
        for (name, time) in reading.entries() {
            if name.starts_with(TRACE) {
                if time >= earliest.saturating_sub(LEFT_BEFORE_MILLIS) {
                    gone.left.push(time);
                }
                continue;
            }
            let renewed = time.saturating_sub(LEASE_SECONDS * 1000);
            let is_recent = renewed >= earliest.saturating_sub(RENEWED_BEFORE_MILLIS);
            if is_recent && renewed + LATE_MILLIS < reading.now && name != own.as_str() {
                gone.late.push((NodeId::new(name), renewed));
            }
        }
        gone
    }

    /// Returns how many nodes have left that may have been counted for a question of this time.
    fn left_at(&self, asked: u64) -> usize {
        let may_be_counted = asked.saturating_sub(LEFT_BEFORE_MILLIS)..=asked + SLACK_MILLIS;
        let left = self.left.iter();
        left.filter(|time| may_be_counted.contains(time)).count()
    }

    /// Returns the nodes that may have died before they answered a question of this time.
    fn late_at(&self, asked: u64) -> impl Iterator<Item = &NodeId> {
        let last_sign = asked.saturating_sub(RENEWED_BEFORE_MILLIS);
        let late = self.late.iter();
        late.filter(move |(_, renewed)| *renewed >= last_sign)
            .map(|(node, _)| node)
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::{super::super::membership::trace_offset, *};

    /// The names and scores that a node reads at the time 100,000 after the offset of traces.
    fn reading(held: &[(&str, u64)]) -> Reading {
        let text = |text: &str| Value::BulkString(text.into());
        let pairs = held.iter();
        Reading {
            now: trace_offset() + 100_000,
            held: Value::Array(
                pairs
                    .flat_map(|(name, time)| [text(name), text(&time.to_string())])
                    .collect(),
            ),
        }
    }

    #[test]
    fn who_left_counts_for_the_questions_of_that_moment() {
        let gone = Gone::new(
            &reading(&[("left:a", 98_500), ("left:b", 40_000)]),
            &id("me"),
        );
        assert_eq!(gone.left, [trace_offset() + 98_500]);
        let asked = [98_399, 98_400, 100_500, 100_501];
        let asked = asked.map(|asked| trace_offset() + asked);
        assert_eq!(asked.map(|asked| gone.left_at(asked)), [0, 1, 1, 0]);
        assert!(gone.late.is_empty());
    }

    #[test]
    fn who_is_late_with_its_lease_may_have_been_counted_shortly_after_the_last_renewal() {
        let start = trace_offset();
        let end = |renewed: u64| start + renewed + LEASE_SECONDS * 1000;
        let held = [
            ("alive", end(98_900)),
            ("late", end(98_500)),
            ("me", end(98_500)),
            ("long dead", end(60_000)),
        ];
        let gone = Gone::new(&reading(&held), &id("me"));
        assert_eq!(gone.late, [(id("late"), start + 98_500)]);
        let asked = [98_400, 100_000, 101_500, 101_501].map(|asked| start + asked);
        assert_eq!(asked.map(|asked| gone.late_at(asked).count()), [1, 1, 1, 0]);
    }

    #[test]
    fn the_first_that_was_known_and_lives_stands_in() {
        let lease = |name| (id(name), 2000);
        let known = Leases::new([lease("d"), lease("c"), lease("b")], 1000);
        let roster = Roster {
            alive: ["a", "c", "d"].map(id).into(),
            stalled: vec![id("b")],
            deaf: Vec::new(),
            foreign: 1,
        };
        assert_eq!(first_of(&roster, &known), Some(&id("c")));
        assert_eq!(first_of(&roster, &Leases::default()), None);
    }

    fn id(name: &str) -> NodeId {
        NodeId::new(name)
    }
}
