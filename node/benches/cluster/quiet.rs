//! How much the machine did during a window that nobody had asked it to do.
//!
//! Processes that share a core with what is measured make it dearer: caches are cold, and who was
//! about to run waits. A window in which others ran is no measurement.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// The machine's clocks at the start of a window.
pub(crate) struct Quiet {
    busy: Duration,
    started: Instant,
}

impl Quiet {
    pub(crate) fn begin() -> io::Result<Self> {
        Ok(Self {
            busy: busy()?,
            started: Instant::now(),
        })
    }

    /// What others used since, in cores; `own` is what was used on purpose.
    pub(crate) fn end(self, own: Duration) -> io::Result<f64> {
        let others = busy()?.saturating_sub(self.busy).saturating_sub(own);
        Ok(others.as_secs_f64() / self.started.elapsed().as_secs_f64().max(1e-9))
    }
}

/// Time that all cores have not been idle, or were not there because a hypervisor had taken them.
fn busy() -> io::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default().split_whitespace();
    let ticks: Option<Vec<u64>> = fields.skip(1).map(|field| field.parse().ok()).collect();
    let ticks = ticks.ok_or_else(|| io::Error::other("/proc/stat has no CPU times"))?;
    // User, nice, system, idle, waiting, interrupts, soft interrupts, stolen; guests are users.
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|field| ticks.get(*field))
        .sum();
    let milliseconds = busy * 1000 / rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(milliseconds))
}
