//! The subscriber of one server: connects, listens until the connection is lost, waits, and starts
//! again, for ever.
//!
//! ```text
//!  connect ─► kill the stale one ─► session: subscribe all, listen ─┬─ lost, probe late ─► Down
//!     ▲                                                             ├─ demoted ──────────► Down
//!     └─── at once if it held, else after a back-off ◄──────────────┴────────────────────── ┘
//! ```
//!
//! The names are kept across connections, so a reconnect needs nothing of the callers.
//! Every attempt gets new [`Probes`], because replies of the old connection prove nothing about the
//! new one, but their numbers continue.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use redis::{PushInfo, cmd};
use roomcast_emitter::{
    backoff::Backoff,
    redis::{Address, CONNECT_TIMEOUT, Endpoint, Multiplexed, Purpose, Push, Reply, Topology},
    vital::vital,
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{self, Instant},
};

use super::{
    ConfirmError, Counts, DownReason, Priority, Sink, SubscriberConfig, SubscriberEvent,
    SubscriberState,
    incoming::Incoming,
    probe::Probes,
    session::Session,
    stale::StaleConnection,
    subscriptions::{Progress, SubscriptionKind, Subscriptions},
};

/// After a connection that held at least this long the next attempt may follow at once.
/// The cause that ended a shorter one would end the next one, too.
const HELD: Duration = Duration::from_secs(1);

/// How often a server is asked whether it is still the primary.
const ROLE_INTERVAL: Duration = Duration::from_secs(5);

/// The probe decides when a connection is given up, not a reply that takes its time: the replies to
/// many subscriptions arrive one after the other.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Where to connect, and how the connection watches itself.
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    /// A node of a cluster. If none is given, the endpoint chooses.
    pub(super) address: Option<Address>,
    pub(super) probe_channel: Arc<str>,
}

/// The subscriber of one server. It ends when it is dropped.
pub(super) struct ServerSubscriber {
    shared: Arc<Shared>,
    probe_channel: Arc<str>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The state that the handle, the task and the push callback share.
pub(super) struct Shared {
    pub(super) subscriptions: Mutex<Subscriptions>,
    /// There may be batches to send.
    pub(super) changed: Notify,
    /// Redis has settled some names, or the connection was lost.
    pub(super) settled: Notify,
    state: Mutex<SubscriberState>,
    /// Everything published before this moment is known to have arrived.
    pub(super) proof: Mutex<Option<SystemTime>>,
    pub(super) sink: Arc<dyn Sink>,
    /// Called when another server may have the names.
    pub(super) moved: Box<dyn Fn() + Send + Sync>,
}

impl ServerSubscriber {
    pub(super) fn start(
        target: Target,
        config: Arc<SubscriberConfig>,
        moved: Box<dyn Fn() + Send + Sync>,
        sink: Arc<dyn Sink>,
    ) -> Self {
        let probe_channel = Arc::clone(&target.probe_channel);
        let mut subscriptions = Subscriptions::default();
        // The probe's channel is subscribed before all others, since it shows that the
        // connection works.
        subscriptions.subscribe(config.kind(), Priority::Probe, Arc::clone(&probe_channel));
        let starting = SubscriberState::Down {
            reason: DownReason::Starting,
        };
        let shared = Arc::new(Shared {
            subscriptions: Mutex::new(subscriptions),
            changed: Notify::new(),
            settled: Notify::new(),
            state: Mutex::new(starting),
            proof: Mutex::new(None),
            sink,
            moved,
        });
        let task = Task {
            target,
            config,
            shared: Arc::clone(&shared),
            stale: StaleConnection::default(),
            next_probe: 0,
        };
        Self {
            shared,
            probe_channel,
            task: Mutex::new(Some(tokio::spawn(vital("subscriber", task.run())))),
        }
    }

