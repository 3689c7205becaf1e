//! What goes wrong is told apart: what surely was not published from what may have been, and both
//! from what never could be.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use roomcast_emitter::{BuildError, ConnectError, EmitError, Emitter, RedisUrl, Retry};
use serde::{Serialize, Serializer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    ear::Ear,
    member::connect,
    support::{Redis, assert_matches},
};

/// A value that has no JSON.
struct Unserializable;

impl Serialize for Unserializable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("no"))
    }
}

#[tokio::test]
async fn what_never_could_be_published_is_refused_before_redis_is_asked() {
    let redis = Redis::start();
    let url = redis.url();
    let emitter = Emitter::connect(&url).await.unwrap();
    let mut ear = Ear::pattern(&url, "*").await;

    let refused = emitter.emit("disconnect", ()).await;
    assert!(matches!(refused, Err(EmitError::ReservedEvent(name)) if &*name == "disconnect"));
    let refused = emitter.of("/").server_side_emit("connect", ()).await;
    assert!(matches!(refused, Err(EmitError::ReservedEvent(_))));
    let refused = emitter.of("chat").emit("hello", ()).await;
    assert!(matches!(refused, Err(EmitError::NamespaceWithoutSlash(name)) if &*name == "chat"));
    let refused = emitter.of("").emit_confirmed("hello", ()).await;
    assert!(matches!(refused, Err(EmitError::NamespaceWithoutSlash(_))));
    let refused = emitter.emit("hello", Unserializable).await;
    assert!(matches!(refused, Err(EmitError::Args(_))));
    let refused = emitter.to("a").server_side_emit("hello", ()).await;
    assert!(matches!(refused, Err(EmitError::ServersHaveNoRooms)));

    emitter.emit("hello", ()).await.unwrap();
    let (_, payload) = ear.next().await;
    assert!(String::from_utf8_lossy(&payload).contains("hello"));
}

#[tokio::test]
async fn the_nodes_that_took_a_message_are_counted() {
    let redis = Redis::start();
    let url = redis.url();
    let emitter = Emitter::connect(&url).await.unwrap();
    assert_eq!(emitter.emit("hello", ()).await.unwrap().nodes, 0);
    let _one = Ear::pattern(&url, "socket.io#/#*").await;
    let _two = Ear::open(&url, &[("SUBSCRIBE", "socket.io#/#a#")]).await;
    assert_eq!(emitter.to("a").emit("hello", ()).await.unwrap().nodes, 2);
    assert_eq!(emitter.to("b").emit("hello", ()).await.unwrap().nodes, 1);
    assert_eq!(emitter.of("/b").emit("hello", ()).await.unwrap().nodes, 0);

    // One takes everything, the other has members of the room.
    let counting = Emitter::builder().count_members(true).connect(&url);
    let counting = counting.await.unwrap();
    for (room, nodes, members) in [
        ("a", 2, Some(1)),
        ("b", 1, Some(0)),
        // Nodes receive the rooms of sockets over a pattern.
        ("aaaaaaaaaaaaaaaaaaaa", 1, None),
    ] {
        let delivery = counting.to(room).emit("hello", ()).await.unwrap();
        assert_eq!(
            (delivery.nodes, delivery.members),
            (nodes, members),
            "{room}"
        );
    }
    let both = counting.to(["a", "b"]).emit("hello", ()).await.unwrap();
    assert_eq!(both.members, None);
}

#[tokio::test]
async fn settings_that_lead_nowhere_are_errors_of_connect() {
    let wrong = Emitter::connect("http://localhost").await;
    assert_matches!(wrong, Err(BuildError::Url(_)));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let never = Emitter::builder().retry(Retry::never());
    let unreachable = never.connect(&url).await;
    assert_matches!(
        unreachable,
        Err(BuildError::Connect(ConnectError::Unreachable { .. }))
    );
    let redis = Redis::start();
    let mut operator = connect(&redis.url()).await;
    let command = ["CONFIG", "SET", "requirepass", "secret"];
    operator.command(&command).await.unwrap();
    // Tried once, although there would be more tries: a password does not change by itself.
    let refused = Emitter::connect(&redis.url()).await;
    assert_matches!(
        refused,
        Err(BuildError::Connect(ConnectError::PasswordRequired { .. }))
    );
}

