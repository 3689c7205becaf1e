//! `roomcast doctor`: checks the host, Redis, and the way of clients through a balancer.
//!
//! Each check is a function that returns a [`Finding`], so one that fails never hides the
//! others. All of them take the settings that `serve` would have, and none changes
//! anything.
//!
//! ```text
//!   host  ──► limits of the kernel, from /proc
//!   redis ──► connection ──► rights, clock, memory, buffers, patterns
//!                 └── fails: the rest is left out
//!   url   ──► round trips, see `url`
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "the clocks of the host are what is checked and measured by"
)]

mod addresses;
mod client;
mod host;
mod redis;
mod report;
mod url;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Args;
use tokio::runtime::Builder;

use self::{
    report::{Finding, Report, Status},
    url::PublicUrl,
};
use super::{cluster, config::Config};

const EXIT_STATUS: &str = "\
Exit status:
   0  no check failed; there may be warnings
   1  a check failed
   2  wrong options";

/// The options of `roomcast doctor`, in addition to those of `serve`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = EXIT_STATUS)]
pub(crate) struct DoctorOptions {
    /// Public URL of the server, for round trips through the balancer
    ///
    /// Makes about ten connections. A URL without a path gets that of --path.
    // An error must not show a password in it.
    #[arg(long, value_name = "URL", hide_env_values = true)]
    url: Option<PublicUrl>,

    /// With --url, also wait for a ping of the server, which reveals short timeouts of the balancer
    ///
    /// Takes the ping interval, 25 s by default.
    #[arg(long, requires = "url")]
    wait: bool,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub(crate) config: Config,
}

/// Runs all checks and prints them. The exit status reports whether one failed.
pub(crate) fn doctor(options: &DoctorOptions) -> io::Result<ExitCode> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let report = Report(runtime.block_on(examine(options)));
    let text = match options.json {
        true => format!("{}\n", report.to_json()),
        false => report.to_string(),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(match report.has_failed() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

async fn examine(options: &DoctorOptions) -> Vec<Finding> {
    let config = &options.config;
    let mut findings = host::findings(config);
    match cluster::redis(&config.redis, &config.cluster) {
        Some(settings) => findings.extend(redis::findings(&settings).await),
        None => findings.push(Finding::new(
            "redis",
            "connection",
            Status::Ok,
            "not used (--redis off): this node is not part of a cluster",
        )),
    }
    if let Some(url) = &options.url {
        let endpoint = url.endpoint(&config.protocol.path);
        findings.extend(url::findings(endpoint, options.wait).await);
        findings.extend(addresses::finding(config.listen.internal_listen));
    }
    findings
}
