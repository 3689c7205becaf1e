//! The address of a client: the other end of the TCP connection, unless a proxy that is
//! trusted names somebody else.
//!
//! ```text
//! TCP ── PROXY header ──▶ the address of the connection ── X-Forwarded-For ──▶ the client's address
//!        (per connection, listeners that expect one)       (per request, only from trusted addresses)
//! ```
//!
//! Each proxy appends the address that it was called from, so a header is read from its
//! right end: as long as an address is trusted, so is the entry to its left. The
//! entries of the client itself stand further left and are never reached.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
};

use axum::extract::{ConnectInfo, OptionalFromRequestParts};
use http::{Extensions, HeaderMap, HeaderName, header, request::Parts};
use ipnet::{IpNet, Ipv6Net};

/// The address of a client, and whether it uses TLS, as far as the server knows.
///
/// [`Handshake::address`](crate::Handshake::address) is of it. A route of the application
/// takes it as an argument, `Option<ClientAddress>`. It is none if the application serves
/// itself and provides no `axum::extract::ConnectInfo`, and does not regard trusted
/// proxies then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    address: SocketAddr,
    is_secure: bool,
}

impl ClientAddress {
    pub(crate) fn direct(address: SocketAddr, is_secure: bool) -> Self {
        Self { address, is_secure }
    }

    /// The address. The port is 0 if a proxy does not name it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address without the port; an IPv4 address that is written as one of IPv6 is one of IPv4
    /// here, so that a client has the same address on every listener.
    pub fn ip(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }

    /// Whether the client uses TLS: to this server, or to a trusted proxy that says so.
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// The address of a request that the server has received, from its extensions.
    pub fn of(extensions: &Extensions) -> Option<Self> {
        let peer = || extensions.get::<ConnectInfo<SocketAddr>>();
        let direct = || peer().map(|peer| Self::direct(peer.0, false));
        extensions.get::<Self>().copied().or_else(direct)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

/// The network that counts as one client: of an IPv6 address its first `ipv6_prefix` bits,
/// because a host has a whole network and could use another address for each connection.
/// An IPv4 address counts as itself, also one that is written as an IPv6 address.
///
/// [`Limits::connections_per_address`](crate::Limits::connections_per_address) counts by it.
///
/// ```
/// let network = |text: &str| roomcast::client_network(text.parse().unwrap(), 64).to_string();
/// assert_eq!(network("2001:db8::1:2:3"), "2001:db8::");
/// assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
/// ```
pub fn client_network(address: IpAddr, ipv6_prefix: u8) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = Ipv6Net::new(address, ipv6_prefix.min(128));
            network.map_or(address, |network| network.network()).into()
        }
        address => address,
    }
}

/// The proxies whose headers about clients are trusted. By default there are none.
///
/// ```
/// # use roomcast::{Server, TrustedProxies};
/// let proxies = TrustedProxies::new(["10.0.0.0/8", "::1"])?;
/// let builder = Server::builder().trusted_proxies(proxies);
/// # drop(builder);
/// # Ok::<(), roomcast::InvalidNetwork>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: Box<[IpNet]>,
    header: ForwardedHeader,
}

/// The header from which the addresses of clients are read. One only, because a proxy
/// that writes the one passes the other on as the client sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, and `X-Forwarded-Proto` for the use of TLS. The default.
    #[default]
    XForwardedFor,
    /// `Forwarded` of RFC 7239.
    Forwarded,
}

/// A text is neither an IP address nor a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no IP address and no network such as 10.0.0.0/8")]
pub struct InvalidNetwork(String);

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

impl TrustedProxies {
    /// Trusts these addresses and networks.
    pub fn new<T: AsRef<str>>(
        networks: impl IntoIterator<Item = T>,
    ) -> Result<Self, InvalidNetwork> {
        let networks = networks.into_iter().map(|text| {
            let text = text.as_ref().trim();
            let one = || text.parse::<IpAddr>().map(IpNet::from).ok();
            let network = text.parse().ok().or_else(one);
            network.ok_or_else(|| InvalidNetwork(text.to_owned()))
        });
        Ok(Self {
            networks: networks.collect::<Result<_, _>>()?,
            header: ForwardedHeader::default(),
        })
    }

    /// Reads addresses from this header.
    #[must_use]
    pub fn header(mut self, header: ForwardedHeader) -> Self {
        self.header = header;
        self
    }

