//! Resource usage of the processes, and the metrics, that the user named.

use anyhow::Context as _;

use crate::{
    gauge::Gauge,
    options::{Common, Named},
    outcome::{Outcome, Reading, Server},
    system::{self, Usage},
};

/// Everything that is observed from outside during a run; nothing by default.
#[derive(Default)]
pub(crate) struct Observed {
    pub(crate) servers: Servers,
    others: Servers,
    gauges: Vec<(Gauge, Reading)>,
}

impl Observed {
    /// Looks at everything for the first time.
    pub(crate) fn new(common: &Common) -> anyhow::Result<Self> {
        let servers = common
            .server_pid
            .iter()
            .map(|pid| first_look(*pid, None).with_context(|| format!("--server-pid {pid}")));
        let others = common.process.iter().map(|Named { name, pid }| {
            first_look(*pid, Some(name)).with_context(|| format!("--process {name}={pid}"))
        });
        let gauges = common.gauge.iter();
        let gauges = gauges.map(|gauge| Ok((gauge.clone(), gauge.first_reading()?)));
        Ok(Self {
            servers: Servers(servers.collect::<anyhow::Result<_>>()?),
            others: Servers(others.collect::<anyhow::Result<_>>()?),
            gauges: gauges.collect::<anyhow::Result<_>>()?,
        })
    }

    /// The measured window begins.
    pub(crate) fn begin(&mut self) {
        self.servers.begin();
        self.others.begin();
    }

    /// The measured window ends.
    pub(crate) fn end(&mut self) {
        self.servers.end();
        self.others.end();
    }

    /// Reads the metrics again, and adds everything to the result.
    pub(crate) fn finish(self, outcome: &mut Outcome) {
        outcome.servers = self.servers.0;
        outcome.others = self.others.0;
        let readings = self.gauges.into_iter().map(|(gauge, reading)| Reading {
            // A server that has exited has no last value.
            after: gauge.read().ok(),
            ..reading
        });
        outcome.gauges = readings.collect();
    }
}

#[derive(Default)]
pub(crate) struct Servers(Vec<Server>);

/// Limitation if memory did not grow.
pub(crate) const USED_BEFORE: &str =
    "memory of an earlier run, which hides growth: use a fresh server";

impl Servers {
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.0.iter().map(|server| server.pid).collect()
    }

    /// Records usage after the connections that do not count.
    pub(crate) fn before(&mut self) {
        self.look(|server, usage| server.before = usage, Usage::of);
    }

    /// Records usage at the begin of the window, without expensive values.
    fn begin(&mut self) {
        self.look(|server, usage| server.begin = usage, Usage::glance);
    }

    /// Records usage at the end of the window.
    fn end(&mut self) {
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

/// Reads a process for the first time. Without a name, it has that of the kernel.
fn first_look(pid: u32, name: Option<&str>) -> anyhow::Result<Server> {
    let look = || {
        let name = name.map_or_else(|| system::name(pid), |name| Ok(name.to_owned()));
        anyhow::Ok((name?, Usage::of(pid)?))
    };
    let (name, before) = look().context("no such process")?;
    Ok(Server {
        pid,
        name,
        before,
        begin: before,
        end: before,
    })
}
