//! Publishing: a server emits to a room that has members elsewhere only.

use std::io;

use super::{Drive, Figure, Meter, SETTLE, Sample, await_that};
use crate::ear::Ear;
use crate::message::Form;
use crate::peer::{Command, Peer, ROOM, Subject};
use crate::redis::Redis;

/// The server has a core; Redis and whoever listens share the other one.
pub(super) fn run(
    concurrency: usize,
    subject: Subject,
    drive: &Drive<'_>,
    sample: &mut Sample,
) -> io::Result<()> {
    let redis = Redis::start(drive.cores.map(|cores| cores.load))?;
    let core = drive.cores.map(|cores| cores.servers);
    let mut peer = Peer::start(subject, core, redis.port(), "", drive.packages)?;
    let pid = peer.pid();
    let ear = Ear::open(redis.port(), Form::of(subject.is_sharded()), ROOM)?;
    let mut published = 0;
    let mut publish = |duration| -> io::Result<u64> {
        let answer = peer.tell(Command::Publish {
            duration,
            concurrency,
        })?;
        let before = std::mem::replace(&mut published, answer["published"].as_u64().unwrap_or(0));
        await_that("all that was published", || Ok(ear.heard() >= published))?;
        std::thread::sleep(SETTLE);
        Ok(published - before)
    };
    let pids = [pid];
    let outcome = publish(drive.warm_up).and_then(|_| {
        let meter = Meter::start(&pids, redis.pid())?;
        let units = publish(drive.window)?;
        Ok((meter.stop()?, units))
    });
    sample.tally = ear.close(u32::try_from(published).map_err(io::Error::other)?)?;
    let (used, units) = outcome?;
    sample.others = used.others;
    sample.figures = vec![
        Figure::price("µs CPU of the node per publish", used.servers, units),
        Figure::price("µs CPU of Redis per publish", used.redis, units),
    ];
    Ok(())
}