    /// Whether this address is that of a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// Whether a request carries an address that is ignored because its sender is not trusted.
    pub(crate) fn ignores(&self, peer: SocketAddr, headers: &HeaderMap) -> bool {
        let named =
            || headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(header::FORWARDED);
        named() && !self.trusts(peer.ip())
    }

    /// The client of a request that came from `peer`.
    pub(crate) fn client(&self, peer: ClientAddress, headers: &HeaderMap) -> ClientAddress {
        if !self.trusts(peer.address.ip()) {
            return peer;
        }
        match self.header {
            ForwardedHeader::XForwardedFor => {
                let lines = headers.get_all(X_FORWARDED_FOR).into_iter().rev();
                let lines = lines.map(|line| line.to_str().unwrap_or_default());
                let hops = lines.flat_map(|line| line.rsplit(',')).map(|text| Hop {
                    address: address(text.trim()),
                    is_secure: None,
                });
                let client = self.follow(peer, hops);
                // A proxy replaces this header, so its last word is that of the nearest one.
                let mut lines = headers.get_all(X_FORWARDED_PROTO).into_iter();
                let last = lines.next_back().and_then(|line| line.to_str().ok());
                let last = last.and_then(|line| line.rsplit(',').next());
                ClientAddress {
                    is_secure: last.map_or(peer.is_secure, is_https),
                    ..client
                }
            }
            ForwardedHeader::Forwarded => {
                let lines = headers.get_all(header::FORWARDED).into_iter().rev();
                let lines = lines.map(|line| line.to_str().unwrap_or_default());
                let hops = lines.flat_map(|line| unquoted_parts(line, ',').into_iter().rev());
                self.follow(peer, hops.map(hop))
            }
        }
    }

    /// Goes from proxy to proxy as long as they are trusted. `hops` begins with the nearest.
    fn follow(&self, peer: ClientAddress, hops: impl Iterator<Item = Hop>) -> ClientAddress {
        let mut client = peer;
        for hop in hops {
            // Hidden or broken: the origin of the entries to its left is unknown.
            let Some(address) = hop.address else {
                break;
            };
            client.address = address;
            client.is_secure = hop.is_secure.unwrap_or(client.is_secure);
            if !self.trusts(address.ip()) {
                break;
            }
        }
        client
    }
}

/// The entry of one proxy about its client.
struct Hop {
    address: Option<SocketAddr>,
    is_secure: Option<bool>,
}

fn is_https(text: &str) -> bool {
    let text = text.trim();
    text.eq_ignore_ascii_case("https") || text.eq_ignore_ascii_case("wss")
}

/// An address with or without a port, as proxies write it: `192.0.2.1`, `192.0.2.1:80`,
/// `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<SocketAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let bare = bare.unwrap_or(text);
    let without_port = || Some(SocketAddr::new(bare.parse().ok()?, 0));
    text.parse().ok().or_else(without_port)
}

/// An element of the header `Forwarded`: pairs such as `for="[2001:db8::1]:80";proto=https`.
fn hop(element: &str) -> Hop {
    let mut hop = Hop {
        address: None,
        is_secure: None,
    };
    for pair in unquoted_parts(element, ';') {
        let Some((name, value)) = pair.split_once('=') else {
            continue;
        };
        let value = value.trim();
        let quoted = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'));
        let value = quoted.unwrap_or(value);
        if name.trim().eq_ignore_ascii_case("for") {
            hop.address = address(value);
        } else if name.trim().eq_ignore_ascii_case("proto") {
            hop.is_secure = Some(is_https(value));
        }
    }
    hop
}

