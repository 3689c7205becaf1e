//! Finding real servers and logging in to them, and what is said about those that do not fit.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
};

use roomcast_emitter::endpoint::{Address, ConnectError, Connection, Endpoint, Mode, Purpose};
use support::{Certificates, Cluster, Redis, free_port, until};

async fn connect(url: &str) -> Result<Connection, ConnectError> {
    endpoint(url).connect(Purpose::Publisher).await
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
    assert_eq!(
        (info.mode, info.is_primary),
        (Some(Mode::Standalone), Some(true))
    );
    assert!(info.major_version >= Some(6), "{info:?}");
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
        assert!(
            matches!(error, ConnectError::WrongPassword { .. }),
            "{error:?}"
        );
        assert!(error.is_permanent());
        assert!(!error.to_string().contains("secret"));
    }
    let error = error(&at("")).await;
    let server = redis.address();
    assert_eq!(error, ConnectError::PasswordRequired { server });
    assert!(error.is_permanent());
}

#[tokio::test]
async fn a_password_for_a_server_that_has_none_is_an_error() {
    let redis = Redis::start();
    let error = error(&format!("redis://:secret@127.0.0.1:{}", redis.port)).await;
    assert!(
        matches!(error, ConnectError::WrongPassword { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_database_is_chosen_or_missing() {
    let redis = Redis::start();
    let _connection = connect(&format!("{}/3", redis.url())).await.unwrap();
    assert!(redis.command(&["CLIENT", "LIST"]).contains(" db=3 "));
    let error = error(&format!("{}/9999", redis.url())).await;
    assert!(
        matches!(error, ConnectError::UnknownDatabase { database: 9999, .. }),
        "{error:?}"
    );
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
    assert!(
        matches!(error, ConnectError::Unreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn tls_trusts_whom_it_is_told_to() {
    let certificates = Certificates::make();
    let (port, file) = (free_port().to_string(), |name| certificates.file(name));
    let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
    let files = ["--tls-cert-file", &cert, "--tls-key-file", &key];
    let options = ["--tls-ca-cert-file", &ca, "--tls-auth-clients", "no"];
    let _redis = Redis::with(&[&["--tls-port", &port], &files[..], &options].concat());
    let url = format!("rediss://127.0.0.1:{port}");
    let mut connection = connect(&format!("{url}?ca={ca}")).await.unwrap();
    connection.command(&["PING"]).await.unwrap();

    for wrong in [url.clone(), format!("rediss://localhost:{port}?ca={ca}")] {
        let error = error(&wrong).await;
        assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
        assert!(error.is_permanent());
    }
    for wrong in [format!("{url}?ca={ca}x"), format!("{url}?ca={key}")] {
        let error = error(&wrong).await;
        assert!(matches!(error, ConnectError::TlsFile { .. }), "{error:?}");
        assert!(error.is_permanent());
    }
    error(&format!("redis://127.0.0.1:{port}")).await;
}

#[tokio::test]
async fn a_certificate_is_shown_to_servers_that_ask_for_one() {
    let certificates = Certificates::make();
    let (port, file) = (free_port().to_string(), |name| certificates.file(name));
    let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
    let files = ["--tls-cert-file", &cert, "--tls-key-file", &key];
    let options = ["--tls-ca-cert-file", &ca, "--tls-auth-clients", "yes"];
    let _redis = Redis::with(&[&["--tls-port", &port], &files[..], &options].concat());
    let url = format!("rediss://127.0.0.1:{port}?ca={ca}");
    let own = format!("{url}&cert={cert}&key={key}");
    let mut connection = connect(&own).await.unwrap();
    connection.command(&["PING"]).await.unwrap();
    error(&url).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_may_come_back() {
    let error = error(&format!("redis://127.0.0.1:{}", free_port())).await;
    assert!(
        matches!(error, ConnectError::Unreachable { .. }),
        "{error:?}"
    );
    assert!(!error.is_permanent());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = error(&format!("redis://127.0.0.1:{port}")).await;
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error:?}");
    assert!(!error.is_permanent());
}

/// A server that answers the same to whatever it is told.
fn impostor(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = [0; 1024];
        let _ = stream.read(&mut heard);
        let _ = stream.write_all(answer);
        // Until the other side has had enough.
        while stream.read(&mut heard).is_ok_and(|read| read > 0) {}
    });
    format!("redis://127.0.0.1:{port}")
}

#[tokio::test]
async fn what_does_not_speak_redis_is_no_redis() {
    let error = error(&impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n")).await;
    assert!(matches!(error, ConnectError::NotRedis { .. }), "{error:?}");
    assert!(error.is_permanent());
}

#[tokio::test]
async fn a_server_that_loads_its_data_is_tried_again() {
    let error = error(&impostor(b"-LOADING data\r\n-LOADING data\r\n")).await;
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn sharded_channels_need_redis_7() {
    let greeting = b"+OK\r\n*2\r\n$7\r\nversion\r\n$6\r\n6.2.14\r\n";
    let old = endpoint(&impostor(greeting)).needing_sharded();
    let error = old.connect(Purpose::Publisher).await.unwrap_err();
    assert!(matches!(&error, ConnectError::TooOld { version, .. } if version == "6.2.14"));
    assert!(error.is_permanent());
    connect(&impostor(greeting)).await.unwrap();
    let ancient = b"+OK\r\n-ERR unknown command `HELLO`\r\n+PONG\r\n";
    let old = endpoint(&impostor(ancient)).needing_sharded();
    let error = old.connect(Purpose::Publisher).await.unwrap_err();
    assert!(matches!(error, ConnectError::TooOld { .. }), "{error:?}");
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
    assert!(
        matches!(unknown, ConnectError::NoSuchPrimary { .. }),
        "{unknown:?}"
    );
    assert!(unknown.is_permanent());
    let perhaps = error(&format!("redis+sentinel://{hosts}/other")).await;
    assert!(!perhaps.is_permanent(), "the one that is down may know");
    let wrong = error(&format!("redis+sentinel://:wrong@{at}/mymaster")).await;
    assert!(
        matches!(wrong, ConnectError::WrongPassword { .. }),
        "{wrong:?}"
    );
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
    assert!(
        matches!(required, ConnectError::PasswordRequired { .. }),
        "{required:?}"
    );
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
        let mut heard = [0; 1024];
        let _ = stream.read(&mut heard);
        let _ = stream.write_all(b"+OK\r\n*2\r\n$4\r\nmode\r\n$8\r\nsentinel\r\n");
        let _ = stream.read(&mut heard);
        let answer = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{named}\r\n", named.len());
        let _ = stream.write_all(answer.as_bytes());
        while stream.read(&mut heard).is_ok_and(|read| read > 0) {}
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
    let connection = endpoint.connect(Purpose::Subscriber).await.unwrap();
    assert_eq!(connection.info().mode, Some(Mode::Cluster));

    // One node alone carries classic channels, and only its own sharded ones.
    let one = Endpoint::new(cluster.nodes[0].url().parse().unwrap());
    one.connect(Purpose::Publisher).await.unwrap();
    let part = one.needing_sharded().connect(Purpose::Publisher).await;
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
    assert!(
        matches!(error, ConnectError::ClusterDown { .. }),
        "{error:?}"
    );
    assert!(!error.is_permanent());
}
