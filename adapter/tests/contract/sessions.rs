//! The guarantees of every store of sessions, one check each.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use roomcast_adapter::{Session, Sessions, Taken};

use crate::{
    checks::{Check, checks},
    fabric::Fresh,
    node::{DEADLINE, Node, within},
};

checks! {
    a_session_that_two_nodes_take_is_the_later_ones
    a_session_that_is_taken_keeps_its_value_and_its_time
    a_session_that_was_lost_is_stored_again
    an_owner_replaces_its_session
    a_former_owner_changes_nothing
    a_session_that_is_removed_has_gone
    a_session_ends_when_its_time_is_over
    a_session_that_is_refreshed_is_kept
    namespaces_have_sessions_of_their_own
}

const LONG: Duration = Duration::from_secs(600);
const OWNER: &str = "owner-of-the-session";
const OTHER: &str = "another-owner-of-it-";
const TAKER: &str = "the-one-who-takes-it";

fn sessions(node: &Node) -> Arc<dyn Sessions> {
    node.handle.sessions().unwrap()
}

fn session(owner: &str, value: &'static str, life: Duration) -> Session {
    Session {
        pid: "p".into(),
        owner: owner.into(),
        value: Bytes::from_static(value.as_bytes()),
        life,
    }
}

async fn create(sessions: &Arc<dyn Sessions>, owner: &str, value: &'static str, life: Duration) {
    within(sessions.create(session(owner, value, life)))
        .await
        .unwrap();
}

async fn update(sessions: &Arc<dyn Sessions>, owner: &str, value: &'static str) -> bool {
    within(sessions.update(session(owner, value, LONG)))
        .await
        .unwrap()
}

async fn take_for(sessions: &Arc<dyn Sessions>, owner: &str) -> Option<Taken> {
    within(sessions.take("p", owner)).await.unwrap()
}

async fn take(sessions: &Arc<dyn Sessions>) -> Option<Bytes> {
    let taken = take_for(sessions, TAKER).await;
    taken.map(|taken| taken.value)
}

async fn a_session_that_two_nodes_take_is_the_later_ones(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    let (a, b) = (sessions(&a), sessions(&b));
    create(&a, OWNER, "\u{0}ä", LONG).await;
    let (first, second) = tokio::join!(take_for(&a, TAKER), take_for(&b, OTHER));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!([&*first.value, &*second.value], ["\u{0}ä".as_bytes(); 2]);
    // Each knows from whom it has taken it, so the later one is known.
    let is_first_later = *first.owner == *OTHER;
    assert_eq!(*second.owner, *if is_first_later { OWNER } else { TAKER });
    assert!(is_first_later || *first.owner == *OWNER);
    assert_eq!(update(&a, TAKER, "first").await, is_first_later);
    assert_eq!(update(&b, OTHER, "second").await, !is_first_later);
}

async fn a_session_that_is_taken_keeps_its_value_and_its_time(fabric: Fresh) {
    let node = fabric.node("/").await;
    let sessions = sessions(&node);
    create(&sessions, OWNER, "1", LONG).await;
    assert_eq!(take(&sessions).await.unwrap(), "1");
    let again = take_for(&sessions, OTHER).await.unwrap();
    assert_eq!((&*again.owner, &*again.value), (TAKER, &b"1"[..]));
    let life = Duration::from_secs(2);
    within(sessions.refresh(&["p".into()], life)).await.unwrap();
    let end = std::time::Instant::now() + DEADLINE;
    while take(&sessions).await.is_some() {
        assert!(std::time::Instant::now() < end, "it is kept for ever");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn a_session_that_was_lost_is_stored_again(fabric: Fresh) {
    let node = fabric.node("/").await;
    let sessions = sessions(&node);
    assert!(update(&sessions, OWNER, "1").await);
    assert!(!update(&sessions, OTHER, "2").await);
    assert_eq!(take(&sessions).await.unwrap(), "1");
}

async fn an_owner_replaces_its_session(fabric: Fresh) {
    let node = fabric.node("/").await;
    let sessions = sessions(&node);
    create(&sessions, OWNER, "1", LONG).await;
    assert!(update(&sessions, OWNER, "2").await);
    assert_eq!(take(&sessions).await.unwrap(), "2");
}

async fn a_former_owner_changes_nothing(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    let (a, b) = (sessions(&a), sessions(&b));
    create(&a, OWNER, "1", LONG).await;
    assert_eq!(take_for(&b, OTHER).await.unwrap().value, "1");
    assert!(!update(&a, OWNER, "taken").await);
    assert!(update(&b, OTHER, "2").await);
    assert!(!update(&a, OWNER, "replaced").await);
    assert!(!within(a.remove("p", OWNER)).await.unwrap());
    assert_eq!(take(&a).await.unwrap(), "2");
}

async fn a_session_that_is_removed_has_gone(fabric: Fresh) {
    let node = fabric.node("/").await;
    let sessions = sessions(&node);
    create(&sessions, OWNER, "1", LONG).await;
    assert!(within(sessions.remove("p", OWNER)).await.unwrap());
    assert_eq!(take(&sessions).await, None);
}

async fn a_session_ends_when_its_time_is_over(fabric: Fresh) {
    let node = fabric.node("/").await;
    let sessions = sessions(&node);
    create(&sessions, OWNER, "1", Duration::from_millis(50)).await;
    let end = std::time::Instant::now() + DEADLINE;
    while take(&sessions).await.is_some() {
        assert!(std::time::Instant::now() < end, "it is kept for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_session_that_is_refreshed_is_kept(fabric: Fresh) {
    let node = fabric.node("/").await;
    let sessions = sessions(&node);
    create(&sessions, OWNER, "1", Duration::from_secs(20)).await;
    let pids = ["p".into(), "unknown".into()];
    let shortened = within(sessions.refresh(&pids, Duration::from_millis(1))).await;
    assert_eq!(shortened.unwrap(), [true, false]);
    // It is shorter now, which shows that the time is the new one.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(take(&sessions).await, None);
    create(&sessions, OWNER, "1", LONG).await;
    within(sessions.refresh(&pids, LONG)).await.unwrap();
    assert_eq!(take(&sessions).await.unwrap(), "1");
}

async fn namespaces_have_sessions_of_their_own(fabric: Fresh) {
    let (main, chat) = (fabric.node("/").await, fabric.node("/chat").await);
    create(&sessions(&main), OWNER, "1", LONG).await;
    assert_eq!(take(&sessions(&chat)).await, None);
    assert_eq!(take(&sessions(&main)).await.unwrap(), "1");
}
