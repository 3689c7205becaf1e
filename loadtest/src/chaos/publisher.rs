//! Publishers: each publishes numbered messages to one room through the HTTP API of a node, and awaits the result
//! of each before the next.
//!
//! A call that has certainly had no effect is repeated, at another node if this one is away. In a journal, every call
//! has an idempotency key and is repeated until it is accepted, because it is published at most once under the key.

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use super::{
    Mode,
    account::{Publication, Sent, Told},
    stage::{KEY, NODES, Places},
};
use crate::{clock, codec::http};

pub(super) struct Publisher {
    pub(super) mode: Mode,
    /// Its index among the publishers of the mode.
    pub(super) index: usize,
    pub(super) room: usize,
    pub(super) pause: Duration,
    pub(super) places: Arc<Places>,
    pub(super) is_over: Arc<AtomicBool>,
}

impl Publisher {
    /// Publishes until the run is over.
    pub(super) fn run(self) -> Publication {
        let mut publication = Publication {
            room: self.room,
            sent: Vec::new(),
        };
        while !self.is_over.load(Relaxed) {
            if let Some(sent) = self.publish(publication.sent.len()) {
                publication.sent.push(sent);
            }
            thread::sleep(self.pause);
        }
        publication
    }

    /// Publishes one message. `None`: the run is over, and nobody has got it.
    fn publish(&self, number: usize) -> Option<Sent> {
        let begin = clock::now();
        let is_journaled = self.mode != Mode::Plain;
        let mut tries = 0;
        let sent = |via, told| Sent {
            via,
            begin,
            end: clock::now(),
            told,
        };
        // The node of a call that may have had an effect.
        let mut unknown = None;
        let mut over = None;
        loop {
            let node = self.places.up_from((self.index + tries) % NODES);
            let found = node.and_then(|node| Some((node, self.places.nodes[node].addresses()?)));
            if let Some((via, addresses)) = found {
                match self.call(addresses.internal, number) {
                    Some(told) if told == Told::Accepted || !is_journaled => {
                        return Some(sent(via, told));
                    }
                    Some(Told::Unknown) => unknown = Some(via),
                    _ => {}
                }
            }
            if self.is_over.load(Relaxed) {
                let via = unknown?;
                let over = *over.get_or_insert_with(clock::now);
                if clock::now() - over > clock::span(FINISH) {
                    return Some(sent(via, Told::Unknown));
                }
            }
            tries += 1;
            thread::sleep(RETRY);
        }
    }

    fn call(&self, node: SocketAddr, number: usize) -> Option<Told> {
        let args = format!("[{},{number}]", self.index);
        let key = match self.mode {
            Mode::Plain => String::new(),
            mode => {
                let (namespace, index) = (mode.namespace(), self.index);
                format!("Idempotency-Key: {namespace}-{index}-{number}\r\n")
            }
        };
        emit(node, self.mode, EVENT, &args, self.room, &key)
    }
}

/// Has a node emit an event to a room. `more` is a header line, or nothing. `None`: the node has not got the call.
fn emit(
    node: SocketAddr,
    mode: Mode,
    event: &str,
    args: &str,
    room: usize,
    more: &str,
) -> Option<Told> {
    let namespace = mode.namespace();
    let body = format!(
        r#"{{"namespace":"{namespace}","event":"{event}","args":{args},"rooms":["r{room}"]}}"#
    );
    let request = format!(
        "POST /api/emit HTTP/1.1\r\nHost: {node}\r\nAuthorization: Bearer {KEY}\r\n\
             Content-Type: application/json\r\n{more}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect_timeout(&node, CONNECT).ok()?;
    let reply = stream
        .set_read_timeout(Some(REPLY))
        .and_then(|()| http::exchange(&mut stream, request.as_bytes()));
    reply.map_or(Some(Told::Unknown), |answer| {
        read_answer(answer.status, &answer.body)
    })
}

/// Has a node of another cluster emit to the rooms. Clients of the cluster must not notice.
pub(super) fn emit_as_stranger(node: SocketAddr, mode: Mode) {
    // Whether it reaches anybody there is of no interest.
    let _ = emit(node, mode, "stranger", "[]", 0, "");
}

/// The meaning of a response of the API. `None`: the node has done nothing.
fn read_answer(status: u16, body: &[u8]) -> Option<Told> {
    let text = String::from_utf8_lossy(body);
    match status {
        200 => Some(Told::Accepted),
        503 if text.contains(":unconfirmed\"") => Some(Told::Unknown),
        503 if text.contains(":other-nodes\"") => Some(Told::Refused),
        // Too many calls, or a node that starts.
        429 | 503 => None,
        _ => Some(Told::Unknown),
    }
}

/// The event of all messages.
pub(super) const EVENT: &str = "m";

const CONNECT: Duration = Duration::from_secs(1);
/// Longer than a call may take, so the node's own result arrives.
const REPLY: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_millis(100);
/// How long a call whose end is open is repeated after the run. The key of a call that a node has not finished is free
/// again after 30 s.
const FINISH: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_whether_the_message_may_have_been_published() {
        let problem = |name: &str| {
            let body = format!(r#"{{"type":"urn:roomcast:problem:{name}","detail":"no reply"}}"#);
            read_answer(503, body.as_bytes())
        };
        assert_eq!(problem("other-nodes"), Some(Told::Refused));
        assert_eq!(problem("unconfirmed"), Some(Told::Unknown));
        assert_eq!(read_answer(504, b""), Some(Told::Unknown));
        assert_eq!(read_answer(503, b"busy"), None);
    }
}
