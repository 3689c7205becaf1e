//! A nightly report for everybody who has it open, from a cron job: no async, and an exit status
//! that tells whether it arrived.
//!
//! ```sh
//! REDIS_URL=redis://127.0.0.1 cargo run -p roomcast-emitter --example cron
//! ```

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use roomcast_emitter::blocking::Emitter;
use serde_json::json;

fn main() -> ExitCode {
    match report() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn report() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1".to_owned());
    let emitter = Emitter::connect(&url)?;
    let report = json!({ "orders": 1_204, "revenue": "48,160.00" });
    // Confirmed, as nobody will look at the log of this job before tomorrow.
    let reached = emitter.to("reports").emit_confirmed("nightly", report)?;
    if !reached.silent_nodes.is_empty() {
        return Err(format!("no answer from {}", reached.silent_nodes.join(", ")).into());
    }
    writeln!(
        io::stdout(),
        "{} pages have the report",
        reached.sockets.unwrap_or(0)
    )?;
    Ok(())
}
