//! The load generator's connections: raw Socket.IO clients on one epoll instance, one thread.
//!
//! It opens them, takes them through handshake, namespace and room, answers pings, and hands every
//! later message to the scenario, in place in one shared buffer. It knows no scenario and keeps no
//! account.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags, SocketFlags};

use crate::wire::{self, Scan};

pub(crate) struct Clients {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
    outgoing: Vec<u8>,
    connections: Vec<Connection>,
    goal: Goal,
    port: u16,
    /// Counts the source addresses taken.
    source: usize,
    ready: usize,
    wait: Wait,
    spun: Duration,
}

/// How far a connection is taken before it counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The reply to the Socket.IO connect packet is there.
    Namespace,
    /// So is the acknowledgement of its join: connection `n` joins room `n / members`.
    Room { members: usize },
}

/// What the generator does while nothing has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wait {
    /// It sleeps, so that the first message for it costs the server a wake-up.
    Sleep,
    /// It asks again at once. Its core is always busy, and the server never wakes it.
    Spin,
}

impl Wait {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sleep => "sleeping",
            Self::Spin => "spinning",
        }
    }
}

struct Connection {
    fd: OwnedFd,
    stage: Stage,
    unread: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Upgrading,
    Opening,
    Connecting,
    Joining,
    Ready,
}

impl Clients {
    pub(crate) fn new(port: u16, goal: Goal, wait: Wait) -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_PER_WAIT),
            buffer: vec![0; READ_BYTES],
            outgoing: Vec::new(),
            connections: Vec::new(),
            goal,
            port,
            // Processes, and runs within one, begin at different places.
            source: first_source(),
            ready: 0,
            wait,
            spun: Duration::ZERO,
        })
    }

    /// Opens connections until there are `count`, and returns when all are ready.
    pub(crate) fn open_to(&mut self, count: usize) -> io::Result<()> {
        let deadline = Instant::now() + OPEN_DEADLINE;
        while self.ready < count {
            let batch_end = count.min(self.ready + OPENING_AT_ONCE);
            while self.connections.len() < batch_end {
                self.open()?;
            }
            self.turn(TURN, |_, _, _| ())?;
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "only {} of {count} connections became ready",
                    self.ready
                )));
            }
        }
        Ok(())
    }

    /// Closes every connection. The server sees ordinary ends of stream.
    pub(crate) fn close_all(&mut self) {
        self.connections.clear();
        self.ready = 0;
    }

    /// Sends one text message. It must fit into the socket's buffer, since no scenario has more
    /// than a few messages under way: one that does not fit is an error.
    pub(crate) fn send(&mut self, client: usize, text: &[u8]) -> io::Result<()> {
        let Some(connection) = self.connections.get(client) else {
            return Err(closed(client, "before it was to send"));
        };
        send_text(connection, &mut self.outgoing, text)
    }

    /// Waits for arrivals, once, and hands each message of a ready client to `on_message` with the
    /// time at which it was read.
    pub(crate) fn turn(
        &mut self,
        at_most: Duration,
        mut on_message: impl FnMut(usize, &[u8], Instant),
    ) -> io::Result<()> {
        self.events.clear();
        let timeout = match self.wait {
            Wait::Sleep => Timespec::try_from(at_most).expect("turns are short"),
            Wait::Spin => Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
        };
        let asked = Instant::now();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if self.wait == Wait::Spin && self.events.is_empty() {
            self.spun += asked.elapsed();
        }
        let events = std::mem::take(&mut self.events);
        let outcome = events
            .iter()
            .try_for_each(|event| self.drain(event.data.u64() as usize, &mut on_message));
        self.events = events;
        outcome
    }

    /// How long the generator has kept its core busy with asking in vain.
    pub(crate) fn spun(&self) -> Duration {
        self.spun
    }

    fn open(&mut self) -> io::Result<()> {
        let index = self.connections.len();
        let kind = net::SocketType::STREAM;
        let fd = net::socket_with(net::AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
        self.bind(&fd)?;
        net::connect(&fd, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port))?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        net::sockopt::set_tcp_nodelay(&fd, true)?;
        let data = epoll::EventData::new_u64(index as u64);
        // By edges, since a socket that was read to its end need not be looked at again.
        epoll::add(
            &self.epoll,
            &fd,
            data,
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        let request = format!(
            "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\
             Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.port
        );
        send_whole(&fd, request.as_bytes())?;
        self.connections.push(Connection {
            fd,
            stage: Stage::Upgrading,
            unread: Vec::new(),
        });
        Ok(())
    }

    /// Binds to the next of very many source addresses, so that the port of a connection just closed
    /// is not needed again while the kernel holds it back, and looking for a port costs nothing.
    fn bind(&mut self, fd: &OwnedFd) -> io::Result<()> {
        for _ in 0..BIND_TRIES {
            let last_octet = SOURCE_OCTETS.start + (self.source % SOURCE_OCTETS.len()) as u8;
            let port = SOURCE_PORTS.start
                + (self.source / SOURCE_OCTETS.len() % SOURCE_PORTS.len()) as u16;
            self.source += 1;
            let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, last_octet), port);
            match net::bind(fd, &address) {
                Err(Errno::ADDRINUSE) => {}
                outcome => return Ok(outcome?),
            }
        }
        Err(io::Error::other("no source port is free"))
    }

    /// Reads until a read does not fill the buffer: what comes after that is a new edge.
    fn drain(
        &mut self,
        index: usize,
        on_message: &mut impl FnMut(usize, &[u8], Instant),
    ) -> io::Result<()> {
        while self.read(index, on_message)? == READ_BYTES {}
        Ok(())
    }

    /// One `recv`; says up to where the buffer was filled.
    fn read(
        &mut self,
        index: usize,
        on_message: &mut impl FnMut(usize, &[u8], Instant),
    ) -> io::Result<usize> {
        let Some(connection) = self.connections.get_mut(index) else {
            return Ok(0);
        };
        let held = connection.unread.len();
        self.buffer[..held].copy_from_slice(&connection.unread);
        connection.unread.clear();
        let filled = match net::recv(&connection.fd, &mut self.buffer[held..], RecvFlags::empty()) {
            Ok((0, _)) => return Err(closed(index, "by the server")),
            Ok((count, _)) => held + count,
            Err(Errno::AGAIN | Errno::INTR) => held,
            Err(errno) => return Err(errno.into()),
        };
        let now = Instant::now();
        let mut start = 0;
        if connection.stage == Stage::Upgrading {
            let Some(head_end) = wire::http_head_end(&self.buffer[..filled]) else {
                connection.unread.extend_from_slice(&self.buffer[..filled]);
                return Ok(filled);
            };
            check_upgrade(&self.buffer[..head_end])?;
            connection.stage = Stage::Opening;
            start = head_end;
        }
        while start < filled {
            let rest = &self.buffer[start..filled];
            match wire::scan(rest) {
                Scan::Frame {
                    opcode: wire::TEXT,
                    mask: None,
                    payload_start,
                    end,
                } => {
                    let message = &rest[payload_start..end];
                    if connection.stage == Stage::Ready && message != b"2" {
                        on_message(index, message, now);
                    } else if set_up(connection, index, self.goal, message, &mut self.outgoing)? {
                        self.ready += 1;
                    }
                    start += end;
                }
                Scan::Partial if rest.len() < READ_BYTES / 2 => {
                    connection.unread.extend_from_slice(rest);
                    break;
                }
                Scan::Frame {
                    opcode: wire::CLOSE,
                    ..
                } => {
                    return Err(closed(index, "by a close frame"));
                }
                _ => return Err(closed(index, "after bytes that are no frame for a client")),
            }
        }
        Ok(filled)
    }
}

