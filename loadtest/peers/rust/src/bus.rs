//! The minimum of a bus over Redis: commands written and replies scanned by hand, classic format.
//!
//! The commands of a turn are written at its end, with one write per connection. Writes may block,
//! because Redis always reads.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
};

use crate::wire;

/// Maximum number of names per command.
const NAMES_PER_COMMAND: usize = 100;
const READ_BYTES: usize = 256 * 1024;
const CHANNEL_HEAD: &[u8] = b"socket.io#/#";

/// Connections to publish and to subscribe.
pub struct Bus {
    /// Carries publishes and their replies.
    pub publisher: TcpStream,
    /// Carries subscriptions and messages.
    pub subscriber: TcpStream,
    uid: String,
    publishes: Vec<u8>,
    joined: Vec<Box<[u8]>>,
    left: Vec<Box<[u8]>>,
    buffer: Vec<u8>,
    filled: usize,
}

impl Bus {
    /// Connects to `redis://HOST:PORT`.
    pub fn connect(url: &str) -> io::Result<Self> {
        let address = url.strip_prefix("redis://").unwrap_or(url);
        let connect = || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            io::Result::Ok(stream)
        };
        Ok(Self {
            publisher: connect()?,
            subscriber: connect()?,
            uid: format!("{:06}", std::process::id() % 1_000_000),
            publishes: Vec::new(),
            joined: Vec::new(),
            left: Vec::new(),
            buffer: vec![0; READ_BYTES],
            filled: 0,
        })
    }

    /// Queues the subscription of a room that got its first member.
    pub fn join(&mut self, room: &[u8]) {
        self.joined.push(room.into());
    }

    /// Queues the end of the subscription of a room without members.
    pub fn leave(&mut self, room: &[u8]) {
        self.left.push(room.into());
    }

    /// Queues a message to a room, in the format of Node's adapter.
    pub fn publish(&mut self, room: &[u8], from: u64, payload: &[u8]) {
        let from = format!("{from:020}");
        let mut message = Vec::with_capacity(payload.len() + 160);
        message.extend_from_slice(b"\x93\xa6");
        message.extend_from_slice(self.uid.as_bytes());
        message.extend_from_slice(b"\x83\xa4type\x02\xa4data\x92\xa7message\x83\xa4room");
        text(&mut message, room);
        message.extend_from_slice(b"\xa4from");
        text(&mut message, from.as_bytes());
        message.extend_from_slice(b"\xa4data");
        text(&mut message, payload);
        message.extend_from_slice(b"\xa3nsp\xa1/\x83\xa5rooms\x91");
        text(&mut message, room);
        message.extend_from_slice(b"\xa6except\x90\xa5flags\x80");
        command(&mut self.publishes, &[b"PUBLISH", &channel(room), &message]);
    }

    /// Writes the commands of the turn.
    pub fn end_turn(&mut self) -> io::Result<()> {
        if !self.publishes.is_empty() {
            self.publisher.write_all(&self.publishes)?;
            self.publishes.clear();
        }
        for (name, rooms) in [
            (b"SUBSCRIBE".as_slice(), &mut self.joined),
            (b"UNSUBSCRIBE", &mut self.left),
        ] {
            let mut commands = Vec::new();
            for rooms in rooms.chunks(NAMES_PER_COMMAND) {
                let channels: Vec<Vec<u8>> = rooms.iter().map(|room| channel(room)).collect();
                let words = std::iter::once(name).chain(channels.iter().map(Vec::as_slice));
                command(&mut commands, &words.collect::<Vec<_>>());
            }
            rooms.clear();
            self.subscriber.write_all(&commands)?;
        }
        Ok(())
    }

    /// Reads and discards replies, which only matter as a cost.
    pub fn read_replies(&mut self) -> io::Result<()> {
        // Behind the bytes of an incomplete message.
        match self.publisher.read(&mut self.buffer[self.filled..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Reads messages once and passes room and payload of each to `heard`. More data causes another event.
    pub fn read(&mut self, mut heard: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        match self.subscriber.read(&mut self.buffer[self.filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => self.filled += count,
        }
        let mut start = 0;
        while let Some((pieces, end)) = triple(&self.buffer[start..self.filled]) {
            if let [b"message", channel, message] = pieces
                && !is_from(message, &self.uid)
                && let Some(room) = room_of(channel)
                && let Some(payload) = payload_of(message)
            {
                heard(room, payload);
            }
            start += end;
        }
        self.buffer.copy_within(start..self.filled, 0);
        self.filled -= start;
        Ok(())
    }
}

fn channel(room: &[u8]) -> Vec<u8> {
    [CHANNEL_HEAD, room, b"#"].concat()
}

fn room_of(channel: &[u8]) -> Option<&[u8]> {
    channel.strip_prefix(CHANNEL_HEAD)?.strip_suffix(b"#")
}

fn is_from(message: &[u8], uid: &str) -> bool {
    message.get(2..2 + uid.len()) == Some(uid.as_bytes())
}

/// Returns the string under the key `data` of an event.
fn payload_of(message: &[u8]) -> Option<&[u8]> {
    const KEY: &[u8] = b"\xa4data\xd9";
    let start = wire::find(message, KEY)? + KEY.len();
    let length = usize::from(*message.get(start)?);
    message.get(start + 1..start + 1 + length)
}

/// Appends a string of less than 256 bytes in MessagePack.
fn text(out: &mut Vec<u8>, text: &[u8]) {
    let length = u8::try_from(text.len()).expect("names and payloads are short");
    match length {
        ..32 => out.push(0xa0 | length),
        _ => out.extend_from_slice(&[0xd9, length]),
    }
    out.extend_from_slice(text);
}

fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Parses an array of three at the start of `bytes`. Returns its pieces and its end, or `None` while it is
/// incomplete.
fn triple(bytes: &[u8]) -> Option<([&[u8]; 3], usize)> {
    let (_, mut end) = line(bytes, 0)?;
    let mut pieces: [&[u8]; 3] = [b""; 3];
    for piece in &mut pieces {
        let (head, next) = line(bytes, end)?;
        end = next;
        if let Some(digits) = head.strip_prefix(b"$") {
            let length = str::from_utf8(digits).ok()?.parse::<usize>().ok()?;
            *piece = bytes.get(end..end + length)?;
            end += length + 2;
        }
    }
    (end <= bytes.len()).then_some((pieces, end))
}

fn line(bytes: &[u8], start: usize) -> Option<(&[u8], usize)> {
    let length = wire::find(&bytes[start.min(bytes.len())..], b"\r\n")?;
    Some((&bytes[start..start + length], start + length + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_found_wherever_the_bytes_are_cut() {
        let message = b"\x93\xa6abcdef\x83\xa4type\x02\xa4data\x92\xa7message\x82\xa4room\xa1r\xa4data\xd9\x02hi";
        let mut bytes = Vec::new();
        command(&mut bytes, &[b"message", b"socket.io#/#r#", message]);
        for cut in 0..bytes.len() {
            assert_eq!(triple(&bytes[..cut]), None, "{cut}");
        }
        let ([kind, channel, found], end) = triple(&bytes).unwrap();
        assert_eq!((kind, end), (b"message".as_slice(), bytes.len()));
        assert_eq!(room_of(channel), Some(b"r".as_slice()));
        assert_eq!(payload_of(found), Some(b"hi".as_slice()));
        assert!(is_from(found, "abcdef") && !is_from(found, "abcdeg"));
    }

    #[test]
    fn a_confirmation_is_no_message() {
        let bytes = b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n";
        let (pieces, end) = triple(bytes).unwrap();
        assert_eq!((pieces[0], end), (b"subscribe".as_slice(), bytes.len() - 4));
    }
}
