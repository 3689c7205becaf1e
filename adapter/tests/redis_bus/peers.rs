//! Where nodes are reached, as they state it beside their leases.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use roomcast_adapter::{Bus, Health, NodeId, Peer, RedisBus, RedisConfig};
use tokio::time::{sleep, timeout};

use crate::{
    deployment::{Deployment, connect},
    node::{DEADLINE, eventually},
};

/// A node that states this address.
async fn stating(deployment: &Deployment, address: &str) -> (std::sync::Arc<RedisBus>, NodeId) {
    let config = RedisConfig {
        address: Some(address.to_owned()),
        ..deployment.config.clone()
    };
    connect(&config).await
}

fn tag(node: &NodeId) -> &str {
    &node.as_str()[..4]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_finds_those_that_state_an_address_at_once_and_until_they_leave() {
    let deployment = Deployment::start();
    let (one, one_id) = stating(&deployment, "10.0.0.1:1").await;
    let (two, two_id) = stating(&deployment, "[::1]:2").await;
    let (silent, silent_id) = connect(&deployment.config).await;
    // They joined after the last reading of the first one, or may have.
    one.read_peers().await;
    let peer = Peer {
        node: two_id.clone(),
        address: "[::1]:2".into(),
    };
    assert_eq!(one.find_peer(tag(&two_id)), Some(peer));
    assert_eq!(one.find_peer(tag(&one_id)), None, "itself");
    assert_eq!(one.find_peer(tag(&silent_id)), None, "it states none");
    silent.read_peers().await;
    assert_eq!(silent.find_peer(tag(&two_id)), None, "it does not relay");
    // Addresses are no settings in which nodes could disagree.
    for bus in [&one, &two, &silent] {
        assert_eq!(bus.health(), Health::Flowing);
    }
    assert_eq!(one.nodes().len(), 3);
    two.close(&two_id).await;
    one.read_peers().await;
    assert_eq!(one.find_peer(tag(&two_id)), None);
    assert_eq!(one.nodes().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ends_without_a_goodbye_is_found_until_its_lease_is_over() {
    let deployment = Deployment::start();
    let (one, _) = stating(&deployment, "10.0.0.1:1").await;
    let (two, two_id) = stating(&deployment, "10.0.0.2:2").await;
    one.read_peers().await;
    assert!(one.find_peer(tag(&two_id)).is_some());
    drop(two);
    let gone = async {
        while one.find_peer(tag(&two_id)).is_some() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, gone).await.expect("its lease ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_found_while_redis_refuses_to_renew_leases() {
    let deployment = Deployment::start();
    let (one, _) = stating(&deployment, "10.0.0.1:1").await;
    let (two, two_id) = stating(&deployment, "10.0.0.2:2").await;
    one.read_peers().await;
    let server = &deployment.server;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let leases = deployment.channels().leases();
    eventually("all leases have lapsed", || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = now.as_millis().to_string();
        server.command(&["ZCOUNT", &leases, &now, "+inf"]) == ":0\r\n"
    })
    .await;
    one.read_peers().await;
    assert!(one.find_peer(tag(&two_id)).is_some());
    assert!(one.nodes().contains(&two_id));
    drop(two);
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    let gone = async {
        while one.find_peer(tag(&two_id)).is_some() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, gone).await.expect("it is not kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_look_for_a_node_share_readings() {
    let deployment = Deployment::start();
    let (one, _) = stating(&deployment, "10.0.0.1:1").await;
    let readings = (0..1000).map(|_| one.read_peers());
    let all = futures_util::future::join_all(readings);
    timeout(DEADLINE, all)
        .await
        .expect("they do not wait for each other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_have_the_time_of_redis() {
    let deployment = Deployment::start();
    let (one, _) = connect(&deployment.config).await;
    let (two, _) = connect(&deployment.config).await;
    let (first, second) = (one.time().unwrap(), two.time().unwrap());
    assert!(
        first.abs_diff(second) < Duration::from_secs(10),
        "{first:?} {second:?}"
    );
    let later = one.time().unwrap();
    assert!(later >= first);
}
