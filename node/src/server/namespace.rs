//! The definition of a namespace: its name and its handlers, built once and then immutable.

use std::{future::Future, sync::Arc};

use hashbrown::HashMap;

use super::{
    data::Data,
    error::{BuildError, Refused},
    handler::{
        Authorizer, ConnectHandler, DisconnectHandler, Event, EventHandler, OnAny, OnConnect,
        OnDisconnect, OnEvent, OnServerSide, ServerSideHandler, discard,
    },
    socket::Socket,
};
use crate::transport::handshake::Handshake;

/// A namespace and what happens in it.
///
/// ```ignore
/// Namespace::new("/chat")
///     .on_connect(async |socket: Socket| { socket.join("lobby").ok(); })
///     .on("message", async |socket: Socket, text: String| {
///         socket.to("lobby").emit("message", text).await
///     })
/// ```
pub struct Namespace {
    pub(crate) name: Box<str>,
    pub(crate) is_pattern: bool,
    pub(crate) handlers: Handlers,
}

#[derive(Default)]
pub(crate) struct Handlers {
    pub(crate) authorize: Option<Authorizer>,
    pub(crate) connect: Option<OnConnect>,
    pub(crate) disconnect: Option<OnDisconnect>,
    pub(crate) any: Option<OnAny>,
    /// The names come from the application, so its hash function needs no secret.
    pub(crate) events: HashMap<Box<str>, OnEvent>,
    pub(crate) server_side: HashMap<Box<str>, OnServerSide>,
}

impl Namespace {
    /// The namespace of this name, such as `/` or `/chat`.
    pub fn new(name: impl Into<Box<str>>) -> Self {
        Self {
            name: name.into(),
            is_pattern: false,
            handlers: Handlers::default(),
        }
    }

    /// Every namespace whose name matches, such as `/org-{id}`: `{id}` stands for one or more
    /// characters other than `/`. Each exists while a socket is connected to it.
    pub fn matching(pattern: impl Into<Box<str>>) -> Self {
        Self {
            is_pattern: true,
            ..Self::new(pattern)
        }
    }

    /// Decides who may connect. What it returns becomes the socket's [data](Socket::data).
    /// A second call replaces the first.
    #[must_use]
    pub fn authorize<F, Fut, U>(mut self, authorize: F) -> Self
    where
        F: Fn(Handshake) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<U, Refused>> + Send + 'static,
        U: Data,
    {
        self.handlers.authorize = Some(Box::new(move |handshake| {
            let running = authorize(handshake);
            Box::pin(async move {
                let data: Arc<dyn Data> = Arc::new(running.await?);
                Ok(Some(data))
            })
        }));
        self
    }

    /// Runs when a socket has connected. Events of the socket find their handlers from the connect
    /// reply on, also while this still runs.
    #[must_use]
    pub fn on_connect(mut self, handler: impl ConnectHandler) -> Self {
        self.handlers.connect = Some(Box::new(handler));
        self
    }

    /// Runs on an event of this name. A second handler of the same name replaces the first.
    #[must_use]
    pub fn on<Form: 'static>(
        mut self,
        event: impl Into<Box<str>>,
        handler: impl EventHandler<Form>,
    ) -> Self {
        let handler: OnEvent =
            Box::new(move |socket, payload, id| handler.call(socket, payload, id).0);
        self.handlers.events.insert(event.into(), handler);
        self
    }

    /// Runs on every event, before its own handler.
    #[must_use]
    pub fn on_any<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(Socket, Event) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
    {
        self.handlers.any = Some(Box::new(move |socket, event| {
            discard(handler(socket, event))
        }));
        self
    }

    /// Runs on an event that the server of another node emits to servers, with
    /// [`server_side_emit`](super::BroadcastOperator::server_side_emit), in a task of its own:
    /// several events run side by side. A second handler of the same name replaces the first.
    ///
    /// A panic is caught and counted, and answered with an error.
    #[must_use]
    pub fn on_server_side<Form: 'static>(
        mut self,
        event: impl Into<Box<str>>,
        handler: impl ServerSideHandler<Form>,
    ) -> Self {
        let handler: OnServerSide = Box::new(move |io, args| handler.call(io, args).0);
        self.handlers.server_side.insert(event.into(), handler);
        self
    }

    /// Runs when a socket has disconnected. The socket is still in its rooms, as far as
    /// [`Socket::rooms`] says, until the handler waits for the first time.
    #[must_use]
    pub fn on_disconnect(mut self, handler: impl DisconnectHandler) -> Self {
        self.handlers.disconnect = Some(Box::new(handler));
        self
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

    /// The values of the parameters if the name matches. Each takes as few characters as it can.
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
