//! The fuzz targets. A target panics if a decoder breaks a promise: a value that was read, written
//! and read again is the same, and the result does not depend on how a stream is split.

use bytes::Bytes;
use roomcast_protocol::args::json::MAX_DEPTH;
use roomcast_protocol::args::{Args, Value};
use roomcast_protocol::msgpack::{
    Reader as MsgpackReader, TranscodeLimits, json_to_msgpack, msgpack_to_json, read_event,
};

use crate::{response, wire};
use roomcast_protocol::engine_io::open::{MAX_QUERY_KEYS, Query};
use roomcast_protocol::engine_io::packet::{
    Message, Packet, decode_binary_v3, decode_text, decode_text_v3, write_binary_message,
};
use roomcast_protocol::engine_io::{payload, payload_v3};
use roomcast_protocol::proxy::{self, Progress};
use roomcast_protocol::socket_io::connect::split_query;
use roomcast_protocol::socket_io::decode::{Decoder, Limits as PacketLimits};
use roomcast_protocol::socket_io::packet::{Packet as SocketPacket, PacketKind};
use roomcast_protocol::socket_io::{encode, msgpack};
use roomcast_protocol::websocket::{Event, Limits, Reader, Refusal, Upgrade};
use roomcast_protocol::{channels, pakyow, relay, syncano};

pub(crate) type Target = fn(&[u8]);

/// Every target by its name, which is also that of its folder of seeds.
const TARGETS: &[(&str, Target)] = &[
    ("engine_packet", engine_packet),
    ("engine_payload", engine_payload),
    ("engine_payload_v3", engine_payload_v3),
    ("engine_query", engine_query),
    ("socket_text", socket_text),
    ("socket_msgpack", socket_msgpack),
    ("websocket", websocket),
    ("websocket_upgrade", websocket_upgrade),
    ("proxy_header", proxy_header),
    ("pakyow_frame", pakyow_frame),
    ("channels_frame", channels_frame),
    ("syncano_request", syncano_request),
    ("http_response", response::http_response),
    ("emitter_msgpack", emitter_msgpack),
    ("emitter_args", emitter_args),
    ("relay_frames", relay_frames),
    ("wire_classic", wire::classic),
    ("wire_request", wire::request),
    ("wire_sharded", wire::sharded),
    ("wire_channel", wire::channel),
    ("wire_signed", wire::signed),
    ("wire_streams", wire::streams),
];

const PACKET_LIMITS: PacketLimits = PacketLimits {
    json_depth: 100,
    attachments: 10,
    event_name_bytes: 256,
    namespace_bytes: 256,
};

pub(crate) fn find(name: &str) -> Option<Target> {
    TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, target)| *target)
}

pub(crate) fn names() -> Vec<&'static str> {
    TARGETS.iter().map(|(name, _)| *name).collect()
}

fn engine_packet(data: &[u8]) {
    let _ = decode_binary_v3(data);
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let _ = decode_text_v3(text);
    if let Ok(packet) = decode_text(text) {
        let written = as_text(&packet);
        let written = str::from_utf8(&written).expect("packets are written as text");
        assert_eq!(decode_text(written), Ok(packet));
    }
}

/// The packet as a server of revision 4 writes it; what is not binary is the same in revision 3.
fn as_text(packet: &Packet<'_>) -> Vec<u8> {
    let (digit, data) = match packet {
        Packet::Open(json) => ("0", *json),
        Packet::Close => ("1", ""),
        Packet::Ping(data) => ("2", *data),
        Packet::Pong(data) => ("3", *data),
        Packet::Message(Message::Text(text)) => ("4", &**text),
        Packet::Message(Message::Binary(bytes)) => {
            let mut out = Vec::new();
            write_binary_message(&mut out, bytes);
            return out;
        }
        Packet::Upgrade => ("5", ""),
        Packet::Noop => ("6", ""),
    };
    [digit, data].concat().into_bytes()
}

