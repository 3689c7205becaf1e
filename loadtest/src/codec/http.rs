//! Enough of HTTP/1.1 for a polling client: writes requests and parses responses incrementally.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::TcpStream,
};

/// A complete response at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `name=value` of each `Set-Cookie`, joined for the client's `Cookie` header.
    pub(crate) cookies: String,
    pub(crate) body: Vec<u8>,
    /// Whether the connection stays open for another request.
    pub(crate) is_kept: bool,
}

/// The bytes are not HTTP, or longer than any response to a polling client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

/// Parses the response at the start of `bytes`. Returns `None` while it is incomplete. `has_ended`:
/// the connection is closed, no bytes follow.
pub(crate) fn read(bytes: &[u8], has_ended: bool) -> Result<Option<Answer>, Invalid> {
    let Some(head_end) = head_end(bytes) else {
        let can_be = bytes.len() < LONGEST_HEAD_BYTES
            && b"HTTP/1.".starts_with(&bytes[..bytes.len().min(7)]);
        return if can_be && !has_ended {
            Ok(None)
        } else {
            Err(Invalid)
        };
    };
    let head = Head::parse(&bytes[..head_end]).ok_or(Invalid)?;
    let rest = &bytes[head_end..];
    let body = match head.framing {
        Framing::Length(length) if length > LONGEST_BODY_BYTES => return Err(Invalid),
        Framing::Length(length) => rest.get(..length).map(<[u8]>::to_vec),
        Framing::Chunks => read_chunks(rest)?,
        Framing::UntilEnd => has_ended.then(|| rest.to_vec()),
    };
    let Some(body) = body else {
        let can_be = !has_ended && rest.len() < 2 * LONGEST_BODY_BYTES;
        return can_be.then_some(None).ok_or(Invalid);
    };
    Ok(Some(Answer {
        status: head.status,
        cookies: head.cookies,
        body,
        is_kept: head.is_kept,
    }))
}

/// Sends a request and reads the response. A response that is not HTTP is `InvalidData`.
pub(crate) fn exchange(stream: &mut TcpStream, request: &[u8]) -> io::Result<Answer> {
    stream.write_all(request)?;
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let count = stream.read(&mut buffer)?;
        bytes.extend_from_slice(&buffer[..count]);
        match read(&bytes, count == 0) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) if count > 0 => {}
            _ => return Err(ErrorKind::InvalidData.into()),
        }
    }
}

/// Returns the offset behind the head of an HTTP message, or `None` while it is incomplete.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some(at + 4)
}

pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) cookies: String,
    /// Value of `Sec-WebSocket-Accept`.
    pub(crate) accept: Option<String>,
    /// Value of `X-Node`, with which a balancer can name the server that it has chosen.
    pub(crate) node: Option<String>,
    is_kept: bool,
    framing: Framing,
}

enum Framing {
    Length(usize),
    Chunks,
    UntilEnd,
}

impl Head {
    /// Parses the head of an HTTP/1 response, `None` if it is malformed.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        parsed
            .parse(bytes)
            .ok()
            .filter(httparse::Status::is_complete)?;
        let mut head = Self {
            status: parsed.code?,
            cookies: String::new(),
            accept: None,
            node: None,
            is_kept: parsed.version == Some(1),
            framing: Framing::UntilEnd,
        };
        for header in parsed.headers {
            let value = str::from_utf8(header.value).ok()?;
            head.note(&header.name.to_ascii_lowercase(), value.trim())?;
        }
        if matches!(head.status, 100..=199 | 204 | 304) {
            head.framing = Framing::Length(0);
        }
        Some(head)
    }

    fn note(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "content-length" => self.framing = Framing::Length(value.parse().ok()?),
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => {
                self.framing = Framing::Chunks;
            }
            "connection" if value.eq_ignore_ascii_case("close") => self.is_kept = false,
            "sec-websocket-accept" => self.accept = Some(value.to_owned()),
            "x-node" => self.node = Some(value.to_owned()),
            "set-cookie" => {
                if !self.cookies.is_empty() {
                    self.cookies.push_str("; ");
                }
                let pair = value.split_once(';').map_or(value, |(pair, _)| pair);
                self.cookies.push_str(pair.trim());
            }
            _ => {}
        }
        Some(())
    }
}

