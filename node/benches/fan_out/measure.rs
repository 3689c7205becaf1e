//! What the operating system says about a process: CPU time, resident bytes, its core.
//!
//! CPU times come from the scheduler's accounts in nanoseconds, summed over the threads of the
//! process; where the kernel does not keep those, from the tick-based ones. Nothing here measures
//! wall time.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// User and system time that all threads of a process have used so far.
pub(crate) fn process_cpu(pid: u32) -> io::Result<Duration> {
    scheduler_time(pid).or_else(|_| tick_time(pid))
}

/// The same of the calling thread.
pub(crate) fn thread_cpu() -> io::Result<Duration> {
    parse_schedstat(&fs::read_to_string("/proc/thread-self/schedstat")?)
}

/// Memory of a process that is in RAM now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resident {
    pub(crate) rss_bytes: u64,
    pub(crate) pss_bytes: u64,
}

impl Resident {
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kilobytes = |name: &str| {
            rollup
                .lines()
                .find_map(|line| {
                    line.strip_prefix(name)?
                        .split_whitespace()
                        .next()?
                        .parse()
                        .ok()
                })
                .map(|kilobytes: u64| kilobytes * 1024)
                .ok_or_else(|| io::Error::other(format!("smaps_rollup has no line {name}")))
        };
        Ok(Self {
            rss_bytes: kilobytes("Rss:")?,
            pss_bytes: kilobytes("Pss:")?,
        })
    }
}

/// Moves the calling thread, and what it spawns from now on, to one core.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// The cores that the calling thread may run on.
pub(crate) fn cores() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|core| set.is_set(*core))
        .collect())
}

/// Raises the soft limit of open descriptors to the hard one, which children inherit.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Cores, kernel and compiler, for the head of a report.
pub(crate) fn machine() -> String {
    let cores = cores().map_or(0, |cores| cores.len());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name);
    let compiler = std::process::Command::new("rustc")
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_else(|| String::from("rustc unknown"));
    format!(
        "{cores} cores, {processor}, Linux {}, {}",
        kernel.trim(),
        compiler.trim()
    )
}

fn scheduler_time(pid: u32) -> io::Result<Duration> {
    let mut total = Duration::ZERO;
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

fn parse_schedstat(text: &str) -> io::Result<Duration> {
    text.split_whitespace()
        .next()
        .and_then(|nanoseconds| nanoseconds.parse().ok())
        .map(Duration::from_nanos)
        .ok_or_else(|| io::Error::other("schedstat is not three numbers"))
}

fn tick_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name is in parentheses and may hold spaces, so fields are counted behind it.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = |field: usize| fields.split(' ').nth(field)?.parse::<u64>().ok();
    let (Some(user), Some(system)) = (ticks(11), ticks(12)) else {
        return Err(io::Error::other("/proc/PID/stat has no CPU times"));
    };
    Ok(Duration::from_millis(
        (user + system) * 1000 / rustix::param::clock_ticks_per_second(),
    ))
}
