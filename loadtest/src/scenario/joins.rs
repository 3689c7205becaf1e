//! Rooms with one member each, which are left again after a time or kept.
//!
//! With `--hold`, it measures the cost of membership for a server and its bus, because each room is
//! a channel that appears and disappears. Without it, it fills a server with rooms, beside which
//! other runs measure.

use std::{collections::VecDeque, time::Duration};

use anyhow::bail;

use super::rooms::share;
use crate::{
    clock::{self, Nanos, SECOND, span},
    codec::packet::{self, Kind, Packet},
    options::Joins,
    outcome::Outcome,
    processes::wait_for_others,
    run::{Run, TURN},
    swarm::{End, Replies, Sink},
};

struct Members {
    clients: usize,
    namespace: String,
    tag: String,
    connected: usize,
    gone: usize,
    last_end: Option<End>,
    joined: usize,
    left: usize,
    refused: usize,
}

impl Members {
    /// Writes the join or the leave of a room. The acknowledgement id tells which one it was.
    fn write(&self, room: usize, joins: bool, out: &mut Vec<u8>) {
        let event = if joins { "join" } else { "leave" };
        let ack = 2 * room + usize::from(!joins);
        packet::write_head(out, b'2', &self.namespace, Some(ack as u64));
        let name = format!("{}.{room}", self.tag);
        out.extend_from_slice(format!("[\"{event}\",\"{name}\",{{\"quiet\":true}}]").as_bytes());
    }
}

impl Sink for Members {
    fn connected(&mut self, _: usize, _: Nanos, _: &mut Replies) {
        self.connected += 1;
    }

    fn packet(&mut self, _: usize, packet: Packet<'_>, _: Nanos, _: &mut Replies) {
        match (packet.kind, packet.ack) {
            (Kind::Ack, Some(_)) if packet.body.starts_with(b"[{\"error\"") => self.refused += 1,
            (Kind::Ack, Some(ack)) if ack % 2 == 0 => self.joined += 1,
            (Kind::Ack, Some(_)) => self.left += 1,
            _ => {}
        }
    }

    fn nonsense(&mut self, _: usize) {
        self.refused += 1;
    }

    fn ended(&mut self, _: usize, end: End, _: Nanos) {
        self.gone += 1;
        self.last_end = Some(end);
    }
}

pub(super) fn run(options: &Joins) -> anyhow::Result<Outcome> {
    let common = &options.common;
    let rooms = share(options.rooms, common);
    let clients = rooms
        .div_ceil(ROOMS_PER_CLIENT)
        .max(LEAST_CLIENTS)
        .min(rooms);
    let mut run = Run::new("joins", common, clients)?;
    let mut members = Members {
        clients,
        namespace: common.namespace.clone(),
        tag: format!(
            "joins.{:x}",
            clock::unix_ms() ^ u64::from(std::process::id()) << 44
        ),
        connected: 0,
        gone: 0,
        last_end: None,
        joined: 0,
        left: 0,
        refused: 0,
    };
    open_all(&mut run, &mut members, common.opening as usize)?;
    run.settle(&mut members)?;
    wait_for_others(common)?;
    if let Some(hold) = options.hold {
        come_and_go(&mut run, &mut members, rooms, options.rate, hold)?;
        rest(&mut run, &mut members, LINGER)?;
        run.end_window();
        run.outcome.set("joins and leaves", members.left as u64);
        run.outcome.setting("held", &format!("{hold:?}"));
        run.outcome.ledger.lost = (2 * rooms - members.joined - members.left) as u64;
    } else {
        stay(&mut run, &mut members, rooms)?;
        run.begin_window();
        run.enter("holding", None);
        rest(&mut run, &mut members, common.duration)?;
        run.end_window();
        run.outcome.ledger.lost = (rooms - members.joined) as u64;
    }
    run.outcome.setting("rooms", &rooms);
    run.outcome
        .set("connections", (members.connected - members.gone) as u64);
    run.outcome.ledger.arrived = (members.joined + members.left) as u64;
    if members.refused > 0 || members.gone > 0 {
        let said = format!(
            "{} joins were refused, {} clients were disconnected",
            members.refused, members.gone
        );
        run.outcome.limit(&said);
    }
    Ok(run.finish())
}

fn open_all(run: &mut Run, members: &mut Members, opening: usize) -> anyhow::Result<()> {
    let settled = |members: &Members| members.connected + members.gone;
    run.open_all((members.clients, opening), members, settled, |_, _, _| {})?;
    if members.connected < members.clients {
        let connected = members.connected;
        bail!(
            "only {connected} of {} clients connected: {:?}",
            members.clients,
            members.last_end
        );
    }
    Ok(())
}

/// Joins all rooms with a bounded number of outstanding joins.
fn stay(run: &mut Run, members: &mut Members, rooms: usize) -> anyhow::Result<()> {
    run.enter("joining", None);
    let mut packet = Vec::new();
    let mut begun = 0;
    let mut last = (0, clock::now());
    while members.joined + members.refused < rooms {
        while begun < rooms && begun < members.joined + members.refused + MOST_UNANSWERED {
            send(run, members, begun, true, &mut packet);
            begun += 1;
        }
        run.turn(TURN, members)?;
        if members.joined != last.0 {
            last = (members.joined, clock::now());
        } else if clock::now() - last.1 > LONGEST_WAIT {
            bail!("only {} of {rooms} joins were acknowledged", members.joined);
        }
    }
    Ok(())
}

/// Joins rooms at a rate, and leaves each after a while.
fn come_and_go(
    run: &mut Run,
    members: &mut Members,
    rooms: usize,
    rate: f64,
    hold: Duration,
) -> anyhow::Result<()> {
    run.begin_window();
    run.enter("measuring", None);
    let start = clock::now();
    let mut packet = Vec::new();
    let mut begun = 0;
    let mut held: VecDeque<(Nanos, usize)> = VecDeque::new();
    let mut deadline = Nanos::MAX;
    while members.left + members.refused < rooms && clock::now() < deadline {
        let now = clock::now();
        let due = (clock::seconds(now - start) * rate) as usize;
        while begun < rooms.min(due) {
            send(run, members, begun, true, &mut packet);
            held.push_back((now + span(hold), begun));
            begun += 1;
        }
        while let Some((_, room)) = held.pop_front_if(|(at, _)| *at <= now) {
            send(run, members, room, false, &mut packet);
        }
        if begun == rooms && held.is_empty() && deadline == Nanos::MAX {
            deadline = now + LONGEST_WAIT;
        }
        // Joins and leaves are sent in bursts, as after a balancer has moved clients.
        run.turn(STEP, members)?;
        run.report(members.connected as u64, members.joined as u64);
    }
    Ok(())
}

fn send(run: &mut Run, members: &Members, room: usize, joins: bool, packet: &mut Vec<u8>) {
    packet.clear();
    members.write(room, joins, packet);
    run.swarm.send(room % members.clients, packet);
}

fn rest(run: &mut Run, members: &mut Members, time: Duration) -> anyhow::Result<()> {
    let end = clock::now() + span(time);
    while clock::now() < end {
        run.turn(TURN, members)?;
    }
    Ok(())
}

/// Below the number of rooms that servers let a socket join by default.
const ROOMS_PER_CLIENT: usize = 1000;
const LEAST_CLIENTS: usize = 100;
const MOST_UNANSWERED: usize = 1000;
const STEP: Nanos = SECOND / 200;
const LONGEST_WAIT: Nanos = 60 * SECOND;

/// The window goes on after the last leave, because a bus gives up channels later than that, and
/// giving them up is part of the price.
const LINGER: Duration = Duration::from_secs(2);
