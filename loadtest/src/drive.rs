//! Runs the scenarios with rooms.
//!
//! ```text
//! connect the members → wake the emitter → settle → warm up → measure → wait for missing messages
//!                                                   └─ send at a pace, disturb ─┘  → close the ledger
//! ```
//!
//! One loop on one thread does everything, because a second thread would compete with the server for
//! cores and would make latencies depend on the scheduler.

mod disruption;
mod emitter;
mod idle;
mod pace;
mod rolling;

use std::{cmp::Reverse, collections::BinaryHeap, process::Child, time::Duration};

use anyhow::bail;

use crate::{
    clock::{self, Nanos, SECOND, span},
    external::External,
    histogram::Histogram,
    ledger::Shape,
    options::Common,
    outcome::Outcome,
    population::{Behaviour, Population, State},
    processes,
    run::{Run, TURN},
    swarm::End,
};
use pace::Beat;
use rolling::Rolled;
pub(crate) use rolling::{Movements, Rolling};

/// The parameters of a scenario.
pub(crate) struct Plan {
    pub(crate) scenario: &'static str,
    pub(crate) shape: Shape,
    pub(crate) pace: Pace,
    /// Whether senders request an acknowledgement of each message.
    pub(crate) asks: bool,
    pub(crate) place: Place,
    /// The last so many members of each room never read.
    pub(crate) stalled: usize,
    pub(crate) disruption: Disruption,
    /// Whether messages go to rooms without members.
    pub(crate) is_unheard: bool,
    pub(crate) duration: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Outstanding messages per sender.
    Window(usize),
    /// Messages per second in total.
    Rate(f64),
    /// Number of messages that are sent at once.
    Flood(u32),
}

/// How clients are distributed over targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Round robin.
    Spread,
    /// Senders connect to the first target, other members to the rest.
    SendersFirst,
    /// All members of a room connect to one target, rooms are distributed round robin.
    Together,
}

/// Disruptions during the run; none by default.
#[derive(Debug, Default)]
pub(crate) struct Disruption {
    /// Joins and leaves per second.
    pub(crate) moves: f64,
    /// Connections reset per second.
    pub(crate) tears: f64,
    /// Time until a client reconnects after a reset.
    pub(crate) away: Duration,
    /// Whether clients reconnect after the server closed their connection.
    pub(crate) returns: bool,
    /// Servers that are restarted one after the other. The window ends with the last.
    pub(crate) rolling: Rolling,
}

impl Disruption {
    pub(crate) fn is_any(&self) -> bool {
        self.moves > 0.0 || self.tears > 0.0 || self.returns
    }
}

pub(crate) struct Drive<'a> {
    plan: &'a Plan,
    common: &'a Common,
    run: Run,
    population: Population,
    external: Option<Box<dyn External>>,
    random: fastrand::Rng,
    packet: Vec<u8>,
    beat: Beat,
    /// Pending reconnects, by time.
    returns: BinaryHeap<Reverse<(Nanos, usize)>>,
    attempts: Vec<u8>,
    next_move: Nanos,
    next_tear: Nanos,
    next_expiry: Nanos,
    child: Option<Child>,
    rolled: Rolled,
    marks: Marks,
}

/// Counters at the begin of the measured window.
#[derive(Default)]
struct Marks {
    has_begun: bool,
    arrivals: u64,
    sent: u64,
    received_bytes: u64,
    begin: Nanos,
    emitter_cpu: Nanos,
}

