//! Sessions of clients that may come back, as the server sees them.

use std::time::Duration;

use bytes::Bytes;

use super::{BusError, BusFuture};

/// Keeps the sessions of a namespace's clients, so that any node can go on with one.
///
/// A session has an owner: a token of the socket that wrote it. Once another node has taken the session,
/// or its new socket has stored it again, writes of the former owner change nothing. So a node that
/// notices late that its client has gone does no harm. Every implementation gives these guarantees; one
/// suite of tests checks all of them.
pub trait Sessions: Send + Sync + 'static {
    /// Stores a session for its owner, whatever was stored before.
    fn create(&self, session: Session) -> BusFuture<Result<(), BusError>>;

    /// Replaces the session if it is still the owner's. Resolves to whether it was.
    fn update(&self, session: Session) -> BusFuture<Result<bool, BusError>>;

    /// Removes the session if it is still the owner's.
    fn remove(&self, pid: &str, owner: &str) -> BusFuture<Result<(), BusError>>;

    /// Keeps sessions that exist for this long from now on.
    fn refresh(&self, pids: &[Box<str>], life: Duration) -> BusFuture<Result<(), BusError>>;

    /// Takes the value of a session, which is gone then. Of two nodes that ask at the same time, one
    /// gets it.
    fn take(&self, pid: &str) -> BusFuture<Result<Option<Bytes>, BusError>>;
}

/// A session to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its secret name.
    pub pid: Box<str>,
    /// The owner's token, of [`Session::OWNER`] ASCII characters.
    pub owner: Box<str>,
    /// What is kept.
    pub value: Bytes,
    /// How long it is kept.
    pub life: Duration,
}

impl Session {
    /// Length of an owner's token.
    pub const OWNER: usize = 20;
}