    pub(super) fn subscribe(
        &self,
        kind: SubscriptionKind,
        priority: Priority,
        names: impl IntoIterator<Item = Arc<str>>,
    ) {
        let mut subscriptions = self.shared.subscriptions.lock();
        for name in names {
            subscriptions.subscribe(kind, priority, name);
        }
        drop(subscriptions);
        self.shared.changed.notify_one();
    }

    pub(super) fn unsubscribe(
        &self,
        kind: SubscriptionKind,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) {
        let mut subscriptions = self.shared.subscriptions.lock();
        for name in names {
            subscriptions.unsubscribe(kind, name.as_ref());
        }
        drop(subscriptions);
        self.shared.changed.notify_one();
        self.shared.settled.notify_waiters();
    }

    /// Resolves once Redis has confirmed the last change of each name, all of them on one
    /// connection. Waits across reconnects.
    pub(super) fn confirm(
        &self,
        kind: SubscriptionKind,
        names: Vec<Arc<str>>,
    ) -> impl Future<Output = Result<(), ConfirmError>> + Send + use<> + 'static {
        let shared = Arc::clone(&self.shared);
        async move {
            let mut progress = Progress::default();
            loop {
                // Created before the look, so that a change in between is not missed.
                let settled = shared.settled.notified();
                let confirmed = {
                    let subscriptions = shared.subscriptions.lock();
                    subscriptions.confirmed(kind, &names, &mut progress)
                };
                match confirmed {
                    Some(confirmed) => return confirmed,
                    None => settled.await,
                }
            }
        }
    }

    pub(super) fn state(&self) -> SubscriberState {
        let state = self.shared.state.lock().clone();
        let subscriptions = self.shared.subscriptions.lock();
        match (&state, subscriptions.refusal()) {
            (
                SubscriberState::Up { .. }
                | SubscriberState::Down {
                    reason: DownReason::Subscribing,
                },
                Some((name, error)),
            ) => SubscriberState::Down {
                reason: DownReason::Refused {
                    name: Arc::clone(name),
                    error: error.into(),
                },
            },
            _ => state,
        }
    }

    pub(super) fn is_confirmed(&self, kind: SubscriptionKind, name: &str) -> bool {
        self.shared.subscriptions.lock().is_confirmed(kind, name)
    }

    pub(super) fn counts(&self) -> Counts {
        self.shared.subscriptions.lock().counts()
    }

    /// The last moment before which everything published has arrived. None before the first
    /// connection has subscribed everything.
    pub(super) fn last_proof(&self) -> Option<SystemTime> {
        *self.shared.proof.lock()
    }

    pub(super) fn probe_channel(&self) -> &str {
        &self.probe_channel
    }

    /// The wanted names, except the probe's.
    pub(super) fn wanted(&self) -> Vec<(Arc<str>, Priority)> {
        let subscriptions = self.shared.subscriptions.lock();
        let wanted = subscriptions.wanted();
        let wanted = wanted.filter(|(_, priority)| *priority != Priority::Probe);
        wanted
            .map(|(key, priority)| (Arc::clone(&key.name), priority))
            .collect()
    }

    /// Asks once more for all refused names. Returns them.
    pub(super) fn ask_again(&self) -> Vec<Arc<str>> {
        let names = self.shared.subscriptions.lock().ask_again();
        self.shared.changed.notify_one();
        names
    }

    /// Closes the connection. Returns the task that has to end, the first time.
    pub(super) fn stop(&self) -> Option<JoinHandle<()>> {
        let task = self.task.lock().take();
        if let Some(task) = &task {
            // The connection is closed by dropping it; there is nothing to send to Redis.
            task.abort();
            self.shared.subscriptions.lock().close();
            self.shared.settled.notify_waiters();
            self.shared.set_down(DownReason::Stopped);
        }
        task
    }
}

impl Drop for ServerSubscriber {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    pub(super) fn set_down(&self, reason: DownReason) {
        self.set_state(SubscriberState::Down { reason });
    }

    pub(super) fn set_state(&self, state: SubscriberState) {
        let stopped = SubscriberState::Down {
            reason: DownReason::Stopped,
        };
        let mut current = self.state.lock();
        // A closed subscriber stays closed.
        if *current != stopped {
            *current = state;
        }
    }
}

