//! Presentation of results: a table for the terminal, a page with plots, a comparison.

mod compare;
mod page;
mod plot;
mod table;

pub(crate) use compare::compare;
pub(crate) use page::page;
pub(crate) use table::table;

/// Formats a figure with three or four digits.
fn number(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        0.0 => 0,
        _ if size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 0.995 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if size >= 10_000.0 {
        grouped(&text)
    } else {
        text
    }
}

/// Inserts thousands separators.
fn grouped(digits: &str) -> String {
    let (sign, digits) = digits
        .strip_prefix('-')
        .map_or(("", digits), |digits| ("-", digits));
    let mut text = String::from(sign);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.1234, "0.123"),
            (1.0, "1.00"),
            (12.34, "12.3"),
            (999.4, "999"),
            (9999.0, "9999"),
            (10_000.0, "10,000"),
            (-1_234_567.0, "-1,234,567"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