fn engine_payload(data: &[u8]) {
    let packets: Vec<_> = payload::decode(data).collect();
    assert!(
        packets.iter().rev().skip(1).all(Result::is_ok),
        "an error is the last item"
    );
    let good: Vec<Packet<'_>> = packets.into_iter().flatten().collect();
    let mut body = payload::BodyWriter::new();
    for packet in &good {
        body.encoded(as_text(packet));
    }
    if !good.is_empty() {
        let body = body.finish();
        assert_eq!(
            payload::decode(&body).collect::<Result<Vec<_>, _>>(),
            Ok(good)
        );
    }
}

/// The first byte chooses the form of the body.
fn engine_payload_v3(data: &[u8]) {
    let Some((form, data)) = data.split_first() else {
        return;
    };
    let form = payload_v3::Form::of_answer(form % 2 == 1, false);
    let packets: Vec<_> = payload_v3::decode(form, data).collect();
    assert!(
        packets.iter().rev().skip(1).all(Result::is_ok),
        "an error is the last item"
    );
    let good: Vec<Packet<'_>> = packets.into_iter().flatten().collect();
    let mut body = payload_v3::BodyWriter::new(form);
    for packet in &good {
        match packet {
            Packet::Message(Message::Binary(bytes)) => body.binary_message(bytes),
            _ => body.encoded(&as_text(packet)),
        }
    }
    if !good.is_empty() {
        let body = body.finish();
        assert_eq!(
            payload_v3::decode(form, &body).collect::<Result<Vec<_>, _>>(),
            Ok(good)
        );
    }
}

/// The frames of a record. Written again, they are read as the same, after a record's
/// length is read from the same bytes.
fn relay_frames(data: &[u8]) {
    if let Ok(Some(length)) = relay::record(data) {
        assert_eq!(relay::record(&data[..length]), Ok(Some(length)));
        assert_eq!(relay::record(&data[..length - 1]), Ok(None));
    }
    let frames: Vec<_> = relay::frames(data).collect();
    assert!(
        frames.iter().rev().skip(1).all(Result::is_ok),
        "an error is the last item"
    );
    let good: Vec<_> = frames.into_iter().flatten().collect();
    let mut records = relay::Records::default();
    for (stream, frame) in &good {
        match frame {
            relay::Frame::Request(request) => records.request(*stream, request),
            relay::Frame::Response(response) => {
                let headers = response.headers.iter();
                let (status, length) = (response.status, response.length);
                records.response(*stream, status, headers, length, response.body);
            }
            relay::Frame::Data(bytes) => records.data(*stream, bytes),
            relay::Frame::Reset(reset) => records.reset(*stream, *reset),
            relay::Frame::Credit(bytes) => records.credit(*stream, *bytes),
            relay::Frame::Ping => records.ping(),
            relay::Frame::Pong => records.pong(),
        }
    }
    let mut written = records.take(Vec::new());
    let mut again = Vec::new();
    relay::seal_each(&mut written, |frames, _| again.extend_from_slice(frames));
    let of_none =
        |frame: &relay::Frame<'_>| matches!(frame, relay::Frame::Ping | relay::Frame::Pong);
    let expected = good.into_iter();
    let expected =
        expected.map(|(stream, frame)| Ok((if of_none(&frame) { 0 } else { stream }, frame)));
    assert!(relay::frames(&again).eq(expected));
}

fn engine_query(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(query) = Query::parse(text) {
        assert!(query.application.len() <= MAX_QUERY_KEYS);
        let _ = (
            query.transport_name(),
            query.revision(true),
            query.revision(false),
        );
    }
}

