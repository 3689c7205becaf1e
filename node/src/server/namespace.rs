//! The definition of a namespace: its name and its handlers, built once and then immutable.

use std::{any::Any, future::Future, sync::Arc};

use hashbrown::HashMap;
use roomcast_adapter::{HistoryLimits, JournalLimits};
use roomcast_protocol::args::Args;
use serde::de::DeserializeOwned;

use super::{
    data::Data,
    error::{BuildError, HandlerError},
    handler::{
        self, Arguments, Authorizer, Callback, Handler, Need, Outcome, Reply, States,
        place::{OnAuthorize, OnConnect, OnDisconnect, OnEvent, OnServerSide},
    },
    recovery::{Other, Recovery, RestoreData},
    socket::Socket,
};

/// A namespace and its handlers.
///
/// A handler is an async closure or function. It takes any of the arguments in the table at
/// [`Argument`](super::Argument), in any order: the socket, the event's arguments, shared state.
///
/// ```
/// # use roomcast::{HandlerResult, Namespace, Socket};
/// Namespace::new("/chat")
///     .on_connect(async |socket: Socket| socket.join("lobby"))
///     .on("message", async |socket: Socket, text: String| -> HandlerResult {
///         socket.to("lobby").emit("message", text).await?;
///         Ok(())
///     });
/// ```
pub struct Namespace {
    pub(crate) name: Box<str>,
    pub(crate) is_pattern: bool,
    pub(crate) handlers: Handlers,
}

#[derive(Default)]
pub(crate) struct Handlers {
    pub(crate) authorizers: Vec<Authorizer>,
    pub(crate) connect: Option<Callback>,
    pub(crate) disconnect: Option<Callback>,
    pub(crate) middleware: Vec<Callback>,
    pub(crate) any: Option<Callback>,
    pub(crate) any_outgoing: Option<OnOutgoing>,
    /// The names come from the application, so its hash function needs no secret.
    pub(crate) events: HashMap<Box<str>, Listener>,
    pub(crate) fallback: Option<Listener>,
    /// The limits of the log of published messages. `None`: nothing can be published.
    pub(crate) history: Option<HistoryLimits>,
    /// The limits of the journal.
    pub(crate) journal: Option<JournalLimits>,
    /// Whether clients can come back.
    pub(crate) recovery: Option<Recovery>,
    /// Creates the data of a client that comes back.
    pub(crate) restore_data: Option<RestoreData>,
    pub(crate) server_side: HashMap<Box<str>, Callback>,
    /// The values that handlers share, set when the server is built.
    pub(crate) states: Arc<States>,
    /// The types of shared state that the handlers take.
    pub(crate) needs: Vec<Need>,
}

pub(crate) type OnOutgoing = Box<dyn Fn(&Socket, &str, &Args) + Send + Sync>;

/// The handler of an event.
pub(crate) struct Listener {
    pub(crate) run: Callback,
    /// Runs for the first event of each socket only.
    pub(crate) once: bool,
}

impl Namespace {
    /// Defines the namespace of this name, such as `/` or `/chat`.
    pub fn new(name: impl Into<Box<str>>) -> Self {
        Self {
            name: name.into(),
            is_pattern: false,
            handlers: Handlers::default(),
        }
    }

    /// Defines all namespaces whose name matches, such as `/org-{id}`. `{id}` stands for
    /// one or more characters other than `/`, and [`Socket::param`] returns them. Each
    /// namespace exists while a socket is connected to it.
    pub fn matching(pattern: impl Into<Box<str>>) -> Self {
        Self {
            is_pattern: true,
            ..Self::new(pattern)
        }
    }

    /// Accepts or refuses a client. Its result becomes the socket's
    /// [data](Socket::data), unless it is `()`.
    ///
    /// Several authorizers run one after the other, and the first error refuses the client. It sees
    /// the message of a [`Refused`](super::Refused); any other error is logged, and the client sees
    /// `internal error`. The future is dropped if the client disconnects meanwhile.
    #[must_use]
    pub fn authorize<Form, H, U, E>(mut self, authorizer: H) -> Self
    where
        Form: Arguments<OnAuthorize>,
        H: Handler<Form, Returned: Future<Output = Result<U, E>> + Send + 'static>,
        U: Data,
        E: Into<HandlerError>,
    {
        self.handlers.needs.extend(Form::needs());
        let authorizer = handler::authorizer(authorizer);
        self.handlers.authorizers.push(authorizer);
        self
    }

