//! Handlers: what an application does on a connect, an event and a disconnect.
//!
//! They belong to the namespace, are built once and shared by all its sockets. A closure takes what
//! it needs; its return value answers the client.

use std::{future::Future, pin::Pin, sync::Arc};

use roomcast_protocol::args::{Args, ArgsError, FromArgs, IntoArgs, Payload};

use super::{
    ack::Ack,
    broadcast::BroadcastOperator,
    data::Data,
    error::Refused,
    socket::{DisconnectReason, Socket},
};
use crate::transport::handshake::Handshake;

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a handler answers.
pub(crate) enum Reply {
    /// What it returned.
    Args(Args),
    /// It took the acknowledgement and sends it by itself.
    Taken,
}

/// Why a handler did not run to its end.
#[derive(Debug)]
pub(crate) enum HandlerError {
    /// The arguments of the event are not what it takes.
    Decode(ArgsError),
    /// What it returned cannot be encoded.
    Encode(ArgsError),
}

pub(crate) type EventReply = BoxFuture<Result<Reply, HandlerError>>;

/// A handler of an event: an async closure that takes `(Socket)`, `(Socket, T)` or
/// `(Socket, T, Ack)`.
///
/// `T` is any type that deserializes: a tuple takes several arguments, anything else the first one,
/// and [`Args`] takes them as they are. Without an [`Ack`], the return value answers the client's
/// acknowledgement: a tuple as several arguments, `()` as none, `Err(error)` as `{"error": error}`.
///
/// A closure that captures something clones it into the future:
/// `move |socket: Socket| { let db = db.clone(); async move { … } }`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event handler",
    note = "a handler is an async closure over `(Socket)`, `(Socket, T)` or `(Socket, T, Ack)`; T: serde::de::DeserializeOwned; what it returns: serde::Serialize"
)]
pub trait EventHandler<Form>: Send + Sync + 'static {
    /// Starts the handler. For the library's own use.
    #[doc(hidden)]
    fn call(&self, socket: Socket, payload: &Payload<'_>, id: Option<u64>) -> Called;
}

/// A running handler.
#[doc(hidden)]
pub struct Called(pub(crate) EventReply);

impl<F, Fut> EventHandler<(Socket,)> for F
where
    F: Fn(Socket) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: IntoArgs> + Send + 'static,
{
    fn call(&self, socket: Socket, _: &Payload<'_>, _: Option<u64>) -> Called {
        answer(self(socket))
    }
}

impl<F, Fut, T> EventHandler<(Socket, T)> for F
where
    F: Fn(Socket, T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: IntoArgs> + Send + 'static,
    T: FromArgs,
{
    fn call(&self, socket: Socket, payload: &Payload<'_>, _: Option<u64>) -> Called {
        match T::from_payload(payload) {
            Ok(value) => answer(self(socket, value)),
            Err(error) => refuse(error),
        }
    }
}

impl<F, Fut, T> EventHandler<(Socket, T, Ack)> for F
where
    F: Fn(Socket, T, Ack) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    T: FromArgs,
{
    fn call(&self, socket: Socket, payload: &Payload<'_>, id: Option<u64>) -> Called {
        match T::from_payload(payload) {
            Ok(value) => {
                let ack = Ack {
                    socket: socket.clone(),
                    id,
                };
                let running = self(socket, value, ack);
                Called(Box::pin(async move {
                    running.await;
                    Ok(Reply::Taken)
                }))
            }
            Err(error) => refuse(error),
        }
    }
}

/// A handler of an event that another server emits: an async closure that takes
/// `(BroadcastOperator)`, the namespace, or `(BroadcastOperator, T)`.
///
/// `T` and the return value are those of an [`EventHandler`]: what it returns answers the server
/// that asked.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of a server-side event",
    note = "a handler is an async closure over `(BroadcastOperator)` or `(BroadcastOperator, T)`; T: serde::de::DeserializeOwned; what it returns: serde::Serialize"
)]
pub trait ServerSideHandler<Form>: Send + Sync + 'static {
    /// Starts the handler. For the library's own use.
    #[doc(hidden)]
    fn call(&self, io: BroadcastOperator, args: &Args) -> Called;
}

