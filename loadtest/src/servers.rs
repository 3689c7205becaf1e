//! The server processes that the user named: what they used, and when.

use anyhow::Context as _;

use crate::{
    options::Named,
    outcome::Server,
    system::{self, Usage},
};

pub(crate) struct Servers(Vec<Server>);

/// What limits a measurement of memory that did not grow.
pub(crate) const USED_BEFORE: &str =
    "memory that the server had used before: start it freshly, since this hides growth";

impl Servers {
    /// Looks at each process for the first time: an error names one that is not there.
    pub(crate) fn new(pids: &[u32]) -> anyhow::Result<Self> {
        let servers = pids.iter().map(|pid| {
            let name = || system::name(*pid);
            first_look(*pid, name).with_context(|| format!("--server-pid {pid}"))
        });
        servers.collect::<anyhow::Result<_>>().map(Self)
    }

    /// The same for processes that the user has given names of their own.
    pub(crate) fn named(processes: &[Named]) -> anyhow::Result<Self> {
        let servers = processes.iter().map(|Named { name, pid }| {
            first_look(*pid, || Ok(name.clone())).with_context(|| format!("--process {name}={pid}"))
        });
        servers.collect::<anyhow::Result<_>>().map(Self)
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.0.iter().map(|server| server.pid).collect()
    }

    /// The connections that are not to count are there.
    pub(crate) fn before(&mut self) {
        self.look(|server, usage| server.before = usage, Usage::of);
    }

    /// The measured window begins. Looks only at what is cheap.
    pub(crate) fn begin(&mut self) {
        self.look(|server, usage| server.begin = usage, Usage::glance);
    }

    /// The measured window ends.
    pub(crate) fn end(&mut self) {
        self.look(|server, usage| server.end = usage, Usage::glance);
        // Looking at memory in full takes long, and is not part of the window.
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

    /// Usage of all of them together, in full.
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

    /// Whether the memory of none of them grew since it was first looked at: a server that had used
    /// more before hides what connections take now.
    pub(crate) fn hide_growth(&self) -> bool {
        let has_grown = |server: &Server| server.end.rss_bytes > server.before.rss_bytes;
        !self.0.is_empty() && !self.0.iter().any(has_grown)
    }

    /// Descriptors of all of them together, before the connections were opened.
    pub(crate) fn descriptors_before(&self) -> u64 {
        self.0.iter().map(|server| server.before.descriptors).sum()
    }

    pub(crate) fn into_list(self) -> Vec<Server> {
        self.0
    }

    /// A process that is gone keeps what was seen last.
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
    let (name, before) = look().context("no such process to look at")?;
    Ok(Server {
        pid,
        name,
        before,
        begin: before,
        end: before,
    })
}
