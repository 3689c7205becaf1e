//! Emitting to the clients of a Roomcast cluster, or of Node's Socket.IO servers with the Redis
//! adapter.
//!
//! [`Emitter`] is for processes that serve no sockets: workers, cron jobs ([`blocking`]), other
//! services. It needs only Redis, and publishes the same messages as `@socket.io/redis-emitter`.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let emitter = roomcast_emitter::Emitter::connect("redis://127.0.0.1").await?;
//! emitter.to("room:7").emit("news", "it rains").await?;
//! # Ok(())
//! # }
//! ```
//!
//! The modules that are hidden from this page are for authors of buses. In addition to the emitter,
//! a node needs them to find Redis, to publish, and to count the members that have to answer a
//! question. They change without notice.

mod answers;
#[doc(hidden)]
pub mod backoff;
pub mod blocking;
mod emitter;
#[doc(hidden)]
pub mod entropy;
mod error;
#[doc(hidden)]
pub mod log;
#[doc(hidden)]
pub mod membership;
#[cfg(feature = "pool")]
mod pool;
#[doc(hidden)]
pub mod recent_joins;
#[doc(hidden)]
pub mod redis;
#[doc(hidden)]
pub mod signing;
#[doc(hidden)]
pub mod vital;

pub use emitter::{
    Answers, Batch, BatchOperator, BroadcastOperator, Builder, Delivery, Emitter, Fetched, Retry,
};
pub use error::{BuildError, EmitError};
pub use log::JournalLimits;
pub use redis::{ConnectError, RedisUrl, UrlError};
/// Types that appear in the signatures of this crate.
pub use roomcast_protocol::{
    args::{Args, FromArgs, IntoArgs},
    channel::{Dialect, Mode},
    id::SocketId,
    message::Position,
    question::Description,
    receipt::Receipt,
    signing::{KeysError, SigningKeys},
    target::Rooms,
    wire::Parser,
};
pub use signing::Signing;

#[doc(hidden)]
pub use roomcast_protocol as protocol;
