//! The state that all operators of an emitter share: its encoder, its way to Redis, its questions.
//!
//! A question, here a confirmed emit, takes these steps:
//!
//! ```text
//!   subscribe to the answers ─▶ read leases (at most every second)
//!     ─▶ count members ┐
//!     ─▶ broadcast     ├ one after the other on one connection, so nobody is counted that came
//!     ─▶ question      ┘ too late to receive it
//!     ─▶ gather answers; count again every 200 ms while one is missing
//! ```
//!
//! Only messages that were certainly not published are retried. As soon as the broadcast of a
//! confirmed emit is out, a failure of the question is `Unconfirmed`: a retry would
//! publish the broadcast twice.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use roomcast_protocol::{
    channel::{EMITTER_UID, uid},
    id::NodeId,
    message::{Message, Position},
    question::{Answered, Question, REACHED_NOW},
    receipt::Receipt,
    wire::{Publication, unplaced},
};
use tokio::{
    join,
    time::{Instant, sleep},
};

use super::{
    encoder::{Encoder, check_namespace},
    journals::{Journal, Journals},
    results::{self, Delivery},
    retry::Retry,
    transport::Transport,
    unsent::{Keyed, Mark, Run, Unsent},
};
use crate::{
    answers::{Answers, Listening},
    error::EmitError,
    log::Once,
    membership::{self, Counted, Leases, Members, PendingQuestions, RENEWAL_SECONDS},
    signing::Signer,
};

/// How long Redis's clock is extrapolated.
const CLOCK_VALID: Duration = Duration::from_secs(1);

/// The length of a socket's id.
const SOCKET_ID_BYTES: usize = 20;

pub(crate) struct Core {
    pub(super) transport: Transport,
    pub(super) encoder: Encoder,
    pub(super) retry: Retry,
    pub(super) counts_members: bool,
    pub(super) journals: Journals,
    pub(super) idempotency_time: Duration,
    /// The name under which it asks.
    pub(super) node: NodeId,
    /// Questions so far.
    pub(super) asked: AtomicU64,
    pub(super) questions: Arc<PendingQuestions>,
    /// The leases of the nodes, and when they were read.
    pub(super) leases: Mutex<Option<(Instant, Arc<Leases>)>>,
    /// `None` over a pool without a URL for answers.
    pub(super) answers: Option<Answers>,
    pub(super) signer: Option<Arc<Signer>>,
}

impl Core {
    pub(super) async fn publish(
        &self,
        namespace: &str,
        message: &Message,
        once: Option<&Once>,
    ) -> Result<Delivery, EmitError> {
        self.check_at_least_once(namespace, message).await?;
        if self.encoder.has_stream() {
            return self.append(namespace, message, once).await;
        }
        let publication = self.encoder.encode(namespace, message)?;
        let mut members = None;
        let main = self.encoder.wire.channels().broadcast(namespace);
        if self.counts_members && has_own_channel(message) && publication.channel != main {
            let counting = self
                .transport
                .subscribers(&self.encoder, &publication.channel);
            members = counting.await;
        }
        let mut tried = 0;
        loop {
            let publishing = self.publish_to(namespace, message, &publication, once);
            match publishing.await {
                Ok(delivery) => {
                    return Ok(Delivery {
                        members,
                        ..delivery
                    });
                }
                Err(error) => self.pause(&mut tried, error, once.is_some()).await?,
            }
        }
    }

    /// Fails if a message must be emitted at least once but cannot be.
    async fn check_at_least_once(
        &self,
        namespace: &str,
        message: &Message,
    ) -> Result<(), EmitError> {
        let flags = message.target().map(|target| target.flags);
        let Some(flags) = flags.filter(|flags| flags.at_least_once) else {
            return Ok(());
        };
        let reason = if flags.volatile {
            "it is volatile, so it is not in the journal"
        } else if self.encoder.has_stream() {
            "in the streams dialect, nodes do not announce to emitters whether it can be"
        } else {
            // In a box, because few emits get here.
            match Box::pin(self.find_journal(namespace)).await? {
                Some(journal) if journal.at_least_once => return Ok(()),
                _ => "the namespace needs recovery with `at_least_once` turned on",
            }
        };
        Err(EmitError::AtLeastOnce(reason))
    }