#[tokio::test]
async fn a_user_without_the_right_to_a_channel_is_told_so() {
    let redis = Redis::start();
    let mut operator = connect(&redis.url()).await;
    let acl = [
        "ACL", "SETUSER", "ann", "on", ">pw", "+@all", "~*", "&other*",
    ];
    operator.command(&acl).await.unwrap();
    let url = redis.url().replace("redis://", "redis://ann:pw@");
    let emitter = Emitter::connect(&url).await.unwrap();
    let refused = emitter.emit("hello", ()).await;
    assert_matches!(refused, Err(EmitError::Refused(reason)) if reason.contains("NOPERM"));
    let refused = emitter.of("/").emit_confirmed("hello", ()).await;
    assert_matches!(refused, Err(EmitError::Refused(_)));
    let other = Emitter::builder().prefix("other").connect(&url).await;
    assert_eq!(other.unwrap().emit("hello", ()).await.unwrap().nodes, 0);
}

#[tokio::test]
async fn a_message_that_was_not_published_is_retried_until_redis_is_back() {
    let mut redis = Redis::start();
    let url = redis.url();
    let patient = Retry::default().tries(60);
    let patient = Emitter::builder().retry(patient).connect(&url);
    let patient = patient.await.unwrap();
    let hasty = Emitter::builder().retry(Retry::never()).connect(&url);
    let hasty = hasty.await.unwrap();
    redis.kill();
    until_unreachable(&hasty).await;
    let emitting = tokio::spawn(async move {
        let delivery = patient.emit("hello", ()).await;
        (patient, delivery)
    });
    redis.restart();
    let (_patient, delivery) = emitting.await.unwrap();
    assert_eq!(delivery.unwrap().nodes, 0);
}

/// Emits until the link has noticed that Redis has gone; what it says before that is uncertain.
async fn until_unreachable(emitter: &Emitter) {
    loop {
        match emitter.emit("hello", ()).await {
            Err(EmitError::Unreachable(_)) => return,
            Err(EmitError::Unconfirmed(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_message_that_was_not_confirmed_is_not_sent_twice_unless_asked_for() {
    let (url, published) = deaf_redis().await;
    let once = Emitter::connect(&url).await.unwrap();
    let unconfirmed = once.emit("hello", ()).await;
    assert_matches!(unconfirmed, Err(EmitError::Unconfirmed(_)));
    assert_eq!(published.swap(0, Ordering::SeqCst), 1);

    let retry = Retry::default().tries(50).at_least_once();
    let again = Emitter::builder().retry(retry).connect(&url);
    let again = again.await.unwrap();
    let emitting = tokio::spawn(async move { again.emit("hello", ()).await });
    while published.load(Ordering::SeqCst) < 2 {
        assert!(!emitting.is_finished());
        tokio::task::yield_now().await;
    }
    emitting.abort();
}

/// Something that greets like Redis and hangs up at every publish; counts them.
async fn deaf_redis() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let published = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&published);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                loop {
                    let read = stream.read(&mut buffer).await.unwrap_or(0);
                    let text = String::from_utf8_lossy(&buffer[..read]);
                    if read == 0 || text.contains("PUBLISH") {
                        count.fetch_add(usize::from(read > 0), Ordering::SeqCst);
                        return;
                    }
                    for word in text.split("\r\n") {
                        let reply = match word {
                            "CLIENT" => "+OK\r\n",
                            "GET" => "_\r\n",
                            "HELLO" => "%1\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n",
                            _ => continue,
                        };
                        stream.write_all(reply.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    (url, published)
}

#[tokio::test]
async fn an_emitter_is_as_easily_made_from_a_url_that_was_read_already() {
    let redis = Redis::start();
    let url: RedisUrl = redis.url().parse().unwrap();
    let emitter = Emitter::builder().connect_to(url).await.unwrap();
    assert_eq!(emitter.emit("hello", ()).await.unwrap().nodes, 0);
}
