//! Publishes with the emitter library, and prints how many publishes it made per second.
//!
//! Of `--depth` publishes at a time, the next follow once all are answered: one emit awaited after the
//! other, or one batch. That is what `redis-benchmark -c 1 -P DEPTH PUBLISH` does, with bytes that it
//! prepared once.

use std::{io::Write as _, time::Instant};

use anyhow::Context as _;
use clap::Parser;
use roomcast_emitter::Emitter;

#[derive(Clone, Parser)]
struct Options {
    /// Where to publish
    #[arg(long, value_name = "URL")]
    redis: String,
    /// Publishes under way at a time
    #[arg(long)]
    depth: usize,
    /// Publishes in all
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
