//! What arrives.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use roomcast_adapter::subscriber::{
    ConfirmError, DownReason, Priority, Sink, Subscriber, SubscriberConfig, SubscriberEvent,
    SubscriberState,
};
use roomcast_emitter::redis::Endpoint;
use tokio::{runtime::Builder, task};

use crate::{
    recorder::{Link, Record, messages},
    redis::Redis,
    server::{Client, DEADLINE, wait_until},
};

#[test]
fn messages_arrive_in_the_order_in_which_they_were_published() {
    let server = Redis::start();
    let link = Link::of(&server);
    link.subscribe_confirmed(["a", "b"]);
    let pattern: Arc<str> = Arc::from("p?");
    assert!(link.subscriber.subscribe_pattern(Arc::clone(&pattern)));
    let confirmed = link.subscriber.confirm_pattern(pattern, DEADLINE);
    assert_eq!(link.runtime.block_on(confirmed), Ok(()));

    let mut client = Client::connect(&server);
    let channels = ["a", "p1", "b", "p2", "a"];
    for number in 0..5_000 {
        let channel = channels[number % channels.len()];
        assert_eq!(client.publish(channel, &number.to_string()), 1);
    }
    assert_eq!(client.publish("c", "nobody wants it"), 0);
    link.recorder.wait_for_message("a", "4999");
    let records = link.recorder.records();
    let numbers = records.iter().filter_map(|record| match record {
        Record::Message { payload, .. } => Some(String::from_utf8_lossy(payload).into_owned()),
        Record::Event(_) => None,
    });
    let expected: Vec<_> = (0..5_000).map(|number| number.to_string()).collect();
    assert_eq!(numbers.collect::<Vec<_>>(), expected);
}

#[test]
fn long_messages_arrive_whole_among_short_ones() {
    let server = Redis::start();
    let link = Link::of(&server);
    link.subscribe_confirmed(["a"]);
    let mut client = Client::connect(&server);
    let long: Vec<_> = [1 << 16, 3 << 20, 65_500, 1]
        .map(|length| "x\r\n".repeat(length))
        .into();
    for payload in &long {
        client.publish("a", "short");
        client.publish("a", payload);
    }
    client.publish("a", "end");
    link.recorder.wait_for_message("a", "end");
    let records = link.recorder.records();
    let lengths: Vec<_> = messages(&records, "a").map(<[u8]>::len).collect();
    let expected: Vec<_> = long
        .iter()
        .flat_map(|payload| [5, payload.len()])
        .chain([3])
        .collect();
    assert_eq!(lengths, expected);
}

/// Takes its time for each message, and counts them.
#[derive(Clone, Default)]
struct SlowSink(Arc<AtomicUsize>);

impl Sink for SlowSink {
    fn message(&self, _: &[u8], _: &[u8]) {
        thread::sleep(Duration::from_micros(500));
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn event(&self, _: SubscriberEvent) {}
}

#[test]
fn other_tasks_run_while_many_messages_are_handled() {
    const MESSAGES: usize = 2_000;
    let server = Redis::start();
    let config = SubscriberConfig::new(Arc::new(|_| "probe".into()), Arc::new(|_, _| false));
    let endpoint = Endpoint::new(server.url().parse().unwrap());
    let sink = SlowSink::default();
    let mut client = Client::connect(&server);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let turns = runtime.block_on(async {
        let subscriber = Subscriber::start(endpoint, config, sink.clone());
        let channel: Arc<str> = "a".into();
        subscriber.subscribe(Priority::Room, [Arc::clone(&channel)]);
        let confirmed = subscriber.confirm(vec![channel], DEADLINE).await;
        assert_eq!(confirmed, Ok(()));
        for _ in 0..MESSAGES {
            assert_eq!(client.publish("a", "x"), 1);
        }
        let mut turns = 0;
        while sink.0.load(Ordering::Relaxed) < MESSAGES {
            turns += 1;
            task::yield_now().await;
        }
        turns
    });
    // What fits into one read of the connection, a few hundred messages, is handled in one turn.
    assert!(turns >= 5, "{turns} turns");
}

#[test]
fn probes_do_not_reach_the_sink_and_measure_the_round_trip() {
    let server = Redis::start();
    let link = Link::of(&server);
    link.subscribe_confirmed(["a"]);
    link.wait_until_healthy();
    let SubscriberState::Up { probe_round_trip } = link.subscriber.state() else {
        panic!("the subscriber is healthy")
    };
    assert!(probe_round_trip < Duration::from_secs(5));
    Client::connect(&server).publish("a", "end");
    link.recorder.wait_for_message("a", "end");
    let records = link.recorder.records();
    let messages = records
        .iter()
        .filter(|record| matches!(record, Record::Message { .. }));
    assert_eq!(messages.count(), 1);
}

#[test]
fn a_closed_subscriber_leaves_nothing_behind() {
    let server = Redis::start();
    let link = Link::of(&server);
    link.subscribe_confirmed(["a"]);
    server.suspend();
    link.subscribe(["b"]);
    let waiting = link.subscriber.confirm(vec!["b".into()], DEADLINE);
    link.runtime.block_on(link.subscriber.close());
    assert_eq!(link.runtime.block_on(waiting), Err(ConfirmError::Closed));
    let later = link.subscriber.confirm(vec!["a".into()], DEADLINE);
    assert_eq!(link.runtime.block_on(later), Err(ConfirmError::Closed));
    let stopped = SubscriberState::Down {
        reason: DownReason::Stopped,
    };
    assert_eq!(link.subscriber.state(), stopped);
    server.resume();
    let mut client = Client::connect(&server);
    wait_until("nobody is subscribed", || client.subscribers("a") == 0);
}
