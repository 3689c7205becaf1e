//! Coming and going while Node's servers count.
//!
//! A node that joined after the count must not answer first, because its answer would be taken for
//! that of a counted node. A node that leaves after the count must still answer. Both answer late:
//! a server that has not counted the node has all its answers by then.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use roomcast_protocol::question::Question;
use tokio::time::Instant;

use super::{AttachedNamespace, Subscriptions};

/// The time that a Node server may take from counting to asking, with a margin. How long a node
/// that leaves keeps receiving questions, and a node that joined delays its answers. Of two nodes
/// that came, the older one answers first.
pub(super) const COUNTING: Duration = Duration::from_millis(300);

/// The delay of a node that leaves. The others have answered by then, and the asker waits for
/// seconds.
const LATE: Duration = Duration::from_millis(100);

/// Since when the node is counted, and whether it still is.
pub(super) struct Handover {
    up_since: Mutex<Instant>,
    leaving: Mutex<Leaving>,
}

enum Leaving {
    /// Questions arrive once, and the node is counted.
    No,
    /// Questions arrive twice, by the channel and by a pattern, which is not counted. The copies
    /// come one after the other; this is the first of two.
    Twice(Option<Box<[u8]>>),
    /// Questions arrive by the pattern alone, and the node is not counted.
    Uncounted,
}

impl Handover {
    pub(super) fn new() -> Self {
        Self {
            up_since: Mutex::new(Instant::now()),
            leaving: Mutex::new(Leaving::No),
        }
    }

    /// The subscriptions are confirmed.
    pub(super) fn is_up(&self) {
        *self.up_since.lock() = Instant::now();
    }

    /// From now on, questions may arrive twice.
    fn begin(&self) {
        *self.leaving.lock() = Leaving::Twice(None);
    }

    /// The channels have been left.
    pub(super) fn left(&self) {
        *self.leaving.lock() = Leaving::Uncounted;
    }

    /// Returns whether this question has arrived already.
    pub(super) fn is_second_copy(&self, payload: &[u8]) -> bool {
        let mut leaving = self.leaving.lock();
        let Leaving::Twice(first) = &mut *leaving else {
            return false;
        };
        if first.take().is_some_and(|first| *first == *payload) {
            return true;
        }
        *first = Some(payload.into());
        false
    }

    /// Returns whether the asker cannot have counted this node. For acknowledgements, Node asks
    /// first and counts then.
    pub(super) fn is_uncounted(&self, question: &Question) -> bool {
        matches!(question, Question::Acks { .. })
            && matches!(*self.leaving.lock(), Leaving::Uncounted)
    }

    /// Returns how long an answer has to be delayed so that it is not taken for another one's.
    pub(super) fn delay(&self, namespace: &AttachedNamespace) -> Duration {
        if !matches!(*self.leaving.lock(), Leaving::No) {
            return LATE;
        }
        let up_since = self.up_since.lock().elapsed();
        let age = namespace.since.elapsed().min(up_since);
        COUNTING.saturating_sub(age)
    }

    /// Subscribes patterns by which questions arrive but which are not counted, and returns them.
    /// Sharded pub/sub has no patterns. Dynamic namespaces are left out, because Redis keeps a
    /// structure for each pattern that ever was.
    pub(super) async fn hear_uncounted(
        &self,
        subscriptions: &Subscriptions,
        timeout: Duration,
    ) -> Vec<Arc<str>> {
        let Some(channels) = subscriptions.classic_channels() else {
            return Vec::new();
        };
        let pattern = |namespace: &Arc<AttachedNamespace>| {
            Arc::from(channels.request_pattern(&namespace.name))
        };
        let namespaces = subscriptions.namespaces();
        let lasting = namespaces.iter().filter(|namespace| !namespace.is_dynamic);
        let patterns: Vec<Arc<str>> = lasting.map(pattern).collect();
        self.begin();
        for pattern in &patterns {
            let subscriber = &subscriptions.subscriber;
            subscriber.subscribe_pattern(Arc::clone(pattern));
        }
        confirm_patterns(subscriptions, &patterns, timeout).await;
        patterns
    }
}

/// Waits until the patterns are confirmed. Without that, a question of this moment may be missed.
pub(super) async fn confirm_patterns(
    subscriptions: &Subscriptions,
    patterns: &[Arc<str>],
    timeout: Duration,
) {
    for pattern in patterns {
        let subscriber = &subscriptions.subscriber;
        let confirmed = subscriber.confirm_pattern(Arc::clone(pattern), timeout);
        if let Err(error) = confirmed.await {
            tracing::debug!(%error, "a pattern was not confirmed");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_second_copy_is_known_while_there_are_two() {
        let handover = Handover::new();
        assert!(!handover.is_second_copy(b"a"));
        assert!(!handover.is_second_copy(b"a"), "asked twice");
        handover.begin();
        for payload in [b"a", b"a", b"b"] {
            assert!(!handover.is_second_copy(payload));
            assert!(handover.is_second_copy(payload));
        }
        // The pattern was there in time for the second only.
        assert!(!handover.is_second_copy(b"c"));
        assert!(!handover.is_second_copy(b"d"));
        assert!(handover.is_second_copy(b"d"));
        handover.left();
        assert!(!handover.is_second_copy(b"d"));
        assert!(!handover.is_second_copy(b"d"), "asked twice");
    }
}
