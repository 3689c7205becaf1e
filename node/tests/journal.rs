//! A node that has missed broadcasts of a journal reads them, and delivers each once and in order.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::time::{Duration, SystemTime};

use roomcast::{
    Args, BusError, EmitError, Gap, JournalLimits, MemoryBus, Position, Server,
    bus::{Broadcast, JournalEntry, Target},
};
use support::{
    TestServer, WebSocket,
    bus::{FakeBus, UNREADABLE},
    eventually,
    server::{Sockets, main_namespace},
};

/// A node whose journal already has the broadcast 10, with a client.
struct Node {
    bus: FakeBus,
    server: TestServer,
    client: WebSocket,
    _sockets: Sockets,
}

fn entry(id: u64, after: u64) -> JournalEntry {
    entry_at(id * 1000, id, after)
}

/// An entry that was stored at this time of Redis's clock.
fn entry_at(time: u64, id: u64, after: u64) -> JournalEntry {
    JournalEntry {
        position: Position {
            id,
            time,
            after: Some(after),
        },
        broadcast: Broadcast {
            target: Target::default(),
            event: "n".into(),
            args: Args::encode(&(id,)).unwrap(),
        },
    }
}

/// Entries whose ids are these, each after the one before.
fn chain(ids: &[u64]) -> Vec<JournalEntry> {
    let pairs = ids.windows(2).map(|pair| entry(pair[1], pair[0]));
    pairs.collect()
}

impl Node {
    async fn start() -> Self {
        let bus = FakeBus::new();
        bus.set_journal(chain(&[0, 10]));
        Self::on(bus).await
    }

    async fn on(bus: FakeBus) -> Self {
        let namespace = main_namespace().journal(JournalLimits::default());
        let (namespace, sockets) = Sockets::of(namespace);
        let builder = Server::builder().namespace(namespace).bus(bus.clone());
        let server = TestServer::start(builder).await;
        let client = WebSocket::connect(server.address).await;
        Self {
            bus,
            server,
            client,
            _sockets: sockets,
        }
    }

    /// The bus reports a gap.
    fn gap(&self) {
        let to = SystemTime::UNIX_EPOCH + Duration::from_secs(20);
        let from = to - Duration::from_secs(5);
        self.bus.report(Gap { from, to });
    }

    /// A broadcast arrives.
    fn hear(&self, entry: JournalEntry) {
        self.bus.hear(entry);
    }

    async fn receives(&mut self, ids: &[u64]) {
        for id in ids {
            assert_eq!(self.client.text().await, format!("42[\"n\",{id}]"));
        }
    }

    async fn gaps(&self, outcome: &str, count: u64) {
        let series = format!("roomcast_journal_gaps_total{{outcome=\"{outcome}\"}}");
        eventually(&series, || self.server.metric(&series) == count).await;
    }
}

#[tokio::test]
async fn what_is_missing_before_a_broadcast_is_read_and_delivered_first() {
    let mut node = Node::start().await;
    node.hear(entry(11, 10));
    node.receives(&[11]).await;
    node.bus.set_journal(chain(&[0, 10, 11, 12, 13, 14]));
    node.hear(entry(14, 13));
    node.receives(&[12, 13, 14]).await;
    node.gaps("repaired", 1).await;
    // They arrive late, and are known.
    node.hear(entry(12, 11));
    node.hear(entry(13, 12));
    node.hear(entry(14, 13));
    node.hear(entry(15, 14));
    node.receives(&[15]).await;
    node.gaps("lost", 0).await;
}

