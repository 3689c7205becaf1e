//! A WebSocket client by hand, and the packets of Socket.IO on it.

use std::net::SocketAddr;

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{http, within};

/// Where a new session is opened.
pub(crate) const NEW: &str = "/socket.io/?EIO=4&transport=websocket";

/// Room for what is read at once.
const READ_BYTES: usize = 16 * 1024;

/// The client's end of a WebSocket.
pub(crate) struct WebSocket<S = TcpStream> {
    pub(crate) stream: S,
    received: BytesMut,
    next_ack: u64,
}

/// What a server sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Text(String),
    Binary(Vec<u8>),
    Pong(Vec<u8>),
    /// A close frame, with its code if it has one.
    Close(Option<u16>),
    /// The stream has ended or was reset.
    End,
}

impl WebSocket {
    /// Opens a session and takes its first packet.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::open_at(address, NEW).await
    }

    pub(crate) async fn open_at(address: SocketAddr, target: &str) -> Self {
        let mut socket = Self::upgrade(address, target).await;
        socket.begin().await;
        socket
    }

    /// Opens a session and connects to the main namespace.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut socket = Self::open(address).await;
        socket.join("/").await;
        socket
    }

    /// The WebSocket handshake, and no more.
    pub(crate) async fn upgrade(address: SocketAddr, target: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream, target).await
    }

    /// The status with which a handshake is refused.
    pub(crate) async fn refused(address: SocketAddr, target: &str) -> u16 {
        let mut stream = http::send(address, request(target)).await;
        http::response(&mut stream).await.status
    }

    /// Ends the connection as a crash would: with a reset.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    pub(crate) async fn over(mut stream: S, target: &str) -> Self {
        stream.write_all(request(target).as_bytes()).await.unwrap();
        Self::upgraded(stream).await
    }

    /// Opens a session on this stream and connects to the main namespace.
    pub(crate) async fn connect_over(stream: S) -> Self {
        let mut socket = Self::over(stream, NEW).await;
        socket.begin().await;
        socket.join("/").await;
        socket
    }

    /// Takes the first packet of a session.
    pub(crate) async fn begin(&mut self) {
        let open = self.text().await;
        assert!(open.starts_with("0{"), "{open}");
    }

    /// Waits for the answer to a handshake that was sent already.
    pub(crate) async fn upgraded(mut stream: S) -> Self {
        let mut received = Vec::new();
        let head = http::read_head(&mut stream, &mut received).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        // The answer to the example key of RFC 6455, section 1.3.
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        Self {
            stream,
            received: BytesMut::from(&received[..]),
            next_ack: 0,
        }
    }

    /// Connects to a namespace and answers the id of the socket.
    pub(crate) async fn join(&mut self, namespace: &str) -> String {
        let prefix = match namespace {
            "/" => String::from("40"),
            other => format!("40{other},"),
        };
        self.send(&prefix).await;
        let reply = self.text().await;
        let id = reply
            .strip_prefix(&prefix)
            .and_then(|reply| reply.strip_prefix(r#"{"sid":""#));
        let id = id.and_then(|reply| reply.strip_suffix(r#""}"#));
        id.unwrap_or_else(|| panic!("not let in: {reply}"))
            .to_owned()
    }

    /// Sends a text message.
    pub(crate) async fn send(&mut self, text: &str) {
        self.send_frame(true, 1, text.as_bytes()).await;
    }

    pub(crate) async fn send_frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) {
        let frame = frame(fin, opcode, payload);
        self.stream.write_all(&frame).await.unwrap();
    }

    /// Sends an event of the main namespace and waits for its acknowledgement, as JSON. Everything
    /// else that comes meanwhile is passed over.
    pub(crate) async fn ask(&mut self, event: &str) -> String {
        let id = self.next_ack;
        self.next_ack += 1;
        self.send(&format!("42{id}{event}")).await;
        let prefix = format!("43{id}[");
        loop {
            let text = self.text().await;
            if let Some(args) = text.strip_prefix(&prefix) {
                return format!("[{args}");
            }
        }
    }

    /// Takes an event of the main namespace, as JSON, that the server waits to be acknowledged.
    /// Returns the id of the acknowledgement.
    pub(crate) async fn asked(&mut self, event: &str) -> u64 {
        let text = self.text().await;
        let packet = text.strip_prefix("42");
        let id = packet.and_then(|packet| packet.strip_suffix(event)?.parse().ok());
        id.unwrap_or_else(|| panic!("not asked {event}: {text}"))
    }

    /// Acknowledges an event of the main namespace with these arguments, as JSON.
    pub(crate) async fn acknowledge(&mut self, id: u64, args: &str) {
        self.send(&format!("43{id}{args}")).await;
    }

    /// Asserts that the server still serves this client.
    pub(crate) async fn assert_served(&mut self) {
        assert_eq!(
            self.ask(r#"["echo","still here"]"#).await,
            r#"["still here"]"#
        );
    }

    /// The next text. Pings of the server are answered and passed over.
    pub(crate) async fn text(&mut self) -> String {
        loop {
            match self.next().await {
                Message::Text(text) if text == "2" => self.send("3").await,
                Message::Text(text) => return text,
                other => panic!("{other:?} instead of a text"),
            }
        }
    }

    /// The next texts, so many.
    pub(crate) async fn texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(self.text().await);
        }
        texts
    }

    /// Waits for the end; answers the code of the close frame. None: it was closed without a
    /// code. A connection that ends without a close frame fails the test.
    pub(crate) async fn closed(&mut self) -> Option<u16> {
        loop {
            match self.next().await {
                Message::Close(code) => return code,
                Message::End => panic!("the connection ended without a close frame"),
                _ => {}
            }
        }
    }

    /// Waits for the end of the byte stream, with or without a close frame; answers the texts that
    /// came before.
    pub(crate) async fn rest(&mut self) -> Vec<String> {
        let mut texts = Vec::new();
        loop {
            match self.next().await {
                Message::End => return texts,
                Message::Text(text) => texts.push(text),
                _ => {}
            }
        }
    }

    /// The next message. May be dropped while it waits: nothing is lost.
    pub(crate) async fn next(&mut self) -> Message {
        within("a message from the server", async {
            loop {
                if let Some((message, len)) = parse(&self.received) {
                    self.received.advance(len);
                    return message;
                }
                self.received.reserve(READ_BYTES);
                match self.stream.read_buf(&mut self.received).await {
                    Ok(0) | Err(_) => return Message::End,
                    Ok(_) => {}
                }
            }
        })
        .await
    }
}

/// The request that opens a WebSocket.
pub(crate) fn request(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A client's frame, masked as RFC 6455 wants it.
pub(crate) fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x9d, 0x01, 0xf0, 0x37];
    let mut frame = vec![u8::from(fin) << 7 | opcode];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | u8::try_from(len).unwrap()),
        len @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    let masked = payload.iter().zip(MASK.iter().cycle());
    frame.extend(masked.map(|(byte, mask)| byte ^ mask));
    frame
}

/// A server's frame and its length, if it is complete. Servers send whole messages, unmasked.
fn parse(bytes: &[u8]) -> Option<(Message, usize)> {
    let (&[first, second], rest) = bytes.split_first_chunk()?;
    assert_eq!(first & 0xf0, 0x80, "a whole message without extensions");
    assert_eq!(second & 0x80, 0, "servers don't mask");
    let (len, rest) = match second {
        126 => {
            let (len, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        127 => {
            let (len, rest) = rest.split_first_chunk()?;
            (usize::try_from(u64::from_be_bytes(*len)).unwrap(), rest)
        }
        len => (usize::from(len), rest),
    };
    let payload = rest.get(..len)?.to_vec();
    let total = bytes.len() - rest.len() + len;
    let message = match first & 0x0f {
        1 => Message::Text(String::from_utf8(payload).unwrap()),
        2 => Message::Binary(payload),
        8 => Message::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code))),
        10 => Message::Pong(payload),
        opcode => panic!("opcode {opcode}"),
    };
    Some((message, total))
}
