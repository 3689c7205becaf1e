//! What is wanted ends up subscribed, whatever Redis answers when.

use std::collections::{HashSet, VecDeque};

use proptest::prelude::*;
use roomcast_emitter::resp::{Limits, Parsed, Reply, parse};

use super::*;

const CHANNEL: SubscriptionKind = SubscriptionKind::Channel;

fn connected() -> Subscriptions {
    let mut subscriptions = Subscriptions::new(None);
    subscriptions.connected();
    subscriptions
}

fn subscribe(subscriptions: &mut Subscriptions, names: impl IntoIterator<Item = usize>) {
    for name in names {
        subscriptions.subscribe(CHANNEL, Priority::Room, name.to_string().into());
    }
}

/// The commands that are written now, each as its words.
fn written(subscriptions: &mut Subscriptions) -> Vec<Vec<String>> {
    let mut out = Vec::new();
    subscriptions.write_commands(&mut out);
    let mut commands = Vec::new();
    let mut rest = &out[..];
    while !rest.is_empty() {
        let Parsed::Whole(Reply::Array(words), length) = parse(rest, &Limits::default()).unwrap()
        else {
            panic!("a command is a list");
        };
        let text = |word: &Reply<'_>| String::from_utf8(word.bytes().unwrap().to_vec()).unwrap();
        commands.push(words.iter().map(text).collect());
        rest = &rest[length..];
    }
    commands
}

fn confirm(subscriptions: &mut Subscriptions, command: &[String]) {
    for name in &command[1..] {
        let subscribes = !command[0].contains("UNSUB");
        subscriptions
            .confirm(CHANNEL, subscribes, name.as_bytes())
            .unwrap();
    }
}

#[test]
fn commands_have_at_most_512_names_and_8_are_unconfirmed() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, 0..10_000);
    let commands = written(&mut subscriptions);
    assert_eq!(commands.len(), WINDOW);
    assert!(commands.iter().all(|command| command.len() == BATCH + 1));
    assert!(written(&mut subscriptions).is_empty());
    confirm(&mut subscriptions, &commands[0]);
    assert_eq!(written(&mut subscriptions).len(), 1);
    assert_eq!(subscriptions.counts().confirmed, BATCH);
}

#[test]
fn a_subscribe_and_an_unsubscribe_of_one_tick_cancel_out() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, 0..3);
    subscriptions.unsubscribe(CHANNEL, "1");
    assert_eq!(written(&mut subscriptions), [["SUBSCRIBE", "0", "2"]]);
    assert_eq!(subscriptions.entries.len(), 2);
}

#[test]
fn names_that_come_and_go_unwritten_take_no_room() {
    let mut subscriptions = connected();
    for name in 0..100_000 {
        subscribe(&mut subscriptions, [name]);
        subscriptions.unsubscribe(CHANNEL, &name.to_string());
        assert!(
            subscriptions.queued() <= 2 * MAX_IDLE && subscriptions.entries.len() <= 2 * MAX_IDLE
        );
    }
    assert!(written(&mut subscriptions).is_empty());
    assert!(subscriptions.entries.is_empty());
}

#[test]
fn single_rooms_wait_for_company_while_something_is_unconfirmed() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, [0]);
    let first = written(&mut subscriptions);
    subscribe(&mut subscriptions, [1, 2]);
    assert!(written(&mut subscriptions).is_empty());
    subscriptions.subscribe(CHANNEL, Priority::Control, "control".into());
    assert_eq!(written(&mut subscriptions), [["SUBSCRIBE", "control"]]);
    confirm(&mut subscriptions, &first[0]);
    subscriptions.confirm(CHANNEL, true, b"control").unwrap();
    assert_eq!(written(&mut subscriptions), [["SUBSCRIBE", "1", "2"]]);
}

