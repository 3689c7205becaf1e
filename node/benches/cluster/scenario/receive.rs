//! Receiving: broadcasts come over Redis and go to the sockets of a room.
//!
//! The publisher is the generator itself. Redis runs beside the servers, so that a delivery passes
//! from core to core only where it does for everybody: between publisher and Redis, and between
//! server and clients.

use std::io;

use super::casts::{Casts, Pace};
use super::{Drive, Figure, Meter, SETTLE, Sample, await_subscribed};
use crate::clients::{Clients, Goal, Wait, room_name};
use crate::message::Form;
use crate::peer::{Command, Peer, Subject};
use crate::redis::{Publisher, Redis};

/// Who is there to receive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crowd {
    pub(super) nodes: usize,
    pub(super) rooms_each: usize,
    pub(super) members: usize,
}

pub(super) fn run(
    crowd: Crowd,
    pace: Pace,
    subject: Subject,
    drive: &Drive<'_>,
    sample: &mut Sample,
) -> io::Result<()> {
    let core = drive.cores.map(|cores| cores.servers);
    let redis = Redis::start(core)?;
    let mut peers = Vec::with_capacity(crowd.nodes);
    let mut crowds = Vec::with_capacity(crowd.nodes);
    let mut rooms = Vec::with_capacity(crowd.nodes * crowd.rooms_each);
    for node in 0..crowd.nodes {
        // The floor has no names but those that its clients say.
        let prefix = match subject {
            Subject::BusFloor => String::new(),
            _ => format!("n{node}-"),
        };
        let peer = Peer::start(subject, core, redis.port(), &prefix, drive.packages)?;
        let goal = Goal::Room {
            members: crowd.members,
        };
        let mut clients = Clients::new(peer.port(), goal, Wait::Spin)?;
        clients.open_to(crowd.rooms_each * crowd.members)?;
        peers.push(peer);
        crowds.push(clients);
        rooms.extend((0..crowd.rooms_each).map(|room| format!("{prefix}{}", room_name(room))));
    }
    await_subscribed(redis.port(), subject, &rooms)?;
    let publisher = Publisher::connect(redis.port())?;
    let form = Form::of(subject.is_sharded());
    let mut casts = Casts::new(crowds, rooms, crowd.members, publisher, (form, pace));
    let outcome = measure(&mut casts, &mut peers, &redis, drive, sample);
    sample.tally = casts.close();
    outcome
}

fn measure(
    casts: &mut Casts,
    peers: &mut [Peer],
    redis: &Redis,
    drive: &Drive<'_>,
    sample: &mut Sample,
) -> io::Result<()> {
    casts.phase_of(drive.warm_up)?;
    casts.rest(SETTLE)?;
    let received_before = received(peers)?;
    let (published, copies, arrivals) = (casts.published(), casts.copies(), casts.arrivals());
    let pids: Vec<u32> = peers.iter().map(Peer::pid).collect();
    let meter = Meter::start(&pids, redis.pid())?;
    casts.phase_of(drive.window)?;
    casts.rest(SETTLE)?;
    let used = meter.stop()?;
    sample.others = used.others;
    let published = casts.published() - published;
    let copies = casts.copies() - copies;
    let arrivals = casts.arrivals() - arrivals;
    if peers.len() == 1 {
        sample.figures = vec![
            Figure::price("µs CPU of the node per delivery", used.servers, arrivals),
            Figure::price("µs CPU of Redis per message", used.redis, published),
        ];
        return Ok(());
    }
    let received = received(peers)? - received_before;
    if received != copies {
        let error = format!("Redis has sent {copies} messages, and the nodes have {received}");
        return Err(io::Error::other(error));
    }
    let per_message = copies as f64 / published.max(1) as f64;
    // Each message was for the members on one node.
    let share = 1.0 - 1.0 / per_message;
    sample.figures = vec![
        Figure::plain("messages to nodes per message published", per_message),
        Figure::plain("% of them discarded", share * 100.0),
        Figure::price(
            "µs CPU of all nodes per message published",
            used.servers,
            published,
        ),
        Figure::price(
            "µs CPU of Redis per message published",
            used.redis,
            published,
        ),
    ];
    Ok(())
}

/// Messages that have come over the bus, by the accounts of the nodes; none by that of a floor.
fn received(peers: &mut [Peer]) -> io::Result<u64> {
    if peers.len() == 1 {
        return Ok(0);
    }
    let mut total = 0;
    for peer in peers {
        let answer = peer.tell(Command::Received)?;
        total += answer["received"].as_f64().unwrap_or_default() as u64;
    }
    Ok(total)
}
