//! Requests over HTTP/1.1 whose responses are passed on as they arrive.
//!
//! ```text
//! request ─► head of the response ── 101 ─────────────────► the stream is the caller's
//!                   ├─ all of its body is there, as usual ─► idle connection
//!                   └─ ForwardedBody reads the rest ───────► idle connection
//! ```
//!
//! A body that is dropped before its end takes its connection with it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{BufMut as _, Bytes};
use http::{Response, StatusCode, Uri};
use hyper::body::{Body, Frame, SizeHint};

use super::{
    connections::{Connection, Connections, Exchanged, Http1Error},
    response::StreamedHead,
    stream::{Connector, Stream, poll_read},
};

/// The most bytes of a body that are read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Forwards requests to one peer.
pub(crate) struct ForwardClient(Arc<Connections>);

/// The response to a forwarded request.
pub(crate) enum Forwarded {
    Response(Response<ForwardedBody>),
    /// The peer has switched to another protocol: the response, the stream, and the bytes read from
    /// it after the response.
    Switched(Response<()>, Stream, Bytes),
}

impl ForwardClient {
    /// A client that keeps idle connections for about this time at most.
    pub(crate) fn new(connector: Connector, url: Uri, keep_alive: Duration) -> Self {
        Self(Arc::new(Connections::new(connector, url, keep_alive)))
    }

    /// Sends a request. `head` has everything up to the empty line. Only responses that
    /// state their length are accepted, so a request must not be one with the method
    /// HEAD.
    pub(crate) async fn send(&self, head: Vec<u8>, body: &[u8]) -> Result<Forwarded, Http1Error> {
        let Exchanged {
            mut connection,
            response: head,
            is_sent,
        } = self.0.exchange(head, body, StreamedHead::read).await?;
        let there = &connection.received[head.body_at..];
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let there = Bytes::copy_from_slice(there);
            return Ok(Forwarded::Switched(response, connection.stream, there));
        }
        let left = head.length.saturating_sub(there.len());
        // Bytes after the body were not requested.
        let is_kept = head.is_kept && is_sent && there.len() <= head.length;
        // Copied, so that the connection with its buffer can be given back before the
        // body is taken.
        let there = Bytes::copy_from_slice(&there[..there.len().min(head.length)]);
        let rest = match left {
            0 if is_kept => {
                self.0.put(connection);
                None
            }
            0 => None,
            _ => {
                connection.received.clear();
                Some(Rest {
                    connection,
                    left,
                    home: is_kept.then(|| Arc::clone(&self.0)),
                })
            }
        };
        let body = ForwardedBody { there, rest };
        Ok(Forwarded::Response(response.map(|()| body)))
    }
}

/// The body of a response, read from the peer while it is taken.
pub(crate) struct ForwardedBody {
    /// The bytes of the body that came with the head.
    there: Bytes,
    rest: Option<Rest>,
}

/// The part of a body that is still to come.
struct Rest {
    connection: Connection,
    left: usize,
    /// Where the connection is kept after the body, if it is.
    home: Option<Arc<Connections>>,
}

impl Rest {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let mut chunk = Vec::with_capacity(self.left.min(CHUNK_BYTES));
        let mut room = (&mut chunk).limit(self.left.min(CHUNK_BYTES));
        let count = ready!(poll_read(&mut self.connection.stream, cx, &mut room))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.left -= count;
        Poll::Ready(Ok(chunk.into()))
    }
}

impl Body for ForwardedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.there.is_empty() {
            let there = std::mem::take(&mut self.there);
            return Poll::Ready(Some(Ok(Frame::data(there))));
        }
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(None);
        };
        let read = ready!(rest.poll(cx));
        if read.is_err() || rest.left == 0 {
            let rest = self.rest.take();
            if let Some(Rest {
                connection,
                home: Some(home),
                left: 0,
            }) = rest
            {
                home.put(connection);
            }
        }
        Poll::Ready(Some(read.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.there.is_empty() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.rest.as_ref().map_or(0, |rest| rest.left);
        SizeHint::with_exact((self.there.len() + left) as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        task::JoinHandle,
    };

    use super::*;
    use crate::gateway::outbound;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

    /// A client and its peer, whose test decides about every byte.
    struct Pair {
        client: Arc<ForwardClient>,
        listener: TcpListener,
    }

    impl Pair {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let long = Duration::from_secs(3600);
            let connector = outbound::tcp_connector(long);
            let client = ForwardClient::new(connector.into(), url.parse().unwrap(), long);
            Self {
                client: Arc::new(client),
                listener,
            }
        }

        fn send(&self) -> JoinHandle<Result<Forwarded, Http1Error>> {
            let client = Arc::clone(&self.client);
            tokio::spawn(async move { client.send(REQUEST.to_vec(), b"").await })
        }

        async fn accept(&self) -> TcpStream {
            self.listener.accept().await.unwrap().0
        }
    }

    async fn respond(peer: &mut TcpStream, response: &[u8]) {
        let mut request = vec![0; REQUEST.len()];
        peer.read_exact(&mut request).await.unwrap();
        assert_eq!(request, REQUEST);
        peer.write_all(response).await.unwrap();
    }

    async fn response(sent: JoinHandle<Result<Forwarded, Http1Error>>) -> Response<ForwardedBody> {
        match sent.await.unwrap().unwrap() {
            Forwarded::Response(response) => response,
            Forwarded::Switched(..) => panic!("another protocol"),
        }
    }

    #[tokio::test]
    async fn a_body_is_passed_on_as_it_comes_and_its_connection_is_kept() {
        let pair = Pair::start().await;
        let sent = pair.send();
        let mut peer = pair.accept().await;
        respond(
            &mut peer,
            b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 300003\r\n\r\nabc",
        )
        .await;
        let first_response = response(sent).await;
        assert_eq!(first_response.headers()["x"], "y");
        let mut body = first_response.into_body();
        assert_eq!(body.size_hint().exact(), Some(300_003));
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "abc");
        let rest = vec![b'd'; 300_000];
        let (written, collected) = tokio::join!(peer.write_all(&rest), body.collect());
        written.unwrap();
        assert_eq!(collected.unwrap().to_bytes(), rest);
        let sent = pair.send();
        respond(&mut peer, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let collected = response(sent).await.into_body().collect().await;
        assert_eq!(collected.unwrap().to_bytes(), "ok");
        let sent = pair.send();
        respond(&mut peer, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(response(sent).await.into_body().is_end_stream());
    }

    #[tokio::test]
    async fn a_body_without_its_end_is_an_error_and_ends_its_connection() {
        let pair = Pair::start().await;
        let part = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc";
        let sent = pair.send();
        let mut peer = pair.accept().await;
        respond(&mut peer, part).await;
        let body = response(sent).await.into_body();
        drop(peer);
        let error = body.collect().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let sent = pair.send();
        let mut peer = pair.accept().await;
        respond(&mut peer, part).await;
        drop(response(sent).await);
        assert_eq!(peer.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_stream_of_another_protocol_is_handed_over() {
        let pair = Pair::start().await;
        let sent = pair.send();
        let mut peer = pair.accept().await;
        respond(&mut peer, b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\nab").await;
        let switched = sent.await.unwrap().unwrap();
        let Forwarded::Switched(response, mut stream, there) = switched else {
            panic!("no other protocol");
        };
        assert_eq!(response.headers()["upgrade"], "x");
        assert_eq!(there, "ab");
        stream.write_all(b"c").await.unwrap();
        let mut byte = [0];
        peer.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"c");
    }
}
