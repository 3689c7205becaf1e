//! The minimum of a conventional server on tokio: a task and a queue per connection.
//!
//! A message is framed once. Each member's queue gets a reference to it, and its task writes all queued
//! messages at once. `--redis` is ignored.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use roomcast_race_peers::{
    options::{self, Options},
    wire::{self, Request, Scan},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::mpsc::{Receiver, Sender, channel},
};

fn main() -> io::Result<()> {
    let options = Options::of_process();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.workers)
        .enable_all()
        .build()?;
    // Spawned, so the workers do all work and the waiting thread none.
    let serving = runtime.spawn(serve(options));
    runtime.block_on(serving).map_err(io::Error::other)?
}

type Rooms = Arc<Mutex<HashMap<Box<[u8]>, HashMap<u64, Sender<Bytes>>>>>;

async fn serve(options: Options) -> io::Result<()> {
    let listener = TcpListener::bind(options.listen).await?;
    options::announce(listener.local_addr()?);
    let rooms = Rooms::default();
    let accepted = AtomicU64::new(0);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let number = accepted.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::spawn(connection(stream, number, Arc::clone(&rooms)));
    }
}

async fn connection(mut stream: TcpStream, number: u64, rooms: Rooms) {
    let (queue, queued) = channel(QUEUED_FRAMES);
    let mut peer = Peer {
        number,
        rooms,
        queue,
        joined: Vec::new(),
        frame: Vec::new(),
    };
    let (reader, writer) = stream.split();
    // Whichever ends first ends the other, because a client that left needs no more messages.
    tokio::select! {
        _ = peer.read(reader) => {}
        _ = write(writer, queued) => {}
    }
    for room in std::mem::take(&mut peer.joined) {
        peer.leave(&room);
    }
}

/// Writes all queued messages at once.
async fn write(mut writer: WriteHalf<'_>, mut queued: Receiver<Bytes>) -> io::Result<()> {
    let mut batch = Vec::new();
    let mut joint = Vec::new();
    while queued.recv_many(&mut batch, FRAMES_PER_WRITE).await > 0 {
        if let [one] = &*batch {
            writer.write_all(one).await?;
        } else {
            joint.clear();
            batch
                .iter()
                .for_each(|frame| joint.extend_from_slice(frame));
            writer.write_all(&joint).await?;
        }
        batch.clear();
    }
    Ok(())
}

struct Peer {
    number: u64,
    rooms: Rooms,
    queue: Sender<Bytes>,
    joined: Vec<Box<[u8]>>,
    frame: Vec<u8>,
}

impl Peer {
    async fn read(&mut self, mut reader: ReadHalf<'_>) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        let mut is_open = false;
        loop {
            if reader.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            if !is_open {
                let Some(end) = wire::head_end(&buffer) else {
                    continue;
                };
                let head = buffer.split_to(end);
                let Some(opening) = wire::opening(&head, self.number) else {
                    self.give(Bytes::from_static(wire::REFUSAL)).await?;
                    continue;
                };
                self.give(opening.into()).await?;
                is_open = true;
            }
            loop {
                match wire::scan(&mut buffer) {
                    Scan::Partial => break,
                    Scan::Text { start, end } => {
                        let frame = buffer.split_to(end);
                        self.packet(&frame[start..]).await?;
                    }
                    Scan::End => return Ok(()),
                }
            }
        }
    }

    async fn packet(&mut self, packet: &[u8]) -> io::Result<()> {
        match Request::read(packet).ok_or_else(unknown)? {
            Request::Pong => return Ok(()),
            Request::Connect => wire::connected(&mut self.frame, self.number),
            Request::Echo(ack, json) => wire::acknowledge(&mut self.frame, ack, json),
            Request::Join(ack, room) => {
                self.join(room);
                wire::acknowledge(&mut self.frame, ack, b"]");
            }
            Request::Leave(ack, room) => {
                self.joined.retain(|joined| **joined != *room);
                self.leave(room);
                wire::acknowledge(&mut self.frame, ack, b"]");
            }
            Request::Message(ack, room, payload) => {
                wire::message(&mut self.frame, room, self.number, payload);
                self.tell(room);
                if ack.is_empty() {
                    return Ok(());
                }
                wire::acknowledge(&mut self.frame, ack, b"]");
            }
        }
        self.give(Bytes::copy_from_slice(&self.frame)).await
    }

    fn join(&mut self, room: &[u8]) {
        if self.joined.iter().any(|joined| **joined == *room) {
            return;
        }
        self.joined.push(room.into());
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let members = rooms.entry(room.into()).or_default();
        members.insert(self.number, self.queue.clone());
    }

    fn leave(&self, room: &[u8]) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(members) = rooms.get_mut(room) {
            members.remove(&self.number);
            if members.is_empty() {
                rooms.remove(room);
            }
        }
    }

    /// A member with a full queue loses the message, because a floor has no better rule.
    fn tell(&self, room: &[u8]) {
        let frame = Bytes::copy_from_slice(&self.frame);
        let rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        for member in rooms.get(room).into_iter().flat_map(HashMap::values) {
            let _ = member.try_send(frame.clone());
        }
    }

    async fn give(&self, frame: Bytes) -> io::Result<()> {
        self.queue.send(frame).await.map_err(io::Error::other)
    }
}

fn unknown() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// More than the race has outstanding.
const QUEUED_FRAMES: usize = 4096;
const FRAMES_PER_WRITE: usize = 64;
