//! RESP2, the protocol of Redis: commands to bytes, bytes to replies.
//!
//! [`parse`] reads one reply and [`parse_push`] one thing that a subscribed connection says, both
//! from the front of a buffer and without copying. A reply that has not arrived completely is an
//! ordinary answer; the caller reads more and asks again. Lengths are believed only within
//! [`Limits`]. Nothing here does I/O.

use std::fmt;

#[cfg(test)]
mod tests;

/// A reply, borrowed from the buffer it was read from.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `+OK`, without its sign.
    Simple(&'a [u8]),
    /// `-ERR …`, without its sign.
    Error(&'a [u8]),
    /// A number.
    Integer(i64),
    /// A string of bytes.
    Bulk(&'a [u8]),
    /// The missing string or the missing list.
    Nil,
    /// A list.
    Array(Vec<Self>),
}

impl<'a> Reply<'a> {
    /// The bytes of a bulk or simple string.
    pub fn bytes(&self) -> Option<&'a [u8]> {
        match self {
            Self::Simple(bytes) | Self::Bulk(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The number, also where Redis sends one as text.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => std::str::from_utf8(self.bytes()?).ok()?.parse().ok(),
        }
    }

    /// The elements of a list.
    pub fn array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// The text of an error, with its code in front.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Error(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        }
    }
}

impl fmt::Debug for Reply<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Simple(bytes) => write!(f, "+{}", bytes.escape_ascii()),
            Self::Error(bytes) => write!(f, "-{}", bytes.escape_ascii()),
            Self::Integer(number) => write!(f, ":{number}"),
            Self::Bulk(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Self::Nil => f.write_str("nil"),
            Self::Array(elements) => f.debug_list().entries(elements).finish(),
        }
    }
}

/// What a subscription is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SubscriptionKind {
    /// One channel (`SUBSCRIBE`).
    Channel,
    /// All channels that a glob pattern matches (`PSUBSCRIBE`).
    Pattern,
    /// One channel of sharded pub/sub (`SSUBSCRIBE`).
    Shard,
}

/// What a subscribed connection says, borrowed from the buffer it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Push<'a> {
    /// Somebody has published; the channel was subscribed by its name.
    Message {
        /// The channel.
        channel: &'a [u8],
        /// What was published.
        payload: &'a [u8],
    },
    /// Somebody has published; a subscribed pattern matches the channel.
    PatternMessage {
        /// The pattern.
        pattern: &'a [u8],
        /// The channel.
        channel: &'a [u8],
        /// What was published.
        payload: &'a [u8],
    },
    /// A subscription has begun.
    Subscribed {
        /// What it is to.
        kind: SubscriptionKind,
        /// The channel or pattern.
        name: &'a [u8],
    },
    /// A subscription has ended: because it was asked for or, with [`SubscriptionKind::Shard`],
    /// because the channel's slot has moved to another server.
    Unsubscribed {
        /// What it was to.
        kind: SubscriptionKind,
        /// The channel or pattern; empty where there was none to end.
        name: &'a [u8],
    },
    /// Anything else: an error, the answer to a PING or to a command sent before.
    Reply(Reply<'a>),
}

/// How far a parser has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed<T> {
    /// A whole value, and how many bytes of the buffer it took.
    Whole(T, usize),
    /// The value ends behind the buffer: it is known to take at least this many bytes from the
    /// front of the buffer, which is always more than there are.
    Incomplete(usize),
}

/// What a peer may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest string, in bytes. 64 MiB by default; Redis's own limit is 512 MiB.
    pub max_bulk: usize,
    /// Longest status, error or number, in bytes. 64 KiB by default.
    pub max_line: usize,
    /// Most elements of one reply, nested ones included. 1,048,576 by default.
    pub max_elements: usize,
    /// Deepest nesting of lists. 8 by default, twice what any Redis command answers.
    pub max_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bulk: 64 << 20,
            max_line: 64 << 10,
            max_elements: 1 << 20,
            max_depth: 8,
        }
    }
}

