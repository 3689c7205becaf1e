//! Reads one response of HTTP/1.1 from the bytes that have arrived so far.
//!
//! ```text
//! head ── 1xx ──► head
//!   ├─ content-length ─────► so many bytes ──┐
//!   ├─ chunked ────────────► until chunk 0 ──┼──► whole response
//!   ├─ neither ────────────► until the end ──┤
//!   └─ an error's status ────────────────────┘    its body is not waited for
//! ```
//!
//! Every byte is from an arbitrary server, so every ambiguity is an error: two lengths, an unknown
//! encoding, a head without end. A connection is used again only if the response ended exactly
//! where the received bytes do.

use http::StatusCode;
use httparse::{EMPTY_HEADER, Header, Status};

/// Maximum size of a head, and of the framing around the chunks of a body in excess of the size of
/// its data.
const MAX_HEAD: usize = 64 * 1024;

/// The most header lines of a response.
/// As hyper's limit.
const MAX_HEADERS: usize = 100;

/// Why bytes are not a usable response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResponseError {
    #[error("the connection ended before the response")]
    Ended,
    #[error("the response is not HTTP/1.1: {0}")]
    Malformed(String),
    #[error("the response is larger than {0} bytes")]
    TooLarge(usize),
}

/// A response, as far as it was read.
#[derive(Debug)]
pub(super) struct Reader {
    /// The largest body, in bytes.
    max: usize,
    /// Where the next head begins: after those of the statuses 1xx.
    head_at: usize,
    head: Option<Head>,
    chunks: Chunks,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    status: StatusCode,
    /// Where the body begins.
    body_at: usize,
    body: Body,
    /// Whether the connection may carry another request.
    is_kept: bool,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(usize),
    Chunked,
    /// It ends with the connection.
    Rest,
}

/// The end of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) status: StatusCode,
    /// Where the body begins, and where it ends unless it is in chunks.
    body: (usize, usize),
    is_chunked: bool,
    /// Whether the connection may carry another request.
    pub(super) is_kept: bool,
}

impl Reader {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            head_at: 0,
            head: None,
            chunks: Chunks::default(),
        }
    }

    /// Continues with everything that has arrived. Returns the response once it is whole.
    /// With `is_end`, nothing more will arrive.
    pub(super) fn read(
        &mut self,
        received: &[u8],
        is_end: bool,
    ) -> Result<Option<Whole>, ResponseError> {
        if self.head.is_none() {
            self.head = read_head(received, &mut self.head_at)?;
        }
        let Some(head) = self.head else {
            return unfinished(is_end);
        };
        let there = &received[head.body_at..];
        let end = match self.end(head.body, there, is_end) {
            // The status tells more than the size of the page that explains it.
            Err(ResponseError::TooLarge(_)) if !head.status.is_success() => None,
            end => end?,
        };
        if end.is_none() && head.status.is_success() {
            return unfinished(is_end);
        }
        let length = end.unwrap_or(there.len());
        Ok(Some(Whole {
            status: head.status,
            body: (head.body_at, head.body_at + length),
            is_chunked: head.body == Body::Chunked,
            // Bytes after the response were not requested.
            is_kept: head.is_kept && end == Some(there.len()) && !is_end,
        }))
    }

    /// Returns where a body ends once it is whole.
    fn end(
        &mut self,
        body: Body,
        there: &[u8],
        is_end: bool,
    ) -> Result<Option<usize>, ResponseError> {
        Ok(match body {
            Body::Length(length) if length > self.max => return Err(self.too_large()),
            Body::Length(length) => (there.len() >= length).then_some(length),
            Body::Rest if there.len() > self.max => return Err(self.too_large()),
            Body::Rest => is_end.then_some(there.len()),
            Body::Chunked => {
                if there.len() > self.max.saturating_mul(2).saturating_add(MAX_HEAD) {
                    return Err(self.too_large());
                }
                self.chunks.read(there, self.max)?
            }
        })
    }

    /// The body of a response that is whole. For an error's status, the bytes that had arrived with
    /// the head.
    pub(super) fn body<'a>(&'a self, received: &'a [u8], whole: &Whole) -> &'a [u8] {
        match whole.is_chunked {
            true => &self.chunks.data,
            false => &received[whole.body.0..whole.body.1],
        }
    }

    fn too_large(&self) -> ResponseError {
        ResponseError::TooLarge(self.max)
    }
}

fn malformed(error: &(impl ToString + ?Sized)) -> ResponseError {
    ResponseError::Malformed(error.to_string())
}

