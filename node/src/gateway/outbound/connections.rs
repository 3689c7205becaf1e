//! Connections of HTTP/1.1 to one peer, each for one request at a time.
//!
//! ```text
//! request ─► idle connection, or a new one ─► write ─► read ─► response ─► idle connection
//!                         ▲                     │
//!                         └ nothing was sent: the peer had closed it
//! ```
//!
//! The future of a request writes the request and reads the response by itself. So the
//! task that waits for the response is the one that the kernel's event wakes, and a
//! request costs one call to write and one to read. A client with a task for each
//! connection, such as hyper's, costs about twice as much for small requests: it passes
//! request, head and body between two tasks, and wakes each of them several times.
//!
//! A request whose future is dropped takes its connection with it, because its response
//! may still come.
//!
//! **When a request is repeated.** Only if not a byte of it was sent, on a connection
//! that was idle: the peer had closed it before the request existed. Anything else may
//! have been carried out, and repeating it is the caller's decision.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use parking_lot::Mutex;
use tokio::{io::AsyncWrite as _, sync::Notify, time::sleep};

use super::{
    response::ResponseError,
    stream::{Connector, Stream, is_usable, poll_read},
};

/// Buffer space for one read. Most responses fit.
const READ_BYTES: usize = 4096;

/// The largest body that is copied after its head.
pub(super) const COPIED_BYTES: usize = 8 * 1024;

/// An idle connection keeps a buffer that is no larger.
const KEPT_BYTES: usize = 64 * 1024;

/// The number of parts into which the lifetime of an idle connection is divided.
pub(super) const PARTS: u32 = 8;

/// Why a request has no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Http1Error {
    #[error("{0}")]
    Connect(String),
    #[error("the request cannot be sent: {0}")]
    Write(io::Error),
    #[error("the response cannot be read: {0}")]
    Read(io::Error),
    #[error("{0}")]
    Response(#[from] ResponseError),
}

/// The connections to one peer.
pub(super) struct Connections {
    connector: Connector,
    url: Uri,
    pub(super) idle: Arc<Idle>,
}

/// The outcome of a request on a connection.
pub(super) struct Exchanged<T> {
    pub(super) connection: Connection,
    pub(super) response: T,
    /// Whether all of the request was sent.
    pub(super) is_sent: bool,
}

impl Connections {
    /// Opens connections to the peer of this URL, and keeps idle ones for about this time at most.
    pub(super) fn new(connector: Connector, url: Uri, keep_alive: Duration) -> Self {
        Self {
            connector,
            url,
            idle: Arc::new(Idle {
                part: keep_alive / PARTS,
                kept: Mutex::default(),
                returned: Notify::new(),
            }),
        }
    }

    /// Sends a request and returns the result of `read` for the received bytes, once it has one.
    /// The second argument of `read` is whether nothing more will arrive.
    pub(super) async fn exchange<T>(
        &self,
        mut head: Vec<u8>,
        body: &[u8],
        mut read: impl FnMut(&[u8], bool) -> Result<Option<T>, ResponseError>,
    ) -> Result<Exchanged<T>, Http1Error> {
        // A copy costs less than a list of parts costs the kernel.
        let rest = if body.len() <= COPIED_BYTES {
            head.extend(body);
            &[]
        } else {
            body
        };
        let request = [&*head, rest];
        loop {
            let (mut connection, is_new) = match self.idle.take() {
                Some(connection) => (connection, false),
                // Rare, and its future is large.
                None => Box::pin(self.wait()).await?,
            };
            match connection.exchange(request, &mut read).await {
                Ok((response, is_sent)) => {
                    return Ok(Exchanged {
                        connection,
                        response,
                        is_sent,
                    });
                }
                // The peer has closed it, and its notice was under way.
                Err(Failed::Unsent(_)) if !is_new => {}
                Err(Failed::Unsent(error)) => return Err(Http1Error::Write(error)),
                Err(Failed::Other(error)) => return Err(error),
            }
        }
    }

    /// Keeps a connection for another request.
    pub(super) fn put(&self, connection: Connection) {
        self.idle.put(connection);
    }

