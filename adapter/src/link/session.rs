//! One connection of a link, from the first subscription to its end.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use roomcast_emitter::{
    endpoint::Stream,
    resp::{self, Limits, Parsed, Push, Reply, SubscriptionKind},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task,
    time::{self, Instant},
};

use super::{
    DownReason, LinkEvent, LinkState, Sink,
    buffer::{self, ReadBuffer},
    probe::Probes,
    subscriptions::{OutOfStep, Outcome},
    task::Task,
};

/// Most messages that are handled before others may run.
const TURN: usize = 256;

/// Longest time that messages are handled before others may run: some of them mean very many sockets.
/// The clock is looked at every [`CLOCK_EVERY`] messages.
const TURN_TIME: Duration = Duration::from_millis(2);

const CLOCK_EVERY: usize = 8;

pub(super) struct Session<'a, S> {
    link: &'a mut Task<S>,
    began: Instant,
    probes: Probes,
    /// Since when everything is subscribed and a probe has come back.
    up_since: Option<SystemTime>,
    /// Everything is subscribed that was wanted when the connection was made.
    is_complete: bool,
    subscribing: usize,
}

impl<'a, S: Sink> Session<'a, S> {
    pub(super) fn new(link: &'a mut Task<S>) -> Self {
        let mut subscriptions = link.shared.subscriptions.lock();
        subscriptions.connected();
        let subscribing = subscriptions.counts().desired;
        drop(subscriptions);
        link.shared.set_down(DownReason::Subscribing);
        let began = Instant::now();
        let (interval, timeout) = (link.config.probe_interval, link.config.probe_timeout);
        let probes = Probes::new(interval, timeout, link.next_probe, began);
        Self {
            link,
            began,
            probes,
            up_since: None,
            is_complete: false,
            subscribing,
        }
    }

    /// Listens until the connection is lost; says why.
    pub(super) async fn run(mut self, stream: Stream, unread: &[u8]) -> DownReason {
        let shared = Arc::clone(&self.link.shared);
        let limits = Limits {
            max_bulk: self.link.config.max_message,
            ..Limits::default()
        };
        let mut socket = Socket::new(stream, unread, limits);
        let mut timer = pin!(time::sleep_until(self.began));
        let mut is_suspect = false;
        loop {
            let is_more = match self.handle_read(&mut socket) {
                Ok(is_more) => is_more,
                Err(reason) => return reason,
            };
            self.write_commands(&mut socket.unwritten);
            self.send_probe();
            if is_more || socket.has_had_turn() {
                task::yield_now().await;
            }
            if is_more {
                continue;
            }
            let next_event = self.probes.next_event();
            if let Some(next_event) = next_event
                && timer.deadline() != next_event
            {
                timer.as_mut().reset(next_event);
            }
            // Reading comes first: what has arrived is read before a probe is called late.
            tokio::select! {
                biased;
                read = poll_fn(|context| socket.poll(context)) => match read {
                    Ok(0) => return DownReason::Closed,
                    Ok(_) => is_suspect = false,
                    Err(error) => return DownReason::Broken(error.to_string().into()),
                },
                () = shared.changed.notified() => {}
                () = timer.as_mut(), if next_event.is_some() => {
                    let is_late = self.probes.is_late(Instant::now());
                    if is_late && is_suspect {
                        return DownReason::ProbeLate { after: self.link.config.probe_timeout };
                    }
                    // The runtime looks at the sockets once more before the verdict.
                    is_suspect = is_late;
                    task::yield_now().await;
                }
            }
        }
    }

