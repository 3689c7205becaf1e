//! Runs the scenarios with rooms: opens the members, lets them speak at a pace, disturbs them as
//! planned, waits for what is missing, and closes the account.

mod idle;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    process::{Child, Command},
    time::Duration,
};

use anyhow::bail;

use crate::{
    clock::{self, MILLISECOND, Nanos, SECOND, span},
    crowd::{Crowd, Manners, State},
    histogram::Histogram,
    ledger::Shape,
    options::Common,
    outcome::Outcome,
    random::Random,
    redis::Publisher,
    run::{Run, TURN},
    swarm::End,
};

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
    pub(crate) unrest: Unrest,
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
}

/// What disturbs the members. Nothing by default.
#[derive(Debug, Default)]
pub(crate) struct Unrest {
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

impl Unrest {
    fn is_any(&self) -> bool {
        self.moves > 0.0 || self.tears > 0.0 || self.returns
    }
}

pub(crate) struct Drive<'a> {
    plan: &'a Plan,
    common: &'a Common,
    run: Run,
    crowd: Crowd,
    publisher: Option<Publisher>,
    random: Random,
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

/// The pace of paced runs.
struct Beat {
    start: Nanos,
    sent: u64,
    /// How late messages were sent.
    lag: Histogram,
    skipped: u64,
}

/// What the counters said when the measured window began.
#[derive(Default)]
struct Marks {
    has_begun: bool,
    arrivals: u64,
    sent: u64,
    received_bytes: u64,
}

impl<'a> Drive<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        common: &'a Common,
        publisher: Option<Publisher>,
    ) -> anyhow::Result<Self> {
        let clients = plan.shape.rooms * plan.shape.members;
        let run = Run::new(plan.scenario, common, clients)?;
        let seed = common
            .seed
            .wrapping_add(common.part.map_or(0, |(at, _)| u64::from(at)));
        let manners = Manners {
            shape: plan.shape,
            namespace: common.namespace.clone(),
            run: run_tag(common),
            payload_bytes: common.payload,
            asks: plan.asks,
            is_unsteady: plan.unrest.is_any(),
            is_external: publisher.is_some(),
        };
        Ok(Self {
            plan,
            common,
            crowd: Crowd::new(manners),
            publisher,
            random: Random::new(seed),
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
        self.run.settle(&mut self.crowd)?;
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
            let crowd = &self.crowd;
            pending.retain(|client| {
                matches!(crowd.state(*client), State::Connecting | State::Joining)
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
        self.crowd.gone.clear();
        Ok(())
    }

    fn check_members(&mut self) -> anyhow::Result<()> {
        let wanted = (self.plan.shape.rooms * self.plan.shape.members) as u64;
        let members = self.crowd.counts.members;
        if members == wanted {
            return Ok(());
        }
        let end = self.crowd.last_end.as_ref().map(|end| match end {
            End::Rejected(said) | End::Protocol(said) | End::Other(said) => {
                format!("{} ({said})", end.name())
            }
            _ => end.name().to_owned(),
        });
        let refusal = self.crowd.last_refusal.as_ref();
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
        self.crowd.connecting(client, now);
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
                crate::swarm::Sink::ended(&mut self.crowd, client, end, now);
                false
            }
            Err(end) => {
                crate::swarm::Sink::ended(&mut self.crowd, client, end, now);
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
            _ => client % targets,
        };
        // Who was refused knocks at the next door.
        (home + usize::from(self.attempts[client])) % targets
    }

    fn stall(&mut self) {
        let members = self.plan.shape.members;
        for room in 0..self.plan.shape.rooms {
            for client in (room + 1) * members - self.plan.stalled..(room + 1) * members {
                if self.crowd.state(client) == State::In {
                    self.crowd.stalled(client);
                    self.run.swarm.stall(client);
                }
            }
        }
    }

    fn traffic(&mut self) -> anyhow::Result<()> {
        let start = clock::now();
        let begin = start + span(self.common.warm_up);
        let end = begin + span(self.plan.duration);
        self.beat.start = start;
        self.crowd.time(begin..end);
        self.run.enter("warming up", Some(begin));
        self.begin_unrest(start);
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
            arrivals: self.crowd.arrivals(),
            sent: self.crowd.counts.sent,
            received_bytes: self.run.swarm.volume().received_bytes,
        };
        self.run.enter("measuring", Some(end));
    }

    fn end_window(&mut self) {
        if !self.marks.has_begun {
            self.begin_window(clock::now());
        }
        self.run.end_window();
        let open = self.crowd.counts.members + self.stalled_count();
        let outcome = &mut self.run.outcome;
        outcome.set("deliveries", self.crowd.arrivals() - self.marks.arrivals);
        outcome.set("messages", self.crowd.counts.sent - self.marks.sent);
        let received = self.run.swarm.volume().received_bytes - self.marks.received_bytes;
        outcome.set("received bytes", received);
        outcome.set("connections", open);
        self.check_rate();
    }

    fn check_rate(&mut self) {
        let Pace::Rate(rate) = self.plan.pace else {
            return;
        };
        let outcome = &mut self.run.outcome;
        let achieved = outcome.count("messages") as f64 / outcome.seconds.max(1e-9);
        if self.beat.skipped > 0 {
            let skipped = self.beat.skipped;
            outcome.notes.push(format!(
                "{skipped} messages were not sent, because their sender was not connected"
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

    /// Sends what is due; says when to come again.
    fn speak(&mut self, now: Nanos, first: bool) -> anyhow::Result<Nanos> {
        match self.plan.pace {
            Pace::Window(window) => {
                self.speak_in_window(window, first);
                Ok(now + TURN)
            }
            Pace::Rate(rate) => self.speak_at_rate(rate, now),
            Pace::Flood(count) => {
                while self.beat.sent < u64::from(count) {
                    let time = clock::now();
                    self.send_next(time, time);
                }
                self.pump(now + TURN)
            }
        }
    }

    fn speak_in_window(&mut self, window: usize, first: bool) {
        let mut due = std::mem::take(&mut self.crowd.finished);
        if first {
            due.clear();
            for _ in 0..window {
                due.extend(0..self.plan.shape.rooms * self.plan.shape.senders);
            }
        }
        for sender in due.drain(..) {
            if self.crowd.outstanding(sender) < window {
                let time = clock::now();
                self.send(sender, time, time);
            }
        }
        // The list goes back with its room, and what expires is its first entry.
        self.crowd.finished.append(&mut due);
        self.expire(clock::now());
    }

    /// Gives up what is under way for too long; looks a few times a second.
    fn expire(&mut self, now: Nanos) {
        if now >= self.next_expiry {
            self.crowd
                .expire(now.saturating_sub(span(self.common.grace)));
            self.next_expiry = now + SECOND / 10;
        }
    }

    fn speak_at_rate(&mut self, rate: f64, now: Nanos) -> anyhow::Result<Nanos> {
        self.crowd.finished.clear();
        let due = |beat: &Beat| beat.start + (beat.sent as f64 / rate * SECOND as f64) as Nanos;
        for _ in 0..MOST_PER_TURN {
            let time = due(&self.beat);
            if time > now {
                break;
            }
            self.beat.lag.record(clock::now().saturating_sub(time));
            self.send_next(time, now);
        }
        self.expire(now);
        self.pump(due(&self.beat))
    }

    fn send_next(&mut self, time: Nanos, now: Nanos) {
        let senders = self.plan.shape.rooms * self.plan.shape.senders;
        let sender = (self.beat.sent % senders as u64) as usize;
        self.beat.sent += 1;
        self.send(sender, time, now);
    }

    fn send(&mut self, sender: usize, time: Nanos, now: Nanos) {
        self.packet.clear();
        if let Some(publisher) = &mut self.publisher {
            self.crowd
                .write_payload(sender, time, now, &mut self.packet);
            let room = self.crowd.manners().room(sender / self.plan.shape.senders);
            publisher.publish(self.run.swarm.namespace(), &room, &self.packet);
            return;
        }
        let client = self.crowd.client_of(sender);
        if self.crowd.state(client) != State::In {
            self.beat.skipped += 1;
            return;
        }
        self.crowd
            .write_message(sender, time, now, &mut self.packet);
        self.run.swarm.send(client, &self.packet);
    }

    /// Lets the publisher move; while it has something to say or hear, comes again soon.
    fn pump(&mut self, next: Nanos) -> anyhow::Result<Nanos> {
        let Some(publisher) = &mut self.publisher else {
            return Ok(next);
        };
        publisher.pump()?;
        if publisher.is_busy() {
            return Ok(next.min(clock::now() + MILLISECOND / 4));
        }
        Ok(next)
    }

    fn is_flood_over(&self) -> bool {
        let Pace::Flood(count) = self.plan.pace else {
            return false;
        };
        let is_heard = self
            .publisher
            .as_ref()
            .is_none_or(|publisher| !publisher.is_busy());
        self.beat.sent >= u64::from(count) && is_heard && self.crowd.outstanding_of_all() == 0
    }

    fn begin_unrest(&mut self, now: Nanos) {
        let unrest = &self.plan.unrest;
        self.next_move = first_after(now, unrest.moves);
        self.next_tear = first_after(now, unrest.tears);
    }

    /// Disturbs as planned; says when to come again.
    fn disturb(&mut self, now: Nanos, begin: Nanos) -> Nanos {
        let unrest = &self.plan.unrest;
        while self.next_move <= now {
            self.move_someone();
            self.next_move = first_after(self.next_move, unrest.moves);
        }
        while self.next_tear <= now {
            self.tear_someone(now);
            self.next_tear = first_after(self.next_tear, unrest.tears);
        }
        if let Some((command, at)) = &unrest.command
            && self.child.is_none()
            && now >= begin + span(*at)
        {
            self.start(command);
        }
        self.take_back(now);
        let next_return = self
            .returns
            .peek()
            .map_or(Nanos::MAX, |Reverse((at, _))| *at);
        self.next_move.min(self.next_tear).min(next_return)
    }

    fn start(&mut self, command: &str) {
        match Command::new("sh").arg("-c").arg(command).spawn() {
            Ok(child) => self.child = Some(child),
            Err(error) => {
                self.run
                    .outcome
                    .limit(&format!("the command could not be run: {error}"));
            }
        }
    }

    /// A random client that does not send, in one of these states; a few tries.
    fn anyone(&mut self, states: &[State]) -> Option<usize> {
        let shape = self.plan.shape;
        let quiet = shape
            .members
            .checked_sub(shape.senders + self.plan.stalled)?;
        if quiet == 0 {
            return None;
        }
        for _ in 0..20 {
            let room = self.random.below(shape.rooms as u64) as usize;
            let within = shape.senders + self.random.below(quiet as u64) as usize;
            let client = room * shape.members + within;
            if states.contains(&self.crowd.state(client)) {
                return Some(client);
            }
        }
        None
    }

    fn move_someone(&mut self) {
        if let Some(client) = self.anyone(&[State::In, State::Out]) {
            let joins = self.crowd.state(client) == State::Out;
            self.packet.clear();
            self.crowd.write_move(client, joins, &mut self.packet);
            self.run.swarm.send(client, &self.packet);
        }
    }

    fn tear_someone(&mut self, now: Nanos) {
        if let Some(client) = self.anyone(&[State::In]) {
            self.run.swarm.reset(client);
            self.crowd.torn(client, now);
            *self
                .run
                .outcome
                .counts
                .entry("torn down".to_owned())
                .or_default() += 1;
            let at = now + self.random.around(span(self.plan.unrest.away));
            self.returns.push(Reverse((at, client)));
        }
    }

    /// Opens clients whose time to come back has come, and plans the return of those just gone.
    fn take_back(&mut self, now: Nanos) {
        for (client, end) in std::mem::take(&mut self.crowd.gone) {
            if !self.plan.unrest.returns {
                continue;
            }
            let attempts = &mut self.attempts[client];
            *attempts = if end == End::Refused {
                attempts.saturating_add(1)
            } else {
                0
            };
            // As the official client: a second, doubled by each failure up to five, give or take.
            let delay = (SECOND << (*attempts).min(3)).min(5 * SECOND);
            let at = now + self.random.around(delay);
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

    /// Waits for messages that are under way: as long as any arrive, and a while longer.
    fn wait_for_the_rest(&mut self) -> anyhow::Result<()> {
        let grace = span(self.common.grace);
        self.run.enter("waiting for the rest", None);
        let deadline = clock::now() + LONGEST_WAIT.max(2 * grace);
        let mut arrivals = self.crowd.arrivals();
        let mut last_arrival = clock::now();
        loop {
            let next = self.pump(Nanos::MAX)?;
            let now = clock::now();
            self.take_back(now);
            self.turn(next.saturating_sub(now).min(TURN))?;
            self.crowd.finished.clear();
            if self.crowd.arrivals() != arrivals {
                arrivals = self.crowd.arrivals();
                last_arrival = now;
            }
            let is_complete = !self.plan.unrest.is_any() && self.crowd.outstanding_of_all() == 0;
            // Nobody knows who is still owed something while members come and go.
            let patience = if self.plan.unrest.is_any() {
                grace.min(SECOND)
            } else {
                grace
            };
            let is_quiet = now - last_arrival > patience && !self.is_returning();
            if is_complete || is_quiet || now > deadline {
                return Ok(());
            }
        }
    }

    /// Whether clients are on their way back, of a scenario in which all should be.
    fn is_returning(&self) -> bool {
        self.plan.unrest.returns && !self.returns.is_empty()
    }

    fn stalled_count(&self) -> u64 {
        (self.plan.stalled * self.plan.shape.rooms) as u64
    }

    /// Which of the members that never read the server has let go.
    fn look_at_the_stalled(&mut self) {
        let clients = 0..self.plan.shape.rooms * self.plan.shape.members;
        let mut closed = 0;
        for client in clients {
            if self.crowd.state(client) == State::Stalled && self.run.swarm.has_lost(client) {
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
        let counts = self.crowd.counts;
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
        if let Some(publisher) = &self.publisher {
            let (taken, reached) = publisher.taken();
            outcome.set("messages taken by Redis", taken);
            outcome.set("subscribers reached in Redis", reached);
        }
        let times = &self.crowd.times;
        outcome.time("delivery", &times.delivery);
        outcome.time("last recipient", &times.last);
        outcome.time("connect", &times.connect);
        outcome.time("outage", &times.outage);
        outcome.time("send lag", &self.beat.lag);
        outcome.ends = owned(&self.crowd.ends);
        describe(outcome, self.plan);
        let at_rest = self.plan.unrest.tears > 0.0 && self.plan.unrest.moves > 0.0;
        let tally = self.crowd.close();
        self.run.outcome.ledger = tally;
        if at_rest {
            close_clients(&mut self.run, self.plan.shape)?;
        }
        Ok(self.run.finish())
    }

    /// The command was to end long ago. One that has not is left alone, and mentioned.
    fn end_command(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let said = match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => format!("the command ended with {status}"),
            Ok(None) => "the command was still running at the end".to_owned(),
            Err(error) => format!("the command: {error}"),
        };
        self.run.outcome.notes.push(said);
    }

    fn turn(&mut self, at_most: Nanos) -> anyhow::Result<()> {
        self.run.turn(at_most, &mut self.crowd)?;
        self.run
            .report(self.crowd.counts.members, self.crowd.arrivals());
        Ok(())
    }
}

/// Closes everything, and counts what the server has kept: descriptors that leaked.
fn close_clients(run: &mut Run, shape: Shape) -> anyhow::Result<()> {
    for client in 0..shape.rooms * shape.members {
        run.swarm.close(client);
    }
    let mut nobody = Crowd::new(Manners {
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

fn describe(outcome: &mut Outcome, plan: &Plan) {
    let shape = plan.shape;
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

fn first_after(now: Nanos, rate: f64) -> Nanos {
    if rate > 0.0 {
        now + (SECOND as f64 / rate) as Nanos
    } else {
        Nanos::MAX
    }
}

/// Tells runs and loaders from each other in room names and labels.
fn run_tag(common: &Common) -> u16 {
    let part = common.part.map_or(0, |(at, _)| u64::from(at));
    let mut random =
        Random::new(clock::unix_ms() ^ u64::from(std::process::id()) << 20 ^ part << 50);
    random.next() as u16
}

const LONGEST_OPENING: Nanos = 30 * SECOND;
const LONGEST_WAIT: Nanos = 60 * SECOND;
const MOST_PER_TURN: usize = 64;
const LEAST_SHARE_OF_RATE: f64 = 0.98;
const MOST_LAG_MS: f64 = 20.0;
