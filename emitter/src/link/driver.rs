//! The task of a link: connects, writes what is queued, reads replies, notices silence.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{Interval, MissedTickBehavior},
};

use super::{
    Destination, LinkConfig, LinkState, NOT_YET, Shared,
    queue::{Chunk, Told},
};
use crate::{
    backoff::Backoff,
    endpoint::{Connection, Stream, Topology},
    resp::{self, Limits, Parsed},
    value::Value,
};

/// Room for one read.
const READ_BYTES: usize = 32 << 10;

/// Into how many ticks the reply timeout is cut.
const TICKS: u32 = 8;

pub(super) struct Driver {
    destination: Destination,
    backoff: Backoff,
    reply_timeout: Duration,
    first: Option<Connection>,
    shared: Arc<Shared>,
    state: watch::Sender<LinkState>,
}

impl Driver {
    pub(super) fn new(
        destination: Destination,
        config: LinkConfig,
        first: Option<Connection>,
        shared: Arc<Shared>,
    ) -> (Self, watch::Receiver<LinkState>) {
        let (state, receiver) = watch::channel(LinkState::Down(NOT_YET.into()));
        let mut driver = Self {
            destination,
            backoff: config.backoff,
            reply_timeout: config.reply_timeout,
            first: None,
            shared,
            state,
        };
        // Who hands over a connection may send at once.
        if let Some(connection) = first {
            driver.connected(&connection);
            driver.first = Some(connection);
        }
        (driver, receiver)
    }

    pub(super) async fn run(mut self) {
        let mut is_first = true;
        loop {
            let reason = match self.next_connection().await {
                Some(Ok(connection)) => {
                    if !is_first {
                        self.shared.stats.reconnects.fetch_add(1, Ordering::Relaxed);
                    }
                    is_first = false;
                    self.backoff.reset();
                    self.serve(connection).await
                }
                Some(Err(reason)) => Some(reason),
                None => None,
            };
            self.disconnected(reason.unwrap_or_else(|| "the link has been closed".into()));
            let closed = self.shared.closed.notified();
            if self.shared.queue.lock().is_closed() {
                return;
            }
            tokio::select! {
                () = closed => return,
                () = tokio::time::sleep(self.backoff.next_delay()) => {}
            }
        }
    }

    /// None if the link has been closed.
    async fn next_connection(&mut self) -> Option<Result<Connection, Arc<str>>> {
        if let Some(connection) = self.first.take() {
            return Some(Ok(connection));
        }
        let connected = tokio::select! {
            () = self.shared.closed.notified() => return None,
            connected = self.destination.connect() => connected,
        };
        match connected {
            Ok(connection) => self.connected(&connection).then_some(Ok(connection)),
            Err(error) => Some(Err(error.to_string().into())),
        }
    }

    fn connected(&self, connection: &Connection) -> bool {
        self.shared
            .peer
            .lock()
            .clone_from(&connection.info().address);
        let is_open = self
            .shared
            .queue
            .lock()
            .connected(connection.direct_writer());
        if is_open {
            self.change(LinkState::Up);
        }
        is_open
    }

    fn disconnected(&self, reason: Arc<str>) {
        let failed = {
            let mut queue = self.shared.queue.lock();
            self.shared.remove_queued(queue.queued_bytes());
            queue.disconnected(&reason)
        };
        self.change(LinkState::Down(reason));
        failed.into_iter().for_each(Told::tell);
    }

    fn change(&self, state: LinkState) {
        self.state.send_replace(state);
        if let Some(on_change) = &self.shared.on_change {
            on_change.notify_one();
        }
    }

    /// Until the connection ends: why it does, or nothing if the link is to be closed.
    async fn serve(&self, connection: Connection) -> Option<Arc<str>> {
        let (stream, buffer) = connection.into_parts();
        let mut ticks = tokio::time::interval(self.reply_timeout / TICKS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut exchange = Exchange {
            stream,
            input: buffer,
            chunk: Vec::new(),
            sent: 0,
            must_flush: false,
            has_gathered: false,
            replies: Vec::new(),
            told: Vec::new(),
            ticks,
            silence: Silence::default(),
            leaves_read_only: matches!(
                &self.destination,
                Destination::Endpoint(endpoint) if endpoint.topology() == Topology::Sentinel
            ),
            shared: &self.shared,
        };
        match std::future::poll_fn(|context| exchange.poll(context)).await {
            End::Closed => {
                // The server has answered everything; how it takes the farewell does not matter.
                let _ = exchange.stream.shutdown().await;
                None
            }
            End::Replaced => Some("another server is to be used".into()),
            End::Broken(reason) => Some(reason),
            End::Silent => {
                let seconds = self.reply_timeout.as_secs_f32();
                Some(format!("no answer for {seconds} s").into())
            }
        }
    }
}

/// Why a connection is left.
enum End {
    Closed,
    Replaced,
    Silent,
    Broken(Arc<str>),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string().into())
    }
}

/// One connection in use.
struct Exchange<'a> {
    stream: Stream,
    input: BytesMut,
    /// What is being written, and how much of it has been.
    chunk: Vec<u8>,
    sent: usize,
    must_flush: bool,
    /// Others have had their turn to add to the next chunk.
    has_gathered: bool,
    replies: Vec<Value>,
    told: Vec<Told>,
    ticks: Interval,
    silence: Silence,
    leaves_read_only: bool,
    shared: &'a Shared,
}