/// Why bytes are not RESP2. The connection is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RespError {
    /// No reply begins with this byte.
    #[error("byte 0x{byte:02x} begins no reply")]
    InvalidType {
        /// The byte.
        byte: u8,
    },
    /// A length or number is none.
    #[error("a length or number of a reply is malformed")]
    InvalidNumber,
    /// A line or string does not end with CR LF.
    #[error("a reply does not end where it should")]
    InvalidEnd,
    /// A status, error or number goes on and on.
    #[error("a line longer than {limit} bytes")]
    LineTooLong {
        /// The limit that was exceeded.
        limit: usize,
    },
    /// A string is longer than allowed.
    #[error("a string of {length} bytes, allowed are {limit}")]
    BulkTooLong {
        /// Its announced length.
        length: usize,
        /// The limit that was exceeded.
        limit: usize,
    },
    /// A reply has more elements than allowed.
    #[error("a reply of more than {limit} elements")]
    TooManyElements {
        /// The limit that was exceeded.
        limit: usize,
    },
    /// Lists nest deeper than allowed.
    #[error("a reply nested deeper than {limit}")]
    TooDeep {
        /// The limit that was exceeded.
        limit: usize,
    },
}

/// Appends one command.
pub fn encode_command<A: AsRef<[u8]>>(out: &mut Vec<u8>, args: &[A]) {
    begin_command(out, args.len());
    for arg in args {
        push_arg(out, arg.as_ref());
    }
}

/// Begins a command of `count` words, its name included. Exactly as many [`push_arg`] must follow.
pub fn begin_command(out: &mut Vec<u8>, count: usize) {
    push_header(out, b'*', count);
}

/// Appends a word of the command that was begun.
pub fn push_arg(out: &mut Vec<u8>, arg: &[u8]) {
    out.reserve(arg.len() + 24);
    push_header(out, b'$', arg.len());
    out.extend_from_slice(arg);
    out.extend_from_slice(b"\r\n");
}

/// Bytes that [`encode_command`] appends for these words.
pub fn encoded_len<A: AsRef<[u8]>>(args: &[A]) -> usize {
    let header = |number: usize| 3 + digits(number);
    header(args.len())
        + args
            .iter()
            .map(|arg| arg.as_ref().len())
            .map(|len| header(len) + len + 2)
            .sum::<usize>()
}

/// Reads one reply from the front of a buffer.
pub fn parse<'a>(input: &'a [u8], limits: &Limits) -> Result<Parsed<Reply<'a>>, RespError> {
    let mut parser = Parser {
        input,
        at: 0,
        elements: 0,
        limits,
    };
    finish(parser.reply(0), &parser)
}

/// Reads one thing that a subscribed connection says from the front of a buffer.
pub fn parse_push<'a>(input: &'a [u8], limits: &Limits) -> Result<Parsed<Push<'a>>, RespError> {
    let mut parser = Parser {
        input,
        at: 0,
        elements: 0,
        limits,
    };
    finish(parser.push(), &parser)
}

/// Why a parser stopped.
enum Stop {
    NeedMore(usize),
    Broken(RespError),
}

impl From<RespError> for Stop {
    fn from(error: RespError) -> Self {
        Self::Broken(error)
    }
}

fn finish<T>(result: Result<T, Stop>, parser: &Parser<'_, '_>) -> Result<Parsed<T>, RespError> {
    match result {
        Ok(value) => Ok(Parsed::Whole(value, parser.at)),
        Err(Stop::NeedMore(needed)) => {
            debug_assert!(needed > parser.input.len());
            Ok(Parsed::Incomplete(needed))
        }
        Err(Stop::Broken(error)) => Err(error),
    }
}

struct Parser<'a, 'l> {
    input: &'a [u8],
    at: usize,
    elements: usize,
    limits: &'l Limits,
}

