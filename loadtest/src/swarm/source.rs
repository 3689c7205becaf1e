//! Source addresses. One address has too few ports for many connections to one server, and the
//! loopback network has sixteen million addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::{fd::AsFd, io::Errno, net};

pub(crate) struct Sources {
    addresses: Vec<IpAddr>,
    first_port: u16,
    port_count: usize,
    next: usize,
}

impl Sources {
    /// Without addresses, the tool chooses them for loopback targets and the kernel for others.
    pub(crate) fn new(addresses: &[IpAddr]) -> Self {
        let (first_port, last_port) = local_port_range();
        Self {
            addresses: addresses.to_vec(),
            first_port,
            port_count: usize::from(last_port.saturating_sub(first_port)) + 1,
            // Consecutive runs start at different places, because the kernel blocks the ports of
            // closed connections for a minute.
            next: (crate::clock::unix_ms() as usize).wrapping_mul(101)
                ^ (std::process::id() as usize) << 12,
        }
    }

    /// Binds a socket to its source unless the kernel chooses. `ADDRINUSE` means that no port is
    /// left.
    pub(crate) fn bind(&mut self, socket: impl AsFd, target: SocketAddr) -> Result<(), Errno> {
        if self.addresses.is_empty() && !is_loopback(target) {
            return Ok(());
        }
        let mut error = Errno::ADDRINUSE;
        for _ in 0..TRIES {
            match net::bind(&socket, &self.take()) {
                Ok(()) => return Ok(()),
                // An earlier run has used a contiguous stretch that is longer than the number of
                // tries.
                Err(Errno::ADDRINUSE) => self.next = self.next.wrapping_add(STRETCH),
                Err(errno) => {
                    error = errno;
                    break;
                }
            }
        }
        Err(error)
    }

    fn take(&mut self) -> SocketAddr {
        let count = if self.addresses.is_empty() {
            LOOPBACK_ADDRESSES
        } else {
            self.addresses.len()
        };
        let (address, port) = (self.next % count, self.next / count % self.port_count);
        self.next = self.next.wrapping_add(1);
        let address = self
            .addresses
            .get(address)
            .copied()
            .unwrap_or_else(|| Ipv4Addr::new(127, 0, 1, address as u8 + 1).into());
        SocketAddr::new(address, self.first_port + port as u16)
    }
}

fn is_loopback(target: SocketAddr) -> bool {
    matches!(target.ip(), IpAddr::V4(address) if address.is_loopback())
}

/// The kernel's range of ephemeral ports. Others could be needed by a server.
fn local_port_range() -> (u16, u16) {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    parse_range(&text.unwrap_or_default()).unwrap_or((32_768, 60_999))
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    Some((first.parse().ok()?, last.trim().parse().ok()?))
}

const LOOPBACK_ADDRESSES: usize = 250;
const TRIES: usize = 200;
/// More than the connections of one run, and not a multiple of the number of ports.
const STRETCH: usize = 500_009;

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::TcpListener};

    use super::*;

    #[test]
    fn sources_do_not_repeat_before_all_are_used() {
        let mut sources = Sources::new(&[]);
        let count = LOOPBACK_ADDRESSES * 40;
        let taken: HashSet<_> = (0..count).map(|_| sources.take()).collect();
        assert_eq!(taken.len(), count);
        assert!(taken.iter().all(|source| source.ip().is_loopback()));
        let own: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(Sources::new(&[own]).take().ip(), own);
    }

    #[test]
    fn a_stretch_of_taken_sources_is_left() {
        let mut sources = Sources::new(&[]);
        let first = sources.next;
        let taken = |_| TcpListener::bind(sources.take());
        let _taken: Vec<_> = (0..=TRIES).map(taken).collect();
        sources.next = first;
        let socket = net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).unwrap();
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        assert_eq!(sources.bind(&socket, target), Ok(()));
    }

    #[test]
    fn the_range_of_ports_is_read() {
        assert_eq!(parse_range("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(parse_range(""), None);
    }
}
