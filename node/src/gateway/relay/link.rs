//! A connection between two nodes that carries many requests at a time.
//!
//! ```text
//! tasks of requests ── frames ──▶ Outbox ──▶ the link's task: yields once, seals, one write ──▶ peer
//!                                   ▲                │
//!             Handler ◀── frames ── one read, opened ┘◀──────────────────────────────────────── peer
//! ```
//!
//! System calls are most of the cost of a relayed request, so the task makes few of them.
//! It reads all that has arrived with one call, and before it writes it lets the tasks
//! run that are ready: each has a frame to add. With 32 clients at once, a write carries
//! about ten requests. A task that adds a frame never writes it, because its future may be
//! dropped at any time and the frame must leave nevertheless.
//!
//! Long bodies wait separately and are cut into frames when there is room, one part of each in
//! turn. So the bytes to write are limited, and a long body does not delay others.
//!
//! A peer that is silent although a message is expected gets a request for a sign of life, and is
//! given up after [`SILENT_TICKS`]; so is one that takes nothing.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use roomcast::relay::{
    self, Frame, INLINE_BYTES, LENGTH_BYTES, MAX_RECORD_BYTES, Malformed, Records, TAG_BYTES,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::yield_now,
    time::{Interval, MissedTickBehavior, interval},
};

use super::seal::{Opener, Sealer, open, seal};

/// How often a link is checked.
pub(super) const TICK: Duration = Duration::from_secs(5);

/// After this number of checks without a byte, a link gets a request for a sign of life.
const QUIET_TICKS: u32 = 1;

/// After this number of checks without a byte, a link from which something is expected is dead.
const SILENT_TICKS: u32 = 3;

/// The size of the read buffer, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// Long bodies wait while this much waits to be written.
const FULL_BYTES: usize = 256 * 1024;

/// A buffer that has grown beyond this is not kept.
const KEPT_BYTES: usize = 512 * 1024;

/// The output of a link.
#[derive(Default)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    task: AtomicWaker,
}

#[derive(Default)]
struct Queue {
    records: Records,
    /// Bodies that are longer than a frame, by stream.
    bodies: HashMap<u32, Outgoing>,
    /// The streams of bodies that may be continued.
    ready: VecDeque<u32>,
}

/// A body on its way.
struct Outgoing {
    rest: Bytes,
    /// The bytes that the peer takes.
    credit: usize,
}

impl Outbox {
    /// Adds frames, which leave with the next write.
    pub(super) fn push(&self, write: impl FnOnce(&mut Records)) {
        write(&mut self.queue.lock().records);
        self.task.wake();
    }

    /// Adds a frame and the body that follows it, of which the peer takes `credit` bytes.
    pub(super) fn push_with(
        &self,
        write: impl FnOnce(&mut Records),
        (stream, rest, credit): (u32, Bytes, usize),
    ) {
        let mut queue = self.queue.lock();
        write(&mut queue.records);
        queue.bodies.insert(stream, Outgoing { rest, credit });
        queue.ready.push_back(stream);
        drop(queue);
        self.task.wake();
    }

    /// The peer takes more of a body.
    pub(super) fn credit(&self, stream: u32, bytes: usize) {
        let mut queue = self.queue.lock();
        if let Some(body) = queue.bodies.get_mut(&stream) {
            let waited = body.credit == 0;
            body.credit = body.credit.saturating_add(bytes);
            if waited {
                queue.ready.push_back(stream);
            }
        }
        drop(queue);
        self.task.wake();
    }

    /// Leaves out the rest of a body.
    pub(super) fn cut(&self, stream: u32) {
        self.queue.lock().bodies.remove(&stream);
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.ready.is_empty()
    }

    /// Cuts long bodies into frames as long as there is room.
    fn fill(&mut self) {
        while self.records.len() < FULL_BYTES
            && let Some(stream) = self.ready.pop_front()
        {
            let Entry::Occupied(mut entry) = self.bodies.entry(stream) else {
                continue;
            };
            let body = entry.get_mut();
            let part = body.rest.len().min(body.credit).min(INLINE_BYTES);
            self.records.data(stream, &body.rest.split_to(part));
            body.credit -= part;
            if body.rest.is_empty() {
                entry.remove();
            } else if body.credit > 0 {
                self.ready.push_back(stream);
            }
        }
    }
}

