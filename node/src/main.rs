//! The program `roomcast`: reads the command line and starts the gateway.
//!
//! It owns the parts that a process has once: the allocator, the log, the runtime and the
//! exit status.

mod gateway;

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use gateway::{Config, ConfigJob, Job};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let (config, is_demo) = match gateway::parse(env::args_os()) {
        Ok(Job::Serve(config)) => (*config, false),
        Ok(Job::Demo(demo)) => ((*demo).into(), true),
        Ok(Job::Emit(options)) => return gateway::emit(&options),
        Ok(Job::Token(options)) => return status(gateway::print_token(&options)),
        Ok(Job::Doctor(options)) => {
            return gateway::doctor(&options).unwrap_or_else(|error| status(Err(error)));
        }
        Ok(Job::Drain(options)) => return status(gateway::drain(&options)),
        Ok(Job::Config(ConfigJob::Check(config))) => return check(&config),
        Ok(job) => return status(print(job)),
        Err(usage) => usage.exit(),
    };
    let file = config.source.config.0.clone();
    // Only for jobs that serve: the others print to a terminal.
    let log = gateway::Log::start(&config.operation);
    // Before the first connection, since the limit decides how many clients fit.
    gateway::raise_file_limit();
    match serve(config, is_demo, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Independent of the level of the log, which may be off.
            log.write_line(&format!("error: {}", error.text(file.as_deref())));
            ExitCode::from(error.status())
        }
    }
}

fn serve(config: Config, is_demo: bool, log: &gateway::Log) -> Result<(), gateway::RunError> {
    let runtime = gateway::runtime(config.operation.workers)?;
    let outcome = runtime.block_on(gateway::run(config, is_demo, log));
    // After an interrupted drain, tasks may still hold connections. The process ends nevertheless.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

/// Carries out the commands that only print.
fn print(job: Job) -> io::Result<()> {
    let mut out = io::stdout();
    match job {
        Job::Config(ConfigJob::Default) => out.write_all(gateway::default_file().as_bytes()),
        Job::Config(ConfigJob::Show(config)) => out.write_all(gateway::show(&config).as_bytes()),
        Job::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut gateway::command(), "roomcast", &mut text);
            out.write_all(&text)
        }
        Job::Version => out.write_all(version().as_bytes()),
        Job::Options => gateway::print_table(),
        Job::Serve(_)
        | Job::Demo(_)
        | Job::Emit(_)
        | Job::Doctor(_)
        | Job::Drain(_)
        | Job::Config(ConfigJob::Check(_))
        | Job::Token(_) => Ok(()),
    }
}

/// Reports whether `serve` would accept the settings, with its exit status if not.
fn check(config: &Config) -> ExitCode {
    match gateway::check(config) {
        Ok(()) => status(io::stdout().write_all(b"the settings are valid\n")),
        Err(error) => {
            let text = error.text(config.source.config.0.as_deref());
            let _ = writeln!(io::stderr(), "error: {text}");
            ExitCode::from(error.status())
        }
    }
}

/// The version, the commit that the build was given, and the platform.
fn version() -> String {
    let commit = option_env!("ROOMCAST_REVISION").filter(|commit| !commit.is_empty());
    format!(
        "roomcast {}\ncommit   {}\nplatform {}-{}\n",
        env!("CARGO_PKG_VERSION"),
        commit.unwrap_or("unknown"),
        env::consts::ARCH,
        env::consts::OS,
    )
}

/// An error goes to standard error without the log, which these commands have not
/// started.
fn status<E: std::fmt::Display>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
