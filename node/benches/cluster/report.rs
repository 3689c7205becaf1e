//! From samples to figures: medians, ranges, ratios, verdicts; as markdown and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::ledger::Tally;
use crate::peer::Subject;
use crate::scenario::Sample;
use crate::table::{QUIET, Round, Row};

pub(crate) struct Report<'a> {
    pub(crate) machine: String,
    /// Which process ran where.
    pub(crate) placing: String,
    /// Why there are no Node.js servers, if so.
    pub(crate) left_out: Option<String>,
    pub(crate) results: &'a [(Row, Vec<Round>)],
}

/// What one subject's runs of a figure were. There is none if one of the runs has failed.
struct Cell {
    subject: Subject,
    spread: Option<Spread>,
    /// Against the first subject: round by round, and the least of the one over the least of the
    /// other.
    ratio: Option<(Spread, f64)>,
}

#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Report<'_> {
    pub(crate) fn is_clean(&self) -> bool {
        let rounds = self.results.iter().flat_map(|(_, rounds)| rounds);
        rounds.flatten().all(Sample::is_clean)
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write_markdown(&mut text);
        text
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.results.iter().map(|(row, rounds)| {
            let runs = rounds.iter().map(|round| {
                let samples = row.subjects.iter().zip(round);
                samples.map(|(subject, sample)| (subject.name().to_owned(), sample_json(sample)))
            });
            let runs: Vec<Value> = runs.map(|run| Value::Object(run.collect())).collect();
            json!({ "scenario": row.name, "title": row.title, "rounds": runs })
        });
        json!({
            "machine": self.machine,
            "cores": self.placing,
            "command": command_line(),
            "left_out": self.left_out,
            "clean": self.is_clean(),
            "rows": rows.collect::<Vec<Value>>(),
        })
    }

    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        let rounds = self.results.first().map_or(0, |(_, rounds)| rounds.len());
        writeln!(out, "Machine: {}; {}.", self.machine, self.placing)?;
        writeln!(out, "Command: `{}`; {rounds} rounds.", command_line())?;
        writeln!(
            out,
            "Medians with range; × is the median of the ratios per round to the first column that \
             is not empty, in parentheses the best over the best."
        )?;
        if let Some(reason) = &self.left_out {
            writeln!(out, "The Node.js servers are left out: {reason}.")?;
        }
        let columns: Vec<&str> = COLUMNS.map(|column| column.name()).to_vec();
        for (row, rounds) in self.results {
            writeln!(out, "\n`{}`: {}\n", row.name, row.title)?;
            writeln!(out, "| | {} |", columns.join(" | "))?;
            writeln!(out, "|---|{}", "---|".repeat(columns.len()))?;
            for (index, name) in figure_names(rounds).into_iter().enumerate() {
                let cells = cells(row, rounds, index);
                let bar = row.bar.filter(|_| index == 0);
                writeln!(out, "| {name} | {} |", line(&cells, bar).join(" | "))?;
            }
        }
        self.write_ledger(out)
    }

    fn write_ledger(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "\n| ledger | arrived | lost | duplicated | out of order | corrupted |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|")?;
        for (row, rounds) in self.results {
            for (index, subject) in row.subjects.iter().enumerate() {
                let mut total = Tally::default();
                rounds
                    .iter()
                    .for_each(|round| total.add(&round[index].tally));
                let Tally {
                    arrived,
                    lost,
                    duplicated,
                    out_of_order,
                    corrupted,
                } = total;
                let label = format!("{}, {}", row.name, subject.name());
                writeln!(
                    out,
                    "| {label} | {arrived} | {lost} | {duplicated} | {out_of_order} | {corrupted} |"
                )?;
            }
        }
        writeln!(out)?;
        for (row, rounds) in self.results {
            for (number, round) in rounds.iter().enumerate() {
                for (subject, sample) in row.subjects.iter().zip(round) {
                    if let Some(fault) = &sample.fault {
                        let (name, subject) = (row.name, subject.name());
                        writeln!(
                            out,
                            "- FAILED: {name}, {subject}, round {}: {fault}",
                            number + 1
                        )?;
                    }
                }
            }
        }
        let samples = self.results.iter().flat_map(|(_, rounds)| rounds).flatten();
        let disturbed = samples.filter(|sample| sample.others > QUIET).count();
        if disturbed > 0 {
            writeln!(
                out,
                "In {disturbed} runs other processes used more than {QUIET} cores: their figures are \
                 too high.\n"
            )?;
        }
        let clean = if self.is_clean() {
            "Every ledger is clean."
        } else {
            "The run FAILED."
        };
        writeln!(out, "{clean}")
    }
}

