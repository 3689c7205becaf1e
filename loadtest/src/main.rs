//! `roomcast-loadtest`: load, latency and an exact account of every message, for any Socket.IO
//! server.
//!
//! A scenario (`scenario`) drives the tool's own clients (`swarm`, `codec`), the ledger accounts
//! for each message, and `report` shows the result. README.md describes its use.

mod chaos;
mod clock;
mod codec;
mod drive;
mod external;
mod failure;
mod figures;
mod finder;
mod gauge;
mod histogram;
mod label;
mod ledger;
mod options;
mod outcome;
mod population;
mod processes;
mod program;
mod redis;
mod report;
mod run;
mod scenario;
mod servers;
mod swarm;
mod system;
mod target;
mod watch;

use std::{fs, io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;

use failure::Failure;
use options::{Command, Options, Scenario};
use outcome::Outcome;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options.command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            // If standard error is closed, the error cannot be reported anywhere.
            drop(writeln!(std::io::stderr(), "roomcast-loadtest: {error:#}"));
            let failure = error.downcast_ref::<Failure>();
            ExitCode::from(failure.map_or(FAILED, Failure::status))
        }
    }
}

fn run(command: &Command) -> anyhow::Result<u8> {
    match command {
        Command::Merge(options) => {
            let mut results = read_all(&options.results)?.into_iter();
            let (_, mut sum) = results.next().context("there is nothing to merge")?;
            for (path, other) in results {
                sum.merge(&other).with_context(|| path.clone())?;
            }
            publish(&sum, options.json.as_deref(), options.html.as_deref())
        }
        Command::Compare(options) => {
            let (text, json) = report::compare(&read_all(&options.results)?)?;
            if let Some(path) = &options.json {
                write_file(path, &format!("{json:#}\n"))?;
            }
            say(&text)?;
            Ok(0)
        }
        Command::Chaos(options) => Ok(if chaos::run(options)? { 0 } else { FAULTY }),
        Command::Report(options) => {
            write_file(&options.html, &report::page(&read_all(&options.results)?))?;
            Ok(0)
        }
        Command::Scenario(scenario) => measure(scenario),
    }
}

/// Runs a scenario and publishes its result, or passes it to the parent loader.
fn measure(scenario: &Scenario) -> anyhow::Result<u8> {
    let common = scenario.common();
    if common.part.is_some() {
        let outcome = scenario::run(scenario)?;
        say(&serde_json::to_string(&outcome)?)?;
        return Ok(0);
    }
    let outcome = if common.processes > 1 {
        processes::run(common)?
    } else {
        scenario::run(scenario)?
    };
    publish(&outcome, common.json.as_deref(), common.html.as_deref())
}

fn publish(outcome: &Outcome, json: Option<&str>, html: Option<&str>) -> anyhow::Result<u8> {
    if let Some(path) = json {
        write_file(path, &serde_json::to_string(outcome)?)?;
    }
    if let Some(path) = html {
        let results = [(outcome.scenario.clone(), outcome.clone())];
        write_file(path, &report::page(&results))?;
    }
    say(&report::table(outcome))?;
    Ok(if !outcome.is_clean() {
        FAULTY
    } else if outcome.limited_by.is_empty() {
        0
    } else {
        LIMITED
    })
}

fn read_all(paths: &[String]) -> anyhow::Result<Vec<(String, Outcome)>> {
    let results = paths
        .iter()
        .map(|path| Ok((path.clone(), Outcome::read(path)?)));
    results.collect()
}

fn write_file(path: &str, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| path.to_owned())
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").context("standard output")
}

const FAILED: u8 = 1;
const FAULTY: u8 = 4;
const LIMITED: u8 = 5;
