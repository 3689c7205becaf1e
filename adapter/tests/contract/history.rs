//! The guarantees of every log, one check each.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use roomcast_adapter::{HistoryEntry, HistoryLimits, Log, Page, Position};
use roomcast_protocol::args::Args;

use crate::{
    checks::{Check, checks},
    fabric::Fresh,
    node::{DEADLINE, args, number_of, within},
};

checks! {
    what_is_stored_is_heard_by_all_nodes_and_read_by_all
    nodes_that_publish_in_parallel_are_heard_in_the_order_of_ids
    a_room_is_read_in_pages
    namespaces_and_rooms_are_apart
    entries_come_back_as_they_were
    a_room_keeps_as_many_entries_as_allowed
    a_room_keeps_as_many_bytes_as_allowed_and_always_the_newest
    an_entry_is_kept_as_long_as_allowed
    an_id_that_was_never_given_begins_with_the_oldest_entry
}

fn limits(change: impl FnOnce(&mut HistoryLimits)) -> HistoryLimits {
    let mut limits = HistoryLimits::default();
    change(&mut limits);
    limits
}

async fn publish(log: &Arc<dyn Log>, room: &str, number: u32) -> Position {
    within(log.publish(room, "e", args(number))).await.unwrap()
}

async fn read(log: &Arc<dyn Log>, room: &str, page: Page, limit: usize) -> Vec<HistoryEntry> {
    within(log.read(room, page, limit)).await.unwrap()
}

async fn numbers(log: &Arc<dyn Log>, room: &str, page: Page, limit: usize) -> Vec<u32> {
    let entries = read(log, room, page, limit).await;
    entries.iter().map(|entry| number_of(&entry.args)).collect()
}

async fn what_is_stored_is_heard_by_all_nodes_and_read_by_all(fabric: Fresh) {
    let nodes = [fabric.node("/").await, fabric.node("/").await];
    let logs = nodes
        .each_ref()
        .map(|node| node.log(HistoryLimits::default()));
    let mut sent = Vec::new();
    for number in 0..4 {
        let room = if number % 2 == 0 { "a" } else { "b" };
        let position = publish(&logs[number as usize % 2], room, number).await;
        sent.push((position, number));
    }
    for (node, log) in nodes.iter().zip(&logs) {
        assert_eq!(node.stored(4).await, sent);
        assert_eq!(numbers(log, "a", Page::After(0), 9).await, [0, 2]);
        let entry = &read(log, "b", Page::Only(sent[3].0.id), 1).await[0];
        assert_eq!((entry.id, entry.time), (sent[3].0.id, sent[3].0.time));
        assert_eq!((&*entry.room, &*entry.event), ("b", "e"));
    }
}

async fn nodes_that_publish_in_parallel_are_heard_in_the_order_of_ids(fabric: Fresh) {
    const EACH: u32 = 150;
    let nodes = [
        fabric.node("/").await,
        fabric.node("/").await,
        fabric.node("/").await,
    ];
    let logs = nodes
        .each_ref()
        .map(|node| node.log(HistoryLimits::default()));
    let publishers = [(0, "a"), (0, "b"), (1, "a"), (1, "b")];
    let publishing = publishers
        .into_iter()
        .enumerate()
        .map(|(index, (node, room))| {
            let log = Arc::clone(&logs[node]);
            let first = index as u32 * EACH;
            tokio::spawn(async move {
                let mut sent = Vec::new();
                for number in first..first + EACH {
                    sent.push((publish(&log, room, number).await, number));
                }
                sent
            })
        });
    let publishing: Vec<_> = publishing.collect();
    // A reader that looks again and again for what is after the last id that it has seen.
    let reading = Arc::clone(&logs[2]);
    let reader = tokio::spawn(async move {
        let mut seen: Vec<HistoryEntry> = Vec::new();
        while seen.len() < 2 * EACH as usize {
            let last = seen.last().map_or(0, |entry| entry.id);
            seen.extend(read(&reading, "a", Page::After(last), 1000).await);
            // Reading from memory never yields to other tasks.
            tokio::task::yield_now().await;
        }
        seen.iter().map(|entry| entry.id).collect::<Vec<_>>()
    });
    let mut sent = Vec::new();
    for publishing in publishing {
        sent.extend(within(publishing).await.unwrap());
    }
    sent.sort_unstable();
    assert!(sent.is_sorted_by(|a, b| a.0.id < b.0.id));
    for node in &nodes {
        assert_eq!(node.stored(sent.len()).await, sent);
    }
    let in_a = sent
        .iter()
        .filter(|(_, number)| (number / EACH).is_multiple_of(2));
    let ids: Vec<_> = in_a.map(|(position, _)| position.id).collect();
    assert_eq!(within(reader).await.unwrap(), ids);
}

async fn a_room_is_read_in_pages(fabric: Fresh) {
    // More than is read at once.
    const COUNT: u32 = 230;
    let node = fabric.node("/").await;
    let log = node.log(HistoryLimits::default());
    let mut ids = Vec::new();
    for number in 0..COUNT {
        ids.push(publish(&log, "a", number).await.id);
    }
    let all: Vec<_> = (0..COUNT).collect();
    assert_eq!(numbers(&log, "a", Page::After(0), 1000).await, all);
    assert_eq!(numbers(&log, "a", Page::Latest, 1000).await, all);
    assert_eq!(numbers(&log, "a", Page::Before(u64::MAX), 1000).await, all);
    assert_eq!(numbers(&log, "a", Page::Latest, 210).await, all[20..]);
    let page = Page::After(ids[9]);
    assert_eq!(numbers(&log, "a", page, 200).await, all[10..210]);
    let page = Page::Before(ids[220]);
    assert_eq!(numbers(&log, "a", page, 210).await, all[10..220]);
    assert_eq!(numbers(&log, "a", Page::Only(ids[7]), 9).await, [7]);
    for nothing in [
        Page::After(ids[229]),
        Page::Before(ids[0]),
        Page::Before(0),
        Page::Only(0),
        Page::Only(u64::MAX),
    ] {
        assert_eq!(read(&log, "a", nothing, 9).await, [], "{nothing:?}");
    }
    assert_eq!(read(&log, "a", Page::Latest, 0).await, []);
}

