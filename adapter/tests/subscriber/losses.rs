//! How connections are lost and come back, and which messages are lost with them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use roomcast_adapter::subscriber::{DownReason, SubscriberConfig, SubscriberEvent};
use roomcast_emitter::redis::Reply;

use crate::{
    proxy::{Mode, Proxy},
    recorder::{Link, events, gaps, messages, runtime},
    redis::Redis,
    server::{Client, wait_until},
};

const PROBE_TIMEOUT: Duration = Duration::from_millis(400);

const PROBE_LATE: DownReason = DownReason::ProbeLate {
    after: PROBE_TIMEOUT,
};

fn quick(config: &mut SubscriberConfig) {
    config.probe_timeout = PROBE_TIMEOUT;
}

#[test]
fn the_gap_encloses_what_was_lost() {
    let server = Redis::start();
    let side = runtime();
    let proxy = Proxy::start(&side, server.port);
    let link = Link::start(&proxy.url(), server.port, |_| ()).with_a();
    let mut client = Client::connect(&server);
    let mut published = Vec::new();
    let mut publish = |count| {
        for _ in 0..count {
            let before = SystemTime::now();
            client.publish("a", &published.len().to_string());
            published.push((before, SystemTime::now()));
        }
    };
    publish(50);
    proxy.set(Mode::Refusing);
    link.wait_until_down();
    publish(50);
    proxy.set(Mode::Forwarding);
    let (from, to) = link.recorder.wait_for_gap();
    publish(50);
    let last = published.len() - 1;
    link.recorder.wait_for_message("a", &last.to_string());

    let records = link.recorder.records();
    let number = |payload: &[u8]| String::from_utf8_lossy(payload).parse::<usize>().unwrap();
    let arrived: Vec<_> = messages(&records, "a").map(number).collect();
    assert!(arrived.is_sorted());
    let lost: Vec<_> = (0..=last)
        .filter(|number| !arrived.contains(number))
        .collect();
    assert!(lost.len() >= 50, "{} were lost", lost.len());
    for number in lost {
        let (before, after) = published[number];
        assert!(
            from <= after && before <= to,
            "{number} was published outside of the gap"
        );
    }
    assert_eq!(gaps(&records).count(), 1);
}

#[test]
fn the_first_connection_is_no_gap() {
    let mut server = Redis::start();
    server.kill();
    let link = Link::of(&server);
    link.subscribe(["a"]);
    assert!(matches!(
        link.wait_until_down(),
        DownReason::Starting | DownReason::Unreachable(_)
    ));
    server.restart();
    link.wait_until_healthy();
    Client::connect(&server).publish("a", "1");
    link.recorder.wait_for_message("a", "1");
    assert_eq!(gaps(&link.recorder.records()).count(), 0);
}

#[test]
fn a_server_that_died_and_came_back_empty_is_subscribed_again() {
    let mut server = Redis::start();
    let link = Link::of(&server);
    link.subscribe_confirmed(["a", "b"]);
    link.wait_until_healthy();
    server.kill();
    link.recorder.wait_for_down();
    link.subscribe(["c"]);
    server.restart();
    let (resubscribed, _) = link.recorder.wait_for_up(2);
    assert_eq!(resubscribed, 4, "the probe's channel is one of them");
    let mut client = Client::connect(&server);
    for channel in ["a", "b", "c"] {
        assert_eq!(client.publish(channel, "again"), 1);
        link.recorder.wait_for_message(channel, "again");
    }
    link.wait_until_healthy();
    assert_eq!(gaps(&link.recorder.records()).count(), 1);
}

#[test]
fn a_server_that_hangs_is_given_up_and_found_again() {
    let server = Redis::start();
    let link = Link::start(&server.url(), server.port, quick).with_a();
    let mut client = Client::connect(&server);
    client.command(&["CLIENT", "PAUSE", "1500", "ALL"]);
    assert_eq!(link.recorder.wait_for_down(), PROBE_LATE);
    link.recorder.wait_for_gap();
    link.wait_until_healthy();
    client.publish("a", "1");
    link.recorder.wait_for_message("a", "1");
}

#[test]
fn a_half_open_connection_is_noticed() {
    let server = Redis::start();
    let side = runtime();
    let proxy = Proxy::start(&side, server.port);
    let link = Link::start(&proxy.url(), server.port, quick).with_a();
    proxy.set(Mode::Dead);
    let mut client = Client::connect(&server);
    assert_eq!(client.publish("a", "lost"), 1, "Redis knows nothing of it");
    assert_eq!(link.recorder.wait_for_down(), PROBE_LATE);
    proxy.set(Mode::Forwarding);
    link.recorder.wait_for_gap();
    assert_eq!(client.publish("a", "2"), 1, "the old connection is ended");
    link.recorder.wait_for_message("a", "2");
    assert!(!messages(&link.recorder.records(), "a").any(|payload| payload == b"lost"));
}