#[test]
fn a_name_has_one_unconfirmed_command_at_a_time() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, [0]);
    let first = written(&mut subscriptions);
    subscriptions.unsubscribe(CHANNEL, "0");
    assert!(written(&mut subscriptions).is_empty());
    confirm(&mut subscriptions, &first[0]);
    let second = written(&mut subscriptions);
    assert_eq!(second, [["UNSUBSCRIBE", "0"]]);
    confirm(&mut subscriptions, &second[0]);
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
    let commands = written(&mut subscriptions);
    let expected = [
        ["SUBSCRIBE", "probe"],
        ["SUBSCRIBE", "base"],
        ["PSUBSCRIBE", "p*"],
    ];
    assert_eq!(commands, expected);
    subscriptions.confirm(CHANNEL, true, b"probe").unwrap();
    subscriptions.confirm(CHANNEL, true, b"base").unwrap();
    subscriptions
        .confirm(SubscriptionKind::Pattern, true, b"p*")
        .unwrap();
    let rooms = written(&mut subscriptions);
    assert_eq!((rooms.len(), rooms[0].len()), (1, 3));
    assert!(!subscriptions.is_complete());
    // What is not wanted any more is not waited for.
    subscriptions
        .confirm(CHANNEL, true, rooms[0][1].as_bytes())
        .unwrap();
    subscriptions.unsubscribe(CHANNEL, &rooms[0][2]);
    assert!(!subscriptions.is_complete());
    subscriptions
        .confirm(CHANNEL, true, rooms[0][2].as_bytes())
        .unwrap();
    assert_eq!(written(&mut subscriptions), [["UNSUBSCRIBE", &rooms[0][2]]]);
    subscriptions
        .confirm(CHANNEL, false, rooms[0][2].as_bytes())
        .unwrap();
    assert!(subscriptions.is_complete());
}

#[test]
fn a_refused_name_does_not_take_its_neighbours_with_it() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, 0..5);
    let mut refused = None;
    let mut commands = VecDeque::from(written(&mut subscriptions));
    while let Some(command) = commands.pop_front() {
        if command.iter().any(|word| word == "3") {
            if let Outcome::Refused(key) = subscriptions.refuse("NOPERM no").unwrap() {
                refused = Some(key.name);
            }
        } else {
            confirm(&mut subscriptions, &command);
        }
        commands.extend(written(&mut subscriptions));
    }
    assert_eq!(refused.as_deref(), Some("3"));
    assert_eq!(subscriptions.counts().confirmed, 4);
    // The owner may try again, and so does the next connection.
    subscribe(&mut subscriptions, [3]);
    assert_eq!(written(&mut subscriptions), [["SUBSCRIBE", "3"]]);
}

#[test]
fn confirmations_that_nobody_waits_for_are_out_of_step() {
    let mut subscriptions = connected();
    assert_eq!(subscriptions.confirm(CHANNEL, true, b"0"), Err(OutOfStep));
    assert_eq!(subscriptions.refuse("ERR"), Err(OutOfStep));
    subscribe(&mut subscriptions, [0, 1]);
    written(&mut subscriptions);
    assert_eq!(subscriptions.confirm(CHANNEL, true, b"1"), Err(OutOfStep));
    assert_eq!(subscriptions.confirm(CHANNEL, false, b"0"), Err(OutOfStep));
}

#[test]
fn a_command_for_a_cluster_has_names_of_one_slot() {
    let mut subscriptions = Subscriptions::new(Some(|name| name.len() as u16));
    for name in ["aa", "b", "cc", "d", "eee"] {
        subscriptions.subscribe(SubscriptionKind::Shard, Priority::Room, name.into());
    }
    subscriptions.connected();
    let commands = written(&mut subscriptions);
    assert_eq!(commands.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 2]);
    let moved = subscriptions.refuse("MOVED 1 h:1");
    assert_eq!(moved, Ok(Outcome::Moved));
    for name in &commands[1][1..] {
        subscriptions
            .confirm(SubscriptionKind::Shard, true, name.as_bytes())
            .unwrap();
    }
    subscriptions
        .confirm(SubscriptionKind::Shard, true, b"eee")
        .unwrap();
    // A slot that moves later takes its names away unasked.
    let taken = subscriptions.confirm(SubscriptionKind::Shard, false, b"eee");
    assert_eq!(taken, Ok(Outcome::Moved));
    let mut refused = subscriptions.ask_again();
    refused.sort();
    assert_eq!(refused, [Arc::from("b"), "d".into(), "eee".into()]);
    assert_eq!(written(&mut subscriptions).len(), 2);
}

