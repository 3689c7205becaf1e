//! A tiny Socket.IO server with rooms, and a tiny Redis beside it, that make mistakes on purpose and
//! count them.
//!
//! WebSocket only, a thread per connection. It shares no code with the tool or with our own server.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

/// What is done to one copy of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Sent,
    Dropped,
    Doubled,
    /// Sent after the next message to the same receiver, or never.
    Delayed,
    /// One byte of the payload is another.
    Changed,
    /// Sent to a member of another room, too.
    Astray,
}

/// How the server behaves. Messages and members are numbered per room, from zero.
#[derive(Clone, Copy)]
pub(crate) struct Behaviour {
    pub(crate) fate: fn(message: u64, member: usize) -> Fate,
    /// Whether the namespace accepts the connection with this number.
    pub(crate) admits: fn(connection: u64) -> bool,
    /// Whether the join with this number, over all rooms, is granted.
    pub(crate) grants: fn(join: u64) -> bool,
    pub(crate) echoes: bool,
}

pub(crate) const HONEST: Behaviour = Behaviour {
    fate: |_, _| Fate::Sent,
    admits: |_| true,
    grants: |_| true,
    echoes: true,
};

/// What the server did on purpose.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) dropped: u64,
    pub(crate) doubled: u64,
    pub(crate) delayed: u64,
    pub(crate) changed: u64,
    pub(crate) astray: u64,
    pub(crate) joins: u64,
    /// Messages that came from an emitter.
    pub(crate) emits: u64,
}

pub(crate) struct Server {
    pub(crate) address: String,
    state: Arc<State>,
}

struct State {
    behaviour: Behaviour,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    rooms: HashMap<String, Room>,
    done: Done,
}

#[derive(Default)]
struct Room {
    members: Vec<Member>,
    messages: u64,
}

struct Member {
    connection: u64,
    stream: TcpStream,
    held: Option<String>,
}

impl Server {
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            behaviour,
            inner: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for (number, stream) in (0..).zip(listener.incoming()) {
                let state = Arc::clone(&shared);
                // Whatever goes wrong with a connection shows in the result.
                thread::spawn(move || serve(&state, number, stream.ok()?));
            }
        });
        Self { address, state }
    }

    /// What it did so far; what is held back counts as dropped now.
    pub(crate) fn done(&self) -> Done {
        let inner = self.state.inner.lock().unwrap();
        let mut done = inner.done;
        let members = inner.rooms.values().flat_map(|room| &room.members);
        let held = members.filter(|member| member.held.is_some()).count() as u64;
        done.dropped += held;
        done.delayed -= held;
        done
    }

    /// A command that emits what it reads to this server.
    pub(crate) fn emitter(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::clone(&self.state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&state);
                thread::spawn(move || serve_lines(&state, stream.ok()?));
            }
        });
        format!("bash -c 'cat >/dev/tcp/127.0.0.1/{port}'")
    }

    /// A Redis whose only subscriber is this server: its address.
    pub(crate) fn redis(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let state = Arc::clone(&self.state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&state);
                thread::spawn(move || serve_redis(&state, stream.ok()?));
            }
        });
        url
    }
}

/// Lines as an emitter takes them, until there is no more.
fn serve_lines(state: &State, stream: TcpStream) -> Option<()> {
    for line in BufReader::new(stream).lines() {
        let message: Value = serde_json::from_str(&line.ok()?).unwrap();
        assert_eq!(message["event"], "message");
        let room = message["rooms"][0].as_str().unwrap();
        assert_eq!(message["args"][0]["room"], room);
        let data = message["args"][0]["data"].as_str().unwrap();
        let mut inner = state.inner.lock().unwrap();
        inner.done.emits += 1;
        inner.broadcast(&state.behaviour, room, data);
    }
    Some(())
}

