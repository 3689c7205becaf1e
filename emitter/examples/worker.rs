//! A worker that takes jobs from a list in Redis and tells whoever watches a job how far it is: in
//! the room of that job.
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

use roomcast_emitter::{
    Emitter,
    endpoint::{Endpoint, Purpose},
};
use serde_json::json;
use tokio::time::sleep;

/// The last job of the list ends the worker.
const STOP: &str = "stop";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1".to_owned());
    let emitter = Emitter::connect(&url).await?;
    let endpoint = Endpoint::new(url.parse()?);
    let mut jobs = endpoint.connect(Purpose::Lookup).await?;
    loop {
        // Answers the name of the list and its first element.
        let next = jobs.command(&["BLPOP", "jobs", "0"]).await?;
        let job = next.list().and_then(|pair| pair.get(1)?.text());
        match job {
            Some(STOP) => return Ok(()),
            Some(job) => work(&emitter, job).await?,
            None => {}
        }
    }
}

async fn work(emitter: &Emitter, job: &str) -> Result<(), Box<dyn std::error::Error>> {
    let watchers = format!("job:{job}");
    for percent in [0, 25, 50, 75] {
        // Whoever misses one sees the next: no reason to let slow clients hold them back.
        let progress = emitter.to(&watchers).volatile();
        progress.emit("progress", (job, percent)).await?;
        sleep(Duration::from_millis(50)).await;
    }
    let done = json!({ "job": job, "ok": true });
    let delivery = emitter.to(&watchers).emit("done", done).await?;
    writeln!(
        io::stdout(),
        "{job}: {} nodes have watchers",
        delivery.nodes
    )?;
    emitter.in_(&watchers).sockets_leave(&watchers).await?;
    Ok(())
}
