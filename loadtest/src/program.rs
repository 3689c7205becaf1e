//! An emitter program: it reads one message per line from standard input, in the format of
//! `roomcast emit -`, and publishes them to a cluster.
//!
//! Writes never block: bytes that the pipe does not take are kept, and the sender sees their
//! number. Its standard error is passed through.

use std::{
    io::{ErrorKind, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{
    clock::{self, MILLISECOND, Nanos},
    system,
};

pub(crate) struct Program {
    child: Child,
    /// `None` once it is closed.
    input: Option<ChildStdin>,
    unsent: Vec<u8>,
    sent: usize,
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
            unsent: Vec::new(),
            sent: 0,
            is_closing: false,
            ended_at: None,
            cpu_nanos: 0,
            looked_at: 0,
        })
    }

    /// Queues a message for a room. Room and payload must not need escaping in JSON.
    pub(crate) fn emit(&mut self, room: &str, payload: &[u8]) {
        let head = format!("{{\"event\":\"message\",\"args\":[{{\"room\":\"{room}\",\"data\":\"");
        self.unsent.extend_from_slice(head.as_bytes());
        self.unsent.extend_from_slice(payload);
        let tail = format!("\"}}],\"rooms\":[\"{room}\"]}}\n");
        self.unsent.extend_from_slice(tail.as_bytes());
    }

    /// Closes its input once everything is written, so it exits after it has emitted everything.
    pub(crate) fn close(&mut self) {
        self.is_closing = true;
    }

    /// Bytes that its pipe has not accepted.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.unsent.len() - self.sent
    }

    /// Writes pending bytes and checks the process. Fails if it has exited early or with an error.
    pub(crate) fn pump(&mut self) -> anyhow::Result<()> {
        self.write()?;
        if self.is_closing {
            if self.unsent_bytes() == 0 {
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

    /// CPU time so far. After its exit, the value that was seen last, so at most its last
    /// milliseconds are missing.
    pub(crate) fn cpu(&mut self) -> Nanos {
        self.look();
        self.cpu_nanos
    }

    /// Whether its input is complete but it has not exited.
    pub(crate) fn is_ending(&self) -> bool {
        self.is_closing && self.ended_at.is_none()
    }

    /// Time of its successful exit.
    pub(crate) fn ended_at(&self) -> Option<Nanos> {
        self.ended_at
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let Some(input) = &mut self.input else {
            return Ok(());
        };
        while self.sent < self.unsent.len() {
            match input.write(&self.unsent[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    // A process that closes its input is about to exit, and its status says more.
                    let status = self.child.wait().context("the emitter")?;
                    bail!("the emitter exited before its input was complete, with {status}");
                }
            }
        }
        if self.sent == self.unsent.len() {
            self.unsent.clear();
            self.sent = 0;
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
        while program.cpu() < MILLISECOND {
            assert!(clock::now() < deadline, "it uses nothing");
            std::thread::yield_now();
        }
    }
}
