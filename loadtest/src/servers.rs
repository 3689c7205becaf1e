//! Resource usage of the processes that the user named.

use anyhow::Context as _;

use crate::{
    options::Named,
    outcome::Server,
    system::{self, Usage},
};

pub(crate) struct Servers(Vec<Server>);

/// Limitation if memory did not grow.
pub(crate) const USED_BEFORE: &str =
    "memory of an earlier run, which hides growth: use a fresh server";

impl Servers {
    /// Reads each process for the first time. Fails with the pid of one that does not exist.
    pub(crate) fn new(pids: &[u32]) -> anyhow::Result<Self> {
        let servers = pids.iter().map(|pid| {
            let name = || system::name(*pid);
            first_look(*pid, name).with_context(|| format!("--server-pid {pid}"))
        });
        servers.collect::<anyhow::Result<_>>().map(Self)
    }

    /// Reads processes with display names for the first time.
    pub(crate) fn named(processes: &[Named]) -> anyhow::Result<Self> {
        let servers = processes.iter().map(|Named { name, pid }| {
            first_look(*pid, || Ok(name.clone())).with_context(|| format!("--process {name}={pid}"))
        });
        servers.collect::<anyhow::Result<_>>().map(Self)
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.0.iter().map(|server| server.pid).collect()
    }

    /// Records usage after the connections that do not count.
    pub(crate) fn before(&mut self) {
        self.look(|server, usage| server.before = usage, Usage::of);
    }

    /// Records usage at the begin of the window, without expensive values.
    pub(crate) fn begin(&mut self) {
        self.look(|server, usage| server.begin = usage, Usage::glance);
    }

    /// Records usage at the end of the window.
    pub(crate) fn end(&mut self) {
        self.look(|server, usage| server.end = usage, Usage::glance);
        // Reading all memory figures takes long and is not part of the window.
        self.look(
            |server, usage| {
                server.end = Usage {
                    cpu_nanos: server.end.cpu_nanos,
                    ..usage
                };
            },
            Usage::of,
        );
    }

    /// Returns the usage of all processes together.
    pub(crate) fn sum(&self) -> Usage {
        let mut sum = Usage::default();
        for usage in self
            .0
            .iter()
            .filter_map(|server| Usage::of(server.pid).ok())
        {
            sum.cpu_nanos += usage.cpu_nanos;
            sum.rss_bytes += usage.rss_bytes;
            sum.pss_bytes += usage.pss_bytes;
            sum.descriptors += usage.descriptors;
        }
        sum
    }

    /// Whether the memory of no process has grown. A server that had used more before hides the
    /// memory of new connections.
    pub(crate) fn hide_growth(&self) -> bool {
        let has_grown = |server: &Server| server.end.rss_bytes > server.before.rss_bytes;
        !self.0.is_empty() && !self.0.iter().any(has_grown)
    }

    /// Descriptors of all processes before connections were opened.
    pub(crate) fn descriptors_before(&self) -> u64 {
        self.0.iter().map(|server| server.before.descriptors).sum()
    }

    pub(crate) fn into_list(self) -> Vec<Server> {
        self.0
    }

    /// A process that has exited keeps the last values.
    fn look(
        &mut self,
        keep: impl Fn(&mut Server, Usage),
        look: impl Fn(u32) -> anyhow::Result<Usage>,
    ) {
        for server in &mut self.0 {
            if let Ok(usage) = look(server.pid) {
                keep(server, usage);
            }
        }
    }
}

fn first_look(pid: u32, name: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<Server> {
    let look = || anyhow::Ok((name()?, Usage::of(pid)?));
    let (name, before) = look().context("no such process")?;
    Ok(Server {
        pid,
        name,
        before,
        begin: before,
        end: before,
    })
}
