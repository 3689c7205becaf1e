//! Sessions of clients in Redis: one text each, which begins with the owner's token.
//!
//! Taking a session replaces the token and leaves the rest, so a node that is killed in
//! that moment loses nothing. Redis compares the token of a former owner that writes
//! afterwards, so the write changes nothing.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use redis::Value;
use roomcast_emitter::redis::{Reply, Route};

use super::{
    outgoing::Outgoing,
    script::{Script, run, unexpected},
};
use crate::bus::{BusError, BusFuture, Session, Sessions, Taken};

/// Replaces or removes a session of the same owner.
pub(super) static UPDATE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("sessions/update.lua")));

/// Gives a session to another owner.
static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("sessions/take.lua")));

/// The sessions of one namespace.
pub(super) struct RedisSessions {
    outgoing: Arc<Outgoing>,
    namespace: Arc<str>,
}

impl RedisSessions {
    pub(super) fn new(outgoing: &Arc<Outgoing>, namespace: &Arc<str>) -> Self {
        Self {
            outgoing: Arc::clone(outgoing),
            namespace: Arc::clone(namespace),
        }
    }

    fn key(&self, pid: &str) -> String {
        let channels = self.outgoing.wire.channels();
        channels.session(&self.namespace, pid)
    }
}

/// Gives the keys of sessions another lifetime. Returns for each whether it was still there.
pub(super) fn refresh(
    outgoing: &Outgoing,
    keys: impl Iterator<Item = String>,
    life: Duration,
) -> BusFuture<Result<Vec<bool>, BusError>> {
    let life = millis(life);
    let all = try_join_all(keys.map(|key| {
        let command = ["PEXPIRE", &key, &life];
        outgoing.command(&command, Route::Key(&key))
    }));
    Box::pin(async move {
        let replies = all.await?.into_iter();
        Ok(replies
            .map(|mut reply| reply.pop().and_then(|value| value.integer()) == Some(1))
            .collect())
    })
}

impl Sessions for RedisSessions {
    fn create(&self, session: Session) -> BusFuture<Result<(), BusError>> {
        let key = self.key(&session.pid);
        let text = text(&session);
        let life = millis(session.life);
        let command: [&[u8]; 5] = [b"SET", key.as_bytes(), &text, b"PX", life.as_bytes()];
        let sent = self.outgoing.command(&command, Route::Key(&key));
        Box::pin(async move {
            sent.await?;
            Ok(())
        })
    }

    fn update(&self, session: Session) -> BusFuture<Result<bool, BusError>> {
        let (key, text) = (self.key(&session.pid), text(&session));
        let life = millis(session.life);
        let args = [session.owner.as_bytes(), life.as_bytes(), &text];
        let running = run(&UPDATE, &self.outgoing, &[&key], &args);
        Box::pin(async move { Ok(running.await?.integer() == Some(1)) })
    }

    fn remove(&self, pid: &str, owner: &str) -> BusFuture<Result<(), BusError>> {
        let key = self.key(pid);
        let running = run(&UPDATE, &self.outgoing, &[&key], &[owner.as_bytes()]);
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
        let running = run(&TAKE, &self.outgoing, &[&key], &[owner.as_bytes()]);
        Box::pin(async move {
            let Value::BulkString(text) = running.await? else {
                return Err(unexpected().into());
            };
            let text = Bytes::from(text);
            let Some(owner) = text.get(..Session::OWNER) else {
                return Ok(None);
            };
            Ok(Some(Taken {
                owner: String::from_utf8_lossy(owner).into(),
                value: text.slice(Session::OWNER..),
            }))
        })
    }
}

/// The stored form of a session.
fn text(session: &Session) -> Vec<u8> {
    debug_assert_eq!(session.owner.len(), Session::OWNER);
    [session.owner.as_bytes(), &session.value].concat()
}

/// A time as Redis reads it, at least 1 ms.
pub(super) fn millis(life: Duration) -> String {
    life.as_millis().max(1).to_string()
}
