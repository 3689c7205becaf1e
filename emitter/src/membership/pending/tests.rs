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

/// How long a question waits at most.
const TIMEOUT: Duration = Duration::from_secs(5);

fn names(silent: &[NodeId]) -> Vec<&str> {
    silent.iter().map(NodeId::as_str).collect()
}

fn answer(asking: &PendingQuestions, node: &str) {
    let node = (node != FOREIGN).then(|| NodeId::new(node));
    assert!(asking.receive("q", node, reached(1)));
}

/// Waits for the answers, and measures how long.
async fn gather<F: Future<Output = Result<Roster, Infallible>>>(
    waiting: Waiting,
    is_quick: bool,
    look: impl FnMut(Vec<NodeId>) -> F,
) -> (Outcome, Duration) {
    let started = time::Instant::now();
    let gathering = waiting.gather(TIMEOUT, is_quick, look);
    (gathering.await.unwrap(), started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn members_are_waited_for_as_long_as_they_may_answer() {
    let mut deaf = roster(&["a"], &[], 0);
    deaf.deaf = vec![NodeId::new("deaf")];
    let all = vec![roster(&["a", "b"], &[], 1)];
    let dying = vec![roster(&["a", "b"], &[], 0), roster(&["a"], &[], 0)];
    // Too young to have a lease at the first look.
    let young = vec![roster(&["a"], &[], 1), roster(&["a", "young"], &[], 0)];
    for (rosters, answering, silent, expected) in [
        (all, &["a", "b", FOREIGN][..], &[][..], Duration::ZERO),
        (dying, &["a"], &["b"], LOOK_INTERVAL),
        (
            vec![roster(&["a"], &["stalled"], 0)],
            &["a"],
            &["stalled"],
            SECOND_CHANCE,
        ),
        (vec![deaf], &["a"], &["deaf"], Duration::ZERO),
        (vec![roster(&[], &[], 2)], &[FOREIGN], &[FOREIGN], TIMEOUT),
        (young.clone(), &["a", "young"], &[], Duration::ZERO),
        (young, &["a"], &["young"], TIMEOUT),
        // One that has gone is not taken for the foreign one.
        (
            vec![roster(&["a"], &[], 1)],
            &["a", "gone"],
            &[FOREIGN],
            TIMEOUT,
        ),
    ] {
        let asking = PendingQuestions::new();
        let waiting = asking.open("q").unwrap();
        answering.iter().for_each(|node| answer(&asking, node));
        assert!(!asking.receive("other", None, reached(1)));
        // The last roster stays.
        let mut looks = rosters
            .iter()
            .chain(std::iter::repeat(&rosters[rosters.len() - 1]));
        let look = |_| ready(Ok(looks.next().unwrap().clone()));
        let (outcome, took) = gather(waiting, true, look).await;
        assert_eq!(names(&outcome.answered.silent), silent, "{rosters:?}");
        assert_eq!(outcome.answered.answers.len(), answering.len());
        assert_eq!((outcome.is_complete, took), (silent.is_empty(), expected));
    }
}

/// As while Redis refuses writes: no lease is renewed, and every node lives.
#[tokio::test(start_paused = true)]
async fn a_node_whose_lease_is_over_is_waited_for_shortly() {
    let asking = PendingQuestions::new();
    let waiting = asking.open("q").unwrap();
    let look = |_| ready(Ok(roster(&[], &["a", "b"], 0)));
    let answers = async {
        for node in ["a", "b"] {
            time::sleep(Duration::from_millis(20)).await;
            answer(&asking, node);
        }
    };
    let ((outcome, took), ()) = tokio::join!(gather(waiting, true, look), answers);
    assert_eq!(took, Duration::from_millis(40));
    assert!(outcome.is_complete);
    assert_eq!(outcome.answered.answers.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_lease_that_answers_is_looked_for_and_not_taken_for_a_foreign_one() {
    let asking = PendingQuestions::new();
    let waiting = asking.open("q").unwrap();
    answer(&asking, "a");
    answer(&asking, "leaseless");
    let look = |unknown: Vec<NodeId>| {
        ready(Ok(match &unknown[..] {
            [] => roster(&["a"], &[], 1),
            [node] => roster(&["a"], &[node.as_str()], 0),
            _ => panic!("{unknown:?}"),
        }))
    };
    let (outcome, took) = gather(waiting, true, look).await;
    assert_eq!((outcome.is_complete, took), (true, Duration::ZERO));
    assert_eq!(outcome.answered.answers.len(), 2);
    assert_eq!(outcome.without_lease, [NodeId::new("leaseless")]);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_server_that_did_not_answer_delays_the_next_question_little() {
    let asking = PendingQuestions::new();
    let ask = async |is_quick, answers| {
        let waiting = asking.open("q").unwrap();
        if answers {
            answer(&asking, FOREIGN);
        }
        let look = |_| ready(Ok(roster(&[], &[], 1)));
        let (outcome, took) = gather(waiting, is_quick, look).await;
        assert_eq!(outcome.answered.silent.is_empty(), answers);
        took
    };
    assert_eq!(ask(true, false).await, TIMEOUT);
    for _ in 0..2 {
        assert_eq!(ask(true, false).await, SECOND_CHANCE);
    }
    // A handler may take long, and says nothing about other questions.
    assert_eq!(ask(false, false).await, TIMEOUT);
    // It is back: from now on it is waited for again.
    assert_eq!(ask(true, true).await, Duration::ZERO);
    assert_eq!(ask(true, false).await, TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_of_foreign_sockets_are_awaited_one_by_one() {
    let asking = PendingQuestions::new();
    let ask = async |acks| {
        let waiting = asking.open("q").unwrap();
        asking.receive("q", None, Reply::Asked(2));
        for _ in 0..acks {
            let pong = Args::encode(&("pong",)).unwrap();
            asking.receive("q", None, Reply::Acknowledged(pong));
        }
        gather(waiting, true, |_| ready(Ok(roster(&[], &[], 1)))).await
    };
    let (outcome, took) = ask(2).await;
    assert_eq!((took, outcome.is_complete), (Duration::ZERO, true));
    let (outcome, took) = ask(1).await;
    assert_eq!((took, outcome.is_complete), (TIMEOUT, false));
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
    let (outcome, _) = gather(waiting, true, |_| std::future::pending()).await;
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
