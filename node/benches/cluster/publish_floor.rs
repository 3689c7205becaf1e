//! The floor of publishing and of subscribing: commands written by hand on a blocking socket.
//!
//! `publish` writes as many PUBLISH commands at once as are outstanding, and reads the replies.
//! `churn` writes the names of a step in one command each. It serves nobody.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::PeerArgs;
use crate::message::{self, Form};
use crate::payload::Label;
use crate::peer::{Command, ROOM, Steps, short_lived, tell};
use crate::resp;

/// Obeys until standard input ends.
pub(crate) fn serve(args: &PeerArgs) -> io::Result<()> {
    let form = Form::of(args.sharded);
    let mut floor = Floor {
        publishing: Link::connect(args.redis)?,
        subscribing: Link::connect(args.redis)?,
        form,
        published: 0,
    };
    tell(&serde_json::json!({ "listening": args.port }))?;
    for line in io::stdin().lock().lines() {
        let answer = match Command::parse(&line?) {
            Some(Command::Publish {
                duration,
                concurrency,
            }) => {
                floor.publish(duration, concurrency)?;
                serde_json::json!({ "published": floor.published })
            }
            Some(Command::Churn { joins }) => {
                floor.churn(joins)?;
                serde_json::json!({ "joined": joins })
            }
            _ => serde_json::json!({ "error": "the floor cannot do that" }),
        };
        tell(&answer)?;
    }
    Ok(())
}

struct Floor {
    publishing: Link,
    subscribing: Link,
    form: Form,
    published: u32,
}

impl Floor {
    fn publish(&mut self, duration: Duration, concurrency: usize) -> io::Result<()> {
        let end = Instant::now() + duration;
        let channel = message::channel(ROOM);
        let mut payload = Vec::new();
        while Instant::now() < end {
            for _ in 0..concurrency {
                let label = Label {
                    sender: 0,
                    sequence: self.published,
                };
                payload.clear();
                self.form.write(&mut payload, ROOM, label);
                let args = [self.form.publish(), channel.as_bytes(), &payload];
                resp::command(&mut self.publishing.out, &args);
                self.published += 1;
            }
            self.publishing.exchange(concurrency)?;
        }
        Ok(())
    }

    fn churn(&mut self, joins: usize) -> io::Result<()> {
        let started = Instant::now();
        let mut subscribed = VecDeque::new();
        for step in Steps::new(joins) {
            thread::sleep((started + step.at).saturating_duration_since(Instant::now()));
            let names: Vec<String> = step.joins.map(short_lived).collect();
            self.say(self.form.subscribe(), &names)?;
            subscribed.push_back(names);
            if subscribed.len() > Steps::LIFETIME {
                let names = subscribed.pop_front().unwrap_or_default();
                self.say(self.form.unsubscribe(), &names)?;
            }
        }
        for names in subscribed {
            self.say(self.form.unsubscribe(), &names)?;
        }
        Ok(())
    }

    /// One command about many rooms, which Redis confirms one by one.
    fn say(&mut self, command: &[u8], rooms: &[String]) -> io::Result<()> {
        let channels: Vec<String> = rooms.iter().map(|room| message::channel(room)).collect();
        let mut args = vec![command];
        args.extend(channels.iter().map(String::as_bytes));
        resp::command(&mut self.subscribing.out, &args);
        self.subscribing.exchange(rooms.len())
    }
}

struct Link {
    stream: TcpStream,
    out: Vec<u8>,
    buffer: Vec<u8>,
}

impl Link {
    fn connect(redis: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, redis))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            out: Vec::new(),
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Writes the commands and reads that many replies.
    fn exchange(&mut self, replies: usize) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        let (mut seen, mut filled) = (0, 0);
        while seen < replies {
            match self.stream.read(&mut self.buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
            let mut start = 0;
            while let Some(end) = resp::scan(&self.buffer[start..filled], &mut |_| ())? {
                start += end;
                seen += 1;
            }
            self.buffer.copy_within(start..filled, 0);
            filled -= start;
        }
        Ok(())
    }
}
