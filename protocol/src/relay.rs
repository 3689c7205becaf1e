//! Requests that one node relays to another, and the responses to them, over one connection.
//!
//! ```text
//! connection   record, record, …           one write carries what was ready at the time
//! record       length │ frame … │ tag      sealed as a whole; a frame never continues in the next record
//! frame        stream │ kind │ length │ payload
//!
//! relaying node ── Request, Data … ──▶ owner of the session
//!               ◀─ Response, Data … ──
//! ```
//!
//! Each request is a stream with a number, which the relaying node chooses and does not
//! use again. A body that is longer than [`INLINE_BYTES`] follows its head in
//! [`Frame::Data`], so a large body does not delay later requests. The head
//! states the length of the body, which is where the stream ends.
//!
//! Sealing is the caller's part, because it needs a cipher: this module leaves room for the tag of
//! [`TAG_BYTES`], and reads records whose content has been opened.

/// The bytes of a record before its frames: the length of the rest, big endian.
pub const LENGTH_BYTES: usize = 4;

/// The bytes of a record after its frames, which prove that they are the sender's.
pub const TAG_BYTES: usize = 16;

/// The largest record, in bytes of its frames. A larger one is refused before it is received.
pub const MAX_RECORD_BYTES: usize = 128 * 1024;

/// The longest part of a body in one frame. A body up to this length is part of its head.
pub const INLINE_BYTES: usize = 16 * 1024;

/// The longest query, and the most bytes of headers of a response, that a frame takes.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The longest header of a request that a frame takes, in bytes.
pub const MAX_HEADER_BYTES: usize = 255;

/// A record with this many bytes takes no further frame, so it stays below
/// [`MAX_RECORD_BYTES`] with the largest one.
const FULL_BYTES: usize = 64 * 1024;

const FRAME_HEAD_BYTES: usize = 9;

/// The kind of a client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A poll.
    Get,
    /// Packets of the client.
    Post,
    /// The end of a poll that the relaying node can wait for no longer.
    Delete,
}

/// In the order of their numbers on the wire.
const METHODS: [Method; 3] = [Method::Get, Method::Post, Method::Delete];

/// A request, as far as it matters to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The kind of the request.
    pub method: Method,
    /// When it was sent, in milliseconds of the cluster's time since 1970.
    pub time: u64,
    /// The query of its URI, with the id of the session.
    pub query: &'a str,
    /// The header `accept-encoding`, or nothing.
    pub accept_encoding: &'a str,
    /// The header `content-type`, or nothing.
    pub content_type: &'a str,
    /// The bytes of the whole body.
    pub length: u32,
    /// The beginning of the body.
    pub body: &'a [u8],
}

/// A response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The status of HTTP.
    pub status: u16,
    /// The headers, without those that concern one connection.
    pub headers: Headers<'a>,
    /// The bytes of the whole body.
    pub length: u32,
    /// The beginning of the body.
    pub body: &'a [u8],
}

/// Headers of a response as they are encoded: each with the lengths of its name and value
/// before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a>(&'a [u8]);

/// Why a stream ends without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The client has disconnected.
    Cancelled,
    /// The owner takes no further request.
    Refused,
    /// The time of the request is not that of the owner.
    Time,
}

