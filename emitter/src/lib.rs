//! Emitting to the clients of a Roomcast cluster, and the language that the cluster speaks.
//!
//! [`Emitter`] is for processes that serve no sockets: workers, cron jobs ([`blocking`]), other
//! services. It needs Redis alone, and speaks what `@socket.io/redis-emitter` speaks.
//!
//! The rest is what nodes and emitters share. [`args`] holds event arguments encoded once,
//! [`msgpack`] transcodes them, [`event`] knows the names that an event may not have, [`target`] says
//! who shall receive, [`message`] what nodes tell each other, [`question`] what they ask each other,
//! [`wire`] how all of that is written on which [`channel`]. [`endpoint`], [`link`] and [`publisher`]
//! lead to Redis; [`members`], [`roll_call`], [`attendance`] and [`asking`] find out who answers.
//! Nothing here knows sockets of clients or HTTP.

mod answers;
pub mod asking;
pub mod attendance;
pub mod backoff;
pub mod blocking;
pub mod emitter;
pub mod endpoint;
pub mod entropy;
pub mod link;
pub mod members;
#[cfg(feature = "pool")]
mod pool;
pub mod publisher;
#[doc(hidden)]
pub mod redis;
pub mod resp;
pub mod roll_call;
pub mod value;

pub use emitter::{
    Answers, Batch, BatchOperator, BroadcastOperator, BuildError, Builder, Confirmed, Delivery,
    EmitError, Emitter, Fetched, Retry,
};
pub use roomcast_protocol::{args, channel, event, id, message, msgpack, question, target, wire};
