//! The MessagePack parser, as in socket.io-msgpack-parser 3: each packet is one binary message
//! with a map of type, namespace, data and id, binary inline.
//!
//! Which parser a server speaks is a setting of the server and never negotiated. Packets read here
//! are the same as those of `decode`, binary set aside as attachments; the order of the keys that
//! are written is that of Node.js servers.

use std::borrow::Cow;

use crate::args::Args;
use crate::args::json::MAX_DEPTH;
use crate::msgpack::{
    MsgpackError, Reader, Token, TranscodeLimits, json_to_msgpack, msgpack_to_json, read_args,
    read_event, write_args, write_map_len, write_str, write_uint, write_undefined,
};

use super::decode::{DecodeError, Limits, check_name};
use super::encode::push_string;
use super::packet::{EventName, Packet, PacketKind};

/// Reads one binary message. A text message is an error with this parser, for the caller to see.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Packet<'static>, DecodeError> {
    let envelope = Envelope::read(bytes)?;
    let kind = envelope.kind.ok_or(DecodeError::UnknownType)?;
    let nsp = envelope.nsp.ok_or(DecodeError::Payload)?;
    if nsp.len() > limits.namespace_bytes {
        return Err(DecodeError::NamespaceTooLong {
            limit: limits.namespace_bytes,
        });
    }
    let mut packet = Packet {
        kind,
        nsp: Cow::Owned(nsp.into_owned()),
        id: envelope.id,
        data: Cow::Borrowed(""),
        event: None,
        attachments: Vec::new(),
    };
    match (kind, envelope.data) {
        (PacketKind::Event, Some(data)) => read_event_data(&mut packet, data, limits)?,
        (PacketKind::Ack, Some(mut data)) => {
            let args = read_args(&mut data, transcode_limits(limits))?;
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

/// An event, and the id under which an acknowledgement is awaited, if one is.
///
/// Fails only on arguments that are not JSON, which those of [`Args::encode`] and of decoded
/// packets never are.
pub fn event(
    out: &mut Vec<u8>,
    nsp: &str,
    id: Option<u64>,
    name: &str,
    args: &Args,
) -> Result<(), MsgpackError> {
    write_map_len(out, if id.is_some() { 4 } else { 3 });
    write_kind(out, PacketKind::Event);
    write_str(out, "data");
    write_args(out, Some(name), args, MAX_DEPTH)?;
    if let Some(id) = id {
        write_id(out, id);
    }
    write_nsp(out, nsp);
    Ok(())
}

/// An acknowledgement. Fails as [`event`] does.
pub fn ack(out: &mut Vec<u8>, nsp: &str, id: u64, args: &Args) -> Result<(), MsgpackError> {
    write_map_len(out, 4);
    write_id(out, id);
    write_kind(out, PacketKind::Ack);
    write_str(out, "data");
    write_args(out, None, args, MAX_DEPTH)?;
    write_nsp(out, nsp);
    Ok(())
}

/// The reply to a CONNECT. Node.js sends the id of a recovery that is off as `undefined`; clients
/// that look for the key find it here, too.
pub fn connect(out: &mut Vec<u8>, nsp: &str, sid: &str) {
    write_map_len(out, 3);
    write_kind(out, PacketKind::Connect);
    write_str(out, "data");
    write_map_len(out, 2);
    write_str(out, "sid");
    write_str(out, sid);
    write_str(out, "pid");
    write_undefined(out);
    write_nsp(out, nsp);
}

/// The refusal of a CONNECT, with a JSON payload. Fails if that is not JSON.
pub fn connect_error(out: &mut Vec<u8>, nsp: &str, data: &str) -> Result<(), MsgpackError> {
    write_map_len(out, 3);
    write_kind(out, PacketKind::ConnectError);
    write_nsp(out, nsp);
    write_str(out, "data");
    json_to_msgpack(out, data, &[], MAX_DEPTH)
}

/// The end of a namespace for a client.
pub fn disconnect(out: &mut Vec<u8>, nsp: &str) {
    write_map_len(out, 2);
    write_kind(out, PacketKind::Disconnect);
    write_nsp(out, nsp);
}

fn write_kind(out: &mut Vec<u8>, kind: PacketKind) {
    write_str(out, "type");
    write_uint(out, u64::from(kind.number()));
}

fn write_nsp(out: &mut Vec<u8>, nsp: &str) {
    write_str(out, "nsp");
    write_str(out, nsp);
}

fn write_id(out: &mut Vec<u8>, id: u64) {
    write_str(out, "id");
    write_uint(out, id);
}

/// The map around a packet. Of a key that occurs twice the last one holds, unknown ones are passed
/// over.
#[derive(Default)]
struct Envelope<'a> {
    kind: Option<PacketKind>,
    nsp: Option<Cow<'a, str>>,
    id: Option<u64>,
    /// A reader that stands before the data; the order of the keys is up to the client.
    data: Option<Reader<'a>>,
}

impl<'a> Envelope<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let mut envelope = Self::default();
        for _ in 0..reader.read_map_len()? {
            match &*reader.read_str()? {
                "type" => {
                    let number = reader.read_u64().map_err(|_| DecodeError::UnknownType)?;
                    envelope.kind = PacketKind::from_number(number);
                }
                "nsp" => envelope.nsp = Some(reader.read_str()?),
                "id" => {
                    envelope.id = if reader.take_undefined() {
                        None
                    } else {
                        Some(reader.read_u64().map_err(|_| DecodeError::AckId)?)
                    };
                }
                "data" => {
                    let start = reader.clone();
                    envelope.data = if reader.take_undefined() {
                        None
                    } else {
                        reader.skip()?;
                        Some(start)
                    };
                }
                _ => reader.skip()?,
            }
        }
        reader.finish()?;
        Ok(envelope)
    }
}

/// The canonical text has the name in front, as it came through the default parser.
fn read_event_data(
    packet: &mut Packet<'static>,
    mut data: Reader<'_>,
    limits: &Limits,
) -> Result<(), DecodeError> {
    let (name, args) = read_event(&mut data, transcode_limits(limits))?;
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
    mut data: Reader<'_>,
    limits: &Limits,
) -> Result<(), DecodeError> {
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