impl<'a> Parser<'a, '_> {
    fn push(&mut self) -> Result<Push<'a>, Stop> {
        match self.head() {
            Some((Head::Message, length)) => {
                self.at += length;
                let channel = self.bulk()?;
                Ok(Push::Message {
                    channel,
                    payload: self.bulk()?,
                })
            }
            Some((Head::PatternMessage, length)) => {
                self.at += length;
                let pattern = self.bulk()?;
                let channel = self.bulk()?;
                Ok(Push::PatternMessage {
                    pattern,
                    channel,
                    payload: self.bulk()?,
                })
            }
            Some((Head::Subscribed(kind), length)) => {
                self.at += length;
                let name = self.name()?;
                Ok(Push::Subscribed { kind, name })
            }
            Some((Head::Unsubscribed(kind), length)) => {
                self.at += length;
                let name = self.name()?;
                Ok(Push::Unsubscribed { kind, name })
            }
            None => self.reply(0).map(Push::Reply),
        }
    }

    /// What kind of push stands here, told by its first bytes, which never vary.
    fn head(&self) -> Option<(Head, usize)> {
        let rest = &self.input[self.at..];
        HEADS
            .iter()
            .find(|(bytes, _)| rest.starts_with(bytes))
            .map(|(bytes, head)| (*head, bytes.len()))
    }

    /// The second and third element of a confirmation: the name, and a count that nobody needs.
    fn name(&mut self) -> Result<&'a [u8], Stop> {
        let name = match self.reply(1)? {
            Reply::Bulk(name) => name,
            Reply::Nil => b"",
            _ => return Err(RespError::InvalidNumber.into()),
        };
        match self.reply(1)? {
            Reply::Integer(_) => Ok(name),
            _ => Err(RespError::InvalidNumber.into()),
        }
    }

    fn reply(&mut self, depth: usize) -> Result<Reply<'a>, Stop> {
        self.elements += 1;
        if self.elements > self.limits.max_elements {
            return Err(RespError::TooManyElements {
                limit: self.limits.max_elements,
            }
            .into());
        }
        let Some(&kind) = self.input.get(self.at) else {
            return Err(Stop::NeedMore(self.at + 1));
        };
        match kind {
            b'$' => Ok(self.optional_bulk()?.map_or(Reply::Nil, Reply::Bulk)),
            b':' => {
                self.at += 1;
                self.number().map(Reply::Integer)
            }
            b'+' => {
                self.at += 1;
                self.line().map(Reply::Simple)
            }
            b'-' => {
                self.at += 1;
                self.line().map(Reply::Error)
            }
            b'*' => {
                self.at += 1;
                self.array(depth)
            }
            byte => Err(RespError::InvalidType { byte }.into()),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Reply<'a>, Stop> {
        let Some(count) = self.length()? else {
            return Ok(Reply::Nil);
        };
        if depth >= self.limits.max_depth {
            return Err(RespError::TooDeep {
                limit: self.limits.max_depth,
            }
            .into());
        }
        if count > self.limits.max_elements - self.elements {
            return Err(RespError::TooManyElements {
                limit: self.limits.max_elements,
            }
            .into());
        }
        // Each element takes at least four bytes: room is made only for what can be here already.
        let mut elements = Vec::with_capacity(count.min((self.input.len() - self.at) / 4 + 1));
        for _ in 0..count {
            elements.push(self.reply(depth + 1)?);
        }
        Ok(Reply::Array(elements))
    }

    /// A string that must be there.
    #[inline]
    fn bulk(&mut self) -> Result<&'a [u8], Stop> {
        match self.input.get(self.at) {
            Some(b'$') => self
                .optional_bulk()?
                .ok_or_else(|| RespError::InvalidNumber.into()),
            Some(&byte) => Err(RespError::InvalidType { byte }.into()),
            None => Err(Stop::NeedMore(self.at + 1)),
        }
    }

    /// A string, or none. The parser stands at the `$`.
    #[inline]
    fn optional_bulk(&mut self) -> Result<Option<&'a [u8]>, Stop> {
        self.at += 1;
        let Some(length) = self.length()? else {
            return Ok(None);
        };
        if length > self.limits.max_bulk {
            return Err(RespError::BulkTooLong {
                length,
                limit: self.limits.max_bulk,
            }
            .into());
        }
        let end = self.at + length;
        let Some(tail) = self.input.get(end..end + 2) else {
            return Err(Stop::NeedMore(end + 2));
        };
        if tail != b"\r\n" {
            return Err(RespError::InvalidEnd.into());
        }
        let bytes = &self.input[self.at..end];
        self.at = end + 2;
        Ok(Some(bytes))
    }

    /// The length of a string or list; `-1` is none at all.
    #[inline]
    fn length(&mut self) -> Result<Option<usize>, Stop> {
        // Nearly all lengths are short and whole: no checks for signs and overflow.
        let mut length = 0;
        for (i, &byte) in self.input[self.at..].iter().take(10).enumerate() {
            match byte {
                b'0'..=b'9' => length = length * 10 + usize::from(byte - b'0'),
                b'\r' if i > 0 => {
                    self.at += i;
                    self.line_end()?;
                    return Ok(Some(length));
                }
                _ => break,
            }
        }
        match self.number()? {
            -1 => Ok(None),
            number => usize::try_from(number)
                .map(Some)
                .map_err(|_| RespError::InvalidNumber.into()),
        }
    }

    fn number(&mut self) -> Result<i64, Stop> {
        let line = self.line()?;
        // `parse` would take a plus sign too; so does Redis, and nobody sends one.
        std::str::from_utf8(line)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| RespError::InvalidNumber.into())
    }

    /// The rest of the line, without its end.
    fn line(&mut self) -> Result<&'a [u8], Stop> {
        let rest = &self.input[self.at..];
        let limit = self.limits.max_line;
        let Some(length) = rest.iter().take(limit + 1).position(|&byte| byte == b'\r') else {
            if rest.len() > limit {
                return Err(RespError::LineTooLong { limit }.into());
            }
            return Err(Stop::NeedMore(self.input.len() + 1));
        };
        self.at += length;
        self.line_end()?;
        Ok(&rest[..length])
    }

    /// CR LF; the parser stands at the CR.
    #[inline]
    fn line_end(&mut self) -> Result<(), Stop> {
        match self.input.get(self.at + 1) {
            Some(b'\n') => {
                self.at += 2;
                Ok(())
            }
            Some(_) => Err(RespError::InvalidEnd.into()),
            None => Err(Stop::NeedMore(self.at + 2)),
        }
    }
}

