//! The tool as a real process, for the tests of it.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod server;

use std::{
    process::{Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Far more than anything takes on a busy machine; nothing succeeds by waiting for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// What a run of the tool came to.
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    /// Standard output and standard error.
    pub(crate) said: String,
    /// The result, if one was written.
    pub(crate) result: Value,
}

impl Ran {
    /// A count of the ledger.
    pub(crate) fn tally(&self, name: &str) -> u64 {
        let count = self.result["ledger"][name].as_u64();
        count.unwrap_or_else(|| panic!("no `{name}`: {}", self.said))
    }

    #[track_caller]
    pub(crate) fn assert_tally(&self, name: &str, count: u64) {
        assert_eq!(self.tally(name), count, "{name}: {}", self.said);
    }

    #[track_caller]
    pub(crate) fn assert_says(&self, text: &str) {
        assert!(self.said.contains(text), "{}", self.said);
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.result["counts"][name].as_u64().unwrap_or(0)
    }

    /// Number of samples of a latency.
    pub(crate) fn samples(&self, name: &str) -> u64 {
        let buckets = self.result["latencies"][name].as_array();
        let counts = buckets
            .into_iter()
            .flatten()
            .map(|bucket| bucket[1].as_u64());
        counts.map(Option::unwrap).sum()
    }

    /// Fails unless every message arrived once, in order and unchanged. The tool may say that it was
    /// limited: a busy machine keeps no rate.
    pub(crate) fn assert_clean(&self) {
        assert!(
            matches!(self.status, Some(0 | 5)),
            "{:?}: {}",
            self.status,
            self.said
        );
        for fault in ["lost", "duplicated", "reordered", "corrupted", "stray"] {
            self.assert_tally(fault, 0);
        }
    }
}

/// Runs the tool with these arguments, and with a file for its result.
pub(crate) fn measure(args: &[&str]) -> Ran {
    let file = temporary("result.json");
    let json = format!("--json={file}");
    let args: Vec<&str> = args
        .iter()
        .copied()
        .chain([json.as_str(), "--quiet"])
        .collect();
    let (status, said) = run(&args);
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    Ran {
        status,
        said,
        result: serde_json::from_str(&text).unwrap_or_default(),
    }
}

/// Runs the tool: status, and all that it said.
pub(crate) fn run(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast-loadtest"));
    command.args(args).stdin(Stdio::null());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let (ended, end) = channel();
    thread::spawn(move || ended.send(child.wait_with_output().unwrap()));
    let Ok(output) = end.recv_timeout(DEADLINE) else {
        // It may end by itself at this very moment.
        let _ = kill_process(pid, Signal::KILL);
        panic!("still running: {args:?}");
    };
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// A file that only this call names, in the tests' own folder.
pub(crate) fn temporary(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Relaxed);
    let folder = env!("CARGO_TARGET_TMPDIR");
    let file = format!("{folder}/{}-{count}-{name}", std::process::id());
    // What an earlier process of this number left behind is no result of this one.
    let _ = std::fs::remove_file(&file);
    file
}