impl Exchange<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        while self.ticks.poll_tick(context).is_ready() {
            if self.silence.tick(self.shared.queue.lock().stuck_at()) {
                return Poll::Ready(End::Silent);
            }
        }
        if self.shared.queue.lock().is_replaced() {
            return Poll::Ready(End::Replaced);
        }
        if let Poll::Ready(end) = self.poll_read(context) {
            return Poll::Ready(end);
        }
        self.poll_write(context)
    }

    /// Ready only at the end of the connection.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<End> {
        loop {
            self.input.reserve(READ_BYTES);
            let read = match ready!(poll_read_buf(&mut self.stream, context, &mut self.input)) {
                Ok(0) => End::Broken("the server has closed the connection".into()),
                Ok(_) => match self.take_replies() {
                    Ok(()) => continue,
                    Err(end) => end,
                },
                Err(error) => error.into(),
            };
            return Poll::Ready(read);
        }
    }

    fn take_replies(&mut self) -> Result<(), End> {
        let limits = Limits::default();
        let mut end = 0;
        let mut is_read_only = false;
        loop {
            // What a message in a room of few nodes is answered with.
            if let [b':', digit @ b'0'..=b'9', b'\r', b'\n', ..] = &self.input[end..] {
                end += 4;
                self.replies.push(Value::Integer((digit - b'0').into()));
                continue;
            }
            match resp::parse(&self.input[end..], &limits) {
                Ok(Parsed::Whole(reply, length)) => {
                    end += length;
                    if let resp::Reply::Error(text) = &reply {
                        is_read_only |= text.starts_with(b"READONLY");
                    }
                    self.replies.push(Value::from(&reply));
                }
                Ok(Parsed::Incomplete(_)) => break,
                Err(error) => return Err(End::Broken(error.to_string().into())),
            }
        }
        self.input.advance(end);
        let are_expected = {
            let mut queue = self.shared.queue.lock();
            let before = queue.queued_bytes();
            let are_expected = queue.answer(&mut self.replies, &mut self.told);
            self.shared.remove_queued(before - queue.queued_bytes());
            are_expected
        };
        self.told.drain(..).for_each(Told::tell);
        if !are_expected {
            return Err(End::Broken("an answer that nobody has asked for".into()));
        }
        // Sentinels have made it follow another one: that is the server to talk to.
        if is_read_only && self.leaves_read_only {
            return Err(End::Broken("the server is not the primary any more".into()));
        }
        Ok(())
    }

    /// Ready only at the end of the connection.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<End> {
        loop {
            if self.chunk.is_empty() && !self.must_flush {
                let mut queue = self.shared.queue.lock();
                match queue.take_chunk(&mut self.chunk, context.waker(), self.has_gathered) {
                    Chunk::Filled => self.has_gathered = false,
                    Chunk::Empty => return Poll::Pending,
                    Chunk::Gathering => {
                        self.has_gathered = true;
                        drop(queue);
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Chunk::Finished => return Poll::Ready(End::Closed),
                }
            }
            while self.sent < self.chunk.len() {
                let rest = &self.chunk[self.sent..];
                match ready!(Pin::new(&mut self.stream).poll_write(context, rest)) {
                    Ok(0) => {
                        return Poll::Ready(io::Error::from(io::ErrorKind::WriteZero).into());
                    }
                    Ok(written) => {
                        self.sent += written;
                        self.shared.add_written(written);
                        self.shared.queue.lock().wrote(written);
                        self.must_flush = true;
                    }
                    Err(error) => return Poll::Ready(error.into()),
                }
            }
            if let Err(error) = ready!(Pin::new(&mut self.stream).poll_flush(context)) {
                return Poll::Ready(error.into());
            }
            self.must_flush = false;
            self.sent = 0;
            self.shared.queue.lock().after_chunk(&mut self.chunk);
        }
    }
}

fn poll_read_buf(
    stream: &mut Stream,
    context: &mut Context<'_>,
    input: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    // `read_buf` makes a future; this is its `poll`.
    std::pin::pin!(stream.read_buf(input)).poll(context)
}

/// Notices that a server answers nothing any more, by looking from time to time.
#[derive(Debug, Default)]
struct Silence {
    stuck_at: Option<u64>,
    ticks: u32,
}

impl Silence {
    /// `stuck_at` tells which command waits first, if any does. True once it is the same for the
    /// whole timeout.
    fn tick(&mut self, stuck_at: Option<u64>) -> bool {
        if stuck_at.is_none() || stuck_at != self.stuck_at {
            self.stuck_at = stuck_at;
            self.ticks = 0;
            return false;
        }
        self.ticks += 1;
        self.ticks >= TICKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_the_same_command_waiting_for_all_ticks() {
        let mut silence = Silence::default();
        for _ in 0..2 * TICKS {
            assert!(!silence.tick(None));
        }
        for _ in 0..TICKS {
            assert!(!silence.tick(Some(0)));
        }
        assert!(silence.tick(Some(0)));
        // Any answer begins the count anew.
        assert!(!silence.tick(Some(10)));
        for _ in 1..TICKS {
            assert!(!silence.tick(Some(10)));
        }
        assert!(silence.tick(Some(10)));
    }
}
