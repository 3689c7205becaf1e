//! Latencies: an HDR histogram that can be serialized and merged.
//!
//! Values are nanoseconds with three significant digits, up to an hour. The serialized form holds
//! counts per bucket and no percentiles, so merging the results of several processes is exact.

use hdrhistogram::Histogram as Hdr;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::clock::Nanos;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram(Hdr<u64>);

impl Histogram {
    pub(crate) fn new() -> Self {
        let hdr = Hdr::new_with_bounds(1, LONGEST, DIGITS).expect("the bounds are constants");
        Self(hdr)
    }

    pub(crate) fn record(&mut self, nanos: Nanos) {
        self.0.saturating_record(nanos.clamp(1, LONGEST));
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value at a percentile between 0 and 100, in milliseconds; 0 if the histogram is empty.
    pub(crate) fn percentile_ms(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 / 1e6
    }

    pub(crate) fn max_ms(&self) -> f64 {
        self.0.max() as f64 / 1e6
    }

    pub(crate) fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e6
    }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let recorded = self.0.iter_recorded();
        serializer.collect_seq(
            recorded.map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value())),
        )
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let buckets = Vec::<(u64, u64)>::deserialize(deserializer)?;
        let mut histogram = Self::new();
        for (value, count) in buckets {
            histogram
                .0
                .record_n(value, count)
                .map_err(|_| D::Error::custom("a latency of more than an hour"))?;
        }
        Ok(histogram)
    }
}

/// One hour; no scenario waits that long for a message.
const LONGEST: Nanos = 3_600_000_000_000;
const DIGITS: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::new();
        values.into_iter().for_each(|value| histogram.record(value));
        histogram
    }

    #[test]
    fn merged_histograms_are_what_one_would_have_measured() {
        let values: Vec<u64> = (0..20_000)
            .map(|at: u64| at * at * 37 % 900_000_000)
            .collect();
        let (left, right) = values.split_at(7_000);
        let mut merged = of(left.iter().copied());
        merged.add(&of(right.iter().copied()));
        assert_eq!(merged, of(values));
    }

    #[test]
    fn a_histogram_survives_being_written_down() {
        let histogram = of([0, 1, 999, 1_000_000, 1_234_567_890, u64::MAX]);
        let text = serde_json::to_string(&histogram).unwrap();
        let read: Histogram = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert_eq!(read.count(), 6);
        for percentile in [0.0, 10.0, 50.0, 99.0, 100.0] {
            let exact = histogram.percentile_ms(percentile);
            assert!((read.percentile_ms(percentile) - exact).abs() <= exact * 0.002);
        }
    }

    #[test]
    fn a_latency_of_more_than_an_hour_is_not_read() {
        assert!(serde_json::from_str::<Histogram>("[[36000000000000,1]]").is_err());
    }
}
