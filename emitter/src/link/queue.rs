//! What is said to a server and not answered yet: bytes in order, and who waits for which reply.
//!
//! A state machine without I/O. Positions count the bytes of all commands since the start, so that
//! after a broken connection it is known which commands the server may have seen.

use std::{collections::VecDeque, ops::Range, sync::Arc, task::Waker};

use tokio::sync::oneshot;

use super::{Commands, LinkError, NOT_YET};
use crate::{endpoint::DirectWriter, resp, value::Value};

/// Buffers larger than this are not kept once they are empty.
const KEPT_BYTES: usize = 256 << 10;

/// A caller writes this many bytes by itself though others wait for replies, too: to let the task
/// gather more would save nothing.
const DIRECT_BYTES: usize = 4 << 10;

/// Takes the reply to a command.
pub(super) type Reply = oneshot::Sender<Result<Value, LinkError>>;

/// What became of many commands, in their order.
pub(super) type Outcomes = Vec<Result<Value, LinkError>>;

/// Takes the replies to many commands.
pub(super) type ReplyToMany = oneshot::Sender<Outcomes>;

/// What became of commands, and who waits to hear it.
#[derive(Debug)]
pub(super) enum Told {
    One(Reply, Result<Value, LinkError>),
    Many(ReplyToMany, Outcomes),
}

impl Told {
    /// Who does not wait any more need not know.
    pub(super) fn tell(self) {
        match self {
            Self::One(reply, outcome) => drop(reply.send(outcome)),
            Self::Many(reply, outcomes) => drop(reply.send(outcomes)),
        }
    }
}

pub(super) struct Queue {
    phase: Phase,
    max_bytes: usize,
    /// Commands that nobody has begun to write.
    out: Vec<u8>,
    /// Somebody is writing what comes before `out`.
    is_held: bool,
    waiting: VecDeque<Waiting>,
    appended: u64,
    written: u64,
    answered: u64,
    /// Counts connections, so that whoever wrote to an old one does not touch the new one.
    connection: u64,
    /// Writes from a caller's thread; only while the connection lives.
    direct: Option<DirectWriter>,
    /// The link's task.
    waker: Option<Waker>,
    /// The task has nothing to write and wants to be woken when there is something.
    is_idle: bool,
    /// The task shall open another connection.
    is_replaced: bool,
}

#[derive(Clone)]
enum Phase {
    Up,
    Down(Arc<str>),
    /// What waits is still written and answered.
    Closing,
    Closed,
}

/// One command, or several of which one caller hears at once.
struct Waiting {
    /// Where the last command ends.
    end: u64,
    waiter: Waiter,
}

enum Waiter {
    /// The command only prepares the next one.
    Nobody,
    One(Reply),
    Many(Many),
}

/// Commands of one caller.
struct Many {
    reply: ReplyToMany,
    /// What is known; those that wait have no meaningful entry yet.
    outcomes: Outcomes,
    /// Those that wait or are answered: where they end, and their places among the outcomes.
    taken: Vec<(u64, usize)>,
    answered: usize,
}

/// Bytes that a caller's thread may write by itself.
pub(super) struct Direct {
    connection: u64,
    pub(super) writer: DirectWriter,
    pub(super) bytes: Vec<u8>,
}

/// What the task finds to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// The buffer is filled and must be given back.
    Filled,
    /// Nothing; the waker will be called.
    Empty,
    /// Several callers are at it: whoever is about to say something, too, shall have a turn first,
    /// so that one write carries it all. Must be asked for again.
    Gathering,
    /// The link is to be closed, and everything is answered.
    Finished,
}

