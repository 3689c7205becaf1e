//! The watcher: a thread that samples the servers and the progress a few times per second, records
//! the series of the report, and shows a line on a terminal. Without a terminal, it prints the
//! phases.
//!
//! It has its own thread, so the clients' thread only stores a few numbers once per turn.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    clock::{self, Nanos},
    outcome::Point,
    system::Usage,
};

/// Progress of the clients' thread.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) connections: AtomicU64,
    pub(crate) deliveries: AtomicU64,
    phase: Mutex<Phase>,
    has_ended: AtomicBool,
}

#[derive(Clone, Default)]
struct Phase {
    name: String,
    ends_at: Option<Nanos>,
}

impl Progress {
    /// Starts a phase of the run; `ends_at` is its end, if known.
    pub(crate) fn enter(&self, name: &str, ends_at: Option<Nanos>) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        *phase = Phase {
            name: name.to_owned(),
            ends_at,
        };
    }

    fn phase(&self) -> Phase {
        let phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        phase.clone()
    }
}

pub(crate) struct Watch {
    pub(crate) progress: Arc<Progress>,
    thread: JoinHandle<Vec<(Nanos, Point)>>,
}

impl Watch {
    /// Starts to sample these processes.
    pub(crate) fn start(pids: Vec<u32>, shows_progress: bool) -> Self {
        let progress: Arc<Progress> = Arc::default();
        let shared = Arc::clone(&progress);
        let shown = match (shows_progress, std::io::stderr().is_terminal()) {
            (false, _) => Shown::Nothing,
            (true, false) => Shown::Phases,
            (true, true) => Shown::Line,
        };
        let thread = thread::spawn(move || watch(&shared, &pids, shown));
        Self { progress, thread }
    }

    /// Stops the thread and returns the series with times relative to `origin`.
    pub(crate) fn end(self, origin: Nanos) -> Vec<Point> {
        self.progress.has_ended.store(true, Relaxed);
        self.thread.thread().unpark();
        let points = self.thread.join().unwrap_or_default();
        let relative = |at: Nanos| clock::seconds(at) - clock::seconds(origin);
        points
            .into_iter()
            .map(|(at, point)| Point {
                at: relative(at),
                ..point
            })
            .collect()
    }
}

/// Output on standard error during the run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Nothing,
    Phases,
    Line,
}

fn watch(progress: &Progress, pids: &[u32], shown: Shown) -> Vec<(Nanos, Point)> {
    let mut points: Vec<(Nanos, Point)> = Vec::new();
    let mut told = String::new();
    let mut every = 1;
    let mut rounds = 0_usize;
    loop {
        let has_ended = progress.has_ended.load(Relaxed);
        let now = clock::now();
        let mut point = Point {
            connections: progress.connections.load(Relaxed),
            deliveries: progress.deliveries.load(Relaxed),
            ..Point::default()
        };
        for usage in pids.iter().filter_map(|pid| Usage::glance(*pid).ok()) {
            point.server_rss_bytes += usage.rss_bytes;
            point.server_cpu_nanos += usage.cpu_nanos;
        }
        match shown {
            Shown::Nothing => {}
            Shown::Phases => tell(progress, now, &mut told),
            Shown::Line => show(progress, now, points.last(), &point),
        }
        if rounds.is_multiple_of(every) {
            points.push((now, point));
        }
        rounds += 1;
        if points.len() == MOST_POINTS {
            // In a long run, every other point is dropped and the interval doubled.
            let mut keep = false;
            points.retain(|_| {
                keep = !keep;
                keep
            });
            every *= 2;
        }
        if has_ended {
            break;
        }
        thread::park_timeout(PERIOD);
    }
    if shown == Shown::Line {
        // A closed terminal is not an error.
        drop(write!(std::io::stderr(), "\r\x1b[K"));
    }
    points
}

/// Prints each phase once.
fn tell(progress: &Progress, now: Nanos, told: &mut String) {
    let phase = progress.phase();
    if phase.name == *told {
        return;
    }
    let length = phase.ends_at.map_or_else(String::new, |end| {
        let seconds = clock::seconds(end.saturating_sub(now));
        format!(" for {:.0} s", seconds.ceil())
    });
    // A closed standard error is not an error.
    drop(writeln!(std::io::stderr(), "{}{length}", phase.name));
    *told = phase.name;
}

fn show(progress: &Progress, now: Nanos, last: Option<&(Nanos, Point)>, point: &Point) {
    let phase = progress.phase();
    let left = phase.ends_at.map_or_else(String::new, |end| {
        format!(
            ", {:.0} s left",
            clock::seconds(end.saturating_sub(now)).ceil()
        )
    });
    let rate = last.map_or(0.0, |(at, last)| {
        let seconds = clock::seconds(now - at).max(1e-3);
        point.deliveries.saturating_sub(last.deliveries) as f64 / seconds
    });
    drop(write!(
        std::io::stderr(),
        "\r\x1b[K{}{left}: {} connections, {} messages, {rate:.0}/s, server {:.1} MB",
        phase.name,
        point.connections,
        point.deliveries,
        point.server_rss_bytes as f64 / 1e6,
    ));
}

const PERIOD: Duration = Duration::from_millis(250);

/// Maximum number of points of a series: two minutes at full density.
const MOST_POINTS: usize = 480;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watcher_sees_what_the_clients_say() {
        let origin = clock::now();
        let watch = Watch::start(vec![std::process::id()], false);
        watch.progress.connections.store(7, Relaxed);
        watch.progress.deliveries.store(9, Relaxed);
        let points = watch.end(origin);
        let last = points.last().unwrap();
        assert_eq!((last.connections, last.deliveries), (7, 9));
        assert!(last.server_rss_bytes > 0 && last.at >= 0.0);
    }
}
