//! A small Socket.IO client: one WebSocket, the main namespace, JSON.
//!
//! It shares no code with the server, and reads packets as the protocol's documents tell.

use std::{collections::VecDeque, net::TcpStream};

use serde_json::{Value, from_str, json};
use tungstenite::{Error, Message, WebSocket, error::ProtocolError};

pub(crate) struct Client {
    websocket: WebSocket<TcpStream>,
    id: String,
    events: VecDeque<Vec<Value>>,
}

impl Client {
    pub(crate) fn connect(address: &str) -> Self {
        Self::connect_as(address, &json!({})).unwrap()
    }

    /// Connects with `auth`; an error is what the server refuses with.
    pub(crate) fn connect_as(address: &str, auth: &Value) -> Result<Self, Value> {
        let stream = super::connect(address);
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        let (websocket, _) = tungstenite::client(url, stream).unwrap();
        let mut client = Self {
            websocket,
            id: String::new(),
            events: VecDeque::new(),
        };
        let opening = client.packet().unwrap();
        assert!(opening.starts_with("0{"), "{opening}");
        client.send(&format!("40{auth}"));
        let answer = client.packet().unwrap();
        let (kind, body) = answer.split_at(2);
        let body: Value = from_str(body).unwrap();
        if kind != "40" {
            return Err(body);
        }
        client.id = body["sid"].as_str().unwrap().to_owned();
        Ok(client)
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Sends an Engine.IO packet as it stands.
    pub(crate) fn send(&mut self, packet: &str) {
        self.websocket.send(Message::text(packet)).unwrap();
    }

    /// Emits `[event, argument …]` with an acknowledgement, and waits for its arguments.
    pub(crate) fn ask(&mut self, event: &Value) -> Value {
        self.send(&format!("427{event}"));
        loop {
            let packet = self.packet().expect("an answer before the connection ends");
            match packet.strip_prefix("437") {
                Some(args) => return from_str(args).unwrap(),
                None => self.keep(&packet),
            }
        }
    }

    /// Waits for an event of this name and returns its arguments; others stay for later.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        loop {
            let found = self.events.iter().position(|event| event[0] == name);
            if let Some(event) = found.and_then(|index| self.events.remove(index)) {
                return event[1..].into();
            }
            let packet = self.packet().expect("an event before the connection ends");
            self.keep(&packet);
        }
    }

    /// The packets that come until the server closes the connection.
    pub(crate) fn rest(mut self) -> Vec<String> {
        std::iter::from_fn(|| self.packet()).collect()
    }

    fn keep(&mut self, packet: &str) {
        let event = packet.strip_prefix("42").expect("an event");
        self.events.push_back(from_str(event).unwrap());
    }

    /// The next packet that is no heartbeat; none once the connection has ended.
    pub(crate) fn packet(&mut self) -> Option<String> {
        loop {
            match self.websocket.read() {
                Ok(Message::Text(text)) if text == "2" => self.send("3"),
                Ok(Message::Text(text)) => return Some(text.to_string()),
                Ok(Message::Close(_)) => {}
                // A signal says nothing about the server.
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(
                    Error::ConnectionClosed
                    | Error::AlreadyClosed
                    | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake),
                ) => return None,
                other => panic!("neither a packet nor the end: {other:?}"),
            }
        }
    }
}
