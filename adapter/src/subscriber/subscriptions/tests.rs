//! Every wanted name ends up subscribed, regardless of Redis's replies and their timing.

use std::collections::{HashSet, VecDeque};

use proptest::prelude::*;

use super::*;

const CHANNEL: SubscriptionKind = SubscriptionKind::Channel;

fn connected() -> Subscriptions {
    let mut subscriptions = Subscriptions::default();
    subscriptions.connected();
    subscriptions
}

fn subscribe(subscriptions: &mut Subscriptions, names: impl IntoIterator<Item = usize>) {
    for name in names {
        subscriptions.subscribe(CHANNEL, Priority::Room, name.to_string().into());
    }
}

fn queued(subscriptions: &Subscriptions) -> usize {
    subscriptions.queues.iter().map(VecDeque::len).sum()
}

/// The batches that are sent now.
fn sent(subscriptions: &mut Subscriptions) -> Vec<Batch> {
    std::iter::from_fn(|| subscriptions.next_batch()).collect()
}

/// A batch as the words of a command.
fn words(batch: &Batch) -> Vec<&str> {
    let command = match (batch.kind, batch.subscribes) {
        (SubscriptionKind::Channel, true) => "SUBSCRIBE",
        (SubscriptionKind::Channel, false) => "UNSUBSCRIBE",
        (SubscriptionKind::Pattern, true) => "PSUBSCRIBE",
        (SubscriptionKind::Pattern, false) => "PUNSUBSCRIBE",
        (SubscriptionKind::Shard, true) => "SSUBSCRIBE",
        (SubscriptionKind::Shard, false) => "SUNSUBSCRIBE",
    };
    let names = batch.names.iter().map(|name| &**name);
    [command].into_iter().chain(names).collect()
}

/// The only batch that is sent now.
#[track_caller]
fn only(subscriptions: &mut Subscriptions, expected: &[&str]) -> Batch {
    let mut batches = sent(subscriptions);
    assert_eq!(batches.len(), 1, "{batches:?}");
    let batch = batches.remove(0);
    assert_eq!(words(&batch), expected);
    batch
}

#[test]
fn batches_have_at_most_512_names_and_8_are_unconfirmed() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, 0..10_000);
    let mut batches = sent(&mut subscriptions);
    assert_eq!(batches.len(), WINDOW);
    assert!(batches.iter().all(|batch| batch.names.len() == BATCH));
    assert!(sent(&mut subscriptions).is_empty());
    subscriptions.confirm(batches.remove(0));
    assert_eq!(sent(&mut subscriptions).len(), 1);
    assert_eq!(subscriptions.counts().confirmed, BATCH);
}

#[test]
fn a_subscribe_and_an_unsubscribe_of_one_tick_cancel_out() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, 0..3);
    subscriptions.unsubscribe(CHANNEL, "1");
    only(&mut subscriptions, &["SUBSCRIBE", "0", "2"]);
    assert_eq!(subscriptions.entries.len(), 2);
}

#[test]
fn names_that_come_and_go_before_they_are_sent_take_no_memory() {
    let mut subscriptions = connected();
    for name in 0..100_000 {
        subscribe(&mut subscriptions, [name]);
        subscriptions.unsubscribe(CHANNEL, &name.to_string());
        assert!(
            queued(&subscriptions) <= MAX_IDLE + 1 && subscriptions.entries.len() <= MAX_IDLE + 1
        );
    }
    assert!(sent(&mut subscriptions).is_empty());
    assert!(subscriptions.entries.is_empty());
}

#[test]
fn single_rooms_wait_for_company_while_something_is_unconfirmed() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, [0]);
    let first = only(&mut subscriptions, &["SUBSCRIBE", "0"]);
    subscribe(&mut subscriptions, [1, 2]);
    assert!(sent(&mut subscriptions).is_empty());
    subscriptions.subscribe(CHANNEL, Priority::Control, "control".into());
    let control = only(&mut subscriptions, &["SUBSCRIBE", "control"]);
    subscriptions.confirm(first);
    subscriptions.confirm(control);
    only(&mut subscriptions, &["SUBSCRIBE", "1", "2"]);
}

