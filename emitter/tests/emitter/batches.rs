//! Many emits at once, and emits without async.

use roomcast_emitter::{EmitError, Emitter, Retry, blocking};
use roomcast_protocol::args::Args;

use crate::{
    ear::Ear,
    support::{Redis, assert_matches},
};

const MANY: usize = 5_000;

#[tokio::test]
async fn a_batch_is_published_in_its_order_and_counted_one_by_one() {
    let redis = Redis::start();
    let url = redis.url();
    let emitter = Emitter::connect(&url).await.unwrap();
    let mut ear = Ear::open(&url, &[("PSUBSCRIBE", "socket.io#/#even#*")]).await;
    let mut batch = emitter.batch();
    assert!(batch.is_empty());
    for number in 0..MANY {
        let room = if number % 2 == 0 { "even" } else { "odd" };
        batch.to(room).emit("n", number).unwrap();
    }
    assert_eq!(batch.len(), MANY);
    let sending = tokio::spawn(batch.send());
    for number in (0..MANY).step_by(2) {
        let (channel, payload) = ear.next().await;
        assert_eq!(channel, "socket.io#/#even#");
        let payload = rmpv::decode::read_value(&mut &*payload).unwrap();
        assert_eq!(payload[1]["data"][1], rmpv::Value::from(number));
    }
    let deliveries = sending.await.unwrap();
    assert_eq!(deliveries.len(), MANY);
    for (number, delivery) in deliveries.into_iter().enumerate() {
        assert_eq!(delivery.unwrap().nodes, usize::from(number % 2 == 0));
    }
}

/// Nodes hear the channel of a room some time after they were told to have sockets join it.
#[tokio::test]
async fn an_emit_behind_a_join_goes_where_all_nodes_hear_it() {
    let redis = Redis::start();
    let url = redis.url();
    let mut ear = Ear::pattern(&url, "*").await;
    let emitter = Emitter::connect(&url).await.unwrap();
    emitter.to("a").emit("n", 0).await.unwrap();
    emitter.in_("somebody").sockets_join("a").await.unwrap();
    emitter.to("a").emit("n", 1).await.unwrap();
    emitter.to("b").emit("n", 2).await.unwrap();
    let mut batch = emitter.batch();
    batch.to("b").emit("n", 3).unwrap();
    batch.in_("somebody").sockets_join("b").unwrap();
    batch.to("b").emit("n", 4).unwrap();
    batch.send().await;
    for channel in [
        "socket.io#/#a#",
        "socket.io-request#/#",
        "socket.io#/#",
        "socket.io#/#b#",
        "socket.io#/#b#",
        "socket.io-request#/#",
        "socket.io#/#",
    ] {
        assert_eq!(ear.next().await.0, channel);
    }
}

