//! Logs in Redis when Redis restarts, forgets its scripts, refuses, hangs, and is away.

use std::{sync::Arc, time::Duration};

use roomcast_adapter::{BusError, HistoryLimits, JournalLimits, Log, Page, Position};
use roomcast_protocol::channel::{Dialect, Mode};

use crate::{
    deployment::Deployment,
    node::{Node, args, event, number_of, within},
    support::assert_matches,
};

fn log(node: &Node) -> Arc<dyn Log> {
    node.log(HistoryLimits::default())
}

async fn publish(log: &Arc<dyn Log>, number: u32) -> Result<Position, BusError> {
    within(log.publish("a", "e", args(number))).await
}

/// The numbers that are kept, and their ids.
async fn kept(log: &Arc<dyn Log>) -> Vec<(u64, u32)> {
    let read = within(log.read("a", Page::After(0), 1000)).await.unwrap();
    let entries = read.iter().map(|entry| (entry.id, number_of(&entry.args)));
    entries.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_redis_has_forgotten_are_loaded_again() {
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::Static)] {
        let deployment = Deployment::of(dialect);
        let node = deployment.node().await;
        let log = log(&node);
        for number in 0..4 {
            deployment.server.command(&["SCRIPT", "FLUSH"]);
            publish(&log, number).await.unwrap();
            deployment.server.command(&["SCRIPT", "FLUSH"]);
            assert_eq!(kept(&log).await.len(), number as usize + 1);
        }
        deployment.server.command(&["SCRIPT", "FLUSH"]);
        let log = node.log(JournalLimits::default());
        let all = (4..20).map(|number| log.broadcast(event(&[], number)));
        for broadcast in all.collect::<Vec<_>>() {
            within(broadcast).await.unwrap();
        }
        let heard = node.stored(20).await;
        assert!(
            heard.iter().map(|(_, number)| *number).eq(0..20),
            "{heard:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarts_with_its_data_and_the_log_goes_on() {
    let mut deployment = Deployment::start();
    let node = deployment.node().await;
    let log = log(&node);
    let first = publish(&log, 1).await.unwrap();
    node.stored(1).await;
    deployment.server.command(&["SAVE"]);
    deployment.server.kill();
    loop {
        match publish(&log, 2).await {
            Err(BusError::Unavailable(_)) => break,
            // On its way when the connection broke.
            Err(BusError::Unconfirmed(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let read = within(log.read("a", Page::Latest, 9)).await;
    assert_matches!(read, Err(BusError::Unavailable(_)));
    deployment.server.restart();
    node.until_flowing().await;
    let third = publish(&log, 3).await.unwrap();
    assert!(third.id > first.id);
    assert_eq!(kept(&log).await, [(first.id, 1), (third.id, 3)]);
    assert_eq!(node.stored(1).await, [(third, 3)]);
}

/// A reader that knows an id of before gets what came since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarts_without_its_data_and_ids_grow() {
    let mut deployment = Deployment::start();
    let node = deployment.node().await;
    let log = log(&node);
    let before = publish(&log, 1).await.unwrap();
    deployment.server.kill();
    node.until_interrupted().await;
    deployment.server.restart();
    node.until_flowing().await;
    publish(&log, 2).await.unwrap();
    // Within the same second the ids may be the same, and later ones are greater.
    let after = publish(&log, 3).await.unwrap();
    assert!(after.id > before.id);
    let since = within(log.read("a", Page::After(before.id), 9))
        .await
        .unwrap();
    assert_eq!(since.last().map(|entry| entry.id), Some(after.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_refuses_is_neither_stored_nor_published() {
    let deployment = Deployment::start();
    let node = deployment.node().await;
    let log = log(&node);
    let journal = node.log(JournalLimits::default());
    publish(&log, 1).await.unwrap();
    for (refuse, allow) in [
        (
            ["CONFIG", "SET", "maxmemory", "1"],
            ["CONFIG", "SET", "maxmemory", "0"],
        ),
        (
            ["ACL", "SETUSER", "default", "-publish"],
            ["ACL", "SETUSER", "default", "+publish"],
        ),
        (
            ["ACL", "SETUSER", "default", "-xadd"],
            ["ACL", "SETUSER", "default", "+xadd"],
        ),
    ] {
        deployment.server.command(&refuse);
        publish(&log, 2).await.unwrap_err();
        // It has the id that was not given to the first one.
        let refused = publish(&log, 2).await;
        let all = (4..8).map(|number| journal.broadcast(event(&[], number)));
        for broadcast in all.collect::<Vec<_>>() {
            let refused = within(broadcast).await;
            assert!(
                matches!(&refused, Err(BusError::Invalid(why)) if !why.contains("XADD")),
                "{refuse:?}: {refused:?}"
            );
        }
        deployment.server.command(&allow);
        assert!(
            matches!(&refused, Err(BusError::Invalid(why)) if !why.contains("XADD")),
            "{refuse:?}: {refused:?}"
        );
    }
    node.until_flowing().await;
    let last = publish(&log, 3).await.unwrap();
    let numbers: Vec<_> = kept(&log).await.into_iter().map(|(_, n)| n).collect();
    assert_eq!(numbers, [1, 3]);
    let heard = node.stored(2).await;
    assert_eq!(heard[1], (last, 3));
    let read = journal.read_journal(Page::After(0), 9);
    assert_eq!(within(read).await.unwrap().entries, []);
    within(journal.broadcast(event(&[], 9))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_lost_after_a_broadcast_is_published_does_not_make_it_an_error() {
    for right in ["expire", "set"] {
        let deployment = Deployment::start();
        let node = deployment.node().await;
        let journal = node.log(JournalLimits::default());
        let history = log(&node);
        let lost = format!("-{right}");
        deployment
            .server
            .command(&["ACL", "SETUSER", "default", &lost]);
        let stored = journal.broadcast(event(&[], 1));
        within(stored).await.unwrap();
        assert_eq!(node.stored(1).await.len(), 1, "{right}");
        // The journal counts within the same namespace, and has lost its counter if it could not be set.
        let others = deployment.node_in("/chat").await;
        let history = match right {
            "set" => log(&others),
            _ => history,
        };
        publish(&history, 2).await.unwrap();
    }
}

/// Nobody may hear what is not stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_reply_the_outcome_is_unconfirmed_and_both_or_neither_has_happened() {
    let mut deployment = Deployment::start();
    deployment.config.publish_timeout = Duration::from_secs(2);
    let node = deployment.node().await;
    let log = log(&node);
    publish(&log, 1).await.unwrap();
    deployment.server.suspend();
    let published = publish(&log, 2).await;
    deployment.server.resume();
    assert_matches!(published, Err(BusError::Unconfirmed(_)));
    node.until_flowing().await;
    let last = loop {
        match publish(&log, 3).await {
            Ok(position) => break position,
            Err(BusError::Unavailable(_)) => tokio::task::yield_now().await,
            Err(other) => panic!("{other:?}"),
        }
    };
    // Redis may have got the command, and then it is in the log once.
    let numbers: Vec<_> = kept(&log).await.into_iter().map(|(_, n)| n).collect();
    assert!(numbers == [1, 3] || numbers == [1, 2, 3], "{numbers:?}");
    let mut heard = Vec::new();
    while heard.last() != Some(&(last, 3)) {
        heard.extend(node.stored(1).await);
    }
    assert!(
        heard.iter().all(|(_, number)| numbers.contains(number)),
        "{heard:?}"
    );
}

/// Entries that another make or version has stored do not hide the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_cannot_be_read_is_left_out() {
    let deployment = Deployment::start();
    let node = deployment.node().await;
    let log = log(&node);
    let first = publish(&log, 1).await.unwrap();
    let stream = deployment.channels().log("/") + "#a";
    let (name, time) = (format!("{}-0", first.id + 1), first.time.to_string());
    let fields = ["t", &time, "s", "9", "b", "garbage"];
    let command = [&["XADD", &stream, &name][..], &fields].concat();
    deployment.server.command(&command);
    let last = publish(&log, 2).await.unwrap();
    assert!(last.id > first.id + 1);
    assert_eq!(kept(&log).await, [(first.id, 1), (last.id, 2)]);
}
