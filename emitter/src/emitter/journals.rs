//! Which namespaces have a journal.
//!
//! Nodes write the limits of a journal to Redis, and an emitter looks there at most once
//! a second for each namespace to which it emits. A user without the right to look emits
//! as if there were no journal.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use roomcast_protocol::channel::Channels;
use tokio::time::Instant;

use super::transport::Transport;
use crate::{
    error::EmitError,
    log::{JournalLimits, Names},
};

/// How long a result is considered valid.
const BELIEVED: Duration = Duration::from_secs(1);

/// The most namespaces that are remembered.
const MAX_NAMESPACES: usize = 1024;

#[derive(Default)]
pub(super) struct Journals {
    known: Mutex<HashMap<Box<str>, Known>>,
    /// Held while Redis is asked, so that emits that wait for it keep their order.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Known {
    at: Instant,
    names: Arc<Names>,
    /// The limits, and whether broadcasts can be emitted at least once.
    announced: Option<(JournalLimits, bool)>,
}

/// The journal of a namespace.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    pub(super) names: Arc<Names>,
    pub(super) limits: JournalLimits,
    /// Whether broadcasts can be emitted at least once.
    pub(super) at_least_once: bool,
}

impl Known {
    fn journal(&self) -> Option<Journal> {
        let (limits, at_least_once) = self.announced?;
        Some(Journal {
            names: Arc::clone(&self.names),
            limits,
            at_least_once,
        })
    }
}

impl Journals {
    /// The names of the logs of a namespace.
    pub(super) fn names(&self, channels: &Channels, namespace: &str) -> Arc<Names> {
        let known = self.known.lock();
        match known.get(namespace) {
            Some(known) => Arc::clone(&known.names),
            None => Arc::new(Names::new(channels, namespace)),
        }
    }

    /// The journal of a namespace, as it was a moment ago. Does not wait if that is known.
    ///
    /// # Errors
    ///
    /// [`EmitError::Unreachable`] or [`EmitError::Overloaded`]: nothing was published.
    pub(super) async fn of(
        &self,
        transport: &Transport,
        channels: &Channels,
        namespace: &str,
    ) -> Result<Option<Journal>, EmitError> {
        if let Some(known) = self.recent(namespace) {
            return Ok(known.journal());
        }
        let _turn = self.asking.lock().await;
        if let Some(known) = self.recent(namespace) {
            return Ok(known.journal());
        }
        let names = self.names(channels, namespace);
        let announced = match Box::pin(transport.get(&names.limits)).await {
            Ok(text) => text.and_then(|text| JournalLimits::read(&text)),
            Err(EmitError::Refused(_)) => None,
            // The reply to a question is lost, and no message.
            Err(EmitError::Unconfirmed(reason)) => return Err(EmitError::Unreachable(reason)),
            Err(error) => return Err(error),
        };
        let at = Instant::now();
        let found = Known {
            at,
            names,
            announced,
        };
        let mut known = self.known.lock();
        if known.len() >= MAX_NAMESPACES {
            known.clear();
        }
        known.insert(namespace.into(), found.clone());
        Ok(found.journal())
    }

    fn recent(&self, namespace: &str) -> Option<Known> {
        let known = self.known.lock();
        let known = known.get(namespace)?;
        (known.at.elapsed() < BELIEVED).then(|| known.clone())
    }
}