/// The first byte says how many of the next ones are places where the stream is cut.
fn websocket(data: &[u8]) {
    let Some((cuts, data)) = data.split_first() else {
        return;
    };
    let Some((cuts, stream)) = data.split_at_checked(usize::from(cuts % 8)) else {
        return;
    };
    let mut cuts: Vec<_> = cuts
        .iter()
        .map(|cut| usize::from(*cut) % (stream.len() + 1))
        .collect();
    cuts.push(stream.len());
    cuts.sort_unstable();

    let whole = read_pieces(stream, &[stream.len()]);
    assert_eq!(read_pieces(stream, &cuts), whole);
}

/// The four headers of a handshake, a line each.
fn websocket_upgrade(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let upgrade = Upgrade {
        connection: line(),
        upgrade: line(),
        version: line(),
        key: line(),
    };
    if let Ok(accept) = upgrade.accept() {
        assert_eq!(accept.len(), 28, "SHA-1 in base64");
    }
}

fn read_pieces(stream: &[u8], ends: &[usize]) -> (Vec<String>, Option<Refusal>) {
    let limits = Limits {
        message_bytes: 200,
        fragments: 4,
    };
    let mut reader = Reader::default();
    let (mut events, mut start) = (Vec::new(), 0);
    for end in ends {
        let mut piece = stream[start..*end].to_vec();
        let mut input = &mut piece[..];
        loop {
            match reader.next(&mut input, &limits) {
                Ok(Some(event)) => {
                    if let Event::Text(text) = &event {
                        assert!(text.len() <= limits.message_bytes);
                    }
                    events.push(format!("{event:?}"));
                }
                Ok(None) => break,
                Err(refusal) => return (events, Some(refusal)),
            }
        }
        start = *end;
    }
    (events, None)
}

/// The messages of a connection with 255 between them, which is in no text. Where an attachment is
/// awaited it is read as one, unless 254 stands in front.
fn socket_text(data: &[u8]) {
    let mut decoder = Decoder::default();
    let mut is_waiting = false;
    for message in data.split(|byte| *byte == 255) {
        let is_text = message.first() == Some(&254);
        let read = if is_waiting && !is_text {
            decoder.binary(message, &PACKET_LIMITS)
        } else {
            let Ok(text) = str::from_utf8(&message[usize::from(is_text)..]) else {
                return;
            };
            decoder.text(text, &PACKET_LIMITS)
        };
        match read {
            Ok(Some(packet)) => {
                text_round_trip(&packet);
                is_waiting = false;
            }
            Ok(None) => is_waiting = true,
            Err(_) => return,
        }
    }
}

fn text_round_trip(packet: &SocketPacket<'_>) {
    let args = checked_args(packet);
    let mut written = Vec::new();
    match (packet.kind, &packet.event, packet.id) {
        (PacketKind::Event, Some(event), id) => {
            encode::event(&mut written, &packet.nsp, id, &event.name, &args);
        }
        (PacketKind::Ack, _, Some(id)) => encode::ack(&mut written, &packet.nsp, id, &args),
        _ => return,
    }
    let written = str::from_utf8(&written).expect("packets are written as text");
    let mut decoder = Decoder::default();
    let mut again = decoder
        .text(written, &PACKET_LIMITS)
        .expect("it was just written");
    for attachment in args.attachments() {
        assert!(again.is_none(), "a packet waits for its attachments");
        again = decoder
            .binary(attachment, &PACKET_LIMITS)
            .expect("it was just written");
    }
    let again = again.expect("all attachments are there");
    assert_same_head(&again, packet);
    assert_eq!(again.to_args(), args);
}

/// MessagePack may change the digits of a number once, as in [`emitter_msgpack`].
fn socket_msgpack(data: &[u8]) {
    let Ok(packet) = msgpack::decode(data, &PACKET_LIMITS) else {
        return;
    };
    let Some(once) = msgpack_round_trip(&packet) else {
        return;
    };
    assert_same_head(&once, &packet);
    assert_eq!(once.attachments, packet.attachments);
    let twice = msgpack_round_trip(&once).expect("it was written once");
    assert_eq!(twice, once);
}

