//! Servers of Node's count who hears a question, then ask, and wait for as many answers: those of nodes
//! that have gone in between are given by others, behind those of the living.

use roomcast_protocol::channel::{Channels, Dialect, Mode};
use serde_json::{Value, json};

use crate::{
    deployment::{Deployment, metric},
    node::{Node, eventually, within},
    start::{COMMANDS, as_user},
    support::Plain,
};

const UID: &str = "peerpeer";
const DIALECTS: [Dialect; 2] = [Dialect::Classic, Dialect::Sharded(Mode::Dynamic)];

/// A server of Node's, as far as it asks.
struct Peer<'a> {
    deployment: &'a Deployment,
    channels: Channels,
    listening: Plain,
}

impl<'a> Peer<'a> {
    fn start(deployment: &'a Deployment) -> Self {
        let channels = deployment.channels();
        let mut listening = deployment.plain();
        let subscribe = match deployment.config.dialect {
            Dialect::Classic | Dialect::Streams => "SUBSCRIBE",
            Dialect::Sharded(_) => "SSUBSCRIBE",
        };
        let own = channels.response("/");
        let own = own.unwrap_or_else(|| channels.response_of("/", UID));
        listening.command(&[subscribe, &own]);
        Self {
            deployment,
            channels,
            listening,
        }
    }

    fn ask(&self, id: &str, question: &Kind) {
        let (classic, sharded) = match question {
            Kind::Sockets => (5, 7),
            Kind::Rooms => (1, 7),
            Kind::Handlers => (6, 9),
        };
        let asked = match self.deployment.config.dialect {
            Dialect::Classic | Dialect::Streams => {
                json!({"uid": UID, "requestId": id, "type": classic, "data": ["e", 7],
                       "opts": {"rooms": [], "except": []}})
            }
            Dialect::Sharded(_) => {
                let data = json!({"requestId": id, "packet": ["e", 7],
                                  "opts": {"rooms": [], "except": [], "flags": {}}});
                json!({"type": sharded, "data": data, "uid": UID, "nsp": "/"})
            }
        };
        let publish = self.deployment.publish_command();
        let request = self.channels.request("/");
        let command = [publish, &request, &asked.to_string()];
        self.deployment.server.command(&command);
    }

    /// The ids of the next answers, each with what it says.
    fn answers(&mut self, count: usize) -> Vec<(String, Value)> {
        let answers = (0..count).map(|_| {
            let message = self.listening.reply().expect("an answer comes");
            let message = String::from_utf8_lossy(&message);
            let answer = message
                .lines()
                .find_map(|line| serde_json::from_str::<Value>(line).ok())
                .unwrap();
            let answer = answer
                .get("data")
                .filter(|data| data.is_object())
                .unwrap_or(&answer);
            let id = answer["requestId"].as_str().unwrap().to_owned();
            let keys = ["sockets", "rooms", "data", "packet"];
            let said = keys.iter().find_map(|key| answer.get(key));
            (id, said.cloned().unwrap_or(Value::Null))
        });
        answers.collect()
    }
}

enum Kind {
    Sockets,
    Rooms,
    Handlers,
}

/// What the nodes with a socket each answer, and then what is answered in place of another one.
fn check(answers: &[(String, Value)], id: &str, living: usize) {
    let is_empty = |said: &Value| said.is_null() || *said == json!([]);
    assert!(answers.iter().all(|(asked, _)| asked == id), "{answers:?}");
    let empty: Vec<_> = answers.iter().map(|(_, said)| is_empty(said)).collect();
    let expected: Vec<_> = (0..answers.len()).map(|place| place >= living).collect();
    assert_eq!(empty, expected, "{answers:?}");
}

async fn three_nodes(deployment: &Deployment) -> [Node; 3] {
    let nodes = [
        deployment.node().await,
        deployment.node().await,
        deployment.node().await,
    ];
    for (number, node) in (1..).zip(&nodes) {
        node.connect(number);
        node.join("a").await;
    }
    // Everybody knows of everybody.
    for node in &nodes {
        eventually("the nodes know each other", || {
            metric(node, "roomcast_bus_nodes", "roomcast") == 3.0
        })
        .await;
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_before_it_is_asked_is_answered_for_behind_the_living() {
    for dialect in DIALECTS {
        let deployment = Deployment::of(dialect);
        let [_a, _b, dying] = three_nodes(&deployment).await;
        let mut peer = Peer::start(&deployment);
        drop(dying);
        let request = deployment.channels().request("/");
        deployment.until_subscribed(&request, 2).await;
        let kinds = [Kind::Sockets, Kind::Rooms];
        let last = Kind::Handlers;
        for (id, kind) in ["one", "two"].iter().zip(&kinds) {
            peer.ask(id, kind);
            check(&peer.answers(2), id, 2);
        }
        peer.ask("three", &last);
        check(&peer.answers(2), "three", 2);
        for id in ["one", "two", "three"] {
            check(&peer.answers(1), id, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_answered_for_by_one_that_had_not_heard_of_it_yet() {
    let deployment = Deployment::start();
    let _alone = deployment.node().await;
    let mut peer = Peer::start(&deployment);
    // The first looks around once a second.
    let dying = deployment.node().await;
    drop(dying);
    let request = deployment.channels().request("/");
    deployment.until_subscribed(&request, 1).await;
    peer.ask("one", &Kind::Sockets);
    check(&peer.answers(2), "one", 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_before_it_is_asked_is_answered_for_once() {
    for dialect in DIALECTS {
        let mut deployment = Deployment::of(dialect);
        // With patterns, in the classic dialect, it would answer by itself for a moment.
        deployment.config = as_user(&deployment, &format!("&socket.io* ~socket.io* {COMMANDS}"));
        let [_a, _b, leaving] = three_nodes(&deployment).await;
        let mut peer = Peer::start(&deployment);
        let closing = tokio::spawn(leaving.bus.close(&leaving.id));
        let request = deployment.channels().request("/");
        deployment.until_subscribed(&request, 2).await;
        peer.ask("one", &Kind::Sockets);
        check(&peer.answers(3), "one", 2);
        within(closing).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_answered_for_who_left_long_before_or_after() {
    for dialect in DIALECTS {
        let deployment = Deployment::of(dialect);
        let _nodes = three_nodes(&deployment).await;
        let mut peer = Peer::start(&deployment);
        let leases = deployment.channels().leases();
        let leave = |name: &str, at: u64| {
            // Traces go together with leases, which are kept for 59 minutes longer.
            let score = (at - 59 * 60 * 1000).to_string();
            let command = ["ZADD", &leases, &score, name];
            deployment.server.command(&command);
        };
        let now = now(&deployment);
        leave("left:long-ago", now - 5000);
        peer.ask("nobody", &Kind::Sockets);
        check(&peer.answers(3), "nobody", 3);
        eventually("a while has passed", || self::now(&deployment) > now + 500).await;
        leave("left:just-now", now + 500);
        peer.ask("somebody", &Kind::Sockets);
        // The questions are looked after in their order: nothing has come for the first.
        check(&peer.answers(4), "somebody", 3);
    }
}

/// Redis's clock, in milliseconds.
fn now(deployment: &Deployment) -> u64 {
    let time = deployment.server.command(&["TIME"]);
    let mut numbers = time.lines().filter_map(|line| line.parse::<u64>().ok());
    let (seconds, micros) = (numbers.next().unwrap(), numbers.next().unwrap());
    seconds * 1000 + micros / 1000
}