fn serve(state: &State, connection: u64, mut stream: TcpStream) -> Option<()> {
    let mut start = [0; 300];
    let count = stream.peek(&mut start).ok()?;
    if String::from_utf8_lossy(&start[..count]).contains("transport=polling") {
        let body = r#"{"code":0,"message":"Transport unknown"}"#;
        let length = body.len();
        let head = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {length}\r\n\r\n");
        // What is read before the end of the connection is not answered with a reset.
        stream.read_exact(&mut start[..count]).ok()?;
        return stream.write_all(format!("{head}{body}").as_bytes()).ok();
    }
    let mut writer = stream.try_clone().ok()?;
    let mut websocket = tungstenite::accept(stream).ok()?;
    write_text(
        &mut writer,
        r#"0{"sid":"secret","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#,
    );
    while let Some(text) = read_text(&mut websocket) {
        if text == "40" && !(state.behaviour.admits)(connection) {
            write_text(&mut writer, r#"44{"message":"full"}"#);
        } else if text == "40" {
            write_text(&mut writer, &format!("40{{\"sid\":\"{connection}\"}}"));
        } else if let Some(event) = text.strip_prefix("42") {
            let digits = event.bytes().take_while(u8::is_ascii_digit).count();
            let (id, json) = event.split_at(digits);
            let event: Value = serde_json::from_str(json).unwrap();
            // Held to the end, so that answers and messages of a connection do not mix.
            let mut inner = state.inner.lock().unwrap();
            let answer = inner.handle(&state.behaviour, connection, &writer, &event);
            if let Some(answer) = answer.filter(|_| !id.is_empty()) {
                write_text(&mut writer, &format!("43{id}{}", json!([answer])));
            }
        }
    }
    let mut inner = state.inner.lock().unwrap();
    for room in inner.rooms.values_mut() {
        room.members
            .retain(|member| member.connection != connection);
    }
    Some(())
}

impl Inner {
    fn handle(
        &mut self,
        behaviour: &Behaviour,
        connection: u64,
        writer: &TcpStream,
        event: &Value,
    ) -> Option<Value> {
        let name = event[1].as_str().unwrap_or_default().to_owned();
        match event[0].as_str()? {
            "join" => {
                self.done.joins += 1;
                if !(behaviour.grants)(self.done.joins - 1) {
                    return Some(json!({ "error": "the room is full" }));
                }
                self.rooms.entry(name).or_default().members.push(Member {
                    connection,
                    stream: writer.try_clone().unwrap(),
                    held: None,
                });
                Some(json!({}))
            }
            "leave" => {
                let room = self.rooms.get_mut(&name)?;
                room.members
                    .retain(|member| member.connection != connection);
                Some(json!({}))
            }
            "message" => {
                let data = event[2].as_str().unwrap_or_default();
                self.broadcast(behaviour, &name, data);
                Some(json!(1))
            }
            "rooms" => Some(json!(["a room"])),
            "echo" if behaviour.echoes => Some(event[1].clone()),
            _ => None,
        }
    }

    fn broadcast(&mut self, behaviour: &Behaviour, name: &str, data: &str) {
        let Some(room) = self.rooms.get_mut(name) else {
            return;
        };
        let text = message(name, data);
        let number = room.messages;
        room.messages += 1;
        let mut goes_astray = false;
        for (at, member) in room.members.iter_mut().enumerate() {
            let held = member.held.take();
            let stream = &mut member.stream;
            match (behaviour.fate)(number, at) {
                Fate::Sent => write_text(stream, &text),
                Fate::Dropped => self.done.dropped += 1,
                Fate::Doubled => {
                    write_text(stream, &text);
                    write_text(stream, &text);
                    self.done.doubled += 1;
                }
                Fate::Delayed => {
                    member.held = Some(text.clone());
                    self.done.delayed += 1;
                }
                Fate::Changed => {
                    let middle = data.len() / 2;
                    let mut changed = data.as_bytes().to_vec();
                    changed[middle] = if changed[middle] == b'x' { b'y' } else { b'x' };
                    let changed = String::from_utf8(changed).unwrap();
                    write_text(stream, &message(name, &changed));
                    self.done.changed += 1;
                }
                Fate::Astray => {
                    write_text(stream, &text);
                    goes_astray = true;
                }
            }
            if let Some(held) = held {
                write_text(&mut member.stream, &held);
            }
        }
        let other = self.rooms.iter_mut().find(|(other, _)| *other != name);
        let stranger = other.and_then(|(_, other)| other.members.first_mut());
        if let Some(stranger) = stranger.filter(|_| goes_astray) {
            write_text(&mut stranger.stream, &text);
            self.done.astray += 1;
        }
    }
}

fn message(room: &str, data: &str) -> String {
    format!("42{}", json!(["message", { "room": room, "data": data }]))
}

/// PING and PUBLISH. A message is not decoded: its payload begins with `rl1` and is 64 bytes long.
fn serve_redis(state: &State, mut stream: TcpStream) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut parser = redis::Parser::new();
    loop {
        let command = parser.parse_value(&mut stream).ok()?;
        let words: Vec<Vec<u8>> = redis::from_redis_value(command).ok()?;
        if words[0] == b"PING" {
            writer.write_all(b"+PONG\r\n").ok()?;
            continue;
        }
        assert_eq!(words[0], b"PUBLISH");
        let channel = String::from_utf8(words[1].clone()).unwrap();
        let room = channel.strip_prefix("socket.io#/#").unwrap();
        let room = room.strip_suffix('#').unwrap();
        let start = words[2]
            .windows(3)
            .position(|bytes| bytes == b"rl1")
            .unwrap();
        let data = std::str::from_utf8(&words[2][start..start + 64]).unwrap();
        state
            .inner
            .lock()
            .unwrap()
            .broadcast(&state.behaviour, room, data);
        writer.write_all(b":1\r\n").ok()?;
    }
}

fn read_text(websocket: &mut WebSocket<TcpStream>) -> Option<String> {
    match websocket.read().ok()? {
        Message::Text(text) => Some(text.to_string()),
        _ => None,
    }
}

/// One frame. A client that is gone shows in the ledger.
fn write_text(stream: &mut TcpStream, text: &str) {
    let mut frame = vec![0x81];
    match text.len() {
        length @ 0..126 => frame.push(length as u8),
        length => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(text.as_bytes());
    let _ = stream.write_all(&frame);
}