fn msgpack_round_trip(packet: &SocketPacket<'_>) -> Option<SocketPacket<'static>> {
    let args = checked_args(packet);
    let mut written = Vec::new();
    match (packet.kind, &packet.event, packet.id) {
        (PacketKind::Event, Some(event), id) => {
            msgpack::event(&mut written, &packet.nsp, id, &event.name, &args)
        }
        (PacketKind::Ack, _, Some(id)) => msgpack::ack(&mut written, &packet.nsp, id, &args),
        _ => return None,
    }
    .expect("decoded arguments can be written");
    Some(msgpack::decode(&written, &PACKET_LIMITS).expect("it was just written"))
}

fn checked_args(packet: &SocketPacket<'_>) -> Args {
    assert!(packet.nsp.len() <= PACKET_LIMITS.namespace_bytes);
    assert!(packet.attachments.len() <= PACKET_LIMITS.attachments);
    let _ = split_query(&packet.nsp);
    let args = packet.to_args();
    let _ = args.decode::<Value>();
    args
}

fn assert_same_head(one: &SocketPacket<'_>, other: &SocketPacket<'_>) {
    let name = |packet: &SocketPacket<'_>| {
        packet
            .event
            .as_ref()
            .map(|event| event.name.clone().into_owned())
    };
    assert_eq!(
        (one.kind, &one.nsp, one.id),
        (other.kind, &other.nsp, other.id)
    );
    assert_eq!(name(one), name(other));
}

fn pakyow_frame(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Some(pattern) = pakyow::Pattern::new(text) {
        assert!(pattern.matches(text), "a name stands for itself");
    }
    let Some(message) = pakyow::read(text) else {
        return;
    };
    let frame = pakyow::Reply::pong().frame(&message.id);
    let reply: serde_json::Value = serde_json::from_str(&frame).expect("a reply is JSON");
    let id: serde_json::Value = serde_json::from_str(&message.id).expect("an id is JSON");
    assert_eq!(reply["id"], id);
    if let pakyow::Action::CallRoute(call) = message.action {
        let target = pakyow::with_query(pakyow::target(&call.uri), &call.input);
        assert!(target.starts_with('/') && !target.starts_with("//"));
        assert!(target.bytes().all(|byte| byte.is_ascii_graphic()));
    }
}

