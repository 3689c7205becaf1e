//! Clients come back to their session, on the same node and on another: completely or not at all.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use roomcast::{
    AckError, Args, DisconnectReason, EmitError, JournalLimits, MemoryBus, Namespace, Position,
    PublishError, Recovering, Recovery, Refused, Server, Socket, SocketId,
    bus::{Broadcast, JournalEntry, Target},
};
use serde::Deserialize;
use support::{
    Gate, TestServer, WebSocket,
    bus::FakeBus,
    eventually,
    server::{Sockets, main_namespace},
    within,
};
use tokio::sync::mpsc;

/// The content of the reply to a CONNECT.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Reply {
    sid: String,
    pid: String,
}

fn reply(text: &str) -> Reply {
    let json = text.strip_prefix("40").unwrap_or_else(|| panic!("{text}"));
    serde_json::from_str(json).unwrap()
}

/// Connects to the main namespace with this `auth`.
async fn open(server: &TestServer, auth: &str) -> (WebSocket, Reply) {
    let mut stream = WebSocket::open(server.address).await;
    stream.send(&format!("40{auth}")).await;
    let reply = reply(&stream.text().await);
    (stream, reply)
}

/// Connects a client, and returns both ends.
async fn connect(server: &TestServer, sockets: &mut Sockets) -> (Client, Socket) {
    (Client::connect(server).await, sockets.next().await)
}

/// A client as the official one: it keeps the last offset.
struct Client {
    /// `None` while the connection is lost.
    stream: Option<WebSocket>,
    reply: Reply,
    offset: Option<String>,
    /// The ids of acknowledgements that the server waits for.
    acks: Vec<String>,
}

impl Client {
    async fn connect(server: &TestServer) -> Self {
        let (stream, reply) = open(server, "").await;
        Self {
            stream: Some(stream),
            reply,
            offset: None,
            acks: Vec::new(),
        }
    }

    fn stream(&mut self) -> &mut WebSocket {
        self.stream.as_mut().unwrap()
    }

    /// Loses the connection, as by a crash.
    fn reset(&mut self) {
        self.stream.take().unwrap().reset();
    }

    /// The same, and waits until the server has noticed it.
    async fn lose(&mut self, socket: &Socket) {
        self.reset();
        is_gone(socket).await;
    }

    /// The next event, without its offset.
    async fn event(&mut self) -> Vec<serde_json::Value> {
        let text = self.stream().text().await;
        let json = text.strip_prefix("42").unwrap_or_else(|| panic!("{text}"));
        let (id, json) = json.split_at(json.find('[').unwrap_or_default());
        self.acks.extend((!id.is_empty()).then(|| id.to_owned()));
        let mut event: Vec<serde_json::Value> = serde_json::from_str(json).unwrap();
        if let Some(serde_json::Value::String(offset)) = event.pop_if(|last| last.is_string()) {
            self.offset = Some(offset);
        }
        event
    }

