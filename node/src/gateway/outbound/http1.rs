//! Posts over HTTP/1.1 without TLS: the requests of most hooks, one for each event.
//!
//! ```text
//! post ─► idle connection, or a new one ─► write ─► read ─► whole response ─► idle connection
//!                      ▲                     │
//!                      └ nothing was sent: the peer had closed it
//! ```
//!
//! The future of a request writes the request and reads the response by itself. So the task that waits
//! for the response is the one that the kernel's event wakes, and a request costs one call to write and
//! one to read. A client with a task for each connection, such as hyper's, costs about twice as much for
//! requests of this size: it passes request, head and body between two tasks, and wakes each of them
//! several times.
//!
//! A request whose future is dropped takes its connection with it, because its response may still come.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, StatusCode, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite as _},
    net::TcpStream,
    sync::Notify,
    time::sleep,
};
use tower::ServiceExt as _;

use super::{
    causes,
    response::{Reader, ResponseError, Whole},
};

/// Room for what is read at once. Most responses fit.
const READ_BYTES: usize = 4096;

/// The largest body that is copied behind its head.
const COPIED_BYTES: usize = 8 * 1024;

/// An idle connection keeps a buffer that is no larger.
const KEPT_BYTES: usize = 64 * 1024;

/// Into so many parts the time is divided that an idle connection is kept.
const PARTS: u32 = 8;

/// Why a request has no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    #[error("{0}")]
    Connect(String),
    #[error("the request cannot be sent: {0}")]
    Write(io::Error),
    #[error("the response cannot be read: {0}")]
    Read(io::Error),
    #[error("{0}")]
    Response(#[from] ResponseError),
}

/// Posts to one URL.
pub(crate) struct Http1Client {
    connector: HttpConnector,
    url: Uri,
    /// The request line and the host.
    opening: Vec<u8>,
    idle: Arc<Idle>,
}

impl Http1Client {
    /// A client that keeps idle connections for about this time at most.
    pub(crate) fn new(connector: HttpConnector, url: Uri, keep_alive: Duration) -> Self {
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let host = url.host().unwrap_or_default();
        let opening = match url.port_u16() {
            None | Some(80) => format!("POST {path} HTTP/1.1\r\nhost: {host}\r\n"),
            Some(port) => format!("POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\n"),
        };
        Self {
            connector,
            url,
            opening: opening.into_bytes(),
            idle: Arc::new(Idle {
                part: keep_alive / PARTS,
                kept: Mutex::default(),
                returned: Notify::new(),
            }),
        }
    }

    /// Posts a body of this length and these headers, and returns what `read` makes of the status and
    /// the body of the response, which may have `max` bytes. The body of an error's status may lack its end.
    pub(crate) async fn post<T>(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        max: usize,
        read: impl FnOnce(StatusCode, &[u8]) -> T,
    ) -> Result<T, PostError> {
        let mut head = self.head(headers, body.len());
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
            let mut reader = Reader::new(max);
            match connection.exchange(request, &mut reader).await {
                Ok(whole) => {
                    let body = reader.body(&connection.received, &whole);
                    let result = read(whole.status, body);
                    if whole.is_kept {
                        self.idle.put(connection);
                    }
                    return Ok(result);
                }
                // The peer has closed it, and its notice was under way.
                Err(Failed::Unsent(_)) if !is_new => {}
                Err(Failed::Unsent(error)) => return Err(PostError::Write(error)),
                Err(Failed::Other(error)) => return Err(error),
            }
        }
    }

    fn head(&self, headers: &HeaderMap, length: usize) -> Vec<u8> {
        let mut head = Vec::with_capacity(512 + length.min(COPIED_BYTES));
        head.extend(&self.opening);
        for (name, value) in headers {
            head.extend(name.as_str().as_bytes());
            head.extend(b": ");
            head.extend(value.as_bytes());
            head.extend(b"\r\n");
        }
        head.extend(b"content-length: ");
        head.extend(length.to_string().as_bytes());
        head.extend(b"\r\n\r\n");
        head
    }

    /// Opens a connection, or takes one that becomes idle first: a backend whose queue of new connections
    /// is full lets them wait for seconds. Returns whether the connection is new.
    async fn wait(&self) -> Result<(Connection, bool), PostError> {
        let mut connecting = pin!(self.connect());
        loop {
            tokio::select! {
                biased;
                connected = &mut connecting => return Ok((connected?, true)),
                () = self.idle.returned.notified() => {}
            }
            if let Some(connection) = self.idle.take() {
                return Ok((connection, false));
            }
        }
    }

    async fn connect(&self) -> Result<Connection, PostError> {
        let connecting = self.connector.clone().oneshot(self.url.clone());
        let stream = connecting.await;
        let stream = stream.map_err(|error| PostError::Connect(causes(&error)))?;
        Ok(Connection {
            stream: stream.into_inner(),
            received: Vec::new(),
        })
    }
}

/// Connections that have no request.
struct Idle {
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
    /// Parts of time that have gone by while there were any.
    now: u64,
    /// Whether a task closes those that are too old.
    is_swept: bool,
}