#[test]
fn a_name_has_one_unconfirmed_command_at_a_time() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, [0]);
    let first = only(&mut subscriptions, &["SUBSCRIBE", "0"]);
    subscriptions.unsubscribe(CHANNEL, "0");
    assert!(sent(&mut subscriptions).is_empty());
    subscriptions.confirm(first);
    let second = only(&mut subscriptions, &["UNSUBSCRIBE", "0"]);
    subscriptions.confirm(second);
    assert!(subscriptions.entries.is_empty());
}

#[test]
fn a_new_connection_subscribes_by_priority() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, 0..2);
    subscriptions.subscribe(SubscriptionKind::Pattern, Priority::Pattern, "p*".into());
    subscriptions.subscribe(CHANNEL, Priority::Control, "base".into());
    subscriptions.subscribe(CHANNEL, Priority::Probe, "probe".into());
    subscriptions.lost();
    subscriptions.connected();
    assert!(!subscriptions.is_complete());
    let batches = sent(&mut subscriptions);
    let expected = [
        ["SUBSCRIBE", "probe"],
        ["SUBSCRIBE", "base"],
        ["PSUBSCRIBE", "p*"],
    ];
    assert_eq!(batches.iter().map(words).collect::<Vec<_>>(), expected);
    for batch in batches {
        subscriptions.confirm(batch);
    }
    let rooms = sent(&mut subscriptions).remove(0);
    assert_eq!(rooms.names.len(), 2);
    // A name that is no longer wanted keeps the connection incomplete until Redis confirms the end
    // of its subscription.
    let name = Arc::clone(&rooms.names[1]);
    subscriptions.unsubscribe(CHANNEL, &name);
    subscriptions.confirm(rooms);
    assert!(!subscriptions.is_complete());
    let last = only(&mut subscriptions, &["UNSUBSCRIBE", &name]);
    subscriptions.confirm(last);
    assert!(subscriptions.is_complete());
}

#[test]
fn a_refused_name_does_not_take_its_neighbours_with_it() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, 0..5);
    let mut refused = None;
    let mut batches = VecDeque::from(sent(&mut subscriptions));
    while let Some(batch) = batches.pop_front() {
        if batch.names.iter().any(|name| &**name == "3") {
            let outcome = subscriptions.refuse(batch, "NOPERM no");
            if let Outcome::Refused { key, error } = outcome {
                refused = Some((key.name, error));
            }
        } else {
            subscriptions.confirm(batch);
        }
        batches.extend(sent(&mut subscriptions));
    }
    assert_eq!(refused, Some(("3".into(), "NOPERM no".into())));
    assert_eq!(subscriptions.counts().confirmed, 4);
    // The owner may try again, and so does the next connection.
    subscribe(&mut subscriptions, [3]);
    only(&mut subscriptions, &["SUBSCRIBE", "3"]);
}

#[test]
fn each_name_of_a_sharded_batch_has_its_own_reply() {
    let mut subscriptions = connected();
    for name in ["a", "b", "c", "d"] {
        subscriptions.subscribe(SubscriptionKind::Shard, Priority::Room, name.into());
    }
    let batch = only(&mut subscriptions, &["SSUBSCRIBE", "a", "b", "c", "d"]);
    let replies = [
        None,
        Some("MOVED 1 h:1".into()),
        Some("NOPERM no".into()),
        // The reply to the last one is missing.
    ];
    let outcomes = subscriptions.settle_each(batch, replies);
    let key = Key {
        kind: SubscriptionKind::Shard,
        name: "c".into(),
    };
    let error = "NOPERM no".into();
    let refused = Outcome::Refused { key, error };
    assert_eq!(outcomes, [Outcome::Moved, refused, Outcome::Moved]);
    assert!(subscriptions.is_confirmed(SubscriptionKind::Shard, "a"));
    // A slot that moves later ends the subscriptions of its names.
    assert_eq!(subscriptions.ended(b"a"), Outcome::Moved);
    assert_eq!(subscriptions.ended(b"a"), Outcome::Noted);
    assert_eq!(subscriptions.ended(b"unknown"), Outcome::Noted);
    let mut refused = subscriptions.ask_again();
    refused.sort();
    let all: Vec<Arc<str>> = ["a", "b", "d"].map(Arc::from).into();
    assert_eq!(refused, all);
    subscriptions.retry();
    assert_eq!(sent(&mut subscriptions)[0].names.len(), 4);
}

