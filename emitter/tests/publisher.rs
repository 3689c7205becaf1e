//! Publishing to real servers that are slow, full, killed, exchanged or spread over a cluster.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{sync::Arc, time::Duration};

use redis::Value;
use roomcast_emitter::redis::{
    ConnectError, Endpoint, PublishError, Publisher, PublisherConfig, PublisherState, Reply, Route,
};
use support::{
    Certificates, Cluster, Directory, Listener, PATIENCE, Redis, assert_matches, free_port,
};
use tokio::time::timeout;

fn endpoint(url: &str) -> Endpoint {
    Endpoint::new(url.parse().unwrap())
}

async fn connect(url: &str) -> Publisher {
    connect_with(url, PublisherConfig::default()).await
}

async fn connect_with(url: &str, config: PublisherConfig) -> Publisher {
    Publisher::connect(endpoint(url), config).await.unwrap()
}

async fn until(publisher: &Publisher, what: impl Fn(&PublisherState) -> bool) -> PublisherState {
    let mut state = publisher.state();
    let reached = timeout(PATIENCE, state.wait_for(|state| what(state))).await;
    reached.expect("the state is reached").unwrap().clone()
}

async fn until_up(publisher: &Publisher) {
    until(publisher, |state| *state == PublisherState::Up).await;
}

