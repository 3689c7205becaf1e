//! What publishing with the emitter costs, beside `redis-benchmark` in the same run.
//!
//! Of n publishes at a time, the next n follow once all are answered: one emit awaited after the
//! other, or one batch. That is what `redis-benchmark -c 1 -P n PUBLISH` does, with bytes that it
//! prepared once. The last row is a batch as applications have them, beside the deepest pipeline of
//! the other. Nobody subscribes. Rounds take turns, and figures are medians; those of one run can be
//! compared with each other, and with nothing else. CPU is that of the publisher, user and system.
//!
//! ```sh
//! cargo bench -p roomcast-emitter --bench publish
//! ```
//!
//! Depths may be named, as in `-- 16 64`. On a machine that has more to do, ratios are steadiest with Redis on one core and both publishers
//! on another:
//!
//! ```sh
//! BENCH_CORES=0,1 cargo bench -p roomcast-emitter --bench publish
//! ```

#![expect(clippy::unwrap_used, reason = "a panic ends the bench")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    fs,
    io::{Write as _, stdout},
    process::Command,
    time::Instant,
};

use roomcast_emitter::Emitter;
use roomcast_protocol::{
    args::Args,
    channel::{Channels, Dialect, EMITTER_UID},
    message::Message,
    msgpack::TranscodeLimits,
    target::Target,
    wire::{Parser, Wire},
};
use support::Redis;
use tokio::runtime::{Builder, Runtime};

/// What is published, in bytes, with everything around the argument.
const PAYLOAD_BYTES: usize = 128;

/// At a time of the emitter, and of `redis-benchmark`.
const DEPTHS: [(usize, usize); 5] = [(1, 1), (16, 16), (64, 64), (512, 512), (10_000, 512)];

/// Each figure is the median of so many.
const ROUNDS: usize = 7;

fn main() {
    let redis = Redis::start();
    if let Ok(cores) = std::env::var("BENCH_CORES") {
        pin(&redis, &cores);
    }
    let text = text();
    let one = Builder::new_current_thread().enable_all().build().unwrap();
    let mut two = Builder::new_multi_thread();
    let two = two.worker_threads(2).enable_all().build().unwrap();
    let mut out = stdout();
    writeln!(
        out,
        "{PAYLOAD_BYTES} bytes: publishes per second (CPU µs of each), median of {ROUNDS}\n\
         depth  redis-benchmark    emitter, 1 thread         emitter, 2 workers"
    )
    .unwrap();
    let wanted = std::env::args().filter_map(|arg| arg.parse().ok());
    let wanted: Vec<usize> = wanted.collect();
    let is_wanted = |depth| wanted.is_empty() || wanted.contains(&depth);
    for (depth, floor_depth) in DEPTHS.into_iter().filter(|row| is_wanted(row.0)) {
        let count = if depth == 1 { 20_000 } else { 400_000 };
        let mut rounds = [const { Vec::new() }; 3];
        // In turns, as the machine may be busier at one time than at another.
        for _ in 0..ROUNDS {
            rounds[0].push(benchmark(&redis, floor_depth, count));
            rounds[1].push(emit(&one, &redis, &text, depth, count));
            rounds[2].push(emit(&two, &redis, &text, depth, count));
        }
        let [floor, one, two] = rounds.map(|rounds| Figures::median(&rounds));
        writeln!(
            out,
            "{depth:5}  {floor}  {one} = {:4.2}  {two} = {:4.2}",
            one.rate / floor.rate,
            two.rate / floor.rate
        )
        .unwrap();
    }
}

/// What one round has shown.
#[derive(Clone, Copy)]
struct Figures {
    /// Publishes per second.
    rate: f64,
    /// Microseconds of CPU for each.
    cpu: f64,
}

