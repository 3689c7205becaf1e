//! How nodes are started: programs of Roomcast with settings of the run, or servers of Node.js.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, bail};

use super::{Addresses, Mode, PRIMARY, Process, Stage, command, wait_until};

/// Which servers the three nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Servers {
    /// Roomcast
    Roomcast,
    /// Node.js with @socket.io/redis-adapter
    NodeClassic,
    /// Node.js with @socket.io/redis-streams-adapter and connection state recovery
    NodeStreams,
}

impl Stage {
    /// Starts a node with its settings as a file and its log beside it.
    pub(super) fn node_process(
        &self,
        name: &str,
        proxy: usize,
        change: impl FnOnce(&mut Command),
    ) -> anyhow::Result<(Process, Addresses)> {
        let settings = self.folder.join(format!("{name}.toml"));
        fs::write(&settings, self.settings())?;
        let over = self.programs.drain_over;
        let mut command = command(&self.programs.roomcast);
        command
            .args([
                "serve",
                "--listen=127.0.0.1:0",
                "--internal-listen=127.0.0.1:0",
            ])
            .args(["--workers=1", "--drain-grace=1s"])
            .arg(format!("--drain-over={}ms", over.as_millis()))
            .arg(format!("--drain-timeout={}ms", (over + DRAIN).as_millis()))
            .args([
                "--ping-interval=2s",
                "--ping-timeout=3s",
                "--redis-required=false",
            ])
            .arg(format!("--redis={}", self.redis_url(proxy)))
            .arg(format!("--config={}", settings.display()));
        if self.setup.has_balancer {
            command
                .arg(format!("--cluster-key={KEY}"))
                .arg("--relay-listen=127.0.0.1:0");
        }
        change(&mut command);
        self.await_node(name, &mut command)
    }

    /// Starts a server of Node.js with this adapter, `classic` or `streams`.
    pub(super) fn node_js_process(
        &self,
        name: &str,
        proxy: usize,
        adapter: &str,
    ) -> anyhow::Result<(Process, Addresses)> {
        let script = &self.programs.node_js;
        if !script.exists() {
            bail!("there is no {}: see --node-server", script.display());
        }
        let mut command = command("node");
        command
            .arg(script)
            .arg("--listen=127.0.0.1:0")
            .arg(format!("--adapter={adapter}"))
            .arg(format!("--redis={}", self.redis_url(proxy)));
        self.await_node(name, &mut command)
    }

    fn redis_url(&self, proxy: usize) -> String {
        match &self.sentinel {
            Some((_, address)) => format!("redis+sentinel://{address}/{PRIMARY}"),
            None => format!("redis://{}", self.proxies[proxy].address()),
        }
    }

    /// Starts a process, and waits until it logs its addresses.
    fn await_node(
        &self,
        name: &str,
        command: &mut Command,
    ) -> anyhow::Result<(Process, Addresses)> {
        let log: PathBuf = self.folder.join(format!("{name}.log"));
        let from = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let mut process = Process::start(name, command, &log)?;
        let mut found = None;
        wait_until(name, || {
            if process.has_ended()? {
                bail!("{name} has ended: see {}", log.display());
            }
            let text = fs::read(&log)?;
            let own = String::from_utf8_lossy(&text[from as usize..]);
            found = addresses(&own);
            Ok(found.is_some())
        })?;
        Ok((process, found.context("a node without an address")?))
    }

    fn settings(&self) -> String {
        let mut text = format!("[[api.keys]]\nname = \"chaos\"\nhash = \"sha256:{KEY_HASH}\"\n");
        text.push_str("namespaces = [\"*\"]\nverbs = [\"emit\"]\n");
        for mode in &self.modes {
            let name = mode.namespace();
            let section = format!("\n[namespaces.\"{name}\"");
            text.push_str(&format!(
                "{section}]\naccess = \"open\"\nclient_rooms = true\n"
            ));
            if *mode != Mode::Plain {
                text.push_str(&format!("{section}.journal]\n"));
            }
            if *mode == Mode::Recovery {
                text.push_str(&format!("{section}.recovery]\n"));
            }
        }
        text
    }
}

/// The addresses that a node has logged.
fn addresses(log: &str) -> Option<Addresses> {
    let line = log
        .lines()
        .find(|line| line.contains("address=") && line.contains("internal="))?;
    let field = |name| -> Option<SocketAddr> {
        let (_, rest) = line.split_once(name)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    Some(Addresses {
        clients: field("address=")?,
        internal: field("internal=")?,
    })
}

/// Time of a drain beside that over which a node closes its connections.
const DRAIN: Duration = Duration::from_secs(30);

/// The key of the HTTP API, and of requests that nodes relay. It is no secret, because the nodes of a run listen on
/// this machine only.
pub(crate) const KEY: &str = "chaos-key-of-the-table-of-faults";
/// Its SHA-256.
const KEY_HASH: &str = "a762cad2d276f9708503e39066dbaacd297aeee0681612ead902b3419a939b02";
