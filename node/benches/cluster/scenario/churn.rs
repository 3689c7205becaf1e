//! Rooms that are joined and left again a moment later, beside a trickle of broadcasts.
//!
//! The window ends when Redis has no more channels than before: giving them up is part of the price.

use std::io;
use std::time::{Duration, Instant};

use super::casts::{Casts, Pace};
use super::{Drive, Figure, Meter, SETTLE, Sample, await_subscribed};
use crate::clients::{Clients, Goal, Wait, room_name};
use crate::message::Form;
use crate::peer::{Command, Peer, Steps, Subject};
use crate::redis::{Client, Publisher, Redis};

pub(super) fn run(
    joins: usize,
    subject: Subject,
    drive: &Drive<'_>,
    sample: &mut Sample,
) -> io::Result<()> {
    let core = drive.cores.map(|cores| cores.servers);
    let redis = Redis::start(drive.cores.map(|cores| cores.load))?;
    let mut peer = Peer::start(subject, core, redis.port(), "", drive.packages)?;
    if subject == Subject::PublishFloor {
        return measure(joins, subject, &mut peer, &redis, None, sample);
    }
    let mut clients = Clients::new(peer.port(), Goal::Room { members: 1 }, Wait::Sleep)?;
    clients.open_to(SOCKETS)?;
    let rooms: Vec<String> = (0..SOCKETS).map(room_name).collect();
    await_subscribed(redis.port(), subject, &rooms)?;
    let publisher = Publisher::connect(redis.port())?;
    let form = (
        Form::of(subject.is_sharded()),
        Pace::PerSecond(CASTS_PER_SECOND),
    );
    let mut casts = Casts::new(vec![clients], rooms, 1, publisher, form);
    casts.phase_of(drive.warm_up)?;
    let outcome = measure(joins, subject, &mut peer, &redis, Some(&mut casts), sample);
    sample.tally = casts.close();
    outcome
}

fn measure(
    joins: usize,
    subject: Subject,
    peer: &mut Peer,
    redis: &Redis,
    casts: Option<&mut Casts>,
    sample: &mut Sample,
) -> io::Result<()> {
    let mut client = Client::connect(redis.port())?;
    let name = match Form::of(subject.is_sharded()) {
        Form::Classic => "pubsub_channels",
        Form::Sharded => "pubsubshard_channels",
    };
    let mut channels = || client.stat(name);
    let before = channels()?;
    let mut most = before;
    let mut look = Instant::now();
    let end = Instant::now() + duration_of(joins);
    let deadline = end + GIVEN_UP_WITHIN;
    // Looked at now and then: the question costs Redis something, too.
    let mut is_churning = || -> io::Result<bool> {
        let now = Instant::now();
        if now < look {
            return Ok(true);
        }
        look = now + LOOK_INTERVAL;
        let count = channels()?;
        most = most.max(count);
        if now > deadline {
            let error = format!(
                "{} channels were not given up",
                count.saturating_sub(before)
            );
            return Err(io::Error::other(error));
        }
        Ok(now < end || count > before)
    };
    let pids = [peer.pid()];
    let meter = Meter::start(&pids, redis.pid())?;
    peer.begin(Command::Churn { joins })?;
    match casts {
        Some(casts) => {
            casts.phase(is_churning)?;
            casts.rest(SETTLE)?;
        }
        None => {
            while is_churning()? {
                std::thread::sleep(LOOK_INTERVAL);
            }
        }
    }
    peer.hear()?;
    let used = meter.stop()?;
    sample.others = used.others;
    let joins = joins as u64;
    sample.figures = vec![
        Figure::price("µs CPU of the node per join and leave", used.servers, joins),
        Figure::price("µs CPU of Redis per join and leave", used.redis, joins),
        Figure::plain("channels at most", (most - before) as f64),
    ];
    Ok(())
}

/// How long the joins take that are made at the agreed intervals.
fn duration_of(joins: usize) -> Duration {
    let last = Steps::new(joins).last();
    last.map_or(Duration::ZERO, |step| step.at)
}

/// The joins are spread over so many.
const SOCKETS: usize = 100;
const CASTS_PER_SECOND: u32 = 100;
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(20);
