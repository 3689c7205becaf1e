//! WebSocket frames (RFC 6455) as a server reads and writes them, and the values of its handshake.
//!
//! Each connection has one [`Reader`], and its driver passes the bytes that arrived. The reader is
//! ours because a connection between two frames must not hold a buffer: libraries keep one per
//! connection, and a whole idle connection takes about 1 KiB here. A property test compares it with
//! tungstenite.
//!
//! ```text
//! input ─▶ header complete? ──no──▶ Partial.head, wait for more
//!              │ yes
//!              ▼
//!          payload complete in input, FIN, no message open? ──yes──▶ unmask in place, borrow
//!              │ no
//!              ▼
//!          Partial.frame + Partial.message (or Partial.control), grows with the bytes that came
//!              │ last byte of the last fragment
//!              ▼
//!          owned event; Partial is freed
//! ```
//!
//! A close frame and every refusal end the reading for good. There are no extensions: a
//! frame with a reserved bit is refused. Replies to pings are up to the driver.

use std::borrow::Cow;
use std::mem;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// Turns the bytes of a client into messages, however the network has split them.
///
/// A frame that is complete in the caller's buffer is unmasked in place and borrowed. An incomplete
/// one is copied and freed with the event that completes it.
#[derive(Debug, Default)]
pub struct Reader {
    partial: Option<Box<Partial>>,
    /// A close frame or a refusal was read; anything after it is ignored.
    ended: bool,
}

