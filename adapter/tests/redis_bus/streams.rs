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
    let mut target = Target::default();
    target.add_rooms("r");
    let join = Message::SocketsJoin {
        target,
        rooms: vec!["s".into()],
    };
    let expected = [1, 2, 3].map(|number| broadcast(&[], number));
    for node in &nodes {
        let heard = node.heard(4).await;
        assert_eq!(heard[..3], expected);
        assert_eq!(heard[3], join);
    }
}
