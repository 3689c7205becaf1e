//! Addresses of Socket.IO servers, and the check of each before the measurement.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use serde_json::Value;

use crate::{
    codec::http::{self, Answer},
    failure::Failure,
};

/// A server or a load balancer.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The argument.
    pub(crate) name: String,
    /// Value of the header `Host`.
    pub(crate) host: String,
    pub(crate) address: SocketAddr,
    /// Begins and ends with a slash.
    pub(crate) path: String,
}

impl Target {
    /// Parses `http://HOST:PORT[/PATH]`, `ws://…` or `HOST:PORT`; without a path, `default_path`.
    pub(crate) fn parse(text: &str, default_path: &str) -> Result<Self, Failure> {
        let wrong = |what: &str| Failure::Arguments(format!("{text}: {what}"));
        let rest = match text.split_once("://") {
            Some(("http" | "ws", rest)) => rest,
            Some(("https" | "wss", _)) => {
                return Err(wrong(
                    "TLS is not supported; measure behind the TLS terminator",
                ));
            }
            Some(_) => return Err(wrong("the scheme is http:// or ws://")),
            None => text,
        };
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) if !path.is_empty() => (host, format!("/{path}")),
            Some((host, _)) => (host, default_path.to_owned()),
            None => (rest, default_path.to_owned()),
        };
        if path.contains(['?', '#', ' ']) || !path.starts_with('/') {
            return Err(wrong("a path is like /socket.io/"));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(name, port)| {
            port.parse::<u16>().is_ok() && (!name.contains(':') || name.ends_with(']'))
        });
        let host = if has_port {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let mut found = host
            .to_socket_addrs()
            .map_err(|error| wrong(&format!("no such host ({error})")))?;
        let address = found.next().ok_or_else(|| wrong("no such host"))?;
        Ok(Self {
            name: text.to_owned(),
            host,
            address,
            path: if path.ends_with('/') {
                path
            } else {
                format!("{path}/")
            },
        })
    }

    /// Path and query of a request.
    pub(crate) fn query(&self, transport: &str, sid: &str) -> String {
        let path = &self.path;
        if sid.is_empty() {
            format!("{path}?EIO=4&transport={transport}")
        } else {
            format!("{path}?EIO=4&transport={transport}&sid={sid}")
        }
    }

    /// Opens and closes a polling session to check the server. Without `needs_polling`, a server
    /// that offers only WebSocket passes.
    pub(crate) fn check(&self, needs_polling: bool) -> Result<(), Failure> {
        let answer = self.exchange(&self.query("polling", ""), None)?;
        let text = String::from_utf8_lossy(&answer.body);
        if answer.status == 200
            && let Some(sid) = session(&text)
        {
            // It would expire after the ping timeout anyway.
            drop(self.exchange(&self.query("polling", &sid), Some(b"1")));
            return Ok(());
        }
        let error = serde_json::from_str::<Value>(&text).unwrap_or_default();
        match error["code"].as_u64() {
            Some(0) if needs_polling => Err(self.is_not("it does not offer polling")),
            Some(0) => Ok(()),
            Some(5) => Err(self.is_not("it does not support revision 4 of Engine.IO")),
            _ => {
                let start: String = text.chars().take(100).collect();
                let status = answer.status;
                Err(self.is_not(&format!("it returns status {status}: {start:?}")))
            }
        }
    }

    fn is_not(&self, what: &str) -> Failure {
        Failure::NotSocketIo(format!(
            "{} is not a Socket.IO server at {}: {what}",
            self.name, self.path
        ))
    }

    pub(crate) fn exchange(&self, query: &str, body: Option<&[u8]>) -> Result<Answer, Failure> {
        let mut request = Vec::new();
        http::request(&mut request, &self.host, query, "", body);
        let exchange = || -> io::Result<Answer> {
            let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            http::exchange(&mut stream, &request)
        };
        exchange().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => self.is_not("it does not respond"),
            ErrorKind::InvalidData => self.is_not("its response is not HTTP"),
            _ => Failure::Unreachable(format!("{} is unreachable: {error}", self.name)),
        })
    }
}

/// The session id in an opening packet.
fn session(body: &str) -> Option<String> {
    let packet = body.split('\u{1e}').next()?;
    let opening: Value = serde_json::from_str(packet.strip_prefix('0')?).ok()?;
    Some(opening["sid"].as_str()?.to_owned())
}

/// Timeout of the first request.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn an_address_has_a_host_a_port_and_a_path() {
        for (text, host, path) in [
            ("http://127.0.0.1:3000", "127.0.0.1:3000", "/socket.io/"),
            ("ws://127.0.0.1:3000/", "127.0.0.1:3000", "/socket.io/"),
            ("127.0.0.1:3000/rt", "127.0.0.1:3000", "/rt/"),
            ("http://127.0.0.1/a/b/", "127.0.0.1:80", "/a/b/"),
            ("http://[::1]:9", "[::1]:9", "/socket.io/"),
        ] {
            let target = Target::parse(text, "/socket.io/").unwrap();
            assert_eq!((target.host.as_str(), target.path.as_str()), (host, path));
        }
    }

    #[test]
    fn an_address_that_cannot_be_reached_is_refused_with_the_reason() {
        for (text, reason) in [
            ("https://127.0.0.1:1", "TLS"),
            ("redis://127.0.0.1:1", "scheme"),
            ("127.0.0.1:99999", "no such host"),
            ("127.0.0.1:1/a?b", "path"),
            ("", "no such host"),
        ] {
            match Target::parse(text, "/socket.io/") {
                Err(Failure::Arguments(said)) => assert!(said.contains(reason), "{said}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    /// A server that answers its first connection with these bytes.
    fn answering(bytes: &'static str) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let mut stream = stream.unwrap();
                let mut request = [0; 1000];
                if stream.read(&mut request).unwrap() > 0 {
                    stream.write_all(bytes.as_bytes()).unwrap();
                }
            }
        });
        Target::parse(&address, "/socket.io/").unwrap()
    }

    #[test]
    fn a_server_that_is_no_socket_io_server_is_told_from_one_that_is() {
        let page = "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone";
        let old = "HTTP/1.1 400 Bad\r\nContent-Length: 42\r\n\r\n{\"code\":5,\"message\":\"Unsupported version\"}";
        for (bytes, reason) in [
            (page, "404"),
            (old, "revision 4"),
            ("SSH-2.0-x\r\n", "HTTP"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "200"),
        ] {
            match answering(bytes).check(false) {
                Err(Failure::NotSocketIo(said)) => assert!(said.contains(reason), "{said}"),
                other => panic!("{bytes}: {other:?}"),
            }
        }
        let open = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n0{\"sid\":\"a\"}";
        assert_eq!(answering(open).check(true), Ok(()));
        let websocket_only = "HTTP/1.1 400 Bad\r\nContent-Length: 10\r\n\r\n{\"code\":0}";
        assert_eq!(answering(websocket_only).check(false), Ok(()));
        assert!(answering(websocket_only).check(true).is_err());
    }
}
