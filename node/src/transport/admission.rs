//! Limits of clients that can be replaced while the server runs: connections, in total and per
//! address, new ones per second, and the rates of each client's events and bytes.
//!
//! A limit that is not configured costs one relaxed load. An address is in the table only
//! while it has connections that were counted, so the table is never larger than the
//! number of connections.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
};

use parking_lot::Mutex;

use super::{
    client_address::client_network,
    config::{Limits, RatePolicy},
};
use crate::{
    clock::Time,
    rate::{Rate, SharedBucket, SharedRate},
};

/// The most seconds that a refused client is asked to wait.
const MAX_RETRY_AFTER: u64 = 60;

/// The least of the most seconds, so that clients that are refused together come back apart.
const MIN_RETRY_AFTER: u64 = 5;

pub(crate) struct Admission {
    connections: AtomicUsize,
    addresses: Addresses,
    connect_rate: SharedRate,
    connects: SharedBucket,
    /// New connections that were refused because there were too many.
    refused: SharedBucket,
    event_rate: SharedRate,
    byte_rate: SharedRate,
    rate_policy: AtomicU8,
}

/// The rates of one client's events and bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientRates {
    pub(crate) events: Option<Rate>,
    pub(crate) bytes: Option<Rate>,
    pub(crate) policy: RatePolicy,
}

impl Admission {
    pub(super) fn new(limits: &Limits) -> Self {
        let admission = Self {
            connections: AtomicUsize::default(),
            addresses: Addresses::default(),
            connect_rate: SharedRate::new(None),
            connects: SharedBucket::default(),
            refused: SharedBucket::default(),
            event_rate: SharedRate::new(None),
            byte_rate: SharedRate::new(None),
            rate_policy: AtomicU8::default(),
        };
        admission.set(limits);
        admission
    }

    /// Applies the limits to everything that arrives from now on.
    pub(super) fn set(&self, limits: &Limits) {
        self.set_connections(limits.connections);
        self.addresses.set(limits);
        self.connect_rate.set(limits.connect_rate);
        self.event_rate.set(limits.event_rate);
        self.byte_rate.set(limits.byte_rate);
        let policy = limits.rate_policy as u8;
        self.rate_policy.store(policy, Ordering::Relaxed);
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(super) fn set_connections(&self, limit: usize) {
        self.connections.store(limit, Ordering::Relaxed);
    }

    pub(super) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Counts a new connection. If there are too many per second, returns the seconds in which the
    /// rate will have caught up with all that were refused.
    pub(super) fn connect(&self, now: Time) -> Result<(), u64> {
        match self.connect_rate.get() {
            Some(rate) if !self.connects.take(rate, now) => Err(self.refused.queue(rate, now)),
            _ => Ok(()),
        }
    }

    /// The rates of a client, if there are any.
    pub(crate) fn client_rates(&self) -> Option<ClientRates> {
        if !self.event_rate.is_set() && !self.byte_rate.is_set() {
            return None;
        }
        let policy = self.rate_policy.load(Ordering::Relaxed);
        let policies = [RatePolicy::Warn, RatePolicy::Drop, RatePolicy::Close];
        let policy = policies.into_iter().find(|known| *known as u8 == policy);
        Some(ClientRates {
            events: self.event_rate.get(),
            bytes: self.byte_rate.get(),
            policy: policy.unwrap_or_default(),
        })
    }
}

/// The range from which the seconds are drawn that a refused client is asked to wait.
pub(super) fn retry_range(seconds: u64) -> std::ops::RangeInclusive<u64> {
    1..=seconds.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER)
}

/// The connections of each address, while they are limited.
#[derive(Default)]
pub(super) struct Addresses {
    is_limited: AtomicBool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    limit: usize,
    ipv6_prefix: u8,
    counts: HashMap<IpAddr, usize>,
}

impl Addresses {
    fn set(&self, limits: &Limits) {
        let mut table = self.table.lock();
        table.limit = limits
            .connections_per_address
            .map_or(usize::MAX, |limit| limit.max(1));
        table.ipv6_prefix = limits.ipv6_prefix;
        let is_limited = limits.connections_per_address.is_some();
        self.is_limited.store(is_limited, Ordering::Relaxed);
    }

    /// Counts a connection of an address. Returns the argument of [`leave`](Self::leave), `None` if
    /// connections per address are not limited, or an error if the address has too many. The key is
    /// returned instead of computed again, because the limit and the prefix may be replaced
    /// meanwhile.
    pub(super) fn enter(&self, address: IpAddr) -> Result<Option<Box<IpAddr>>, ()> {
        if !self.is_limited.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut table = self.table.lock();
        let (limit, key) = (table.limit, client_network(address, table.ipv6_prefix));
        let count = table.counts.entry(key).or_default();
        if *count >= limit {
            return Err(());
        }
        *count += 1;
        Ok(Some(Box::new(key)))
    }

    pub(super) fn leave(&self, key: IpAddr) {
        let mut table = self.table.lock();
        if let Entry::Occupied(mut count) = table.counts.entry(key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(limit: usize) -> Addresses {
        let addresses = Addresses::default();
        addresses.set(&Limits {
            connections_per_address: Some(limit),
            ..Limits::default()
        });
        addresses
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_is_forgotten_with_its_last_connection() {
        let addresses = addresses(2);
        let keys: Vec<_> = (0..2)
            .map(|_| addresses.enter(ip("192.0.2.1")).expect("room"))
            .collect();
        assert!(addresses.enter(ip("192.0.2.1")).is_err());
        assert!(addresses.enter(ip("::ffff:192.0.2.1")).is_err());
        let other = addresses.enter(ip("192.0.2.2")).expect("room");
        for key in keys.into_iter().chain([other]) {
            addresses.leave(*key.expect("it was counted"));
        }
        assert!(addresses.table.lock().counts.is_empty());
    }

    #[test]
    fn of_ipv6_the_network_counts() {
        let addresses = addresses(1);
        assert!(addresses.enter(ip("2001:db8:0:1::1")).is_ok());
        assert!(addresses.enter(ip("2001:db8:0:1:ffff::2")).is_err());
        assert!(addresses.enter(ip("2001:db8:0:2::1")).is_ok());
        assert_eq!(client_network(ip("2001:db8::1"), 128), ip("2001:db8::1"));
        assert_eq!(client_network(ip("2001:db8::1"), 0), ip("::"));
        assert_eq!(
            client_network(ip("2001:db8:ffff::"), 40),
            ip("2001:db8:ff00::")
        );
    }

    #[test]
    fn without_a_limit_nothing_is_kept() {
        let addresses = Addresses::default();
        addresses.set(&Limits::default());
        assert_eq!(addresses.enter(ip("192.0.2.1")), Ok(None));
        assert!(addresses.table.lock().counts.is_empty());
    }

    #[test]
    fn clients_that_are_refused_together_are_asked_to_come_back_apart() {
        assert_eq!(retry_range(0), 1..=5);
        assert_eq!(retry_range(17), 1..=17);
        assert_eq!(retry_range(u64::MAX), 1..=60);
    }
}
