//! An application behind a program: a web server whose test gives the responses.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    thread,
};

use serde_json::Value;

use crate::process::DEADLINE;

/// A request to the application.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) line: String,
    /// Names are in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    /// Returns `None` if the connection ends without one.
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut lines = reader.by_ref().lines().map_while(Result::ok);
        let line = lines.next()?;
        let headers = lines.take_while(|line| !line.is_empty()).map(|header| {
            let (name, value) = header.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        });
        let mut request = Self {
            line,
            headers: headers.collect(),
            body: String::new(),
        };
        let length = request.header("content-length").unwrap_or("0");
        let length = length.parse().unwrap();
        reader
            .take(length)
            .read_to_string(&mut request.body)
            .unwrap();
        Some(request)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn path(&self) -> &str {
        self.line.split([' ', '?']).nth(1).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let (_, value) = headers.find(|(known, _)| known == name)?;
        Some(value)
    }
}

/// An application that responds to each request on a thread of its own.
pub(crate) struct Application {
    pub(crate) url: String,
    pub(crate) requests: Receiver<Request>,
}

impl Application {
    /// `respond` returns the status and the body of a response.
    pub(crate) fn start(
        respond: impl Fn(&Request) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (seen, requests) = channel();
        let respond = Arc::new(respond);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (respond, seen, mut stream) = (respond.clone(), seen.clone(), stream.unwrap());
                thread::spawn(move || {
                    let Some(request) = Request::read(&stream) else {
                        return;
                    };
                    // The test may be over.
                    drop(seen.send(request.clone()));
                    let (status, body) = respond(&request);
                    let length = body.len();
                    let response = format!(
                        "HTTP/1.1 {status} x\r\nX-App: yes\r\nSet-Cookie: a=b\r\nLocation: /\r\n\
                         Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
                    );
                    // The program may have given up.
                    drop(stream.write_all(response.as_bytes()));
                });
            }
        });
        Self { url, requests }
    }

    /// The next request that arrived.
    pub(crate) fn request(&self) -> Request {
        self.requests.recv_timeout(DEADLINE).expect("a request")
    }
}