impl<'a> Drive<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        common: &'a Common,
        external: Option<Box<dyn External>>,
    ) -> anyhow::Result<Self> {
        let clients = plan.shape.rooms * plan.shape.members;
        let run = Run::new(plan.scenario, common, clients)?;
        let seed = common
            .seed
            .wrapping_add(common.part.map_or(0, |(at, _)| u64::from(at)));
        let behaviour = Behaviour {
            shape: plan.shape,
            namespace: common.namespace.clone(),
            run: run_tag(common),
            payload_bytes: common.payload,
            asks: plan.asks,
            is_unsteady: plan.disruption.is_any(),
            is_external: external.is_some(),
        };
        Ok(Self {
            plan,
            common,
            population: Population::new(behaviour),
            external,
            random: fastrand::Rng::with_seed(seed),
            packet: Vec::new(),
            beat: Beat {
                start: 0,
                sent: 0,
                lag: Histogram::new(),
                skipped: 0,
            },
            returns: BinaryHeap::new(),
            attempts: vec![0; clients],
            next_move: Nanos::MAX,
            next_tear: Nanos::MAX,
            next_expiry: 0,
            child: None,
            rolled: Rolled::default(),
            marks: Marks::default(),
            run,
        })
    }

    /// Runs the whole scenario.
    pub(crate) fn run(mut self) -> anyhow::Result<Outcome> {
        self.open_all(0..self.plan.shape.rooms * self.plan.shape.members)?;
        self.check_members()?;
        self.stall();
        self.rouse()?;
        self.run.settle(&mut self.population)?;
        processes::wait_for_others(self.common)?;
        self.traffic()?;
        self.wait_for_the_rest()?;
        self.look_at_the_stalled();
        self.close()
    }

    /// Connects clients with bounded concurrency until each is a member or has failed.
    fn open_all(&mut self, clients: std::ops::Range<usize>) -> anyhow::Result<()> {
        self.run.enter("connecting", None);
        let mut left = clients;
        let mut pending: Vec<usize> = Vec::new();
        let mut last_change = clock::now();
        loop {
            while pending.len() < self.common.opening as usize
                && let Some(client) = left.next()
            {
                if !self.open(client) {
                    left = 0..0;
                    break;
                }
                pending.push(client);
            }
            self.turn(TURN)?;
            let before = pending.len();
            let population = &self.population;
            pending.retain(|client| {
                matches!(
                    population.state(*client),
                    State::Connecting | State::Joining
                )
            });
            let now = clock::now();
            if pending.len() != before {
                last_change = now;
            }
            if pending.is_empty() && left.is_empty() {
                break;
            }
            if now - last_change > LONGEST_OPENING {
                self.run
                    .outcome
                    .limit("connections: some never became members of their room");
                break;
            }
        }
        self.population.gone.clear();
        Ok(())
    }

    fn check_members(&mut self) -> anyhow::Result<()> {
        let wanted = (self.plan.shape.rooms * self.plan.shape.members) as u64;
        let members = self.population.counts.members;
        if members == wanted {
            return Ok(());
        }
        let end = self.population.last_end.as_ref().map(|end| match end {
            End::Rejected(said) | End::Protocol(said) | End::Other(said) => {
                format!("{} ({said})", end.name())
            }
            _ => end.name().to_owned(),
        });
        let refusal = self.population.last_refusal.as_ref();
        let reason = refusal.map(|said| format!("join refused: {said}")).or(end);
        let reason = reason.unwrap_or_else(|| "no acknowledgement of the join".to_owned());
        if members == 0 {
            bail!("no client became a member of its room: {reason}");
        }
        let text = format!("connections: only {members} of {wanted} became members: {reason}");
        self.run.outcome.limit(&text);
        Ok(())
    }

    /// Starts to connect a client. Returns `false` if the machine has no ports or descriptors left.
    fn open(&mut self, client: usize) -> bool {
        let target = self.target_of(client);
        self.population.connecting(client, clock::now());
        self.run.open(&mut self.population, client, target)
    }

    fn target_of(&self, client: usize) -> usize {
        let targets = self.run.swarm.targets().len();
        let within = client % self.plan.shape.members;
        let home = match self.plan.place {
            Place::SendersFirst if within < self.plan.shape.senders => 0,
            Place::SendersFirst if targets > 1 => 1 + within % (targets - 1),
            Place::Together => client / self.plan.shape.members % targets,
            _ => client % targets,
        };
        // After a refusal, a client tries the next target.
        (home + usize::from(self.attempts[client])) % targets
    }

    fn stall(&mut self) {
        let members = self.plan.shape.members;
        for room in 0..self.plan.shape.rooms {
            for client in (room + 1) * members - self.plan.stalled..(room + 1) * members {
                if self.population.state(client) == State::In {
                    self.population.stalled(client);
                    self.run.swarm.stall(client);
                }
            }
        }
    }

    fn traffic(&mut self) -> anyhow::Result<()> {
        let start = clock::now();
        // A flood has no warm-up: all of it is measured.
        let warm_up = match self.plan.pace {
            Pace::Flood(_) => Duration::ZERO,
            _ => self.common.warm_up,
        };
        let begin = start + span(warm_up);
        let end = begin + span(self.plan.duration);
        self.beat.start = start;
        self.population.time(begin..end);
        self.run.enter("warming up", Some(begin));
        self.begin_disruption(start);
        let mut first = true;
        loop {
            let now = clock::now();
            if now >= begin && !self.marks.has_begun {
                self.begin_window(end);
            }
            if now >= end {
                break;
            }
            let next = self.speak(now, first)?.min(self.disturb(now)).min(end);
            first = false;
            self.turn(next.saturating_sub(clock::now()).min(TURN))?;
            if self.is_flood_over() || self.roll(clock::now())? {
                break;
            }
        }
        self.end_window();
        Ok(())
    }

    fn begin_window(&mut self, end: Nanos) {
        self.run.begin_window();
        self.marks = Marks {
            has_begun: true,
            arrivals: self.population.arrivals(),
            sent: self.population.counts.sent,
            received_bytes: self.run.swarm.received_bytes(),
            begin: clock::now(),
            emitter_cpu: self.emitter_cpu(),
        };
        self.run.enter("measuring", Some(end));
    }

    fn end_window(&mut self) {
        if !self.marks.has_begun {
            self.begin_window(clock::now());
        }
        self.count_emits();
        self.run.end_window();
        let open = self.population.counts.members + self.stalled_count();
        let outcome = &mut self.run.outcome;
        outcome.set(
            "deliveries",
            self.population.arrivals() - self.marks.arrivals,
        );
        outcome.set("messages", self.population.counts.sent - self.marks.sent);
        let received = self.run.swarm.received_bytes() - self.marks.received_bytes;
        outcome.set("received bytes", received);
        outcome.set("connections", open);
        self.check_rate();
    }

    /// Waits for outstanding messages until none has arrived for the grace time.
    fn wait_for_the_rest(&mut self) -> anyhow::Result<()> {
        let grace = span(self.common.grace);
        self.run.enter("waiting for the rest", None);
        let deadline = clock::now() + LONGEST_WAIT.max(2 * grace);
        let mut arrivals = self.population.arrivals();
        let mut last_arrival = clock::now();
        loop {
            let next = self.pump(Nanos::MAX)?;
            let now = clock::now();
            self.take_back(now);
            self.turn(next.saturating_sub(now).min(TURN))?;
            self.population.finished.clear();
            if self.population.arrivals() != arrivals {
                arrivals = self.population.arrivals();
                last_arrival = now;
            }
            let is_complete = !self.plan.disruption.is_any()
                && self.population.outstanding_of_all() == 0
                && !self.is_emitting();
            // While members come and go, the number of outstanding messages is unknown.
            let patience = if self.plan.disruption.is_any() {
                grace.min(SECOND)
            } else {
                grace
            };
            let is_quiet =
                now - last_arrival > patience && !self.is_returning() && !self.is_emitting();
            if now > deadline && self.is_emitting() {
                bail!("the emitter has not exited, although its input is complete");
            }
            if is_complete || is_quiet || now > deadline {
                return Ok(());
            }
        }
    }

    fn stalled_count(&self) -> u64 {
        (self.plan.stalled * self.plan.shape.rooms) as u64
    }

    /// Counts the stalled members that the server has disconnected.
    fn look_at_the_stalled(&mut self) {
        let clients = 0..self.plan.shape.rooms * self.plan.shape.members;
        let mut closed = 0;
        for client in clients {
            if self.population.state(client) == State::Stalled && self.run.swarm.has_lost(client) {
                closed += 1;
            }
        }
        if self.plan.stalled > 0 {
            self.run.outcome.set("stalled", self.stalled_count());
            self.run
                .outcome
                .set("stalled and closed by the server", closed);
        }
    }

    fn close(mut self) -> anyhow::Result<Outcome> {
        self.run.outcome.waves = self.waves();
        if self.child.is_some() {
            // It is not killed, because it may be in the middle of its work.
            let said = "the command of a restart was still running at the end";
            self.run.outcome.notes.push(said.to_owned());
        }
        if self.is_returning() {
            let away = self.returns.len();
            let said = format!("{away} clients had not reconnected at the end");
            self.run.outcome.limit(&said);
        }
        let counts = self.population.counts;
        let outcome = &mut self.run.outcome;
        for (name, count) in [
            ("joins", counts.joins),
            ("leaves", counts.leaves),
            ("refused by the server", counts.refused),
            ("messages incomplete in time", counts.incomplete),
            ("other events", counts.other_events),
            ("reconnects", counts.reconnects),
        ] {
            if count > 0 {
                outcome.set(name, count);
            }
        }
        if let Some((taken, reached)) = self.external.as_ref().and_then(|one| one.taken()) {
            outcome.set("messages taken by Redis", taken);
            outcome.set("subscribers reached in Redis", reached);
        }
        let times = &self.population.times;
        outcome.time("delivery", &times.delivery);
        outcome.time("last recipient", &times.last);
        outcome.time("connect", &times.connect);
        outcome.time("outage", &times.outage);
        outcome.time("send lag", &self.beat.lag);
        outcome.add_ends(&self.population.ends);
        describe(outcome, self.plan);
        let is_soak = self.plan.scenario == "soak";
        let tally = self.population.close();
        self.run.outcome.ledger = tally;
        if is_soak {
            note_on_memory(&mut self.run.outcome);
            close_clients(&mut self.run, self.plan.shape)?;
        }
        Ok(self.run.finish())
    }

    fn turn(&mut self, at_most: Nanos) -> anyhow::Result<()> {
        self.run.turn(at_most, &mut self.population)?;
        self.run
            .report(self.population.counts.members, self.population.arrivals());
        Ok(())
    }
}

