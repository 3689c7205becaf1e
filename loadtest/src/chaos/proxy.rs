//! A TCP proxy between a node and Redis, which fails as networks do.
//!
//! ```text
//! node ──▶ up: cut after some bytes, swallowed, delayed ──▶ Redis
//!      ◀── down: swallowed, held, delayed               ◀──
//! ```
//!
//! Its port stays, and the address behind it may change, so a Redis that is started again needs no fixed port.
//! A thread for each direction of a connection; a node has a handful of them.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;

use super::lock;

/// How a connection treats its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Weather {
    #[default]
    Fair,
    /// Bytes vanish in both directions, and neither side is notified.
    HalfOpen,
    /// Bytes from Redis vanish; the other direction works.
    Deaf,
    /// Every piece is delayed, and some as if a packet had been sent again.
    Lossy,
    /// The connection is reset after this many more bytes of the node.
    CutAfter(usize),
}

/// Which connections of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    /// Those that have subscribed.
    Subscribers,
    /// Those that have not.
    Publishers,
}

pub(super) struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    behind: Mutex<SocketAddr>,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// The weather of connections to come.
    outlook: Mutex<Weather>,
    is_over: AtomicBool,
}

struct Connection {
    node: TcpStream,
    redis: TcpStream,
    weather: Mutex<Weather>,
    has_subscribed: AtomicBool,
    has_ended: AtomicBool,
}

