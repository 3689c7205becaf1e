//! The scenarios, one per subcommand.

mod echo;
mod joins;
mod rooms;
mod storm;

use crate::{options::Scenario, outcome::Outcome};

/// Runs a scenario in this process.
pub(crate) fn run(scenario: &Scenario) -> anyhow::Result<Outcome> {
    match scenario {
        Scenario::Idle(options) => rooms::idle(options),
        Scenario::FanOut(options) => rooms::fan_out(options),
        Scenario::Cluster(options) => rooms::cluster(options),
        Scenario::Emitter(options) => rooms::emitter(options),
        Scenario::Slow(options) => rooms::disturbed("slow", options, false),
        Scenario::Churn(options) => rooms::disturbed("churn", options, false),
        Scenario::Jitter(options) => rooms::disturbed("jitter", options, false),
        Scenario::Deploy(options) => rooms::deploy(options),
        Scenario::Soak(options) => rooms::disturbed("soak", options, true),
        Scenario::Echo(options) => echo::run(options),
        Scenario::Joins(options) => joins::run(options),
        Scenario::Storm(options) => storm::run(options),
    }
}
