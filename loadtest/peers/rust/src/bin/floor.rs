//! The minimum of a server: one thread, one epoll, requests scanned by hand.
//!
//! A message is framed once and sent with one `send` per member. With `--coalesce`, each connection gets
//! one `send` per turn. With `--redis`, servers form a cluster with a channel per room. There is no
//! heartbeat, no limit and no error packet, and `--workers` is ignored.

use std::{collections::HashMap, io, net::SocketAddr, os::fd::OwnedFd};

use roomcast_race_peers::{
    bus::Bus,
    options::{self, Options},
    wire::{self, Request, Scan},
};
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    io::Errno,
    net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt},
};

fn main() -> io::Result<()> {
    let options = Options::of_process();
    let mut floor = Floor::bind(&options)?;
    let address = net::getsockname(&floor.listener)?;
    options::announce(SocketAddr::try_from(address)?);
    let mut buffer = vec![0; READ_BYTES];
    let mut events = Vec::with_capacity(EVENTS_PER_TURN);
    loop {
        events.clear();
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&floor.epoll, spare, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => floor.accept()?,
                MESSAGES => floor.hear()?,
                REPLIES => floor.read_replies()?,
                index => floor.ready(index as usize, event.flags, &mut buffer),
            }
        }
        floor.end_turn()?;
    }
}

struct Floor {
    epoll: OwnedFd,
    listener: OwnedFd,
    connections: Vec<Option<Connection>>,
    vacant: Vec<usize>,
    rooms: HashMap<Box<[u8]>, Vec<usize>>,
    /// The frame that is being sent.
    frame: Vec<u8>,
    accepted: u64,
    coalesces: bool,
    /// Connections with unsent bytes at the end of the turn.
    owed: Vec<usize>,
    bus: Option<Bus>,
}

struct Connection {
    fd: OwnedFd,
    number: u64,
    rooms: Vec<Box<[u8]>>,
    is_open: bool,
    watches_writes: bool,
    unread: Vec<u8>,
    unsent: Vec<u8>,
}

/// The connection has ended: the client closed it or sent something unknown.
struct Ended;

