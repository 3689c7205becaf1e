//! Hears everything that is published, as bytes.

use bytes::BytesMut;
use roomcast_emitter::{
    endpoint::{Endpoint, Purpose, Stream},
    resp::{self, Limits, Parsed, Push, encode_command},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::DEADLINE;

pub(crate) struct Ear {
    stream: Stream,
    buffer: BytesMut,
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
        let endpoint = Endpoint::new(url.parse().unwrap());
        let connection = endpoint.connect(Purpose::Subscriber).await.unwrap();
        let (stream, buffer) = connection.into_parts();
        let mut ear = Self { stream, buffer };
        let mut commands = Vec::new();
        for (command, name) in subscriptions {
            encode_command(&mut commands, &[command, name]);
        }
        ear.stream.write_all(&commands).await.unwrap();
        for _ in subscriptions {
            assert_eq!(ear.push().await, None, "a confirmation");
        }
        ear
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Heard {
        self.push().await.expect("nothing but messages now")
    }

    async fn push(&mut self) -> Option<Heard> {
        loop {
            let parsed = resp::parse_push(&self.buffer, &Limits::default()).unwrap();
            if let Parsed::Whole(push, length) = parsed {
                let heard = message(&push);
                let _ = self.buffer.split_to(length);
                return heard;
            }
            let read = self.stream.read_buf(&mut self.buffer);
            let read = timeout(DEADLINE, read).await.expect("nothing came");
            assert!(read.unwrap() > 0, "the connection ended");
        }
    }
}

fn message(push: &Push<'_>) -> Option<Heard> {
    match push {
        Push::Message { channel, payload }
        | Push::PatternMessage {
            channel, payload, ..
        } => {
            let channel = String::from_utf8(channel.to_vec()).unwrap();
            Some((channel, payload.to_vec()))
        }
        Push::Subscribed { .. } => None,
        other => panic!("{other:?}"),
    }
}
