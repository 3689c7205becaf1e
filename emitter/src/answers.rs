//! The connection over which an emitter hears the answers to its questions.
//!
//! Opened at the first question, and anew at the next one after it was lost. It subscribes to what
//! the nodes of a namespace answer on, and keeps that for the next question. In a Redis Cluster with
//! the sharded dialect there is one for each server that answers come over.

mod line;

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use self::line::Line;
pub(crate) use self::line::Listening;
use crate::{
    asking::{Asking, TooManyQuestions},
    emitter::EmitError,
    endpoint::{Address, ConnectError, Endpoint, Purpose, Topology},
};
use roomcast_protocol::{
    channel::{Dialect, slot, uid},
    id::NodeId,
    wire::Wire,
};

/// The most connections, one for each primary of a cluster.
const MAX_LINES: usize = 1_000;

/// Where answers are heard.
pub(crate) struct Answers {
    endpoint: Endpoint,
    wire: Arc<Wire>,
    node: NodeId,
    asking: Arc<Asking>,
    /// By the server; without an address if there is only one.
    lines: Mutex<HashMap<Option<Address>, Arc<Line>>>,
}

impl Answers {
    /// Opens nothing yet.
    pub(crate) fn new(
        endpoint: Endpoint,
        wire: Arc<Wire>,
        node: NodeId,
        asking: Arc<Asking>,
    ) -> Self {
        Self {
            endpoint,
            wire,
            node,
            asking,
            lines: Mutex::default(),
        }
    }

    /// Resolves once the answers of a namespace are heard.
    pub(crate) async fn listen(&self, namespace: &str) -> Result<Listening, EmitError> {
        let channels = self.wire.channels();
        let uid = uid(&self.node, namespace, channels.dialect());
        let own = channels.response_of(namespace, uid.as_str());
        let server = self.server_of(&own).await?;
        let mut names = vec![own];
        names.extend(channels.response(namespace));
        let line = self.line(&server).await?;
        line.listen(namespace, names).await
    }

    /// Which server of a cluster a channel belongs to; none where all are on the same one.
    async fn server_of(&self, channel: &str) -> Result<Option<Address>, EmitError> {
        let is_cluster = self.endpoint.topology() == Topology::Cluster;
        let is_sharded = self.wire.channels().dialect() != Dialect::Classic;
        if !(is_cluster && is_sharded) {
            return Ok(None);
        }
        // Asked anew for each question: a slot may have moved since the last one, and a question
        // is no frequent thing.
        let map = self
            .endpoint
            .cluster_map(None)
            .await
            .map_err(|error| unreachable(&error))?;
        let owner = map.and_then(|map| map.owner(slot(channel)).cloned());
        match owner {
            Some(owner) => Ok(Some(owner)),
            None => Err(EmitError::Unreachable(
                "a part of the cluster is lost".into(),
            )),
        }
    }

    async fn line(&self, server: &Option<Address>) -> Result<Arc<Line>, EmitError> {
        if let Some(line) = self.live(server) {
            return Ok(line);
        }
        let connection = match server {
            Some(address) => self.endpoint.connect_to(address, Purpose::Subscriber).await,
            None => self.endpoint.connect(Purpose::Subscriber).await,
        };
        let connection = connection.map_err(|error| unreachable(&error))?;
        let mut lines = self.lines.lock();
        lines.retain(|_, line| !line.is_lost());
        // Somebody else may have been faster.
        if let Some(line) = lines.get(server) {
            return Ok(Arc::clone(line));
        }
        if lines.len() >= MAX_LINES {
            return Err(TooManyQuestions.into());
        }
        let line = Line::start(connection, Arc::clone(&self.wire), Arc::clone(&self.asking));
        let line = Arc::new(line);
        lines.insert(server.clone(), Arc::clone(&line));
        Ok(line)
    }

    fn live(&self, server: &Option<Address>) -> Option<Arc<Line>> {
        let lines = self.lines.lock();
        lines.get(server).filter(|line| !line.is_lost()).cloned()
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
