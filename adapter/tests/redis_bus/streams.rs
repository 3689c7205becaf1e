//! Emitters in the streams dialect.

use roomcast_emitter::Emitter;
use roomcast_protocol::{channel::Dialect, message::Message, target::Target};

use crate::{
    deployment::Deployment,
    node::{broadcast, within},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_emitter_sends_is_in_the_stream_and_is_confirmed_by_the_nodes() {
    let deployment = Deployment::of(Dialect::Streams);
    let nodes = [deployment.node().await, deployment.node().await];
    let builder = Emitter::builder().dialect(Dialect::Streams);
    let emitter = builder.connect(&deployment.server.url()).await.unwrap();
    let delivery = within(Box::pin(emitter.emit("e", 1))).await.unwrap();
    assert_eq!(delivery.nodes, 2);
    let confirmed = within(Box::pin(emitter.of("/").emit_confirmed("e", 2))).await;
    let confirmed = confirmed.unwrap();
    assert_eq!((confirmed.nodes, confirmed.silent_nodes.len()), (2, 0));
    let mut batch = emitter.batch();
    batch.emit("e", 3).unwrap();
    batch.to("r").sockets_join("s").unwrap();
    let sent = within(Box::pin(batch.send())).await;
    let counted = sent.into_iter().map(|sent| sent.unwrap().nodes);
    assert_eq!(counted.collect::<Vec<_>>(), [2, 2]);
    // Under idempotency keys: one that was used, twice the same new one, and none.
    let once = || emitter.of("/").idempotency_key("k");
    let first = within(Box::pin(once().emit_confirmed("e", 4)))
        .await
        .unwrap();
    let again = within(Box::pin(once().emit_confirmed("e", 4)))
        .await
        .unwrap();
    assert_eq!((first.nodes, first.is_replayed), (2, false));
    assert_eq!((again.sockets, again.is_replayed), (first.sockets, true));
    let mut batch = emitter.batch();
    for (key, number) in [("k", 4), ("l", 5), ("l", 5)] {
        batch
            .of("/")
            .idempotency_key(key)
            .emit("e", number)
            .unwrap();
    }
    batch.emit("e", 6).unwrap();
    let sent = within(Box::pin(batch.send())).await.into_iter();
    let sent = sent
        .map(Result::unwrap)
        .map(|sent| (sent.nodes, sent.is_replayed));
    let expected = [(2, true), (2, false), (2, true), (2, false)];
    assert_eq!(sent.collect::<Vec<_>>(), expected);
    let mut target = Target::default();
    target.add_rooms("r");
    let join = Message::SocketsJoin {
        target,
        rooms: vec!["s".into()],
    };
    let expected = [1, 2, 3].map(|number| broadcast(&[], number));
    for node in &nodes {
        let heard = node.heard(7).await;
        assert_eq!(heard[..3], expected);
        assert_eq!(heard[3], join);
        assert_eq!(heard[4..], [4, 5, 6].map(|number| broadcast(&[], number)));
    }
}
