//! The run of the whole table: scenario by scenario, the subjects in turns, round by round.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::measure;
use crate::peer::{Packages, Subject};
use crate::report::Report;
use crate::scenario::{Cores, Drive, Figure, Pace, Sample, Scenario};

#[derive(Args)]
pub(crate) struct TableArgs {
    /// Short windows: good for a look, too short for a verdict
    #[arg(long)]
    quick: bool,
    /// Only scenarios whose names begin so; may be repeated
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Runs of each subject per scenario
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// How often a run is made at most if other processes disturb it; the quietest one counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    tries: u16,
    /// Only the floors and Roomcast
    #[arg(long)]
    without_node: bool,
    /// Write every run's figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One scenario of the programme, and what it must reach.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) scenario: Scenario,
    /// The first one is what the others are compared with.
    pub(crate) subjects: Vec<Subject>,
    /// What Roomcast's first figure must not exceed, as a multiple of the first subject's.
    pub(crate) bar: Option<f64>,
}

/// One sample of each subject, in their order.
pub(crate) type Round = Vec<Sample>;

/// Measures what was asked for and prints it; says whether every ledger was clean.
pub(crate) fn run(args: &TableArgs) -> io::Result<bool> {
    let mut rows = chosen(&args.scenario)?;
    measure::raise_descriptor_limit()?;
    // Read before the generator is pinned, when it still sees all cores.
    let machine = measure::machine();
    let (cores, placing) = pin();
    let packages = if args.without_node {
        Err("not asked for".to_owned())
    } else {
        Packages::find()
    };
    if let Err(reason) = &packages {
        eprintln!("the Node.js servers are left out: {reason}");
        let is_there = |subject: &Subject| !matches!(subject, Subject::NodeJs { .. });
        rows.iter_mut()
            .for_each(|row| row.subjects.retain(is_there));
    }
    let drive = Drive {
        cores,
        warm_up: WARM_UP,
        window: if args.quick { QUICK_WINDOW } else { WINDOW },
        packages: packages.as_ref().ok(),
    };
    let mut results = Vec::with_capacity(rows.len());
    for row in rows {
        let rounds = (1..=args.rounds).map(|number| round(&row, number, args, &drive));
        let rounds: Vec<Round> = rounds.collect();
        results.push((row, rounds));
    }
    let report = Report {
        machine,
        placing,
        left_out: packages.err(),
        results: &results,
    };
    let mut out = io::stdout().lock();
    out.write_all(report.markdown().as_bytes())?;
    if let Some(path) = &args.json {
        fs::write(path, report.json().to_string())?;
    }
    Ok(report.is_clean())
}

fn round(row: &Row, number: u16, args: &TableArgs, drive: &Drive<'_>) -> Round {
    let sample = |subject: &Subject| {
        let sample = quietest(row, *subject, args, drive);
        let text = |figure: &Figure| format!("{:.2}", figure.value);
        let figures: Vec<String> = sample.figures.iter().map(text).collect();
        let note = match (&sample.fault, sample.is_clean()) {
            (Some(fault), _) => format!(" — FAILED: {fault}"),
            (None, false) => format!(" — FAILED: {:?}", sample.tally),
            (None, true) => format!("; others: {:.2} cores", sample.others),
        };
        let (name, subject) = (row.name, subject.name());
        eprintln!(
            "{name} round {number}: {subject}: {}{note}",
            figures.join(", ")
        );
        sample
    };
    row.subjects.iter().map(sample).collect()
}

/// Measures once more if others have disturbed it, but lets no failure pass.
fn quietest(row: &Row, subject: Subject, args: &TableArgs, drive: &Drive<'_>) -> Sample {
    let mut quietest = row.scenario.run(subject, drive);
    for _ in 1..args.tries {
        if !quietest.is_clean() || quietest.others <= QUIET {
            break;
        }
        let sample = row.scenario.run(subject, drive);
        if !sample.is_clean() || sample.others < quietest.others {
            quietest = sample;
        }
    }
    quietest
}

/// Puts this process on a core of its own, if there are two.
fn pin() -> (Option<Cores>, String) {
    let available = measure::cores().unwrap_or_default();
    let [servers, load, ..] = available[..] else {
        let text = "UNPINNED: fewer than two cores, so ratios mean little";
        return (None, text.to_owned());
    };
    match measure::pin(load) {
        Ok(()) => {
            let text = format!("servers on core {servers}, generator on core {load}");
            (Some(Cores { servers, load }), text)
        }
        Err(error) => (None, format!("UNPINNED: the kernel refused ({error})")),
    }
}

fn chosen(names: &[String]) -> io::Result<Vec<Row>> {
    let mut rows = programme();
    if let Some(unknown) = names
        .iter()
        .find(|name| !rows.iter().any(|row| row.name.starts_with(&***name)))
    {
        let known: Vec<&str> = rows.iter().map(|row| row.name).collect();
        let error = format!("no scenario {unknown}; there are {known:?}");
        return Err(io::Error::other(error));
    }
    let is_wanted = |row: &Row| names.iter().any(|name| row.name.starts_with(&**name));
    rows.retain(|row| names.is_empty() || is_wanted(row));
    Ok(rows)
}

/// Everything that is measured, in the order of the table.
fn programme() -> Vec<Row> {
    let receive = |nodes, rooms_each, members, pace| Scenario::Receive {
        nodes,
        rooms_each,
        members,
        pace,
    };
    let row = |name, title, scenario, subjects: &[Subject], bar| Row {
        name,
        title,
        scenario,
        subjects: subjects.to_vec(),
        bar,
    };
    let servers = [
        Subject::Roomcast { sharded: false },
        Subject::Roomcast { sharded: true },
        Subject::NodeJs { sharded: false },
        Subject::NodeJs { sharded: true },
    ];
    let hearing = [&[Subject::BusFloor][..], &servers].concat();
    let publishing = [&[Subject::PublishFloor][..], &servers].concat();
    vec![
        row(
            "receive-one",
            "one message outstanding, room of 100",
            receive(1, 1, 100, Pace::Windows(1)),
            &hearing,
            Some(1.2),
        ),
        row(
            "receive-paced",
            "1,000 messages a second, room of 100",
            receive(1, 1, 100, Pace::PerSecond(1000)),
            &hearing,
            None,
        ),
        row(
            "receive-window",
            "windows of 16 messages, room of 100",
            receive(1, 1, 100, Pace::Windows(16)),
            &hearing,
            None,
        ),
        row(
            "receive-rooms",
            "windows of 16 messages, each to another room of 100",
            receive(1, 16, 100, Pace::Windows(16)),
            &hearing,
            None,
        ),
        row(
            "send-one",
            "one emit outstanding",
            Scenario::Send { concurrency: 1 },
            &publishing,
            None,
        ),
        row(
            "send-64",
            "64 emits outstanding",
            Scenario::Send { concurrency: 64 },
            &publishing,
            None,
        ),
        row(
            "interest",
            "100 rooms of 10 on 4 nodes, each room on one node",
            receive(4, 25, 10, Pace::Windows(16)),
            &servers,
            None,
        ),
        row(
            "churn",
            "100,000 rooms joined and left 50 ms later, 20,000 a second",
            Scenario::Churn { joins: 100_000 },
            &publishing,
            None,
        ),
    ]
}

/// What others may use during a window that counts as quiet, in cores.
pub(crate) const QUIET: f64 = 0.1;

const WARM_UP: Duration = Duration::from_millis(300);
const WINDOW: Duration = Duration::from_millis(1500);
const QUICK_WINDOW: Duration = Duration::from_millis(600);
