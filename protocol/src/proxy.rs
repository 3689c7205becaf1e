//! The PROXY protocol, versions 1 and 2: the header in which a balancer names the client of a TCP
//! connection that it forwards. The specification is HAProxy's `proxy-protocol.txt`.
//!
//! ```text
//! version 1   PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n
//! version 2   12 bytes signature │ version, command │ family │ length │ addresses │ extensions
//! ```
//!
//! [`read`] is called again with more bytes while the header is
//! [incomplete](Progress::Incomplete). Whether a connection begins with a header is a
//! setting of the listener and never a guess, because a client could otherwise name any
//! address that it likes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// The largest header that is read, in bytes. The addresses take 52 at most; the rest is for
/// extensions, which are skipped.
pub const MAX_HEADER: usize = 4096;

/// The largest header of version 1, which has no extensions.
const MAX_TEXT: usize = 107;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;

/// The state of a header after some of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All bytes so far belong to the header, and more are missing.
    Incomplete,
    /// The header is complete.
    Complete(Header),
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its length in bytes. The bytes after it belong to the connection.
    pub length: usize,
    /// The client's address. None if the proxy connects on its own behalf, as for a
    /// health check, or does not know the address.
    pub client: Option<SocketAddr>,
}

/// The bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// They do not follow the protocol.
    Malformed,
    /// The header is longer than [`MAX_HEADER`].
    TooLarge,
}

/// Reads the header at the beginning of a connection.
pub fn read(bytes: &[u8]) -> Result<Progress, HeaderError> {
    let signed = bytes.len().min(SIGNATURE.len());
    if bytes[..signed] == SIGNATURE[..signed] {
        read_binary(bytes)
    } else {
        read_text(bytes)
    }
}

fn read_binary(bytes: &[u8]) -> Result<Progress, HeaderError> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Progress::Incomplete);
    };
    let [.., version, family, high, low] = *fixed;
    let declared = usize::from(u16::from_be_bytes([high, low]));
    let length = FIXED + declared;
    if length > MAX_HEADER {
        return Err(HeaderError::TooLarge);
    }
    let is_local = match version {
        0x20 => true,
        0x21 => false,
        _ => return Err(HeaderError::Malformed),
    };
    let Some(addresses) = rest.get(..declared) else {
        return Ok(Progress::Incomplete);
    };
    let client = match family {
        _ if is_local => None,
        // IPv4 over TCP and UDP: both addresses, then both ports.
        0x11 | 0x12 => Some(source::<4, 8>(addresses)?),
        0x21 | 0x22 => Some(source::<16, 32>(addresses)?),
        // Unspecified, and sockets of Unix, which have no address that others know.
        0x00 | 0x31 | 0x32 => None,
        _ => return Err(HeaderError::Malformed),
    };
    Ok(Progress::Complete(Header { length, client }))
}

/// The first of two addresses of `N` bytes each, with the port that follows them `PORT` bytes from
/// the beginning.
fn source<const N: usize, const PORT: usize>(bytes: &[u8]) -> Result<SocketAddr, HeaderError>
where
    IpAddr: From<[u8; N]>,
{
    let address = bytes.first_chunk::<N>().ok_or(HeaderError::Malformed)?;
    // The destination's port follows, and must exist as well.
    let ports = bytes.get(PORT..PORT + 4).ok_or(HeaderError::Malformed)?;
    let port = u16::from_be_bytes([ports[0], ports[1]]);
    Ok(SocketAddr::new(IpAddr::from(*address), port))
}

fn read_text(bytes: &[u8]) -> Result<Progress, HeaderError> {
    const BEGINNING: &[u8] = b"PROXY ";
    let known = bytes.len().min(BEGINNING.len());
    if bytes[..known] != BEGINNING[..known] {
        return Err(HeaderError::Malformed);
    }
    let line = &bytes[..bytes.len().min(MAX_TEXT)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return match bytes.len() < MAX_TEXT {
            true => Ok(Progress::Incomplete),
            false => Err(HeaderError::Malformed),
        };
    };
    let text = str::from_utf8(&line[known..end]).map_err(|_| HeaderError::Malformed)?;
    Ok(Progress::Complete(Header {
        length: end + 2,
        client: client_of_text(text)?,
    }))
}

fn client_of_text(text: &str) -> Result<Option<SocketAddr>, HeaderError> {
    let (family, rest) = text.split_once(' ').unwrap_or((text, ""));
    match family {
        "TCP4" => of_family::<Ipv4Addr>(rest).map(Some),
        "TCP6" => of_family::<Ipv6Addr>(rest).map(Some),
        // Bytes after the header must be ignored.
        "UNKNOWN" => Ok(None),
        _ => Err(HeaderError::Malformed),
    }
}

