//! The commands that wait to be sent over a link: segments of commands, bounded in bytes.
//!
//! ```text
//!              close                            Starting ─▶ Up ◀─▶ Down
//!   accepted in Up, and in Starting if                │      │       │ close
//!   `queues_at_start`; refused with the               │      ▼       ▼
//!   reason of the phase otherwise                     └─▶ Closing ─▶ Closed
//! ```

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::oneshot;

use super::{
    commands::Commands,
    outcome::{Outcome, PublishError},
};

/// The state before the first attempt to connect has ended.
pub(super) const STARTING: &str = "not connected yet";

/// Bytes of commands after which a further one begins a new segment.
const SEGMENT_BYTES: usize = 64 << 10;

/// Commands that are sent together, and their callers.
pub(super) struct Segment {
    /// Of many callers, or of one that keeps them for a retry.
    pub(super) commands: Arc<Commands>,
    pub(super) callers: Vec<Caller>,
}

/// A caller that waits for the replies to its commands. The receiver may have been dropped.
pub(super) enum Caller {
    One(oneshot::Sender<Outcome>),
    /// Sent two commands; the first only prepares the second.
    Second(oneshot::Sender<Outcome>),
    Many(usize, oneshot::Sender<Vec<Outcome>>),
}

impl Caller {
    pub(super) fn finish(self, replies: &mut impl Iterator<Item = Outcome>) {
        let lost = || Err(PublishError::Unconfirmed("a reply is missing".into()));
        match self {
            Self::One(reply) => drop(reply.send(replies.next().unwrap_or_else(lost))),
            Self::Second(reply) => drop(reply.send(replies.nth(1).unwrap_or_else(lost))),
            Self::Many(count, reply) => {
                let mut outcomes: Vec<_> = replies.take(count).collect();
                outcomes.resize_with(count, lost);
                drop(reply.send(outcomes));
            }
        }
    }
}

