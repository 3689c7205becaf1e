//! Dates in the form in which JavaScript writes them as JSON.

/// Appends milliseconds since 1970 as `"2023-11-14T22:13:20.123Z"`, quotes included; `null` for
/// values outside the range of a JavaScript `Date`. Years outside 0 to 9999 have a sign and six
/// digits.
pub(super) fn append_date(json: &mut Vec<u8>, milliseconds: i64) {
    if milliseconds.unsigned_abs() > MOST_MILLISECONDS {
        json.extend_from_slice(b"null");
        return;
    }
    let (days, time) = (milliseconds.div_euclid(DAY), milliseconds.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let (seconds, milliseconds) = (time / 1000, time % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let year = match year {
        0..=9999 => format!("{year:04}"),
        _ => format!("{year:+07}"),
    };
    let text = format!(
        "\"{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z\""
    );
    json.extend_from_slice(text.as_bytes());
}

const DAY: i64 = 86_400_000;

/// A hundred million days to either side: the range of `Date`.
const MOST_MILLISECONDS: u64 = 8_640_000_000_000_000;

/// The Gregorian date of a day counted from 1970-01-01.
///
/// Counted in years that begin in March, the leap day is the last of its year, and the lengths of
/// the months before it follow a straight line (153 days in five months).
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_IN_400_YEARS: i64 = 146_097;
    const MARCH_OF_YEAR_0: i64 = -719_468;
    let days = days - MARCH_OF_YEAR_0;
    let (era, day_of_era) = (
        days.div_euclid(DAYS_IN_400_YEARS),
        days.rem_euclid(DAYS_IN_400_YEARS),
    );
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (400 * era + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(milliseconds: i64) -> String {
        let mut json = Vec::new();
        append_date(&mut json, milliseconds);
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn dates_read_as_in_javascript() {
        for (milliseconds, text) in [
            (0, "\"1970-01-01T00:00:00.000Z\""),
            (1_700_000_000_123, "\"2023-11-14T22:13:20.123Z\""),
            (-1, "\"1969-12-31T23:59:59.999Z\""),
            (951_782_400_000, "\"2000-02-29T00:00:00.000Z\""),
            (4_107_542_400_000, "\"2100-03-01T00:00:00.000Z\""),
            (-62_167_219_200_000, "\"0000-01-01T00:00:00.000Z\""),
            (-62_167_219_200_001, "\"-000001-12-31T23:59:59.999Z\""),
            (253_402_300_799_999, "\"9999-12-31T23:59:59.999Z\""),
            (253_402_300_800_000, "\"+010000-01-01T00:00:00.000Z\""),
            (8_640_000_000_000_000, "\"+275760-09-13T00:00:00.000Z\""),
            (-8_640_000_000_000_000, "\"-271821-04-20T00:00:00.000Z\""),
            (8_640_000_000_000_001, "null"),
            (i64::MIN, "null"),
        ] {
            assert_eq!(date(milliseconds), text);
        }
    }
}
