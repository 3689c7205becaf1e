//! `roomcast drain`: has the node of this machine disconnect its clients and end, as SIGTERM does.
//!
//! It serves where a signal cannot be sent, such as a preStop hook in a container. The
//! request goes to the internal port. Only a process of the same machine may send it, see
//! `admin`.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use clap::Args;

use super::{admin::DRAIN_HEADER, values};

/// Time that the node has to respond. It needs no worker for it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The options of `roomcast drain`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DrainOptions {
    /// Address and port for operators, the same as the node's --internal-listen
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[arg(default_value = "127.0.0.1:3001", value_parser = values::address)]
    internal_listen: SocketAddr,
}

/// Asks the node to drain. Returns once it has begun.
pub(crate) fn drain(options: &DrainOptions) -> io::Result<()> {
    let address = reachable(options.internal_listen);
    let named = |error: io::Error| {
        let remedy = "--internal-listen has to be the address of the node";
        let text = format!("no node responds at {address}: {error}; {remedy}");
        io::Error::new(error.kind(), text)
    };
    let header = format!("{DRAIN_HEADER}: 1\r\n");
    let response = exchange(address, "POST /drain", &header).map_err(named)?;
    let status = response.split(' ').nth(1).unwrap_or_default();
    if status == "202" {
        return Ok(());
    }
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let text = format!("{address} refuses with status {status}: {}", body.trim());
    Err(io::Error::other(text))
}

/// Sends a request without a body to an internal port, such as `GET /metrics`, and
/// returns the response. Each header ends with a line break.
/// Written by hand, because the command needs neither a runtime nor a client for one
/// request.
pub(super) fn exchange(address: SocketAddr, request: &str, headers: &str) -> io::Result<String> {
    let address = reachable(address);
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {address}\r\n{headers}Connection: close\r\n\
         Content-Length: 0\r\n\r\n"
    )?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}

/// The address to connect to. A node may listen on all addresses of the machine.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        match address {
            SocketAddr::V4(_) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(_) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        }
    }
    address
}
