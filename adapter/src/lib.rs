//! Rooms of a Roomcast node: their members, the recipients of broadcasts, and the bus between the
//! nodes of a cluster.
//!
//! - [`Adapter`] is the index of one namespace: it joins, leaves, selects and fans out.
//! - [`Member`] is its interface to a connected socket.
//! - [`Bus`] carries messages and questions between nodes. [`MemoryBus`] connects the
//!   servers of one process, [`RedisBus`] connects nodes, Node.js servers and emitters.
//!
//! The crate knows neither HTTP nor WebSocket.

mod adapter;
mod bus;
mod directory;
mod member;
mod memory_bus;
mod memory_keys;
mod memory_log;
mod memory_sessions;
mod redis_bus;
mod rooms;
pub mod subscriber;
mod watch;

pub use adapter::{Adapter, JoinError, RoomLimits};
pub use bus::{
    Attachment, Bus, BusError, BusFuture, BusHandle, Gap, Health, HistoryEntry, HistoryLimits,
    JournalEntry, JournalLimits, JournalPage, Listener, Log, LogLimits, Once, Page, Peer, Progress,
    Published, Session, Sessions, Taken, Tracking,
};
pub use member::Member;
pub use memory_bus::MemoryBus;
pub use memory_keys::MemoryKeys;
pub use memory_log::MemoryLogs;
pub use memory_sessions::MemorySessions;
pub use redis_bus::{PrivateRooms, RedisBus, RedisConfig, RedisRights, StartError};
pub use roomcast_emitter::Signing;
pub use roomcast_protocol::{
    id::{NodeId, SocketId},
    message::Position,
    question::{Answer, Answered, Description, Question},
};
pub use watch::RoomWatch;
