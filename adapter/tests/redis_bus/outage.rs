//! Redis goes away, hangs, and comes back.

use std::time::{Duration, SystemTime};

use roomcast_adapter::{BusError, Question};
use roomcast_protocol::{
    channel::Dialect,
    msgpack::TranscodeLimits,
    target::Target,
    wire::{Parser, Wire},
};

use crate::{
    deployment::{Deployment, metric},
    node::{Node, broadcast, eventually, within},
    support::assert_matches,
};

async fn publish(node: &Node) -> Result<usize, BusError> {
    let published = within(node.handle.publish(broadcast(&[], 0))).await;
    published.map(|published| published.nodes)
}

async fn until_unavailable(node: &Node) {
    loop {
        match publish(node).await {
            Err(BusError::Unavailable(_)) => return,
            // On its way when the connection broke.
            Ok(_) | Err(BusError::Unconfirmed(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// The number of our nodes that this one sees, by its metric.
fn seen(node: &Node) -> f64 {
    metric(node, "roomcast_bus_nodes", r#"kind="roomcast""#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_nothing_waits_for_it_and_afterwards_all_is_well() {
    let mut deployment = Deployment::start();
    let (a, b) = (deployment.node().await, deployment.node().await);
    let gaps = b.gaps();
    b.join("before").await;
    let socket = b.connect(1);
    b.confirm(socket.as_str()).await;
    let killed = SystemTime::now();
    deployment.server.kill();

    within(until_unavailable(&a)).await;
    let question = Question::Sockets(Target::default());
    let asked = a.handle.ask(question, Duration::from_secs(3600)).await;
    assert_matches!(asked, Err(BusError::Unavailable(_)));
    b.side.enter("meanwhile", false);
    b.handle.changed();
    let room = vec!["meanwhile".into()];
    let confirmed = within(b.handle.confirm(room)).await;
    assert!(confirmed.is_err());
    b.until_interrupted().await;
    eventually("no node is seen", || seen(&a) == 0.0).await;
    let queued = metric(&a, "roomcast_bus_queued_bytes", "");
    assert!(queued == 0.0, "{queued}");

    let restarted = SystemTime::now();
    deployment.server.restart();
    for node in [&a, &b] {
        node.until_flowing().await;
    }
    for rooms in [&[][..], &["before"], &["meanwhile"], &[socket.as_str()]] {
        a.publish(broadcast(rooms, 2)).await;
        assert_eq!(b.heard(1).await, [broadcast(rooms, 2)]);
    }
    let gaps = gaps.lock().clone();
    assert!(
        gaps.iter()
            .any(|gap| gap.from <= killed && gap.to >= restarted),
        "{gaps:?}"
    );
    assert!(metric(&b, "roomcast_bus_gaps_total", "") >= 1.0);
    let leases = deployment.channels().leases();
    // Each beside its settings.
    eventually("both have leases", || {
        deployment.server.command(&["ZCARD", &leases]) == ":4\r\n"
    })
    .await;
    eventually("each sees both", || [&a, &b].map(seen) == [2.0; 2]).await;
    let question = Question::Sockets(Target::default());
    let answered = a.ask(question, Duration::from_secs(3600)).await;
    assert_eq!((answered.answers.len(), answered.silent.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_ends_with_its_time_though_redis_hangs() {
    let mut deployment = Deployment::start();
    deployment.config.publish_timeout = Duration::from_secs(3600);
    deployment.config.probe_timeout = Duration::from_secs(3600);
    let (a, _b) = (deployment.node().await, deployment.node().await);
    deployment.server.suspend();
    let question = Question::Sockets(Target::default());
    let asked = a.handle.ask(question, Duration::from_millis(300));
    let asked = within(asked).await;
    deployment.server.resume();
    assert_matches!(asked, Err(BusError::Unconfirmed(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_counted_and_goes_its_way_though_nobody_waits() {
    let deployment = Deployment::start();
    let (a, b) = (deployment.node().await, deployment.node().await);
    let published = |outcome| metric(&a, "roomcast_bus_messages_published_total", outcome);
    assert!(published("ok") == 0.0);
    drop(a.handle.publish(broadcast(&[], 1)));
    a.publish(broadcast(&[], 2)).await;
    assert_eq!(b.heard(2).await, [broadcast(&[], 1), broadcast(&[], 2)]);
    eventually("both are counted", || published("ok") == 2.0).await;
    let question = Question::Sockets(Target::default());
    drop(a.handle.ask(question, Duration::from_secs(3600)));
    eventually("the question is counted", || published("ok") == 3.0).await;
    assert!(metric(&a, "roomcast_bus_requests_total", "failed") == 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_says_at_last_arrives_before_it_has_closed() {
    let deployment = Deployment::start();
    let (a, b) = (deployment.node().await, deployment.node().await);
    for number in 0..100 {
        drop(a.handle.publish(broadcast(&[], number)));
    }
    within(a.bus.close(&a.id)).await;
    let expected: Vec<_> = (0..100).map(|number| broadcast(&[], number)).collect();
    assert_eq!(b.heard(100).await, expected);
    let error = publish(&a).await.unwrap_err();
    assert_matches!(error, BusError::Unavailable(_));
}

/// The command by which an emitter appends a broadcast to the stream.
fn entry(deployment: &Deployment, number: u32) -> Vec<String> {
    let channels = deployment.channels();
    let mut command = vec![
        "XADD".to_owned(),
        channels.stream().to_owned(),
        "*".to_owned(),
    ];
    let wire = Wire::new(channels, Parser::default(), TranscodeLimits::default());
    let message = broadcast(&[], number);
    let entry = wire.entry("/", "emitter", &message, None).unwrap();
    let fields = entry.fields().flat_map(|(name, value)| [name, value]);
    command.extend(fields.map(str::to_owned));
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_read_on_after_an_outage_and_what_was_trimmed_unread_is_a_gap() {
    let mut deployment = Deployment::of(Dialect::Streams);
    let node = deployment.node().await;
    let gaps = node.gaps();
    let heard = async |number| assert_eq!(node.heard(1).await, [broadcast(&[], number)]);
    let append = |deployment: &Deployment, number| {
        let command = entry(deployment, number);
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        deployment.server.command(&command);
    };
    append(&deployment, 1);
    heard(1).await;
    deployment.server.command(&["SAVE"]);
    deployment.server.kill();
    eventually("the node knows", || {
        metric(&node, "roomcast_bus_link_up", r#"link="stream""#) == 0.0
    })
    .await;
    deployment.server.restart();
    // An entry that is no message, or a broken one, is skipped.
    let stream = deployment.channels().stream().to_owned();
    for junk in [
        &["a", "b"][..],
        &["nsp", "/", "type", "3", "data", "{"],
        &["nsp", "/", "type", "3", "data", "%"],
        &["nsp", "/elsewhere", "type", "3", "data", "{}"],
    ] {
        let command = [&["XADD", &stream, "*"], junk].concat();
        deployment.server.command(&command);
    }
    append(&deployment, 2);
    heard(2).await;
    node.until_flowing().await;
    assert_eq!(*gaps.lock(), []);

    let mut plain = deployment.plain();
    plain.command(&["MULTI"]);
    plain.command(&entry(&deployment, 3));
    plain.command(&entry(&deployment, 4));
    plain.command(&["XTRIM", deployment.channels().stream(), "MAXLEN", "1"]);
    plain.command(&["EXEC"]);
    heard(4).await;
    eventually("the gap is reported", || gaps.lock().len() == 1).await;
}
