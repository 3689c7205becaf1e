//! The emitter of socketioxide: reads messages from standard input, one per line, in the format of
//! `roomcast emit -`. It exits when Redis has acknowledged all of them.
//!
//! Available messages are emitted together over one connection, as its documentation suggests.

use std::{
    error::Error,
    io::{BufRead as _, BufReader, Stdin},
};

use futures_util::future::join_all;
use roomcast_race_peers::options::Options;
use serde::Deserialize;
use serde_json::Value;
use socketioxide_emitter::{Driver, IoEmitter};
use socketioxide_redis::drivers::redis::redis_client::{
    self as redis, AsyncCommands as _, aio::MultiplexedConnection,
};

/// Maximum number of messages that are emitted together.
const MOST_AT_A_TIME: usize = 512;

/// Size of a read, in bytes.
const BUFFER_BYTES: usize = 256 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::of_process();
    let url = options.redis.ok_or("where is Redis? say so with --redis")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let client = redis::Client::open(url)?;
    let redis = Redis(runtime.block_on(client.get_multiplexed_async_connection())?);
    let mut input = BufReader::with_capacity(BUFFER_BYTES, std::io::stdin());
    loop {
        let messages = read_some(&mut input)?;
        if messages.is_empty() {
            return Ok(());
        }
        let emits = messages.iter().map(|message| message.emit(&redis));
        let done = runtime.block_on(join_all(emits));
        done.into_iter().collect::<Result<(), _>>()?;
    }
}

/// Waits for a line and returns all that are available; empty at the end of input.
fn read_some(input: &mut BufReader<Stdin>) -> Result<Vec<Message>, Box<dyn Error>> {
    let mut messages = Vec::new();
    let mut line = String::new();
    while messages.is_empty()
        || (input.buffer().contains(&b'\n') && messages.len() < MOST_AT_A_TIME)
    {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            break;
        }
        messages.push(serde_json::from_str(&line)?);
    }
    Ok(messages)
}

/// A line. This emitter supports one argument.
#[derive(Deserialize)]
struct Message {
    event: String,
    args: [Value; 1],
    #[serde(default)]
    rooms: Vec<String>,
}

impl Message {
    async fn emit(&self, redis: &Redis) -> Result<(), String> {
        let emitter = IoEmitter::new().to(self.rooms.clone());
        let emitted = emitter.emit(&self.event, &self.args[0], redis).await;
        emitted.map_err(|error| error.to_string())
    }
}

struct Redis(MultiplexedConnection);

impl Driver for Redis {
    type Error = redis::RedisError;

    async fn emit(&self, channel: String, data: Vec<u8>) -> Result<(), Self::Error> {
        self.0.clone().publish(channel, data).await
    }
}
