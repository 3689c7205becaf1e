//! Times as the original writes them: UTC, always with six decimals.

const MILLIS_PER_DAY: u64 = 86_400_000;

/// Formats milliseconds since 1970 as `YYYY-MM-DDTHH:MM:SS.ffffffZ`.
pub(super) fn format(millis: u64) -> String {
    let (year, month, day) = date(millis / MILLIS_PER_DAY);
    let millis = millis % MILLIS_PER_DAY;
    let (seconds, millis) = (millis / 1_000, millis % 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}000Z")
}

/// The Gregorian date of a day counted from 1970-01-01. Years begin in March here, so that the leap
/// day is the last one, and month lengths follow a line of 153 days in five months.
fn date(days: u64) -> (u64, u64, u64) {
    // Days from 0000-03-01 to 1970-01-01, and days of an era of 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let is_next_year = month >= 10;
    let month = if is_next_year { month - 9 } else { month + 3 };
    (era * 400 + year + u64::from(is_next_year), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_six_decimals() {
        assert_eq!(format(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(format(951_782_399_999), "2000-02-28T23:59:59.999000Z");
        assert_eq!(format(951_782_400_000), "2000-02-29T00:00:00.000000Z");
        assert_eq!(format(1_700_000_000_120), "2023-11-14T22:13:20.120000Z");
        assert_eq!(format(4_102_444_800_000), "2100-01-01T00:00:00.000000Z");
        assert_eq!(format(4_107_542_399_000), "2100-02-28T23:59:59.000000Z");
        assert_eq!(format(4_107_542_400_000), "2100-03-01T00:00:00.000000Z");
    }
}
