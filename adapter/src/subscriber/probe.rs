//! When a connection sends probes, and when it has waited too long for one.
//!
//! A probe is a number that the owner publishes over another connection. It must come back as a
//! message, which proves that messages flow: an open connection that answers `PING` does not, since
//! its server may be cut off from the primary. The module is pure: times go in, decisions come out.
//!
//! ```text
//!   Starting ── channel confirmed ──▶ Running ── every interval ──▶ send, wait for its return
//!      │                                 ▲
//!      └── channel refused ──▶ Blind ────┘ channel confirmed after all
//!
//!   late: in Starting or Running, nothing came back within the timeout
//! ```

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// Time until the next attempt when a probe could not be sent.
const RETRY: Duration = Duration::from_millis(100);

/// Most probes that are outstanding. Only an interval far below the timeout reaches it.
const MAX_OUTSTANDING: usize = 64;

/// The probes of one connection.
#[derive(Debug)]
pub(super) struct Probes {
    interval: Duration,
    timeout: Duration,
    next_number: u64,
    phase: Phase,
    outstanding: VecDeque<Sent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The probe's channel is not confirmed. It should be by this time.
    Starting(Instant),
    /// The next probe is due at this time.
    Running(Instant),
    /// Redis refuses the channel.
    Blind,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    number: u64,
    at: Instant,
    wall: SystemTime,
    deadline: Instant,
}

/// A probe that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Returned {
    /// When it was sent. Everything published before has arrived.
    pub(super) sent: SystemTime,
    /// Time between sending and return.
    pub(super) round_trip: Duration,
}

impl Probes {
    /// Numbers start with `first_number`. Nothing is sent before the channel is confirmed.
    pub(super) fn new(
        interval: Duration,
        timeout: Duration,
        first_number: u64,
        now: Instant,
    ) -> Self {
        Self {
            interval,
            timeout,
            next_number: first_number,
            phase: Phase::Starting(now + timeout),
            outstanding: VecDeque::new(),
        }
    }

    /// The channel is confirmed: the first probe is due at once.
    pub(super) fn begin(&mut self, now: Instant) {
        self.phase = Phase::Running(now);
    }

    /// The channel is refused: no probes until it is confirmed after all.
    pub(super) fn give_up(&mut self) {
        self.phase = Phase::Blind;
        self.outstanding.clear();
    }