impl Proxy {
    pub(super) fn start(behind: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a proxy")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            behind: Mutex::new(behind),
            connections: Mutex::default(),
            outlook: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        let listening = thread::spawn(move || own.listen(&listener));
        Ok(Self {
            shared,
            address,
            listening: Some(listening),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the address behind it for connections to come.
    pub(super) fn lead_to(&self, behind: SocketAddr) {
        *lock(&self.shared.behind) = behind;
    }

    /// Changes the weather of open connections. Returns how many these are.
    pub(super) fn set(&self, which: Which, weather: Weather) -> usize {
        if which == Which::All {
            *lock(&self.shared.outlook) = weather;
        }
        let mut count = 0;
        for connection in &*lock(&self.shared.connections) {
            let subscribes = connection.has_subscribed.load(Relaxed);
            let is_meant = match which {
                Which::All => true,
                Which::Subscribers => subscribes,
                Which::Publishers => !subscribes,
            };
            if is_meant && !connection.has_ended.load(Relaxed) {
                *lock(&connection.weather) = weather;
                count += 1;
            }
        }
        count
    }

    /// Resets a random connection.
    pub(super) fn reset_one(&self, random: &mut fastrand::Rng) {
        let connections = lock(&self.shared.connections);
        let open: Vec<_> = connections
            .iter()
            .filter(|connection| !connection.has_ended.load(Relaxed))
            .collect();
        if !open.is_empty() {
            open[random.usize(..open.len())].end();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Relaxed);
        // Wakes the thread that accepts; it ends all connections.
        drop(TcpStream::connect(self.address));
        if let Some(listening) = self.listening.take() {
            drop(listening.join());
        }
    }
}

impl Shared {
    fn listen(self: Arc<Self>, listener: &TcpListener) {
        for node in listener.incoming() {
            if self.is_over.load(Relaxed) {
                break;
            }
            let behind = *lock(&self.behind);
            // The node sees its connection closed, as if nothing listened.
            if let Some(connection) = node.ok().and_then(|node| self.open(node, behind)) {
                let mut connections = lock(&self.connections);
                connections.retain(|one| !one.has_ended.load(Relaxed));
                connections.push(Arc::clone(&connection));
                let up = Arc::clone(&connection);
                thread::spawn(move || up.carry(true));
                thread::spawn(move || connection.carry(false));
            }
        }
        for connection in &*lock(&self.connections) {
            connection.end();
        }
    }

    fn open(&self, node: TcpStream, behind: SocketAddr) -> Option<Arc<Connection>> {
        let redis = TcpStream::connect_timeout(&behind, Duration::from_secs(1)).ok()?;
        node.set_nodelay(true).ok()?;
        redis.set_nodelay(true).ok()?;
        Some(Arc::new(Connection {
            node,
            redis,
            weather: Mutex::new(*lock(&self.outlook)),
            has_subscribed: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        }))
    }
}

impl Connection {
    /// Carries one direction until the connection ends.
    fn carry(&self, is_up: bool) {
        let (mut from, mut to) = if is_up {
            (&self.node, &self.redis)
        } else {
            (&self.redis, &self.node)
        };
        let mut random = super::random();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let bytes = &buffer[..count];
            if is_up && !self.has_subscribed.load(Relaxed) && subscribes(bytes) {
                self.has_subscribed.store(true, Relaxed);
            }
            let (passed, goes_on) = self.treat(is_up, count, &mut random);
            if to.write_all(&bytes[..passed]).is_err() || !goes_on {
                break;
            }
        }
        // A connection that is half open gives no sign of its end, either.
        if *lock(&self.weather) == Weather::HalfOpen {
            return;
        }
        self.end();
    }

    /// Waits as the weather demands. Returns how many bytes to pass on, and whether others may follow.
    fn treat(&self, is_up: bool, count: usize, random: &mut fastrand::Rng) -> (usize, bool) {
        let mut weather = lock(&self.weather);
        match &mut *weather {
            Weather::Fair => (count, true),
            Weather::HalfOpen => (0, true),
            Weather::Deaf if is_up => (count, true),
            Weather::Deaf => (0, true),
            Weather::Lossy => {
                drop(weather);
                let is_lost = random.usize(..LOST_ONE_IN) == 0;
                let delay = if is_lost {
                    RETRANSMISSION_MS
                } else {
                    random.u64(..MOST_DELAY_MS)
                };
                thread::sleep(Duration::from_millis(delay));
                (count, true)
            }
            Weather::CutAfter(left) if is_up => {
                let passed = count.min(*left);
                *left -= passed;
                (passed, *left > 0)
            }
            Weather::CutAfter(_) => (count, true),
        }
    }

    fn end(&self) {
        self.has_ended.store(true, Relaxed);
        // The other side may have closed it already.
        drop(self.node.shutdown(Shutdown::Both));
        drop(self.redis.shutdown(Shutdown::Both));
    }
}

/// Whether these bytes of a client have a command that subscribes, or reads a stream as Node.js's streams adapter does.
fn subscribes(bytes: &[u8]) -> bool {
    let has = |word: &[u8]| {
        let mut parts = bytes.windows(word.len());
        parts.any(|part| part.eq_ignore_ascii_case(word))
    };
    has(b"SUBSCRIBE") || has(b"XREAD")
}

const MOST_DELAY_MS: u64 = 40;
const LOST_ONE_IN: usize = 50;
/// The initial timeout of a retransmission (RFC 6298), which is what a lost packet costs at most.
const RETRANSMISSION_MS: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection through a proxy, and its other end.
    fn pair() -> (Proxy, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
        let node = TcpStream::connect(proxy.address()).unwrap();
        let (redis, _) = listener.accept().unwrap();
        (proxy, node, redis)
    }

    fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Waits for the proxy's own thread.
    fn until(condition: impl Fn() -> bool) {
        while !condition() {
            thread::yield_now();
        }
    }

    #[test]
    fn bytes_pass_in_fair_weather_and_a_reset_ends_both_sides() {
        let (proxy, mut node, mut redis) = pair();
        node.write_all(b"ping").unwrap();
        assert_eq!(read(&mut redis, 4), b"ping");
        redis.write_all(b"pong").unwrap();
        assert_eq!(read(&mut node, 4), b"pong");
        proxy.reset_one(&mut fastrand::Rng::with_seed(1));
        assert_eq!(node.read(&mut [0]).unwrap(), 0);
        assert_eq!(redis.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_cut_comes_after_that_many_bytes() {
        let (proxy, mut node, mut redis) = pair();
        until(|| proxy.set(Which::All, Weather::CutAfter(3)) == 1);
        node.write_all(b"message").unwrap();
        let mut got = Vec::new();
        // Bytes that were not read make the end a reset.
        let _ = redis.read_to_end(&mut got);
        assert_eq!(got, b"mes");
    }

    #[test]
    fn only_subscribers_become_deaf() {
        let (proxy, mut node, mut redis) = pair();
        node.write_all(b"*2\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n")
            .unwrap();
        read(&mut redis, 26);
        assert_eq!(proxy.set(Which::Publishers, Weather::Deaf), 0);
        assert_eq!(proxy.set(Which::Subscribers, Weather::Deaf), 1);
        redis.write_all(b"lost").unwrap();
        node.write_all(b"up").unwrap();
        assert_eq!(read(&mut redis, 2), b"up");
    }
}
