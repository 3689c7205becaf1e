//! One packet as bytes that all its recipients share.
//!
//! A broadcast makes one frame for all its recipients, and each outbox holds a handle.
//! The bytes for a WebSocket of revision 4 are made with the frame, because nearly all
//! recipients need them. The other forms are made when the first recipient needs them.
//!
//! ```text
//!  one event ──┬─ wire: WebSocket, revision 4 ── made at once
//!              ├─ base64, revision 3 ─────────── made for the first recipient that needs it
//!              └─ plain: one for each form ───── made for the first recipient that needs it
//! ```
//!
//! **Why the frame has its header already.** A frame of a server is not masked, so its
//! bytes are the same for all clients. A recipient costs a reference and no copy.
//!
//! **Queued bytes are counted once**, when a frame first waits for any client, because all outboxes
//! share its memory. The count ends with the last handle.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use prometheus::IntGauge;

use super::{
    plain::{Form, Source},
    websocket::{Opcode, append_text, frame_header},
};
use roomcast_protocol::{
    engine_io::{open::Revision, packet, payload, payload_v3},
    message::Position,
};

/// The form in which a connection's WebSocket carries packets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WireForm {
    pub(crate) revision: Revision,
    /// Whether the client can receive text only (`b64=1`), so that binary is base64.
    pub(crate) base64: bool,
}

/// How a connection's WebSocket is written.
#[derive(Clone, Copy)]
pub(crate) enum Wire<'a> {
    EngineIo(WireForm),
    Plain(&'a Arc<dyn Form>),
}

/// The longest header of a WebSocket frame from a server, and the packet type `4`.
/// The packet is written after this much space, and the header in front of it once its length is
/// known.
const HEAD: usize = 11;

/// A shared packet; cheap to clone.
#[derive(Clone)]
pub(crate) struct Frame(Arc<Inner>);

struct Inner {
    /// Complete WebSocket frames of revision 4.
    wire: Box<[u8]>,
    /// The text packet in `wire`, with its type. Empty if there is none.
    text: Range<usize>,
    binary: Box<[Bytes]>,
    content: Content,
    other: OnceLock<Box<OtherForms>>,
}

/// The meaning of a frame for a plain connection.
enum Content {
    /// Nothing: it is Engine.IO's or Socket.IO's.
    Packet,
    /// The output of the form.
    Event(Box<Source>),
    /// The text unchanged.
    Text,
    /// The bytes, if the connection has a WebSocket.
    Raw,
}

#[derive(Default)]
struct OtherForms {
    websocket_v3: OnceLock<Box<[u8]>>,
    websocket_base64: OnceLock<Box<[u8]>>,
    websocket_base64_v3: OnceLock<Box<[u8]>>,
    base64: OnceLock<Box<[Box<[u8]>]>>,
    plain: OnceLock<Box<Rendered>>,
    waiting: OnceLock<Waiting>,
}

/// The bytes that one form has written, and the next form's. There are few forms.
struct Rendered {
    form: Arc<dyn Form>,
    /// With the header of a WebSocket frame.
    is_framed: bool,
    bytes: Bytes,
    next: OnceLock<Box<Self>>,
}

/// The bytes that a frame adds to the gauge of waiting bytes, until its last handle is dropped.
struct Waiting {
    gauge: Option<IntGauge>,
    bytes: i64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(gauge) = &self.gauge {
            gauge.sub(self.bytes);
        }
    }
}

/// The memory that a frame counts in addition to its bytes.
/// Without it, many small frames would seem to cost little.
const OVERHEAD: usize = 128;

impl Frame {
    /// A text message, written by `write`, and the binary messages that belong to it.
    pub(crate) fn message(write: impl FnOnce(&mut Vec<u8>), binary: &[Bytes]) -> Self {
        let mut wire = Vec::with_capacity(256);
        wire.resize(HEAD, b'4');
        write(&mut wire);
        let text = HEAD - 1..wire.len();
        let (header, len) = frame_header(Opcode::Text, text.len());
        let start = text.start - len;
        wire[start..text.start].copy_from_slice(&header[..len]);
        append_binary_v4(&mut wire, binary);
        let text = len..text.end - start;
        Self::new(wire[start..].into(), text, binary, Content::Packet)
    }

