//! Metrics of a server in Prometheus' text format, read before and after a run. For example, rooms
//! that remain after all clients have left have leaked.

use crate::{failure::Failure, outcome::Reading, target::Target};

#[derive(Clone, Debug)]
pub(crate) struct Gauge {
    place: Target,
    path: String,
    name: String,
}

impl Gauge {
    /// Parses `http://HOST:PORT/PATH#NAME`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "like http://HOST:PORT/metrics#NAME".to_owned();
        let (url, name) = text.split_once('#').ok_or_else(wrong)?;
        let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
        let (host, path) = rest.split_once('/').ok_or_else(wrong)?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
        if name.is_empty() || !name.bytes().all(is_name) || path.contains([' ', '#']) {
            return Err(wrong());
        }
        Ok(Self {
            place: Target::parse(host, "/").map_err(|_| wrong())?,
            path: format!("/{path}"),
            name: name.to_owned(),
        })
    }

    /// Reads the metric for the first time.
    pub(crate) fn first_reading(&self) -> anyhow::Result<Reading> {
        Ok(Reading {
            name: self.name.clone(),
            before: self.read()?,
            after: None,
        })
    }

    /// Reads the metric, summed over all its labels.
    pub(crate) fn read(&self) -> anyhow::Result<f64> {
        let answer = self.place.exchange(&self.path, None)?;
        let text = String::from_utf8_lossy(&answer.body);
        sum(&text, &self.name).ok_or_else(|| {
            let said = format!("--gauge: there is no metric {} at {}", self.name, self.path);
            Failure::Arguments(said).into()
        })
    }
}

fn sum(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None => rest.starts_with(' ').then_some(rest)?,
        };
        rest.split_whitespace().next()?.parse::<f64>().ok()
    });
    values.reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let text = "# HELP rooms Rooms\n# TYPE rooms gauge\nrooms{namespace=\"/\"} 3\n\
                    rooms{namespace=\"/a} b\"} 4 1700000000\nrooms_total 9\nplain 2.5\n";
        assert_eq!(sum(text, "rooms"), Some(7.0));
        assert_eq!(sum(text, "plain"), Some(2.5));
        assert_eq!(sum(text, "room"), None);
    }

    #[test]
    fn a_gauge_is_an_address_and_a_name() {
        let gauge = Gauge::parse("http://127.0.0.1:1/metrics#a_b").unwrap();
        assert_eq!(
            (gauge.path.as_str(), gauge.name.as_str()),
            ("/metrics", "a_b")
        );
        for text in [
            "http://h:1/metrics",
            "h:1/m#a",
            "http://127.0.0.1:1/m#",
            "http://127.0.0.1:1/m#a b",
        ] {
            assert!(Gauge::parse(text).is_err(), "{text}");
        }
    }
}
