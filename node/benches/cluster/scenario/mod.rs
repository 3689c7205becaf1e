//! What is measured: each scenario starts Redis and the servers of one subject, drives them, and
//! yields one sample.
//!
//! Every scenario warms up, drains, reads the clocks of the processes, drives a window, drains again
//! and reads them once more, so that the time belongs to exactly the units that were completed.

mod casts;
mod churn;
mod receive;
mod send;

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::ledger::Tally;
use crate::measure;
use crate::message::{self, Form};
use crate::peer::{Packages, Subject};
use crate::quiet::Quiet;
use crate::redis::{Client, Value};

pub(crate) use self::casts::Pace;

/// A load, without the servers that bear it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Somebody publishes to rooms whose members are on `nodes` nodes, each room on one.
    Receive {
        nodes: usize,
        rooms_each: usize,
        members: usize,
        pace: Pace,
    },
    /// One node publishes to a room of which it has no member.
    Send { concurrency: usize },
    /// Rooms that live for a moment.
    Churn { joins: usize },
}

/// Which process is where, and for how long it is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drive<'a> {
    pub(crate) cores: Option<Cores>,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    pub(crate) packages: Option<&'a Packages>,
}

/// Which core is whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cores {
    pub(crate) servers: usize,
    pub(crate) load: usize,
}

/// What one run showed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// In the order of the report.
    pub(crate) figures: Vec<Figure>,
    /// What other processes used of the machine during the window, in cores.
    pub(crate) others: f64,
    /// Over the whole run, warm-up included.
    pub(crate) tally: Tally,
    /// Why the run ended early, if it did.
    pub(crate) fault: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    /// Whether it is a price, whose ratio to that of others means something.
    pub(crate) is_price: bool,
}

impl Figure {
    /// Microseconds per unit.
    fn price(name: &'static str, time: Duration, units: u64) -> Self {
        Self {
            name,
            value: time.as_secs_f64() * 1e6 / units.max(1) as f64,
            is_price: true,
        }
    }

    fn plain(name: &'static str, value: f64) -> Self {
        Self {
            name,
            value,
            is_price: false,
        }
    }
}

impl Sample {
    pub(crate) fn is_clean(&self) -> bool {
        self.fault.is_none() && self.tally.is_clean()
    }
}

impl Scenario {
    /// Measures one subject. What goes wrong is in the sample.
    pub(crate) fn run(self, subject: Subject, drive: &Drive<'_>) -> Sample {
        let mut sample = Sample::default();
        let outcome = match self {
            Self::Receive {
                nodes,
                rooms_each,
                members,
                pace,
            } => {
                let crowd = receive::Crowd {
                    nodes,
                    rooms_each,
                    members,
                };
                receive::run(crowd, pace, subject, drive, &mut sample)
            }
            Self::Send { concurrency } => send::run(concurrency, subject, drive, &mut sample),
            Self::Churn { joins } => churn::run(joins, subject, drive, &mut sample),
        };
        sample.fault = outcome.err().map(|error| error.to_string());
        sample
    }
}

/// CPU times of processes at the start of a window.
struct Meter<'a> {
    servers: &'a [u32],
    redis: u32,
    servers_before: Duration,
    redis_before: Duration,
    load_before: Duration,
    quiet: Quiet,
}

/// What has been used since.
struct Used {
    servers: Duration,
    redis: Duration,
    /// See [`Sample::others`].
    others: f64,
}

impl<'a> Meter<'a> {
    fn start(servers: &'a [u32], redis: u32) -> io::Result<Self> {
        Ok(Self {
            servers,
            redis,
            servers_before: cpu(servers)?,
            redis_before: measure::process_cpu(redis)?,
            load_before: measure::process_cpu(std::process::id())?,
            quiet: Quiet::begin()?,
        })
    }

    fn stop(self) -> io::Result<Used> {
        let servers = cpu(self.servers)?.saturating_sub(self.servers_before);
        let redis = measure::process_cpu(self.redis)?.saturating_sub(self.redis_before);
        let load = measure::process_cpu(std::process::id())?.saturating_sub(self.load_before);
        Ok(Used {
            servers,
            redis,
            others: self.quiet.end(servers + redis + load)?,
        })
    }
}

fn cpu(servers: &[u32]) -> io::Result<Duration> {
    servers.iter().map(|pid| measure::process_cpu(*pid)).sum()
}

/// Waits until the channels of all rooms have as many subscribers as a server has that wants them.
/// Node's classic adapter has one pattern for all instead.
fn await_subscribed(redis: u16, subject: Subject, rooms: &[String]) -> io::Result<()> {
    let mut client = Client::connect(redis)?;
    if subject == (Subject::NodeJs { sharded: false }) {
        return await_that("the pattern of a node", || {
            let patterns = client.command(&[b"PUBSUB", b"NUMPAT"])?;
            Ok(patterns != [Value::Integer(0)])
        });
    }
    let form = Form::of(subject.is_sharded());
    let channels: Vec<String> = rooms.iter().map(|room| message::channel(room)).collect();
    let mut command: Vec<&[u8]> = vec![b"PUBSUB", form.count_subscribers()];
    command.extend(channels.iter().map(String::as_bytes));
    await_that("the channels of all rooms", || {
        let counts = client.command(&command)?;
        let mut counts = counts.iter().skip(1).step_by(2);
        Ok(counts.all(|count| *count != Value::Integer(0)))
    })
}

fn await_that(what: &str, mut is_so: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("waited in vain for {what}")));
        }
        thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How long servers come to rest before their clocks are read: the kernel brings these up to date
/// when a thread leaves its core.
const SETTLE: Duration = Duration::from_millis(30);
