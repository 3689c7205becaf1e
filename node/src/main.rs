//! The program `roomcast`: reads the command line and starts the gateway.
//!
//! It owns the parts that a process has once: the allocator, the log, the runtime and the exit status.

mod gateway;

use std::{env, io::Write, process::ExitCode, time::Duration};

use gateway::{Config, Job};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let (config, is_demo) = match gateway::parse(env::args_os()) {
        Ok(Job::Serve(config)) => (*config, false),
        Ok(Job::Demo(demo)) => ((*demo).into(), true),
        Ok(Job::Emit(options)) => return gateway::emit(&options),
        Ok(Job::Options) => return status(gateway::print_table()),
        Err(usage) => usage.exit(),
    };
    let log = gateway::Log::start(config.operation.log_format, &config.operation.log_level);
    gateway::raise_file_limit();
    match serve(config, is_demo, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Independent of the level of the log, which may be off.
            log.write_line(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config, is_demo: bool, log: &gateway::Log) -> Result<(), gateway::RunError> {
    let runtime = gateway::runtime(config.operation.workers)?;
    let outcome = runtime.block_on(gateway::run(config, is_demo, log.dropped_lines()));
    // After an interrupted drain, tasks may still hold connections. The process ends nevertheless.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

fn status<E: std::fmt::Display>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
