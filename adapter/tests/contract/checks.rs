//! The promises, one check each.

use std::{pin::Pin, time::Duration};

use roomcast_adapter::{Answer, Question};
use roomcast_protocol::{message::Message, target::Target};

use crate::{
    fabric::Fresh,
    node::{args, broadcast, within},
};

pub(crate) type Check = fn(Fresh) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// How long questions wait that nobody is meant to wait for.
const LONG: Duration = Duration::from_secs(60);

macro_rules! checks {
    ($($name:ident)*) => {
        pub(crate) fn all() -> Vec<(&'static str, Check)> {
            vec![$((stringify!($name), |fresh| Box::pin($name(fresh)))),*]
        }
    };
}
pub(crate) use checks;

checks! {
    others_hear_a_message_and_its_sender_does_not
    other_namespaces_hear_nothing
    awaited_messages_keep_their_order
    a_room_is_heard_once_its_join_is_confirmed
    a_room_without_members_is_not_heard_of
    a_message_to_a_socket_finds_its_node
    orders_are_carried_out_by_the_others
    a_message_to_a_room_arrives_behind_the_command_to_join_it
    nodes_answer_about_their_sockets_and_rooms
    acknowledgements_are_collected_with_who_is_missing
    servers_are_called_and_answer
    a_node_that_does_not_answer_is_silent
    a_node_that_has_gone_is_not_waited_for
    nobody_waits_for_a_node_that_retires
}

async fn others_hear_a_message_and_its_sender_does_not(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    let message = broadcast(&[], 1);
    let nodes = a.publish(message.clone()).await;
    assert!(fabric.counts_are_partial() || nodes == 1, "{nodes}");
    assert_eq!(b.heard(1).await, [message]);
    // Had the sender heard itself, it would have been before this one.
    let answer = broadcast(&[], 2);
    b.publish(answer.clone()).await;
    assert_eq!(a.heard(1).await, [answer]);
}

async fn other_namespaces_hear_nothing(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    let elsewhere = fabric.node("/chat").await;
    let other = fabric.node("/chat").await;
    a.publish(broadcast(&[], 1)).await;
    b.heard(1).await;
    other.publish(broadcast(&[], 2)).await;
    assert_eq!(elsewhere.heard(1).await, [broadcast(&[], 2)]);
}

async fn awaited_messages_keep_their_order(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    b.join("r").await;
    // In a cluster with sharded channels, order is promised within a room.
    let targets: &[&[&str]] = if fabric.orders_rooms_apart() {
        &[&["r"]]
    } else {
        &[&["r"], &[], &["r", "s"]]
    };
    let sent: Vec<_> = (0..300)
        .map(|number| broadcast(targets[number as usize % targets.len()], number))
        .collect();
    for message in &sent {
        a.publish(message.clone()).await;
    }
    assert_eq!(b.heard(sent.len()).await, sent);
}

async fn a_room_is_heard_once_its_join_is_confirmed(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    for number in 0..50 {
        let room = format!("room {number}");
        b.join(&room).await;
        a.publish(broadcast(&[&room], number)).await;
        assert_eq!(b.heard(1).await, [broadcast(&[&room], number)]);
        b.leave(&room);
        if number % 2 == 0 {
            // It comes back before it was given up, or while it is.
            b.join(&room).await;
            a.publish(broadcast(&[&room], number)).await;
            assert_eq!(b.heard(1).await, [broadcast(&[&room], number)]);
        }
    }
}

async fn a_room_without_members_is_not_heard_of(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    b.join("r").await;
    a.publish(broadcast(&["elsewhere"], 1)).await;
    a.publish(broadcast(&["r"], 2)).await;
    let (elsewhere, here) = (broadcast(&["elsewhere"], 1), broadcast(&["r"], 2));
    if fabric.hears_only_its_rooms() {
        assert_eq!(b.heard(1).await, [here]);
    } else {
        // The room index sorts it out.
        assert_eq!(b.heard(2).await, [elsewhere, here]);
    }
}

async fn a_message_to_a_socket_finds_its_node(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    let (here, there) = (a.connect(7), b.connect(7));
    a.confirm(here.as_str()).await;
    b.confirm(there.as_str()).await;
    a.publish(broadcast(&[there.as_str()], 2)).await;
    assert_eq!(b.heard(1).await, [broadcast(&[there.as_str()], 2)]);
    b.publish(broadcast(&[here.as_str()], 3)).await;
    assert_eq!(a.heard(1).await, [broadcast(&[here.as_str()], 3)]);
}

