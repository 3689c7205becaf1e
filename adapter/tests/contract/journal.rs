//! The guarantees of every journal, one check each.

use std::{sync::Arc, time::Duration};

use roomcast_adapter::{
    BusError, BusFuture, HistoryLimits, JournalLimits, JournalPage, Log, LogLimits, Once, Page,
    Position, Published,
};
use roomcast_protocol::{args::Args, message::Broadcast, receipt::Receipt};

use crate::{
    checks::{Check, checks},
    fabric::Fresh,
    node::{DEADLINE, args, broadcast, event, number_of, within},
    support::assert_matches,
};

checks! {
    a_broadcast_is_heard_by_all_nodes_and_read_by_all
    positions_are_a_chain_whoever_publishes
    broadcasts_keep_the_order_in_which_they_were_emitted
    what_is_published_to_a_room_is_in_its_history_and_in_the_journal
    a_journal_is_read_in_pages
    a_journal_keeps_about_as_many_broadcasts_as_allowed
    a_journal_keeps_about_as_many_bytes_as_allowed_and_always_the_newest
    a_journal_forgets_what_is_too_old
    an_empty_journal_has_no_newest_id
    under_an_idempotency_key_all_nodes_hear_a_broadcast_once
    under_an_idempotency_key_a_broadcast_is_stored_once
}

fn limits(change: impl FnOnce(&mut JournalLimits)) -> JournalLimits {
    let mut journal = JournalLimits::default();
    change(&mut journal);
    journal
}

/// A broadcast to two rooms without a third.
fn narrowed(number: u32) -> Broadcast {
    let mut broadcast = event(&["a", "b"], number);
    broadcast.target.add_except("c");
    broadcast
}

async fn emit(log: &Arc<dyn Log>, number: u32) -> Position {
    let emitted = log.broadcast(narrowed(number));
    within(emitted).await.unwrap().position.unwrap()
}

async fn read(log: &Arc<dyn Log>, page: Page, limit: usize) -> JournalPage {
    within(log.read_journal(page, limit)).await.unwrap()
}

fn numbers(page: &JournalPage) -> Vec<u32> {
    let entries = page.entries.iter();
    entries
        .map(|entry| number_of(&entry.broadcast.args))
        .collect()
}

fn positions(stored: &[(Position, u32)]) -> Vec<Position> {
    stored.iter().map(|(position, _)| *position).collect()
}

/// Whether each position names the one before it.
fn is_chain(positions: &[Position]) -> bool {
    let mut pairs = positions.windows(2);
    pairs.all(|pair| pair[1].after == Some(pair[0].id) && pair[0].id < pair[1].id)
}

async fn a_broadcast_is_heard_by_all_nodes_and_read_by_all(fabric: Fresh) {
    let nodes = [fabric.node("/").await, fabric.node("/").await];
    let logs = nodes.each_ref().map(|node| node.log(limits(|_| ())));
    let mut sent = Vec::new();
    for number in 0..4 {
        sent.push((emit(&logs[number as usize % 2], number).await, number));
    }
    for (node, log) in nodes.iter().zip(&logs) {
        let heard = node.stored(4).await;
        assert_eq!(heard[0].0.after, Some(0));
        assert!(is_chain(&positions(&heard)));
        for ((position, number), (published, sent)) in heard.iter().zip(&sent) {
            assert_eq!((position.id, position.time), (published.id, published.time));
            // A publisher need not know what is before.
            assert!(published.after.is_none() || published.after == position.after);
            assert_eq!(number, sent);
        }
        let page = read(log, Page::After(0), 9).await;
        assert_eq!((numbers(&page), page.is_full), (vec![0, 1, 2, 3], false));
        assert_eq!(page.newest, sent[3].0.id);
        for (entry, (position, number)) in page.entries.iter().zip(&heard) {
            assert_eq!(entry.position, *position);
            assert_eq!(entry.broadcast, narrowed(*number));
        }
    }
}

async fn positions_are_a_chain_whoever_publishes(fabric: Fresh) {
    const EACH: u32 = 100;
    let nodes = [fabric.node("/").await, fabric.node("/").await];
    let logs = nodes.each_ref().map(|node| node.log(limits(|_| ())));
    let publishing = [0, 1, 0, 1].into_iter().enumerate().map(|(index, node)| {
        let log = Arc::clone(&logs[node]);
        let first = index as u32 * EACH;
        tokio::spawn(async move {
            for number in first..first + EACH {
                emit(&log, number).await;
            }
        })
    });
    for publishing in publishing.collect::<Vec<_>>() {
        within(publishing).await.unwrap();
    }
    let page = read(&logs[0], Page::After(0), 1000).await;
    let kept: Vec<_> = page.entries.iter().map(|entry| entry.position).collect();
    assert_eq!((kept.len(), is_chain(&kept)), (4 * EACH as usize, true));
    for node in &nodes {
        assert_eq!(positions(&node.stored(kept.len()).await), kept);
    }
}

