//! Subscriber links to whatever Redis is: one, or one per primary.
//!
//! A cluster delivers plain channels through each of its nodes, so one link is enough; with sharded
//! pub/sub a channel is where its slot is. Everything else is one server.

use std::{sync::Arc, time::Duration};

use roomcast_emitter::endpoint::{Endpoint, Topology};

use super::{
    ConfirmError, Counts, LinkState, Priority, Sink, Subscriber, SubscriberConfig,
    SubscriptionKind, cluster::ClusterLinks,
};

/// A channel of the owner alone, in the slot that is given.
pub type ProbeChannel = Arc<dyn Fn(u16) -> Arc<str> + Send + Sync>;

/// Publishes a number, as decimal text, on a probe's channel over another connection; says whether
/// it is on its way. Must not block.
pub type SendProbeOn = Arc<dyn Fn(&str, u64) -> bool + Send + Sync>;

/// Settings of subscriber links.
#[derive(Clone)]
pub struct SubscribersConfig {
    /// Whether names are channels of sharded pub/sub. False by default.
    pub is_sharded: bool,
    /// Names the channel by which a link watches itself.
    pub probe_channel: ProbeChannel,
    /// How probes get there.
    pub send_probe: SendProbeOn,
    /// Time between probes. One second by default.
    pub probe_interval: Duration,
    /// How long a probe may take before the connection is given up. Five seconds by default.
    pub probe_timeout: Duration,
    /// Longest message, in bytes; a longer one ends the connection. 64 MiB by default.
    pub max_message: usize,
}

impl SubscribersConfig {
    /// Defaults, without sharded pub/sub.
    pub fn new(probe_channel: ProbeChannel, send_probe: SendProbeOn) -> Self {
        Self {
            is_sharded: false,
            probe_channel,
            send_probe,
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(5),
            max_message: 64 << 20,
        }
    }

    pub(super) fn of_link(&self, slot: u16, probe_kind: SubscriptionKind) -> SubscriberConfig {
        let channel = (self.probe_channel)(slot);
        let name = Arc::clone(&channel);
        let send_probe = Arc::clone(&self.send_probe);
        SubscriberConfig {
            probe_channel: channel,
            probe_kind,
            send_probe: Arc::new(move |number| send_probe(&name, number)),
            probe_interval: self.probe_interval,
            probe_timeout: self.probe_timeout,
            max_message: self.max_message,
        }
    }
}

/// Handle of the subscriber links. Clones are handles of the same links, which end with the last of
/// them.
#[derive(Clone)]
pub struct Subscribers(Links);

#[derive(Clone)]
enum Links {
    One {
        link: Subscriber,
        kind: SubscriptionKind,
    },
    Cluster(ClusterLinks),
}

impl Subscribers {
    /// Starts the links, on the runtime of the caller. Each has a clone of the sink: messages of
    /// one channel are in order, those of different channels only where there is one link.
    pub fn start(
        endpoint: Endpoint,
        config: SubscribersConfig,
        sink: impl Sink + Clone + Sync,
    ) -> Self {
        if config.is_sharded && endpoint.topology() == Topology::Cluster {
            return Self(Links::Cluster(ClusterLinks::start(endpoint, config, sink)));
        }
        let kind = if config.is_sharded {
            SubscriptionKind::Shard
        } else {
            SubscriptionKind::Channel
        };
        let link = Subscriber::start(endpoint, config.of_link(0, kind), sink);
        Self(Links::One { link, kind })
    }

    /// Wants these channels from now on, sharded ones if the settings say so.
    pub fn subscribe(&self, priority: Priority, names: impl IntoIterator<Item = Arc<str>>) {
        match &self.0 {
            Links::One { link, kind } => link.subscribe(*kind, priority, names),
            Links::Cluster(links) => links.subscribe(priority, names),
        }
    }

    /// Does not want these channels any more.
    pub fn unsubscribe(&self, names: impl IntoIterator<Item = impl AsRef<str>>) {
        match &self.0 {
            Links::One { link, kind } => link.unsubscribe(*kind, names),
            Links::Cluster(links) => links.unsubscribe(names),
        }
    }

    /// Wants all channels that the pattern matches. Sharded pub/sub knows no patterns: false.
    pub fn subscribe_pattern(&self, pattern: Arc<str>) -> bool {
        match &self.0 {
            Links::One {
                link,
                kind: SubscriptionKind::Channel,
            } => {
                link.subscribe(SubscriptionKind::Pattern, Priority::Pattern, [pattern]);
                true
            }
            _ => false,
        }
    }

    /// Does not want the pattern any more.
    pub fn unsubscribe_pattern(&self, pattern: &str) {
        if let Links::One { link, .. } = &self.0 {
            link.unsubscribe(SubscriptionKind::Pattern, [pattern]);
        }
    }

    /// Resolves once Redis has confirmed the last change of each of these channels: those that are
    /// wanted are subscribed, those that are not are not any more. Waits across reconnects, no
    /// longer than `timeout`.
    pub async fn confirmed(
        &self,
        names: Vec<Arc<str>>,
        timeout: Duration,
    ) -> Result<(), ConfirmError> {
        match &self.0 {
            Links::One { link, kind } => link.confirmed(*kind, names, timeout).await,
            Links::Cluster(links) => links.confirmed(names, timeout).await,
        }
    }

    /// The same for a pattern. There is nothing to wait for where there are no patterns.
    pub async fn confirmed_pattern(
        &self,
        pattern: Arc<str>,
        timeout: Duration,
    ) -> Result<(), ConfirmError> {
        match &self.0 {
            Links::One { link, .. } => {
                link.confirmed(SubscriptionKind::Pattern, vec![pattern], timeout)
                    .await
            }
            Links::Cluster(_) => Ok(()),
        }
    }

    /// Whether Redis has confirmed that the channel is subscribed, on the present connection.
    pub fn is_confirmed(&self, name: &str) -> bool {
        match &self.0 {
            Links::One { link, kind } => link.is_confirmed(*kind, name),
            Links::Cluster(links) => links.is_confirmed(name),
        }
    }

    /// Whether messages arrive, over all links; if not, why not over one of them.
    pub fn state(&self) -> LinkState {
        match &self.0 {
            Links::One { link, .. } => link.state().borrow().clone(),
            Links::Cluster(links) => links.state(),
        }
    }

    /// How the links stand with their names, in sum; probes' channels count.
    pub fn counts(&self) -> Counts {
        match &self.0 {
            Links::One { link, .. } => link.counts(),
            Links::Cluster(links) => links.counts(),
        }
    }

    /// How many connections the present links have made.
    pub fn connections(&self) -> u64 {
        match &self.0 {
            Links::One { link, .. } => link.connections(),
            Links::Cluster(links) => links.connections(),
        }
    }

    /// Closes all connections and resolves when the sinks have been dropped. Who waits for
    /// confirmations gets an error.
    pub async fn close(&self) {
        match &self.0 {
            Links::One { link, .. } => link.close().await,
            Links::Cluster(links) => links.close().await,
        }
    }
}
