//! The table of faults, in Markdown.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{Mode, account::Tally, faults::Fault};
use crate::clock;

/// What a fault came to in a mode.
pub(super) struct Row {
    number: u32,
    fault: &'static str,
    mode: Mode,
    tally: Tally,
    metrics: BTreeSet<String>,
}

impl Row {
    pub(super) fn new(fault: &Fault, mode: Mode) -> Self {
        Self {
            number: fault.number,
            fault: fault.name,
            mode,
            tally: Tally::default(),
            metrics: BTreeSet::new(),
        }
    }

    pub(super) fn found(&mut self, tally: Tally, metrics: &BTreeSet<String>) {
        self.tally = tally;
        self.metrics.clone_from(metrics);
    }

    /// Adds another round.
    pub(super) fn add(&mut self, other: Self) {
        self.tally.add(&other.tally);
        self.metrics.extend(other.metrics);
    }

    /// Whether nothing was lost silently, duplicated or out of order.
    pub(super) fn is_clean(&self) -> bool {
        self.tally.silent + self.tally.duplicated + self.tally.reordered == 0
    }

    pub(super) fn line(&self) -> String {
        let Tally {
            owed,
            silent,
            reported,
            unpublished,
            duplicated,
            reordered,
            ..
        } = self.tally;
        format!(
            "{}: {owed} owed, {silent} lost silently, {reported} lost and reported, \
             {unpublished} refused, {duplicated} duplicated, {reordered} out of order, {}",
            self.mode.name(),
            self.repaired()
        )
    }

    fn repaired(&self) -> String {
        format!("{:.1} s", clock::seconds(self.tally.repaired))
    }
}

pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| | fault | mode | owed | lost silently | lost and reported | refused | duplicated | out of order | repaired within |\n\
         |--:|---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let mut last = "";
    for row in rows {
        let is_new = row.fault != last;
        last = row.fault;
        let (number, fault) = if is_new {
            (row.number.to_string(), row.fault)
        } else {
            (String::new(), "")
        };
        let tally = &row.tally;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {number} | {fault} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.mode.name(),
            tally.owed,
            tally.silent,
            tally.reported,
            tally.unpublished,
            tally.duplicated,
            tally.reordered,
            row.repaired(),
        );
    }
    text.push_str("\n| | visible in |\n|--:|---|\n");
    let mut last = "";
    for row in rows {
        if row.fault != last {
            let metrics: Vec<_> = row.metrics.iter().map(|name| format!("`{name}`")).collect();
            let _ = writeln!(text, "| {} | {} |", row.number, metrics.join(", "));
        }
        last = row.fault;
    }
    text
}
