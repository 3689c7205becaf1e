//! Acknowledgements in both directions.
//!
//! Ids of acknowledgements that the server waits for belong to the namespace, not to the socket,
//! because a broadcast with acknowledgement is one frame for all its recipients. An answer counts
//! only if it comes from a socket that was asked.
//!
//! A client may send an answer late, when it has connected again, perhaps to another node or with the
//! same id of its socket. So that such an answer does not match a question of that node, nodes of a
//! cluster and namespaces with recovery begin with random ids.
//!
//! ```text
//! one socket:    begin_ack ─ Acks::one ─ emit ─┬─ answer ─────────► end_ack
//!                                              ├─ timeout, drop ──► end_ack
//!                                              └─ disconnect (the count goes with the socket)
//! broadcast:     Acks::many ─ fan out (expect each) ─ seal ─ answers, disconnects ─ complete ─ finish
//! ```
//!
//! Answers to a broadcast can arrive while it is still being queued to others. Nothing is complete
//! before `seal`, which sets the number of sockets that were asked.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use roomcast_adapter::{Member as _, Progress, SocketId};
use roomcast_protocol::{
    args::{Args, FromArgs, IntoArgs},
    receipt::Receipt,
};
use tokio::sync::{Notify, oneshot};

use super::{
    error::EmitError,
    observe::Observation,
    socket::{LocalSocket, Socket},
};

/// The acknowledgement that a client waits for.
///
/// A handler that takes it as its last argument answers by itself, also later and from
/// another task. If it is dropped unsent, the client gets no answer, and the client's own
/// timeout applies.
///
/// ```
/// # use roomcast::{Ack, Namespace};
/// Namespace::new("/").on("render", async |scene: String, ack: Ack| {
///     tokio::spawn(async move { ack.send(format!("{scene} is rendered")) });
/// });
/// ```
#[derive(Debug)]
pub struct Ack {
    pub(super) socket: Socket,
    pub(super) id: Option<u64>,
}

impl Ack {
    /// Returns `true` if the client requested an acknowledgement.
    pub fn is_wanted(&self) -> bool {
        self.id.is_some()
    }

    /// Sends the answer. Does nothing if the client did not request one.
    pub fn send(self, args: impl IntoArgs) -> Result<(), EmitError> {
        let Some(id) = self.id else {
            return Ok(());
        };
        let namespace = self.socket.live();
        let args = args.into_args()?;
        if namespace.observers.is_any_of_events() {
            let (socket, event, args) = (&self.socket, "", &args);
            self.socket.observed(Observation::Acknowledged {
                socket,
                event,
                args,
            });
        }
        let frame = namespace.parser.ack(&namespace.name, id, &args)?;
        self.socket.send(&frame, false)
    }
}

/// The result of a broadcast with acknowledgement.
///
/// ```
/// # use std::time::Duration;
/// # use roomcast::{AckError, Server};
/// # async fn run(io: Server) -> Result<(), AckError> {
/// let voters = io.to("voters").timeout(Duration::from_secs(10));
/// let votes = voters.emit_with_ack::<bool>("in favour?", ()).await?;
/// let in_favour = votes.answers.iter().filter(|vote| **vote).count();
/// println!("{in_favour} in favour, {} did not vote", votes.missing.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Answers<T> {
    /// The answers, in order of arrival.
    pub answers: Vec<T>,
    /// Sockets that did not answer in time, that disconnected, or whose answer has another type.
    pub missing: Vec<SocketId>,
    /// The number of further sockets without a usable answer. Node.js servers do not name the
    /// sockets whose answers they send.
    pub missing_unnamed: usize,
    /// Nodes that responded, this one included.
    pub nodes: usize,
    /// Nodes of the cluster that did not respond. They may have sockets that were not asked.
    pub silent_nodes: Vec<String>,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self {
            answers: Vec::new(),
            missing: Vec::new(),
            missing_unnamed: 0,
            nodes: 0,
            silent_nodes: Vec::new(),
        }
    }
}

impl<T> Answers<T> {
    /// The same as a receipt: with the number of sockets that were asked, and of those
    /// that acknowledged.
    pub fn receipt(&self) -> Receipt {
        let missing = self.missing.len() + self.missing_unnamed;
        Receipt::with_acknowledgements(self.nodes, self.answers.len(), missing, &self.silent_nodes)
    }
}

impl<T: FromArgs> Answers<T> {
    /// Adds the answers of one node. An answer of another type makes its socket missing.
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

/// The greatest id. Those above belong to broadcasts at least once, and clients in Java and C++ read 31 bits.
pub(crate) const MAX_ID: u64 = (1 << 30) - 1;

/// The acknowledgements that a namespace waits for.
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
    /// Notified of every change that may complete the answers.
    complete: Notify,
    /// Notified of each answer as it arrives.
    progress: Option<Arc<dyn Progress>>,
}

#[derive(Default)]
struct Gathered {
    expected: HashMap<SocketId, LocalSocket>,
    answers: Vec<(SocketId, Args)>,
    gone: Vec<SocketId>,
    /// All recipients are known.
    sealed: bool,
    /// `progress` has been notified of the recipients and of all answers so far.
    reports: bool,
    /// Number of answers that threads are reporting to `progress` at the moment.
    reporting: usize,
}

