//! Posts over HTTP/1.1 without TLS whose responses are read as a whole: the requests of
//! most hooks, one for each event.
//!
//! The request line and the host never change, so they are written once. Nothing is
//! parsed that the caller does not need: the status and the body, and of the headers only those
//! that determine the end of the response.

use std::time::Duration;

use http::{HeaderMap, StatusCode, Uri};
use hyper_util::client::legacy::connect::HttpConnector;

use super::{
    connections::{COPIED_BYTES, Connections, Exchanged, Http1Error},
    response::Reader,
};

/// Posts to one URL.
pub(crate) struct Http1Client {
    connections: Connections,
    /// The request line and the host.
    opening: Vec<u8>,
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
            opening: opening.into_bytes(),
            connections: Connections::new(connector.into(), url, keep_alive),
        }
    }

    /// Posts a body of this length and these headers, and returns the result of `read` for the
    /// status and the body of the response, which may have `max` bytes. The body of an error's
    /// status may lack its end.
    pub(crate) async fn post<T>(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        max: usize,
        read: impl FnOnce(StatusCode, &[u8]) -> T,
    ) -> Result<T, Http1Error> {
        let head = self.head(headers, body.len());
        let mut reader = Reader::new(max);
        let exchanging = self
            .connections
            .exchange(head, body, |received, is_end| reader.read(received, is_end));
        let Exchanged {
            connection,
            response: whole,
            is_sent,
        } = exchanging.await?;
        let result = read(whole.status, reader.body(&connection.received, &whole));
        // A request that was sent in part leaves the peer waiting for the rest.
        if whole.is_kept && is_sent {
            self.connections.put(connection);
        }
        Ok(result)
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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::gateway::outbound::{self, connections::PARTS};

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

        /// A request and its response on a new connection, which is idle afterwards.
        async fn exchange(&self, client: &Arc<Http1Client>) -> Peer {
            let posted = post(client, "body");
            let mut peer = self.accept().await;
            assert_eq!(peer.request().await.1, "body");
            peer.respond("1").await;
            assert_eq!(posted.await.unwrap().unwrap(), ok("1"));
            peer
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
    ) -> tokio::task::JoinHandle<Result<(u16, String), Http1Error>> {
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
        // In pieces, with parts that the caller must not see.
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
            while client.connections.idle.is_any_usable() {
                tokio::task::yield_now().await;
            }
        }
        backend.exchange(&client).await;
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_before_its_time_is_over() {
        let backend = Backend::start().await;
        let client = backend.client(LONG);
        let mut peer = backend.exchange(&client).await;
        for _ in 1..PARTS {
            assert!(client.connections.idle.advance());
        }
        assert!(client.connections.idle.is_any_usable());
        assert!(!client.connections.idle.advance());
        assert!(peer.is_closed().await);
        let client = backend.client(Duration::from_millis(80));
        let mut peer = backend.exchange(&client).await;
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
        backend.exchange(&client).await;
    }

    #[tokio::test]
    async fn an_end_without_a_response_is_an_error_that_is_not_repeated() {
        let backend = Backend::start().await;
        let client = backend.client(LONG);
        let mut peer = backend.exchange(&client).await;
        let second = post(&client, "two");
        peer.request().await;
        drop(peer);
        let error = second.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("ended before the response"), "{error}");
        drop(backend);
        let error = post(&client, "three").await.unwrap().unwrap_err();
        assert!(matches!(error, Http1Error::Connect(_)), "{error}");
    }
}