    /// Appends a message to the stream.
    async fn append(
        &self,
        namespace: &str,
        message: &Message,
        once: Option<&Once>,
    ) -> Result<Delivery, EmitError> {
        let commands = [self.encoder.entry(namespace, message, None)?];
        let mut tried = 0;
        loop {
            let appended = match once {
                Some(once) => Box::pin(self.append_once(namespace, &commands[0], once)).await,
                None => {
                    let appended = self.append_entries(&commands).await.pop();
                    match appended.expect("there is one reply for each command") {
                        Ok(()) => Ok(Delivery::new(self.members(namespace).await)),
                        Err(error) => Err(error),
                    }
                }
            };
            match appended {
                Ok(delivery) => return Ok(delivery),
                Err(error) => self.pause(&mut tried, error, once.is_some()).await?,
            }
        }
    }

    async fn append_once(
        &self,
        namespace: &str,
        append: &[Vec<u8>],
        once: &Once,
    ) -> Result<Delivery, EmitError> {
        let result = self.encoder.wire.channels().once(namespace, &once.key);
        let members = self.members(namespace).await;
        let command = once.entry_command(&result, append, members);
        self.run_once(once, result, command).await
    }

    /// Runs the script that publishes under an idempotency key.
    async fn run_once(
        &self,
        once: &Once,
        result: String,
        command: Vec<Vec<u8>>,
    ) -> Result<Delivery, EmitError> {
        let publishing = self.transport.publish_once(&result, vec![(once, command)]);
        let published = Box::pin(publishing).await.pop();
        published.expect("there is one reply for each command")
    }

    async fn append_entries(&self, commands: &[Vec<Vec<u8>>]) -> Vec<Result<(), EmitError>> {
        let stream = self.encoder.wire.channels().stream();
        self.transport.append_entries(stream, commands).await
    }

    /// The number of nodes that are members of a namespace: Redis does not report the readers of a
    /// stream.
    async fn members(&self, namespace: &str) -> usize {
        let channel = self.encoder.wire.channels().broadcast(namespace);
        let counting = self.transport.subscribers(&self.encoder, &channel);
        counting.await.unwrap_or(0)
    }

    /// Appends the messages of a batch to the stream.
    async fn append_all(
        &self,
        unsent: &Unsent,
        namespaces: &[Box<str>],
    ) -> Vec<Result<Delivery, EmitError>> {
        let (commands, marks): (Vec<_>, Vec<_>) = unsent.words().unzip();
        let appended = self.append_entries(&commands).await;
        let mut members = Vec::with_capacity(namespaces.len());
        for namespace in namespaces {
            members.push(self.members(namespace).await);
        }
        let outcomes = appended.into_iter().zip(marks);
        let outcomes = outcomes.map(|(appended, mark): (Result<(), EmitError>, &Mark)| {
            appended?;
            Ok(Delivery::new(match mark {
                Mark::Journaled(namespace) => members[*namespace],
                Mark::Plain | Mark::Keyed(_) => 0,
            }))
        });
        outcomes.collect()
    }

    /// Stores a message in the journal in which it belongs, which publishes it, or
    /// publishes it only.
    async fn publish_to(
        &self,
        namespace: &str,
        message: &Message,
        publication: &Publication,
        once: Option<&Once>,
    ) -> Result<Delivery, EmitError> {
        let journal = match is_journaled(message) {
            true => self.journal(namespace).await?,
            false => None,
        };
        if let Some(once) = once {
            let channels = self.encoder.wire.channels();
            let names = self.journals.names(channels, namespace);
            let result = channels.once(namespace, &once.key);
            let limits = journal.map(|journal| journal.limits);
            self.read_clock().await?;
            let signer = self.signer.as_deref();
            let command = once.command(&result, &names, &publication.payload, limits, signer);
            let command = command.ok_or_else(no_time)?;
            return self.run_once(once, result, command).await;
        }
        let Some(journal) = journal else {
            let publication = self.signed(publication).await?;
            let nodes = self.transport.publish(&self.encoder, &publication).await?;
            return Ok(Delivery::new(nodes));
        };
        self.read_clock().await?;
        let command = self.store_command(&journal, &publication.payload)?;
        let appending = self.transport.append_all(&journal.names, vec![command]);
        // In a box, so that the futures of applications around this one stay within what
        // the compiler can nest.
        let appended = Box::pin(appending).await.pop();
        appended
            .expect("there is one reply for each command")
            .map(stored_at)
    }

    /// The journal of a namespace.
    async fn journal(&self, namespace: &str) -> Result<Option<Journal>, EmitError> {
        let channels = self.encoder.wire.channels();
        let finding = self.journals.of(&self.transport, channels, namespace);
        finding.await
    }

