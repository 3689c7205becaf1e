//! A raw client and a server in the test's own process.
//!
//! The client speaks HTTP, WebSocket and Socket.IO's text packets by hand on a byte stream. It
//! shares no code with the server, so that a mistake in a codec cannot hide behind itself.

#![allow(
    dead_code,
    unused_imports,
    reason = "every test binary compiles this module and uses another part of it"
)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub(crate) mod bus;
pub(crate) mod certificates;
pub(crate) mod http;
pub(crate) mod polling;
pub(crate) mod server;
pub(crate) mod websocket;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time};

pub(crate) use polling::Polling;
pub(crate) use server::TestServer;
pub(crate) use websocket::WebSocket;

/// What a test waits for must happen within this time; far more than a loaded machine needs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for something that must happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let outcome = time::timeout(DEADLINE, future).await;
    outcome.unwrap_or_else(|_| panic!("this did not happen in time: {what}"))
}

/// Looks again and again until something is true that must become true.
pub(crate) async fn eventually(what: &str, is_true: impl Fn() -> bool) {
    within(what, async {
        while !is_true() {
            time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Holds up handlers until the test opens it.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets everybody pass from now on.
    pub(crate) fn open(&self) {
        self.0.close();
    }

    /// Lets so many pass.
    pub(crate) fn admit(&self, count: usize) {
        self.0.add_permits(count);
    }

    pub(crate) fn pass(&self) -> impl Future<Output = ()> + Send + use<> {
        let gate = Arc::clone(&self.0);
        async move {
            // An error says that the gate is open.
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
        }
    }
}
