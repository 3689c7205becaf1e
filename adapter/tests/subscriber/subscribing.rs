//! Which commands Redis gets, and in which order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use roomcast_adapter::subscriber::{ConfirmError, Priority, SubscriberEvent};
use roomcast_emitter::redis::Reply;

use crate::{
    recorder::{Link, events},
    redis::{Redis, assert_matches},
    server::{Client, DEADLINE, wait_until},
};

#[test]
fn a_hundred_thousand_channels_come_back_while_others_publish() {
    let server = Redis::start();
    let link = Link::of(&server);
    let names: Vec<Arc<str>> = (0..100_000)
        .map(|n| format!("socket.io#/#room-{n:012}#").into())
        .collect();
    link.subscribe_confirmed(names.iter().cloned());
    assert_eq!(link.subscriber.counts().confirmed, 100_001);

    let published = Arc::new(AtomicUsize::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (published, is_over) = (Arc::clone(&published), Arc::clone(&is_over));
        let mut client = Client::connect(&server);
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                client.publish("unheard", "x");
                published.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let mut client = Client::connect(&server);
    let commands = client.calls("subscribe");
    let before = published.load(Ordering::Relaxed);
    assert_eq!(client.kill_subscribers(), 1);
    let (resubscribed, _) = link.recorder.wait_for_up(2);
    let during = published.load(Ordering::Relaxed) - before;
    is_over.store(true, Ordering::Relaxed);
    publisher.join().unwrap();

    assert_eq!(resubscribed, 100_001);
    // Redis serves others between commands, and these are small.
    let commands = client.calls("subscribe") - commands;
    assert_eq!(commands, 1 + 100_000_u64.div_ceil(512));
    assert!(during > 0);
    for name in [&names[0], &names[99_999]] {
        assert_eq!(client.publish(name, "again"), 1);
        link.recorder.wait_for_message(name, "again");
    }
    assert_eq!(link.subscriber.counts().confirmed, 100_001);
}

#[test]
fn short_lived_names_cost_few_commands_and_leave_nothing_behind() {
    let server = Redis::start();
    let link = Link::of(&server);
    link.subscribe_confirmed(["stays"]);
    for n in 0..100_000 {
        let name: Arc<str> = format!("room-{n}").into();
        link.subscribe([Arc::clone(&name)]);
        link.subscriber.unsubscribe([name]);
    }
    let names: Vec<_> = (0..100_000).map(|n| format!("room-{n}").into()).collect();
    link.confirm(&names);
    let mut client = Client::connect(&server);
    let channels = client.command(&["PUBSUB", "CHANNELS"]);
    assert_eq!(channels.list().unwrap().len(), 2, "{channels:?}");
    let commands = client.calls("subscribe") + client.calls("unsubscribe");
    assert!(commands < 20_000, "{commands} commands");
    assert_eq!(link.subscriber.counts().desired, 2);
}

#[test]
fn names_that_live_shortly_are_batched() {
    let server = Redis::start();
    let link = Link::of(&server);
    link.subscribe_confirmed(["stays"]);
    let names: Vec<Arc<str>> = (0..100_000).map(|n| format!("room-{n}").into()).collect();
    for some in names.chunks(100) {
        link.subscribe(some.iter().cloned());
    }
    for some in names.chunks(100) {
        link.subscriber.unsubscribe(some);
    }
    link.confirm(&names);
    let mut client = Client::connect(&server);
    assert_eq!(
        client
            .command(&["PUBSUB", "CHANNELS"])
            .list()
            .unwrap()
            .len(),
        2
    );
    let commands = client.calls("subscribe") + client.calls("unsubscribe");
    assert!(commands < 2_000, "{commands} commands");
    assert_eq!(link.subscriber.counts().batches, commands);
}

#[test]
fn what_matters_most_is_subscribed_first() {
    let server = Redis::start();
    let link = Link::of(&server);
    let names: Vec<Arc<str>> = (0..2_000).map(|n| format!("room-{n}").into()).collect();
    link.subscribe(names.iter().cloned());
    link.subscriber.subscribe_pattern("p*".into());
    link.subscriber
        .subscribe(Priority::Control, ["base".into(), "request".into()]);
    link.recorder.wait_for_up(1);
    link.confirm(&names);

    let mut monitor = Client::connect(&server);
    monitor.command(&["MONITOR"]);
    Client::connect(&server).kill_subscribers();
    link.recorder.wait_for_up(2);
    let mut first = Vec::new();
    while first.len() < 4 {
        let line = monitor.answer();
        let line = line.text().unwrap().to_lowercase();
        let Some(at) = line.find("subscribe\"") else {
            continue;
        };
        first.push(line[at..].chars().take(40).collect::<String>());
    }
    assert!(first[0].contains("probe"), "{first:?}");
    assert!(
        first[1].contains("base") || first[1].contains("request"),
        "{first:?}"
    );
    assert!(first[2].contains("p*"), "{first:?}");
    assert!(first[3].contains("room-"), "{first:?}");
}

#[test]
fn a_subscription_is_confirmed_when_redis_says_so_and_not_before() {
    let server = Redis::start();
    let link = Link::of(&server);
    link.subscribe_confirmed(["a"]);
    server.suspend();
    link.subscribe(["b"]);
    let names: Vec<Arc<str>> = vec!["a".into(), "b".into()];
    let early = link
        .subscriber
        .confirm(names.clone(), Duration::from_millis(100));
    assert_eq!(link.runtime.block_on(early), Err(ConfirmError::TimedOut));
    assert!(!link.subscriber.is_confirmed("b"));
    let waiting = link.subscriber.confirm(names, DEADLINE);
    server.resume();
    assert_eq!(link.runtime.block_on(waiting), Ok(()));
    assert_eq!(Client::connect(&server).subscribers("b"), 1);
    assert!(link.subscriber.is_confirmed("b"));
}

/// The `redis` crate gives up after 500 ms by default, and the emitter's connections after 5 s.
#[test]
fn a_confirmation_may_take_as_long_as_the_probes_allow() {
    let server = Redis::start();
    let link = Link::start(&server.url(), server.port, |config| {
        config.probe_timeout = DEADLINE;
    });
    link.subscribe_confirmed(["a"]);
    server.suspend();
    link.subscribe(["b"]);
    thread::sleep(Duration::from_millis(5_500));
    server.resume();
    link.confirm(&["b".into()]);
    assert_eq!(link.connections(), 1);
}

#[test]
fn the_end_of_a_subscription_can_be_waited_for() {
    let server = Redis::start();
    let link = Link::of(&server);
    link.subscribe_confirmed(["a"]);
    link.subscriber.unsubscribe(["a"]);
    link.confirm(&["a".into()]);
    assert_eq!(Client::connect(&server).subscribers("a"), 0);
}

/// The URL of a user with these rules about channels.
fn user(server: &Redis, rules: &[&str]) -> String {
    let user = ["ACL", "SETUSER", "bob", "on", ">secret", "+@all", "~*"];
    server.command(&[&user[..], rules].concat());
    format!("redis://bob:secret@{}", server.address())
}

#[test]
fn a_channel_that_the_user_may_not_hear_does_not_harm_others() {
    let server = Redis::start();
    let url = user(&server, &["resetchannels", "&probe*", "&room-*"]);
    let link = Link::start(&url, server.port, |_| ());
    let rooms: Vec<Arc<str>> = (0..100).map(|n| format!("room-{n}").into()).collect();
    link.subscribe(rooms.iter().cloned().chain(["forbidden".into()]));
    let refused = link.recorder.wait("Refused", |records| {
        events(records).find_map(|event| match event {
            SubscriberEvent::Refused { name, error } => Some((Arc::clone(name), error.clone())),
            _ => None,
        })
    });
    assert_eq!(&*refused.0, "forbidden");
    assert!(refused.1.starts_with("NOPERM"), "{}", refused.1);
    link.confirm(&rooms);
    Client::connect(&server).publish("room-7", "1");
    link.recorder.wait_for_message("room-7", "1");
}

#[test]
fn a_refused_channel_is_asked_for_again_and_reported_until_redis_allows_it() {
    let server = Redis::start();
    let url = user(&server, &["resetchannels", "&probe*"]);
    let mut client = Client::connect(&server);
    let link = Link::start(&url, server.port, |_| ());
    link.wait_until_healthy();
    link.subscribe(["room"]);
    for _ in 0..2 {
        let confirmed = link.subscriber.confirm(vec!["room".into()], DEADLINE);
        let confirmed = link.runtime.block_on(confirmed);
        assert_matches!(confirmed, Err(ConfirmError::Refused(error)) if error.starts_with("NOPERM"));
    }
    assert_eq!(link.subscriber.counts().refused, 1);
    assert_eq!(&*link.wait_until_refused(), "room");
    link.recorder.wait_for_gap();
    client.command(&["ACL", "SETUSER", "bob", "&room"]);
    wait_until("the channel is subscribed", || {
        link.subscriber.is_confirmed("room")
    });
    link.wait_until_healthy();
    assert_eq!(link.subscriber.counts().refused, 0);
    client.publish("room", "1");
    link.recorder.wait_for_message("room", "1");
    assert_eq!(link.connections(), 1);
    let refusals = link.recorder.records();
    let refusals = events(&refusals)
        .filter(|event| matches!(event, SubscriberEvent::Refused { .. }))
        .count();
    assert_eq!(refusals, 1, "further refusals are not reported");
}

#[test]
fn rights_that_are_taken_away_and_given_back_leave_nothing_deaf() {
    let server = Redis::start();
    let url = user(&server, &["allchannels"]);
    let mut client = Client::connect(&server);
    let link = Link::start(&url, server.port, |_| ());
    link.subscribe_confirmed(["a", "b"]);
    link.wait_until_healthy();
    client.command(&["ACL", "SETUSER", "bob", "resetchannels", "&a"]);
    link.wait_until_refused();
    client.publish("a", "1");
    link.recorder.wait_for_message("a", "1");
    client.command(&["ACL", "SETUSER", "bob", "allchannels"]);
    link.wait_until_healthy();
    client.publish("b", "2");
    link.recorder.wait_for_message("b", "2");
}

#[test]
fn a_connection_without_a_probe_channel_is_reported_and_delivers_all_the_same() {
    let server = Redis::start();
    let url = user(&server, &["resetchannels", "&room"]);
    let link = Link::start(&url, server.port, |config| {
        config.probe_timeout = Duration::from_millis(100);
    });
    link.subscribe_confirmed(["room"]);
    link.wait_until_refused();
    Client::connect(&server).publish("room", "1");
    link.recorder.wait_for_message("room", "1");
}