/// Messages of each kind: text, of which most is encoded while the batch is sent, and what is encoded
/// when it is added.
#[tokio::test]
async fn whenever_messages_are_encoded_they_keep_their_order() {
    let redis = Redis::start();
    let url = redis.url();
    let mut ear = Ear::pattern(&url, "*").await;
    let emitter = Emitter::connect(&url).await.unwrap();
    let mut batch = emitter.batch();
    for number in 0..MANY {
        let room = format!("room {}", number / 3);
        let mut chat = batch.of("/chat");
        chat = chat.to(&room).to("more");
        match number % 500 {
            100 => chat.emit("n", number).unwrap(),
            200 => chat.sockets_join(number.to_string()).unwrap(),
            _ => chat.emit("n", number.to_string()).unwrap(),
        }
        // What is refused leaves nothing behind.
        let broken = Args::from_text("[1,]".into(), Vec::new()).unwrap();
        assert!(batch.to("nowhere").emit("n", broken).is_err());
    }
    assert_eq!(batch.len(), MANY);
    let sending = tokio::spawn(batch.send());
    for number in 0..MANY {
        let (channel, payload) = ear.next().await;
        let room = format!("room {}", number / 3);
        if number % 500 == 200 {
            assert_eq!(channel, "socket.io-request#/chat#");
            let order: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!(order["rooms"][0], number.to_string());
            continue;
        }
        assert_eq!(channel, "socket.io#/chat#");
        let payload = rmpv::decode::read_value(&mut &*payload).unwrap();
        let said = match number % 500 {
            100 => rmpv::Value::from(number),
            _ => number.to_string().into(),
        };
        assert_eq!(payload[1]["data"][1], said);
        assert_eq!(payload[2]["rooms"][0], rmpv::Value::from(room));
    }
    assert!(sending.await.unwrap().iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_batch_larger_than_what_may_wait_at_a_time_is_sent_in_parts() {
    const LARGE: usize = 20;
    let redis = Redis::start();
    let emitter = Emitter::connect(&redis.url()).await.unwrap();
    let mut batch = emitter.batch();
    let text = "x".repeat(1 << 20);
    for _ in 0..LARGE {
        batch.emit("large", &text).unwrap();
    }
    let deliveries = batch.send().await;
    assert_eq!(deliveries.len(), LARGE);
    assert!(deliveries.iter().all(Result::is_ok), "{deliveries:?}");
}

#[tokio::test]
async fn a_full_batch_refuses_more_and_what_it_holds_can_be_sent() {
    let redis = Redis::start();
    let emitter = Emitter::connect(&redis.url()).await.unwrap();
    // Of the smaller one, all is encoded at once.
    for bytes in [1_000, 100_000] {
        let mut batch = emitter.batch().limit(bytes);
        let mut added = 0;
        let refused = loop {
            match batch.emit("hello", "some text") {
                Ok(()) => added += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, EmitError::BatchFull { limit } if limit == bytes));
        // A message takes some 130 bytes.
        assert!((bytes / 200..bytes / 100).contains(&added), "{added}");
        assert_eq!(batch.send().await.len(), added);
    }
}

#[tokio::test]
async fn what_is_wrong_is_refused_when_it_is_added() {
    let redis = Redis::start();
    let emitter = Emitter::connect(&redis.url()).await.unwrap();
    let mut batch = emitter.batch();
    let refused = batch.emit("connect", ());
    assert!(matches!(refused, Err(EmitError::ReservedEvent(_))));
    let refused = batch.of("chat").emit("hello", ());
    assert!(matches!(refused, Err(EmitError::NamespaceWithoutSlash(_))));
    assert!(batch.is_empty());
    assert!(batch.send().await.is_empty());
}

#[tokio::test]
async fn a_batch_without_redis_says_so_for_each_message() {
    let mut redis = Redis::start();
    let emitter = Emitter::builder().retry(Retry::never());
    let emitter = emitter.connect(&redis.url()).await.unwrap();
    redis.kill();
    let mut batch = emitter.batch();
    for _ in 0..3 {
        batch.emit("hello", ()).unwrap();
    }
    let failed = batch.send().await;
    assert_eq!(failed.len(), 3);
    for failed in failed {
        assert_matches!(
            failed,
            Err(EmitError::Unreachable(_) | EmitError::Unconfirmed(_))
        );
    }
}

#[tokio::test]
async fn orders_to_sockets_have_their_place_in_a_batch() {
    let redis = Redis::start();
    let url = redis.url();
    let mut ear = Ear::pattern(&url, "*").await;
    let emitter = Emitter::connect(&url).await.unwrap();
    let mut batch = emitter.batch();
    batch.in_("a").sockets_join("b").unwrap();
    batch.in_("a").except("c").emit("hello", ()).unwrap();
    batch
        .of("/chat")
        .in_("a")
        .sockets_leave(["a", "b"])
        .unwrap();
    batch.except("c").disconnect_sockets(true).unwrap();
    batch.send().await;
    for channel in [
        "socket.io-request#/#",
        "socket.io#/#a#",
        "socket.io-request#/chat#",
        "socket.io-request#/#",
    ] {
        assert_eq!(ear.next().await.0, channel);
    }
}

#[tokio::test]
async fn a_program_without_async_emits_and_asks_all_the_same() {
    let redis = Redis::start();
    let url = redis.url();
    let mut ear = Ear::pattern(&url, "socket.io#/*").await;
    let program = std::thread::spawn(move || {
        let emitter = blocking::Emitter::connect(&url).unwrap();
        let one = emitter.to("a").emit("hello", 1).unwrap();
        let clone = emitter.clone();
        drop(emitter);
        let mut batch = clone.batch();
        batch.emit("hello", 2).unwrap();
        batch.to("b").emit("hello", 3).unwrap();
        let more = batch.send();
        let confirmed = clone.of("/").emit_confirmed("hello", 4).unwrap();
        let answers = clone.except("b").emit_with_ack::<Args>("hello", 5).unwrap();
        (one, more.len(), confirmed.nodes, answers.answers.len())
    });
    for channel in [
        "socket.io#/#a#",
        "socket.io#/#",
        "socket.io#/#b#",
        "socket.io#/#",
    ] {
        assert_eq!(ear.next().await.0, channel);
    }
    let (one, more, nodes, answers) = program.join().unwrap();
    assert_eq!((one.nodes, more, nodes, answers), (1, 2, 0, 0));
}