    /// Handles what has been read. True if a turn was not enough.
    fn handle_read(&mut self, socket: &mut Socket) -> Result<bool, DownReason> {
        let began = Instant::now();
        for number in 1..=TURN {
            match resp::parse_push(socket.buffer.unread(), &socket.limits)? {
                Parsed::Whole(push, length) => {
                    self.handle(&push)?;
                    socket.buffer.consume(length);
                    if number % CLOCK_EVERY == 0 && began.elapsed() >= TURN_TIME {
                        return Ok(true);
                    }
                }
                Parsed::Incomplete(needed) => {
                    socket.buffer.need(needed);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn handle(&mut self, push: &Push<'_>) -> Result<(), DownReason> {
        match *push {
            Push::Message { channel, payload } => {
                if self.is_probe(channel) {
                    self.probe_returned(payload);
                } else {
                    self.link.sink.message(channel, payload);
                }
                Ok(())
            }
            Push::PatternMessage {
                channel, payload, ..
            } => {
                self.link.sink.message(channel, payload);
                Ok(())
            }
            Push::Subscribed { kind, name } => self.confirmed(kind, true, name),
            Push::Unsubscribed { kind, name } => self.confirmed(kind, false, name),
            Push::Reply(Reply::Error(error)) => {
                let error = String::from_utf8_lossy(error);
                let outcome = self.link.shared.subscriptions.lock().refuse(&error)?;
                self.noted(outcome, &error);
                Ok(())
            }
            Push::Reply(_) => Ok(()),
        }
    }

    fn confirmed(
        &mut self,
        kind: SubscriptionKind,
        subscribes: bool,
        name: &[u8],
    ) -> Result<(), DownReason> {
        let mut subscriptions = self.link.shared.subscriptions.lock();
        let outcome = subscriptions.confirm(kind, subscribes, name)?;
        drop(subscriptions);
        if subscribes && self.is_probe(name) {
            self.probes.begin(Instant::now());
        }
        self.noted(outcome, "");
        Ok(())
    }

    fn is_probe(&self, channel: &[u8]) -> bool {
        channel == self.link.config.probe_channel.as_bytes()
    }

    fn noted(&mut self, outcome: Outcome, error: &str) {
        match outcome {
            Outcome::Noted => {}
            Outcome::Moved => (self.link.moved)(),
            Outcome::Refused(key) => {
                if key.name == self.link.config.probe_channel {
                    self.probes.give_up();
                    let reason = DownReason::ProbeRefused(error.into());
                    self.link.shared.set_down(reason);
                }
                self.link.sink.event(LinkEvent::Refused {
                    name: key.name,
                    error: error.into(),
                });
            }
        }
    }

    fn write_commands(&mut self, out: &mut Vec<u8>) {
        let mut subscriptions = self.link.shared.subscriptions.lock();
        subscriptions.write_commands(out);
        let is_complete = subscriptions.is_complete();
        drop(subscriptions);
        if is_complete && !self.is_complete {
            self.complete();
        }
    }

    /// Everything is subscribed that was wanted when the connection was made.
    fn complete(&mut self) {
        self.is_complete = true;
        let now = SystemTime::now();
        let before = self.link.shared.proof.lock().replace(now);
        let took = self.began.elapsed();
        self.link.sink.event(LinkEvent::Up {
            resubscribed: self.subscribing,
            took,
        });
        if let Some(from) = before {
            // The clock may have been set back meanwhile.
            self.link.sink.event(LinkEvent::Gap {
                from,
                to: now.max(from),
            });
        }
    }

    fn send_probe(&mut self) {
        let now = Instant::now();
        self.probes
            .send_due(now, |number| (self.link.config.send_probe)(number));
        self.link.next_probe = self.probes.next_number();
        // Still reading what waits; whether anything is lost is not known yet.
        if self.up_since.is_some() && self.probes.is_overdue(now) {
            self.up_since = None;
            let after = self.link.config.probe_timeout;
            self.link.shared.set_down(DownReason::ProbeLate { after });
        }
    }

    fn probe_returned(&mut self, payload: &[u8]) {
        let number = std::str::from_utf8(payload)
            .ok()
            .and_then(|text| text.parse().ok());
        let Some(returned) = number.and_then(|number| self.probes.returned(number, Instant::now()))
        else {
            return;
        };
        if !self.is_complete {
            return;
        }
        let mut proof = self.link.shared.proof.lock();
        *proof = (*proof).max(Some(returned.sent));
        drop(proof);
        let since = *self.up_since.get_or_insert_with(SystemTime::now);
        self.link.shared.state.send_replace(LinkState::Up {
            since,
            last_probe_round_trip: returned.round_trip,
        });
    }
}

impl From<OutOfStep> for DownReason {
    fn from(_: OutOfStep) -> Self {
        Self::OutOfStep
    }
}

/// A stream with what has been read and what is to be written.
struct Socket {
    stream: Stream,
    limits: Limits,
    buffer: ReadBuffer,
    /// Bytes read since others could run.
    in_turn: usize,
    unwritten: Vec<u8>,
    written: usize,
    needs_flush: bool,
}

impl Socket {
    fn new(stream: Stream, unread: &[u8], limits: Limits) -> Self {
        Self {
            stream,
            limits,
            in_turn: 0,
            buffer: ReadBuffer::new(unread),
            unwritten: Vec::new(),
            written: 0,
            needs_flush: false,
        }
    }

    /// Writes what it can, and is ready when something has been read.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(error)) = self.poll_write(context) {
            return Poll::Ready(Err(error));
        }
        let mut space = ReadBuf::new(self.buffer.space());
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut space))?;
        let read = space.filled().len();
        self.buffer.filled(read);
        self.in_turn += read;
        Poll::Ready(Ok(read))
    }

    /// Whether so much has been read that others should run.
    fn has_had_turn(&mut self) -> bool {
        let has_had = self.in_turn >= buffer::SIZE;
        if has_had {
            self.in_turn = 0;
        }
        has_had
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.unwritten.len() {
            let rest = &self.unwritten[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
            self.needs_flush = true;
        }
        // Names are written in bursts: the memory of a big one is not kept.
        if self.written > 0 {
            self.written = 0;
            self.unwritten = Vec::new();
        }
        if self.needs_flush {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }
}
