//! The cost of a delivery and of an idle connection: clients of Socket.IO, plain WebSockets, and tungstenite
//! through axum with a task and a queue for each connection.
//!
//! ```text
//! roomcast-plain-figures [CONNECTIONS [BROADCASTS]]      default: 1000 1200
//! ```
//!
//! Runs the kinds one after the other. Each has a server of its own, a process with one worker and the
//! allocator of the program. The clients only read. Linux.

use std::{env, error::Error, fs, process::Stdio, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::ws::{Message, WebSocket, WebSocketUpgrade},
    routing::get,
};
use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use roomcast::{
    Namespace, Server, Socket,
    plain::{Event, Form, Heartbeat, Open},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::{Mutex, mpsc},
    time::sleep,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// The kinds of connections, with the path at which the server has them.
const KINDS: [(&str, &str); 3] = [
    ("socket.io", "/socket.io/?EIO=4&transport=websocket"),
    ("plain", "/plain"),
    ("tungstenite", "/tungstenite"),
];

/// The time between two broadcasts, in which all clients receive the first.
const PAUSE: Duration = Duration::from_millis(8);

/// The unit of CPU times in `/proc`.
const TICKS_PER_SECOND: f64 = 100.0;

/// The bytes of a broadcast's only argument.
const TEXT_BYTES: usize = 128;

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [role, kind, connections, broadcasts] = &args[..]
        && role == "server"
    {
        return serve(kind, connections.parse()?, broadcasts.parse()?).await;
    }
    let number = |at: usize, default| args.get(at).map_or(Ok(default), |text| text.parse());
    let (connections, broadcasts) = (number(0, 1000)?, number(1, 1200)?);
    println!("kind         CPU per delivery, µs   bytes idle   after traffic");
    for (kind, path) in KINDS {
        measure(kind, path, connections, broadcasts).await?;
    }
    Ok(())
}

/// The bytes that a client of Socket.IO receives, so that all kinds carry the same.
struct SameBytes;

impl Form for SameBytes {
    fn event(&self, event: &Event<'_>, out: &mut Vec<u8>) {
        let rest = &event.args[1..];
        out.extend_from_slice(format!("42[\"{}\",{rest}", event.name).as_bytes());
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::Ping
    }
}

/// The queues of the connections that axum has opened.
type Queues = Arc<Mutex<Vec<mpsc::Sender<Message>>>>;

async fn serve(kind: &str, connections: usize, broadcasts: usize) -> Result<()> {
    let namespace = Namespace::new("/").on_connect(async |socket: Socket| socket.join("room"));
    let io = Server::builder().namespace(namespace).build().await?;
    let queues = Queues::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let before = resident_bytes()?;
    println!("{}", listener.local_addr()?);
    let app = routes(&io, &queues);
    tokio::spawn(io.serve(listener, app).into_future());
    let is_tungstenite = kind == "tungstenite";
    loop {
        let open = match is_tungstenite {
            true => queues.lock().await.len(),
            false => io.connections(),
        };
        if open >= connections {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_millis(1500)).await;
    let each = |bytes: f64| (bytes - before) / connections as f64;
    let idle = each(resident_bytes()?);
    let text = "x".repeat(TEXT_BYTES);
    let began = cpu_seconds()?;
    for _ in 0..broadcasts {
        if is_tungstenite {
            let message = Message::text(format!("42[\"m\",\"{text}\"]"));
            for queue in queues.lock().await.iter() {
                queue.try_send(message.clone())?;
            }
        } else {
            io.to("room").emit("m", &text).await?;
        }
        sleep(PAUSE).await;
    }
    sleep(Duration::from_millis(500)).await;
    let cost = (cpu_seconds()? - began) * 1e6 / (broadcasts * connections) as f64;
    let after = each(resident_bytes()?);
    println!("{kind:<12} {cost:>20.2} {idle:>12.0} {after:>15.0}");
    Ok(())
}

fn routes(io: &Server, queues: &Queues) -> Router {
    let form: Arc<dyn Form> = Arc::new(SameBytes);
    let (server, queues) = (io.clone(), Arc::clone(queues));
    let plain = move |request: Request<Body>| async move {
        let open = Open {
            namespace: "/".into(),
            auth: None,
            form,
        };
        let opening = server.open_websocket(request, open, |_| async {}, |_, _| async {});
        opening.await.map_err(|error| error.status)
    };
    let tungstenite = move |upgrade: WebSocketUpgrade| async move {
        upgrade.on_upgrade(move |socket| carry(socket, queues))
    };
    let router = io.router().route("/plain", get(plain));
    router.route("/tungstenite", get(tungstenite))
}

/// The task of a connection of axum: what has gathered in its queue leaves with one flush.
async fn carry(socket: WebSocket, queues: Queues) {
    let (sender, mut queue) = mpsc::channel(1024);
    queues.lock().await.push(sender);
    let (mut writer, mut reader) = socket.split();
    loop {
        tokio::select! {
            message = queue.recv() => {
                let Some(mut message) = message else { return };
                loop {
                    if writer.feed(message).await.is_err() {
                        return;
                    }
                    let Ok(next) = queue.try_recv() else { break };
                    message = next;
                }
                if writer.flush().await.is_err() {
                    return;
                }
            }
            received = reader.next() => if !matches!(received, Some(Ok(_))) { return },
        }
    }
}

/// Starts the server of a kind, opens its connections, and prints its line.
async fn measure(kind: &str, path: &str, connections: usize, broadcasts: usize) -> Result<()> {
    const GONE: &str = "the server has ended";
    let mut server = Command::new(env::current_exe()?)
        .args([
            "server",
            kind,
            &connections.to_string(),
            &broadcasts.to_string(),
        ])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(server.stdout.take().ok_or(GONE)?).lines();
    let address = lines.next_line().await?.ok_or(GONE)?;
    for _ in 0..connections {
        let mut stream = TcpStream::connect(&address).await?;
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut buffer = vec![0; 2048];
        let count = stream.read(&mut buffer).await?;
        if !buffer[..count].starts_with(b"HTTP/1.1 101") {
            return Err(String::from_utf8_lossy(&buffer[..count]).into());
        }
        if kind == "socket.io" {
            // The packet `40` in a masked frame.
            stream
                .write_all(&[0x81, 0x82, 0, 0, 0, 0, b'4', b'0'])
                .await?;
        }
        tokio::spawn(async move {
            while matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {}
        });
    }
    println!("{}", lines.next_line().await?.ok_or(GONE)?);
    Ok(())
}

fn cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let mut ticks = 0.0;
    for field in fields.split_whitespace().skip(11).take(2) {
        ticks += field.parse::<f64>()?;
    }
    Ok(ticks / TICKS_PER_SECOND)
}

fn resident_bytes() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.ok_or("no VmRSS in /proc/self/status")?.parse::<f64>()? * 1024.0)
}
