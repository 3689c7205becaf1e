//! The parts that all scenarios share: clients, observed servers, the watcher, limits.

use std::sync::atomic::Ordering::Relaxed;

use anyhow::bail;

use crate::{
    clock::{self, Nanos, SECOND},
    failure::Failure,
    options::Common,
    outcome::Outcome,
    servers::Observed,
    swarm::{Dial, End, Sink, Swarm, Transport},
    system,
    target::Target,
    watch::Watch,
};

pub(crate) struct Run {
    pub(crate) swarm: Swarm,
    pub(crate) observed: Observed,
    pub(crate) outcome: Outcome,
    watch: Watch,
    window: Window,
}

/// Times of the measured window.
#[derive(Default)]
struct Window {
    begin: Nanos,
    end: Nanos,
    own_cpu_nanos: Nanos,
}

impl Run {
    /// Checks targets, processes and limits, and prepares a run with this many connections.
    pub(crate) fn new(scenario: &str, common: &Common, connections: usize) -> anyhow::Result<Self> {
        let is_part = common.part.is_some();
        let targets = targets(common)?;
        check_descriptors(connections, common.transport)?;
        // With several loaders, the parent process checks and observes the servers.
        let observed = if is_part {
            Observed::default()
        } else {
            check(&targets, common)?;
            Observed::new(common)?
        };
        let mut outcome = Outcome::new(scenario);
        outcome.targets = common.targets.clone();
        outcome.label.clone_from(&common.label);
        let transport = format!("{:?}", common.transport).to_lowercase();
        outcome.setting("transport", &transport);
        outcome.setting("namespace", &&common.namespace);
        outcome.setting("payload bytes", &common.payload);
        let shows = !common.quiet && !is_part;
        Ok(Self {
            swarm: Swarm::new(Dial {
                targets,
                transport: common.transport,
                relayed: common.relayed,
                namespace: common.namespace.clone(),
                auth: common.auth.clone().unwrap_or_default(),
                sources: common.source.clone(),
            })?,
            watch: Watch::start(observed.servers.pids(), shows),
            observed,
            outcome,
            window: Window::default(),
        })
    }

    pub(crate) fn enter(&self, phase: &str, ends_at: Option<Nanos>) {
        self.watch.progress.enter(phase, ends_at);
    }

    pub(crate) fn turn(&mut self, at_most: Nanos, sink: &mut impl Sink) -> anyhow::Result<()> {
        Ok(self.swarm.turn(at_most, sink)?)
    }

    /// Updates the progress for the watcher.
    pub(crate) fn report(&self, connections: u64, deliveries: u64) {
        let progress = &self.watch.progress;
        progress.connections.store(connections, Relaxed);
        progress.deliveries.store(deliveries, Relaxed);
    }

    /// Waits until nothing arrives any more, so that earlier traffic does not count.
    pub(crate) fn settle(&mut self, sink: &mut impl Sink) -> anyhow::Result<()> {
        self.enter("waiting for quiet", None);
        let deadline = clock::now() + LONGEST_SETTLING;
        let mut received = self.swarm.received_bytes();
        let mut quiet_since = clock::now();
        loop {
            self.turn(TURN, sink)?;
            let now = clock::now();
            let volume = self.swarm.received_bytes();
            if volume != received {
                received = volume;
                quiet_since = now;
            }
            if now - quiet_since > QUIET || now > deadline {
                return Ok(());
            }
        }
    }

    /// Connects `count` clients, `opening` at a time, until `settled` clients are connected or have
    /// failed, or the time is up. `begin` is called before each attempt.
    pub(crate) fn open_all<S: Sink>(
        &mut self,
        (count, opening): (usize, usize),
        sink: &mut S,
        settled: impl Fn(&S) -> usize,
        mut begin: impl FnMut(&mut S, usize, Nanos),
    ) -> anyhow::Result<()> {
        self.enter("connecting", None);
        let deadline = clock::now() + LONGEST_OPENING;
        let mut begun = 0;
        while settled(sink) < count && clock::now() < deadline {
            while begun < count && begun < settled(sink) + opening {
                let now = clock::now();
                begin(sink, begun, now);
                let target = begun % self.swarm.targets().len();
                self.open(sink, begun, target);
                begun += 1;
            }
            self.turn(TURN, sink)?;
            self.report(settled(sink) as u64, 0);
        }
        Ok(())
    }

