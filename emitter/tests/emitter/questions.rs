//! What is asked of the nodes, and what becomes of their answers.

use std::time::Duration;

use roomcast_emitter::{Emitter, redis::Reply as _};
use roomcast_protocol::{
    args::Args,
    channel::{Dialect, Mode},
    id::SocketId,
    question::{Answer, Description, Question},
    wire::Reply,
};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    DEADLINE,
    member::{Kin, Member, Noticed, connect},
    support::Redis,
};

const DIALECTS: [Dialect; 2] = [Dialect::Classic, Dialect::Sharded(Mode::Dynamic)];

fn reached(sockets: usize) -> impl Fn(&Question) -> Vec<Reply> {
    move |_| vec![Reply::Answer(Answer::Reached(sockets))]
}

fn args(json: &str) -> Args {
    Args::from_text(json.into(), Vec::new()).unwrap()
}

fn described(id: &str) -> Description {
    Description {
        id: SocketId::new(id),
        rooms: vec![id.to_owned()],
        data: Value::Null,
        handshake: serde_json::json!({ "headers": {}, "time": "", "address": "", "xdomain": false,
            "secure": false, "issued": 0, "url": "", "query": {}, "auth": {} }),
    }
}

async fn emitter(redis: &Redis, dialect: Dialect) -> Emitter {
    let builder = Emitter::builder().dialect(dialect);
    builder.connect(&redis.url()).await.unwrap()
}

#[tokio::test]
async fn the_sockets_that_a_broadcast_reached_are_those_that_the_nodes_tell() {
    for dialect in DIALECTS {
        let redis = Redis::start();
        let url = redis.url();
        let mut one = Member::join(&url, dialect, Kin::Own("one"), reached(2)).await;
        let _two = Member::join(&url, dialect, Kin::Own("two"), reached(3)).await;
        let emitter = emitter(&redis, dialect).await;
        let confirmed = emitter.of("/").emit_confirmed("hello", 1).await.unwrap();
        assert_eq!(
            (confirmed.sockets, confirmed.nodes),
            (Some(5), 2),
            "{dialect:?}"
        );
        assert_eq!(confirmed.silent_nodes, [""; 0]);

        // The broadcast comes first, and says by which question it will be asked about.
        let (first, second) = (one.noticed.recv().await, one.noticed.recv().await);
        let Some(Noticed::Question(id, Question::Reached(_))) = second else {
            panic!("{second:?}");
        };
        assert_eq!(first, Some(Noticed::Broadcast(Some(id))));
    }
}

#[tokio::test]
async fn rooms_of_a_confirmed_broadcast_are_told_in_the_question_too() {
    for dialect in DIALECTS {
        let redis = Redis::start();
        let mut member = Member::join(&redis.url(), dialect, Kin::Own("one"), reached(1)).await;
        let emitter = emitter(&redis, dialect).await;
        let to = emitter.to(["a", "b"]).except("c");
        assert_eq!(
            to.emit_confirmed("hello", 1).await.unwrap().sockets,
            Some(1)
        );
        let question = member.until_asked().await;
        let Question::Reached(target) = question else {
            panic!("{question:?}");
        };
        assert_eq!(target.rooms, ["a", "b"].map(Box::from));
        assert_eq!(target.except, ["c"].map(Box::from));
    }
}

