//! The run of the whole table: floor and server under test in turns, scenario by scenario.

use std::fs;
use std::io::{self, Write as _};
use std::time::Duration;

use clap::Args;

use crate::child::{Cores, Program, Running};
use crate::clients::Wait;
use crate::measure;
use crate::report::{self, Report};
use crate::scenario::{Drive, NextCast, Sample, Scenario};

#[derive(Args)]
pub(crate) struct TableArgs {
    /// Short windows and three rounds: good for a look, too short for a verdict
    #[arg(long)]
    quick: bool,
    /// Only this scenario; may be repeated. `one` means both sizes
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Runs of each server per scenario
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
    /// Worker threads of the server under test
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Leave every process on all cores: its ledger counts, its ratios mean little
    #[arg(long)]
    unpinned: bool,
    /// Whether the generator sleeps or spins while nothing has arrived [default: spin, unpinned: sleep]
    #[arg(long, value_enum)]
    wait: Option<Wait>,
    /// Measure another server instead: a command in which {port} stands for the port
    #[arg(long, value_name = "CMD")]
    server_cmd: Option<String>,
    /// Write every run's figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
}

#[derive(Args)]
pub(crate) struct LoadArgs {
    /// Port of the server on 127.0.0.1
    #[arg(long)]
    port: u16,
    /// Its process, whose CPU time and memory are read
    #[arg(long)]
    pid: u32,
    /// Name of the scenario
    #[arg(long, value_name = "NAME")]
    scenario: String,
    /// Length of the window
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Whether the generator sleeps or spins while nothing has arrived
    #[arg(long, value_enum, default_value = "spin")]
    wait: Wait,
    /// Core to run on
    #[arg(long)]
    core: Option<usize>,
}

/// One line of the programme, and what it must reach.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) scenario: Scenario,
    /// Server CPU per unit, as a multiple of the floor's.
    pub(crate) cpu_bar: Option<f64>,
    /// 99th percentile of the latency, as a multiple of the floor's.
    pub(crate) p99_bar: Option<f64>,
    /// Resident bytes per connection.
    pub(crate) memory_bar: Option<f64>,
}

/// Both servers' samples of one round.
pub(crate) struct Round {
    pub(crate) floor: Sample,
    pub(crate) subject: Sample,
}

/// Measures what was asked for and prints it; says whether every ledger was clean.
pub(crate) fn run(args: &TableArgs) -> io::Result<bool> {
    let rows = chosen(&args.scenario)?;
    let descriptors = measure::raise_descriptor_limit()?;
    if descriptors < DESCRIPTORS_NEEDED {
        eprintln!("only {descriptors} descriptors may be open: `idle` will not get far");
    }
    // Read before the generator is pinned, when it still sees all cores.
    let machine = measure::machine();
    let (cores, placing) = if args.unpinned {
        (None, String::from("unpinned"))
    } else {
        pin()
    };
    let subject = match &args.server_cmd {
        Some(command) => Program::External(command.clone()),
        None => Program::Roomcast {
            threads: args.threads,
        },
    };
    let rounds = args.rounds.unwrap_or(if args.quick { 3 } else { 5 });
    let wait = match args.wait {
        Some(wait) => wait,
        None if cores.is_some() => Wait::Spin,
        None => Wait::Sleep,
    };
    let plan = Plan {
        subject: &subject,
        cores,
        quick: args.quick,
        wait,
    };
    let mut results = Vec::with_capacity(rows.len());
    for row in rows {
        let mut samples = Vec::new();
        for round in 1..=rounds {
            samples.push(plan.round(&row, round)?);
        }
        results.push((row, samples));
    }
    let report = Report {
        machine,
        placing,
        pinned: cores.is_some(),
        wait,
        subject: subject.name(),
        results: &results,
    };
    io::stdout()
        .lock()
        .write_all(report.markdown().as_bytes())?;
    if let Some(path) = &args.json {
        fs::write(path, report.json().to_string())?;
    }
    Ok(report.is_clean())
}

/// Drives one running server; says whether its ledger was clean.
pub(crate) fn drive(args: &LoadArgs) -> io::Result<bool> {
    measure::raise_descriptor_limit()?;
    if let Some(core) = args.core {
        measure::pin(core)?;
    }
    let mut clean = true;
    for row in chosen(std::slice::from_ref(&args.scenario))? {
        let sample = row.scenario.run(&Drive {
            port: args.port,
            pid: args.pid,
            warm_up: WARM_UP,
            window: Duration::try_from_secs_f64(args.seconds).map_err(io::Error::other)?,
            wait: args.wait,
        })?;
        clean &= sample.is_clean();
        writeln!(
            io::stdout().lock(),
            "{}",
            report::sample_json(row.name, &sample)
        )?;
    }
    Ok(clean)
}

struct Plan<'a> {
    subject: &'a Program,
    cores: Option<Cores>,
    quick: bool,
    wait: Wait,
}