/// In the order of their numbers on the wire.
const RESETS: [Reset; 3] = [Reset::Cancelled, Reset::Refused, Reset::Time];

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Opens a stream.
    Request(Request<'a>),
    /// Responds to the request of a stream.
    Response(Response<'a>),
    /// More of the stream's body.
    Data(&'a [u8]),
    /// Ends a stream early.
    Reset(Reset),
    /// The sender takes this many further bytes of the response's body.
    Credit(u32),
    /// Requests a [`Frame::Pong`], because nothing has arrived for a while.
    Ping,
    /// Responds to a [`Frame::Ping`].
    Pong,
}

/// The bytes are not frames, or not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes that another node would not send")]
pub struct Malformed;

/// The kinds of frames on the wire.
mod kind {
    pub(super) const REQUEST: u8 = 1;
    pub(super) const RESPONSE: u8 = 2;
    pub(super) const DATA: u8 = 3;
    pub(super) const RESET: u8 = 4;
    pub(super) const CREDIT: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const PONG: u8 = 7;
}

/// Frames that wait to be sealed and written.
#[derive(Debug, Default)]
pub struct Records {
    bytes: Vec<u8>,
    /// Where the record begins that takes the next frame.
    open: Option<usize>,
}

impl Records {
    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a request. Its query is at most [`MAX_HEAD_BYTES`] long, each header
    /// [`MAX_HEADER_BYTES`], and the beginning of its body [`INLINE_BYTES`].
    pub fn request(&mut self, stream: u32, request: &Request<'_>) {
        let Request {
            method,
            time,
            query,
            accept_encoding,
            content_type,
            length,
            body,
        } = request;
        self.frame(stream, kind::REQUEST, |out| {
            out.push(*method as u8);
            out.extend(time.to_be_bytes());
            out.extend(length.to_be_bytes());
            out.extend(u16_of(query.len()).to_be_bytes());
            out.push(u8_of(accept_encoding.len()));
            out.push(u8_of(content_type.len()));
            out.extend(query.as_bytes());
            out.extend(accept_encoding.as_bytes());
            out.extend(content_type.as_bytes());
            out.extend(*body);
        });
    }

    /// Adds a response. Its headers have [`MAX_HEAD_BYTES`] at most, names 255, and
    /// the beginning of its body [`INLINE_BYTES`].
    pub fn response<'h>(
        &mut self,
        stream: u32,
        status: u16,
        headers: impl Iterator<Item = (&'h str, &'h [u8])>,
        length: u32,
        body: &[u8],
    ) {
        self.frame(stream, kind::RESPONSE, |out| {
            out.extend(status.to_be_bytes());
            out.extend(length.to_be_bytes());
            let at = out.len();
            out.extend([0; 2]);
            for (name, value) in headers {
                out.push(u8_of(name.len()));
                out.extend(u16_of(value.len()).to_be_bytes());
                out.extend(name.as_bytes());
                out.extend(value);
            }
            let bytes = u16_of(out.len() - at - 2);
            out[at..at + 2].copy_from_slice(&bytes.to_be_bytes());
            out.extend(body);
        });
    }

    /// Adds a part of a body, at most [`INLINE_BYTES`] long.
    pub fn data(&mut self, stream: u32, bytes: &[u8]) {
        self.frame(stream, kind::DATA, |out| out.extend(bytes));
    }

    /// Ends a stream early.
    pub fn reset(&mut self, stream: u32, reset: Reset) {
        self.frame(stream, kind::RESET, |out| out.push(reset as u8));
    }

    /// Lets the other side send more of a response's body.
    pub fn credit(&mut self, stream: u32, bytes: u32) {
        self.frame(stream, kind::CREDIT, |out| out.extend(bytes.to_be_bytes()));
    }

    /// Requests a sign of life.
    pub fn ping(&mut self) {
        self.frame(0, kind::PING, |_| {});
    }

    /// Gives a sign of life.
    pub fn pong(&mut self) {
        self.frame(0, kind::PONG, |_| {});
    }

    fn frame(&mut self, stream: u32, kind: u8, payload: impl FnOnce(&mut Vec<u8>)) {
        if self
            .open
            .is_some_and(|start| self.bytes.len() - start >= FULL_BYTES)
        {
            self.end();
        }
        if self.open.is_none() {
            self.open = Some(self.bytes.len());
            self.bytes.extend([0; LENGTH_BYTES]);
        }
        let out = &mut self.bytes;
        out.extend(stream.to_be_bytes());
        out.push(kind);
        let at = out.len();
        out.extend([0; 4]);
        payload(out);
        let length = u32_of(out.len() - at - 4);
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    fn end(&mut self) {
        if let Some(start) = self.open.take() {
            self.bytes.extend([0; TAG_BYTES]);
            let length = u32_of(self.bytes.len() - start - LENGTH_BYTES);
            self.bytes[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Takes all records, whose tags are still empty, in exchange for an empty buffer.
    pub fn take(&mut self, empty: Vec<u8>) -> Vec<u8> {
        self.end();
        std::mem::replace(&mut self.bytes, empty)
    }
}

/// Passes the frames and the empty tag of each record to `seal`.
pub fn seal_each(mut records: &mut [u8], mut seal: impl FnMut(&mut [u8], &mut [u8])) {
    while let Ok(Some(length)) = record(records) {
        let (this, rest) = records.split_at_mut(length);
        let (frames, tag) = this[LENGTH_BYTES..].split_at_mut(length - LENGTH_BYTES - TAG_BYTES);
        seal(frames, tag);
        records = rest;
    }
}

/// Returns the length of the record at the beginning, with all of its parts, or `None` if
/// more bytes are needed.
///
/// # Errors
///
/// The record is larger than [`MAX_RECORD_BYTES`], or has no room for a tag.
pub fn record(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| Malformed)?;
    if !(TAG_BYTES..=MAX_RECORD_BYTES + TAG_BYTES).contains(&length) {
        return Err(Malformed);
    }
    let length = length + LENGTH_BYTES;
    Ok((bytes.len() >= length).then_some(length))
}

/// The frames of a record whose content was opened, each with the number of its stream.
#[derive(Clone, Debug)]
pub struct Frames<'a>(&'a [u8]);

/// Reads the frames of a record, given without its length and its tag. An error is the last item.
pub fn frames(record: &[u8]) -> Frames<'_> {
    Frames(record)
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<(u32, Frame<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let frame = read_frame(&mut self.0);
        if frame.is_none() {
            self.0 = &[];
        }
        Some(frame.ok_or(Malformed))
    }
}

fn read_frame<'a>(bytes: &mut &'a [u8]) -> Option<(u32, Frame<'a>)> {
    let head = bytes.split_off(..FRAME_HEAD_BYTES)?;
    let mut head = head;
    let stream = u32::from_be_bytes(array(&mut head)?);
    let [kind] = array(&mut head)?;
    let length = u32::from_be_bytes(array(&mut head)?);
    let mut payload = bytes.split_off(..usize::try_from(length).ok()?)?;
    let frame = match kind {
        kind::REQUEST => Frame::Request(read_request(payload)?),
        kind::RESPONSE => Frame::Response(read_response(payload)?),
        kind::DATA => Frame::Data(payload),
        kind::RESET => {
            let [reset] = *payload else { return None };
            Frame::Reset(*RESETS.get(usize::from(reset))?)
        }
        kind::CREDIT => {
            let bytes = u32::from_be_bytes(array(&mut payload)?);
            payload.is_empty().then_some(Frame::Credit(bytes))?
        }
        kind::PING if payload.is_empty() => Frame::Ping,
        kind::PONG if payload.is_empty() => Frame::Pong,
        _ => return None,
    };
    Some((stream, frame))
}

fn read_request(mut payload: &[u8]) -> Option<Request<'_>> {
    let [method] = array(&mut payload)?;
    let time = u64::from_be_bytes(array(&mut payload)?);
    let length = u32::from_be_bytes(array(&mut payload)?);
    let query = u16::from_be_bytes(array(&mut payload)?);
    let [accept_encoding, content_type] = array(&mut payload)?;
    let query = payload.split_off(..usize::from(query))?;
    let accept_encoding = payload.split_off(..usize::from(accept_encoding))?;
    let content_type = payload.split_off(..usize::from(content_type))?;
    Some(Request {
        method: *METHODS.get(usize::from(method))?,
        time,
        query: str::from_utf8(query).ok()?,
        accept_encoding: str::from_utf8(accept_encoding).ok()?,
        content_type: str::from_utf8(content_type).ok()?,
        length,
        body: within(payload, length)?,
    })
}