    /// The same, retried if Redis is unreachable.
    async fn find_journal(&self, namespace: &str) -> Result<Option<Journal>, EmitError> {
        let mut tried = 0;
        loop {
            match self.journal(namespace).await {
                Ok(journal) => return Ok(journal),
                Err(error) => self.pause(&mut tried, error, false).await?,
            }
        }
    }

    /// Waits before the next try, or returns the error if there is none.
    async fn pause(
        &self,
        tried: &mut u32,
        error: EmitError,
        has_key: bool,
    ) -> Result<(), EmitError> {
        *tried += 1;
        match self.retry.pause(*tried, &error, has_key) {
            Some(pause) => {
                sleep(pause).await;
                Ok(())
            }
            None => Err(error),
        }
    }

    /// Publishes the messages of a batch and returns their outcomes, both in order. `namespaces` are those of
    /// their [marks](Mark).
    pub(super) async fn publish_all(
        &self,
        unsent: &Unsent,
        namespaces: &[Box<str>],
    ) -> Vec<Result<Delivery, EmitError>> {
        let mut journals = Vec::with_capacity(namespaces.len());
        let journaled = match self.encoder.has_stream() {
            true => &[],
            false => namespaces,
        };
        for namespace in journaled {
            match self.find_journal(namespace).await {
                Ok(journal) => journals.push(journal),
                Err(error) => {
                    let reason: Arc<str> = error.to_string().into();
                    let failed = || Err(EmitError::Unreachable(Arc::clone(&reason)));
                    return std::iter::repeat_with(failed).take(unsent.len()).collect();
                }
            }
        }
        let mut results = self.publish_once(unsent, &journals, namespaces).await;
        let mut tried = 1;
        loop {
            let pause = |index: usize, result: &Result<Delivery, EmitError>| {
                let error = result.as_ref().err()?;
                self.retry.pause(tried, error, unsent.has_key(index))
            };
            let failed = results.iter().enumerate();
            let (again, pauses): (Vec<_>, Vec<_>) = failed
                .filter_map(|(index, result)| Some((index, pause(index, result)?)))
                .unzip();
            let Some(longest) = pauses.into_iter().max() else {
                return results;
            };
            sleep(longest).await;
            tried += 1;
            let unsent = unsent.select(&again);
            let published = self.publish_once(&unsent, &journals, namespaces).await;
            for (index, published) in again.into_iter().zip(published) {
                results[index] = published;
            }
        }
    }

    async fn publish_once(
        &self,
        unsent: &Unsent,
        journals: &[Option<Journal>],
        namespaces: &[Box<str>],
    ) -> Vec<Result<Delivery, EmitError>> {
        let mut results = Vec::with_capacity(unsent.len());
        for run in unsent.runs(journals) {
            match run {
                Run::Keyed(mark, keyed) => {
                    let journal = journals.get(mark).and_then(Option::as_ref);
                    let namespace = &*namespaces[mark];
                    results.extend(Box::pin(self.publish_keyed(namespace, journal, keyed)).await);
                }
                Run::Published(unsent) if self.encoder.has_stream() => {
                    results.extend(self.append_all(&unsent, namespaces).await);
                }
                Run::Published(unsent) => {
                    let published = Box::pin(self.send_all(&unsent)).await.into_iter();
                    results.extend(published.map(|nodes| nodes.map(Delivery::new)));
                }
                Run::Appended(journal, payloads) => {
                    let appended = Box::pin(self.store_all(journal, &payloads)).await;
                    results.extend(appended.into_iter().map(|stored| stored.map(stored_at)));
                }
            }
        }
        results
    }

    /// Publishes the messages of a batch that have idempotency keys, in order.
    async fn publish_keyed(
        &self,
        namespace: &str,
        journal: Option<&Journal>,
        keyed: Vec<(&Keyed, Vec<Vec<u8>>)>,
    ) -> Vec<Result<Delivery, EmitError>> {
        let channels = self.encoder.wire.channels();
        let names = self.journals.names(channels, namespace);
        let members = match self.encoder.has_stream() {
            true => self.members(namespace).await,
            false => 0,
        };
        if let Err(error) = self.read_clock().await {
            return fail_all(keyed.len(), &error);
        }
        let signer = self.signer.as_deref();
        let count = keyed.len();
        let mut route = String::new();
        let commands = keyed.into_iter().map(|(keyed, words)| {
            let once = &keyed.once;
            let result = channels.once(namespace, &once.key);
            let command = match (self.encoder.has_stream(), words.get(2)) {
                (true, _) => Some(once.entry_command(&result, &words, members)),
                (false, payload) => {
                    let limits = journal
                        .filter(|_| keyed.is_stored)
                        .map(|journal| journal.limits);
                    once.command(&result, &names, payload?, limits, signer)
                }
            };
            // All results of a namespace are in one slot.
            route = result;
            Some((once, command?))
        });
        match commands.collect::<Option<Vec<_>>>() {
            Some(commands) => self.transport.publish_once(&route, commands).await,
            None => fail_all(count, &no_time()),
        }
    }

