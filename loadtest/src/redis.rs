//! The emitter: messages pushed into a cluster through Redis, in the classic wire format of
//! `@socket.io/redis-emitter`.
//!
//! One pipelined connection that never blocks: what Redis does not take yet is kept, and replies
//! are counted as they come.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use serde_json::json;

/// Whose messages are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `@socket.io/redis-emitter`: PUBLISH of MessagePack.
    Classic,
    /// The sharded adapter: SPUBLISH of JSON.
    Sharded,
}

impl Format {
    fn command(self) -> &'static [u8] {
        match self {
            Self::Classic => b"PUBLISH",
            Self::Sharded => b"SPUBLISH",
        }
    }
}

pub(crate) struct Publisher {
    stream: TcpStream,
    prefix: String,
    format: Format,
    unsent: Vec<u8>,
    sent: usize,
    reply: Vec<u8>,
    published: u64,
    replies: u64,
    /// Subscribers that Redis reached, summed over all messages.
    reached: u64,
}

impl Publisher {
    /// Connects to `redis://[USER:PASSWORD@]HOST:PORT` and makes sure that Redis answers.
    pub(crate) fn connect(url: &str, prefix: &str, format: Format) -> anyhow::Result<Self> {
        let place = Place::parse(url)?;
        let address = place
            .host
            .to_socket_addrs()
            .ok()
            .and_then(|mut found| found.next())
            .with_context(|| format!("no such host: {}", place.host))?;
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("Redis at {} is unreachable", place.host))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut publisher = Self {
            stream,
            prefix: prefix.to_owned(),
            format,
            unsent: Vec::new(),
            sent: 0,
            reply: Vec::new(),
            published: 0,
            replies: 0,
            reached: 0,
        };
        if let Some((user, password)) = &place.credentials {
            let user = if user.is_empty() { "default" } else { user };
            publisher.ask(&[b"AUTH", user.as_bytes(), password.as_bytes()])?;
        }
        publisher.ask(&[b"PING"])?;
        publisher.stream.set_nonblocking(true)?;
        Ok(publisher)
    }

    /// Queues a message for a room. Nothing is sent before the next `pump`.
    pub(crate) fn publish(&mut self, namespace: &str, room: &str, payload: &[u8]) {
        let channel = format!("{}#{namespace}#{room}#", self.prefix);
        let payload = String::from_utf8_lossy(payload);
        let message = write_message(self.format, namespace, room, &payload);
        let command = [self.format.command(), channel.as_bytes(), &message];
        write_command(&mut self.unsent, &command);
        self.published += 1;
    }

    /// Sends what Redis takes, and reads what it answers.
    pub(crate) fn pump(&mut self) -> anyhow::Result<()> {
        while self.sent < self.unsent.len() {
            match self.stream.write(&self.unsent[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("Redis closed the connection"),
            }
        }
        if self.sent == self.unsent.len() {
            self.unsent.clear();
            self.sent = 0;
        } else if self.unsent.len() > MOST_UNSENT_BYTES {
            bail!("Redis does not take what is published");
        }
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("Redis closed the connection"),
                Ok(count) => self.reply.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("Redis closed the connection"),
            }
        }
        self.count_replies()
    }

    /// Whether Redis has not answered everything yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.replies < self.published
    }

    /// Messages that Redis has taken, and the subscribers it reached with them.
    pub(crate) fn taken(&self) -> (u64, u64) {
        (self.replies, self.reached)
    }

    fn count_replies(&mut self) -> anyhow::Result<()> {
        let mut start = 0;
        while let Some(length) = self.reply[start..]
            .windows(2)
            .position(|two| two == b"\r\n")
        {
            let line = &self.reply[start..start + length];
            start += length + 2;
            let text = String::from_utf8_lossy(line);
            let reached = text
                .strip_prefix(':')
                .and_then(|number| number.parse::<u64>().ok());
            self.reached += reached.ok_or_else(|| anyhow!("Redis answers: {text}"))?;
            self.replies += 1;
        }
        self.reply.drain(..start);
        if self.reply.len() > LONGEST_REPLY_BYTES {
            bail!("Redis answers without an end");
        }
        Ok(())
    }

    /// One command before the pipeline begins, with a reply of one line.
    fn ask(&mut self, command: &[&[u8]]) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        write_command(&mut bytes, command);
        self.stream.write_all(&bytes)?;
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") && line.len() < LONGEST_REPLY_BYTES {
            let count = self
                .stream
                .read(&mut byte)
                .context("Redis does not answer")?;
            if count == 0 {
                bail!("Redis closed the connection");
            }
            line.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&line);
        if text.starts_with('+') {
            Ok(())
        } else {
            bail!("Redis refuses: {}", text.trim());
        }
    }
}

