//! Order: what one sender says arrives once and in the order in which it was said, whatever others
//! do meanwhile, and whatever transport the receiver uses or is changing to.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use roomcast::{Handshake, Limits, Namespace, Refused, Server, Socket};
use support::{Gate, Polling, TestServer, WebSocket, eventually, websocket, within};
use tokio::{io::AsyncWriteExt as _, task};

/// Messages of each sender.
const MESSAGES: usize = 150;

/// Senders of each kind: tasks of the server, and clients whose handler broadcasts.
const SENDERS: usize = 4;

/// What every receiver gets.
const TOTAL: usize = 2 * SENDERS * MESSAGES;

/// Receivers of each kind.
const RECEIVERS: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_receiver_gets_each_sender_in_order_with_one_worker() {
    assert_order(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_receiver_gets_each_sender_in_order_with_one_lane() {
    assert_order(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_receiver_gets_each_sender_in_order_with_four_lanes() {
    assert_order(4).await;
}

/// How far the test is, for those who wait for each other.
#[derive(Default)]
struct Progress {
    upgrading: AtomicUsize,
    over: AtomicBool,
}

async fn assert_order(lanes: usize) {
    let server = Arc::new(serve(lanes).await);
    let progress = Arc::new(Progress::default());
    let mut receivers = Vec::new();
    for _ in 0..RECEIVERS {
        let socket = WebSocket::connect(server.address).await;
        receivers.push(task::spawn(receive(socket, Ledger::default())));
        let polling = Polling::connect(server.address).await;
        receivers.push(task::spawn(poll(polling)));
        let polling = Polling::connect(server.address).await;
        receivers.push(task::spawn(upgrade(polling, Arc::clone(&progress))));
    }
    let churn: Vec<_> = (0..3)
        .map(|_| task::spawn(come_and_go(Arc::clone(&server), Arc::clone(&progress))))
        .collect();
    let mut senders = Vec::new();
    for n in 0..SENDERS {
        let (server, progress) = (Arc::clone(&server), Arc::clone(&progress));
        senders.push(task::spawn(say_from_server(n, server, progress)));
    }
    for n in SENDERS..2 * SENDERS {
        let client = WebSocket::connect(server.address).await;
        senders.push(task::spawn(say_from_client(
            n,
            client,
            Arc::clone(&progress),
        )));
    }
    for sender in senders {
        within("everything is said", sender).await.unwrap();
    }
    server.io.to("all").emit("end", ()).await.unwrap();
    for receiver in receivers {
        within("everything is heard", receiver).await.unwrap();
    }
    progress.over.store(true, Ordering::SeqCst);
    for task in churn {
        within("nobody comes any more", task).await.unwrap();
    }
}

async fn serve(lanes: usize) -> TestServer {
    let namespace = Namespace::new("/")
        .on_connect(async |socket: Socket| socket.join("all"))
        .on(
            "say",
            async |socket: Socket, (sender, n): (usize, usize)| {
                let all = socket.namespace().to("all");
                all.emit("said", (sender, n)).await
            },
        )
        .on("leave", async |socket: Socket| socket.leave("all"));
    let limits = Limits {
        outbox_bytes: 16 << 20,
        ..Limits::default()
    };
    let builder = Server::builder().namespace(namespace).limits(limits);
    TestServer::start(builder.lanes(lanes)).await
}

async fn say_from_server(sender: usize, server: Arc<TestServer>, progress: Arc<Progress>) {
    for n in 0..MESSAGES {
        wait_for_upgrades(n, &progress).await;
        let all = server.io.to("all");
        all.emit("said", (sender, n)).await.unwrap();
        task::yield_now().await;
    }
}

async fn say_from_client(sender: usize, mut client: WebSocket, progress: Arc<Progress>) {
    client.send(r#"420["leave"]"#).await;
    while !client.text().await.starts_with("430[") {}
    for n in 0..MESSAGES {
        wait_for_upgrades(n, &progress).await;
        // Some alone, some several in one segment.
        client.send(&format!(r#"42{n}["say",{sender},{n}]"#)).await;
        if n % 8 == 0 || n + 1 == MESSAGES {
            let acknowledged = format!("43{n}[");
            while !client.text().await.starts_with(&acknowledged) {}
        }
    }
}

/// Half of everything is said after the last client has begun to upgrade, and before it has ended.
async fn wait_for_upgrades(n: usize, progress: &Progress) {
    if n == MESSAGES / 2 {
        eventually("all upgrades begin", || {
            progress.upgrading.load(Ordering::SeqCst) == RECEIVERS
        })
        .await;
    }
}

/// What a receiver has heard of each sender.
#[derive(Default)]
struct Ledger {
    next: HashMap<usize, usize>,
    total: usize,
}

impl Ledger {
    /// Notes a packet; answers true with the last one.
    fn note(&mut self, packet: &str) -> bool {
        if packet == r#"42["end"]"# {
            assert_eq!(self.total, TOTAL, "the end comes after everything else");
            return true;
        }
        let said = packet.strip_prefix(r#"42["said","#).unwrap();
        let (sender, n) = said.strip_suffix(']').unwrap().split_once(',').unwrap();
        let next = self.next.entry(sender.parse().unwrap()).or_default();
        assert_eq!(n.parse::<usize>().unwrap(), *next, "of sender {sender}");
        *next += 1;
        self.total += 1;
        false
    }
}

async fn receive(mut socket: WebSocket, mut ledger: Ledger) {
    while !ledger.note(&socket.text().await) {}
}

async fn poll(mut polling: Polling) {
    let mut ledger = Ledger::default();
    while !ledger.note(&polling.packet().await) {}
}

/// Polls for a while, then moves to a WebSocket while messages come.
async fn upgrade(mut polling: Polling, progress: Arc<Progress>) {
    let mut ledger = Ledger::default();
    while ledger.total < TOTAL / 4 {
        assert!(!ledger.note(&polling.packet().await));
    }
    progress.upgrading.fetch_add(1, Ordering::SeqCst);
    let (socket, packets) = polling.upgrade().await;
    for packet in packets {
        assert!(!ledger.note(&packet));
    }
    receive(socket, ledger).await;
}

/// Joins and leaves the room in every way, so that it changes under the broadcasts.
async fn come_and_go(server: Arc<TestServer>, progress: Arc<Progress>) {
    for round in 0.. {
        if progress.over.load(Ordering::SeqCst) {
            return;
        }
        let mut socket = WebSocket::connect(server.address).await;
        match round % 4 {
            0 => socket.send(r#"42["leave"]"#).await,
            1 => socket.send("41").await,
            2 => socket.reset(),
            _ => drop(Polling::connect(server.address).await.upgrade().await),
        }
    }
}

/// What a handler sends before it returns comes before its acknowledgement, and after those of
/// earlier events, however much is read at once and said by others meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn acks_and_emits_arrive_in_the_order_of_the_handlers() {
    const EVENTS: usize = 400;
    let server = Arc::new(serve_mixed().await);
    let mut socket = WebSocket::connect(server.address).await;
    let mut polling = Polling::connect(server.address).await;
    let over = Gate::new();
    let noise = task::spawn({
        let (server, over) = (Arc::clone(&server), over.clone());
        async move {
            let noise = async {
                loop {
                    server.io.emit("noise", ()).await.unwrap();
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
            };
            tokio::select! {
                () = over.pass() => {}
                () = noise => {}
            }
        }
    });
    let mut packets = Vec::new();
    let mut expected = Vec::new();
    for n in 0..EVENTS {
        let event = ["ack", "emit", "cast"][n % 3];
        packets.push(format!(r#"42{n}["{event}",{n}]"#));
        if event != "ack" {
            expected.push(format!(r#"42["{event}",{n}]"#));
        }
        expected.push(format!("43{n}[{n}]"));
    }
    let frames = packets
        .iter()
        .map(|p| websocket::frame(true, 1, p.as_bytes()));
    let frames: Vec<u8> = frames.flatten().collect();
    socket.stream.write_all(&frames).await.unwrap();
    polling.say(&packets.join("\u{1e}")).await;
    for expected in &expected {
        let mut heard = socket.text().await;
        while heard == NOISE {
            heard = socket.text().await;
        }
        assert_eq!(heard, *expected);
    }
    for expected in &expected {
        let mut heard = polling.packet().await;
        while heard == NOISE {
            heard = polling.packet().await;
        }
        assert_eq!(heard, *expected);
    }
    over.open();
    noise.await.unwrap();
}

const NOISE: &str = r#"42["noise"]"#;

async fn serve_mixed() -> TestServer {
    let namespace = Namespace::new("/")
        .on("ack", async |_: Socket, n: usize| n)
        .on("emit", async |socket: Socket, n: usize| {
            socket.emit("emit", n).unwrap();
            n
        })
        .on("cast", async |socket: Socket, n: usize| {
            let own = socket.namespace().to(socket.id());
            own.emit("cast", n).await.unwrap();
            n
        });
    let builder = Server::builder().namespace(namespace);
    TestServer::start(builder.lanes(4)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_event_right_after_the_connect_reply_finds_its_handler_with_one_worker() {
    assert_handlers_are_found(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_event_right_after_the_connect_reply_finds_its_handler_with_many() {
    assert_handlers_are_found(4).await;
}

/// Whoever is let in finds everything in its place, however long the application took before, and
/// also while its handler of the connect still runs.
async fn assert_handlers_are_found(lanes: usize) {
    const CONNECTIONS: usize = 2_000;
    const AT_ONCE: usize = 50;
    let namespace = Namespace::new("/")
        .authorize(async |_: Handshake| -> Result<usize, Refused> {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(7)
        })
        .on_connect(async |socket: Socket| {
            task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            socket.join("late")
        })
        .on("what", async |socket: Socket, n: usize| {
            n + *socket.data::<usize>().unwrap()
        });
    let server = TestServer::start(Server::builder().namespace(namespace).lanes(lanes)).await;
    let address = server.address;
    let client = |index: usize| async move {
        for n in (index..CONNECTIONS).step_by(AT_ONCE) {
            let asked = format!(r#"420["what",{n}]"#);
            let answer = format!("430[{}]", n + 7);
            if n % 10 == 0 {
                let mut client = Polling::connect(address).await;
                client.say(&asked).await;
                assert_eq!(client.packet().await, answer);
            } else {
                let mut client = WebSocket::connect(address).await;
                client.send(&asked).await;
                assert_eq!(client.text().await, answer);
            }
        }
    };
    join_all((0..AT_ONCE).map(client)).await;
    assert_eq!(server.metric("roomcast_events_received_total"), 2_000);
    assert_eq!(server.metric("roomcast_events_unhandled_total"), 0);
}