    /// Starts to connect a client. Returns `false` if the machine has no ports or descriptors left.
    pub(crate) fn open(&mut self, sink: &mut impl Sink, client: usize, target: usize) -> bool {
        let Err(end) = self.swarm.open(client, target) else {
            return true;
        };
        let used_up = match end {
            End::Ports => Some("source ports"),
            End::Descriptors => Some("descriptors"),
            _ => None,
        };
        if let Some(what) = used_up {
            let said = format!("{what} of this machine ran out");
            self.outcome.limit(&said);
        }
        sink.ended(client, end, clock::now());
        used_up.is_none()
    }

    pub(crate) fn begin_window(&mut self) {
        self.observed.begin();
        self.window.own_cpu_nanos = system::thread_cpu();
        self.window.begin = clock::now();
    }

    pub(crate) fn end_window(&mut self) {
        self.window.end = clock::now();
        let own = system::thread_cpu();
        self.outcome.own_cpu_nanos = own.saturating_sub(self.window.own_cpu_nanos);
        self.observed.end();
        self.outcome.seconds = clock::seconds(self.window.end - self.window.begin);
        let share = clock::seconds(self.outcome.own_cpu_nanos) / self.outcome.seconds.max(1e-9);
        if share > BUSIEST_SHARE {
            let reason = format!(
                "the loader's own CPU: it was busy for {:.0} % of the time",
                share * 100.0
            );
            self.outcome.limit(&reason);
        }
    }

    /// Ends the watcher and returns the result.
    pub(crate) fn finish(self) -> Outcome {
        let mut outcome = self.outcome;
        self.observed.finish(&mut outcome);
        outcome.series = self.watch.end(self.window.begin);
        outcome
    }
}

/// Parses the targets of a command line.
pub(crate) fn targets(common: &Common) -> Result<Vec<Target>, Failure> {
    let targets = common.targets.iter();
    let targets = targets.map(|text| Target::parse(text, &common.path));
    targets.collect()
}

/// Fails if a target is not a server that the clients can use.
pub(crate) fn check(targets: &[Target], common: &Common) -> Result<(), Failure> {
    let needs_polling = common.transport != Transport::Websocket;
    let mut targets = targets.iter();
    targets.try_for_each(|target| target.check(needs_polling))
}

/// Fails if the run needs more descriptors than the limit allows.
fn check_descriptors(connections: usize, transport: Transport) -> anyhow::Result<()> {
    let each = match transport {
        Transport::Websocket => 1,
        // Polls, posts and the WebSocket overlap only while it is probed, so few clients do at
        // once.
        Transport::Upgrade => 1,
        Transport::Polling => 2,
    };
    let needed = (connections * each + SPARE_DESCRIPTORS) as u64;
    let limit = system::raise_descriptor_limit();
    if needed > limit {
        let most = (limit as usize).saturating_sub(SPARE_DESCRIPTORS) / each;
        let processes = connections.div_ceil(most.max(1));
        bail!(Failure::Arguments(format!(
            "{connections} connections need {needed} descriptors, and a process may open {limit} \
             here: raise the limit, or divide the load with --processes {processes}"
        )));
    }
    Ok(())
}

/// Maximum wait of one turn.
pub(crate) const TURN: Nanos = SECOND / 50;

const SPARE_DESCRIPTORS: usize = 60;
const BUSIEST_SHARE: f64 = 0.95;
const QUIET: Nanos = SECOND * 3 / 10;
const LONGEST_OPENING: Nanos = 60 * SECOND;
const LONGEST_SETTLING: Nanos = 60 * SECOND;