#[test]
fn a_sharded_channel_ends_when_its_server_gives_the_slot_away_or_confirms() {
    let mut subscriptions = connected();
    let kind = SubscriptionKind::Shard;
    subscriptions.subscribe(kind, Priority::Room, "a".into());
    let batch = only(&mut subscriptions, &["SSUBSCRIBE", "a"]);
    subscriptions.settle_each(batch, [None]);
    subscriptions.unsubscribe(kind, "a");
    let batch = only(&mut subscriptions, &["SUNSUBSCRIBE", "a"]);
    assert_eq!(subscriptions.ended(b"a"), Outcome::Noted);
    assert_eq!(
        subscriptions.settle_each(batch, [Some("MOVED 1 h:1".into())]),
        []
    );
    assert!(subscriptions.entries.is_empty());
}

#[test]
fn names_are_confirmed_when_all_of_them_are_on_one_connection() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, [0]);
    subscriptions.subscribe(CHANNEL, Priority::Control, "1".into());
    let names: [Arc<str>; 2] = ["1".into(), "0".into()];
    let mut progress = Progress::default();
    for _ in 0..2 {
        subscriptions.lost();
        subscriptions.connected();
        let first = subscriptions.confirmed(CHANNEL, &names, &mut progress);
        assert_eq!((first, progress.settled), (None, 0));
        let control = only(&mut subscriptions, &["SUBSCRIBE", "1"]);
        subscriptions.confirm(control);
        let second = subscriptions.confirmed(CHANNEL, &names, &mut progress);
        assert_eq!((second, progress.settled), (None, 1));
    }
    let confirmed = |subscriptions: &Subscriptions| {
        subscriptions.confirmed(CHANNEL, &names, &mut Progress::default())
    };
    let room = only(&mut subscriptions, &["SUBSCRIBE", "0"]);
    subscriptions.confirm(room);
    assert_eq!(confirmed(&subscriptions), Some(Ok(())));
    subscriptions.unsubscribe(CHANNEL, "0");
    assert_eq!(confirmed(&subscriptions), None);
    let room = only(&mut subscriptions, &["UNSUBSCRIBE", "0"]);
    subscriptions.confirm(room);
    assert_eq!(confirmed(&subscriptions), Some(Ok(())));
    subscriptions.close();
    let closed = Some(Err(ConfirmError::Closed));
    assert_eq!(confirmed(&subscriptions), closed);
}

#[test]
fn a_refused_name_is_an_error_until_redis_allows_it() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, [0]);
    let names: [Arc<str>; 1] = ["0".into()];
    let confirmed = |subscriptions: &Subscriptions| {
        subscriptions.confirmed(CHANNEL, &names, &mut Progress::default())
    };
    let refused = Some(Err(ConfirmError::Refused("NOPERM no".into())));
    for is_new in [true, false] {
        let batch = only(&mut subscriptions, &["SUBSCRIBE", "0"]);
        let outcome = subscriptions.refuse(batch, "NOPERM no");
        assert_eq!(matches!(outcome, Outcome::Refused { .. }), is_new);
        assert_eq!(confirmed(&subscriptions), refused);
        subscriptions.retry();
        assert_eq!(confirmed(&subscriptions), refused);
    }
    assert_eq!(subscriptions.counts().refused, 1);
    let batch = only(&mut subscriptions, &["SUBSCRIBE", "0"]);
    subscriptions.confirm(batch);
    assert_eq!(confirmed(&subscriptions), Some(Ok(())));
    assert_eq!(
        (subscriptions.refusal(), subscriptions.counts().refused),
        (None, 0)
    );
}

