//! A TCP proxy in front of a server, which can cut, refuse and go dead.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use tokio::{
    io,
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
};

use crate::server::wait_until;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Forwarding,
    /// Connections are open and carry nothing.
    Dead,
    /// Connections are closed, new ones at once.
    Refusing,
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    /// The port that new connections go to.
    target: Arc<AtomicU16>,
    mode: Arc<watch::Sender<Mode>>,
    /// Connections that carry something.
    forwarding: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) fn start(runtime: &Runtime, to: u16) -> Self {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(watch::Sender::new(Mode::Forwarding));
        let modes = Arc::clone(&mode);
        let forwarding = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&forwarding);
        let target = Arc::new(AtomicU16::new(to));
        let to = Arc::clone(&target);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let to = to.load(Ordering::SeqCst);
                tokio::spawn(forward(stream, to, modes.subscribe(), Arc::clone(&count)));
            }
        });
        Self {
            address,
            target,
            mode,
            forwarding,
        }
    }

    /// When this returns, existing connections are as the mode says.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
        if mode != Mode::Forwarding {
            let forwarding = || self.forwarding.load(Ordering::SeqCst);
            wait_until("the proxy stops forwarding", || forwarding() == 0);
        }
    }

    /// New connections go to another server from now on.
    pub(crate) fn point_to(&self, port: u16) {
        self.target.store(port, Ordering::SeqCst);
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

async fn forward(
    mut near: TcpStream,
    to: u16,
    mut modes: watch::Receiver<Mode>,
    forwarding: Arc<AtomicUsize>,
) {
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", to)).await else {
        return;
    };
    forwarding.fetch_add(1, Ordering::SeqCst);
    let is_over = tokio::select! {
        biased;
        _ = modes.wait_for(|mode| *mode != Mode::Forwarding) => false,
        _ = io::copy_bidirectional(&mut near, &mut far) => true,
    };
    forwarding.fetch_sub(1, Ordering::SeqCst);
    if is_over {
        return;
    }
    // A connection that was dead once stays so until it is closed.
    let _ = modes.wait_for(|mode| *mode == Mode::Refusing).await;
}