impl Floor {
    fn bind(options: &Options) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let family = match options.listen {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let listener = net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&listener, true)?;
        net::bind(&listener, &options.listen)?;
        net::listen(&listener, BACKLOG)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &listener,
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        )?;
        let bus = options.redis.as_deref().map(Bus::connect).transpose()?;
        if let Some(bus) = &bus {
            for (stream, token) in [(&bus.subscriber, MESSAGES), (&bus.publisher, REPLIES)] {
                epoll::add(&epoll, stream, EventData::new_u64(token), EventFlags::IN)?;
            }
        }
        Ok(Self {
            epoll,
            listener,
            bus,
            connections: Vec::new(),
            vacant: Vec::new(),
            rooms: HashMap::new(),
            frame: Vec::new(),
            accepted: 0,
            coalesces: options.coalesce,
            owed: Vec::new(),
        })
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let fd = match net::accept_with(&self.listener, flags) {
                Ok(fd) => fd,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => return Err(errno.into()),
            };
            sockopt::set_tcp_nodelay(&fd, true)?;
            let index = self.vacant.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            epoll::add(&self.epoll, &fd, EventData::new_u64(index as u64), READS)?;
            self.accepted += 1;
            self.connections[index] = Some(Connection {
                fd,
                number: self.accepted,
                rooms: Vec::new(),
                is_open: false,
                watches_writes: false,
                unread: Vec::new(),
                unsent: Vec::new(),
            });
        }
    }

    fn ready(&mut self, index: usize, flags: EventFlags, buffer: &mut [u8]) {
        let mut outcome = Ok(());
        if flags.contains(EventFlags::OUT) {
            outcome = self.flush(index);
        }
        if outcome.is_ok() && flags != EventFlags::OUT {
            outcome = self.read_all(index, buffer);
        }
        if outcome.is_err() {
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        let Some(connection) = self.connections[index].take() else {
            return;
        };
        for room in &connection.rooms {
            self.remove(room, index);
        }
        self.vacant.push(index);
    }

    /// Reads until a read does not fill the buffer: later data causes a new edge.
    fn read_all(&mut self, index: usize, buffer: &mut [u8]) -> Result<(), Ended> {
        while self.read(index, buffer)? == buffer.len() {}
        Ok(())
    }

    /// Calls `recv` once. Returns the end of the data in the buffer.
    fn read(&mut self, index: usize, buffer: &mut [u8]) -> Result<usize, Ended> {
        let Some(connection) = &mut self.connections[index] else {
            return Ok(0);
        };
        let held = connection.unread.len();
        buffer[..held].copy_from_slice(&connection.unread);
        connection.unread.clear();
        let filled = match net::recv(&connection.fd, &mut buffer[held..], RecvFlags::empty()) {
            Ok((0, _)) => return Err(Ended),
            Ok((count, _)) => held + count,
            Err(Errno::AGAIN | Errno::INTR) => held,
            Err(_) => return Err(Ended),
        };
        let mut start = 0;
        if !connection.is_open {
            let Some(end) = wire::head_end(&buffer[..filled]) else {
                self.keep(index, &buffer[..filled])?;
                return Ok(filled);
            };
            let opening = wire::opening(&buffer[..end], connection.number);
            connection.is_open = opening.is_some();
            match opening {
                Some(opening) => self.send(index, &opening)?,
                None => {
                    self.send(index, wire::REFUSAL)?;
                    return Ok(filled);
                }
            }
            start = end;
        }
        loop {
            match wire::scan(&mut buffer[start..filled]) {
                Scan::Partial => {
                    self.keep(index, &buffer[start..filled])?;
                    return Ok(filled);
                }
                Scan::Text { start: text, end } => {
                    self.packet(index, &buffer[start + text..start + end])?;
                    start += end;
                }
                Scan::End => return Err(Ended),
            }
        }
    }

    /// Keeps an incomplete frame for the next read.
    fn keep(&mut self, index: usize, rest: &[u8]) -> Result<(), Ended> {
        if rest.len() > 2 * wire::LONGEST_MESSAGE_BYTES {
            return Err(Ended);
        }
        if let Some(connection) = &mut self.connections[index] {
            connection.unread.extend_from_slice(rest);
        }
        Ok(())
    }

    fn packet(&mut self, index: usize, packet: &[u8]) -> Result<(), Ended> {
        let Some(connection) = &self.connections[index] else {
            return Ok(());
        };
        let number = connection.number;
        let mut frame = std::mem::take(&mut self.frame);
        match Request::read(packet).ok_or(Ended)? {
            Request::Pong => frame.clear(),
            Request::Connect => wire::connected(&mut frame, number),
            Request::Echo(ack, json) => wire::acknowledge(&mut frame, ack, json),
            Request::Join(ack, room) => {
                self.join(index, room);
                wire::acknowledge(&mut frame, ack, b"]");
            }
            Request::Leave(ack, room) => {
                self.leave(index, room);
                wire::acknowledge(&mut frame, ack, b"]");
            }
            Request::Message(ack, room, payload) => {
                wire::message(&mut frame, room, number, payload);
                self.tell(room, &frame);
                if let Some(bus) = &mut self.bus {
                    bus.publish(room, number, payload);
                }
                frame.clear();
                if !ack.is_empty() {
                    wire::acknowledge(&mut frame, ack, b"]");
                }
            }
        }
        let outcome = match frame.is_empty() {
            true => Ok(()),
            false => self.give(index, &frame),
        };
        self.frame = frame;
        outcome
    }

    fn join(&mut self, index: usize, room: &[u8]) {
        let Some(connection) = &mut self.connections[index] else {
            return;
        };
        if !connection.rooms.iter().any(|joined| **joined == *room) {
            connection.rooms.push(room.into());
            let members = self.rooms.entry(room.into()).or_default();
            members.push(index);
            if let (Some(bus), 1) = (&mut self.bus, members.len()) {
                bus.join(room);
            }
        }
    }

    fn leave(&mut self, index: usize, room: &[u8]) {
        let Some(connection) = &mut self.connections[index] else {
            return;
        };
        let rooms = &mut connection.rooms;
        if let Some(at) = rooms.iter().position(|joined| **joined == *room) {
            rooms.swap_remove(at);
            self.remove(room, index);
        }
    }

    fn remove(&mut self, room: &[u8], index: usize) {
        let Some(members) = self.rooms.get_mut(room) else {
            return;
        };
        if let Some(at) = members.iter().position(|member| *member == index) {
            members.swap_remove(at);
        }
        if members.is_empty() {
            self.rooms.remove(room);
            if let Some(bus) = &mut self.bus {
                bus.leave(room);
            }
        }
    }

    /// Delivers messages of other servers and emitters.
    fn hear(&mut self) -> io::Result<()> {
        let Some(mut bus) = self.bus.take() else {
            return Ok(());
        };
        let mut frame = std::mem::take(&mut self.frame);
        let outcome = bus.read(|room, payload| {
            wire::message(&mut frame, room, 0, payload);
            self.tell(room, &frame);
        });
        self.frame = frame;
        self.bus = Some(bus);
        outcome
    }

    fn read_replies(&mut self) -> io::Result<()> {
        self.bus.as_mut().map_or(Ok(()), Bus::read_replies)
    }

    fn tell(&mut self, room: &[u8], frame: &[u8]) {
        let Some(members) = self.rooms.get_mut(room) else {
            return;
        };
        let members = std::mem::take(members);
        for &member in &members {
            // A failed connection is closed by its own event.
            let _ = self.give(member, frame);
        }
        self.rooms.insert(room.into(), members);
    }

    /// Sends now, or with `--coalesce` at the end of the turn.
    fn give(&mut self, index: usize, bytes: &[u8]) -> Result<(), Ended> {
        if !self.coalesces {
            return self.send(index, bytes);
        }
        if let Some(connection) = &mut self.connections[index] {
            if connection.unsent.is_empty() {
                self.owed.push(index);
            }
            connection.unsent.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn end_turn(&mut self) -> io::Result<()> {
        for index in std::mem::take(&mut self.owed) {
            // A connection that waits for its socket is flushed once it is writable.
            let waits = |connection: &Connection| connection.watches_writes;
            if !self.connections[index].as_ref().is_none_or(waits) && self.flush(index).is_err() {
                self.close(index);
            }
        }
        self.bus.as_mut().map_or(Ok(()), Bus::end_turn)
    }

    /// Calls `send` once. Bytes that the socket does not take wait until it is writable.
    fn send(&mut self, index: usize, bytes: &[u8]) -> Result<(), Ended> {
        let Some(connection) = &mut self.connections[index] else {
            return Ok(());
        };
        if !connection.unsent.is_empty() {
            connection.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let sent = match net::send(&connection.fd, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => return Err(Ended),
        };
        if sent < bytes.len() {
            connection.unsent.extend_from_slice(&bytes[sent..]);
            return self.watch_writes(index, true);
        }
        Ok(())
    }

    fn flush(&mut self, index: usize) -> Result<(), Ended> {
        let Some(connection) = &mut self.connections[index] else {
            return Ok(());
        };
        match net::send(&connection.fd, &connection.unsent, SendFlags::NOSIGNAL) {
            // Retained memory would count as memory of idle connections.
            Ok(sent) if sent == connection.unsent.len() => connection.unsent = Vec::new(),
            Ok(sent) => drop(connection.unsent.drain(..sent)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Err(Ended),
        }
        let waits = !connection.unsent.is_empty();
        self.watch_writes(index, waits)
    }

    fn watch_writes(&mut self, index: usize, watch: bool) -> Result<(), Ended> {
        let Some(connection) = &mut self.connections[index] else {
            return Ok(());
        };
        if connection.watches_writes != watch {
            connection.watches_writes = watch;
            let mut flags = READS;
            flags.set(EventFlags::OUT, watch);
            let data = EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, &connection.fd, data, flags).map_err(|_| Ended)?;
        }
        Ok(())
    }
}

/// Edge-triggered, because a connection that was read to its end needs no further look.
const READS: EventFlags = EventFlags::IN.union(EventFlags::ET);
/// Token of the listener in events; connections use their index.
const LISTENER: u64 = u64::MAX;
/// Tokens of the bus: its subscriptions, and replies to its publishes.
const MESSAGES: u64 = u64::MAX - 1;
const REPLIES: u64 = u64::MAX - 2;
const BACKLOG: i32 = 4096;
const EVENTS_PER_TURN: usize = 256;
const READ_BYTES: usize = 128 * 1024;