/// An entry of the table, removed on drop whether it was answered or not.
pub(crate) struct Awaited<'a> {
    acks: &'a Acks,
    pub(crate) id: u64,
}

impl Acks {
    /// `first`: the id of the first question.
    pub(crate) fn new(first: u64) -> Self {
        Self {
            next: AtomicU64::new(first),
            pending: Mutex::default(),
        }
    }

    /// Waits for the answer of one socket.
    pub(crate) fn one(&self, socket: &Socket) -> (Awaited<'_>, oneshot::Receiver<Args>) {
        let (answer, receiver) = oneshot::channel();
        let pending = Pending::One {
            socket: socket.id().clone(),
            answer,
        };
        (self.insert(pending), receiver)
    }

    /// Waits for the answers of many sockets, which are added with [`Gathering::expect`].
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
        let id = self.next.fetch_add(1, Ordering::Relaxed) & MAX_ID;
        self.pending.lock().insert(id, pending);
        Awaited { acks: self, id }
    }

    /// Takes an answer. Unknown ids and answers of sockets that were not asked are ignored.
    pub(crate) fn answer(&self, from: &Socket, id: u64, args: Args) {
        let mut pending = self.pending.lock();
        match pending.get(&id) {
            Some(Pending::One { socket, .. }) if socket == from.id() => {
                if let Some(Pending::One { answer, .. }) = pending.remove(&id) {
                    from.local_socket().end_ack();
                    // The receiver may have been dropped; ignore the error.
                    let _ = answer.send(args);
                }
            }
            Some(Pending::Many(gathering)) => {
                let gathering = Arc::clone(gathering);
                // `progress` is called without a lock.
                drop(pending);
                gathering.answer(from, args);
            }
            _ => {}
        }
    }

    /// Ends the wait for a socket that has disconnected. Most sockets have no pending
    /// acknowledgements when they leave, and must not pay for those of others.
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
    /// Stops waiting. Returns `false` if the answer has arrived or the socket has disconnected.
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
    /// Adds a recipient. Called while the broadcast is being queued to it.
    pub(crate) fn expect(&self, socket: &LocalSocket) {
        let id = socket.id().clone();
        if socket.begin_ack() {
            self.state.lock().expected.insert(id, socket.clone());
        } else {
            // It has too many pending answers already: it gets the event, but its acknowledgement
            // is not awaited.
            self.state.lock().gone.push(id);
        }
    }

    /// All recipients are known; `asked` is their number.
    pub(crate) fn seal(&self, asked: usize) {
        if let Some(progress) = &self.progress {
            progress.asked(asked);
            self.report_early_answers(&**progress);
        }
        self.state.lock().sealed = true;
        self.complete.notify_one();
    }

    /// Reports answers that arrived before the number of recipients was known.
    fn report_early_answers(&self, progress: &dyn Progress) {
        let mut reported = 0;
        loop {
            let mut state = self.state.lock();
            let early = state.answers[reported..].to_vec();
            state.reports = early.is_empty();
            drop(state);
            if early.is_empty() {
                return;
            }
            reported += early.len();
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
        let reporting = self.progress.as_ref().filter(|_| state.reports);
        let news = reporting.map(|progress| (progress, args.clone()));
        state.answers.push((from.id().clone(), args));
        if let Some((progress, args)) = news {
            state.reporting += 1;
            drop(state);
            progress.acknowledged(from.id(), &args);
            state = self.state.lock();
            state.reporting -= 1;
        }
        drop(state);
        self.complete.notify_one();
    }

    fn disconnected(&self, socket: &Socket) {
        let mut state = self.state.lock();
        if state.expected.remove(socket.id()).is_some() {
            state.gone.push(socket.id().clone());
            drop(state);
            self.complete.notify_one();
        }
    }

    /// Waits until every recipient has answered or disconnected, and every answer was reported.
    pub(crate) async fn complete(&self) {
        self.until(|state| state.sealed && state.expected.is_empty() && state.reporting == 0)
            .await;
    }

    /// Waits until every answer that has arrived was reported. The whole answer must not overtake
    /// one of them, because a Node server counts them until then.
    pub(crate) async fn reported(&self) {
        self.until(|state| state.reporting == 0).await;
    }

    async fn until(&self, holds: impl Fn(&Gathered) -> bool) {
        // A notification before the wait is kept, so that none is missed.
        while !holds(&self.state.lock()) {
            self.complete.notified().await;
        }
    }

    /// Returns the answers so far, and the sockets without one.
    pub(crate) fn finish(&self) -> (Vec<(SocketId, Args)>, Vec<SocketId>) {
        let mut state = self.state.lock();
        let mut missing = std::mem::take(&mut state.gone);
        missing.extend(state.drop_pending());
        (std::mem::take(&mut state.answers), missing)
    }
}

impl Gathered {
    /// Sockets that have not answered no longer have a pending answer.
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
    /// The caller may stop waiting at any time.
    fn drop(&mut self) {
        self.drop_pending().for_each(drop);
    }
}
