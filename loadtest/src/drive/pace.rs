//! When messages are sent: within a window, at a rate, or all at once.

use super::{Drive, Pace};
use crate::{
    clock::{self, Nanos, SECOND, span},
    histogram::Histogram,
    population::State,
    run::TURN,
};

/// State of a paced run.
pub(super) struct Beat {
    pub(super) start: Nanos,
    pub(super) sent: u64,
    /// Delay between the due time and the sending of messages.
    pub(super) lag: Histogram,
    pub(super) skipped: u64,
}

impl Drive<'_> {
    /// Sends the messages that are due. Returns the time of the next turn.
    pub(super) fn speak(&mut self, now: Nanos, first: bool) -> anyhow::Result<Nanos> {
        match self.plan.pace {
            Pace::Window(window) => {
                self.speak_in_window(window, first);
                self.pump(now + TURN)
            }
            Pace::Rate(rate) => self.speak_at_rate(rate, now),
            Pace::Flood(count) => self.flood(u64::from(count), now),
        }
    }

    fn speak_in_window(&mut self, window: usize, first: bool) {
        let mut due = std::mem::take(&mut self.population.finished);
        if first {
            due.clear();
            for _ in 0..window {
                due.extend(0..self.plan.shape.rooms * self.plan.shape.senders);
            }
        }
        for sender in due.drain(..) {
            if self.population.outstanding(sender) < window {
                let time = clock::now();
                self.send(sender, time, time, false);
            }
        }
        // Reuses the list's allocation. Expired messages are its first entries.
        self.population.finished.append(&mut due);
        self.expire(clock::now());
    }

    /// Gives up messages that are outstanding for too long; checks ten times per second.
    pub(super) fn expire(&mut self, now: Nanos) {
        if now >= self.next_expiry {
            self.population
                .expire(now.saturating_sub(span(self.common.grace)));
            self.next_expiry = now + SECOND / 10;
        }
    }

    fn speak_at_rate(&mut self, rate: f64, now: Nanos) -> anyhow::Result<Nanos> {
        self.population.finished.clear();
        let due = |beat: &Beat| clock::due(beat.start, beat.sent, rate);
        for _ in 0..MOST_PER_TURN {
            let time = due(&self.beat);
            // Messages that wait for the emitter count as late, like those that wait for us.
            if time > now || self.unsent_bytes() > 0 {
                break;
            }
            self.beat.lag.record(clock::now().saturating_sub(time));
            self.send_next(time, now);
        }
        self.expire(now);
        self.pump(due(&self.beat))
    }

    pub(super) fn send_next(&mut self, time: Nanos, now: Nanos) {
        let senders = self.plan.shape.rooms * self.plan.shape.senders;
        let sender = (self.beat.sent % senders as u64) as usize;
        self.beat.sent += 1;
        self.send(sender, time, now, self.plan.is_unheard);
    }

    pub(super) fn send(&mut self, sender: usize, time: Nanos, now: Nanos, is_unheard: bool) {
        self.packet.clear();
        if self.external.is_some() {
            self.emit(sender, time, now, is_unheard);
            return;
        }
        let client = self.population.client_of(sender);
        if self.population.state(client) != State::In {
            self.beat.skipped += 1;
            return;
        }
        self.population
            .write_message(sender, time, now, &mut self.packet);
        self.run.swarm.send(client, &self.packet);
    }

    pub(super) fn is_flood_over(&self) -> bool {
        let Pace::Flood(count) = self.plan.pace else {
            return false;
        };
        self.beat.sent >= u64::from(count)
            && self.is_all_emitted()
            && self.population.outstanding_of_all() == 0
    }

    pub(super) fn check_rate(&mut self) {
        let Pace::Rate(rate) = self.plan.pace else {
            return;
        };
        let outcome = &mut self.run.outcome;
        let achieved = outcome.count("messages") as f64 / outcome.seconds.max(1e-9);
        if self.beat.skipped > 0 {
            let skipped = self.beat.skipped;
            outcome.notes.push(format!(
                "{skipped} messages were not sent because their sender was not connected"
            ));
        } else if achieved < rate * LEAST_SHARE_OF_RATE {
            outcome.limit(&format!(
                "the rate was not kept: {achieved:.1} of {rate:.1} messages per second"
            ));
        }
        let lag = self.beat.lag.percentile_ms(99.0);
        if lag > MOST_LAG_MS {
            outcome.limit(&format!(
                "the rate was not kept evenly: one message in a hundred was sent {lag:.0} ms late, \
                 which latencies include"
            ));
        }
    }
}

const MOST_PER_TURN: usize = 64;
const LEAST_SHARE_OF_RATE: f64 = 0.98;
const MOST_LAG_MS: f64 = 20.0;