impl Plan<'_> {
    fn round(&self, row: &Row, round: u16) -> io::Result<Round> {
        let floor = self.sample(row, &Program::Floor)?;
        let subject = self.sample(row, self.subject)?;
        let ratio = subject.cpu_per_unit_us() / floor.cpu_per_unit_us();
        eprintln!(
            "{} round {round}: floor {:.2}, {} {:.2} µs CPU per {}, ratio {ratio:.2}{}",
            row.name,
            floor.cpu_per_unit_us(),
            self.subject.name(),
            subject.cpu_per_unit_us(),
            row.unit,
            if floor.is_clean() && subject.is_clean() {
                ""
            } else {
                " — FAILED"
            },
        );
        Ok(Round { floor, subject })
    }

    /// A new process for every run: states that a process keeps for its life must not decide.
    fn sample(&self, row: &Row, program: &Program) -> io::Result<Sample> {
        let server = Running::start(program, self.cores)?;
        let drive = Drive {
            port: server.port(),
            pid: server.pid(),
            warm_up: WARM_UP,
            window: if self.quick { QUICK_WINDOW } else { WINDOW },
            wait: self.wait,
        };
        // A server that breaks off while it is set up has failed as one that loses a message has.
        Ok(row.scenario.run(&drive).unwrap_or_else(|error| Sample {
            fault: Some(error.to_string()),
            ..Sample::default()
        }))
    }
}

/// Puts this process on a core of its own, if there are two.
fn pin() -> (Option<Cores>, String) {
    let available = measure::cores().unwrap_or_default();
    let [server, load, ..] = available[..] else {
        return (
            None,
            String::from("UNPINNED: fewer than two cores, so ratios mean little"),
        );
    };
    match measure::pin(load) {
        Ok(()) => {
            let text = format!("server on core {server}, generator on core {load}");
            (Some(Cores { server, load }), text)
        }
        Err(error) => (None, format!("UNPINNED: the kernel refused ({error})")),
    }
}

fn chosen(names: &[String]) -> io::Result<Vec<Row>> {
    let is = |row: &Row, name: &str| {
        row.name == name
            || row
                .name
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('-'))
    };
    if let Some(unknown) = names
        .iter()
        .find(|name| !programme().iter().any(|row| is(row, name)))
    {
        let known: Vec<&str> = programme().iter().map(|row| row.name).collect();
        return Err(io::Error::other(format!(
            "no scenario {unknown}; there are {known:?}"
        )));
    }
    let wanted = |row: &Row| names.is_empty() || names.iter().any(|name| is(row, name));
    Ok(programme().into_iter().filter(wanted).collect())
}

/// Everything that is measured, in the order of the table, with the bar of each figure.
///
/// In `small-rooms` the first member of each room sends, and sends again when its own message came
/// back to it; the nine others may have theirs later. Latency is counted at all ten members, from
/// just before the sender's `send`. With 200 such senders the server is never idle, so latency is
/// that of a saturated server. In `echo` every client sends again when its answer is there.
fn programme() -> Vec<Row> {
    let room = |members, outstanding| Scenario::Cast {
        rooms: 1,
        members,
        next: NextCast::Delivered { outstanding },
    };
    let row = |name, title, unit, scenario, cpu_bar| Row {
        name,
        title,
        unit,
        scenario,
        cpu_bar,
        p99_bar: None,
        memory_bar: None,
    };
    let small = Scenario::Cast {
        rooms: 200,
        members: 10,
        next: NextCast::Heard,
    };
    let idle = Scenario::Idle {
        warm_up: 200,
        connections: 10_000,
    };
    let one = "one broadcast outstanding";
    vec![
        row(
            "one-1000",
            one,
            "delivery, room of 1,000",
            room(1_000, 1),
            Some(1.10),
        ),
        row(
            "one-5000",
            one,
            "delivery, room of 5,000",
            room(5_000, 1),
            Some(1.10),
        ),
        row(
            "four",
            "four outstanding",
            "delivery, room of 1,000",
            room(1_000, 4),
            Some(0.35),
        ),
        Row {
            p99_bar: Some(1.5),
            ..row(
                "small-rooms",
                "200 rooms of 10",
                "delivery",
                small,
                Some(1.2),
            )
        },
        Row {
            p99_bar: Some(1.5),
            ..row(
                "echo",
                "echo with ack",
                "request",
                Scenario::Echo { clients: 200 },
                Some(1.2),
            )
        },
        row(
            "connect",
            "connect to first packet",
            "connection",
            Scenario::Connect { batch: 100 },
            Some(1.6),
        ),
        Row {
            memory_bar: Some(1_280.0),
            ..row("idle", "10,000 idle connections", "connection", idle, None)
        },
    ]
}

const WARM_UP: Duration = Duration::from_millis(500);
const WINDOW: Duration = Duration::from_millis(2500);
const QUICK_WINDOW: Duration = Duration::from_secs(1);

/// Ten thousand idle connections and what a process has open anyway.
const DESCRIPTORS_NEEDED: u64 = 10_400;
