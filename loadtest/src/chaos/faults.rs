//! The faults, each with what it needs and what it does. `cause` returns when the fault is over; what follows is
//! repair.

use std::{thread, time::Duration};

use rustix::process::Signal;

use super::{
    account::Drain,
    crowd::{Crowd, Order},
    proxy::{Weather, Which},
    publisher::emit_as_stranger,
    stage::{NODES, Replica, Servers, Setup, Stage, faketime},
};
use crate::{
    clock::{self, Nanos, SECOND},
    redis::{Format, write_message},
};

pub(super) struct Fault {
    /// The number in the table.
    pub(super) number: u32,
    pub(super) name: &'static str,
    pub(super) setup: Setup,
    cause: fn(&mut Scene<'_>) -> anyhow::Result<()>,
}

/// The limits with a journal and recovery, beside the faults that must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bar {
    /// Messages may be lost if that is reported, because the journal is gone.
    Reported,
    /// Nothing is lost.
    Complete,
    /// The same, and the 99th percentile of deliveries takes at most so long.
    Delivery(Nanos),
    /// The same, and the 95th percentile of outages takes at most so long.
    Outage(Nanos),
    /// The same of the 99th percentile.
    LongOutage(Nanos),
}

/// The bar of a fault.
pub(super) fn bar(number: u32) -> Bar {
    match number {
        // The longest back-off of a client and a second.
        3 => Bar::LongOutage(SECOND * 25 / 10),
        4 => Bar::Reported,
        13 => Bar::Delivery(SECOND * 46 / 10),
        15 => Bar::Outage(5 * SECOND),
        _ => Bar::Complete,
    }
}

/// The things on which a fault may act.
pub(super) struct Scene<'a> {
    pub(super) stage: &'a mut Stage,
    /// The clients of each mode.
    pub(super) crowds: &'a [Crowd],
    /// When the fault was over, if that was before `cause` returned.
    pub(super) over: Option<Nanos>,
    /// Which nodes were drained, and when.
    pub(super) drains: Vec<Drain>,
}

impl Fault {
    const fn with(self, setup: Setup) -> Self {
        Self { setup, ..self }
    }

    /// Why this machine cannot cause it.
    pub(super) fn missing(&self, servers: Servers) -> Option<&'static str> {
        if servers != Servers::Roomcast && !ON_NODE_JS.contains(&self.number) {
            return Some("not run with servers of Node.js");
        }
        let is_missing = self.setup.has_wrong_clocks && faketime().is_none();
        is_missing.then_some("not run, because libfaketime is not installed")
    }

    pub(super) fn cause(&self, scene: &mut Scene<'_>) -> anyhow::Result<()> {
        (self.cause)(scene)
    }
}

impl Scene<'_> {
    fn order(&self, order: Order) {
        self.crowds.iter().for_each(|crowd| crowd.order(order));
    }

    /// Tears down all clients, at random times within a span. They are away for about so long.
    fn tear(&self, within: Nanos, away: Nanos) {
        self.order(Order::Tear { within, away });
    }

    /// Drains a node, and starts it again.
    fn drain(&mut self, node: usize) -> anyhow::Result<()> {
        self.drains.push(Drain {
            node,
            at: clock::now(),
            over: clock::span(self.stage.drain_over()),
        });
        self.stage.signal(node, Signal::TERM);
        self.stage.await_end(node)?;
        self.stage.start_node(node)?;
        pause(2);
        Ok(())
    }

    fn kill_node(&mut self) {
        self.stage.kill_node(0);
        self.over = Some(clock::now());
    }

    /// Publishes a message that no subscriber can take in one piece, for a room without members.
    fn flood(&self) -> anyhow::Result<()> {
        let namespace = self.stage.modes()[0].namespace();
        let filler = "x".repeat(8 << 20);
        let message = write_message(Format::Classic, namespace, "nobody", &filler);
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(format!("socket.io#{namespace}#")).arg(message);
        self.stage.ask_redis(&publish)?;
        Ok(())
    }

    /// The first node gets this weather for a time.
    fn weather(&mut self, which: Which, weather: Weather, for_time: Duration) {
        self.stage.weather(0, which, weather);
        thread::sleep(for_time);
        self.stage.weather(0, Which::All, Weather::Fair);
    }
}

/// The faults that are caused to Node.js servers. The rest needs a client for Sentinel, leases, or settings of Roomcast.
const ON_NODE_JS: [u32; 12] = [1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 15];

const SIMPLE: Setup = Setup {
    is_durable: false,
    replica: Replica::None,
    has_wrong_clocks: false,
    has_balancer: false,
};

