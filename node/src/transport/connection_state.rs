//! The frames that one connection has to write, and their writer: a pure state machine.
//!
//! Limits and times come in; actions come out and are carried out by
//! [`Connection`](super::connection::Connection). There is no socket, clock or waker here, so the
//! tests drive it against a model client without a runtime.
//!
//! Two tasks may write to a WebSocket: the connection's driver and the task of its lane. Anyone may
//! queue. The flags determine whose turn it is; a combination that is not in this table is a bug.
//!
//! ```text
//! dirty in_turn blocked direct │ who writes what is queued
//!   ·      ·       ·      ·    │ nothing is queued, or a poll fetches it, or the driver was woken
//!   x      ·       ·      ·    │ the lane
//!   ·      x       ·      x    │ nothing is queued: replies of the turn go ahead of the outbox
//!   ·      x       ·      ·    │ the driver, when its turn ends
//!   x      x       ·      ·    │ the lane: a broadcast leaves in the order of its recipients
//!   ·     x/·      x      ·    │ the driver, when the system takes more
//!   x     x/·      x      ·    │ the driver; only while closing
//! ```
//!
//! A client is *stuck* while nothing can be written to it: the system accepted fewer bytes than
//! offered, or no poll waits. It is slow when it is stuck and has read nothing for `stall_timeout`,
//! or when more than `outbox_bytes` waits. A client that polls is stuck between two polls, but
//! nothing was refused: volatile packets wait for its next poll as long as they fit into that.
//!
//! ```text
//! open ── close ──▶ closing: the outbox is written (if the reason flushes it), then a close frame
//!   └──── abort ──▶ closing and expired: nothing is written any more, the driver releases all
//! closing ── its time is over ──▶ expired
//! ```

use std::time::Duration;

use super::{
    backlog,
    config::{Config, Limits},
    frame::{Frame, Wire},
    outbox::Outbox,
    websocket,
};
use crate::{
    clock::Time,
    close::{CloseReason, Limit},
};
use roomcast_protocol::engine_io::{
    open::Revision,
    packet::Packet,
    session::{Heartbeat, Received, Session, Tick, UnexpectedPacket},
};

/// Frames that together are not larger than this are copied into one buffer and written with one
/// call, because copying a few kilobytes is cheaper than a vector of buffers.
const COALESCE_BYTES: usize = 16 * 1024;

/// How long a closed WebSocket may take to read the queued bytes and to close its side.
const WEBSOCKET_LINGER: Duration = Duration::from_secs(5);

/// How long a closed client may take for all queued bytes while it keeps reading.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a polling client may take to fetch its last packets.
const POLLING_LINGER: Duration = Duration::from_secs(30);

/// The same while the whole server shuts down: clients that poll come back within a round trip, or
/// never.
pub(super) const SHUTDOWN_LINGER: Duration = Duration::from_secs(2);

pub(super) struct ConnectionState {
    session: Session,
    outbox: Outbox,
    closing: Option<Box<Closing>>,
    /// When the client last took something while more was waiting, or a poll of it ended.
    progress: Time,
    /// When an unused connection, or a closing one, has had its time.
    expires: Time,
    /// The lane's task will flush.
    dirty: bool,
    /// The driver is in its turn and flushes at the end of it.
    in_turn: bool,
    /// The system accepted fewer bytes than offered; the driver waits until it takes more.
    blocked: bool,
    /// The time of a closing connection has passed, or its transport is closed.
    expired: bool,
    /// Replies of the turn may be written ahead of the outbox, which was empty when it began.
    direct: bool,
}

struct Closing {
    reason: CloseReason,
    /// How far the end may be put off.
    latest: Time,
    /// The description of the frames that waited for a slow client, for the log.
    backlog: Option<Box<str>>,
}

/// How the client can be reached now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    WebSocket,
    /// A poll waits for something to fetch.
    WaitingPoll,
    BetweenPolls,
}

/// The outcome of queueing a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Push {
    /// `flush`: the connection has to be given to its lane. `waits`: the client is stuck, so the
    /// frame counts as waiting.
    Queued {
        flush: bool,
        waits: bool,
    },
    /// A volatile frame, which the client could not receive now.
    Dropped,
    Closed,
    /// The client is too slow; the connection was closed by this.
    Cut(Todo),
}

/// The work that is left to the caller after a change of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub(super) struct Todo {
    /// Set the timer to the new [`deadline`](ConnectionState::deadline).
    pub(super) arm: bool,
    /// Wake the driver, and the poll that waits.
    pub(super) wake: bool,
}

/// The outcome of a check of the time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// A ping has to be pushed.
    Ping,
    /// The connection began to close, or its time to close has passed.
    Closed(Todo),
}

