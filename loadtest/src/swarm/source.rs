//! Source addresses. One address has too few ports for many connections to one server, and the
//! loopback network has sixteen million addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::{fd::AsFd, io::Errno, net};

pub(crate) struct Sources {
    given: Vec<IpAddr>,
    loopback: Vec<IpAddr>,
    next: usize,
}

impl Sources {
    /// Without addresses, the tool chooses them for loopback targets and the kernel for others.
    pub(crate) fn new(given: &[IpAddr]) -> Self {
        let loopback = (1..=LOOPBACK_ADDRESSES).map(|last| Ipv4Addr::new(127, 0, 1, last).into());
        Self {
            given: given.to_vec(),
            loopback: loopback.collect(),
            next: 0,
        }
    }

    /// Binds a socket to its source unless the kernel chooses. `ADDRINUSE` means that no port is
    /// left.
    pub(crate) fn bind(&mut self, socket: impl AsFd, target: SocketAddr) -> Result<(), Errno> {
        let addresses = match (&self.given[..], target.ip()) {
            ([], IpAddr::V4(address)) if address.is_loopback() => &self.loopback,
            ([], _) => return Ok(()),
            _ => &self.given,
        };
        let mut bound = Ok(());
        for _ in 0..addresses.len() {
            self.next = (self.next + 1) % addresses.len();
            // The kernel takes a port that is free at this address.
            bound = net::bind(&socket, &SocketAddr::new(addresses[self.next], 0));
            if bound != Err(Errno::ADDRINUSE) {
                break;
            }
        }
        bound
    }
}

const LOOPBACK_ADDRESSES: u8 = 250;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The addresses of so many sockets that connect to this machine.
    fn bound(sources: &mut Sources, count: usize) -> Vec<SocketAddr> {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let bind = |_| {
            let kind = net::SocketType::STREAM;
            let socket = net::socket(net::AddressFamily::INET, kind, None).unwrap();
            sources.bind(&socket, target).unwrap();
            net::getsockname(&socket).unwrap().try_into().unwrap()
        };
        (0..count).map(bind).collect()
    }

    #[test]
    fn sources_take_turns() {
        let count = usize::from(LOOPBACK_ADDRESSES);
        let found = bound(&mut Sources::new(&[]), 2 * count);
        let addresses: HashSet<_> = found.iter().map(SocketAddr::ip).collect();
        assert_eq!(addresses.len(), count);
        let own = "127.0.0.7".parse().unwrap();
        let found = bound(&mut Sources::new(&[own]), 2);
        assert!(
            found
                .iter()
                .all(|source| source.ip() == own && source.port() > 0)
        );
    }
}
