//! A WebSocket over TLS, read and written in place like one over TCP.
//!
//! The session of rustls stands between: it turns bytes into records, which the socket may not
//! take all at once. At most [`rustls`]'s buffer of 64 KiB waits there, in addition to the outbox.
//! Waiting records are written before anything else, by the next writer, and by the driver when the
//! socket is writable again; so a lane writes without a task's context, as it does to TCP.
//!
//! ```text
//! outbox ── try_write ──▶ session (records) ── flush ──▶ socket
//! driver ◀─ poll_read ─── session (plaintext) ◀────────── socket
//! ```

use std::{
    io::{self, IoSlice, Read as _, Write as _},
    task::{Context, Poll, ready},
};

use rustix::net::Shutdown;
use rustls::ServerConnection;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::stream::Read;

/// Records without plaintext that are read before other tasks get their turn.
const READS_PER_TURN: usize = 16;

/// The socket, as rustls reads and writes it.
struct Socket<'a>(&'a TcpStream);

impl io::Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads once. A read may leave plaintext, which the next read returns.
pub(super) fn poll_read(
    stream: &mut TlsStream<TcpStream>,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<Read>> {
    let (tcp, tls) = stream.get_mut();
    for _ in 0..READS_PER_TURN {
        match tls.reader().read(buffer) {
            Ok(count) => return Poll::Ready(Ok(Read { count, more: true })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Ended without the close alert of TLS. WebSocket has its own, so nothing can be
            // cut off unnoticed.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Poll::Ready(Ok(Read {
                    count: 0,
                    more: false,
                }));
            }
            Err(error) => return Poll::Ready(Err(error)),
        }
        match tls.read_tls(&mut Socket(tcp)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(tcp.poll_read_ready(cx))?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Poll::Ready(Err(error)),
        }
        let processed = tls.process_new_packets();
        // An alert, or the reply to a change of keys. An error of the socket shows with
        // the next use.
        let _ = flush(tcp, tls);
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
    // More may be available, so the task runs again after others.
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Takes as many bytes as fit into the session, and writes as many as the socket accepts now. Would
/// block if records wait.
pub(super) fn try_write(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> io::Result<usize> {
    let (tcp, tls) = stream.get_mut();
    flush(tcp, tls)?;
    let count = tls.writer().write(bytes)?;
    match flush(tcp, tls) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(count),
    }
}

/// Whether records wait for the socket.
pub(super) fn has_records(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.wants_write()
}

/// Ready when no records wait. Registers the driver for the rest.
pub(super) fn poll_flush(
    stream: &mut TlsStream<TcpStream>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let (tcp, tls) = stream.get_mut();
    loop {
        match flush(tcp, tls) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(tcp.poll_write_ready(cx))?;
            }
            flushed => return Poll::Ready(flushed),
        }
    }
}

/// Sends the close alert once, and ends the sending direction when everything has been written.
pub(super) fn shut_down(stream: &mut TlsStream<TcpStream>, cx: &mut Context<'_>) {
    stream.get_mut().1.send_close_notify();
    if poll_flush(stream, cx).is_ready() {
        // An error means that the peer has disconnected, which is the goal.
        let _ = rustix::net::shutdown(stream.get_ref().0, Shutdown::Write);
    }
}

fn flush(tcp: &TcpStream, tls: &mut ServerConnection) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(&mut Socket(tcp)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
