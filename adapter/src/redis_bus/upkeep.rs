//! The periodic duties of a bus: renewing the lease, unsubscribing empty rooms, refreshing metrics,
//! checking the rights when Redis was unreachable at startup.

use std::{sync::Weak, time::Duration};

use roomcast_emitter::{membership::RENEWAL_SECONDS, redis::Endpoint};
use roomcast_protocol::id::NodeId;
use tokio::{
    task,
    time::{self, MissedTickBehavior},
};

use super::{Core, RedisConfig, start};

/// How often rooms are given up that have been empty for long enough.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// How often the rights are checked until they are known.
const RIGHTS_INTERVAL: Duration = Duration::from_secs(2);

/// Renews the lease every second until the bus is closed.
pub(super) async fn keep_lease(core: Weak<Core>) {
    let mut ticks = time::interval(Duration::from_secs(RENEWAL_SECONDS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(core) = core.upgrade() else {
            return;
        };
        // The link reports its own trouble. The lease is renewed when it is back.
        if let Err(error) = core.renew_lease().await {
            tracing::debug!(%error, "the lease was not renewed");
        }
    }
}

/// Unsubscribes empty rooms and refreshes the metrics of the links until the bus is dropped.
pub(super) async fn sweep(core: Weak<Core>) {
    let mut last_probe = Duration::ZERO;
    let mut ticks = time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(core) = core.upgrade() else {
            return;
        };
        for namespace in core.subscriptions.namespaces() {
            while core.subscriptions.sweep(&namespace) {
                task::yield_now().await;
            }
        }
        let subscriber = &core.subscriptions.subscriber;
        let publisher = &core.outgoing.publisher;
        core.metrics.refresh(subscriber, publisher, &mut last_probe);
    }
}

/// Checks the rights of a node that started without Redis, until they are known.
pub(super) async fn check_rights(
    core: Weak<Core>,
    endpoint: Endpoint,
    config: RedisConfig,
    node: NodeId,
) {
    let mut ticks = time::interval(RIGHTS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let checked = start::check(&endpoint, &config, &node).await;
        let Some(core) = core.upgrade() else {
            return;
        };
        match checked {
            Ok(rights) => return core.subscriptions.allow_all_rooms(rights.all_rooms),
            Err(error) if error.is_temporary() => {}
            Err(error) => tracing::error!(%error, "this node cannot join the cluster"),
        }
    }
}
