//! Notifies systemd of the state of the process (`sd_notify(3)`), for units with `Type=notify`.
//!
//! Without it, systemd considers a node started as soon as the process exists, although Redis may
//! be unreachable and the port not open yet.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::net::{SocketAddr, UnixDatagram},
};

/// The socket of the service manager, if one started the process.
pub(super) struct Notify(Option<OsString>);

impl Notify {
    pub(super) fn from_environment() -> Self {
        Self(env::var_os("NOTIFY_SOCKET"))
    }

    /// The node accepts clients.
    pub(super) fn ready(&self) {
        self.send("READY=1");
    }

    /// The node drains.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// A failure is only logged, because clients can be served without systemd knowing.
    fn send(&self, state: &str) {
        if let Some(socket) = &self.0
            && let Err(error) = send(socket, state)
        {
            tracing::warn!(%error, ?socket, state, "could not notify the service manager");
        }
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = address(socket)?;
    let datagram = UnixDatagram::unbound()?;
    // A service manager that hangs must not stop the server.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    {
        use std::os::{linux::net::SocketAddrExt as _, unix::ffi::OsStrExt as _};
        // A leading @ stands for the zero byte of an abstract address.
        if let Some(name) = socket.as_bytes().strip_prefix(b"@") {
            return SocketAddr::from_abstract_name(name);
        }
    }
    SocketAddr::from_pathname(socket)
}
