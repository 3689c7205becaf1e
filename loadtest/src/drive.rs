//! Runs the scenarios with rooms: opens the members, lets them speak at a pace, disturbs them as
//! planned, waits for what is missing, and closes the account.

mod disruption;
mod emitter;
mod idle;
mod pace;

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
    run::{Run, TURN},
    swarm::End,
};
use pace::Beat;

/// What a scenario is made of.
pub(crate) struct Plan {
    pub(crate) scenario: &'static str,
    pub(crate) shape: Shape,
    pub(crate) pace: Pace,
    /// Whether each message asks for an acknowledgement.
    pub(crate) asks: bool,
    pub(crate) place: Place,
    /// Of each room, from its end: members that never read.
    pub(crate) stalled: usize,
    pub(crate) disruption: Disruption,
    /// Whether messages go to rooms that nobody is in.
    pub(crate) is_unheard: bool,
    pub(crate) duration: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Each sender has so many messages under way.
    Window(usize),
    /// So many messages per second in all.
    Rate(f64),
    /// So many at once.
    Flood(u32),
}

/// Which target a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// One after the other.
    Spread,
    /// Senders to the first target, the others to the rest.
    SendersFirst,
    /// All of a room to one target, and the next room to the next.
    Together,
}

/// What disturbs the members. Nothing by default.
#[derive(Debug, Default)]
pub(crate) struct Disruption {
    /// Joins and leaves per second.
    pub(crate) moves: f64,
    /// Connections torn down per second.
    pub(crate) tears: f64,
    /// How long a client stays away that was torn down.
    pub(crate) away: Duration,
    /// Whether clients come back whose connection ended.
    pub(crate) returns: bool,
    /// A shell command, and when to run it.
    pub(crate) command: Option<(String, Duration)>,
}

impl Disruption {
    fn is_any(&self) -> bool {
        self.moves > 0.0 || self.tears > 0.0 || self.returns
    }
}

pub(crate) struct Drive<'a> {
    plan: &'a Plan,
    common: &'a Common,
    run: Run,
    population: Population,
    external: Option<External>,
    random: fastrand::Rng,
    packet: Vec<u8>,
    beat: Beat,
    /// When clients that are away come back.
    returns: BinaryHeap<Reverse<(Nanos, usize)>>,
    attempts: Vec<u8>,
    next_move: Nanos,
    next_tear: Nanos,
    next_expiry: Nanos,
    child: Option<Child>,
    marks: Marks,
}

