//! Sources of messages that are not clients: our own publisher, or an emitter program.

use std::io::{ErrorKind, Write};

use crate::clock::Nanos;

pub(crate) trait External {
    /// Queues a message for a room. Room and payload must not need escaping in JSON.
    fn send(&mut self, namespace: &str, room: &str, payload: &[u8]);

    /// Writes pending bytes and reads available ones, without blocking.
    fn pump(&mut self) -> anyhow::Result<()>;

    /// Whether it has work in progress.
    fn is_busy(&self) -> bool;

    /// Whether everything has been emitted.
    fn has_emitted_all(&self) -> bool {
        !self.is_busy()
    }

    /// Declares that no messages follow.
    fn close(&mut self) {}

    /// Bytes that it has not accepted; they count as not sent.
    fn unsent_bytes(&self) -> usize {
        0
    }

    /// CPU time of a program so far, and the time of its exit.
    fn usage(&mut self) -> Option<(Nanos, Option<Nanos>)> {
        None
    }

    /// Number of messages that Redis has acknowledged to our own publisher, and of the subscribers that it has sent
    /// them to.
    fn taken(&self) -> Option<(u64, u64)> {
        None
    }
}

/// Bytes for a stream that never blocks.
#[derive(Default)]
pub(crate) struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
}

impl Unsent {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes as much as the stream takes.
    pub(crate) fn write_to(&mut self, stream: &mut impl Write) -> std::io::Result<()> {
        while self.len() > 0 {
            match stream.write(&self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}
