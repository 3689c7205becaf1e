//! The scenarios, one per subcommand.

mod echo;
mod joins;
mod rooms;
mod storm;

use crate::{failure::Failure, options::Command, outcome::Outcome};

/// Runs the scenario of a command in this process.
pub(crate) fn run(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Idle(options) => rooms::idle(options),
        Command::FanOut(options) => rooms::fan_out(options),
        Command::Cluster(options) => rooms::cluster(options),
        Command::Emitter(options) => rooms::emitter(options),
        Command::Slow(options) => rooms::slow(options),
        Command::Churn(options) => rooms::churn(options),
        Command::Jitter(options) => rooms::jitter(options),
        Command::Drain(options) => rooms::drain(options),
        Command::Deploy(options) => rooms::deploy(options),
        Command::Soak(options) => rooms::soak(options),
        Command::Echo(options) => echo::run(options),
        Command::Joins(options) => joins::run(options),
        Command::Storm(options) => storm::run(options),
        Command::Chaos(_) | Command::Merge(_) | Command::Compare(_) => {
            Err(Failure::Arguments("this is no scenario".to_owned()).into())
        }
    }
}