/// A message or control frame, unmasked, with valid text. It is borrowed from the caller's buffer
/// unless it came in several pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'b> {
    /// A whole text message.
    Text(Cow<'b, str>),
    /// A whole binary message.
    Binary(Cow<'b, [u8]>),
    /// A ping; the driver has to reply with a pong of the same payload.
    Ping(Cow<'b, [u8]>),
    /// A pong.
    Pong(Cow<'b, [u8]>),
    /// The client closes, with a code and a reason unless the frame is empty. No event follows.
    Close(Option<(u16, Cow<'b, str>)>),
}

/// The limits of a message. The server's settings have the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of a message in bytes, all fragments together.
    pub message_bytes: usize,
    /// Maximum number of fragments of a message, because empty ones could continue for ever.
    pub fragments: usize,
}

/// Why a client's bytes are refused. The connection is closed with [`Refusal::close_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A bit that only extensions use is set.
    #[error("a reserved bit is set")]
    ReservedBits,
    /// An opcode without a meaning.
    #[error("the opcode is reserved")]
    ReservedOpcode,
    /// Clients must mask every frame.
    #[error("the frame is not masked")]
    Unmasked,
    /// A length in a longer form than necessary, or above 63 bits.
    #[error("the length is not in its shortest form or above 63 bits")]
    Length,
    /// Control frames must not be fragmented.
    #[error("a control frame is fragmented")]
    FragmentedControl,
    /// Control frames have at most 125 bytes.
    #[error("a control frame has more than 125 bytes")]
    LongControl,
    /// A continuation frame while no message is open.
    #[error("a continuation without a message to continue")]
    UnexpectedContinuation,
    /// A new data frame while a fragmented message is open.
    #[error("a new message inside a fragmented one")]
    UnfinishedMessage,
    /// A close frame of one byte, with a reserved code, or with a reason that is not UTF-8.
    #[error("the close frame is damaged or its code is not for the wire")]
    CloseCode,
    /// A text message that is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// More than [`Limits::message_bytes`].
    #[error("the message is above the limit")]
    TooLarge,
    /// More than [`Limits::fragments`].
    #[error("the message has too many fragments")]
    TooManyFragments,
}

impl Refusal {
    /// The code of the close frame to send: 1007 for invalid text, 1009 for a message beyond a
    /// limit, otherwise 1002 (protocol error).
    pub fn close_code(self) -> u16 {
        match self {
            Self::Utf8 => 1007,
            Self::TooLarge | Self::TooManyFragments => 1009,
            _ => 1002,
        }
    }

    /// The label of the refusal in metrics. It never changes.
    pub fn label(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved_bits",
            Self::ReservedOpcode => "reserved_opcode",
            Self::Unmasked => "unmasked",
            Self::Length => "bad_length",
            Self::FragmentedControl => "fragmented_control",
            Self::LongControl => "long_control",
            Self::UnexpectedContinuation => "unexpected_continuation",
            Self::UnfinishedMessage => "unfinished_message",
            Self::CloseCode => "bad_close_code",
            Self::Utf8 => "bad_utf8",
            Self::TooLarge => "too_large",
            Self::TooManyFragments => "too_many_fragments",
        }
    }
}

impl Reader {
    /// Reads the next event and advances `input` past it.
    ///
    /// Returns `None` when `input` is used up. A caller that stops earlier has to keep the rest of
    /// `input`. After [`Event::Close`] and after a refusal this always returns `None`.
    pub fn next<'b>(
        &mut self,
        input: &mut &'b mut [u8],
        limits: &Limits,
    ) -> Result<Option<Event<'b>>, Refusal> {
        let event = if self.ended {
            Ok(None)
        } else {
            self.advance(input, limits)
        };
        self.ended |= matches!(event, Err(_) | Ok(Some(Event::Close(_))));
        if self.ended {
            *input = &mut [];
            self.partial = None;
        } else if self
            .partial
            .as_ref()
            .is_some_and(|partial| partial.is_empty())
        {
            self.partial = None;
        }
        event
    }

    fn advance<'b>(
        &mut self,
        input: &mut &'b mut [u8],
        limits: &Limits,
    ) -> Result<Option<Event<'b>>, Refusal> {
        while !input.is_empty() {
            let begun = self
                .partial
                .as_mut()
                .and_then(|partial| partial.frame.take());
            let event = match begun {
                Some(frame) => self.absorb(frame, input)?,
                None => match self.read_header(input, limits)? {
                    Some(frame) if frame.len <= input.len() => self.take_whole(&frame, input)?,
                    Some(frame) => {
                        let partial = self.partial.get_or_insert_default();
                        if !frame.opcode.is_control() {
                            partial.begin(frame.opcode);
                        }
                        self.absorb(frame, input)?
                    }
                    None => None,
                },
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Takes a header from `input`, or all of `input` if the header is incomplete.
    fn read_header(
        &mut self,
        input: &mut &mut [u8],
        limits: &Limits,
    ) -> Result<Option<Header>, Refusal> {
        let mut joined = [0; Header::MAX];
        let (before, bytes) = match &self.partial {
            Some(partial) if partial.head_len > 0 => {
                let before = usize::from(partial.head_len);
                let len = Header::MAX.min(before + input.len());
                joined[..before].copy_from_slice(&partial.head[..before]);
                joined[before..len].copy_from_slice(&input[..len - before]);
                (before, &joined[..len])
            }
            _ => (0, &**input),
        };
        let open = self
            .partial
            .as_ref()
            .and_then(|partial| partial.message.as_ref());
        if let Some((header, len)) = Header::parse(bytes, open, limits)? {
            take(input, len - before);
            if let Some(partial) = &mut self.partial {
                partial.head_len = 0;
            }
            return Ok(Some(header));
        }
        // A header of maximum length is always complete, so an incomplete one fits.
        let len = bytes.len();
        joined[before..len].copy_from_slice(take(input, len - before));
        let partial = self.partial.get_or_insert_default();
        partial.head = joined;
        partial.head_len = u8::try_from(len).expect("a header has at most 14 bytes");
        Ok(None)
    }

    /// Takes a frame whose payload is complete in `input`.
    fn take_whole<'b>(
        &mut self,
        frame: &Header,
        input: &mut &'b mut [u8],
    ) -> Result<Option<Event<'b>>, Refusal> {
        let payload = take(input, frame.len);
        unmask(payload, frame.mask);
        match frame.opcode {
            Opcode::Text if frame.fin => text(Cow::Borrowed(payload)).map(Event::Text).map(Some),
            Opcode::Binary if frame.fin => Ok(Some(Event::Binary(Cow::Borrowed(payload)))),
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                let partial = self.partial.get_or_insert_default();
                partial.begin(frame.opcode).append(payload)?;
                if frame.fin {
                    partial.finish_message().map(Some)
                } else {
                    Ok(None)
                }
            }
            _ => control(frame.opcode, Cow::Borrowed(payload)).map(Some),
        }
    }

    /// Takes the next part of a frame whose payload did not arrive at once.
    fn absorb<'b>(
        &mut self,
        mut frame: Header,
        input: &mut &'b mut [u8],
    ) -> Result<Option<Event<'b>>, Refusal> {
        let payload = take(input, frame.len.min(input.len()));
        unmask(payload, frame.mask);
        frame.len -= payload.len();
        frame.mask.rotate_left(payload.len() % 4);

        let partial = self.partial.get_or_insert_default();
        if frame.opcode.is_control() {
            partial.control.extend_from_slice(payload);
            if frame.len == 0 {
                let payload = mem::take(&mut partial.control);
                return control(frame.opcode, Cow::Owned(payload)).map(Some);
            }
        } else {
            partial.message.get_or_insert_default().append(payload)?;
            if frame.len == 0 {
                return if frame.fin {
                    partial.finish_message().map(Some)
                } else {
                    Ok(None)
                };
            }
        }
        partial.frame = Some(frame);
        Ok(None)
    }
}

