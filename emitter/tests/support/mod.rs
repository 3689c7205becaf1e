//! Servers for tests: Redis alone, with a Sentinel, and as a cluster, on free ports and each with a
//! directory of its own. Dropping one ends it.
//!
//! Other crates' tests include this file by its path.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test uses a part of it"
)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the function returns something.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = f() {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Fails unless a value has a form, and shows the value.
macro_rules! assert_matches {
    ($value:expr, $pattern:pat $(if $guard:expr)?) => {
        match &$value {
            $pattern $(if $guard)? => {}
            other => panic!("{other:?}"),
        }
    };
}
pub(crate) use assert_matches;

/// A directory that is removed when it is dropped.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("roomcast-redis-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A port that is free at the moment. It lies below those of outgoing connections, one of which could
/// take it while its server is away.
pub(crate) fn free_port() -> u16 {
    let random = (RandomState::new().build_hasher().finish() % 2_700) as u16;
    (0..2_700)
        .map(|offset| 30_000 + (random + offset) % 2_700)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one of 2,700 ports is free")
}

/// One Redis server or Sentinel.
pub(crate) struct Redis {
    child: Child,
    args: Vec<String>,
    password: Option<String>,
    pub(crate) port: u16,
    pub(crate) directory: Directory,
}

impl Redis {
    /// A server with default settings, without persistence.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// A server with more options, as on its command line. One of a cluster gets a port for the
    /// cluster's bus.
    pub(crate) fn with(options: &[&str]) -> Self {
        Self::launch(|_| options.iter().copied().map(str::to_owned).collect())
    }

    /// A Sentinel that watches the primary as `mymaster`, and is quick about it.
    pub(crate) fn sentinel(primary: u16, more: &str) -> Self {
        Self::launch(|directory| {
            let config = directory.file("sentinel.conf");
            let text = format!(
                "sentinel monitor mymaster 127.0.0.1 {primary} 1\n\
                 sentinel down-after-milliseconds mymaster 1000\n\
                 sentinel failover-timeout mymaster 3000\n{more}\n"
            );
            fs::write(&config, text).unwrap();
            vec![config, "--sentinel".to_owned()]
        })
    }

    fn launch(options: impl Fn(&Directory) -> Vec<String>) -> Self {
        // Another process may take the port before the server does.
        for _ in 0..10 {
            let directory = Directory::new();
            let port = free_port();
            let mut args = options(&directory);
            args.extend(["--port".into(), port.to_string()]);
            args.extend(["--dir".into(), directory.0.to_str().unwrap().into()]);
            args.extend(["--bind", "127.0.0.1"].map(str::to_owned));
            if !args.iter().any(|arg| arg == "--sentinel") {
                args.extend(["--save", "", "--appendonly", "no"].map(str::to_owned));
            }
            if args.iter().any(|arg| arg == "--cluster-enabled") {
                args.extend(["--cluster-port".into(), free_port().to_string()]);
            }
            let password = args.iter().position(|arg| arg == "--requirepass");
            let mut server = Self {
                child: spawn(&args),
                password: password.map(|at| args[at + 1].clone()),
                args,
                port,
                directory,
            };
            if server.is_ready() {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    /// False if it ends instead, because another server has the port.
    fn is_ready(&mut self) -> bool {
        let own = format!("process_id:{}\r", self.child.id());
        until("a server that answers", || {
            if self.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            self.try_command(&["INFO", "server"])
                // A Sentinel's password is not known here.
                .is_some_and(|reply| reply.contains(&own) || reply.starts_with("-NOAUTH"))
                .then_some(true)
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The server's reply, as bytes on the wire.
    #[track_caller]
    pub(crate) fn command(&self, args: &[&str]) -> String {
        let reply = self.try_command(args).expect("the server answers");
        assert!(!reply.starts_with('-'), "{args:?}: {reply}");
        reply
    }

    /// The same, also if it is an error. `None` if the server is not there.
    pub(crate) fn try_command(&self, args: &[&str]) -> Option<String> {
        let mut connection = Plain::connect(self).ok()?;
        if let Some(password) = &self.password {
            connection.send(&["AUTH", password]).ok()?;
            connection.reply().ok()?;
        }
        connection.send(args).ok()?;
        let reply = connection.reply().ok()?;
        Some(String::from_utf8_lossy(&reply).into_owned())
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after a kill, on the same port.
    pub(crate) fn restart(&mut self) {
        until("a server on the port of before", || {
            self.child = spawn(&self.args);
            self.is_ready().then_some(())
        });
    }

    /// Stops the process until it is resumed.
    pub(crate) fn suspend(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args([signal, &pid]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(args: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    let command = command.args(args).stdin(Stdio::null());
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command
        .spawn()
        .unwrap_or_else(|error| panic!("redis-server: {error}"))
}

/// A cluster of primaries without replicas.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Redis>,
}

impl Cluster {
    pub(crate) fn start(size: usize) -> Self {
        let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "3000"];
        let cluster = Self {
            nodes: (0..size).map(|_| Redis::with(&options)).collect(),
        };
        let addresses: Vec<_> = cluster.nodes.iter().map(Redis::address).collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(&addresses);
        let made = create.arg("--cluster-yes").output().unwrap();
        let said = String::from_utf8_lossy(&made.stdout);
        assert!(made.status.success(), "{said}");
        cluster.until_ok();
        cluster
    }

    pub(crate) fn until_ok(&self) {
        until("a cluster that serves", || {
            let is_ok = |node: &Redis| {
                let info = node.try_command(&["CLUSTER", "INFO"]);
                info.is_some_and(|info| {
                    info.contains("cluster_state:ok")
                        && info.contains(&format!("cluster_known_nodes:{}", self.nodes.len()))
                })
            };
            self.nodes.iter().all(is_ok).then_some(())
        });
    }

    pub(crate) fn url(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().map(Redis::address).collect();
        format!("redis+cluster://{}", addresses.join(","))
    }

    /// The index of the node that serves the slot of a name.
    pub(crate) fn owner(&self, name: &str) -> usize {
        let is_owner = |node: &Redis| {
            let reply = node.try_command(&["SPUBLISH", name, ""]).unwrap();
            reply.starts_with(':')
        };
        let owner = self.nodes.iter().position(is_owner);
        owner.expect("every slot has an owner")
    }

    pub(crate) fn id(&self, node: usize) -> String {
        let reply = self.nodes[node].command(&["CLUSTER", "MYID"]);
        reply.lines().nth(1).unwrap().to_owned()
    }

    /// The slot of a name, from a server.
    pub(crate) fn slot(&self, name: &str) -> String {
        let reply = self.nodes[0].command(&["CLUSTER", "KEYSLOT", name]);
        reply
            .lines()
            .next()
            .unwrap()
            .trim_start_matches(':')
            .to_owned()
    }

    /// Gives a slot another owner, as a reshard does.
    pub(crate) fn move_slot(&self, slot: &str, from: usize, to: usize) {
        let set = |node: usize, state, other| {
            self.nodes[node].command(&["CLUSTER", "SETSLOT", slot, state, &self.id(other)]);
        };
        set(to, "IMPORTING", from);
        set(from, "MIGRATING", to);
        set(to, "NODE", to);
        set(from, "NODE", to);
    }
}

/// A connection that waits for each reply.
pub(crate) struct Plain {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Plain {
    pub(crate) fn connect(server: &Redis) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", server.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// The bytes of the reply to a command.
    #[track_caller]
    pub(crate) fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Vec<u8> {
        self.send(args).unwrap();
        self.reply().expect("the server answers")
    }

    fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> std::io::Result<()> {
        self.stream.write_all(&command_bytes(args))
    }

    /// The bytes of the next reply.
    pub(crate) fn reply(&mut self) -> std::io::Result<Vec<u8>> {
        loop {
            if let Some(length) = reply_length(&self.buffer) {
                return Ok(self.buffer.drain(..length).collect());
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => self.buffer.extend_from_slice(&bytes[..read]),
            }
        }
    }
}

/// A command as it is written.
pub(crate) fn command_bytes<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        bytes.extend(format!("${}\r\n", arg.len()).bytes());
        bytes.extend([arg, b"\r\n"].concat());
    }
    bytes
}

/// The length of the first reply, once all of it is there.
pub(crate) fn reply_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let number = || std::str::from_utf8(&bytes[1..line - 2]).unwrap().parse();
    let elements: usize = match bytes[0] {
        b'$' => {
            // The missing string has no second line.
            let length = number().map_or(line, |length: usize| line + length + 2);
            return (length <= bytes.len()).then_some(length);
        }
        b'*' | b'>' => number().unwrap_or(0),
        _ => 0,
    };
    (0..elements).try_fold(line, |length, _| {
        Some(length + reply_length(&bytes[length..])?)
    })
}

/// A subscribed connection.
pub(crate) struct Listener(Plain);

impl Listener {
    /// Is subscribed when this returns.
    pub(crate) fn start(server: &Redis, command: &str, channel: &str) -> Self {
        let mut connection = Plain::connect(server).unwrap();
        let reply = connection.command(&[command, channel]);
        assert!(reply.starts_with(b"*3"), "{}", reply.escape_ascii());
        Self(connection)
    }

    /// The payload of the next message.
    pub(crate) fn next(&mut self) -> String {
        let message = self.0.reply().unwrap();
        // A list of three strings, each behind a line with its length.
        let mut rest = &message[4..];
        for _ in 0..2 {
            rest = &rest[reply_length(rest).unwrap()..];
        }
        let start = rest.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
        String::from_utf8(rest[start..rest.len() - 2].to_vec()).unwrap()
    }
}

/// An authority and a certificate for 127.0.0.1, as PEM files.
pub(crate) struct Certificates {
    pub(crate) directory: Directory,
}

impl Certificates {
    pub(crate) fn make() -> Self {
        let directory = Directory::new();
        let openssl = |args: &str| {
            let args = args.split(' ').filter(|arg| !arg.is_empty());
            let mut command = Command::new("openssl");
            let command = command.current_dir(directory.path()).args(args);
            let made = command.output().unwrap();
            assert!(
                made.status.success(),
                "{}",
                String::from_utf8_lossy(&made.stderr)
            );
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!(
            "req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"
        ));
        openssl(&format!(
            "req {key} -keyout server.key -out server.csr -subj /CN=server"
        ));
        fs::write(directory.file("san.txt"), "subjectAltName=IP:127.0.0.1").unwrap();
        openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
             -out server.pem -days 2 -extfile san.txt",
        );
        Self { directory }
    }

    /// A server with these files, and the port on which it takes TLS.
    pub(crate) fn redis(&self, options: &[&str]) -> (Redis, u16) {
        let port = free_port();
        let [ca, cert, key] = ["ca.pem", "server.pem", "server.key"].map(|name| self.file(name));
        let files = ["--tls-ca-cert-file", &ca, "--tls-cert-file", &cert];
        let more = ["--tls-key-file", &key, "--tls-port", &port.to_string()];
        (Redis::with(&[&files[..], &more, options].concat()), port)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.directory.file(name)
    }
}