async fn namespaces_and_rooms_are_apart(fabric: Fresh) {
    let (main, chat) = (fabric.node("/").await, fabric.node("/chat").await);
    let logs = [&main, &chat].map(|node| node.log(HistoryLimits::default()));
    let rooms = ["", "#", "a", "a#", "a b", "{a}", "ä\u{0}\"", "*"];
    for (number, room) in (0..).zip(rooms) {
        publish(&logs[0], room, number).await;
    }
    publish(&logs[1], "a", 99).await;
    for (number, room) in (0..).zip(rooms) {
        assert_eq!(numbers(&logs[0], room, Page::Latest, 9).await, [number]);
    }
    assert_eq!(numbers(&logs[1], "a", Page::Latest, 9).await, [99]);
    assert_eq!(read(&logs[1], "#", Page::Latest, 9).await, []);
    assert_eq!(chat.stored(1).await[0].1, 99);
}

async fn entries_come_back_as_they_were(fabric: Fresh) {
    let node = fabric.node("/").await;
    let log = node.log(HistoryLimits::default());
    let binary = r#"[7,{"_placeholder":true,"num":0}]"#;
    let binary = Args::from_text(binary.into(), vec![Bytes::from_static(&[0, 255, 10])]);
    let long = "x".repeat(300_000);
    let all = [
        args(1),
        Args::encode(&(2, "ä\n\0\"", [1.5, -3.0])).unwrap(),
        binary.unwrap(),
        Args::encode(&(3, long)).unwrap(),
        Args::encode(&(4, serde_json::json!({"a": [null, true, {}]}))).unwrap(),
    ];
    for args in &all {
        within(log.publish("a", "an event", args.clone()))
            .await
            .unwrap();
    }
    let found = read(&log, "a", Page::After(0), 9).await;
    let found: Vec<_> = found.into_iter().map(|entry| entry.args).collect();
    assert_eq!(found, all);
    assert_eq!(node.stored(all.len()).await.len(), all.len());
}

async fn a_room_keeps_as_many_entries_as_allowed(fabric: Fresh) {
    let node = fabric.node("/").await;
    let log = node.log(limits(|limits| limits.messages = 3));
    for number in 0..10 {
        publish(&log, "a", number).await;
    }
    publish(&log, "b", 10).await;
    assert_eq!(numbers(&log, "a", Page::After(0), 99).await, [7, 8, 9]);
    assert_eq!(numbers(&log, "b", Page::After(0), 99).await, [10]);
}

async fn a_room_keeps_as_many_bytes_as_allowed_and_always_the_newest(fabric: Fresh) {
    let node = fabric.node("/").await;
    let log = node.log(limits(|limits| limits.bytes = 5000));
    let publish = async |number: u32, length: usize| {
        let args = Args::encode(&(number, "x".repeat(length))).unwrap();
        within(log.publish("a", "e", args)).await.unwrap();
    };
    for number in 0..20 {
        publish(number, 1000).await;
    }
    // Beside its thousand bytes an entry has some more.
    assert_eq!(
        numbers(&log, "a", Page::After(0), 99).await,
        [16, 17, 18, 19]
    );
    publish(20, 10_000).await;
    assert_eq!(numbers(&log, "a", Page::After(0), 99).await, [20]);
    publish(21, 1000).await;
    assert_eq!(numbers(&log, "a", Page::After(0), 99).await, [21]);
}

async fn an_entry_is_kept_as_long_as_allowed(fabric: Fresh) {
    let node = fabric.node("/").await;
    let log = node.log(limits(|limits| limits.age = Duration::from_secs(2)));
    publish(&log, "a", 1).await;
    publish(&log, "other", 2).await;
    let end = std::time::Instant::now() + DEADLINE;
    // The room gets something in between, so that it does not just vanish as a whole.
    let mut number = 3;
    while numbers(&log, "a", Page::After(0), 1).await == [1] {
        assert!(std::time::Instant::now() < end, "it is kept for ever");
        publish(&log, "b", number).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        number += 1;
    }
    assert_eq!(read(&log, "a", Page::Latest, 9).await, []);
    let kept = numbers(&log, "b", Page::After(0), 1000).await;
    assert_eq!(kept.last(), Some(&(number - 1)));
    let last = publish(&log, "b", number).await;
    let oldest = &read(&log, "b", Page::After(0), 1).await[0];
    assert!(
        last.time - oldest.time <= 2000 + 1000,
        "{oldest:?} {last:?}"
    );
}

async fn an_id_that_was_never_given_begins_with_the_oldest_entry(fabric: Fresh) {
    let node = fabric.node("/").await;
    let log = node.log(HistoryLimits::default());
    let id = publish(&log, "a", 1).await.id;
    publish(&log, "a", 2).await;
    let far = Page::After(id + 1_000_000_000);
    assert_eq!(numbers(&log, "a", far, 9).await, [1, 2]);
    assert_eq!(read(&log, "b", far, 9).await, []);
}
