//! One Socket.IO client: from the first request to the last packet, on any transport.

use rustix::{event::epoll::EventFlags, fd::OwnedFd};
use serde_json::Value;

use super::{Dial, End, Replies, Sink, Transport, link::Link, source::Sources};
use crate::{
    clock::{self, Nanos},
    codec::{
        http,
        packet::{self, Kind},
        websocket::{self, Scan},
    },
};

pub(super) struct Client {
    index: usize,
    /// Distinguishes events of this connection from those of the previous one.
    generation: u32,
    target: usize,
    /// By slot: WebSocket, polls, posts.
    links: [Option<Link>; 3],
    stage: Stage,
    /// The transport for outgoing packets: the WebSocket, or posts.
    is_on_websocket: bool,
    polling: Option<Box<Polling>>,
    /// Fragments of a WebSocket message whose last one has not arrived.
    fragments: Vec<u8>,
    /// JSON for the connect packet, instead of that of all clients; may be empty.
    pub(super) auth: String,
    /// When it last opened a connection or received something.
    pub(super) alive: Nanos,
}

/// Phase of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    /// The session is open and the connect packet is sent.
    Connecting,
    /// The namespace has accepted the client.
    Connected,
    /// The sink knows it: the client is on its final transport.
    Announced,
}

/// State of polling.
#[derive(Default)]
struct Polling {
    sid: String,
    cookie: String,
    /// Packets that wait for the next post.
    outbox: Vec<u8>,
    is_polling: bool,
    is_posting: bool,
    probe: Probe,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Probe {
    #[default]
    None,
    /// The WebSocket is opening while polling continues.
    Opening,
    /// The server has answered the probe. The upgrade completes once no request is outstanding.
    Answered,
}

/// The parts of the swarm that a client uses.
pub(super) struct Context<'a> {
    pub(super) epoll: &'a OwnedFd,
    pub(super) dial: &'a Dial,
    pub(super) sources: &'a mut Sources,
    pub(super) received_bytes: &'a mut u64,
}

/// A received message, apart from its bytes, and the places to which it is passed.
struct Heard<'r, 'c, S> {
    context: &'r mut Context<'c>,
    replies: &'r mut Replies,
    sink: &'r mut S,
    now: Nanos,
}

/// Splits an event's token into the client's index and the rest, which the client checks.
pub(super) fn of_token(token: u64) -> (usize, u64) {
    ((token >> 32) as usize, token & 0xffff_ffff)
}

impl Client {
    pub(super) fn new(index: usize) -> Self {
        Self {
            index,
            generation: 0,
            target: 0,
            links: [None, None, None],
            stage: Stage::Opening,
            is_on_websocket: false,
            polling: None,
            fragments: Vec::new(),
            auth: String::new(),
            alive: 0,
        }
    }

    pub(super) fn open(&mut self, context: &mut Context<'_>, target: usize) -> Result<(), End> {
        self.drop_links();
        self.target = target;
        self.alive = clock::now();
        self.stage = Stage::Opening;
        if context.dial.transport == Transport::Websocket {
            self.is_on_websocket = true;
            self.open_websocket(context)
        } else {
            self.is_on_websocket = false;
            self.polling = Some(Box::default());
            self.poll(context)
        }
    }

    pub(super) fn drop_links(&mut self) {
        self.generation = self.generation.wrapping_add(1) & 0x3fff_ffff;
        self.links = [None, None, None];
        self.polling = None;
        self.fragments = Vec::new();
    }

    pub(super) fn reset(&mut self) {
        self.links.iter().flatten().for_each(Link::reset_on_close);
        self.drop_links();
    }

    pub(super) fn stall(&self, epoll: &OwnedFd) {
        self.links
            .iter()
            .flatten()
            .for_each(|link| link.stall(epoll));
    }

    pub(super) fn is_lost(&self, scratch: &mut [u8]) -> bool {
        let mut links = self.links.iter().flatten().peekable();
        links.peek().is_none() || links.any(|link| link.is_closed(scratch))
    }

