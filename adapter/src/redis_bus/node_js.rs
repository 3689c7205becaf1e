//! The code for clusters with Node.js servers, which is needed because they count before they ask.
//!
//! A Node server counts the subscribers of the request channel, publishes its question, and takes
//! as many answers as it counted, from any server. Without this module, a node that joins or leaves
//! between the count and the question makes it fail, because one answer is missing or one is too
//! many.
//!
//! ```text
//!  Node server    NUMSUB ── PUBLISH question ──────── counted answers, or failure after 5 s
//!  a node comes       ▲ before: counted, answers at once
//!                       ▲ after: not counted, answers late        handover::delay
//!  a node leaves      ▲ before: not counted, is not asked
//!                       ▲ after: hears the question through a pattern, answers late
//!                                                              handover::hear_uncounted
//!  a node vanishes    another one answers in its place, 1.5 s later         stand_in
//! ```
//!
//! The rest of the bus only calls [`NodeJs`].

mod foreign_joins;
mod handover;
mod stand_in;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use roomcast_protocol::{message::Message, question::Question};
use tokio::time;

use self::{
    foreign_joins::ForeignJoins,
    handover::{COUNTING, Handover},
    stand_in::Unanswered,
};
use super::{
    gaps::Gaps,
    membership::Membership,
    reply::ReplyAddress,
    subscriptions::{AttachedNamespace, Subscriptions},
};

/// The duties of this node towards Node's servers.
pub(super) struct NodeJs {
    membership: Arc<Membership>,
    handover: Handover,
    unanswered: Unanswered,
    foreign_joins: Arc<ForeignJoins>,
}

impl NodeJs {
    /// Must be called on a tokio runtime.
    pub(super) fn new(membership: Arc<Membership>, gaps: Arc<Gaps>) -> Self {
        Self {
            membership,
            handover: Handover::new(),
            unanswered: Unanswered::default(),
            foreign_joins: Arc::new(ForeignJoins::new(gaps)),
        }
    }

    /// The members were counted; the number of Node servers.
    pub(super) fn counted(&self, servers: usize, subscriptions: &Arc<Subscriptions>) {
        if servers > 0 {
            self.foreign_joins.servers_are_there(subscriptions);
        }
    }

    /// A message was carried out, for this number of sockets.
    pub(super) fn carried_out(
        &self,
        subscriptions: &Arc<Subscriptions>,
        namespace: &Arc<AttachedNamespace>,
        message: &Message,
        payload: &[u8],
        sockets: usize,
    ) {
        let is_foreign =
            || foreign_joins::is_foreign(payload, &namespace.name, &self.membership.leases());
        let joins = &self.foreign_joins;
        joins.carried_out(subscriptions, namespace, message, sockets, is_foreign);
    }

    /// A message has arrived by a channel, while it may arrive by a pattern, too.
    pub(super) fn received(&self, channel: &[u8], payload: &[u8]) {
        self.foreign_joins.received(channel, payload);
    }

    /// Returns whether a message that arrives by the pattern of all rooms has arrived already.
    pub(super) fn is_copy(&self, channel: &[u8], payload: &[u8]) -> bool {
        self.foreign_joins.is_copy(channel, payload)
    }

    /// Answers on behalf of nodes that have left, until the bus is closed.
    pub(super) async fn watch(node_js: Weak<Self>) {
        stand_in::watch(node_js).await;
    }

    /// The subscriptions were confirmed, for the first time or again: Node's servers count this
    /// node from now on.
    pub(super) fn is_counted(&self) {
        self.handover.is_up();
    }

    /// Returns whether the same question has just arrived by another subscription.
    pub(super) fn is_duplicate(&self, payload: &[u8]) -> bool {
        self.handover.is_second_copy(payload)
    }

    /// Takes note of a question. Returns how long the answer has to be delayed, or `None` if the
    /// question must not be answered. Questions of our own nodes are answered at once.
    pub(super) fn delay(
        &self,
        address: &Arc<ReplyAddress>,
        question: &Question,
    ) -> Option<Duration> {
        if address.asker.node.is_some() {
            return Some(Duration::ZERO);
        }
        if self.handover.is_uncounted(question) {
            return None;
        }
        let known = self.membership.leases();
        self.unanswered.remember(address, question, known);
        Some(match question {
            Question::Acks { .. } | Question::Command(_) => Duration::ZERO,
            _ => self.handover.delay(&address.namespace),
        })
    }

    /// Leaves the channels on which Node's servers count this node, and answers their questions
    /// while one of them may have counted it.
    pub(super) async fn leave(&self, subscriptions: &Subscriptions, timeout: Duration) {
        let patterns = self.handover.hear_uncounted(subscriptions, timeout).await;
        let left = subscriptions.retire();
        if let Err(error) = subscriptions.subscriber.confirm(left, timeout).await {
            tracing::warn!(%error, "other nodes may wait for answers of this one");
        }
        if !patterns.is_empty() {
            self.handover.left();
            time::sleep(COUNTING).await;
            for pattern in &patterns {
                subscriptions.subscriber.unsubscribe_pattern(pattern);
            }
            handover::confirm_patterns(subscriptions, &patterns, timeout).await;
        }
    }
}
