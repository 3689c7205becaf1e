//! Who is counted, who is asked, and who is waited for.

use std::{
    thread,
    time::{Duration, SystemTime},
};

use roomcast_adapter::{Answer, Answered, Health, NodeId, Question};
use roomcast_emitter::membership::FOREIGN;
use roomcast_protocol::{
    channel::{Dialect, Mode, uid},
    target::Target,
    wire::Parser,
};
use serde_json::{Value, json};

use crate::{
    deployment::{Deployment, metric, node},
    node::{Node, eventually, within},
    support::{Listener, Plain},
};

/// Longer than a test may take: who waits to the end, fails.
const LONG: Duration = Duration::from_secs(3600);

/// Long enough for those who answer, where somebody does not.
const SHORT: Duration = Duration::from_millis(500);

async fn sockets(node: &Node, timeout: Duration) -> Answered {
    let question = Question::Sockets(Target::default());
    node.ask(question, timeout).await
}

fn ids(answered: &Answered) -> Vec<&str> {
    let sockets = answered.answers.iter().flat_map(|answer| match answer {
        Answer::Sockets(sockets) => &sockets[..],
        other => panic!("{other:?}"),
    });
    sockets.map(|socket| socket.id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_counts_once_until_it_retires() {
    let deployment = Deployment::start();
    let (a, b) = (deployment.node().await, deployment.node().await);
    let channels = deployment.channels();
    let counted = [channels.request("/"), channels.response("/").unwrap()];
    for channel in &counted {
        assert_eq!(deployment.subscribers(channel), 2);
    }
    within(b.bus.retire(&b.id)).await;
    assert_eq!(deployment.subscribers(&counted[0]), 1);
    assert_eq!(sockets(&a, LONG).await, Answered::default());
    // Who retires may still ask.
    let socket = a.connect(1);
    assert_eq!(ids(&sockets(&b, LONG).await), [socket.as_str()]);
    within(b.bus.close(&b.id)).await;
    // Redis notices the end of the connection by itself.
    deployment.until_subscribed(&counted[1], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_sharded_channels_a_node_counts_once_until_it_closes() {
    let deployment = Deployment::of(Dialect::Sharded(Mode::Dynamic));
    let (_a, b) = (deployment.node().await, deployment.node().await);
    let main = deployment.channels().broadcast("/");
    assert_eq!(deployment.subscribers(&main), 2);
    within(b.bus.retire(&b.id)).await;
    assert_eq!(deployment.subscribers(&main), 2);
    within(b.bus.close(&b.id)).await;
    assert_eq!(deployment.subscribers(&main), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_the_namespace_has_not_missed_a_confirmed_emit() {
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::Static)] {
        let deployment = Deployment::of(dialect);
        let (a, _b) = (deployment.node().await, deployment.node().await);
        let _other = deployment.node_in("/chat").await;
        let reached = a.ask(Question::Reached(Target::default()), LONG).await;
        assert_eq!(reached.silent, [], "{dialect:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_without_a_word_is_not_waited_for() {
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::Static)] {
        let deployment = Deployment::of(dialect);
        let (a, b) = (deployment.node().await, deployment.node().await);
        let dying = deployment.node().await;
        let socket = b.connect(1);
        let name = dying.id.clone();
        // Its lease goes on for a while.
        drop(dying);
        let request = deployment.channels().request("/");
        deployment.until_subscribed(&request, 2).await;
        let leases = deployment.channels().leases();
        let lease = ["ZSCORE", &leases, name.as_str()];
        assert!(!deployment.server.command(&lease).starts_with("$-1"));
        let answered = sockets(&a, LONG).await;
        assert_eq!(ids(&answered), [socket.as_str()]);
        assert!(answered.silent.is_empty(), "{answered:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_while_it_is_asked_is_named() {
    let deployment = Deployment::start();
    let (a, dying) = (deployment.node().await, deployment.node().await);
    dying.be_mute();
    let question = Question::Sockets(Target::default());
    let asked = tokio::spawn(a.handle.ask(question, LONG));
    let name = dying.id.clone();
    eventually("the question has come", || has_been_asked(&dying)).await;
    // Who is not seen by the asker before it dies, is not known to be missing. Others look once a
    // second, the asker five times.
    let looks = deployment.calls("pubsub|numsub");
    eventually("the asker has looked", || {
        deployment.calls("pubsub|numsub") > looks + 10
    })
    .await;
    drop(dying);
    let answered = within(asked).await.unwrap().unwrap();
    assert_eq!(answered.silent, [name]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_after_the_question_is_not_waited_for() {
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::Dynamic)] {
        let deployment = Deployment::of(dialect);
        let (a, dying) = (deployment.node().await, deployment.node().await);
        // From now on each knows the other's lease.
        assert_eq!(sockets(&a, LONG).await.answers.len(), 1);
        dying.be_mute();
        let question = Question::Sockets(Target::default());
        let asked = tokio::spawn(a.handle.ask(question, LONG));
        eventually("the question has come", || has_been_asked(&dying)).await;
        let late = deployment.node().await;
        let request = deployment.channels().request("/");
        deployment.until_subscribed(&request, 3).await;
        let looks = deployment.calls(count_of(dialect));
        eventually("the asker has looked", || {
            deployment.calls(count_of(dialect)) > looks + 10
        })
        .await;
        let name = dying.id.clone();
        drop(dying);
        let answered = within(asked).await.unwrap().unwrap();
        assert_eq!(answered.silent, [name]);
        drop(late);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_hides_no_other_member() {
    let deployment = Deployment::start();
    let (a, leaving) = (deployment.node().await, deployment.node().await);
    let _silent = subscribe_as_member(&deployment, "abcdef");
    // From now on the asker knows the other's lease.
    assert_eq!(sockets(&a, SHORT).await.answers.len(), 1);
    let retired = tokio::spawn(leaving.bus.retire(&leaving.id));
    let request = deployment.channels().request("/");
    deployment.until_subscribed(&request, 2).await;
    let answered = sockets(&a, SHORT).await;
    assert_eq!(answered.silent, [NodeId::new(FOREIGN)]);
    within(retired).await.unwrap();
}

/// The command that counts subscribers.
fn count_of(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Classic | Dialect::Streams => "pubsub|numsub",
        Dialect::Sharded(_) => "pubsub|shardnumsub",
    }
}

/// Whether a question has come to the node.
fn has_been_asked(node: &Node) -> bool {
    let collectors = node.bus.collectors().into_iter();
    let mut families = collectors.flat_map(|collector| collector.collect());
    families.any(|family| {
        family.name() == "roomcast_bus_answers_total" && !family.get_metric().is_empty()
    })
}

/// Subscribes what a member of the main namespace does, by itself or as a server of Node's.
fn subscribe_as_member(deployment: &Deployment, own: &str) -> Plain {
    let channels = deployment.channels();
    let mut member = deployment.plain();
    for channel in [
        channels.request("/"),
        channels.response("/").unwrap(),
        channels.response_of("/", own),
    ] {
        member.command(&["SUBSCRIBE", &channel]);
    }
    member
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_is_named_and_not_waited_for() {
    let deployment = Deployment::start();
    let (a, b) = (deployment.node().await, deployment.node().await);
    let hanging = NodeId::new("hang-hang-hang-hang-");
    let own = uid(&hanging, "/", Dialect::Classic);
    let _listening = subscribe_as_member(&deployment, own.as_str());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let ended = now.unwrap() - Duration::from_secs(1);
    let (leases, end) = (
        deployment.channels().leases(),
        ended.as_millis().to_string(),
    );
    let lease = ["ZADD", &leases, &end, hanging.as_str()];
    deployment.server.command(&lease);
    let socket = b.connect(1);
    let answered = sockets(&a, LONG).await;
    assert_eq!(ids(&answered), [socket.as_str()]);
    assert_eq!(answered.silent, [hanging]);
    assert!(metric(&a, "roomcast_bus_silent_nodes_total", "") == 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_url_names_another_database_is_asked_without_delay_and_noticed() {
    let deployment = Deployment::start();
    let a = deployment.node().await;
    let mut other = deployment.config.clone();
    other.url = format!("{}/1", deployment.server.url()).parse().unwrap();
    let b = node(&other, "/").await;
    let socket = b.connect(1);
    let answered = sockets(&a, LONG).await;
    assert_eq!(ids(&answered), [socket.as_str()]);
    assert!(answered.silent.is_empty(), "{answered:?}");
    assert!(metric(&a, "roomcast_bus_leaseless_answers_total", "") == 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_redis_has_lost_is_written_again_and_counted() {
    let deployment = Deployment::start();
    let a = deployment.node().await;
    let lost = || metric(&a, "roomcast_bus_leases_lost_total", "");
    let leases = deployment.channels().leases();
    let has_lease = || {
        let score = deployment
            .server
            .command(&["ZSCORE", &leases, a.id.as_str()]);
        !score.starts_with("$-1")
    };
    let renewals = deployment.calls("zadd");
    eventually("the lease is renewed", || {
        deployment.calls("zadd") > renewals + 1
    })
    .await;
    assert!(has_lease() && lost() == 0.0);
    deployment.server.command(&["DEL", &leases]);
    eventually("the loss is counted", || lost() == 1.0).await;
    assert!(has_lease());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_vanished_long_ago_is_silent_and_not_waited_for() {
    let deployment = Deployment::start();
    let a = deployment.node().await;
    // Redis keeps what a vanished node has subscribed.
    let vanished = NodeId::new("VANISHEDvanishedGONE");
    let own = uid(&vanished, "/", Dialect::Classic);
    let _subscriptions = subscribe_as_member(&deployment, own.as_str());
    let ten_minutes_ago = SystemTime::now() - Duration::from_secs(600);
    let end = ten_minutes_ago.duration_since(SystemTime::UNIX_EPOCH);
    let end = end.unwrap().as_millis().to_string();
    let leases = deployment.channels().leases();
    let lease = ["ZADD", &leases, &end, vanished.as_str()];
    deployment.server.command(&lease);
    // Leases that are over for good are removed meanwhile.
    let renewals = deployment.calls("zremrangebyscore");
    eventually("the leases were tidied", || {
        deployment.calls("zremrangebyscore") > renewals + 1
    })
    .await;
    let answered = sockets(&a, LONG).await;
    assert_eq!(answered.silent, [vanished]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_whose_settings_few_others_have_are_not_ready() {
    let deployment = Deployment::start();
    let mut other = deployment.config.clone();
    other.parser = Parser::Json;
    let is_ready = |node: &Node| node.bus.health() == Health::Flowing;
    let disagreeing = |node: &Node| metric(node, "roomcast_bus_disagreeing_nodes", "");
    let (a, b) = (deployment.node().await, node(&other, "/").await);
    for (one, theirs) in [(&a, "classic-json"), (&b, "classic-msgpack")] {
        eventually("neither is ready", || !is_ready(one)).await;
        let Health::Interrupted(reason) = one.bus.health() else {
            panic!("it became ready");
        };
        assert!(reason.contains(theirs), "{reason}");
    }
    let c = deployment.node().await;
    for one in [&a, &c] {
        eventually("most nodes are ready", || is_ready(one)).await;
        eventually("and notice", || disagreeing(one) == 1.0).await;
    }
    assert!(!is_ready(&b));
    within(b.bus.close(&b.id)).await;
    eventually("nobody disagrees", || disagreeing(&a) == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_that_listens_to_the_questions_is_not_waited_for() {
    let deployment = Deployment::start();
    let (a, _b) = (deployment.node().await, deployment.node().await);
    let request = deployment.channels().request("/");
    let _tool = Listener::start(&deployment.server, "SUBSCRIBE", &request);
    assert_eq!(deployment.subscribers(&request), 3);
    let answered = sockets(&a, LONG).await;
    assert_eq!((answered.answers.len(), answered.silent.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_other_make_is_waited_for_and_named_as_such() {
    let deployment = Deployment::start();
    let (a, b) = (deployment.node().await, deployment.node().await);
    let mut member = subscribe_as_member(&deployment, "abcdef");
    let own = b.connect(1);
    let answered = sockets(&a, Duration::from_secs(1)).await;
    assert_eq!(answered.silent, [NodeId::new("foreign")]);
    assert_eq!(ids(&answered), [own.as_str()]);

    let response = deployment.channels().response("/").unwrap();
    let mut answering = deployment.plain();
    let answering = thread::spawn(move || {
        while let Ok(message) = member.reply() {
            let Some(answer) = answer_to(&message) else {
                continue;
            };
            answering.command(&["PUBLISH", &response, &answer]);
        }
    });
    let answered = sockets(&a, LONG).await;
    assert!(answered.silent.is_empty(), "{answered:?}");
    let mut found = ids(&answered);
    found.sort_unstable();
    let mut expected = [own.as_str(), "theirs"];
    expected.sort_unstable();
    assert_eq!(found, expected);
    // The connection ends with the server.
    drop(deployment);
    answering.join().unwrap();
}

/// What a server of Node's says about its one socket, if it is asked.
fn answer_to(message: &[u8]) -> Option<String> {
    let message = String::from_utf8_lossy(message);
    let question = message
        .lines()
        .find_map(|line| serde_json::from_str::<Value>(line).ok())?;
    let id = question.get("requestId")?;
    question.get("opts")?;
    let socket = json!({"id": "theirs", "handshake": {}, "rooms": ["theirs"], "data": {}});
    Some(json!({"requestId": id, "sockets": [socket]}).to_string())
}
