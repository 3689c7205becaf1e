//! WebSockets: opened as the first transport of a new connection, or probed by a polling client to
//! replace polling.
//!
//! ```text
//! client                          server
//! GET …&transport=websocket&sid=… ──▶ 101, a task of its own carries the probe
//! 2probe ──▶                          3probe; from now on a waiting poll gets a noop
//! 5 ──▶                               the stream is attached to the connection
//! anything else, or silence ──▶       the WebSocket is closed; the client goes on polling
//! ```
//!
//! The connection does not change hands: its outbox, its timers and its client stay,
//! and only the stream is replaced. So nothing is lost or duplicated, and a probe that fails
//! costs the session nothing.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use http::Request;
use hyper::upgrade::OnUpgrade;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    connection::{Aside, Connection},
    driver::echo_of,
    engine::{Acceptor, ConnectionPermit, Engine},
    frame::WireForm,
    handshake::Handshake,
    http_stream::Handoff,
    polling::Polling,
    stream::{Stream, Unwrapped},
    websocket::{self, Event, Opcode},
};
use roomcast_protocol::engine_io::open::TransportName;

/// How long writing the close frame of a WebSocket that is not wanted may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A probe sends packets of a few bytes.
const PROBE_LIMITS: websocket::Limits = websocket::Limits {
    message_bytes: 64,
    fragments: 4,
};

/// Opens a connection whose first transport is a WebSocket.
pub(super) fn open(
    engine: &Arc<Engine>,
    acceptor: &dyn Acceptor,
    permit: ConnectionPermit,
    form: WireForm,
    Unwrapped { stream, read, head }: Unwrapped,
    handshake: impl FnOnce(&Stream) -> Handshake,
) {
    let handshake = handshake(&stream);
    // A client may send its first packets with the request. They take the way of packets
    // that polling has left behind, because the driver handles those before it reads.
    let kept = (!read.is_empty()).then(|| Aside::Polling(Polling::handed_over(read)));
    let connection = Connection::new(engine, form, Some(stream), kept);
    engine.opened(TransportName::WebSocket, form.revision);
    connection.send_open(head, &[]);
    acceptor.accept(&connection, handshake, permit);
}

/// Hands over the stream of a WebSocket after the response to its request: at once
/// if the request came over our own listener, which keeps the response back so that it
/// leaves with what the server sends first.
pub(crate) fn take_over(
    request: &mut Request<Body>,
    open: impl FnOnce(Unwrapped) + Send + 'static,
) {
    let upgrade = hyper::upgrade::on(&mut *request);
    let opening = async {
        // An error means that the client has disconnected; nothing was opened.
        if let Ok(upgraded) = upgrade.await {
            open(Unwrapped::new(upgraded));
        }
    };
    match request.extensions_mut().remove::<Handoff>() {
        Some(handoff) => handoff.leave(opening),
        // Ends with the HTTP connection at the latest, whose upgrade it waits for.
        None => drop(tokio::spawn(opening)),
    }
}

/// Carries a WebSocket that a polling client probes, until it is attached or closed. `base64` says
/// whether it takes text only. The upgrade is unfinished until then, and keeps its place.
pub(super) async fn probe(
    place: OwnedSemaphorePermit,
    upgrade: OnUpgrade,
    connection: Arc<Connection>,
    base64: bool,
) {
    let limit = connection.engine().config.upgrade_timeout;
    let Ok(upgraded) = upgrade.await else {
        return;
    };
    let Unwrapped {
        mut stream, read, ..
    } = Unwrapped::new(upgraded);
    // It is too late, or another one is being probed.
    if !connection.begin_probe() {
        return close(&mut stream, &echo_of(None)).await;
    }
    let carried = timeout(limit, carry_probe(&mut stream, &connection, read)).await;
    match carried.unwrap_or_else(|_| Err(Failed::default())) {
        // A session that has ended meanwhile drops the stream.
        Ok(rest) => drop(connection.attach(stream, rest, base64)),
        Err(Failed(close_frame)) => {
            connection.abandon_probe();
            close(&mut stream, &close_frame).await;
        }
    }
    drop(place);
}

/// Closes a WebSocket that is not wanted.
async fn close(stream: &mut Stream, close_frame: &[u8]) {
    // The client may have disconnected, or may not read; this waits for neither.
    let _ = timeout(CLOSE_TIMEOUT, write_all(stream, close_frame)).await;
    poll_fn(|cx| {
        stream.shut_down(cx);
        Poll::Ready(())
    })
    .await;
}

/// A probe failed; the WebSocket is closed with this frame.
struct Failed(Vec<u8>);

impl Default for Failed {
    fn default() -> Self {
        Self(echo_of(None))
    }
}

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Self {
        Self::default()
    }
}

/// Replies to the probe until the client upgrades. Returns what was received after that.
async fn carry_probe(
    stream: &mut Stream,
    connection: &Connection,
    mut read: Vec<u8>,
) -> Result<Vec<u8>, Failed> {
    let mut reader = websocket::Reader::default();
    let mut buffer = vec![0; 4096];
    loop {
        let mut input = &mut read[..];
        while let Some(event) = reader
            .next(&mut input, &PROBE_LIMITS)
            .map_err(|_| Failed::default())?
        {
            let mut reply = Vec::new();
            match event {
                Event::Text(text) if text == "2probe" => {
                    websocket::append_frame(&mut reply, Opcode::Text, b"3probe");
                    write_all(stream, &reply).await?;
                    // Only now may the client's poll get its noop, because the client then stops
                    // polling.
                    connection.release_poll();
                }
                // The client may have sent further packets right after it.
                Event::Text(text) if text == "5" => return Ok(input.to_vec()),
                Event::Ping(payload) => {
                    websocket::append_pong(&mut reply, &payload);
                    write_all(stream, &reply).await?;
                }
                Event::Pong(_) => {}
                Event::Close(close) => return Err(Failed(echo_of(close.as_ref()))),
                _ => return Err(Failed::default()),
            }
        }
        let count = poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await?.count;
        if count == 0 {
            return Err(Failed::default());
        }
        read = buffer[..count].to_vec();
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
        stream.poll_flush(cx)
    })
    .await
}