/// All of them get the same error.
pub(super) fn fail(callers: Vec<Caller>, error: &PublishError) {
    let mut replies = std::iter::repeat_with(|| Err(error.clone()));
    callers
        .into_iter()
        .for_each(|caller| caller.finish(&mut replies));
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Phase {
    /// The first attempt to connect is in flight.
    Starting,
    Up,
    Down(Arc<str>),
    /// Takes nothing more; queued commands are still sent.
    Closing,
    Closed,
}

/// The commands that wait to be sent.
pub(super) struct Queue {
    pub(super) phase: Phase,
    pub(super) segments: VecDeque<Segment>,
    /// Bytes of commands that have no reply yet.
    pub(super) bytes: usize,
    max_bytes: usize,
    /// Commands are also accepted before the first attempt to connect has ended.
    queues_at_start: bool,
}

impl Queue {
    pub(super) fn new(max_bytes: usize, queues_at_start: bool) -> Self {
        Self {
            phase: Phase::Starting,
            segments: VecDeque::new(),
            bytes: 0,
            max_bytes,
            queues_at_start,
        }
    }

    /// Appends commands to the segment that is being gathered.
    pub(super) fn gather(
        &mut self,
        commands: Commands,
        caller: Caller,
    ) -> Result<(), PublishError> {
        self.admit(commands.bytes().len())?;
        if let Some(segment) = self.segments.back_mut()
            && segment.commands.bytes().len() < SEGMENT_BYTES
            && let Some(gathered) = Arc::get_mut(&mut segment.commands)
        {
            gathered.append(&commands);
            segment.callers.push(caller);
        } else {
            self.append(Arc::new(commands), caller);
        }
        Ok(())
    }

    /// Appends a segment with commands of a caller that keeps them.
    pub(super) fn push(
        &mut self,
        commands: Arc<Commands>,
        caller: Caller,
    ) -> Result<(), PublishError> {
        self.admit(commands.bytes().len())?;
        self.append(commands, caller);
        Ok(())
    }

    fn append(&mut self, commands: Arc<Commands>, caller: Caller) {
        self.segments.push_back(Segment {
            commands,
            callers: vec![caller],
        });
    }

    /// Counts the bytes if there is room for them and the phase allows it.
    fn admit(&mut self, bytes: usize) -> Result<(), PublishError> {
        match &self.phase {
            Phase::Up => {}
            Phase::Starting if self.queues_at_start => {}
            Phase::Starting => return Err(PublishError::Unavailable(STARTING.into())),
            Phase::Down(reason) => return Err(PublishError::Unavailable(reason.clone())),
            Phase::Closing | Phase::Closed => return Err(PublishError::closed()),
        }
        if bytes > self.max_bytes {
            let reason = format!("a command of {bytes} bytes, allowed are {}", self.max_bytes);
            return Err(PublishError::Refused(reason.into()));
        }
        if self.bytes + bytes > self.max_bytes {
            return Err(PublishError::Overloaded {
                queued_bytes: self.bytes,
            });
        }
        self.bytes += bytes;
        Ok(())
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(max_bytes: usize) -> Queue {
        let mut queue = Queue::new(max_bytes, false);
        queue.phase = Phase::Up;
        queue
    }

    /// Appends a command of so many bytes.
    fn push(queue: &mut Queue, bytes: usize) -> Result<oneshot::Receiver<Outcome>, PublishError> {
        let empty = Commands::one(&[""]).bytes().len();
        let mut word = "x".repeat(bytes - empty);
        while Commands::one(&[&word]).bytes().len() > bytes {
            word.pop();
        }
        let (reply, receiver) = oneshot::channel();
        queue.gather(Commands::one(&[word]), Caller::One(reply))?;
        Ok(receiver)
    }

    #[test]
    fn commands_gather_into_segments_of_a_size_in_their_order() {
        let mut queue = up(usize::MAX);
        for _ in 0..3 {
            push(&mut queue, SEGMENT_BYTES / 2 + 10).unwrap();
        }
        let kept = Arc::new(Commands::one(&["PING"]));
        let (reply, _receiver) = oneshot::channel();
        queue
            .push(Arc::clone(&kept), Caller::Many(1, reply))
            .unwrap();
        push(&mut queue, 20).unwrap();
        let callers: Vec<_> = queue.segments.iter().map(|s| s.callers.len()).collect();
        assert_eq!(callers, [2, 1, 1, 1]);
        assert_eq!(kept.len(), 1);
    }

    #[test]
    fn bytes_are_bounded_and_a_command_that_never_fits_is_refused() {
        let mut queue = up(100);
        push(&mut queue, 60).unwrap();
        let overloaded = PublishError::Overloaded { queued_bytes: 60 };
        assert_eq!(push(&mut queue, 50).unwrap_err(), overloaded);
        let refused = push(&mut queue, 110).unwrap_err();
        assert!(matches!(refused, PublishError::Refused(_)));
        queue.bytes -= 60;
        push(&mut queue, 100).unwrap();
    }

    #[test]
    fn only_a_link_that_is_up_or_queues_at_start_accepts_commands() {
        let down: Arc<str> = "gone".into();
        for (phase, queues_at_start, is_accepted) in [
            (Phase::Starting, false, false),
            (Phase::Starting, true, true),
            (Phase::Up, false, true),
            (Phase::Down(down), true, false),
            (Phase::Closing, true, false),
            (Phase::Closed, true, false),
        ] {
            let mut queue = Queue::new(100, queues_at_start);
            queue.phase = phase.clone();
            let accepted = push(&mut queue, 20);
            assert_eq!(accepted.is_ok(), is_accepted, "{phase:?}");
            if let Err(error) = accepted {
                assert!(matches!(error, PublishError::Unavailable(_)), "{phase:?}");
            }
        }
    }

    #[test]
    fn each_caller_gets_the_replies_to_its_commands() {
        let value = |number| Ok(redis::Value::Int(number));
        let mut replies = (1..=5).map(value);
        let (one, mut first) = oneshot::channel();
        let (second, mut prepared) = oneshot::channel();
        let (many, mut rest) = oneshot::channel();
        Caller::One(one).finish(&mut replies);
        Caller::Second(second).finish(&mut replies);
        // One reply is missing.
        Caller::Many(3, many).finish(&mut replies);
        assert_eq!(first.try_recv().unwrap(), value(1));
        assert_eq!(prepared.try_recv().unwrap(), value(3));
        let rest = rest.try_recv().unwrap();
        assert_eq!(rest[..2], [value(4), value(5)]);
        assert!(matches!(rest[2], Err(PublishError::Unconfirmed(_))));
    }
}