    /// Runs when a socket has connected. Events of the socket are handled from the
    /// connect reply on, also while this still runs. A second call replaces the first.
    #[must_use]
    pub fn on_connect<Form, H>(mut self, handler: H) -> Self
    where
        Form: Arguments<OnConnect>,
        H: Handler<Form, Returned: Future<Output: Outcome> + Send + 'static>,
    {
        self.handlers.connect = Some(self.hook(handler));
        self
    }

    /// Runs on an event of this name. A second handler of the same name replaces the first.
    ///
    /// Its result is the client's acknowledgement, see [`Reply`]. A handler that takes an
    /// [`Ack`](super::Ack) acknowledges by itself.
    #[must_use]
    pub fn on<Form, H, W>(mut self, event: impl Into<Box<str>>, handler: H) -> Self
    where
        Form: Arguments<OnEvent>,
        H: Handler<Form, Returned: Future<Output: Reply<W>> + Send + 'static>,
    {
        let listener = self.listener(handler);
        self.handlers.events.insert(event.into(), listener);
        self
    }

    /// Runs on the first event of this name from each socket. Further ones have no handler.
    #[must_use]
    pub fn once<Form, H, W>(mut self, event: impl Into<Box<str>>, handler: H) -> Self
    where
        Form: Arguments<OnEvent>,
        H: Handler<Form, Returned: Future<Output: Reply<W>> + Send + 'static>,
    {
        let listener = Listener {
            once: true,
            ..self.listener(handler)
        };
        self.handlers.events.insert(event.into(), listener);
        self
    }

    /// Runs on events without a handler, and answers them.
    #[must_use]
    pub fn fallback<Form, H, W>(mut self, handler: H) -> Self
    where
        Form: Arguments<OnEvent>,
        H: Handler<Form, Returned: Future<Output: Reply<W>> + Send + 'static>,
    {
        self.handlers.fallback = Some(self.listener(handler));
        self
    }

    /// Runs before the handlers of every event and can refuse the event, like `socket.use` of
    /// Socket.IO. Takes the arguments of a handler of events, such as `(Socket, Event)`.
    ///
    /// Several run one after the other. After an error no handler runs, and the client
    /// gets the error as the answer to its event.
    #[must_use]
    pub fn middleware<Form, H>(mut self, handler: H) -> Self
    where
        Form: Arguments<OnEvent>,
        H: Handler<Form, Returned: Future<Output: Outcome> + Send + 'static>,
    {
        let middleware = self.hook(handler);
        self.handlers.middleware.push(middleware);
        self
    }

    /// Runs on every event, before its own handler and without delaying it. Takes the
    /// arguments of a handler of events, such as `(Socket, Event)`. With an
    /// [`Ack`](super::Ack) it can answer events whose handler does not.
    #[must_use]
    pub fn on_any<Form, H>(mut self, handler: H) -> Self
    where
        Form: Arguments<OnEvent>,
        H: Handler<Form, Returned: Future<Output: Outcome> + Send + 'static>,
    {
        self.handlers.any = Some(self.hook(handler));
        self
    }

    /// Runs on every event that is emitted to a socket of this node, also by a broadcast,
    /// before the event is queued. It runs on the emitting task, once per recipient, so
    /// it must be short. A namespace without such a listener has no cost.
    #[must_use]
    pub fn on_any_outgoing(
        mut self,
        listener: impl Fn(&Socket, &str, &Args) + Send + Sync + 'static,
    ) -> Self {
        self.handlers.any_outgoing = Some(Box::new(listener));
        self
    }

    /// Runs on an event that the server of another node emits to servers with
    /// [`server_side_emit`](super::BroadcastOperator::server_side_emit). Each runs in a separate
    /// task, so several events are handled at the same time. A second handler of the same name
    /// replaces the first.
    ///
    /// A panic is caught and counted, and answered with an error.
    #[must_use]
    pub fn on_server_side<Form, H, W>(mut self, event: impl Into<Box<str>>, handler: H) -> Self
    where
        Form: Arguments<OnServerSide>,
        H: Handler<Form, Returned: Future<Output: Reply<W>> + Send + 'static>,
    {
        self.handlers.needs.extend(Form::needs());
        let handler = handler::on_event(handler);
        self.handlers.server_side.insert(event.into(), handler);
        self
    }

