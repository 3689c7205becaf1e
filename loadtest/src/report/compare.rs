//! Several results side by side: each figure of the first result, and the ratio of the others to
//! it.

use std::fmt::Write as _;

use anyhow::bail;
use serde_json::{Value, json};

use super::{number, table::ledger};
use crate::{figures::figures, outcome::Outcome};

/// Returns the comparison as text and as JSON. Fails if the scenarios differ.
pub(crate) fn compare(results: &[(String, Outcome)]) -> anyhow::Result<(String, Value)> {
    let Some(((_, base), others)) = results.split_first() else {
        bail!("there is nothing to compare");
    };
    if let Some((path, other)) = others
        .iter()
        .find(|(_, other)| other.scenario != base.scenario)
    {
        bail!(
            "{path} is of the scenario {}, and not {}",
            other.scenario,
            base.scenario
        );
    }
    let mut text = format!("{}\n\n{:<46}", base.scenario, "");
    for (path, outcome) in results {
        let _ = write!(text, " {:>22}", name(path, outcome));
    }
    text.push('\n');
    let mut rows = Vec::new();
    let sets: Vec<_> = results
        .iter()
        .map(|(_, outcome)| figures(outcome))
        .collect();
    for figure in &sets[0] {
        let label = format!("{}, {}", figure.name, figure.unit);
        let _ = write!(text, "{label:<46} {:>22}", number(figure.value));
        let mut values = vec![json!(figure.value)];
        for set in &sets[1..] {
            let found = set.iter().find(|other| other.name == figure.name);
            let cell = found.map_or_else(String::new, |other| {
                let ratio = other.value / figure.value;
                let ratio = if ratio.is_finite() {
                    format!(" ({ratio:.2}×)")
                } else {
                    String::new()
                };
                format!("{}{ratio}", number(other.value))
            });
            let _ = write!(text, " {cell:>22}");
            values.push(found.map_or(Value::Null, |other| json!(other.value)));
        }
        text.push('\n');
        rows.push(json!({ "figure": figure.name, "unit": figure.unit, "values": values }));
    }
    text.push('\n');
    for (path, outcome) in results {
        let _ = writeln!(text, "{}: {}", name(path, outcome), ledger(&outcome.ledger));
        for limit in &outcome.limited_by {
            let _ = writeln!(text, "  LIMITED BY {limit}");
        }
        for (setting, value) in &outcome.settings {
            let other = base.settings.get(setting);
            if other != Some(value) {
                let other = other.map_or("nothing", String::as_str);
                let _ = writeln!(
                    text,
                    "  differs: {setting} is {value}, and {other} in the first"
                );
            }
        }
    }
    let names: Vec<String> = results
        .iter()
        .map(|(path, outcome)| name(path, outcome))
        .collect();
    Ok((
        text,
        json!({ "scenario": base.scenario, "results": names, "figures": rows }),
    ))
}

/// The label of a result, or the name of its file.
pub(super) fn name(path: &str, outcome: &Outcome) -> String {
    if outcome.label.is_empty() {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.trim_end_matches(".json").to_owned()
    } else {
        outcome.label.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(deliveries: u64) -> Outcome {
        let mut outcome = Outcome::new("fan-out");
        outcome.seconds = 1.0;
        outcome.set("deliveries", deliveries);
        outcome
    }

    #[test]
    fn others_are_ratios_to_the_first() {
        let results = [
            ("a/base.json".to_owned(), result(1000)),
            ("b.json".to_owned(), result(1500)),
        ];
        let (text, json) = compare(&results).unwrap();
        assert!(text.contains("1500 (1.50×)"), "{text}");
        assert!(
            text.contains("base") && !text.contains("base.json"),
            "{text}"
        );
        assert_eq!(json["figures"][0]["values"], json!([1000.0, 1500.0]));
    }

    #[test]
    fn settings_that_differ_are_mentioned_and_scenarios_must_not() {
        let mut other = result(1);
        other.settings.insert("rooms".to_owned(), "9".to_owned());
        let results = [("a".to_owned(), result(1)), ("b".to_owned(), other)];
        assert!(compare(&results).unwrap().0.contains("differs: rooms is 9"));
        let results = [
            ("a".to_owned(), result(1)),
            ("b".to_owned(), Outcome::new("echo")),
        ];
        assert!(compare(&results).is_err());
    }
}