/// A fault of nodes that need nothing special.
const fn fault(
    number: u32,
    name: &'static str,
    cause: fn(&mut Scene<'_>) -> anyhow::Result<()>,
) -> Fault {
    Fault {
        number,
        name,
        setup: SIMPLE,
        cause,
    }
}

/// Every fault that this program can cause, in the order of the table.
pub(super) const FAULTS: &[Fault] = &[
    fault(
        1,
        "a node is killed, and started again after 3 s",
        |scene| {
            scene.kill_node();
            pause(3);
            scene.stage.start_node(0)
        },
    ),
    fault(2, "a node is stopped for 10 s", |scene| stop(scene, 10)),
    fault(2, "a node is stopped for 60 s", |scene| stop(scene, 60)),
    fault(3, "each node is drained and started again", |scene| {
        for node in 0..NODES {
            scene.drain(node)?;
        }
        Ok(())
    }),
    fault(3, "the same, but one of the nodes is killed", |scene| {
        for node in 0..NODES {
            if node == 1 {
                scene.stage.kill_node(node);
                scene.stage.start_node(node)?;
                // Its clients come back at once. The pace is that of the drains.
                pause(5);
            } else {
                scene.drain(node)?;
            }
        }
        Ok(())
    }),
    fault(
        4,
        "Redis is killed, and started empty after 2 s",
        restart_redis,
    ),
    fault(
        5,
        "Redis is killed, and started with its data after 2 s",
        restart_redis,
    )
    .with(Setup {
        is_durable: true,
        ..SIMPLE
    }),
    fault(6, "Redis is paused for 10 s", |scene| {
        let mut command = redis::cmd("CLIENT");
        command.arg("PAUSE").arg(10_000).arg("ALL");
        scene.stage.ask_redis(&command)?;
        pause(10);
        Ok(())
    }),
    fault(
        7,
        "Redis is killed, and Sentinel promotes its replica",
        |scene| scene.stage.fail_over(),
    )
    .with(Setup {
        replica: Replica::Sentinel,
        ..SIMPLE
    }),
    fault(
        8,
        "all subscribers are cut by the output buffer limit, three times",
        |scene| {
            let mut limit = redis::cmd("CONFIG");
            limit
                .arg("SET")
                .arg("client-output-buffer-limit")
                .arg("pubsub 1mb 0 0");
            scene.stage.ask_redis(&limit)?;
            for _ in 0..3 {
                pause(1);
                scene.flood()?;
            }
            Ok(())
        },
    ),
    fault(
        9,
        "the subscriber's connection is half open for 10 s",
        |scene| {
            scene.weather(Which::Subscribers, Weather::HalfOpen, seconds(10));
            Ok(())
        },
    ),
    fault(
        10,
        "nothing reaches the subscriber for 10 s, while TCP is healthy",
        |scene| {
            scene.weather(Which::Subscribers, Weather::Deaf, seconds(10));
            Ok(())
        },
    ),
    fault(
        11,
        "the publisher's connection is cut within a command, ten times",
        |scene| {
            for _ in 0..10 {
                let bytes = scene.stage.random.usize(1..2000);
                let weather = Weather::CutAfter(bytes);
                scene.stage.weather(0, Which::Publishers, weather);
                thread::sleep(Duration::from_millis(500));
            }
            scene.stage.weather(0, Which::All, Weather::Fair);
            Ok(())
        },
    ),
    fault(
        12,
        "loss, delay and resets between a node and Redis for 10 s",
        |scene| {
            scene.stage.weather(0, Which::All, Weather::Lossy);
            for _ in 0..5 {
                pause(2);
                scene.stage.reset_one(0);
            }
            scene.stage.weather(0, Which::All, Weather::Fair);
            Ok(())
        },
    ),
    fault(
        13,
        "clients are torn down at random every 15 s, and are away for 2 s",
        |scene| {
            for _ in 0..4 {
                scene.tear(13 * SECOND, 2 * SECOND);
                pause(15);
            }
            Ok(())
        },
    ),
    fault(14, "every tenth client stops reading", |scene| {
        scene.order(Order::StallTenth);
        pause(10);
        Ok(())
    }),
    fault(
        15,
        "a node is killed, and its clients return at once to the two others",
        |scene| {
            scene.order(Order::Hurry);
            pause(1);
            scene.kill_node();
            Ok(())
        },
    ),
    fault(
        16,
        "nodes with another dialect, parser and prefix use the same Redis for 5 s",
        |scene| {
            let options = [
                "--redis-dialect=sharded-dynamic",
                "--redis-parser=json",
                "--redis-prefix=other",
            ];
            let mut strangers = Vec::new();
            for option in options {
                strangers.push(scene.stage.start_stranger(&[option])?);
            }
            for _ in 0..50 {
                for (stranger, mode) in strangers.iter().zip(scene.stage.modes().iter().cycle()) {
                    emit_as_stranger(stranger.internal, *mode);
                }
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        },
    ),
    fault(
        17,
        "the clock of a node is an hour ahead, and that of another one an hour behind",
        |scene| {
            // They come back to nodes with another clock.
            scene.tear(5 * SECOND, SECOND);
            pause(10);
            Ok(())
        },
    )
    .with(Setup {
        has_wrong_clocks: true,
        ..SIMPLE
    }),
    fault(18, "Redis loses the nodes' leases, five times", |scene| {
        for _ in 0..5 {
            scene.stage.lose_leases()?;
            pause(1);
        }
        Ok(())
    }),
    fault(
        19,
        "the primary is demoted behind the same name, and its connections stay open",
        |scene| scene.stage.demote(),
    )
    .with(Setup {
        replica: Replica::Hidden,
        ..SIMPLE
    }),
    fault(
        20,
        "the right to the channels is revoked for 5 s",
        |scene| {
            let rights = |rule: &str| {
                let mut command = redis::cmd("ACL");
                command.arg("SETUSER").arg("default").arg(rule);
                command
            };
            scene.stage.ask_redis(&rights("resetchannels"))?;
            pause(5);
            scene.stage.ask_redis(&rights("allchannels"))?;
            Ok(())
        },
    ),
];

fn stop(scene: &mut Scene<'_>, time: u64) -> anyhow::Result<()> {
    scene.stage.signal(0, Signal::STOP);
    pause(time);
    scene.stage.signal(0, Signal::CONT);
    Ok(())
}

fn restart_redis(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    scene.stage.kill_redis();
    pause(2);
    scene.stage.start_redis()
}

fn pause(time: u64) {
    thread::sleep(seconds(time));
}

const fn seconds(time: u64) -> Duration {
    Duration::from_secs(time)
}