struct Place {
    host: String,
    credentials: Option<(String, String)>,
}

impl Place {
    fn parse(url: &str) -> anyhow::Result<Self> {
        let wrong = || anyhow!("{url} is not like redis://[USER:PASSWORD@]HOST:PORT");
        let rest = url.strip_prefix("redis://").ok_or_else(wrong)?;
        let rest = rest.trim_end_matches('/');
        let (credentials, host) = match rest.rsplit_once('@') {
            Some((credentials, host)) => {
                let (user, password) = credentials.split_once(':').ok_or_else(wrong)?;
                (Some((user.to_owned(), password.to_owned())), host)
            }
            None => (None, rest),
        };
        let (name, port) = host.rsplit_once(':').unwrap_or((host, "6379"));
        if name.is_empty() || name.contains('/') || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        Ok(Self {
            host: format!("{name}:{port}"),
            credentials,
        })
    }
}

/// A command as an array of bulk strings.
fn write_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// A broadcast of the event `message` with `{room, data}` to one room.
fn write_message(format: Format, namespace: &str, room: &str, payload: &str) -> Vec<u8> {
    let data = json!(["message", { "room": room, "data": payload }]);
    match format {
        Format::Classic => rmp_serde::to_vec(&json!([
            "emitter",
            { "type": 2, "data": data, "nsp": namespace },
            { "rooms": [room], "flags": {}, "except": [] },
        ]))
        .expect("a JSON value has a form in MessagePack"),
        Format::Sharded => json!({
            "uid": "emitter",
            "nsp": namespace,
            "type": 3,
            "data": {
                "packet": { "type": 2, "data": data, "nsp": namespace },
                "opts": { "rooms": [room], "except": [], "flags": {} },
            },
        })
        .to_string()
        .into_bytes(),
    }
}

const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_REPLY_BYTES: usize = 4096;
const MOST_UNSENT_BYTES: usize = 512 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_message_is_the_array_of_the_official_emitter() {
        let message = write_message(Format::Classic, "/", "r", "hi");
        let expected = [
            b"\x93\xa7emitter\x83\xa4type\x02\xa4data\x92\xa7message\x82\xa4room\xa1r\xa4data\xa2hi".as_slice(),
            b"\xa3nsp\xa1/\x83\xa5rooms\x91\xa1r\xa5flags\x80\xa6except\x90",
        ]
        .concat();
        assert_eq!(message, expected);
    }

    #[test]
    fn a_sharded_message_is_a_broadcast_of_the_sharded_adapter() {
        let message = write_message(Format::Sharded, "/", "r", "hi");
        let expected = r#"{"uid":"emitter","nsp":"/","type":3,"data":{"packet":{"type":2,"data":["message",{"room":"r","data":"hi"}],"nsp":"/"},"opts":{"rooms":["r"],"except":[],"flags":{}}}}"#;
        assert_eq!(str::from_utf8(&message), Ok(expected));
    }

    #[test]
    fn a_place_has_a_host_and_perhaps_credentials() {
        let place = Place::parse("redis://u:p:q@h:7/").unwrap();
        assert_eq!(place.host, "h:7");
        assert_eq!(place.credentials, Some(("u".to_owned(), "p:q".to_owned())));
        assert_eq!(Place::parse("redis://h").unwrap().host, "h:6379");
        for url in [
            "h:1",
            "redis://",
            "redis://h:x",
            "redis://u@h:1",
            "redis://h:1/2",
        ] {
            assert!(Place::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn replies_are_counted_however_they_are_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut ping = [0; 14];
            stream.read_exact(&mut ping).unwrap();
            assert_eq!(&ping, b"*1\r\n$4\r\nPING\r\n");
            stream.write_all(b"+PONG\r\n").unwrap();
            let mut expected = Vec::new();
            for _ in 0..2 {
                let message = write_message(Format::Classic, "/", "r", "hi");
                write_command(&mut expected, &[b"PUBLISH", b"p#/#r#", &message]);
            }
            let mut got = vec![0; expected.len()];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(got, expected);
            for piece in [&b":1"[..], b"2\r", b"\n:0\r\n"] {
                stream.write_all(piece).unwrap();
            }
            stream
        });
        let mut publisher = Publisher::connect(&url, "p", Format::Classic).unwrap();
        publisher.publish("/", "r", b"hi");
        publisher.publish("/", "r", b"hi");
        while publisher.is_busy() {
            publisher.pump().unwrap();
        }
        assert_eq!(publisher.taken(), (2, 12));
        drop(server.join().unwrap());
    }
}