async fn broadcasts_keep_the_order_in_which_they_were_emitted(fabric: Fresh) {
    // More than are stored with one command, and one that needs more than all others.
    const COUNT: u32 = 400;
    let node = fabric.node("/").await;
    let log = node.log(LogLimits {
        history: Some(HistoryLimits::default()),
        journal: Some(JournalLimits::default()),
    });
    let emitting = (0..COUNT).map(|number| -> BusFuture<_> {
        if number == 200 {
            return log.publish("a", "e", args(number));
        }
        let length = if number == 100 { 100_000 } else { 1 };
        let room = "x".repeat(length);
        let emitting = log.broadcast(event(&[&room], number));
        Box::pin(async move { Ok(emitting.await?.position.unwrap()) })
    });
    let mut published = Vec::new();
    for emitting in emitting.collect::<Vec<_>>() {
        published.push(within(emitting).await.unwrap());
    }
    assert!(is_chain(&published));
    let page = read(&log, Page::After(0), 1000).await;
    assert_eq!(numbers(&page), (0..COUNT).collect::<Vec<_>>());
    let kept = page.entries.iter().map(|entry| entry.position);
    assert_eq!(kept.collect::<Vec<_>>(), published);
    assert_eq!(positions(&node.stored(COUNT as usize).await), published);
}

async fn what_is_published_to_a_room_is_in_its_history_and_in_the_journal(fabric: Fresh) {
    let node = fabric.node("/").await;
    let log = node.log(LogLimits {
        history: Some(HistoryLimits::default()),
        journal: Some(JournalLimits::default()),
    });
    let first = emit(&log, 1).await;
    let second = within(log.publish("a", "e", args(2))).await.unwrap();
    let third = emit(&log, 3).await;
    assert!(is_chain(&[first, second, third]));
    assert_eq!(positions(&node.stored(3).await), [first, second, third]);
    assert_eq!(numbers(&read(&log, Page::After(0), 9).await), [1, 2, 3]);
    let history = within(log.read("a", Page::After(0), 9)).await.unwrap();
    let ids: Vec<_> = history.iter().map(|entry| entry.id).collect();
    assert_eq!(ids, [second.id]);
}

async fn a_journal_is_read_in_pages(fabric: Fresh) {
    // More than is read at once.
    const COUNT: u32 = 230;
    let node = fabric.node("/").await;
    let log = node.log(limits(|_| ()));
    let mut ids = Vec::new();
    for number in 0..COUNT {
        ids.push(emit(&log, number).await.id);
    }
    let all: Vec<_> = (0..COUNT).collect();
    let page = read(&log, Page::After(ids[9]), 100).await;
    assert_eq!(
        (numbers(&page), page.is_full),
        (all[10..110].to_vec(), true)
    );
    let page = read(&log, Page::After(0), 1000).await;
    assert_eq!((numbers(&page), page.is_full), (all.clone(), false));
    assert_eq!(numbers(&read(&log, Page::Latest, 1).await), [COUNT - 1]);
    assert_eq!(numbers(&read(&log, Page::Only(ids[7]), 9).await), [7]);
    let page = read(&log, Page::After(ids[229]), 9).await;
    assert_eq!((page.entries.len(), page.newest), (0, ids[229]));
}

async fn a_journal_keeps_about_as_many_broadcasts_as_allowed(fabric: Fresh) {
    let node = fabric.node("/").await;
    let log = node.log(limits(|limits| limits.messages = 50));
    for number in 0..400 {
        emit(&log, number).await;
    }
    let page = read(&log, Page::After(0), 999).await;
    let kept = numbers(&page);
    assert_eq!(kept.last(), Some(&399));
    // Redis trims a stream in nodes of a hundred entries.
    assert!((50..=150).contains(&kept.len()), "{}", kept.len());
    let positions: Vec<_> = page.entries.iter().map(|entry| entry.position).collect();
    assert!(is_chain(&positions));
}