    /// Runs when a socket has disconnected. [`Socket::rooms`] still returns the rooms
    /// that it was in, also after the handler has waited, so this serves for Socket.IO's
    /// `disconnecting`, too.
    #[must_use]
    pub fn on_disconnect<Form, H>(mut self, handler: H) -> Self
    where
        Form: Arguments<OnDisconnect>,
        H: Handler<Form, Returned: Future<Output: Outcome> + Send + 'static>,
    {
        self.handlers.disconnect = Some(self.hook(handler));
        self
    }

    /// Keeps the messages that are [published](super::BroadcastOperator::publish) to rooms, within
    /// these limits: in Redis if the server is a node of a cluster, otherwise in memory. Messages
    /// that are only emitted are not kept.
    ///
    /// The limits should be the same on all nodes, because each node applies its own to
    /// the rooms that it publishes to.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use roomcast::{HistoryLimits, Namespace};
    /// Namespace::new("/news").history(HistoryLimits {
    ///     messages: 100,
    ///     age: Duration::from_secs(3600),
    ///     ..HistoryLimits::default()
    /// });
    /// ```
    #[must_use]
    pub fn history(mut self, limits: HistoryLimits) -> Self {
        self.handlers.history = Some(limits);
        self
    }

    /// Keeps all broadcasts of the namespace, within these limits: in Redis if the server is a node
    /// of a cluster, otherwise in memory. The sockets of all nodes receive them in one order. A
    /// node that missed some because of a fault reads them and delivers them late, each once; if
    /// they are no longer kept, it logs and counts that.
    ///
    /// A broadcast is everything that is [emitted](super::BroadcastOperator::emit) to
    /// rooms or to the namespace, or [published](super::BroadcastOperator::publish),
    /// unless it is volatile, local, or requests acknowledgements. Events that are emitted to a
    /// single [`Socket`], and messages that other programs publish in Redis, are not kept.
    ///
    /// The limits should be the same on all nodes.
    ///
    /// ```
    /// # use roomcast::{JournalLimits, Namespace};
    /// Namespace::new("/orders").journal(JournalLimits::default());
    /// ```
    #[must_use]
    pub fn journal(mut self, limits: JournalLimits) -> Self {
        self.handlers.journal = Some(limits);
        self
    }

