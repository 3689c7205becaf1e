//! Resident memory of the server per idle connection, before and after traffic.
//!
//! All connections are members of one room. The first of them, opened before the first reading,
//! pay for what a server allocates once. Kernel memory is not in these figures.

use std::io;
use std::time::Duration;

use super::cast::Limit;
use super::{Casts, Drive, Memory, Meter, NextCast, Sample, settle};
use crate::clients::{Clients, Goal};
use crate::measure::Resident;

pub(super) fn run(warm_up: usize, connections: usize, drive: &Drive) -> io::Result<Sample> {
    let members = warm_up + connections;
    let mut clients = Clients::new(drive.port, Goal::Room { members }, drive.wait)?;
    clients.open_to(warm_up)?;
    settle(&mut clients, QUIET)?;
    let meter = Meter::start(drive.pid, &clients)?;
    let base = Resident::of(drive.pid)?;
    clients.open_to(members)?;
    settle(&mut clients, QUIET)?;
    let silent = Resident::of(drive.pid)?;
    let mut casts = Casts::new(1, members, NextCast::Delivered { outstanding: 1 });
    let outcome = casts.phase(&mut clients, Limit::Casts(BROADCASTS));
    let quiet = settle(&mut clients, QUIET);
    let used = Resident::of(drive.pid)?;
    let growth = |now: u64, base: u64| now.saturating_sub(base) as f64 / connections as f64;
    let mut sample = Sample {
        units: connections as u64,
        memory: Some(Memory {
            rss_before_traffic: growth(silent.rss_bytes, base.rss_bytes),
            rss_after_traffic: growth(used.rss_bytes, base.rss_bytes),
            pss_after_traffic: growth(used.pss_bytes, base.pss_bytes),
        }),
        tally: casts.close(),
        fault: outcome.and(quiet).err().map(|error| error.to_string()),
        ..Sample::default()
    };
    meter.stop(&clients, &mut sample)?;
    Ok(sample)
}

const BROADCASTS: u32 = 10;
const QUIET: Duration = Duration::from_millis(300);
