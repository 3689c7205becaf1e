//! What all operators of an emitter share: its language, its way to Redis, its questions.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    join,
    time::{Instant, sleep},
};

use super::{
    batch::Unsent, error::EmitError, results::Delivery, retry::Retry, transport::Transport,
};
use crate::{
    answers::{Answers, Listening},
    asking::Asking,
    attendance::{self, Members},
    link::{Commands, push_joined_arg, push_written_arg},
    members::{Counted, Leases, RENEWAL_SECONDS},
    resp,
};
use roomcast_protocol::{
    args::Args,
    channel::{EMITTER_UID, uid},
    id::NodeId,
    message::Message,
    question::{Answered, Question},
    target::Target,
    wire::{Publication, Wire},
};

pub(crate) struct Core {
    pub(super) transport: Transport,
    pub(super) wire: Arc<Wire>,
    pub(super) is_sharded: bool,
    pub(super) retry: Retry,
    /// As whom it asks.
    pub(super) node: NodeId,
    pub(super) questions: AtomicU64,
    pub(super) asking: Arc<Asking>,
    /// The leases of the nodes, and when they were looked at.
    pub(super) leases: Mutex<Option<(Instant, Arc<Leases>)>>,
    /// None over a pool without a URL for answers.
    pub(super) answers: Option<Answers>,
}

impl Core {
    fn encode(&self, namespace: &str, message: &Message) -> Result<Publication, EmitError> {
        check_namespace(namespace)?;
        Ok(self.wire.message(namespace, EMITTER_UID, message, None)?)
    }

    pub(super) async fn publish(
        &self,
        namespace: &str,
        message: &Message,
    ) -> Result<Delivery, EmitError> {
        let publication = self.encode(namespace, message)?;
        let mut tried = 0;
        loop {
            let published = self.transport.publish(&publication, self.is_sharded).await;
            tried += 1;
            match published {
                Ok(nodes) => return Ok(Delivery { nodes }),
                Err(error) => match self.retry.pause(tried, &error) {
                    Some(pause) => sleep(pause).await,
                    None => return Err(error),
                },
            }
        }
    }

    /// Adds the command that publishes a message.
    pub(super) fn append(
        &self,
        commands: &mut Commands,
        namespace: &str,
        message: &Message,
    ) -> Result<(), EmitError> {
        let publication = self.encode(namespace, message)?;
        self.append_publication(commands, &publication);
        Ok(())
    }

    /// The same for a broadcast, of which there may be many: nothing is allocated for each.
    pub(super) fn append_broadcast(
        &self,
        commands: &mut Commands,
        namespace: &str,
        broadcast: (&Target, &str, &Args),
    ) -> Result<(), EmitError> {
        check_namespace(namespace)?;
        let channel = self
            .wire
            .channels()
            .parts_for_target(namespace, broadcast.0);
        commands.push(|out| {
            self.begin(out);
            push_joined_arg(out, &channel);
            push_written_arg(out, |out| {
                self.wire
                    .write_broadcast(out, namespace, EMITTER_UID, broadcast)
            })
        })?;
        Ok(())
    }

