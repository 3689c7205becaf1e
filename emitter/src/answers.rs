//! The connections over which an emitter receives the answers to its questions.
//!
//! One is opened at the first question, and again at the next question after it was lost;
//! it does not reconnect by itself, because a lost connection fails the questions that
//! wait. It subscribes to the channels on which the nodes of a namespace answer, and
//! keeps them for the next question. In a Redis Cluster with the sharded dialect there is
//! one per server.
//!
//! ```text
//!   listen ─▶ known namespace? ──yes──▶ Listening ──▶ question
//!                  │ no                     ▲
//!                  └─▶ SUBSCRIBE, confirmed ┘
//!
//!   connection closed, slot moved, no confirmation ─▶ lost: questions that wait end with what they
//!                                                     have, the next one opens another connection
//! ```

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::{
    Pipeline, PushInfo, PushKind, RedisError, Value,
    aio::{AsyncPushSender, SendError},
};
use roomcast_protocol::{
    channel::{Dialect, Kind, slot, uid},
    id::NodeId,
    wire::{Incoming, Wire},
};
use tokio::time::timeout;

use crate::{
    error::EmitError,
    membership::{PendingQuestions, TooManyQuestions},
    redis::{Address, ConnectError, Endpoint, Multiplexed, Purpose, Topology, error_text},
    signing::Signer,
};

/// Maximum number of connections, one per primary of a cluster.
const MAX_CONNECTIONS: usize = 1_000;

/// Maximum number of namespaces per connection.
const MAX_NAMESPACES: usize = 1_000;

/// Timeout for the confirmation of a subscription.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// Receives answers.
pub(crate) struct Answers {
    endpoint: Endpoint,
    wire: Arc<Wire>,
    node: NodeId,
    questions: Arc<PendingQuestions>,
    signer: Option<Arc<Signer>>,
    /// By server; without an address if there is only one.
    connections: Mutex<HashMap<Option<Address>, Arc<AnswerConnection>>>,
}

impl Answers {
    /// Does not connect yet.
    pub(crate) fn new(
        endpoint: Endpoint,
        wire: Arc<Wire>,
        node: NodeId,
        questions: Arc<PendingQuestions>,
        signer: Option<Arc<Signer>>,
    ) -> Self {
        Self {
            endpoint,
            wire,
            node,
            questions,
            signer,
            connections: Mutex::default(),
        }
    }

    /// Resolves once answers of a namespace are received.
    pub(crate) async fn listen(&self, namespace: &str) -> Result<Listening, EmitError> {
        let channels = self.wire.channels();
        let uid = uid(&self.node, namespace, channels.dialect());
        let own = channels.response_of(namespace, uid.as_str());
        let server = self.server_of(&own).await?;
        let mut names = vec![own];
        names.extend(channels.response(namespace));
        self.connection(&server)
            .await?
            .listen(namespace, names)
            .await
    }

    /// The server of a cluster that a channel belongs to; `None` if all are on one.
    async fn server_of(&self, channel: &str) -> Result<Option<Address>, EmitError> {
        let is_cluster = self.endpoint.topology() == Topology::Cluster;
        let is_sharded = self.wire.channels().dialect().is_sharded();
        if !(is_cluster && is_sharded) {
            return Ok(None);
        }
        // Asked for each question: a slot may have moved, and questions are rare.
        let map = self.endpoint.cluster_map(None).await;
        let map = map.map_err(|error| unreachable(&error))?;
        match map.and_then(|map| map.owner(slot(channel)).cloned()) {
            Some(owner) => Ok(Some(owner)),
            None => Err(EmitError::Unreachable(
                "a part of the cluster is lost".into(),
            )),
        }
    }

