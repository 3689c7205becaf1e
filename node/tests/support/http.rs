//! HTTP/1.1 by hand: one request on one TCP connection.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::within;

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// The status line and the headers.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// Sends bytes on a connection of their own.
pub(crate) async fn send(address: SocketAddr, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_ref()).await.unwrap();
    stream
}

/// Gets a target on a connection of its own.
pub(crate) async fn get(address: SocketAddr, target: &str) -> Response {
    request(address, "GET", target, "").await
}

/// Sends a request on a connection of its own and waits for the answer.
pub(crate) async fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    body: &str,
) -> Response {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
         Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    response(&mut send(address, head + body).await).await
}

/// Reads one answer; the body by its declared length.
pub(crate) async fn response(stream: &mut (impl AsyncRead + Unpin)) -> Response {
    let mut received = Vec::new();
    let head = read_head(stream, &mut received).await;
    let length = header(&head, "content-length").map_or(0, |text| text.parse().unwrap());
    within("the whole body of an answer", async {
        while received.len() < length {
            let count = stream.read_buf(&mut received).await.unwrap();
            assert_ne!(count, 0, "the body ends before its length");
        }
    })
    .await;
    Response {
        status: head[9..12].parse().unwrap(),
        head,
        body: String::from_utf8(received).unwrap(),
    }
}

/// Takes the head of an answer off the stream; what came after it stays in `received`.
pub(crate) async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    received: &mut Vec<u8>,
) -> String {
    within("the head of an answer", async {
        loop {
            if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let rest = received.split_off(end + 4);
                let head = std::mem::replace(received, rest);
                return String::from_utf8(head).unwrap();
            }
            let count = stream.read_buf(received).await.unwrap();
            assert_ne!(count, 0, "the connection ends before the head of an answer");
        }
    })
    .await
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