/// The first line is the path with the query, the second one the type of the body, which follows.
fn syncano_request(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut lines = text.splitn(3, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (target, kind, body) = (next(), next(), next());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if let Some(read) = syncano::Path::parse(path) {
        assert!(read.base.ends_with(&read.instance));
        if !path.ends_with('/') {
            let with_slash = syncano::Path::parse(&format!("{path}/"));
            assert_eq!(with_slash, Some(read), "a final slash means nothing");
        }
    }
    let query = syncano::Query::parse(query);
    assert_ne!(query.get("room"), Some(""), "an empty value is none");
    if let Ok(id) = query.integer("last_id") {
        assert_eq!(id.is_some(), query.get("last_id").is_some());
    }
    let Ok(fields) = syncano::fields(kind, body.as_bytes()) else {
        return;
    };
    let json = serde_json::to_vec(&fields).expect("fields are JSON");
    assert_eq!(syncano::fields("", &json), Ok(fields.clone()));
    let Ok(message) = syncano::Message::read(&fields) else {
        return;
    };
    let payload = serde_json::to_string(&message.payload).expect("a payload is JSON");
    let sent = serde_json::json!({ "payload": payload, "room": message.room });
    let sent = sent.as_object().expect("it is an object");
    assert_eq!(syncano::Message::read(sent), Ok(message));
}

fn emitter_msgpack(data: &[u8]) {
    let limits = TranscodeLimits {
        attachments: 10,
        ..TranscodeLimits::default()
    };
    let _ = read_event(&mut MsgpackReader::new(data), limits);

    let mut reader = MsgpackReader::new(data);
    let skipped = reader.skip().map(|()| reader.remaining());
    let mut reader = MsgpackReader::new(data);
    let Ok((json, attachments)) = msgpack_to_json(&mut reader, limits) else {
        return;
    };
    assert_eq!(
        skipped.ok(),
        Some(reader.remaining()),
        "what is read can be skipped"
    );

    // A whole number that came as a float is written as an integer, and has other digits then; so
    // the text is the same from the second time on.
    let (once, same) = through_msgpack(&json, &attachments);
    assert_eq!(same, attachments);
    assert_eq!(through_msgpack(&once, &same), (once, same));
}

fn through_msgpack(json: &str, attachments: &[Bytes]) -> (String, Vec<Bytes>) {
    let mut written = Vec::new();
    json_to_msgpack(&mut written, None, json, attachments, MAX_DEPTH).expect("it was just read");
    let mut reader = MsgpackReader::new(&written);
    let read = msgpack_to_json(&mut reader, TranscodeLimits::default()).expect("just written");
    reader.finish().expect("one value was written");
    read
}

/// The first byte says how many attachments go with the text.
fn emitter_args(data: &[u8]) {
    let Some((attachments, json)) = data.split_first() else {
        return;
    };
    let attachments = (0..attachments % 4)
        .map(|byte| Bytes::from(vec![byte; usize::from(byte)]))
        .collect();
    let Ok(args) = Args::from_parts(Bytes::copy_from_slice(json), attachments) else {
        return;
    };
    let _ = args.decode::<(String, u64, Option<Vec<bool>>)>();
    let _ = args.decode::<serde_json::Value>();
    let Ok(value) = args.decode::<Value>() else {
        return;
    };

    if let Ok(encoded) = Args::encode(&(&value,)) {
        // A float that is whole becomes an integer, so the second time is compared with the third.
        let again = encoded.decode::<Value>().expect("it was just encoded");
        let twice = Args::encode(&(&again,)).expect("it was encoded before");
        let twice = twice.decode::<Value>().expect("it was just encoded");
        assert_eq!(twice, again, "of {value}");
        let mut written = Vec::new();
        json_to_msgpack(
            &mut written,
            None,
            encoded.json(),
            encoded.attachments(),
            MAX_DEPTH,
        )
        .expect("it was just encoded");
    }
}

/// The result depends neither on what follows the header nor on how much of it has come before.
fn proxy_header(data: &[u8]) {
    let whole = proxy::read(data);
    for end in 0..data.len() {
        match proxy::read(&data[..end]) {
            Ok(Progress::Incomplete) => {}
            early => assert_eq!(early, whole),
        }
    }
    if let Ok(Progress::Complete(header)) = whole {
        assert!(header.length <= data.len().min(proxy::MAX_HEADER));
        assert_eq!(proxy::read(&data[..header.length]), whole);
    }
}

/// What a frame publishes is valid JSON, and its event is one line of a stream with the same value.
fn channels_frame(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let _ = channels::id(text);
    let _ = channels::Publish::read(text);
    let Ok(frame) = channels::Frame::read(text) else {
        return;
    };
    if let channels::Request::Publish { room, publish } = frame.request {
        let event = channels::Event {
            id: Some(1),
            room: Some(&room),
            name: &publish.event,
            args: &publish.args,
            time: None,
        };
        let mut stream = Vec::new();
        event.write_stream(&mut stream);
        let stream = str::from_utf8(&stream).expect("text");
        let line = stream
            .strip_prefix("id: 1\ndata: ")
            .and_then(|rest| rest.strip_suffix("\n\n"));
        let line = line.expect("an event of a stream");
        assert!(!line.contains(['\n', '\r']));
        let mut json = Vec::new();
        event.write(&mut json);
        let is_json = |text: &str| channels::Publish::read(&format!("{{\"data\":{text}}}")).is_ok();
        assert!(is_json(line) && str::from_utf8(&json).is_ok_and(is_json));
    }
}