/// Publishes until it is taken by so many.
async fn until_taken(publisher: &Publisher, channel: &str, sharded: bool, receivers: u64) {
    let publishing = async {
        while publisher.publish(channel, b"again", sharded).await != Ok(receivers) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let taken = timeout(PATIENCE, publishing).await;
    taken.expect("the channel is heard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_in_order_and_tell_how_many_took_them() {
    let redis = Redis::start();
    let mut listeners = [(); 2].map(|()| Listener::start(&redis, "SUBSCRIBE", "room"));
    let publisher = connect(&redis.url()).await;
    assert_eq!(publisher.publish("elsewhere", b"x", false).await, Ok(0));
    // Without waiting for each, too.
    let publishing: Vec<_> = (0..1000)
        .map(|number| publisher.publish("room", number.to_string().as_bytes(), false))
        .collect();
    for publishing in publishing {
        assert_eq!(publishing.await, Ok(2));
    }
    for listener in &mut listeners {
        for number in 0..1000 {
            assert_eq!(listener.next(), number.to_string());
        }
    }
    // A single server takes sharded channels, too.
    let _listener = Listener::start(&redis, "SSUBSCRIBE", "room");
    assert_eq!(publisher.publish("room", b"x", true).await, Ok(1));
}

/// Many callers at a time, each of whom must get its own reply.
async fn echo(publisher: Arc<Publisher>) {
    let callers = (0..64).map(|caller| {
        let publisher = publisher.clone();
        tokio::spawn(async move {
            for number in 0..50 {
                // Long ones are read in pieces.
                let text = format!("{caller} {number} ").repeat(1 + number * 100);
                let reply = publisher.command(&["ECHO", &text], Route::Any).await;
                assert_eq!(reply, Ok(vec![Value::BulkString(text.into())]));
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert_eq!(
        publisher
            .stats()
            .queued_bytes
            .load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caller_gets_its_own_reply() {
    let redis = Redis::start();
    echo(Arc::new(connect(&redis.url()).await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caller_gets_its_own_reply_over_tls_and_unix_sockets() {
    let certificates = Certificates::make();
    let directory = Directory::new();
    let (ca, socket) = (certificates.file("ca.pem"), directory.file("sock"));
    let (_redis, port) = certificates.redis(&["--tls-auth-clients", "no", "--unixsocket", &socket]);
    for url in [
        format!("rediss://127.0.0.1:{port}?ca={ca}"),
        format!("unix://{socket}"),
    ] {
        echo(Arc::new(connect(&url).await)).await;
    }
}

#[tokio::test]
async fn a_lone_message_waits_for_nobody_on_one_thread() {
    let redis = Redis::start();
    let publisher = connect(&redis.url()).await;
    for _ in 0..100 {
        assert_eq!(publisher.publish("room", b"x", false).await, Ok(0));
    }
}

#[tokio::test]
async fn an_error_in_the_url_is_returned_at_the_start() {
    let redis = Redis::with(&["--requirepass", "secret"]);
    let config = PublisherConfig::default;
    let error = Publisher::connect(endpoint(&redis.url()), config())
        .await
        .unwrap_err();
    assert_matches!(error, ConnectError::PasswordRequired { .. });
    // Whoever starts without waiting sees it in the state and in each error.
    let publisher = Publisher::start(endpoint(&redis.url()), config());
    let why = |state: &PublisherState| match state {
        PublisherState::Down(reason) => reason.contains("requires a password"),
        PublisherState::Up => false,
    };
    until(&publisher, why).await;
    let error = publisher.publish("room", b"x", false).await.unwrap_err();
    assert!(matches!(&error, PublishError::Unavailable(reason) if reason.contains("password")));
}

#[tokio::test]
async fn a_command_without_the_right_is_refused() {
    let redis = Redis::start();
    redis.command(&["ACL", "SETUSER", "bob", "on", ">b", "+publish", "&mine"]);
    let publisher = connect(&format!("redis://bob:b@{}", redis.address())).await;
    assert_eq!(publisher.publish("mine", b"x", false).await, Ok(0));
    let refused = publisher.publish("other", b"x", false).await.unwrap_err();
    assert!(matches!(&refused, PublishError::Refused(reason) if reason.starts_with("NOPERM")));
    let refused = publisher.command(&["TIME"], Route::Any).await.unwrap_err();
    assert!(matches!(refused, PublishError::Refused(_)));
    assert_eq!(publisher.publish("mine", b"x", false).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_keeps_what_it_has() {
    let redis = Redis::start();
    let config = PublisherConfig {
        max_queue_bytes: 100_000,
        reply_timeout: PATIENCE,
        ..PublisherConfig::default()
    };
    let publisher = connect_with(&redis.url(), config).await;
    let mut listener = Listener::start(&redis, "SUBSCRIBE", "room");
    redis.suspend();
    let mut queued = Vec::new();
    let queued_bytes = loop {
        let payload = format!("{:01000}", queued.len());
        let mut publishing = publisher.publish("room", payload.as_bytes(), false);
        // The server says nothing, so only a refusal is there at once.
        let refused = tokio::select! {
            biased;
            refused = &mut publishing => Some(refused),
            () = std::future::ready(()) => None,
        };
        match refused {
            None => queued.push((payload, publishing)),
            Some(Err(PublishError::Overloaded { queued_bytes })) => break queued_bytes,
            Some(other) => panic!("{other:?}"),
        }
    };
    assert!((98_000..=100_000).contains(&queued_bytes), "{queued_bytes}");
    assert!((90..100).contains(&queued.len()), "{}", queued.len());
    redis.resume();
    for (payload, publishing) in queued {
        assert_eq!(publishing.await, Ok(1));
        assert_eq!(listener.next(), payload);
    }
    assert_eq!(publisher.publish("room", b"x", false).await, Ok(1));
    let huge = publisher.publish("room", &[0; 100_000], false).await;
    assert_matches!(huge, Err(PublishError::Refused(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_is_left() {
    let redis = Redis::start();
    let config = PublisherConfig {
        reply_timeout: Duration::from_millis(800),
        ..PublisherConfig::default()
    };
    let publisher = connect_with(&redis.url(), config).await;
    redis.command(&["CLIENT", "PAUSE", "1000000", "WRITE"]);
    let (first, second) = tokio::join!(
        publisher.publish("room", b"1", false),
        publisher.publish("room", b"2", false)
    );
    for result in [first, second] {
        assert_matches!(result, Err(PublishError::Unconfirmed(_)));
    }
    redis.command(&["CLIENT", "UNPAUSE"]);
    until_up(&publisher).await;
    assert_eq!(publisher.publish("room", b"3", false).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_killed_is_found_again() {
    let mut redis = Redis::start();
    let publisher = connect(&redis.url()).await;
    for _ in 0..3 {
        redis.suspend();
        let under_way = publisher.publish("room", b"x", false);
        redis.kill();
        let lost = under_way.await.unwrap_err();
        assert_matches!(lost, PublishError::Unconfirmed(_));
        until(&publisher, |state| *state != PublisherState::Up).await;
        let refused = publisher.publish("room", b"x", false).await.unwrap_err();
        assert_matches!(refused, PublishError::Unavailable(_));
        redis.restart();
        until_up(&publisher).await;
        assert_eq!(publisher.publish("room", b"x", false).await, Ok(0));
    }
    let stats = publisher.stats();
    assert_eq!(
        stats.reconnects.load(std::sync::atomic::Ordering::Relaxed),
        3
    );
    assert_eq!(
        stats
            .queued_bytes
            .load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_before_the_close_are_still_executed() {
    let redis = Redis::start();
    let mut listener = Listener::start(&redis, "SUBSCRIBE", "room");
    let publisher = connect(&redis.url()).await;
    let payload = "x".repeat(10_000);
    let publishing: Vec<_> = (0..500)
        .map(|_| publisher.publish("room", payload.as_bytes(), false))
        .collect();
    publisher.close().await;
    for publishing in publishing {
        assert_eq!(publishing.await, Ok(1));
        assert_eq!(listener.next(), payload);
    }
    let late = publisher.publish("room", b"x", false).await;
    assert_matches!(late, Err(PublishError::Unavailable(_)));
    // Once more does no harm.
    publisher.close().await;
}

#[tokio::test]
async fn a_publisher_without_a_server_can_be_closed() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let publisher = Publisher::start(endpoint(&url), PublisherConfig::default());
    timeout(PATIENCE, publisher.close()).await.unwrap();
    until(&publisher, |state| *state != PublisherState::Up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_learns_that_the_publisher_is_gone() {
    let redis = Redis::start();
    let publisher = connect(&redis.url()).await;
    redis.suspend();
    let publishing = publisher.publish("room", b"x", false);
    drop(publisher);
    let lost = timeout(PATIENCE, publishing).await.unwrap();
    // Whether it was handed to the connection before the publisher was dropped is chance.
    assert_matches!(
        lost,
        Err(PublishError::Unconfirmed(_) | PublishError::Unavailable(_))
    );
    redis.resume();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_leads_to_the_new_primary() {
    let primary = Redis::start();
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
    let sentinel = Redis::sentinel(primary.port, "");
    let url = format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port);
    let publisher = connect(&url).await;
    let _before = Listener::start(&primary, "SUBSCRIBE", "before");
    assert_eq!(publisher.publish("before", b"x", false).await, Ok(1));
    // Until the Sentinel knows the replica, there is nobody to take over.
    support::until("a failover", || {
        let reply = sentinel.try_command(&["SENTINEL", "FAILOVER", "mymaster"])?;
        reply.starts_with("+OK").then_some(())
    });
    support::until("another primary", || {
        // Whoever is connected is thrown out on the way.
        let role = replica.try_command(&["ROLE"])?;
        role.contains("master").then_some(())
    });
    // What is heard at the old primary, which follows the new one, does not count.
    let _after = Listener::start(&replica, "SUBSCRIBE", "only there");
    until_taken(&publisher, "only there", false, 1).await;
    assert!(publisher.is_up());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_cut_off_is_left() {
    let primary = Redis::start();
    let other = Redis::start();
    let sentinel = Redis::sentinel(primary.port, "");
    let url = format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port);
    let publisher = connect(&url).await;
    // The Sentinel names another one, and the old one does not hear of it.
    sentinel.command(&["SENTINEL", "REMOVE", "mymaster"]);
    let port = other.port.to_string();
    sentinel.command(&["SENTINEL", "MONITOR", "mymaster", "127.0.0.1", &port, "1"]);
    let _listener = Listener::start(&other, "SUBSCRIBE", "room");
    until_taken(&publisher, "room", false, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_becomes_a_replica_is_left_until_it_is_a_primary_again() {
    let (server, other) = (Redis::start(), Redis::start());
    let publisher = connect(&server.url()).await;
    let demote = ["REPLICAOF", "127.0.0.1", &other.port.to_string()];
    // It keeps the connection, and goes on taking messages.
    server.command(&demote);
    let why = |state: &PublisherState| match state {
        PublisherState::Down(reason) => reason.contains("is not a primary"),
        PublisherState::Up => false,
    };
    until(&publisher, why).await;
    server.command(&["REPLICAOF", "NO", "ONE"]);
    until_up(&publisher).await;

    // A write shows it at once.
    server.command(&demote);
    let set = publisher
        .command(&["SET", "key", "value"], Route::Any)
        .await;
    assert_matches!(set, Err(PublishError::Unavailable(_)));
    until(&publisher, |state| *state != PublisherState::Up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classic_channels_reach_every_node_of_a_cluster() {
    let mut cluster = Cluster::start(3);
    let publisher = connect(&cluster.url()).await;
    let mut listeners: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| Listener::start(node, "SUBSCRIBE", "room"))
        .collect();
    // The number is that of the one node's listeners.
    assert_eq!(publisher.publish("room", b"hello", false).await, Ok(1));
    for listener in &mut listeners {
        assert_eq!(listener.next(), "hello");
    }
    let command = ["PUBSUB", "NUMSUB", "room"];
    let replies = publisher
        .command(&command, Route::AllServers)
        .await
        .unwrap();
    let counts: Vec<_> = replies
        .iter()
        .map(|reply| reply.list().unwrap()[1].integer())
        .collect();
    assert_eq!(counts, [Some(1); 3]);
    // A key is found on its node.
    for key in ["a", "b", "c", "d", "e", "f"] {
        let set = publisher.command(&["SET", key, key], Route::Key(key)).await;
        assert_eq!(set.unwrap()[0].text(), Some("OK"));
    }

    // Without the node that it used, another one takes over.
    let name = "name=roomcast-publisher";
    let used = |node: &Redis| node.command(&["CLIENT", "LIST"]).matches(name).count() > 1;
    let used = cluster
        .nodes
        .iter()
        .position(used)
        .expect("one node is used for publishing");
    cluster.nodes[used].kill();
    until_taken(&publisher, "room", false, 1).await;
    let replies = publisher
        .command(&command, Route::AllServers)
        .await
        .unwrap();
    assert_eq!(replies.len(), 2);
}

async fn connect_sharded(cluster: &Cluster) -> Publisher {
    let endpoint = endpoint(&cluster.url()).needing_sharded();
    let publisher = Publisher::connect(endpoint, PublisherConfig::default()).await;
    publisher.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sharded_channels_are_followed_to_where_their_slots_move() {
    let cluster = Cluster::start(3);
    let publisher = connect_sharded(&cluster).await;
    let channels = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut used = [false; 3];
    for channel in channels {
        let owner = cluster.owner(channel);
        used[owner] = true;
        let mut listener = Listener::start(&cluster.nodes[owner], "SSUBSCRIBE", channel);
        assert_eq!(publisher.publish(channel, b"x", true).await, Ok(1));
        assert_eq!(listener.next(), "x");
    }
    assert_eq!(used, [true; 3], "the channels are spread");

    let from = cluster.owner("room");
    let to = (from + 1) % 3;
    cluster.move_slot(&cluster.slot("room"), from, to);
    let mut listener = Listener::start(&cluster.nodes[to], "SSUBSCRIBE", "room");
    // The very first message after the move arrives, at once and once.
    assert_eq!(publisher.publish("room", b"1", true).await, Ok(1));
    assert_eq!(publisher.publish("room", b"2", true).await, Ok(1));
    assert_eq!((listener.next(), listener.next()), ("1".into(), "2".into()));
    for channel in channels {
        assert_eq!(publisher.publish(channel, b"x", true).await, Ok(0));
    }
    publisher.close().await;
    assert!(!publisher.is_up());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_future_is_dropped_follows_its_slot_too() {
    let cluster = Cluster::start(3);
    let publisher = connect_sharded(&cluster).await;
    let from = cluster.owner("room");
    let to = (from + 1) % 3;
    cluster.move_slot(&cluster.slot("room"), from, to);
    let mut listener = Listener::start(&cluster.nodes[to], "SSUBSCRIBE", "room");
    drop(publisher.publish("room", b"1", true));
    assert_eq!(listener.next(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_found_while_their_slots_move() {
    let cluster = Cluster::start(3);
    let publisher = connect_sharded(&cluster).await;
    let from = cluster.owner("key");
    let to = (from + 1) % 3;
    let slot = cluster.slot("key");
    let (source, target) = (&cluster.nodes[from], &cluster.nodes[to]);
    target.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &cluster.id(from)]);
    source.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &cluster.id(to)]);
    let add = |score: &'static str| {
        publisher.command(&["ZADD", "key", score, "member"], Route::Key("key"))
    };
    assert_eq!(add("1").await, Ok(vec![Value::Int(1)]));
    assert_eq!(add("2").await, Ok(vec![Value::Int(0)]));
    cluster.move_slot(&slot, from, to);
    assert_eq!(add("3").await, Ok(vec![Value::Int(0)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_up_again_once_all_its_nodes_are() {
    let mut cluster = Cluster::start(3);
    let publisher = connect_sharded(&cluster).await;
    let lost = cluster.owner("room");
    cluster.nodes[lost].kill();
    until(&publisher, |state| *state != PublisherState::Up).await;
    let refused = publisher.publish("room", b"x", true).await.unwrap_err();
    assert_matches!(refused, PublishError::Unavailable(_));
    cluster.nodes[lost].restart();
    cluster.until_ok();
    until_up(&publisher).await;
    assert_eq!(publisher.publish("room", b"x", true).await, Ok(0));
}
