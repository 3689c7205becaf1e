//! Finding real servers and logging in to them, and the errors of those that do not fit.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
};

use roomcast_emitter::redis::{
    Address, ConnectError, Connection, Endpoint, Mode, Purpose, RESPONSE_TIMEOUT, Reply,
};
use support::{Certificates, Cluster, Redis, assert_matches, free_port, until};

async fn connect(url: &str) -> Result<Connection, ConnectError> {
    endpoint(url).connect(Purpose::Publisher, None).await
}

fn endpoint(url: &str) -> Endpoint {
    Endpoint::new(url.parse().unwrap())
}

async fn error(url: &str) -> ConnectError {
    connect(url).await.expect_err(url)
}

#[tokio::test]
async fn a_connection_is_ready_and_has_a_name() {
    let redis = Redis::start();
    let mut connection = connect(&redis.url()).await.unwrap();
    let pong = connection.command(&["PING"]).await.unwrap();
    assert_eq!(pong.text(), Some("PONG"));
    assert!(
        redis
            .command(&["CLIENT", "LIST"])
            .contains("name=roomcast-publisher")
    );
    let info = connection.info();
    assert_eq!((info.mode, info.is_primary), (Some(Mode::Standalone), true));
    assert!(!info.version.is_empty(), "{info:?}");
    assert_eq!(info.server, redis.address());
}

#[tokio::test]
async fn passwords_and_users_are_checked() {
    let redis = Redis::with(&["--requirepass", "secret"]);
    redis.command(&[
        "ACL",
        "SETUSER",
        "alice",
        "on",
        ">wonder/land",
        "+@all",
        "~*",
        "&*",
    ]);
    redis.command(&["ACL", "SETUSER", "bob", "on", ">b", "+publish", "&*"]);
    let at = |login: &str| format!("redis://{login}127.0.0.1:{}", redis.port);
    connect(&at(":secret@")).await.unwrap();
    connect(&at("default:secret@")).await.unwrap();
    connect(&at("alice:wonder%2Fland@")).await.unwrap();
    // A user without the right to name its connection may publish.
    let mut bob = connect(&at("bob:b@")).await.unwrap();
    let receivers = bob.command(&["PUBLISH", "a", "b"]).await.unwrap();
    assert_eq!(receivers.integer(), Some(0));

    for login in [":wrong@", "alice:secret@", "nobody:secret@"] {
        let error = error(&at(login)).await;
        assert_matches!(error, ConnectError::WrongPassword { .. });
        assert!(error.is_permanent());
        assert!(!error.to_string().contains("secret"));
    }
    let error = error(&at("")).await;
    let server = redis.address();
    assert_eq!(error, ConnectError::PasswordRequired { server });
    assert!(error.is_permanent());
}

#[tokio::test]
async fn a_server_without_a_password_accepts_any() {
    // `HELLO` with credentials, as Redis 6 has it: a user without a password is not checked.
    let redis = Redis::start();
    let url = format!("redis://:secret@127.0.0.1:{}", redis.port);
    connect(&url).await.unwrap();
}

/// The crate's response timeout is 500 ms, after which it reports an error for a command that Redis
/// executes a moment later.
#[tokio::test]
async fn a_reply_may_take_longer_than_the_half_second_of_the_crate() {
    let redis = Redis::start();
    let mut connection = connect(&redis.url()).await.unwrap();
    let slow = ["BLPOP", "nothing", "1"];
    let reply = connection.command(&slow).await.unwrap();
    assert_eq!(reply, redis::Value::Nil);
    assert!(RESPONSE_TIMEOUT.as_secs() > 1);
}

#[tokio::test]
async fn the_database_is_chosen_or_missing() {
    let redis = Redis::start();
    let _connection = connect(&format!("{}/3", redis.url())).await.unwrap();
    assert!(redis.command(&["CLIENT", "LIST"]).contains(" db=3 "));
    let error = error(&format!("{}/9999", redis.url())).await;
    assert_matches!(error, ConnectError::UnknownDatabase { database: 9999, .. });
    assert!(error.is_permanent());
}

