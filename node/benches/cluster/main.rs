//! What a cluster over Redis costs, against bare floors and against Node.js servers with
//! Socket.IO's own Redis adapters.
//!
//! Every figure is CPU time per unit of work, taken in one run in which the servers take turns.
//! Absolute times differ from machine to machine and from hour to hour; the ratios hold. A message
//! lost, doubled, out of order or changed fails its run, whose figures are then not printed.
//!
//! `cargo bench -p roomcast --bench cluster` measures everything, with Redis servers of its own.
//! The Node.js servers need the packages of the client tests; without them they are left out. The
//! program is also the servers that it measures.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod bus_floor;
mod ear;
mod message;
mod node;
mod peer;
mod publish_floor;
mod quiet;
mod redis;
mod report;
mod resp;
mod scenario;
mod table;

// The parts that both benchmarks need are those of `fan_out`.
#[path = "../fan_out/clients.rs"]
#[expect(dead_code, reason = "some of it only `fan_out` needs")]
mod clients;
#[path = "../fan_out/floor.rs"]
#[expect(dead_code, reason = "`bus_floor` serves in its place")]
mod floor;
#[path = "../fan_out/ledger.rs"]
mod ledger;
#[path = "../fan_out/measure.rs"]
#[expect(dead_code, reason = "some of it only `fan_out` needs")]
mod measure;
#[path = "../fan_out/payload.rs"]
mod payload;
#[path = "../fan_out/wire.rs"]
mod wire;

use std::io;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::table::TableArgs;

/// As in the released program, whose figures these are.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(name = "cluster", args_conflicts_with_subcommands = true)]
#[command(about = "Measures Roomcast over Redis against bare floors and Node.js servers")]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    table: TableArgs,
    /// Cargo gives this to every benchmark.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

/// The servers, which the program starts itself.
#[derive(Subcommand)]
enum Role {
    /// Run the bare server that hears what others publish
    #[command(hide = true)]
    BusFloor(PeerArgs),
    /// Run the bare publisher
    #[command(hide = true)]
    PublishFloor(PeerArgs),
    /// Run the server under test
    #[command(hide = true)]
    Node(PeerArgs),
}

#[derive(Args)]
struct PeerArgs {
    /// Port on 127.0.0.1
    #[arg(long)]
    port: u16,
    /// Port of Redis on 127.0.0.1
    #[arg(long)]
    redis: u16,
    /// Speak as Node's sharded adapter does
    #[arg(long)]
    sharded: bool,
    /// What the names of all rooms here begin with
    #[arg(long, default_value = "")]
    rooms: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.role {
        None => table::run(&cli.table),
        Some(role) => serve(role).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(role: &Role) -> io::Result<()> {
    measure::raise_descriptor_limit()?;
    let signal = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(signal)?;
    match role {
        Role::BusFloor(args) => bus_floor::serve(args),
        Role::PublishFloor(args) => publish_floor::serve(args),
        Role::Node(args) => node::serve(args),
    }
}