impl Idle {
    /// Takes the connection that was used last, because the others may then grow old.
    fn take(&self) -> Option<Connection> {
        loop {
            let (connection, _) = self.kept.lock().connections.pop()?;
            if connection.is_usable() {
                return Some(connection);
            }
        }
    }

    fn put(self: &Arc<Self>, mut connection: Connection) {
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

    /// Another part of time has gone by. Closes what is too old. Returns whether any connection is left.
    fn advance(&self) -> bool {
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

struct Connection {
    stream: TcpStream,
    /// The bytes that have arrived since the last request.
    received: Vec<u8>,
}

/// Why a connection has brought no response.
enum Failed {
    /// Not a byte of the request was sent, so it may be sent on another connection.
    Unsent(io::Error),
    Other(PostError),
}

impl Connection {
    /// Whether it is still open, as far as the kernel has told, and nothing has arrived unasked.
    fn is_usable(&self) -> bool {
        let read = self.stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a request and reads the response, which may come before all of the request was sent.
    async fn exchange(
        &mut self,
        request: [&[u8]; 2],
        reader: &mut Reader,
    ) -> Result<Whole, Failed> {
        let mut sending = Sending {
            parts: request,
            sent: 0,
            failure: None,
        };
        loop {
            let read = poll_fn(|cx| self.poll(cx, &mut sending)).await;
            let is_end = !matches!(read, Ok(1..));
            let whole = match read {
                Ok(_) => reader.read(&self.received, is_end).map_err(PostError::from),
                Err(error) => Err(PostError::Read(error)),
            };
            match (whole, sending.failure.take()) {
                (Ok(Some(mut whole)), _) => {
                    whole.is_kept &= sending.is_done();
                    return Ok(whole);
                }
                (_, Some(failure)) if sending.sent == 0 => return Err(Failed::Unsent(failure)),
                (_, Some(failure)) if is_end => {
                    return Err(Failed::Other(PostError::Write(failure)));
                }
                (Err(error), _) => return Err(Failed::Other(error)),
                (Ok(None), failure) => sending.failure = failure,
            }
        }
    }

    /// Sends what the kernel takes and reads what has arrived. Returns how much that is; zero at the end.
    fn poll(&mut self, cx: &mut Context<'_>, sending: &mut Sending<'_>) -> Poll<io::Result<usize>> {
        sending.poll(cx, &mut self.stream);
        if sending.sent == 0 && sending.failure.is_some() {
            return Poll::Ready(Ok(0));
        }
        self.received.reserve(READ_BYTES);
        pin!(self.stream.read_buf(&mut self.received)).poll(cx)
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

    fn poll(&mut self, cx: &mut Context<'_>, stream: &mut TcpStream) {
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
mod tests {
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::TcpListener,
    };

    use super::*;
    use crate::gateway::outbound;

    impl Idle {
        fn is_any_usable(&self) -> bool {
            let kept = self.kept.lock();
            kept.connections.iter().any(|(one, _)| one.is_usable())
        }
    }

    /// A backend whose test decides about every byte.
    struct Backend(TcpListener);

    impl Backend {
        async fn start() -> Self {
            Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
        }

        fn client(&self, keep_alive: Duration) -> Arc<Http1Client> {
            let url = format!("http://{}/hook?a=b", self.0.local_addr().unwrap());
            let connector = outbound::tcp_connector(Duration::from_secs(30));
            let url = url.parse().unwrap();
            Arc::new(Http1Client::new(connector, url, keep_alive))
        }

        async fn accept(&self) -> Peer {
            Peer(BufReader::new(self.0.accept().await.unwrap().0))
        }
    }

    struct Peer(BufReader<TcpStream>);

    impl Peer {
        /// Reads a request. Returns its lines and its body.
        async fn request(&mut self) -> (Vec<String>, String) {
            let mut lines = Vec::new();
            let mut length = 0;
            loop {
                let mut line = String::new();
                self.0.read_line(&mut line).await.unwrap();
                let line = line.trim_end();
                if line.is_empty() {
                    break;
                }
                if let Some(text) = line.strip_prefix("content-length: ") {
                    length = text.parse().unwrap();
                }
                lines.push(line.to_owned());
            }
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.unwrap();
            (lines, String::from_utf8(body).unwrap())
        }

        async fn send(&mut self, text: &str) {
            self.0.get_mut().write_all(text.as_bytes()).await.unwrap();
        }

        async fn respond(&mut self, body: &str) {
            let length = body.len();
            self.send(&format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .await;
        }

        async fn is_closed(&mut self) -> bool {
            self.0.read(&mut [0; 1]).await.is_ok_and(|count| count == 0)
        }
    }

    const LONG: Duration = Duration::from_secs(3600);

    fn post(
        client: &Arc<Http1Client>,
        body: &str,
    ) -> tokio::task::JoinHandle<Result<(u16, String), PostError>> {
        let (client, body) = (Arc::clone(client), body.to_owned());
        tokio::spawn(async move {
            let mut headers = HeaderMap::new();
            headers.insert("x-a", "b".parse().unwrap());
            let read = |status: StatusCode, body: &[u8]| {
                (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
            };
            client.post(&headers, body.as_bytes(), 1 << 20, read).await
        })
    }

    fn ok(body: &str) -> (u16, String) {
        (200, body.to_owned())
    }

    #[tokio::test]
    async fn requests_one_after_the_other_share_a_connection() {
        let backend = Backend::start().await;
        let client = backend.client(LONG);
        let first = post(&client, "one");
        let mut peer = backend.accept().await;
        let (lines, body) = peer.request().await;
        let host = backend.0.local_addr().unwrap();
        let wanted = [
            "POST /hook?a=b HTTP/1.1",
            &format!("host: {host}"),
            "x-a: b",
            "content-length: 3",
        ];
        assert_eq!(
            (lines, body.as_str()),
            (wanted.map(str::to_owned).to_vec(), "one")
        );
        peer.respond("1").await;
        assert_eq!(first.await.unwrap().unwrap(), ok("1"));
        let second = post(&client, "");
        assert_eq!(peer.request().await.1, "");
        // In pieces, with what is not for the eyes of the caller.
        peer.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chu")
            .await;
        peer.send("nked\r\n\r\n3\r\na").await;
        peer.send("bc\r\n0\r\n\r\n").await;
        assert_eq!(second.await.unwrap().unwrap(), ok("abc"));
        let long = "x".repeat(2 * COPIED_BYTES);
        let third = post(&client, &long);
        assert_eq!(peer.request().await.1, long);
        peer.respond("3").await;
        assert_eq!(third.await.unwrap().unwrap(), ok("3"));
    }

    #[tokio::test]
    async fn a_request_under_way_has_its_connection_alone_and_takes_it_with_it() {
        let backend = Backend::start().await;
        let client = backend.client(LONG);
        let first = post(&client, "one");
        let mut one = backend.accept().await;
        one.request().await;
        let second = post(&client, "two");
        let mut two = backend.accept().await;
        assert_eq!(two.request().await.1, "two");
        first.abort();
        assert!(one.is_closed().await);
        two.respond("2").await;
        assert_eq!(second.await.unwrap().unwrap(), ok("2"));
    }

    #[tokio::test]
    async fn a_connection_that_the_backend_has_closed_is_not_used_again() {
        let backend = Backend::start().await;
        let client = backend.client(LONG);
        for close in ["connection: close\r\n", ""] {
            let first = post(&client, "one");
            let mut peer = backend.accept().await;
            peer.request().await;
            peer.send(&format!(
                "HTTP/1.1 200 OK\r\n{close}content-length: 1\r\n\r\n1"
            ))
            .await;
            assert_eq!(first.await.unwrap().unwrap(), ok("1"));
            if !close.is_empty() {
                assert!(peer.is_closed().await);
                continue;
            }
            drop(peer);
            // The notice of the end may be under way.
            while client.idle.is_any_usable() {
                tokio::task::yield_now().await;
            }
        }
        let second = post(&client, "two");
        let mut peer = backend.accept().await;
        assert_eq!(peer.request().await.1, "two");
        peer.respond("2").await;
        assert_eq!(second.await.unwrap().unwrap(), ok("2"));
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_before_its_time_is_over() {
        let backend = Backend::start().await;
        let client = backend.client(LONG);
        let first = post(&client, "one");
        let mut peer = backend.accept().await;
        peer.request().await;
        peer.respond("1").await;
        first.await.unwrap().unwrap();
        for _ in 1..PARTS {
            assert!(client.idle.advance());
        }
        assert!(client.idle.is_any_usable());
        assert!(!client.idle.advance());
        assert!(peer.is_closed().await);
        let client = backend.client(Duration::from_millis(80));
        let again = post(&client, "two");
        let mut peer = backend.accept().await;
        peer.request().await;
        peer.respond("2").await;
        again.await.unwrap().unwrap();
        assert!(peer.is_closed().await);
    }

    #[tokio::test]
    async fn a_response_may_come_before_the_request_was_sent() {
        let backend = Backend::start().await;
        let client = backend.client(LONG);
        // More than the buffers of both sides take.
        let first = post(&client, &"x".repeat(64 << 20));
        let mut peer = backend.accept().await;
        peer.send("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
            .await;
        assert_eq!(first.await.unwrap().unwrap(), (413, "no".to_owned()));
        let second = post(&client, "two");
        let mut peer = backend.accept().await;
        assert_eq!(peer.request().await.1, "two");
        peer.respond("2").await;
        assert_eq!(second.await.unwrap().unwrap(), ok("2"));
    }

    #[tokio::test]
    async fn an_end_without_a_response_is_an_error_that_is_not_repeated() {
        let backend = Backend::start().await;
        let client = backend.client(LONG);
        let first = post(&client, "one");
        let mut peer = backend.accept().await;
        peer.request().await;
        peer.respond("1").await;
        first.await.unwrap().unwrap();
        let second = post(&client, "two");
        peer.request().await;
        drop(peer);
        let error = second.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("ended before the response"), "{error}");
        drop(backend);
        let error = post(&client, "three").await.unwrap().unwrap_err();
        assert!(matches!(error, PostError::Connect(_)), "{error}");
    }
}
