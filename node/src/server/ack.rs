//! Acknowledgements in both directions.
//!
//! The ids that the server gives out belong to the namespace, not to the socket, so that a
//! broadcast with acknowledgement is one frame for all its recipients.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use roomcast_adapter::{Member as _, Progress, SocketId};
use roomcast_protocol::args::{Args, FromArgs, IntoArgs};
use tokio::sync::{Notify, oneshot};

use super::{
    error::EmitError,
    socket::{LocalSocket, Socket},
};

/// The acknowledgement that a client waits for.
///
/// Handed to handlers that take it as their third argument. Dropped unsent, the client gets no
/// answer, and its own timeout applies.
#[derive(Debug)]
pub struct Ack {
    pub(super) socket: Socket,
    pub(super) id: Option<u64>,
}

impl Ack {
    /// Whether the client asked for an acknowledgement.
    pub fn is_wanted(&self) -> bool {
        self.id.is_some()
    }

    /// Answers the client; does nothing if it did not ask.
    pub fn send(self, args: impl IntoArgs) -> Result<(), EmitError> {
        let Some(id) = self.id else {
            return Ok(());
        };
        let namespace = self.socket.live();
        let frame = namespace
            .parser
            .ack(&namespace.name, id, &args.into_args()?)?;
        self.socket.send(&frame, false)
    }
}

/// What became of a broadcast with acknowledgement.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Answers<T> {
    /// The answers, in the order in which they came.
    pub answers: Vec<T>,
    /// Sockets that did not answer in time, disconnected, or answered something else.
    pub missing: Vec<SocketId>,
    /// The number of further sockets of which the same is true, on nodes that don't tell whose
    /// answers they send, as Node's servers.
    pub missing_unnamed: usize,
    /// Nodes of the cluster that did not say whether they have sockets to answer.
    pub silent_nodes: Vec<String>,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self {
            answers: Vec::new(),
            missing: Vec::new(),
            missing_unnamed: 0,
            silent_nodes: Vec::new(),
        }
    }
}

impl<T: FromArgs> Answers<T> {
    /// Takes the answers of one node; what is of another type is missing.
    pub(super) fn add(
        &mut self,
        answers: Vec<(Option<SocketId>, Args)>,
        missing: Vec<SocketId>,
        missing_unnamed: usize,
    ) {
        self.missing.extend(missing);
        self.missing_unnamed += missing_unnamed;
        for (id, args) in answers {
            match (T::from_args(&args), id) {
                (Ok(answer), _) => self.answers.push(answer),
                (Err(_), Some(id)) => self.missing.push(id),
                (Err(_), None) => self.missing_unnamed += 1,
            }
        }
    }
}

/// The acknowledgements that a namespace waits for.
#[derive(Default)]
pub(crate) struct Acks {
    next: AtomicU64,
    pending: Mutex<HashMap<u64, Pending>>,
}

enum Pending {
    One {
        socket: SocketId,
        answer: oneshot::Sender<Args>,
    },
    Many(Arc<Gathering>),
}

/// The answers to one broadcast as they come in.
#[derive(Default)]
pub(crate) struct Gathering {
    state: Mutex<Gathered>,
    complete: Notify,
    /// Hears of the answers while they come.
    progress: Option<Arc<dyn Progress>>,
}

#[derive(Default)]
struct Gathered {
    expected: HashMap<SocketId, LocalSocket>,
    answers: Vec<(SocketId, Args)>,
    gone: Vec<SocketId>,
    /// All recipients are known.
    sealed: bool,
    /// `progress` has heard of the recipients and of all answers so far.
    told: bool,
}

/// Removes what it stands for from the table when it is dropped, answered or not.
pub(crate) struct Awaited<'a> {
    acks: &'a Acks,
    pub(crate) id: u64,
}

impl Acks {
    /// Waits for the answer of one socket.
    pub(crate) fn one(&self, socket: &Socket) -> (Awaited<'_>, oneshot::Receiver<Args>) {
        let (answer, receiver) = oneshot::channel();
        let pending = Pending::One {
            socket: socket.id().clone(),
            answer,
        };
        (self.insert(pending), receiver)
    }

    /// Waits for the answers of many sockets; who they are is said to the gathering.
    pub(crate) fn many(
        &self,
        progress: Option<Arc<dyn Progress>>,
    ) -> (Awaited<'_>, Arc<Gathering>) {
        let gathering = Arc::new(Gathering {
            progress,
            ..Gathering::default()
        });
        (
            self.insert(Pending::Many(Arc::clone(&gathering))),
            gathering,
        )
    }

