//! Limits the requests that stay open, by address and by the client's credentials.
//!
//! An address or a key with a place is in the table, so it is never larger than the number of open
//! requests.
//!
//! **Why by address and by key.** The address limits clients without credentials, and the key
//! limits one application behind many addresses.
//!
//! **Why the future leaves the request.** A poll waits for most of its life. Otherwise every
//! waiting client would keep its headers and the read buffer of HTTP for that time.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    pin::Pin,
    sync::Arc,
};

use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use prometheus::{IntGauge, IntGaugeVec};
use roomcast::client_network;

use super::{
    metrics::{Door, DoorLimit},
    settings::Settings,
};

/// The requests that stay open.
pub(super) struct Parked {
    per_address: usize,
    per_key: usize,
    ipv6_prefix: u8,
    counts: Mutex<HashMap<Holder, usize>>,
    gauges: IntGaugeVec,
}

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Address(IpAddr),
    Key(Door, Box<str>),
}

/// The place of an open request. Dropping it makes room for another one.
#[must_use]
pub(crate) struct Place {
    parked: Arc<Parked>,
    holders: [Option<Holder>; 2],
    gauge: IntGauge,
}

/// The future of a response.
pub(crate) type Waiting = Pin<Box<dyn Future<Output = Response> + Send>>;

/// The response to a request, or a waiting request.
pub(crate) enum Reply {
    Now(Response),
    /// Waits without the request, whose parts would keep what the HTTP connection has read.
    Later(Waiting),
}

/// Stands in a response for the one that is awaited.
/// [`Doors::cover`](super::Doors::cover) waits for it, because it has to see the
/// response.
#[derive(Clone)]
pub(super) struct Later(Arc<Mutex<Option<Waiting>>>);

impl Later {
    /// Takes the waiting request for which a response stands.
    pub(super) fn take(response: &mut Response) -> Option<Waiting> {
        let later = response.extensions_mut().remove::<Self>()?;
        later.0.lock().take()
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        match self {
            Self::Now(response) => response,
            Self::Later(waiting) => {
                let mut response = Response::default();
                let later = Later(Arc::new(Mutex::new(Some(waiting))));
                response.extensions_mut().insert(later);
                response
            }
        }
    }
}

impl Parked {
    pub(super) fn new(settings: &Settings, ipv6_prefix: u8, gauges: IntGaugeVec) -> Self {
        Self {
            per_address: settings.max_parked_per_address,
            per_key: settings.max_parked_per_key,
            ipv6_prefix,
            counts: Mutex::default(),
            gauges,
        }
    }

    /// The network of an address. Its addresses share one limit.
    pub(super) fn network(&self, address: IpAddr) -> IpAddr {
        client_network(address, self.ipv6_prefix)
    }

    /// Takes a place in both counts, or in neither: dropping a place that was taken in
    /// part gives it back.
    pub(super) fn take(
        self: &Arc<Self>,
        door: Door,
        address: Option<IpAddr>,
        key: Option<&str>,
    ) -> Result<Place, DoorLimit> {
        let address = address.map(|address| Holder::Address(self.network(address)));
        let key = key.map(|key| Holder::Key(door, key.into()));
        let mut place = Place {
            parked: Arc::clone(self),
            holders: [None, None],
            gauge: self.gauges.with_label_values(&[door.label()]),
        };
        place.gauge.inc();
        let limits = [
            (address, self.per_address, DoorLimit::ParkedPerAddress),
            (key, self.per_key, DoorLimit::ParkedPerKey),
        ];
        for ((holder, most, limit), held) in limits.into_iter().zip(&mut place.holders) {
            let Some(holder) = holder else { continue };
            let mut counts = self.counts.lock();
            let count = counts.entry(holder.clone()).or_default();
            if *count >= most {
                // The lock must be free when the place is dropped.
                drop(counts);
                return Err(limit);
            }
            *count += 1;
            *held = Some(holder);
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.dec();
        let mut counts = self.parked.counts.lock();
        for holder in self.holders.iter_mut().filter_map(Option::take) {
            if let Entry::Occupied(mut count) = counts.entry(holder) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use prometheus::Opts;

    use super::*;

    const ADDRESS: Option<IpAddr> = Some(IpAddr::V6(Ipv6Addr::LOCALHOST));

    fn parked(per_address: usize, per_key: usize) -> Arc<Parked> {
        let settings = Settings {
            max_parked_per_address: per_address,
            max_parked_per_key: per_key,
            ..Settings::default()
        };
        let gauges = IntGaugeVec::new(Opts::new("parked", "parked"), &["door"]).unwrap();
        Arc::new(Parked::new(&settings, 64, gauges))
    }

    #[test]
    fn a_request_that_ends_makes_room_for_another() {
        let parked = parked(2, 9);
        let take = || parked.take(Door::Channels, ADDRESS, Some("k"));
        let places = [take(), take()];
        assert_eq!(take().err(), Some(DoorLimit::ParkedPerAddress));
        let gauge = parked.gauges.with_label_values(&["channels"]);
        assert_eq!(gauge.get(), 2);
        drop(places);
        assert!(take().is_ok());
        assert!(parked.counts.lock().is_empty());
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn a_key_has_its_places_behind_any_address_and_each_door_its_own_keys() {
        let parked = parked(9, 1);
        let _first = parked.take(Door::Channels, ADDRESS, Some("k")).unwrap();
        let second = parked.take(Door::Channels, None, Some("k"));
        assert_eq!(second.err(), Some(DoorLimit::ParkedPerKey));
        assert!(parked.take(Door::Syncano, None, Some("k")).is_ok());
        assert!(parked.take(Door::Channels, ADDRESS, None).is_ok());
    }

    #[test]
    fn addresses_of_one_network_count_as_one() {
        let parked = parked(1, 1);
        let address = |text: &str| Some(text.parse().unwrap());
        let take = |text: &str| parked.take(Door::Channels, address(text), None);
        let _first = take("2001:db8::1").unwrap();
        assert!(take("2001:db8::2").is_err());
        assert!(take("2001:db8:0:1::2").is_ok());
        assert!(take("192.0.2.1").is_ok());
    }
}
