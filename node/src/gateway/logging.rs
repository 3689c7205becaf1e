//! Structured logs on standard error, as text for people or JSON for collectors.
//!
//! Started once by `main`, before anything that logs. This module decides the form of a line and
//! how lines leave the process; the modules that log decide their content.
//!
//! A log must never stop the server: the reader of the pipe may be slow, stopped or closed. So a
//! dedicated thread writes the lines, from a queue of bounded length. Lines that find the queue
//! full are dropped and counted. An error of the write, such as a broken pipe, is ignored, because
//! there is no other place to report it.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal, Write as _},
    panic::{self, PanicHookInfo},
    sync::Arc,
};

use clap::ValueEnum;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt};

use super::{
    config::{Config, Operation},
    log_client,
    reload::{Preparing, Reloadable, prepared},
};

/// Lines that may wait to be written. At 200 bytes each this is 3 MB, some seconds of a busy log.
const MAX_WAITING_LINES: usize = 16_384;

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One readable line, coloured on a terminal
    Text,
    /// One JSON object per line
    Json,
}

/// The log of the process. Dropping it writes the waiting lines, for at most about a second.
pub(crate) struct Log {
    writer: NonBlocking,
    _writing: WorkerGuard,
    set_filter: SetFilter,
}

type SetFilter = Arc<dyn Fn(EnvFilter) + Send + Sync>;

/// The level of the log.
pub(crate) struct LogLevel(SetFilter);

impl Reloadable for LogLevel {
    fn keys(&self) -> &'static [&'static str] {
        &["log_level"]
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        let (set_filter, filter) = (Arc::clone(&self.0), filter(&config.operation));
        prepared(Ok(move || set_filter(filter)))
    }
}

/// The filter of the lines. Those about followed clients pass it, unless it names their
/// target itself.
fn filter(operation: &Operation) -> EnvFilter {
    let follows = log_client::is_any(&operation.log_client);
    let target = follows.then_some(log_client::TARGET);
    operation.log_level.to_env_filter(target)
}

impl Log {
    /// Installs the log for the whole process, panics included. It must be called once.
    pub(crate) fn start(operation: &Operation) -> Self {
        let (writer, writing) = NonBlockingBuilder::default()
            .buffered_lines_limit(MAX_WAITING_LINES)
            .lossy(true)
            .thread_name("log")
            .finish(io::stderr());
        let lines = fmt()
            .with_env_filter(filter(operation))
            .log_internal_errors(false)
            .with_writer(writer.clone());
        let set_filter: SetFilter = match operation.log_format {
            LogFormat::Text => {
                let lines = lines.with_ansi(colour_wanted(&io::stderr()));
                let lines = lines.with_filter_reloading();
                let handle = lines.reload_handle();
                lines.init();
                // It fails only after the log was dropped, which lives as long as the process.
                Arc::new(move |filter| drop(handle.reload(filter)))
            }
            LogFormat::Json => {
                let lines = lines.json().flatten_event(true).with_current_span(false);
                let lines = lines.with_filter_reloading();
                let handle = lines.reload_handle();
                lines.init();
                Arc::new(move |filter| drop(handle.reload(filter)))
            }
        };
        panic::set_hook(Box::new(log_panic));
        Self {
            writer,
            _writing: writing,
            set_filter,
        }
    }

    /// The part of the log that a reload can replace.
    pub(crate) fn level(&self) -> LogLevel {
        LogLevel(Arc::clone(&self.set_filter))
    }

    /// Writes a line regardless of the level of the log.
    pub(crate) fn write_line(&self, line: &str) {
        // The queue reports no error: it drops what it cannot hold.
        let _ = self
            .writer
            .clone()
            .write_all(format!("{line}\n").as_bytes());
    }

    /// Counts the lines that were dropped because the queue was full.
    pub(crate) fn dropped_lines(&self) -> ErrorCounter {
        self.writer.error_counter()
    }
}

/// The default hook writes to standard error directly, which blocks while it is not read.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("a value that is not text");
    let location = panic
        .location()
        .map(ToString::to_string)
        .unwrap_or_default();
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => {
            tracing::error!(%location, message, %backtrace, "a task panicked");
        }
        _ => tracing::error!(%location, message, "a task panicked"),
    }
}

/// Whether colours help on this stream: it is a terminal, and `NO_COLOR` is not set
/// (<https://no-color.org>).
pub(crate) fn colour_wanted(stream: &impl IsTerminal) -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !unwanted
}
