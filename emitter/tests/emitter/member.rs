//! A member of a cluster, made by hand: it has no sockets, and answers what the test tells it to.

use redis::Value;
use roomcast_emitter::{
    membership,
    redis::{Connection, Endpoint, Purpose, Reply as _},
};
use roomcast_protocol::{
    channel::{Channels, Dialect, uid},
    id::NodeId,
    msgpack::TranscodeLimits,
    question::Question,
    wire::{Asker, Incoming, Parser, Reply, Wire},
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

use crate::ear::Ear;

/// What a member has heard.
#[derive(Debug, PartialEq)]
pub(crate) enum Noticed {
    /// A broadcast, and the id of the question about it.
    Broadcast(Option<Box<str>>),
    Question(Box<str>, Question),
}

pub(crate) struct Member {
    pub(crate) noticed: UnboundedReceiver<Noticed>,
    node: NodeId,
    channels: Channels,
    task: JoinHandle<()>,
}

/// A node of ours says its name and has a lease; a server of Node's does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kin {
    Own(&'static str),
    Node,
}

impl Member {
    /// Is a member when it resolves.
    pub(crate) async fn join(
        url: &str,
        dialect: Dialect,
        kin: Kin,
        answer: impl Fn(&Question) -> Vec<Reply> + Send + 'static,
    ) -> Self {
        let channels = Channels::new("socket.io", dialect);
        let name = match kin {
            Kin::Own(name) => name,
            Kin::Node => "theirs",
        };
        let node = NodeId::new(name);
        let own = channels.response_of("/", uid(&node, "/", dialect).as_str());
        let command = match dialect {
            Dialect::Classic | Dialect::Streams => "SUBSCRIBE",
            Dialect::Sharded(_) => "SSUBSCRIBE",
        };
        let mut names = vec![channels.request("/"), own];
        names.extend(channels.response("/"));
        if kin != Kin::Node {
            names.push(channels.node(&node));
        }
        if !names.contains(&channels.broadcast("/")) {
            names.push(channels.broadcast("/"));
        }
        let subscriptions: Vec<_> = names.iter().map(|name| (command, name.as_str())).collect();
        let ear = Ear::open(url, &subscriptions).await;
        let mut mouth = connect(url).await;
        if kin != Kin::Node {
            lease(&mut mouth, &channels, name).await;
        }
        let (notice, noticed) = unbounded_channel();
        let mind = Mind {
            wire: Wire::new(
                channels.clone(),
                Parser::Msgpack,
                TranscodeLimits::default(),
            ),
            node: node.clone(),
            kin,
            notice,
            mouth,
        };
        let task = tokio::spawn(mind.think(ear, answer));
        Self {
            noticed,
            node,
            channels,
            task,
        }
    }

    /// Waits for the next question.
    pub(crate) async fn until_asked(&mut self) -> Question {
        loop {
            let noticed = self.noticed.recv().await.expect("a question comes");
            if let Noticed::Question(_, question) = noticed {
                return question;
            }
        }
    }

    /// It has no lease any more and is not asked, but listens to answers as long as the result lives.
    pub(crate) async fn retire(self, url: &str) -> Ear {
        let own = uid(&self.node, "/", Dialect::Classic);
        let own = self.channels.response_of("/", own.as_str());
        let ear = Ear::open(url, &[("SUBSCRIBE", &own)]).await;
        let command = ["ZREM", &self.channels.leases(), self.node.as_str()];
        let removed = connect(url).await.command(&command).await;
        assert_eq!(removed.unwrap(), Value::Int(1));
        self.die().await;
        ear
    }

    /// Its connections are closed; its lease holds on.
    pub(crate) async fn die(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

pub(crate) async fn connect(url: &str) -> Connection {
    let endpoint = Endpoint::new(url.parse().unwrap());
    endpoint.connect(Purpose::Lookup, None).await.unwrap()
}

/// A lease that holds for the whole test.
async fn lease(connection: &mut Connection, channels: &Channels, name: &str) {
    let time = connection.command(&membership::TIME).await.unwrap();
    let seconds = time.list().and_then(|time| time[0].integer()).unwrap();
    let end = ((seconds + 3_600) * 1_000).to_string();
    let command = ["ZADD", &channels.leases(), &end, name];
    assert!(matches!(
        connection.command(&command).await.unwrap(),
        Value::Int(_)
    ));
}

struct Mind {
    wire: Wire,
    node: NodeId,
    kin: Kin,
    notice: UnboundedSender<Noticed>,
    mouth: Connection,
}

impl Mind {
    async fn think(mut self, mut ear: Ear, answer: impl Fn(&Question) -> Vec<Reply> + Send) {
        loop {
            let (channel, payload) = ear.next().await;
            let mut places = self.wire.channels().parse(&channel);
            let place = places.find(|place| place.namespace == "/");
            let kind = place.expect("a channel of the main namespace").kind;
            match self.wire.read("/", kind, &payload).unwrap() {
                Incoming::Message { confirm, .. } => self.notice(Noticed::Broadcast(confirm)),
                Incoming::Question {
                    asker,
                    id,
                    question,
                } => {
                    let with = answer(&question);
                    self.reply(asker, id, question, with).await;
                }
                _ => {}
            }
        }
    }

    async fn reply(
        &mut self,
        mut asker: Asker,
        id: Box<str>,
        question: Question,
        with: Vec<Reply>,
    ) {
        if self.kin == Kin::Node {
            // It does not know who asks, and answers as it answers everybody.
            asker.node = None;
        }
        for reply in with {
            let said = self.wire.response("/", &asker, &id, &self.node, &reply);
            let said = said.unwrap().expect("the asker expects it");
            let command = match self.wire.channels().dialect() {
                Dialect::Classic | Dialect::Streams => "PUBLISH",
                Dialect::Sharded(_) => "SPUBLISH",
            };
            let command = [command.as_bytes(), said.channel.as_bytes(), &said.payload];
            self.mouth.command(&command).await.unwrap();
        }
        self.notice(Noticed::Question(id, question));
    }

    fn notice(&self, noticed: Noticed) {
        // The test may have seen enough.
        let _ = self.notice.send(noticed);
    }
}
