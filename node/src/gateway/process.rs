//! The usual figures of a process, under the names that every Prometheus client uses.
//!
//! They are read from /proc when the metrics are. The collector of the `prometheus` crate
//! counts whole seconds of CPU only, so the rate of a mostly idle node would be a comb.

use procfs::{
    ProcResult, WithCurrentSystemInfo as _,
    process::{self, LimitValue},
};
use prometheus::{
    Counter, Gauge, IntGauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// CPU, memory, descriptors and threads of this process.
/// Read all together, so that the figures of one scrape belong to one moment.
pub(super) struct Process {
    cpu: Counter,
    resident: IntGauge,
    open_files: IntGauge,
    max_files: IntGauge,
    threads: IntGauge,
    start: Gauge,
}

impl Process {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let gauge = IntGauge::new::<&str, &str>;
        Ok(Self {
            cpu: Counter::new(
                "process_cpu_seconds_total",
                "CPU time of the process, of the program and of the kernel, in seconds",
            )?,
            resident: gauge(
                "process_resident_memory_bytes",
                "Memory of the process that is in RAM",
            )?,
            open_files: gauge("process_open_fds", "Open file descriptors")?,
            max_files: gauge("process_max_fds", "File descriptors that may be open")?,
            threads: gauge("process_threads", "Threads of the process")?,
            start: Gauge::new(
                "process_start_time_seconds",
                "Start of the process, in seconds since 1970",
            )?,
        })
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "ticks and seconds are far below 2^52"
    )]
    fn read(&self) -> ProcResult<()> {
        let own = process::Process::myself()?;
        let stat = own.stat()?;
        let ticks = procfs::ticks_per_second() as f64;
        let cpu = (stat.utime + stat.stime) as f64 / ticks;
        // Two scrapes at a time may read in one order and count in the other.
        self.cpu.inc_by((cpu - self.cpu.get()).max(0.0));
        self.start
            .set(procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks);
        self.resident.set(signed(stat.rss_bytes().get()));
        self.threads.set(stat.num_threads);
        self.open_files.set(signed(own.fd_count()? as u64));
        if let LimitValue::Value(limit) = own.limits()?.max_open_files.soft_limit {
            self.max_files.set(signed(limit));
        }
        Ok(())
    }

    fn series(&self) -> [&dyn Collector; 6] {
        [
            &self.cpu,
            &self.resident,
            &self.open_files,
            &self.max_files,
            &self.threads,
            &self.start,
        ]
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.series().iter().flat_map(|each| each.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Without /proc there are no figures, which is better than wrong ones.
        if self.read().is_err() {
            return Vec::new();
        }
        let series = self.series();
        series.iter().flat_map(|each| each.collect()).collect()
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, hint::black_box};

    use super::*;

    #[test]
    fn open_files_and_work_are_counted() {
        let process = Process::new().unwrap();
        process.read().unwrap();
        let (files, cpu) = (process.open_files.get(), process.cpu.get());
        let held: Vec<_> = (0..100)
            .map(|_| File::open("/proc/self/stat").unwrap())
            .collect();
        while process.cpu.get() == cpu {
            black_box((0..100_000_u64).sum::<u64>());
            process.read().unwrap();
        }
        // Other tests of this program open and close files at the same time.
        assert!(process.open_files.get() > files + 50);
        assert!(process.max_files.get() >= process.open_files.get());
        assert!(process.resident.get() > 1_000_000);
        assert!(process.threads.get() >= 1 && process.start.get() > 1e9);
        drop(held);
        assert_eq!(process.collect().len(), process.desc().len());
    }
}
