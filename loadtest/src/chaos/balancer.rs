//! HAProxy in front of the nodes: plain round robin over those whose `/readyz` is 200, without a cookie. Each
//! request of a polling client may reach another node.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::stage::{Addresses, Process, command};

pub(super) struct Balancer {
    process: Process,
    pub(super) address: SocketAddr,
    /// The socket of its runtime API.
    control: PathBuf,
}

impl Balancer {
    pub(super) fn start(folder: &Path, nodes: &[Addresses]) -> anyhow::Result<Self> {
        let control = folder.join("haproxy.sock");
        let settings = folder.join("haproxy.cfg");
        let start = |address: SocketAddr| {
            fs::write(&settings, configuration(address, &control, nodes))?;
            let mut haproxy = command("haproxy");
            haproxy.args(["-db", "-f"]).arg(&settings);
            Ok(haproxy)
        };
        let log = folder.join("haproxy.log");
        let is_there = |address: SocketAddr| TcpStream::connect(address).is_ok();
        let (process, address) = Process::listen("HAProxy", &log, start, is_there)?;
        Ok(Self {
            process,
            address,
            control,
        })
    }

    /// A node has been started at other addresses.
    pub(super) fn node_moved(&mut self, node: usize, to: Addresses) -> anyhow::Result<()> {
        if self.process.has_ended()? {
            bail!("HAProxy has ended");
        }
        let server = format!("nodes/node{}", node + 1);
        let (ip, port) = (to.clients.ip(), to.clients.port());
        let commands = format!(
            "set server {server} addr {ip} port {port}; set server {server} check-port {}\n",
            to.internal.port()
        );
        let mut stream = UnixStream::connect(&self.control).context("HAProxy's runtime API")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(commands.as_bytes())?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(())
    }
}

fn configuration(address: SocketAddr, control: &Path, nodes: &[Addresses]) -> String {
    let mut text = format!(
        "global\n  stats socket unix@{} level admin\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
         timeout http-keep-alive 60s\n  timeout tunnel 1h\n  timeout client-fin 10s\n  timeout check 2s\n  \
         retries 2\n  option redispatch 1\n  retry-on conn-failure empty-response 503\n\
         frontend clients\n  bind {address}\n  default_backend nodes\n\
         backend nodes\n  balance roundrobin\n  http-response set-header X-Node %s\n  http-request disable-l7-retry if METH_POST\n  \
         option httpchk GET /readyz\n  http-check expect status 200\n  \
         default-server inter 250ms fall 1 rise 1\n",
        control.display()
    );
    for (index, node) in nodes.iter().enumerate() {
        let (clients, internal) = (node.clients, node.internal.port());
        let line = format!(
            "  server node{} {clients} check port {internal}\n",
            index + 1
        );
        text.push_str(&line);
    }
    text
}

const PATIENCE: Duration = Duration::from_secs(5);
