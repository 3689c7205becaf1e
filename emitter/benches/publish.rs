//! What publishing with the emitter costs, beside `redis-benchmark` in the same run.
//!
//! One emit at a time, and batches of several sizes, each awaited before the next: what
//! `redis-benchmark -c 1 -P n PUBLISH` does with bytes that it prepared once. Nobody subscribes.
//! Figures of one run can be compared with each other, and with nothing else.
//!
//! ```sh
//! cargo bench -p roomcast-emitter --bench publish
//! ```

#![expect(clippy::unwrap_used, reason = "a panic ends the bench")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    io::{Write as _, stdout},
    process::Command,
    time::Instant,
};

use roomcast_emitter::{
    Emitter,
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

const DEPTHS: [usize; 4] = [1, 16, 64, 512];

/// Each figure is the median of so many.
const ROUNDS: usize = 5;

fn main() {
    let redis = Redis::start();
    let text = text();
    let one = Builder::new_current_thread().enable_all().build().unwrap();
    let mut two = Builder::new_multi_thread();
    let two = two.worker_threads(2).enable_all().build().unwrap();
    let mut out = stdout();
    writeln!(
        out,
        "{PAYLOAD_BYTES} bytes, publishes per second, median of {ROUNDS}\n\
         depth  redis-benchmark    emitter, 1 thread   emitter, 2 workers"
    )
    .unwrap();
    for depth in DEPTHS {
        let count = if depth == 1 { 20_000 } else { 400_000 };
        let mut rates = [const { Vec::new() }; 3];
        // In turns, as the machine may be busier at one time than at another.
        for _ in 0..ROUNDS {
            rates[0].push(benchmark(&redis, depth, count));
            rates[1].push(emit(&one, &redis, &text, depth, count));
            rates[2].push(emit(&two, &redis, &text, depth, count));
        }
        let [floor, one, two] = rates.map(median);
        writeln!(
            out,
            "{depth:5}  {floor:15.0}  {one:12.0} ({:4.2})  {two:12.0} ({:4.2})",
            one / floor,
            two / floor
        )
        .unwrap();
    }
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

fn emit(runtime: &Runtime, redis: &Redis, text: &str, depth: usize, count: usize) -> f64 {
    runtime.block_on(async {
        let emitter = Emitter::connect(&redis.url()).await.unwrap();
        let start = Instant::now();
        for _ in 0..count / depth {
            if depth == 1 {
                emitter.to("room").emit("event", text).await.unwrap();
                continue;
            }
            let mut batch = emitter.batch();
            for _ in 0..depth {
                batch.to("room").emit("event", text).unwrap();
            }
            assert!(batch.send().await.iter().all(Result::is_ok));
        }
        count as f64 / start.elapsed().as_secs_f64()
    })
}

fn benchmark(redis: &Redis, depth: usize, count: usize) -> f64 {
    let payload = "x".repeat(PAYLOAD_BYTES);
    let mut command = Command::new("redis-benchmark");
    command.args(["--csv", "-c", "1", "-p", &redis.port.to_string()]);
    command.args(["-P", &depth.to_string(), "-n", &count.to_string()]);
    command.args(["PUBLISH", "socket.io#/#room#", &payload]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    // The last line is `"PUBLISH …","rate",…`.
    let cells: Vec<_> = said.lines().last().unwrap().split("\",\"").collect();
    cells[1].parse().unwrap()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
