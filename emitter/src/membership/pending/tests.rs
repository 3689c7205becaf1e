//! Which members a question waits for, and for how long.

use std::{convert::Infallible, future::ready};

use super::*;

fn roster(alive: &[&str], stalled: &[&str], foreign: usize) -> Roster {
    let ids = |names: &[&str]| names.iter().map(|name| NodeId::new(name)).collect();
    Roster {
        alive: ids(alive),
        stalled: ids(stalled),
        deaf: Vec::new(),
        foreign,
    }
}

fn reached(sockets: usize) -> Reply {
    Reply::Answer(Answer::Reached(sockets))
}

fn names(silent: &[NodeId]) -> Vec<&str> {
    silent.iter().map(NodeId::as_str).collect()
}

/// Asks with these rosters, of which the last one stays; `receive` answers before the wait begins.
async fn gather(
    rosters: Vec<Roster>,
    receive: impl FnOnce(&PendingQuestions),
) -> (Outcome, Duration) {
    let asking = PendingQuestions::new();
    let waiting = asking.open("q").unwrap();
    receive(&asking);
    let mut looks = 0;
    let look = |_| {
        looks += 1;
        ready(Ok::<_, Infallible>(
            rosters[(looks - 1).min(rosters.len() - 1)].clone(),
        ))
    };
    let started = time::Instant::now();
    let gathering = waiting.gather(Duration::from_secs(5), true, look);
    (gathering.await.unwrap(), started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn all_answers_are_there_at_once() {
    let (outcome, took) = gather(vec![roster(&["a", "b"], &[], 1)], |asking| {
        assert!(asking.receive("q", Some(NodeId::new("a")), reached(1)));
        assert!(asking.receive("q", Some(NodeId::new("b")), reached(2)));
        assert!(asking.receive("q", None, reached(3)));
        assert!(!asking.receive("other", None, reached(4)));
    })
    .await;
    assert_eq!(took, Duration::ZERO);
    assert!(outcome.is_complete);
    assert_eq!(outcome.answered.answers.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_is_silent_before_the_time_is_over() {
    let rosters = vec![roster(&["a", "b"], &[], 0), roster(&["a"], &[], 0)];
    let (outcome, took) = gather(rosters, |asking| {
        asking.receive("q", Some(NodeId::new("a")), reached(1));
    })
    .await;
    assert_eq!(took, LOOK_INTERVAL);
    assert_eq!(names(&outcome.answered.silent), ["b"]);
    assert!(!outcome.is_complete);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_node_that_does_not_answer_shortly_is_silent() {
    let (outcome, took) = gather(vec![roster(&["a"], &["s"], 0)], |asking| {
        asking.receive("q", Some(NodeId::new("a")), reached(1));
    })
    .await;
    assert_eq!(
        (took, names(&outcome.answered.silent)),
        (SECOND_CHANCE, vec!["s"])
    );
}

/// As while Redis refuses writes: no lease is renewed, and every node lives.
#[tokio::test(start_paused = true)]
async fn a_node_whose_lease_is_over_is_waited_for_shortly() {
    let asking = PendingQuestions::new();
    let waiting = asking.open("q").unwrap();
    let look = |_| ready(Ok::<_, Infallible>(roster(&[], &["a", "b"], 0)));
    let answer = async {
        time::sleep(Duration::from_millis(20)).await;
        asking.receive("q", Some(NodeId::new("a")), reached(1));
        time::sleep(Duration::from_millis(20)).await;
        asking.receive("q", Some(NodeId::new("b")), reached(2));
    };
    let started = time::Instant::now();
    let gathering = waiting.gather(Duration::from_secs(5), true, look);
    let (outcome, ()) = tokio::join!(gathering, answer);
    let outcome = outcome.unwrap();
    assert_eq!(started.elapsed(), Duration::from_millis(40));
    assert!(outcome.is_complete);
    assert_eq!(outcome.answered.answers.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn foreign_servers_that_stay_silent_are_counted_when_the_time_is_over() {
    let (outcome, took) = gather(vec![roster(&[], &[], 2)], |asking| {
        asking.receive("q", None, reached(1));
    })
    .await;
    assert_eq!(took, Duration::from_secs(5));
    assert_eq!(names(&outcome.answered.silent), [FOREIGN]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_too_young_to_be_known_is_not_foreign() {
    let rosters = vec![roster(&["a"], &[], 1), roster(&["a", "young"], &[], 0)];
    let (outcome, took) = gather(rosters.clone(), |asking| {
        asking.receive("q", Some(NodeId::new("a")), reached(1));
        asking.receive("q", Some(NodeId::new("young")), reached(1));
    })
    .await;
    assert_eq!(took, Duration::ZERO);
    assert!(outcome.is_complete);
    let (outcome, took) = gather(rosters, |asking| {
        asking.receive("q", Some(NodeId::new("a")), reached(1));
    })
    .await;
    assert_eq!(took, Duration::from_secs(5));
    assert_eq!(names(&outcome.answered.silent), ["young"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_answered_and_gone_is_not_taken_for_a_foreign_one() {
    let (outcome, took) = gather(vec![roster(&["a"], &[], 1)], |asking| {
        asking.receive("q", Some(NodeId::new("a")), reached(1));
        asking.receive("q", Some(NodeId::new("gone")), reached(1));
    })
    .await;
    assert_eq!(took, Duration::from_secs(5));
    assert_eq!(names(&outcome.answered.silent), [FOREIGN]);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_lease_that_answers_is_looked_for_and_not_taken_for_a_foreign_one() {
    let asking = PendingQuestions::new();
    let waiting = asking.open("q").unwrap();
    asking.receive("q", Some(NodeId::new("a")), reached(1));
    asking.receive("q", Some(NodeId::new("leaseless")), reached(2));
    let look = |unknown: Vec<NodeId>| {
        ready(Ok::<_, Infallible>(match &unknown[..] {
            [] => roster(&["a"], &[], 1),
            [node] => roster(&["a"], &[node.as_str()], 0),
            _ => panic!("{unknown:?}"),
        }))
    };
    let started = time::Instant::now();
    let gathering = waiting.gather(Duration::from_secs(5), true, look);
    let outcome = gathering.await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert!(outcome.is_complete);
    assert_eq!(outcome.answered.answers.len(), 2);
    assert_eq!(outcome.without_lease, [NodeId::new("leaseless")]);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_server_that_did_not_answer_delays_the_next_question_little() {
    let asking = PendingQuestions::new();
    let ask = async |is_quick, answers| {
        let waiting = asking.open("q").unwrap();
        if answers {
            asking.receive("q", None, reached(1));
        }
        let look = |_| ready(Ok::<_, Infallible>(roster(&[], &[], 1)));
        let started = time::Instant::now();
        let gathering = waiting.gather(Duration::from_secs(5), is_quick, look);
        let outcome = gathering.await.unwrap();
        assert_eq!(outcome.answered.silent.is_empty(), answers);
        started.elapsed()
    };
    let whole = Duration::from_secs(5);
    assert_eq!(ask(true, false).await, whole);
    for _ in 0..2 {
        assert_eq!(ask(true, false).await, SECOND_CHANCE);
    }
    // A handler may take long, and says nothing about other questions.
    assert_eq!(ask(false, false).await, whole);
    // It is back: from now on it is waited for again.
    assert_eq!(ask(true, true).await, Duration::ZERO);
    assert_eq!(ask(true, false).await, whole);
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_of_foreign_sockets_are_awaited_one_by_one() {
    let ack = || Reply::Acknowledged(Args::encode(&("pong",)).unwrap());
    let (outcome, took) = gather(vec![roster(&[], &[], 1)], |asking| {
        asking.receive("q", None, Reply::Asked(2));
        asking.receive("q", None, ack());
        asking.receive("q", None, ack());
    })
    .await;
    assert_eq!((took, outcome.is_complete), (Duration::ZERO, true));
    let (outcome, took) = gather(vec![roster(&[], &[], 1)], |asking| {
        asking.receive("q", None, Reply::Asked(2));
        asking.receive("q", None, ack());
    })
    .await;
    assert_eq!((took, outcome.is_complete), (Duration::from_secs(5), false));
    assert!(outcome.answered.silent.is_empty());
    let [
        Answer::Acks {
            answers,
            missing_unnamed,
            ..
        },
    ] = &outcome.answered.answers[..]
    else {
        panic!("{outcome:?}");
    };
    assert_eq!((answers.len(), *missing_unnamed), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_look_that_hangs_ends_with_the_time() {
    let asking = PendingQuestions::new();
    let waiting = asking.open("q").unwrap();
    let hang = |_| std::future::pending::<Result<Roster, Infallible>>();
    let gathering = waiting.gather(Duration::from_secs(5), true, hang);
    let outcome = gathering.await.unwrap();
    assert!(outcome.answered.answers.is_empty());
}

#[test]
fn the_number_of_questions_is_limited_and_a_forgotten_one_makes_room() {
    let asking = PendingQuestions::new();
    let mut waiting: Vec<_> = (0..MAX_PENDING)
        .map(|number| asking.open(&number.to_string()).unwrap())
        .collect();
    assert_eq!(asking.open("x").unwrap_err(), TooManyQuestions);
    waiting.pop();
    assert!(asking.open("x").is_ok());
    assert!(!asking.is_waiting("x"));
}

#[tokio::test(start_paused = true)]
async fn a_deaf_node_is_silent_and_not_waited_for() {
    let mut deaf = roster(&["here"], &[], 0);
    deaf.deaf = vec![NodeId::new("deaf")];
    let (outcome, took) = gather(vec![deaf], |asking| {
        assert!(asking.receive("q", Some(NodeId::new("here")), reached(1)));
    })
    .await;
    assert_eq!(names(&outcome.answered.silent), ["deaf"]);
    assert_eq!((outcome.is_complete, took), (false, Duration::ZERO));
}