    async fn connection(
        &self,
        server: &Option<Address>,
    ) -> Result<Arc<AnswerConnection>, EmitError> {
        if let Some(connection) = self.live(server) {
            return Ok(connection);
        }
        let receiver = Arc::new(Receiver {
            wire: Arc::clone(&self.wire),
            questions: Arc::clone(&self.questions),
            signer: self.signer.clone(),
            is_lost: AtomicBool::new(false),
            channels: Mutex::default(),
        });
        let (purpose, push) = (Purpose::Subscriber, Some(Arc::clone(&receiver) as _));
        let opened = match server {
            Some(address) => self.endpoint.connect_to(address, purpose, push).await,
            None => self.endpoint.connect(purpose, push).await,
        };
        let opened = opened.map_err(|error| unreachable(&error))?;
        let mut connections = self.connections.lock();
        connections.retain(|_, connection| !connection.receiver.is_lost());
        // Another question may have opened one meanwhile.
        if let Some(connection) = connections.get(server) {
            return Ok(Arc::clone(connection));
        }
        if connections.len() >= MAX_CONNECTIONS {
            return Err(TooManyQuestions.into());
        }
        let connection = Arc::new(AnswerConnection {
            inner: opened.into_inner(),
            receiver,
            namespaces: tokio::sync::Mutex::default(),
        });
        connections.insert(server.clone(), Arc::clone(&connection));
        Ok(connection)
    }

    fn live(&self, server: &Option<Address>) -> Option<Arc<AnswerConnection>> {
        let connections = self.connections.lock();
        let connection = connections.get(server);
        connection
            .filter(|connection| !connection.receiver.is_lost())
            .cloned()
    }
}

fn unreachable(error: &ConnectError) -> EmitError {
    let reason = error.to_string().into();
    if error.is_permanent() {
        EmitError::Refused(reason)
    } else {
        EmitError::Unreachable(reason)
    }
}

/// One connection for answers.
struct AnswerConnection {
    inner: Multiplexed,
    receiver: Arc<Receiver>,
    /// The namespaces whose channels are confirmed. Held while one is subscribed.
    namespaces: tokio::sync::Mutex<HashMap<Arc<str>, Vec<String>>>,
}

/// While it exists, answers of a namespace are received, unless the connection is lost.
pub(crate) struct Listening {
    receiver: Arc<Receiver>,
    _namespace: Arc<str>,
}

impl Listening {
    /// Whether answers may have been lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.receiver.is_lost()
    }
}

impl AnswerConnection {
    async fn listen(&self, namespace: &str, channels: Vec<String>) -> Result<Listening, EmitError> {
        let mut namespaces = self.namespaces.lock().await;
        if let Some((namespace, _)) = namespaces.get_key_value(namespace) {
            return Ok(self.listening(namespace));
        }
        if namespaces.len() >= MAX_NAMESPACES {
            self.make_room(&mut namespaces).await?;
        }
        let namespace: Arc<str> = namespace.into();
        {
            let mut known = self.receiver.channels.lock();
            for channel in &channels {
                known.insert(channel.as_bytes().into(), Arc::clone(&namespace));
            }
        }
        self.send("SUBSCRIBE", &channels).await?;
        let listening = self.listening(&namespace);
        namespaces.insert(namespace, channels);
        Ok(listening)
    }

    fn listening(&self, namespace: &Arc<str>) -> Listening {
        Listening {
            receiver: Arc::clone(&self.receiver),
            _namespace: Arc::clone(namespace),
        }
    }

    /// Gives up a namespace that no question needs at the moment.
    async fn make_room(
        &self,
        namespaces: &mut HashMap<Arc<str>, Vec<String>>,
    ) -> Result<(), EmitError> {
        // One clone is the key, and each channel has one.
        let mut idle = namespaces
            .iter()
            .filter(|(name, channels)| Arc::strong_count(name) == 1 + channels.len());
        let Some(namespace) = idle.next().map(|(name, _)| Arc::clone(name)) else {
            return Err(TooManyQuestions.into());
        };
        let channels = namespaces.remove(&namespace).unwrap_or_default();
        {
            let mut known = self.receiver.channels.lock();
            for channel in &channels {
                known.remove(channel.as_bytes());
            }
        }
        self.send("UNSUBSCRIBE", &channels).await
    }

