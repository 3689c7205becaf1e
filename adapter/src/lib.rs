//! Rooms of a Roomcast node: which sockets are in which rooms, who receives a broadcast, and how
//! nodes hear of each other's broadcasts.
//!
//! The crate knows neither HTTP nor WebSocket. What it needs of a connected socket is the
//! [`Member`] trait; other nodes are reached through a [`Bus`].

mod adapter;
mod bus;
mod directory;
mod member;
mod memory_bus;
mod redis_bus;
mod rooms;
pub mod subscriber;

pub use adapter::{Adapter, JoinError, RoomLimits};
pub use bus::{
    Attachment, Bus, BusError, BusFuture, BusHandle, Gap, Health, Listener, Position, Progress,
    Published, Tracking,
};
pub use member::Member;
pub use memory_bus::MemoryBus;
pub use redis_bus::{PrivateRooms, RedisBus, RedisConfig, StartError};
pub use roomcast_protocol::{
    id::{NodeId, SocketId},
    question::{Answer, Answered, Description, Question},
};
