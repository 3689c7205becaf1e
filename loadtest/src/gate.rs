//! Synchronises the loaders of one run between set-up and traffic.
//!
//! A loader that was started by another writes `ready` to standard output and waits for a line on
//! standard input. A single loader does not wait.

use std::io::{BufRead as _, Write as _};

use anyhow::{Context as _, bail};

pub(crate) struct Gate {
    is_part: bool,
}

pub(crate) const READY: &str = "ready";
pub(crate) const GO: &str = "go";

impl Gate {
    pub(crate) fn new(is_part: bool) -> Self {
        Self { is_part }
    }

    /// Waits for the other loaders.
    pub(crate) fn pass(&self) -> anyhow::Result<()> {
        if !self.is_part {
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
}