/// What the counters said when the measured window began.
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
        external: Option<External>,
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
            marks: Marks::default(),
            run,
        })
    }

    /// The whole scenario.
    pub(crate) fn run(mut self) -> anyhow::Result<Outcome> {
        self.open_all(0..self.plan.shape.rooms * self.plan.shape.members)?;
        self.check_members()?;
        self.stall();
        self.rouse()?;
        self.run.settle(&mut self.population)?;
        self.run.gate.pass()?;
        self.traffic()?;
        self.wait_for_the_rest()?;
        self.look_at_the_stalled();
        self.close()
    }

    /// Opens clients, some at a time, until each is a member or given up.
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
        let reason = reason.unwrap_or_else(|| "no answer to the join".to_owned());
        if members == 0 {
            bail!("no client became a member of its room: {reason}");
        }
        let text = format!("connections: only {members} of {wanted} became members: {reason}");
        self.run.outcome.limit(&text);
        Ok(())
    }

    /// Begins to connect a client; `false` if the machine has nothing left for it.
    fn open(&mut self, client: usize) -> bool {
        let target = self.target_of(client);
        let now = clock::now();
        self.population.connecting(client, now);
        match self.run.swarm.open(client, target) {
            Ok(()) => true,
            Err(end @ (End::Ports | End::Descriptors)) => {
                let what = if end == End::Ports {
                    "source ports"
                } else {
                    "descriptors"
                };
                self.run
                    .outcome
                    .limit(&format!("{what} of this machine ran out"));
                crate::swarm::Sink::ended(&mut self.population, client, end, now);
                false
            }
            Err(end) => {
                crate::swarm::Sink::ended(&mut self.population, client, end, now);
                true
            }
        }
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
        // Who was refused knocks at the next door.
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
        // What is sent at once is all there is to measure.
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
            let next = self
                .speak(now, first)?
                .min(self.disturb(now, begin))
                .min(end);
            first = false;
            self.turn(next.saturating_sub(clock::now()).min(TURN))?;
            if self.is_flood_over() {
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
            received_bytes: self.run.swarm.volume().received_bytes,
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
        let received = self.run.swarm.volume().received_bytes - self.marks.received_bytes;
        outcome.set("received bytes", received);
        outcome.set("connections", open);
        self.check_rate();
    }

    /// Waits for messages that are under way: as long as any arrive, and a while longer.
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
            // Nobody knows who is still owed something while members come and go.
            let patience = if self.plan.disruption.is_any() {
                grace.min(SECOND)
            } else {
                grace
            };
            let is_quiet =
                now - last_arrival > patience && !self.is_returning() && !self.is_emitting();
            if now > deadline && self.is_emitting() {
                bail!("the emitter has not ended, although it was told everything");
            }
            if is_complete || is_quiet || now > deadline {
                return Ok(());
            }
        }
    }

    fn stalled_count(&self) -> u64 {
        (self.plan.stalled * self.plan.shape.rooms) as u64
    }

    /// Which of the members that never read the server has let go.
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
        self.end_command();
        if self.is_returning() {
            let away = self.returns.len();
            let said = format!("{away} clients were not back at the end");
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
        if let Some(External::Redis(publisher)) = &self.external {
            let (taken, reached) = publisher.taken();
            outcome.set("messages taken by Redis", taken);
            outcome.set("subscribers reached in Redis", reached);
        }
        let times = &self.population.times;
        outcome.time("delivery", &times.delivery);
        outcome.time("last recipient", &times.last);
        outcome.time("connect", &times.connect);
        outcome.time("outage", &times.outage);
        outcome.time("send lag", &self.beat.lag);
        outcome.ends = owned(&self.population.ends);
        describe(outcome, self.plan);
        let is_soak = self.plan.disruption.tears > 0.0 && self.plan.disruption.moves > 0.0;
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

/// Closes everything, and counts what the server has kept: descriptors that leaked.
fn close_clients(run: &mut Run, shape: Shape) -> anyhow::Result<()> {
    for client in 0..shape.rooms * shape.members {
        run.swarm.close(client);
    }
    let mut nobody = Population::new(Behaviour {
        shape,
        namespace: String::from("/"),
        run: 0,
        payload_bytes: crate::label::MIN_PAYLOAD_BYTES,
        asks: false,
        is_unsteady: true,
        is_external: true,
    });
    // The server needs a moment to notice.
    let deadline = clock::now() + 5 * SECOND;
    loop {
        run.turn(TURN, &mut nobody)?;
        let descriptors = run.servers.sum().descriptors;
        run.outcome
            .set("server descriptors after the end", descriptors);
        let before = run.servers.descriptors_before();
        if descriptors <= before || clock::now() > deadline {
            run.outcome.set("server descriptors before", before);
            return Ok(());
        }
    }
}

/// A slope of minutes is that of buffers that fill, and not of a leak.
fn note_on_memory(outcome: &mut Outcome) {
    if outcome.seconds < SHORTEST_SOAK_SECONDS {
        let said = "the run is too short for the memory slope to tell of a leak: soak for hours";
        outcome.notes.push(said.to_owned());
    }
}

fn describe(outcome: &mut Outcome, plan: &Plan) {
    let shape = plan.shape;
    if plan.is_unheard {
        let nobody = "a room that nobody is in".to_owned();
        outcome.settings.insert("emitted to".to_owned(), nobody);
    }
    let pace = match plan.pace {
        Pace::Window(window) => format!("{window} outstanding per sender"),
        Pace::Rate(rate) => format!("{rate} messages per second"),
        Pace::Flood(count) => format!("{count} messages at once"),
    };
    for (name, value) in [
        ("rooms", shape.rooms.to_string()),
        ("members per room", shape.members.to_string()),
        ("senders per room", shape.senders.to_string()),
        ("pace", pace),
    ] {
        outcome.settings.insert(name.to_owned(), value);
    }
}

fn owned(
    counts: &std::collections::BTreeMap<&'static str, u64>,
) -> std::collections::BTreeMap<String, u64> {
    counts
        .iter()
        .map(|(name, count)| ((*name).to_owned(), *count))
        .collect()
}

/// Tells runs and loaders from each other in room names and labels.
fn run_tag(common: &Common) -> u16 {
    let part = common.part.map_or(0, |(at, _)| u64::from(at));
    let seed = clock::unix_ms() ^ u64::from(std::process::id()) << 20 ^ part << 50;
    fastrand::Rng::with_seed(seed).u16(..)
}

const LONGEST_OPENING: Nanos = 30 * SECOND;
const LONGEST_WAIT: Nanos = 60 * SECOND;
const SHORTEST_SOAK_SECONDS: f64 = 1800.0;
