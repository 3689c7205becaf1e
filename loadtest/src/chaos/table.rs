//! The table of faults, in Markdown.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    Mode,
    account::Tally,
    faults::{Bar, Fault, bar},
};
use crate::clock::{self, Nanos};

/// The outcome of a fault in a mode.
pub(super) struct Row {
    number: u32,
    fault: &'static str,
    of: Of,
    pub(super) tally: Tally,
    pub(super) metrics: BTreeSet<String>,
}

/// Whose account a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// Nobody's: this machine cannot cause the fault, for this reason.
    Nobody(&'static str),
    /// Clients of Roomcast.
    Clients(Mode),
    /// Clients of a server of Node.js that is a member of the cluster.
    Member(Mode),
    /// Clients of servers of Node.js alone. No bar concerns them.
    NodeJs(&'static str),
}

impl Row {
    pub(super) fn new(fault: &Fault, of: Of) -> Self {
        Self {
            number: fault.number,
            fault: fault.name,
            of,
            tally: Tally::default(),
            metrics: BTreeSet::new(),
        }
    }

    fn mode(&self) -> String {
        match self.of {
            Of::Nobody(name) | Of::NodeJs(name) => name.to_owned(),
            Of::Clients(mode) => mode.name().to_owned(),
            Of::Member(mode) => format!("{}, at Node.js", mode.name()),
        }
    }

    /// Adds another round.
    pub(super) fn add(&mut self, other: Self) {
        self.tally.add(&other.tally);
        self.metrics.extend(other.metrics);
    }

    /// Which bars it misses.
    fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        if matches!(self.of, Of::NodeJs(_)) {
            return missed;
        }
        if self.tally.silent + self.tally.duplicated + self.tally.reordered > 0 {
            missed.push("nothing is lost silently, duplicated or out of order".to_owned());
        }
        let bar = bar(self.number);
        if self.of != Of::Clients(Mode::Recovery) || bar == Bar::Reported {
            return missed;
        }
        if self.tally.reported > 0 {
            missed.push("nothing is lost".to_owned());
        }
        if self.tally.paced >= JUDGED_PACE && self.tally.peak > HIGHEST_PEAK {
            missed.push("at most 1.3 times as many clients per second as paced".to_owned());
        }
        let (found, most, what) = match bar {
            Bar::Delivery(most) => (self.tally.delivery, most, "99 % of deliveries"),
            Bar::Outage(most) => (self.tally.outage, most, "95 % of outages"),
            Bar::LongOutage(most) => (self.tally.longest, most, "99 % of outages"),
            Bar::Reported | Bar::Complete => return missed,
        };
        if found > most {
            missed.push(format!("{what} within {}", seconds(most)));
        }
        missed
    }

    pub(super) fn meets_bars(&self) -> bool {
        self.missed().is_empty()
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
            self.mode(),
            seconds(self.tally.repaired)
        )
    }
}

pub(super) fn seconds(time: Nanos) -> String {
    format!("{:.1} s", clock::seconds(time))
}

/// The page: for each group of faults a heading, what became of the messages, which bars were missed, and
/// which metrics changed.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text = String::new();
    for (group, numbers) in GROUPS {
        let rows: Vec<_> = rows
            .iter()
            .filter(|row| numbers.contains(&row.number))
            .collect();
        if rows.is_empty() {
            continue;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "## {group}\n\n{HEAD}");
        let (mut last, mut last_number) = ("", 0);
        for row in &rows {
            let cells = match row.fault != last {
                // The first row of a number can be linked to.
                true if row.number != last_number => (
                    format!("<a id=\"fault-{0}\"></a>{0}", row.number),
                    row.fault,
                ),
                true => (row.number.to_string(), row.fault),
                false => (String::new(), ""),
            };
            (last, last_number) = (row.fault, row.number);
            write_row(&mut text, row, cells);
        }
        for row in rows.iter().filter(|row| row.tally.paced >= JUDGED_PACE) {
            let (number, mode) = (row.number, row.mode());
            let (peak, paced) = (row.tally.peak as f64 / 100.0, row.tally.paced);
            let _ = writeln!(
                text,
                "\nIn {number} ({}), {mode}: at most {peak:.2} times as many clients per second as paced, \
                 which is {paced} per second.",
                row.fault
            );
        }
        for row in &rows {
            for bar in row.missed() {
                let (number, mode) = (row.number, row.mode());
                let _ = writeln!(text, "\nMissed in {number}, {mode}: {bar}.");
            }
        }
        text.push_str("\n| | visible in |\n|--:|---|\n");
        let mut last = "";
        for row in rows {
            if row.fault != last {
                let metrics = row.metrics.iter().map(|name| format!("`{name}`"));
                let mut metrics = metrics.collect::<Vec<_>>().join(", ");
                if metrics.is_empty() {
                    metrics.push_str("none of them");
                }
                let _ = writeln!(text, "| {} | {metrics} |", row.number);
            }
            last = row.fault;
        }
        text.push('\n');
    }
    text
}

