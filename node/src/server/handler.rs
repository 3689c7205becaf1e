//! Handlers: closures of the application that run on an event, a connect, a disconnect and so on.
//!
//! A handler takes any of the arguments that are available in its place, in any order, like a
//! handler of axum:
//!
//! ```text
//! closure(A, B, …)  ──  Handler<(A, B, …)>   what can be called with these arguments
//! (A, B, …)         ──  Arguments<Place>     all of them exist in this place
//! A                 ──  Argument<Place>      Socket, State<S>, Ack, Event, or what deserializes
//! what it returns   ──  Reply, Outcome       the answer to the client, or an error
//! ```
//!
//! The traits are separate so that the compiler names the argument or the result that does not fit,
//! not the closure. Closures are boxed once, when the namespace is defined; a call allocates only
//! its future.

use std::{
    any::{Any, TypeId, type_name},
    collections::HashMap,
    future::{Future, ready},
    ops::Deref,
    pin::Pin,
    sync::Arc,
};

use roomcast_adapter::{JoinError, SocketId};
use roomcast_protocol::args::{Args, ArgsError, FromArgs, IntoArgs, Payload};
use roomcast_protocol::id::EngineId;

use super::{
    ack::Ack,
    broadcast::BroadcastOperator,
    data::Data,
    error::{AckError, EmitError, Failed, HandlerError, Refused},
    socket::{DisconnectReason, Socket},
};
use crate::transport::handshake::Handshake;

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The answer of a handler to its client.
pub(crate) enum Answer {
    /// The handler's result.
    Args(Args),
    /// The handler has taken the [`Ack`] and answers by itself, or no client waits.
    Taken,
}

pub(crate) type Answering = BoxFuture<Result<Answer, Failed>>;
pub(crate) type Admission = Result<Option<Arc<dyn Data>>, HandlerError>;

/// A handler. One whose result no client waits for returns [`Answer::Taken`].
pub(crate) type Callback = Box<dyn Fn(&mut Call<'_>) -> Answering + Send + Sync>;
pub(crate) type Authorizer = Box<dyn Fn(&mut Call<'_>) -> BoxFuture<Admission> + Send + Sync>;

/// The places in which a handler can run.
pub mod place {
    /// An event of a client.
    #[derive(Debug)]
    pub enum OnEvent {}
    /// An event of another server.
    #[derive(Debug)]
    pub enum OnServerSide {}
    /// The connect of a socket.
    #[derive(Debug)]
    pub enum OnConnect {}
    /// The disconnect of a socket.
    #[derive(Debug)]
    pub enum OnDisconnect {}
    /// The decision whether a client may connect.
    #[derive(Debug)]
    pub enum OnAuthorize {}
}
use place::{OnAuthorize, OnConnect, OnDisconnect, OnEvent, OnServerSide};

/// The values that handlers of a server share, by type.
pub(crate) type States = HashMap<TypeId, Arc<dyn Any + Send + Sync>>;

/// A type of shared state, and its name.
pub(crate) type Need = (TypeId, &'static str);

/// The input of a handler. Each [`Argument`] takes its part.
#[doc(hidden)]
pub struct Call<'a> {
    pub(crate) states: &'a States,
    pub(crate) socket: Option<&'a Socket>,
    pub(crate) namespace: Option<&'a BroadcastOperator>,
    pub(crate) handshake: Option<&'a Handshake>,
    pub(crate) socket_id: Option<&'a SocketId>,
    pub(crate) connection: Option<EngineId>,
    pub(crate) recovering: bool,
    pub(crate) reason: Option<DisconnectReason>,
    pub(crate) event: &'a str,
    pub(crate) payload: Option<&'a Payload<'a>>,
    pub(crate) args: Option<Args>,
    pub(crate) id: Option<u64>,
    /// The number of the handler's arguments from the payload, and the number of those taken so
    /// far.
    pub(crate) payloads: usize,
    pub(crate) taken: usize,
    pub(crate) took_ack: bool,
}

impl<'a> Call<'a> {
    pub(crate) fn new(states: &'a States) -> Self {
        Self {
            states,
            socket: None,
            namespace: None,
            handshake: None,
            socket_id: None,
            connection: None,
            recovering: false,
            reason: None,
            event: "",
            payload: None,
            args: None,
            id: None,
            payloads: 0,
            taken: 0,
            took_ack: false,
        }
    }

    pub(crate) fn of_socket(socket: &'a Socket) -> Self {
        Self {
            socket: Some(socket),
            ..Self::new(&socket.live().handlers.states)
        }
    }

    fn all_args(&mut self) -> Result<Args, ArgsError> {
        if self.args.is_none() {
            self.args = self.payload.map(Payload::to_args).transpose()?;
        }
        Ok(self.args.clone().unwrap_or_default())
    }

    fn payload<T: FromArgs>(&mut self) -> Result<T, ArgsError> {
        let position = self.taken;
        self.taken += 1;
        match self.payload {
            Some(payload) if self.payloads == 1 && self.args.is_none() => T::from_payload(payload),
            _ if self.payloads == 1 => T::from_args(&self.all_args()?),
            _ => T::from_rest(&self.all_args()?, position),
        }
    }
}

/// A closure that can be called with these arguments. Implemented for closures and
/// functions with up to six arguments.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be used as a handler",
    note = "a handler is an async closure or function with at most six arguments, whose types are written out"
)]
pub trait Handler<Form>: Send + Sync + 'static {
    /// The future that the closure returns.
    type Returned;

    /// Calls the closure.
    #[doc(hidden)]
    fn call(&self, arguments: Form) -> Self::Returned;
}

