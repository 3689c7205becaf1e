//! Disruptions: members join and leave, connections are reset and come back, servers restart.

use std::cmp::Reverse;

use super::Drive;
use crate::{
    clock::{Nanos, SECOND, around, backoff, span},
    population::State,
    swarm::End,
};

impl Drive<'_> {
    pub(super) fn begin_disruption(&mut self, now: Nanos) {
        let disruption = &self.plan.disruption;
        self.next_move = first_after(now, disruption.moves);
        self.next_tear = first_after(now, disruption.tears);
    }

    /// Applies the disruptions that are due. Returns the time of the next one.
    pub(super) fn disturb(&mut self, now: Nanos) -> Nanos {
        let disruption = &self.plan.disruption;
        while self.next_move <= now {
            self.move_someone();
            self.next_move = first_after(self.next_move, disruption.moves);
        }
        while self.next_tear <= now {
            self.tear_someone(now);
            self.next_tear = first_after(self.next_tear, disruption.tears);
        }
        self.take_back(now);
        let next_return = self
            .returns
            .peek()
            .map_or(Nanos::MAX, |Reverse((at, _))| *at);
        self.next_move.min(self.next_tear).min(next_return)
    }

    /// Picks a random client that does not send and is in one of these states; gives up after 20
    /// tries.
    fn anyone(&mut self, states: &[State]) -> Option<usize> {
        let shape = self.plan.shape;
        let quiet = shape
            .members
            .checked_sub(shape.senders + self.plan.stalled)?;
        if quiet == 0 {
            return None;
        }
        for _ in 0..20 {
            let room = self.random.usize(..shape.rooms);
            let within = shape.senders + self.random.usize(..quiet);
            let client = room * shape.members + within;
            if states.contains(&self.population.state(client)) {
                return Some(client);
            }
        }
        None
    }

    fn move_someone(&mut self) {
        if let Some(client) = self.anyone(&[State::In, State::Out]) {
            let joins = self.population.state(client) == State::Out;
            self.packet.clear();
            self.population.write_move(client, joins, &mut self.packet);
            self.run.swarm.send(client, &self.packet);
        }
    }

    fn tear_someone(&mut self, now: Nanos) {
        if let Some(client) = self.anyone(&[State::In]) {
            self.run.swarm.reset(client);
            self.population.torn(client, now);
            *self
                .run
                .outcome
                .counts
                .entry("torn down".to_owned())
                .or_default() += 1;
            let at = now + around(span(self.plan.disruption.away), &mut self.random);
            self.returns.push(Reverse((at, client)));
        }
    }

    /// Reconnects clients that are due, and schedules those that have just been disconnected.
    pub(super) fn take_back(&mut self, now: Nanos) {
        for (client, end) in std::mem::take(&mut self.population.gone) {
            if !self.plan.disruption.returns {
                continue;
            }
            let attempts = &mut self.attempts[client];
            *attempts = if end == End::Refused {
                attempts.saturating_add(1)
            } else {
                0
            };
            let delay = backoff(u32::from(*attempts), &mut self.random);
            let at = now + delay;
            self.returns.push(Reverse((at, client)));
        }
        while let Some(Reverse((at, client))) = self.returns.peek().copied() {
            if at > now {
                break;
            }
            self.returns.pop();
            self.open(client);
        }
    }

    /// Whether reconnects are pending in a scenario that requires all clients to return.
    pub(super) fn is_returning(&self) -> bool {
        self.plan.disruption.returns && !self.returns.is_empty()
    }
}

fn first_after(now: Nanos, rate: f64) -> Nanos {
    if rate > 0.0 {
        now + (SECOND as f64 / rate) as Nanos
    } else {
        Nanos::MAX
    }
}