/// An incomplete frame or message. It grows with the bytes that were received, never with those
/// that were announced.
#[derive(Debug, Default)]
struct Partial {
    /// The first bytes of an incomplete header.
    head: [u8; Header::MAX],
    head_len: u8,
    /// A frame whose header was read; `len` and `mask` are those of the missing payload.
    frame: Option<Header>,
    /// The payload of an incomplete control frame, which may interrupt a message.
    control: Vec<u8>,
    message: Option<Message>,
}

#[derive(Debug, Default)]
struct Message {
    is_text: bool,
    bytes: Vec<u8>,
    /// The number of bytes of a text that are known to be UTF-8.
    checked: usize,
    fragments: usize,
}

impl Partial {
    fn is_empty(&self) -> bool {
        self.head_len == 0 && self.frame.is_none() && self.message.is_none()
    }

    /// Counts a data frame of its message; the first one begins it.
    fn begin(&mut self, opcode: Opcode) -> &mut Message {
        let is_text = opcode == Opcode::Text;
        let message = self.message.get_or_insert_with(|| Message {
            is_text,
            ..Message::default()
        });
        message.fragments += 1;
        message
    }

    fn finish_message<'b>(&mut self) -> Result<Event<'b>, Refusal> {
        let message = self.message.take().unwrap_or_default();
        if message.is_text {
            text(Cow::Owned(message.bytes)).map(Event::Text)
        } else {
            Ok(Event::Binary(Cow::Owned(message.bytes)))
        }
    }
}

impl Message {
    /// Appends payload. Refuses text as soon as no continuation could make it UTF-8.
    fn append(&mut self, payload: &[u8]) -> Result<(), Refusal> {
        self.bytes.extend_from_slice(payload);
        if self.is_text {
            self.checked += match str::from_utf8(&self.bytes[self.checked..]) {
                Ok(valid) => valid.len(),
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                Err(_) => return Err(Refusal::Utf8),
            };
        }
        Ok(())
    }
}

/// The opcodes of RFC 6455, section 5.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// The next fragment of a message.
    Continuation = 0x0,
    /// A text message or its first fragment.
    Text = 0x1,
    /// A binary message or its first fragment.
    Binary = 0x2,
    /// The last frame of a side.
    Close = 0x8,
    /// Requests a pong.
    Ping = 0x9,
    /// Replies to a ping.
    Pong = 0xa,
}