#[tokio::test]
async fn unix_sockets_lead_to_a_server_too() {
    let directory = support::Directory::new();
    let socket = directory.file("redis.sock");
    let _redis = Redis::with(&["--unixsocket", &socket, "--requirepass", "secret"]);
    let mut connection = connect(&format!("unix://{socket}?password=secret&db=2"))
        .await
        .unwrap();
    connection.command(&["PING"]).await.unwrap();
    assert_eq!(connection.info().server, socket);
    assert_eq!(connection.info().address, None);
    let error = error(&format!("unix://{socket}x")).await;
    assert_matches!(error, ConnectError::Unreachable { .. });
}

#[tokio::test]
async fn tls_trusts_the_authority_of_the_url() {
    let certificates = Certificates::make();
    let (_redis, port) = certificates.redis(&["--tls-auth-clients", "no"]);
    let (ca, key) = (certificates.file("ca.pem"), certificates.file("server.key"));
    let url = format!("rediss://127.0.0.1:{port}");
    let mut connection = connect(&format!("{url}?ca={ca}")).await.unwrap();
    connection.command(&["PING"]).await.unwrap();

    for wrong in [url.clone(), format!("rediss://localhost:{port}?ca={ca}")] {
        let error = error(&wrong).await;
        assert_matches!(error, ConnectError::Tls { .. });
        assert!(error.is_permanent());
    }
    for wrong in [format!("{url}?ca={ca}x"), format!("{url}?ca={key}")] {
        let error = error(&wrong).await;
        assert_matches!(error, ConnectError::TlsFile { .. });
        assert!(error.is_permanent());
    }
    error(&format!("redis://127.0.0.1:{port}")).await;
}

#[tokio::test]
async fn a_certificate_is_shown_to_servers_that_ask_for_one() {
    let certificates = Certificates::make();
    let (_redis, port) = certificates.redis(&["--tls-auth-clients", "yes"]);
    let [ca, cert, key] =
        ["ca.pem", "server.pem", "server.key"].map(|name| certificates.file(name));
    let url = format!("rediss://127.0.0.1:{port}?ca={ca}");
    let own = format!("{url}&cert={cert}&key={key}");
    let mut connection = connect(&own).await.unwrap();
    connection.command(&["PING"]).await.unwrap();
    error(&url).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_may_come_back() {
    let error = error(&format!("redis://127.0.0.1:{}", free_port())).await;
    assert_matches!(error, ConnectError::Unreachable { .. });
    assert!(!error.is_permanent());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = error(&format!("redis://127.0.0.1:{port}")).await;
    assert_matches!(error, ConnectError::TimedOut { .. });
    assert!(!error.is_permanent());
}

/// A server that sends these replies, one to each thing that is sent to it.
fn impostor(replies: &[&'static [u8]]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let replies = replies.to_vec();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = [0; 1024];
        for reply in replies {
            let _ = stream.read(&mut received);
            let _ = stream.write_all(reply);
        }
        // Until the other side closes.
        while stream.read(&mut received).is_ok_and(|read| read > 0) {}
    });
    format!("redis://127.0.0.1:{port}")
}

#[tokio::test]
async fn a_server_of_another_protocol_is_not_redis() {
    let error = error(&impostor(&[b"HTTP/1.1 400 Bad Request\r\n\r\n"])).await;
    assert_matches!(error, ConnectError::NotRedis { .. });
    assert!(error.is_permanent());
}

#[tokio::test]
async fn a_server_that_loads_its_data_is_tried_again() {
    let error = error(&impostor(&[b"-LOADING data\r\n"])).await;
    assert_matches!(error, ConnectError::Refused { reason, .. } if reason == "LOADING data");
    assert!(!error.is_permanent());
}

const GREETING: &[u8] = b"%1\r\n$5\r\nproto\r\n:3\r\n";

const REDIS_6_2: &[u8] = b"+OK\r\n%1\r\n$7\r\nversion\r\n$6\r\n6.2.14\r\n";

