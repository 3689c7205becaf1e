//! What a delivery, an echo, a connection and an idle socket cost, against a bare floor.
//!
//! Every figure is a ratio of server CPU time in one run: the server under test and a
//! single-threaded epoll server that sends the same bytes take turns, each pinned to one core,
//! with the load generator on another. Absolute times differ from machine to machine and from
//! hour to hour; the ratios are what the bars are about. A message lost, doubled, out of order or
//! changed fails the run.
//!
//! The generator spins instead of sleeping while nothing has arrived: a sleeping one makes the
//! server pay for waking it with some of its sends, and how many is chance, not the server's merit.
//!
//! `cargo bench --bench fan_out` measures everything. The same program is the floor (`floor`),
//! the server under test (`roomcast`) and the generator for a server that runs already (`load`).

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod child;
mod clients;
mod floor;
mod ledger;
mod measure;
mod payload;
mod report;
mod roomcast;
mod scenario;
mod table;
mod wire;

use std::io;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::table::TableArgs;

/// As in the released program, whose figures these are.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(name = "fan_out", args_conflicts_with_subcommands = true)]
#[command(about = "Measures Roomcast against a bare epoll server")]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    table: TableArgs,
    /// Cargo gives this to every benchmark.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Role {
    /// Run the bare server that is the unit of every ratio
    Floor(ServerArgs),
    /// Run the server under test
    Roomcast {
        #[command(flatten)]
        server: ServerArgs,
        /// Worker threads
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
    /// Drive a server that runs already with one scenario, and print its figures as JSON
    Load(table::LoadArgs),
}

#[derive(Args)]
struct ServerArgs {
    /// Port on 127.0.0.1
    #[arg(long)]
    port: u16,
    /// End when the process that started this one ends.
    #[arg(long, hide = true)]
    with_parent: bool,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse() {
        Cli {
            role: None, table, ..
        } => table::run(&table),
        Cli {
            role: Some(Role::Load(load)),
            ..
        } => table::drive(&load),
        Cli {
            role: Some(Role::Floor(server)),
            ..
        } => prepare(&server)
            .and_then(|()| floor::serve(server.port))
            .map(|()| true),
        Cli {
            role: Some(Role::Roomcast { server, threads }),
            ..
        } => prepare(&server)
            .and_then(|()| roomcast::serve(server.port, threads))
            .map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fan_out: {error}");
            ExitCode::FAILURE
        }
    }
}

fn prepare(server: &ServerArgs) -> io::Result<()> {
    measure::raise_descriptor_limit()?;
    if server.with_parent {
        let signal = Some(rustix::process::Signal::KILL);
        rustix::process::set_parent_process_death_signal(signal)?;
    }
    Ok(())
}