/// Joins the chunks of a body. Returns `None` while it is incomplete.
fn read_chunks(mut rest: &[u8]) -> Result<Option<Vec<u8>>, Invalid> {
    let mut body = Vec::new();
    loop {
        let (start, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete((start, size))) => (start, size as usize),
            Ok(httparse::Status::Partial) if rest.len() <= 100 => return Ok(None),
            _ => return Err(Invalid),
        };
        if size > LONGEST_BODY_BYTES - body.len() {
            return Err(Invalid);
        }
        let Some(chunk) = rest.get(start..start + size + 2) else {
            return Ok(None);
        };
        // Trailers after the last chunk are invalid: servers do not send them to polling clients.
        let data = chunk.strip_suffix(b"\r\n").ok_or(Invalid)?;
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(data);
        rest = &rest[start + size + 2..];
    }
}

/// Appends a request of a polling client: GET without a body, POST with one.
pub(crate) fn request(
    out: &mut Vec<u8>,
    host: &str,
    path_and_query: &str,
    cookie: &str,
    body: Option<&[u8]>,
) {
    let method = if body.is_some() { "POST" } else { "GET" };
    out.extend_from_slice(
        format!("{method} {path_and_query} HTTP/1.1\r\nHost: {host}\r\n").as_bytes(),
    );
    if !cookie.is_empty() {
        out.extend_from_slice(format!("Cookie: {cookie}\r\n").as_bytes());
    }
    if let Some(body) = body {
        let head = format!(
            "Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(body);
    } else {
        out.extend_from_slice(b"\r\n");
    }
}

const LONGEST_HEAD_BYTES: usize = 32 * 1024;
const MOST_HEADERS: usize = 64;
const LONGEST_BODY_BYTES: usize = 32 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str, has_ended: bool) -> Answer {
        let answer = read(text.as_bytes(), has_ended).unwrap();
        answer.expect(text)
    }

    #[test]
    fn an_answer_with_a_length_is_whole_when_its_body_is() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n4abcd";
        for cut in 0..text.len() {
            assert_eq!(read(&text.as_bytes()[..cut], false), Ok(None));
            assert_eq!(read(&text.as_bytes()[..cut], true), Err(Invalid));
        }
        let answer = whole(&format!("{text}HTTP/1.1 2"), false);
        assert_eq!((answer.status, answer.is_kept), (200, true));
        assert_eq!(answer.body, b"4abcd");
    }

    #[test]
    fn chunks_are_joined() {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x\r\n0123456789\r\n0\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(read(&text.as_bytes()[..cut], false), Ok(None));
        }
        assert_eq!(whole(text, false).body, b"abc0123456789");
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let text = "HTTP/1.0 200 OK\r\n\r\nabc";
        assert_eq!(read(text.as_bytes(), false), Ok(None));
        let answer = whole(text, true);
        assert_eq!((answer.body, answer.is_kept), (b"abc".to_vec(), false));
    }

    #[test]
    fn cookies_are_collected_without_their_attributes() {
        let text = "HTTP/1.1 200 OK\r\nset-cookie: io=x; Path=/\r\nSet-Cookie: node=b;HttpOnly\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let answer = whole(text, false);
        assert_eq!(
            (answer.cookies.as_str(), answer.is_kept),
            ("io=x; node=b", false)
        );
    }

    #[test]
    fn what_is_not_http_is_seen_at_once() {
        for text in [
            "SSH-2.0-OpenSSH_9",
            "-ERR unknown",
            "HTTP/1.1 2x0 no\r\n\r\n",
        ] {
            assert_eq!(read(text.as_bytes(), false), Err(Invalid), "{text}");
        }
        let endless = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
        assert_eq!(read(endless.as_bytes(), false), Err(Invalid));
        assert_eq!(read(b"", true), Err(Invalid));
    }

    #[test]
    fn a_post_says_how_long_it_is_and_a_poll_has_no_body() {
        let mut out = Vec::new();
        request(&mut out, "h:1", "/s/?x=1", "a=b", Some(b"40"));
        request(&mut out, "h:1", "/s/?x=2", "", None);
        let text = String::from_utf8(out).unwrap();
        let (post, poll) = text.split_once("\r\n\r\n40").unwrap();
        assert!(post.starts_with("POST /s/?x=1 HTTP/1.1\r\nHost: h:1\r\nCookie: a=b\r\n"));
        assert!(post.ends_with("Content-Length: 2"));
        assert_eq!(poll, "GET /s/?x=2 HTTP/1.1\r\nHost: h:1\r\n\r\n");
    }
}