/// The arguments of a handler, all of which exist in its place.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the arguments of a handler in this place"
)]
pub trait Arguments<Place>: Sized + 'static {
    #[doc(hidden)]
    fn needs() -> Vec<Need>;

    #[doc(hidden)]
    fn take(call: &mut Call<'_>) -> Result<Self, ArgsError>;
}

/// An argument of a handler:
///
/// | argument | where | value |
/// |---|---|---|
/// | [`Socket`] | events, connect, disconnect | the socket |
/// | [`State<S>`] | everywhere | a value that the server's handlers share |
/// | `T: Deserialize` | events | alone: the first argument of the event, or several as a tuple; with others: the argument at its position |
/// | [`Args`] | events | the arguments unchanged; after others: the rest |
/// | [`Event`] | events | name and arguments |
/// | [`Ack`] | events | the acknowledgement, which the handler then sends itself |
/// | [`DisconnectReason`] | disconnect | why the socket has disconnected |
/// | [`Handshake`] | authorize | the client's first request |
/// | [`SocketId`] | authorize | the id that the socket will have |
/// | [`EngineId`] | authorize | the id of the client's connection |
/// | [`Recovering`] | authorize | whether the client comes back to its session |
/// | [`BroadcastOperator`] | events of servers | the namespace |
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler here",
    label = "not an argument of this handler",
    note = "handlers of events take `Socket`, `Ack`, `Event`, `Args`, and what implements `serde::Deserialize`",
    note = "to share it among handlers, take it as `State<{Self}>`"
)]
pub trait Argument<Place>: Sized + 'static {
    #[doc(hidden)]
    const IS_PAYLOAD: bool = false;

    #[doc(hidden)]
    fn need() -> Option<Need> {
        None
    }

    #[doc(hidden)]
    fn take(call: &mut Call<'_>) -> Result<Self, ArgsError>;
}

macro_rules! arities {
    ($(($($type:ident $value:ident),*))*) => {$(
        impl<F, R, $($type),*> Handler<($($type,)*)> for F
        where
            F: Fn($($type),*) -> R + Send + Sync + 'static,
        {
            type Returned = R;

            fn call(&self, ($($value,)*): ($($type,)*)) -> R {
                self($($value),*)
            }
        }

        impl<Place, $($type: Argument<Place>),*> Arguments<Place> for ($($type,)*) {
            fn needs() -> Vec<Need> {
                let needs: Vec<Option<Need>> = vec![$($type::need()),*];
                needs.into_iter().flatten().collect()
            }

            fn take(call: &mut Call<'_>) -> Result<Self, ArgsError> {
                call.payloads = 0 $(+ usize::from($type::IS_PAYLOAD))*;
                Ok(($($type::take(call)?,)*))
            }
        }
    )*};
}

arities! {
    ()
    (A a)
    (A a, B b)
    (A a, B b, C c)
    (A a, B b, C c, D d)
    (A a, B b, C c, D d, E e)
    (A a, B b, C c, D d, E e, G g)
}