async fn orders_are_carried_out_by_the_others(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    let mut target = Target::default();
    target.add_rooms("r");
    target.add_except("x");
    let orders = [
        Message::SocketsJoin {
            target: target.clone(),
            rooms: vec!["s".into(), "t".into()],
        },
        Message::SocketsLeave {
            target: target.clone(),
            rooms: vec!["s".into()],
        },
        Message::DisconnectSockets {
            target,
            close: true,
        },
        Message::ServerSideEmit {
            event: "reload".into(),
            args: args(7),
        },
    ];
    for order in &orders {
        a.publish(order.clone()).await;
    }
    assert_eq!(b.heard(orders.len()).await, orders);
}

async fn a_message_to_a_room_arrives_behind_the_command_to_join_it(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    for number in 0..50 {
        let room = format!("late {number}");
        let join = Message::SocketsJoin {
            target: Target::default(),
            rooms: vec![room.as_str().into()],
        };
        let message = broadcast(&[&room], number);
        a.publish(join.clone()).await;
        a.publish(message.clone()).await;
        assert_eq!(b.heard(2).await, [join, message]);
    }
}

async fn nodes_answer_about_their_sockets_and_rooms(fabric: Fresh) {
    let nodes = [
        fabric.node("/").await,
        fabric.node("/").await,
        fabric.node("/").await,
    ];
    let ids = [nodes[1].connect(1), nodes[2].connect(2)];
    let answered = nodes[0]
        .ask(Question::Sockets(Target::default()), LONG)
        .await;
    assert!(answered.silent.is_empty(), "{answered:?}");
    let mut found: Vec<_> = answered
        .answers
        .into_iter()
        .flat_map(|answer| match answer {
            Answer::Sockets(sockets) => sockets,
            other => panic!("{other:?}"),
        })
        .collect();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    let mut wanted = ids.to_vec();
    wanted.sort();
    assert!(found.iter().map(|socket| &socket.id).eq(&wanted));
    assert_eq!(found[0].data, serde_json::json!({"name": "x"}));
    let answered = nodes[0].ask(Question::Rooms, LONG).await;
    let rooms = answered.answers.iter().flat_map(|answer| match answer {
        Answer::Rooms(rooms) => rooms.clone(),
        other => panic!("{other:?}"),
    });
    let rooms: Vec<_> = rooms.collect();
    assert!(
        ids.iter()
            .all(|id| rooms.iter().any(|room| **room == *id.as_str()))
    );
}

async fn acknowledgements_are_collected_with_who_is_missing(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    let id = b.connect(1);
    let question = Question::Acks {
        target: Target::default(),
        event: "vote?".into(),
        args: args(5),
        timeout: LONG,
    };
    let answered = a.ask(question, LONG).await;
    let [
        Answer::Acks {
            answers,
            missing,
            missing_unnamed,
        },
    ] = &answered.answers[..]
    else {
        panic!("{answered:?}");
    };
    assert_eq!(*answers, [(Some(id), args(5))]);
    assert_eq!((missing.len(), *missing_unnamed), (1, 0));
    assert!(answered.silent.is_empty());
}

async fn servers_are_called_and_answer(fabric: Fresh) {
    let (a, _b) = (fabric.node("/").await, fabric.node("/").await);
    let question = Question::ServerSideEmit {
        event: "how many?".into(),
        args: args(3),
    };
    let answered = a.ask(question, LONG).await;
    assert_eq!(answered.answers, [Answer::ServerSideEmit(Some(args(3)))]);
}

async fn a_node_that_does_not_answer_is_silent(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    let mute = fabric.node("/").await;
    mute.be_mute();
    b.connect(1);
    // It lasts as long as the caller has said.
    let question = Question::Sockets(Target::default());
    let answered = a.ask(question, Duration::from_secs(1)).await;
    assert_eq!(
        (answered.answers.len(), answered.silent),
        (1, vec![mute.id])
    );
}

async fn a_node_that_has_gone_is_not_waited_for(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    let gone = fabric.node("/").await;
    within(gone.bus.close(&gone.id)).await;
    drop(gone);
    let answered = a.ask(Question::Sockets(Target::default()), LONG).await;
    assert!(!answered.answers.is_empty());
    drop(b);
}

async fn nobody_waits_for_a_node_that_retires(fabric: Fresh) {
    let (a, b) = (fabric.node("/").await, fabric.node("/").await);
    within(b.bus.retire(&b.id)).await;
    // It is not asked any more, or goes on answering.
    let answered = a.ask(Question::Sockets(Target::default()), LONG).await;
    assert!(answered.silent.is_empty(), "{answered:?}");
    // Messages go on arriving.
    a.publish(broadcast(&[], 1)).await;
    assert_eq!(b.heard(1).await, [broadcast(&[], 1)]);
}
