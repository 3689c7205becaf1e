//! The MessagePack parser of socket.io-msgpack-parser 3. Each packet is one binary
//! message with a map of type, namespace, data and id; binary is inline.
//!
//! The parser is a setting of the server and never negotiated. Decoded packets are the
//! same as those of `decode`, with binary as attachments. Keys are written in the order
//! of Node's server.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use crate::args::Args;
use crate::args::json::MAX_DEPTH;
use crate::msgpack::{
    MsgpackError, Packed, Reader, Token, TranscodeLimits, msgpack_to_json, read_args, read_event,
    write,
};

use super::decode::{DecodeError, Limits, check_name};
use super::encode::push_string;
use super::packet::{EventName, Packet, PacketKind};

/// Decodes one binary message. With this parser a text message is an error, which the caller has to
/// check.
///
/// # Errors
///
/// The message is not a packet or exceeds the limits. The connection must be closed.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Packet<'static>, DecodeError> {
    let envelope = Envelope::read(bytes)?;
    let kind = envelope.kind()?;
    let nsp = envelope.nsp()?;
    if nsp.len() > limits.namespace_bytes {
        return Err(DecodeError::NamespaceTooLong {
            limit: limits.namespace_bytes,
        });
    }
    let mut packet = Packet {
        kind,
        nsp: Cow::Owned(nsp.into_owned()),
        id: envelope.id()?,
        data: Cow::Borrowed(""),
        event: None,
        attachments: Vec::new(),
    };
    match (kind, envelope.data()) {
        (PacketKind::Event, Some(data)) => read_event_data(&mut packet, data, limits)?,
        (PacketKind::Ack, Some(data)) => {
            let args = read_args(&mut Reader::new(data), transcode_limits(limits))?;
            packet.data = Cow::Owned(args.json().to_owned());
            packet.attachments = args.attachments().to_vec();
        }
        (PacketKind::Connect | PacketKind::ConnectError, Some(data)) => {
            read_other_data(&mut packet, data, limits)?;
        }
        (PacketKind::Connect | PacketKind::ConnectError | PacketKind::Disconnect, None) => {}
        (PacketKind::Disconnect, Some(_)) | (PacketKind::Event | PacketKind::Ack, None) => {
            return Err(DecodeError::Payload);
        }
    }
    Ok(packet)
}

/// Appends an event. With an id, the sender expects an acknowledgement.
///
/// # Errors
///
/// The arguments are not JSON. Those of [`Args::encode`] and of decoded packets always are.
pub fn event(
    out: &mut Vec<u8>,
    nsp: &str,
    id: Option<u64>,
    name: &str,
    args: &Args,
) -> Result<(), MsgpackError> {
    let data = Packed::new(Some(name), args.json(), args.attachments(), MAX_DEPTH)?;
    let packet = Written {
        id,
        ..Written::new(PacketKind::Event, nsp, data)
    };
    write(out, &packet);
    Ok(())
}

/// Appends an acknowledgement. It has the errors of [`event`].
pub fn ack(out: &mut Vec<u8>, nsp: &str, id: u64, args: &Args) -> Result<(), MsgpackError> {
    let data = Packed::new(None, args.json(), args.attachments(), MAX_DEPTH)?;
    let packet = Written {
        first_id: Some(id),
        ..Written::new(PacketKind::Ack, nsp, data)
    };
    write(out, &packet);
    Ok(())
}

/// Appends the reply to a CONNECT. Without connection state recovery it has the key `pid` with the
/// value `undefined`, like that of Node's server.
pub fn connect(out: &mut Vec<u8>, nsp: &str, sid: &str, pid: Option<&str>) {
    #[derive(Serialize)]
    struct Data<'a, P> {
        sid: &'a str,
        pid: P,
    }

    match pid {
        Some(pid) => write(
            out,
            &Written::new(PacketKind::Connect, nsp, Data { sid, pid }),
        ),
        None => {
            let pid = Undefined((0, Zero));
            write(
                out,
                &Written::new(PacketKind::Connect, nsp, Data { sid, pid }),
            );
        }
    }
}

/// Appends the refusal of a CONNECT with a payload. Fails if the payload is not JSON.
pub fn connect_error(out: &mut Vec<u8>, nsp: &str, data: &str) -> Result<(), MsgpackError> {
    let data = Packed::new(None, data, &[], MAX_DEPTH)?;
    let packet = Written {
        first_nsp: Some(nsp),
        nsp: None,
        ..Written::new(PacketKind::ConnectError, nsp, data)
    };
    write(out, &packet);
    Ok(())
}

/// Appends the packet that ends a namespace for a client.
pub fn disconnect(out: &mut Vec<u8>, nsp: &str) {
    let packet = Written {
        data: None,
        ..Written::new(PacketKind::Disconnect, nsp, ())
    };
    write(out, &packet);
}

/// The map around a packet, in the order of Node.js servers: acknowledgements begin with their id,
/// refusals have the namespace before the data.
#[derive(Serialize)]
struct Written<'a, D> {
    #[serde(rename = "id", skip_serializing_if = "Option::is_none")]
    first_id: Option<u64>,
    r#type: u8,
    #[serde(rename = "nsp", skip_serializing_if = "Option::is_none")]
    first_nsp: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<D>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nsp: Option<&'a str>,
}

