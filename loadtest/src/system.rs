//! CPU time, memory and descriptors of processes, and facts about the machine.
//!
//! CPU times are the scheduler's, in nanoseconds, summed over the living threads. Kernels without
//! them offer only ticks of 10 ms.

use std::fs;

use procfs::{CpuInfo, Current as _, Meminfo, process::Process};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use crate::clock::{Nanos, SECOND};

/// Resource usage of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// User and system time of all threads so far.
    pub(crate) cpu_nanos: Nanos,
    /// Resident bytes.
    pub(crate) rss_bytes: u64,
    /// Resident bytes, with shared pages divided by the number of processes.
    pub(crate) pss_bytes: u64,
    pub(crate) descriptors: u64,
}

impl Usage {
    /// Reads all values, which takes milliseconds for a large process.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let process = process(pid)?;
        let rollup = process.smaps_rollup()?.memory_map_rollup.0;
        let sum = |name: &str| -> u64 {
            let maps = rollup.iter();
            maps.filter_map(|map| map.extension.map.get(name)).sum()
        };
        Ok(Self {
            cpu_nanos: cpu(pid)?,
            rss_bytes: sum("Rss"),
            pss_bytes: sum("Pss"),
            descriptors: process.fd_count()? as u64,
        })
    }

    /// Reads only the cheap values: CPU time and resident bytes.
    pub(crate) fn glance(pid: u32) -> anyhow::Result<Self> {
        Ok(Self {
            cpu_nanos: cpu(pid)?,
            rss_bytes: process(pid)?.statm()?.resident * procfs::page_size(),
            ..Self::default()
        })
    }
}

fn process(pid: u32) -> anyhow::Result<Process> {
    Ok(Process::new(i32::try_from(pid)?)?)
}

/// User and system time of all threads of a process so far.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Nanos> {
    let process = process(pid)?;
    // A thread may exit between the two reads.
    let stats = process
        .tasks()?
        .filter_map(|task| task.ok()?.schedstat().ok());
    let of_threads = stats
        .map(|stat| stat.sum_exec_runtime)
        .reduce(|sum, one| sum + one);
    of_threads.map_or_else(
        || {
            let stat = process.stat()?;
            Ok((stat.utime + stat.stime) * SECOND / procfs::ticks_per_second())
        },
        Ok,
    )
}

/// User and system time of the calling thread.
pub(crate) fn thread_cpu() -> Nanos {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec as Nanos * SECOND + used.tv_nsec as Nanos
}

/// The kernel's name of a process.
pub(crate) fn name(pid: u32) -> anyhow::Result<String> {
    Ok(process(pid)?.stat()?.comm)
}

/// Bytes of kernel objects of the whole machine. They include sockets: both ends of each local
/// connection.
pub(crate) fn kernel_bytes() -> anyhow::Result<u64> {
    Ok(Meminfo::current()?.slab)
}

/// Raises the soft limit of open descriptors to the hard limit and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let reached = setrlimit(Resource::Nofile, raised).map_or(limit.current, |()| limit.maximum);
    reached.unwrap_or(u64::MAX)
}

/// Cores, processor and kernel, for the head of a result.
pub(crate) fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processor = CpuInfo::current().ok();
    // All cores of the machine, even if this process is pinned.
    let cores = processor.as_ref().map_or(0, CpuInfo::num_cores);
    let name = processor
        .as_ref()
        .and_then(|processor| processor.model_name(0));
    let name = name.unwrap_or("unknown processor");
    format!("{cores} cores, {name}, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        let usage = Usage::of(pid).unwrap();
        assert!(usage.cpu_nanos > 0 && usage.descriptors > 2);
        assert!(usage.pss_bytes > 0 && usage.pss_bytes <= usage.rss_bytes);
        assert!(Usage::glance(pid).unwrap().rss_bytes > 0);
        assert!(kernel_bytes().unwrap() > 0);
        assert!(!name(pid).unwrap().is_empty());
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(Usage::of(u32::MAX).is_err());
    }
}
