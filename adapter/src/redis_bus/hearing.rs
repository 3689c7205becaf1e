//! What the bus hears with: the subscriber links, and the duties that come with them.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use roomcast_emitter::endpoint::Endpoint;
use roomcast_protocol::{
    channel::{Channels, Dialect},
    id::NodeId,
};
use tokio::{
    task,
    time::{self, MissedTickBehavior},
};

use super::{Shared, config::RedisConfig};
use crate::link::{LinkEvent, Sink, Subscribers, SubscribersConfig};

/// How often rooms are given up that have been without members for long enough.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Hands what arrives to the bus, as long as there is one.
#[derive(Clone)]
struct Ear(Weak<Shared>);

impl Sink for Ear {
    fn message(&mut self, channel: &[u8], payload: &[u8]) {
        if let Some(shared) = self.0.upgrade() {
            shared.receive(channel, payload);
        }
    }

    fn event(&mut self, event: LinkEvent) {
        if let Some(shared) = self.0.upgrade() {
            shared.link_event(event);
        }
    }
}

/// Starts the links of the bus.
pub(super) fn start(
    endpoint: Endpoint,
    config: &RedisConfig,
    node: &NodeId,
    shared: Weak<Shared>,
) -> Subscribers {
    let channels = Channels::new(&config.prefix, config.dialect);
    let (node, ear) = (node.clone(), Ear(shared.clone()));
    let mut settings = SubscribersConfig::new(
        Arc::new(move |slot| channels.probe(&node, slot).into()),
        Arc::new(move |channel, number| send_probe(&shared, channel, number)),
    );
    settings.is_sharded = config.dialect != Dialect::Classic;
    settings.probe_interval = config.probe_interval;
    settings.probe_timeout = config.probe_timeout;
    Subscribers::start(endpoint, settings, ear)
}

/// Publishes a probe; says whether it is on its way.
fn send_probe(shared: &Weak<Shared>, channel: &str, number: u64) -> bool {
    let Some(shared) = shared.upgrade() else {
        return false;
    };
    if !shared.publisher.is_up() {
        return false;
    }
    shared.send_probe(channel, number.to_string().as_bytes());
    true
}

/// Gives up rooms late, and tells the figures of the links, until the bus is gone.
pub(super) async fn sweep(shared: Weak<Shared>) {
    let mut ticks = time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        for attached in shared.namespaces.all() {
            while shared.sweep(&attached) {
                task::yield_now().await;
            }
        }
        shared.note_figures();
    }
}