fn read_response(mut payload: &[u8]) -> Option<Response<'_>> {
    let status = u16::from_be_bytes(array(&mut payload)?);
    let length = u32::from_be_bytes(array(&mut payload)?);
    let headers = u16::from_be_bytes(array(&mut payload)?);
    let headers = Headers(payload.split_off(..usize::from(headers))?);
    // Checked once, so that reading them later cannot fail.
    let mut rest = headers.0;
    while !rest.is_empty() {
        read_header(&mut rest)?;
    }
    Some(Response {
        status,
        headers,
        length,
        body: within(payload, length)?,
    })
}

/// The beginning of a body, which is not longer than the body.
fn within(body: &[u8], length: u32) -> Option<&[u8]> {
    (body.len() <= usize::try_from(length).ok()?).then_some(body)
}

impl<'a> Headers<'a> {
    /// The names and values, in the order in which they were added.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || read_header(&mut rest))
    }
}

fn read_header<'a>(bytes: &mut &'a [u8]) -> Option<(&'a str, &'a [u8])> {
    let [name] = array(bytes)?;
    let value = u16::from_be_bytes(array(bytes)?);
    let name = bytes.split_off(..usize::from(name))?;
    let value = bytes.split_off(..usize::from(value))?;
    Some((str::from_utf8(name).ok()?, value))
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    bytes.split_off(..N)?.try_into().ok()
}