async fn a_journal_keeps_about_as_many_bytes_as_allowed_and_always_the_newest(fabric: Fresh) {
    let node = fabric.node("/").await;
    let log = node.log(limits(|limits| limits.bytes = 20_000));
    let emit = async |number: u32, length: usize| {
        let emitted = log.broadcast(Broadcast {
            args: Args::encode(&(number, "x".repeat(length))).unwrap(),
            ..event(&[], number)
        });
        within(emitted).await.unwrap();
    };
    for number in 0..100 {
        emit(number, 1000).await;
    }
    let kept = numbers(&read(&log, Page::After(0), 999).await);
    assert_eq!(kept.last(), Some(&99));
    // Entries beyond the limit may be removed a few broadcasts later.
    assert!((15..=20 + 16).contains(&kept.len()), "{kept:?}");
    for number in 100..120 {
        emit(number, 30_000).await;
    }
    let kept = numbers(&read(&log, Page::After(0), 999).await);
    assert_eq!(kept.last(), Some(&119));
    assert!(kept.len() <= 16, "{kept:?}");
}

async fn a_journal_forgets_what_is_too_old(fabric: Fresh) {
    let node = fabric.node("/").await;
    let log = node.log(limits(|limits| limits.age = Duration::from_secs(1)));
    let end = std::time::Instant::now() + DEADLINE;
    let mut number = 0;
    loop {
        emit(&log, number).await;
        let page = read(&log, Page::After(0), 1000).await;
        let kept = numbers(&page);
        assert_eq!(kept.last(), Some(&number));
        if kept[0] > 0 {
            break;
        }
        assert!(std::time::Instant::now() < end, "it is kept for ever");
        tokio::time::sleep(Duration::from_millis(100)).await;
        number += 1;
    }
}

async fn an_empty_journal_has_no_newest_id(fabric: Fresh) {
    let node = fabric.node("/").await;
    let log = node.log(limits(|_| ()));
    let empty = read(&log, Page::Latest, 1).await;
    assert_eq!((empty.entries.len(), empty.newest), (0, 0));
    let other = fabric.node("/chat").await;
    let other = other.log(limits(|_| ()));
    emit(&other, 1).await;
    assert_eq!(read(&log, Page::Latest, 1).await.entries, []);
}

fn once(key: &str, fingerprint: &str) -> Once {
    Once {
        key: key.into(),
        lifetime: DEADLINE,
        fingerprint: fingerprint.into(),
    }
}

async fn under_an_idempotency_key_all_nodes_hear_a_broadcast_once(fabric: Fresh) {
    let nodes = [fabric.node("/").await, fabric.node("/").await];
    let publish = |node: usize, number, once| {
        let node = &nodes[node].handle;
        within(node.publish_once(event(&[], number), once))
    };
    let first = publish(0, 1, once("k", "1")).await.unwrap();
    assert!(fabric.counts_are_partial() || first.nodes == 1, "{first:?}");
    let again = publish(1, 1, once("k", "1")).await.unwrap();
    assert_eq!((first.is_replayed, again.is_replayed), (false, true));
    let reused = publish(1, 2, once("k", "2")).await;
    assert_matches!(reused, Err(BusError::KeyReused));
    assert!(!publish(1, 2, once("l", "2")).await.unwrap().is_replayed);
    // The receipt of the first one is kept, and no other.
    for (number, fingerprint, sockets) in [(1, "2", 8), (1, "1", 7), (0, "1", 9)] {
        let mut receipt = Receipt::new(None, 2);
        receipt.sockets = Some(sockets);
        let keeping = nodes[number]
            .handle
            .keep_receipt(once("k", fingerprint), receipt);
        within(keeping).await.unwrap();
    }
    let again = publish(0, 1, once("k", "1")).await.unwrap();
    assert!(again.is_replayed);
    assert_eq!(again.receipt.and_then(|receipt| receipt.sockets), Some(7));
    for node in &nodes {
        let expected = [1, 2].map(|number| broadcast(&[], number));
        assert_eq!(node.heard(2).await, expected);
    }
}

async fn under_an_idempotency_key_a_broadcast_is_stored_once(fabric: Fresh) {
    let nodes = [fabric.node("/").await, fabric.node("/").await];
    let logs = nodes.each_ref().map(|node| node.log(limits(|_| ())));
    let before = emit(&logs[0], 0).await;
    let publish = |node: usize| within(logs[node].broadcast_once(event(&["a"], 1), once("k", "1")));
    let (first, again) = (publish(0).await.unwrap(), publish(1).await.unwrap());
    assert_eq!((first.is_replayed, again.is_replayed), (false, true));
    let id = |published: &Published| published.position.map(|position| position.id);
    assert_eq!(id(&first), id(&again));
    let after = emit(&logs[1], 2).await;
    for node in &nodes {
        let heard = node.stored(3).await;
        let numbers: Vec<_> = heard.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers, [0, 1, 2]);
        // A stream does not tell what is before a broadcast.
        let place = |position: Position| (position.id, position.time);
        let places = [heard[0].0, heard[2].0].map(place);
        assert_eq!(places, [before, after].map(place));
        assert!(is_chain(&positions(&heard)));
    }
}
