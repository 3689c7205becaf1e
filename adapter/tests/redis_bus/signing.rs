//! Clusters that sign: what others publish, old messages and copies are dropped and counted, keys are
//! replaced without loss, and nodes that do not sign are noticed.

use std::time::{Duration, SystemTime};

use roomcast_adapter::{
    Health, JournalLimits, NodeId, Page, Question, RedisBus, Signing, StartError,
};
use roomcast_protocol::{
    channel::{Dialect, LOG_UID, Mode},
    msgpack::TranscodeLimits,
    signing::{SigningKeys, Stamp},
    target::Target,
    wire::{Parser, Wire},
};

use crate::{
    deployment::{Deployment, metric, node},
    node::{Node, broadcast, event, eventually, within},
    support::Plain,
};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const NEXT: &str = "fedcba9876543210fedcba9876543210";

fn keys(text: &str) -> SigningKeys {
    text.parse().unwrap()
}

fn signed(dialect: Dialect) -> Deployment {
    let mut deployment = Deployment::of(dialect);
    deployment.config.signing = Some(Signing::new(keys(KEY)));
    deployment
}

/// The time of this host, which is also that of its Redis.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(now.unwrap().as_millis()).unwrap()
}

/// Somebody who can publish in Redis.
struct Stranger {
    redis: Plain,
    wire: Wire,
    command: &'static str,
}

impl Stranger {
    fn of(deployment: &Deployment) -> Self {
        let limits = TranscodeLimits::default();
        Self {
            redis: deployment.plain(),
            wire: Wire::new(deployment.channels(), Parser::Msgpack, limits),
            command: deployment.publish_command(),
        }
    }

    /// Channel and payload of a broadcast.
    fn broadcast(&self, number: u32) -> (String, Vec<u8>) {
        let published = self
            .wire
            .message("/", "emitter", &broadcast(&[], number), None);
        let published = published.unwrap();
        (published.channel, published.payload.to_vec())
    }

    fn sealed(&self, keys: &SigningKeys, number: u32, time: u64) -> (String, Vec<u8>) {
        let (channel, payload) = self.broadcast(number);
        let stamp = Stamp {
            sender: "stranger",
            number: number.into(),
            time,
        };
        let sealed = keys.seal(stamp, &[&channel], &payload);
        (channel, sealed)
    }

    fn publish(&mut self, (channel, payload): &(String, Vec<u8>)) {
        let command = [self.command.as_bytes(), channel.as_bytes(), payload];
        self.redis.command(&command);
    }
}