#[derive(Clone, Copy)]
enum Head {
    Message,
    PatternMessage,
    Subscribed(SubscriptionKind),
    Unsubscribed(SubscriptionKind),
}

/// How the things begin that a subscribed connection says, the frequent ones first.
const HEADS: [(&[u8], Head); 9] = [
    (b"*3\r\n$7\r\nmessage\r\n", Head::Message),
    (b"*4\r\n$8\r\npmessage\r\n", Head::PatternMessage),
    (b"*3\r\n$8\r\nsmessage\r\n", Head::Message),
    (
        b"*3\r\n$9\r\nsubscribe\r\n",
        Head::Subscribed(SubscriptionKind::Channel),
    ),
    (
        b"*3\r\n$10\r\nssubscribe\r\n",
        Head::Subscribed(SubscriptionKind::Shard),
    ),
    (
        b"*3\r\n$11\r\nunsubscribe\r\n",
        Head::Unsubscribed(SubscriptionKind::Channel),
    ),
    (
        b"*3\r\n$12\r\nsunsubscribe\r\n",
        Head::Unsubscribed(SubscriptionKind::Shard),
    ),
    (
        b"*3\r\n$10\r\npsubscribe\r\n",
        Head::Subscribed(SubscriptionKind::Pattern),
    ),
    (
        b"*3\r\n$12\r\npunsubscribe\r\n",
        Head::Unsubscribed(SubscriptionKind::Pattern),
    ),
];

pub(crate) fn push_header(out: &mut Vec<u8>, kind: u8, number: usize) {
    let mut text = [0; 23];
    let mut at = text.len() - 2;
    text[at..].copy_from_slice(b"\r\n");
    let mut rest = number;
    loop {
        at -= 1;
        text[at] = b'0' + u8::try_from(rest % 10).expect("one digit");
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    text[at - 1] = kind;
    out.extend_from_slice(&text[at - 1..]);
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}
