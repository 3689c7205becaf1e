//! What the bare servers of the race share: their options, and the few bytes of the protocols that
//! they know.

pub mod bus;
pub mod options;
pub mod wire;
