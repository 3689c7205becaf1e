//! An emitter program: it reads one message per line from standard input, in the format of
//! `roomcast emit -`, and publishes them to a cluster.
//!
//! Writes never block: bytes that the pipe does not take are kept, and the sender sees their
//! number. Its standard error is passed through.

use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, bail};

use crate::{
    clock::{self, MILLISECOND, Nanos},
    external::{External, Unsent},
    system,
};

pub(crate) struct Program {
    child: Child,
    /// `None` once it is closed.
    input: Option<ChildStdin>,
    unsent: Unsent,
    is_closing: bool,
    ended_at: Option<Nanos>,
    cpu_nanos: Nanos,
    looked_at: Nanos,
}

impl Program {
    /// Starts a shell command. It replaces the shell, so the CPU time of the process is its own.
    pub(crate) fn start(command: &str) -> anyhow::Result<Self> {
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("exec {command}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("the emitter cannot be started")?;
        let input = child.stdin.take().context("the emitter's input")?;
        rustix::io::ioctl_fionbio(&input, true).context("the emitter's input")?;
        // A large pipe passes thousands of messages at once; with a small one they would wait on
        // our side.
        let _ = rustix::pipe::fcntl_setpipe_size(&input, PIPE_BYTES);
        Ok(Self {
            child,
            input: Some(input),
            unsent: Unsent::default(),
            is_closing: false,
            ended_at: None,
            cpu_nanos: 0,
            looked_at: 0,
        })
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let Some(input) = &mut self.input else {
            return Ok(());
        };
        if self.unsent.write_to(input).is_err() {
            // A process that closes its input is about to exit, and its status says more.
            let status = self.child.wait().context("the emitter")?;
            bail!("the emitter exited before its input was complete, with {status}");
        }
        Ok(())
    }

    fn look(&mut self) {
        self.looked_at = clock::now();
        // Of a process that has exited, only the main thread is left, or nothing.
        if let Ok(cpu) = system::cpu(self.child.id()) {
            self.cpu_nanos = self.cpu_nanos.max(cpu);
        }
    }
}

impl External for Program {
    fn send(&mut self, _: &str, room: &str, payload: &[u8]) {
        let head = format!("{{\"event\":\"message\",\"args\":[{{\"room\":\"{room}\",\"data\":\"");
        self.unsent.push(head.as_bytes());
        self.unsent.push(payload);
        let tail = format!("\"}}],\"rooms\":[\"{room}\"]}}\n");
        self.unsent.push(tail.as_bytes());
    }

    /// Fails if the process has exited early or with an error.
    fn pump(&mut self) -> anyhow::Result<()> {
        self.write()?;
        if self.is_closing {
            if self.unsent.len() == 0 {
                self.input = None;
            }
            let now = clock::now();
            if now - self.looked_at >= MILLISECOND {
                self.look();
            }
        }
        if self.ended_at.is_some() {
            return Ok(());
        }
        if let Some(status) = self.child.try_wait().context("the emitter")? {
            if !status.success() {
                bail!("the emitter exited with {status}");
            }
            if self.input.is_some() {
                bail!("the emitter exited before its input was complete");
            }
            self.ended_at = Some(clock::now());
        }
        Ok(())
    }

    fn is_busy(&self) -> bool {
        self.unsent.len() > 0 || self.is_closing && self.ended_at.is_none()
    }

    /// It proves that by its exit.
    fn has_emitted_all(&self) -> bool {
        self.ended_at.is_some()
    }

    /// Closes its input once everything is written, so it exits after it has emitted everything.
    fn close(&mut self) {
        self.is_closing = true;
    }

    fn unsent_bytes(&self) -> usize {
        self.unsent.len()
    }

    /// After its exit, the CPU time that was seen last, so at most its last milliseconds are missing.
    fn usage(&mut self) -> Option<(Nanos, Option<Nanos>)> {
        self.look();
        Some((self.cpu_nanos, self.ended_at))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.ended_at.is_none() {
            // It may exit by itself at the same time.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// The kernel's default limit for unprivileged users.
const PIPE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_cpu_time_is_seen_while_it_runs() {
        let mut program = Program::start("sh -c 'while :; do :; done'").unwrap();
        // Far more than a shell needs on a busy machine.
        let deadline = clock::now() + 60 * clock::SECOND;
        while program.usage().unwrap().0 < MILLISECOND {
            assert!(clock::now() < deadline, "it uses nothing");
            std::thread::yield_now();
        }
    }
}
