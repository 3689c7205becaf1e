//! Sharded pub/sub, on one server and on a cluster whose slots move.

use std::{sync::Arc, time::Duration};

use redis::Value;
use roomcast_adapter::subscriber::{Priority, Subscriber, SubscriberConfig, SubscriberState};
use roomcast_emitter::redis::{Endpoint, Reply};
use roomcast_protocol::channel::slot;
use tokio::runtime::Runtime;

use crate::{
    recorder::{Recorder, gaps, runtime},
    server::{Client, DEADLINE, Prober, Server, wait_until},
};

/// Three primaries with a third of the slots each.
struct Cluster {
    servers: Vec<Server>,
}

impl Cluster {
    fn start() -> Self {
        let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "3000"];
        let servers: Vec<_> = (0..3).map(|_| Server::start(&options)).collect();
        let bounds = [0, 5461, 10_923, 16_384];
        for (i, server) in servers.iter().enumerate() {
            let (first, last) = (bounds[i].to_string(), (bounds[i + 1] - 1).to_string());
            let mut client = server.client();
            client.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()]);
            client.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
        }
        let mut first = servers[0].client();
        for server in &servers[1..] {
            let bus = server_bus_port(server);
            let port = server.port.to_string();
            first.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        let cluster = Self { servers };
        wait_until("the cluster serves", || {
            cluster.servers.iter().all(|server| {
                let info = server.client().command(&["CLUSTER", "INFO"]);
                let info = info.text().unwrap();
                info.contains("cluster_state:ok") && info.contains("cluster_size:3")
            })
        });
        cluster
    }

    fn url(&self) -> String {
        let hosts: Vec<_> = self
            .servers
            .iter()
            .map(|server| format!("127.0.0.1:{}", server.port))
            .collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    fn probers(&self) -> Vec<(u16, Prober)> {
        let firsts = [0, 5461, 10_923];
        let servers = self.servers.iter().zip(firsts);
        let probers = servers.map(|(server, first)| (first, Prober::new(server.port, "SPUBLISH")));
        probers.collect()
    }

    /// The client of the server that serves the channel.
    fn client_of(&self, channel: &str) -> Client {
        let slot = i64::from(slot(channel));
        let answer = self.servers[0].client().command(&["CLUSTER", "SLOTS"]);
        let owner = answer.list().unwrap().iter().find_map(|range| {
            let range = range.list().unwrap();
            let (first, last) = (range[0].integer().unwrap(), range[1].integer().unwrap());
            (first..=last)
                .contains(&slot)
                .then(|| range[2].list().unwrap()[1].integer().unwrap())
        });
        Client::connect(u16::try_from(owner.unwrap()).unwrap())
    }

    fn publish(&self, channel: &str, payload: &str) -> i64 {
        let answer = self
            .client_of(channel)
            .command(&["SPUBLISH", channel, payload]);
        answer.integer().unwrap()
    }

    /// Gives a slot from one server to another, as a reshard does.
    fn move_slot(&self, slot: u16, from: usize, to: usize) {
        let id = |server: &Server| {
            let id = server.client().command(&["CLUSTER", "MYID"]);
            id.text().unwrap().to_owned()
        };
        let slot = slot.to_string();
        let (from, to) = (&self.servers[from], &self.servers[to]);
        let (from_id, to_id) = (id(from), id(to));
        to.client()
            .command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
        from.client()
            .command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
        to.client()
            .command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        from.client()
            .command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
}

fn server_bus_port(server: &Server) -> String {
    let answer = server.client().command(&["CONFIG", "GET", "cluster-port"]);
    let Value::Array(pair) = answer else {
        panic!("{answer:?}")
    };
    pair[1].text().unwrap().to_owned()
}

struct Links {
    recorder: Recorder,
    subscriber: Subscriber,
    runtime: Runtime,
}

impl Links {
    /// Probes are published by a server of the cluster that is asked for each.
    fn start(url: &str, probers: Vec<(u16, Prober)>) -> Self {
        Self::start_with(url, probers, |wanted| {
            let mut names = (0..).map(|n| format!("probe#{n}#"));
            names.find(|name| slot(name) == wanted).unwrap()
        })
    }

    fn start_with(url: &str, probers: Vec<(u16, Prober)>, probe: fn(u16) -> String) -> Self {
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
        let runtime = runtime();
        let recorder = Recorder::default();
        let endpoint = Endpoint::new(url.parse().unwrap()).needing_sharded();
        let guard = runtime.enter();
        let subscriber = Subscriber::start(endpoint, config, recorder.clone());
        drop(guard);
        Self {
            recorder,
            subscriber,
            runtime,
        }
    }

    fn of_cluster(cluster: &Cluster) -> Self {
        Self::start(&cluster.url(), cluster.probers())
    }

    #[track_caller]
    fn confirm(&self, names: &[Arc<str>]) {
        let confirmed = self.subscriber.confirm(names.to_vec(), DEADLINE);
        assert_eq!(self.runtime.block_on(confirmed), Ok(()));
    }

    #[track_caller]
    fn wait_until_healthy(&self) {
        wait_until("all links are healthy", || {
            matches!(self.subscriber.state(), SubscriberState::Up { .. })
        });
    }
}

fn rooms(count: usize) -> Vec<Arc<str>> {
    (0..count)
        .map(|n| format!("socket.io#/#room-{n}#").into())
        .collect()
}

#[test]
fn a_single_server_has_sharded_channels_too() {
    let server = Server::start(&[]);
    let links = Links::start(
        &server.url(),
        vec![(0, Prober::new(server.port, "SPUBLISH"))],
    );
    let names = rooms(2_000);
    links
        .subscriber
        .subscribe(Priority::Room, names.iter().cloned());
    links.confirm(&names);
    links.wait_until_healthy();
    let published = server.client().command(&["SPUBLISH", &names[7], "1"]);
    assert_eq!(published.integer(), Some(1));
    links.recorder.wait_for_message(&names[7], "1");
    links.subscriber.unsubscribe(&names);
    links.confirm(&names);
    let left = server.client().command(&["PUBSUB", "SHARDCHANNELS"]);
    assert_eq!(left.list().unwrap().len(), 1, "{left:?}");
}

#[test]
fn each_channel_is_subscribed_where_its_slot_is() {
    let cluster = Cluster::start();
    let links = Links::of_cluster(&cluster);
    let names = rooms(1_000);
    links
        .subscriber
        .subscribe(Priority::Room, names.iter().cloned());
    links.confirm(&names);
    links.wait_until_healthy();
    for name in names.iter().step_by(50) {
        assert_eq!(cluster.publish(name, "1"), 1);
        links.recorder.wait_for_message(name, "1");
    }
    assert_eq!(
        links.subscriber.counts().desired,
        1_003,
        "each link has a probe"
    );
    assert!(names.iter().all(|name| links.subscriber.is_confirmed(name)));
    assert_eq!(gaps(&links.recorder.records()).count(), 0);
    links.runtime.block_on(links.subscriber.close());
    wait_until("nobody is subscribed", || {
        cluster.publish(&names[0], "2") == 0
    });
}

#[test]
fn channels_follow_a_slot_that_moves() {
    let cluster = Cluster::start();
    let links = Links::of_cluster(&cluster);
    let names = rooms(500);
    links
        .subscriber
        .subscribe(Priority::Room, names.iter().cloned());
    links.confirm(&names);
    links.wait_until_healthy();
    let name = names
        .iter()
        .find(|name| (1..5_000).contains(&slot(name)))
        .unwrap();
    cluster.move_slot(slot(name), 0, 1);
    let (from, to) = links.recorder.wait_for_gap();
    assert!(from < to);
    wait_until("all know of the move", || {
        cluster.publish(name, "moved") == 1
    });
    links.recorder.wait_for_message(name, "moved");
    let other = names
        .iter()
        .find(|other| slot(other) != slot(name))
        .unwrap();
    assert_eq!(cluster.publish(other, "stays"), 1);
    links.recorder.wait_for_message(other, "stays");
    links.wait_until_healthy();
}

#[test]
fn a_probe_takes_another_slot_when_its_own_moves() {
    let cluster = Cluster::start();
    let links = Links::of_cluster(&cluster);
    let names = rooms(100);
    links
        .subscriber
        .subscribe(Priority::Room, names.iter().cloned());
    links.confirm(&names);
    links.wait_until_healthy();
    // The last slot of a server is that of its probe.
    cluster.move_slot(5_460, 0, 1);
    links.recorder.wait_for_gap();
    links.wait_until_healthy();
    links.confirm(&names);
    for name in names.iter().step_by(10) {
        assert_eq!(cluster.publish(name, "2"), 1);
        links.recorder.wait_for_message(name, "2");
    }
}

#[test]
fn names_of_one_slot_need_one_connection() {
    let cluster = Cluster::start();
    let probe = |_| "{app}probe#".to_owned();
    let links = Links::start_with(&cluster.url(), cluster.probers(), probe);
    let names: Vec<Arc<str>> = (0..100)
        .map(|n| format!("{{app}}#/#room-{n}#").into())
        .collect();
    links
        .subscriber
        .subscribe(Priority::Room, names.iter().cloned());
    links.confirm(&names);
    links.wait_until_healthy();
    assert_eq!(cluster.publish(&names[99], "1"), 1);
    links.recorder.wait_for_message(&names[99], "1");
    assert_eq!(links.subscriber.counts().desired, 101, "one probe");
    assert_eq!(links.subscriber.counts().batches, 2, "names share a batch");
}
