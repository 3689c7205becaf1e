//! A progress bar on a terminal, and nothing elsewhere.

use std::io::{self, IsTerminal, Stderr, Write};

/// Width of the bar, in characters.
const WIDTH: usize = 30;

/// A line on standard error that is overwritten on each update.
pub(super) struct Progress {
    terminal: Option<Stderr>,
    last: String,
}

impl Progress {
    /// Shows nothing unless `wanted` is set and standard error is a terminal.
    pub(super) fn new(is_wanted: bool) -> Self {
        let stderr = io::stderr();
        Self {
            terminal: (is_wanted && stderr.is_terminal()).then_some(stderr),
            last: String::new(),
        }
    }

    pub(super) fn show(&mut self, messages: usize, read_bytes: u64, total_bytes: Option<u64>) {
        let Some(terminal) = &mut self.terminal else {
            return;
        };
        let line = line(messages, read_bytes, total_bytes);
        // Writing to a terminal is slow, so an unchanged line is not written again.
        if line != self.last {
            // The terminal may be closed, which must not stop the command.
            let _ = write!(terminal, "\r{line}\x1b[K");
            self.last = line;
        }
    }
}

impl Drop for Progress {
    /// Clears the line for the next output.
    fn drop(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            let _ = write!(terminal, "\r\x1b[K");
        }
    }
}

fn line(messages: usize, read_bytes: u64, total_bytes: Option<u64>) -> String {
    let Some(total @ 1..) = total_bytes else {
        return format!("{messages} messages");
    };
    // The file may grow while it is read.
    let percent = usize::try_from(read_bytes.min(total).saturating_mul(100) / total)
        .expect("it is at most 100");
    let done = WIDTH * percent / 100;
    let (full, empty) = ("#".repeat(done), ".".repeat(WIDTH - done));
    format!("[{full}{empty}] {percent:3} %  {messages} messages")
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_bar_needs_to_know_where_it_ends() {
        assert_eq!(line(7, 50, None), "7 messages");
        assert_eq!(line(0, 0, Some(0)), "0 messages");
        assert_eq!(
            line(7, 50, Some(100)),
            "[###############...............]  50 %  7 messages"
        );
        assert!(line(9, 300, Some(100)).starts_with("[##############################] 100 %"));
    }
}
