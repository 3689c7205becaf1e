//! The language of a Roomcast cluster: what is said, and to whom.
//!
//! [`args`] holds event arguments encoded once, [`msgpack`] transcodes them, [`event`] knows the
//! names that an event may not have, [`target`] says who shall receive, [`message`] what nodes tell
//! each other, [`question`] what they ask each other. Nothing here knows sockets, HTTP or threads.

pub mod args;
pub mod asking;
pub mod backoff;
pub mod channel;
pub mod endpoint;
pub mod entropy;
pub mod event;
pub mod id;
pub mod link;
pub mod members;
pub mod message;
pub mod msgpack;
pub mod publisher;
pub mod question;
pub mod resp;
pub mod roll_call;
pub mod target;
pub mod value;
pub mod wire;
