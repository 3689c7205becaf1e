//! The scenarios with rooms, as plans for the driver.

use crate::{
    drive::{Disruption, Drive, Pace, Place, Plan, Rolling},
    external::External,
    failure::Failure,
    ledger::Shape,
    options::{Churn, Common, Deploy, Emitter, FanOut, Idle, Jitter, Paced, Rooms, Slow, Soak},
    outcome::Outcome,
    program::Program,
    redis::{Format, Publisher},
};

pub(super) fn idle(options: &Idle) -> anyhow::Result<Outcome> {
    let common = &options.common;
    let members = options.members as usize;
    let rooms = (share(options.connections, common) / members).max(1);
    let shape = Shape {
        rooms,
        members,
        senders: 1,
    };
    let plan = plan("idle", shape, Pace::Window(1), common);
    Drive::new(&plan, common, None)?.idle(options.broadcasts)
}

pub(super) fn fan_out(options: &FanOut) -> anyhow::Result<Outcome> {
    let common = &options.common;
    let shape = shape(&options.rooms, 0, common)?;
    let plan = plan("fan-out", shape, pace(options), common);
    Drive::new(&plan, common, None)?.run()
}

pub(super) fn cluster(options: &FanOut) -> anyhow::Result<Outcome> {
    let common = &options.common;
    if common.targets.len() < 2 {
        let said = "cluster takes two targets or more: senders are on the first, members on others";
        return Err(Failure::Arguments(said.to_owned()).into());
    }
    let shape = shape(&options.rooms, 0, common)?;
    let plan = Plan {
        place: Place::SendersFirst,
        ..plan("cluster", shape, pace(options), common)
    };
    Drive::new(&plan, common, None)?.run()
}

pub(super) fn emitter(options: &Emitter) -> anyhow::Result<Outcome> {
    let common = &options.common;
    let rooms = Rooms {
        rooms: options.rooms,
        members: options.members,
        senders: 1,
    };
    let shape = shape(&rooms, 0, common)?;
    let pace = match (options.flood, options.window) {
        (Some(count), _) => Pace::Flood(count),
        (None, Some(window)) => Pace::Window(window as usize),
        (None, None) => Pace::Rate(part_of_rate(options.rate, common)),
    };
    let external = external(options)?;
    let mut plan = plan("emitter", shape, pace, common);
    plan.is_unheard = options.unheard;
    if options.together {
        plan.place = Place::Together;
    }
    Drive::new(&plan, common, Some(external))?.run()
}

fn external(options: &Emitter) -> anyhow::Result<Box<dyn External>> {
    if let Some(command) = &options.emit_with {
        return Ok(Box::new(Program::start(command)?));
    }
    let Some(redis) = &options.redis else {
        let said = "emitter takes --redis or --emit-with";
        return Err(Failure::Arguments(said.to_owned()).into());
    };
    let format = if options.sharded {
        Format::Sharded
    } else {
        Format::Classic
    };
    let publisher = Publisher::connect(redis, &options.prefix, format)?;
    Ok(Box::new(publisher))
}

pub(super) fn slow(options: &Slow) -> anyhow::Result<Outcome> {
    let Paced {
        common,
        rooms,
        rate,
    } = &options.paced;
    let stalled = options.stalled as usize;
    let pace = Pace::Rate(part_of_rate(*rate, common));
    let plan = Plan {
        stalled,
        ..plan("slow", shape(rooms, stalled, common)?, pace, common)
    };
    Drive::new(&plan, common, None)?.run()
}

pub(super) fn churn(options: &Churn) -> anyhow::Result<Outcome> {
    let disruption = Disruption {
        moves: part_of_rate(options.moves, &options.paced.common),
        ..Disruption::default()
    };
    disturbed("churn", &options.paced, disruption)
}

pub(super) fn jitter(options: &Jitter) -> anyhow::Result<Outcome> {
    let disruption = Disruption {
        tears: part_of_rate(options.tears, &options.paced.common),
        away: options.away,
        ..Disruption::default()
    };
    disturbed("jitter", &options.paced, disruption)
}

pub(super) fn deploy(options: &Deploy) -> anyhow::Result<Outcome> {
    let common = &options.paced.common;
    if !options.restart.is_empty() && (common.processes > 1 || common.part.is_some()) {
        let said = "deploy --restart takes one process: the busiest second is that of all clients";
        return Err(Failure::Arguments(said.to_owned()).into());
    }
    let disruption = Disruption {
        returns: true,
        rolling: Rolling {
            commands: options.restart.clone(),
            pause: options.pause,
            over: options.over,
        },
        ..Disruption::default()
    };
    disturbed("deploy", &options.paced, disruption)
}

pub(super) fn soak(options: &Soak) -> anyhow::Result<Outcome> {
    let common = &options.paced.common;
    let disruption = Disruption {
        moves: part_of_rate(options.moves, common),
        tears: part_of_rate(options.tears, common),
        away: options.away,
        returns: true,
        ..Disruption::default()
    };
    disturbed("soak", &options.paced, disruption)
}

fn disturbed(
    scenario: &'static str,
    paced: &Paced,
    disruption: Disruption,
) -> anyhow::Result<Outcome> {
    let Paced {
        common,
        rooms,
        rate,
    } = paced;
    let pace = Pace::Rate(part_of_rate(*rate, common));
    let plan = Plan {
        // Only an acknowledged message is known to be broadcast, and thus owed to certain members.
        asks: true,
        disruption,
        ..plan(scenario, shape(rooms, 0, common)?, pace, common)
    };
    Drive::new(&plan, common, None)?.run()
}

fn plan(scenario: &'static str, shape: Shape, pace: Pace, common: &Common) -> Plan {
    Plan {
        scenario,
        shape,
        pace,
        asks: false,
        place: Place::Spread,
        stalled: 0,
        disruption: Disruption::default(),
        is_unheard: false,
        duration: common.duration,
    }
}

fn pace(options: &FanOut) -> Pace {
    options
        .rate
        .map_or(Pace::Window(options.window as usize), |rate| {
            Pace::Rate(part_of_rate(rate, &options.common))
        })
}

/// The rooms of this loader. Fails if the options contradict each other.
fn shape(rooms: &Rooms, stalled: usize, common: &Common) -> anyhow::Result<Shape> {
    let wrong = |said: String| Err(Failure::Arguments(said).into());
    let (members, senders) = (rooms.members as usize, rooms.senders as usize);
    if senders + stalled > members {
        return wrong(format!(
            "a room of {members} members has no place for {senders} that send and {stalled} that \
             do not read"
        ));
    }
    let count = share(rooms.rooms, common);
    if count == 0 {
        return wrong(format!(
            "{} rooms cannot be divided among {} processes: take more rooms or fewer processes",
            rooms.rooms,
            common.part.map_or(1, |(_, of)| of)
        ));
    }
    if count * senders > MOST_SENDERS || count * members > MOST_CLIENTS {
        return wrong(format!(
            "more than {MOST_SENDERS} senders, or {MOST_CLIENTS} clients"
        ));
    }
    Ok(Shape {
        rooms: count,
        members,
        senders,
    })
}

/// The share of this loader.
pub(super) fn share(count: u32, common: &Common) -> usize {
    let (at, of) = common.part.unwrap_or((0, 1));
    (count / of + u32::from(at < count % of)) as usize
}

pub(super) fn part_of_rate(rate: f64, common: &Common) -> f64 {
    rate / f64::from(common.part.map_or(1, |(_, of)| of))
}

const MOST_SENDERS: usize = 1 << 24;
const MOST_CLIENTS: usize = 10_000_000;
