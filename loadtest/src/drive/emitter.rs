//! Messages from outside. An emitter that is a program sends one message per room before the
//! measurement, because its start and its connection are not part of the figures.

use anyhow::bail;

use super::{Drive, LONGEST_OPENING, Pace};
use crate::{
    clock::{self, MILLISECOND, Nanos},
    run::TURN,
};

impl Drive<'_> {
    /// Makes the emitter send one message to each room and waits until all members have received
    /// it.
    pub(super) fn rouse(&mut self) -> anyhow::Result<()> {
        if !self.has_program() {
            return Ok(());
        }
        self.run.enter("waiting for the emitter", None);
        for sender in 0..self.plan.shape.rooms * self.plan.shape.senders {
            let now = clock::now();
            self.send(sender, now, now, false);
        }
        let deadline = clock::now() + LONGEST_OPENING;
        while self.population.outstanding_of_all() > 0 {
            self.pump(Nanos::MAX)?;
            self.turn(TURN.min(5 * MILLISECOND))?;
            if clock::now() > deadline {
                let missing = self.population.outstanding_of_all();
                bail!("the emitter's first message did not reach all members in {missing} rooms");
            }
        }
        self.population.finished.clear();
        Ok(())
    }

    /// CPU time of the emitter so far.
    pub(super) fn emitter_cpu(&mut self) -> Nanos {
        let usage = self.external.as_mut().and_then(|external| external.usage());
        usage.map_or(0, |(cpu, _)| cpu)
    }

    /// Records the emitter's time and CPU and closes its input. Its time ends with the window or
    /// with its own exit, which means that Redis has taken everything.
    pub(super) fn count_emits(&mut self) {
        let Some(external) = &mut self.external else {
            return;
        };
        if let Some((cpu, ended_at)) = external.usage() {
            let until = ended_at.unwrap_or_else(clock::now);
            let outcome = &mut self.run.outcome;
            outcome.set("emits", self.population.counts.sent - self.marks.sent);
            outcome.set(
                "emitter nanoseconds",
                until.saturating_sub(self.marks.begin),
            );
            let cpu = cpu.saturating_sub(self.marks.emitter_cpu);
            outcome.set("emitter CPU nanoseconds", cpu);
            if let Pace::Flood(count) = self.plan.pace
                && self.beat.sent < u64::from(count)
            {
                let sent = self.beat.sent;
                let said = format!("the emitter: it took {sent} of {count} messages in the window");
                outcome.limit(&said);
            }
        }
        external.close();
    }

    /// Whether messages come from a program, and not from our own publisher.
    fn has_program(&self) -> bool {
        let external = self.external.as_ref();
        external.is_some_and(|external| external.taken().is_none())
    }

    /// Whether an emitter is still running. Our own publisher does not wait for replies of Redis.
    pub(super) fn is_emitting(&self) -> bool {
        self.has_program() && !self.is_all_emitted()
    }

    /// Sends the flood as fast as the emitter accepts it.
    pub(super) fn flood(&mut self, count: u64, now: Nanos) -> anyhow::Result<Nanos> {
        while self.beat.sent < count {
            if self.unsent_bytes() > MOST_AHEAD_BYTES {
                self.pump(now)?;
            }
            if self.unsent_bytes() > MOST_AHEAD_BYTES {
                break;
            }
            let time = clock::now();
            self.beat.lag.record(time.saturating_sub(self.beat.start));
            self.send_next(time, time);
        }
        if self.beat.sent >= count
            && let Some(external) = &mut self.external
        {
            external.close();
        }
        self.pump(now + TURN)
    }

    /// Bytes that the emitter has not accepted yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        let external = self.external.as_ref();
        external.map_or(0, |external| external.unsent_bytes())
    }

    /// Passes a message to the emitter.
    pub(super) fn emit(&mut self, sender: usize, time: Nanos, now: Nanos, is_unheard: bool) {
        let room = self
            .population
            .behaviour()
            .room(sender / self.plan.shape.senders);
        let room = if is_unheard {
            self.population
                .write_unheard(sender, time, &mut self.packet);
            format!("{room}.nobody")
        } else {
            self.population
                .write_payload(sender, time, now, &mut self.packet);
            room
        };
        if let Some(external) = &mut self.external {
            external.send(self.run.swarm.namespace(), &room, &self.packet);
        }
    }

    /// Writes and reads pending bytes. Returns an early time for the next turn while there are
    /// more.
    pub(super) fn pump(&mut self, next: Nanos) -> anyhow::Result<Nanos> {
        let Some(external) = &mut self.external else {
            return Ok(next);
        };
        external.pump()?;
        if external.is_busy() {
            return Ok(next.min(clock::now() + MILLISECOND / 4));
        }
        Ok(next)
    }

    pub(super) fn is_all_emitted(&self) -> bool {
        let external = self.external.as_ref();
        external.is_none_or(|external| external.has_emitted_all())
    }
}

/// Bytes that are prepared ahead, so that the emitter never waits for us.
const MOST_AHEAD_BYTES: usize = 64 * 1024;