    async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        for _ in 0..count {
            numbers.push(self.event().await[1].as_u64().unwrap());
        }
        numbers
    }

    /// Acknowledges the events at these places of those that it has received and not acknowledged.
    async fn acknowledge(&mut self, places: &[usize]) {
        for place in places {
            let ack = format!("43{}[]", self.acks[*place]);
            self.stream().send(&ack).await;
        }
        let mut place = 0;
        self.acks.retain(|_| {
            place += 1;
            !places.contains(&(place - 1))
        });
    }

    fn auth(&self) -> String {
        let pid = &self.reply.pid;
        match &self.offset {
            Some(offset) => format!(r#"{{"pid":"{pid}","offset":"{offset}"}}"#),
            None => format!(r#"{{"pid":"{pid}"}}"#),
        }
    }

    /// Connects again, and leaves what is sent then to be read.
    async fn come_back(&mut self, server: &TestServer) {
        let mut stream = WebSocket::open(server.address).await;
        stream.send(&format!("40{}", self.auth())).await;
        self.stream = Some(stream);
    }

    async fn reply(&mut self) -> Reply {
        reply(&self.stream().text().await)
    }
}

fn recovering() -> Namespace {
    main_namespace().recovery(Recovery::default())
}

fn authorizing_again(authorizes_again: bool) -> Namespace {
    main_namespace().recovery(Recovery {
        authorizes_again,
        ..Recovery::default()
    })
}

/// A server whose main namespace lets clients come back, with all sockets that connect.
async fn node_of(namespace: Namespace, bus: Option<&MemoryBus>) -> (TestServer, Sockets) {
    let (namespace, sockets) = Sockets::of(namespace);
    let mut builder = Server::builder().namespace(namespace);
    if let Some(bus) = bus {
        builder = builder.bus(bus.clone());
    }
    (TestServer::start(builder).await, sockets)
}

/// Waits until the socket of a client has ended.
async fn is_gone(socket: &Socket) {
    eventually("the socket has gone", || !socket.is_connected()).await;
}

const WRITTEN: &str = "roomcast_session_writes_total{outcome=\"written\"}";

/// Waits until sessions were stored more often than `before`, because they are written behind.
async fn is_stored(server: &TestServer, before: u64) {
    eventually("the session is stored", || server.metric(WRITTEN) > before).await;
}

/// Waits until the sessions of all changes so far are stored, as each client that may come back does.
async fn is_written(server: &TestServer) {
    open(server, r#"{"pid":"unknown"}"#).await;
}

/// The number of sockets of a server with the id of a client.
fn has_id(server: &TestServer, client: &Client) -> usize {
    let selected = server.io.in_(client.reply.sid.as_str()).local();
    selected.local_sockets().len()
}

/// Waits until so many clients have come back, or have failed to.
async fn counts(server: &TestServer, outcome: &str, count: u64) {
    let series = format!("roomcast_recoveries_total{{outcome=\"{outcome}\"}}");
    eventually(&series, || server.metric(&series) == count).await;
}

#[tokio::test]
async fn a_client_that_comes_back_is_the_same_socket_and_receives_what_it_missed() {
    let (server, mut sockets) = node_of(recovering(), None).await;
    let (mut client, socket) = connect(&server, &mut sockets).await;
    assert!(!socket.recovered());
    socket.join(["news", "sport"]).unwrap();
    server.io.to("news").emit("n", 1).await.unwrap();
    assert_eq!(client.numbers(1).await, [1]);
    let id = client.reply.sid.clone();
    client.lose(&socket).await;
    server.io.to("news").emit("n", 2).await.unwrap();
    server.io.to("other").emit("n", 3).await.unwrap();
    let unsporting = server.io.to("news").except("sport");
    unsporting.emit("n", 4).await.unwrap();
    server.io.to(id.as_str()).emit("n", 5).await.unwrap();
    server.io.emit("n", 6).await.unwrap();
    server.io.to("news").volatile().emit("n", 7).await.unwrap();
    client.come_back(&server).await;
    assert_eq!(client.numbers(3).await, [2, 5, 6]);
    assert_eq!(client.reply().await, client.reply);
    let socket = sockets.next().await;
    assert!(socket.recovered());
    assert_eq!(socket.id().as_str(), id);
    let mut rooms = socket.rooms();
    rooms.sort_unstable();
    let mut expected = vec![id, "news".to_owned(), "sport".to_owned()];
    expected.sort_unstable();
    assert_eq!(rooms, expected);
    server.io.to("news").emit("n", 8).await.unwrap();
    assert_eq!(client.numbers(1).await, [8]);
    counts(&server, "recovered", 1).await;
}

#[tokio::test]
async fn events_to_one_socket_are_kept_if_they_shall_be() {
    for unicasts in [true, false] {
        let recovery = Recovery {
            unicasts,
            ..Recovery::default()
        };
        let (server, mut sockets) = node_of(main_namespace().recovery(recovery), None).await;
        let (mut client, socket) = connect(&server, &mut sockets).await;
        socket.emit("n", 1).unwrap();
        server.io.emit("n", 2).await.unwrap();
        socket.emit("n", 3).unwrap();
        assert_eq!(client.numbers(2).await, [1, 2]);
        let after_two = client.offset.clone();
        assert_eq!(client.numbers(1).await, [3]);
        assert_eq!(client.offset != after_two, unicasts);
        socket.volatile().emit("n", 4).unwrap();
        assert_eq!(client.numbers(1).await, [4]);
        // The server has not noticed, and sends to nobody.
        let old = client.stream.take().unwrap();
        socket.emit("n", 5).unwrap();
        socket.volatile().emit("n", 6).unwrap();
        old.reset();
        is_gone(&socket).await;
        let late = socket.emit("n", 7);
        assert_eq!(late.is_ok(), unicasts, "{late:?}");
        server.io.emit("n", 8).await.unwrap();
        client.come_back(&server).await;
        let missed: &[u64] = if unicasts { &[5, 7, 8] } else { &[8] };
        assert_eq!(client.numbers(missed.len()).await, missed);
        assert_eq!(client.reply().await, client.reply);
        let socket = sockets.next().await;
        socket.emit("n", 9).unwrap();
        assert_eq!(client.numbers(1).await, [9]);
        socket.disconnect(true);
        is_gone(&socket).await;
        socket.emit("n", 10).unwrap_err();
    }
}

#[tokio::test]
async fn what_was_sent_to_a_room_before_the_client_joined_it_is_not_missed() {
    let bus = MemoryBus::new();
    let (first, mut sockets) = node_of(recovering(), Some(&bus)).await;
    let (second, mut others) = node_of(recovering(), Some(&bus)).await;
    let (mut client, socket) = connect(&first, &mut sockets).await;
    socket.join(["early", "left"]).unwrap();
    first.io.emit("n", 1).await.unwrap();
    assert_eq!(client.numbers(1).await, [1]);
    is_stored(&first, 0).await;
    // The node has not noticed that nobody reads any more.
    let _old = client.stream.take().unwrap();
    let emit = async |to: &[&str], except: &[&str], number: u64| {
        let emitted = first.io.to(to).except(except).emit("n", number).await;
        emitted.unwrap();
    };
    emit(&["late"], &[], 2).await;
    emit(&["early", "late"], &["late"], 3).await;
    let before = first.metric(WRITTEN);
    socket.join(["early", "late"]).unwrap();
    socket.leave("left");
    is_stored(&first, before).await;
    emit(&["late"], &[], 4).await;
    emit(&["early"], &["late"], 5).await;
    emit(&["left"], &[], 6).await;
    let before = first.metric(WRITTEN);
    socket.join(["late", "left"]).unwrap();
    is_stored(&first, before).await;
    emit(&["late"], &[], 7).await;
    let offset = client.offset.clone();
    client.come_back(&second).await;
    assert_eq!(client.numbers(3).await, [3, 4, 7]);
    assert_eq!(client.reply().await, client.reply);
    let socket = others.next().await;
    // It has lost that connection before it had read anything.
    client.offset = offset;
    client.lose(&socket).await;
    emit(&["left"], &[], 8).await;
    client.come_back(&first).await;
    assert_eq!(client.numbers(4).await, [3, 4, 7, 8]);
    assert_eq!(client.reply().await, client.reply);
}

/// A broadcast of the journal, after the one with the id before it, stored at this second of Redis's clock.
fn entry(id: u64, seconds: u64, rooms: &[&str]) -> JournalEntry {
    let mut target = Target::default();
    target.add_rooms(rooms);
    JournalEntry {
        position: Position {
            id,
            time: seconds * 1000,
            after: Some(id - 1),
        },
        broadcast: Broadcast {
            target,
            event: "n".into(),
            args: Args::encode(&(id,)).unwrap(),
        },
    }
}

/// A node whose journal is that of the test.
async fn node_with(journal: Vec<JournalEntry>) -> (FakeBus, TestServer, Sockets) {
    let bus = FakeBus::new();
    bus.set_journal(journal);
    let (namespace, sockets) = Sockets::of(recovering());
    let builder = Server::builder().namespace(namespace).bus(bus.clone());
    (bus, TestServer::start(builder).await, sockets)
}

#[tokio::test]
async fn a_clock_that_goes_back_does_not_change_what_was_sent_before_a_join() {
    let (bus, server, mut sockets) = node_with(vec![entry(10, 10, &[])]).await;
    let (mut client, socket) = connect(&server, &mut sockets).await;
    bus.hear(entry(11, 20, &[]));
    assert_eq!(client.numbers(1).await, [11]);
    // The node has not noticed that nobody reads any more.
    let _old = client.stream.take().unwrap();
    bus.hear(entry(12, 90, &["late"]));
    bus.hear(entry(13, 40, &[]));
    socket.join("late").unwrap();
    bus.hear(entry(14, 30, &["late"]));
    client.come_back(&server).await;
    assert_eq!(client.numbers(2).await, [13, 14]);
    assert_eq!(client.reply().await, client.reply);
}

#[tokio::test]
async fn a_clock_that_goes_back_does_not_bring_back_the_place_of_an_earlier_session() {
    let mut journal = vec![entry(12, 90, &[]), entry(13, 40, &[])];
    let (bus, server, mut sockets) = node_with(journal.clone()).await;
    let (mut client, socket) = connect(&server, &mut sockets).await;
    client.offset = Some("12-90000".to_owned());
    client.lose(&socket).await;
    journal.push(entry(14, 41, &[]));
    bus.set_journal(journal);
    bus.hear(entry(14, 41, &[]));
    client.come_back(&server).await;
    assert_eq!(client.numbers(1).await, [14]);
    assert_eq!(client.reply().await, client.reply);
}

#[tokio::test]
async fn a_join_before_the_journal_was_lost_hides_nothing_of_the_next_one() {
    let (bus, server, mut sockets) = node_with(vec![entry(13, 40, &[])]).await;
    let (mut client, socket) = connect(&server, &mut sockets).await;
    bus.hear(entry(14, 41, &[]));
    assert_eq!(client.numbers(1).await, [14]);
    socket.join("late").unwrap();
    let again = entry(5, 95, &[]);
    bus.set_journal(vec![again.clone()]);
    bus.hear(again);
    assert_eq!(client.numbers(1).await, [5]);
    client.lose(&socket).await;
    bus.hear(entry(6, 96, &["late"]));
    client.come_back(&server).await;
    assert_eq!(client.numbers(1).await, [6]);
    assert_eq!(client.reply().await, client.reply);
}

#[tokio::test]
async fn authorizers_see_whether_a_client_comes_back() {
    let (asked, mut asks) = mpsc::unbounded_channel();
    let namespace = authorizing_again(true).authorize(move |Recovering(comes_back)| {
        asked.send(comes_back).unwrap();
        async { Ok::<_, Refused>(()) }
    });
    let (server, mut sockets) = node_of(namespace, None).await;
    let (mut client, socket) = connect(&server, &mut sockets).await;
    client.lose(&socket).await;
    client.come_back(&server).await;
    assert_eq!(client.reply().await, client.reply);
    assert!(sockets.next().await.recovered());
    open(&server, r#"{"pid":"unknown"}"#).await;
    for comes_back in [false, true, false] {
        assert_eq!(asks.recv().await, Some(comes_back));
    }
}

#[tokio::test]
async fn a_late_acknowledgement_does_not_answer_a_question_of_another_node() {
    let bus = MemoryBus::new();
    let (first, mut sockets) = node_of(recovering(), Some(&bus)).await;
    let (second, mut others) = node_of(recovering(), Some(&bus)).await;
    let ask = |socket: Socket, number: u64| {
        tokio::spawn(async move { socket.emit_with_ack::<u64>("n", number).await })
    };
    let mut client = Client::connect(&first).await;
    let asked = ask(sockets.next().await, 1);
    assert_eq!(client.numbers(1).await, [1]);
    is_stored(&first, 0).await;
    client.reset();
    let lost = within("the end of the question", asked).await.unwrap();
    assert!(matches!(lost, Err(AckError::Disconnected)), "{lost:?}");
    client.come_back(&second).await;
    assert_eq!(client.reply().await, client.reply);
    let asked = ask(others.next().await, 2);
    assert_eq!(client.numbers(1).await, [2]);
    // Both are acknowledged now, each with its number.
    let acks = std::mem::take(&mut client.acks);
    for (id, number) in acks.iter().zip(1..) {
        client.stream().send(&format!("43{id}[{number}]")).await;
    }
    let answer = within("the answer", asked).await.unwrap();
    assert_eq!(answer.unwrap(), 2);
}

#[tokio::test]
async fn a_client_that_has_received_nothing_comes_back_too() {
    let (server, mut sockets) = node_of(recovering(), None).await;
    server.io.emit("n", 1).await.unwrap();
    let (mut client, socket) = connect(&server, &mut sockets).await;
    let first = client.reply.sid.clone();
    // Nobody reads any more.
    client.lose(&socket).await;
    server.io.emit("n", 2).await.unwrap();
    client.come_back(&server).await;
    assert_eq!(client.numbers(1).await, [2]);
    assert_eq!(client.reply().await.sid, first);
}

#[tokio::test]
async fn a_client_comes_back_to_another_node_while_the_first_has_not_noticed() {
    let bus = MemoryBus::new();
    let (ended, mut ends) = mpsc::unbounded_channel();
    let namespace = recovering().on_disconnect(move |socket: Socket, reason: DisconnectReason| {
        ended
            .send((socket.id().clone(), reason.to_string()))
            .unwrap();
        async {}
    });
    let (first, mut sockets) = node_of(namespace, Some(&bus)).await;
    let (second, mut others) = node_of(recovering(), Some(&bus)).await;
    let (mut client, socket) = connect(&first, &mut sockets).await;
    socket.join("news").unwrap();
    second.io.to("news").emit("n", 1).await.unwrap();
    assert_eq!(client.numbers(1).await, [1]);
    is_stored(&first, 0).await;
    let before = first.metric(WRITTEN);
    first.io.of("/").sockets_join("late").await.unwrap();
    is_stored(&first, before).await;
    let id = client.reply.sid.clone();
    let mut old = client.stream.take().unwrap();
    client.come_back(&second).await;
    assert_eq!(client.reply().await.sid, id);
    let socket = others.next().await;
    assert!(socket.recovered());
    assert!(socket.rooms().contains(&"late".to_owned()));
    let (ended, reason) = within("the former socket ends", ends.recv()).await.unwrap();
    assert_eq!((ended.as_str(), &*reason), (&*id, "transport close"));
    assert!(old.rest().await.is_empty());
    first.io.to("news").emit("n", 2).await.unwrap();
    assert_eq!(client.numbers(1).await, [2]);
    eventually("one socket has this id", || {
        first.io.of("/").local_sockets().is_empty()
    })
    .await;
    // It can come back again: the end of the former socket has not touched the session.
    client.lose(&socket).await;
    client.come_back(&first).await;
    assert_eq!(client.reply().await.sid, id);
}

#[tokio::test]
async fn of_clients_that_come_back_to_one_session_one_has_it() {
    let (server, mut sockets) = node_of(recovering(), None).await;
    let (mut client, socket) = connect(&server, &mut sockets).await;
    server.io.emit("n", 1).await.unwrap();
    client.numbers(1).await;
    let auth = client.auth();
    client.lose(&socket).await;
    let connecting = (0..4).map(|_| open(&server, &auth));
    let connected = futures_util::future::join_all(connecting).await;
    let recovered = connected.iter().filter(|(_, reply)| *reply == client.reply);
    let recovered = recovered.count();
    assert!(recovered >= 1);
    // One that came later has taken the session from one that had it.
    let has_id = || has_id(&server, &client) == 1;
    eventually("one socket has the id", has_id).await;
    let fresh = 4 - recovered;
    eventually("the others have others", || {
        server.io.local().local_sockets().len() == 1 + fresh
    })
    .await;
}

#[tokio::test]
async fn of_two_sockets_of_one_session_on_a_node_the_later_one_keeps_the_rooms() {
    let bus = MemoryBus::new();
    let (asked, mut asks) = mpsc::unbounded_channel();
    let gate = Gate::new();
    let passed = gate.clone();
    let namespace = authorizing_again(true).authorize(move |Recovering(comes_back)| {
        let (asked, gate) = (asked.clone(), passed.clone());
        async move {
            if comes_back {
                asked.send(()).unwrap();
                gate.pass().await;
            }
            Ok::<_, Refused>(())
        }
    });
    let (namespace, mut sockets) = Sockets::of(namespace);
    // Both sockets are in one shard of the room index.
    let builder = Server::builder().namespace(namespace).bus(bus.clone());
    let first = TestServer::start(builder.lanes(1)).await;
    let (second, mut others) = node_of(recovering(), Some(&bus)).await;
    let (mut client, socket) = connect(&first, &mut sockets).await;
    socket.join("news").unwrap();
    is_written(&first).await;
    sockets.next().await;
    client.lose(&socket).await;
    // It takes the session, and is admitted only after a client of the other node has taken it.
    client.come_back(&first).await;
    let mut early = client.stream.take().unwrap();
    within("the authorizer", asks.recv()).await.unwrap();
    client.come_back(&second).await;
    assert_eq!(client.reply().await, client.reply);
    assert!(others.next().await.recovered());
    client.come_back(&first).await;
    // The node has read the last CONNECT, which waits for its turn.
    is_written(&first).await;
    sockets.next().await;
    gate.admit(2);
    assert_eq!(reply(&early.text().await), client.reply);
    assert_eq!(client.reply().await, client.reply);
    assert!(early.rest().await.is_empty());
    is_gone(&sockets.next().await).await;
    assert!(sockets.next().await.rooms().contains(&"news".to_owned()));
    first.io.to("news").emit("n", 1).await.unwrap();
    assert_eq!(client.numbers(1).await, [1]);
    assert_eq!(has_id(&first, &client), 1);
}

#[tokio::test]
async fn a_session_whose_new_owner_ends_before_it_has_written_it_is_not_lost() {
    let bus = MemoryBus::new();
    let (first, mut sockets) = node_of(recovering(), Some(&bus)).await;
    let (asked, mut asks) = mpsc::unbounded_channel();
    // It takes the session, and gets no further.
    let namespace = authorizing_again(true).authorize(move || {
        asked.send(()).unwrap();
        std::future::pending::<Result<(), Refused>>()
    });
    let (second, _others) = node_of(namespace, Some(&bus)).await;
    let (mut client, socket) = connect(&first, &mut sockets).await;
    let before = first.metric(WRITTEN);
    socket.join("news").unwrap();
    is_stored(&first, before).await;
    first.io.to("news").emit("n", 1).await.unwrap();
    assert_eq!(client.numbers(1).await, [1]);
    client.come_back(&second).await;
    asks.recv().await.unwrap();
    is_gone(&socket).await;
    client.reset();
    first.io.to("news").emit("n", 2).await.unwrap();
    client.come_back(&first).await;
    assert_eq!(client.numbers(1).await, [2]);
    assert_eq!(client.reply().await, client.reply);
    assert!(sockets.next().await.recovered());
}

#[tokio::test]
async fn a_client_whose_missed_events_are_not_all_kept_is_a_new_one() {
    let namespace = recovering().journal(JournalLimits {
        messages: 3,
        ..JournalLimits::default()
    });
    let bus = MemoryBus::new();
    let (first, mut sockets) = node_of(namespace, Some(&bus)).await;
    let (mut client, socket) = connect(&first, &mut sockets).await;
    first.io.emit("n", 0).await.unwrap();
    client.numbers(1).await;
    let auth = client.auth();
    client.lose(&socket).await;
    is_stored(&first, 0).await;
    for number in 1..6 {
        first.io.emit("n", number).await.unwrap();
    }
    // A node that was started later has no tail of its own.
    let (second, mut others) = node_of(recovering(), Some(&bus)).await;
    let (_stream, fresh) = open(&second, &auth).await;
    assert_ne!(fresh.sid, client.reply.sid);
    assert_ne!(fresh.pid, client.reply.pid);
    assert!(!others.next().await.recovered());
    counts(&second, "incomplete", 1).await;
}

#[tokio::test]
async fn what_a_node_has_not_heard_is_read_from_the_journal() {
    let bus = MemoryBus::new();
    let (first, mut sockets) = node_of(recovering(), Some(&bus)).await;
    let (mut client, socket) = connect(&first, &mut sockets).await;
    first.io.emit("n", 0).await.unwrap();
    client.numbers(1).await;
    client.lose(&socket).await;
    is_stored(&first, 0).await;
    for number in 1..250 {
        first.io.emit("n", number).await.unwrap();
    }
    let (second, _others) = node_of(recovering(), Some(&bus)).await;
    for number in 250..260 {
        first.io.emit("n", number).await.unwrap();
    }
    client.come_back(&second).await;
    assert_eq!(client.numbers(259).await, (1..260).collect::<Vec<_>>());
    assert_eq!(client.reply().await, client.reply);
}

#[tokio::test]
async fn a_client_that_has_left_or_was_disconnected_cannot_come_back() {
    let (server, mut sockets) = node_of(recovering(), None).await;
    for by_server in [false, true] {
        let (mut client, socket) = connect(&server, &mut sockets).await;
        server.io.emit("n", 1).await.unwrap();
        client.numbers(1).await;
        if by_server {
            socket.disconnect(true);
        } else {
            client.stream().send("41").await;
        }
        is_gone(&socket).await;
        client.come_back(&server).await;
        assert_ne!(client.reply().await.sid, client.reply.sid);
        assert!(!sockets.next().await.recovered());
        counts(&server, "unknown", if by_server { 2 } else { 1 }).await;
    }
}

const FAILED: &str = "roomcast_session_writes_total{outcome=\"failed\"}";

async fn fails_to_store(server: &TestServer, before: u64) {
    eventually("a write fails", || server.metric(FAILED) > before).await;
}

#[tokio::test]
async fn a_change_and_an_end_during_an_outage_are_stored_before_the_client_resumes() {
    for is_kept in [true, false] {
        let (bus, server, mut sockets) = node_with(Vec::new()).await;
        let mut client = Client::connect(&server).await;
        let socket = sockets.next().await;
        is_stored(&server, 0).await;
        bus.set_storing(false);
        socket.join("news").unwrap();
        fails_to_store(&server, 0).await;
        if is_kept {
            client.reset();
        } else {
            socket.disconnect(true);
        }
        is_gone(&socket).await;
        fails_to_store(&server, server.metric(FAILED)).await;
        bus.hear(entry(1, 1, &["news"]));
        client.come_back(&server).await;
        bus.set_storing(true);
        if is_kept {
            assert_eq!(client.numbers(1).await, [1]);
        }
        let again = client.reply().await;
        assert_eq!(again.sid == client.reply.sid, is_kept);
        let socket = sockets.next().await;
        assert_eq!(socket.recovered(), is_kept);
        assert_eq!(socket.rooms().contains(&"news".to_owned()), is_kept);
    }
}

#[tokio::test]
async fn a_client_that_has_resumed_a_session_without_its_latest_changes_gets_a_new_socket() {
    for is_kept in [true, false] {
        let (bus, first, mut sockets) = node_with(Vec::new()).await;
        let other = FakeBus::with_sessions_of(&bus);
        let (namespace, mut others) = Sockets::of(recovering());
        let builder = Server::builder().namespace(namespace).bus(other.clone());
        let second = TestServer::start(builder).await;
        let mut client = Client::connect(&first).await;
        let socket = sockets.next().await;
        socket.join("members").unwrap();
        is_written(&first).await;
        drop(sockets.next().await);
        bus.set_storing(false);
        socket.leave("members");
        if is_kept {
            client.reset();
        } else {
            socket.disconnect(true);
        }
        is_gone(&socket).await;
        fails_to_store(&first, 0).await;
        client.come_back(&second).await;
        assert_eq!(client.reply().await, client.reply);
        let stale = others.next().await;
        assert_eq!(stale.rooms().len(), 2);
        bus.set_storing(true);
        counts(&first, "incomplete", 1).await;
        // Its node notices it with the next change, if it does not receive the event before.
        let _ = stale.join("more");
        is_gone(&stale).await;
        client.come_back(&second).await;
        assert_ne!(client.reply().await.sid, client.reply.sid);
        assert!(!others.next().await.recovered());
        let told = bus
            .log()
            .into_iter()
            .filter(|line| line.contains("roomcast:returned"));
        assert_eq!(told.count(), 1);
    }
}

#[derive(Debug, PartialEq, serde::Serialize, Deserialize)]
struct User {
    name: String,
}

#[tokio::test]
async fn data_are_kept_and_authorizers_run_again_only_if_they_shall() {
    for authorizes_again in [false, true] {
        let (asked, mut asks) = mpsc::unbounded_channel();
        let namespace = authorizing_again(authorizes_again)
            .recovered_data::<User>()
            .authorize(move || {
                asked.send(()).unwrap();
                async { Ok::<_, Refused>(()) }
            });
        let (server, mut sockets) = node_of(namespace, None).await;
        let (mut client, socket) = connect(&server, &mut sockets).await;
        asks.recv().await.unwrap();
        socket.set_data(User { name: "Ada".into() });
        client.lose(&socket).await;
        client.come_back(&server).await;
        let socket = sockets.next().await;
        assert!(socket.recovered());
        assert_eq!(socket.data::<User>().unwrap().name, "Ada");
        assert_eq!(asks.try_recv().is_ok(), authorizes_again);
    }
}

#[tokio::test]
async fn about_a_client_with_the_session_of_another_one_the_authorizers_decide_as_about_a_new_one()
{
    for authorizes_again in [false, true] {
        let (asked, mut asks) = mpsc::unbounded_channel();
        let namespace = authorizing_again(authorizes_again)
            .recovered_data_with(|_, _: Option<Arc<User>>| None)
            .authorize(move |Recovering(comes_back), id: SocketId| {
                asked.send((comes_back, id.as_str().to_owned())).unwrap();
                async { Ok::<_, Refused>(User { name: "Bob".into() }) }
            });
        let (server, mut sockets) = node_of(namespace, None).await;
        let (mut client, socket) = connect(&server, &mut sockets).await;
        let first = client.reply.sid.clone();
        assert_eq!(asks.recv().await.unwrap(), (false, first.clone()));
        socket.join("news").unwrap();
        client.lose(&socket).await;
        server.io.to("news").emit("n", 1).await.unwrap();
        client.come_back(&server).await;
        // Before any event, so it has got none of the session.
        let fresh = client.reply().await;
        assert_ne!(fresh.sid, first);
        assert_ne!(fresh.pid, client.reply.pid);
        let socket = sockets.next().await;
        assert!(!socket.recovered());
        assert_eq!(socket.rooms(), std::slice::from_ref(&fresh.sid));
        assert_eq!(socket.data::<User>().unwrap().name, "Bob");
        if authorizes_again {
            assert_eq!(asks.recv().await.unwrap(), (true, first));
        }
        assert_eq!(asks.recv().await.unwrap(), (false, fresh.sid));
        counts(&server, "refused", 1).await;
        // The session is gone, so nobody can try it again.
        client.come_back(&server).await;
        client.reply().await;
        assert!(!sockets.next().await.recovered());
        counts(&server, "refused", 1).await;
        assert!(!asks.recv().await.unwrap().0);
    }
}

#[tokio::test]
async fn authorizers_that_trust_a_session_may_refuse_a_client_that_it_does_not_belong_to() {
    let is_first = AtomicBool::new(true);
    let namespace = authorizing_again(true)
        .recovered_data_with(|_, _: Option<Arc<User>>| None)
        .authorize(move |Recovering(comes_back)| {
            let is_known = comes_back || is_first.swap(false, Ordering::Relaxed);
            async move {
                is_known
                    .then_some(())
                    .ok_or_else(|| Refused::new("log in first"))
            }
        });
    let (server, mut sockets) = node_of(namespace, None).await;
    let (mut client, socket) = connect(&server, &mut sockets).await;
    client.lose(&socket).await;
    client.come_back(&server).await;
    let refusal = r#"44{"message":"log in first"}"#;
    assert_eq!(client.stream().text().await, refusal);
    counts(&server, "refused", 1).await;
    let fetched = server.io.of("/").fetch_sockets().await.unwrap();
    assert!(fetched.sockets.is_empty());
}

#[tokio::test]
async fn names_and_offsets_that_make_no_sense_are_those_of_new_clients() {
    let (server, mut sockets) = node_of(recovering(), None).await;
    let (mut client, socket) = connect(&server, &mut sockets).await;
    let pid = client.reply.pid.clone();
    for auth in [
        r#"{"pid":7}"#.to_owned(),
        r#"{"pid":"x","offset":"1-1"}"#.to_owned(),
        r#"{"pid":null,"offset":[]}"#.to_owned(),
    ] {
        let (_stream, fresh) = open(&server, &auth).await;
        assert_ne!(fresh.sid, client.reply.sid);
        assert!(!sockets.next().await.recovered());
    }
    assert!(socket.is_connected());
    // The name is right, the place is not.
    let offset = "99999999999-1";
    client.lose(&socket).await;
    let mut stream = WebSocket::open(server.address).await;
    let auth = format!(r#"{{"pid":"{pid}","offset":"{offset}"}}"#);
    stream.send(&format!("40{auth}")).await;
    assert_ne!(reply(&stream.text().await).sid, client.reply.sid);
}

#[tokio::test]
async fn a_client_whose_place_cannot_be_read_ends_its_former_socket_and_session() {
    let bus = MemoryBus::new();
    let (first, mut sockets) = node_of(recovering(), Some(&bus)).await;
    let (second, _others) = node_of(recovering(), Some(&bus)).await;
    for (server, offset) in [(&first, "zzz"), (&second, "99999999999-1")] {
        let mut client = Client::connect(&first).await;
        let former = sockets.next().await;
        is_written(&first).await;
        sockets.next().await;
        let mut old = client.stream.take().unwrap();
        client.offset = Some(offset.to_owned());
        client.come_back(server).await;
        assert_ne!(client.reply().await.sid, client.reply.sid);
        assert!(old.rest().await.is_empty(), "{offset}");
        is_gone(&former).await;
        is_written(server).await;
        if server.address == first.address {
            sockets.next().await;
            sockets.next().await;
        }
        client.offset = None;
        client.come_back(&second).await;
        assert_ne!(client.reply().await.sid, client.reply.sid);
    }
}

#[tokio::test]
async fn a_namespace_without_recovery_sends_no_offsets() {
    let namespace = main_namespace().journal(JournalLimits::default());
    let (server, _sockets) = node_of(namespace, None).await;
    let mut client = WebSocket::connect(server.address).await;
    let delivery = server.io.emit("n", 1).await.unwrap();
    assert!(delivery.position.is_some());
    assert_eq!(client.text().await, r#"42["n",1]"#);
    // Volatile events are not stored.
    let delivery = server.io.of("/").volatile().emit("n", 2).await.unwrap();
    assert_eq!((delivery.position, delivery.local_sockets), (None, 1));
}

fn at_least_once() -> Namespace {
    main_namespace().recovery(Recovery {
        at_least_once: true,
        ..Recovery::default()
    })
}

/// Emits a number at least once.
async fn emit(server: &TestServer, rooms: &[&str], number: u64) {
    let emitting = server.io.to(rooms).at_least_once().emit("n", number);
    emitting.await.unwrap();
}

/// Waits until so many events have had this outcome.
async fn had_outcome(server: &TestServer, outcome: &str, count: u64) {
    let series = format!("roomcast_at_least_once_total{{outcome=\"{outcome}\"}}");
    eventually(&series, || server.metric(&series) == count).await;
}

#[tokio::test]
async fn what_a_client_has_not_acknowledged_is_sent_again_on_another_node() {
    let bus = MemoryBus::new();
    let (first, mut sockets) = node_of(at_least_once(), Some(&bus)).await;
    let (second, mut others) = node_of(at_least_once(), Some(&bus)).await;
    let (mut client, socket) = connect(&first, &mut sockets).await;
    socket.join(["news", "left"]).unwrap();
    emit(&second, &["news"], 1).await;
    first.io.emit("n", 2).await.unwrap();
    emit(&first, &["left"], 3).await;
    emit(&first, &["news"], 4).await;
    emit(&second, &[], 5).await;
    first.io.emit("n", 6).await.unwrap();
    assert_eq!(client.numbers(6).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(client.acks.len(), 4);
    client.acknowledge(&[0, 3]).await;
    had_outcome(&first, "acknowledged", 2).await;
    // It was in the room when it received the event.
    socket.leave("left");
    client.lose(&socket).await;
    is_written(&first).await;
    emit(&first, &["news"], 7).await;
    emit(&first, &["left"], 8).await;
    first.io.emit("n", 9).await.unwrap();
    // A handler of the former connection is done before the client has come back.
    let late = format!("43{}[]", client.acks[0]);
    let mut stream = WebSocket::open(second.address).await;
    stream.send(&late).await;
    stream.send(&format!("40{}", client.auth())).await;
    client.stream = Some(stream);
    assert_eq!(client.numbers(4).await, [3, 4, 7, 9]);
    assert_eq!(client.reply().await, client.reply);
    let socket = others.next().await;
    had_outcome(&second, "resent", 3).await;
    // The first two ids are those of the events as they were sent at first.
    assert_eq!(client.acks[..2], client.acks[2..4]);
    // One for each of the events: the other ones come too late.
    client.acknowledge(&[0, 1, 2, 3, 4]).await;
    had_outcome(&second, "acknowledged", 3).await;
    client.lose(&socket).await;
    is_written(&second).await;
    client.come_back(&first).await;
    assert_eq!(client.reply().await, client.reply);
    emit(&second, &["news"], 10).await;
    assert_eq!(client.numbers(1).await, [10]);
}

#[tokio::test]
async fn a_client_that_receives_nothing_but_what_it_acknowledges_comes_back() {
    let (server, mut sockets) = node_of(at_least_once(), None).await;
    let mut client = Client::connect(&server).await;
    for round in 0..3 {
        let socket = sockets.next().await;
        assert_eq!(socket.recovered(), round > 0);
        emit(&server, &[], round).await;
        assert_eq!(client.numbers(1).await, [round]);
        client.acknowledge(&[0]).await;
        had_outcome(&server, "acknowledged", round + 1).await;
        client.lose(&socket).await;
        client.come_back(&server).await;
        assert_eq!(client.reply().await, client.reply);
    }
    assert_eq!(client.offset, None);
    had_outcome(&server, "resent", 0).await;
}

#[tokio::test]
async fn a_client_cannot_come_back_if_what_it_has_to_acknowledge_is_not_kept() {
    let limits = JournalLimits {
        messages: 10,
        ..JournalLimits::default()
    };
    let (server, mut sockets) = node_of(at_least_once().journal(limits), None).await;
    let (mut client, socket) = connect(&server, &mut sockets).await;
    emit(&server, &[], 0).await;
    client.numbers(1).await;
    // The node keeps some in memory, and so many not.
    for number in 1..4200 {
        server.io.emit("n", number).await.unwrap();
    }
    client.numbers(4199).await;
    client.lose(&socket).await;
    client.come_back(&server).await;
    assert_ne!(client.reply().await.sid, client.reply.sid);
    counts(&server, "incomplete", 1).await;
    had_outcome(&server, "unrecovered", 1).await;
}

#[tokio::test]
async fn events_that_nobody_will_acknowledge_are_counted() {
    let namespace = main_namespace().recovery(Recovery {
        at_least_once: true,
        max_disconnection: std::time::Duration::from_millis(1),
        ..Recovery::default()
    });
    let (server, mut sockets) = node_of(namespace, None).await;
    let mut lost = Client::connect(&server).await;
    sockets.next().await;
    emit(&server, &[], 1).await;
    lost.numbers(1).await;
    lost.reset();
    had_outcome(&server, "expired", 1).await;
    let mut dismissed = Client::connect(&server).await;
    let socket = sockets.next().await;
    emit(&server, &[], 2).await;
    dismissed.numbers(1).await;
    socket.disconnect(true);
    had_outcome(&server, "ended", 1).await;
}

#[tokio::test]
async fn an_event_that_cannot_be_emitted_at_least_once_is_an_error_that_names_the_reason() {
    let (server, _sockets) = node_of(recovering(), None).await;
    let error = server.io.of("/").at_least_once().emit("n", 1).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "cannot be emitted at least once: the namespace needs recovery with `at_least_once` turned on"
    );
    let (server, _sockets) = node_of(at_least_once(), None).await;
    let all = || server.io.of("/").at_least_once();
    for unstored in [all().volatile(), all().local()] {
        let error = unstored.emit("n", 1).await.unwrap_err();
        assert!(matches!(error, EmitError::AtLeastOnce(_)), "{error}");
    }
    let awaited = all().emit_with_ack::<()>("n", 1).await.unwrap_err();
    assert!(matches!(awaited, AckError::Emit(EmitError::AtLeastOnce(_))));
    let published = all().to("room").publish("n", 1).await.unwrap_err();
    assert!(matches!(
        published,
        PublishError::Emit(EmitError::AtLeastOnce(_))
    ));
}