macro_rules! payloads {
    ($($place:ty),*) => {$(
        #[diagnostic::do_not_recommend]
        impl<T: FromArgs + 'static> Argument<$place> for T {
            const IS_PAYLOAD: bool = true;

            fn take(call: &mut Call<'_>) -> Result<Self, ArgsError> {
                call.payload()
            }
        }
    )*};
}

payloads!(OnEvent, OnServerSide);

macro_rules! arguments {
    ($($type:ty: $($place:ty),+ => |$call:ident| $take:expr;)*) => {$($(
        impl Argument<$place> for $type {
            fn take($call: &mut Call<'_>) -> Result<Self, ArgsError> {
                Ok($take)
            }
        }
    )+)*};
}

arguments! {
    Socket: OnEvent, OnConnect, OnDisconnect =>
        |call| call.socket.expect("it is about a socket").clone();
    BroadcastOperator: OnServerSide =>
        |call| call.namespace.expect("it is about a namespace").clone();
    Handshake: OnAuthorize =>
        |call| call.handshake.expect("it is about a client").clone();
    SocketId: OnAuthorize =>
        |call| call.socket_id.expect("it is about a client").clone();
    EngineId: OnAuthorize =>
        |call| call.connection.expect("it is about a client");
    Recovering: OnAuthorize => |call| Recovering(call.recovering);
    DisconnectReason: OnDisconnect =>
        |call| call.reason.expect("it is about a disconnect");
    Event: OnEvent =>
        |call| Event { name: call.event.into(), args: call.all_args()? };
    Ack: OnEvent => |call| {
        call.took_ack = true;
        let socket = call.socket.expect("it is about a socket").clone();
        Ack { socket, id: call.id }
    };
}

/// Whether a client comes back to its [session](super::Namespace::recovery), as an argument of an
/// authorizer. Also `false` if the session is no longer kept.
///
/// If the missed events turn out to be incomplete, the client gets a new socket, and the
/// authorizers run once more for that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovering(pub bool);

/// A value that the handlers of a server share, as an argument of a handler.
///
/// [`Builder::state`](super::Builder::state) provides it. A server whose handlers take a type of
/// state that it does not have cannot be built.
///
/// ```
/// # use roomcast::{Namespace, State};
/// struct Greeting(String);
///
/// Namespace::new("/").on("hello", async |greeting: State<Greeting>, name: String| {
///     format!("{}, {name}", greeting.0)
/// });
/// ```
#[derive(Debug)]
pub struct State<S>(Arc<S>);

impl<S> State<S> {
    /// The value itself.
    pub fn into_inner(self) -> Arc<S> {
        self.0
    }
}

impl<S> Clone for State<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Deref for State<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0
    }
}

impl<Place, S: Any + Send + Sync> Argument<Place> for State<S> {
    fn need() -> Option<Need> {
        Some((TypeId::of::<S>(), type_name::<S>()))
    }

    fn take(call: &mut Call<'_>) -> Result<Self, ArgsError> {
        let state = state_of(call.states);
        Ok(Self(state.expect("the server was built with it")))
    }
}

pub(crate) fn state_of<S: Any + Send + Sync>(states: &States) -> Option<Arc<S>> {
    Arc::clone(states.get(&TypeId::of::<S>())?).downcast().ok()
}

/// The result types of a handler of an event: the answer to the client's acknowledgement.
///
/// - Anything that implements `Serialize`: a tuple is several arguments, `()` is none.
///   The error of a `Result` that implements `Serialize` is shown to the client, as
///   `{"error": error}`.
/// - [`HandlerResult`](super::HandlerResult), into which `?` turns any error. The client sees only
///   what is [`Refused`]; anything else is logged and answered with `{"error": "internal error"}`.
///   The library's own errors are treated in the same way.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the answer of a handler",
    label = "returned by the handler",
    note = "return something that implements `serde::Serialize`, or `roomcast::HandlerResult` to use `?` with any error"
)]
pub trait Reply<Way> {
    #[doc(hidden)]
    fn into_answer(self) -> Result<Args, Failed>;

    /// The same for a handler that answers by itself.
    #[doc(hidden)]
    fn into_result(self) -> Result<(), Failed>;
}

/// The ways in which a [`Reply`] is one.
pub mod way {
    /// A value for the client.
    #[derive(Debug)]
    pub enum Returned {}
    /// A value, or an error of the server.
    #[derive(Debug)]
    pub enum Tried {}
}