    /// Subscribes or unsubscribes, with one command per name: in a cluster the names of one command
    /// must share a slot, and the connection expects one confirmation per command. After a failure
    /// the connection is no longer used, because its subscriptions are unknown.
    async fn send(&self, command: &str, channels: &[String]) -> Result<(), EmitError> {
        let is_sharded = self.receiver.wire.channels().dialect().is_sharded();
        let sharded = if is_sharded { "S" } else { "" };
        let mut pipeline = Pipeline::with_capacity(channels.len());
        for channel in channels {
            pipeline.cmd(&format!("{sharded}{command}")).arg(channel);
        }
        let mut inner = self.inner.clone();
        let sending = inner.send_packed_commands(&pipeline, 0, channels.len());
        let sent = match timeout(CONFIRM_TIMEOUT, sending).await {
            Ok(Ok(replies)) => replies
                .into_iter()
                .try_for_each(|reply| reply.extract_error().map(drop)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                self.receiver.lose();
                let reason = "a subscription was not confirmed in time";
                return Err(EmitError::Unreachable(reason.into()));
            }
        };
        sent.map_err(|error| {
            self.receiver.lose();
            refused(&error)
        })
    }
}

fn refused(error: &RedisError) -> EmitError {
    let reason = error_text(error).into();
    match error.code() {
        // A slot that has just moved is found again.
        None | Some("MOVED") => EmitError::Unreachable(reason),
        Some(_) => EmitError::Refused(reason),
    }
}

/// Handles the messages of a connection, on the task that reads it.
struct Receiver {
    wire: Arc<Wire>,
    questions: Arc<PendingQuestions>,
    signer: Option<Arc<Signer>>,
    is_lost: AtomicBool,
    /// The subscribed channels, with the namespace whose answers they carry.
    channels: Mutex<HashMap<Box<[u8]>, Arc<str>>>,
}

impl Receiver {
    fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    fn lose(&self) {
        self.is_lost.store(true, Ordering::Release);
    }

    fn namespace_of(&self, channel: &Value) -> Option<Arc<str>> {
        match channel {
            Value::BulkString(channel) => self.channels.lock().get(&channel[..]).cloned(),
            _ => None,
        }
    }

    fn message(&self, channel: &Value, payload: &Value) {
        // On a channel that all share, most answers are for others.
        if self.questions.is_idle() {
            return;
        }
        let (Some(namespace), Value::BulkString(payload)) = (self.namespace_of(channel), payload)
        else {
            return;
        };
        let Some(payload) = self.opened(channel, payload) else {
            return;
        };
        let kind = match self.wire.channels().dialect() {
            Dialect::Classic => Kind::Response,
            Dialect::Sharded(_) | Dialect::Streams => Kind::Broadcast,
        };
        // A payload that cannot be read is not an answer.
        if let Ok(Incoming::Response { id, node, reply }) =
            self.wire.read(&namespace, kind, &payload)
        {
            self.questions.receive(&id, node, reply);
        }
    }
}

impl Receiver {
    /// The published message, unless it had to be signed and is not.
    fn opened<'a>(&self, channel: &Value, payload: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let Some(signer) = &self.signer else {
            return Some(Cow::Borrowed(payload));
        };
        let Value::BulkString(channel) = channel else {
            return None;
        };
        let channel = str::from_utf8(channel).ok()?;
        match signer.open(channel, payload) {
            Ok(opened) => Some(opened),
            Err(reason) => {
                tracing::debug!(channel, %reason, "an answer was dropped");
                None
            }
        }
    }
}

impl AsyncPushSender for Receiver {
    fn send(&self, push: PushInfo) -> Result<(), SendError> {
        match (push.kind, &push.data[..]) {
            (PushKind::Message | PushKind::SMessage, [channel, payload]) => {
                self.message(channel, payload);
            }
            (PushKind::Disconnection, _) => self.lose(),
            // Nobody here gave the channel up: its slot has moved to another server.
            (PushKind::Unsubscribe | PushKind::SUnsubscribe, [channel, ..])
                if self.namespace_of(channel).is_some() =>
            {
                self.lose();
            }
            _ => {}
        }
        Ok(())
    }
}
