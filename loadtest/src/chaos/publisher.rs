//! Publishers: each publishes numbered messages to one room through the HTTP API of a node, and awaits the result
//! of each before the next.
//!
//! A call that has certainly had no effect is repeated, at another node if this one is away. In a journal, a
//! refused message is repeated as well, because it was neither stored nor delivered.

use std::{
    io::{Read as _, Write as _},
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

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    Accepted,
    /// The node has failed to pass the message on.
    Refused,
    Unknown,
    /// The node has not got the call.
    Missed,
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
        let mut tries = 0;
        loop {
            let node = self.places.up_from((self.index + tries) % NODES);
            let found = node.and_then(|node| Some((node, self.places.nodes[node].addresses()?)));
            if let Some((via, addresses)) = found {
                let told = match self.call(addresses.internal, number) {
                    Called::Accepted => Some(Told::Accepted),
                    Called::Unknown => Some(Told::Unknown),
                    Called::Refused if self.mode == Mode::Plain => Some(Told::Refused),
                    Called::Refused | Called::Missed => None,
                };
                let end = clock::now();
                if let Some(told) = told {
                    return Some(Sent {
                        via,
                        begin,
                        end,
                        told,
                    });
                }
            }
            if self.is_over.load(Relaxed) {
                return None;
            }
            tries += 1;
            thread::sleep(RETRY);
        }
    }

    fn call(&self, node: SocketAddr, number: usize) -> Called {
        let args = format!("[{},{number}]", self.index);
        emit(node, self.mode, EVENT, &args, self.room)
    }
}

/// Has a node emit an event to a room.
fn emit(node: SocketAddr, mode: Mode, event: &str, args: &str, room: usize) -> Called {
    let namespace = mode.namespace();
    let body = format!(
        r#"{{"namespace":"{namespace}","event":"{event}","args":{args},"rooms":["r{room}"]}}"#
    );
    let request = format!(
        "POST /api/emit HTTP/1.1\r\nHost: {node}\r\nAuthorization: Bearer {KEY}\r\n\
             Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let Ok(mut stream) = TcpStream::connect_timeout(&node, CONNECT) else {
        return Called::Missed;
    };
    let reply = exchange(&mut stream, request.as_bytes());
    reply.map_or(Called::Unknown, |answer| {
        read_answer(answer.status, &answer.body)
    })
}

/// Has a node of another cluster emit to the rooms. Clients of the cluster must not notice.
pub(super) fn emit_as_stranger(node: SocketAddr, mode: Mode) {
    // Whether it reaches anybody there is of no interest.
    let _ = emit(node, mode, "stranger", "[]", 0);
}

fn exchange(stream: &mut TcpStream, request: &[u8]) -> Option<http::Answer> {
    stream.set_read_timeout(Some(REPLY)).ok()?;
    stream.write_all(request).ok()?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer).ok()?;
        bytes.extend_from_slice(&buffer[..count]);
        match http::read(&bytes, count == 0) {
            http::Read::Whole(answer) => return Some(answer),
            http::Read::Partial if count > 0 => {}
            _ => return None,
        }
    }
}

/// What a response of the API means.
fn read_answer(status: u16, body: &[u8]) -> Called {
    let text = String::from_utf8_lossy(body);
    match status {
        200 => Called::Accepted,
        503 if text.contains(":unconfirmed\"") => Called::Unknown,
        503 if text.contains(":other-nodes\"") => Called::Refused,
        // Too many calls, or a node that starts: it has done nothing.
        429 | 503 => Called::Missed,
        _ => Called::Unknown,
    }
}

/// The event of all messages.
pub(super) const EVENT: &str = "m";

const CONNECT: Duration = Duration::from_secs(1);
/// Longer than a call may take, so the node's own result arrives.
const REPLY: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_whether_the_message_may_have_been_published() {
        let problem = |name: &str| {
            let body = format!(r#"{{"type":"urn:roomcast:problem:{name}","detail":"no reply"}}"#);
            read_answer(503, body.as_bytes())
        };
        assert_eq!(problem("other-nodes"), Called::Refused);
        assert_eq!(problem("unconfirmed"), Called::Unknown);
        assert_eq!(read_answer(504, b""), Called::Unknown);
        assert_eq!(read_answer(503, b"busy"), Called::Missed);
    }
}