    fn append_publication(&self, commands: &mut Commands, publication: &Publication) {
        let appended = commands.push(|out| {
            self.begin(out);
            resp::push_arg(out, publication.channel.as_bytes());
            resp::push_arg(out, &publication.payload);
            Ok::<_, Infallible>(())
        });
        match appended {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    fn begin(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self.is_sharded {
            false => b"*3\r\n$7\r\nPUBLISH\r\n".as_slice(),
            true => b"*3\r\n$8\r\nSPUBLISH\r\n",
        });
    }

    /// Publishes many messages in their order; answers in that order, too.
    pub(super) async fn publish_all(&self, mut unsent: Unsent) -> Vec<Result<Delivery, EmitError>> {
        let mut results = self.publish_once(&mut unsent).await;
        let mut tried = 1;
        loop {
            let pause = |result: &Result<Delivery, EmitError>| {
                self.retry.pause(tried, result.as_ref().err()?)
            };
            let failed = results.iter().enumerate();
            let (again, pauses): (Vec<_>, Vec<_>) = failed
                .filter_map(|(index, result)| Some((index, pause(result)?)))
                .unzip();
            let Some(longest) = pauses.into_iter().max() else {
                return results;
            };
            sleep(longest).await;
            tried += 1;
            let published = self
                .publish_once(&mut unsent.commands().select(&again).into())
                .await;
            for (index, published) in again.into_iter().zip(published) {
                results[index] = published;
            }
        }
    }

    /// After that, all of them are encoded.
    async fn publish_once(&self, unsent: &mut Unsent) -> Vec<Result<Delivery, EmitError>> {
        let published = self.transport.publish_all(self, unsent).await;
        published
            .into_iter()
            .map(|nodes| nodes.map(|nodes| Delivery { nodes }))
            .collect()
    }

    /// Asks the nodes of a namespace, with a broadcast before the question if it is about that one.
    pub(super) async fn ask(
        &self,
        namespace: &str,
        broadcast: Option<&Message>,
        question: &Question,
        timeout: Duration,
    ) -> Result<Answered, EmitError> {
        check_namespace(namespace)?;
        let mut tried = 0;
        loop {
            // A large future, beside which an allocation is nothing.
            let asked = Box::pin(self.ask_once(namespace, broadcast, question, timeout)).await;
            tried += 1;
            match asked {
                Ok(answered) => return Ok(answered),
                Err(error) => match self.retry.pause(tried, &error) {
                    Some(pause) => sleep(pause).await,
                    None => return Err(error),
                },
            }
        }
    }

    async fn ask_once(
        &self,
        namespace: &str,
        broadcast: Option<&Message>,
        question: &Question,
        timeout: Duration,
    ) -> Result<Answered, EmitError> {
        let answers = self.answers.as_ref().ok_or(EmitError::NoAnswers)?;
        // A fresh id for each try: what was answered to the one before belongs to that one.
        let id = self.next_id();
        let uid = uid(&self.node, namespace, self.wire.channels().dialect());
        let message = broadcast
            .map(|message| self.confirmed(namespace, message, &id))
            .transpose()?;
        let question = self
            .wire
            .question(namespace, uid.as_str(), &self.node, &id, question)?;
        let listening = answers.listen(namespace).await?;
        let members = MembersOf {
            core: self,
            namespace,
            listening: &listening,
        };
        let leases = members.recent_leases().await?;
        let waiting = self.asking.open(&id)?;
        let is_broadcast = message.is_some();
        let mut commands = Commands::default();
        for publication in message.iter().chain([&question]) {
            self.append_publication(&mut commands, publication);
        }
        let mut unsent = commands.into();
        // Counted just before: who comes later has not heard the question.
        let publishing = self.transport.publish_all(self, &mut unsent);
        let (before, published) = join!(members.count(leases), publishing);
        for (index, published) in published.into_iter().enumerate() {
            match published {
                Ok(_) => {}
                // The broadcast is out: whoever tries again publishes it twice.
                Err(error) if is_broadcast && index > 0 => return Err(unconfirmed(&error)),
                Err(error) => return Err(error),
            }
        }
        let before = before.ok();
        let look = || attendance::look(&members, before.as_ref());
        let gathered = waiting.gather(timeout, look).await;
        let outcome = gathered.map_err(|error| unconfirmed(&error))?;
        Ok(outcome.answered)
    }

    /// A broadcast whose receipt will be asked for.
    fn confirmed(
        &self,
        namespace: &str,
        message: &Message,
        id: &str,
    ) -> Result<Publication, EmitError> {
        let message = self.wire.message(namespace, EMITTER_UID, message, Some(id));
        let mut publication = message?;
        if self.is_sharded {
            // The question follows on the main channel. In a cluster a room's channel may be on
            // another server, and there is no order between the two.
            publication.channel = self.wire.channels().broadcast(namespace);
        }
        Ok(publication)
    }

    fn next_id(&self) -> String {
        let number = self.questions.fetch_add(1, Ordering::Relaxed);
        // The name is unique in the cluster, and long enough that its first half is, too.
        let name = self.node.as_str();
        format!("{}-{number:x}", name.get(..12).unwrap_or(name))
    }
}

/// The members of one namespace, who answer where this emitter listens.
struct MembersOf<'a> {
    core: &'a Core,
    namespace: &'a str,
    listening: &'a Listening,
}

impl MembersOf<'_> {
    /// The leases that were seen a moment ago, or those of now.
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
        let leases = self.core.transport.leases(self.core.wire.channels());
        let leases = Arc::new(leases.await?);
        *self.core.leases.lock() = Some((Instant::now(), Arc::clone(&leases)));
        Ok(leases)
    }

    async fn count(&self, leases: Arc<Leases>) -> Result<Counted, EmitError> {
        let channels = self.core.wire.channels();
        let transport = &self.core.transport;
        transport.count(channels, self.namespace, &leases).await
    }
}

fn unconfirmed(error: &EmitError) -> EmitError {
    EmitError::Unconfirmed(error.to_string().into())
}

pub(super) fn check_namespace(namespace: &str) -> Result<(), EmitError> {
    if namespace.starts_with('/') {
        Ok(())
    } else {
        Err(EmitError::NamespaceWithoutSlash(namespace.into()))
    }
}
