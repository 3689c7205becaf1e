//! What the operating system says about processes and the machine: CPU time, memory, descriptors.
//!
//! CPU times come from the scheduler's accounts in nanoseconds, summed over the threads that live;
//! where the kernel does not keep those, from the tick-based ones. Nothing here reads a clock.

use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::clock::{Nanos, SECOND};

/// One look at a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// User and system time of all threads so far.
    pub(crate) cpu_nanos: Nanos,
    /// Bytes in RAM.
    pub(crate) rss_bytes: u64,
    /// The same, with pages that several processes share counted in parts.
    pub(crate) pss_bytes: u64,
    pub(crate) descriptors: u64,
}

impl Usage {
    /// Everything. Takes milliseconds for a large process.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        Ok(Self {
            cpu_nanos: cpu(pid)?,
            rss_bytes: kilobytes(&rollup, "Rss:")?,
            pss_bytes: kilobytes(&rollup, "Pss:")?,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
        })
    }

    /// What is cheap: CPU time and resident bytes.
    pub(crate) fn glance(pid: u32) -> io::Result<Self> {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
        let pages: Option<u64> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
        let pages = pages.ok_or_else(|| malformed("statm"))?;
        Ok(Self {
            cpu_nanos: cpu(pid)?,
            rss_bytes: pages * rustix::param::page_size() as u64,
            ..Self::default()
        })
    }
}

/// User and system time that all threads of a process have used so far.
pub(crate) fn cpu(pid: u32) -> io::Result<Nanos> {
    scheduler_time(pid).or_else(|_| tick_time(pid))
}

/// The same of the calling thread.
pub(crate) fn thread_cpu() -> io::Result<Nanos> {
    parse_schedstat(&fs::read_to_string("/proc/thread-self/schedstat")?)
}

/// The name of a process, as the kernel has it.
pub(crate) fn name(pid: u32) -> io::Result<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/comm"))?
        .trim()
        .to_owned())
}

/// Bytes of the kernel's own objects, of the whole machine: sockets are among them, both ends of
/// every connection of this machine to itself.
pub(crate) fn kernel_bytes() -> io::Result<u64> {
    kilobytes(&fs::read_to_string("/proc/meminfo")?, "Slab:")
}

/// Raises the soft limit of open descriptors to the hard one, and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
    let limit = getrlimit(Resource::Nofile);
    let reached = if raised.is_ok() {
        maximum
    } else {
        limit.current
    };
    reached.unwrap_or(u64::MAX)
}

/// Cores, processor and kernel, for the head of a result.
pub(crate) fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // All of the machine's, whatever this process is confined to.
    let cores = processor
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let processor = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name);
    format!("{cores} cores, {processor}, Linux {}", kernel.trim())
}

fn scheduler_time(pid: u32) -> io::Result<Nanos> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        match fs::read_to_string(task?.path().join("schedstat")) {
            Ok(text) => total += parse_schedstat(&text)?,
            // A thread may end between the two reads.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

fn parse_schedstat(text: &str) -> io::Result<Nanos> {
    let nanos = text.split_whitespace().next();
    nanos
        .and_then(|nanos| nanos.parse().ok())
        .ok_or_else(|| malformed("schedstat"))
}

fn tick_time(pid: u32) -> io::Result<Nanos> {
    parse_ticks(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

fn parse_ticks(stat: &str) -> io::Result<Nanos> {
    // The command's name is in parentheses and may hold spaces, so fields are counted behind it.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = |field: usize| fields.split(' ').nth(field)?.parse::<u64>().ok();
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => {
            Ok((user + system) * SECOND / rustix::param::clock_ticks_per_second())
        }
        _ => Err(malformed("stat")),
    }
}

fn kilobytes(text: &str, name: &str) -> io::Result<u64> {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .map(|kilobytes: u64| kilobytes * 1024)
        .ok_or_else(|| malformed(name))
}

fn malformed(what: &str) -> io::Error {
    io::Error::other(format!("the kernel's {what} is not as expected"))
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
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 300 200 0 0";
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(parse_ticks(stat).unwrap(), 500 * SECOND / ticks);
        assert!(parse_ticks("7 (a S").is_err());
        assert!(parse_schedstat("x").is_err());
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(Usage::of(u32::MAX).is_err());
    }
}
