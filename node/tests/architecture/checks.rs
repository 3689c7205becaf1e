//! What is checked of one source. Code for tests may do as it likes where nothing else is said.

use std::fmt;

use crate::{
    paths::{Path, paths},
    source::{Source, line_at},
    table::{EXTERNAL, OWN_CRATES, Row, TABLE},
};

/// The most lines of code in a file, without tests, comments and empty lines.
pub(crate) const MAX_LINES_OF_CODE: usize = 700;

pub(crate) struct Violation {
    file: String,
    pub(crate) line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

pub(crate) type Check = fn(&Source) -> Vec<Violation>;

/// Every path must be allowed by every row that its module is in.
pub(crate) fn check_imports(source: &Source) -> Vec<Violation> {
    if source.is_test {
        return Vec::new();
    }
    let rows = TABLE
        .iter()
        .filter(|row| begins(&source.module, row.module));
    let rows: Vec<_> = rows.collect();
    let mut violations = Vec::new();
    for path in paths(source) {
        let forbids = |row: &&&Row| !is_allowed(row, &path);
        violations.extend(rows.iter().find(forbids).map(|row| Violation {
            file: source.file.clone(),
            line: path.line,
            rule: format!(
                "`{}` must not import `{}`",
                row.module,
                path.segments.join("::")
            ),
        }));
    }
    violations
}

fn is_allowed(row: &Row, path: &Path) -> bool {
    let is_of = |pattern: &&str| match *pattern {
        EXTERNAL => !OWN_CRATES.iter().any(|own| begins(&path.segments, own)),
        pattern => begins(&path.segments, pattern),
    };
    begins(&path.segments, row.module)
        || (row.may.iter().any(is_of) && !row.never.iter().any(is_of))
}

pub(crate) fn begins(path: &[String], pattern: &str) -> bool {
    let mut path = path.iter();
    pattern
        .split("::")
        .all(|segment| path.next().is_some_and(|own| own == segment))
}

/// What waits for a network in the crates below the server, which have no clock of their own to ask.
/// What decides there is pure, and gets times as arguments.
const WAITING: [&str; 7] = [
    "adapter/src/link/cluster.rs",
    "adapter/src/link/session.rs",
    "adapter/src/link/task.rs",
    "adapter/src/redis_bus",
    "emitter/src/asking.rs",
    "emitter/src/emitter",
    "emitter/src/link/driver.rs",
];

/// What tells people of dates.
const WALL_CLOCK: [&str; 5] = [
    "node/src/transport/handshake.rs",
    "adapter/src/link/cluster.rs",
    "adapter/src/link/probe.rs",
    "adapter/src/link/session.rs",
    "adapter/src/link/task.rs",
];

pub(crate) fn check_clock(source: &Source) -> Vec<Violation> {
    let is_waiting = |of: &&str| source.file.starts_with(*of);
    let is_clock = source.file == "node/src/clock.rs" || WAITING.iter().any(is_waiting);
    let has_wall_clock = WALL_CLOCK.contains(&&*source.file);
    let mut violations = Vec::new();
    for (text, is_allowed) in [
        ("Instant::now", is_clock),
        (".elapsed(", is_clock),
        ("SystemTime::now", has_wall_clock),
        ("Utc::now", false),
    ] {
        if !is_allowed {
            let rule = format!("`{text}` reads a clock; times come from `clock.rs` as arguments");
            violations.extend(found(source, text, &rule));
        }
    }
    violations
}

pub(crate) fn check_entropy(source: &Source) -> Vec<Violation> {
    let may = ["node/src/ids.rs", "emitter/src/entropy.rs"];
    if source.is_test || may.contains(&&*source.file) {
        return Vec::new();
    }
    let random = paths(source).into_iter().filter(|path| {
        ["rand", "getrandom", "fastrand"]
            .iter()
            .any(|random| begins(&path.segments, random))
    });
    let violation = |path: Path| Violation {
        file: source.file.clone(),
        line: path.line,
        rule: format!(
            "`{}` is entropy, which `ids.rs` and `entropy.rs` alone read",
            path.segments.join("::")
        ),
    };
    random.map(violation).collect()
}

pub(crate) fn check_size(source: &Source) -> Vec<Violation> {
    let lines = source
        .code
        .lines()
        .filter(|line| !line.trim().is_empty())
        .count();
    if source.is_test || lines < MAX_LINES_OF_CODE {
        return Vec::new();
    }
    vec![Violation {
        file: source.file.clone(),
        line: source.code.lines().count(),
        rule: format!("{lines} lines of code; a file has fewer than {MAX_LINES_OF_CODE}"),
    }]
}

pub(crate) fn check_docs(source: &Source) -> Vec<Violation> {
    if source.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![Violation {
        file: source.file.clone(),
        line: 1,
        rule: "a file begins with what it is, in `//!` lines".to_owned(),
    }]
}

/// Lints that are switched off must say why, in tests, too.
pub(crate) fn check_reasons(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    for attribute in ["[allow(", "[expect("] {
        let rule = format!("`#{attribute}` needs a reason");
        for (at, _) in source.with_tests.match_indices(attribute) {
            let end = source.with_tests[at..].find(']').unwrap_or_default();
            if !source.with_tests[at..at + end].contains("reason =") {
                violations.push(Violation {
                    file: source.file.clone(),
                    line: line_at(&source.with_tests, at),
                    rule: rule.clone(),
                });
            }
        }
    }
    violations
}

/// Inline modules would make `super` mean something else than the table takes it for.
pub(crate) fn check_modules(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    if source.is_test {
        return violations;
    }
    for (index, line) in source.code.lines().enumerate() {
        let words: Vec<_> = line.split_whitespace().collect();
        let module = words.iter().position(|word| *word == "mod");
        if module.is_some_and(|at| words.get(at + 2) == Some(&"{")) {
            violations.push(Violation {
                file: source.file.clone(),
                line: index + 1,
                rule: "a module that is no test has a file of its own".to_owned(),
            });
        }
    }
    violations
}

fn found(source: &Source, text: &str, rule: &str) -> Vec<Violation> {
    if source.is_test {
        return Vec::new();
    }
    let places = source.code.match_indices(text);
    let violation = |(at, _)| Violation {
        file: source.file.clone(),
        line: line_at(&source.code, at),
        rule: rule.to_owned(),
    };
    places.map(violation).collect()
}