fn dropped(node: &Node, reason: &str) -> f64 {
    metric(node, "roomcast_bus_messages_dropped_total", reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_with_the_key_has_just_signed_is_dropped_and_counted() {
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::Dynamic)] {
        let deployment = signed(dialect);
        let (a, b) = (deployment.node().await, deployment.node().await);
        a.join("r").await;
        let mut stranger = Stranger::of(&deployment);
        let now = now();
        let good = stranger.sealed(&keys(KEY), 1, now);
        let hour = 3_600_000;
        // A message that was sealed for another channel, as if a namespace were confused with another one.
        let mut elsewhere = stranger.sealed(&keys(KEY), 6, now);
        elsewhere.0 = deployment.channels().room("/", "r");
        for published in [
            stranger.broadcast(2),
            stranger.sealed(&keys(NEXT), 3, now),
            elsewhere,
            stranger.sealed(&keys(KEY), 4, now - hour),
            stranger.sealed(&keys(KEY), 5, now + hour),
            good.clone(),
            good.clone(),
            good,
        ] {
            stranger.publish(&published);
        }
        let last = broadcast(&[], 9);
        b.publish(last.clone()).await;
        assert_eq!(a.heard(2).await, [broadcast(&[], 1), last], "{dialect:?}");
        for (reason, count) in [("unsigned", 1.0), ("stale", 2.0), ("replayed", 2.0)] {
            assert_eq!(dropped(&a, reason), count, "{dialect:?}: {reason}");
        }
        assert_eq!(dropped(&a, "forged"), 2.0, "{dialect:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_replaced_without_loss() {
    let mut deployment = signed(Dialect::Classic);
    let (old, both) = (KEY.to_owned(), format!("{KEY},{NEXT}"));
    let (switched, new) = (format!("{NEXT},{KEY}"), NEXT.to_owned());
    let mut before = None::<Node>;
    for text in [old, both, switched, new] {
        deployment.config.signing = Some(Signing::new(keys(&text)));
        let after = deployment.node().await;
        if let Some(before) = before {
            for (from, to) in [(&before, &after), (&after, &before)] {
                assert_eq!(from.publish(broadcast(&[], 1)).await, 1);
                assert_eq!(to.heard(1).await, [broadcast(&[], 1)], "{text}");
                assert_eq!(to.bus.health(), Health::Flowing);
            }
            let question = Question::Sockets(Target::default());
            let answered = after.ask(question, Duration::from_secs(30)).await;
            assert_eq!((answered.answers.len(), answered.silent.len()), (1, 0));
            // Another one in its place.
            within(before.bus.close(&before.id)).await;
        }
        before = Some(after);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_sign_and_one_that_does_are_both_not_ready() {
    let deployment = signed(Dialect::Classic);
    let mut plain = deployment.config.clone();
    plain.signing = None;
    let (a, b) = (deployment.node().await, node(&plain, "/").await);
    for (one, theirs) in [
        (&a, "use classic-msgpack,"),
        (&b, "use classic-msgpack-signed,"),
    ] {
        eventually("neither is ready", || one.bus.health() != Health::Flowing).await;
        let Health::Interrupted(reason) = one.bus.health() else {
            panic!("it became ready");
        };
        assert!(reason.contains(theirs), "{reason}");
        assert!(metric(one, "roomcast_bus_disagreeing_nodes", "") == 1.0);
    }
    b.publish(broadcast(&[], 1)).await;
    eventually("it is dropped", || dropped(&a, "unsigned") >= 1.0).await;
    a.publish(broadcast(&[], 2)).await;
    eventually("it is not understood", || dropped(&b, "undecodable") >= 1.0).await;
    assert_eq!(a.side.take_heard().len() + b.side.take_heard().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stranger_puts_into_a_journal_is_not_read() {
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::Static)] {
        let deployment = signed(dialect);
        let a = deployment.node().await;
        let log = a.log(JournalLimits::default());
        let emitted = within(log.broadcast(event(&[], 1))).await;
        let position = emitted.unwrap().position.unwrap();
        assert_eq!(a.stored(1).await, [(position, 1)]);
        let mut stranger = Stranger::of(&deployment);
        let head = stranger.wire.unplaced("/", &event(&[], 2)).unwrap();
        let key = deployment.channels().journal("/");
        let forged = (position.id + 1, position.time);
        // The copy of an entry cannot be made here, so it is sealed anew, with an old time.
        let stamp = Stamp {
            sender: LOG_UID,
            number: 1,
            time: position.time - 3_600_000,
        };
        let copied = keys(KEY).seal_head(stamp, &[&head.channel], &head.payload);
        for ((id, time), head) in [
            (forged, &head.payload[..]),
            ((forged.0 + 1, forged.1), &copied),
        ] {
            let (id, time) = (format!("{id}-0"), time.to_string());
            let fields: [&[u8]; 11] = [
                b"XADD",
                key.as_bytes(),
                id.as_bytes(),
                b"t",
                time.as_bytes(),
                b"s",
                b"9",
                b"b",
                head,
                b"p",
                b"1",
            ];
            stranger.redis.command(&fields);
        }
        let read = within(log.read_journal(Page::After(0), 9)).await.unwrap();
        assert_eq!(
            (read.entries.len(), read.unreadable.len()),
            (1, 2),
            "{dialect:?}"
        );
        assert_eq!(read.entries[0].position, position);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signing_is_not_combined_with_the_formats_for_node_servers() {
    let deployment = signed(Dialect::Classic);
    let (mut json, mut streams) = (deployment.config.clone(), deployment.config.clone());
    json.parser = Parser::Json;
    streams.dialect = Dialect::Streams;
    for config in [json, streams] {
        let started = RedisBus::connect(config, &NodeId::new("node")).await;
        let error = started.unwrap_err();
        assert!(matches!(error, StartError::Unsignable) && !error.is_temporary());
    }
}
