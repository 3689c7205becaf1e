//! What is measured: each scenario drives one running server and yields one sample.
//!
//! Every scenario warms up, drains, reads the server's CPU time, drives a window, drains again and
//! reads it once more, so that the time belongs to exactly the units that were completed. Loops end
//! by time or count, and a server that stops answering ends them as a fault.

mod cast;
mod connect;
mod echo;
mod idle;

use std::io;
use std::time::{Duration, Instant};

use crate::clients::{Clients, TURN, Wait};
use crate::ledger::Tally;
use crate::measure;

pub(crate) use self::cast::{Casts, NextCast};

/// A load, without the server that bears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// `rooms` rooms of `members`; the first member of each room is its sender.
    Cast {
        rooms: usize,
        members: usize,
        next: NextCast,
    },
    /// `clients` clients, each with one echo request outstanding.
    Echo { clients: usize },
    /// Connections opened in batches and closed again once the namespace is joined.
    Connect { batch: usize },
    /// Connections that are in one room and silent.
    Idle { warm_up: usize, connections: usize },
}

/// The server that is driven, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drive {
    pub(crate) port: u16,
    pub(crate) pid: u32,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    pub(crate) wait: Wait,
}

/// What one run of a scenario against one server process showed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// Deliveries, requests or connections completed in the window.
    pub(crate) units: u64,
    pub(crate) server_cpu: Duration,
    /// The generator's own, without the time in which it only waited.
    pub(crate) load_cpu: Duration,
    pub(crate) wall: Duration,
    pub(crate) latency: Option<Percentiles>,
    pub(crate) memory: Option<Memory>,
    /// Over the whole run, warm-up included.
    pub(crate) tally: Tally,
    /// Why the run ended early, if it did.
    pub(crate) fault: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Percentiles {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// Growth of the server's resident memory per idle connection, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) rss_before_traffic: f64,
    pub(crate) rss_after_traffic: f64,
    pub(crate) pss_after_traffic: f64,
}

impl Scenario {
    /// Drives the server. An error is one of the generator's own; what the server does wrong is in
    /// the sample.
    pub(crate) fn run(self, drive: &Drive) -> io::Result<Sample> {
        match self {
            Self::Cast {
                rooms,
                members,
                next,
            } => cast::run(rooms, members, next, drive),
            Self::Echo { clients } => echo::run(clients, drive),
            Self::Connect { batch } => connect::run(batch, drive),
            Self::Idle {
                warm_up,
                connections,
            } => idle::run(warm_up, connections, drive),
        }
    }
}

impl Sample {
    pub(crate) fn is_clean(&self) -> bool {
        self.fault.is_none() && self.tally.is_clean()
    }

    pub(crate) fn cpu_per_unit_us(&self) -> f64 {
        self.server_cpu.as_secs_f64() * 1e6 / self.units.max(1) as f64
    }

    /// Share of the window in which the server was running, over all its threads.
    pub(crate) fn server_load(&self) -> f64 {
        self.server_cpu.as_secs_f64() / self.wall.as_secs_f64().max(1e-9)
    }

    pub(crate) fn generator_load(&self) -> f64 {
        self.load_cpu.as_secs_f64() / self.wall.as_secs_f64().max(1e-9)
    }
}

/// The clocks at the start of a window.
struct Meter {
    pid: u32,
    server: Duration,
    load: Duration,
    spun: Duration,
    started: Instant,
}

impl Meter {
    fn start(pid: u32, clients: &Clients) -> io::Result<Self> {
        Ok(Self {
            pid,
            server: measure::process_cpu(pid)?,
            load: measure::thread_cpu()?,
            spun: clients.spun(),
            started: Instant::now(),
        })
    }

    fn stop(self, clients: &Clients, sample: &mut Sample) -> io::Result<()> {
        sample.wall = self.started.elapsed();
        sample.server_cpu = measure::process_cpu(self.pid)?.saturating_sub(self.server);
        let load = measure::thread_cpu()?.saturating_sub(self.load);
        sample.load_cpu = load.saturating_sub(clients.spun() - self.spun);
        Ok(())
    }
}

/// Lets the server come to rest after the last answer, so that the clocks are read while it does
/// not run: the kernel brings them up to date when a thread leaves its core.
fn settle(clients: &mut Clients, duration: Duration) -> io::Result<()> {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        clients.turn(TURN.min(duration), |_, _, _| ())?;
    }
    Ok(())
}

/// Notices that nothing has arrived for a long time.
struct Stall {
    arrivals: u64,
    since: Instant,
}

impl Stall {
    fn new(arrivals: u64) -> Self {
        Self {
            arrivals,
            since: Instant::now(),
        }
    }

    fn check(&mut self, arrivals: u64) -> io::Result<()> {
        if arrivals != self.arrivals {
            *self = Self::new(arrivals);
        } else if self.since.elapsed() > STALL_LIMIT {
            return Err(io::Error::other("the server stopped answering"));
        }
        Ok(())
    }
}

/// Latencies of one window, in nanoseconds. Bounded: what a window cannot hold is not kept.
#[derive(Default)]
struct Latencies(Vec<u64>);

impl Latencies {
    fn record(&mut self, latency: Duration) {
        if self.0.len() < LATENCIES_KEPT {
            self.0
                .push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn percentiles(mut self) -> Option<Percentiles> {
        self.0.sort_unstable();
        let at = |share: f64| {
            let index = (self.0.len() as f64 * share) as usize;
            self.0
                .get(index.min(self.0.len().checked_sub(1)?))
                .copied()
                .map(Duration::from_nanos)
        };
        Some(Percentiles {
            p50: at(0.50)?,
            p99: at(0.99)?,
        })
    }
}

const SETTLE: Duration = Duration::from_millis(30);
const STALL_LIMIT: Duration = Duration::from_secs(5);
const LATENCIES_KEPT: usize = 8_000_000;
