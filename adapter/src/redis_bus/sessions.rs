//! Sessions of clients in Redis: one text each, which begins with the owner's token.
//!
//! Taking a session replaces the token and leaves the rest, so a node that is killed in
//! that moment loses nothing. Redis compares the token of a former owner that writes
//! afterwards, so the write changes nothing.
//!
//! In the streams dialect, sessions are stored where Node's servers look for them, and in a form that they
//! read. A Node server that takes a session removes it, and does not support owners. So a Roomcast
//! node that notices a disconnect late may store the session once more; it is not used unless the
//! client comes back with it.

use std::{
    borrow::Cow,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use redis::Value;
use roomcast_emitter::redis::{Reply, Route};
use roomcast_protocol::wire::StoredSession;

use super::{
    outgoing::Outgoing,
    script::{Script, run, unexpected},
};
use crate::bus::{BusError, BusFuture, Session, Sessions, Taken};

/// Replaces or removes a session of the same owner.
static UPDATE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("sessions/update.lua")));

/// Gives a session to another owner, or takes it from a Node server.
static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("sessions/take.lua")));

/// The sessions of one namespace.
#[derive(Clone)]
pub(super) struct RedisSessions {
    outgoing: Arc<Outgoing>,
    namespace: Arc<str>,
    /// The prefix of the keys of Node's servers, whose form sessions have; `None`: our own form.
    node_js: Option<Arc<str>>,
}

impl RedisSessions {
    pub(super) fn new(
        outgoing: &Arc<Outgoing>,
        namespace: &Arc<str>,
        node_js: Option<&Arc<str>>,
    ) -> Self {
        Self {
            outgoing: Arc::clone(outgoing),
            namespace: Arc::clone(namespace),
            node_js: node_js.cloned(),
        }
    }

    /// That of Node's servers does not contain the namespace.
    fn key(&self, pid: &str) -> String {
        match &self.node_js {
            Some(prefix) => [prefix, pid].concat(),
            None => {
                let channels = self.outgoing.wire.channels();
                channels.session(&self.namespace, pid)
            }
        }
    }

    /// The beginning of the sessions of an owner.
    fn head<'a>(&self, owner: &'a str) -> Cow<'a, str> {
        debug_assert_eq!(owner.len(), Session::OWNER);
        match self.node_js {
            Some(_) => StoredSession::head_of(owner).into(),
            None => owner.into(),
        }
    }

    /// The stored form of a session.
    fn text(&self, session: &Session) -> Vec<u8> {
        let Session {
            pid, owner, value, ..
        } = session;
        match self.node_js {
            Some(_) => StoredSession::write(owner, &self.namespace, pid, value).into_bytes(),
            None => [self.head(owner).as_bytes(), value].concat(),
        }
    }

    /// Reads the stored form of a session, which a foreign program may have written. The owner is
    /// missing if a Node server has stored it.
    fn read(&self, text: Vec<u8>) -> Option<(Option<Box<str>>, Bytes)> {
        if self.node_js.is_none() {
            let text = Bytes::from(text);
            let owner = String::from_utf8_lossy(text.get(..Session::OWNER)?).into();
            return Some((Some(owner), text.slice(Session::OWNER..)));
        }
        let stored = self.outgoing.wire.read_session(&text).ok()?;
        let is_here = |namespace: Box<str>| *namespace == *self.namespace;
        let is_ours = stored.namespace.is_none_or(is_here);
        is_ours.then(|| (stored.holder, stored.record.into()))
    }
}

impl Sessions for RedisSessions {
    fn create(&self, session: Session) -> BusFuture<Result<(), BusError>> {
        let (key, text) = (self.key(&session.pid), self.text(&session));
        let life = millis(session.life);
        let command: [&[u8]; 5] = [b"SET", key.as_bytes(), &text, b"PX", life.as_bytes()];
        let sent = self.outgoing.command(&command, Route::Key(&key));
        Box::pin(async move {
            sent.await?;
            Ok(())
        })
    }

    fn update(&self, session: Session) -> BusFuture<Result<bool, BusError>> {
        let (key, text) = (self.key(&session.pid), self.text(&session));
        let (head, life) = (self.head(&session.owner), millis(session.life));
        let args = [head.as_bytes(), life.as_bytes(), &text];
        let running = run(&UPDATE, &self.outgoing, &[&key], &args);
        Box::pin(async move { Ok(running.await?.integer() == Some(1)) })
    }

    fn remove(&self, pid: &str, owner: &str) -> BusFuture<Result<bool, BusError>> {
        let (key, head) = (self.key(pid), self.head(owner));
        let running = run(&UPDATE, &self.outgoing, &[&key], &[head.as_bytes()]);
        Box::pin(async move { Ok(running.await?.integer() == Some(1)) })
    }

    fn refresh(&self, pids: &[Box<str>], life: Duration) -> BusFuture<Result<Vec<bool>, BusError>> {
        let life = millis(life);
        let all = try_join_all(pids.iter().map(|pid| {
            let key = self.key(pid);
            let command = ["PEXPIRE", &key, &life];
            self.outgoing.command(&command, Route::Key(&key))
        }));
        Box::pin(async move {
            let replies = all.await?.into_iter();
            Ok(replies
                .map(|mut reply| reply.pop().and_then(|value| value.integer()) == Some(1))
                .collect())
        })
    }

    fn take(&self, pid: &str, owner: &str) -> BusFuture<Result<Option<Taken>, BusError>> {
        let (key, head) = (self.key(pid), self.head(owner));
        // Our own form has no sessions of Node servers, so all begin with nothing.
        let ours = self.node_js.as_ref().map(|_| StoredSession::head());
        let args = [head.as_bytes(), ours.as_deref().unwrap_or("").as_bytes()];
        let running = run(&TAKE, &self.outgoing, &[&key], &args);
        let (sessions, pid, taker) = (self.clone(), pid.into(), owner.into());
        Box::pin(async move {
            let Value::Array(reply) = running.await? else {
                return Err(unexpected().into());
            };
            let Ok([Value::BulkString(text), life]) = <[Value; 2]>::try_from(reply) else {
                return Err(unexpected().into());
            };
            let Some((owner, value)) = sessions.read(text) else {
                return Ok(None);
            };
            if owner.is_none() {
                let life = life.integer().and_then(|life| u64::try_from(life).ok());
                let session = Session {
                    pid,
                    owner: taker,
                    value: value.clone(),
                    life: Duration::from_millis(life.unwrap_or(1)),
                };
                sessions.create(session).await?;
            }
            let owner = owner.unwrap_or_default();
            Ok(Some(Taken { owner, value }))
        })
    }
}

/// A time as Redis reads it, at least 1 ms.
fn millis(life: Duration) -> String {
    life.as_millis().max(1).to_string()
}