#[test]
fn a_closed_subscriber_ignores_replies_and_connections() {
    let replies: [fn(&mut Subscriptions, Batch); 3] = [
        |subscriptions, batch| subscriptions.confirm(batch),
        |subscriptions, batch| {
            subscriptions.refuse(batch, "NOPERM no");
        },
        |subscriptions, batch| {
            subscriptions.settle_each(batch, [None]);
        },
    ];
    for reply in replies {
        let mut subscriptions = connected();
        subscribe(&mut subscriptions, [1]);
        let batch = only(&mut subscriptions, &["SUBSCRIBE", "1"]);
        subscriptions.close();
        reply(&mut subscriptions, batch);
        subscriptions.connected();
        assert_eq!(sent(&mut subscriptions), []);
        assert_eq!(subscriptions.counts().confirmed, 0);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Subscribe(u8),
    Unsubscribe(u8),
    Send,
    Confirm,
    Refuse,
    Lose,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..12).prop_map(Step::Subscribe),
        6 => (0u8..12).prop_map(Step::Unsubscribe),
        4 => Just(Step::Send),
        6 => Just(Step::Confirm),
        2 => Just(Step::Refuse),
        1 => Just(Step::Lose),
    ]
}

/// A Redis that replies to one batch at a time.
#[derive(Default)]
struct Model {
    subscribed: HashSet<Arc<str>>,
    unconfirmed: VecDeque<Batch>,
}

impl Model {
    fn take(&mut self, subscriptions: &mut Subscriptions) {
        self.unconfirmed.extend(sent(subscriptions));
    }

    fn confirm(&mut self, subscriptions: &mut Subscriptions) -> bool {
        let Some(batch) = self.unconfirmed.pop_front() else {
            return false;
        };
        for name in &batch.names {
            if batch.subscribes {
                assert!(self.subscribed.insert(Arc::clone(name)), "{name} twice");
            } else {
                assert!(self.subscribed.remove(name), "{name} was not subscribed");
            }
        }
        subscriptions.confirm(batch);
        true
    }

    /// Redis may refuse a subscription, and nothing else.
    fn refuse(&mut self, subscriptions: &mut Subscriptions) {
        let next = self.unconfirmed.pop_front_if(|batch| batch.subscribes);
        if let Some(batch) = next {
            subscriptions.refuse(batch, "NOPERM no");
        }
    }
}

proptest! {
    #[test]
    fn in_the_end_redis_has_what_is_wanted(
        steps in proptest::collection::vec(any_step(), 0..120),
    ) {
        let mut subscriptions = connected();
        let mut wanted: HashSet<Arc<str>> = HashSet::new();
        let mut redis = Model::default();
        for step in steps {
            match step {
                Step::Subscribe(name) => {
                    wanted.insert(name.to_string().into());
                    subscribe(&mut subscriptions, [usize::from(name)]);
                }
                Step::Unsubscribe(name) => {
                    wanted.remove(&*name.to_string());
                    subscriptions.unsubscribe(CHANNEL, &name.to_string());
                }
                Step::Send => redis.take(&mut subscriptions),
                Step::Confirm => {
                    redis.confirm(&mut subscriptions);
                }
                Step::Refuse => redis.refuse(&mut subscriptions),
                Step::Lose => {
                    redis = Model::default();
                    subscriptions.lost();
                    subscriptions.connected();
                }
            }
            prop_assert!(subscriptions.in_flight <= WINDOW);
            prop_assert_eq!(subscriptions.in_flight, redis.unconfirmed.len());
            prop_assert_eq!(subscriptions.counts().desired, wanted.len());
        }
        loop {
            subscriptions.retry();
            redis.take(&mut subscriptions);
            if !redis.confirm(&mut subscriptions) {
                break;
            }
        }
        prop_assert_eq!(&redis.subscribed, &wanted);
        prop_assert_eq!(subscriptions.entries.len(), wanted.len());
        prop_assert_eq!(subscriptions.counts().confirmed, wanted.len());
        prop_assert_eq!(queued(&subscriptions), 0);
        prop_assert!(subscriptions.is_complete());
    }
}
