//! What a server tells its bus and answers it, and what it makes of what the bus says.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use roomcast::{
    Args, BroadcastOperator, BuildError, Builder, BusError, EmitError, Gap, Health, NodeId, Server,
    Socket, SocketId,
    bus::{Answer, Answered, Broadcast, BusFuture, Message, Progress, Question, Target, Tracking},
};
use support::{
    Gate, TestServer, WebSocket,
    bus::FakeBus,
    eventually,
    server::{Sockets, main_namespace},
    within,
};
use tokio::sync::mpsc;

/// A node with the clients of one namespace.
struct Node {
    bus: FakeBus,
    server: TestServer,
    sockets: Sockets,
}

impl Node {
    async fn start(bus: FakeBus) -> Self {
        Self::configured(bus, |builder| builder).await
    }

    async fn configured(bus: FakeBus, configure: impl FnOnce(Builder) -> Builder) -> Self {
        let namespace = main_namespace().on_server_side("double", double);
        let (namespace, sockets) = Sockets::of(namespace);
        let builder = Server::builder().namespace(namespace).bus(bus.clone());
        let server = TestServer::start(configure(builder)).await;
        assert_eq!(bus.log(), ["attach /", "confirm "]);
        Self {
            bus,
            server,
            sockets,
        }
    }

    async fn client(&mut self) -> (WebSocket, Socket) {
        let client = WebSocket::connect(self.server.address).await;
        (client, self.sockets.next().await)
    }

    /// Asks all clients, as another node does that follows the progress.
    fn votes(
        &self,
        timeout: Duration,
        progress: &Arc<impl Progress + 'static>,
    ) -> BusFuture<Answer> {
        let question = Question::Acks {
            target: to(&[]),
            event: "vote?".into(),
            args: Args::default(),
            timeout,
        };
        let progress = Arc::clone(progress);
        self.bus.listener("/").answer(question, Some(progress))
    }

    async fn answer(&self, question: Question) -> Answer {
        within("an answer", self.bus.listener("/").answer(question, None)).await
    }
}

async fn double(_: BroadcastOperator, number: u32) -> u32 {
    2 * number
}

fn to(rooms: &[&str]) -> Target {
    let mut target = Target::default();
    target.add_rooms(rooms);
    target
}

fn args(json: &str) -> Args {
    Args::from_text(json.into(), Vec::new()).unwrap()
}

#[tokio::test]
async fn a_bus_hears_of_the_first_and_the_last_member_of_a_room() {
    let mut node = Node::start(FakeBus::tracking(Tracking::Rooms)).await;
    let (_client_a, a) = node.client().await;
    let (client_b, b) = node.client().await;
    assert!(node.bus.log().is_empty(), "private rooms are not told of");
    a.join(["r", "s"]).unwrap();
    assert_eq!(node.bus.log(), ["+r", "+s"]);
    b.join(["r", "t"]).unwrap();
    assert_eq!(node.bus.log(), ["+t"]);
    a.leave(["r", "s"]);
    assert_eq!(node.bus.log(), ["-s"]);
    node.server.io.of("/").sockets_join("u").await.unwrap();
    let log = node.bus.log();
    assert!(log[0].starts_with("publish SocketsJoin"), "{log:?}");
    assert_eq!(log[1..], ["+u"]);
    drop(client_b);
    eventually("the client has left", || {
        !node.bus.listener("/").has_room("r")
    })
    .await;
    eventually("the bus has heard of it", || {
        let log = node.bus.log();
        log == ["-r", "-t"]
    })
    .await;
}

#[tokio::test]
async fn a_bus_that_wants_to_hears_of_private_rooms() {
    let mut node = Node::start(FakeBus::tracking(Tracking::RoomsAndSockets)).await;
    let (client, socket) = node.client().await;
    assert_eq!(node.bus.log(), [format!("+{}", socket.id())]);
    assert!(node.bus.listener("/").has_room(socket.id().as_str()));
    drop(client);
    let gone = [format!("-{}", socket.id())];
    eventually("the client is gone", || node.bus.log() == gone).await;
    assert!(!node.bus.listener("/").has_room(socket.id().as_str()));
}

