//! The options of the relay.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    str::FromStr,
};

use clap::Args;
use rustix::process::{Resource, getrlimit};
use rustls::pki_types::ServerName;

use crate::gateway::values::{self, OrOff, or_off};

/// The least length of a key. A random one of 32 hexadecimal digits has 128 bits.
const MIN_KEY_BYTES: usize = 32;

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Relay")]
pub(crate) struct RelayOptions {
    /// Key with which nodes relay requests to the node that has the session: `off`, or
    /// one or two KEYs separated by a comma
    ///
    /// With it, a balancer needs no sticky sessions: any node accepts any request. All
    /// nodes need the same key of at least 32 characters, and Redis. A node signs with
    /// the first key and accepts both, so a key can be replaced without downtime.
    #[arg(
        long,
        value_name = "KEY",
        default_value = "off",
        hide_env_values = true
    )]
    pub(crate) cluster_key: ClusterKey,

    /// Address and port for requests that other nodes relay; used with a cluster key only
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[arg(default_value = "0.0.0.0:3002", value_parser = values::address)]
    pub(crate) relay_listen: SocketAddr,

    /// Address at which other nodes reach --relay-listen: `auto` or HOST:PORT
    ///
    /// `auto` is the address of --relay-listen, or that of this host's default route if
    /// --relay-listen is a wildcard address.
    #[arg(long, value_name = "HOST:PORT", default_value = "auto")]
    pub(crate) relay_address: RelayAddress,

    /// Certificate authorities of the other nodes: `off`, or a PEM file. Together with
    /// --internal-tls-cert, nodes relay over TLS
    ///
    /// With it, this node relays over TLS to nodes that serve the relay over TLS, and serves it
    /// with the certificates of --internal-tls-cert. SIGHUP reloads the file.
    #[arg(long, value_name = "FILE", default_value = "off")]
    #[arg(value_parser = or_off(values::file))]
    pub(crate) relay_tls_ca: OrOff<PathBuf>,

    /// Name in the certificates of the other nodes: `address` for the host of each node's address,
    /// or one NAME
    #[arg(long, value_name = "NAME", default_value = "address")]
    pub(crate) relay_tls_name: TlsName,

    /// Requests and WebSockets that this node relays to others at a time; a further one
    /// gets status 503
    #[arg(long, value_name = "COUNT", default_value = "10000", value_parser = values::count)]
    pub(crate) relay_max: usize,
}

/// The keys of a cluster. They are not shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ClusterKey(pub(crate) Vec<Box<[u8]>>);

impl FromStr for ClusterKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(Vec::new()));
        }
        let keys: Vec<Box<[u8]>> = text
            .split(',')
            .map(|key| key.trim().as_bytes().into())
            .collect();
        if keys.iter().any(|key| key.len() < MIN_KEY_BYTES) {
            return Err(format!(
                "a key needs at least {MIN_KEY_BYTES} characters, such as `openssl rand -hex 32` prints"
            ));
        }
        if keys.len() > 2 {
            return Err("expected one key, or the new and the old one".to_owned());
        }
        Ok(Self(keys))
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(…)")
    }
}

/// The address that a node states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RelayAddress {
    Auto,
    At(String),
}

impl FromStr for RelayAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let authority = text.parse::<http::uri::Authority>().ok();
        let is_valid = authority.is_some_and(|authority| {
            authority.port_u16().is_some_and(|port| port > 0)
                && !authority.host().is_empty()
                && !text.contains('@')
        });
        match is_valid {
            true => Ok(Self::At(text.to_owned())),
            false => Err("expected `auto` or HOST:PORT, such as 10.0.0.7:3002".to_owned()),
        }
    }
}

/// The name in the certificates of other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TlsName {
    Address,
    Fixed(ServerName<'static>),
}

impl FromStr for TlsName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "address" {
            return Ok(Self::Address);
        }
        let name = ServerName::try_from(text.to_owned());
        name.map(Self::Fixed).map_err(|_| {
            "expected `address` or a name of a certificate, such as roomcast.internal".to_owned()
        })
    }
}

impl RelayOptions {
    /// Checks options that are valid one by one but not together.
    pub(crate) fn check(&self, has_redis: bool) -> Result<(), String> {
        if self.cluster_key.0.is_empty() {
            return match self.relay_tls_ca.0 {
                Some(_) => {
                    Err("--relay-tls-ca needs --cluster-key, with which nodes relay".to_owned())
                }
                None => Ok(()),
            };
        }
        match has_redis {
            true => Ok(()),
            false => Err("--cluster-key needs --redis, by which nodes find each other".to_owned()),
        }
    }

    /// How much is relayed at a time: the value of the option, but at most an eighth of the
    /// descriptors.
    pub(crate) fn open(&self) -> usize {
        self.open_within(getrlimit(Resource::Nofile).current)
    }

    fn open_within(&self, files: Option<u64>) -> usize {
        let files = files.map_or(usize::MAX, |files| {
            usize::try_from(files).unwrap_or(usize::MAX)
        });
        self.relay_max.min(files / 8).max(1)
    }

    /// The number of client sockets that leaves room for relayed requests, which take up to two
    /// descriptors each.
    pub(crate) fn sockets(&self, sockets: usize) -> usize {
        self.sockets_within(sockets, getrlimit(Resource::Nofile).current)
    }

