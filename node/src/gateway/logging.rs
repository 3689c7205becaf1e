//! Structured logs on standard error, as text for people or JSON for collectors.
//!
//! Started once by `main`, before anything that logs. It decides the form of a line and nothing
//! else: what is logged belongs to the modules that log.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::fmt;

use super::values::LogFilter;

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One readable line, coloured on a terminal
    Text,
    /// One JSON object per line
    Json,
}

/// Installs the log for the whole process. Must be called once.
pub(crate) fn start(format: LogFormat, filter: &LogFilter) {
    let lines = fmt()
        .with_env_filter(filter.to_env_filter())
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(colour_wanted(&io::stderr())).init(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .init(),
    }
}

/// Whether colours help on this stream: a terminal, and no wish to the contrary
/// (<https://no-color.org>).
pub(crate) fn colour_wanted(stream: &impl IsTerminal) -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !unwanted
}