#[tokio::test]
async fn a_join_is_confirmed_by_the_bus_after_it_has_heard_of_the_rooms() {
    let mut node = Node::start(FakeBus::tracking(Tracking::Rooms)).await;
    let (_client, socket) = node.client().await;
    socket.join_confirmed(["r", "s"]).await.unwrap();
    assert_eq!(node.bus.log(), ["+r", "+s", "confirm r s"]);

    node.bus.cannot_confirm();
    let refused = socket.join_confirmed("t").await.unwrap_err();
    assert!(matches!(refused, EmitError::Bus(BusError::Unavailable(_))));
    assert!(socket.rooms().contains(&String::from("t")), "it has joined");

    node.bus.log();
    let refused = socket.join_confirmed("x".repeat(1000)).await.unwrap_err();
    assert!(matches!(refused, EmitError::Join(_)));
    assert!(node.bus.log().is_empty(), "there is nothing to confirm");
}

#[tokio::test]
async fn every_question_is_answered_for_the_sockets_of_this_node() {
    let mut node = Node::start(FakeBus::new()).await;
    let (_client_a, a) = node.client().await;
    let (mut client_b, b) = node.client().await;
    a.join("r").unwrap();

    let Answer::Sockets(sockets) = node.answer(Question::Sockets(to(&["r"]))).await else {
        panic!("not sockets");
    };
    assert_eq!(sockets.len(), 1);
    assert_eq!(sockets[0].id, *a.id());
    let ids = node.answer(Question::SocketIds(to(&["r"]))).await;
    assert_eq!(ids, Answer::SocketIds(vec![a.id().clone()]));
    let mut rooms = [a.id().as_str(), b.id().as_str(), "r"].map(Box::<str>::from);
    rooms.sort();
    let answer = node.answer(Question::Rooms).await;
    assert_eq!(answer, Answer::Rooms(rooms.to_vec()));
    let answer = node.answer(Question::Reached(to(&[]))).await;
    assert_eq!(answer, Answer::Reached(2));

    for (room, is_there) in [("r", true), ("elsewhere", false)] {
        let order = Message::SocketsJoin {
            target: to(&[room]),
            rooms: vec!["s".into()],
        };
        let answer = node.answer(Question::Command(order)).await;
        assert_eq!(answer, Answer::Command(is_there));
    }
    assert!(a.rooms().contains(&String::from("s")));

    let event = |name: &str| Question::ServerSideEmit {
        event: name.into(),
        args: args("[4]"),
    };
    let answer = node.answer(event("double")).await;
    assert_eq!(answer, Answer::ServerSideEmit(Some(args("[8]"))));
    let answer = node.answer(event("unknown")).await;
    assert_eq!(answer, Answer::ServerSideEmit(None));

    let broadcast = Message::Broadcast(Broadcast {
        target: to(&[]),
        event: "x".into(),
        args: Args::default(),
    });
    assert_eq!(node.bus.listener("/").receive(&broadcast, None), 2);
    assert_eq!(client_b.text().await, r#"42["x"]"#);
}

/// What was said, in order.
#[derive(Default)]
struct Said(Mutex<Vec<String>>);

impl Progress for Said {
    fn asked(&self, sockets: usize) {
        self.0.lock().push(format!("asked {sockets}"));
    }

    fn acknowledged(&self, socket: &SocketId, args: &Args) {
        self.0.lock().push(format!("{socket} {}", args.json()));
    }
}

#[tokio::test]
async fn who_asks_for_acknowledgements_hears_at_once_how_many_come_and_then_each() {
    let mut node = Node::start(FakeBus::new()).await;
    let (mut client_a, a) = node.client().await;
    let (mut client_b, b) = node.client().await;
    let (client_c, c) = node.client().await;
    let said = Arc::<Said>::default();
    let answering = tokio::spawn(node.votes(support::DEADLINE, &said));
    let heard = |expected: &[String]| *said.0.lock() == expected;
    let mut expected = vec![String::from("asked 3")];
    eventually("it is said how many were asked", || heard(&expected)).await;

    for (client, socket) in [(&mut client_b, &b), (&mut client_a, &a)] {
        let id = client.asked(r#"["vote?"]"#).await;
        client.acknowledge(id, r#"["yes"]"#).await;
        expected.push(format!(r#"{} ["yes"]"#, socket.id()));
        eventually("the answer is told", || heard(&expected)).await;
    }
    assert!(!answering.is_finished());
    drop(client_c);
    let answer = within("the whole answer", answering).await.unwrap();
    let yes = |socket: &Socket| (Some(socket.id().clone()), args(r#"["yes"]"#));
    let expected = Answer::Acks {
        answers: vec![yes(&b), yes(&a)],
        missing: vec![c.id().clone()],
        missing_unnamed: 0,
    };
    assert_eq!(answer, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_come_while_others_are_still_asked_are_told_once_and_after_the_number() {
    const CLIENTS: usize = 40;
    let mut node = Node::configured(FakeBus::new(), |builder| builder.lanes(4)).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let (mut client, _) = node.client().await;
        clients.push(tokio::spawn(async move {
            for _ in 0..20 {
                let id = client.asked(r#"["vote?"]"#).await;
                client.acknowledge(id, "[1]").await;
            }
            client
        }));
    }
    for _ in 0..20 {
        let said = Arc::<Said>::default();
        node.votes(support::DEADLINE, &said).await;
        let mut said = std::mem::take(&mut *said.0.lock());
        assert_eq!(said.remove(0), format!("asked {CLIENTS}"));
        said.sort();
        said.dedup();
        assert_eq!(said.len(), CLIENTS);
    }
    for client in clients {
        client.await.unwrap();
    }
}

/// Is slow with the first acknowledgement: it is told once the test lets go.
struct SlowAtFirst {
    said: Said,
    release: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl Progress for SlowAtFirst {
    fn asked(&self, sockets: usize) {
        self.said.asked(sockets);
    }

    fn acknowledged(&self, socket: &SocketId, args: &Args) {
        let release = self.release.lock().take();
        if let Some(release) = release {
            self.said.0.lock().push("begun".into());
            tokio::task::block_in_place(|| release.recv()).unwrap();
        }
        self.said.acknowledged(socket, args);
    }
}

/// Answers of two clients, the first of which is slow to be told. Returns what was told before the
/// whole answer.
async fn told_before_the_whole_answer(timeout: Duration, both_answer: bool) -> usize {
    let mut node = Node::start(FakeBus::new()).await;
    let (mut client_a, _) = node.client().await;
    let (mut client_b, _) = node.client().await;
    let (let_go, release) = std::sync::mpsc::channel();
    let progress = Arc::new(SlowAtFirst {
        said: Said::default(),
        release: Mutex::new(Some(release)),
    });
    let answering = tokio::spawn(node.votes(timeout, &progress));
    let told = || progress.said.0.lock().len();
    let id = client_a.asked(r#"["vote?"]"#).await;
    client_b.text().await;
    eventually("it is said how many were asked", || told() == 1).await;
    client_a.acknowledge(id, "[1]").await;
    eventually("the first acknowledgement is on its way", || told() == 2).await;
    if both_answer {
        client_b.acknowledge(id, "[1]").await;
        eventually("the second one is told", || told() == 3).await;
    }
    // Time to overtake, for whoever does not wait.
    let overtime = if both_answer { Duration::ZERO } else { timeout };
    tokio::time::sleep(overtime + Duration::from_millis(300)).await;
    assert!(!answering.is_finished());
    let_go.send(()).unwrap();
    within("the whole answer", answering).await.unwrap();
    told()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_answer_does_not_overtake_an_acknowledgement() {
    assert_eq!(
        told_before_the_whole_answer(support::DEADLINE, true).await,
        4
    );
    // Nor when the time is over.
    let short = Duration::from_secs(2);
    assert_eq!(told_before_the_whole_answer(short, false).await, 3);
}

#[tokio::test]
async fn answers_of_nodes_that_do_not_name_sockets_count() {
    let node = Node::start(FakeBus::new()).await;
    let named = SocketId::new("remote");
    node.bus.answers(Answered {
        answers: vec![Answer::Acks {
            answers: vec![
                (None, args("[1]")),
                (None, args(r#"["no number"]"#)),
                (Some(named.clone()), args(r#"["no number"]"#)),
            ],
            missing: Vec::new(),
            missing_unnamed: 2,
        }],
        silent: vec![NodeId::new("mute")],
    });
    let asking = node.server.io.of("/").emit_with_ack::<u32>("x", ());
    let answers = asking.await.unwrap();
    assert_eq!(answers.answers, [1]);
    assert_eq!(answers.missing, [named]);
    assert_eq!(answers.missing_unnamed, 3);
    assert_eq!(answers.silent_nodes, ["mute"]);
}

#[tokio::test]
async fn a_question_has_the_time_that_was_set_and_acknowledgements_a_little_more() {
    let node = Node::start(FakeBus::new()).await;
    let io = || node.server.io.of("/").timeout(Duration::from_secs(3));
    let last = || node.bus.log().pop().unwrap();
    io().fetch_sockets().await.unwrap();
    assert!(last().ends_with("for 3s"));
    io().rooms().await.unwrap();
    assert_eq!(last(), "ask Rooms for 3s");
    io().server_side_emit_with_ack::<u32>("x", ())
        .await
        .unwrap();
    assert!(last().ends_with("for 3s"));
    io().emit_with_ack::<u32>("x", ()).await.unwrap();
    assert!(last().ends_with("for 3.5s"));
    node.server.io.of("/").rooms().await.unwrap();
    assert_eq!(last(), "ask Rooms for 5s");
}

#[tokio::test]
async fn what_is_about_servers_takes_no_rooms() {
    let node = Node::start(FakeBus::new()).await;
    let io = &node.server.io;
    let emitted = [
        io.to("r").server_side_emit("x", ()).await,
        io.except("r").server_side_emit("x", ()).await,
        io.to("r").rooms().await.map(|_| 0),
        io.to("r")
            .server_side_emit_with_ack::<u32>("x", ())
            .await
            .map(|_| 0),
    ];
    for emitted in emitted {
        assert!(matches!(emitted, Err(EmitError::RoomsOfServers)));
    }
    let reserved = io.of("/").server_side_emit("disconnect", ()).await;
    assert!(matches!(reserved, Err(EmitError::ReservedEvent(_))));
    let local = io.of("/").local().server_side_emit("x", ()).await;
    assert_eq!(local.unwrap(), 0);
    assert!(node.bus.log().is_empty(), "nothing has left the node");
}

fn gap(from: u64, to: u64) -> Gap {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    Gap {
        from: at(from),
        to: at(to),
    }
}

#[tokio::test]
async fn gaps_are_told_one_after_the_other_and_those_in_between_become_one() {
    let (sender, mut told) = mpsc::unbounded_channel();
    let gate = Gate::new();
    let inside = gate.clone();
    let node = Node::configured(FakeBus::new(), |builder| {
        builder.on_gap(move |gap| {
            sender.send(gap).unwrap();
            inside.pass()
        })
    })
    .await;
    node.bus.report(gap(1, 2));
    assert_eq!(within("a gap", told.recv()).await, Some(gap(1, 2)));
    for (from, to) in [(5, 6), (3, 4), (7, 9)] {
        node.bus.report(gap(from, to));
    }
    gate.open();
    assert_eq!(within("a gap", told.recv()).await, Some(gap(3, 9)));
    node.bus.report(gap(10, 11));
    assert_eq!(within("a gap", told.recv()).await, Some(gap(10, 11)));
}

#[tokio::test]
async fn a_handler_of_gaps_that_panics_is_called_again() {
    let (sender, mut told) = mpsc::unbounded_channel();
    let node = Node::configured(FakeBus::new(), |builder| {
        builder.on_gap(move |gap| {
            sender.send(gap).unwrap();
            std::future::poll_fn(|_| -> Poll<()> { panic!("in the handler of gaps") })
        })
    })
    .await;
    for number in 1..3 {
        node.bus.report(gap(number, number + 1));
        within("a gap", told.recv()).await.unwrap();
        let panics = || node.server.metric("roomcast_handler_panics_total");
        eventually("the panic is counted", || panics() == number).await;
    }
}

#[tokio::test]
async fn a_server_is_ready_while_messages_flow() {
    let node = Node::start(FakeBus::new()).await;
    assert!(node.server.io.is_ready());
    let interrupted = Health::Interrupted("no echo".into());
    node.bus.set_health(interrupted.clone());
    assert_eq!(node.server.io.health(), interrupted);
    assert!(!node.server.io.is_ready());
    node.bus.set_health(Health::Flowing);
    assert!(node.server.io.is_ready());
}

#[tokio::test]
async fn a_shutdown_retires_then_closes_the_connections_and_then_the_bus() {
    let bus = FakeBus::new();
    let noting = bus.clone();
    let namespace = main_namespace().on_disconnect(move || {
        noting.note("disconnect");
        async {}
    });
    let builder = Server::builder().namespace(namespace).bus(bus.clone());
    let server = TestServer::start(builder).await;
    let mut client = server.bystander().await;
    bus.log();
    let closing = tokio::join!(server.io.close(), server.io.close(), client.closed());
    assert_eq!(closing.2, None);
    assert_eq!(bus.log(), ["retire", "disconnect", "close"]);
    assert!(!server.io.is_ready());
}

#[tokio::test]
async fn a_shutdown_waits_for_handlers_of_server_side_events_before_it_closes_the_bus() {
    let (bus, gate) = (FakeBus::new(), Gate::new());
    let (noting, inside) = (bus.clone(), gate.clone());
    let namespace = main_namespace().on_server_side("slow", move |_: BroadcastOperator| {
        let (bus, gate) = (noting.clone(), inside.clone());
        bus.note("begun");
        async move {
            gate.pass().await;
            bus.note("done");
        }
    });
    let builder = Server::builder().namespace(namespace).bus(bus.clone());
    let io = builder.build().await.unwrap();
    let event = Message::ServerSideEmit {
        event: "slow".into(),
        args: Args::default(),
    };
    let listener = bus.listener("/");
    assert_eq!(listener.receive(&event, None), 0);
    let log = Mutex::new(Vec::new());
    let is_noted = |what: &str| {
        let mut log = log.lock();
        log.extend(bus.log());
        log.iter().any(|noted: &String| noted == what)
    };
    eventually("the handler runs", || is_noted("begun")).await;
    let closing = tokio::spawn({
        let io = io.clone();
        async move { io.close().await }
    });
    eventually("the shutdown has begun", || is_noted("retire")).await;
    gate.open();
    within("the end", closing).await.unwrap();
    // Too late to run.
    listener.receive(&event, None);
    is_noted("");
    assert_eq!(
        *log.lock(),
        ["attach /", "confirm ", "begun", "retire", "done", "close"]
    );
}

#[tokio::test]
async fn a_bus_that_hangs_does_not_hold_up_a_shutdown() {
    let bus = FakeBus::hanging();
    let io = Server::builder().bus(bus.clone()).build().await.unwrap();
    within("the end", io.close()).await;
    assert_eq!(bus.log(), ["retire", "close"]);
}

#[tokio::test]
async fn a_bus_is_started_with_the_name_of_the_node() {
    let bus = FakeBus::new();
    let started = bus.clone();
    let (sender, name) = tokio::sync::oneshot::channel();
    let (namespace, mut sockets) = Sockets::of(main_namespace());
    let builder = Server::builder().namespace(namespace);
    let server = TestServer::start(builder.start_bus(async move |node: NodeId| {
        sender.send(node).unwrap();
        Ok::<_, BusError>(started)
    }))
    .await;
    assert_eq!(name.await.unwrap(), *server.io.node());
    assert_eq!(bus.log(), ["attach /", "confirm "]);
    let _client = server.bystander().await;
    let id = sockets.next().await.id().to_string();
    assert_eq!(id[..4], server.io.node().as_str()[..4]);
}

#[tokio::test]
async fn a_bus_that_cannot_be_started_is_an_error_of_the_build() {
    let builder = Server::builder().start_bus(async |_| Err::<FakeBus, _>("the password is wrong"));
    let error = builder.build().await.unwrap_err();
    assert!(matches!(error, BuildError::Bus(_)));
    let text = "other nodes cannot be reached: the password is wrong";
    assert_eq!(error.to_string(), text);
}

#[tokio::test]
async fn the_metrics_of_a_bus_are_among_those_of_the_server() {
    let bus = FakeBus::metered("roomcast_bus_test");
    let io = Server::builder().bus(bus).build().await.unwrap();
    assert!(io.metrics().contains("\nroomcast_bus_test 0\n"));

    let clashing = FakeBus::metered("roomcast_broadcasts_total");
    let refused = Server::builder().bus(clashing).build().await;
    assert!(matches!(refused, Err(BuildError::BusMetrics(_))));
}
