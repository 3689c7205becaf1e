//! Publishes messages to a cluster through Redis, in the formats of the official adapters.
//!
//! One pipelined connection that never blocks: bytes that Redis does not take yet are kept, and
//! replies are counted.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use redis::{ConnectionAddr, IntoConnectionInfo as _};
use serde_json::json;

use crate::external::{External, Unsent};

/// The wire format of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `@socket.io/redis-emitter`: PUBLISH of MessagePack.
    Classic,
    /// The sharded adapter: SPUBLISH of JSON.
    Sharded,
}

impl Format {
    fn command(self) -> &'static str {
        match self {
            Self::Classic => "PUBLISH",
            Self::Sharded => "SPUBLISH",
        }
    }
}

pub(crate) struct Publisher {
    stream: TcpStream,
    prefix: String,
    format: Format,
    unsent: Unsent,
    reply: Vec<u8>,
    published: u64,
    replies: u64,
    /// Sum of the numbers of subscribers that Redis has returned.
    reached: u64,
}

impl Publisher {
    /// Connects to `redis://[USER:PASSWORD@]HOST:PORT`, logs in and sends a PING.
    pub(crate) fn connect(url: &str, prefix: &str, format: Format) -> anyhow::Result<Self> {
        let wrong = || format!("{url} is not like redis://[USER:PASSWORD@]HOST:PORT");
        let info = url.into_connection_info().with_context(wrong)?;
        let ConnectionAddr::Tcp(host, port) = info.addr() else {
            bail!(wrong());
        };
        let address = (host.as_str(), *port)
            .to_socket_addrs()
            .ok()
            .and_then(|mut found| found.next())
            .with_context(|| format!("no such host: {host}"))?;
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("Redis at {host}:{port} is unreachable"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut publisher = Self {
            stream,
            prefix: prefix.to_owned(),
            format,
            unsent: Unsent::default(),
            reply: Vec::new(),
            published: 0,
            replies: 0,
            reached: 0,
        };
        if let Some(password) = info.redis_settings().password() {
            let user = info.redis_settings().username().unwrap_or("default");
            publisher.ask(redis::cmd("AUTH").arg(user).arg(password))?;
        }
        publisher.ask(&redis::cmd("PING"))?;
        publisher.stream.set_nonblocking(true)?;
        Ok(publisher)
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
            self.reached += reached.ok_or_else(|| anyhow!("Redis replies: {text}"))?;
            self.replies += 1;
        }
        self.reply.drain(..start);
        if self.reply.len() > LONGEST_REPLY_BYTES {
            bail!("Redis sends an endless reply");
        }
        Ok(())
    }

    /// Executes one command before the pipeline begins.
    fn ask(&mut self, command: &redis::Cmd) -> anyhow::Result<()> {
        self.stream.write_all(&command.get_packed_command())?;
        let reply = redis::Parser::new().parse_value(&mut self.stream);
        let refusal = reply.context("Redis does not reply")?.extract_error();
        refusal.context("Redis refuses").map(drop)
    }
}

impl External for Publisher {
    fn send(&mut self, namespace: &str, room: &str, payload: &[u8]) {
        let channel = format!("{}#{namespace}#{room}#", self.prefix);
        let payload = String::from_utf8_lossy(payload);
        let message = write_message(self.format, namespace, room, &payload);
        let mut command = redis::cmd(self.format.command());
        let command = command.arg(channel).arg(message).get_packed_command();
        self.unsent.push(&command);
        self.published += 1;
    }

    fn pump(&mut self) -> anyhow::Result<()> {
        let written = self.unsent.write_to(&mut self.stream);
        written.context("Redis closed the connection")?;
        if self.unsent.len() > MOST_UNSENT_BYTES {
            bail!("Redis does not accept published messages");
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

    /// Whether replies are missing.
    fn is_busy(&self) -> bool {
        self.replies < self.published
    }

    fn taken(&self) -> Option<(u64, u64)> {
        Some((self.replies, self.reached))
    }
}

/// A broadcast of the event `message` with `{room, data}` to one room.
pub(crate) fn write_message(format: Format, namespace: &str, room: &str, payload: &str) -> Vec<u8> {
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
    fn a_url_that_is_none_is_refused() {
        for url in ["h:1", "redis://", "redis://h:x", "unix:///tmp/redis"] {
            assert!(
                Publisher::connect(url, "p", Format::Classic).is_err(),
                "{url}"
            );
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
                let mut command = redis::cmd("PUBLISH");
                expected.extend(command.arg("p#/#r#").arg(message).get_packed_command());
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
        publisher.send("/", "r", b"hi");
        publisher.send("/", "r", b"hi");
        while publisher.is_busy() {
            publisher.pump().unwrap();
        }
        assert_eq!(publisher.taken(), Some((2, 12)));
        drop(server.join().unwrap());
    }
}
