//! Emitting over a pool that the application has already.

use deadpool_redis::{Config, Runtime};
use roomcast_emitter::{EmitError, Emitter, Retry};
use roomcast_protocol::{channel::Dialect, question::Answer, wire::Reply};

use crate::{
    ear::Ear,
    member::{Kin, Member, connect},
    support::{Redis, assert_matches},
};

pub(crate) fn pool(url: &str) -> deadpool_redis::Pool {
    Config::from_url(url)
        .create_pool(Some(Runtime::Tokio1))
        .unwrap()
}

#[tokio::test]
async fn a_pool_carries_the_same_messages_in_the_same_order() {
    let redis = Redis::start();
    let url = redis.url();
    let mut ear = Ear::pattern(&url, "*").await;
    let own = Emitter::connect(&url).await.unwrap();
    let pooled = Emitter::new(pool(&url));
    for emitter in [&own, &pooled] {
        let delivery = emitter.to("a").emit("hello", (1, "x")).await.unwrap();
        assert_eq!(delivery.nodes, 1);
    }
    assert_eq!(ear.next().await, ear.next().await);

    const MANY: usize = 2_000;
    let mut batch = pooled.batch();
    for number in 0..MANY {
        batch.emit("n", number).unwrap();
    }
    let sending = tokio::spawn(batch.send());
    for number in 0..MANY {
        let (_, payload) = ear.next().await;
        let payload = rmpv::decode::read_value(&mut &*payload).unwrap();
        assert_eq!(payload[1]["data"][1], rmpv::Value::from(number));
    }
    assert!(sending.await.unwrap().iter().all(Result::is_ok));
}

/// The crate's response timeout of half a second would report the message as unconfirmed.
#[tokio::test]
async fn a_reply_over_a_pool_may_take_longer_than_the_half_second_of_the_crate() {
    let redis = Redis::start();
    let emitter = Emitter::new(pool(&redis.url()));
    redis.command(&["CLIENT", "PAUSE", "1500", "WRITE"]);
    let delivery = emitter.emit("hello", ()).await;
    assert_eq!(delivery.unwrap().nodes, 0);
}

#[tokio::test]
async fn answers_arrive_over_a_connection_beside_the_pool() {
    let redis = Redis::start();
    let url = redis.url();
    let reached = |_: &_| vec![Reply::Answer(Answer::Reached(4))];
    let _member = Member::join(&url, Dialect::Classic, Kin::Own("one"), reached).await;
    let without = Emitter::new(pool(&url));
    let refused = without.of("/").emit_confirmed("hello", ()).await;
    assert!(matches!(refused, Err(EmitError::NoAnswers)));
    let with = Emitter::builder()
        .answers(url.parse().unwrap())
        .pool(pool(&url));
    let confirmed = with.of("/").emit_confirmed("hello", ()).await.unwrap();
    assert_eq!((confirmed.sockets, confirmed.nodes), (Some(4), 1));
}

#[tokio::test]
async fn failures_are_distinguished_over_a_pool_too() {
    let mut redis = Redis::start();
    let mut operator = connect(&redis.url()).await;
    let acl = [
        "ACL", "SETUSER", "ann", "on", ">pw", "+@all", "~*", "&other*",
    ];
    operator.command(&acl).await.unwrap();
    let ann = redis.url().replace("redis://", "redis://ann:pw@");
    let refused = Emitter::new(pool(&ann)).emit("hello", ()).await;
    assert_matches!(
        refused,
        Err(EmitError::Refused(reason))
            if reason.contains("NOPERM") || reason.contains("permission")
    );
    let wrong = redis.url().replace("redis://", "redis://ann:no@");
    let refused = Emitter::new(pool(&wrong)).emit("hello", ()).await;
    assert_matches!(refused, Err(EmitError::Refused(_)));
    redis.kill();
    let gone = Emitter::builder()
        .retry(Retry::never())
        .pool(pool(&redis.url()));
    let gone = gone.emit("hello", ()).await;
    assert_matches!(gone, Err(EmitError::Unreachable(_)));
}