    /// The same frame, with the event for plain connections. `self` is not shared yet.
    pub(crate) fn of_event(mut self, source: Source) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.content = Content::Event(Box::new(source));
        }
        self
    }

    /// A text for a plain connection alone.
    pub(crate) fn text(text: &[u8]) -> Self {
        let (header, len) = frame_header(Opcode::Text, text.len());
        let wire = [&header[..len], text].concat();
        let end = wire.len();
        Self::new(wire.into(), len..end, &[], Content::Text)
    }

    /// A binary message without text, as the msgpack parser makes them.
    pub(crate) fn binary(bytes: Bytes) -> Self {
        let mut wire = Vec::with_capacity(bytes.len() + HEAD);
        let binary = [bytes];
        append_binary_v4(&mut wire, &binary);
        Self::new(wire.into(), 0..0, &binary, Content::Packet)
    }

    /// An Engine.IO packet by its text, such as `2` or `6`.
    pub(crate) fn packet(text: &str) -> Self {
        let (header, len) = frame_header(Opcode::Text, text.len());
        let wire = [&header[..len], text.as_bytes()].concat();
        let end = wire.len();
        Self::new(wire.into(), len..end, &[], Content::Packet)
    }

    /// Bytes for a WebSocket only: control frames, and replies that were written in part.
    pub(crate) fn raw(bytes: &[u8]) -> Self {
        Self::new(bytes.into(), 0..0, &[], Content::Raw)
    }

    fn new(wire: Box<[u8]>, text: Range<usize>, binary: &[Bytes], content: Content) -> Self {
        let inner = Inner {
            wire,
            text,
            binary: binary.into(),
            content,
            other: OnceLock::new(),
        };
        Self(Arc::new(inner))
    }

    /// The bytes to write to a WebSocket. A plain one may have none.
    pub(crate) fn wire(&self, wire: Wire<'_>) -> &[u8] {
        match wire {
            Wire::EngineIo(form) => self.websocket(form),
            Wire::Plain(form) => match &self.0.content {
                Content::Packet => &[],
                Content::Event(source) => self.rendered(source, form, true),
                Content::Text | Content::Raw => &self.0.wire,
            },
        }
    }

    /// The bytes that a stream yields for the frame; may be empty.
    pub(super) fn chunk(&self, form: &Arc<dyn Form>) -> Bytes {
        match &self.0.content {
            Content::Packet | Content::Raw => Bytes::new(),
            Content::Event(source) => self.rendered(source, form, false).clone(),
            Content::Text => Bytes::copy_from_slice(self.packet_text()),
        }
    }

    /// Whether a plain connection makes nothing of the frame.
    pub(super) fn is_packet(&self) -> bool {
        matches!(self.0.content, Content::Packet)
    }

    /// The room in whose log the event is, and its place there.
    pub(super) fn place(&self) -> Option<(&str, Position)> {
        match &self.0.content {
            Content::Event(source) => Some((source.room.as_deref()?, source.position?)),
            _ => None,
        }
    }

    /// The bytes that the form writes for the event, made for the first recipient that needs them.
    /// A list is searched, because there are at most a few forms and most frames need
    /// none.
    fn rendered(&self, source: &Source, form: &Arc<dyn Form>, is_framed: bool) -> &Bytes {
        let mut slot = &self.other().plain;
        loop {
            let rendered = slot.get_or_init(|| Rendered::new(source, form, is_framed));
            if rendered.is_framed == is_framed && Arc::ptr_eq(&rendered.form, form) {
                return &rendered.bytes;
            }
            slot = &rendered.next;
        }
    }

    /// The bytes to write to a WebSocket of Engine.IO.
    pub(crate) fn websocket(&self, form: WireForm) -> &[u8] {
        // Without binary, all revisions have the same bytes.
        if self.0.binary.is_empty() {
            return &self.0.wire;
        }
        let made = match (form.revision, form.base64) {
            (Revision::V4, false) => return &self.0.wire,
            (Revision::V3, false) => &self.other().websocket_v3,
            (Revision::V4, true) => &self.other().websocket_base64,
            (Revision::V3, true) => &self.other().websocket_base64_v3,
        };
        made.get_or_init(|| self.make_websocket(form))
    }

    /// The number of packets that the frame has in a polling body.
    pub(crate) fn packets(&self) -> usize {
        usize::from(!self.0.text.is_empty()) + self.0.binary.len()
    }

    /// Whether a polling body of revision 3 that holds this frame may need its binary form.
    pub(crate) fn has_binary(&self) -> bool {
        !self.0.binary.is_empty()
    }

    /// The bytes that the frame counts in an outbox.
    pub(crate) fn cost(&self) -> usize {
        self.0.wire.len()
    }

    /// Appends the packets to a polling body of revision 4.
    pub(crate) fn write_polling_v4(&self, body: &mut payload::BodyWriter) {
        if !self.0.text.is_empty() {
            body.encoded(self.packet_text());
        }
        if !self.0.binary.is_empty() {
            let encoded = self.other().base64.get_or_init(|| self.make_base64());
            encoded.iter().for_each(|packet| body.encoded(packet));
        }
    }

    /// Appends the packets to a polling body of revision 3.
    pub(crate) fn write_polling_v3(&self, body: &mut payload_v3::BodyWriter) {
        if !self.0.text.is_empty() {
            body.encoded(self.packet_text());
        }
        self.0
            .binary
            .iter()
            .for_each(|bytes| body.binary_message(bytes));
    }

    /// Counts the memory of a frame that waits for a client, once for all clients.
    pub(super) fn count_waiting(&self, gauge: &IntGauge) {
        self.other().waiting.get_or_init(|| {
            let attached: usize = self.0.binary.iter().map(Bytes::len).sum();
            let bytes = OVERHEAD + self.0.wire.len() + attached;
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            gauge.add(bytes);
            Waiting {
                gauge: Some(gauge.clone()),
                bytes,
            }
        });
    }

    /// Exempts a frame from [`count_waiting`](Self::count_waiting), because it is kept anyway.
    pub(super) fn uncounted(self) -> Self {
        let nothing = || Waiting {
            gauge: None,
            bytes: 0,
        };
        self.other().waiting.get_or_init(nothing);
        self
    }

    /// The text packet, or nothing for a binary message.
    pub(super) fn packet_text(&self) -> &[u8] {
        &self.0.wire[self.0.text.clone()]
    }

    fn other(&self) -> &OtherForms {
        self.0.other.get_or_init(Box::default)
    }

    /// Revision 3 has the packet type in front of binary messages as well.
    fn make_websocket(&self, form: WireForm) -> Box<[u8]> {
        let mut wire = self.0.wire[..self.0.text.end].to_vec();
        for bytes in &self.0.binary {
            match (form.revision, form.base64) {
                (Revision::V4, true) => append_text(&mut wire, |out| {
                    packet::write_binary_message(out, bytes);
                }),
                (Revision::V3, true) => append_text(&mut wire, |out| {
                    packet::write_binary_message_v3(out, bytes);
                }),
                (_, false) => {
                    let (header, len) = frame_header(Opcode::Binary, bytes.len() + 1);
                    wire.extend_from_slice(&header[..len]);
                    wire.push(packet::MESSAGE_BYTE);
                    wire.extend_from_slice(bytes);
                }
            }
        }
        wire.into()
    }

    fn make_base64(&self) -> Box<[Box<[u8]>]> {
        let encode = |bytes: &Bytes| {
            let mut packet = Vec::new();
            packet::write_binary_message(&mut packet, bytes);
            packet.into()
        };
        self.0.binary.iter().map(encode).collect()
    }
}

