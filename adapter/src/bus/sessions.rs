//! Sessions of clients that may come back, as the server sees them.

use std::time::Duration;

use bytes::Bytes;

use super::{BusError, BusFuture};

/// Keeps the sessions of a namespace's clients, so that any node can resume them.
///
/// A session has an owner: a token of the socket that wrote it. Once another owner has
/// taken the session, writes of the former one change nothing. So a node that notices a disconnect
/// late does no harm. A session that the store has lost has no owner, so an update stores it again.
/// Every implementation gives these guarantees; one suite of tests checks all of them.
pub trait Sessions: Send + Sync + 'static {
    /// Stores a session for its owner, and replaces any earlier value.
    fn create(&self, session: Session) -> BusFuture<Result<(), BusError>>;

    /// Replaces the session, or stores it again if it is missing, unless it is another
    /// owner's. Resolves to whether it was stored.
    fn update(&self, session: Session) -> BusFuture<Result<bool, BusError>>;

    /// Removes the session, unless it is another owner's. Resolves to whether it was not.
    fn remove(&self, pid: &str, owner: &str) -> BusFuture<Result<bool, BusError>>;

    /// Keeps sessions that exist for this long from now on. Resolves to whether each of
    /// them exists.
    fn refresh(&self, pids: &[Box<str>], life: Duration) -> BusFuture<Result<Vec<bool>, BusError>>;

    /// Makes `owner` the owner of a session, which otherwise stays as it is. Resolves to
    /// its value and its former owner. If two take it, the later one is the owner.
    fn take(&self, pid: &str, owner: &str) -> BusFuture<Result<Option<Taken>, BusError>>;
}

/// A session to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its secret name.
    pub pid: Box<str>,
    /// The owner's token, of [`Session::OWNER`] ASCII characters.
    pub owner: Box<str>,
    /// The stored value.
    pub value: Bytes,
    /// How long it is kept.
    pub life: Duration,
}

/// A session that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The token of the former owner.
    pub owner: Box<str>,
    /// The stored value.
    pub value: Bytes,
}

impl Session {
    /// Length of an owner's token.
    pub const OWNER: usize = 20;
}