    /// Publishes a broadcast and asks the nodes how many sockets it reached.
    pub(super) async fn confirm(
        &self,
        namespace: &str,
        message: &Message,
        once: Option<&Once>,
        (question, timeout): (&Question, Duration),
    ) -> Result<Receipt, EmitError> {
        check_namespace(namespace)?;
        if self.answers.is_none() {
            return Err(EmitError::NoAnswers);
        }
        self.check_at_least_once(namespace, message).await?;
        let is_stored = !self.encoder.has_stream()
            && is_journaled(message)
            && self.find_journal(namespace).await?.is_some();
        if !is_stored && once.is_none() {
            let about = About::Message(message);
            let answered = self.ask(namespace, about, question, timeout).await?;
            return Ok(results::confirmed(None, &answered));
        }
        let delivery = Box::pin(self.publish(namespace, message, once)).await?;
        let result = once.map(|once| self.encoder.wire.channels().once(namespace, &once.key));
        if delivery.is_replayed {
            // How many sockets it reached then cannot be asked now.
            let first = match once.zip(result.as_deref()) {
                Some((once, result)) => Box::pin(self.transport.receipt(once, result)).await,
                None => None,
            };
            let mut receipt = first.unwrap_or_else(|| delivery.into());
            receipt.is_replayed = true;
            return Ok(receipt);
        }
        let asked = Box::pin(self.ask_once(namespace, About::Published, question, timeout)).await;
        // It is stored: a retry would store it twice.
        let answered = asked.map_err(|error| unconfirmed(&error))?;
        let receipt = results::confirmed(delivery.position, &answered);
        if let Some((once, result)) = once.zip(result.as_deref()) {
            // Without it, a repetition has the position and the number of nodes only.
            let keeping = self.transport.keep_receipt(once, result, &receipt);
            if let Err(error) = Box::pin(keeping).await {
                tracing::debug!(%error, "the receipt of a broadcast is not kept with its idempotency key");
            }
        }
        Ok(receipt)
    }

    /// Stores payloads in a journal, which publishes them.
    async fn store_all(
        &self,
        journal: &Journal,
        payloads: &[&[u8]],
    ) -> Vec<Result<(Position, u64), EmitError>> {
        let commands = match self.read_clock().await {
            Ok(()) => {
                let commands = payloads
                    .iter()
                    .map(|payload| self.store_command(journal, payload));
                commands.collect::<Result<_, _>>()
            }
            Err(error) => Err(error),
        };
        match commands {
            Ok(commands) => self.transport.append_all(&journal.names, commands).await,
            Err(error) => fail_all(payloads.len(), &error),
        }
    }

    /// The command that stores a broadcast in a journal and publishes it.
    fn store_command(&self, journal: &Journal, payload: &[u8]) -> Result<Vec<Vec<u8>>, EmitError> {
        let names = &journal.names;
        let mut head = unplaced(payload).expect("broadcasts have no other forms");
        if let Some(signer) = &self.signer {
            head = signer
                .seal_head(&names.channel, &head)
                .ok_or_else(no_time)?;
        }
        Ok(names.append(&head, journal.limits))
    }

    /// Signs commands, if the cluster does, and sends them.
    async fn send_all(&self, unsent: &Unsent) -> Vec<Result<usize, EmitError>> {
        let Some(signer) = &self.signer else {
            return self.transport.publish_all(unsent.pieces()).await;
        };
        if let Err(error) = self.read_clock().await {
            return fail_all(unsent.len(), &error);
        }
        let sealed = unsent.map(|commands, channel, message| {
            let sealed = signer.seal(channel, message).ok_or_else(no_time)?;
            self.encoder.write(commands, channel, &sealed);
            Ok(())
        });
        match sealed {
            Ok(sealed) => self.transport.publish_all(sealed.pieces()).await,
            Err(error) => fail_all(unsent.len(), &error),
        }
    }