/// Closes all clients and counts the descriptors that the server still holds: those have leaked.
fn close_clients(run: &mut Run, shape: Shape) -> anyhow::Result<()> {
    for client in 0..shape.rooms * shape.members {
        run.swarm.close(client);
    }
    let mut ignored = Population::new(Behaviour {
        shape,
        namespace: String::from("/"),
        run: 0,
        payload_bytes: crate::label::MIN_PAYLOAD_BYTES,
        asks: false,
        is_unsteady: true,
        is_external: true,
    });
    // The server notices closed connections with a delay.
    let deadline = clock::now() + 5 * SECOND;
    loop {
        run.turn(TURN, &mut ignored)?;
        let descriptors = run.observed.servers.sum().descriptors;
        run.outcome
            .set("server descriptors after the end", descriptors);
        let before = run.observed.servers.descriptors_before();
        if descriptors <= before || clock::now() > deadline {
            run.outcome.set("server descriptors before", before);
            return Ok(());
        }
    }
}

/// Warns that a short soak says nothing about leaks: within minutes, buffers still grow.
fn note_on_memory(outcome: &mut Outcome) {
    if outcome.seconds < SHORTEST_SOAK_SECONDS {
        let said = "the run is too short: a memory slope shows leaks only after hours";
        outcome.notes.push(said.to_owned());
    }
}

fn describe(outcome: &mut Outcome, plan: &Plan) {
    let shape = plan.shape;
    if plan.is_unheard {
        outcome.setting("emitted to", &"a room without members");
    }
    let pace = match plan.pace {
        Pace::Window(window) => format!("{window} outstanding per sender"),
        Pace::Rate(rate) => format!("{rate} messages per second"),
        Pace::Flood(count) => format!("{count} messages at once"),
    };
    outcome.setting("rooms", &shape.rooms);
    outcome.setting("members per room", &shape.members);
    outcome.setting("senders per room", &shape.senders);
    outcome.setting("pace", &pace);
}

/// Distinguishes runs and loaders in room names and labels.
fn run_tag(common: &Common) -> u16 {
    let part = common.part.map_or(0, |(at, _)| u64::from(at));
    let seed = clock::unix_ms() ^ u64::from(std::process::id()) << 20 ^ part << 50;
    fastrand::Rng::with_seed(seed).u16(..)
}

const LONGEST_OPENING: Nanos = 30 * SECOND;
const LONGEST_WAIT: Nanos = 60 * SECOND;
const SHORTEST_SOAK_SECONDS: f64 = 1800.0;