impl Queue {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            phase: Phase::Down(NOT_YET.into()),
            max_bytes,
            out: Vec::new(),
            is_held: false,
            waiting: VecDeque::new(),
            appended: 0,
            written: 0,
            answered: 0,
            connection: 0,
            direct: None,
            waker: None,
            is_idle: false,
            is_replaced: false,
        }
    }

    /// Appends a command that is encoded already, after one that prepares it, if any.
    pub(super) fn push_encoded(
        &mut self,
        preparation: Option<&[u8]>,
        command: &[u8],
        reply: Reply,
    ) -> Result<(), LinkError> {
        self.admit(command.len() + preparation.map_or(0, <[u8]>::len))?;
        if let Some(preparation) = preparation {
            self.out.extend_from_slice(preparation);
            self.expect(preparation.len(), Waiter::Nobody);
        }
        self.out.extend_from_slice(command);
        self.expect(command.len(), Waiter::One(reply));
        Ok(())
    }

    /// Appends those commands for which there is room. If there is none for any of them, that is
    /// what became of them.
    pub(super) fn push_many(
        &mut self,
        commands: &Commands,
        range: Range<usize>,
        reply: ReplyToMany,
    ) -> Result<(), Outcomes> {
        let mut outcomes = Vec::with_capacity(range.len());
        let mut taken = Vec::with_capacity(range.len());
        self.out.reserve(commands.bytes_of(&range));
        for command in range.map(|index| commands.get(index)) {
            let admitted = self.admit(command.len());
            if admitted.is_ok() {
                self.out.extend_from_slice(command);
                self.appended += command.len() as u64;
                taken.push((self.appended, outcomes.len()));
            }
            outcomes.push(admitted.map(|()| Value::Nil));
        }
        if taken.is_empty() {
            return Err(outcomes);
        }
        let waiter = Waiter::Many(Many {
            reply,
            outcomes,
            taken,
            answered: 0,
        });
        let end = self.appended;
        self.waiting.push_back(Waiting { end, waiter });
        Ok(())
    }

    /// Appends a command.
    pub(super) fn push<A: AsRef<[u8]>>(
        &mut self,
        args: &[A],
        reply: Reply,
    ) -> Result<(), LinkError> {
        let length = resp::encoded_len(args);
        self.admit(length)?;
        resp::encode_command(&mut self.out, args);
        self.expect(length, Waiter::One(reply));
        Ok(())
    }

    fn admit(&self, length: usize) -> Result<(), LinkError> {
        match &self.phase {
            Phase::Up => {}
            Phase::Down(reason) => return Err(LinkError::Unavailable(reason.clone())),
            Phase::Closing | Phase::Closed => return Err(LinkError::closed()),
        }
        let queued_bytes = self.queued_bytes();
        if length > self.max_bytes {
            return Err(LinkError::TooLarge {
                bytes: length,
                max_bytes: self.max_bytes,
            });
        }
        if length > self.max_bytes - queued_bytes {
            return Err(LinkError::Overloaded { queued_bytes });
        }
        Ok(())
    }

    fn expect(&mut self, length: usize, waiter: Waiter) {
        self.appended += length as u64;
        let end = self.appended;
        self.waiting.push_back(Waiting { end, waiter });
    }

    /// After a push: what the caller's own thread may write, or whom it has to wake.
    ///
    /// A caller that is alone or has much to say writes by itself, which saves waking the task. With
    /// more of them, one write by the task carries it all.
    pub(super) fn after_push(&mut self) -> (Option<Direct>, Option<Waker>) {
        if self.is_held {
            return (None, None);
        }
        match &self.direct {
            Some(writer) if self.waiting.len() == 1 || self.out.len() >= DIRECT_BYTES => {
                let direct = Direct {
                    connection: self.connection,
                    writer: writer.clone(),
                    bytes: std::mem::take(&mut self.out),
                };
                self.is_held = true;
                // Until it is known better, the server may have seen it.
                self.written = self.appended;
                (Some(direct), None)
            }
            _ => (None, self.wake_if_idle()),
        }
    }

    /// The caller's thread has written this many bytes; says whom to wake if more is to be written.
    pub(super) fn after_direct(&mut self, mut direct: Direct, written: usize) -> Option<Waker> {
        if direct.connection != self.connection {
            return None;
        }
        self.is_held = false;
        if written < direct.bytes.len() {
            self.written -= (direct.bytes.len() - written) as u64;
            direct.bytes.drain(..written);
            direct.bytes.append(&mut self.out);
            self.out = direct.bytes;
        } else if self.out.is_empty() {
            self.out = emptied(direct.bytes);
        }
        if self.out.is_empty() {
            return None;
        }
        self.wake_if_idle()
    }

    fn wake_if_idle(&mut self) -> Option<Waker> {
        if !std::mem::take(&mut self.is_idle) {
            return None;
        }
        self.waker.clone()
    }

    /// Whether the task has to leave its connection at once.
    pub(super) fn is_replaced(&self) -> bool {
        self.is_replaced
    }

    /// Exchanges the empty buffer for what is to be written. It has to be given back with
    /// [`after_chunk`](Self::after_chunk).
    pub(super) fn take_chunk(
        &mut self,
        chunk: &mut Vec<u8>,
        waker: &Waker,
        has_gathered: bool,
    ) -> Chunk {
        match &mut self.waker {
            Some(own) => own.clone_from(waker),
            own => *own = Some(waker.clone()),
        }
        if matches!(self.phase, Phase::Closing) && self.waiting.is_empty() {
            return Chunk::Finished;
        }
        if self.is_held || self.out.is_empty() {
            self.is_idle = true;
            return Chunk::Empty;
        }
        self.is_idle = false;
        if self.waiting.len() > 1 && !has_gathered {
            return Chunk::Gathering;
        }
        std::mem::swap(chunk, &mut self.out);
        self.is_held = true;
        Chunk::Filled
    }

    /// The task has written the first bytes of its chunk.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    /// The task has written all of its chunk.
    pub(super) fn after_chunk(&mut self, chunk: &mut Vec<u8>) {
        *chunk = emptied(std::mem::take(chunk));
        self.is_held = false;
    }

    /// Matches replies to those who wait for them. False if nobody waits for one of them.
    pub(super) fn answer(&mut self, replies: &mut Vec<Value>, told: &mut Vec<Told>) -> bool {
        for reply in replies.drain(..) {
            let Some(first) = self.waiting.front_mut() else {
                return false;
            };
            if let Waiter::Many(many) = &mut first.waiter {
                let (end, place) = many.taken[many.answered];
                self.answered = end;
                many.outcomes[place] = Ok(reply);
                many.answered += 1;
                if many.answered < many.taken.len() {
                    continue;
                }
                let finished = self.waiting.pop_front().map(|waiting| waiting.waiter);
                if let Some(Waiter::Many(many)) = finished {
                    told.push(Told::Many(many.reply, many.outcomes));
                }
                continue;
            }
            self.answered = first.end;
            let finished = self.waiting.pop_front().map(|waiting| waiting.waiter);
            if let Some(Waiter::One(sender)) = finished {
                told.push(Told::One(sender, Ok(reply)));
            }
        }
        true
    }

    /// There is a connection. False if the link has been closed meanwhile.
    pub(super) fn connected(&mut self, direct: Option<DirectWriter>) -> bool {
        if self.is_closed() {
            return false;
        }
        self.phase = Phase::Up;
        self.direct = direct;
        self.is_replaced = false;
        true
    }

    /// There is no connection any more. Hands out who waits, with the reason for each.
    #[must_use = "those who wait must be told"]
    pub(super) fn disconnected(&mut self, reason: &Arc<str>) -> Vec<Told> {
        if !matches!(self.phase, Phase::Closing | Phase::Closed) {
            self.phase = Phase::Down(reason.clone());
        }
        self.connection += 1;
        self.direct = None;
        self.is_held = false;
        self.is_replaced = false;
        self.out = Vec::new();
        let written = self.written;
        self.written = self.appended;
        self.answered = self.appended;
        let failed = std::mem::take(&mut self.waiting);
        // Only whole commands are carried out.
        let error = |end: u64| {
            if end <= written {
                LinkError::Unconfirmed(reason.clone())
            } else {
                LinkError::Unavailable(reason.clone())
            }
        };
        let told = failed
            .into_iter()
            .filter_map(|waiting| match waiting.waiter {
                Waiter::Nobody => None,
                Waiter::One(reply) => Some(Told::One(reply, Err(error(waiting.end)))),
                Waiter::Many(mut many) => {
                    for (end, place) in many.taken.drain(many.answered..) {
                        many.outcomes[place] = Err(error(end));
                    }
                    Some(Told::Many(many.reply, many.outcomes))
                }
            });
        told.collect()
    }

    /// Takes nothing more. What waits is still answered, unless there is no connection.
    pub(super) fn close(&mut self) -> Option<Waker> {
        self.phase = match self.phase {
            Phase::Up | Phase::Closing => Phase::Closing,
            Phase::Down(_) | Phase::Closed => Phase::Closed,
        };
        self.is_idle = false;
        self.waker.clone()
    }

    /// Asks the task for another connection, if there is one.
    pub(super) fn replace(&mut self) -> Option<Waker> {
        self.is_replaced = matches!(self.phase, Phase::Up);
        self.is_idle = false;
        self.waker.clone()
    }

    /// Whether the link has been closed.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Closed)
    }

    /// Bytes of commands that are not answered.
    pub(super) fn queued_bytes(&self) -> usize {
        usize::try_from(self.appended - self.answered).expect("it is within the limit")
    }

    /// Where the last answered command ends, if another one waits.
    pub(super) fn stuck_at(&self) -> Option<u64> {
        (!self.waiting.is_empty()).then_some(self.answered)
    }
}