    fn insert(&self, pending: Pending) -> Awaited<'_> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.pending.lock().insert(id, pending);
        Awaited { acks: self, id }
    }

    /// An answer has come. Ids that nobody waits for are ignored, as are answers of sockets that
    /// were not asked.
    pub(crate) fn answer(&self, from: &Socket, id: u64, args: Args) {
        let mut pending = self.pending.lock();
        match pending.get(&id) {
            Some(Pending::One { socket, .. }) if socket == from.id() => {
                if let Some(Pending::One { answer, .. }) = pending.remove(&id) {
                    from.local_socket().end_ack();
                    // Nobody waits any more if the receiver is gone.
                    let _ = answer.send(args);
                }
            }
            Some(Pending::Many(gathering)) => {
                let gathering = Arc::clone(gathering);
                // Others hear of the answer, and that is not done under a lock.
                drop(pending);
                gathering.answer(from, args);
            }
            _ => {}
        }
    }

    /// Ends the wait for a socket that has disconnected. Most sockets owe nothing when they leave,
    /// and must not pay for the acknowledgements that others owe.
    pub(crate) fn disconnected(&self, socket: &Socket) {
        if !socket.local_socket().owes_acks() {
            return;
        }
        self.pending.lock().retain(|_, pending| match pending {
            Pending::One { socket: asked, .. } => asked != socket.id(),
            Pending::Many(gathering) => {
                gathering.disconnected(socket);
                true
            }
        });
    }
}

impl Awaited<'_> {
    /// Waits no longer; false if the answer has come already, or the socket has gone.
    pub(crate) fn withdraw(&self) -> bool {
        self.acks.pending.lock().remove(&self.id).is_some()
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl Gathering {
    /// Another recipient. Called while the broadcast is being queued to it.
    pub(crate) fn expect(&self, socket: &LocalSocket) {
        let id = socket.id().clone();
        if socket.begin_ack() {
            self.state.lock().expected.insert(id, socket.clone());
        } else {
            // It owes too many answers already; it gets the event, but is not waited for.
            self.state.lock().gone.push(id);
        }
    }

    /// All recipients are known: so many were sent the question.
    pub(crate) fn seal(&self, asked: usize) {
        if let Some(progress) = &self.progress {
            progress.asked(asked);
            self.tell_early_answers(&**progress);
        }
        let mut state = self.state.lock();
        state.sealed = true;
        self.check(&state);
    }

    /// Those that came before it could be said how many were asked.
    fn tell_early_answers(&self, progress: &dyn Progress) {
        let mut told = 0;
        loop {
            let mut state = self.state.lock();
            let early = state.answers[told..].to_vec();
            state.told = early.is_empty();
            drop(state);
            if early.is_empty() {
                return;
            }
            told += early.len();
            for (socket, args) in &early {
                progress.acknowledged(socket, args);
            }
        }
    }

    fn answer(&self, from: &Socket, args: Args) {
        let mut state = self.state.lock();
        if state.expected.remove(from.id()).is_none() {
            return;
        }
        from.local_socket().end_ack();
        let telling = self.progress.as_ref().filter(|_| state.told);
        let news = telling.map(|progress| (progress, args.clone()));
        state.answers.push((from.id().clone(), args));
        if let Some((progress, args)) = news {
            drop(state);
            progress.acknowledged(from.id(), &args);
            state = self.state.lock();
        }
        // After `progress` has heard of it: the whole answer comes last.
        self.check(&state);
    }

    fn disconnected(&self, socket: &Socket) {
        let mut state = self.state.lock();
        if state.expected.remove(socket.id()).is_some() {
            state.gone.push(socket.id().clone());
            self.check(&state);
        }
    }

    fn check(&self, state: &Gathered) {
        if state.sealed && state.expected.is_empty() {
            self.complete.notify_one();
        }
    }

    /// Waits until everybody has answered or gone.
    pub(crate) async fn complete(&self) {
        self.complete.notified().await;
    }

    /// The answers so far, and who did not give one.
    pub(crate) fn finish(&self) -> (Vec<(SocketId, Args)>, Vec<SocketId>) {
        let mut state = self.state.lock();
        let mut missing = std::mem::take(&mut state.gone);
        missing.extend(state.drop_pending());
        (std::mem::take(&mut state.answers), missing)
    }
}

impl Gathered {
    /// Whoever has not answered owes nothing any more.
    fn drop_pending(&mut self) -> impl Iterator<Item = SocketId> {
        std::mem::take(&mut self.expected)
            .into_iter()
            .map(|(id, socket)| {
                socket.end_ack();
                id
            })
    }
}

impl Drop for Gathered {
    /// The one who asked may stop waiting at any time.
    fn drop(&mut self) {
        self.drop_pending().for_each(drop);
    }
}
