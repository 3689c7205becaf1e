//! The floor of receiving: `fan_out`'s epoll server, with a subscription beside its clients.
//!
//! A message is found in Redis's bytes by hand, and its payload at its place in the message; it is
//! framed once and sent with one `send` per member of the room. Rooms are subscribed when somebody
//! joins, and never given up.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use rustix::event::epoll;
use rustix::io::Errno;

use crate::PeerArgs;
use crate::floor::{EVENTS_PER_WAIT, Floor, LISTENER, READ_BYTES};
use crate::message::{self, Form};
use crate::peer::tell;
use crate::resp;

/// Serves on a loopback port until the process is ended.
pub(crate) fn serve(args: &PeerArgs) -> io::Result<()> {
    let mut floor = Floor::bind(args.port)?;
    let mut bus = Bus::connect(args.redis, Form::of(args.sharded))?;
    let data = epoll::EventData::new_u64(BUS);
    epoll::add(&floor.epoll, &bus.stream, data, epoll::EventFlags::IN)?;
    tell(&serde_json::json!({ "listening": args.port }))?;
    let mut buffer = vec![0; READ_BYTES];
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    loop {
        events.clear();
        let room = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&floor.epoll, room, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => floor.accept()?,
                BUS => bus.read(&mut floor)?,
                index => floor.ready(index as usize, event.flags, &mut buffer),
            }
        }
        bus.subscribe(&floor)?;
    }
}

struct Bus {
    stream: TcpStream,
    form: Form,
    subscribed: usize,
    buffer: Vec<u8>,
    filled: usize,
}

impl Bus {
    fn connect(redis: u16, form: Form) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, redis))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            form,
            subscribed: 0,
            buffer: vec![0; READ_BYTES],
            filled: 0,
        })
    }

    fn subscribe(&mut self, floor: &Floor) -> io::Result<()> {
        let mut command = Vec::new();
        for (room, _) in &floor.rooms[self.subscribed..] {
            let channel = message::channel(&String::from_utf8_lossy(room));
            resp::command(&mut command, &[self.form.subscribe(), channel.as_bytes()]);
        }
        self.subscribed = floor.rooms.len();
        // The socket blocks, and its buffer has room for all names of a run.
        self.stream.write_all(&command)
    }

    /// One read: if there is more, the next event says so.
    fn read(&mut self, floor: &mut Floor) -> io::Result<()> {
        match self.stream.read(&mut self.buffer[self.filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => self.filled += count,
        }
        let mut start = 0;
        while let Some((heard, end)) = resp::scan_heard(&self.buffer[start..self.filled])? {
            if let Some(heard) = heard
                && let Some(room) = message::room_of(heard.channel)
                && let Some(payload) = message::payload_of(heard.payload)
            {
                floor.cast(room, payload);
            }
            start += end;
        }
        self.buffer.copy_within(start..self.filled, 0);
        self.filled -= start;
        Ok(())
    }
}

const BUS: u64 = u64::MAX - 1;
