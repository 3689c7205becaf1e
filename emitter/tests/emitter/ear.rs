//! Receives everything that is published, as bytes.

use std::sync::Arc;

use redis::{PushInfo, PushKind, Value};
use roomcast_emitter::redis::{Connection, Endpoint, Purpose};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

use crate::DEADLINE;

pub(crate) struct Ear {
    messages: UnboundedReceiver<Heard>,
    /// Closed when it is dropped.
    _connection: Connection,
}

/// Channel and payload.
pub(crate) type Heard = (String, Vec<u8>);

impl Ear {
    /// Subscribed to this pattern when it resolves.
    pub(crate) async fn pattern(url: &str, pattern: &str) -> Self {
        Self::open(url, &[("PSUBSCRIBE", pattern)]).await
    }

    /// Subscribed by these commands when it resolves.
    pub(crate) async fn open(url: &str, subscriptions: &[(&str, &str)]) -> Self {
        let (sender, messages) = unbounded_channel();
        let push = move |push: PushInfo| match message(&push) {
            Some(message) => sender.send(message).map_err(drop),
            None => Ok(()),
        };
        let endpoint = Endpoint::new(url.parse().unwrap());
        let connection = endpoint.connect(Purpose::Subscriber, Some(Arc::new(push)));
        let mut connection = connection.await.unwrap();
        for (command, name) in subscriptions {
            connection.command(&[command, name]).await.unwrap();
        }
        Self {
            messages,
            _connection: connection,
        }
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Heard {
        let next = timeout(DEADLINE, self.messages.recv()).await;
        next.expect("nothing came").expect("the connection ended")
    }
}

fn message(push: &PushInfo) -> Option<Heard> {
    let parts = match push.kind {
        PushKind::Message | PushKind::SMessage => &push.data[..],
        PushKind::PMessage => &push.data[1..],
        _ => return None,
    };
    match parts {
        [Value::BulkString(channel), Value::BulkString(payload)] => {
            let channel = String::from_utf8(channel.clone()).unwrap();
            Some((channel, payload.clone()))
        }
        other => panic!("{other:?}"),
    }
}
