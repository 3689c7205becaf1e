//! Rooms of a Roomcast node: which sockets are in which rooms, who receives a broadcast, and how
//! nodes hear of each other's broadcasts.
//!
//! The crate knows neither HTTP nor WebSocket. What it needs of a connected socket is the
//! [`Member`] trait.

mod adapter;
mod directory;
mod id;
mod member;
mod rooms;
mod shards;

pub use adapter::{Adapter, JoinError, RoomLimits};
pub use id::SocketId;
pub use member::Member;