    /// Sends Engine.IO packets together.
    pub(super) fn send<'p>(
        &mut self,
        context: &mut Context<'_>,
        packets: impl Iterator<Item = &'p [u8]>,
    ) -> Result<(), End> {
        if self.is_on_websocket {
            let mut frames = Vec::new();
            packets.for_each(|packet| websocket::write(&mut frames, websocket::TEXT, packet));
            return self.send_on(WEBSOCKET, &frames);
        }
        let Some(polling) = &mut self.polling else {
            return Err(End::Closed);
        };
        for packet in packets {
            if !polling.outbox.is_empty() {
                polling.outbox.push(packet::SEPARATOR);
            }
            polling.outbox.extend_from_slice(packet);
        }
        if polling.outbox.len() > MOST_OUTBOX_BYTES {
            return Err(End::Stuck);
        }
        self.post(context)
    }

    /// Handles an event on one of the client's connections.
    pub(super) fn happened(
        &mut self,
        token: u64,
        flags: EventFlags,
        context: &mut Context<'_>,
        buffer: &mut Vec<u8>,
        replies: &mut Replies,
        sink: &mut impl Sink,
    ) -> Result<(), End> {
        let (generation, slot) = ((token >> 2) as u32, token as usize & 3);
        if generation != self.generation {
            return Ok(());
        }
        let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        if flags.contains(EventFlags::OUT) || failed {
            let Some(link) = self.links.get_mut(slot).and_then(Option::as_mut) else {
                return Ok(());
            };
            link.writable()?;
        }
        if !flags.contains(EventFlags::IN) && !failed {
            return Ok(());
        }
        // An end of stream that arrives with data causes no event of its own.
        let to_the_end = failed || flags.contains(EventFlags::RDHUP);
        // A client that was dropped in the meantime has no link any more.
        while let Some(link) = self.links[slot].as_mut() {
            let filled = link.read(buffer)?;
            let now = clock::now();
            if filled.received > 0 {
                self.alive = now;
            }
            let bytes = &buffer[..filled.bytes];
            *context.received_bytes += filled.received as u64;
            let mut heard = Heard {
                context,
                replies,
                sink,
                now,
            };
            if slot == WEBSOCKET {
                self.read_websocket(bytes, &mut heard)?;
                if filled.has_ended {
                    return Err(End::Closed);
                }
            } else {
                self.read_http(slot, bytes, filled.has_ended, &mut heard)?;
            }
            if !replies.ends.is_empty() {
                let sent = self.send(context, replies.iter());
                replies.clear();
                sent?;
            }
            if !filled.has_more && (filled.received == 0 || !to_the_end) {
                break;
            }
        }
        Ok(())
    }

    fn read_websocket(
        &mut self,
        bytes: &[u8],
        heard: &mut Heard<'_, '_, impl Sink>,
    ) -> Result<(), End> {
        let mut rest = bytes;
        if self.is_awaiting_upgrade() {
            let Some(head_end) = http::head_end(rest) else {
                self.keep(WEBSOCKET, rest);
                return Ok(());
            };
            let head = self.check_upgrade(&rest[..head_end])?;
            if let Some(node) = &head.node {
                heard.sink.led_to(self.index, node);
            }
            rest = &rest[head_end..];
            self.begin_on_websocket()?;
        }
        while !rest.is_empty() {
            match websocket::scan(rest) {
                Scan::Frame {
                    opcode: websocket::TEXT,
                    is_final: true,
                    payload_start,
                    end,
                } => {
                    self.message(&rest[payload_start..end], heard)?;
                    rest = &rest[end..];
                }
                Scan::Frame {
                    opcode,
                    is_final,
                    payload_start,
                    end,
                } => {
                    let payload = &rest[payload_start..end];
                    self.other_frame(opcode, is_final, payload, heard)?;
                    rest = &rest[end..];
                }
                Scan::Partial => {
                    self.keep(WEBSOCKET, rest);
                    break;
                }
                Scan::Invalid => {
                    return Err(End::Protocol("bytes that are no frame for a client".into()));
                }
            }
        }
        Ok(())
    }

    fn other_frame(
        &mut self,
        opcode: u8,
        is_final: bool,
        payload: &[u8],
        heard: &mut Heard<'_, '_, impl Sink>,
    ) -> Result<(), End> {
        match opcode {
            websocket::TEXT | websocket::CONTINUATION => {
                if self.fragments.len() + payload.len() > websocket::LONGEST_MESSAGE_BYTES {
                    return Err(End::Protocol("an endless message".into()));
                }
                self.fragments.extend_from_slice(payload);
                if is_final {
                    let message = std::mem::take(&mut self.fragments);
                    self.message(&message, heard)?;
                }
                Ok(())
            }
            websocket::PING => {
                let mut pong = Vec::new();
                websocket::write(&mut pong, websocket::PONG, payload);
                self.send_on(WEBSOCKET, &pong)
            }
            websocket::PONG => Ok(()),
            websocket::BINARY => {
                heard.sink.nonsense(self.index);
                Ok(())
            }
            websocket::CLOSE => Err(End::Closed),
            _ => Err(End::Protocol(format!(
                "a frame of the unknown kind {opcode}"
            ))),
        }
    }

    fn read_http(
        &mut self,
        slot: usize,
        bytes: &[u8],
        has_ended: bool,
        heard: &mut Heard<'_, '_, impl Sink>,
    ) -> Result<(), End> {
        let Some(polling) = &mut self.polling else {
            return Ok(());
        };
        let is_awaited = if slot == POLLS {
            polling.is_polling
        } else {
            polling.is_posting
        };
        if bytes.is_empty() && has_ended && !is_awaited {
            // A server may close an idle connection.
            self.links[slot] = None;
            return Ok(());
        }
        let answer = match http::read(bytes, has_ended) {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                self.keep(slot, bytes);
                return Ok(());
            }
            Err(_) if has_ended => return Err(End::Closed),
            Err(_) => return Err(End::Protocol("a response that is not HTTP".into())),
        };
        if !answer.is_kept || has_ended {
            self.links[slot] = None;
        }
        if answer.status != 200 {
            let body = String::from_utf8_lossy(&answer.body[..answer.body.len().min(200)]);
            return Err(End::Rejected(format!("status {}: {body}", answer.status)));
        }
        if !answer.cookies.is_empty() && polling.sid.is_empty() {
            polling.cookie = answer.cookies;
        }
        if slot == POSTS {
            polling.is_posting = false;
            self.post(heard.context)?;
        } else {
            polling.is_polling = false;
            for message in packet::split_payload(&answer.body) {
                self.message(message, heard)?;
            }
            self.poll(heard.context)?;
        }
        self.take_over(heard)
    }

    /// Handles one Engine.IO packet.
    fn message(&mut self, message: &[u8], heard: &mut Heard<'_, '_, impl Sink>) -> Result<(), End> {
        match message {
            [b'4', rest @ ..] => self.packet(rest, heard),
            b"2" => {
                heard.replies.packet(|out| out.push(b'3'));
                Ok(())
            }
            b"3probe" => {
                if let Some(polling) = &mut self.polling {
                    polling.probe = Probe::Answered;
                }
                self.take_over(heard)
            }
            b"6" => Ok(()),
            b"1" => Err(End::Closed),
            [b'0', opening @ ..] if self.stage == Stage::Opening => {
                self.opened(opening, heard.context)
            }
            _ => {
                heard.sink.nonsense(self.index);
                Ok(())
            }
        }
    }

    fn packet(&mut self, bytes: &[u8], heard: &mut Heard<'_, '_, impl Sink>) -> Result<(), End> {
        let Some(packet) = packet::read(bytes, &heard.context.dial.namespace) else {
            heard.sink.nonsense(self.index);
            return Ok(());
        };
        match packet.kind {
            Kind::Event | Kind::Ack | Kind::Binary => {
                heard
                    .sink
                    .packet(self.index, packet, heard.now, heard.replies);
                Ok(())
            }
            Kind::Connect if self.stage == Stage::Connecting => {
                self.stage = Stage::Connected;
                heard.sink.admitted(self.index, packet.body);
                self.announce(heard);
                Ok(())
            }
            Kind::Connect => {
                heard.sink.nonsense(self.index);
                Ok(())
            }
            Kind::Disconnect => Err(End::Disconnected),
            Kind::ConnectError => {
                let reason = String::from_utf8_lossy(packet.body);
                Err(End::Rejected(format!("the namespace refuses: {reason}")))
            }
        }
    }

    /// The session is open: connects to the namespace, and starts the upgrade.
    fn opened(&mut self, opening: &[u8], context: &mut Context<'_>) -> Result<(), End> {
        let opening: Value = serde_json::from_slice(opening)
            .map_err(|_| End::Protocol("an opening packet that is not JSON".into()))?;
        self.stage = Stage::Connecting;
        if let Some(polling) = &mut self.polling {
            let sid = opening["sid"].as_str().unwrap_or_default();
            sid.clone_into(&mut polling.sid);
            if context.dial.relayed {
                self.target = (self.target + 1) % context.dial.targets.len();
                self.links[POLLS] = None;
            }
            if context.dial.transport == Transport::Upgrade {
                let upgrades = opening["upgrades"].as_array();
                if !upgrades.is_some_and(|all| all.iter().any(|one| one == "websocket")) {
                    return Err(End::Rejected("no upgrade to WebSocket is offered".into()));
                }
                polling.probe = Probe::Opening;
                self.open_websocket(context)?;
            }
        }
        let mut connect = Vec::new();
        packet::write_head(&mut connect, b'0', &context.dial.namespace, None);
        let auth = [&self.auth, &context.dial.auth];
        let auth = auth.into_iter().find(|auth| !auth.is_empty());
        connect.extend_from_slice(auth.map_or(&[], |auth| auth.as_bytes()));
        self.send(context, [&connect[..]].into_iter())
    }

    fn announce(&mut self, heard: &mut Heard<'_, '_, impl Sink>) {
        let transport = heard.context.dial.transport;
        let has_arrived = transport == Transport::Polling || self.is_on_websocket;
        if self.stage == Stage::Connected && has_arrived {
            self.stage = Stage::Announced;
            heard.sink.connected(self.index, heard.now, heard.replies);
        }
    }

    fn open_websocket(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        let target = &context.dial.targets[self.target];
        let (sid, cookie) = self.polling.as_ref().map_or(("", ""), |polling| {
            (polling.sid.as_str(), polling.cookie.as_str())
        });
        let query = target.query("websocket", sid);
        let request = websocket::request(&target.host, &query, cookie);
        self.open_link(WEBSOCKET, context)?;
        self.send_on(WEBSOCKET, request.as_bytes())
    }

    /// Whether the HTTP response of the WebSocket is still missing.
    fn is_awaiting_upgrade(&self) -> bool {
        self.links[WEBSOCKET]
            .as_ref()
            .is_some_and(|link| !link.has_upgraded)
    }

    fn check_upgrade(&self, head: &[u8]) -> Result<http::Head, End> {
        let Some(head) = http::Head::parse(head) else {
            return Err(End::Protocol("a response that is not HTTP".into()));
        };
        if head.status != 101 {
            return Err(End::Rejected(format!(
                "status {} to the upgrade",
                head.status
            )));
        }
        if head.accept.as_deref() != Some(websocket::ACCEPT) {
            return Err(End::Protocol("a wrong answer to the WebSocket key".into()));
        }
        Ok(head)
    }

    fn begin_on_websocket(&mut self) -> Result<(), End> {
        if let Some(link) = &mut self.links[WEBSOCKET] {
            link.has_upgraded = true;
        }
        if self.polling.is_some() {
            let mut probe = Vec::new();
            websocket::write(&mut probe, websocket::TEXT, b"2probe");
            self.send_on(WEBSOCKET, &probe)?;
        }
        Ok(())
    }

    /// Completes the upgrade once the probe is answered and no request is outstanding.
    fn take_over(&mut self, heard: &mut Heard<'_, '_, impl Sink>) -> Result<(), End> {
        let is_free = self.polling.as_ref().is_some_and(|polling| {
            polling.probe == Probe::Answered && !polling.is_polling && !polling.is_posting
        });
        if !is_free {
            return Ok(());
        }
        let polling = self.polling.take().unwrap_or_default();
        self.links[POLLS] = None;
        self.links[POSTS] = None;
        self.is_on_websocket = true;
        let waiting = packet::split_payload(&polling.outbox).filter(|packet| !packet.is_empty());
        self.send(heard.context, [&b"5"[..]].into_iter().chain(waiting))?;
        self.announce(heard);
        Ok(())
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        let Some(polling) = &mut self.polling else {
            return Ok(());
        };
        if polling.is_polling || polling.probe == Probe::Answered {
            return Ok(());
        }
        polling.is_polling = true;
        self.request(POLLS, context, None)
    }

    fn post(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        let Some(polling) = &mut self.polling else {
            return Ok(());
        };
        // Without a session there is no address to post to.
        if polling.is_posting || polling.outbox.is_empty() || polling.sid.is_empty() {
            return Ok(());
        }
        polling.is_posting = true;
        let body = std::mem::take(&mut polling.outbox);
        self.request(POSTS, context, Some(&body))
    }

    fn request(
        &mut self,
        slot: usize,
        context: &mut Context<'_>,
        body: Option<&[u8]>,
    ) -> Result<(), End> {
        if self.links[slot].is_none() {
            self.open_link(slot, context)?;
        }
        let Some(polling) = &self.polling else {
            return Ok(());
        };
        let target = &context.dial.targets[self.target];
        let query = target.query("polling", &polling.sid);
        let mut request = Vec::new();
        http::request(&mut request, &target.host, &query, &polling.cookie, body);
        self.send_on(slot, &request)
    }

    fn open_link(&mut self, slot: usize, context: &mut Context<'_>) -> Result<(), End> {
        let token = (self.index as u64) << 32 | u64::from(self.generation) << 2 | slot as u64;
        let address = context.dial.targets[self.target].address;
        let link = Link::open(context.epoll, context.sources, address, token)?;
        self.links[slot] = Some(link);
        Ok(())
    }

    fn send_on(&mut self, slot: usize, bytes: &[u8]) -> Result<(), End> {
        match &mut self.links[slot] {
            Some(link) => link.send(bytes),
            None => Err(End::Closed),
        }
    }

    fn keep(&mut self, slot: usize, bytes: &[u8]) {
        if let Some(link) = &mut self.links[slot] {
            link.keep(bytes);
        }
    }
}

const WEBSOCKET: usize = 0;
const POLLS: usize = 1;
const POSTS: usize = 2;

/// Maximum size of a post, below the limit of servers.
const MOST_OUTBOX_BYTES: usize = 900_000;