impl<'a, D> Written<'a, D> {
    fn new(kind: PacketKind, nsp: &'a str, data: D) -> Self {
        Self {
            first_id: None,
            r#type: kind.number(),
            first_nsp: None,
            data: Some(data),
            id: None,
            nsp: Some(nsp),
        }
    }
}

/// `undefined` as notepack 2 writes it: an extension of type 0 with one byte.
#[derive(Serialize)]
#[serde(rename = "_ExtStruct")]
struct Undefined((i8, Zero));

struct Zero;

impl Serialize for Zero {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&[0])
    }
}

/// The map around a packet in its parsed form. If a key occurs twice, the last one counts, as in
/// JavaScript, so this cannot be a derived struct. Unknown keys are skipped.
#[derive(Default)]
struct Envelope<'a> {
    kind: Option<&'a [u8]>,
    nsp: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
    data: Option<&'a [u8]>,
}

impl<'a> Envelope<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let Token::Map(len) = reader.token()? else {
            return Err(DecodeError::Payload);
        };
        let mut envelope = Self::default();
        for _ in 0..len {
            let Token::Str(key) = reader.token()? else {
                return Err(DecodeError::Payload);
            };
            let value = Some(reader.raw()?);
            match key {
                b"type" => envelope.kind = value,
                b"nsp" => envelope.nsp = value,
                b"id" => envelope.id = value,
                b"data" => envelope.data = value,
                _ => {}
            }
        }
        reader.finish()?;
        Ok(envelope)
    }

    fn kind(&self) -> Result<PacketKind, DecodeError> {
        let number = self.kind.and_then(whole);
        let kind = number.and_then(PacketKind::from_number);
        kind.ok_or(DecodeError::UnknownType)
    }

    /// The id of an acknowledgement. Clients write `undefined` for none.
    fn id(&self) -> Result<Option<u64>, DecodeError> {
        match self.id {
            Some(id) if !is_undefined(id) => whole(id).map(Some).ok_or(DecodeError::AckId),
            _ => Ok(None),
        }
    }

    fn nsp(&self) -> Result<Cow<'a, str>, DecodeError> {
        match self.nsp.and_then(token) {
            Some(Token::Str(bytes)) => Ok(String::from_utf8_lossy(bytes)),
            _ => Err(DecodeError::Payload),
        }
    }

    fn data(&self) -> Option<&'a [u8]> {
        self.data.filter(|data| !is_undefined(data))
    }
}

fn token(value: &[u8]) -> Option<Token<'_>> {
    Reader::new(value).token().ok()
}

fn is_undefined(value: &[u8]) -> bool {
    token(value) == Some(Token::Undefined)
}

/// A whole number that is not negative, however it is encoded: JavaScript does not distinguish `3`
/// from `3.0`.
fn whole(value: &[u8]) -> Option<u64> {
    const TWO_POW_64: f64 = 18_446_744_073_709_551_616.0;
    match token(value)? {
        Token::Uint(value) => Some(value),
        Token::Int(value) => u64::try_from(value).ok(),
        Token::Float(value) if value.fract() == 0.0 && (0.0..TWO_POW_64).contains(&value) => {
            Some(value as u64)
        }
        _ => None,
    }
}

/// The canonical text has the name in front, as it came through the default parser.
fn read_event_data(
    packet: &mut Packet<'static>,
    data: &[u8],
    limits: &Limits,
) -> Result<(), DecodeError> {
    let (name, args) = read_event(&mut Reader::new(data), transcode_limits(limits))?;
    let name = check_name(name, limits)?;
    let mut json = Vec::with_capacity(name.len() + args.json().len() + 4);
    json.push(b'[');
    push_string(&mut json, &name);
    if !args.is_empty() {
        json.push(b',');
    }
    let rest = json.len();
    json.extend_from_slice(&args.json().as_bytes()[1..]);
    packet.data = Cow::Owned(String::from_utf8(json).expect("JSON is written as UTF-8"));
    packet.event = Some(EventName {
        name: Cow::Owned(name.into_owned()),
        rest,
    });
    packet.attachments = args.attachments().to_vec();
    Ok(())
}

/// An object, or of a refusal also text.
fn read_other_data(
    packet: &mut Packet<'static>,
    data: &[u8],
    limits: &Limits,
) -> Result<(), DecodeError> {
    let mut data = Reader::new(data);
    match (packet.kind, data.clone().token()?) {
        (_, Token::Map(_)) | (PacketKind::ConnectError, Token::Str(_)) => {}
        _ => return Err(DecodeError::Payload),
    }
    let (json, attachments) = msgpack_to_json(&mut data, transcode_limits(limits))?;
    packet.data = Cow::Owned(json);
    packet.attachments = attachments;
    Ok(())
}

fn transcode_limits(limits: &Limits) -> TranscodeLimits {
    TranscodeLimits {
        depth: limits.json_depth,
        attachments: limits.attachments,
    }
}

#[cfg(test)]
mod tests;