    /// Opens a connection, or takes one that becomes idle first: a backend whose queue of
    /// new connections is full lets them wait for seconds. Returns whether the connection
    /// is new.
    async fn wait(&self) -> Result<(Connection, bool), Http1Error> {
        let mut connecting = pin!(self.connect());
        loop {
            tokio::select! {
                // A new connection is for this request, so it goes first.
                biased;
                connected = &mut connecting => return Ok((connected?, true)),
                () = self.idle.returned.notified() => {}
            }
            if let Some(connection) = self.idle.take() {
                return Ok((connection, false));
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Http1Error> {
        let connecting = self.connector.connect(self.url.clone());
        Ok(Connection {
            stream: connecting.await.map_err(Http1Error::Connect)?,
            received: Vec::new(),
        })
    }
}

/// Connections that have no request.
pub(super) struct Idle {
    /// A part of the time that one is kept.
    part: Duration,
    kept: Mutex<Kept>,
    /// Wakes a request that waits for a connection. Another one may take the connection first.
    returned: Notify,
}

#[derive(Default)]
struct Kept {
    /// The one that was used last is at the end. Each has the part of time in which it became idle.
    connections: Vec<(Connection, u64)>,
    /// Parts of the lifetime that have passed while there were any.
    now: u64,
    /// Whether a task closes those that are too old.
    is_swept: bool,
}

impl Idle {
    /// Takes the connection that was used last, because the others may then grow old.
    fn take(&self) -> Option<Connection> {
        loop {
            let (mut connection, _) = self.kept.lock().connections.pop()?;
            if is_usable(&mut connection.stream) {
                return Some(connection);
            }
        }
    }

    pub(super) fn put(self: &Arc<Self>, mut connection: Connection) {
        connection.received.clear();
        connection.received.shrink_to(KEPT_BYTES);
        let mut kept = self.kept.lock();
        let now = kept.now;
        kept.connections.push((connection, now));
        if !std::mem::replace(&mut kept.is_swept, true) {
            let (idle, part) = (Arc::downgrade(self), self.part);
            tokio::spawn(sweep(idle, part));
        }
        drop(kept);
        self.returned.notify_one();
    }

    /// Another part of the lifetime has passed. Closes connections that are too old. Returns
    /// whether any connection is left.
    pub(super) fn advance(&self) -> bool {
        let mut kept = self.kept.lock();
        kept.now += 1;
        let now = kept.now;
        // The part in which it became idle has not gone by as a whole.
        let is_old = |(_, since): &(Connection, u64)| now - since >= u64::from(PARTS);
        let old = kept
            .connections
            .iter()
            .take_while(|one| is_old(one))
            .count();
        let old: Vec<_> = kept.connections.drain(..old).collect();
        kept.is_swept = !kept.connections.is_empty();
        let is_any = kept.is_swept;
        drop(kept);
        drop(old);
        is_any
    }
}

/// Closes connections that are idle for too long, as long as there are any.
async fn sweep(idle: Weak<Idle>, part: Duration) {
    loop {
        sleep(part).await;
        if !idle.upgrade().is_some_and(|idle| idle.advance()) {
            return;
        }
    }
}

pub(super) struct Connection {
    pub(super) stream: Stream,
    /// The bytes that have arrived since the last request.
    pub(super) received: Vec<u8>,
}

/// Why a connection has brought no response.
enum Failed {
    /// Not a byte of the request was sent, so it may be sent on another connection.
    Unsent(io::Error),
    Other(Http1Error),
}

impl Connection {
    /// Sends a request and reads the response, which may come before all of the request
    /// was sent. Returns the response, and whether the request was sent.
    async fn exchange<T>(
        &mut self,
        request: [&[u8]; 2],
        mut of_received: impl FnMut(&[u8], bool) -> Result<Option<T>, ResponseError>,
    ) -> Result<(T, bool), Failed> {
        let mut sending = Sending {
            parts: request,
            sent: 0,
            failure: None,
        };
        loop {
            let read = poll_fn(|cx| self.poll(cx, &mut sending)).await;
            let is_end = !matches!(read, Ok(1..));
            let response = match read {
                Ok(_) => of_received(&self.received, is_end).map_err(Http1Error::from),
                Err(error) => Err(Http1Error::Read(error)),
            };
            match (response, sending.failure.take()) {
                (Ok(Some(response)), _) => return Ok((response, sending.is_done())),
                (_, Some(failure)) if sending.sent == 0 => return Err(Failed::Unsent(failure)),
                (_, Some(failure)) if is_end => {
                    return Err(Failed::Other(Http1Error::Write(failure)));
                }
                (Err(error), _) => return Err(Failed::Other(error)),
                // The peer may respond before it has read the request, so reading continues.
                (Ok(None), failure) => sending.failure = failure,
            }
        }
    }

    /// Sends as much as the kernel accepts, and reads the received bytes. Returns how much that is;
    /// zero at the end.
    fn poll(&mut self, cx: &mut Context<'_>, sending: &mut Sending<'_>) -> Poll<io::Result<usize>> {
        sending.poll(cx, &mut self.stream);
        if sending.sent == 0 && sending.failure.is_some() {
            return Poll::Ready(Ok(0));
        }
        self.received.reserve(READ_BYTES);
        poll_read(&mut self.stream, cx, &mut self.received)
    }
}

/// A request that is being sent.
struct Sending<'a> {
    /// Head and body, or both and nothing.
    parts: [&'a [u8]; 2],
    sent: usize,
    /// Why no more of it can be sent. There may be a response nevertheless, such as 413.
    failure: Option<io::Error>,
}

impl<'a> Sending<'a> {
    fn is_done(&self) -> bool {
        self.rest().iter().all(|part| part.is_empty())
    }

    fn rest(&self) -> [IoSlice<'a>; 2] {
        let [head, body] = self.parts;
        let of_body = self.sent.saturating_sub(head.len());
        [&head[self.sent.min(head.len())..], &body[of_body..]].map(IoSlice::new)
    }

    fn poll(&mut self, cx: &mut Context<'_>, stream: &mut Stream) {
        while self.failure.is_none() && !self.is_done() {
            let stream = Pin::new(&mut *stream);
            // With one call, so that the peer reads all of it at once, too.
            let written = match self.rest() {
                [part, rest] if rest.is_empty() => stream.poll_write(cx, &part),
                parts => stream.poll_write_vectored(cx, &parts),
            };
            match written {
                Poll::Ready(Ok(0)) => self.failure = Some(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => self.sent += count,
                Poll::Ready(Err(error)) => self.failure = Some(error),
                Poll::Pending => return,
            }
        }
    }
}

#[cfg(test)]
impl Idle {
    pub(super) fn is_any_usable(&self) -> bool {
        let mut kept = self.kept.lock();
        let mut connections = kept.connections.iter_mut();
        connections.any(|(one, _)| is_usable(&mut one.stream))
    }
}