impl<F, Fut> ServerSideHandler<(BroadcastOperator,)> for F
where
    F: Fn(BroadcastOperator) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: IntoArgs> + Send + 'static,
{
    fn call(&self, io: BroadcastOperator, _: &Args) -> Called {
        answer(self(io))
    }
}

impl<F, Fut, T> ServerSideHandler<(BroadcastOperator, T)> for F
where
    F: Fn(BroadcastOperator, T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: IntoArgs> + Send + 'static,
    T: FromArgs,
{
    fn call(&self, io: BroadcastOperator, args: &Args) -> Called {
        match T::from_args(args) {
            Ok(value) => answer(self(io, value)),
            Err(error) => refuse(error),
        }
    }
}

fn answer(running: impl Future<Output: IntoArgs> + Send + 'static) -> Called {
    Called(Box::pin(async move {
        running
            .await
            .into_args()
            .map(Reply::Args)
            .map_err(HandlerError::Encode)
    }))
}

fn refuse(error: ArgsError) -> Called {
    Called(Box::pin(std::future::ready(Err(HandlerError::Decode(
        error,
    )))))
}

/// A handler of a connect: an async closure that takes `(Socket)`.
pub trait ConnectHandler: Send + Sync + 'static {
    /// Starts the handler. For the library's own use.
    #[doc(hidden)]
    fn call(&self, socket: Socket) -> BoxFuture<()>;
}

impl<F, Fut> ConnectHandler for F
where
    F: Fn(Socket) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
{
    fn call(&self, socket: Socket) -> BoxFuture<()> {
        discard(self(socket))
    }
}

/// A handler of a disconnect: an async closure that takes `(Socket, DisconnectReason)`.
pub trait DisconnectHandler: Send + Sync + 'static {
    /// Starts the handler. For the library's own use.
    #[doc(hidden)]
    fn call(&self, socket: Socket, reason: DisconnectReason) -> BoxFuture<()>;
}

impl<F, Fut> DisconnectHandler for F
where
    F: Fn(Socket, DisconnectReason) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
{
    fn call(&self, socket: Socket, reason: DisconnectReason) -> BoxFuture<()> {
        discard(self(socket, reason))
    }
}

pub(crate) fn discard(running: impl Future + Send + 'static) -> BoxFuture<()> {
    Box::pin(async move {
        running.await;
    })
}

/// An event as a catch-all handler sees it.
#[derive(Debug, Clone)]
pub struct Event {
    pub(crate) name: Arc<str>,
    pub(crate) args: Args,
}

impl Event {
    /// The name of the event.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The arguments, undecoded.
    pub fn args(&self) -> &Args {
        &self.args
    }

    /// The arguments, decoded as an event handler would.
    pub fn decode<T: FromArgs>(&self) -> Result<T, ArgsError> {
        T::from_args(&self.args)
    }
}

pub(crate) type Admission = Result<Option<Arc<dyn Data>>, Refused>;

pub(crate) type Authorizer = Box<dyn Fn(Handshake) -> BoxFuture<Admission> + Send + Sync>;
pub(crate) type OnEvent =
    Box<dyn Fn(Socket, &Payload<'_>, Option<u64>) -> EventReply + Send + Sync>;
pub(crate) type OnAny = Box<dyn Fn(Socket, Event) -> BoxFuture<()> + Send + Sync>;
pub(crate) type OnServerSide = Box<dyn Fn(BroadcastOperator, &Args) -> EventReply + Send + Sync>;
pub(crate) type OnConnect = Box<dyn ConnectHandler>;
pub(crate) type OnDisconnect = Box<dyn DisconnectHandler>;
