//! Sessions of clients in Redis: one text each, which begins with the owner's token.
//!
//! A session is used once, because GETDEL takes it. What a former owner writes afterwards is compared
//! with the token inside Redis, so it changes nothing.

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
    script::{Script, unexpected},
};
use crate::bus::{BusError, BusFuture, Session, Sessions};

/// Replaces or removes a session of the same owner.
static UPDATE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("sessions/update.lua")));

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
        let running = UPDATE.run(&self.outgoing, &[&key], &args);
        Box::pin(async move { Ok(running.await?.integer() == Some(1)) })
    }

    fn remove(&self, pid: &str, owner: &str) -> BusFuture<Result<(), BusError>> {
        let key = self.key(pid);
        let running = UPDATE.run(&self.outgoing, &[&key], &[owner.as_bytes()]);
        Box::pin(async move {
            running.await?;
            Ok(())
        })
    }

    fn refresh(&self, pids: &[Box<str>], life: Duration) -> BusFuture<Result<(), BusError>> {
        let life = millis(life);
        let refresh = |pid: &str| {
            let key = self.key(pid);
            let command = ["PEXPIRE", &key, &life];
            self.outgoing.command(&command, Route::Key(&key))
        };
        let all = try_join_all(pids.iter().map(|pid| refresh(pid)));
        Box::pin(async move {
            all.await?;
            Ok(())
        })
    }

    fn take(&self, pid: &str) -> BusFuture<Result<Option<Bytes>, BusError>> {
        let key = self.key(pid);
        let sent = self.outgoing.command(&["GETDEL", &key], Route::Key(&key));
        Box::pin(async move {
            match sent.await?.pop() {
                Some(Value::BulkString(text)) if text.len() >= Session::OWNER => {
                    Ok(Some(Bytes::from(text).slice(Session::OWNER..)))
                }
                Some(Value::Nil) => Ok(None),
                _ => Err(unexpected().into()),
            }
        })
    }
}

/// What is stored of a session.
fn text(session: &Session) -> Vec<u8> {
    debug_assert_eq!(session.owner.len(), Session::OWNER);
    [session.owner.as_bytes(), &session.value].concat()
}

/// A time as Redis reads it, at least 1 ms.
fn millis(life: Duration) -> String {
    life.as_millis().max(1).to_string()
}