/// One cell per column of the table.
fn line(cells: &[Cell], bar: Option<f64>) -> Vec<String> {
    let text = |cell: &Cell| {
        let Some(spread) = cell.spread else {
            return "FAILED".to_owned();
        };
        let mut text = spread.text();
        if let Some((ratio, best)) = cell.ratio {
            let _ = write!(text, " ×{:.2} (×{best:.2})", ratio.median);
            if let (Some(bar), Subject::Roomcast { sharded: false }) = (bar, cell.subject) {
                let verdict = if ratio.median <= bar {
                    "met"
                } else {
                    "NOT MET"
                };
                let _ = write!(text, ", bar {bar:.2} {verdict}");
            }
        }
        text
    };
    COLUMNS
        .iter()
        .map(|column| {
            let cell = cells
                .iter()
                .find(|cell| cell.subject.name() == column.name());
            cell.map_or_else(String::new, text)
        })
        .collect()
}

fn cells(row: &Row, rounds: &[Round], figure: usize) -> Vec<Cell> {
    let values = |subject: usize, wants_price: bool| -> Option<Vec<f64>> {
        let value = |round: &Round| {
            let sample = round[subject].is_clean().then_some(&round[subject])?;
            let figure = sample.figures.get(figure)?;
            (figure.is_price || !wants_price).then_some(figure.value)
        };
        rounds.iter().map(value).collect()
    };
    let first = values(0, true);
    let cell = |(index, subject): (usize, &Subject)| {
        let own = values(index, true).filter(|_| index > 0);
        let ratio = own.zip(first.clone()).and_then(|(own, first)| {
            let ratios = own.iter().zip(&first).map(|(own, first)| own / first);
            let ratios = Spread::of(ratios.collect())?;
            Some((ratios, Spread::of(own)?.least / Spread::of(first)?.least))
        });
        Cell {
            subject: *subject,
            spread: values(index, false).and_then(Spread::of),
            ratio,
        }
    };
    row.subjects.iter().enumerate().map(cell).collect()
}

fn figure_names(rounds: &[Round]) -> Vec<&'static str> {
    let longest = rounds
        .iter()
        .flatten()
        .max_by_key(|sample| sample.figures.len());
    let figures = longest
        .map(|sample| &sample.figures[..])
        .unwrap_or_default();
    figures.iter().map(|figure| figure.name).collect()
}

fn sample_json(sample: &Sample) -> Value {
    let Tally {
        arrived,
        lost,
        duplicated,
        out_of_order,
        corrupted,
    } = sample.tally;
    let figures = sample.figures.iter();
    let figures = figures.map(|figure| (figure.name.to_owned(), json!(figure.value)));
    json!({
        "figures": Value::Object(figures.collect()),
        "ledger": {
            "arrived": arrived, "lost": lost, "duplicated": duplicated,
            "out_of_order": out_of_order, "corrupted": corrupted,
        },
        "others_cores": sample.others,
        "fault": sample.fault,
    })
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let upper = values[values.len() / 2];
        let lower = values[(values.len() - 1) / 2];
        Some(Self {
            median: f64::midpoint(lower, upper),
            least,
            most,
        })
    }

    fn text(self) -> String {
        let digits = if self.median >= 100.0 { 0 } else { 2 };
        let Self {
            median,
            least,
            most,
        } = self;
        format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
    }
}

fn command_line() -> String {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    format!(
        "cargo bench -p roomcast --bench cluster -- {}",
        args.join(" ")
    )
    .trim_end_matches([' ', '-'])
    .into()
}

/// Both floors are in one column.
const COLUMNS: [Subject; 5] = [
    Subject::BusFloor,
    Subject::Roomcast { sharded: false },
    Subject::Roomcast { sharded: true },
    Subject::NodeJs { sharded: false },
    Subject::NodeJs { sharded: true },
];