/// The parts between separators that are not in quotes.
fn unquoted_parts(text: &str, separator: char) -> Vec<&str> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    text.split(|char| {
        let was_escaped = std::mem::take(&mut is_escaped);
        match char {
            '"' if !was_escaped => is_quoted = !is_quoted,
            '\\' if is_quoted && !was_escaped => is_escaped = true,
            _ => {}
        }
        char == separator && !is_quoted
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The client of a request from `peer`, in a network where 10.0.0.0/8 and ::1 are proxies.
    fn client(header: ForwardedHeader, peer: &str, lines: &[(&str, &str)]) -> (String, bool) {
        let proxies = TrustedProxies::new(["10.0.0.0/8", "::1"]).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        let peer = ClientAddress::direct(peer.parse().unwrap(), false);
        let client = proxies.header(header).client(peer, &headers);
        (client.address().to_string(), client.is_secure())
    }

    fn forwarded_for(peer: &str, lines: &[&str]) -> String {
        let lines: Vec<_> = lines
            .iter()
            .map(|line| ("x-forwarded-for", *line))
            .collect();
        client(ForwardedHeader::XForwardedFor, peer, &lines).0
    }

    fn forwarded(lines: &[&str]) -> (String, bool) {
        let lines: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
        client(ForwardedHeader::Forwarded, "10.0.0.1:80", &lines)
    }

    #[test]
    fn the_nearest_address_that_is_no_proxy_is_the_client() {
        let proxy = "10.0.0.1:80";
        assert_eq!(forwarded_for(proxy, &["203.0.113.9"]), "203.0.113.9:0");
        assert_eq!(
            forwarded_for(proxy, &["1.1.1.1, 203.0.113.9"]),
            "203.0.113.9:0"
        );
        assert_eq!(
            forwarded_for(proxy, &["1.1.1.1, 203.0.113.9,10.2.0.1"]),
            "203.0.113.9:0"
        );
        assert_eq!(
            forwarded_for(proxy, &["1.1.1.1", "203.0.113.9"]),
            "203.0.113.9:0"
        );
        assert_eq!(forwarded_for(proxy, &["10.1.1.1, 10.2.2.2"]), "10.1.1.1:0");
        assert_eq!(
            forwarded_for("[::ffff:10.0.0.1]:1", &["203.0.113.9:81"]),
            "203.0.113.9:81"
        );
        assert_eq!(
            forwarded_for("[::1]:1", &["[2001:db8::9]:81"]),
            "[2001:db8::9]:81"
        );
        assert_eq!(
            forwarded_for("[::1]:1", &["2001:db8::9"]),
            "[2001:db8::9]:0"
        );
    }

    #[test]
    fn a_header_of_somebody_else_is_ignored() {
        assert_eq!(
            forwarded_for("203.0.113.1:80", &["10.0.0.9"]),
            "203.0.113.1:80"
        );
        assert_eq!(forwarded_for("10.0.0.1:80", &[]), "10.0.0.1:80");
    }

    #[test]
    fn behind_an_address_that_nobody_can_read_nothing_is_believed() {
        let proxy = "10.0.0.1:80";
        assert_eq!(forwarded_for(proxy, &["1.1.1.1, unknown"]), "10.0.0.1:80");
        assert_eq!(forwarded_for(proxy, &["1.1.1.1, , 10.2.2.2"]), "10.2.2.2:0");
        assert_eq!(forwarded(&["for=1.1.1.1, for=_hidden"]).0, "10.0.0.1:80");
        assert_eq!(forwarded(&["for=\"", "for=1.1.1.1"]).0, "1.1.1.1:0");
    }

    #[test]
    fn the_standard_header_names_address_and_scheme() {
        let quoted = "For=\"[2001:db8::9]:4711\";proto=https;by=10.0.0.1";
        assert_eq!(
            forwarded(&[quoted]),
            ("[2001:db8::9]:4711".to_owned(), true)
        );
        let chain =
            "for=1.1.1.1;proto=https, for=203.0.113.9;host=\"a,b;c\";proto=http, for=10.2.2.2";
        assert_eq!(forwarded(&[chain]), ("203.0.113.9:0".to_owned(), false));
    }

    #[test]
    fn only_the_header_that_is_chosen_is_read() {
        let lines = [
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-for", "203.0.113.9"),
        ];
        let read = |header| client(header, "10.0.0.1:80", &lines).0;
        assert_eq!(read(ForwardedHeader::XForwardedFor), "203.0.113.9:0");
        assert_eq!(read(ForwardedHeader::Forwarded), "1.1.1.1:0");
    }

    #[test]
    fn the_scheme_is_that_which_the_nearest_proxy_names() {
        let secure =
            |lines: &[(&str, &str)]| client(ForwardedHeader::XForwardedFor, "10.0.0.1:80", lines).1;
        assert!(secure(&[("x-forwarded-proto", "HTTPS")]));
        assert!(!secure(&[("x-forwarded-proto", "https, http")]));
        assert!(!secure(&[]));
    }

    #[test]
    fn what_is_no_network_is_named() {
        let error = TrustedProxies::new(["10.0.0.0/8", "10.0.0.0/33"]).unwrap_err();
        let text = "`10.0.0.0/33` is no IP address and no network such as 10.0.0.0/8";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn an_ipv4_address_is_one_whatever_the_listener() {
        let direct = |text: &str| ClientAddress::direct(text.parse().unwrap(), false).ip();
        assert_eq!(direct("[::ffff:192.0.2.1]:1"), direct("192.0.2.1:2"));
    }
}