/// Reads the head from everything that has arrived, and moves `at` behind it. Heads before `at`, and
/// those of the statuses 1xx except the one that ends HTTP, are passed over. Returns none while it is
/// not complete.
fn read_head(received: &[u8], at: &mut usize) -> Result<Option<Head>, ResponseError> {
    loop {
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&received[*at..]);
        let Status::Complete(length) = parsed.map_err(|error| malformed(&error))? else {
            return match received.len() > MAX_HEAD {
                true => Err(malformed("its head is too long")),
                false => Ok(None),
            };
        };
        *at += length;
        let status = StatusCode::from_u16(response.code.unwrap_or_default());
        let status = status.map_err(|error| malformed(&error))?;
        let (body, is_kept) = framing(status, response.version == Some(1), response.headers)?;
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Some(Head {
                status,
                body_at: *at,
                body,
                is_kept,
            }));
        }
    }
}

/// The result while a response is not complete.
fn unfinished<T>(is_end: bool) -> Result<Option<T>, ResponseError> {
    match is_end {
        true => Err(ResponseError::Ended),
        false => Ok(None),
    }
}

/// How the end of the body is found, and whether the connection outlives it.
fn framing(
    status: StatusCode,
    is_1_1: bool,
    headers: &[Header<'_>],
) -> Result<(Body, bool), ResponseError> {
    let (mut length, mut is_chunked) = (None, false);
    let (mut is_kept, mut is_closed) = (is_1_1, false);
    for Header { name, value } in headers {
        if name.eq_ignore_ascii_case("content-length") {
            let known = content_length(value)?;
            if length.replace(known).is_some_and(|other| other != known) {
                return Err(malformed("it has two lengths"));
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            // No request has named another one as acceptable.
            if is_chunked || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(malformed("its transfer-encoding is unknown"));
            }
            is_chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                is_closed |= option.eq_ignore_ascii_case(b"close");
                is_kept |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }
    is_kept &= !is_closed;
    Ok(match (status, length) {
        (StatusCode::SWITCHING_PROTOCOLS, _) => (Body::Length(0), false),
        (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, _) => (Body::Length(0), is_kept),
        // With a length in addition, a proxy in between may interpret it differently.
        (_, length) if is_chunked => (Body::Chunked, is_kept && length.is_none()),
        (_, Some(length)) => (Body::Length(length), is_kept),
        (_, None) => (Body::Rest, false),
    })
}

fn content_length(value: &[u8]) -> Result<usize, ResponseError> {
    let text = std::str::from_utf8(value.trim_ascii()).unwrap_or_default();
    // The parser of numbers accepts a sign.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let length = is_number.then(|| text.parse().ok()).flatten();
    length.ok_or_else(|| malformed("its length is not a number"))
}

/// A body in chunks, as far as it was read.
#[derive(Debug, Default)]
struct Chunks {
    /// Where the next chunk begins, or the next line after the last chunk.
    at: usize,
    /// Whether only the lines after the last chunk are left.
    is_last: bool,
    data: Vec<u8>,
}

impl Chunks {
    /// Continues with everything that has arrived of the body. Returns where it ends once
    /// it is whole.
    fn read(&mut self, body: &[u8], max: usize) -> Result<Option<usize>, ResponseError> {
        while !self.is_last {
            let rest = &body[self.at..];
            if rest.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) {
                return Err(malformed("the size of a chunk is missing"));
            }
            let size = httparse::parse_chunk_size(rest);
            let size = size.map_err(|_| malformed("the size of a chunk is wrong"))?;
            let Status::Complete((begin, size)) = size else {
                return Ok(None);
            };
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size > max - self.data.len() {
                return Err(ResponseError::TooLarge(max));
            }
            if size == 0 {
                self.is_last = true;
                self.at += begin;
                break;
            }
            let end = begin + size;
            match rest.get(end..) {
                Some([b'\r', b'\n', ..]) => {}
                None | Some([] | [b'\r']) => return Ok(None),
                Some(_) => return Err(malformed("a chunk is longer than its size")),
            }
            self.data.extend(&rest[begin..end]);
            self.at += end + 2;
        }
        loop {
            let rest = &body[self.at..];
            let Some(line) = rest.iter().position(|byte| *byte == b'\n') else {
                return Ok(None);
            };
            self.at += line + 1;
            if matches!(rest[..line], [] | [b'\r']) {
                return Ok(Some(self.at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status, body, and whether the connection is kept.
    type Known = (u16, String, bool);

    fn known(reader: &Reader, received: &[u8], whole: &Whole) -> Known {
        let body = reader.body(received, whole);
        let body = String::from_utf8_lossy(body).into_owned();
        (whole.status.as_u16(), body, whole.is_kept)
    }

    /// Continues with a response.
    fn go_on(
        reader: &mut Reader,
        received: &[u8],
        is_end: bool,
    ) -> Result<Option<Known>, ResponseError> {
        let whole = reader.read(received, is_end)?;
        Ok(whole.map(|whole| known(reader, received, &whole)))
    }

    /// Reads a response that arrives at once.
    fn read_at_once(text: &str, is_end: bool) -> Result<Option<Known>, ResponseError> {
        go_on(&mut Reader::new(20), text.as_bytes(), is_end)
    }

    /// Reads a response that arrives byte by byte.
    fn read(text: &str, is_end: bool) -> Result<Option<Known>, ResponseError> {
        let mut reader = Reader::new(20);
        for length in 0..text.len() {
            let early = go_on(&mut reader, &text.as_bytes()[..length], false)?;
            if early.is_some() {
                return Ok(early);
            }
        }
        go_on(&mut reader, text.as_bytes(), is_end)
    }

    fn whole(text: &str, is_end: bool) -> Known {
        let whole = read(text, is_end);
        assert_eq!(whole, read_at_once(text, is_end), "{text}");
        whole.unwrap().expect("a whole response")
    }

    #[test]
    fn a_body_ends_with_its_length_its_last_chunk_or_the_connection() {
        let kept = |body: &str| (200, body.to_owned(), true);
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(whole(length, false), kept("abc"));
        let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n\
            2;a=b\r\nab\r\n0B\r\n01234567890\r\n0\r\nx: y\r\n\r\n";
        assert_eq!(whole(chunks, false), kept("ab01234567890"));
        let neither = "HTTP/1.1 200 OK\r\n\r\nabc";
        assert_eq!(read(neither, false), Ok(None));
        assert_eq!(whole(neither, true), (200, "abc".to_owned(), false));
        let none = "HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(whole(none, false), (204, String::new(), true));
    }

    #[test]
    fn a_connection_is_kept_unless_one_side_closes_it_or_sends_more() {
        let is_kept = |version: &str, header: &str, more: &str| {
            let text = format!("HTTP/{version} 200 OK\r\n{header}content-length: 1\r\n\r\na{more}");
            read_at_once(&text, false).unwrap().expect("a response").2
        };
        assert!(is_kept("1.1", "", ""));
        assert!(!is_kept("1.1", "Connection: foo, Close\r\n", ""));
        assert!(!is_kept("1.0", "", ""));
        assert!(is_kept("1.0", "connection: keep-alive\r\n", ""));
        assert!(!is_kept("1.1", "", "H"));
        let both =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 9\r\n\r\n0\r\n\r\n";
        assert_eq!(whole(both, false), (200, String::new(), false));
    }

    #[test]
    fn interim_responses_are_passed_over() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
            HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab";
        assert_eq!(whole(text, false), (200, "ab".to_owned(), true));
        let other = "HTTP/1.1 101 Switching Protocols\r\n\r\n";
        assert_eq!(whole(other, false), (101, String::new(), false));
    }

    #[test]
    fn the_body_of_an_error_is_not_waited_for() {
        let text = "HTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\n";
        assert_eq!(whole(text, false), (500, String::new(), false));
        let at_once = read_at_once(&format!("{text}abc"), false);
        assert_eq!(at_once, Ok(Some((500, "abc".to_owned(), true))));
        for large in [
            "content-length: 21\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\n15\r\n",
        ] {
            let known = whole(&format!("HTTP/1.1 500 No\r\n{large}"), false);
            assert_eq!(known, (500, String::new(), false));
        }
    }

    #[test]
    fn what_ends_too_early_or_is_too_large_is_an_error() {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab";
        for length in 0..head.len() {
            let ended = read_at_once(&head[..length], true);
            assert_eq!(ended, Err(ResponseError::Ended), "{length}");
        }
        let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n";
        assert_eq!(read(chunks, true), Err(ResponseError::Ended));
        let large = [
            "content-length: 21\r\n\r\n",
            "content-length: 99999999999999999999999999\r\n\r\n",
            "\r\n012345678901234567890",
            "transfer-encoding: chunked\r\n\r\n15\r\n",
            "transfer-encoding: chunked\r\n\r\n8\r\n01234567\r\nffffffffffffffff\r\n",
        ];
        for text in large {
            let text = format!("HTTP/1.1 200 OK\r\n{text}");
            assert!(read(&text, false).is_err(), "{text}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(MAX_HEAD));
        assert!(read_at_once(&endless, false).is_err());
        let chunk = format!("1;{}\r\na\r\n", "x".repeat(100));
        let wasteful = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
        let wasteful = wasteful + &chunk.repeat(15) + &"x".repeat(MAX_HEAD);
        assert!(read_at_once(&wasteful, false).is_err());
    }

    #[test]
    fn what_is_no_response_is_an_error() {
        for text in [
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        ] {
            let error = read(text, false).unwrap_err();
            assert!(matches!(error, ResponseError::Malformed(_)), "{text}");
        }
    }
}