impl ConnectionState {
    /// `heartbeat` is that of the settings, or never comes if a plain connection has none.
    pub(super) fn new(
        revision: Revision,
        heartbeat: Heartbeat,
        config: &Config,
        now: Time,
    ) -> Self {
        Self {
            session: Session::new(revision, heartbeat, now),
            outbox: Outbox::default(),
            closing: None,
            progress: now,
            expires: now.after(config.connect_timeout),
            dirty: false,
            in_turn: false,
            blocked: false,
            expired: false,
            direct: false,
        }
    }

    pub(super) fn closing(&self) -> Option<CloseReason> {
        self.closing.as_ref().map(|closing| closing.reason)
    }

    pub(super) fn is_expired(&self) -> bool {
        self.expired
    }

    /// Whether there is nothing to wait for: the time has passed, or the other end is gone.
    pub(super) fn is_over(&self) -> bool {
        self.expired || self.closing().is_some_and(CloseReason::transport_is_gone)
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(super) fn may_reply_directly(&self) -> bool {
        self.direct
    }

    /// The bytes that wait for a client that is stuck; none if it is not.
    pub(super) fn stuck_bytes(&self, reach: Reach) -> Option<usize> {
        let is_stuck = self.closing.is_none() && self.is_stuck(reach) && self.has_frames();
        is_stuck.then_some(self.outbox.bytes())
    }

    /// The frames that wait.
    pub(super) fn frames(&self) -> impl Iterator<Item = &Frame> {
        self.outbox.iter()
    }

    /// Takes the description of the frames that waited for a slow client.
    pub(super) fn take_backlog(&mut self) -> Option<Box<str>> {
        self.closing.as_mut()?.backlog.take()
    }

    /// When [`tick`](Self::tick) has to be called next.
    pub(super) fn deadline(&self) -> Time {
        match &self.closing {
            Some(_) => self.expires,
            None => self.expires.min(self.session.deadline()),
        }
    }

    /// The connection is in use: the connect timeout no longer applies.
    pub(super) fn claim(&mut self) {
        if self.closing.is_none() {
            self.expires = Time::from_millis(u64::MAX);
        }
    }

    /// Queues the packet that opens the session, for the driver's first turn. A connection that is
    /// closed already needs no opening, but the head of its WebSocket comes before the close frame.
    pub(super) fn begin(&mut self, opening: Frame, head: Option<&[u8]>) {
        if self.closing.is_none() {
            self.outbox.push(opening);
        } else if let Some(head) = head {
            self.outbox.push_first(Frame::raw(head));
        }
    }

    /// Queues a frame. `by_lane`: the lane flushes it, even if the driver is in its turn.
    pub(super) fn push(
        &mut self,
        frame: &Frame,
        volatile: bool,
        by_lane: bool,
        reach: Reach,
        config: &Config,
        now: impl Fn() -> Time,
    ) -> Push {
        if self.closing.is_some() {
            return Push::Closed;
        }
        let is_stuck = self.is_stuck(reach);
        let queued = self.outbox.bytes();
        let all = queued + frame.cost();
        let fits_poll = reach == Reach::BetweenPolls && all <= config.max_payload;
        if volatile && is_stuck && !fits_poll {
            return Push::Dropped;
        }
        if queued > 0 {
            let is_full = all > config.limits.outbox_bytes;
            if is_full || is_stuck && self.is_stalled(reach, &config.limits, now()) {
                return Push::Cut(self.cut(Limit::Outbox, reach, now()));
            }
        }
        self.outbox.push(frame.clone());
        self.direct = false;
        let flush = (by_lane || !self.in_turn) && !self.dirty && !is_stuck;
        self.dirty |= flush;
        Push::Queued {
            flush,
            waits: is_stuck,
        }
    }

    /// Whether flushing now would have no effect.
    fn is_stuck(&self, reach: Reach) -> bool {
        match reach {
            Reach::WebSocket => self.blocked,
            Reach::WaitingPoll => false,
            Reach::BetweenPolls => true,
        }
    }

    /// Whether the client has taken nothing for too long, although something waits for it.
    fn is_stalled(&self, reach: Reach, limits: &Limits, now: Time) -> bool {
        self.is_stuck(reach)
            && self.has_frames()
            && now >= self.progress.after(limits.stall_timeout)
    }

    /// Closes the connection of a slow client. Its waiting frames are dropped at once.
    pub(super) fn cut(&mut self, limit: Limit, reach: Reach, now: Time) -> Todo {
        let backlog = backlog::describe(self.outbox.iter());
        let todo = self.close(CloseReason::LimitReached(limit), reach, now);
        if let Some(closing) = &mut self.closing {
            closing.backlog = Some(backlog);
        }
        todo
    }

    /// Begins to close the connection. The first reason counts.
    pub(super) fn close(&mut self, reason: CloseReason, reach: Reach, now: Time) -> Todo {
        self.close_with(reason, &close_frame(reason.websocket_code()), reach, now)
    }

    /// The same with a close frame of the caller's.
    pub(super) fn close_with(
        &mut self,
        reason: CloseReason,
        frame: &Frame,
        reach: Reach,
        now: Time,
    ) -> Todo {
        if let Some(closing) = &mut self.closing {
            // A client that takes its time to fetch its last packets does not delay a shutdown.
            let soon = now.after(SHUTDOWN_LINGER);
            let is_shutdown = reason == CloseReason::ServerShutdown;
            let arm = is_shutdown && soon < self.expires;
            if is_shutdown {
                closing.latest = closing.latest.min(soon);
                self.expires = self.expires.min(soon);
            }
            return Todo { arm, wake: false };
        }
        let is_shutdown = reason == CloseReason::ServerShutdown;
        let latest = if is_shutdown {
            SHUTDOWN_LINGER
        } else {
            FLUSH_TIMEOUT
        };
        self.closing = Some(Box::new(Closing {
            reason,
            latest: now.after(latest),
            backlog: None,
        }));
        self.direct = false;
        self.expires = now.after(match reason {
            CloseReason::ServerShutdown => SHUTDOWN_LINGER,
            // A client that has been silent for that long no longer fetches anything.
            CloseReason::PingTimeout => Duration::ZERO,
            _ => linger(reach),
        });
        // A frame that is partly on the wire cannot be followed by a close frame, unless the
        // rest of it follows too.
        let cut = self.outbox.written() > 0 && !reason.flushes();
        if !reason.flushes() {
            self.outbox.clear();
        }
        if reach == Reach::WebSocket && !cut && !self.expired && !reason.transport_is_gone() {
            self.outbox.push(frame.clone());
        }
        Todo {
            arm: true,
            wake: true,
        }
    }

    /// Closes a connection whose transport is closed: no peer is left to read a close frame or to
    /// wait for.
    pub(super) fn abort(&mut self, reason: CloseReason, now: Time) -> Todo {
        self.outbox.clear();
        self.expired = true;
        let todo = self.close(reason, Reach::BetweenPolls, now);
        Todo { wake: true, ..todo }
    }

    /// The client's WebSocket takes over from polling. Queued frames reach the client on
    /// it, before the close frame if the connection is closing.
    pub(super) fn attach(&mut self) {
        if let Some(reason) = self.closing() {
            self.outbox.push(close_frame(reason.websocket_code()));
        }
    }

    /// Passes a packet to the session. The timer usually stands earlier than the next deadline;
    /// it has to be set only if the packet brings the deadline forward.
    pub(super) fn receive<'p>(
        &mut self,
        packet: Packet<'p>,
        config: &Config,
        now: Time,
    ) -> (Result<Received<'p>, UnexpectedPacket>, Todo) {
        let before = self.session.deadline();
        let received = self.session.receive(packet, config.heartbeat, now);
        let arm = self.session.deadline() < before;
        (received, Todo { arm, wake: false })
    }

