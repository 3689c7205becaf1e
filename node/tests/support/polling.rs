//! A client that polls, and that can move to a WebSocket.

use std::{collections::VecDeque, net::SocketAddr};

use super::{
    WebSocket,
    http::{self, Response},
    websocket, within,
};

/// Where a new session is opened.
pub(crate) const NEW: &str = "/socket.io/?EIO=4&transport=polling";

/// A session over HTTP. Each request has a connection of its own.
pub(crate) struct Polling {
    pub(crate) address: SocketAddr,
    pub(crate) sid: String,
    packets: VecDeque<String>,
}

impl Polling {
    /// Opens a session.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::open_at(address, NEW).await
    }

    pub(crate) async fn open_at(address: SocketAddr, target: &str) -> Self {
        let response = http::get(address, target).await;
        assert_eq!(response.status, 200, "{response:?}");
        let open = response.body.strip_prefix(r#"0{"sid":""#).unwrap();
        let sid = open.split('"').next().unwrap().to_owned();
        Self {
            address,
            sid,
            packets: VecDeque::new(),
        }
    }

    /// Opens a session and connects to the main namespace.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut polling = Self::open(address).await;
        polling.say("40").await;
        let reply = polling.packet().await;
        assert!(reply.starts_with(r#"40{"sid":""#), "{reply}");
        polling
    }

    /// The path of the session's requests.
    pub(crate) fn target(&self) -> String {
        format!("{NEW}&sid={}", self.sid)
    }

    pub(crate) async fn get(&self) -> Response {
        within(
            "the answer to a poll",
            http::get(self.address, &self.target()),
        )
        .await
    }

    pub(crate) async fn post(&self, body: &str) -> Response {
        let target = self.target();
        let request = http::request(self.address, "POST", &target, body);
        within("the answer to a post", request).await
    }

    /// Posts packets that must be accepted.
    pub(crate) async fn say(&self, body: &str) {
        let response = self.post(body).await;
        assert_eq!((response.status, &*response.body), (200, "ok"));
    }

    /// The next packet; polls for it if there is none. Pings are answered and passed over.
    pub(crate) async fn packet(&mut self) -> String {
        loop {
            match self.packets.pop_front() {
                Some(packet) if packet == "2" => self.say("3").await,
                Some(packet) => return packet,
                None => self.fetch().await,
            }
        }
    }

    /// Polls once.
    async fn fetch(&mut self) {
        let response = self.get().await;
        assert_eq!(response.status, 200, "{response:?}");
        let packets = response.body.split('\u{1e}').map(str::to_owned);
        self.packets.extend(packets);
    }

    /// Asserts that the session is closed and that the server says so with a packet.
    pub(crate) async fn assert_closed(&self) {
        assert_eq!(self.get().await.body, "1");
        let response = self.get().await;
        assert_eq!(response.status, 400);
        assert_eq!(
            response.body,
            r#"{"code":1,"message":"Session ID unknown"}"#
        );
    }

    /// The path of the WebSocket that shall take over.
    pub(crate) fn upgrade_target(&self) -> String {
        format!("{}&sid={}", websocket::NEW, self.sid)
    }

    /// Opens the WebSocket that shall take over.
    pub(crate) async fn probe(&self) -> WebSocket {
        let mut socket = WebSocket::upgrade(self.address, &self.upgrade_target()).await;
        socket.send("2probe").await;
        assert_eq!(socket.text().await, "3probe");
        socket
    }

    /// Moves to a WebSocket as official clients do: after the probe it polls until it was sent
    /// home. Answers the packets that came by polling, too.
    pub(crate) async fn upgrade(mut self) -> (WebSocket, Vec<String>) {
        let mut socket = self.probe().await;
        self.fetch().await;
        socket.send("5").await;
        let packets = self.packets.into_iter().filter(|packet| packet != "6");
        (socket, packets.collect())
    }
}