    /// Signs a message, if the cluster does. Done for each try, because the pauses
    /// between them may be longer than a signature is valid.
    async fn signed<'a>(
        &self,
        publication: &'a Publication,
    ) -> Result<Cow<'a, Publication>, EmitError> {
        let Some(signer) = &self.signer else {
            return Ok(Cow::Borrowed(publication));
        };
        self.read_clock().await?;
        let channel = publication.channel.clone();
        let payload = signer.seal(&channel, &publication.payload);
        let payload = payload.ok_or_else(no_time)?.into();
        Ok(Cow::Owned(Publication { channel, payload }))
    }

    /// Reads Redis's clock, if messages are signed, unless that was a moment ago.
    ///
    /// # Errors
    ///
    /// Those of messages that were not published.
    async fn read_clock(&self) -> Result<(), EmitError> {
        let Some(signer) = &self.signer else {
            return Ok(());
        };
        if signer.clock_age().is_some_and(|age| age < CLOCK_VALID) {
            return Ok(());
        }
        let channels = self.encoder.wire.channels();
        let time = Box::pin(self.transport.time(channels)).await;
        signer.set_time(time.map_err(|error| unpublished(&error))?);
        Ok(())
    }

    /// Asks the nodes of a namespace.
    pub(super) async fn ask(
        &self,
        namespace: &str,
        about: About<'_>,
        question: &Question,
        timeout: Duration,
    ) -> Result<Answered, EmitError> {
        check_namespace(namespace)?;
        let mut tried = 0;
        loop {
            // The future is large; boxing it costs little compared with a question.
            match Box::pin(self.ask_once(namespace, about, question, timeout)).await {
                Ok(answered) => return Ok(answered),
                Err(error) => self.pause(&mut tried, error, false).await?,
            }
        }
    }

    async fn ask_once(
        &self,
        namespace: &str,
        about: About<'_>,
        question: &Question,
        timeout: Duration,
    ) -> Result<Answered, EmitError> {
        let answers = self.answers.as_ref().ok_or(EmitError::NoAnswers)?;
        let is_quick = membership::is_quick(question);
        // A new id for each try: late answers to the one before must not count.
        let mut id = self.next_id();
        if matches!(about, About::Published) {
            id.push_str(REACHED_NOW);
        }
        let uid = uid(
            &self.node,
            namespace,
            self.encoder.wire.channels().dialect(),
        );
        let has_stream = self.encoder.has_stream();
        let message = match about {
            About::Message(message) if !has_stream => {
                Some(self.confirmed(namespace, message, &id)?)
            }
            _ => None,
        };
        let mut entries = Vec::new();
        let asked = match question {
            // After its broadcast, which is in the stream.
            Question::Reached(target) if has_stream => {
                if let About::Message(message) = about {
                    entries.push(self.encoder.entry(namespace, message, Some(&id))?);
                }
                let wire = &self.encoder.wire;
                let (uid, node) = (uid.as_str(), &self.node);
                let entry = wire.entry_of_reached(namespace, uid, node, &id, target);
                entries.push(self.encoder.append(&entry));
                None
            }
            question => {
                let (uid, wire) = (uid.as_str(), &self.encoder.wire);
                Some(wire.question(namespace, uid, &self.node, &id, question)?)
            }
        };
        let listening = answers.listen(namespace).await?;
        let members = MembersOf {
            core: self,
            namespace,
            listening: &listening,
        };
        let leases = members.recent_leases().await?;
        let waiting = self.questions.open(&id)?;
        let is_broadcast = !matches!(about, About::Nothing);
        let mut unsent = Unsent::default();
        for publication in message.iter().chain(&asked) {
            unsent.push(Mark::Plain, usize::MAX, |commands| {
                let Publication { channel, payload } = publication;
                self.encoder.write(commands, channel, payload);
                Ok(())
            })?;
        }
        // Counted just before: a node that joins later does not receive the question.
        let publishing = async {
            match &asked {
                Some(_) => Box::pin(self.send_all(&unsent)).await,
                None => {
                    let appended = self.append_entries(&entries).await.into_iter();
                    appended.map(|appended| appended.map(|()| 0)).collect()
                }
            }
        };
        let (before, published) = join!(members.count(leases), publishing);
        for (index, published) in published.into_iter().enumerate() {
            match published {
                Ok(_) => {}
                // The broadcast is out: a retry would publish it twice.
                Err(error) if is_broadcast && index > 0 => return Err(unconfirmed(&error)),
                Err(error) => return Err(error),
            }
        }
        let before = before.ok();
        let (members, before) = (&members, before.as_ref());
        let look = |others: Vec<NodeId>| async move {
            let mut roster = membership::look(members, before, &others).await?;
            // A node for which the question does not wait is silent only if it missed a message.
            if !is_broadcast {
                roster.deaf.clear();
            }
            Ok(roster)
        };
        let gathered = Box::pin(waiting.gather(timeout, is_quick, look)).await;
        let outcome = gathered.map_err(|error| unconfirmed(&error))?;
        Ok(outcome.answered)
    }

    /// A broadcast for which a receipt will be requested.
    fn confirmed(
        &self,
        namespace: &str,
        message: &Message,
        id: &str,
    ) -> Result<Publication, EmitError> {
        let encoder = &self.encoder;
        let mut publication = encoder
            .wire
            .message(namespace, EMITTER_UID, message, Some(id))?;
        encoder.redirect(namespace, message, &mut publication);
        if self.encoder.is_sharded {
            // The question follows on the main channel. In a cluster a room's channel may be on
            // another server, and there is no order between the two.
            publication.channel = self.encoder.wire.channels().broadcast(namespace);
        }
        Ok(publication)
    }

    fn next_id(&self) -> String {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        // The name is unique in the cluster, and long enough that its first part is, too.
        let name = self.node.as_str();
        format!("{}-{number:x}", name.get(..12).unwrap_or(name))
    }
}