#[test]
fn a_primary_that_is_demoted_is_left_for_the_one_that_its_name_leads_to() {
    let (old, new) = (Redis::start(), Redis::start());
    let (mut old_client, mut new_client) = (Client::connect(&old), Client::connect(&new));
    let follow = |port: u16| ["REPLICAOF".into(), "127.0.0.1".into(), port.to_string()];
    new_client.command(&follow(old.port).each_ref().map(String::as_str));
    wait_until("the replica follows", || {
        let info = new_client.command(&["INFO", "replication"]);
        info.text().unwrap().contains("master_link_status:up")
    });
    let side = runtime();
    let name = Proxy::start(&side, old.port);
    // Probes come back as long as their publisher has not noticed the failover either.
    let link = Link::start(&name.url(), old.port, |_| ()).with_a();
    new_client.command(&["REPLICAOF", "NO", "ONE"]);
    old_client.command(&follow(new.port).each_ref().map(String::as_str));
    name.point_to(new.port);
    assert_eq!(link.recorder.wait_for_down(), DownReason::Demoted);
    link.recorder.wait_for_gap();
    wait_until("the new primary has the subscription", || {
        new_client.publish("a", "1") == 1
    });
    link.recorder.wait_for_message("a", "1");
}

#[test]
fn a_connection_is_not_given_up_while_nobody_can_send_probes() {
    let server = Redis::start();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let link = Link::start(&server.url(), server.port, |config| {
        config.probe_interval = Duration::from_millis(5);
        config.probe_timeout = Duration::from_millis(20);
        config.send_probe = Arc::new(move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
            false
        });
    });
    link.subscribe_confirmed(["a"]);
    wait_until("probes are asked for", || {
        asked.load(Ordering::Relaxed) > 50
    });
    assert_eq!(link.connections(), 1);
    assert_eq!(
        link.wait_until_down(),
        DownReason::Subscribing,
        "nothing has been proved"
    );
    Client::connect(&server).publish("a", "1");
    link.recorder.wait_for_message("a", "1");
}

#[test]
fn a_sink_that_was_blocked_reads_what_waits_before_the_connection_is_judged() {
    let server = Redis::start();
    let link = Link::start(&server.url(), server.port, quick).with_a();
    link.recorder.block("a");
    let mut client = Client::connect(&server);
    client.publish("a", "1");
    link.recorder.wait_until_blocked();
    let stopped = Instant::now();
    wait_until("many timeouts pass", || {
        stopped.elapsed() > Duration::from_secs(3)
    });
    client.publish("a", "2");
    link.recorder.unblock();
    link.recorder.wait_for_message("a", "2");
    link.wait_until_healthy();
    client.publish("a", "3");
    link.recorder.wait_for_message("a", "3");
    assert_eq!(link.connections(), 1);
    assert_eq!(gaps(&link.recorder.records()).count(), 0);
}

#[test]
fn a_sink_that_stalls_makes_redis_wait_and_cut_and_nothing_queues_here() {
    let server = Redis::with(&["--client-output-buffer-limit", "pubsub 1mb 0 0"]);
    let link = Link::of(&server).with_a();
    link.recorder.block("a");
    let mut client = Client::connect(&server);
    let payload = "x".repeat(100_000);
    let mut published = 0;
    wait_until("Redis cuts", || {
        published += 1;
        client.publish("a", &payload) == 0
    });
    link.recorder.unblock();
    assert_eq!(link.recorder.wait_for_down(), DownReason::Lost);
    link.recorder.wait_for_gap();
    client.publish("a", "end");
    link.recorder.wait_for_message("a", "end");
    // The megabyte that waited in Redis is lost. A queue in this process would have taken it, and
    // everything else, for as long as the sink stalled.
    let received = messages(&link.recorder.records(), "a").count() - 1;
    assert!(received + 10 <= published, "{received} of {published}");
}

#[test]
fn every_lost_connection_is_reported_once() {
    let server = Redis::start();
    let link = Link::of(&server);
    link.subscribe_confirmed(["a"]);
    link.recorder.wait_for_up(1);
    let mut client = Client::connect(&server);
    for n in 2..6 {
        assert_eq!(client.kill_subscribers(), 1);
        link.recorder.wait_for_up(n);
    }
    // The last one may be reported behind a message.
    link.recorder.wait("four gaps", |records| {
        (gaps(records).count() >= 4).then_some(())
    });
    Client::connect(&server).publish("a", "end");
    link.recorder.wait_for_message("a", "end");
    let records = link.recorder.records();
    let names: Vec<_> = events(&records)
        .map(|event| match event {
            SubscriberEvent::Up { .. } => "up",
            SubscriberEvent::Down { .. } => "down",
            SubscriberEvent::Gap { .. } => "gap",
            SubscriberEvent::Refused { .. } => "refused",
        })
        .collect();
    let expected = [&["up"][..], &["down", "up", "gap"].repeat(4)].concat();
    assert_eq!(names, expected);
}