/// Answers a message of the connection's beginning, or a ping; says whether it made it ready.
fn set_up(
    connection: &mut Connection,
    index: usize,
    goal: Goal,
    message: &[u8],
    outgoing: &mut Vec<u8>,
) -> io::Result<bool> {
    match (connection.stage, message) {
        (_, b"2") => {
            send_text(connection, outgoing, b"3")?;
            Ok(false)
        }
        (Stage::Opening, [b'0', b'{', ..]) => {
            connection.stage = Stage::Connecting;
            send_text(connection, outgoing, b"40")?;
            Ok(false)
        }
        (Stage::Connecting, [b'4', b'0', b'{', ..]) => match goal {
            Goal::Namespace => {
                connection.stage = Stage::Ready;
                Ok(true)
            }
            Goal::Room { members } => {
                connection.stage = Stage::Joining;
                let join = format!("421[\"join\",\"{}\"]", room_name(index / members));
                send_text(connection, outgoing, join.as_bytes())?;
                Ok(false)
            }
        },
        (Stage::Joining, [b'4', b'3', b'1', b'[', ..]) => {
            connection.stage = Stage::Ready;
            Ok(true)
        }
        _ => Err(io::Error::other(format!(
            "unexpected message while client {index} was set up: {}",
            String::from_utf8_lossy(&message[..message.len().min(100)])
        ))),
    }
}

pub(crate) fn room_name(room: usize) -> String {
    format!("room-{room}")
}

fn check_upgrade(head: &[u8]) -> io::Result<()> {
    // The accept key that belongs to the one key which every client sends.
    let accepted = head
        .windows(28)
        .any(|window| window == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    if head.starts_with(b"HTTP/1.1 101 ") && accepted {
        return Ok(());
    }
    let head = String::from_utf8_lossy(head);
    Err(io::Error::other(format!(
        "the server refused the upgrade: {head}"
    )))
}

fn send_text(connection: &Connection, outgoing: &mut Vec<u8>, text: &[u8]) -> io::Result<()> {
    outgoing.clear();
    wire::client_frame(outgoing, text);
    send_whole(&connection.fd, outgoing)
}

fn send_whole(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let sent = net::send(fd, bytes, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

fn first_source() -> usize {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    since.as_millis() as usize * 100
}

fn closed(client: usize, how: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        format!("client {client} was closed {how}"),
    )
}

const EVENTS_PER_WAIT: usize = 256;
const READ_BYTES: usize = 64 * 1024;
const OPENING_AT_ONCE: usize = 100;
const SOURCE_OCTETS: std::ops::Range<u8> = 1..251;
const SOURCE_PORTS: std::ops::Range<u16> = 33_000..60_000;
const BIND_TRIES: usize = 100;
const OPEN_DEADLINE: Duration = Duration::from_secs(60);

/// How long one turn waits at most: short, since each loop looks at its deadline between turns.
pub(crate) const TURN: Duration = Duration::from_millis(20);
