//! What every bus promises, checked on the one in memory, on one Redis in each dialect, and on a
//! Redis Cluster of three primaries.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod checks;
mod fabric;
mod history;
mod journal;
mod node;
mod sessions;
#[path = "../../../emitter/tests/support/mod.rs"]
mod support;

use std::collections::HashMap;

use fabric::Fabric;
use roomcast_protocol::{
    channel::{Dialect, Mode},
    wire::Parser,
};
use tokio::task::JoinSet;

/// How many checks run at the same time: most of them wait most of the time.
const AT_ONCE: usize = 6;

/// Runs every check, each in a cluster of its own.
async fn keeps_its_promises(fabric: &Fabric) {
    let logs = history::all().into_iter().chain(journal::all());
    let kept = logs.chain(sessions::all());
    let checks = checks::all().into_iter().chain(kept);
    let mut checks = checks.filter(|(name, _)| !fabric.leaves_out(name));
    let mut running = JoinSet::new();
    let mut names = HashMap::new();
    loop {
        while running.len() < AT_ONCE
            && let Some((name, check)) = checks.next()
        {
            let task = running.spawn(check(fabric.fresh()));
            names.insert(task.id(), name);
        }
        match running.join_next().await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => panic!("{fabric}: {}: {error}", names[&error.id()]),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    keeps_its_promises(&Fabric::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_classic() {
    keeps_its_promises(&Fabric::redis(Dialect::Classic)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_sharded() {
    for mode in [Mode::Static, Mode::Dynamic, Mode::DynamicPrivate] {
        keeps_its_promises(&Fabric::redis(Dialect::Sharded(mode))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_with_the_documented_rights_and_signed_messages() {
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::DynamicPrivate)] {
        keeps_its_promises(&Fabric::redis_with_rights(dialect).signed()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_streams() {
    keeps_its_promises(&Fabric::redis_with_rights(Dialect::Streams)).await;
}

/// The parser concerns broadcasts only, of which the logs are made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_classic_with_json() {
    let fabric = Fabric::redis(Dialect::Classic).with_parser(Parser::Json);
    keeps_its_promises(&fabric).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cluster() {
    keeps_its_promises(&Fabric::redis_cluster(Dialect::Classic)).await;
    let sharded = Fabric::redis_cluster(Dialect::Sharded(Mode::Dynamic));
    keeps_its_promises(&sharded.signed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cluster_streams() {
    keeps_its_promises(&Fabric::redis_cluster(Dialect::Streams)).await;
}
