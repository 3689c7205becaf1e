//! Plain connections to a server: one that waits for answers, and one for probes.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::Mutex,
    time::Duration,
};

use redis::{Value, parse_redis_value};
use roomcast_emitter::redis::Reply;

use crate::redis::{PATIENCE, Plain, Redis, command_bytes, until};

/// What does not happen within this time does not happen.
pub(crate) const DEADLINE: Duration = PATIENCE;

/// Waits until something is true of a thing that nobody announces.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    until(what, || is_true().then_some(()));
}

/// A connection that waits for each answer.
pub(crate) struct Client(Plain);

impl Client {
    pub(crate) fn connect(server: &Redis) -> Self {
        Self(Plain::connect(server).unwrap())
    }

    #[track_caller]
    pub(crate) fn command(&mut self, args: &[&str]) -> Value {
        value(&self.0.command(args))
    }

    /// The next thing that the server says.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Value {
        value(&self.0.reply().unwrap())
    }

    /// How many receive what is published.
    pub(crate) fn publish(&mut self, channel: &str, payload: &str) -> i64 {
        self.command(&["PUBLISH", channel, payload])
            .integer()
            .unwrap()
    }

    pub(crate) fn subscribers(&mut self, channel: &str) -> i64 {
        self.command(&["PUBSUB", "NUMSUB", channel]).list().unwrap()[1]
            .integer()
            .unwrap()
    }

    /// Cuts all subscriber connections.
    pub(crate) fn kill_subscribers(&mut self) -> i64 {
        self.command(&["CLIENT", "KILL", "TYPE", "pubsub"])
            .integer()
            .unwrap()
    }

    /// How often each command whose name contains the word was called, in sum.
    pub(crate) fn calls(&mut self, word: &str) -> u64 {
        let stats = self.command(&["INFO", "commandstats"]);
        let lines = stats.text().unwrap().lines();
        let calls = lines
            .filter(|line| line.starts_with(&format!("cmdstat_{word}:")))
            .map(|line| {
                line.split_once("calls=")
                    .unwrap()
                    .1
                    .split(',')
                    .next()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            });
        calls.sum()
    }
}

#[track_caller]
fn value(reply: &[u8]) -> Value {
    let value = parse_redis_value(reply).unwrap();
    assert!(!matches!(value, Value::ServerError(_)), "{value:?}");
    value
}

/// Publishes probes without ever waiting for an answer.
pub(crate) struct Prober {
    port: u16,
    command: &'static str,
    stream: Mutex<Option<TcpStream>>,
}

impl Prober {
    pub(crate) fn new(port: u16, command: &'static str) -> Self {
        Self {
            port,
            command,
            stream: Mutex::new(None),
        }
    }

    pub(crate) fn send(&self, channel: &str, number: u64) -> bool {
        let mut slot = self.stream.lock().unwrap();
        let command = command_bytes(&[self.command, channel, &number.to_string()]);
        let sent = self.connected(&mut slot).is_some_and(|stream| {
            let is_open = drain(stream);
            is_open
                && stream
                    .write(&command)
                    .is_ok_and(|written| written == command.len())
        });
        if !sent {
            *slot = None;
        }
        sent
    }

    fn connected<'a>(&self, slot: &'a mut Option<TcpStream>) -> Option<&'a mut TcpStream> {
        if slot.is_none() {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
            stream.set_nonblocking(true).ok()?;
            stream.set_nodelay(true).ok()?;
            *slot = Some(stream);
        }
        slot.as_mut()
    }
}

/// Reads answers away. False if the connection is closed.
fn drain(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}
