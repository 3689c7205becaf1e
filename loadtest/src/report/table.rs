//! The result of a run as text.

use std::fmt::Write as _;

use super::number;
use crate::{figures::figures, ledger::Tally, outcome::Outcome};

/// Formats the whole result.
pub(crate) fn table(outcome: &Outcome) -> String {
    let mut text = String::new();
    let settings = outcome
        .settings
        .iter()
        .map(|(name, value)| format!("{name} {value}"));
    let settings: Vec<String> = settings.collect();
    let _ = writeln!(
        text,
        "{}{} against {}\n{}\n{:.1} s, {} loader{}, {}\n",
        outcome.scenario,
        if outcome.label.is_empty() {
            String::new()
        } else {
            format!(" ({})", outcome.label)
        },
        outcome.targets.join(", "),
        settings.join(", "),
        outcome.seconds,
        outcome.parts,
        if outcome.parts == 1 { "" } else { "s" },
        outcome.machine,
    );
    for figure in figures(outcome) {
        let value = number(figure.value);
        let _ = writeln!(text, "  {:<46} {value:>14} {}", figure.name, figure.unit);
    }
    let _ = writeln!(text);
    for (name, count) in &outcome.counts {
        let _ = writeln!(text, "  {name:<46} {count:>14}");
    }
    for gauge in &outcome.gauges {
        let after = gauge.after.map_or_else(|| "gone".to_owned(), number);
        let _ = writeln!(
            text,
            "  {:<46} {:>14} before, {after} after",
            gauge.name,
            number(gauge.before)
        );
    }
    let _ = writeln!(text, "\n  ledger: {}", ledger(&outcome.ledger));
    for (reason, count) in &outcome.ends {
        let _ = writeln!(text, "  connections ended, {reason}: {count}");
    }
    for note in &outcome.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    for limit in &outcome.limited_by {
        let _ = writeln!(text, "  LIMITED BY {limit}");
    }
    text
}

pub(super) fn ledger(tally: &Tally) -> String {
    let mut text = format!(
        "{} arrived, {} lost, {} duplicated, {} reordered, {} corrupted, {} astray",
        tally.arrived, tally.lost, tally.duplicated, tally.reordered, tally.corrupted, tally.stray
    );
    if tally.missed_away > 0 {
        let _ = write!(
            text,
            "; {} sent while their receiver was away",
            tally.missed_away
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_figures_faults_and_limits() {
        let mut outcome = Outcome::new("fan-out");
        outcome.seconds = 2.0;
        outcome.targets = vec!["http://h:1".to_owned()];
        outcome.set("deliveries", 4000);
        outcome.ledger.lost = 7;
        outcome.limit("the moon");
        let text = table(&outcome);
        for part in [
            "fan-out against http://h:1",
            "deliveries per second",
            "2000",
            "7 lost",
            "LIMITED BY the moon",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
