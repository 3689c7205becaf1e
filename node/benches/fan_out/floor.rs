//! The floor that every ratio is measured against: one thread, one epoll loop, hand scanning.
//!
//! A broadcast is framed once and sent with one `send` per member, never coalesced; an echo is one
//! `recv` and one `send`; a handshake is answered with one `send` that carries the HTTP response
//! and the open packet together. It keeps nothing that these need not: no timers, no heartbeat,
//! no error packets. What it cannot read ends the connection.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags, SocketFlags};
use sha1::{Digest as _, Sha1};

use crate::wire::{self, Scan};

/// Serves on a loopback port until the process is ended.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let mut floor = Floor::bind(port)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    loop {
        events.clear();
        match epoll::wait(
            &floor.epoll,
            rustix::buffer::spare_capacity(&mut events),
            None,
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => floor.accept()?,
                index => floor.ready(index as usize, event.flags, &mut buffer),
            }
        }
    }
}

pub(crate) struct Floor {
    pub(crate) epoll: OwnedFd,
    listener: OwnedFd,
    connections: Vec<Option<Connection>>,
    vacant: Vec<usize>,
    /// Names and members, in the order in which they were first joined.
    pub(crate) rooms: Vec<(Box<[u8]>, Vec<usize>)>,
    frame: Vec<u8>,
    accepted: u64,
}

struct Connection {
    fd: OwnedFd,
    room: Option<u32>,
    upgraded: bool,
    watches_writes: bool,
    unread: Vec<u8>,
    unsent: Vec<u8>,
}

/// The connection is over: the peer closed it, or said what the floor does not know.
struct Ended;

