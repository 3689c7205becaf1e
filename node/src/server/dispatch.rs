//! From an event of a client to its handlers, and from their results to its acknowledgement.
//!
//! There are two ways. Without middleware, the handler reads its arguments from the packet in place
//! and is polled at once: nothing is copied unless it has to wait. Middleware may wait before the
//! handler has read anything, so it gets a copy of the packet. A namespace without middleware does
//! not have this cost.
//!
//! ```text
//! middleware ──► on_any, not waited for
//!      │    └──► handler, or fallback ──► answer
//!      └─ error ──────────────────────► answer
//! ```
//!
//! Both ways look up the handler when it runs, and the first event that finds a `once` handler
//! takes it. The fallback gets everything else, so an application that forwards events needs no
//! list of them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Poll,
};

use futures_util::future::{OptionFuture, join};
use roomcast_protocol::{args::Payload, socket_io::packet::Packet};

use super::{
    client::Client,
    error::Failed,
    handler::{Answer, Call, Callback},
    in_flight::{Done, Task, event_bytes},
    namespace::{Handlers, Listener},
    observe::Observation,
    socket::Socket,
};
use crate::transport::driver::Turn;

impl Client {
    pub(super) fn event(&mut self, turn: &mut Turn<'_, '_>, socket: Socket, packet: &Packet<'_>) {
        let handlers = &socket.live().handlers;
        // An event without a name reaches no handler.
        let Some(name) = packet.event.as_ref().map(|event| &*event.name) else {
            note_unhandled(&socket, "");
            return;
        };
        let id = packet.id;
        let bytes = event_bytes(packet);
        // The arguments are read for observers only. Otherwise they stay bytes of the
        // packet until a handler wants them.
        if socket.live().observers.is_any_of_events()
            && let Ok(args) = packet.payload().to_args()
        {
            socket.observed(Observation::Received {
                socket: &socket,
                event: name,
                args: &args,
            });
        }
        if !handlers.middleware.is_empty() {
            // The packet borrows the buffer of the thread, which the next connection
            // overwrites.
            let future = Box::pin(handle_filtered(socket.clone(), packet.clone().into_owned()));
            let name = name.to_owned().into();
            let task = Task::Handler {
                socket,
                name,
                id,
                bytes,
                future,
            };
            self.start(turn, task);
            return;
        }
        let payload = packet.payload();
        let listener = handlers.listener(&socket, name);
        if listener.is_none() && handlers.any.is_none() {
            note_unhandled(&socket, name);
            return;
        }
        if let Some(any) = &handlers.any {
            // An event that was held may belong to a socket that has left since. It is handled
            // nevertheless. One that the catch-all handler has disconnected, by a panic, is not.
            let was_connected = socket.is_connected();
            let call = Call::of_event(&socket, name, &payload, id);
            self.run(turn, &socket, ("any event", bytes), any, call);
            if was_connected && !socket.is_connected() {
                return;
            }
        }
        let Some(Listener { run, .. }) = listener else {
            return;
        };
        // Most handlers do not wait, so they are polled before anything is set up for waiting.
        let first = catch_unwind(AssertUnwindSafe(|| {
            let mut future = run(&mut Call::of_event(&socket, name, &payload, id));
            match future.as_mut().poll(turn.cx) {
                Poll::Ready(result) => Ok(result),
                Poll::Pending => Err(future),
            }
        }));
        match first {
            Ok(Ok(result)) => self.answer(turn, &socket, name, id, result),
            Ok(Err(future)) => {
                let name = name.to_owned().into();
                self.in_flight().push(Task::Handler {
                    socket,
                    name,
                    id,
                    bytes,
                    future,
                });
            }
            // The state of the application's handler is not known after a panic, so the
            // socket is disconnected. Other sockets of the connection continue.
            Err(_) => self.finish(turn, Done::HandlerPanicked(socket)),
        }
    }

    /// Runs a handler whose result no client waits for, with its name and the size of its event.
    pub(super) fn run(
        &mut self,
        turn: &mut Turn<'_, '_>,
        socket: &Socket,
        (name, bytes): (&'static str, usize),
        hook: &Callback,
        mut call: Call<'_>,
    ) {
        let socket = socket.clone();
        match catch_unwind(AssertUnwindSafe(|| hook(&mut call))) {
            Ok(future) => {
                let task = Task::Handler {
                    socket,
                    name: name.into(),
                    id: None,
                    bytes,
                    future,
                };
                self.start(turn, task);
            }
            Err(_) => self.finish(turn, Done::HandlerPanicked(socket)),
        }
    }

    /// Answers an event if the client requested it and is still connected. An error is reported
    /// even without such a request.
    pub(super) fn answer(
        &self,
        turn: &mut Turn<'_, '_>,
        socket: &Socket,
        name: &str,
        id: Option<u64>,
        result: Result<Answer, Failed>,
    ) {
        let namespace = socket.live();
        let args = match result {
            Ok(Answer::Taken) => return,
            Ok(Answer::Args(args)) => args,
            Err(failed) => failed
                .report(&namespace.place(Some(socket), name))
                .to_answer(),
        };
        if let (Some(id), true) = (id, socket.is_connected()) {
            if namespace.observers.is_any_of_events() {
                let (event, args) = (name, &args);
                socket.observed(Observation::Acknowledged {
                    socket,
                    event,
                    args,
                });
            }
            namespace.parser.reply_ack(turn, &namespace.name, id, &args);
        }
    }
}

impl Handlers {
    /// The handler of an event: its own, unless that has run once and may not run again, or the
    /// fallback.
    fn listener(&self, socket: &Socket, name: &str) -> Option<&Listener> {
        let own = self.events.get(name);
        let own = own.filter(|listener| !listener.once || socket.is_first(name));
        own.or(self.fallback.as_ref())
    }
}

impl<'a> Call<'a> {
    fn of_event(
        socket: &'a Socket,
        event: &'a str,
        payload: &'a Payload<'a>,
        id: Option<u64>,
    ) -> Self {
        Self {
            event,
            payload: Some(payload),
            id,
            ..Self::of_socket(socket)
        }
    }
}

/// Handles an event in a namespace with middleware, which may wait and may refuse the event.
async fn handle_filtered(socket: Socket, packet: Packet<'static>) -> Result<Answer, Failed> {
    let name = packet.event.as_ref().map_or("", |event| &*event.name);
    let handlers = Arc::clone(&socket.live().handlers);
    let payload = packet.payload();
    let call = || Call::of_event(&socket, name, &payload, packet.id);
    for middleware in &handlers.middleware {
        middleware(&mut call()).await?;
    }
    let listener = handlers.listener(&socket, name);
    if listener.is_none() && handlers.any.is_none() {
        note_unhandled(&socket, name);
    }
    // Both run concurrently: the catch-all handler observes, and must not delay
    // the answer.
    let any: OptionFuture<_> = handlers.any.as_ref().map(|any| any(&mut call())).into();
    let answer: OptionFuture<_> = listener.map(|listener| (listener.run)(&mut call())).into();
    let (any, answer) = join(any, answer).await;
    if let Some(Err(failed)) = any {
        failed.report(&socket.live().place(Some(&socket), "any event"));
    }
    answer.unwrap_or(Ok(Answer::Taken))
}

/// Counts and logs an event that has no handler.
fn note_unhandled(socket: &Socket, event: &str) {
    let live = socket.live();
    live.engine.metrics.events_unhandled.inc();
    tracing::debug!(
        namespace = &*live.name,
        socket = %socket.id(),
        event,
        "an event has no handler"
    );
}
