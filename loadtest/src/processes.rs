//! Several loader processes on this machine: starts them, releases them together, merges their
//! results.
//!
//! A loader that was started by another writes `ready` to standard output once it is set up, and waits
//! for `go` on standard input.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::Ordering::Relaxed,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};

use crate::{
    clock,
    options::Common,
    outcome::Outcome,
    run::{check, targets},
    servers::{Observed, USED_BEFORE},
    watch::Watch,
};

struct Loader {
    child: Child,
    output: BufReader<ChildStdout>,
}

/// Runs this command line in `--processes` processes and adds their results.
pub(crate) fn run(common: &Common) -> anyhow::Result<Outcome> {
    check(&targets(common)?, common)?;
    let mut observed = Observed::new(common)?;
    let watch = Watch::start(observed.servers.pids(), !common.quiet);
    let progress = &watch.progress;
    progress.enter("connecting, in several processes", None);
    let mut loaders = Vec::new();
    for part in 0..common.processes {
        loaders.push(Loader::start(part, common.processes)?);
    }
    for loader in &mut loaders {
        loader.wait_until_ready()?;
    }
    for loader in &mut loaders {
        loader.go()?;
    }
    thread::sleep(common.warm_up);
    let begin = clock::now();
    observed.begin();
    progress.enter(
        "measuring, in several processes",
        Some(begin + clock::span(common.duration)),
    );
    // All loaders may finish early, for example after a flood.
    while clock::now() < begin + clock::span(common.duration)
        && !loaders.iter_mut().all(Loader::has_ended)
    {
        thread::sleep(POLL);
    }
    observed.end();
    let mut outcome: Option<Outcome> = None;
    for loader in loaders {
        let part = loader.result()?;
        progress.deliveries.fetch_add(part.ledger.arrived, Relaxed);
        match &mut outcome {
            Some(outcome) => outcome.merge(&part)?,
            None => outcome = Some(part),
        }
    }
    let mut outcome = outcome.context("no loader ran")?;
    if outcome.scenario == "idle" && observed.servers.hide_growth() {
        outcome.limit(USED_BEFORE);
    }
    observed.finish(&mut outcome);
    let own = watch.end(begin);
    // The loaders recorded deliveries, this process the servers' usage.
    for point in &mut outcome.series {
        if let Some(near) = point.nearest(&own) {
            point.server_rss_bytes = near.server_rss_bytes;
            point.server_cpu_nanos = near.server_cpu_nanos;
        }
    }
    Ok(outcome)
}

/// Waits for the other loaders between set-up and traffic. A single loader does not wait.
pub(crate) fn wait_for_others(common: &Common) -> anyhow::Result<()> {
    if common.part.is_none() {
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{READY}").and_then(|()| stdout.flush())?;
    let mut line = String::new();
    let heard = std::io::stdin().lock().read_line(&mut line);
    heard.context("the first loader is gone")?;
    if line.trim() != GO {
        bail!("the first loader gave up");
    }
    Ok(())
}

impl Loader {
    fn start(part: u32, of: u32) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut child = Command::new(program)
            .args(std::env::args_os().skip(1))
            .arg(format!("--part={part}/{of}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("another loader process")?;
        let output = child.stdout.take().context("its output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.trim() != READY {
            let status = self.child.wait()?;
            bail!("a loader process failed to start ({status})");
        }
        Ok(())
    }

    fn go(&mut self) -> anyhow::Result<()> {
        let mut input = self.child.stdin.take().context("its input")?;
        writeln!(input, "{GO}").context("a loader process has exited")
    }

    fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    fn result(mut self) -> anyhow::Result<Outcome> {
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        serde_json::from_str(&text).with_context(|| format!("a loader process failed ({status})"))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if !self.has_ended() {
            // It may exit by itself at the same time.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

const READY: &str = "ready";
const GO: &str = "go";
const POLL: Duration = Duration::from_millis(20);
