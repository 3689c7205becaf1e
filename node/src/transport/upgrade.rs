//! WebSockets: opened as the first transport of a new connection, or probed by a client that polls
//! and then put in the place of polling.

use std::{
    future::poll_fn,
    io,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::upgrade::OnUpgrade;
use tokio::time::timeout;

use super::{
    connection::Connection,
    engine::{Acceptor, ConnectionPermit, Engine},
    handshake::Handshake,
    polling::Polling,
    stream::{Stream, Unwrapped},
    websocket::{self, Event, Opcode},
};
use roomcast_protocol::engine_io::open::{Revision, TransportName};

/// A WebSocket is the connection's first transport.
pub(super) async fn open(
    engine: Arc<Engine>,
    acceptor: Arc<dyn Acceptor>,
    permit: ConnectionPermit,
    upgrade: OnUpgrade,
    revision: Revision,
    handshake: impl FnOnce(&Stream) -> Handshake,
) {
    // An error means that the client has gone; nothing was opened.
    let Ok(upgraded) = upgrade.await else {
        return;
    };
    let Unwrapped { stream, read, head } = Unwrapped::new(upgraded);
    let handshake = handshake(&stream);
    let kept = (!read.is_empty()).then(|| Box::new(Polling::handed_over(read)));
    let connection = Connection::new(&engine, revision, Some(stream), kept, false);
    engine.opened(TransportName::WebSocket, revision);
    connection.send_open(head, &[]);
    acceptor.accept(&connection, handshake, permit);
}

/// How long writing the close frame of an unwanted WebSocket may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Holds the place of an unfinished upgrade in the count.
pub(super) struct Probing(Arc<Engine>);

impl Probing {
    /// None if too many upgrades are unfinished.
    pub(super) fn begin(engine: &Arc<Engine>) -> Option<Self> {
        let count: &AtomicUsize = &engine.probing;
        let before = count.fetch_add(1, Ordering::Relaxed);
        let probing = Self(Arc::clone(engine));
        (before < engine.config.limits.unfinished_upgrades).then_some(probing)
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.0.probing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client that polls tries a WebSocket: `2probe`, answered with `3probe`, then `5`. Anything else
/// closes the WebSocket and leaves the client polling.
pub(super) async fn probe(probing: Probing, upgrade: OnUpgrade, connection: Arc<Connection>) {
    let limit = probing.0.config.upgrade_timeout;
    let Ok(upgraded) = upgrade.await else {
        return;
    };
    let Unwrapped {
        mut stream, read, ..
    } = Unwrapped::new(upgraded);
    if !connection.begin_probe() {
        return close(&mut stream).await;
    }
    let mut probe = Probe {
        connection: &connection,
        reader: websocket::Reader::default(),
        probed: false,
    };
    if let Ok(Ok(rest)) = timeout(limit, probe.run(&mut stream, read)).await {
        // A session that has ended meanwhile drops the stream.
        let _ = connection.attach(stream, rest);
    } else {
        connection.abandon_probe();
        close(&mut stream).await;
    }
    drop(probing);
}

/// Closes a WebSocket that is not wanted.
async fn close(stream: &mut Stream) {
    let mut close = Vec::new();
    websocket::append_close(&mut close, None);
    // The client may have gone already, or may not read; neither is waited for.
    let _ = timeout(CLOSE_TIMEOUT, write_all(stream, &close)).await;
    poll_fn(|cx| {
        stream.shut_down(cx);
        Poll::Ready(())
    })
    .await;
}

struct Probe<'a> {
    connection: &'a Arc<Connection>,
    reader: websocket::Reader,
    probed: bool,
}

impl Probe<'_> {
    async fn run(&mut self, stream: &mut Stream, mut read: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 4096];
        loop {
            let mut input = &mut read[..];
            while !input.is_empty() {
                let (answer, rest) = self.step(input)?;
                if let Some(answer) = answer {
                    write_all(stream, &answer).await?;
                    if self.probed {
                        // Only now may the client's poll come home: it then stops polling.
                        self.connection.release_poll();
                    }
                }
                match rest {
                    ControlFlow::Continue(rest) => input = rest,
                    ControlFlow::Break(rest) => return Ok(rest),
                }
            }
            let count = poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await?.count;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            read = buffer[..count].to_vec();
        }
    }

    /// Handles one event: an answer to write, and what is left of the input; a break once the
    /// client has upgraded.
    #[allow(
        clippy::type_complexity,
        reason = "named parts would not be used elsewhere"
    )]
    fn step<'b>(
        &mut self,
        input: &'b mut [u8],
    ) -> io::Result<(Option<Vec<u8>>, ControlFlow<Vec<u8>, &'b mut [u8]>)> {
        let limits = websocket::Limits {
            message_bytes: 64,
            fragments: 4,
        };
        let mut rest = input;
        let event = self.reader.next(&mut rest, &limits);
        let mut answer = Vec::new();
        match event.map_err(|_| io::ErrorKind::InvalidData)? {
            None => return Ok((None, ControlFlow::Continue(rest))),
            Some(Event::Text(text)) if text == "2probe" => {
                self.probed = true;
                websocket::append_frame(&mut answer, Opcode::Text, b"3probe");
            }
            Some(Event::Text(text)) if text == "5" => {
                return Ok((None, ControlFlow::Break(rest.to_vec())));
            }
            Some(Event::Ping(payload)) => websocket::append_pong(&mut answer, &payload),
            Some(Event::Pong(_)) => {}
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok((
            (!answer.is_empty()).then_some(answer),
            ControlFlow::Continue(rest),
        ))
    }
}

async fn write_all(stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    poll_fn(|cx: &mut Context<'_>| {
        while !bytes.is_empty() {
            match stream.try_write(Some(cx), bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if stream.poll_writable(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}
