//! The faults, each with what it needs and what it does. `cause` returns when the fault is over; what follows is
//! repair.

use std::{thread, time::Duration};

use rustix::process::Signal;

use super::{
    crowd::{Crowd, Order},
    proxy::{Weather, Which},
    stage::{NODES, Setup, Stage},
};
use crate::clock::{self, Nanos, SECOND};

pub(super) struct Fault {
    /// The number in the table.
    pub(super) number: u32,
    pub(super) name: &'static str,
    pub(super) setup: Setup,
    cause: fn(&mut Scene<'_>) -> anyhow::Result<()>,
}

/// What a fault may act on.
pub(super) struct Scene<'a> {
    pub(super) stage: &'a mut Stage,
    /// Clients of each mode.
    pub(super) clients: usize,
    pub(super) crowds: &'a [Crowd],
    /// How many clients of each mode have stopped reading.
    pub(super) stalled: usize,
    /// When the fault was over, if that was before `cause` returned.
    pub(super) over: Option<Nanos>,
}

impl Fault {
    pub(super) fn cause(&self, scene: &mut Scene<'_>) -> anyhow::Result<()> {
        (self.cause)(scene)
    }
}

impl Scene<'_> {
    fn order(&self, order: Order) {
        self.crowds.iter().for_each(|crowd| crowd.order(order));
    }

    fn kill_node(&mut self) {
        self.stage.kill_node(0);
        self.over = Some(clock::now());
    }

    /// The first node gets this weather for a time.
    fn weather(&mut self, which: Which, weather: Weather, for_time: Duration) {
        self.stage.weather(0, which, weather);
        thread::sleep(for_time);
        self.stage.weather(0, Which::All, Weather::Fair);
    }
}

const PLAIN_SETUP: Setup = Setup { is_durable: false };
const DURABLE: Setup = Setup { is_durable: true };

/// Every fault that this program can cause, in the order of the table.
pub(super) const FAULTS: &[Fault] = &[
    Fault {
        number: 1,
        name: "a node is killed, and started again after 3 s",
        setup: PLAIN_SETUP,
        cause: |scene| {
            scene.kill_node();
            pause(3);
            scene.stage.start_node(0)
        },
    },
    Fault {
        number: 2,
        name: "a node is stopped for 10 s",
        setup: PLAIN_SETUP,
        cause: |scene| stop(scene, 10),
    },
    Fault {
        number: 2,
        name: "a node is stopped for 60 s",
        setup: PLAIN_SETUP,
        cause: |scene| stop(scene, 60),
    },
    Fault {
        number: 3,
        name: "each node is drained and started again",
        setup: PLAIN_SETUP,
        cause: |scene| {
            for node in 0..NODES {
                scene.stage.signal(node, Signal::TERM);
                scene.stage.await_end(node)?;
                scene.stage.start_node(node)?;
                pause(2);
            }
            Ok(())
        },
    },
    Fault {
        number: 4,
        name: "Redis is killed, and started empty after 2 s",
        setup: PLAIN_SETUP,
        cause: restart_redis,
    },
    Fault {
        number: 5,
        name: "Redis is killed, and started with its data after 2 s",
        setup: DURABLE,
        cause: restart_redis,
    },
    Fault {
        number: 6,
        name: "Redis is paused for 10 s",
        setup: PLAIN_SETUP,
        cause: |scene| {
            let mut command = redis::cmd("CLIENT");
            command.arg("PAUSE").arg(10_000).arg("ALL");
            scene.stage.ask_redis(&command)?;
            pause(10);
            Ok(())
        },
    },
    Fault {
        number: 9,
        name: "the subscriber's connection is half open for 10 s",
        setup: PLAIN_SETUP,
        cause: |scene| {
            scene.weather(Which::Subscribers, Weather::HalfOpen, seconds(10));
            Ok(())
        },
    },
    Fault {
        number: 10,
        name: "nothing reaches the subscriber for 10 s, while TCP is healthy",
        setup: PLAIN_SETUP,
        cause: |scene| {
            scene.weather(Which::Subscribers, Weather::Deaf, seconds(10));
            Ok(())
        },
    },
    Fault {
        number: 11,
        name: "the publisher's connection is cut within a command, ten times",
        setup: PLAIN_SETUP,
        cause: |scene| {
            for _ in 0..10 {
                let bytes = scene.stage.random.usize(1..2000);
                let weather = Weather::CutAfter(bytes);
                scene.stage.weather(0, Which::Publishers, weather);
                thread::sleep(Duration::from_millis(500));
            }
            scene.stage.weather(0, Which::All, Weather::Fair);
            Ok(())
        },
    },
    Fault {
        number: 12,
        name: "loss, delay and resets between a node and Redis for 10 s",
        setup: PLAIN_SETUP,
        cause: |scene| {
            scene.stage.weather(0, Which::All, Weather::Lossy);
            for _ in 0..5 {
                pause(2);
                scene.stage.reset_one(0);
            }
            scene.stage.weather(0, Which::All, Weather::Fair);
            Ok(())
        },
    },
    Fault {
        number: 13,
        name: "clients are torn down at random every 15 s, and are away for 2 s",
        setup: PLAIN_SETUP,
        cause: |scene| {
            for _ in 0..2 {
                scene.order(Order::Tear {
                    share: 1.0,
                    within: 13 * SECOND,
                    away: 2 * SECOND,
                });
                pause(15);
            }
            Ok(())
        },
    },
    Fault {
        number: 14,
        name: "every tenth client stops reading",
        setup: PLAIN_SETUP,
        cause: |scene| {
            scene.stalled = scene.clients / 10;
            scene.order(Order::Stall(scene.stalled));
            pause(10);
            Ok(())
        },
    },
    Fault {
        number: 15,
        name: "a node is killed, and its clients return at once to the two others",
        setup: PLAIN_SETUP,
        cause: |scene| {
            scene.order(Order::Hurry);
            pause(1);
            scene.kill_node();
            Ok(())
        },
    },
    Fault {
        number: 18,
        name: "Redis loses the nodes' leases, five times",
        setup: PLAIN_SETUP,
        cause: |scene| {
            for _ in 0..5 {
                scene.stage.lose_leases()?;
                pause(1);
            }
            Ok(())
        },
    },
    Fault {
        number: 20,
        name: "the right to the channels is revoked for 5 s",
        setup: PLAIN_SETUP,
        cause: |scene| {
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
    },
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
