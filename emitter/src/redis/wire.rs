//! Commands and replies over a byte stream, without a task or a queue between them.
//!
//! ```text
//!   send ─▶ output ─▶ stream ─▶ input ─▶ frames ─┬─ an integer ──▶ read here
//!                                                └─ all others ──▶ read by the `redis` crate
//! ```
//!
//! The crate's connection passes each pipeline to a task of its own and each reply through a parser of
//! combinators, which together cost more than the work of Redis. A publisher sends little but
//! PUBLISH, whose reply is an integer.

use std::{
    collections::VecDeque,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use redis::Value;
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::{commands::Commands, stream::BoxStream};

/// Room for replies in front of each read.
const READ_BYTES: usize = 16 << 10;

/// The largest string that Redis sends with its default settings.
const MAX_STRING: usize = 512 << 20;

/// The longest line. Only errors and statuses are texts without a length.
const MAX_LINE: usize = 64 << 10;

/// A stream to a server that has accepted the login.
pub(super) struct Wire {
    stream: BoxStream,
    output: VecDeque<Arc<Commands>>,
    /// Bytes of the first output that are written.
    written: usize,
    is_flushed: bool,
    input: Vec<u8>,
    frame: Frame,
}

impl Wire {
    pub(super) fn new(stream: BoxStream) -> Self {
        Self {
            stream,
            output: VecDeque::new(),
            written: 0,
            is_flushed: true,
            input: Vec::new(),
            frame: Frame::default(),
        }
    }

    /// Appends commands to the output. [`poll`](Self::poll) writes them.
    pub(super) fn send(&mut self, commands: Arc<Commands>) {
        self.output.push_back(commands);
    }

    /// Writes as much as the stream takes, and calls the function with each reply that has arrived. Ready once
    /// something was read, and with the reason when the connection is lost.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        reply: &mut impl FnMut(Value),
    ) -> Poll<Result<(), String>> {
        if let Err(error) = self.write(context) {
            return Poll::Ready(Err(error.to_string()));
        }
        self.input.reserve(READ_BYTES);
        let reading = pin!(self.stream.read_buf(&mut self.input));
        match std::task::ready!(reading.poll(context)) {
            Ok(0) => Poll::Ready(Err("Redis closed the connection".to_owned())),
            Ok(_) => Poll::Ready(self.replies(reply)),
            Err(error) => Poll::Ready(Err(error.to_string())),
        }
    }

    fn write(&mut self, context: &mut Context<'_>) -> std::io::Result<()> {
        while let Some(commands) = self.output.front() {
            let rest = &commands.bytes()[self.written..];
            if rest.is_empty() {
                self.output.pop_front();
                self.written = 0;
                continue;
            }
            match Pin::new(&mut self.stream).poll_write(context, rest)? {
                Poll::Ready(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => self.written += written,
                Poll::Pending => break,
            }
            self.is_flushed = false;
        }
        if !self.is_flushed {
            self.is_flushed = Pin::new(&mut self.stream).poll_flush(context)?.is_ready();
        }
        Ok(())
    }

    fn replies(&mut self, reply: &mut impl FnMut(Value)) -> Result<(), String> {
        let mut read = 0;
        while let Some(length) = self.frame.end(&self.input[read..])? {
            let frame = &self.input[read..read + length];
            read += length;
            match frame[0] {
                b':' => reply(Value::Int(number(&frame[1..])?)),
                // Pushed data is not a reply.
                b'>' => {}
                _ => reply(redis::parse_redis_value(frame).map_err(|error| error.to_string())?),
            }
        }
        self.input.drain(..read);
        Ok(())
    }
}

/// How far the first reply of the input is known. A reply is a tree of values, written depth first:
///
/// ```text
///   *2  :1  $2 OK        at: where the next value begins     missing: values that are still to come
/// ```
struct Frame {
    at: usize,
    missing: usize,
}

impl Default for Frame {
    fn default() -> Self {
        Self { at: 0, missing: 1 }
    }
}

impl Frame {
    /// The length of the first reply, once all of it has arrived. After that the input must begin with the next.
    fn end(&mut self, input: &[u8]) -> Result<Option<usize>, String> {
        while self.missing > 0 {
            let rest = &input[self.at..];
            let Some(line) = rest.iter().position(|byte| *byte == b'\n') else {
                return match rest.len() > MAX_LINE {
                    true => Err(format!("a reply with a line above {MAX_LINE} bytes")),
                    false => Ok(None),
                };
            };
            let after = self.at + line + 1;
            let count = || Ok::<_, String>(usize::try_from(number(&rest[1..=line])?).ok());
            match rest[0] {
                b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => self.value(after, 0),
                b'$' | b'=' | b'!' => match count()? {
                    Some(length) if length > MAX_STRING => {
                        return Err(format!("a reply of {length} bytes"));
                    }
                    Some(length) if after + length + 2 > input.len() => return Ok(None),
                    Some(length) => self.value(after + length + 2, 0),
                    None => self.value(after, 0),
                },
                b'*' | b'~' | b'>' => self.value(after, count()?.unwrap_or(0)),
                b'%' => self.value(after, count()?.unwrap_or(0).saturating_mul(2)),
                // Attributes precede the value that they describe.
                b'|' => self.value(after, count()?.unwrap_or(0).saturating_mul(2) + 1),
                kind => return Err(format!("a reply that begins with byte {kind}")),
            }
        }
        Ok(Some(std::mem::take(self).at))
    }

    fn value(&mut self, end: usize, parts: usize) {
        self.at = end;
        self.missing = (self.missing - 1).saturating_add(parts);
    }
}

/// Reads the number of a line, which may end with its line break.
fn number(line: &[u8]) -> Result<i64, String> {
    let number = str::from_utf8(line).ok().map(str::trim_ascii_end);
    let number = number.and_then(|number| number.parse().ok());
    number.ok_or_else(|| "a reply with a malformed number".to_owned())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    /// One reply of each kind, and of nested ones.
    const REPLIES: [&str; 17] = [
        "+OK\r\n",
        "-ERR no such thing\r\n",
        ":-17\r\n",
        "$5\r\nhe\r\no\r\n",
        "$-1\r\n",
        "*-1\r\n",
        "*0\r\n",
        "*2\r\n:1\r\n*2\r\n$2\r\n\r\n\r\n+a\r\n",
        "_\r\n",
        ",1.5\r\n",
        "#t\r\n",
        "(3492890328409238509324850943850943825024385\r\n",
        "!5\r\nERR x\r\n",
        "=7\r\ntxt:a\r\n\r\n",
        "%2\r\n+a\r\n:1\r\n$1\r\nb\r\n~1\r\n:2\r\n",
        "~2\r\n:1\r\n:1\r\n",
        "|1\r\n+ttl\r\n:3\r\n*1\r\n:1\r\n",
    ];

    const PUSH: &str = ">2\r\n+invalidate\r\n*1\r\n+key\r\n";

    fn wire() -> (Wire, tokio::io::DuplexStream) {
        let (ours, theirs) = duplex(1 << 16);
        (Wire::new(Box::new(ours)), theirs)
    }

    /// The replies that a wire reads until its stream ends, and why it has ended.
    async fn replies(wire: &mut Wire) -> (Vec<Value>, String) {
        let mut replies = Vec::new();
        let mut reply = |value| replies.push(value);
        loop {
            let read = poll_fn(|context| wire.poll(context, &mut reply)).await;
            if let Err(reason) = read {
                return (replies, reason);
            }
        }
    }

    fn theirs(reply: &str) -> Value {
        redis::parse_redis_value(reply.as_bytes()).unwrap()
    }

    proptest! {
        #[test]
        fn replies_are_those_that_the_crate_reads_however_they_are_cut(
            chosen in prop::collection::vec(0..REPLIES.len(), 0..8),
            cuts in prop::collection::vec(1_usize..9, 1..20),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (read, reason) = runtime.block_on(async {
                let (mut wire, mut server) = wire();
                let sent: String = chosen.iter().map(|reply| REPLIES[*reply]).collect();
                let sending = async move {
                    let (mut rest, mut cuts) = (sent.as_bytes(), cuts.iter().cycle());
                    while !rest.is_empty() {
                        let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                        server.write_all(now).await.unwrap();
                        tokio::task::yield_now().await;
                        rest = later;
                    }
                };
                tokio::join!(replies(&mut wire), sending).0
            });
            let expected: Vec<_> = chosen.iter().map(|reply| theirs(REPLIES[*reply])).collect();
            prop_assert_eq!(read, expected);
            prop_assert_eq!(reason, "Redis closed the connection");
        }

        #[test]
        fn no_bytes_of_a_server_end_the_process(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut frame = Frame::default();
            if let Ok(Some(end)) = frame.end(&bytes) {
                prop_assert!(end <= bytes.len());
            }
        }
    }

    #[tokio::test]
    async fn pushed_data_is_not_a_reply() {
        let (mut wire, mut server) = wire();
        let sent = [PUSH, REPLIES[0], PUSH, PUSH, REPLIES[2]].concat();
        server.write_all(sent.as_bytes()).await.unwrap();
        drop(server);
        let expected = [Value::Okay, Value::Int(-17)];
        assert_eq!(replies(&mut wire).await.0, expected);
    }

    #[tokio::test]
    async fn a_server_of_another_protocol_is_left() {
        let digits = "1".repeat(400);
        for (sent, reason) in [
            (
                "HTTP/1.1 400\r\n".to_owned(),
                "a reply that begins with byte 72",
            ),
            (":one\r\n".to_owned(), "a reply with a malformed number"),
            (format!("*{digits}\r\n"), "a reply with a malformed number"),
            ("$600000000\r\n".to_owned(), "a reply of 600000000 bytes"),
            (
                "+".repeat(MAX_LINE + 2),
                "a reply with a line above 65536 bytes",
            ),
        ] {
            let (ours, mut server) = duplex(1 << 20);
            let mut wire = Wire::new(Box::new(ours));
            server.write_all(b":1\r\n").await.unwrap();
            server.write_all(sent.as_bytes()).await.unwrap();
            let (replies, why) = replies(&mut wire).await;
            assert_eq!((replies.len(), &*why), (1, reason));
        }
    }

    #[tokio::test]
    async fn commands_are_written_in_order_while_the_server_reads_slowly() {
        let (ours, mut server) = duplex(64);
        let mut wire = Wire::new(Box::new(ours));
        let mut expected = Vec::new();
        for number in 0..100 {
            let commands = Commands::one(&["PUBLISH", "room", &"x".repeat(number)]);
            expected.extend_from_slice(commands.bytes());
            wire.send(Arc::new(commands));
        }
        let mut received = vec![0; expected.len()];
        let receiving = async {
            server.read_exact(&mut received).await.unwrap();
            drop(server);
        };
        tokio::join!(replies(&mut wire), receiving);
        assert_eq!(received, expected);
    }
}
