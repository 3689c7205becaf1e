//! One connection for answers, and the task that reads from it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    asking::{Asking, TooManyQuestions},
    emitter::EmitError,
    endpoint::{Connection, Stream},
    resp::{self, Limits, Parsed, Push, Reply},
};
use roomcast_protocol::{
    channel::{Dialect, Kind},
    wire::{Incoming, Wire},
};

/// How long Redis may take to confirm a subscription.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// The most namespaces that are listened to at a time.
const MAX_NAMESPACES: usize = 1_000;

/// Wishes that wait for the task.
const MAX_WAITING: usize = 64;

/// One connection for answers.
pub(super) struct Line {
    wishes: mpsc::Sender<Wish>,
    is_lost: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// As long as it lives, the answers of a namespace are heard, unless the connection is lost.
pub(crate) struct Listening {
    is_lost: Arc<AtomicBool>,
    _namespace: Arc<str>,
}

/// Somebody wants to hear the answers of a namespace.
struct Wish {
    namespace: Box<str>,
    channels: Vec<String>,
    granted: oneshot::Sender<Result<Listening, EmitError>>,
}

impl Line {
    pub(super) fn start(connection: Connection, wire: Arc<Wire>, asking: Arc<Asking>) -> Self {
        let (wishes, wished) = mpsc::channel(MAX_WAITING);
        let is_lost = Arc::<AtomicBool>::default();
        let (stream, buffer) = connection.into_parts();
        let reader = Reader {
            stream,
            buffer,
            wire,
            asking,
            is_lost: Arc::clone(&is_lost),
            channels: HashMap::new(),
            namespaces: HashMap::new(),
            pending: Vec::new(),
        };
        let task = tokio::spawn(reader.run(wished));
        Self {
            wishes,
            is_lost,
            task,
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    pub(super) async fn listen(
        &self,
        namespace: &str,
        channels: Vec<String>,
    ) -> Result<Listening, EmitError> {
        let (granted, grant) = oneshot::channel();
        let wish = Wish {
            namespace: namespace.into(),
            channels,
            granted,
        };
        let listening = async {
            self.wishes.send(wish).await.map_err(|_| lost())?;
            grant.await.map_err(|_| lost())?
        };
        let listening = timeout(CONFIRM_TIMEOUT, listening).await;
        listening.unwrap_or_else(|_| {
            Err(EmitError::Unreachable(
                "a subscription was not confirmed in time".into(),
            ))
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listening {
    /// Whether answers may have been missed.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }
}

fn lost() -> EmitError {
    EmitError::Unreachable("the connection for answers was lost".into())
}

/// Owns the connection.
struct Reader {
    stream: Stream,
    buffer: BytesMut,
    wire: Arc<Wire>,
    asking: Arc<Asking>,
    is_lost: Arc<AtomicBool>,
    /// What is subscribed, and whose answers come there.
    channels: HashMap<Box<[u8]>, Arc<str>>,
    /// All channels of a namespace are confirmed. Whoever listens has a clone of the name.
    namespaces: HashMap<Arc<str>, Vec<String>>,
    pending: Vec<Pending>,
}

/// A namespace whose channels are not all confirmed yet.
struct Pending {
    namespace: Arc<str>,
    channels: Vec<String>,
    unconfirmed: usize,
    granted: Vec<oneshot::Sender<Result<Listening, EmitError>>>,
}

/// Why there is nothing more to read.
struct Lost;

impl Reader {
    async fn run(mut self, mut wishes: mpsc::Receiver<Wish>) {
        loop {
            let done = tokio::select! {
                wish = wishes.recv() => match wish {
                    Some(wish) => self.grant(wish).await,
                    None => Err(Lost),
                },
                read = self.stream.read_buf(&mut self.buffer) => match read {
                    Ok(1..) => self.understand(),
                    _ => Err(Lost),
                },
            };
            if done.is_err() {
                break;
            }
        }
        self.is_lost.store(true, Ordering::Release);
    }

    async fn grant(&mut self, wish: Wish) -> Result<(), Lost> {
        if let Some((namespace, _)) = self.namespaces.get_key_value(&*wish.namespace) {
            let listening = self.listening(namespace);
            // Who wished may have given up.
            let _ = wish.granted.send(Ok(listening));
            return Ok(());
        }
        let pending = self.pending.iter_mut();
        if let Some(pending) = pending
            .into_iter()
            .find(|p| *p.namespace == *wish.namespace)
        {
            pending.granted.retain(|granted| !granted.is_closed());
            pending.granted.push(wish.granted);
            return Ok(());
        }
        if self.namespaces.len() + self.pending.len() >= MAX_NAMESPACES && !self.make_room().await?
        {
            let _ = wish.granted.send(Err(TooManyQuestions.into()));
            return Ok(());
        }
        let namespace: Arc<str> = wish.namespace.into();
        for channel in &wish.channels {
            let name = channel.as_bytes().into();
            self.channels.insert(name, Arc::clone(&namespace));
        }
        self.write(self.subscribe(), &wish.channels).await?;
        self.pending.push(Pending {
            namespace,
            unconfirmed: wish.channels.len(),
            channels: wish.channels,
            granted: vec![wish.granted],
        });
        Ok(())
    }

    /// Gives up a namespace that nobody listens to at the moment.
    async fn make_room(&mut self) -> Result<bool, Lost> {
        let idle = self.namespaces.keys();
        // One clone here, and one in each channel.
        let mut idle = idle.filter(|name| {
            let channels = self.namespaces.get(*name).map_or(0, Vec::len);
            Arc::strong_count(name) == 1 + channels
        });
        let Some(namespace) = idle.next().cloned() else {
            return Ok(false);
        };
        let channels = self.namespaces.remove(&namespace).unwrap_or_default();
        for channel in &channels {
            self.channels.remove(channel.as_bytes());
        }
        self.write(self.unsubscribe(), &channels).await?;
        Ok(true)
    }

    fn subscribe(&self) -> &'static str {
        match self.wire.channels().dialect() {
            Dialect::Classic => "SUBSCRIBE",
            Dialect::Sharded(_) => "SSUBSCRIBE",
        }
    }

    fn unsubscribe(&self) -> &'static str {
        match self.wire.channels().dialect() {
            Dialect::Classic => "UNSUBSCRIBE",
            Dialect::Sharded(_) => "SUNSUBSCRIBE",
        }
    }

    async fn write(&mut self, command: &str, names: &[String]) -> Result<(), Lost> {
        let mut bytes = Vec::new();
        // One command each: in a cluster the names of one must share a slot.
        for name in names {
            resp::encode_command(&mut bytes, &[command, name]);
        }
        let writing = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        match timeout(CONFIRM_TIMEOUT, writing).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Lost),
        }
    }

    /// Takes everything from the buffer that is complete.
    fn understand(&mut self) -> Result<(), Lost> {
        let limits = Limits::default();
        loop {
            // Taken out, so that what is parsed can borrow it.
            let buffer = std::mem::take(&mut self.buffer);
            let parsed = resp::parse_push(&buffer, &limits).map_err(|_| Lost)?;
            let Parsed::Whole(push, length) = parsed else {
                self.buffer = buffer;
                return Ok(());
            };
            self.hear(&push)?;
            self.buffer = buffer;
            let _ = self.buffer.split_to(length);
        }
    }

    fn hear(&mut self, push: &Push<'_>) -> Result<(), Lost> {
        match push {
            Push::Message { channel, payload } => {
                // On a channel that all share, most answers are somebody else's.
                if !self.asking.is_idle()
                    && let Some(namespace) = self.channels.get(*channel)
                {
                    self.answer(namespace, payload);
                }
                Ok(())
            }
            Push::Subscribed { name, .. } => {
                self.confirmed(name);
                Ok(())
            }
            // Given up a moment ago, or the channel's slot has moved to another server.
            Push::Unsubscribed { name, .. } if self.channels.contains_key(*name) => Err(Lost),
            Push::Reply(Reply::Error(reason)) => {
                self.refused(&String::from_utf8_lossy(reason));
                Err(Lost)
            }
            _ => Ok(()),
        }
    }

    fn answer(&self, namespace: &str, payload: &[u8]) {
        let kind = match self.wire.channels().dialect() {
            Dialect::Classic => Kind::Response,
            Dialect::Sharded(_) => Kind::Broadcast,
        };
        // What cannot be read is no answer.
        if let Ok(Incoming::Response { id, node, reply }) = self.wire.read(namespace, kind, payload)
        {
            self.asking.hear(&id, node, reply);
        }
    }

    fn confirmed(&mut self, channel: &[u8]) {
        let Some(namespace) = self.channels.get(channel).cloned() else {
            return;
        };
        let index = self.pending.iter().position(|p| p.namespace == namespace);
        let Some(index) = index else {
            return;
        };
        let pending = &mut self.pending[index];
        pending.unconfirmed = pending.unconfirmed.saturating_sub(1);
        if pending.unconfirmed > 0 {
            return;
        }
        let pending = self.pending.swap_remove(index);
        for granted in pending.granted {
            let _ = granted.send(Ok(self.listening(&namespace)));
        }
        self.namespaces.insert(pending.namespace, pending.channels);
    }

    /// Redis does not let this user listen there, or the channel is another server's.
    fn refused(&mut self, reason: &str) {
        for granted in self.pending.drain(..).flat_map(|pending| pending.granted) {
            let reason: Arc<str> = reason.into();
            let error = if reason.starts_with("MOVED") {
                EmitError::Unreachable(reason)
            } else {
                EmitError::Refused(reason)
            };
            let _ = granted.send(Err(error));
        }
    }

    fn listening(&self, namespace: &Arc<str>) -> Listening {
        Listening {
            is_lost: Arc::clone(&self.is_lost),
            _namespace: Arc::clone(namespace),
        }
    }
}

impl Drop for Reader {
    /// Also when the task is aborted.
    fn drop(&mut self) {
        self.is_lost.store(true, Ordering::Release);
    }
}
