//! Connections from the TCP handshake to the reply to the Socket.IO connect packet, and their end.
//!
//! A batch is opened, taken into the namespace `/` and closed again. The server's work for the
//! closing is part of the figure, for the floor as for the others.

use std::io;
use std::time::{Duration, Instant};

use super::{Drive, Meter, SETTLE, Sample, settle};
use crate::clients::{Clients, Goal};

pub(super) fn run(batch: usize, drive: &Drive) -> io::Result<Sample> {
    let mut clients = Clients::new(drive.port, Goal::Namespace, drive.wait)?;
    let mut sample = Sample::default();
    let outcome = measure(&mut clients, batch, drive, &mut sample);
    sample.fault = outcome.err().map(|error| error.to_string());
    Ok(sample)
}

fn measure(
    clients: &mut Clients,
    batch: usize,
    drive: &Drive,
    sample: &mut Sample,
) -> io::Result<()> {
    phase(clients, batch, drive.warm_up, sample)?;
    settle(clients, SETTLE)?;
    let before = sample.tally.arrived;
    let meter = Meter::start(drive.pid, clients)?;
    phase(clients, batch, drive.window, sample)?;
    settle(clients, SETTLE)?;
    meter.stop(clients, sample)?;
    sample.units = sample.tally.arrived - before;
    Ok(())
}

fn phase(
    clients: &mut Clients,
    batch: usize,
    duration: Duration,
    sample: &mut Sample,
) -> io::Result<()> {
    let started = Instant::now();
    for _ in 0..MOST_CONNECTIONS / batch {
        if started.elapsed() >= duration {
            break;
        }
        sample.tally.lost += batch as u64;
        clients.open_to(batch)?;
        sample.tally.lost -= batch as u64;
        sample.tally.arrived += batch as u64;
        clients.close_all();
    }
    Ok(())
}

/// Per phase, so that a fast machine does not run out of ports.
const MOST_CONNECTIONS: usize = 40_000;
