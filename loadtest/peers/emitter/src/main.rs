//! Publishes with the emitter library, and prints how many publishes it made per second.
//!
//! It sends `--depth` publishes at a time and the next ones when all are acknowledged: single emits, or a
//! batch. `redis-benchmark -c 1 -P DEPTH PUBLISH` does the same with bytes that it prepared once.

use std::{io::Write as _, time::Instant};

use anyhow::Context as _;
use clap::Parser;
use roomcast_emitter::Emitter;

#[derive(Clone, Parser)]
struct Options {
    /// URL of Redis
    #[arg(long, value_name = "URL")]
    redis: String,
    /// Outstanding publishes
    #[arg(long)]
    depth: usize,
    /// Total number of publishes
    #[arg(long)]
    count: usize,
    /// Threads of the runtime
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Length of the event's argument
    #[arg(long, default_value_t = 64)]
    payload: usize,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut runtime = match options.workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime
        .worker_threads(options.workers)
        .enable_all()
        .build()?;
    // In a task, as in an application.
    let rate = runtime.block_on(async { tokio::spawn(publish(options)).await })??;
    writeln!(std::io::stdout(), "{rate}")?;
    Ok(())
}

async fn publish(options: Options) -> anyhow::Result<f64> {
    let emitter = Emitter::connect(&options.redis).await?;
    let text = "x".repeat(options.payload);
    let start = Instant::now();
    let mut published = 0;
    while published < options.count {
        if options.depth == 1 {
            emitter.to("room").emit("event", &text).await?;
        } else {
            let mut batch = emitter.batch();
            for _ in 0..options.depth {
                batch.to("room").emit("event", &text)?;
            }
            for outcome in batch.send().await {
                outcome.context("a publish of the batch")?;
            }
        }
        published += options.depth;
    }
    Ok(published as f64 / start.elapsed().as_secs_f64())
}