struct Task {
    target: Target,
    config: Arc<SubscriberConfig>,
    shared: Arc<Shared>,
    stale: StaleConnection,
    /// Numbers of probes continue across connections, so that no old one is treated as a new one.
    next_probe: u64,
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let (reason, held) = match self.listen().await {
                Ok(reason) => (reason, began.elapsed()),
                Err(error) => (DownReason::Unreachable(error), Duration::ZERO),
            };
            self.shared.set_down(reason);
            // In a cluster, the connection may have ended because its slots have moved.
            (self.shared.moved)();
            if held >= HELD {
                backoff.reset();
            } else {
                time::sleep(backoff.next_delay()).await;
            }
        }
    }

    /// Connects and listens until the connection is lost. Returns the reason, or why there is no
    /// connection.
    async fn listen(&mut self) -> Result<DownReason, Box<str>> {
        let (interval, timeout) = (self.config.probe_interval, self.config.probe_timeout);
        let probes = Probes::new(interval, timeout, self.next_probe, Instant::now());
        let probe_channel = Arc::clone(&self.target.probe_channel);
        let incoming = Incoming::new(Arc::clone(&self.shared), probe_channel, probes);
        let incoming = EndOnDrop(Arc::new(incoming));
        let mut connection = self.connect(&incoming.0).await?;
        let kill = self.stale.kill(&mut connection);
        if time::timeout(CONNECT_TIMEOUT, kill).await.is_err() {
            return Err("Redis does not answer".into());
        }
        // Every node of a cluster delivers, replicas too.
        let needs_primary = self.target.endpoint.topology() != Topology::Cluster;
        let demoted = demoted(connection.clone());
        let session = Session::new(
            &self.config,
            &self.shared,
            &incoming.0,
            connection,
            &self.target.probe_channel,
        );
        let reason = tokio::select! {
            reason = session.run() => reason,
            () = demoted, if needs_primary => DownReason::Demoted,
        };
        self.next_probe = incoming.0.watch.lock().probes.next_number();
        drop(incoming);
        self.shared.subscriptions.lock().lost();
        self.shared.settled.notify_waiters();
        let event = SubscriberEvent::Down {
            reason: reason.clone(),
        };
        self.shared.sink.event(event);
        Ok(reason)
    }

    async fn connect(&self, incoming: &Arc<Incoming>) -> Result<Multiplexed, Box<str>> {
        let Target {
            endpoint, address, ..
        } = &self.target;
        let incoming = Arc::clone(incoming);
        let push: Push = Arc::new(move |info: PushInfo| {
            incoming.push(&info);
            Ok::<(), ()>(())
        });
        let connected = match address {
            Some(address) => {
                let push = Some(push);
                endpoint
                    .connect_to(address, Purpose::Subscriber, push)
                    .await
            }
            None => endpoint.connect(Purpose::Subscriber, Some(push)).await,
        };
        let mut connection = connected.map_err(|error| error.to_string())?.into_inner();
        connection.set_response_timeout(RESPONSE_TIMEOUT);
        Ok(connection)
    }
}

/// Resolves once the server is no longer the primary. It keeps its connections, and messages
/// published to a replica reach only its own subscribers, so probes do not detect this.
async fn demoted(mut connection: Multiplexed) {
    loop {
        time::sleep(ROLE_INTERVAL).await;
        // Unlike `ROLE`, every user may send this.
        let Ok(hello) = connection.send_packed_command(&cmd("HELLO")).await else {
            continue;
        };
        let fields = hello.pairs().unwrap_or_default();
        let mut role = fields
            .iter()
            .filter(|(name, _)| name.text() == Some("role"));
        if role.any(|(_, role)| role.text() == Some("replica")) {
            return;
        }
    }
}

/// The crate's driver may outlive the session, which may be aborted at any await.
struct EndOnDrop(Arc<Incoming>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}