/// The members of one namespace, which answer where this emitter listens.
struct MembersOf<'a> {
    core: &'a Core,
    namespace: &'a str,
    listening: &'a Listening,
}

impl MembersOf<'_> {
    /// The leases as they were a moment ago, or those of now.
    async fn recent_leases(&self) -> Result<Arc<Leases>, EmitError> {
        let seen = self.core.leases.lock().clone();
        match seen.filter(|(seen, _)| seen.elapsed().as_secs() < RENEWAL_SECONDS) {
            Some((_, leases)) => Ok(leases),
            None => self.leases().await,
        }
    }
}

impl Members for MembersOf<'_> {
    type Error = EmitError;

    async fn leases(&self) -> Result<Arc<Leases>, EmitError> {
        if self.listening.is_lost() {
            let reason = "the connection for answers was lost";
            return Err(EmitError::Unconfirmed(reason.into()));
        }
        let leases = self
            .core
            .transport
            .leases(self.core.encoder.wire.channels());
        let leases = Arc::new(leases.await?);
        *self.core.leases.lock() = Some((Instant::now(), Arc::clone(&leases)));
        Ok(leases)
    }

    async fn count(&self, leases: Arc<Leases>) -> Result<Counted, EmitError> {
        let channels = self.core.encoder.wire.channels();
        let transport = &self.core.transport;
        transport.count(channels, self.namespace, &leases).await
    }
}

/// The subject of a question.
#[derive(Clone, Copy)]
pub(super) enum About<'a> {
    /// No broadcast.
    Nothing,
    /// A broadcast that is published before it.
    Message(&'a Message),
    /// A broadcast that was published already.
    Published,
}

/// Whether a message belongs in the journal of its namespace, if it has one.
fn is_journaled(message: &Message) -> bool {
    matches!(message, Message::Broadcast(broadcast) if !broadcast.target.flags.volatile)
}

fn stored_at((position, nodes): (Position, u64)) -> Delivery {
    Delivery {
        position: Some(position),
        ..Delivery::new(usize::try_from(nodes).unwrap_or(usize::MAX))
    }
}

/// Whether the message goes to one room, whose name is not like a socket's id: nodes receive those
/// over a pattern.
fn has_own_channel(message: &Message) -> bool {
    let Message::Broadcast(broadcast) = message else {
        return false;
    };
    matches!(&broadcast.target.rooms[..], [room] if room.len() != SOCKET_ID_BYTES)
}

/// The same error for this number of messages.
fn fail_all<T>(messages: usize, error: &EmitError) -> Vec<Result<T, EmitError>> {
    (0..messages).map(|_| Err(unpublished(error))).collect()
}

/// The error of a message that was not published because Redis did not return its time.
fn unpublished(error: &EmitError) -> EmitError {
    match error {
        EmitError::Refused(reason) => EmitError::Refused(Arc::clone(reason)),
        other => EmitError::Unreachable(other.to_string().into()),
    }
}

fn no_time() -> EmitError {
    EmitError::Unreachable("its time is not known".into())
}

fn unconfirmed(error: &EmitError) -> EmitError {
    EmitError::Unconfirmed(error.to_string().into())
}
