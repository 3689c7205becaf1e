//! Sharded pub/sub, on one server and on a cluster whose slots move.

use std::{sync::Arc, time::Duration};

use roomcast_adapter::subscriber::SubscriberConfig;
use roomcast_emitter::redis::{Endpoint, Reply};
use roomcast_protocol::channel::slot;

use crate::{
    recorder::{Link, gaps},
    redis::{Cluster, Redis},
    server::{Client, Prober, wait_until},
};

/// A server of each third of the slots is asked for probes.
fn probers(cluster: &Cluster) -> Vec<(u16, Prober)> {
    let servers = cluster.nodes.iter().zip([0, 5461, 10_923]);
    let probers = servers.map(|(server, first)| (first, Prober::new(server.port, "SPUBLISH")));
    probers.collect()
}

/// How many receive what is published.
fn publish(cluster: &Cluster, channel: &str, payload: &str) -> usize {
    let publish = |server: &Redis| server.try_command(&["SPUBLISH", channel, payload]);
    let replies = cluster.nodes.iter().filter_map(publish);
    // The servers that do not have the slot refuse.
    let mut counts = replies.filter_map(|reply| reply.strip_prefix(':')?.trim_end().parse().ok());
    counts.next().expect("every slot has an owner")
}

/// Probes are published by a server that is asked for each.
fn link(url: &str, probers: Vec<(u16, Prober)>, probe: fn(u16) -> String) -> Link {
    let probe_channel = Arc::new(move |wanted| -> Arc<str> { probe(wanted).into() });
    // Where the probe's slot is served first, each knows its channels.
    let send_probe = Arc::new(move |channel: &str, number| {
        let slot = slot(channel);
        let prober = probers.iter().rfind(|(first, _)| *first <= slot);
        prober.is_some_and(|(_, prober)| prober.send(channel, number))
    });
    let mut config = SubscriberConfig::new(probe_channel, send_probe);
    config.is_sharded = true;
    config.probe_interval = Duration::from_millis(50);
    Link::launch(
        Endpoint::new(url.parse().unwrap()).needing_sharded(),
        config,
    )
}

fn link_to(cluster: &Cluster) -> Link {
    link(&cluster.url(), probers(cluster), probe)
}

fn probe(wanted: u16) -> String {
    let mut names = (0..).map(|n| format!("probe#{n}#"));
    names.find(|name| slot(name) == wanted).unwrap()
}

fn rooms(count: usize) -> Vec<Arc<str>> {
    (0..count)
        .map(|n| format!("socket.io#/#room-{n}#").into())
        .collect()
}

#[test]
fn a_single_server_has_sharded_channels_too() {
    let server = Redis::start();
    let prober = Prober::new(server.port, "SPUBLISH");
    let link = link(&server.url(), vec![(0, prober)], probe);
    let names = rooms(2_000);
    link.subscribe_confirmed(names.iter().cloned());
    link.wait_until_healthy();
    let published = Client::connect(&server).command(&["SPUBLISH", &names[7], "1"]);
    assert_eq!(published.integer(), Some(1));
    link.recorder.wait_for_message(&names[7], "1");
    link.subscriber.unsubscribe(&names);
    link.confirm(&names);
    let left = Client::connect(&server).command(&["PUBSUB", "SHARDCHANNELS"]);
    assert_eq!(left.list().unwrap().len(), 1, "{left:?}");
}

#[test]
fn each_channel_is_subscribed_where_its_slot_is() {
    let cluster = Cluster::start(3);
    let link = link_to(&cluster);
    let names = rooms(1_000);
    link.subscribe_confirmed(names.iter().cloned());
    link.wait_until_healthy();
    for name in names.iter().step_by(50) {
        assert_eq!(publish(&cluster, name, "1"), 1);
        link.recorder.wait_for_message(name, "1");
    }
    assert_eq!(
        link.subscriber.counts().desired,
        1_003,
        "each link has a probe"
    );
    assert!(names.iter().all(|name| link.subscriber.is_confirmed(name)));
    assert_eq!(gaps(&link.recorder.records()).count(), 0);
    link.runtime.block_on(link.subscriber.close());
    wait_until("nobody is subscribed", || {
        publish(&cluster, &names[0], "2") == 0
    });
}

#[test]
fn channels_follow_a_slot_that_moves() {
    let cluster = Cluster::start(3);
    let link = link_to(&cluster);
    let names = rooms(500);
    link.subscribe_confirmed(names.iter().cloned());
    link.wait_until_healthy();
    let name = names
        .iter()
        .find(|name| (1..5_000).contains(&slot(name)))
        .unwrap();
    cluster.move_slot(&slot(name).to_string(), 0, 1);
    let (from, to) = link.recorder.wait_for_gap();
    assert!(from < to);
    wait_until("all know of the move", || {
        publish(&cluster, name, "moved") == 1
    });
    link.recorder.wait_for_message(name, "moved");
    let other = names
        .iter()
        .find(|other| slot(other) != slot(name))
        .unwrap();
    assert_eq!(publish(&cluster, other, "stays"), 1);
    link.recorder.wait_for_message(other, "stays");
    link.wait_until_healthy();
}

#[test]
fn a_probe_takes_another_slot_when_its_own_moves() {
    let cluster = Cluster::start(3);
    let link = link_to(&cluster);
    let names = rooms(100);
    link.subscribe_confirmed(names.iter().cloned());
    link.wait_until_healthy();
    // The last slot of a server is that of its probe.
    cluster.move_slot("5460", 0, 1);
    link.recorder.wait_for_gap();
    link.wait_until_healthy();
    link.confirm(&names);
    for name in names.iter().step_by(10) {
        assert_eq!(publish(&cluster, name, "2"), 1);
        link.recorder.wait_for_message(name, "2");
    }
}

#[test]
fn names_of_one_slot_need_one_connection() {
    let cluster = Cluster::start(3);
    let probe = |_| "{app}probe#".to_owned();
    let link = link(&cluster.url(), probers(&cluster), probe);
    let names: Vec<Arc<str>> = (0..100)
        .map(|n| format!("{{app}}#/#room-{n}#").into())
        .collect();
    link.subscribe_confirmed(names.iter().cloned());
    link.wait_until_healthy();
    assert_eq!(publish(&cluster, &names[99], "1"), 1);
    link.recorder.wait_for_message(&names[99], "1");
    assert_eq!(link.subscriber.counts().desired, 101, "one probe");
    assert_eq!(link.subscriber.counts().batches, 2, "names share a batch");
}
