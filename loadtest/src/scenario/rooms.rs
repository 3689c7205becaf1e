//! The scenarios with rooms, as plans for the driver.

use crate::{
    drive::{Disruption, Drive, Pace, Place, Plan, Rolling},
    external::External,
    failure::Failure,
    ledger::Shape,
    options::{Common, Deploy, Disturbed, Emitter, FanOut, Idle, Paced, Rooms},
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
    // It is there: the command line has one of the two.
    let redis = options.redis.as_deref().unwrap_or_default();
    let format = if options.sharded {
        Format::Sharded
    } else {
        Format::Classic
    };
    let publisher = Publisher::connect(redis, &options.prefix, format)?;
    Ok(Box::new(publisher))
}

/// Disruptions. `returns`: whether clients reconnect after the server closed their connection.
pub(super) fn disturbed(
    scenario: &'static str,
    options: &Disturbed,
    returns: bool,
) -> anyhow::Result<Outcome> {
    let part = |rate: Option<f64>| part_of_rate(rate.unwrap_or(0.0), &options.paced.common);
    let disruption = Disruption {
        moves: part(options.moves),
        tears: part(options.tears),
        away: options.away,
        returns,
        ..Disruption::default()
    };
    paced(
        scenario,
        &options.paced,
        options.stalled as usize,
        disruption,
    )
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
    paced("deploy", &options.paced, 0, disruption)
}

fn paced(
    scenario: &'static str,
    options: &Paced,
    stalled: usize,
    disruption: Disruption,
) -> anyhow::Result<Outcome> {
    let Paced {
        common,
        rooms,
        rate,
    } = options;
    let pace = Pace::Rate(part_of_rate(*rate, common));
    let plan = Plan {
        // While members come and go, only an acknowledged message is known to be broadcast, and thus
        // owed to certain members.
        asks: disruption.is_any(),
        stalled,
        disruption,
        ..plan(scenario, shape(rooms, stalled, common)?, pace, common)
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