const REDIS_6_0: &[u8] = b"+OK\r\n%1\r\n$7\r\nversion\r\n$5\r\n6.0.9\r\n";

#[tokio::test]
async fn old_servers_are_rejected_with_the_version_that_is_needed() {
    connect(&impostor(&[GREETING, REDIS_6_2])).await.unwrap();
    let old = endpoint(&impostor(&[GREETING, REDIS_6_2])).needing_sharded();
    let sharded = old.connect(Purpose::Publisher, None).await.unwrap_err();
    let old = error(&impostor(&[GREETING, REDIS_6_0])).await;
    let ancient: &[u8] = b"-ERR unknown command `HELLO`, with args beginning with: `3`\r\n";
    let ancient = error(&impostor(&[ancient])).await;
    for (error, text) in [
        (
            &sharded,
            "is Redis 6.2.14; the sharded dialect needs Redis 7",
        ),
        (&old, "is Redis 6.0.9; Roomcast needs Redis 6.2"),
        (&ancient, "is Redis older than 6; Roomcast needs Redis 6.2"),
    ] {
        assert!(error.to_string().ends_with(text), "{error}");
        assert!(error.is_permanent());
    }
}

#[tokio::test]
async fn sentinels_name_the_primary() {
    let primary = Redis::with(&["--requirepass", "secret"]);
    let sentinel = Redis::sentinel(primary.port, "sentinel auth-pass mymaster secret");
    let at = format!("127.0.0.1:{}", sentinel.port);
    // One that is down does not matter.
    let hosts = format!("127.0.0.1:{},{at}", free_port());
    let url = format!("redis+sentinel://:secret@{hosts}/mymaster");
    let connection = connect(&url).await.unwrap();
    assert_eq!(connection.info().server, primary.address());
    let named = endpoint(&url).primary().await.unwrap();
    assert_eq!(named, Some(Address::new("127.0.0.1", primary.port)));

    let unknown = error(&format!("redis+sentinel://{at}/other")).await;
    assert_matches!(unknown, ConnectError::NoSuchPrimary { .. });
    assert!(unknown.is_permanent());
    let perhaps = error(&format!("redis+sentinel://{hosts}/other")).await;
    assert!(!perhaps.is_permanent(), "the one that is down may know");
    let wrong = error(&format!("redis+sentinel://:wrong@{at}/mymaster")).await;
    assert_matches!(wrong, ConnectError::WrongPassword { .. });
    let down = error(&format!(
        "redis+sentinel://127.0.0.1:{}/mymaster",
        free_port()
    ))
    .await;
    assert!(!down.is_permanent(), "{down:?}");
}

#[tokio::test]
async fn sentinels_may_have_a_password_of_their_own() {
    let primary = Redis::start();
    let sentinel = Redis::sentinel(primary.port, "requirepass guard");
    let url = format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port);
    let required = error(&url).await;
    assert_matches!(required, ConnectError::PasswordRequired { .. });
    let url = format!("{url}?sentinel_password=guard");
    let connection = connect(&url).await.unwrap();
    assert_eq!(connection.info().server, primary.address());
}

#[tokio::test]
async fn a_server_that_follows_another_one_is_no_primary() {
    let primary = Redis::start();
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
    // A Sentinel would name the primary, so one is played that has not heard of a failover.
    let (listener, port) = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    };
    let named = replica.port.to_string();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = [0; 1024];
        let info = b"+OK\r\n%1\r\n$4\r\nmode\r\n$8\r\nsentinel\r\n";
        let address = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{named}\r\n", named.len());
        for reply in [GREETING, info, address.as_bytes()] {
            let _ = stream.read(&mut received);
            let _ = stream.write_all(reply);
        }
        while stream.read(&mut received).is_ok_and(|read| read > 0) {}
    });
    let error = error(&format!("redis+sentinel://127.0.0.1:{port}/mymaster")).await;
    let server = replica.address();
    assert_eq!(error, ConnectError::NotPrimary { server });
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn kinds_of_servers_are_told_apart() {
    let redis = Redis::start();
    let sentinel = Redis::sentinel(redis.port, "");
    let server = redis.address();
    let of_sentinel = error(&format!("redis+sentinel://{server}/mymaster")).await;
    let of_cluster = error(&format!("redis+cluster://{server}")).await;
    let of_server = error(&sentinel.url()).await;
    assert!(of_sentinel.is_permanent() && of_cluster.is_permanent() && of_server.is_permanent());
    let not_sentinel = ConnectError::NotSentinel {
        server: server.clone(),
    };
    assert_eq!(of_sentinel, not_sentinel);
    assert_eq!(of_cluster, ConnectError::ClusterDisabled { server });
    let server = sentinel.address();
    assert_eq!(of_server, ConnectError::IsSentinel { server });
}

