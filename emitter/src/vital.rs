//! Tasks that must run as long as their owner does.
//!
//! tokio keeps a panic inside its task. If such a task ended this way, the node would stay ready and
//! accept clients, and would never again hear another node, or write to its sockets. Nothing can
//! repair the state that the task left behind, so its panic ends the process: the supervisor starts a
//! new one, and the clients reconnect to another node meanwhile.

use std::{process, thread, time::Duration};

/// Time for the log to write why the process ends.
const LOG_TIME: Duration = Duration::from_millis(300);

/// Runs a task whose panic ends the process with status 1.
pub async fn vital<T>(name: &'static str, task: impl Future<Output = T>) -> T {
    let _exit = ExitOnPanic(name);
    task.await
}

struct ExitOnPanic(&'static str);

impl Drop for ExitOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(
                task = self.0,
                "an internal task panicked, so the process ends"
            );
            thread::sleep(LOG_TIME);
            process::exit(1);
        }
    }
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