    /// Checks the heartbeat and the remaining time. The timer has to be set afterwards,
    /// unless the connection has expired.
    pub(super) fn tick(&mut self, reach: Reach, config: &Config, now: Time) -> Due {
        if let Some(closing) = &self.closing {
            if now < self.expires {
                return Due::Nothing;
            }
            // A client that keeps reading queued bytes gets the time for it.
            let more = self.progress.after(linger(reach)).min(closing.latest);
            if closing.reason.flushes() && self.has_frames() && now < more {
                self.expires = more;
                return Due::Nothing;
            }
            self.expired = true;
            return Due::Closed(Todo {
                arm: false,
                wake: true,
            });
        }
        if now >= self.expires {
            return Due::Closed(self.close(CloseReason::ConnectTimeout, reach, now));
        }
        if self.is_stalled(reach, &config.limits, now) {
            return Due::Closed(self.cut(Limit::Outbox, reach, now));
        }
        match self.session.tick(config.heartbeat, now) {
            Tick::Nothing => Due::Nothing,
            Tick::SendPing => Due::Ping,
            Tick::TimedOut => Due::Closed(self.close(CloseReason::PingTimeout, reach, now)),
        }
    }

    /// The lane is about to flush. Returns whether it may write; if not, somebody else does.
    pub(super) fn begin_flush(&mut self) -> bool {
        self.dirty = false;
        !self.in_turn && !self.blocked
    }

    /// The driver's turn begins or continues: until its end, no other task writes.
    pub(super) fn begin_turn(&mut self) {
        self.in_turn = true;
    }