fn write_row(text: &mut String, row: &Row, (number, fault): (String, &str)) {
    let tally = &row.tally;
    let _ = writeln!(
        text,
        "| {number} | {fault} | {} | {} | {} | {} | {} | {} |",
        row.mode(),
        tally.cells(),
        seconds(tally.repaired),
        seconds(tally.delivery),
        seconds(tally.outage),
        seconds(tally.longest),
    );
}

impl Tally {
    /// The counts as cells: owed, lost silently, lost and reported, refused, duplicated, out of order.
    pub(super) fn cells(&self) -> String {
        let counts = [
            self.owed,
            self.silent,
            self.reported,
            self.unpublished,
            self.duplicated,
            self.reordered,
        ];
        counts.map(|count| count.to_string()).join(" | ")
    }
}

/// The highest peak of returns in percent of the paced rate, and from which rate on it is judged: with fewer clients
/// a few that come back together make a peak.
const HIGHEST_PEAK: u64 = 130;
const JUDGED_PACE: u64 = 100;

const HEAD: &str = "| | fault | mode | owed | lost silently | lost and reported | refused | duplicated \
    | out of order | repaired within | p99 of delivery | p95 of outages | p99 of outages |\n\
    |--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

/// Which faults belong together.
pub(super) const GROUPS: [(&str, &[u32]); 4] = [
    ("Nodes", &[1, 2, 3, 15, 17]),
    ("Redis", &[4, 5, 6, 7, 18, 19, 20]),
    ("Connections to Redis", &[8, 9, 10, 11, 12, 16]),
    ("Clients", &[13, 14]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u32, mode: Mode, tally: Tally) -> Row {
        Row {
            number,
            fault: "it rains",
            of: Of::Clients(mode),
            tally,
            metrics: BTreeSet::from(["up".to_owned()]),
        }
    }

    #[test]
    fn bars_depend_on_fault_and_mode() {
        let reported = Tally {
            reported: 1,
            ..Tally::default()
        };
        assert!(row(1, Mode::Journal, reported).meets_bars());
        assert!(!row(1, Mode::Recovery, reported).meets_bars());
        assert!(row(4, Mode::Recovery, reported).meets_bars());
        let slow = Tally {
            delivery: 5 * clock::SECOND,
            ..Tally::default()
        };
        assert!(row(1, Mode::Recovery, slow).meets_bars());
        let hasty = |paced| Tally {
            peak: 131,
            paced,
            ..Tally::default()
        };
        assert!(row(3, Mode::Recovery, hasty(99)).meets_bars());
        assert!(!row(3, Mode::Recovery, hasty(100)).meets_bars());
        assert!(!row(13, Mode::Recovery, slow).meets_bars());
        let silent = Tally {
            silent: 1,
            ..Tally::default()
        };
        assert!(!row(4, Mode::Plain, silent).meets_bars());
    }

    #[test]
    fn a_table_names_each_fault_once_and_every_missed_bar() {
        let silent = Tally {
            owed: 9,
            silent: 2,
            ..Tally::default()
        };
        let rows = [
            row(1, Mode::Plain, Tally::default()),
            row(1, Mode::Journal, silent),
        ];
        let text = markdown(&rows);
        assert_eq!(text.matches("it rains").count(), 1);
        assert!(
            text.contains("| <a id=\"fault-1\"></a>1 | it rains |"),
            "{text}"
        );
        assert!(text.contains("|  |  | journal | 9 | 2 |"), "{text}");
        assert!(text.contains("Missed in 1, journal: nothing is lost silently"));
        assert!(text.contains("| 1 | `up` |"), "{text}");
    }
}