#[diagnostic::do_not_recommend]
impl<T: IntoArgs> Reply<way::Returned> for T {
    fn into_answer(self) -> Result<Args, Failed> {
        self.into_args().map_err(Failed::Encode)
    }

    fn into_result(self) -> Result<(), Failed> {
        Ok(())
    }
}

macro_rules! tried {
    ($($error:ty),*) => {$(
        #[diagnostic::do_not_recommend]
        impl<T: IntoArgs> Reply<way::Tried> for Result<T, $error> {
            fn into_answer(self) -> Result<Args, Failed> {
                self.map_err(HandlerError::from).map_err(Failed::Handler)?.into_answer()
            }

            fn into_result(self) -> Result<(), Failed> {
                self.map_err(HandlerError::from).map_err(Failed::Handler).map(drop)
            }
        }
    )*};
}

tried!(
    HandlerError,
    Refused,
    EmitError,
    AckError,
    JoinError,
    Box<dyn std::error::Error + Send + Sync>
);

/// The result types of a handler whose result no client waits for: nothing, or a `Result`
/// with any error.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the result of this handler",
    note = "no client waits for the result: return `()`, or a `Result` with any error"
)]
pub trait Outcome {
    #[doc(hidden)]
    fn into_result(self) -> Result<(), HandlerError>;
}

impl Outcome for () {
    fn into_result(self) -> Result<(), HandlerError> {
        Ok(())
    }
}

impl<T, E: Into<HandlerError>> Outcome for Result<T, E> {
    fn into_result(self) -> Result<(), HandlerError> {
        self.map(drop).map_err(Into::into)
    }
}

/// Boxes a handler of an event.
pub(crate) fn on_event<Place, Form, H, W>(handler: H) -> Callback
where
    Form: Arguments<Place>,
    H: Handler<Form, Returned: Future<Output: Reply<W>> + Send + 'static>,
{
    Box::new(move |call: &mut Call<'_>| match Form::take(call) {
        Ok(arguments) => {
            let running = handler.call(arguments);
            if call.took_ack {
                Box::pin(async move { running.await.into_result().map(|()| Answer::Taken) })
            } else {
                Box::pin(async move { running.await.into_answer().map(Answer::Args) })
            }
        }
        Err(error) => Box::pin(ready(Err(Failed::Decode(error)))),
    })
}

/// Boxes a handler whose result no client waits for.
pub(crate) fn on_hook<Place, Form, H>(handler: H) -> Callback
where
    Form: Arguments<Place>,
    H: Handler<Form, Returned: Future<Output: Outcome> + Send + 'static>,
{
    Box::new(move |call: &mut Call<'_>| match Form::take(call) {
        Ok(arguments) => {
            let running = handler.call(arguments);
            Box::pin(async move {
                let result = running.await.into_result();
                result.map(|()| Answer::Taken).map_err(Failed::Handler)
            })
        }
        Err(error) => Box::pin(ready(Err(Failed::Handler(error.into())))),
    })
}

/// Boxes an authorizer.
pub(crate) fn authorizer<Form, H, U, E>(handler: H) -> Authorizer
where
    Form: Arguments<OnAuthorize>,
    H: Handler<Form, Returned: Future<Output = Result<U, E>> + Send + 'static>,
    U: Data,
    E: Into<HandlerError>,
{
    Box::new(move |call: &mut Call<'_>| match Form::take(call) {
        Ok(arguments) => {
            let running = handler.call(arguments);
            Box::pin(async move {
                let data = running.await.map_err(Into::into)?;
                // An authorizer that only decides attaches nothing.
                let is_empty = TypeId::of::<U>() == TypeId::of::<()>();
                Ok((!is_empty).then(|| Arc::new(data) as Arc<dyn Data>))
            })
        }
        Err(error) => Box::pin(ready(Err(error.into()))),
    })
}

/// The name and the arguments of an event.
///
/// ```
/// # use roomcast::{Event, Namespace, Socket};
/// Namespace::new("/").on_any(async |socket: Socket, event: Event| {
///     println!("{} from {}", event.name(), socket.id());
/// });
/// ```
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

    /// The arguments, not decoded.
    pub fn args(&self) -> &Args {
        &self.args
    }

    /// Decodes the arguments as a handler of the event would.
    pub fn decode<T: FromArgs>(&self) -> Result<T, ArgsError> {
        T::from_args(&self.args)
    }
}