impl Floor {
    pub(crate) fn bind(port: u16) -> io::Result<Self> {
        let kind = net::SocketType::STREAM;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let listener = net::socket_with(net::AddressFamily::INET, kind, flags, None)?;
        net::sockopt::set_socket_reuseaddr(&listener, true)?;
        net::bind(
            &listener,
            &std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
        )?;
        net::listen(&listener, BACKLOG)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let listener_data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, listener_data, epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            listener,
            connections: Vec::new(),
            vacant: Vec::new(),
            rooms: Vec::new(),
            frame: Vec::new(),
            accepted: 0,
        })
    }

    pub(crate) fn accept(&mut self) -> io::Result<()> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let fd = match net::accept_with(&self.listener, flags) {
                Ok(fd) => fd,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => return Err(errno.into()),
            };
            net::sockopt::set_tcp_nodelay(&fd, true)?;
            let index = self.vacant.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&self.epoll, &fd, data, READS)?;
            self.connections[index] = Some(Connection {
                fd,
                room: None,
                upgraded: false,
                watches_writes: false,
                unread: Vec::new(),
                unsent: Vec::new(),
            });
        }
    }

    pub(crate) fn ready(&mut self, index: usize, flags: epoll::EventFlags, buffer: &mut [u8]) {
        let mut outcome = Ok(());
        if flags.contains(epoll::EventFlags::OUT) {
            outcome = self.flush(index);
        }
        if outcome.is_ok() && flags != epoll::EventFlags::OUT {
            outcome = self.drain(index, buffer);
        }
        if outcome.is_err() {
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        let Some(connection) = self.connections[index].take() else {
            return;
        };
        if let Some(room) = connection.room {
            self.rooms[room as usize]
                .1
                .retain(|member| *member != index);
        }
        self.vacant.push(index);
    }

    /// Reads until a read does not fill the buffer: what comes after that is a new edge.
    fn drain(&mut self, index: usize, buffer: &mut [u8]) -> Result<(), Ended> {
        while self.read(index, buffer)? == buffer.len() {}
        Ok(())
    }

    /// One `recv`; says up to where the buffer was filled.
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
        if !connection.upgraded {
            let Some(head_end) = wire::http_head_end(&buffer[..filled]) else {
                self.keep(index, &buffer[..filled])?;
                return Ok(filled);
            };
            self.upgrade(index, &buffer[..head_end])?;
            start = head_end;
        }
        loop {
            match wire::scan(&buffer[start..filled]) {
                Scan::Partial => {
                    self.keep(index, &buffer[start..filled])?;
                    return Ok(filled);
                }
                Scan::Invalid | Scan::Frame { mask: None, .. } => return Err(Ended),
                Scan::Frame {
                    opcode,
                    mask: Some(mask),
                    payload_start,
                    end,
                } => {
                    if opcode != wire::TEXT {
                        return Err(Ended);
                    }
                    let message = &mut buffer[start + payload_start..start + end];
                    wire::unmask(message, mask);
                    self.message(index, message)?;
                    start += end;
                }
            }
        }
    }

    /// Keeps what arrived of an unfinished message for the next read.
    fn keep(&mut self, index: usize, rest: &[u8]) -> Result<(), Ended> {
        if rest.len() >= READ_BYTES / 2 {
            return Err(Ended);
        }
        if let Some(connection) = &mut self.connections[index]
            && !rest.is_empty()
        {
            connection.unread.extend_from_slice(rest);
        }
        Ok(())
    }

    fn upgrade(&mut self, index: usize, head: &[u8]) -> Result<(), Ended> {
        let key = header(head, b"sec-websocket-key").ok_or(Ended)?;
        let mut sha1 = Sha1::new();
        sha1.update(key);
        sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        let accept = STANDARD.encode(sha1.finalize());
        self.accepted += 1;
        let open = format!(
            r#"0{{"sid":"{:020}","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}}"#,
            self.accepted
        );
        let mut reply = Vec::with_capacity(320);
        reply.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: ",
        );
        reply.extend_from_slice(accept.as_bytes());
        reply.extend_from_slice(b"\r\n\r\n");
        wire::server_frame_head(&mut reply, open.len());
        reply.extend_from_slice(open.as_bytes());
        if let Some(connection) = &mut self.connections[index] {
            connection.upgraded = true;
        }
        self.send(index, &reply)
    }

    fn message(&mut self, index: usize, message: &[u8]) -> Result<(), Ended> {
        match message {
            b"40" => {
                let connect = format!(r#"40{{"sid":"{:020}"}}"#, self.accepted);
                self.send_text(index, &[connect.as_bytes()])
            }
            b"3" => Ok(()),
            [b'4', b'2', event @ ..] => self.event(index, event),
            _ => Err(Ended),
        }
    }

    fn event(&mut self, index: usize, event: &[u8]) -> Result<(), Ended> {
        let (ack, json) = wire::split_digits(event);
        let json = json.strip_suffix(b"\"]").ok_or(Ended)?;
        if let Some(room_and_text) = json.strip_prefix(b"[\"cast\",\"") {
            let quote = room_and_text
                .iter()
                .position(|byte| *byte == b'"')
                .ok_or(Ended)?;
            let (room, rest) = room_and_text.split_at(quote);
            self.cast(room, rest.strip_prefix(b"\",\"").ok_or(Ended)?);
            Ok(())
        } else if let Some(text) = json.strip_prefix(b"[\"echo\",\"") {
            self.send_text(index, &[b"43", ack, b"[\"", text, b"\"]"])
        } else if let Some(room) = json.strip_prefix(b"[\"join\",\"") {
            self.join(index, room);
            self.send_text(index, &[b"43", ack, b"[]"])
        } else {
            Err(Ended)
        }
    }

    fn join(&mut self, index: usize, name: &[u8]) {
        let room = self
            .rooms
            .iter()
            .position(|room| *room.0 == *name)
            .unwrap_or_else(|| {
                self.rooms.push((name.into(), Vec::new()));
                self.rooms.len() - 1
            });
        if let Some(connection) = &mut self.connections[index]
            && connection.room.is_none()
        {
            connection.room = u32::try_from(room).ok();
            self.rooms[room].1.push(index);
        }
    }

    /// Sends the event `cast` with this text to the members of a room.
    pub(crate) fn cast(&mut self, name: &[u8], text: &[u8]) {
        let Some(room) = self.rooms.iter().position(|room| *room.0 == *name) else {
            return;
        };
        let parts: [&[u8]; 3] = [b"42[\"cast\",\"", text, b"\"]"];
        let mut frame = std::mem::take(&mut self.frame);
        frame_text(&mut frame, &parts);
        let members = std::mem::take(&mut self.rooms[room].1);
        for &member in &members {
            // A member whose connection failed is found again by its own read event.
            let _ = self.send(member, &frame);
        }
        self.rooms[room].1 = members;
        self.frame = frame;
    }

    fn send_text(&mut self, index: usize, parts: &[&[u8]]) -> Result<(), Ended> {
        let mut frame = std::mem::take(&mut self.frame);
        frame_text(&mut frame, parts);
        let outcome = self.send(index, &frame);
        self.frame = frame;
        outcome
    }

    /// One `send`; what the socket does not take waits for it to become writable.
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
            Ok(sent) => drop(connection.unsent.drain(..sent)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Err(Ended),
        }
        if connection.unsent.is_empty() {
            self.watch_writes(index, false)
        } else {
            Ok(())
        }
    }

    fn watch_writes(&mut self, index: usize, watch: bool) -> Result<(), Ended> {
        let Some(connection) = &mut self.connections[index] else {
            return Ok(());
        };
        if connection.watches_writes != watch {
            connection.watches_writes = watch;
            let mut flags = READS;
            flags.set(epoll::EventFlags::OUT, watch);
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, &connection.fd, data, flags).map_err(|_| Ended)?;
        }
        Ok(())
    }
}

fn frame_text(frame: &mut Vec<u8>, parts: &[&[u8]]) {
    frame.clear();
    wire::server_frame_head(frame, parts.iter().map(|part| part.len()).sum());
    for part in parts {
        frame.extend_from_slice(part);
    }
}

/// The value of an HTTP header, whose name is given in lower case.
fn header<'head>(head: &'head [u8], name: &[u8]) -> Option<&'head [u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        line[..colon]
            .eq_ignore_ascii_case(name)
            .then(|| line[colon + 1..].trim_ascii())
    })
}

/// By edges, since a connection that was read to its end need not be looked at again.
const READS: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ET);
/// What stands for the listener in events, as an index does for a connection.
pub(crate) const LISTENER: u64 = u64::MAX;
const BACKLOG: i32 = 4096;
pub(crate) const EVENTS_PER_WAIT: usize = 256;
pub(crate) const READ_BYTES: usize = 64 * 1024;