#[tokio::test]
async fn servers_of_other_make_are_counted_by_the_sockets_that_they_describe() {
    for dialect in DIALECTS {
        let redis = Redis::start();
        let url = redis.url();
        let describe = |_: &Question| {
            let sockets = vec![described("aaaaaaaaaaaaaaaaaaaa"), described("b")];
            vec![Reply::Answer(Answer::Sockets(sockets))]
        };
        let _theirs = Member::join(&url, dialect, Kin::Node, describe).await;
        let _ours = Member::join(&url, dialect, Kin::Own("one"), reached(5)).await;
        let emitter = emitter(&redis, dialect).await;
        let confirmed = emitter.of("/").emit_confirmed("hello", ()).await.unwrap();
        assert_eq!(
            (confirmed.sockets, confirmed.nodes),
            (Some(7), 2),
            "{dialect:?}"
        );
        assert_eq!(confirmed.silent_nodes, [""; 0]);
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_named_and_a_foreign_one_counted() {
    for dialect in DIALECTS {
        let redis = Redis::start();
        let url = redis.url();
        let _ours = Member::join(&url, dialect, Kin::Own("mute"), |_| Vec::new()).await;
        let _theirs = Member::join(&url, dialect, Kin::Node, |_| Vec::new()).await;
        let _speaks = Member::join(&url, dialect, Kin::Own("speaks"), reached(1)).await;
        let emitter = emitter(&redis, dialect).await;
        let to = emitter.of("/").timeout(Duration::from_secs(2));
        let confirmed = to.emit_confirmed("hello", ()).await.unwrap();
        assert_eq!((confirmed.sockets, confirmed.nodes), (Some(1), 1));
        assert_eq!(confirmed.silent_nodes, ["mute", "foreign"]);
    }
}

#[tokio::test]
async fn a_node_that_dies_is_not_waited_for() {
    let redis = Redis::start();
    let url = redis.url();
    let mut dying = Member::join(&url, Dialect::Classic, Kin::Own("dying"), |_| Vec::new()).await;
    let emitter = emitter(&redis, Dialect::Classic).await;
    let to = emitter.of("/").timeout(DEADLINE * 10);
    let asking = tokio::spawn(to.emit_confirmed("hello", ()));
    dying.until_asked().await;
    dying.die().await;
    let confirmed = timeout(DEADLINE, asking)
        .await
        .expect("it waits for the dead");
    assert_eq!(confirmed.unwrap().unwrap().sockets, Some(0));
}

#[tokio::test]
async fn a_node_with_a_lease_that_cannot_receive_a_confirmed_emit_is_silent() {
    for dialect in DIALECTS {
        let redis = Redis::start();
        let url = redis.url();
        let _one = Member::join(&url, dialect, Kin::Own("one"), reached(1)).await;
        // Its connection is cut; its lease goes on.
        let cut = Member::join(&url, dialect, Kin::Own("cut"), reached(1)).await;
        cut.die().await;
        let emitter = emitter(&redis, dialect).await;
        for namespace in ["/", "/admin"] {
            let to = emitter.of(namespace).timeout(DEADLINE * 10);
            let confirmed = timeout(DEADLINE, to.emit_confirmed("hello", ()));
            let confirmed = confirmed.await.expect("it waits for the deaf").unwrap();
            assert_eq!(confirmed.silent_nodes, ["cut"], "{dialect:?} {namespace}");
        }
        // Its sockets cannot be fetched either, but no message was missed.
        let fetched = emitter.of("/").fetch_sockets().await.unwrap();
        assert_eq!(fetched.silent_nodes, [""; 0]);
    }
}

#[tokio::test]
async fn a_node_that_comes_after_the_question_is_not_waited_for() {
    for dialect in DIALECTS {
        let redis = Redis::start();
        let url = redis.url();
        let silent = |_: &Question| Vec::new();
        let mut dying = Member::join(&url, dialect, Kin::Own("dying"), silent).await;
        let emitter = emitter(&redis, dialect).await;
        let to = emitter.of("/").timeout(DEADLINE * 10);
        let asking = tokio::spawn(to.emit_confirmed("hello", ()));
        dying.until_asked().await;
        let _late = Member::join(&url, dialect, Kin::Own("late"), silent).await;
        let _theirs = Member::join(&url, dialect, Kin::Node, silent).await;
        dying.die().await;
        let confirmed = timeout(DEADLINE, asking)
            .await
            .expect("it waits for those who have not heard it");
        assert_eq!(confirmed.unwrap().unwrap().silent_nodes, ["dying"]);
    }
}

#[tokio::test]
async fn a_node_that_leaves_hides_no_other_member() {
    let dialect = Dialect::Classic;
    let redis = Redis::start();
    let url = redis.url();
    let leaving = Member::join(&url, dialect, Kin::Own("leaving"), reached(1)).await;
    let _theirs = Member::join(&url, dialect, Kin::Node, |_| Vec::new()).await;
    let emitter = emitter(&redis, dialect).await;
    let to = || emitter.of("/").timeout(Duration::from_secs(2));
    // From now on the emitter knows its lease.
    let confirmed = to().emit_confirmed("hello", ()).await.unwrap();
    assert_eq!((confirmed.sockets, confirmed.nodes), (Some(1), 1));
    let _retired = leaving.retire(&url).await;
    let confirmed = to().emit_confirmed("hello", ()).await.unwrap();
    assert_eq!(confirmed.silent_nodes, ["foreign"]);
}

#[tokio::test]
async fn nobody_is_asked_and_nobody_is_silent_where_nobody_is() {
    for dialect in DIALECTS {
        let redis = Redis::start();
        let emitter = emitter(&redis, dialect).await;
        let confirmed = emitter.of("/").emit_confirmed("hello", ()).await.unwrap();
        assert_eq!((confirmed.sockets, confirmed.nodes), (Some(0), 0));
        assert_eq!(confirmed.silent_nodes, [""; 0]);
    }
}

#[tokio::test]
async fn acknowledgements_are_collected_from_ours_and_from_others() {
    for dialect in DIALECTS {
        let redis = Redis::start();
        let url = redis.url();
        let ours = |_: &Question| {
            let socket = |id| Some(SocketId::new(id));
            vec![Reply::Answer(Answer::Acks {
                answers: vec![(socket("a"), args("[1]")), (socket("b"), args("[\"x\"]"))],
                missing: vec![SocketId::new("c")],
                missing_unnamed: 0,
            })]
        };
        let theirs = |_: &Question| {
            vec![
                Reply::Asked(2),
                Reply::Acknowledged(args("[2]")),
                Reply::Acknowledged(args("[3]")),
            ]
        };
        let _ours = Member::join(&url, dialect, Kin::Own("one"), ours).await;
        let mut theirs = Member::join(&url, dialect, Kin::Node, theirs).await;
        let emitter = emitter(&redis, dialect).await;
        let answers = emitter.to("a").emit_with_ack::<u64>("vote?", 7).await;
        let mut answers = answers.unwrap();
        answers.answers.sort_unstable();
        assert_eq!(answers.answers, [1, 2, 3], "{dialect:?}");
        // What is no number is no answer to this question.
        assert_eq!(answers.missing, [SocketId::new("b"), SocketId::new("c")]);
        assert_eq!(
            (answers.missing_unnamed, answers.silent_nodes.len()),
            (0, 0)
        );
        let question = theirs.until_asked().await;
        let Question::Acks { event, timeout, .. } = question else {
            panic!("{question:?}");
        };
        assert_eq!((&*event, timeout), ("vote?", Duration::from_secs(5)));
    }
}

#[tokio::test]
async fn sockets_that_others_asked_in_vain_are_missing_without_a_name() {
    let redis = Redis::start();
    let asked = |_: &Question| vec![Reply::Asked(3), Reply::Acknowledged(args("[1]"))];
    let _theirs = Member::join(&redis.url(), Dialect::Classic, Kin::Node, asked).await;
    let emitter = emitter(&redis, Dialect::Classic).await;
    let to = emitter.of("/").timeout(Duration::from_secs(2));
    let answers = to.emit_with_ack::<u64>("vote?", ()).await.unwrap();
    assert_eq!((answers.answers, answers.missing_unnamed), (vec![1], 2));
}

#[tokio::test]
async fn sockets_are_fetched_from_all_nodes() {
    for dialect in DIALECTS {
        let redis = Redis::start();
        let url = redis.url();
        let with = |id: &'static str| {
            move |_: &Question| vec![Reply::Answer(Answer::Sockets(vec![described(id)]))]
        };
        let _one = Member::join(&url, dialect, Kin::Own("one"), with("a")).await;
        let _two = Member::join(&url, dialect, Kin::Node, with("b")).await;
        let emitter = emitter(&redis, dialect).await;
        let mut fetched = emitter.to("room").fetch_sockets().await.unwrap();
        fetched.sockets.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(fetched.sockets, [described("a"), described("b")]);
        assert_eq!(fetched.silent_nodes, [""; 0]);
    }
}

#[tokio::test]
async fn a_lost_connection_for_answers_ends_the_wait_and_the_next_question_opens_another() {
    let redis = Redis::start();
    let url = redis.url();
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    // The first question is not answered; the next one is.
    let answer = move |_: &Question| match asked.try_recv() {
        Ok(()) => vec![Reply::Answer(Answer::Reached(1))],
        Err(_) => Vec::new(),
    };
    let mut member = Member::join(&url, Dialect::Classic, Kin::Own("one"), answer).await;
    let emitter = emitter(&redis, Dialect::Classic).await;
    let to = emitter.of("/").timeout(DEADLINE * 10);
    let asking = tokio::spawn(to.emit_confirmed("hello", ()));
    member.until_asked().await;

    let mut operator = connect(&url).await;
    let clients = operator
        .command(&["CLIENT", "LIST", "TYPE", "pubsub"])
        .await;
    let clients = clients.unwrap();
    // The member has subscribed the requests, and so has more channels than the emitter's two.
    let line = clients
        .text()
        .unwrap()
        .lines()
        .find(|line| line.contains(" sub=2 "));
    let id = line.unwrap().split([' ', '=']).nth(1).unwrap().to_owned();
    operator
        .command(&["CLIENT", "KILL", "ID", &id])
        .await
        .unwrap();

    let confirmed = timeout(DEADLINE, asking).await.expect("it waits in vain");
    assert_eq!(confirmed.unwrap().unwrap().silent_nodes, ["one"]);
    ask.send(()).unwrap();
    let confirmed = emitter.of("/").emit_confirmed("hello", ()).await.unwrap();
    assert_eq!(
        (confirmed.sockets, confirmed.silent_nodes.len()),
        (Some(1), 0)
    );
}