#[tokio::test]
async fn a_gap_at_the_end_is_repaired_when_it_is_reported() {
    let mut node = Node::start().await;
    let ids: Vec<_> = std::iter::once(0).chain(10..=350).collect();
    node.bus.set_journal(chain(&ids));
    node.gap();
    node.receives(&ids[2..]).await;
    node.gaps("repaired", 1).await;
    node.hear(entry(351, 350));
    node.receives(&[351]).await;
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_reported_and_the_rest_delivered() {
    let mut node = Node::start().await;
    node.bus
        .set_journal(chain(&[10, 11, 12, 13, 14])[2..].to_vec());
    node.hear(entry(14, 13));
    node.receives(&[13, 14]).await;
    node.gaps("lost", 1).await;
    node.hear(entry(15, 14));
    node.receives(&[15]).await;
}

#[tokio::test]
async fn what_was_stored_after_the_clock_went_back_is_delivered_behind_a_gap() {
    let mut node = Node::start().await;
    let early = |id, after| entry_at(id, id, after);
    node.bus.set_journal(vec![early(13, 12), early(14, 13)]);
    node.hear(early(14, 13));
    node.receives(&[13, 14]).await;
    node.gaps("lost", 1).await;
    node.hear(early(15, 14));
    node.receives(&[15]).await;
    node.gaps("lost", 1).await;
}

#[tokio::test]
async fn a_broadcast_that_cannot_be_read_is_passed_over_and_is_no_gap() {
    let mut node = Node::start().await;
    let mut journal = chain(&[0, 10, 11, 12, 13]);
    journal[2].broadcast.event = UNREADABLE.into();
    node.bus.set_journal(journal);
    // 12 did not arrive, because no node could read it.
    node.hear(entry(11, 10));
    node.hear(entry(13, 12));
    node.receives(&[11, 13]).await;
    node.gaps("unreadable", 1).await;
    node.gaps("repaired", 1).await;
    node.gaps("lost", 0).await;
    node.hear(entry(14, 13));
    node.receives(&[14]).await;
}

#[tokio::test]
async fn a_journal_whose_newest_broadcast_cannot_be_read_is_followed_from_there() {
    let bus = FakeBus::new();
    let mut journal = chain(&[0, 10, 11]);
    journal[1].broadcast.event = UNREADABLE.into();
    bus.set_journal(journal);
    let mut node = Node::on(bus).await;
    node.hear(entry(12, 11));
    node.receives(&[12]).await;
    for outcome in ["repaired", "lost", "unreadable"] {
        node.gaps(outcome, 0).await;
    }
}

#[tokio::test]
async fn a_journal_that_was_lost_begins_again_with_smaller_ids() {
    let mut node = Node::start().await;
    let again = |id, after| entry_at(900_000 + id, id, after);
    node.bus.set_journal(vec![again(5, 0), again(6, 5)]);
    node.hear(again(6, 5));
    node.receives(&[5, 6]).await;
    node.gaps("lost", 1).await;
    node.hear(again(7, 6));
    node.receives(&[7]).await;
}

#[tokio::test]
async fn a_journal_that_was_lost_while_the_clock_went_back_is_followed_from_its_end() {
    let mut node = Node::start().await;
    let early = |id, after| entry_at(id, id, after);
    node.bus.set_journal(vec![early(5, 0), early(6, 5)]);
    node.gap();
    node.gaps("lost", 1).await;
    node.hear(early(7, 6));
    node.receives(&[7]).await;
}

#[tokio::test]
async fn a_broadcast_that_may_not_be_stored_is_not_delivered() {
    let mut node = Node::start().await;
    let refused = node.server.io.emit("n", 1).await.unwrap_err();
    assert!(
        matches!(refused, EmitError::Bus(BusError::Unconfirmed(_))),
        "{refused:?}"
    );
    node.hear(entry(11, 10));
    node.receives(&[11]).await;
}

#[tokio::test]
async fn clients_of_all_nodes_receive_broadcasts_in_one_order() {
    const EACH: usize = 100;
    let bus = MemoryBus::new();
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let namespace = main_namespace().journal(JournalLimits::default());
        let builder = Server::builder().namespace(namespace).bus(bus.clone());
        let server = TestServer::start(builder).await;
        let client = WebSocket::connect(server.address).await;
        nodes.push((server, client));
    }
    let emitting = nodes.iter().enumerate().map(|(index, (server, _))| {
        let io = server.io.clone();
        tokio::spawn(async move {
            for number in 0..EACH {
                let delivery = io.emit("n", index * EACH + number).await.unwrap();
                assert!(delivery.position.is_some());
            }
        })
    });
    for emitting in emitting.collect::<Vec<_>>() {
        emitting.await.unwrap();
    }
    let mut orders = Vec::new();
    for (_, client) in &mut nodes {
        let order = client.texts(2 * EACH).await;
        orders.push(order);
    }
    assert_eq!(orders[0], orders[1]);
}