/// The first of two addresses, with the first of two ports.
fn of_family<A: FromStr + Into<IpAddr>>(text: &str) -> Result<SocketAddr, HeaderError> {
    let mut words = text.split(' ');
    let mut next = || words.next().ok_or(HeaderError::Malformed);
    let (source, destination, port, other_port) = (next()?, next()?, next()?, next()?);
    let address = |text: &str| text.parse::<A>().map_err(|_| HeaderError::Malformed);
    let number = |text: &str| {
        let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u16>().ok().filter(|_| is_decimal);
        number.ok_or(HeaderError::Malformed)
    };
    address(destination)?;
    number(other_port)?;
    let client = SocketAddr::new(address(source)?.into(), number(port)?);
    match words.next() {
        None => Ok(client),
        Some(_) => Err(HeaderError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(bytes: &[u8]) -> Option<String> {
        match read(bytes) {
            Ok(Progress::Complete(header)) => {
                assert_eq!(header.length, bytes.len());
                header.client.map(|client| client.to_string())
            }
            other => panic!("{other:?}"),
        }
    }

    fn binary(version: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([version, family]);
        bytes.extend(u16::try_from(addresses.len()).unwrap().to_be_bytes());
        bytes.extend(addresses);
        bytes
    }

    const IPV4: [u8; 12] = [203, 0, 113, 9, 192, 0, 2, 1, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn both_versions_name_the_client() {
        let text = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n";
        assert_eq!(client(text).as_deref(), Some("203.0.113.9:56324"));
        let text = b"PROXY TCP6 2001:db8::9 2001:db8::1 56324 443\r\n";
        assert_eq!(client(text).as_deref(), Some("[2001:db8::9]:56324"));
        let bytes = binary(0x21, 0x11, &IPV4);
        assert_eq!(client(&bytes).as_deref(), Some("203.0.113.9:56324"));
        let mut addresses = [0; 36];
        addresses[15] = 1;
        addresses[33] = 80;
        let bytes = binary(0x21, 0x21, &addresses);
        assert_eq!(client(&bytes).as_deref(), Some("[::1]:80"));
    }

    #[test]
    fn extensions_are_skipped() {
        let bytes = binary(0x21, 0x11, &[&IPV4[..], &[4, 0, 1, 0]].concat());
        assert_eq!(client(&bytes).as_deref(), Some("203.0.113.9:56324"));
    }

    #[test]
    fn a_proxy_may_speak_for_itself() {
        assert_eq!(client(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(client(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"), None);
        assert_eq!(client(&binary(0x20, 0x00, &[])), None);
        assert_eq!(client(&binary(0x20, 0x11, &IPV4)), None);
        assert_eq!(client(&binary(0x21, 0x00, &[])), None);
        assert_eq!(client(&binary(0x21, 0x31, &[0; 216])), None);
    }

    #[test]
    fn a_header_that_comes_in_parts_is_read_once_it_is_complete() {
        let text = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n".to_vec();
        for whole in [text, binary(0x21, 0x11, &IPV4)] {
            for end in 0..whole.len() {
                assert_eq!(read(&whole[..end]), Ok(Progress::Incomplete), "{end}");
            }
            let longer = [&whole[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(read(&longer), read(&whole), "what follows is not looked at");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_the_first_wrong_byte() {
        let refused = |bytes: &[u8]| assert_eq!(read(bytes), Err(HeaderError::Malformed));
        refused(b"G");
        refused(b"\r\n\r\nx");
        refused(&[0x16, 3, 1]);
        refused(b"PROXY TCP4 203.0.113.9 192.0.2.1 56324\r\n");
        refused(b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443 1\r\n");
        refused(b"PROXY TCP4 203.0.113.9 192.0.2.1 65536 443\r\n");
        refused(b"PROXY TCP4 203.0.113.9 192.0.2.1 +1 443\r\n");
        refused(b"PROXY TCP4 2001:db8::9 2001:db8::1 1 2\r\n");
        refused(b"PROXY UDP4 203.0.113.9 192.0.2.1 1 2\r\n");
        refused(&[b"PROXY TCP4 ".as_slice(), &[b'1'; 100]].concat());
        refused(&binary(0x11, 0x11, &IPV4));
        refused(&binary(0x21, 0x11, &IPV4[..11]));
        refused(&binary(0x21, 0x41, &IPV4));
        let large = binary(0x21, 0x11, &[0; MAX_HEADER]);
        assert_eq!(read(&large[..FIXED]), Err(HeaderError::TooLarge));
    }
}
