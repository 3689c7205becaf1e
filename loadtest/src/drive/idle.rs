//! Idle connections: memory per connection, before and after traffic, and CPU.

use super::Drive;
use crate::{
    clock::{self, span},
    outcome::Outcome,
    processes,
    run::TURN,
    servers::USED_BEFORE,
    system,
};

impl Drive<'_> {
    /// Connects all clients, measures, waits, broadcasts to each room, and measures again.
    pub(crate) fn idle(mut self, broadcasts: u32) -> anyhow::Result<Outcome> {
        let all = self.plan.shape.rooms * self.plan.shape.members;
        // The first connections are not counted, because they include what the server allocates
        // once.
        let first = if self.common.part.is_some() {
            0
        } else {
            (all / 10).min(FIRST)
        };
        self.open_all(0..first)?;
        self.run.settle(&mut self.population)?;
        self.run.observed.servers.before();
        let kernel_before = system::kernel_bytes().unwrap_or(0);
        self.open_all(first..all)?;
        self.check_members()?;
        self.run.settle(&mut self.population)?;
        processes::wait_for_others(self.common)?;
        let members = self.population.counts.members;
        self.hold()?;
        let kernel = system::kernel_bytes().unwrap_or(0);
        let outcome = &mut self.run.outcome;
        if self.run.observed.servers.hide_growth() {
            outcome.limit(USED_BEFORE);
        }
        outcome.set("connections", members);
        outcome.set("connections counted", members.saturating_sub(first as u64));
        outcome.set("kernel bytes before", kernel_before);
        outcome.set("kernel bytes", kernel);
        if broadcasts > 0 {
            self.broadcast(broadcasts)?;
            self.run.settle(&mut self.population)?;
            let after = self.run.observed.servers.sum();
            self.run
                .outcome
                .set("server rss bytes after traffic", after.rss_bytes);
            self.run
                .outcome
                .set("server pss bytes after traffic", after.pss_bytes);
        }
        self.close()
    }

    /// The measured window, in which only heartbeats are sent.
    fn hold(&mut self) -> anyhow::Result<()> {
        let end = clock::now() + span(self.plan.duration);
        self.run.enter("waiting", Some(end));
        self.run.begin_window();
        while clock::now() < end {
            self.turn(TURN)?;
        }
        self.run.end_window();
        Ok(())
    }

    /// Sends so many messages to each room, one after the other.
    fn broadcast(&mut self, count: u32) -> anyhow::Result<()> {
        self.run.enter("sending", None);
        for _ in 0..count {
            for room in 0..self.plan.shape.rooms {
                let now = clock::now();
                self.send(room, now, now, false);
                // The loader reads while it sends; otherwise the server's buffers would grow.
                self.turn(0)?;
            }
            self.wait_for_the_rest()?;
        }
        Ok(())
    }
}

const FIRST: usize = 200;