impl Figures {
    fn median(rounds: &[Self]) -> Self {
        let median = |of: fn(&Self) -> f64| {
            let mut all: Vec<_> = rounds.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        Self {
            rate: median(|figures| figures.rate),
            cpu: median(|figures| figures.cpu),
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:9.0} ({:5.2})", self.rate, self.cpu)
    }
}

/// Redis gets the first of two cores, this process and its children the second.
fn pin(redis: &Redis, cores: &str) {
    let (server, own) = cores.split_once(',').unwrap();
    let port = redis.port.to_string();
    let mut command = Command::new("redis-cli");
    let info = command.args(["-p", &port, "info", "server"]).output();
    let info = String::from_utf8(info.unwrap().stdout).unwrap();
    let pid = info
        .lines()
        .find_map(|line| line.trim().strip_prefix("process_id:"));
    for (core, pid) in [
        (server, pid.unwrap()),
        (own, &std::process::id().to_string()),
    ] {
        let pinned = Command::new("taskset").args(["-apc", core, pid]).output();
        assert!(pinned.unwrap().status.success());
    }
}

/// The CPU time of this process and of those that it has waited for, in seconds.
fn cpu() -> (f64, f64) {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // The name of the program, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks = rest.split_whitespace().skip(11).take(4);
    let ticks: Vec<f64> = ticks.map(|ticks| ticks.parse().unwrap()).collect();
    let seconds = |of: &[f64]| of.iter().sum::<f64>() / TICKS_PER_SECOND;
    (seconds(&ticks[..2]), seconds(&ticks[2..]))
}

/// The text that makes a message of the right size.
fn text() -> String {
    let channels = Channels::new("socket.io", Dialect::Classic);
    let wire = Wire::new(channels, Parser::Msgpack, TranscodeLimits::default());
    let size = |text: &str| {
        let mut target = Target::default();
        target.add_rooms("room");
        let message = Message::Broadcast {
            target,
            event: "event".into(),
            args: Args::encode(&text).unwrap(),
        };
        let publication = wire.message("/", EMITTER_UID, &message, None).unwrap();
        publication.payload.len()
    };
    let lengths = 0..PAYLOAD_BYTES;
    let mut texts = lengths.map(|length| "x".repeat(length));
    texts.find(|text| size(text) == PAYLOAD_BYTES).unwrap()
}

fn emit(runtime: &Runtime, redis: &Redis, text: &str, depth: usize, count: usize) -> Figures {
    let (url, text) = (redis.url(), text.to_owned());
    // In a task, as in an application.
    let task = runtime.spawn(async move {
        let emitter = Emitter::connect(&url).await.unwrap();
        let (before, _) = cpu();
        let start = Instant::now();
        for _ in 0..count / depth {
            if depth == 1 {
                emitter.to("room").emit("event", &text).await.unwrap();
                continue;
            }
            let mut batch = emitter.batch();
            for _ in 0..depth {
                batch.to("room").emit("event", &text).unwrap();
            }
            assert!(batch.send().await.iter().all(Result::is_ok));
        }
        Figures {
            rate: count as f64 / start.elapsed().as_secs_f64(),
            cpu: (cpu().0 - before) / count as f64 * 1e6,
        }
    });
    runtime.block_on(task).unwrap()
}

fn benchmark(redis: &Redis, depth: usize, count: usize) -> Figures {
    let payload = "x".repeat(PAYLOAD_BYTES);
    let mut command = Command::new("redis-benchmark");
    command.args(["--csv", "-c", "1", "-p", &redis.port.to_string()]);
    command.args(["-P", &depth.to_string(), "-n", &count.to_string()]);
    command.args(["PUBLISH", "socket.io#/#room#", &payload]);
    let (_, before) = cpu();
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    // The last line is `"PUBLISH …","rate",…`.
    let cells: Vec<_> = said.lines().last().unwrap().split("\",\"").collect();
    Figures {
        rate: cells[1].parse().unwrap(),
        cpu: (cpu().1 - before) / count as f64 * 1e6,
    }
}