impl Rendered {
    fn new(source: &Source, form: &Arc<dyn Form>, is_framed: bool) -> Box<Self> {
        let mut bytes = Vec::with_capacity(256);
        source.write(&**form, &mut bytes);
        if is_framed && !bytes.is_empty() {
            let (header, len) = frame_header(Opcode::Text, bytes.len());
            bytes.splice(..0, header[..len].iter().copied());
        }
        Box::new(Self {
            form: Arc::clone(form),
            is_framed,
            bytes: bytes.into(),
            next: OnceLock::new(),
        })
    }
}

fn append_binary_v4(wire: &mut Vec<u8>, binary: &[Bytes]) {
    for bytes in binary {
        let (header, len) = frame_header(Opcode::Binary, bytes.len());
        wire.extend_from_slice(&header[..len]);
        wire.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMS: [WireForm; 4] = [
        WireForm {
            revision: Revision::V4,
            base64: false,
        },
        WireForm {
            revision: Revision::V3,
            base64: false,
        },
        WireForm {
            revision: Revision::V4,
            base64: true,
        },
        WireForm {
            revision: Revision::V3,
            base64: true,
        },
    ];

    #[test]
    fn a_text_message_is_one_websocket_frame_whatever_its_length() {
        for len in [0, 1, 124, 125, 65_534, 65_535] {
            let text = "x".repeat(len);
            let frame = Frame::message(|out| out.extend_from_slice(text.as_bytes()), &[]);
            let (header, header_len) = frame_header(Opcode::Text, len + 1);
            let expected = [&header[..header_len], b"4", text.as_bytes()].concat();
            for form in FORMS {
                assert_eq!(frame.websocket(form), expected);
            }
            assert_eq!(frame.packets(), 1);
        }
    }

    #[test]
    fn attachments_follow_their_header_in_every_form() {
        let binary = [Bytes::from_static(&[1, 2]), Bytes::from_static(&[3])];
        let frame = Frame::message(|out| out.extend_from_slice(b"52-[]"), &binary);
        let v4 = b"\x81\x06452-[]\x82\x02\x01\x02\x82\x01\x03";
        let v3 = b"\x81\x06452-[]\x82\x03\x04\x01\x02\x82\x02\x04\x03";
        let base64 = b"\x81\x06452-[]\x81\x05bAQI=\x81\x05bAw==";
        let base64_v3 = b"\x81\x06452-[]\x81\x06b4AQI=\x81\x06b4Aw==";
        let expected: [&[u8]; 4] = [v4, v3, base64, base64_v3];
        for (form, expected) in FORMS.into_iter().zip(expected) {
            assert_eq!(frame.websocket(form), expected, "{form:?}");
        }
        assert_eq!(frame.packets(), 3);
        let mut body = payload::BodyWriter::new();
        frame.write_polling_v4(&mut body);
        assert_eq!(body.finish(), b"452-[]\x1ebAQI=\x1ebAw==");
        let mut body = payload_v3::BodyWriter::new(payload_v3::Form::Text);
        frame.write_polling_v3(&mut body);
        assert_eq!(body.finish(), b"6:452-[]6:b4AQI=6:b4Aw==");
    }
}
