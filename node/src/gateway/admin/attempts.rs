//! Wrong keys, counted by address, to prevent guessing.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use parking_lot::Mutex;
use roomcast::client_network;

/// Wrong keys that an address may send within a [`WINDOW`].
pub(super) const MAX_WRONG: u32 = 10;

pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// Addresses that are remembered. Further ones share one count.
const MAX_ADDRESSES: usize = 1024;

/// Bits of an IPv6 address that count as one host, which usually has a network of this size.
const IPV6_PREFIX: u8 = 64;

/// The count of those that share one.
const OTHERS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The wrong keys of each address, with the begin of its window.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<IpAddr, (Duration, u32)>>);

impl Attempts {
    /// How long the address has to wait, if it has sent too many wrong keys. `now` is a time of any
    /// clock that only goes forward.
    pub(super) fn pause(&self, address: IpAddr, now: Duration) -> Option<Duration> {
        let known = self.0.lock();
        let address = client_network(address, IPV6_PREFIX);
        let is_full = known.len() >= MAX_ADDRESSES;
        let own = known.get(&address);
        let (begin, count) = own.or_else(|| known.get(&OTHERS).filter(|_| is_full))?;
        let left = WINDOW.checked_sub(now.saturating_sub(*begin))?;
        (*count >= MAX_WRONG && !left.is_zero()).then_some(left)
    }

    /// Counts a wrong key.
    pub(super) fn wrong(&self, address: IpAddr, now: Duration) {
        let mut known = self.0.lock();
        let is_over = |begin: Duration| now.saturating_sub(begin) >= WINDOW;
        let mut address = client_network(address, IPV6_PREFIX);
        if !known.contains_key(&address) && known.len() >= MAX_ADDRESSES {
            known.retain(|_, (begin, _)| !is_over(*begin));
            if known.len() >= MAX_ADDRESSES {
                address = OTHERS;
            }
        }
        let (begin, count) = known.entry(address).or_insert((now, 0));
        if is_over(*begin) {
            (*begin, *count) = (now, 0);
        }
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(5);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_that_sends_wrong_keys_has_to_wait_and_others_do_not() {
        let attempts = Attempts::default();
        let [bad, good] = ["192.0.2.1", "192.0.2.2"].map(address);
        for _ in 0..MAX_WRONG {
            assert_eq!(attempts.pause(bad, NOW), None);
            attempts.wrong(bad, NOW);
        }
        assert_eq!(attempts.pause(bad, NOW), Some(WINDOW));
        assert_eq!(attempts.pause(good, NOW), None);
        assert_eq!(attempts.pause(bad, NOW + WINDOW), None);
        attempts.wrong(bad, NOW + WINDOW);
        assert_eq!(attempts.pause(bad, NOW + WINDOW), None, "it begins again");
    }

    #[test]
    fn the_addresses_of_one_network_count_together() {
        let attempts = Attempts::default();
        for host in 0..MAX_WRONG {
            attempts.wrong(address(&format!("2001:db8::{host:x}")), NOW);
        }
        assert!(attempts.pause(address("2001:db8::ffff"), NOW).is_some());
        assert!(attempts.pause(address("2001:db8:0:1::1"), NOW).is_none());
        for _ in 0..MAX_WRONG {
            attempts.wrong(address("::ffff:192.0.2.1"), NOW);
        }
        assert!(attempts.pause(address("192.0.2.1"), NOW).is_some());
    }

    #[test]
    fn many_addresses_share_one_count_until_some_are_forgotten() {
        let attempts = Attempts::default();
        let host = |number: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number));
        let many = u32::try_from(MAX_ADDRESSES).unwrap();
        for number in 0..many + MAX_WRONG {
            attempts.wrong(host(number), NOW);
        }
        assert_eq!(attempts.0.lock().len(), MAX_ADDRESSES + 1);
        assert!(attempts.pause(host(many + 100), NOW).is_some());
        attempts.wrong(host(many + 100), NOW + WINDOW);
        assert_eq!(attempts.0.lock().len(), 1);
    }
}
