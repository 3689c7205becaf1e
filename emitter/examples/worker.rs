//! A worker that takes jobs from a list in Redis and emits their progress, each to a room named after
//! the job.
//!
//! ```sh
//! REDIS_URL=redis://127.0.0.1 cargo run -p roomcast-emitter --example worker
//! redis-cli RPUSH jobs resize-7
//! ```

use std::{
    env,
    io::{self, Write},
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client};
use roomcast_emitter::Emitter;
use serde_json::json;
use tokio::time::sleep;

/// The last job of the list ends the worker.
const STOP: &str = "stop";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1".to_owned());
    let emitter = Emitter::connect(&url).await?;
    // The next job may take hours to come, so there is no timeout for the reply.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(url)?;
    let mut jobs = client
        .get_multiplexed_async_connection_with_config(&config)
        .await?;
    loop {
        // Returns the name of the list and its first element.
        let mut next = redis::cmd("BLPOP");
        let (_, job): (String, String) = next.arg("jobs").arg(0).query_async(&mut jobs).await?;
        if job == STOP {
            return Ok(());
        }
        work(&emitter, &job).await?;
    }
}

async fn work(emitter: &Emitter, job: &str) -> Result<(), Box<dyn std::error::Error>> {
    let watchers = format!("job:{job}");
    for percent in [0, 25, 50, 75] {
        // A slow client may miss one, because it sees the next.
        let progress = emitter.to(&watchers).volatile();
        progress.emit("progress", (job, percent)).await?;
        sleep(Duration::from_millis(50)).await;
    }
    let done = json!({ "job": job, "ok": true });
    let delivery = emitter.to(&watchers).emit("done", done).await?;
    writeln!(io::stdout(), "{job}: received by {} nodes", delivery.nodes)?;
    emitter.in_(&watchers).sockets_leave(&watchers).await?;
    Ok(())
}
