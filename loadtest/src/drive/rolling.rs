//! Restarts servers one after the other, each by a shell command that returns when its server is ready
//! again, and notes when clients lost their connection and when they were back.

use std::process::Command;

use anyhow::{Context as _, bail};

use super::Drive;
use crate::{
    clock::{self, Nanos, span},
    outcome::Wave,
};

/// The restarts of a run, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rolling {
    pub(crate) commands: Vec<String>,
    /// Time before the first restart, between two, and after the last.
    pub(crate) pause: std::time::Duration,
    /// Time over which a server closes its connections.
    pub(crate) over: std::time::Duration,
}

/// The restarts that have begun.
#[derive(Default)]
pub(super) struct Rolled {
    starts: Vec<Nanos>,
    /// When the pause after the last one is over; zero before the first.
    rests_until: Nanos,
}

/// When clients lost their connections, and when they were connected again.
#[derive(Default)]
pub(crate) struct Movements {
    pub(crate) losses: Vec<Nanos>,
    pub(crate) returns: Vec<Nanos>,
}

impl Drive<'_> {
    /// Begins the next restart if it is due. Returns whether all are over and every client is back.
    pub(super) fn roll(&mut self, now: Nanos) -> anyhow::Result<bool> {
        let rolling = &self.plan.disruption.rolling;
        if rolling.commands.is_empty() || !self.marks.has_begun {
            return Ok(false);
        }
        let pause = span(rolling.pause);
        if self.rolled.rests_until == 0 {
            self.rolled.rests_until = now + pause;
        }
        if let Some(child) = &mut self.child {
            match child.try_wait().context("the command of a restart")? {
                None => return Ok(false),
                Some(status) if status.success() => {
                    self.child = None;
                    self.rolled.rests_until = now + pause;
                }
                Some(status) => bail!("restart {} ended with {status}", self.rolled.starts.len()),
            }
        }
        if now < self.rolled.rests_until {
            return Ok(false);
        }
        let Some(command) = rolling.commands.get(self.rolled.starts.len()) else {
            let clients = self.plan.shape.rooms * self.plan.shape.members;
            return Ok(self.population.counts.members == clients as u64);
        };
        self.rolled.starts.push(now);
        let child = Command::new("sh").arg("-c").arg(command).spawn();
        self.child = Some(child.context("the command of a restart")?);
        Ok(false)
    }

    /// The effect of each restart on the clients.
    pub(super) fn waves(&self) -> Vec<Wave> {
        let over_seconds = self.plan.disruption.rolling.over.as_secs_f64();
        let starts = &self.rolled.starts;
        let ends = starts.iter().skip(1).copied().chain([clock::now()]);
        let movements = &self.population.movements;
        let wave = |(start, end): (&Nanos, Nanos)| {
            let within = |times: &[Nanos]| -> Vec<Nanos> {
                let within = times.iter().filter(|at| (*start..end).contains(at));
                within.copied().collect()
            };
            let returns = within(&movements.returns);
            Wave {
                closed: within(&movements.losses).len() as u64,
                returned: returns.len() as u64,
                over_seconds,
                peak: clock::peak(&returns),
            }
        };
        starts.iter().zip(ends).map(wave).collect()
    }
}