impl Opcode {
    fn parse(nibble: u8) -> Result<Self, Refusal> {
        match nibble {
            0x0 => Ok(Self::Continuation),
            0x1 => Ok(Self::Text),
            0x2 => Ok(Self::Binary),
            0x8 => Ok(Self::Close),
            0x9 => Ok(Self::Ping),
            0xa => Ok(Self::Pong),
            _ => Err(Refusal::ReservedOpcode),
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

#[derive(Debug)]
struct Header {
    opcode: Opcode,
    fin: bool,
    mask: [u8; 4],
    len: usize,
}

impl Header {
    /// Maximum length of a header: two bytes, eight bytes of length, four bytes of mask.
    const MAX: usize = 14;

    /// Reads a header and its length from the start of `bytes`; `None` if the header is incomplete.
    ///
    /// Each field is checked as soon as it has arrived, in the order of the bytes, so that the
    /// result does not depend on how the network splits them.
    fn parse(
        bytes: &[u8],
        open: Option<&Message>,
        limits: &Limits,
    ) -> Result<Option<(Self, usize)>, Refusal> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let (opcode, fin) = Self::first_byte(first, open, limits)?;

        let Some(&second) = bytes.get(1) else {
            return Ok(None);
        };
        if second & 0x80 == 0 {
            return Err(Refusal::Unmasked);
        }
        let short = second & 0x7f;
        if opcode.is_control() && short > MAX_CONTROL_PAYLOAD {
            return Err(Refusal::LongControl);
        }
        let Some((len, at)) = Self::length(short, bytes)? else {
            return Ok(None);
        };
        let room = limits
            .message_bytes
            .saturating_sub(open.map_or(0, |open| open.bytes.len()));
        let len = usize::try_from(len).map_err(|_| Refusal::TooLarge)?;
        if !opcode.is_control() && len > room {
            return Err(Refusal::TooLarge);
        }

        let Some(&mask) = bytes[at..].first_chunk() else {
            return Ok(None);
        };
        Ok(Some((
            Self {
                opcode,
                fin,
                mask,
                len,
            },
            at + 4,
        )))
    }

    fn first_byte(
        byte: u8,
        open: Option<&Message>,
        limits: &Limits,
    ) -> Result<(Opcode, bool), Refusal> {
        if byte & 0x70 != 0 {
            return Err(Refusal::ReservedBits);
        }
        let opcode = Opcode::parse(byte & 0x0f)?;
        let fin = byte & 0x80 != 0;
        match (opcode, open) {
            _ if opcode.is_control() => {
                if fin {
                    Ok((opcode, fin))
                } else {
                    Err(Refusal::FragmentedControl)
                }
            }
            (Opcode::Continuation, None) => Err(Refusal::UnexpectedContinuation),
            (Opcode::Continuation, Some(open)) if open.fragments >= limits.fragments => {
                Err(Refusal::TooManyFragments)
            }
            (Opcode::Continuation, Some(_)) | (_, None) => Ok((opcode, fin)),
            (_, Some(_)) => Err(Refusal::UnfinishedMessage),
        }
    }

    /// The length of the payload and where the mask begins.
    fn length(short: u8, bytes: &[u8]) -> Result<Option<(u64, usize)>, Refusal> {
        let (len, shortest, at) = match short {
            126 => {
                let Some(len) = bytes[2..].first_chunk() else {
                    return Ok(None);
                };
                (u64::from(u16::from_be_bytes(*len)), 126, 4)
            }
            127 => {
                let Some(len) = bytes[2..].first_chunk() else {
                    return Ok(None);
                };
                (u64::from_be_bytes(*len), 1 << 16, 10)
            }
            _ => (u64::from(short), 0, 2),
        };
        if len < shortest || len > i64::MAX as u64 {
            return Err(Refusal::Length);
        }
        Ok(Some((len, at)))
    }
}

fn control(opcode: Opcode, payload: Cow<'_, [u8]>) -> Result<Event<'_>, Refusal> {
    match opcode {
        Opcode::Ping => Ok(Event::Ping(payload)),
        Opcode::Pong => Ok(Event::Pong(payload)),
        _ => close(payload).map(Event::Close),
    }
}

/// Reads the payload of a close frame: nothing, or a code and perhaps a reason in UTF-8.
fn close(payload: Cow<'_, [u8]>) -> Result<Option<(u16, Cow<'_, str>)>, Refusal> {
    if payload.is_empty() {
        return Ok(None);
    }
    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
    let code = code
        .filter(|code| is_close_code(*code))
        .ok_or(Refusal::CloseCode)?;
    let reason = match payload {
        Cow::Borrowed(payload) => Cow::Borrowed(&payload[2..]),
        Cow::Owned(payload) => Cow::Owned(payload[2..].to_vec()),
    };
    Ok(Some((code, text(reason)?)))
}

/// Whether a code may be sent: those of RFC 6455 and of the registry that are not for use inside
/// of programs only (1004 to 1006, 1015), and those of libraries and applications.
fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

fn text(bytes: Cow<'_, [u8]>) -> Result<Cow<'_, str>, Refusal> {
    match bytes {
        Cow::Borrowed(bytes) => str::from_utf8(bytes).map(Cow::Borrowed).ok(),
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).ok(),
    }
    .ok_or(Refusal::Utf8)
}

fn take<'b>(input: &mut &'b mut [u8], len: usize) -> &'b mut [u8] {
    let (taken, rest) = mem::take(input).split_at_mut(len);
    *input = rest;
    taken
}

/// Undoes the mask in place, eight bytes at a time; the compiler makes wider steps of them.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// The header of an unfragmented frame to a client, and its length in bytes: 2, 4 or 10.
pub fn frame_header(opcode: Opcode, len: usize) -> ([u8; 10], usize) {
    let mut header = [0; 10];
    header[0] = 0x80 | opcode as u8;
    let size = if len < 126 {
        header[1] = len as u8;
        2
    } else if let Ok(len) = u16::try_from(len) {
        header[1] = 126;
        header[2..4].copy_from_slice(&len.to_be_bytes());
        4
    } else {
        header[1] = 127;
        header[2..].copy_from_slice(&(len as u64).to_be_bytes());
        10
    };
    (header, size)
}

/// Appends an unfragmented frame to a client.
pub fn append_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let (header, size) = frame_header(opcode, payload.len());
    out.reserve(size + payload.len());
    out.extend_from_slice(&header[..size]);
    out.extend_from_slice(payload);
}