fn emptied(mut buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() > KEPT_BYTES {
        return Vec::new();
    }
    buffer.clear();
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    type Receiver = oneshot::Receiver<Result<Value, LinkError>>;

    fn up(max_bytes: usize) -> Queue {
        let mut queue = Queue::new(max_bytes);
        assert!(queue.connected(None));
        queue
    }

    fn push(queue: &mut Queue, command: &[u8]) -> Result<Receiver, LinkError> {
        let (reply, receiver) = oneshot::channel();
        queue.push_encoded(None, command, reply)?;
        Ok(receiver)
    }

    fn take(queue: &mut Queue, has_gathered: bool) -> (Chunk, Vec<u8>) {
        let mut chunk = Vec::new();
        let taken = queue.take_chunk(&mut chunk, Waker::noop(), has_gathered);
        (taken, chunk)
    }

    fn reasons(told: Vec<Told>) -> Vec<LinkError> {
        told.into_iter().flat_map(errors).collect()
    }

    fn errors(told: Told) -> Vec<LinkError> {
        let outcomes = match told {
            Told::One(_, outcome) => vec![outcome],
            Told::Many(_, outcomes) => outcomes,
        };
        outcomes.into_iter().filter_map(Result::err).collect()
    }

    fn commands(all: &[&[u8]]) -> Commands {
        let mut commands = Commands::default();
        for command in all {
            let pushed = commands.push(|out| {
                out.extend_from_slice(command);
                Ok::<_, ()>(())
            });
            pushed.unwrap();
        }
        commands
    }

    #[test]
    fn many_commands_are_answered_together_and_each_has_its_own_outcome() {
        let mut queue = up(10);
        let (reply, mut receiver) = oneshot::channel();
        let commands = commands(&[b"1234", b"larger than all", b"56", b"7890x", b"y"]);
        queue.push_many(&commands, 0..5, reply).unwrap();
        assert_eq!(queue.queued_bytes(), 7);
        assert_eq!(
            take(&mut queue, false),
            (Chunk::Filled, b"123456y".to_vec())
        );
        let mut told = Vec::new();
        let mut replies = vec![Value::Integer(1), Value::Integer(2)];
        assert!(queue.answer(&mut replies, &mut told));
        // What is answered makes room, whatever the others wait for.
        assert_eq!((told.len(), queue.queued_bytes()), (0, 1));
        assert!(queue.answer(&mut vec![Value::Integer(3)], &mut told));
        assert_eq!((queue.queued_bytes(), queue.stuck_at()), (0, None));
        told.pop().unwrap().tell();
        let too_large = LinkError::TooLarge {
            bytes: 15,
            max_bytes: 10,
        };
        let overloaded = LinkError::Overloaded { queued_bytes: 6 };
        assert_eq!(
            receiver.try_recv().unwrap(),
            [
                Ok(Value::Integer(1)),
                Err(too_large),
                Ok(Value::Integer(2)),
                Err(overloaded),
                Ok(Value::Integer(3)),
            ]
        );
    }

    #[test]
    fn of_many_commands_some_may_be_answered_when_the_connection_breaks() {
        let mut queue = up(100);
        let (reply, mut receiver) = oneshot::channel();
        let commands = commands(&[b"0", b"12", b"34", b"56"]);
        queue.push_many(&commands, 1..4, reply).unwrap();
        assert_eq!(take(&mut queue, true).1, b"123456");
        queue.wrote(5);
        let mut told = Vec::new();
        assert!(queue.answer(&mut vec![Value::Integer(7)], &mut told));
        let reason: Arc<str> = "gone".into();
        for told in queue.disconnected(&reason) {
            told.tell();
        }
        assert_eq!(
            receiver.try_recv().unwrap(),
            [
                Ok(Value::Integer(7)),
                Err(LinkError::Unconfirmed(reason.clone())),
                Err(LinkError::Unavailable(reason.clone())),
            ]
        );
        let (reply, _) = oneshot::channel();
        let refused = queue.push_many(&commands, 2..4, reply).unwrap_err();
        assert_eq!(refused, vec![Err(LinkError::Unavailable(reason)); 2]);
        assert_eq!(queue.queued_bytes(), 0);
    }

    #[test]
    fn only_what_was_written_wholly_may_have_been_carried_out() {
        let mut queue = up(100);
        let waiting: Vec<_> = [b"1234", b"5678", b"9abc"]
            .iter()
            .map(|command| push(&mut queue, *command).unwrap())
            .collect();
        let (taken, mut chunk) = take(&mut queue, true);
        assert_eq!((taken, &chunk[..]), (Chunk::Filled, &b"123456789abc"[..]));
        queue.wrote(7);
        let reason: Arc<str> = "gone".into();
        let failed = reasons(queue.disconnected(&reason));
        let lost = LinkError::Unavailable(reason.clone());
        assert_eq!(
            failed,
            [LinkError::Unconfirmed(reason), lost.clone(), lost.clone()]
        );
        assert_eq!((queue.queued_bytes(), queue.stuck_at()), (0, None));
        assert_eq!(push(&mut queue, b"x").unwrap_err(), lost);
        drop(waiting);

        // The next connection begins with what is said from then on.
        chunk.clear();
        assert!(queue.connected(None));
        push(&mut queue, b"new").unwrap();
        assert_eq!(take(&mut queue, true), (Chunk::Filled, b"new".to_vec()));
    }

    #[test]
    fn bytes_count_until_they_are_answered() {
        let mut queue = up(10);
        push(&mut queue, b"123456").unwrap();
        let overloaded = LinkError::Overloaded { queued_bytes: 6 };
        assert_eq!(push(&mut queue, b"12345").unwrap_err(), overloaded);
        let too_large = LinkError::TooLarge {
            bytes: 11,
            max_bytes: 10,
        };
        assert_eq!(push(&mut queue, b"12345678901").unwrap_err(), too_large);
        let (_, mut chunk) = take(&mut queue, true);
        queue.wrote(6);
        queue.after_chunk(&mut chunk);
        assert_eq!(queue.queued_bytes(), 6);
        let mut answers = Vec::new();
        assert!(queue.answer(&mut vec![Value::Nil], &mut answers));
        assert_eq!((answers.len(), queue.queued_bytes()), (1, 0));
        push(&mut queue, b"1234567890").unwrap();
    }

    #[test]
    fn an_answer_too_many_is_noticed_and_that_to_a_preparation_is_dropped() {
        let mut queue = up(100);
        let (reply, _receiver) = oneshot::channel();
        queue.push_encoded(Some(b"first"), b"then", reply).unwrap();
        assert_eq!(queue.queued_bytes(), 9);
        let mut answers = Vec::new();
        let mut replies = vec![Value::Integer(1), Value::Integer(2)];
        assert!(queue.answer(&mut replies, &mut answers));
        assert_eq!(answers.len(), 1);
        assert!(matches!(answers[0], Told::One(_, Ok(Value::Integer(2)))));
        assert!(!queue.answer(&mut vec![Value::Nil], &mut answers));
    }

    #[test]
    fn several_callers_share_a_chunk_and_a_lone_one_does_not_wait() {
        let mut queue = up(100);
        assert_eq!(take(&mut queue, false).0, Chunk::Empty);
        push(&mut queue, b"1").unwrap();
        assert!(queue.after_push().1.is_some(), "the idle task is woken");
        push(&mut queue, b"2").unwrap();
        assert!(queue.after_push().1.is_none(), "it is woken once");
        assert_eq!(take(&mut queue, false).0, Chunk::Gathering);
        push(&mut queue, b"3").unwrap();
        assert_eq!(take(&mut queue, true), (Chunk::Filled, b"123".to_vec()));
        // Whoever comes while it is written finds nothing to do.
        push(&mut queue, b"4").unwrap();
        let (direct, waker) = queue.after_push();
        assert!(direct.is_none() && waker.is_none());

        let mut queue = up(100);
        push(&mut queue, b"1").unwrap();
        assert_eq!(take(&mut queue, false).0, Chunk::Filled);
    }

    #[tokio::test]
    async fn what_a_caller_could_not_write_comes_before_what_followed() {
        let (near, far) = tokio::net::UnixStream::pair().unwrap();
        let (_reader, writer) = near.into_split();
        let mut queue = Queue::new(100);
        assert!(queue.connected(Some(DirectWriter::Unix(Arc::new(writer)))));
        assert_eq!(take(&mut queue, false).0, Chunk::Empty);
        push(&mut queue, b"12345").unwrap();
        let (direct, waker) = queue.after_push();
        assert!(waker.is_none());
        let direct = direct.expect("a lone caller writes by itself");
        push(&mut queue, b"678").unwrap();
        assert!(queue.after_push().0.is_none(), "only one writes at a time");
        assert_eq!(take(&mut queue, true).0, Chunk::Empty);
        assert!(queue.after_direct(direct, 2).is_some(), "the task goes on");
        assert_eq!(take(&mut queue, true), (Chunk::Filled, b"345678".to_vec()));
        queue.wrote(3);
        let failed = reasons(queue.disconnected(&"gone".into()));
        let gone = || "gone".into();
        assert_eq!(
            failed,
            [
                LinkError::Unconfirmed(gone()),
                LinkError::Unavailable(gone())
            ]
        );
        drop(far);
    }

    #[tokio::test]
    async fn a_caller_that_wrote_to_an_old_connection_leaves_the_new_one_alone() {
        let (near, _far) = tokio::net::UnixStream::pair().unwrap();
        let (_reader, writer) = near.into_split();
        let mut queue = Queue::new(100);
        assert!(queue.connected(Some(DirectWriter::Unix(Arc::new(writer)))));
        push(&mut queue, b"12345").unwrap();
        let direct = queue.after_push().0.unwrap();
        let failed = reasons(queue.disconnected(&"gone".into()));
        assert_eq!(failed, [LinkError::Unconfirmed("gone".into())]);
        assert!(queue.connected(None));
        push(&mut queue, b"new").unwrap();
        assert!(queue.after_direct(direct, 0).is_none());
        assert_eq!(take(&mut queue, true), (Chunk::Filled, b"new".to_vec()));
    }

    #[test]
    fn a_closing_queue_takes_nothing_and_ends_when_all_is_answered() {
        let mut queue = up(100);
        push(&mut queue, b"1").unwrap();
        let _ = queue.close();
        assert_eq!(push(&mut queue, b"2").unwrap_err(), LinkError::closed());
        let (taken, mut chunk) = take(&mut queue, true);
        assert_eq!(taken, Chunk::Filled);
        queue.wrote(1);
        queue.after_chunk(&mut chunk);
        assert_eq!(take(&mut queue, true).0, Chunk::Empty);
        assert!(queue.answer(&mut vec![Value::Nil], &mut Vec::new()));
        assert_eq!(take(&mut queue, true).0, Chunk::Finished);
        assert!(!queue.connected(None), "there is no way back");

        let mut never = Queue::new(100);
        let _ = never.close();
        assert!(never.is_closed() && !never.connected(None));
    }

    #[test]
    fn another_connection_is_asked_for_once() {
        let mut queue = up(100);
        let _ = queue.replace();
        assert!(queue.is_replaced());
        assert!(queue.disconnected(&"gone".into()).is_empty());
        assert!(!queue.is_replaced());
        let _ = queue.replace();
        assert!(!queue.is_replaced(), "there is nothing to replace");
    }
}
