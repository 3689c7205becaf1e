//! Events from server to server, which run handlers of the other nodes and reach no client.
//!
//! The bus calls us inline and must not wait, so each handler runs in a separate task, and several
//! events are handled at the same time. The number of tasks is bounded, because any process with
//! access to Redis can emit such events.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt as _;
use roomcast_adapter::{Answer as NodeAnswer, Question};
use roomcast_protocol::{
    args::{Args, FromArgs, IntoArgs},
    message::Message,
};
use tokio::sync::oneshot;

use super::{
    broadcast::BroadcastOperator,
    cluster::resolve,
    error::EmitError,
    handler::{Answer, Call},
    live_namespace::LiveNamespace,
    socket::check_event,
    tasks::NotStarted,
};
use crate::close::Limit;

/// The answers of the other servers.
///
/// ```
/// # use roomcast::{EmitError, Server};
/// # async fn run(io: Server) -> Result<(), EmitError> {
/// let io = io.of("/");
/// let loads = io.server_side_emit_with_ack::<f64>("load", ()).await?;
/// println!("{:?}, no response from {:?}", loads.answers, loads.silent_nodes);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerAnswers<T> {
    /// The answers, in no particular order.
    pub answers: Vec<T>,
    /// The number of answers of another type.
    pub undecodable: usize,
    /// The number of nodes that reported that they have no handler of the event. Node.js servers do
    /// not report this and are listed as silent.
    pub without_handler: usize,
    /// Nodes of the cluster that did not respond in time.
    pub silent_nodes: Vec<String>,
}

impl BroadcastOperator {
    /// Emits an event to the servers of all other nodes, where it runs
    /// [`on_server_side`](super::Namespace::on_server_side) handlers. The handler of this node does
    /// not run. Returns the number of nodes that received the event, with or without a handler.
    ///
    /// With [`local`](Self::local) there is no other node. Fails if rooms or exceptions were named,
    /// because servers are not in rooms.
    pub async fn server_side_emit(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<usize, EmitError> {
        let namespace = self.for_servers()?;
        check_event(event)?;
        let message = Message::ServerSideEmit {
            event: event.into(),
            args: namespace.encode(args)?,
        };
        let published = resolve(namespace.publish(self.target(), || message)).await?;
        Ok(published.nodes)
    }

    /// Emits an event to the servers of all other nodes and collects the results of their handlers,
    /// until all have arrived or the [timeout](Self::timeout) (default 5 s) has passed. A timeout
    /// is not an error: the result lists the silent nodes.
    pub async fn server_side_emit_with_ack<T: FromArgs>(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<ServerAnswers<T>, EmitError> {
        let namespace = self.for_servers()?;
        self.await_subscription().await;
        check_event(event)?;
        let question = Question::ServerSideEmit {
            event: event.into(),
            args: namespace.encode(args)?,
        };
        let asked = resolve(namespace.ask(self.target(), question, self.answer_timeout())).await?;
        let mut answers = ServerAnswers {
            answers: Vec::new(),
            undecodable: 0,
            without_handler: 0,
            silent_nodes: asked.silent_names(),
        };
        for answer in asked.answers {
            match answer {
                NodeAnswer::ServerSideEmit(Some(args)) => match T::from_args(&args) {
                    Ok(answer) => answers.answers.push(answer),
                    Err(_) => answers.undecodable += 1,
                },
                NodeAnswer::ServerSideEmit(None) => answers.without_handler += 1,
                _ => {}
            }
        }
        Ok(answers)
    }
}

impl LiveNamespace {
    /// Starts the handler of an event that another server has emitted. It runs in a separate task,
    /// because the bus must not wait for it. Returns the receiver of its answer, or `None` without
    /// a handler.
    pub(super) fn start_server_side(
        &self,
        event: &str,
        args: &Args,
    ) -> Option<oneshot::Receiver<Args>> {
        let server = self.server.upgrade()?;
        let namespace = self.me.upgrade()?;
        let io = BroadcastOperator::new(Arc::clone(&namespace));
        let (event, _) = self.handlers.server_side.get_key_value(event)?;
        let (event, args, handlers) = (event.clone(), args.clone(), Arc::clone(&self.handlers));
        let (answer, answered) = oneshot::channel();
        let task = async move {
            let handler = &handlers.server_side[&event];
            // The closure may panic before it has made its future.
            let running = AssertUnwindSafe(async {
                let running = handler(&mut Call {
                    namespace: Some(&io),
                    event: &event,
                    args: Some(args),
                    ..Call::new(&namespace.handlers.states)
                });
                running.await
            });
            let metrics = &namespace.engine.metrics;
            let result = running.catch_unwind().await.unwrap_or_else(|_| {
                metrics.handler_panics.inc();
                tracing::error!(event = &*event, "a handler of a server-side event panicked");
                Ok(Answer::Args(failure("the handler panicked")))
            });
            // The receiver was dropped if no answer was requested, or after the timeout.
            let _ = answer.send(match result {
                Ok(Answer::Args(args)) => args,
                Ok(Answer::Taken) => Args::default(),
                Err(failed) => failed.report(&namespace.place(None, &event)).to_answer(),
            });
        };
        match server.tasks.spawn(task) {
            Ok(()) => Some(answered),
            Err(refused) => {
                if refused == NotStarted::TooMany {
                    self.engine.metrics.limit_reached(Limit::ServerSideEvents);
                }
                let (answer, answered) = oneshot::channel();
                // The receiver still exists.
                let _ = answer.send(failure(&refused.to_string()));
                Some(answered)
            }
        }
    }
}

/// The answer of a handler that returns an error.
fn failure(text: &str) -> Args {
    Args::encode(&Err::<(), _>(text)).unwrap_or_default()
}