#[test]
fn who_waits_hears_when_all_names_are_confirmed_on_one_connection() {
    let mut subscriptions = connected();
    subscribe(&mut subscriptions, [0, 1]);
    let keys = || {
        ["0", "1"]
            .map(|name| Key {
                kind: CHANNEL,
                name: name.into(),
            })
            .to_vec()
    };
    let mut ticket = subscriptions.wait(keys()).unwrap().unwrap();
    written(&mut subscriptions);
    subscriptions.confirm(CHANNEL, true, b"0").unwrap();
    subscriptions.lost();
    subscriptions.connected();
    let commands = written(&mut subscriptions);
    subscriptions
        .confirm(CHANNEL, true, commands[0][1].as_bytes())
        .unwrap();
    assert!(ticket.done.try_recv().is_err());
    subscriptions
        .confirm(CHANNEL, true, commands[0][2].as_bytes())
        .unwrap();
    assert_eq!(ticket.done.try_recv(), Ok(Ok(())));
    assert!(subscriptions.wait(keys()).unwrap().is_none());
    subscriptions.unsubscribe(CHANNEL, "0");
    let mut ticket = subscriptions.wait(keys()).unwrap().unwrap();
    subscriptions.close();
    assert_eq!(ticket.done.try_recv(), Ok(Ok(())));
    assert!(subscriptions.wait(keys()).is_err());
}

#[derive(Debug, Clone)]
enum Step {
    Subscribe(u8),
    Unsubscribe(u8),
    Write,
    Answer,
    Lose,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..12).prop_map(Step::Subscribe),
        6 => (0u8..12).prop_map(Step::Unsubscribe),
        4 => Just(Step::Write),
        6 => Just(Step::Answer),
        1 => Just(Step::Lose),
    ]
}

/// A Redis that confirms name by name.
#[derive(Default)]
struct Model {
    subscribed: HashSet<String>,
    unconfirmed: VecDeque<(bool, String)>,
}

impl Model {
    fn take(&mut self, commands: Vec<Vec<String>>) {
        for command in commands {
            let subscribes = command[0] == "SUBSCRIBE";
            self.unconfirmed
                .extend(command[1..].iter().map(|name| (subscribes, name.clone())));
        }
    }

    fn answer(&mut self, subscriptions: &mut Subscriptions) -> bool {
        let Some((subscribes, name)) = self.unconfirmed.pop_front() else {
            return false;
        };
        if subscribes {
            assert!(self.subscribed.insert(name.clone()), "{name} twice");
        } else {
            assert!(self.subscribed.remove(&name), "{name} was not subscribed");
        }
        subscriptions
            .confirm(CHANNEL, subscribes, name.as_bytes())
            .unwrap();
        true
    }
}

proptest! {
    #[test]
    fn in_the_end_redis_has_what_is_wanted(
        steps in proptest::collection::vec(any_step(), 0..120),
    ) {
        let mut subscriptions = connected();
        let mut wanted = HashSet::new();
        let mut redis = Model::default();
        for step in steps {
            match step {
                Step::Subscribe(name) => {
                    wanted.insert(name.to_string());
                    subscribe(&mut subscriptions, [usize::from(name)]);
                }
                Step::Unsubscribe(name) => {
                    wanted.remove(&name.to_string());
                    subscriptions.unsubscribe(CHANNEL, &name.to_string());
                }
                Step::Write => redis.take(written(&mut subscriptions)),
                Step::Answer => {
                    redis.answer(&mut subscriptions);
                }
                Step::Lose => {
                    redis = Model::default();
                    subscriptions.lost();
                    subscriptions.connected();
                }
            }
            prop_assert!(subscriptions.in_flight.len() <= WINDOW);
            prop_assert_eq!(subscriptions.counts().desired, wanted.len());
        }
        loop {
            redis.take(written(&mut subscriptions));
            if !redis.answer(&mut subscriptions) {
                break;
            }
        }
        prop_assert_eq!(&redis.subscribed, &wanted);
        prop_assert_eq!(subscriptions.entries.len(), wanted.len());
        prop_assert_eq!(subscriptions.counts().confirmed, wanted.len());
        prop_assert_eq!((subscriptions.idle, subscriptions.queued()), (0, 0));
        prop_assert!(subscriptions.is_complete());
    }
}