/// Lengths are within limits that the callers keep.
fn u16_of(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn u8_of(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

fn u32_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[derive(Clone, Debug)]
    enum Sent {
        Request(u64, [String; 3], Vec<u8>, u32),
        Response(u16, Vec<(String, Vec<u8>)>, Vec<u8>, u32),
        Data(Vec<u8>),
        Reset(u8),
        Credit(u32),
        Ping,
        Pong,
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let body = || vec(any::<u8>(), 0..5000);
        prop_oneof![
            (
                any::<u64>(),
                ["[a-z0-9=&ä]{0,60}", "[a-z, ]{0,30}", "[a-z/]{0,30}"],
                body(),
                0..99_u32
            )
                .prop_map(|(time, texts, body, more)| Sent::Request(time, texts, body, more)),
            (
                any::<u16>(),
                vec(("[a-z-]{1,20}", vec(any::<u8>(), 0..40)), 0..5),
                body(),
                0..99_u32
            )
                .prop_map(|(status, headers, body, more)| Sent::Response(
                    status, headers, body, more
                )),
            body().prop_map(Sent::Data),
            (0..3_u8).prop_map(Sent::Reset),
            any::<u32>().prop_map(Sent::Credit),
            Just(Sent::Ping),
            Just(Sent::Pong),
        ]
    }

    fn request<'a>(time: u64, texts: &'a [String; 3], body: &'a [u8], more: u32) -> Request<'a> {
        let [query, accept_encoding, content_type] = texts;
        Request {
            method: METHODS[query.len() % 3],
            time,
            query,
            accept_encoding,
            content_type,
            length: body.len() as u32 + more,
            body,
        }
    }

    fn write(records: &mut Records, stream: u32, sent: &Sent) {
        match sent {
            Sent::Request(time, texts, body, more) => {
                records.request(stream, &request(*time, texts, body, *more));
            }
            Sent::Response(status, headers, body, more) => {
                let headers = headers.iter().map(|(name, value)| (&**name, &**value));
                let length = body.len() as u32 + more;
                records.response(stream, *status, headers, length, body);
            }
            Sent::Data(bytes) => records.data(stream, bytes),
            Sent::Reset(reason) => records.reset(stream, RESETS[usize::from(*reason)]),
            Sent::Credit(bytes) => records.credit(stream, *bytes),
            Sent::Ping => records.ping(),
            Sent::Pong => records.pong(),
        }
    }

    #[track_caller]
    fn check(frame: Frame<'_>, sent: &Sent) {
        match (frame, sent) {
            (Frame::Request(read), Sent::Request(time, texts, body, more)) => {
                assert_eq!(read, request(*time, texts, body, *more));
            }
            (Frame::Response(read), Sent::Response(status, headers, body, more)) => {
                assert_eq!((read.status, read.body), (*status, &**body));
                assert_eq!(read.length, body.len() as u32 + more);
                let expected = headers.iter().map(|(name, value)| (&**name, &**value));
                assert!(read.headers.iter().eq(expected));
            }
            (Frame::Data(read), Sent::Data(bytes)) => assert_eq!(read, bytes),
            (Frame::Reset(read), Sent::Reset(reason)) => {
                assert_eq!(read, RESETS[usize::from(*reason)]);
            }
            (Frame::Credit(read), Sent::Credit(bytes)) => assert_eq!(read, *bytes),
            (Frame::Ping, Sent::Ping) | (Frame::Pong, Sent::Pong) => {}
            (read, sent) => panic!("{read:?} instead of {sent:?}"),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_the_bytes_are_split(
            sent in vec((any::<u32>(), sent()), 1..40),
            cuts in vec(1..20_000_usize, 1..20),
        ) {
            let mut records = Records::default();
            for (stream, sent) in &sent {
                write(&mut records, *stream, sent);
            }
            let mut bytes = records.take(Vec::new());
            prop_assert!(records.is_empty());
            seal_each(&mut bytes, |_, tag| tag.fill(7));
            let (mut arrived, mut expected) = (Vec::new(), sent.iter());
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let part = rest.split_off(..(*cut).min(rest.len())).unwrap();
                arrived.extend_from_slice(part);
                while let Some(length) = record(&arrived).unwrap() {
                    let content = &arrived[LENGTH_BYTES..length - TAG_BYTES];
                    prop_assert!(content.len() <= MAX_RECORD_BYTES);
                    for frame in frames(content) {
                        let (stream, frame) = frame.unwrap();
                        let (expected_stream, sent) = expected.next().unwrap();
                        let is_of_none = matches!(sent, Sent::Ping | Sent::Pong);
                        prop_assert_eq!(stream, if is_of_none { 0 } else { *expected_stream });
                        check(frame, sent);
                    }
                    prop_assert_eq!(&arrived[length - TAG_BYTES..length], &[7; TAG_BYTES]);
                    arrived.drain(..length);
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert!(arrived.is_empty() && expected.next().is_none());
        }

        #[test]
        fn bytes_of_any_kind_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = record(&bytes);
            let read: Vec<_> = frames(&bytes).collect();
            prop_assert!(read.iter().rev().skip(1).all(Result::is_ok), "an error is the last item");
        }
    }

    #[test]
    fn the_largest_frames_fit_in_records() {
        let mut records = Records::default();
        let (query, body) = ("q".repeat(MAX_HEAD_BYTES), [1; INLINE_BYTES]);
        for stream in 0..20 {
            let request = Request {
                method: Method::Post,
                time: 1,
                query: &query,
                accept_encoding: &"a".repeat(MAX_HEADER_BYTES),
                content_type: &"c".repeat(MAX_HEADER_BYTES),
                length: u32::MAX,
                body: &body,
            };
            records.request(stream, &request);
        }
        let mut bytes = &records.take(Vec::new())[..];
        let mut count = 0;
        while let Some(length) = record(bytes).unwrap() {
            let content = bytes.split_off(..length).unwrap();
            count += frames(&content[LENGTH_BYTES..length - TAG_BYTES]).count();
        }
        assert_eq!((count, bytes.len()), (20, 0));
    }

    #[test]
    fn a_record_that_is_too_large_or_has_no_tag_is_refused_by_its_length() {
        let of = |length: usize| record(&u32_of(length).to_be_bytes());
        assert_eq!(of(TAG_BYTES - 1), Err(Malformed));
        assert_eq!(of(MAX_RECORD_BYTES + TAG_BYTES + 1), Err(Malformed));
        assert_eq!(of(MAX_RECORD_BYTES + TAG_BYTES), Ok(None));
        assert_eq!(record(&[0, 0, 0]), Ok(None));
    }

    #[test]
    fn a_body_is_not_longer_than_stated_and_a_frame_no_longer_than_its_record() {
        let mut records = Records::default();
        records.response(1, 200, [("a", &b"b"[..])].into_iter(), 3, b"body");
        let bytes = records.take(Vec::new());
        let content = &bytes[LENGTH_BYTES..bytes.len() - TAG_BYTES];
        assert!(frames(content).next().unwrap().is_err());
        let mut records = Records::default();
        records.data(1, b"body");
        let bytes = records.take(Vec::new());
        let content = &bytes[LENGTH_BYTES..bytes.len() - TAG_BYTES];
        for end in 1..content.len() {
            assert!(frames(&content[..end]).next().unwrap().is_err(), "{end}");
        }
    }
}