    fn sockets_within(&self, sockets: usize, files: Option<u64>) -> usize {
        let Some(files) = files.filter(|_| !self.cluster_key.0.is_empty()) else {
            return sockets;
        };
        let relayed = 2 * self.open_within(Some(files));
        let left = usize::try_from(files)
            .unwrap_or(usize::MAX)
            .saturating_sub(relayed);
        // The server itself reserves descriptors for everything else.
        sockets.min(left - left / 16).max(1)
    }

    /// The address to state for a listener.
    pub(super) fn advertised(&self, listener: SocketAddr) -> Result<String, String> {
        match &self.relay_address {
            RelayAddress::At(address) => Ok(address.clone()),
            RelayAddress::Auto if !listener.ip().is_unspecified() => Ok(listener.to_string()),
            RelayAddress::Auto => match default_route(listener.is_ipv6()) {
                Some(mut address) => {
                    address.set_port(listener.port());
                    Ok(address.to_string())
                }
                None => Err(
                    "this host has no default route, so its address is not known: name it with --relay-address"
                        .to_owned(),
                ),
            },
        }
    }
}

/// The address of this host on its default route. Connecting a UDP socket selects the
/// route and sends nothing; the destinations are reserved for documents.
fn default_route(tries_ipv6: bool) -> Option<SocketAddr> {
    let by = |own: SocketAddr, destination: SocketAddr| {
        let socket = UdpSocket::bind(own).ok()?;
        socket.connect(destination).ok()?;
        let address = socket.local_addr().ok()?;
        (!address.ip().is_unspecified()).then_some(address)
    };
    let ipv4 = || {
        by(
            (Ipv4Addr::UNSPECIFIED, 0).into(),
            (Ipv4Addr::new(192, 0, 2, 1), 9).into(),
        )
    };
    let documents = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let ipv6 = || by((Ipv6Addr::UNSPECIFIED, 0).into(), (documents, 9).into());
    ipv4().or_else(|| tries_ipv6.then(ipv6).flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_cluster_key_is_long_and_is_not_shown() {
        assert_eq!("off".parse(), Ok(ClusterKey(Vec::new())));
        let key: ClusterKey = KEY.parse().unwrap();
        assert_eq!(format!("{key:?}"), "ClusterKey(…)");
        let two: ClusterKey = format!("{KEY}, {KEY}x").parse().unwrap();
        assert_eq!(two.0.len(), 2);
        for wrong in [
            "",
            "short",
            &format!("{KEY},short"),
            &format!("{KEY},{KEY},{KEY}"),
        ] {
            assert!(wrong.parse::<ClusterKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for right in ["10.0.0.7:3002", "[::1]:3002", "node-1.example:80"] {
            assert_eq!(right.parse(), Ok(RelayAddress::At(right.to_owned())));
        }
        assert_eq!("auto".parse(), Ok(RelayAddress::Auto));
        for wrong in [
            "",
            "host",
            "host:0",
            "a@host:1",
            "http://host:1",
            "host:1/x",
            "host:1,b:2",
        ] {
            assert!(wrong.parse::<RelayAddress>().is_err(), "{wrong}");
        }
    }

    fn options(address: &str) -> RelayOptions {
        RelayOptions {
            cluster_key: KEY.parse().unwrap(),
            relay_listen: "0.0.0.0:0".parse().unwrap(),
            relay_address: address.parse().unwrap(),
            relay_tls_ca: OrOff(None),
            relay_tls_name: TlsName::Address,
            relay_max: 10,
        }
    }

    #[test]
    fn a_node_states_the_address_of_its_listener_or_the_one_that_is_named() {
        let listener = "127.0.0.1:7".parse().unwrap();
        assert_eq!(options("auto").advertised(listener).unwrap(), "127.0.0.1:7");
        assert_eq!(options("a:9").advertised(listener).unwrap(), "a:9");
    }

    #[test]
    fn what_is_relayed_leaves_descriptors_for_clients_and_the_other_way_round() {
        let mut options = options("auto");
        options.relay_max = 10_000;
        assert_eq!(options.open_within(Some(1 << 20)), 10_000);
        assert_eq!(options.open_within(Some(1024)), 128);
        assert_eq!(options.open_within(None), 10_000);
        assert_eq!(options.sockets_within(1_000_000, Some(1024)), 720);
        assert_eq!(options.sockets_within(100, Some(1024)), 100);
        assert_eq!(options.sockets_within(1_000_000, None), 1_000_000);
        options.cluster_key = "off".parse().unwrap();
        assert_eq!(options.sockets_within(1_000_000, Some(1024)), 1_000_000);
    }

    #[test]
    fn a_key_without_redis_is_an_error() {
        assert!(options("auto").check(true).is_ok());
        assert!(options("auto").check(false).is_err());
    }

    #[test]
    fn authorities_without_a_cluster_key_are_an_error() {
        let mut options = options("auto");
        options.relay_tls_ca = OrOff(Some("ca.pem".into()));
        assert!(options.check(true).is_ok());
        options.cluster_key = "off".parse().unwrap();
        assert!(options.check(true).is_err());
    }

    #[test]
    fn a_name_of_certificates_is_a_host() {
        assert_eq!("address".parse(), Ok(TlsName::Address));
        for right in ["roomcast.internal", "10.0.0.7", "::1"] {
            let name = ServerName::try_from(right).unwrap();
            assert_eq!(right.parse(), Ok(TlsName::Fixed(name.to_owned())));
        }
        for wrong in ["", "a b", "https://a", "a:1"] {
            assert!(wrong.parse::<TlsName>().is_err(), "{wrong}");
        }
    }
}