#[tokio::test]
async fn any_node_tells_who_serves_which_slots() {
    let mut cluster = Cluster::start(3);
    // The first of the setting is down.
    let url = cluster.url().replace(
        "cluster://",
        &format!("cluster://127.0.0.1:{},", free_port()),
    );
    let endpoint = endpoint(&url);
    let map = endpoint.cluster_map(None).await.unwrap().unwrap();
    assert_eq!(map.first_gap(), None);
    assert_eq!(map.primaries().len(), 3);
    let slot = cluster.slot("room").parse().unwrap();
    let owner = &cluster.nodes[cluster.owner("room")];
    assert_eq!(map.owner(slot).unwrap().to_string(), owner.address());
    let connection = endpoint.connect(Purpose::Subscriber, None).await.unwrap();
    assert_eq!(connection.info().mode, Some(Mode::Cluster));

    // One node alone carries classic channels, and only its own sharded ones.
    let one = Endpoint::new(cluster.nodes[0].url().parse().unwrap());
    one.connect(Purpose::Publisher, None).await.unwrap();
    let part = one
        .needing_sharded()
        .connect(Purpose::Publisher, None)
        .await;
    let server = cluster.nodes[0].address();
    assert_eq!(part.unwrap_err(), ConnectError::IsCluster { server });

    // Without a majority, a node reaches only itself.
    cluster.nodes.truncate(1);
    let alone = &cluster.nodes[0];
    until("a node that knows that it is alone", || {
        let info = alone.command(&["CLUSTER", "INFO"]);
        info.contains("cluster_state:fail").then_some(())
    });
    let error = error(&format!("redis+cluster://{}", alone.address())).await;
    assert_matches!(error, ConnectError::ClusterDown { .. });
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn one_task_keeps_the_map_for_all_clones_of_an_endpoint() {
    let cluster = Cluster::start(3);
    assert!(endpoint("redis://localhost").cluster().is_none());
    let endpoint = endpoint(&cluster.url());
    let (kept, clone) = (endpoint.cluster().unwrap(), endpoint.clone());
    let mut maps = clone.cluster().unwrap().watch();
    maps.wait_for(|map| map.first_gap().is_none())
        .await
        .unwrap();
    assert_eq!((kept.map().primaries().len(), kept.failure()), (3, None));

    // A redirection counts at once, and what the cluster reports replaces it.
    let slot = cluster.slot("room").parse().unwrap();
    let owner = kept.map().owner(slot).cloned().unwrap();
    let wrong = Address::new("127.0.0.1", free_port());
    kept.moved(slot, wrong.clone());
    assert_eq!(kept.map().owner(slot), Some(&wrong));
    let corrected = maps.wait_for(|map| map.owner(slot) == Some(&owner));
    let _map = corrected.await.unwrap();

    // The cluster is gone: the map stays, and the reason is known.
    drop(_map);
    drop(cluster);
    kept.outdated();
    while kept.failure().is_none() {
        maps.changed().await.unwrap();
    }
    assert_eq!(kept.map().owner(slot), Some(&owner));
    drop(kept);
    // The task ends with the last handle.
    while maps.changed().await.is_ok() {}
}