/// Appends a text frame whose payload `write` appends.
pub fn append_text(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    /// The size of the header of a payload up to 64 KiB. A longer payload has to be moved.
    const ROOM: usize = 4;
    let start = out.len();
    out.extend_from_slice(&[0; ROOM]);
    write(out);
    let (header, size) = frame_header(Opcode::Text, out.len() - start - ROOM);
    if size < ROOM {
        out.copy_within(start + ROOM.., start + size);
        out.truncate(out.len() - (ROOM - size));
    } else if size > ROOM {
        out.splice(start..start, [0; 10][..size - ROOM].iter().copied());
    }
    out[start..start + size].copy_from_slice(&header[..size]);
}

/// Appends the pong that replies to a ping with this payload.
pub fn append_pong(out: &mut Vec<u8>, payload: &[u8]) {
    append_frame(out, Opcode::Pong, payload);
}

/// Appends a close frame. Without a code the client sees 1005.
pub fn append_close(out: &mut Vec<u8>, code: Option<u16>) {
    match code {
        Some(code) => append_frame(out, Opcode::Close, &code.to_be_bytes()),
        None => append_frame(out, Opcode::Close, &[]),
    }
}

/// The headers of a request for a WebSocket. The values of a header that occurs several times are
/// joined by commas.
#[derive(Debug, Clone, Copy, Default)]
pub struct Upgrade<'a> {
    /// `Connection`.
    pub connection: &'a str,
    /// `Upgrade`.
    pub upgrade: &'a str,
    /// `Sec-WebSocket-Version`
    pub version: &'a str,
    /// `Sec-WebSocket-Key`
    pub key: &'a str,
}

/// Why a request is not a WebSocket handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// `Connection` or `Upgrade` does not ask for one.
    #[error("the request does not ask for a WebSocket")]
    NotWebSocket,
    /// Another version; the response has to name [`VERSION`].
    #[error("the WebSocket version is not 13")]
    Version,
    /// The key is missing or invalid.
    #[error("the WebSocket key is not 16 bytes in base64")]
    Key,
}

impl Upgrade<'_> {
    /// Checks the headers and returns the value of `Sec-WebSocket-Accept`.
    ///
    /// # Errors
    ///
    /// See [`UpgradeError`]; the response is a refusal with status 400 or 426.
    pub fn accept(&self) -> Result<String, UpgradeError> {
        if !has_token(self.connection, "upgrade") || !has_token(self.upgrade, "websocket") {
            return Err(UpgradeError::NotWebSocket);
        }
        if self.version.trim() != VERSION {
            return Err(UpgradeError::Version);
        }
        let key = self.key.trim();
        if STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16) {
            Ok(accept_key(key))
        } else {
            Err(UpgradeError::Key)
        }
    }
}

/// The value of `Sec-WebSocket-Accept` for a key (RFC 6455, section 4.2.2).
fn accept_key(key: &str) -> String {
    let digest = Sha1::new()
        .chain_update(key)
        .chain_update(KEY_SUFFIX)
        .finalize();
    STANDARD.encode(digest)
}

/// Whether a list that is separated by commas has this item, in upper or lower case.
pub fn has_token(list: &str, token: &str) -> bool {
    list.split(',')
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// The supported version: the value of `Sec-WebSocket-Version` in a refusal.
pub const VERSION: &str = "13";

/// RFC 6455, section 1.3.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const MAX_CONTROL_PAYLOAD: u8 = 125;

#[cfg(test)]
mod tests;
