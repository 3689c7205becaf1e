//! Sessions of clients where Node's servers look for them, and in a form that they read.
//!
//! A Node server that takes a session removes it, and does not support owners. So a Roomcast node
//! that notices a disconnect late may store the session once more; it is not used unless the client
//! comes back with it.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use redis::Value;
use roomcast_emitter::redis::{Reply, Route};
use roomcast_protocol::wire::StoredSession;

use crate::{
    bus::{BusError, BusFuture, Session, Sessions, Taken},
    redis_bus::{
        outgoing::Outgoing,
        script::{Script, run, unexpected},
        sessions::{UPDATE, millis, refresh},
    },
};

/// Gives a session to another owner, or takes it from a Node server.
static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("take.lua")));

/// The sessions of one namespace.
pub(in super::super) struct StreamSessions {
    outgoing: Arc<Outgoing>,
    prefix: Arc<str>,
    namespace: Arc<str>,
}

impl StreamSessions {
    pub(in super::super) fn new(
        outgoing: &Arc<Outgoing>,
        prefix: &Arc<str>,
        namespace: &Arc<str>,
    ) -> Self {
        Self {
            outgoing: Arc::clone(outgoing),
            prefix: Arc::clone(prefix),
            namespace: Arc::clone(namespace),
        }
    }

    /// Node's servers have no namespace in it.
    fn key(&self, pid: &str) -> String {
        [&*self.prefix, pid].concat()
    }

    fn text(&self, session: &Session) -> String {
        StoredSession::write(
            &session.owner,
            &self.namespace,
            &session.pid,
            &session.value,
        )
    }
}

impl Sessions for StreamSessions {
    fn create(&self, session: Session) -> BusFuture<Result<(), BusError>> {
        let (key, text) = (self.key(&session.pid), self.text(&session));
        let life = millis(session.life);
        let command = ["SET", &key, &text, "PX", &life];
        let sent = self.outgoing.command(&command, Route::Key(&key));
        Box::pin(async move {
            sent.await?;
            Ok(())
        })
    }

    fn update(&self, session: Session) -> BusFuture<Result<bool, BusError>> {
        let (key, text) = (self.key(&session.pid), self.text(&session));
        let (head, life) = (StoredSession::head_of(&session.owner), millis(session.life));
        let args = [&head, &life, &text].map(|arg| arg.as_bytes());
        let running = run(&UPDATE, &self.outgoing, &[&key], &args);
        Box::pin(async move { Ok(running.await?.integer() == Some(1)) })
    }

    fn remove(&self, pid: &str, owner: &str) -> BusFuture<Result<(), BusError>> {
        let (key, head) = (self.key(pid), StoredSession::head_of(owner));
        let running = run(&UPDATE, &self.outgoing, &[&key], &[head.as_bytes()]);
        Box::pin(async move {
            running.await?;
            Ok(())
        })
    }

    fn refresh(&self, pids: &[Box<str>], life: Duration) -> BusFuture<Result<Vec<bool>, BusError>> {
        refresh(&self.outgoing, pids.iter().map(|pid| self.key(pid)), life)
    }

    fn take(&self, pid: &str, owner: &str) -> BusFuture<Result<Option<Taken>, BusError>> {
        let key = self.key(pid);
        let heads = [StoredSession::head_of(owner), StoredSession::head()];
        let args = heads.each_ref().map(|head| head.as_bytes());
        let running = run(&TAKE, &self.outgoing, &[&key], &args);
        let (pid, owner) = (Box::<str>::from(pid), Box::<str>::from(owner));
        let mine = Self::new(&self.outgoing, &self.prefix, &self.namespace);
        Box::pin(async move {
            let reply = running.await?;
            let Some([Value::BulkString(text), life]) = reply.list() else {
                return Err(unexpected().into());
            };
            // A foreign program may have written anything.
            let Ok(stored) = mine.outgoing.wire.read_session(text) else {
                return Ok(None);
            };
            let is_elsewhere = |namespace: Box<str>| *namespace != *mine.namespace;
            if stored.namespace.is_some_and(is_elsewhere) {
                return Ok(None);
            }
            let value = bytes::Bytes::from(stored.record);
            if stored.holder.is_none() {
                let life = life.integer().and_then(|life| u64::try_from(life).ok());
                let session = Session {
                    pid,
                    owner,
                    value: value.clone(),
                    life: Duration::from_millis(life.unwrap_or(1)),
                };
                mine.create(session).await?;
            }
            Ok(Some(Taken {
                owner: stored.holder.unwrap_or_default(),
                value,
            }))
        })
    }
}