    /// The turn begins to handle the bytes that were read.
    pub(super) fn begin_replies(&mut self, reach: Reach) {
        self.direct = reach == Reach::WebSocket
            && self.in_turn
            && self.outbox.is_empty()
            && !self.blocked
            && self.closing.is_none();
    }

    /// The turn ends. Queued frames that fit are added to its replies, to leave in the
    /// same write. Replies come first, because they are only written directly while the
    /// outbox was empty.
    pub(super) fn end_turn(&mut self, replies: &mut Vec<u8>, wire: Wire<'_>) {
        self.in_turn = false;
        self.direct = false;
        let queued = self.outbox.bytes();
        if !replies.is_empty() && queued > 0 && replies.len() + queued <= COALESCE_BYTES {
            for frame in self.outbox.iter() {
                replies.extend_from_slice(frame.wire(wire));
            }
            self.outbox.clear();
        }
    }

    /// `count` bytes of the replies were written. The rest is the first that leaves next. A write
    /// that failed counts as none: the next one fails again.
    pub(super) fn replied(&mut self, replies: &[u8], count: usize) {
        if count < replies.len() {
            self.outbox.push_partial(Frame::raw(replies), count);
        }
    }

    /// Whether the driver writes at the end of its turn. A broadcast that came meanwhile is
    /// written by the lane, in the order of its recipients; but a closing connection's driver
    /// waits for an empty outbox.
    pub(super) fn driver_writes(&self) -> bool {
        !self.dirty || self.closing.is_some()
    }

    /// The bytes to write next to the WebSocket; none when all is written.
    pub(super) fn next_write<'a>(
        &'a mut self,
        wire: Wire<'_>,
        scratch: &'a mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        // A form may have nothing to write for an event.
        while self
            .outbox
            .first()
            .is_some_and(|first| first.wire(wire).is_empty())
        {
            self.outbox.pop();
        }
        let mut frames = self.outbox.iter();
        let Some(first) = frames.next() else {
            self.blocked = false;
            return None;
        };
        let first = &first.wire(wire)[self.outbox.written()..];
        let gathers = frames
            .next()
            .is_some_and(|second| first.len() + second.wire(wire).len() <= COALESCE_BYTES);
        if !gathers {
            return Some(first);
        }
        scratch.clear();
        let mut skip = self.outbox.written();
        for frame in self.outbox.iter() {
            let bytes = &frame.wire(wire)[skip..];
            skip = 0;
            if scratch.len() + bytes.len() > COALESCE_BYTES {
                break;
            }
            scratch.extend_from_slice(bytes);
        }
        Some(scratch)
    }

    /// `count` bytes have been written.
    pub(super) fn wrote(&mut self, count: usize, wire: Wire<'_>) {
        self.outbox.advance(count, |frame| frame.wire(wire).len());
    }

    /// The system takes no more now. `progressed`: it has taken something since the last time.
    /// Returns whether this is new, so that all frames begin to count as waiting.
    pub(super) fn block(&mut self, progressed: bool, now: Time) -> bool {
        let is_new = !std::mem::replace(&mut self.blocked, true);
        if progressed || is_new {
            self.progress = now;
        }
        is_new
    }

    /// A poll has got its response.
    pub(super) fn poll_ended(&mut self, now: Time) {
        self.progress = now;
    }

    /// Whether a poll has something to fetch.
    pub(super) fn has_frames(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Takes frames for the answer to a poll: at least one, if there is one, and as many as stay
    /// within both bounds.
    pub(super) fn take_frames(&mut self, max_packets: usize, max_bytes: usize) -> Vec<Frame> {
        let mut frames = Vec::new();
        let (mut packets, mut bytes) = (0, 0);
        while let Some(next) = self.outbox.first() {
            packets += next.packets();
            bytes += next.cost();
            if (packets > max_packets || bytes > max_bytes) && !frames.is_empty() {
                break;
            }
            frames.extend(self.outbox.pop());
        }
        frames
    }

    /// Takes the first frame that waits.
    pub(super) fn take_frame(&mut self) -> Option<Frame> {
        self.outbox.pop()
    }

    /// The connection has ended; nothing more is written.
    pub(super) fn release(&mut self) {
        self.outbox.clear();
    }
}

/// How long a client may take nothing after its connection was closed.
fn linger(reach: Reach) -> Duration {
    if reach == Reach::WebSocket {
        WEBSOCKET_LINGER
    } else {
        POLLING_LINGER
    }
}

pub(super) fn close_frame(code: Option<u16>) -> Frame {
    let mut close = Vec::new();
    websocket::append_close(&mut close, code);
    Frame::raw(&close)
}

#[cfg(test)]
mod tests;