    /// Lets clients of Socket.IO come back after their connection was lost, to this node
    /// or another: they have the same id, rooms and data again, and receive the
    /// broadcasts that they have missed. This is the connection state recovery of Node.js
    /// servers, for unmodified clients.
    ///
    /// It is complete or does not happen: if any missed broadcast is no longer kept, the client
    /// gets a new socket. The connect handler runs in both cases, and [`Socket::recovered`]
    /// distinguishes them. A client that disconnects, or is disconnected by the server, cannot come
    /// back.
    ///
    /// The namespace needs a [journal](Self::journal), and has one with the default
    /// limits if none are set. Each event that is kept has one more argument for the
    /// client, its place in the journal.
    ///
    /// ```
    /// # use roomcast::{Namespace, Recovery, Socket};
    /// Namespace::new("/chat")
    ///     .recovery(Recovery::default())
    ///     .on_connect(async |socket: Socket| {
    ///         if !socket.recovered() {
    ///             socket.join("lobby")?;
    ///         }
    ///         Ok::<_, roomcast::JoinError>(())
    ///     });
    /// ```
    #[must_use]
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.handlers.recovery = Some(recovery);
        self.handlers.journal.get_or_insert_default();
        self
    }

    /// The type of the sockets' [data](Socket::data). The data of a client that [comes
    /// back](Self::recovery) are deserialized from their JSON as this type. Without it they are a
    /// `serde_json::Value`.
    #[must_use]
    pub fn recovered_data<T: Data + DeserializeOwned>(mut self) -> Self {
        self.handlers.restore_data = Some(Arc::new(|json, authorized| {
            let restored = || Some(Arc::new(serde_json::from_value::<T>(json).ok()?) as _);
            Ok(authorized.or_else(restored))
        }));
        self
    }

    /// Creates the data of a client that [comes back](Self::recovery), from their JSON at the end
    /// of the connection (`null` if there were none) and from the authorizers' result, if they [run
    /// again](Recovery::authorizes_again). If it returns `None`, the client is a different one,
    /// such as another user in the same browser. It gets a new socket, for which the authorizers
    /// run with [`Recovering`](super::Recovering)`(false)`.
    #[must_use]
    pub fn recovered_data_with<T: Data>(
        mut self,
        merge: impl Fn(serde_json::Value, Option<Arc<T>>) -> Option<T> + Send + Sync + 'static,
    ) -> Self {
        self.handlers.restore_data = Some(Arc::new(move |json, authorized| {
            let any: Option<Arc<dyn Any + Send + Sync>> = authorized.map(|data| data as _);
            let authorized = any.and_then(|any| any.downcast().ok());
            let merged = merge(json, authorized).ok_or(Other)?;
            Ok(Some(Arc::new(merged)))
        }));
        self
    }

    fn hook<Place, Form, H>(&mut self, handler: H) -> Callback
    where
        Form: Arguments<Place>,
        H: Handler<Form, Returned: Future<Output: Outcome> + Send + 'static>,
    {
        self.handlers.needs.extend(Form::needs());
        handler::on_hook(handler)
    }

    fn listener<Form, H, W>(&mut self, handler: H) -> Listener
    where
        Form: Arguments<OnEvent>,
        H: Handler<Form, Returned: Future<Output: Reply<W>> + Send + 'static>,
    {
        self.handlers.needs.extend(Form::needs());
        Listener {
            run: handler::on_event(handler),
            once: false,
        }
    }
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Namespace")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The name of a dynamic namespace: literal text and parameters in turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// Text before each parameter, with the parameter's name.
    parts: Vec<(Box<str>, Box<str>)>,
    tail: Box<str>,
}

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self, BuildError> {
        let invalid = || BuildError::Pattern(text.into());
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(invalid)?;
            if name.is_empty() {
                return Err(invalid());
            }
            parts.push((literal.into(), name.into()));
            rest = after;
        }
        Ok(Self {
            parts,
            tail: rest.into(),
        })
    }

    /// The values of the parameters if the name matches. Each matches as few characters as
    /// possible.
    pub(crate) fn matches(&self, name: &str) -> Option<Vec<(Box<str>, Box<str>)>> {
        let mut values = Vec::new();
        let mut rest = name;
        for (index, (literal, parameter)) in self.parts.iter().enumerate() {
            rest = rest.strip_prefix(&**literal)?;
            let next = self.parts.get(index + 1).map(|(literal, _)| &**literal);
            let first = rest.chars().next()?.len_utf8();
            let end = match next {
                Some(next) => first + rest[first..].find(next)?,
                None => rest
                    .len()
                    .checked_sub(self.tail.len())
                    .filter(|&end| end > 0)?,
            };
            let value = rest.get(..end)?;
            if value.contains('/') {
                return None;
            }
            values.push((parameter.clone(), value.into()));
            rest = &rest[end..];
        }
        (rest == &*self.tail).then_some(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pattern: &str, name: &str) -> Option<Vec<String>> {
        let values = Pattern::parse(pattern).expect("a pattern").matches(name)?;
        Some(
            values
                .into_iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect(),
        )
    }

    #[test]
    fn a_parameter_stands_for_what_is_between_the_literals() {
        let some = |parts: &[&str]| Some(parts.iter().map(|p| (*p).to_owned()).collect());
        assert_eq!(values("/org-{id}", "/org-7"), some(&["id=7"]));
        assert_eq!(values("/org-{id}", "/org-"), None);
        assert_eq!(values("/org-{id}", "/org-a/b"), None);
        assert_eq!(values("/{a}-{b}/x", "/1-2-3/x"), some(&["a=1", "b=2-3"]));
        assert_eq!(values("/{a}-{b}/x", "/1-2/y"), None);
        assert_eq!(values("/fixed", "/fixed"), some(&[]));
        assert_eq!(values("/ä{a}ö", "/äüö"), some(&["a=ü"]));
        assert_eq!(values("/{a}-{b}", "/ü-x"), some(&["a=ü", "b=x"]));
    }

    #[test]
    fn a_pattern_with_a_broken_parameter_is_refused() {
        for pattern in ["/{", "/{}", "/a{b"] {
            assert!(
                matches!(Pattern::parse(pattern), Err(BuildError::Pattern(_))),
                "{pattern}"
            );
        }
    }
}