/// Receives the frames of the other node.
pub(super) trait Handler {
    /// Handles a frame. Pings are not among them.
    fn receive(&mut self, stream: u32, frame: Frame<'_>) -> Result<(), Malformed>;

    /// Whether the other node has something to send.
    fn expects(&self) -> bool;

    /// Called every [`TICK`].
    fn tick(&mut self) {}

    /// Whether the link is to end once all is written.
    fn poll_end(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

/// One end of a connection.
pub(super) struct Link<S, H> {
    stream: S,
    outbox: Arc<Outbox>,
    sealer: Sealer,
    opener: Opener,
    handler: H,
    /// The bytes that were read but not handled: `received[..filled]`.
    received: Vec<u8>,
    filled: usize,
    /// The bytes that are being written: `sending[sent..]`.
    sending: Vec<u8>,
    sent: usize,
    /// Whether the stream holds nothing back. TLS may, after it has accepted all.
    is_flushed: bool,
    ticks: Interval,
    silent: u32,
    /// Checks since the last write, while bytes wait to be written.
    stalled: u32,
    /// The most of these.
    most_stalled: u32,
}

/// The events of a link.
enum Step {
    /// Bytes were read or written, or wait to be written.
    Moved,
    Tick,
    Ended,
}

impl<S, H> Link<S, H>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    /// The peer may take nothing for `stall`.
    pub(super) fn new(
        stream: S,
        outbox: Arc<Outbox>,
        (sealer, opener): (Sealer, Opener),
        handler: H,
        stall: Duration,
    ) -> Self {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stall = stall.as_secs().div_ceil(TICK.as_secs());
        Self {
            stream,
            outbox,
            sealer,
            opener,
            handler,
            received: vec![0; READ_BYTES],
            filled: 0,
            sending: Vec::new(),
            sent: 0,
            is_flushed: true,
            ticks,
            silent: 0,
            stalled: 0,
            most_stalled: u32::try_from(stall).unwrap_or(u32::MAX).max(1),
        }
    }

    /// Runs until either side ends it. An error states the reason of this side.
    pub(super) async fn run(mut self) -> io::Result<()> {
        loop {
            match poll_fn(|cx| self.poll_step(cx)).await? {
                Step::Moved => self.handle()?,
                Step::Tick => self.tick()?,
                Step::Ended => return Ok(()),
            }
            if self.is_sent() && !self.outbox.queue.lock().is_empty() {
                // Tasks that are ready to add a frame do so now.
                yield_now().await;
                self.seal()?;
            }
        }
    }

    fn is_sent(&self) -> bool {
        self.sent == self.sending.len()
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        while !self.is_sent() {
            let stream = Pin::new(&mut self.stream);
            match stream.poll_write(cx, &self.sending[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    self.sent += count;
                    self.is_flushed = false;
                    self.stalled = 0;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if !self.is_flushed
            && self.is_sent()
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            flushed?;
            self.is_flushed = true;
        }
        self.outbox.task.register(cx.waker());
        let is_empty = self.outbox.queue.lock().is_empty();
        let mut buffer = ReadBuf::new(&mut self.received[self.filled..]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                return Poll::Ready(Ok(Step::Ended));
            }
            Poll::Ready(Ok(())) => {
                self.filled += buffer.filled().len();
                self.silent = 0;
                return Poll::Ready(Ok(Step::Moved));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {}
        }
        if self.is_sent() && !is_empty {
            return Poll::Ready(Ok(Step::Moved));
        }
        if self.ticks.poll_tick(cx).is_ready() {
            return Poll::Ready(Ok(Step::Tick));
        }
        // After it, nothing more is expected.
        if self.handler.poll_end(cx).is_ready()
            && self.is_sent()
            && is_empty
            && !self.handler.expects()
        {
            return Poll::Ready(Ok(Step::Ended));
        }
        Poll::Pending
    }

    /// Handles the records that are complete.
    fn handle(&mut self) -> io::Result<()> {
        let mut at = 0;
        while let Some(length) = relay::record(&self.received[at..self.filled]).map_err(invalid)? {
            let record = &mut self.received[at + LENGTH_BYTES..at + length];
            let opened = open(&mut self.opener, record).map_err(invalid)?;
            for frame in relay::frames(opened) {
                match frame.map_err(invalid)? {
                    (_, Frame::Ping) => self.outbox.push(Records::pong),
                    (_, Frame::Pong) => {}
                    (stream, frame) => self.handler.receive(stream, frame).map_err(invalid)?,
                }
            }
            at += length;
        }
        self.received.copy_within(at..self.filled, 0);
        self.filled -= at;
        if self.filled == self.received.len() {
            let largest = MAX_RECORD_BYTES + LENGTH_BYTES + TAG_BYTES;
            self.received.resize(largest.max(self.filled + 1), 0);
        }
        Ok(())
    }

    fn tick(&mut self) -> io::Result<()> {
        self.handler.tick();
        if !self.is_sent() {
            self.stalled += 1;
        }
        let is_silent = self.silent >= SILENT_TICKS && self.handler.expects();
        if is_silent || self.stalled > self.most_stalled {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if self.silent >= QUIET_TICKS && self.handler.expects() {
            self.outbox.push(Records::ping);
        }
        self.silent = self.silent.saturating_add(1);
        Ok(())
    }

    /// Takes the waiting frames, to be written next.
    fn seal(&mut self) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.sending);
        if buffer.capacity() > KEPT_BYTES {
            buffer = Vec::new();
        }
        buffer.clear();
        let mut queue = self.outbox.queue.lock();
        queue.fill();
        self.sending = queue.records.take(buffer);
        drop(queue);
        self.sent = 0;
        let mut sealed = Ok(());
        relay::seal_each(&mut self.sending, |frames, tag| {
            if sealed.is_ok() {
                sealed = seal(&mut self.sealer, frames, tag);
            }
        });
        sealed.map_err(invalid)
    }
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
