//! The emitter against a real Redis: what it publishes, what it hears, and how it fails.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod batches;
mod captured;
mod ear;
mod failures;
mod journal;
mod member;
#[cfg(feature = "pool")]
mod pool;
mod questions;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

/// Far more than anything takes on a busy machine; nothing succeeds by waiting for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
