//! One TCP connection of a client. It never blocks and keeps unsent bytes and incomplete frames.

use std::net::SocketAddr;

use rustix::{
    event::epoll,
    fd::OwnedFd,
    io::Errno,
    net::{self, RecvFlags, SendFlags, SocketFlags, sockopt},
};

use super::{End, source::Sources};

pub(super) struct Link {
    fd: OwnedFd,
    is_connecting: bool,
    /// Whether the HTTP response has switched it to WebSocket.
    pub(super) has_upgraded: bool,
    /// An incomplete frame or response.
    unread: Vec<u8>,
    unsent: Vec<u8>,
}

/// Result of a read.
pub(super) struct Filled {
    /// Bytes in the buffer: those that were kept, and the received ones.
    pub(super) bytes: usize,
    pub(super) received: usize,
    /// Whether more bytes may be available.
    pub(super) has_more: bool,
    pub(super) has_ended: bool,
}

impl Link {
    /// Starts to connect. Events carry `token` and are edge-triggered, because a socket that was
    /// read to its end needs no further look.
    pub(super) fn open(
        epoll: &OwnedFd,
        sources: &mut Sources,
        target: SocketAddr,
        token: u64,
    ) -> Result<Self, End> {
        let family = match target {
            SocketAddr::V4(_) => net::AddressFamily::INET,
            SocketAddr::V6(_) => net::AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = net::socket_with(family, net::SocketType::STREAM, flags, None)?;
        sources.bind(&fd, target)?;
        sockopt::set_tcp_nodelay(&fd, true)?;
        match net::connect(&fd, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        let interest = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(epoll, &fd, epoll::EventData::new_u64(token), interest)?;
        Ok(Self {
            fd,
            is_connecting: true,
            has_upgraded: false,
            unread: Vec::new(),
            unsent: Vec::new(),
        })
    }

    /// The socket has become writable or has failed.
    pub(super) fn writable(&mut self) -> Result<(), End> {
        if self.is_connecting {
            sockopt::socket_error(&self.fd)??;
            self.is_connecting = false;
        }
        if self.unsent.is_empty() {
            return Ok(());
        }
        let unsent = std::mem::take(&mut self.unsent);
        self.send(&unsent)
    }

    /// Sends bytes; keeps those that the system does not take until the socket is writable.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        let sent = if self.is_connecting || !self.unsent.is_empty() {
            0
        } else {
            match net::send(&self.fd, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => sent,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(errno) => return Err(errno.into()),
            }
        };
        if sent < bytes.len() {
            if self.unsent.len() + bytes.len() > MOST_UNSENT_BYTES {
                return Err(End::Stuck);
            }
            self.unsent.extend_from_slice(&bytes[sent..]);
        }
        Ok(())
    }

    /// Calls `recv` once, behind the bytes that were kept. The buffer grows if a message needs it.
    pub(super) fn read(&mut self, buffer: &mut Vec<u8>) -> Result<Filled, End> {
        let held = self.unread.len();
        if buffer.len() < held + READ_BYTES {
            buffer.resize(held + READ_BYTES, 0);
        }
        buffer[..held].copy_from_slice(&self.unread);
        self.unread.clear();
        let end = held + READ_BYTES;
        match net::recv(&self.fd, &mut buffer[held..end], RecvFlags::empty()) {
            Ok((count, _)) => Ok(Filled {
                bytes: held + count,
                received: count,
                has_more: count == READ_BYTES,
                has_ended: count == 0,
            }),
            Err(errno @ (Errno::AGAIN | Errno::INTR)) => Ok(Filled {
                bytes: held,
                received: 0,
                has_more: errno == Errno::INTR,
                has_ended: false,
            }),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Keeps an incomplete frame or response until its rest arrives.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// Whether the other side has closed a stalled connection. Discards what has arrived.
    pub(super) fn is_closed(&self, scratch: &mut [u8]) -> bool {
        for _ in 0..MOST_THROWN_AWAY {
            match net::recv(&self.fd, &mut *scratch, RecvFlags::empty()) {
                Ok((0, _)) => return true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return errno != Errno::AGAIN,
            }
        }
        false
    }

    /// Stops events of this connection and shrinks its receive buffer.
    pub(super) fn stall(&self, epoll: &OwnedFd) {
        // Neither fails on an open socket, and the run works without them.
        let _ = sockopt::set_socket_recv_buffer_size(&self.fd, STALLED_BUFFER_BYTES);
        let _ = epoll::delete(epoll, &self.fd);
    }

    /// Makes the connection end with RST instead of FIN when it is dropped.
    pub(super) fn reset_on_close(&self) {
        // It cannot fail on an open socket.
        let _ = sockopt::set_socket_linger(&self.fd, Some(std::time::Duration::ZERO));
    }
}

const READ_BYTES: usize = 64 * 1024;
const MOST_UNSENT_BYTES: usize = 8 * 1024 * 1024;
const STALLED_BUFFER_BYTES: usize = 4096;
const MOST_THROWN_AWAY: usize = 100_000;

#[cfg(test)]
mod tests {
    use std::{io::Write as _, net::TcpListener};

    use super::*;

    #[test]
    fn bytes_that_were_kept_are_received_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let address = listener.local_addr().unwrap();
        let mut link = Link::open(&epoll, &mut Sources::new(&[]), address, 0).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut buffer = Vec::new();
        let mut read = |bytes: &[u8]| {
            server.write_all(bytes).unwrap();
            loop {
                let filled = link.read(&mut buffer).unwrap();
                link.keep(&buffer[..filled.bytes]);
                if filled.received > 0 {
                    return (filled.bytes, filled.received);
                }
            }
        };
        assert_eq!((read(b"abc"), read(b"de")), ((3, 3), (5, 2)));
    }
}
