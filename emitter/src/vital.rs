//! Tasks that must run as long as their owner does.
//!
//! tokio keeps a panic inside its task. If such a task ended this way, the node would stay ready
//! and accept clients, but would never again receive messages of other nodes or write to its
//! sockets. The state that the task leaves cannot be repaired, so its panic ends the process: the
//! supervisor starts a new one, and the clients reconnect to another node meanwhile.

use std::{any::Any, panic::AssertUnwindSafe, process, thread, time::Duration};

use futures_util::FutureExt;

/// Time for the log to write why the process ends.
const LOG_TIME: Duration = Duration::from_millis(300);

/// Runs a task whose panic ends the process with status 1.
///
/// Only a panic of the task itself counts. A runtime that is dropped because the thread
/// that owns it panics drops its tasks too, and that panic belongs to the thread's owner.
pub async fn vital<T>(name: &'static str, task: impl Future<Output = T>) -> T {
    // The process ends, so the state after the panic is never used.
    let reason = match AssertUnwindSafe(task).catch_unwind().await {
        Ok(output) => return output,
        Err(reason) => reason,
    };
    tracing::error!(
        task = name,
        reason = text_of(&*reason),
        "an internal task panicked, so the process ends"
    );
    thread::sleep(LOG_TIME);
    process::exit(1);
}

/// The message of a panic. `panic!` makes a `&str` of a literal and a `String` of anything else.
fn text_of(reason: &(dyn Any + Send)) -> &str {
    reason
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| reason.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        process::{Command, Stdio},
    };

    use super::*;

    /// Set in the process that the test below starts.
    const CHILD: &str = "TEST_VITAL_PANICS";

    #[test]
    fn a_panic_in_a_vital_task_ends_the_process() {
        if env::var_os(CHILD).is_some() {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                tokio::spawn(vital("test", async { panic!("on purpose") }));
                // Without the exit, the test would pass in the child and its status be 0.
                tokio::time::sleep(Duration::from_secs(5)).await;
            });
            return;
        }
        let status = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "vital::tests::a_panic_in_a_vital_task_ends_the_process",
            ])
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(1));
    }

    #[test]
    fn a_panic_beside_a_vital_task_does_not_end_the_process() {
        let panicked = thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            runtime.block_on(async {
                tokio::spawn(vital("bystander", std::future::pending::<()>()));
                tokio::task::yield_now().await;
                panic!("on purpose");
            });
        });
        assert!(panicked.join().is_err());
    }

    #[test]
    fn a_vital_task_that_ends_or_is_aborted_ends_nothing_else() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            assert_eq!(tokio::spawn(vital("ends", async { 7 })).await.unwrap(), 7);
            let endless = tokio::spawn(vital("aborted", std::future::pending::<()>()));
            endless.abort();
            assert!(endless.await.unwrap_err().is_cancelled());
        });
    }
}