    /// Sends a probe if one is due. `send` returns whether it is on its way.
    pub(super) fn send_due(&mut self, now: Instant, send: impl FnOnce(u64) -> bool) {
        let Phase::Running(next_at) = self.phase else {
            return;
        };
        if now < next_at {
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        let wall = SystemTime::now();
        if !send(number) {
            self.phase = Phase::Running(now + RETRY.min(self.interval));
            return;
        }
        self.phase = Phase::Running(now + self.interval);
        if self.outstanding.len() < MAX_OUTSTANDING {
            let deadline = now + self.timeout;
            self.outstanding.push_back(Sent {
                number,
                at: now,
                wall,
                deadline,
            });
        }
    }

    /// A probe came back. `None` if it is no longer outstanding.
    pub(super) fn returned(&mut self, number: u64, now: Instant) -> Option<Returned> {
        let at = self
            .outstanding
            .iter()
            .position(|sent| sent.number == number)?;
        let sent = self.outstanding.drain(..=at).next_back()?;
        Some(Returned {
            sent: sent.wall,
            round_trip: now.duration_since(sent.at),
        })
    }

    /// Whether the oldest probe, or the confirmation of the channel, is late. To be called when
    /// there is nothing to read.
    ///
    /// A call that comes much later than the deadline means that this process did not run in
    /// between (it was stopped, or the runtime was starved). A reply that was not read in that time
    /// proves nothing, so the timeout starts again.
    pub(super) fn is_late(&mut self, now: Instant) -> bool {
        let Some(deadline) = self.deadline() else {
            return false;
        };
        if now < deadline {
            return false;
        }
        if now.duration_since(deadline) <= self.interval {
            return true;
        }
        if let Phase::Starting(deadline) = &mut self.phase {
            *deadline = now + self.timeout;
        }
        for sent in &mut self.outstanding {
            sent.deadline = now + self.timeout;
        }
        false
    }

    /// Whether the deadline has passed, for any reason.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// When there is something to do or to judge. None if never.
    pub(super) fn next_event(&self) -> Option<Instant> {
        let next_at = match self.phase {
            Phase::Running(next_at) => Some(next_at),
            Phase::Starting(_) | Phase::Blind => None,
        };
        self.deadline().into_iter().chain(next_at).min()
    }

    fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Starting(deadline) => Some(deadline),
            Phase::Running(_) | Phase::Blind => {
                self.outstanding.front().map(|oldest| oldest.deadline)
            }
        }
    }

    /// The number of the next probe.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);
    const TIMEOUT: Duration = Duration::from_secs(5);

    fn probes() -> (Probes, Instant) {
        let now = Instant::now();
        let mut probes = Probes::new(INTERVAL, TIMEOUT, 7, now);
        probes.begin(now);
        (probes, now)
    }

    fn sent(probes: &mut Probes, now: Instant) -> Option<u64> {
        let mut number = None;
        probes.send_due(now, |n| {
            number = Some(n);
            true
        });
        number
    }

    #[test]
    fn probes_are_sent_at_once_and_then_once_per_interval() {
        let (mut probes, start) = probes();
        assert_eq!(sent(&mut probes, start), Some(7));
        assert_eq!(sent(&mut probes, start + INTERVAL / 2), None);
        assert_eq!(probes.next_event(), Some(start + INTERVAL));
        assert_eq!(sent(&mut probes, start + INTERVAL), Some(8));
    }

    #[test]
    fn a_probe_that_returns_settles_the_older_ones() {
        let (mut probes, start) = probes();
        sent(&mut probes, start);
        sent(&mut probes, start + INTERVAL);
        let returned = probes.returned(8, start + INTERVAL * 2).unwrap();
        assert_eq!(returned.round_trip, INTERVAL);
        assert_eq!(probes.returned(7, start + INTERVAL * 2), None);
        assert!(!probes.is_overdue(start + TIMEOUT * 2));
    }

    #[test]
    fn a_probe_is_late_after_the_timeout() {
        let (mut probes, start) = probes();
        sent(&mut probes, start);
        assert!(!probes.is_late(start + TIMEOUT - Duration::from_millis(1)));
        assert!(probes.is_late(start + TIMEOUT));
        assert!(probes.is_overdue(start + TIMEOUT));
    }

    #[test]
    fn a_process_that_was_stopped_waits_once_more() {
        let (mut probes, start) = probes();
        sent(&mut probes, start);
        let woken = start + Duration::from_secs(20);
        assert!(!probes.is_late(woken));
        assert!(!probes.is_late(woken + TIMEOUT - Duration::from_millis(1)));
        assert!(probes.is_late(woken + TIMEOUT));
    }

    #[test]
    fn a_probe_that_was_not_sent_is_not_waited_for_and_soon_sent_again() {
        let (mut probes, start) = probes();
        probes.send_due(start, |_| false);
        assert!(!probes.is_late(start + TIMEOUT));
        assert_eq!(probes.next_event(), Some(start + RETRY));
        assert_eq!(sent(&mut probes, start + RETRY), Some(8));
    }

    #[test]
    fn a_server_that_does_not_confirm_the_channel_is_late_too() {
        let start = Instant::now();
        let mut probes = Probes::new(INTERVAL, TIMEOUT, 0, start);
        assert_eq!(sent(&mut probes, start), None);
        assert_eq!(probes.next_event(), Some(start + TIMEOUT));
        assert!(!probes.is_late(start + TIMEOUT * 2));
        assert!(probes.is_late(start + TIMEOUT * 3));
        probes.begin(start + TIMEOUT * 3);
        assert!(!probes.is_late(start + TIMEOUT * 3));
    }

    #[test]
    fn a_connection_without_a_probe_channel_is_never_late() {
        let (mut probes, start) = probes();
        sent(&mut probes, start);
        probes.give_up();
        assert_eq!(
            (probes.next_event(), sent(&mut probes, start + INTERVAL)),
            (None, None)
        );
        assert!(!probes.is_late(start + TIMEOUT));
    }
}
