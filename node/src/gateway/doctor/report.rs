//! The results of the checks, as text for people and as JSON for scripts.

use std::fmt;

use serde_json::{Value, json};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    /// It works, but may fail under load, or could not be checked.
    Warn,
    /// Something does not work.
    Fail,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    area: &'static str,
    check: &'static str,
    pub(super) status: Status,
    pub(super) found: String,
    pub(super) remedy: Option<String>,
}

impl Finding {
    pub(super) fn new(
        area: &'static str,
        check: &'static str,
        status: Status,
        found: impl Into<String>,
    ) -> Self {
        Self {
            area,
            check,
            status,
            found: found.into(),
            remedy: None,
        }
    }

    /// Adds how to mend it.
    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// A line. Errors of other programs may contain line breaks.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (status, area, check) = (self.status.as_str(), self.area, self.check);
        let found = self.found.replace(['\r', '\n'], " ");
        write!(f, "{status:<4}  {area} {check}: {found}")?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// All results.
pub(super) struct Report(pub(super) Vec<Finding>);

impl Report {
    pub(super) fn has_failed(&self) -> bool {
        self.0.iter().any(|finding| finding.status == Status::Fail)
    }

    pub(super) fn to_json(&self) -> Value {
        let checks = self.0.iter().map(|finding| {
            json!({
                "area": finding.area,
                "check": finding.check,
                "status": finding.status.as_str().to_lowercase(),
                "found": finding.found,
                "remedy": finding.remedy,
            })
        });
        json!({ "ok": !self.has_failed(), "checks": checks.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_one_line_and_only_a_failure_fails() {
        let warning = Finding::new("redis", "memory", Status::Warn, "a\nb").remedy("do c");
        let report = Report(vec![warning]);
        assert_eq!(report.to_string(), "warn  redis memory: a b; do c\n");
        assert!(!report.has_failed());
        let failure = Finding::new("host", "backlog", Status::Fail, "0");
        let report = Report(vec![failure]);
        assert!(report.has_failed());
        let json = report.to_json();
        assert_eq!(json["ok"], false);
        assert_eq!(json["checks"][0]["status"], "fail");
        assert_eq!(json["checks"][0]["remedy"], Value::Null);
    }
}
